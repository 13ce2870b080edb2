"""What of one file is compared with what of the other: state dicts, optimizers, modules, values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from torchkeep.comparing.difference import PartKind
from torchkeep.comparing.leaves import leaves
from torchkeep.contents import Array, Object, TensorEntry, Value
from torchkeep.errors import DamagedFile, LoadMismatch
from torchkeep.formats.own.metadata import CHECKPOINT
from torchkeep.formats.own.one_file import KEY, MANIFEST_KEY, PLACES, is_one_file, manifest_of
from torchkeep.formats.plain_json import json_or_text
from torchkeep.identify import Inspection, StateDict
from torchkeep.identify.selection import all_values, choose, value_at
from torchkeep.identify.state_dicts import state_dict_of_mapping
from torchkeep.identify.tree import Budget
from torchkeep.identify.user_metadata import user_metadata
from torchkeep.identify.whole_models import own_structure
from torchkeep.matching.keys import strip_wrappers, wrappers_in
from torchkeep.matching.tied import tied_names
from torchkeep.wording import counted

_OF_A_CHECKPOINT = ("date", "versions")
"""What tells how a checkpoint of ours came about, and not what it holds."""

_OF_A_MANIFEST = (*_OF_A_CHECKPOINT, "environment", "serial", "digest", PLACES)
"""What a whole manifest has of that kind, and of its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file."""

    kind: PartKind
    """What it is."""
    name: str
    """Its path in the file; empty for the root."""
    leaves: dict[str, Value]
    """Its tensors and plain values by path, without what wrappers put into the names."""
    stripped: tuple[str, ...] = ()
    """The components of wrappers that the names had."""
    why: str = ""
    """Why it was taken; empty if there was nothing to choose."""

    def __str__(self) -> str:
        if self.kind == "values":
            return counted(len(self.leaves), "other value")
        return f"the {self.kind} {self.name!r}" if self.name else f"the {self.kind} at the root"


@dataclass(slots=True)
class Pairing:
    """Which parts are compared, and which have no counterpart."""

    pairs: list[tuple[Part, Part]] = field(default_factory=list)
    left_out_a: list[Part] = field(default_factory=list)
    left_out_b: list[Part] = field(default_factory=list)

    def add_all(self, a: Sequence[Part], b: Sequence[Part]) -> None:
        """Pair parts of one kind: by name, or if each side has just one, these."""
        names = {part.name: part for part in b}
        pairs = [(part, names[part.name]) for part in a if part.name in names]
        if len(a) == len(b) == 1:
            pairs = [(a[0], b[0])]
        self.pairs += pairs
        self.left_out_a += _others(a, [one for one, _ in pairs])
        self.left_out_b += _others(b, [two for _, two in pairs])


def _others(parts: Iterable[Part], taken: Iterable[Part]) -> list[Part]:
    ids = set(map(id, taken))
    return [part for part in parts if id(part) not in ids]


def pair_parts(a: Inspection, b: Inspection, select_a: str, select_b: str) -> Pairing:
    """Return what of two files is to be compared.

    Args:
        a: the first file.
        b: the second file.
        select_a: which state dict of A, as `choose` takes it; `auto` for all that both have.
        select_b: the same of B.

    Raises:
        LoadMismatch: only one of them has a state dict, or it is not clear which is meant.
        LimitReached: the values of a file unfold too far.
    """
    pairing = Pairing()
    if (select_a, select_b) != ("auto", "auto"):
        pairing.pairs.append((_chosen(a, select_a), _chosen(b, select_b)))
        return pairing
    if a.state_dicts or b.state_dicts:
        _pair_state_dicts(pairing, a, b)
    pairing.add_all(_optimizers(a), _optimizers(b))
    pairing.add_all(_modules(a), _modules(b))
    with_table = bool(a.state_dicts or b.state_dicts)
    # What a checkpoint was converted to has them, too.
    without = _OF_A_CHECKPOINT if CHECKPOINT in (a.container, b.container) else ()
    values = [_values(it, without, with_table=with_table) for it in (a, b)]
    for it, one, other in ((a, values[0], values[1]), (b, values[1], values[0])):
        if one and other:
            _read_metadata(one[0].leaves, other[0].leaves, _budget(it))
    pairing.add_all(*values)
    return pairing


def _pair_state_dicts(pairing: Pairing, a: Inspection, b: Inspection) -> None:
    """Pair the main ones, and others by name."""
    names = [{found.name for found in _state_dicts(it)} for it in (a, b)]
    try:
        main = [_chosen(it, "auto") for it in (a, b)]
    except LoadMismatch:
        if not names[0] & names[1]:
            raise
        pairing.add_all(*(_parts(it, its) for it, its in zip((a, b), names, strict=True)))
        return
    pairing.pairs.append((main[0], main[1]))
    rest = [names[0] - {main[0].name}, names[1] - {main[1].name}]
    shared = rest[0] & rest[1]
    pairing.add_all(_parts(a, shared), _parts(b, shared))
    pairing.left_out_a += _parts(a, rest[0] - shared)
    pairing.left_out_b += _parts(b, rest[1] - shared)


def _parts(inspection: Inspection, names: Set[str]) -> list[Part]:
    """Return the state dicts of these names."""
    return [_state_dict(inspection, it) for it in _state_dicts(inspection) if it.name in names]


def _state_dicts(inspection: Inspection) -> Sequence[StateDict]:
    """Return a file's state dicts; a mere table of tensors is one beside a file that has one."""
    root = inspection.contents.root
    if inspection.state_dicts or not isinstance(root, dict):
        return inspection.state_dicts
    is_table = all(
        isinstance(key, str) and isinstance(item, TensorEntry | Array) for key, item in root.items()
    )
    return [state_dict_of_mapping("", root)] if is_table else []


def _chosen(inspection: Inspection, select: str) -> Part:
    if select == "auto" and not inspection.state_dicts:
        for table in _state_dicts(inspection):
            return _state_dict(inspection, table, "It is a table of tensors.")
    chosen, why = choose(inspection, select)
    return _state_dict(inspection, chosen, why)


def _state_dict(inspection: Inspection, found: StateDict, why: str = "") -> Part:
    table = all_values(inspection, found)
    bare = strip_wrappers(key for key in table if isinstance(key, str))
    budget = _budget(inspection)
    parts: dict[str, Value] = {}
    for key, value in table.items():
        parts |= leaves(value, budget, start=bare.get(key, str(key)))
    for name, kept in tied_names(inspection.contents).items():
        if kept in bare and isinstance(table[kept], TensorEntry):
            parts.setdefault(name, table[kept])
    return Part("state dict", found.name, parts, wrappers_in(bare), why)


def _optimizers(inspection: Inspection) -> list[Part]:
    return [_subtree("optimizer", inspection, item.name) for item in inspection.optimizers]


def _modules(inspection: Inspection) -> list[Part]:
    """Return the whole models' modules without the tensors of their state dicts.

    A file of ours describes them in its metadata, without what every module has and is empty.
    """
    state = {entry.memory for found in inspection.state_dicts for entry in found.entries.values()}
    structure = own_structure(inspection.contents)
    parts = []
    for name, _ in inspection.modules:
        tree = structure.root if structure else value_at(inspection.contents.root, name)
        part = Part("module", name, leaves(tree, _budget(inspection)))
        for path, value in list(part.leaves.items()):
            is_weight = isinstance(value, TensorEntry) and value.memory in state
            if is_weight or _is_empty_table(path, value):
                del part.leaves[path]
        parts.append(part)
    return parts


def _is_empty_table(path: str, value: Value) -> bool:
    """Whether something is a module's table of hooks, buffers and so on, with nothing in it."""
    is_private = path.rpartition(".")[2].startswith("_")
    return is_private and (value is None or (isinstance(value, dict | set) and not value))


def _subtree(kind: PartKind, inspection: Inspection, name: str) -> Part:
    tree = value_at(inspection.contents.root, name)
    return Part(kind, name, leaves(tree, _budget(inspection)))


def _values(inspection: Inspection, without: Sequence[str], *, with_table: bool) -> list[Part]:
    """Return everything that is no other part, and the metadata; nothing if there is nothing."""
    root = inspection.contents.root
    tables = _state_dicts(inspection) if with_table else inspection.state_dicts
    names = [item.name for item in tables]
    names += [item.name for item in inspection.optimizers]
    names += [name for name, _ in inspection.modules]
    skipped = {id(value) for name in names if isinstance(value := value_at(root, name), _TREES)}
    found: dict[str, Value] = {}
    if id(root) not in skipped:
        found = leaves(root, _budget(inspection), skipped=skipped)
    found = {k: v for k, v in found.items() if k.partition(".")[0] not in without}
    if is_one_file(root) and found.pop(f"{KEY}.{MANIFEST_KEY}", None) is not None:
        found |= _told_by_manifest(inspection)
    found |= {f"{_METADATA}{key}": text for key, text in user_metadata(inspection.contents).items()}
    return [Part("values", "", found)] if found else []


def _told_by_manifest(inspection: Inspection) -> dict[str, Value]:
    """Return what the manifest in a checkpoint that is one file says of what the file holds."""
    try:
        manifest = manifest_of(inspection.contents.root)
    except DamagedFile:  # which is among the file's findings
        return {}
    kept = {key: item for key, item in manifest.items() if key not in _OF_A_MANIFEST}
    return leaves(kept, _budget(inspection), start=f"{KEY}.{MANIFEST_KEY}")


_METADATA = "metadata."
"""What the paths of metadata begin with, among the values."""


def _read_metadata(found: dict[str, Value], other: Mapping[str, Value], budget: Budget) -> None:
    """Put metadata in the place of the values that the other file has under the same path.

    A safetensors file has no values, and keeps them there, what is no text as JSON.
    """
    tops = {path.partition(".")[0] for path in other} | other.keys()
    for key in [key for key in found if key.startswith(_METADATA) and key not in other]:
        path = key.removeprefix(_METADATA)
        if path in tops and path not in found:
            value = found.pop(key)
            if not isinstance(other.get(path), str):
                value = json_or_text(value)
            found |= leaves(value, budget, start=path)


_TREES = (dict, list, Object)


def _budget(inspection: Inspection) -> Budget:
    return Budget.for_contents(inspection.contents, inspection.limits)
