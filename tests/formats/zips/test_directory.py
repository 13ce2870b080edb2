"""An archive whose two views differ is never taken for a clean one."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.building import zip_file
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.files import InputFile
from torchkeep.formats.zips.directory import Directory, read_directory, read_record
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

RECORDS = [("r/data.pkl", b"pickle"), ("r/data/0", b"0123456789"), ("r/empty", b"")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "archive.zip"
    zip_file(target, RECORDS)
    return target


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Directory:
    with InputFile(path) as file:
        return read_directory(file, limits)


def rules(path: Path) -> list[tuple[str, str]]:
    directory = read(path)
    assert all(finding.severity == "ambiguous" for finding in directory.findings)
    return [(finding.rule, finding.text) for finding in directory.findings]


def patch(path: Path, old: bytes, new: bytes, *, count: int, which: int | None = None) -> None:
    """Replace one of `count` occurrences of `old` (all of them if `which` is None)."""
    data = path.read_bytes()
    parts = data.split(old)
    assert len(parts) == count + 1
    if which is None:
        path.write_bytes(new.join(parts))
    else:
        path.write_bytes(old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :]))


def local(path: Path, index: int = 1) -> int:
    """Return the offset of a record's local header."""
    return zipfile.ZipFile(path).infolist()[index].header_offset


def central(path: Path, index: int = 1) -> int:
    """Return the offset of a record's row in the directory."""
    data = path.read_bytes()
    place = -1
    for _ in range(index + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return place


def poke(path: Path, offset: int, layout: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, offset, value)
    path.write_bytes(data)


def test_an_archive_of_python_is_clean_and_its_records_lie_where_it_says(path: Path) -> None:
    directory = read(path)
    assert directory.findings == ()
    assert list(directory.records) == [name for name, _ in RECORDS]
    data = path.read_bytes()
    for name, content in RECORDS:
        record = directory.records[name]
        assert data[record.offset : record.offset + record.nbytes] == content
        assert record.crc32 == zlib.crc32(content)
        with InputFile(path) as file:
            assert read_record(file, record, DEFAULT_LIMITS) == content


def test_a_zip64_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("r/data.pkl", "w", force_zip64=True) as stream,
    ):
        stream.write(b"pickle")
    widen(path)
    assert zipfile.ZipFile(path).namelist() == ["r/data.pkl"]
    directory = read(path)
    assert directory.findings == ()
    record = directory.records["r/data.pkl"]
    with InputFile(path) as file:
        assert read_record(file, record, DEFAULT_LIMITS) == b"pickle"


def widen(path: Path) -> None:
    """Put the long form of the directory's end before the short one, with all of its sizes."""
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    count, nbytes, offset = struct.unpack_from("<HLL", data, end + 10)
    long = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, nbytes, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    path.write_bytes(data[:end] + long + locator + data[end:])


def test_a_deflated_record_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "packed.zip"
    zip_file(path, [("r/data.pkl", b"a" * 10_000)], zipfile.ZIP_DEFLATED)
    record = read(path).records["r/data.pkl"]
    assert record.packed_nbytes < 100
    with InputFile(path) as file:
        assert read_record(file, record, DEFAULT_LIMITS) == b"a" * 10_000


# --- Two views that differ -----------------------------------------------------------------------

MISMATCHES: list[tuple[str, Callable[[Path], None], str]] = [
    ("name", lambda p: poke(p, local(p) + 30, "<B", ord("R")), "name"),
    ("long name", lambda p: poke(p, local(p) + 26, "<H", 7), "name"),
    ("method", lambda p: poke(p, local(p) + 8, "<H", 8), "method"),
    ("size", lambda p: poke(p, local(p) + 22, "<L", 9), "size"),
    ("packed size", lambda p: poke(p, local(p) + 18, "<L", 9), "packed size"),
    ("checksum", lambda p: poke(p, local(p) + 14, "<L", 9), "checksum"),
]


@pytest.mark.parametrize(("change", "what"), [row[1:] for row in MISMATCHES])
def test_a_local_header_that_differs_is_ambiguous(
    path: Path, change: Callable[[Path], None], what: str
) -> None:
    change(path)
    assert rules(path) == [("header-mismatch", f"its {what} differs in header and directory")]


@pytest.mark.parametrize("flag", [1 << 0, 1 << 6, 1 << 13])
def test_a_record_that_is_marked_as_encrypted_is_ambiguous(path: Path, flag: int) -> None:
    poke(path, local(path) + 6, "<H", flag)
    assert rules(path) == [("encrypted-flag", "the record is marked as encrypted")]
    poke(path, local(path) + 6, "<H", 0)
    poke(path, central(path) + 8, "<H", flag)
    assert rules(path) == [("encrypted-flag", "the record is marked as encrypted")]


@pytest.mark.parametrize("twin", ["r/data.pkl", "r/DATA.PKL", "R/data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_ambiguous_in_any_case(tmp_path: Path, twin: str) -> None:
    path = tmp_path / "twice.zip"
    zip_file(path, [*RECORDS, (twin, b"other")])
    expected = "two records have this name, or one that differs in case only"
    assert rules(path) == [("duplicate-record", expected)]


def test_a_zero_byte_in_a_name_is_ambiguous(path: Path) -> None:
    patch(path, b"r/data/0", b"r/data\x000", count=2)
    assert rules(path) == [("record-name", "the name has a zero byte in it")]


def test_a_stored_record_of_two_sizes_is_ambiguous(path: Path) -> None:
    poke(path, central(path) + 24, "<L", 9)
    poke(path, local(path) + 22, "<L", 9)
    assert rules(path) == [("header-mismatch", "it is stored with two sizes")]


def test_bytes_behind_the_archive_are_ambiguous(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")
    assert rules(path) == [("trailing-bytes", "there are bytes behind the archive")]


def test_a_comment_is_not_trailing(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"made by somebody"
    assert rules(path) == []


def test_a_record_that_the_directory_leaves_out_is_ambiguous(tmp_path: Path, path: Path) -> None:
    data = path.read_bytes()
    start, middle = central(path, 1), central(path, 2)
    hidden = data[:start] + data[middle:]
    end = hidden.rindex(b"PK\x05\x06")
    path.write_bytes(hidden)
    poke(path, end + 8, "<H", 2)
    poke(path, end + 10, "<H", 2)
    poke(path, end + 12, "<L", end - central(path, 0))
    assert rules(path) == [("hidden-bytes", "bytes before it belong to no record")]


def test_bytes_between_the_last_record_and_the_directory_are_ambiguous(path: Path) -> None:
    data, start = path.read_bytes(), central(path, 0)
    path.write_bytes(data[:start] + b"x" * 25 + data[start:])
    poke(path, path.read_bytes().rindex(b"PK\x05\x06") + 16, "<L", start + 25)
    assert rules(path) == [("hidden-bytes", "bytes before the directory belong to no record")]


def test_short_and_long_directories_that_differ_are_ambiguous(path: Path) -> None:
    widen(path)
    end = path.read_bytes().rindex(b"PK\x05\x06")
    for place, layout, full in [(10, "<H", 0xFFFF), (12, "<L", 0xFFFFFFFF), (16, "<L", 0xFFFFFFFF)]:
        (right,) = struct.unpack_from(layout, path.read_bytes(), end + place)
        poke(path, end + place, layout, full)
        assert rules(path) == []
        poke(path, end + place, layout, 1)
        assert [rule for rule, _ in rules(path)] == ["two-directories"]
        poke(path, end + place, layout, right)


# --- Damage --------------------------------------------------------------------------------------

DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "no directory",
        lambda p: patch(p, b"PK\x05\x06", b"....", count=1),
        "which stands at the end",
    ),
    ("no local header", lambda p: poke(p, local(p), "<L", 0), "is not where the archive's"),
    ("no row", lambda p: poke(p, central(p), "<L", 0), "directory is overwritten"),
    (
        "directory outside",
        lambda p: poke(p, p.stat().st_size - 6, "<L", 1 << 30),
        "directory lies outside of the file",
    ),
    (
        "directory too early",
        lambda p: poke(p, p.stat().st_size - 10, "<L", 50),
        "directory ends .* bytes too early",
    ),
    ("too few rows", lambda p: poke(p, p.stat().st_size - 12, "<H", 4), "fewer than its 4 entries"),
    ("more rows", lambda p: poke(p, p.stat().st_size - 12, "<H", 2), "not end after its 2 entries"),
    ("beyond the end", lambda p: poke(p, central(p) + 20, "<L", 1 << 30), "truncated: record"),
    ("into the directory", lambda p: poke(p, central(p, 2) + 20, "<L", 30), "into the directory"),
    ("overlap", lambda p: poke(p, central(p, 0) + 20, "<L", 20), "records 'r/data.pkl' and"),
    ("same header", lambda p: poke(p, central(p) + 42, "<L", 0), "records .* overlap"),
    ("no zip64", lambda p: poke(p, p.stat().st_size - 6, "<L", 0xFFFFFFFF), "no zip64 directory"),
    ("no zip64 sizes", lambda p: poke(p, central(p) + 24, "<L", 0xFFFFFFFF), "without its zip64"),
]


@pytest.mark.parametrize(
    ("change", "problem"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE]
)
def test_an_archive_that_contradicts_itself_is_damaged(
    path: Path, change: Callable[[Path], None], problem: str
) -> None:
    change(path)
    with pytest.raises(DamagedFile, match=problem):
        read(path)


def test_archives_end_to_end_are_named_as_such(path: Path, tmp_path: Path) -> None:
    chain = tmp_path / "__0_0.distcp"
    chain.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UnsupportedContent, match="several archives stand end to end"):
        read(chain)


def test_a_wrong_checksum_is_damage_and_zero_means_none(path: Path) -> None:
    for crc32, fine in ((0, True), (7, False)):
        poke(path, central(path) + 16, "<L", crc32)
        poke(path, local(path) + 14, "<L", crc32)
        record = read(path).records["r/data/0"]
        with InputFile(path) as file:
            if fine:
                assert read_record(file, record, DEFAULT_LIMITS) == b"0123456789"
            else:
                with pytest.raises(DamagedFile, match="does not match its checksum"):
                    read_record(file, record, DEFAULT_LIMITS)


def test_a_bomb_is_unpacked_no_further_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    zip_file(path, [("r/data.pkl", b"\0" * (1 << 24))], zipfile.ZIP_DEFLATED)
    poke(path, central(path, 0) + 24, "<L", 1000)
    poke(path, local(path, 0) + 22, "<L", 1000)
    record = read(path).records["r/data.pkl"]
    with InputFile(path) as file, pytest.raises(DamagedFile, match="1001 bytes, not 1000"):
        read_record(file, record, DEFAULT_LIMITS)


def test_an_honest_record_that_is_too_large_reaches_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    zip_file(path, [("r/data.pkl", b"\0" * 100_000)], zipfile.ZIP_DEFLATED)
    record = read(path).records["r/data.pkl"]
    limits = Limits(pickle_nbytes=50_000)
    with InputFile(path) as file, pytest.raises(LimitReached, match="pickle_nbytes=50,000"):
        read_record(file, record, limits)


def test_broken_and_unusual_packing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "packed.zip"
    zip_file(path, [("r/data.pkl", b"abc" * 100)], zipfile.ZIP_DEFLATED)
    record = read(path).records["r/data.pkl"]
    poke(path, record.offset, "<L", 0xFFFFFFFF)
    with InputFile(path) as file, pytest.raises(DamagedFile, match="can't be unpacked"):
        read_record(file, record, DEFAULT_LIMITS)
    zip_file(path, [("r/data.pkl", b"abc" * 100)], zipfile.ZIP_LZMA)
    record = read(path).records["r/data.pkl"]
    with InputFile(path) as file, pytest.raises(UnsupportedContent, match="with method 14"):
        read_record(file, record, DEFAULT_LIMITS)


def test_too_many_records_and_too_large_a_directory_reach_a_limit(path: Path) -> None:
    with pytest.raises(LimitReached, match="records=2"):
        read(path, Limits(records=2))
    with pytest.raises(LimitReached, match="header_nbytes=100"):
        read(path, Limits(header_nbytes=100))


def test_a_record_that_is_packed_tighter_than_any_pickle_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "tight.zip"
    zip_file(path, [("r/data.pkl", b"N" * (4 << 20))], zipfile.ZIP_DEFLATED)
    record = read(path).records["r/data.pkl"]
    problem = r"to 4194304 bytes, more than the limit expansion=64 times\. .*expansion=\.\.\."
    with InputFile(path) as file:
        with pytest.raises(LimitReached, match=problem):
            read_record(file, record, DEFAULT_LIMITS)
        assert len(read_record(file, record, Limits(expansion=5_000))) == 4 << 20
