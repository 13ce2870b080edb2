"""The writer of safetensors files. `formats/safetensors.py` has the layout.

Sizes and places follow from names, shapes and dtypes alone, so the whole file is reserved before
the first byte is written. Two threads then hash and write the tensors, and the header comes last,
since it holds their digests. Never more than a few tensors are copied at a time.

Tensors are ordered by dtype, widest first, then by name, as the reference implementation does, so
that each is aligned to its element size. Names that are the same tensor are stored once, and the
others recorded in `__metadata__` under `torchkeep.tied`, and once more as `dropped name: kept
name`, which is how `safetensors.torch.save_model` does it. A reader can't tell the latter from
other metadata, and trusts the former.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from torchkeep.errors import SaveRefused
from torchkeep.files import (
    OutputFile,
    atomic_file,
    digest,
    grouped_by_size,
    in_parallel,
    new_digest,
)
from torchkeep.formats.own.metadata import DIGESTS, FACTS, TIED
from torchkeep.formats.safetensors import DTYPES, MAX_HEADER_NBYTES
from torchkeep.saving.leaves import check_tensor
from torchkeep.writing.report import SaveReport
from torchkeep.tensors import bytes_of, dtype_name, identity, plain_on_cpu

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_ORDER = (
    *("BOOL", "F4", "U8", "I8"),
    *("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
"""The reference implementation's order of dtypes, narrowest first."""

_NO_DIGEST = "0" * 32


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor and where it goes, in bytes from the start of the payload."""

    name: str
    tensor: torch.Tensor
    dtype: str
    begin: int
    end: int

    def row(self) -> dict[str, object]:
        """Return what the header says about it."""
        shape = list(self.tensor.shape)
        if self.dtype == "F4":  # PyTorch counts pairs, the format elements
            shape[-1] *= 2
        return {"dtype": self.dtype, "shape": shape, "data_offsets": [self.begin, self.end]}


def write_safetensors(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
    overwrite: bool = False,
) -> SaveReport:
    """Write named tensors; the file appears whole or not at all.

    The bytes follow from the arguments alone: the same tensors and metadata give the same file.

    Args:
        tensors: the tensors by name, on any device, of any strides. Each name is stored with its
            values; that two names are one tensor is recorded, other shared memory is not.
        path: the file.
        metadata: texts for the header's `__metadata__`. The tensors' digests are added.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there.

    Raises:
        SaveRefused: a tensor can't be stored in this format (it is named), or the place can't be
            written to. An old file is intact.
    """
    kept, tied = _untie(tensors)
    _check_metadata(metadata or {}, tensors)
    places = _place(kept)
    texts = {**tied, "format": "pt", **(metadata or {}), TIED: _compact(tied)}
    rows = _compact({place.name: place.row() for place in places})
    header_nbytes = len(_header(rows, texts, dict.fromkeys(tensors, _NO_DIGEST)))
    nbytes = header_nbytes + (places[-1].end if places else 0)
    with atomic_file(path, durable=durable, overwrite=overwrite) as file:
        file.reserve(nbytes)
        digests = _write_payload(file, header_nbytes, places)
        digests.update({name: digests[kept_name] for name, kept_name in tied.items()})
        digests = {name: digests[name] for name in tensors}
        file.write_at(0, _header(rows, texts, digests))
    return SaveReport(Path(path), nbytes, len(tensors), digests, tied)


def _untie(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors to store, and the names left out by the name that stands for them."""
    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        _check(name, tensor)
        first = seen.setdefault(identity(tensor), name)
        if first == name:
            kept[name] = tensor
        else:
            tied[name] = first
    return kept, tied


def _check_metadata(metadata: Mapping[str, str], names: Container[str]) -> None:
    """Raise if the header would say two things under one name."""
    for key in metadata:
        if key in names and key not in FACTS:
            raise SaveRefused(
                f"metadata key {key!r} is the name of a tensor too", advice="Rename the key."
            )


def _check(name: object, tensor: object) -> None:
    if not isinstance(name, str) or name == "__metadata__" or not _is_utf8(name):
        raise SaveRefused(
            f"{name!r} is no name that safetensors can store",
            advice="Rename it, or save as .pth.",
        )
    check_tensor(tensor, name)
    assert isinstance(tensor, torch.Tensor)  # noqa: S101 - checked the line before
    if dtype_name(tensor.dtype) not in _NAMES or (
        tensor.dtype == torch.float4_e2m1fn_x2 and tensor.dim() == 0
    ):
        raise SaveRefused(
            f"tensor {name!r} has dtype {dtype_name(tensor.dtype)}, which safetensors lacks",
            advice="Save as .pth, or convert it first.",
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _place(tensors: Mapping[str, torch.Tensor]) -> list[_Place]:
    ranks = {dtype: -rank for rank, dtype in enumerate(_ORDER)}
    dtypes = {name: _NAMES[dtype_name(tensor.dtype)] for name, tensor in tensors.items()}
    places, position = [], 0
    for name in sorted(tensors, key=lambda name: (ranks[dtypes[name]], name.encode())):
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        places.append(_Place(name, tensor, dtypes[name], position, end))
        position = end
    return places


def _header(rows: str, texts: Mapping[str, str], digests: Mapping[str, str]) -> bytes:
    """Return the length and the JSON, padded so that the payload starts at a multiple of 8.

    `rows` is the JSON object of the tensors, which does not change when the digests are known.
    """
    metadata = _compact({**texts, DIGESTS: _compact(digests)})
    separator = "," if len(rows) > 2 else ""
    text = f'{{"__metadata__":{metadata}{separator}{rows[1:]}'.encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_NBYTES:
        raise SaveRefused(
            f"the header would take {len(text):,} bytes, and safetensors allows "
            f"{MAX_HEADER_NBYTES:,}",
            advice="Save less metadata, or as .pth.",
        )
    return len(text).to_bytes(8, "little") + text


def _compact(table: object) -> str:
    return json.dumps(table, ensure_ascii=False, separators=(",", ":"))


def _write_payload(file: OutputFile, start: int, places: Iterable[_Place]) -> dict[str, str]:
    def write(run: list[_Place]) -> dict[str, str]:
        return _write_run(file, start + run[0].begin, run)

    runs = grouped_by_size(places, lambda place: place.end - place.begin)
    return {name: text for digests in in_parallel(write, runs) for name, text in digests.items()}


def _write_run(file: OutputFile, offset: int, run: list[_Place]) -> dict[str, str]:
    """Write neighbours in one call, small ones joined; return their digests by name."""
    if len(run) == 1:
        place, state = run[0], new_digest()
        file.write_at(offset, bytes_of(plain_on_cpu(place.tensor)), observe=state.update)
        return {place.name: state.hexdigest()}
    views = [bytes_of(plain_on_cpu(place.tensor)) for place in run]
    file.write_at(offset, b"".join(views))
    return {place.name: digest(view) for place, view in zip(run, views, strict=True)}
