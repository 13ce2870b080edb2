"""What is looked at before anything of a whole model is made.

The names are resolved already. Here each object is held against its class: what is called with
which arguments, which attributes are set, and that none of them takes the place of a method.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from typing import Any

import torch

from torchkeep.contents import DictObject, Global, Object, TensorEntry, Value
from torchkeep.errors import UnsafeContent
from torchkeep.identify.known_parts import CALLS, CLASSES
from torchkeep.identify.modules import is_module, module_class, module_state
from torchkeep.identify.whole_models import unwrapped
from torchkeep.loading.whole.building import MAPPINGS
from torchkeep.loading.whole.parts import every_part

_OWN = vars(torch.nn.Module())
"""What every module has; its attributes are told by it."""
_TABLES = ("_parameters", "_buffers", "_modules")
_NEVER = frozenset({"_compiled_call_impl", "_call_impl", "_wrapped_call_impl", "_slow_forward"})
"""Attributes that PyTorch calls instead of `forward`."""
_MADE_AT_RUN_TIME = (torch.jit.ScriptModule, torch.fx.GraphModule)
_BOUND = ("functools.partial", "builtins.getattr")
"""Calls whose results can be called: what is in them is looked at by itself."""
_MOST_UNFOLDED = 1 << 30
"""Bytes of all tensors whose elements share memory (`expand`), beyond those in the file."""
_IMMUTABLE = (tuple, str, bytes, int, float)
_NOT_PLAIN = (Object, dict, list, tuple, set, frozenset)
_BUILTIN = (bool, dict, float, int, list, set, str, tuple)
"""Plain types that a module may hold; a file can call them, too."""
_METHODS = (classmethod, staticmethod)


def check_parts(root: Value, objects: Mapping[Global, Any], given: frozenset[str]) -> None:
    """Raise unless every object of a model may be made.

    Args:
        root: the model.
        objects: what its names stand for.
        given: the dotted names for which the user gave an object: these may be called.

    Raises:
        UnsafeContent: something is called that may not be, an attribute is set that changes more
            than data, or a tensor is far larger than its file. The message names the place.
    """
    check = _Checks(objects, given)
    room = _MOST_UNFOLDED
    for path, value in every_part(root):
        place = path or "the model"
        if isinstance(value, Object):
            check.check(value, place)
        elif isinstance(value, TensorEntry):
            room -= _unfolded(value)
            if room < 0:
                raise UnsafeContent(
                    f"{place} makes {value.nbytes:,} bytes out of {value.storage.nbytes:,} in the "
                    "file"
                )
        elif isinstance(value, DictObject) and value.class_path not in MAPPINGS:
            raise UnsafeContent(f"{place} is a {value.class_path}, which is no known mapping")
    if not is_module(root):
        raise UnsafeContent("the model is no module")


class _Checks:
    def __init__(self, objects: Mapping[Global, Any], given: frozenset[str]) -> None:
        self.objects = objects
        self.given = given

    def check(self, value: Object, place: str) -> None:
        if is_module(value):
            self.check_module(value, place)
            return
        callee = value.callee
        if not isinstance(callee, Global):
            raise UnsafeContent(f"{place} is made by calling what the file made itself")
        made = self.objects[callee]
        path = str(callee)
        if path == "functools.partial":
            self.check_partial(value, place)
        elif path == "builtins.getattr":
            self.check_method(value, place)
        elif path in self.given:
            return
        elif path in CALLS or made in _BUILTIN:
            _check_arguments(value, place)
        elif not isinstance(made, type):
            raise UnsafeContent(f"{place} is made by calling {path}, which is only allowed as data")
        elif issubclass(made, torch.nn.Module):
            raise UnsafeContent(f"{place} is a {path} without what every module has")
        elif issubclass(made, enum.Enum):
            _check_member(value, place)
        else:
            self.check_plain(value, made, place)

    # --- Modules -------------------------------------------------------------------------------

    def check_module(self, value: Object, place: str) -> None:
        name = module_class(value)
        if not isinstance(name, Global):
            raise UnsafeContent(f"the class of {place} is made while the file is read")
        cls = self.objects[name]
        if not isinstance(cls, type) or not issubclass(cls, torch.nn.Module):
            raise UnsafeContent(f"{place} is a {name}, which is no class of modules")
        if issubclass(cls, _MADE_AT_RUN_TIME):
            raise UnsafeContent(f"{place} is a {name}, whose code is made from the file")
        for key, item in module_state(value).items():
            if not isinstance(key, str):
                raise UnsafeContent(f"an attribute of {place} has no name")
            if key in _TABLES:
                self.check_table(key, item, place)
            elif key in _OWN:
                _check_own(key, item, place)
            else:
                self.check_attribute(value, cls, key, item, place)

    def check_table(self, name: str, table: Value, place: str) -> None:
        """Raise unless a table has tensors or modules, under names that PyTorch would take."""
        if not isinstance(table, dict):
            raise UnsafeContent(f"{name} of {place} is no table")
        for key, item in table.items():
            if not isinstance(key, str) or not key or "." in key or _is_special(key):
                raise UnsafeContent(f"{name} of {place} has {key!r}, which is no name")
            is_right = (
                is_module(unwrapped(item)) if name == "_modules" else isinstance(item, TensorEntry)
            )
            if item is not None and not is_right:
                raise UnsafeContent(f"{key!r} in {name} of {place} is something else")

    def check_attribute(self, owner: Value, cls: type, name: str, value: Value, place: str) -> None:
        """Raise if an attribute makes a call of the class's own run something else.

        A number or a text may well be called like a method (`self.type = "conv"`).
        """
        if _is_special(name):
            raise UnsafeContent(f"an attribute of {place} is called {name}")
        if name in _NEVER and value is not None:
            raise UnsafeContent(f"an attribute of {place} is called {name}")
        if not _is_code(_defined(cls, name)) or not _may_be_called(value):
            return
        if not self.is_own_forward(owner, value):
            raise UnsafeContent(f"{place} has an attribute {name!r} in place of the method")

    def is_own_forward(self, owner: Value, value: Value) -> bool:
        """Whether a value is the module's own way to run, as `self.forward = self.forward_slow`."""
        if not isinstance(value, Object) or str(value.callee) != "builtins.getattr":
            return False
        target, name = value.args
        return target is owner and name.lstrip("_").startswith("forward")

    # --- Other objects -------------------------------------------------------------------------

    def check_plain(self, value: Object, cls: type, place: str) -> None:
        """Raise unless an object is its attributes and no more."""
        if value.args and not issubclass(cls, _IMMUTABLE):
            raise UnsafeContent(
                f"{place} is made by calling {value.callee} with arguments from the file",
                advice="Give the class itself in classes= to allow that.",
            )
        if hasattr(cls, "__setstate__") and str(value.callee) not in CLASSES:
            return  # a class of the user's, which the user allowed
        for name, item in value.attributes.items():
            if not isinstance(name, str) or _is_special(name):
                raise UnsafeContent(f"an attribute of {place} is called {name}")
            if _is_code(_defined(cls, name)) and _may_be_called(item):
                raise UnsafeContent(f"{place} has an attribute {name!r} in place of the method")

    def check_partial(self, value: Object, place: str) -> None:
        parts = value.state if isinstance(value.state, tuple) and len(value.state) == 4 else ()
        held, args, kwargs, attributes = parts or (None, None, None, None)
        is_tuple = isinstance(args, tuple) and not attributes
        if not is_tuple or not isinstance(kwargs, dict) or not _are_names(kwargs):
            raise UnsafeContent(f"{place} is a functools.partial of an unknown form")
        is_callable = isinstance(held, Global) and str(held) not in CALLS
        if not is_callable and not (isinstance(held, Object) and str(held.callee) in _BOUND):
            raise UnsafeContent(f"{place} is a functools.partial of what a model does not call")

    def check_method(self, value: Object, place: str) -> None:
        """Raise unless `getattr` is asked for a method that the class of a module defines."""
        target, name = value.args if len(value.args) == 2 else (None, None)
        cls = None
        if isinstance(target, Object) and is_module(target):
            cls = self.objects.get(module_class(target))
        if not isinstance(name, str) or not isinstance(cls, type) or _is_special(name):
            raise UnsafeContent(f"{place} is taken from something by the name {name!r}")
        is_inherited = hasattr(torch.nn.Module, name)
        if not callable(_defined(cls, name)) or is_inherited or name.lstrip("_").startswith("load"):
            raise UnsafeContent(f"{place} is {name!r} of a module, which is none of its methods")


def _unfolded(entry: TensorEntry) -> int:
    """Return how many bytes a tensor has that its file has not, since its elements repeat."""
    return 0 if entry.is_composite else max(entry.nbytes - entry.storage.nbytes, 0)


def _check_member(value: Object, place: str) -> None:
    """Raise unless an enumeration is asked for one of its members."""
    if len(value.args) != 1 or value.state is not None:
        raise UnsafeContent(f"{place} is no member of {value.callee}")
    _check_arguments(value, place)


def _check_arguments(value: Object, place: str) -> None:
    """Raise unless what is called gets plain values, or one row of them.

    A tuple of a range takes memory without end, and the hash of nested ones takes time.
    """
    rows = [item if isinstance(item, list | tuple) else (item,) for item in value.args]
    if any(isinstance(item, _NOT_PLAIN) for row in rows for item in row):
        raise UnsafeContent(f"{place} is made by calling {value.callee} with what is not plain")


def _check_own(name: str, value: Value, place: str) -> None:
    """Raise unless an attribute that every module has is of the kind that PyTorch gives it."""
    is_right = {
        "training": isinstance(value, bool),
        "_is_full_backward_hook": value is None or isinstance(value, bool),
        "_non_persistent_buffers_set": isinstance(value, set | frozenset)
        and all(isinstance(item, str) for item in value),
    }.get(name, isinstance(value, dict) and all(isinstance(key, int) for key in value))
    if not is_right:
        raise UnsafeContent(f"{name} of {place} is not what a module has there")


def _are_names(table: dict[Value, Value]) -> bool:
    return all(isinstance(name, str) for name in table)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _defined(cls: type, name: str) -> Any:
    """Return what a class has under a name, not bound; None if it has nothing."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _may_be_called(value: Value) -> bool:
    return isinstance(value, Global | Object)


def _is_code(defined: Any) -> bool:
    """Whether a class's attribute is a method. A class, a property and a value are none."""
    if isinstance(defined, type | property | functools.cached_property):
        return False
    return callable(defined) or isinstance(defined, _METHODS)
