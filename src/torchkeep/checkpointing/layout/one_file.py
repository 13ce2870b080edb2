"""A checkpoint as one file: what `formats.own.one_file` lays out, written and read back live.

It is a plain torch zip with the keys that training scripts use. What an exact resume needs beside
them stands under one more key; a tensor that is in both is stored once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.layout.usual_keys import usual_keys
from torchkeep.checkpointing.state.encoding import State, decode
from torchkeep.contents import Contents, Memory, TensorEntry
from torchkeep.errors import DamagedFile, FileMissing, FileProblem
from torchkeep.formats.own.manifest import manifest_digest
from torchkeep.formats.own.one_file import (
    KEY,
    MANIFEST_KEY,
    PLACES,
    TENSORS_KEY,
    entries_of,
    read_one_file,
)
from torchkeep.identify.digests import stored_digests
from torchkeep.identify.integrity import verify_contents
from torchkeep.pickles.limits import DEFAULT_LIMITS
from torchkeep.saving.leaves import check_has_values
from torchkeep.saving.torch_zip import write_torch_zip
from torchkeep.tensors import TensorReader, bytes_of, identity, plain_on_cpu

_Place = list[str | int]


def write_one_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    manifest: dict[str, Any],
    *,
    durable: bool,
    background: bool,
) -> None:
    """Write a state that `encode` took apart as one file, and complete its manifest.

    Args:
        path: the checkpoint's name; nothing may be there.
        tensors: those of the state.
        manifest: the state's structure and the facts; the places of the tensors are added.
        durable: sync the file and its folder.
        background: take as little of the processors as can be, for somebody else computes.

    Raises:
        SaveRefused: a tensor can't be kept, or the place can't be written.
    """
    apart = _apart(tensors)
    state = decode(apart, manifest["structure"])
    tree = usual_keys(state, manifest, decode({}, manifest["metrics"]), step_key="global_step")
    known = dict(_places(tree, []))
    others: list[torch.Tensor] = []
    for tensor in apart.values():
        if id(tensor) not in known:
            known[id(tensor)] = [KEY, TENSORS_KEY, len(others)]
            others.append(tensor)
    manifest[PLACES] = {name: known[id(tensor)] for name, tensor in apart.items()}
    manifest["digest"] = manifest_digest(manifest)
    own = {MANIFEST_KEY: json.dumps(manifest, allow_nan=False), TENSORS_KEY: others}
    # It comes first, so that the file's first bytes tell what it is.
    write_torch_zip({KEY: own, **tree}, path, durable=durable, background=background, device="cpu")


def _places(value: Any, place: _Place) -> Iterator[tuple[int, _Place]]:
    """Yield the `id` of each tensor in a tree, and the keys that lead to it."""
    if isinstance(value, torch.Tensor):
        yield id(value), place
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) in (str, int):
                yield from _places(item, [*place, key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _places(item, [*place, index])


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors as plain ones, each with a storage of its own; names of one stay one.

    A zip stores whole storages, and one storage has one dtype. Copies of a state are all in one.
    """
    found: dict[tuple[object, ...], torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        check_has_values(tensor, name)
        if identity(tensor) not in found:
            found[identity(tensor)] = _alone(tensor.detach(), taken)
    return {name: found[identity(tensor)] for name, tensor in tensors.items()}


def _alone(tensor: torch.Tensor, taken: set[int]) -> torch.Tensor:
    """Return a tensor whose storage is its own, without a copy as far as that can be."""
    is_plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel() > 0
    if not is_plain or tensor.is_conj() or tensor.is_neg():
        return tensor
    if not tensor.is_cpu:
        is_alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if is_alone else plain_on_cpu(tensor)
    if tensor.data_ptr() in taken:  # two storages can't start at one address
        return tensor.clone()
    taken.add(tensor.data_ptr())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    run = torch.as_strided(tensor, (1 + sum((size - 1) * step for size, step in steps),), (1,))
    memory = torch.frombuffer(bytes_of(run), dtype=torch.uint8).view(tensor.dtype)
    return torch.as_strided(memory, tensor.shape, tensor.stride())


# --- Reading -----------------------------------------------------------------------------------


def damage_of_file(path: str | os.PathLike[str]) -> str:
    """Return what is wrong with a checkpoint, or an empty string: every byte of it is read."""
    name = Path(path).name
    try:
        contents, manifest = read_one_file(path)
        _check(contents, entries_of(contents.root, manifest))
        found = verify_contents(contents, DEFAULT_LIMITS)
    except FileMissing:
        return f"{name} is missing"
    except FileProblem as error:
        return f"{name}: {error.problem}"
    wrong = (*found.findings, *found.left_out)
    return f"{name}: {wrong[0].text}" if wrong else ""


def read_file_state(path: str | os.PathLike[str], *, mmap: bool = False) -> State:
    """Return the state of a checkpoint, as `read_state` does."""
    contents, manifest = read_one_file(path)
    try:
        entries = entries_of(contents.root, manifest)
        digests = _check(contents, entries)
        with TensorReader(path, mmap=mmap, digests=digests, stamps=contents.stamps) as reader:
            tensors = {name: _read(reader, entry, name) for name, entry in entries.items()}
        state: State = decode(tensors, manifest["structure"])
    except RecursionError:
        raise DamagedFile("its structure is nested too deeply", path=path) from None
    except FileProblem as problem:
        raise problem.in_file(path) from None
    return state


def _check(
    contents: Contents, entries: Mapping[str, TensorEntry]
) -> Mapping[Memory, frozenset[str]]:
    """Return the digests of a file's tensors; without one a tensor can't be told from another.

    Raises:
        DamagedFile: one has no digest.
    """
    digests = stored_digests(contents)
    for name, entry in entries.items():
        parts = [part for _, part in entry.parts] if entry.is_composite else [entry]
        if not all(part.memory in digests for part in parts):
            raise DamagedFile(
                f"tensor {name} has no digest: another program wrote the file anew",
                advice="Take the file that torchkeep wrote.",
            )
    return digests


def _read(reader: TensorReader, entry: TensorEntry, name: str) -> torch.Tensor:
    if reader.maps and not entry.is_composite:  # mapping alone compares nothing
        reader.verify(entry, name)
    return reader.materialize(entry, name)
