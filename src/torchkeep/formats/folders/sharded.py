"""A state dict that is split into several files, and the index that tells where each tensor is.

Layout: in one folder

    model.safetensors.index.json       {"metadata": {"total_size": 26953662464},
                                        "weight_map": {"<tensor>": "<file>", ...}}
    model-00001-of-00006.safetensors   a part of the state dict, a plain file of its kind
    ...

The same with `pytorch_model.bin.index.json` and files of `torch.save`. Variants have one word more
(`model.safetensors.index.fp16.json`); a folder may have several indexes.

The tree is the one state dict that the parts amount to. What is checked: that each file is there
and in the folder, that each tensor is in the file that the index says and in no other, and the
total size. Only headers and pickles are read.

Source: transformers/modeling_utils.py (`save_pretrained`, `load_sharded_checkpoint`) and
huggingface_hub/serialization/_base.py (`split_state_dict_into_shards_factory`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

from torchkeep.contents import Contents, Finding, TensorEntry, Value
from torchkeep.errors import (
    DamagedFile,
    FileProblem,
    LimitReached,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.formats.folders.folder import Folder, listed, shown, way_out
from torchkeep.formats.joining import join_members
from torchkeep.formats.own.metadata import RESERVED
from torchkeep.formats.plain_json import parse_json
from torchkeep.wording import counted

_NAME = re.compile(r".+\.index(\.[\w-]+)?\.json")
_FOREIGN = (".h5", ".msgpack")
"""Suffixes of the parts that TensorFlow and Flax write."""
_MOST_SHARDS = 20_000
"""Files that an index may name; the largest models have about a thousand."""


@dataclass(frozen=True, slots=True)
class Index:
    """An index file, checked."""

    weight_map: dict[str, str]
    """The file of each tensor."""
    metadata: dict[str, Any]
    """What else it says."""

    @property
    def shards(self) -> list[str]:
        """The files that it names, in the order of their names."""
        return sorted(set(self.weight_map.values()))


def read_index(folder: Folder, name: str) -> Index:
    """Return an index of the folder.

    Raises:
        NotAModelFile: it is JSON, and no index.
        DamagedFile: it is no JSON, or an index that makes no sense.
        LimitReached: it is longer than the limits allow, or names too many files.
    """
    folder.limits.check("header_nbytes", folder.files.get(name, 0))
    table = parse_json(folder.read(name, folder.limits.header_nbytes))
    if not isinstance(table, dict) or "weight_map" not in table:
        raise NotAModelFile("this is JSON without a weight_map, not the index of a model")
    weight_map = table["weight_map"]
    if not isinstance(weight_map, dict) or not all(map(_is_text, weight_map.values())):
        raise DamagedFile("its weight_map is no table from tensors to files")
    metadata = table.get("metadata")
    index = Index(weight_map, metadata if isinstance(metadata, dict) else {})
    if len(index.shards) > _MOST_SHARDS:
        raise LimitReached(f"it names more than {_MOST_SHARDS:,} files")
    return index


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def describe_index(folder: Folder, name: str) -> tuple[Contents, list[str]]:
    """Return the state dict that an index stands for, and the files that it accounts for.

    What is wrong with the index is the description's `problem`; it accounts for nothing then.
    """
    path = folder.path / name
    shards: list[str] = []
    try:
        index = read_index(folder, name)
        contents = _Reading(folder, name, index).contents()
        shards = index.shards
    except FileProblem as problem:
        nbytes = folder.files.get(name, 0)
        contents = Contents(path, nbytes, _kind_by_name(name), None, problem=problem)
    if contents.problem is not None:
        contents.problem.in_file(path)
    return contents, shards


class _Reading:
    """One index, and the parts that it names, opened one after the other."""

    def __init__(self, folder: Folder, name: str, index: Index) -> None:
        self.folder = folder
        self.name = name
        self.index = index
        self.findings: list[Finding] = []
        self.members: dict[str, Contents] = {}
        self.root: dict[str, Value] = {}

    def contents(self) -> Contents:
        if any(shard.endswith(_FOREIGN) for shard in self.index.shards):
            raise UnsupportedContent("its parts are of TensorFlow or Flax, and not read")
        self.num_absent = self.open_shards()
        self.compare()
        self.check_total()
        nbytes = sum(member.nbytes for member in self.members.values())
        joined = join_members(
            self.folder.path / self.name,
            nbytes + self.folder.files.get(self.name, 0),
            self.container(),
            self.members,
            kind=self.kind(),
            findings=tuple(self.findings),
            problem=None if self.members else DamagedFile("none of its files can be read"),
        )
        facts = {
            key: str(value)
            for key, value in self.index.metadata.items()
            if isinstance(value, str | int | float)
            and (key.startswith(RESERVED) or len(str(value)) < _LONGEST_FACT)
        }
        metadata = {**_common_metadata(self.members), **facts}
        return replace(joined, root=self.root if self.members else None, metadata=metadata)

    def note(self, rule: str, severity: Any, text: str) -> None:
        self.findings.append(Finding(rule, severity, "", text))

    def kind(self) -> str:
        total = counted(len(self.index.shards), "file")
        if self.num_absent:
            return f"state dict with {self.num_absent} of {total} missing"
        return f"state dict in {total}"

    def open_shards(self) -> int:
        """Open the files that are there, and return how many are not."""
        missing, skipped = [], []
        for shard in self.index.shards:
            outside = way_out(self.folder.path, shard)
            if outside is not None:
                if len(self.findings) < _MOST_FINDINGS:
                    self.findings.append(outside)
            elif self.folder.budget.left <= 0:
                skipped.append(shard)
            elif self.is_there(shard):
                self.members[shard] = self.folder.examine(shard)
            else:
                missing.append(shard)
        if missing:
            total = counted(len(self.index.shards), "file")
            text = f"{len(missing)} of its {total} {_are(missing)} missing: {listed(missing)}"
            self.note("missing-file", "damaged", text + self.with_tensors_of(missing))
        if skipped:
            files = counted(len(skipped), "file")
            text = f"{files} of it {_were(skipped)} not looked into: {listed(skipped)}"
            self.note("unread-file", "ambiguous", text + self.with_tensors_of(skipped))
        return len(missing)

    def with_tensors_of(self, shards: list[str]) -> str:
        """Return how many tensors are in these files, as the end of a sentence."""
        absent = set(shards)
        names = [name for name, shard in self.index.weight_map.items() if shard in absent]
        where = "it" if len(shards) == 1 else "them"
        return f" ({counted(len(names), 'tensor')} {_are(names)} in {where})"

    def is_there(self, shard: str) -> bool:
        if "/" in shard or "\\" in shard:
            return (self.folder.path / shard).is_file()
        return shard in self.folder.files

    def compare(self) -> None:
        """Put the parts together, and compare them with the index."""
        expected: dict[str, list[str]] = {}
        for name, shard in self.index.weight_map.items():
            expected.setdefault(shard, []).append(name)
        found = Counter(name for shard in self.members for name in self.part(shard))
        for shard, names in expected.items():
            if shard not in self.members:
                continue
            part = self.part(shard)
            self.root.update((name, part[name]) for name in names if name in part)
            absent = [name for name in names if name not in part]
            if absent and self.members[shard].problem is None:
                text = f"{len(absent)} tensors are not in {shown(shard)}: {listed(absent)}"
                self.note("missing-tensor", "damaged", text)
            self.check_extra(shard, part)
        twice = [name for name, count in found.items() if count > 1]
        if twice:
            text = f"{len(twice)} tensors stand in several files: {listed(twice)}"
            self.note("duplicate-tensor", "ambiguous", text)

    def part(self, shard: str) -> Mapping[str, TensorEntry]:
        return self.members[shard].tensors

    def check_extra(self, shard: str, part: Mapping[str, TensorEntry]) -> None:
        problem = self.members[shard].problem
        if problem is not None:
            text = f"{shown(shard)}: {problem.problem}"
            self.note("unreadable-file", "damaged", text + self.with_tensors_of([shard]))
        extra = [name for name in part if self.index.weight_map.get(name) is None]
        if extra:
            text = f"{len(extra)} tensors of {shown(shard)} are not in the index: {listed(extra)}"
            self.note("extra-tensor", "damaged", text)
            self.root.update((name, part[name]) for name in extra)

    def check_total(self) -> None:
        total = self.index.metadata.get("total_size")
        unique = {
            entry.memory: entry.nbytes
            for entry in self.root.values()
            if isinstance(entry, TensorEntry)
        }
        nbytes = sum(unique.values())
        readable = [member for member in self.members.values() if member.problem is None]
        is_whole = len(readable) == len(self.index.shards)
        if is_whole and type(total) in (int, float) and total != nbytes:
            text = f"it says that the tensors have {total} bytes, and they have {nbytes}"
            self.note("total-size", "note", text)

    def container(self) -> str:
        named = _kind_by_name(self.name)
        kinds = {member.container for member in self.members.values()} - {"unknown"}
        others = sorted(kinds - {"safetensors"})
        if named == _SAFE and others:
            text = f"its files should be safetensors, and there is {', '.join(others)} among them"
            self.note("other-format", "ambiguous", text)
        return (_TORCH if others else _SAFE) if kinds else named


def _are(items: Sized) -> str:
    return "is" if len(items) == 1 else "are"


def _were(items: Sized) -> str:
    return "was" if len(items) == 1 else "were"


_SAFE, _TORCH = "safetensors-sharded", "torch-sharded"
_LONGEST_FACT = 200
_MOST_FINDINGS = 100


def _kind_by_name(name: str) -> str:
    return _SAFE if "safetensors" in name else _TORCH


def _common_metadata(members: Mapping[str, Contents]) -> dict[str, str]:
    """Return what every part says about itself in the same words."""
    parts = [member.metadata for member in members.values() if member.problem is None]
    first = parts[0] if parts else {}
    return {
        key: value
        for key, value in first.items()
        if len(value) < _LONGEST_FACT and all(part.get(key) == value for part in parts)
    }


def indexes(folder: Folder) -> list[str]:
    """Return the folder's indexes, the one that a program would take first.

    safetensors goes before pickles, and what has no variant in its name before what has one.
    """
    found = [name for name in folder.files if is_index(name, folder.head(name))]
    return sorted(found, key=lambda name: ("safetensors" not in name, name.count("."), name))


def is_index(name: str, head: bytes) -> bool:
    """Whether a file of this name that starts so is an index, perhaps a damaged one."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") and (b'"weight_map"' in head or _NAME.fullmatch(name) is not None)
