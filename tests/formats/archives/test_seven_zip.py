"""The 7z reader, against archives of our own writer, which py7zr was seen to unpack."""

from __future__ import annotations

import contextlib
import lzma
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from formats.seven_zip_writer import CHAINS, Coder, bits, envelope, number, seven_zip
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats.archives.seven_zip import Directory, is_stored, open_folder, read_directory
from torchkeep.formats.archives.unpacking import Budget
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

JUMPS = b"\xe8\x01\x00\x00\x00\x90" * 40  # what a filter for machine code changes
FILES: list[tuple[str, bytes | None]] = [
    ("notes.txt", b"hello " * 50),
    ("folder", None),
    ("empty.txt", b""),
    ("sub/\u4e2d\u6587.bin", random.Random(0).randbytes(900) + JUMPS + b"abc"),
]
HELD = {name: data for name, data in FILES if data}


def directory_of(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Directory:
    file = MemoryFile(data, Path("a.7z"))
    return read_directory(file, limits, Budget(file.nbytes, limits))


def unpacked(data: bytes) -> dict[str, bytes]:
    """Return the bytes of each file that has any, compared with their checksums."""
    file = MemoryFile(data, Path("a.7z"))
    budget = Budget(file.nbytes, DEFAULT_LIMITS)
    directory = read_directory(file, DEFAULT_LIMITS, budget)
    streams = [open_folder(file, folder, budget) for folder in directory.folders]
    result = {}
    for entry in directory.entries:
        if entry.folder is not None:
            result[entry.name] = streams[entry.folder].read(entry.nbytes)
            assert len(result[entry.name]) == entry.nbytes
            assert zlib.crc32(result[entry.name]) == entry.crc32
    return result


@pytest.mark.parametrize("encoded_header", [False, True])
@pytest.mark.parametrize("solid", [False, True])
@pytest.mark.parametrize("coders", CHAINS)
def test_every_chain_of_coders_is_unpacked(coders: str, solid: bool, encoded_header: bool) -> None:
    data = seven_zip(FILES, coders=coders, solid=solid, encoded_header=encoded_header)
    directory = directory_of(data)
    assert [entry.name for entry in directory.entries] == [name for name, _ in FILES]
    assert directory.findings == ()
    assert len(directory.folders) == (1 if solid else 2)
    assert unpacked(data) == HELD


def test_what_has_no_bytes_lies_in_no_folder() -> None:
    entries = directory_of(seven_zip(FILES)).entries
    assert [entry.folder for entry in entries] == [0, None, None, 1]
    assert [entry.nbytes for entry in entries] == [300, 0, 0, 1143]


@pytest.mark.parametrize("encoded_header", [False, True])
def test_an_archive_of_nothing_has_no_entries(encoded_header: bool) -> None:
    assert directory_of(seven_zip([], encoded_header=encoded_header)).entries == ()
    assert directory_of(envelope(b"", b"")).entries == ()


def test_stored_folders_are_known_from_packed_ones() -> None:
    assert is_stored(directory_of(seven_zip(FILES, coders="copy")).folders[0])
    assert not is_stored(directory_of(seven_zip(FILES)).folders[0])


LINKS = [
    (0x20, False),
    (0x400 | 0x20, True),  # Windows
    (0x8000 | 0o120777 << 16, True),  # Unix
    (0x8000 | 0o100644 << 16, False),
    (0o120777 << 16, False),  # not said to be Unix's
]


@pytest.mark.parametrize(("attributes", "is_link"), LINKS)
def test_links_are_known_by_their_attributes(attributes: int, is_link: bool) -> None:
    data = seven_zip(FILES, attributes={"notes.txt": attributes & 0xFFFFFFFF})
    assert [entry.is_link for entry in directory_of(data).entries] == [is_link, False, False, False]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "00"),
        (0x7F, "7f"),
        (0x80, "8080"),
        (0x3FFF, "bfff"),
        (0x4000, "c00040"),
        (1 << 40, "f90000000000"),
        ((1 << 64) - 1, "ff" * 9),
    ],
)
def test_numbers_are_written_as_7_zip_writes_them(value: int, written: str) -> None:
    assert number(value).hex() == written


# --- What is not read -----------------------------------------------------------------------------

UNREAD = {
    b"\x06\xf1\x07\x01": "it is encrypted",
    b"\x03\x04\x01": "it is packed with PPMd",
    b"\x04\x01\x09": "it is packed with Deflate64",
    b"\x04\xf7\x11\x01": "it is packed with Zstandard",
    b"\x09\x99": "it is packed with method 0999",
    b"\x03\x03\x01\x03": "it is packed with method 03030103",  # a filter and nothing else
}


@pytest.mark.parametrize(("method", "problem"), UNREAD.items(), ids=lambda value: str(value))
def test_a_folder_that_can_t_be_unpacked_says_why(method: bytes, problem: str) -> None:
    data = seven_zip(FILES, coders=[Coder(method, b"", bytes)])
    with pytest.raises(UnsupportedContent) as caught:
        unpacked(data)
    assert caught.value.problem == problem


def test_an_encrypted_directory_says_so() -> None:
    def streams(body: bytes) -> bytes:
        folder = b"\x06\x00\x01\x09" + number(len(body)) + b"\x00"
        return folder + b"\x07\x0b\x01\x00\x01\x04\x06\xf1\x07\x01\x0c\x10\x00\x00"

    data = envelope(b"x" * 16, b"\x17" + streams(b"x" * 16))
    with pytest.raises(UnsupportedContent) as caught:
        directory_of(data)
    assert str(caught.value) == (
        "the archive's directory can't be read: it is encrypted. "
        "Ask whoever gave it to you for the files in it."
    )


def two_inputs() -> bytes:
    """Return a directory whose folder has a coder of four inputs, as BCJ2 has."""
    coder = b"\x14\x03\x03\x01\x1b\x04\x01"
    folder = b"\x07\x0b\x01\x00\x01" + coder + b"\x00\x01\x02\x03\x0c\x04\x00"
    streams = b"\x06\x00\x04\x09\x01\x01\x01\x01\x00" + folder + b"\x00"
    names = b"\x11\x05\x00a\x00\x00\x00"
    return b"\x01\x04" + streams + b"\x05\x01" + names + b"\x00\x00"


def test_coders_that_branch_are_named() -> None:
    data = envelope(b"abcd", two_inputs())
    assert directory_of(data).entries[0].nbytes == 4
    with pytest.raises(UnsupportedContent, match="coders that are not a plain chain, as BCJ2 is"):
        unpacked(data)


# --- Damage ---------------------------------------------------------------------------------------


def test_bytes_that_belong_to_nothing_are_ambiguous() -> None:
    data = seven_zip(FILES)
    assert [f.rule for f in directory_of(data + b"more").findings] == ["trailing-bytes"]
    body, header = b"hidden" * 3, b"\x01\x05\x00\x00\x00"
    findings = directory_of(envelope(body, header)).findings
    assert [(f.rule, f.text) for f in findings] == [
        ("hidden-bytes", "bytes 32 to 50 belong to no file of the archive")
    ]


def spoiled(old: bytes, new: bytes) -> bytes:
    """Return an archive in whose directory the first `old` is `new`, checksums and all."""

    def change(header: bytes) -> bytes:
        assert old in header
        return header.replace(old, new, 1)

    return seven_zip([("a", b"abc"), ("b", b"d")], coders="copy", change_header=change)


NAMES = b"\x00a\x00\x00\x00b\x00\x00\x00"
LIES: dict[str, tuple[bytes, str]] = {
    "a folder of other bytes": (spoiled(b"\x09\x03\x01", b"\x09\x03\x02"), "reach into its dir"),
    "a billion packed streams": (
        spoiled(b"\x06\x00\x02", b"\x06\x00" + number(1 << 30)),
        "promises 1073741824 entries and ends before",
    ),
    "a billion folders": (
        spoiled(b"\x07\x0b\x02", b"\x07\x0b" + number(1 << 30)),
        "promises 1073741824 entries and ends before",
    ),
    "a thousand coders": (
        spoiled(b"\x02\x00\x01\x01\x00", b"\x02\x00" + number(1000) + b"\x01\x00"),
        "promises 1000 entries and ends before",
    ),
    "a folder of no coder": (spoiled(b"\x02\x00\x01\x01\x00", b"\x02\x00\x00"), "without a result"),
    "a billion files in a folder": (
        spoiled(b"\x08\x0d\x01", b"\x08\x0d" + number(1 << 30)),
        "promises 1073741824 entries and ends before",
    ),
    "files that are longer than their folder": (
        spoiled(b"\x08\x0d\x01\x01\x09", b"\x08\x0d\x02\x01\x09\x09"),
        "the files of a folder are longer than the folder",
    ),
    "more files than names": (
        spoiled(
            b"\x05\x02\x11\x09\x00a\x00\x00\x00b\x00\x00\x00", b"\x05\x01\x11\x05\x00a\x00\x00\x00"
        ),
        "more or fewer names than files",
    ),
    "more names than files": (
        spoiled(b"\x11\x09" + NAMES, b"\x11\x0d" + NAMES + b"x\x00\x00\x00"),
        "the archive has 2 files and 3 names",
    ),
    "names without an end": (
        spoiled(b"b\x00\x00\x00\x00", b"b\x00c\x00\x00"),
        "names end too early",
    ),
    "an unknown mark": (spoiled(b"\x01\x04\x06", b"\x01\x04\x77"), "has mark 0x77"),
    "something behind the end": (
        envelope(b"", b"\x01\x00\x00"),
        "the archive's directory goes on behind its end",
    ),
    "a packed directory that reaches into the other one": (
        envelope(b"abcd", b"\x17\x06\x00\x01\x09\x05\x00\x00"),
        "reach into its directory",
    ),
    "folders without packed bytes": (
        envelope(b"", b"\x01\x04\x07\x0b\x01\x00\x01\x01\x00\x0c\x00\x00\x00\x00"),
        "has folders without packed bytes",
    ),
    "no sizes": (
        envelope(b"", b"\x01\x04\x06\x00\x01\x00\x00\x00"),
        "does not say how long its packed bytes are",
    ),
    "an unknown mark among sizes": (
        envelope(b"", b"\x01\x04\x06\x00\x01\x77\x00\x00"),
        "has mark 0x77 among its sizes",
    ),
    "a directory in several folders": (
        envelope(b"", b"\x17\x06\x00\x00\x09\x00\x07\x0b\x00\x00\x0c\x00\x00"),
        "the archive's directory is packed in 0 folders",
    ),
    "another start": (envelope(b"", b"\x02"), "starts with an unknown mark"),
}


@pytest.mark.parametrize(("data", "problem"), LIES.values(), ids=LIES.keys())
def test_a_directory_that_lies_is_damaged(data: bytes, problem: str) -> None:
    with pytest.raises(DamagedFile) as caught:
        directory_of(data)
    assert problem in str(caught.value)


def test_a_directory_packed_in_itself_again_and_again_is_damaged() -> None:
    header = b"\x01\x05\x00\x00\x00"
    body = b""
    for _ in range(6):
        size = number(len(header))
        streams = b"\x06" + number(len(body)) + b"\x01\x09" + size + b"\x00"
        streams += b"\x07\x0b\x01\x00\x01\x01\x00\x0c" + size + b"\x0a\x01"
        streams += struct.pack("<L", zlib.crc32(header)) + b"\x00\x00"
        body += header
        header = b"\x17" + streams
    with pytest.raises(DamagedFile, match="packed in too many layers"):
        directory_of(envelope(body, header))


def test_a_directory_that_does_not_match_its_checksum_is_damaged() -> None:
    data = bytearray(seven_zip(FILES))
    data[-1] ^= 1
    with pytest.raises(DamagedFile, match="the archive's directory does not match its checksum"):
        directory_of(bytes(data))


def test_a_start_that_does_not_match_its_checksum_is_damaged() -> None:
    data = bytearray(seven_zip(FILES))
    data[20] ^= 1
    with pytest.raises(DamagedFile, match="first bytes do not match their checksum"):
        directory_of(bytes(data))


@pytest.mark.parametrize(
    ("coders", "properties"),
    [("lzma", b"\xff\0\0\0\0"), ("lzma", b"]"), ("lzma2", b"\x29"), ("lzma2", b"")],
)
def test_settings_of_lzma_that_make_no_sense_are_damage(coders: str, properties: bytes) -> None:
    method = CHAINS[coders][0].method
    data = seven_zip(FILES, coders=[Coder(method, properties, CHAINS[coders][0].pack)])
    with pytest.raises(DamagedFile, match=r"the settings of LZMA2? make no sense"):
        unpacked(data)


@pytest.mark.parametrize("properties", [b"\x5d\xff\xff\xff\xff", b"\x5d\0\0\0\xf0"])
def test_a_dictionary_of_gigabytes_takes_no_more_than_the_files(
    properties: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    decompressor = lzma.LZMADecompressor

    def noting(kind: int, filters: Any) -> Any:
        sizes.append(filters[-1]["dict_size"])
        return decompressor(kind, filters=filters)

    monkeypatch.setattr(lzma, "LZMADecompressor", noting)
    data = seven_zip(FILES, coders=[Coder(b"\3\1\1", properties, CHAINS["lzma"][0].pack)])
    assert unpacked(data) == HELD
    assert sizes == [4096, 4096]


def test_names_that_a_packed_directory_has_by_the_thousand_are_refused_before_they_are_read() -> (
    None
):
    files: list[tuple[str, bytes | None]] = [("a", b"")] * 20_000
    with pytest.raises(LimitReached, match="there is far more to read in it, once unpacked"):
        directory_of(seven_zip(files, encoded_header=True))


def test_packed_bytes_that_are_used_twice_are_damage() -> None:
    """The directory's packed form is a file of the archive, too."""
    one = b"\x09" + number(9) + b"\x00\x07\x0b\x01\x00\x01\x01\x00\x0c" + number(9) + b"\x00\x00"
    header = b"\x01\x04\x06\x00\x01" + one + b"\x05\x01\x11\x05\x00a\x00\x00\x00\x00\x00"
    size = number(len(header))
    packed = (
        b"\x06\x00\x01\x09" + size + b"\x00\x07\x0b\x01\x00\x01\x01\x00\x0c" + size + b"\x00\x00"
    )
    with pytest.raises(DamagedFile, match="the archive's packed bytes overlap"):
        directory_of(envelope(header, b"\x17" + packed))


def test_numbers_that_lzma_does_not_take_are_damage() -> None:
    for first in (4 * 9 + 8, 5 * 45 - 1):  # lc and lp may be 4 together
        data = seven_zip(FILES, coders=[Coder(b"\3\1\1", bytes([first, 0, 0, 1, 0]), bytes)])
        with pytest.raises(DamagedFile, match="the settings of LZMA make no sense"):
            unpacked(data)


def test_more_filters_than_liblzma_chains_are_not_read() -> None:
    filters = [Coder(b"\3", b"\0", bytes)] * 4
    with pytest.raises(UnsupportedContent, match="it is packed with 4 filters one upon another"):
        unpacked(seven_zip(FILES, coders=[*filters, CHAINS["lzma2"][0]]))


def test_packed_bytes_that_make_no_sense_are_damage() -> None:
    data = bytearray(seven_zip(FILES, coders="deflate"))
    data[32:40] = b"\xff" * 8
    with pytest.raises(DamagedFile, match="the packed bytes can't be unpacked"):
        unpacked(bytes(data))


def test_more_files_than_the_limit_are_refused_by_name() -> None:
    files: list[tuple[str, bytes | None]] = [(str(index), b"") for index in range(20)]
    with pytest.raises(LimitReached, match="the limit records=10 allows"):
        directory_of(seven_zip(files), Limits(records=10))


@pytest.mark.parametrize("encoded_header", [False, True])
def test_every_flipped_byte_of_the_directory_is_an_error_once_the_checksums_agree(
    encoded_header: bool,
) -> None:
    """Or changes a name, a size, a checksum: never anything but a `FileProblem`."""
    length = len(_header(lambda header: header))
    for place in range(length):
        for mask in (0x01, 0x40, 0xFF):

            def change(header: bytes, place: int = place, mask: int = mask) -> bytes:
                return header[:place] + bytes([header[place] ^ mask]) + header[place + 1 :]

            data = seven_zip(FILES, change_header=change, encoded_header=encoded_header)
            # The assertions are our own comparison: another size or checksum.
            with contextlib.suppress(FileProblem, AssertionError):
                unpacked(data)


def _header(change: Any) -> bytes:
    seen: list[bytes] = []

    def keep(header: bytes) -> bytes:
        seen.append(header)
        return bytes(change(header))

    seven_zip(FILES, change_header=keep)
    return seen[0]


def test_flags_are_written_highest_bit_first() -> None:
    assert bits([True, False, False, True]) == b"\x90"
    assert bits([False] * 8 + [True]) == b"\x00\x80"
