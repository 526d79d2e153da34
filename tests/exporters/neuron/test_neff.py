"""NEFF files are read, verified and listed; none of the vendor's was at hand, so the files here are the tests' own."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import neuronx_cc_standin as standin
from llmcompile.errors import ToolchainError
from llmcompile.exporters.neuron import neff as reader
from llmcompile.exporters.neuron.neff import check_neff, read_neff

INFO = json.dumps({"tool_version": "2.21.33363.0"}).encode()
FILES = {"info.json": INFO, "neff.json": b"{}", "sg00/def.json": b'{"var": {}}', "sg00/pe.bin": bytes(3000)}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of an archive behind a header that fits it."""

    def written(payload: bytes, **fields: int) -> Path:
        path = tmp_path / "model.neff"
        path.write_bytes(standin.header(payload, **fields) + payload)
        return path

    return written


def archive(*members: tarfile.TarInfo, format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar file of members whose content is zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as made:
        for member in members:
            made.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return buffer.getvalue()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A member of an archive."""
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


@pytest.mark.parametrize(("pkg_version", "hash_digits"), [(1, 64), (2, 32)])
@pytest.mark.parametrize("compressed", [False, True])
def test_header_and_members_are_read(
    pkg_version: int, hash_digits: int, compressed: bool, write: Callable[..., Path]
) -> None:
    """Under either hash, of a plain archive and of a compressed one."""
    payload = standin.tar(FILES)
    payload = gzip.compress(payload) if compressed else payload

    neff = read_neff(write(payload, pkg_version=pkg_version, lnc=2, cores=4, feature_bits=0x140))

    assert (neff.pkg_version, neff.version, neff.build, neff.name) == (pkg_version, (2, 0), "2.0.56.0", "model.neff")
    assert (neff.cores, neff.requested_cores, neff.lnc, neff.feature_bits) == (4, 4, 2, 0x140)
    assert (neff.size_bytes, neff.compressed, len(neff.hash)) == (1024 + len(payload), compressed, hash_digits)
    assert neff.compiler_version == "2.21.33363.0"
    assert dict(neff.members) == {name: len(content) for name, content in FILES.items()}


def test_fields_lie_where_the_published_struct_has_them(write: Callable[..., Path]) -> None:
    """Offsets of the C struct by its natural alignment: num_tpb at 168, hash at 172, features at 544, LNC at 552."""
    head = bytearray(write(standin.tar(FILES)).read_bytes())
    struct.pack_into("<I", head, 168, 7)
    struct.pack_into("<I", head, 476, 5)
    struct.pack_into("<Q", head, 544, 1 << 63)
    struct.pack_into("<I", head, 552, 3)
    path = write(b"")
    path.write_bytes(head)

    neff = read_neff(path)

    assert (neff.cores, neff.requested_cores, neff.feature_bits, neff.lnc) == (7, 5, 1 << 63, 3)


def test_a_file_older_than_the_field_runs_on_single_cores(write: Callable[..., Path]) -> None:
    """Its padding reads as zero."""
    assert read_neff(write(standin.tar(FILES), lnc=0)).lnc == 1


@given(st.data())
def test_a_changed_byte_behind_the_header_is_noticed(data: st.DataObject) -> None:
    """Wherever it is."""
    whole = standin.tar(FILES)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.neff"
        path.write_bytes(standin.header(whole) + changed)

        with pytest.raises(ValueError, match="has the hash"):
            read_neff(path)


@pytest.mark.parametrize(
    ("cut", "text"),
    [
        (0, "0 bytes; expected a header of 1024"),
        (1023, "1023 bytes; expected a header of 1024"),
        (1024, r"1024 bytes; expected 1024 \+ \d+, as its header says"),
        (-1, r"expected 1024 \+ \d+, as its header says"),
    ],
)
def test_a_cut_file_is_said_with_its_size(cut: int, text: str, write: Callable[..., Path]) -> None:
    """Empty, inside the header, behind it, inside the archive."""
    path = write(standin.tar(FILES))
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(ValueError, match=text):
        read_neff(path)


@pytest.mark.parametrize(("offset", "value"), [(0, 3), (0, 0), (8, 2048)])
def test_what_has_another_header_is_none(offset: int, value: int, write: Callable[..., Path]) -> None:
    """The container's version and the header's size stand for the magic number it lacks."""
    path = write(standin.tar(FILES))
    head = bytearray(path.read_bytes())
    struct.pack_into("<Q", head, offset, value)
    path.write_bytes(head)

    with pytest.raises(ValueError, match="no NEFF"):
        read_neff(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sg00/../../x", "."])
def test_a_member_that_leads_out_is_refused(name: str, write: Callable[..., Path]) -> None:
    """Upwards or to the root; the archive is not unpacked, and still no such file is passed on."""
    with pytest.raises(ValueError, match="expected a path inside the archive"):
        read_neff(write(archive(member(name, 5))))


def test_links_devices_and_folders_are_passed_over(write: Callable[..., Path]) -> None:
    """Only regular files are listed, under names without a leading dot."""
    others = [
        member("out", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("hard", kind=tarfile.LNKTYPE, link="../x"),
        member("null", kind=tarfile.CHRTYPE),
        member("sg00", kind=tarfile.DIRTYPE),
    ]

    assert dict(read_neff(write(archive(*others, member("./sg00/a", 700)))).members) == {"sg00/a": 700}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [90, 150, 230])
def test_long_names_are_read_in_every_format(format: int, length: int, write: Callable[..., Path]) -> None:
    """In the header, in its prefix, in a record before the member."""
    name = "/".join(["sg00", "é" * 4, *["x" * 40] * (length // 50), "y" * 30])

    neff = read_neff(write(archive(member(name, 1), member("last", 2), format=format)))

    assert dict(neff.members) == {name: 1, "last": 2}


def test_a_bomb_is_given_up(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many small members nor one large one keep us busy beyond the limits."""
    monkeypatch.setattr(reader, "_MOST_ARCHIVE_BYTES", 1 << 20)
    monkeypatch.setattr(reader, "_MOST_MEMBERS", 100)

    with pytest.raises(ValueError, match="a member of 2097152 bytes"):
        read_neff(write(gzip.compress(archive(member("large", 2 << 20)))))
    with pytest.raises(ValueError, match="the archive holds more than"):
        read_neff(write(gzip.compress(archive(member("a", 600_000), member("b", 600_000)))))
    with pytest.raises(ValueError, match="more than 100 members"):
        read_neff(write(gzip.compress(archive(*(member(str(number)) for number in range(101))))))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_record_before_a_member_is_not_held_at_any_size(kind: bytes, write: Callable[..., Path]) -> None:
    """64 KiB at most, where a name has tens of characters."""
    record = member("record", 100_000, kind)
    block = record.tobuf(tarfile.USTAR_FORMAT) + bytes(100_352)

    with pytest.raises(ValueError, match="a member's name has 100000 bytes"):
        read_neff(write(block + bytes(1024)))


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "the archive is cut off"),
        (bytes(100), "the archive is cut off"),
        (b"x" * 2048, "headers are damaged, or it is none"),
        (b"\x1f\x8b" + b"x" * 100, "cannot be decompressed"),
        (gzip.compress(standin.tar(FILES), mtime=0)[:100], "cannot be decompressed"),
        (standin.tar(FILES)[:2000], "the archive is cut off"),
        (standin.tar({"info.json": b"{"}), "info.json is not readable as JSON"),
        (standin.tar({"info.json": b"[" * 100_000}), "info.json is not readable as JSON"),
        (standin.tar({"info.json": b"[]"}), "info.json holds a JSON list"),
        (standin.tar({"info.json": bytes(2 << 20)}), "a member of 2097152 bytes; expected 1048576 at most"),
    ],
)
def test_an_archive_that_is_none_is_said_so(payload: bytes, text: str, write: Callable[..., Path]) -> None:
    """Though its hash is right."""
    with pytest.raises(ValueError, match=text):
        read_neff(write(payload))


@given(st.binary(min_size=512, max_size=4096))
def test_no_archive_raises_anything_else(payload: bytes) -> None:
    """Whatever the bytes, they are read or refused."""
    whole = standin.tar({"info.json": b"{}"})
    source = reader._Bounded(io.BytesIO(whole[:1024] + payload))

    try:
        for _, size, content in reader._members(source):
            content(1 << 20)
            assert size >= 0
    except ValueError:
        pass


def test_a_file_of_another_compiler_is_refused(write: Callable[..., Path]) -> None:
    """By the version up to its commit; a file that does not say is let pass."""
    path = write(standin.tar(FILES))

    assert check_neff(path, compiler_version="2.21.33363.0+82129205").compiler_version == "2.21.33363.0"
    with pytest.raises(ToolchainError, match=r"made by neuronx-cc 2.21.33363.0; expected 2.20.9961.0\+0acef03a"):
        check_neff(path, compiler_version="2.20.9961.0+0acef03a")
    assert check_neff(write(standin.tar({})), compiler_version="2.20.9961.0").compiler_version is None


def test_a_file_for_other_logical_cores_is_refused(write: Callable[..., Path]) -> None:
    """A runtime set to two physical cores does not load one for one."""
    with pytest.raises(ToolchainError, match="1 physical cores to a logical core; expected 2"):
        check_neff(write(standin.tar(FILES), lnc=1), lnc=2)


def test_an_absent_or_damaged_file_is_a_failure_of_the_tool(tmp_path: Path) -> None:
    """By its path, and the way on."""
    (tmp_path / "short.neff").write_bytes(b"x")

    with pytest.raises(ToolchainError, match=r"absent.neff: No such file or directory; expected a NEFF"):
        check_neff(tmp_path / "absent.neff")
    with pytest.raises(ToolchainError, match=r"short.neff: 1 bytes; expected a header") as caught:
        check_neff(tmp_path / "short.neff")
    assert caught.value.problems[0].hint == "compile the graph again"
