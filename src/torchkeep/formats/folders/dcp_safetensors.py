"""The safetensors shards of a distributed checkpoint, as `HuggingFaceStorageWriter` writes them.

Layout: files `shard-<n>-model-<m>-of-<k>.safetensors`, without any file that tells about all. Each
holds pieces under the names of their tensors; the entry DCP_SHARDING_INFO of its `__metadata__` is
JSON, `{"<name>": {"saved_offsets": [...]}}`.

Limits: how large a tensor is, is known from its pieces alone; if the last ones are missing, it is
taken for smaller.

Source: torch/distributed/checkpoint/hf_storage.py, filesystem.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Literal

from torchkeep.contents import (
    Box,
    Chunk,
    Contents,
    Finding,
    Storage,
    TensorEntry,
    contiguous_stride,
)
from torchkeep.errors import DamagedFile
from torchkeep.formats.folders.dcp_metadata import SavedTensor, tiling
from torchkeep.formats.folders.dcp_shards import CONTAINER
from torchkeep.formats.folders.folder import Folder, shown, unreadable
from torchkeep.formats.joining import join_members

HF_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""The names of such shards."""
SHARDING_INFO = "DCP_SHARDING_INFO"
"""Metadata key of where in their tensors the pieces of such a shard begin."""


def describe_hf_shards(folder: Folder, names: list[str]) -> Contents:
    """Return what the safetensors shards of a distributed checkpoint amount to."""
    opened = names[: max(folder.budget.left, 0)]
    members = {name: folder.examine(name) for name in opened}
    findings = unreadable(members)
    pieces: dict[str, list[tuple[Box, TensorEntry]]] = {}
    for name, member in members.items():
        offsets = _hf_offsets(member)
        for key, entry in member.tensors.items():
            start = offsets.get(key, (0,) * len(entry.shape))
            if len(start) == len(entry.shape):
                pieces.setdefault(key, []).append((Box(start, entry.shape), entry))
            else:
                text = f"the offsets of {shown(key)} do not belong to its shape"
                findings.append(Finding("metadata", "damaged", name, text))
    root = {key: _hf_tensor(key, parts, findings) for key, parts in pieces.items()}
    joined = join_members(
        folder.path,
        folder.nbytes,
        CONTAINER,
        members,
        kind=f"distributed checkpoint in {len(names)} safetensors shards",
        findings=tuple(findings),
        problem=None if root else DamagedFile("none of its shards has a tensor"),
    )
    return replace(joined, root=root or None)


def _hf_offsets(member: Contents) -> dict[str, tuple[int, ...]]:
    """Return where in its tensor each piece of a safetensors shard starts."""
    try:
        table = json.loads(member.metadata.get(SHARDING_INFO, "{}"))
    except (ValueError, RecursionError):
        return {}
    offsets = {}
    for key, facts in (table if isinstance(table, dict) else {}).items():
        start = facts.get("saved_offsets") if isinstance(facts, dict) else None
        if isinstance(start, list) and all(type(n) is int and 0 <= n < 1 << 60 for n in start):
            offsets[key] = tuple(start)
    return offsets


def _hf_tensor(
    key: str, parts: list[tuple[Box, TensorEntry]], findings: list[Finding]
) -> TensorEntry:
    """Return a tensor from its pieces. How large it is, is known from the pieces alone."""
    first = parts[0][1]
    ends = [tuple(a + b for a, b in zip(box.offsets, box.shape, strict=True)) for box, _ in parts]
    same_kind = [len(end) == len(ends[0]) for end in ends]
    if not all(same_kind) or any(entry.dtype != first.dtype for _, entry in parts):
        text = f"the pieces of {shown(key)} are of several kinds"
        findings.append(Finding("other-piece", "ambiguous", "", text))
        return first
    shape = tuple(max(sizes) for sizes in zip(*ends, strict=True))
    whole = SavedTensor(first.dtype, shape, tuple(box for box, _ in parts))
    if len(parts) == 1 and first.shape == shape:
        return first
    problem = tiling(whole)
    if problem is not None:
        rule = "missing-piece" if problem.is_gap else "overlapping-pieces"
        severity: Literal["damaged", "ambiguous"] = "damaged" if problem.is_gap else "ambiguous"
        findings.append(Finding(rule, severity, "", f"{shown(key)}: {problem.text}"))
    chunks = tuple(
        Chunk(box.offsets, box.shape, path, entry.storage.offset or 0, entry.nbytes)
        for box, entry in parts
        if (path := entry.storage.path) is not None
    )
    return TensorEntry(
        dtype=first.dtype,
        shape=shape,
        stride=contiguous_stride(shape),
        storage=Storage(key, 0, None),
        chunks=chunks if problem is None else (),
    )
