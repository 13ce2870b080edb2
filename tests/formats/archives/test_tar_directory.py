"""The tar reader, against Python's tarfile: the same files, and a word where programs differ."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from formats.samples_archives import tar_file
from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.files import MemoryFile
from torchkeep.formats.archives.tar_directory import TarEntry, TarReader, first_name, is_tar_header
from torchkeep.formats.archives.unpacking import PartStream
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def read(data: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[list[TarEntry], list[str]]:
    """Return the entries, and the rules of the findings."""
    reader = TarReader(PartStream(MemoryFile(data, Path("a.tar"))), limits)
    entries = list(reader)
    return entries, [finding.rule for finding in reader.findings]


def written(*infos: tarfile.TarInfo, kind: int = tarfile.PAX_FORMAT, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=kind, **options) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def info(name: str, nbytes: int = 0, **fields: Any) -> tarfile.TarInfo:
    result = tarfile.TarInfo(name)
    result.size = nbytes
    for key, value in fields.items():
        setattr(result, key, value)
    return result


def header(name: str = "a", nbytes: int = 0, kind: bytes = b"0", **fields: bytes) -> bytearray:
    """Return one header block with the right sum; `fields` are bytes at `at_<offset>`."""
    block = bytearray(info(name, nbytes).tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    for key, value in fields.items():
        start = int(key.removeprefix("at_"))
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def closed(*blocks: bytes) -> bytes:
    return b"".join(blocks) + bytes(1024)


LONG = "folder/" * 40 + "a.pkl"
NAMES = ["a", "sub/a.pkl", "x" * 100, "p" * 90 + "/" + "x" * 90, LONG, "m\u00f6del.pth"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in NAMES for kind in FORMATS if (name, kind) != (LONG, "ustar")],
)
def test_names_and_places_are_those_that_tarfile_sees(name: str, kind: str) -> None:
    data = written(info("first", 700), info(name, 5), kind=FORMATS[kind])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        theirs = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    entries, rules = read(data)
    assert [(entry.name, entry.offset, entry.nbytes) for entry in entries] == theirs
    assert rules == []


def test_every_kind_of_thing_is_told_apart() -> None:
    kinds = {
        tarfile.REGTYPE: "file",
        tarfile.AREGTYPE: "file",
        tarfile.CONTTYPE: "file",
        tarfile.DIRTYPE: "folder",
        tarfile.SYMTYPE: "link",
        tarfile.LNKTYPE: "link",
        tarfile.CHRTYPE: "device",
        tarfile.BLKTYPE: "device",
        tarfile.FIFOTYPE: "device",
        tarfile.GNUTYPE_SPARSE: "sparse",
    }
    for kind, expected in kinds.items():
        entries, rules = read(closed(header("a", 0, kind)))
        assert [entry.kind for entry in entries] == [expected], kind
        assert rules == []


def test_an_old_folder_is_a_file_whose_name_ends_in_a_slash() -> None:
    entries, _ = read(closed(header("sub/", 0, b"\0")))
    assert entries == [TarEntry("sub", "folder", 512, 0)]


def test_a_sparse_file_of_posix_is_one() -> None:
    data = written(info("a", 4, pax_headers={"GNU.sparse.major": "1"}))
    assert read(data)[0][0].kind == "sparse"


def test_the_blocks_of_a_sparse_header_are_stepped_over() -> None:
    more = bytearray(512)
    more[504] = 1
    sparse = header("a", 0, b"S", at_482=b"\1")
    entries, _ = read(closed(sparse, more, bytes(512 - 1) + b"x", header("b")))
    assert [entry.name for entry in entries] == ["a", "b"]


def test_a_table_for_all_files_holds_for_all() -> None:
    data = written(info("a"), info("b"), pax_headers={"path": "same"})
    entries, rules = read(data)
    assert [entry.name for entry in entries] == ["same", "same"]
    assert rules == ["duplicate-record"]


def test_a_sum_of_signed_bytes_and_a_binary_size_are_understood() -> None:
    block = header("\u00e9", 0, at_124=b"\x80" + (3).to_bytes(11, "big"))
    signed = sum(
        byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:]
    )
    block[148:156] = b"%06o\0 " % signed
    entries, _ = read(closed(block, b"abc".ljust(512, b"\0")))
    assert entries[0].nbytes == 3


@pytest.mark.parametrize(
    ("blocks", "rule"),
    [
        ([header("a", 3, b"2"), b"abc".ljust(512, b"\0")], None),
        ([header("a", 0, b"Z")], "header-mismatch"),
        ([header("a", 0, at_345=b"prefix", at_257=b"ustar  \0")], "header-mismatch"),
        ([header("a"), header("a")], "duplicate-record"),
    ],
)
def test_what_programs_read_differently_is_ambiguous(blocks: Any, rule: str | None) -> None:
    if rule is None:  # tarfile does not step over the bytes of a link, and meets them as a header
        with pytest.raises(DamagedFile, match="no header at byte 512"):
            read(closed(*blocks))
        return
    assert read(closed(*blocks))[1] == [rule]


def test_two_sizes_of_one_file_are_ambiguous() -> None:
    """CVE-2025-62518: programs that step over the smaller one see other files."""
    table = b"12 size=600\n"
    blocks = [header("x", len(table), b"x"), table.ljust(512, b"\0"), header("a", 5)]
    entries, rules = read(closed(*blocks, bytes(1024)))
    assert entries[0].nbytes == 600
    assert rules == ["header-mismatch"]


@pytest.mark.parametrize("size", [b"-5", b"1e3", b"9" * 30])
def test_a_size_in_a_table_that_is_none_is_damage(size: bytes) -> None:
    line = b"%d size=%s\n" % (len(size) + 9, size)
    blocks = [header("x", len(line), b"x"), line.ljust(512, b"\0"), header("a", 5)]
    with pytest.raises(DamagedFile, match=r"of the archive has the size|table at byte 0 is broken"):
        read(closed(*blocks))


@pytest.mark.parametrize("line", [b"5 a=b", b"x a=b\n", b"99 a=b\n", b"6 abc\n", b"0 a=b\n"])
def test_a_broken_table_is_damage(line: bytes) -> None:
    blocks = [header("x", len(line), b"x"), line.ljust(512, b"\0"), header("a")]
    with pytest.raises(DamagedFile, match="the archive's table at byte 0 is broken"):
        read(closed(*blocks))


def test_a_name_of_megabytes_is_damage() -> None:
    with pytest.raises(DamagedFile, match="has a name of 2097152 bytes"):
        read(closed(header("x", 2 << 20, b"L"), bytes(2 << 20)))


def test_a_negative_size_is_damage() -> None:
    with pytest.raises(DamagedFile, match="no header at byte 0"):
        read(closed(header("a", 0, at_124=b"\xff" * 12)))


@pytest.mark.parametrize(
    "tail", [b"x" * 512, bytes(600 << 10), bytes(512) + b"x".ljust(512, b"\0")]
)
def test_bytes_behind_the_end_are_ambiguous(tail: bytes) -> None:
    assert read(closed(header("a")) + tail)[1] == ["trailing-bytes"]


@pytest.mark.parametrize("length", [0, 100, 511, 512, 1023, 1024, 1500, 2047])
def test_an_archive_without_its_end_is_truncated(length: int) -> None:
    whole = closed(header("a", 3), b"abc".ljust(512, b"\0"))
    assert len(whole) == 2048
    with pytest.raises(DamagedFile, match=r"the archive is truncated|no header"):
        read(whole[:length])


def test_a_size_that_reaches_over_the_end_is_damage() -> None:
    with pytest.raises(DamagedFile, match="the archive is truncated"):
        read(closed(header("a", 1 << 32)))


def test_more_entries_than_the_limit_are_refused() -> None:
    with pytest.raises(LimitReached, match="the limit records=3 allows"):
        read(tar_file([(str(index), b"") for index in range(5)]), Limits(records=3))
    with pytest.raises(LimitReached, match="the limit records=3 allows"):
        read(closed(*[header("x", 0, b"L")] * 5, header("a")), Limits(records=3))


# --- What counts as a tar -------------------------------------------------------------------------


def is_tar_to_python(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def test_a_block_is_a_header_exactly_where_tarfile_takes_it_for_one() -> None:
    rng = random.Random(0)
    blocks = [bytes(header(kind=bytes([rng.randrange(256)]))) for _ in range(50)]
    for start in (100, 108, 124, 136, 148):
        for text in (b"", b"0o17", b"1_7", b" 17 ", b"\x80\0\0\1", b"\xff\xff", b"9", b"17\0 junk"):
            blocks.append(bytes(header(**{f"at_{start}": text})))
            spoiled = header()
            spoiled[148 : 148 + len(text)] = text
            blocks.append(bytes(spoiled))
    blocks += [bytes(512), rng.randbytes(512), bytes(header())[:511]]
    found = [is_tar_to_python(block) for block in blocks]
    assert [is_tar_header(block) for block in blocks] == found
    assert 10 < sum(found) < len(found) - 10


def test_the_name_ustar_is_not_needed() -> None:
    block = header("storages", at_257=bytes(8))
    assert is_tar_header(block)
    assert first_name(block) == "storages"
    assert first_name(b"x" * 512) is None


def with_right_sum(data: bytearray, start: int) -> None:
    """Write the sum of the header at `start` anew."""
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])


def test_a_table_that_goes_on_where_it_is_padded_is_refused() -> None:
    """tarfile reads such a record, and tar does not: the file would have two names."""
    table = b"10 path=b\n".ljust(512, b"\0")
    hidden = (b"10 path=b\n10 path=c\n").ljust(512, b"\0")
    named = [header("x", 10, b"x"), table, header("a", 0)]
    assert [entry.name for entry in read(closed(*named))[0]] == ["b"]
    named[1] = hidden
    with tarfile.open(fileobj=io.BytesIO(closed(*named))) as archive:
        assert archive.getnames() == ["c"]
    with pytest.raises(DamagedFile, match="where a table's last block is padded"):
        read(closed(*named))


def test_what_is_read_without_a_word_is_what_tarfile_reads() -> None:
    """Every byte of an archive is changed; where nothing is said, both see the same files."""
    whole = written(info("a" * 150, 5), info("b", type=tarfile.SYMTYPE), info("c/d", 7))
    num_same = 0
    for place in range(len(whole.rstrip(b"\0")) + 512):
        damaged = bytearray(whole)
        damaged[place] ^= (0x01, 0x80, 0x02, 0x20)[place % 4]
        start = place // 512 * 512
        if is_tar_header(whole[start : start + 512]):
            with_right_sum(damaged, start)
        try:
            entries, rules = read(bytes(damaged))
        except FileProblem:
            continue
        if rules:
            continue
        with tarfile.open(fileobj=io.BytesIO(damaged)) as archive:
            theirs = [m for m in archive.getmembers() if m.isfile() and not m.issparse()]
        found = [(e.name, e.offset, e.nbytes) for e in entries if e.kind == "file"]
        assert found == [(shown(m.name), m.offset_data, m.size) for m in theirs], place
        num_same += 1
    assert num_same > 1000


def shown(name: str) -> str:
    """Return a name as the reader has it: tarfile keeps bytes that are no text in its own way."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
