"""The whole models in a file: modules with all of their attributes, by their paths."""

from __future__ import annotations

from dataclasses import dataclass

from torchkeep.contents import Contents, Files, Object, Value, child_path
from torchkeep.errors import LimitReached, LoadMismatch
from torchkeep.formats.own.whole import Structure, read_structure
from torchkeep.identify.inspection import Inspection
from torchkeep.identify.modules import ModuleNode, is_module, module_state, module_tree
from torchkeep.identify.tree import Budget, children
from torchkeep.matching.tied import tied_names
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

_WRAPPED_AS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": (
        "_checkpoint_wrapped_module"
    ),
}
"""The modules that only wrap another one, and where they have it."""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model in a file, structure and tensors."""

    name: str
    """Its path in the file; empty if it is the file's root."""
    root: Object
    """The model as inert values, without what it was wrapped in."""
    sources: dict[str, str]
    """The source texts of classes in the file, by dotted name."""

    def tree(self, contents: Contents, limits: Limits = DEFAULT_LIMITS) -> ModuleNode:
        """Return its modules.

        Raises:
            LimitReached: they unfold too far.
        """
        return module_tree(self.root, self.sources, Budget.for_contents(contents, limits))


def whole_models(inspection: Inspection) -> dict[str, WholeModel]:
    """Return the models of a file by path, those that have tensors.

    Raises:
        LoadMismatch: there is none.
        UnsupportedContent: it is a program of TorchScript.
        DamagedFile: the structure in a file of ours is broken.
        LimitReached: the file's values unfold too far.
    """
    contents = inspection.contents
    structure = own_structure(contents)
    if structure is not None:
        return {"": WholeModel("", unwrapped(structure.root), structure.sources)}
    named = {item.name for item in inspection.state_dicts}
    budget = Budget.for_contents(contents, inspection.limits)
    try:
        found = dict(_modules(contents.root, budget))
    except RecursionError:
        raise LimitReached("the file's values are nested too deep to be walked") from None
    models = {
        path: WholeModel(path, unwrapped(value), contents.sources)
        for path, value in found.items()
        if path in named
    }
    if not models:
        instead = inspection.summary.rstrip(".")
        raise LoadMismatch(
            f"{contents.path}: there is no whole model in this file ({instead})",
            advice="Build the model, and load its parameters with torchkeep.load_into.",
        )
    return models


def own_structure(contents: Contents) -> Structure | None:
    """Return the structure that `save(..., whole=True)` stored in a file; None if it has none.

    Raises:
        DamagedFile: it is broken, or names a tensor that is not there.
    """
    tensors = contents.tensors
    tied = {name: tensors[kept] for name, kept in tied_names(contents).items()}
    return read_structure(contents, tensors | tied)


def _modules(root: Value, budget: Budget) -> list[tuple[str, Object]]:
    found: list[tuple[str, Object]] = []
    seen: set[int] = set()

    def visit(path: str, value: Value, depth: int) -> None:
        budget.spend(depth, path)
        if is_module(value):
            found.append((path, value))
        elif isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            for name, child in children(value):
                visit(child_path(path, name), child, depth + 1)

    visit("", root, 0)
    return found


_CONTAINERS = (Object, Files, dict, list, tuple)


def unwrapped(value: Value) -> Value:
    """Return the module in a wrapper, and in one below it; anything else as it is."""
    for _ in range(DEFAULT_LIMITS.depth):
        inner = _WRAPPED_AS.get(value.class_path) if isinstance(value, Object) else None
        modules = module_state(value).get("_modules") if inner else None
        if not isinstance(modules, dict) or not isinstance(modules.get(inner), Object):
            return value
        value = modules[inner]
    return value
