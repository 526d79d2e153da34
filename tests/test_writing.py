"""Output appears whole or not at all, and nothing that is not ours is ever removed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmcompile
from llmcompile.errors import CheckpointError, OutputError
from llmcompile.writing import MANIFEST, HashedFile, Kept, WorkDirectory, free_name, hash_file, output_errors

SRC = str(Path(llmcompile.__file__).parents[1])
JOB = {"model": "m", "tp": 2}
MIB = 1 << 20


def work_directory(output: Path, *, resume: bool = False, force: bool = False, tp: int = 2) -> WorkDirectory:
    """A claim on `output` by a job of `tp` ranks."""
    return WorkDirectory(output, job={**JOB, "tp": tp}, resume=resume, force=force)


def artifact(folder: Path, content: bytes = b"old", *, listed: tuple[str, ...] = ("a.bin",)) -> Path:
    """An artifact of one file whose manifest lists `listed`."""
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps({"files": [{"path": name} for name in listed]}))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs `code` with llmcompile importable."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SRC},
    )


# HashedFile


@pytest.fixture(params=["disk", "/dev/shm"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on disk, and one in memory, where some kernels refuse direct writes."""
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm is not writable here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


SIZES = [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 4096, 9 * MIB + 5]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_any_size_is_stored_as_written(size: int, place: Path) -> None:
    """Sizes around a page, the limit of direct writes and the staging buffer hold the bytes that were given."""
    content = random.Random(size).randbytes(size)
    file = HashedFile(place / "x.bin", size)

    file.write(memoryview(content))
    file.finish()

    assert (place / "x.bin").read_bytes() == content


@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_any_size_is_hashed(size: int, place: Path) -> None:
    """The record of a finished file has its size and the sha256 that hashlib computes."""
    content = random.Random(size).randbytes(size)
    file = HashedFile(place / "x.bin", size)

    file.write(memoryview(content))
    written = file.finish()

    assert (written.size_bytes, written.sha256) == (size, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("staging", [4096, 256 << 10, 4 * MIB])
def test_blocks_of_uneven_sizes_are_joined(staging: int, place: Path) -> None:
    """Blocks that are no multiple of a disk block, or span several staging buffers, follow each other without a gap."""
    chance = random.Random(7)
    blocks = [chance.randbytes(size) for size in (1, 4095, 300_001, 0, 2 * MIB, 777, 5 * MIB + 3)]
    file = HashedFile(place / "x.bin", sum(map(len, blocks)), staging_bytes=staging)

    for block in blocks:
        file.write(memoryview(block))
    written = file.finish()

    assert (place / "x.bin").read_bytes() == b"".join(blocks)
    assert written.sha256 == hashlib.sha256(b"".join(blocks)).hexdigest()


@pytest.mark.parametrize("size", [3, 2 * MIB + 3])
def test_a_file_has_its_name_only_when_it_is_finished(size: int, tmp_path: Path) -> None:
    """Until then it ends in .part, so that a file by its right name is always whole."""
    file = HashedFile(tmp_path / "x.bin", size)
    file.write(memoryview(bytes(size)))

    before = [path.name for path in tmp_path.iterdir()]
    file.finish()

    assert before == ["x.bin.part"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_a_file_given_up_leaves_only_its_part(tmp_path: Path) -> None:
    """Closing without finishing does not make the file appear."""
    file = HashedFile(tmp_path / "x.bin", 5)
    file.write(memoryview(b"12"))

    file.close()

    assert [path.name for path in tmp_path.iterdir()] == ["x.bin.part"]


def test_a_file_replaces_the_part_of_an_earlier_attempt(tmp_path: Path) -> None:
    """What an interrupted run left in .part is overwritten from the start."""
    (tmp_path / "x.bin.part").write_bytes(b"much more than before")
    file = HashedFile(tmp_path / "x.bin", 3)

    file.write(memoryview(b"new"))
    file.finish()

    assert (tmp_path / "x.bin").read_bytes() == b"new"


def test_a_file_makes_the_folders_above_it(tmp_path: Path) -> None:
    """The folder inside the artifact is created with the first file in it."""
    file = HashedFile(tmp_path / "2-gpu" / "x.bin", 1)

    file.write(memoryview(b"1"))
    file.finish()

    assert (tmp_path / "2-gpu" / "x.bin").read_bytes() == b"1"


def test_a_file_of_fewer_bytes_than_announced_is_a_bug_of_ours(tmp_path: Path) -> None:
    """Finishing early raises an AssertionError that tells both sizes."""
    file = HashedFile(tmp_path / "x.bin", 5)
    file.write(memoryview(b"12"))

    with pytest.raises(AssertionError, match="wrote 2 of 5 bytes"):
        file.finish()
    file.close()


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_a_file_may_be_closed_twice(size: int, tmp_path: Path) -> None:
    """Closing after finishing, as a finally clause does, is harmless."""
    file = HashedFile(tmp_path / "x.bin", size)
    file.write(memoryview(bytes(size)))

    file.finish()
    file.close()

    assert (tmp_path / "x.bin").stat().st_size == size


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path: Path) -> None:
    """A place that cannot be written to is named with the system's reason."""
    (tmp_path / "2-gpu").write_bytes(b"")

    with pytest.raises(OutputError, match=r"2-gpu.*(exists|directory)"):
        HashedFile(tmp_path / "2-gpu" / "x.bin", 1)


def test_hash_of_a_file_is_hashlibs(tmp_path: Path) -> None:
    """A file of several pieces is hashed to its end."""
    content = random.Random(1).randbytes(2 * MIB + 17)
    (tmp_path / "x").write_bytes(content)

    written = hash_file(tmp_path / "x")

    assert (written.size_bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


# A full disk


LIMITED = """
import resource, sys
from pathlib import Path
from llmcompile.errors import LlmCompileError
from llmcompile.writing import WorkDirectory

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
size = int(sys.argv[2])
try:
    with WorkDirectory(Path(sys.argv[1]), job={}, resume=True, force=False) as work:
        file = work.create("x.bin", size)
        for _ in range(size >> 12):
            file.write(memoryview(bytes(4096)))
        file.finish()
except LlmCompileError as error:
    print(error)
    print(error.problems[0].hint)
    sys.exit(error.exit_code)
"""


def test_a_file_that_does_not_fit_ends_with_exit_code_8(tmp_path: Path) -> None:
    """Beyond the process's file size limit the error is OutputError's, with bytes needed and free and what to type."""
    with python(LIMITED, tmp_path / "out", 5 * MIB) as child:
        told, _ = child.communicate()

    assert child.returncode == 8
    assert f"File too large: {5 * MIB} bytes to write," in told
    assert "bytes free on the disk" in told
    assert "--resume" in told


def test_a_file_that_does_not_fit_leaves_no_output(tmp_path: Path) -> None:
    """After a failed write there is the work directory to resume from, and nothing by the output's name."""
    with python(LIMITED, tmp_path / "out", 5 * MIB) as child:
        child.communicate()

    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_met_before_the_work(small_disk: Path) -> None:
    """A file larger than the disk is refused when it is created, with the bytes it needs and the way on."""
    with (
        work_directory(small_disk / "out") as work,
        pytest.raises(OutputError, match=f"No space left on device: {8 * MIB} bytes to write") as caught,
    ):
        work.create("x.bin", 8 * MIB)

    assert caught.value.problems[0].hint == "make room, then run the same command with --resume"


def test_a_disk_that_fills_up_can_be_resumed(small_disk: Path) -> None:
    """What was finished before the disk was full is still known after room was made."""
    (small_disk / "ballast").write_bytes(bytes(2 * MIB))
    with work_directory(small_disk / "out") as work:
        work.write_bytes("a.bin", b"a")
        with pytest.raises(OutputError):
            work.create("b.bin", 3 * MIB)
    (small_disk / "ballast").unlink()

    with work_directory(small_disk / "out", resume=True) as work:
        work.write_bytes("b.bin", bytes(3 * MIB))
        finished = set(work.finished)

    assert finished == {"a.bin", "b.bin"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_errors_of_room_say_what_is_needed_and_free(number: int, tmp_path: Path) -> None:
    """A full disk, an exhausted quota and a size limit are told with bytes, also for a file that does not exist yet."""
    with (
        pytest.raises(OutputError, match=r"123 bytes to write, \d+ bytes free"),
        output_errors(tmp_path / "a" / "b", 123),
    ):
        raise OSError(number, os.strerror(number))


def test_other_errors_keep_the_systems_reason(tmp_path: Path) -> None:
    """An input/output error is told by the system's words and the file's name."""
    with (
        pytest.raises(OutputError, match=r"x: Input/output error; expected a writable place"),
        output_errors(tmp_path / "x", 1),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


# Claiming an output


def test_publishing_renames_the_work_directory(tmp_path: Path) -> None:
    """The output appears with the files and without the journal, and the work directory is gone."""
    with work_directory(tmp_path / "out") as work:
        work.write_bytes("2-gpu/x.bin", b"x")
        before = (tmp_path / "out").exists()
        work.publish()

    assert not before
    assert tree(tmp_path) == {"out/2-gpu/x.bin": b"x"}


def test_sweeping_leaves_what_is_finished(tmp_path: Path) -> None:
    """Debris goes, with folders that held nothing else and links, not what they point to; finished files stay."""
    (tmp_path / "elsewhere").write_bytes(b"mine")
    with work_directory(tmp_path / "out") as work:
        work.write_bytes("2-gpu/x.bin", b"x")
        (work.path / "engine").mkdir()
        (work.path / "engine" / "rank0.engine").write_bytes(b"half")
        (work.path / "2-gpu" / "y.bin.part").write_bytes(b"torn")
        (work.path / "link").symlink_to(tmp_path / "elsewhere")
        work.sweep()
        work.publish()

    assert tree(tmp_path) == {"elsewhere": b"mine", "out/2-gpu/x.bin": b"x"}


def test_publishing_keeps_the_directory_itself(tmp_path: Path) -> None:
    """Nothing is copied: the output is the same inode the work directory was."""
    with work_directory(tmp_path / "out") as work:
        inode = work.path.stat().st_ino
        work.publish()

    assert (tmp_path / "out").stat().st_ino == inode


def test_publishing_over_an_empty_directory_takes_its_place(tmp_path: Path) -> None:
    """An output directory that exists and is empty is no obstacle."""
    (tmp_path / "out").mkdir()

    with work_directory(tmp_path / "out") as work:
        work.write_bytes("x.bin", b"x")
        work.publish()

    assert tree(tmp_path) == {"out/x.bin": b"x"}


def test_an_existing_artifact_is_refused(tmp_path: Path) -> None:
    """Without --force an artifact is not replaced, and the message says what to type."""
    artifact(tmp_path / "out")

    with pytest.raises(OutputError, match="exists") as caught:
        work_directory(tmp_path / "out")

    assert "--force" in caught.value.problems[0].hint


def test_a_refused_output_leaves_no_work_directory(tmp_path: Path) -> None:
    """Refusing comes before anything is created."""
    artifact(tmp_path / "out")

    with pytest.raises(OutputError):
        work_directory(tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_leaves_the_old_artifact_in_place_until_the_end(tmp_path: Path) -> None:
    """While the new artifact is made, the old one is there, untouched."""
    before = tree(artifact(tmp_path / "out"))

    with work_directory(tmp_path / "out", force=True) as work:
        work.write_bytes("a.bin", b"new")
        during = tree(tmp_path / "out")

    assert during == before


def test_force_replaces_the_old_artifact(tmp_path: Path) -> None:
    """After publishing only the new files are there, and the old ones left nothing behind."""
    artifact(tmp_path / "out")

    with work_directory(tmp_path / "out", force=True) as work:
        work.write_bytes("b.bin", b"new")
        work.publish()

    assert tree(tmp_path) == {"out/b.bin": b"new"}


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_that_is_not_ours_is_never_replaced(force: bool, tmp_path: Path) -> None:
    """A directory without our manifest is refused, --force or not, and stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputError, match="not an artifact of llmcompile"):
        work_directory(tmp_path / "out", force=force)

    assert tree(tmp_path) == {"out/thesis.tex": b"years of work"}


@pytest.mark.parametrize("stranger", ["notes.txt", "2-gpu/notes.txt", ".hidden"])
def test_force_refuses_an_artifact_with_files_of_others(stranger: str, tmp_path: Path) -> None:
    """A file the manifest does not list is named, and nothing is removed."""
    artifact(tmp_path / "out")
    (tmp_path / "out" / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / stranger).write_text("mine")

    with pytest.raises(OutputError, match=stranger):
        work_directory(tmp_path / "out", force=True)

    assert (tmp_path / "out" / stranger).read_text() == "mine"


def test_force_refuses_an_artifact_with_a_link_to_a_directory(tmp_path: Path) -> None:
    """A link that somebody put into the artifact is somebody's file too."""
    artifact(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OutputError, match="does not list: link"):
        work_directory(tmp_path / "out", force=True)


def test_a_stranger_that_came_during_the_work_stops_the_replacement(tmp_path: Path) -> None:
    """The check is repeated before the exchange, so a file added meanwhile survives."""
    artifact(tmp_path / "out")

    with work_directory(tmp_path / "out", force=True) as work:
        work.write_bytes("a.bin", b"new")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"notes\.txt"):
            work.publish()

    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_output_that_came_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    """Without --force, publishing refuses an output that another process published first."""
    with work_directory(tmp_path / "out") as work:
        work.write_bytes("a.bin", b"new")
        artifact(tmp_path / "out")
        with pytest.raises(OutputError, match="exists"):
            work.publish()

    assert (tmp_path / "out" / "a.bin").read_bytes() == b"old"


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"files": 3}', '{"files": [{}]}', "null"])
def test_force_refuses_an_artifact_whose_manifest_is_damaged(manifest: str, tmp_path: Path) -> None:
    """What the manifest does not list cannot be told from strangers, so nothing is replaced."""
    artifact(tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_text(manifest)

    with pytest.raises(OutputError, match=r"does not list: a\.bin"):
        work_directory(tmp_path / "out", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_an_output_that_is_a_file_is_refused(force: bool, tmp_path: Path) -> None:
    """A file by the output's name is neither replaced nor removed."""
    (tmp_path / "out").write_text("mine")

    with pytest.raises(OutputError, match="exists and is not a directory"):
        work_directory(tmp_path / "out", force=force)


@pytest.mark.parametrize("target", ["nowhere", "elsewhere"])
def test_an_output_that_is_a_link_is_refused(target: str, tmp_path: Path) -> None:
    """A symbolic link, dangling or to a directory, is not followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / target)

    with pytest.raises(OutputError, match="exists and is not a directory"):
        work_directory(tmp_path / "out", force=True)


def test_a_leftover_work_directory_is_refused_without_resume(tmp_path: Path) -> None:
    """A run that did not finish is neither continued nor removed unasked, and both ways out are named."""
    with work_directory(tmp_path / "out"):
        pass

    with pytest.raises(OutputError, match="left over") as caught:
        work_directory(tmp_path / "out")

    assert "--resume" in caught.value.problems[0].hint
    assert f"rm -r {tmp_path}/out.partial" in caught.value.problems[0].hint


def test_resuming_without_anything_left_over_begins(tmp_path: Path) -> None:
    """--resume with no work directory is a first run."""
    with work_directory(tmp_path / "out", resume=True) as work:
        assert work.finished == {}


# The journal


def test_finished_files_are_known_to_the_next_run(tmp_path: Path) -> None:
    """A recorded file whose bytes still are what the journal says is finished."""
    with work_directory(tmp_path / "out") as work:
        written = work.write_bytes("a.bin", b"abc")

    with work_directory(tmp_path / "out", resume=True) as work:
        assert dict(work.finished) == {"a.bin": written}


@pytest.mark.parametrize("content", [b"abd", b"ab", b""])
def test_a_file_that_changed_is_not_finished(content: bytes, tmp_path: Path) -> None:
    """A recorded file with other bytes, or fewer, is not trusted."""
    with work_directory(tmp_path / "out") as work:
        work.write_bytes("a.bin", b"abc")
    (tmp_path / "out.partial" / "a.bin").write_bytes(content)

    with work_directory(tmp_path / "out", resume=True) as work:
        assert work.finished == {}


def test_a_file_without_its_record_is_not_finished(tmp_path: Path) -> None:
    """A file that was renamed into place but not yet recorded is not trusted."""
    with work_directory(tmp_path / "out") as work:
        file = work.create("a.bin", 1)
        file.write(memoryview(b"a"))
        file.finish()

    with work_directory(tmp_path / "out", resume=True) as work:
        assert work.finished == {}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_ignored_for_good(cut: int, tmp_path: Path) -> None:
    """A journal whose last line was cut loses that file alone, and what is appended after it is read back."""
    with work_directory(tmp_path / "out") as work:
        work.write_bytes("a.bin", b"a")
        work.write_bytes("b.bin", b"b")
    journal = tmp_path / "out.partial" / ".journal"
    os.truncate(journal, journal.stat().st_size - cut)

    with work_directory(tmp_path / "out", resume=True) as work:
        second = set(work.finished)
        work.write_bytes("c.bin", b"c")
    with work_directory(tmp_path / "out", resume=True) as work:
        third = set(work.finished)

    assert second == {"a.bin"}
    assert third == {"a.bin", "c.bin"}


@pytest.mark.parametrize("length", [0, 1, 10])
def test_a_journal_torn_in_its_first_line_begins_anew(length: int, tmp_path: Path) -> None:
    """A run killed while it wrote its very first line is resumed as a new one, and once more after that."""
    with work_directory(tmp_path / "out"):
        pass
    os.truncate(tmp_path / "out.partial" / ".journal", length)

    with work_directory(tmp_path / "out", resume=True) as work:
        work.write_bytes("a.bin", b"a")
    with work_directory(tmp_path / "out", resume=True) as work:
        finished = set(work.finished)

    assert finished == {"a.bin"}


def test_a_directory_without_a_journal_is_not_taken_over(tmp_path: Path) -> None:
    """Somebody's directory that happens to be called OUTPUT.partial is refused and kept."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputError, match=r"no journal beside thesis\.tex"):
        work_directory(tmp_path / "out", resume=True)

    assert (tmp_path / "out.partial" / "thesis.tex").read_text() == "years of work"


def test_another_job_is_refused_by_the_keys_that_changed(tmp_path: Path) -> None:
    """The message names each key with both values, and none that is the same."""
    with work_directory(tmp_path / "out", tp=2):
        pass

    with pytest.raises(OutputError, match="belongs to another job: tp was 2, now 4") as caught:
        work_directory(tmp_path / "out", resume=True, tp=4)

    assert "model" not in caught.value.problems[0].found


def test_a_refused_job_does_not_keep_the_lock(tmp_path: Path) -> None:
    """After another job was refused, the right one can be resumed by the same process."""
    with work_directory(tmp_path / "out", tp=2) as work:
        work.write_bytes("a.bin", b"a")
    with pytest.raises(OutputError):
        work_directory(tmp_path / "out", resume=True, tp=4)

    with work_directory(tmp_path / "out", resume=True, tp=2) as work:
        assert set(work.finished) == {"a.bin"}


def test_leaving_the_context_keeps_the_work(tmp_path: Path) -> None:
    """An exception in the work leaves the directory to resume from."""

    def fail() -> None:
        with work_directory(tmp_path / "out") as work:
            work.write_bytes("a.bin", b"a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert (tmp_path / "out.partial" / "a.bin").read_bytes() == b"a"


# The lock


HOLDER = """
import sys
from pathlib import Path
from llmcompile.writing import WorkDirectory

with WorkDirectory(Path(sys.argv[1]), job={"model": "m", "tp": 2}, resume=True, force=False):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_do_not_work_in_one_directory(tmp_path: Path) -> None:
    """While one process is at work, another is refused."""
    with python(HOLDER, tmp_path / "out") as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            with pytest.raises(OutputError, match="another llmcompile is at work in it"):
                work_directory(tmp_path / "out", resume=True)
        finally:
            child.communicate("\n")


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """A process that was killed does not keep others out."""
    with python(HOLDER, tmp_path / "out") as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.communicate()

    with work_directory(tmp_path / "out", resume=True) as work:
        assert work.finished == {}


# Rejecting and discarding


def test_a_rejected_artifact_is_kept_under_another_name(tmp_path: Path) -> None:
    """The files move to OUTPUT.rejected without the journal, and there is no output."""
    with work_directory(tmp_path / "out") as work:
        work.write_bytes("a.bin", b"a")
        found = work.reject()

    assert found == tmp_path / "out.rejected"
    assert tree(tmp_path) == {"out.rejected/a.bin": b"a"}


def test_rejected_artifacts_are_numbered(tmp_path: Path) -> None:
    """The second is -2 and the third -3, and the first is left alone."""
    names = []
    for _ in range(3):
        with work_directory(tmp_path / "out") as work:
            names.append(work.reject().name)

    assert names == ["out.rejected", "out.rejected-2", "out.rejected-3"]


def test_a_free_name_does_not_take_a_dangling_links_place(tmp_path: Path) -> None:
    """A link to nowhere counts as taken."""
    (tmp_path / "out.rejected").symlink_to(tmp_path / "nowhere")

    assert free_name(tmp_path / "out", "rejected") == tmp_path / "out.rejected-2"


def test_discarding_removes_the_work_and_the_parents_made_for_it(tmp_path: Path) -> None:
    """After discarding, the file system is as it was before."""
    with work_directory(tmp_path / "a" / "b" / "out") as work:
        work.write_bytes("x.bin", b"x")
        work.discard()

    assert list(tmp_path.iterdir()) == []


def test_discarding_keeps_parents_that_hold_something_else(tmp_path: Path) -> None:
    """A parent that was made for the work and got other files meanwhile stays."""
    with work_directory(tmp_path / "a" / "out") as work:
        (tmp_path / "a" / "other").write_text("mine")
        work.discard()

    assert tree(tmp_path) == {"a/other": b"mine"}


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    """Files are readable by whom the umask lets, not by the owner alone."""
    old = os.umask(0o022)
    try:
        with work_directory(tmp_path / "out") as work:
            work.write_bytes("x.bin", b"x")
    finally:
        os.umask(old)

    assert stat.S_IMODE((tmp_path / "out.partial" / "x.bin").stat().st_mode) == 0o644


def test_a_file_that_cannot_be_claimed_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """A creation that fails for lack of room closes what it had opened."""
    before = set(os.listdir("/proc/self/fd"))

    with pytest.raises(OutputError):
        HashedFile(tmp_path / "x.bin", 1 << 60)

    assert set(os.listdir("/proc/self/fd")) <= before


# Files that are continued


PAGE = 4096


@pytest.mark.parametrize("size", [5, 1000, MIB + 17, 3 * MIB])
def test_a_mark_is_reported_once_its_bytes_have_left_the_buffer(size: int, place: Path) -> None:
    """What is reported, and no more, is on disk at that moment; each mark is reported once, in order."""
    content = random.Random(size).randbytes(size)
    pieces = [content[start : start + 700_001] for start in range(0, size, 700_001)]
    output = HashedFile(place / "a", size, staging_bytes=64 * PAGE)
    reported: list[tuple[int, str]] = []

    for piece in pieces:
        output.write(memoryview(piece))
        output.mark()
        new = output.durable()
        for end, digest in new:
            on_disk = (place / "a.part").read_bytes()[:end]
            assert (on_disk, digest) == (content[:end], hashlib.sha256(content[:end]).hexdigest())
        reported += new
    output.finish()

    assert reported == sorted(set(reported))


def test_a_mark_in_the_buffer_is_not_reported(place: Path) -> None:
    """Bytes that are only in memory would be lost by a kill, so nothing is said about them."""
    output = HashedFile(place / "a", 2 * MIB, staging_bytes=MIB)
    direct = output._staging is not None
    output.write(memoryview(bytes(MIB // 2)))
    output.mark()

    early = output.durable()
    output.write(memoryview(bytes(MIB)))
    late = output.durable()
    output.close()

    assert ([end for end, _ in early], [end for end, _ in late]) == (([], [MIB // 2]) if direct else ([MIB // 2], []))


def test_marks_wait_for_the_buffer_where_files_are_written_past_the_cache(tmp_path: Path) -> None:
    """On this disk large files are written directly, so the buffer's half is not reported before it is full."""
    output = HashedFile(tmp_path / "a", 2 * MIB, staging_bytes=MIB)
    if output._staging is None:
        output.close()
        pytest.skip("no O_DIRECT here")
    output.write(memoryview(bytes(MIB - 1)))
    output.mark()
    before = output.durable()
    output.write(memoryview(bytes(1)))
    output.mark()
    after = output.durable()
    output.close()

    assert (before, [end for end, _ in after]) == ([], [MIB - 1, MIB])


@pytest.mark.parametrize("total", [3 * PAGE + 5, MIB + 17, 2 * MIB])
@pytest.mark.parametrize("kept_bytes", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_a_kept_beginning_is_continued(kept_bytes: int, total: int, place: Path) -> None:
    """The file is what one run writes, and so is its hash, wherever the beginning ends within a disk block."""
    content = random.Random(total).randbytes(total)
    part = place / "a.part"
    part.write_bytes(content[:kept_bytes] + b"garbage that a killed run left")
    kept = Kept(kept_bytes, hashlib.sha256(content[:kept_bytes]), {})

    output = HashedFile(place / "a", total, staging_bytes=16 * PAGE, kept=kept)
    output.write(memoryview(content[kept_bytes:]))
    found = output.finish()

    assert (place / "a").read_bytes() == content
    assert (found.size_bytes, found.sha256) == (total, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("total", [2 * PAGE + 5, MIB + 5])
def test_a_file_kept_whole_is_only_finished(total: int, place: Path) -> None:
    """Nothing is left to write: the file gets its name, with the bytes it has."""
    content = random.Random(total).randbytes(total)
    (place / "a.part").write_bytes(content + b"and more")

    found = HashedFile(place / "a", total, kept=Kept(total, hashlib.sha256(content), {})).finish()

    assert (place / "a").read_bytes() == content
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def unfinished(tmp_path: Path, content: bytes, marks: list[int], *, on_disk: bytes | None = None) -> None:
    """A work directory in which a run was stopped after it had noted `marks` of a file."""
    with work_directory(tmp_path / "out") as work:
        (work.path / "a.part").write_bytes(content if on_disk is None else on_disk)
        for mark in marks:
            work.progress("a", mark, hashlib.sha256(content[:mark]).hexdigest(), {"t": mark})


def kept_of(tmp_path: Path) -> dict[str, int]:
    """File -> bytes that the next run keeps."""
    with work_directory(tmp_path / "out", resume=True) as work:
        return {file: kept.size_bytes for file, kept in work.kept.items()}


CONTENT = random.Random(5).randbytes(3000)


def test_the_longest_beginning_is_kept(tmp_path: Path) -> None:
    """Of several marks, the last whose bytes are there."""
    unfinished(tmp_path, CONTENT, [100, 1000, 2500])

    assert kept_of(tmp_path) == {"a": 2500}


@pytest.mark.parametrize(
    ("flipped", "expected"), [(50, {}), (500, {"a": 100}), (2000, {"a": 1000}), (2700, {"a": 2500})]
)
def test_what_lies_before_a_damaged_byte_is_kept(flipped: int, expected: dict[str, int], tmp_path: Path) -> None:
    """A mark counts only if all bytes up to it are as they were."""
    damaged = bytearray(CONTENT)
    damaged[flipped] ^= 1
    unfinished(tmp_path, CONTENT, [100, 1000, 2500], on_disk=bytes(damaged))

    assert kept_of(tmp_path) == expected


@pytest.mark.parametrize(("length", "expected"), [(99, {}), (100, {"a": 100}), (2499, {"a": 1000})])
def test_a_shorter_file_keeps_what_it_has(length: int, expected: dict[str, int], tmp_path: Path) -> None:
    """Marks beyond the end of the file do not count."""
    unfinished(tmp_path, CONTENT, [100, 1000, 2500], on_disk=CONTENT[:length])

    assert kept_of(tmp_path) == expected


def test_a_file_that_vanished_keeps_nothing(tmp_path: Path) -> None:
    """Without the part file there is nothing to go on from."""
    unfinished(tmp_path, CONTENT, [100])
    (tmp_path / "out.partial" / "a.part").unlink()

    assert kept_of(tmp_path) == {}


def test_marks_of_an_earlier_attempt_do_not_hide_later_ones(tmp_path: Path) -> None:
    """A run that had to start a file over, with other cuts, notes marks that are sorted in with the old ones."""
    unfinished(tmp_path, CONTENT, [1000])
    with work_directory(tmp_path / "out", resume=True) as work:
        for mark in (700, 2100):
            work.progress("a", mark, hashlib.sha256(CONTENT[:mark]).hexdigest(), {})

    assert kept_of(tmp_path) == {"a": 2100}


def test_a_finished_file_is_not_kept_as_a_beginning(tmp_path: Path) -> None:
    """Once a file is recorded whole, its marks have done their work."""
    with work_directory(tmp_path / "out") as work:
        output = work.create("a", len(CONTENT))
        output.write(memoryview(CONTENT))
        work.progress("a", 100, hashlib.sha256(CONTENT[:100]).hexdigest(), {})
        work.record("a", output.finish())

    with work_directory(tmp_path / "out", resume=True) as work:
        assert (set(work.finished), work.kept) == ({"a"}, {})


def test_what_overflowed_is_kept_with_the_beginning(tmp_path: Path) -> None:
    """The count of the mark that holds goes on."""
    unfinished(tmp_path, CONTENT, [100, 2500])

    with work_directory(tmp_path / "out", resume=True) as work:
        assert work.kept["a"].overflowed == {"t": 2500}


def test_creating_a_file_continues_what_is_kept(tmp_path: Path) -> None:
    """The work directory hands the beginning to the file of that name."""
    unfinished(tmp_path, CONTENT, [1000])

    with work_directory(tmp_path / "out", resume=True) as work:
        output = work.create("a", len(CONTENT))
        output.write(memoryview(CONTENT[1000:]))
        output.finish()

    assert (tmp_path / "out.partial" / "a").read_bytes() == CONTENT


def take(source: Path, output: Path, *, sha256: str | None = None, copy: bool = False) -> tuple[str, Path]:
    """Take a file over into a new work directory; how that was done, and where the file is."""
    with WorkDirectory(output, job={}, resume=False, force=False) as work:
        how = work.take("deep/file", source, sha256=sha256, copy=copy, advance=lambda size, file: None)
        assert work.finished["deep/file"].size_bytes == source.stat().st_size
        return how, work.path / "deep" / "file"


def test_a_file_on_another_disk_is_copied(tmp_path: Path) -> None:
    """Neither blocks nor a link can be shared across file systems."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        source = Path(folder) / "weights"
        source.write_bytes(b"x" * (1 << 20))

        how, path = take(source, tmp_path / "out")

        assert (how, path.read_bytes()) == ("copied", source.read_bytes())


def test_a_link_is_followed_when_taken_over(tmp_path: Path) -> None:
    """The hub cache's files are links; the package holds the file itself."""
    (tmp_path / "blob").write_bytes(b"x" * (1 << 20))
    (tmp_path / "link").symlink_to(tmp_path / "blob")

    _, path = take(tmp_path / "link", tmp_path / "out")

    assert not path.is_symlink()
    assert path.read_bytes() == (tmp_path / "blob").read_bytes()


def test_a_shared_file_without_a_record_is_read_once(tmp_path: Path) -> None:
    """Its hash is found, so that the manifest can have it."""
    (tmp_path / "weights").write_bytes(b"x" * (1 << 20))
    with WorkDirectory(tmp_path / "out", job={}, resume=False, force=False) as work:
        work.take("weights", tmp_path / "weights", sha256=None, copy=False, advance=lambda size, file: None)

        assert work.finished["weights"].sha256 == hashlib.sha256(b"x" * (1 << 20)).hexdigest()


def test_a_copy_that_differs_from_its_record_is_refused(tmp_path: Path) -> None:
    """The record was made when the file was right."""
    (tmp_path / "small").write_bytes(b"abc")

    with pytest.raises(CheckpointError, match="sha256"):
        take(tmp_path / "small", tmp_path / "out", sha256="0" * 64)
