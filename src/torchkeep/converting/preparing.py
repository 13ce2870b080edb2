"""What is to be written of a source: one state dict, or the whole tree."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from torchkeep import __version__
from torchkeep.comparing.leaves import leaves
from torchkeep.contents import Contents, Object, TensorEntry, Value
from torchkeep.converting.flat import flat
from torchkeep.converting.names import Strip, new_names
from torchkeep.converting.numbering import renumber
from torchkeep.converting.proof import Expected
from torchkeep.converting.supply import Supply
from torchkeep.converting.trees import Table, Tree
from torchkeep.formats.folders.dcp_nest import SHAPE
from torchkeep.formats.own.metadata import DIGESTS, RESERVED, TIED, TRAINING_STATE
from torchkeep.identify import Inspection, StateDict
from torchkeep.identify.digests import known_digest, stored_digests
from torchkeep.identify.selection import choose, value_at
from torchkeep.identify.tree import Budget
from torchkeep.identify.user_metadata import CONVERTED_FROM, user_metadata
from torchkeep.matching.tied import tied_names
from torchkeep.writing.payload import Payload
from torchkeep.writing.safetensors import TensorData


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a source is wanted, and under which names."""

    select: str | None
    """One state dict, as `choose` takes it; None for the whole tree."""
    drop_optimizer: bool
    """Leave out the states of optimizers."""
    drop_objects: bool
    """Leave out what would need a class."""
    strip: Strip
    """What is taken from the front of the keys."""
    rename: Mapping[str, str]
    """Rules for the keys."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What will be written."""

    tensors: dict[str, TensorEntry] | None
    """The tensors of the source by their new names; None where the tree is written as a whole."""
    root: Value
    """The tree, if that is written."""
    texts: dict[str, str] = field(default_factory=dict)
    """Plain values of the source that go into the metadata."""
    state_dict: str | None = None
    """The path of the one state dict that is written."""
    why: str = ""
    """Why this one."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Keys that get another name, with that."""
    left_out: tuple[str, ...] = ()
    """What is not written."""
    notes: tuple[str, ...] = ()
    """What is written in another form."""


def prepare_state_dict(inspection: Inspection, wish: Wish) -> Prepared:
    """Return one state dict, as it is to be written.

    Raises:
        LoadMismatch: it is not clear which is meant.
        WrongArgument: a name's rule is of no use.
    """
    chosen, why = choose(inspection, wish.select or "auto")
    found = flat(inspection, chosen)
    names = new_names(found.entries, wish.strip, wish.rename)
    tensors = {names[key]: entry for key, entry in found.entries.items()}
    return Prepared(
        tensors=tensors,
        root=None,
        texts={path: text for path, text in found.texts.items() if path not in tensors},
        state_dict=chosen.name,
        why=why,
        renamed={key: name for key, name in names.items() if key != name},
        left_out=(*found.left_out, *(path for path in found.texts if path in tensors)),
    )


def prepare_tree(inspection: Inspection, wish: Wish, supply: Supply) -> Prepared:
    """Return the whole tree, as a torch zip is to hold it.

    Raises:
        SaveRefused: a value would need a class; it is named.
        LoadMismatch: keys are to be renamed, and it is not clear of which state dict.
        WrongArgument: a name's rule is of no use.
        FileProblem: a tensor can't be read.
    """
    root = inspection.contents.root
    tied = tied_names(inspection.contents)
    if tied and isinstance(root, dict):
        root = root | {name: root[kept] for name, kept in tied.items()}
    notes = renumber(inspection)
    tables = _tables(inspection, root, wish)
    optimizers = [value_at(root, item.name) for item in inspection.optimizers]
    tree = Tree(
        lambda entry, name, in_table: supply.entry(entry, name, cast=in_table),
        tables=tables,
        modules=_modules(inspection, root),
        left_out={id(value) for value in optimizers} if wish.drop_optimizer else frozenset(),
        drop_objects=wish.drop_objects,
    )
    made = tree.convert(root)
    renamed = {key: name for names in tables.values() for key, name in names.items() if key != name}
    return Prepared(
        tensors=None,
        root=made,
        renamed=renamed,
        left_out=tuple(tree.left_out),
        notes=(*notes, *tree.notes),
    )


def _tables(inspection: Inspection, root: Value, wish: Wish) -> dict[int, Table]:
    """Return the new names of the keys of each state dict in a tree, by its `id`.

    Wrappers are stripped from all. A prefix and rules are meant for the main one, and for those of
    the same keys: its moving average.
    """
    is_for_main = isinstance(wish.strip, str) or bool(wish.rename)
    main = choose(inspection, "auto")[0] if is_for_main else None
    tables: dict[int, Table] = {}
    for found in inspection.state_dicts:
        value = value_at(root, found.name)
        if not isinstance(value, dict | Object):
            continue
        is_meant = main is not None and found.entries.keys() == main.entries.keys()
        strip = wish.strip if is_meant or wish.strip is True else None
        keys = [key for key in _keys(value, found) if isinstance(key, str)]
        tables[id(value)] = new_names(keys, strip, wish.rename if is_meant else {})
    return tables


def _keys(value: dict[Value, Value] | Object, found: StateDict) -> list[Value]:
    return list(value) if isinstance(value, dict) else list(found.entries)


def _modules(inspection: Inspection, root: Value) -> dict[int, dict[str, TensorEntry]]:
    """Return the state dicts of the pickled modules in a tree, by the modules' `id`s."""
    states = {found.name: found.entries for found in inspection.state_dicts}
    return {id(value_at(root, name)): states.get(name, {}) for name, _ in inspection.modules}


# --- What is written, and what it should be -----------------------------------------------------


class Outgoing:
    """Tensors on their way to a writer, and what has to come out.

    Args:
        inspection: the source.
        supply: its tensors.
    """

    def __init__(self, inspection: Inspection, supply: Supply) -> None:
        self._digests = stored_digests(inspection.contents)
        self._inspection = inspection
        self._supply = supply

    def data(self, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorData]:
        """Return tensors as the writer of safetensors takes them."""
        return {name: self._supply.data(it, name, cast=True) for name, it in tensors.items()}

    def entries(self, tensors: Mapping[str, TensorEntry]) -> dict[Value, Value]:
        """Return tensors as a tree for the writer of torch zips."""
        return {name: self._supply.entry(it, name, cast=True) for name, it in tensors.items()}

    def expected_data(
        self, data: Mapping[str, TensorData], tensors: Mapping[str, TensorEntry]
    ) -> dict[str, Expected | Value]:
        """Return what a safetensors file should hold."""
        return {
            name: Expected(it.dtype, it.shape, it.payload, self._digest(tensors[name], it.dtype))
            for name, it in data.items()
        }

    def expected_tree(self, root: Value) -> dict[str, Expected | Value]:
        """Return what a file of a tree of handed out entries should hold."""
        contents = self._inspection.contents
        found = leaves(root, Budget.for_contents(contents, self._inspection.limits))
        return {
            path: self._expected(leaf) if isinstance(leaf, TensorEntry) else leaf
            for path, leaf in found.items()
        }

    def elements(self, leaf: TensorEntry) -> Payload:
        """Return the elements of an entry that was handed out."""
        origin, name, cast = self._supply.origin(leaf)
        return self._supply.elements(origin, name, cast=cast)

    def _expected(self, leaf: TensorEntry) -> Expected:
        digest = self._digest(self._supply.origin(leaf)[0], leaf.dtype)
        return Expected(leaf.dtype, leaf.shape, self.elements(leaf), digest)

    def _digest(self, origin: TensorEntry, dtype: str) -> str | None:
        """Return the digest that the source has of elements that are written as they are."""
        return known_digest(origin, self._digests) if origin.dtype == dtype else None


_OF_THE_FILE = (DIGESTS, TIED, SHAPE, *TRAINING_STATE)
"""What of torchkeep's own metadata is about the file and not about the model."""


def own_texts(contents: Contents) -> dict[str, str]:
    """Return what torchkeep itself keeps with a model: its structure, its outputs on samples."""
    return {
        key: text
        for key, text in contents.metadata.items()
        if key.startswith(RESERVED) and key not in _OF_THE_FILE
    }


def metadata_for(contents: Contents, texts: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a converted file: the facts, the user's, values, and its origin."""
    table = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "torchkeep_version": __version__,
        "python_version": platform.python_version(),
    }
    if "torch_version" in contents.metadata:
        table["torch_version"] = contents.metadata["torch_version"]
    origin = {
        "name": contents.path.resolve().name,
        "format": contents.container,
        "nbytes": contents.nbytes,
    }
    if "date" in contents.metadata:
        origin["date"] = contents.metadata["date"]
    return {**table, **texts, **user_metadata(contents), CONVERTED_FROM: json.dumps(origin)}
