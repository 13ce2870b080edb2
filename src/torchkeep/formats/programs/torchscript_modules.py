"""TorchScript's objects, in the form in which `nn.Module` pickles.

TorchScript pickles a module as a table of all its attributes; which of them are parameters and
which buffers stands in the code. Here the tables are sorted as a module of Python's would have
them (`_parameters`, `_buffers`, `_modules`), so that everything that knows modules knows these.

Source: torch/csrc/jit/serialization/pickler.cpp, import.cpp; torch/jit/_script.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from torchkeep.contents import Global, Object, TensorEntry, Value
from torchkeep.errors import LimitReached
from torchkeep.formats.programs.torchscript_code import ScriptClass
from torchkeep.formats.torch.layouts import LAYOUT_CONSTRUCTORS
from torchkeep.pickles.pickled import Constructor

STATE = "__getstate__"
"""The attribute that holds what a class's own `__setstate__` would be given."""


def _same(value: Value, *type_name: Value) -> Value:
    """Return the value that TorchScript's reader is told the type of."""
    del type_name
    return value


def _rebuild_sparse(layout: Value, *rest: Value) -> Value:
    """Return a sparse tensor; C++ writes the layout as a number, and the size in the front.

    Source: torch/csrc/jit/serialization/pickler.cpp (`pushSparseTensor`).
    """
    rebuild = LAYOUT_CONSTRUCTORS["torch._utils._rebuild_sparse_tensor"]
    if not isinstance(layout, int):
        return rebuild(layout, *rest)
    size, requires_grad, *tensors, _ = rest  # the last are hooks
    kind = {1: "sparse_coo", 2: "sparse_csr"}.get(layout, "unknown")
    entry = rebuild(Global("torch", kind), (*tensors, size))
    return replace(entry, requires_grad=bool(requires_grad))


SCRIPT_CALLS: Mapping[str, Constructor] = MappingProxyType(
    {
        **{
            f"torch.jit._pickle.{name}": _same
            for name in (
                "build_intlist",
                "build_doublelist",
                "build_boollist",
                "build_tensorlist",
                "restore_type_tag",
            )
        },
        "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    }
)
"""Calls in the pickles that C++ writes, besides those of Python's."""


def is_script_name(name: Value) -> bool:
    """Whether a name is one of TorchScript's own, which its code defines."""
    return isinstance(name, Global) and (
        name.module == "__torch__" or name.module.startswith("__torch__.")
    )


def sort_modules(root: Value, classes: Mapping[str, ScriptClass], nbytes: int) -> None:
    """Turn all of TorchScript's modules in a tree into modules of Python's, where they are.

    Args:
        root: the tree; its objects are changed.
        classes: what the code says about each class. Of a class that the code lacks, a tensor
            that needs a gradient is a parameter, and any other is a buffer.
        nbytes: the file's size, which bounds how many modules and constants it may have.

    Raises:
        LimitReached: there are more.
    """
    _Sorting(classes, _FREE_ENTRIES + nbytes).walk(root)


_FREE_ENTRIES = 10_000


class _Sorting:
    def __init__(self, classes: Mapping[str, ScriptClass], room: int) -> None:
        self.classes = classes
        self.room = room
        # Both tensors are kept, so that neither's id is given to another one meanwhile.
        self.parameters: dict[int, tuple[TensorEntry, TensorEntry]] = {}

    def walk(self, root: Value) -> None:
        """Visit every value once; there is no recursion, since a file may nest as it likes."""
        seen: set[int] = set()
        waiting = [root]
        while waiting:
            value = waiting.pop()
            if not isinstance(value, _CONTAINERS) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Object):
                waiting += (value.state, value.items, value.pairs, value.kwargs, value.args)
                if self.is_module(value):
                    value.state = self.sort(value)
            else:
                waiting += value.values() if isinstance(value, dict) else value

    def is_module(self, value: Value) -> bool:
        if not isinstance(value, Object) or not is_script_name(value.callee):
            return False
        known = self.classes.get(value.class_path)
        if known is not None:
            return known.base == "Module"
        return isinstance(value.state, dict) and ("training" in value.state or _is_sorted(value))

    def sort(self, module: Object) -> dict[Value, Value]:
        state = module.state
        if not isinstance(state, dict):
            return {"_parameters": {}, "_buffers": {}, "_modules": {}, STATE: state}
        if _is_sorted(module):
            return state
        known = self.classes.get(module.class_path)
        self.room -= 1 + (len(known.constants) if known else 0)
        if self.room < 0:
            raise LimitReached(
                "the file's modules unfold into far more than it has bytes",
                advice="No training program writes such a file.",
            )
        parameters: dict[Value, Value] = {}
        buffers: dict[Value, Value] = {}
        modules: dict[Value, Value] = {}
        rest: dict[Value, Value] = dict(known.constants) if known else {}
        for name, value in state.items():
            if self.is_module(value):
                modules[name] = value
            elif _is_parameter(name, value, known):
                parameters[name] = self.parameter(value)
            elif _is_buffer(name, value, known):
                buffers[name] = value
            else:
                rest[name] = value
        return {**rest, "_parameters": parameters, "_buffers": buffers, "_modules": modules}

    def parameter(self, entry: TensorEntry) -> TensorEntry:
        """Return the tensor as a parameter, the same one wherever the tensor is the same."""
        if id(entry) not in self.parameters:
            self.parameters[id(entry)] = (entry, replace(entry, is_parameter=True))
        return self.parameters[id(entry)][1]


def _is_sorted(module: Object) -> bool:
    """Whether a module's tables are sorted already: it stands in several places."""
    return isinstance(module.state, dict) and isinstance(module.state.get("_parameters"), dict)


def _is_parameter(name: Value, value: Value, known: ScriptClass | None) -> bool:
    if not isinstance(value, TensorEntry):
        return False
    return value.requires_grad if known is None else name in known.parameters


def _is_buffer(name: Value, value: Value, known: ScriptClass | None) -> bool:
    if not isinstance(value, TensorEntry):
        return False
    return known is None or name in known.buffers


_CONTAINERS = (Object, dict, list, tuple, set, frozenset)
