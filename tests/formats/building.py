"""Files put together byte by byte: what no library writes any more, and what none should."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from torchkeep.contents import Contents

MAGIC = 0x1950A86A20F9469CFC6C


def rules(contents: Contents) -> list[tuple[str, str]]:
    """Return what was found about a file, without the words."""
    return [(finding.rule, finding.severity) for finding in contents.findings]


# --- The legacy stream ---------------------------------------------------------------------------


@dataclass(frozen=True)
class StorageId:
    """A storage's persistent id, written where it stands."""

    pid: tuple[Any, ...]


def storage(
    kind: str, key: str, numel: int, *, view: tuple[str, int, int] | None = None
) -> StorageId:
    return StorageId(("storage", getattr(torch, kind), key, "cpu", numel, view))


class Call:
    """Pickled as a call, and a state that is set on its result."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def old_tensor(
    where: StorageId,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    parameter_state: tuple[Any, ...] | None = None,
    whole_state: tuple[Any, ...] | None = None,
    is_state: bool = False,
) -> Call:
    """Return a tensor in one of the ways of PyTorch 0.1 to 0.3.

    Args:
        where: its storage.
        offset: its first element.
        size: its shape.
        stride: its strides.
        parameter_state: make a parameter, and set `(requires_grad, volatile, hooks)` on it.
        whole_state: make an empty parameter, and set the tensor and this on it.
        is_state: make an empty tensor, and set the storage, offset, size and stride on it.
    """
    if is_state:
        return Call(torch.FloatTensor, (), (where, offset, size, stride))
    tensor = Call(torch._utils._rebuild_tensor, (where, offset, size, stride))
    if parameter_state is not None:
        return Call(torch.nn.Parameter, (tensor,), parameter_state)
    if whole_state is not None:
        return Call(torch.nn.Parameter, (), (tensor, *whole_state))
    return tensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, StorageId) else None


def object_pickle(tree: Any) -> bytes:
    """Return a tree of values, `Call`s and storages as PyTorch would pickle it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(tree)
    return buffer.getvalue()


def legacy_file(
    path: Path,
    tree: Any,
    storages: dict[str, tuple[int, bytes]],
    *,
    machine: Literal["little", "big"] = "little",
    count_order: Literal["little", "big"] = "little",
    keys: list[Any] | None = None,
    protocol: Any = 1001,
    tail: bytes = b"",
) -> None:
    """Write a legacy stream.

    Args:
        path: the file.
        tree: the object.
        storages: by key, bytes per element and the bytes.
        machine: the byte order that the system information tells.
        count_order: the byte order of the counts; old versions took the machine's.
        keys: the list of keys, if not the right one.
        protocol: the protocol's number.
        tail: bytes behind the end.
    """
    info = {"protocol_version": 1001, "little_endian": machine == "little", "type_sizes": {}}
    parts = [pickle.dumps(value, 2) for value in (MAGIC, protocol, info)]
    parts += [object_pickle(tree), pickle.dumps(sorted(storages) if keys is None else keys, 2)]
    for _, (item_nbytes, data) in sorted(storages.items()):
        parts += [(len(data) // item_nbytes).to_bytes(8, count_order), data]
    path.write_bytes(b"".join(parts) + tail)


def legacy_tensor(numel: int = 4, *, declared: int | None = None) -> dict[str, Any]:
    """Return an object for `legacy_file`: one float tensor over all of storage "1"."""
    where = storage("FloatStorage", "1", numel if declared is None else declared)
    call = (where, 0, (numel,), (1,), False, OrderedDict())
    return {"w": Call(torch._utils._rebuild_tensor_v2, call)}


# --- Zip archives --------------------------------------------------------------------------------


def rewrite_zip(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write an archive again, each record changed by `change(name, bytes)`, or dropped by None."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)


def zip_file(path: Path, records: list[tuple[str, bytes]], compression: int = 0) -> None:
    """Write an archive of these records, in this order, repeated names and all."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records:
            archive.writestr(name, data)


def torch_records(*, declared: int = 4, nbytes: int = 16) -> list[tuple[str, bytes]]:
    """Return the records of an archive of one float tensor `w` of 4 elements, `[0, 1, 2, 3]`.

    Args:
        declared: the elements of the storage as the pickle tells them.
        nbytes: the bytes of its record.
    """
    where = StorageId(("storage", torch.FloatStorage, "0", "cpu", declared))
    call = (where, 0, (declared,), (1,), False, OrderedDict())
    data = struct.pack("<4f", 0, 1, 2, 3)[:nbytes].ljust(nbytes, b"\0")
    return [
        ("archive/data.pkl", object_pickle({"w": Call(torch._utils._rebuild_tensor_v2, call)})),
        ("archive/byteorder", b"little"),
        ("archive/data/0", data),
        ("archive/version", b"3\n"),
    ]


# --- Safetensors ---------------------------------------------------------------------------------


def safetensors_file(
    path: Path, header: Any, data: bytes = b"", *, nbytes: int | None = None
) -> None:
    """Write a header (a JSON value, or raw text) and the bytes behind it.

    `nbytes` is the header's length as the file tells it, if not the right one.
    """
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if nbytes is None else nbytes
    path.write_bytes(struct.pack("<Q", length) + text + data)
