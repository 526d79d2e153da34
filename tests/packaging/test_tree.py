"""A folder as a server finds it: on disk, in an archive, or planned."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from llmcompile.errors import CheckpointError
from llmcompile.packaging.tree import READ_BYTES, Tree, from_archive, from_folder, planned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files and an empty folder."""
    root = tmp_path / "root"
    (root / "models" / "1").mkdir(parents=True)
    (root / "models" / "config.pbtxt").write_text("name: 'a'")
    (root / "top.txt").write_text("ü")
    return root


def archive(path: Path, *names: str) -> Path:
    """A tar.gz with these members, each holding its own name."""
    with tarfile.open(path, "w:gz") as made:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            made.addfile(member, io.BytesIO(name.encode()))
    return path


def test_a_folder_lists_its_files_and_empty_folders(folder: Path) -> None:
    """Paths are relative, with forward slashes; sizes are bytes."""
    tree = from_folder(folder)

    assert dict(tree.files) == {"models/config.pbtxt": 9, "top.txt": 2}
    assert tree.folders == {"models", "models/1"}
    assert tree.parts() == ("models",)


def test_text_that_is_not_utf_8_is_readable(folder: Path) -> None:
    """Bytes that are no text become U+FFFD, for a rule to name."""
    (folder / "top.txt").write_bytes(b"a\xff")

    assert from_folder(folder).text("top.txt") == "a\ufffd"


def test_a_subfolder_is_seen_as_a_root(folder: Path) -> None:
    """Its files are read by their paths in it."""
    inside = from_folder(folder).under("models")

    assert dict(inside.files) == {"config.pbtxt": 9}
    assert inside.folders == {"1"}
    assert inside.text("config.pbtxt") == "name: 'a'"


def test_a_missing_file_is_named(folder: Path) -> None:
    """By the tree's name and its path."""
    with pytest.raises(CheckpointError, match=r"root/absent: no such file"):
        from_folder(folder).read("absent")


def test_weights_are_not_read_whole() -> None:
    """A file larger than any text is refused before it is opened."""
    tree = Tree("t", {"weights": READ_BYTES + 1}, frozenset(), lambda path: pytest.fail("read"))

    with pytest.raises(CheckpointError, match="at most"):
        tree.read("weights")


def test_a_link_out_of_the_folder_is_not_read(folder: Path, tmp_path: Path) -> None:
    """What is behind it is none of the package's business."""
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(CheckpointError, match="leaves the checkpoint folder"):
        from_folder(folder).read("link")


def test_a_link_inside_the_folder_is_followed(folder: Path) -> None:
    """It has the size and the bytes of what it points to."""
    (folder / "link").symlink_to(folder / "top.txt")
    tree = from_folder(folder)

    assert (tree.files["link"], tree.text("link")) == (2, "ü")


def test_a_pipe_is_no_file(folder: Path) -> None:
    """To read it would be to wait for whoever writes into it."""
    os.mkfifo(folder / "entry.yaml")

    assert "entry.yaml" not in from_folder(folder).files


def test_a_folder_deeper_than_a_path_can_say_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders can be nested by relative paths until no absolute one reaches them."""
    monkeypatch.chdir(folder)
    for _ in range(20):
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    monkeypatch.chdir("/")

    with pytest.raises(CheckpointError, match="cannot be listed"):
        from_folder(folder)


def test_a_file_that_cannot_be_read_is_named() -> None:
    """It may be another user's, or gone since the folder was listed."""

    def load(path: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(CheckpointError, match=r"t/a: cannot be read: Permission denied"):
        Tree("t", {"a": 1}, frozenset(), load).read("a")


def test_small_members_are_kept_while_an_archive_is_listed(tmp_path: Path) -> None:
    """What is compressed can only be read from its beginning, past all the weights."""
    path = archive(tmp_path / "m.tar.gz", "weights", "serving.properties")
    tree = from_archive(path)
    path.unlink()

    assert tree.text("serving.properties") == "serving.properties"


def test_of_two_members_with_one_name_the_later_counts(tmp_path: Path) -> None:
    """As it does when the archive is unpacked, however large it is."""
    with tarfile.open(tmp_path / "m.tar", "w") as made:
        for content in (b"first", b"x" * (2 << 20)):
            member = tarfile.TarInfo("a.txt")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))

    assert from_archive(tmp_path / "m.tar").read("a.txt") == b"x" * (2 << 20)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """Wherever in its compressed bytes the damage is."""
    path = archive(tmp_path / "m.tar.gz", *(f"{n:04}{'x' * 80}" for n in range(200)))
    content = bytearray(path.read_bytes())
    for place in range(20, len(content) - 8, 97):
        path.write_bytes(bytes(content[:place]) + b"\xff" * 8 + bytes(content[place + 8 :]))
        try:
            tree = from_archive(path)
            for name in tree.files:
                tree.read(name)
        except CheckpointError:
            continue


def test_a_linked_folder_is_entered(folder: Path) -> None:
    """Where it is inside, as a server would; one that leads out, and one that leads in a circle, are not."""
    (folder / "again").symlink_to(folder / "models")
    (folder / "out").symlink_to(folder.parent.parent)
    (folder / "models" / "circle").symlink_to(folder)
    tree = from_folder(folder)

    assert tree.text("again/config.pbtxt") == "name: 'a'"
    assert [path for path in tree.files if path.startswith(("out/", "models/circle/"))] == []


def test_links_cannot_multiply_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seventeen folders, each with two links to the next, are a quarter of a million paths: the listing ends."""
    monkeypatch.setattr("llmcompile.packaging.tree._MOST_PATHS", 1000)
    for number in range(17):
        (tmp_path / f"{number:02}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{number:02}" / name).symlink_to(tmp_path / f"{number + 1:02}")

    with pytest.raises(CheckpointError, match="more than 1000 files"):
        from_folder(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """By its name."""
    with pytest.raises(CheckpointError, match="no such folder"):
        from_folder(tmp_path / "absent")


def test_an_archive_is_read_like_a_folder(tmp_path: Path) -> None:
    """A leading "./" is not part of the names; folders without members of their own are known."""
    tree = from_archive(archive(tmp_path / "m.tar.gz", "./serving.properties", "a/b/c.txt"))

    assert dict(tree.files) == {"a/b/c.txt": 9, "serving.properties": 20}
    assert tree.folders == {"a", "a/b"}
    assert tree.text("a/b/c.txt") == "a/b/c.txt"


def test_an_archive_says_what_no_folder_has(tmp_path: Path) -> None:
    """Names that lead out of it, names that are there twice, and whether it is compressed."""
    tree = from_archive(archive(tmp_path / "m.tar.gz", "../a", "/b", "c", "./c", "d..e/f", "g/../h"))

    assert (tree.odd, tree.repeated, tree.gzipped) == (("../a", "/b", "g/../h"), ("c",), True)


def test_a_folder_is_no_archive(folder: Path) -> None:
    """None of this is said of it."""
    tree = from_folder(folder)

    assert (tree.odd, tree.repeated, tree.gzipped) == ((), (), None)


def test_a_folder_of_an_archive_is_still_of_the_archive(tmp_path: Path) -> None:
    """Its names are those of the folder; what leads out leads out of the archive."""
    tree = from_archive(archive(tmp_path / "m.tar.gz", "../a", "b/c", "b/c", "d", "d")).under("b")

    assert (tree.odd, tree.repeated, tree.gzipped) == (("../a",), ("c",), True)


def test_an_archive_of_very_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder is; they are counted while they are read."""
    monkeypatch.setattr("llmcompile.packaging.tree._MOST_PATHS", 100)

    assert len(from_archive(archive(tmp_path / "m.tar.gz", *(f"{number}" for number in range(100)))).files) == 100
    with pytest.raises(CheckpointError, match="more than 100 files"):
        from_archive(archive(tmp_path / "m.tar.gz", *(f"{number}" for number in range(101))))


def headers(path: Path, *members: tarfile.TarInfo) -> Path:
    """An archive of headers, with nothing after them but its end."""
    made = b"".join(member.tobuf(tarfile.GNU_FORMAT) for member in members)
    path.write_bytes(made + b"\0" * 1024)
    return path


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """A header."""
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    return made


@pytest.mark.parametrize("size", [-512, -1024, (4 << 40) + 1])
def test_sizes_that_no_package_has_are_refused(tmp_path: Path, size: int) -> None:
    """A negative one leads tarfile back to the same header again and again."""
    with pytest.raises(CheckpointError, match=r"bytes|not a tar archive"):
        from_archive(headers(tmp_path / "m.tar", member("a", 0), member("b", size)))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE])
def test_a_long_name_as_large_as_weights_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """The whole of it would be read at once."""
    with pytest.raises(CheckpointError, match="a header of 1073741824 bytes"):
        from_archive(headers(tmp_path / "m.tar", member("a", 0), member("b", 1 << 30, kind)))


def test_names_deeper_than_a_path_can_be_are_refused(tmp_path: Path) -> None:
    """A name has as many folders as slashes, each as long as the name up to there."""
    with pytest.raises(CheckpointError, match="a name of 20001 characters"):
        from_archive(archive(tmp_path / "m.tar.gz", "a/" * 10_000 + "b"))


def test_headers_before_headers_without_end_are_refused(tmp_path: Path) -> None:
    """Reading one, tarfile calls itself for the next."""
    with pytest.raises(CheckpointError, match="not a tar archive"):
        from_archive(headers(tmp_path / "m.tar", member("a", 0), *[member("b", 0, tarfile.XHDTYPE)] * 2000))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08\x00broken"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    """An empty file, a text, and a gzip stream that ends too early."""
    path = tmp_path / "m.tar.gz"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="not a tar archive"):
        from_archive(path)


def test_a_planned_package_looks_like_the_written_one(folder: Path) -> None:
    """Generated files and those taken over, before either exists."""
    of = from_folder(folder)
    tree = planned("out", {"a.txt": "ü"}, {"x/top": "top.txt"}, ("empty/1",), of)

    assert dict(tree.files) == {"a.txt": 2, "x/top": 2}
    assert tree.folders == {"x", "empty", "empty/1"}
    assert (tree.text("a.txt"), tree.text("x/top")) == ("ü", "ü")
