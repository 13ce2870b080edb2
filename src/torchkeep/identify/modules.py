"""The module tree of a pickled model, from the attributes that `nn.Module` pickles.

A module is an object whose state has `_parameters` and `_modules`; its class need not exist here.
The public attributes are, as a rule, the arguments that its constructor got. NVIDIA's generators
(StyleGAN, EDM) carry their source text and hand both to a function of theirs.

Source: torch/nn/modules/module.py (`Module.__init__`, `__setstate__`);
stylegan2-ada-pytorch/torch_utils/persistence.py (`__reduce__`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchkeep.contents import Global, Object, TensorEntry, Value, attributes_of, child_path
from torchkeep.identify.tree import Budget

_REQUIRED = ("_parameters", "_modules")


@dataclass(frozen=True, slots=True)
class ModuleNode:
    """One module of a pickled model."""

    name: str
    """Its name in its parent; empty for the root."""
    class_path: str
    """The dotted name of its class."""
    attributes: dict[str, Value]
    """Its public attributes as they were pickled."""
    parameters: dict[str, TensorEntry]
    """Its own parameters by name."""
    buffers: dict[str, TensorEntry]
    """Its own buffers by name, the non-persistent ones too."""
    non_persistent: frozenset[str]
    """The buffers that its state dict leaves out."""
    children: tuple[ModuleNode, ...]
    """The modules in it."""
    training: bool | None
    """The flag as saved; None if the file has none."""
    source: str | None
    """The class's source text where the format carries it."""

    def walk(self, prefix: str = "") -> Iterator[tuple[str, ModuleNode]]:
        """Yield this module and all below it with their dotted names."""
        yield prefix, self
        for child in self.children:
            yield from child.walk(child_path(prefix, child.name))

    def descendant(self, path: str) -> ModuleNode | None:
        """Return the module at a dotted path below this one; None if there is none."""
        node = self
        for name in filter(None, path.split(".")):
            child = next((child for child in node.children if child.name == name), None)
            if child is None:
                return None
            node = child
        return node

    def state_dict(self) -> dict[str, TensorEntry]:
        """Return what the live module's `state_dict()` would hold."""
        entries = {}
        for path, node in self.walk():
            start = f"{path}." if path else ""
            for name, entry in node.parameters.items():
                entries[start + name] = entry
            for name, entry in node.buffers.items():
                if name not in node.non_persistent:
                    entries[start + name] = entry
        return entries


_PERSISTENCE = "torch_utils.persistence._reconstruct_persistent_obj"


def is_module(value: Value) -> bool:
    """Whether a value is a pickled `nn.Module`."""
    if not isinstance(value, Object):
        return False
    state = module_state(value)
    return all(isinstance(state.get(name), dict) for name in _REQUIRED)


def _with_source(value: Object) -> dict[Value, Value]:
    """Return what NVIDIA's modules hand to their own function; nothing for any other."""
    meta = value.args[0] if value.class_path == _PERSISTENCE and value.args else None
    return meta if isinstance(meta, dict) else {}


def module_state(value: Object) -> dict[Value, Value]:
    """Return the attributes of a pickled module."""
    meta = _with_source(value)
    return attributes_of(meta.get("state")) if meta else value.attributes


def module_class(value: Object) -> Value:
    """Return the name of a pickled module's class: a `Global`, as a rule."""
    name = _with_source(value).get("class_name")
    if not isinstance(name, str):
        return value.callee
    module, _, last = name.rpartition(".")
    return Global(module, last)


def module_source(value: Object) -> str | None:
    """Return the source text that a pickled module carries itself; None if it has none."""
    text = _with_source(value).get("module_src")
    return text if isinstance(text, str) else None


def module_tree(
    value: Object, sources: dict[str, str], budget: Budget, name: str = "", depth: int = 0
) -> ModuleNode:
    """Return the tree of a pickled module.

    Args:
        value: the module, for which `is_module` holds.
        sources: source texts by class path.
        budget: bounds the walk.
        name: the module's name in its parent.
        depth: how deep the module stands.

    Raises:
        LimitReached: the tree unfolds too far.
    """
    state, cls = module_state(value), module_class(value)
    class_path = str(cls) if isinstance(cls, Global) else value.class_path
    budget.spend(depth, num_attributes=len(state))
    modules = state["_modules"]
    non_persistent = state.get("_non_persistent_buffers_set")
    training = state.get("training")
    return ModuleNode(
        name=name,
        class_path=class_path.lstrip("."),
        attributes={
            key: item
            for key, item in state.items()
            if isinstance(key, str) and not key.startswith("_") and key != "training"
        },
        parameters=_tensors(state["_parameters"]),
        buffers=_tensors(state.get("_buffers")),
        non_persistent=frozenset(str(key) for key in non_persistent if isinstance(key, str))
        if isinstance(non_persistent, set | frozenset)
        else frozenset(),
        children=tuple(
            module_tree(child, sources, budget, str(key), depth + 1)
            for key, child in modules.items()
            if is_module(child)
        ),
        training=training if isinstance(training, bool) else None,
        source=module_source(value) or sources.get(value.class_path),
    )


def _tensors(table: Value) -> dict[str, TensorEntry]:
    if not isinstance(table, dict):
        return {}
    return {str(name): entry for name, entry in table.items() if isinstance(entry, TensorEntry)}
