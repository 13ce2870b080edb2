"""Pickles put together opcode by opcode, and the archives around them."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib

STOP = b"."


def u4(number: int) -> bytes:
    return struct.pack("<I", number)


def u8(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + u4(len(data)) + data


def short_text(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def blob(value: bytes) -> bytes:
    return b"B" + u4(len(value)) + value


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    return short_text(module) + short_text(attribute) + b"\x93"


def call(callee: bytes, *arguments: bytes) -> bytes:
    return callee + b"(" + b"".join(arguments) + b"tR"


def command(marker: str) -> str:
    return f"touch {marker}"


def source(marker: str) -> str:
    """Return Python source that makes the marker."""
    return f"open({marker!r}, 'w').close()"


def system(marker: str) -> bytes:
    """Return the opcodes that call os.system."""
    return call(name("posix", "system"), text(command(marker)))


def payload(marker: str) -> bytes:
    """Return the plainest pickle that runs a command."""
    return b"\x80\x02" + system(marker) + STOP


def state_dict(extra: bytes = b"") -> bytes:
    """Return the pickle of `{"w": <float tensor of 4 elements in record 0>}` and of an extra value.

    The extra value is built first, and dropped.
    """
    dropped = extra + b"0" if extra else b""
    return b"\x80\x02" + dropped + b"}" + text("w") + tensor() + b"s" + STOP


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    """Return the opcodes of a storage."""
    pid = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel)
    return b"(" + pid + b"tQ"


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    where: bytes = b"",
    offset: int = 0,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
) -> bytes:
    """Return the opcodes of a tensor."""
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        where or storage(),
        number(offset),
        numbers(*size),
        numbers(*stride),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


# --- Archives ------------------------------------------------------------------------------------


def zip_of(records: list[tuple[str, bytes]], *, packed: bool = False, prefix: bytes = b"") -> bytes:
    """Return a zip archive; repeated names are kept. Offsets count the prefix."""
    buffer = io.BytesIO()
    buffer.write(prefix)
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "a" if prefix else "w", method) as archive:
        for record, data in records:
            info = zipfile.ZipInfo(record, (2026, 1, 1, 0, 0, 0))
            info.compress_type = method
            archive.writestr(info, data)
    return buffer.getvalue()


def torch_records(pickled: bytes, nbytes: int = 16) -> list[tuple[str, bytes]]:
    """Return the records of what torch.save would write."""
    return [
        ("archive/data.pkl", pickled),
        ("archive/byteorder", b"little"),
        ("archive/data/0", bytes(nbytes)),
        ("archive/version", b"3\n"),
    ]


def torch_zip(pickled: bytes, extra: list[tuple[str, bytes]] | None = None) -> bytes:
    return zip_of([*torch_records(pickled), *(extra or [])])


def patched(archive: bytes, record: str, field: str, value: bytes, *, where: str = "both") -> bytes:
    """Return a zip archive in which a field of one record's headers has another value."""
    data = bytearray(archive)
    offsets = {"flags": (6, 8), "crc": (14, 16), "name": (30, 46), "method": (8, 10)}[field]
    for magic, offset, side in (
        (b"PK\x03\x04", offsets[0], "local"),
        (b"PK\x01\x02", offsets[1], "central"),
    ):
        if where not in ("both", side):
            continue
        name_at = 30 if side == "local" else 46
        start = data.find(magic)
        while data[start + name_at : start + name_at + len(record)] != record.encode():
            start = data.index(magic, start + 1)
        data[start + offset : start + offset + len(value)] = value
    return bytes(data)


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def seven_zip_of(
    member: str, data: bytes, *, coder: bytes = b"\x01\x00", packed: bytes = b""
) -> bytes:
    """Return a 7z archive of one file, by the coder Copy unless another and its output is given.

    Source: DOC/7zFormat.txt of the LZMA SDK.
    """
    stream = packed or data

    def wide(value: int) -> bytes:
        return b"\xff" + u8(value)

    names = b"\0" + member.encode("utf-16-le") + b"\0\0"
    header = b"\x01\x04"
    header += b"\x06" + wide(0) + b"\x01\x09" + wide(len(stream)) + b"\0"
    header += b"\x07\x0b\x01\0\x01" + coder + b"\x0c" + wide(len(data))
    header += b"\x0a\x01" + u4(zlib.crc32(data)) + b"\0\0"
    header += b"\x05\x01\x11" + wide(len(names)) + names + b"\0\0"
    start = u8(len(stream)) + u8(len(header)) + u4(zlib.crc32(header))
    magic = b"7z\xbc\xaf\x27\x1c\x00\x04"
    return magic + u4(zlib.crc32(start)) + start + stream + header


def legacy_stream(
    *, magic: bytes = b"", info: bytes = b"", root: bytes = b"", keys: bytes = b""
) -> bytes:
    """Return a stream of torch up to 1.5, each pickle the right one unless another is given."""
    parts = [
        magic or pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        pickle.dumps(1001, 2),
        info or b"\x80\x02}" + text("little_endian") + b"\x88s.",
        root or b"\x80\x02}.",
        keys or b"\x80\x02].",
    ]
    return b"".join(parts)


def npy(pickled: bytes, descr: str = "|O", shape: str = "()") -> bytes:
    """Return a NumPy file whose data is a pickle."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = header.ljust(-(-(len(header) + 11) // 64) * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + pickled
