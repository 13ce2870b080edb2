"""Samples of archives, and of PyTorch's oldest format, which no library writes any more.

`torch.tar` puts a file of PyTorch before 0.1.10 together record by record, to the layout that
`_legacy_load` of today's PyTorch still reads.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from formats.building import Call, StorageId, object_pickle
from formats.samples import Sample
from formats.seven_zip_writer import seven_zip

Files = Sequence[tuple[str, bytes]]


def tar_file(files: Files, *, padding: int = tarfile.RECORDSIZE, mtime: float = 0) -> bytes:
    """Return a tar of these files, as Python's tarfile writes it.

    Args:
        files: names and bytes.
        padding: what the end is filled up to.
        mtime: the time of the files; one that is no whole number takes a table of its own.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            archive.addfile(info, io.BytesIO(data))
    data = buffer.getvalue().rstrip(b"\0")
    end = -(-len(data) // 512) * 512 + 1024
    return data.ljust(-(-end // padding) * padding, b"\0")


def zip_archive(files: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


# --- PyTorch before 0.1.10 -----------------------------------------------------------------------


def tar_storage(key: Any, kind: str, item_nbytes: int, data: bytes, place: str = "cpu") -> bytes:
    """Return a storage as it stands in `storages`."""
    head = pickle.dumps((key, place, getattr(torch, kind)), 2)
    return head + struct.pack("<q", len(data) // item_nbytes) + data


def tar_tensor(
    key: Any, storage: Any, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> bytes:
    """Return a tensor as it stands in `tensors`."""
    numbers = (*shape, *stride, offset)
    head = pickle.dumps((key, storage, torch.FloatTensor), 2)
    # Nobody reads the 4 bytes behind the number of dimensions; old files have anything there.
    return head + struct.pack(f"<ii{len(numbers)}q", len(shape), 1, *numbers)


def tar_records(
    tree: Any,
    tensors: Sequence[bytes],
    storages: Sequence[bytes],
    views: Any = (),
    *,
    num_tensors: Any = None,
    num_storages: Any = None,
) -> dict[str, bytes]:
    """Return the four files, in the order in which PyTorch wrote them."""
    info = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"int": 4}}

    def table(parts: Sequence[bytes], count: Any) -> bytes:
        return pickle.dumps(len(parts) if count is None else count, 2) + b"".join(parts)

    return {
        "sys_info": pickle.dumps(info, 2),
        "pickle": object_pickle(tree),
        "tensors": table(tensors, num_tensors),
        "storages": table(storages, num_storages) + pickle.dumps(list(views), 2),
    }


def torch_tar(records: dict[str, bytes], **options: Any) -> bytes:
    return tar_file(list(records.items()), **options)


def old_parameter(key: str, *, requires_grad: bool = True) -> Call:
    """Return a parameter as PyTorch 0.1.9 pickled it: made from nothing, then set."""
    hooks: OrderedDict[str, Any] = OrderedDict()
    return Call(nn.Parameter, (), (StorageId(key), None, hooks, requires_grad, False))


DATA = torch.arange(12, dtype=torch.float32)
NUMBERS = torch.tensor([[1, -2], [3, 4]], dtype=torch.int64)


def every_part() -> dict[str, bytes]:
    """Return a file with parts of storages, aliases, an empty tensor and a parameter."""
    tree = OrderedDict(
        whole=StorageId("31"),
        part=StorageId("32"),
        same=StorageId("31"),
        numbers=StorageId("33"),
        empty=StorageId("34"),
        parameter=old_parameter("32"),
        storage=StorageId("21"),
        epoch=7,
    )
    tensors = [
        tar_tensor(31, 11, (3, 4), (4, 1)),
        tar_tensor(32, 21, (2, 2), (1, 2), 1),
        tar_tensor(33, 12, (2, 2), (2, 1)),
        tar_tensor(34, 11, (0,), (1,)),
    ]
    storages = [
        tar_storage(11, "FloatStorage", 4, DATA.numpy().tobytes()),
        tar_storage(12, "LongStorage", 8, NUMBERS.numpy().tobytes()),
    ]
    return tar_records(tree, tensors, storages, [(21, 11, 4, 6)])


def write_every_part(path: Path) -> Any:
    path.write_bytes(torch_tar(every_part(), padding=512))
    part = DATA[4:10]
    first = DATA.view(3, 4)
    inner = part.as_strided((2, 2), (1, 2), DATA[4:].storage_offset() + 1)
    return OrderedDict(
        whole=first,
        part=inner,
        same=first,
        numbers=NUMBERS,
        empty=DATA[:0],
        parameter=nn.Parameter(inner),
        storage=part,
        epoch=7,
    )


def tar_state_dict() -> tuple[dict[str, bytes], OrderedDict[str, torch.Tensor]]:
    """Return the files of a state dict of every type that PyTorch had, and the state dict."""
    kinds = {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
    }
    tree: OrderedDict[str, Any] = OrderedDict()
    live: OrderedDict[str, torch.Tensor] = OrderedDict()
    tensors, storages = [], []
    for index, (kind, dtype) in enumerate(kinds.items()):
        value = torch.arange(6).to(dtype).view(2, 3)
        name, key = f"layer.{kind.lower()}", 94_000_000_000_000 + index
        tree[name], live[name] = StorageId(str(key)), value
        tensors.append(tar_tensor(key, key + 1000, (2, 3), (3, 1)))
        data = value.numpy().tobytes()
        storages.append(tar_storage(key + 1000, f"{kind}Storage", dtype.itemsize, data))
    return tar_records(tree, tensors, storages), live


def write_tar_state_dict(path: Path) -> Any:
    records, live = tar_state_dict()
    path.write_bytes(torch_tar(records, padding=512))
    return live


# --- Archives of files ---------------------------------------------------------------------------


def saved(value: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def members() -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    """Return the files of an archive, and by name what the models among them hold."""
    torch.manual_seed(0)
    state = dict(nn.Linear(2, 3).state_dict())
    values = {"epoch": 3, "names": ["a", "b"]}
    files = [
        ("run/model.pth", saved(state)),
        ("run/old.pth", saved({"w": torch.arange(3)}, zipped=False)),
        ("run/values.pkl", pickle.dumps(values, 4)),
        ("run/notes.txt", b"epoch 3 was best\n"),
        ("run/config.json", b'{"width": 3}'),
    ]
    held = {
        "run/model.pth": state,
        "run/old.pth": {"w": torch.arange(3)},
        "run/values.pkl": values,
    }
    return files, held


def write_archive(path: Path, *, make: Callable[[Files], bytes]) -> Any:
    files, held = members()
    path.write_bytes(make(files))
    return held


def write_state_dict(path: Path) -> Any:
    state = dict(nn.Linear(2, 3).state_dict())
    path.write_bytes(zip_archive([("weights/model.pth", saved(state))]))
    return {"weights/model.pth": state}


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
ARCHIVES: dict[str, Callable[[Files], bytes]] = {
    "zip": zip_archive,
    "deflated zip": partial(zip_archive, method=zipfile.ZIP_DEFLATED),
    "bzip2 zip": partial(zip_archive, method=zipfile.ZIP_BZIP2),
    "lzma zip": partial(zip_archive, method=zipfile.ZIP_LZMA),
    "tar": partial(tar_file, padding=512),
    "7z": lambda files: seven_zip(list(files)),
    "stored 7z": lambda files: seven_zip(list(files), coders="copy", solid=True),
    "solid 7z": lambda files: seven_zip(list(files), solid=True, encoded_header=True),
    **{
        f"tar.{name}": lambda files, pack=pack: pack(tar_file(files, padding=512))
        for name, pack in PACKERS.items()
    },
}

STORED = ("zip", "tar", "stored 7z")
"""Those whose files lie in them as they are."""

SAMPLES = [
    Sample("torch-tar state dict", "torch-tar", write_tar_state_dict),
    Sample("torch-tar every part", "torch-tar", write_every_part),
    Sample("archive state dict", "archive", write_state_dict),
    *(
        Sample(f"archive {name}", "archive", partial(write_archive, make=ARCHIVES[name]))
        for name in STORED
    ),
]
"""For the conformance suite. What is packed has no bytes to compare there; see test_archive."""
