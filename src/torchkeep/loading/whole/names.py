"""Names of a file to Python's objects: only known ones, and those that the user allows.

Nothing is imported but the modules of torch, torchvision and timm in which a name is listed, and
those under the packages that the user trusts. Text of the file is run only if the user says so.
"""

from __future__ import annotations

import builtins
import enum
import importlib
import math
import types
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchkeep.contents import Global
from torchkeep.errors import ClassesMissing, UnsafeContent, UnsupportedContent
from torchkeep.identify.known_parts import (
    CALLS,
    CLASSES,
    FUNCTIONS,
    is_among_modules,
    is_torch_value,
)
from torchkeep.identify.safety.names import danger
from torchkeep.loading.whole.parts import Mention
from torchkeep.wording import printable


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the user allows beyond the known names."""

    classes: Mapping[str, Any]
    """Objects by the dotted names that the file has for them."""
    trust: tuple[str, ...] = ()
    """Packages whose classes may be imported by the file's names."""
    run_source: bool = False
    """Whether the source texts in the file may be run."""


def resolve(
    found: Iterable[Mention], allowed: Allowed, sources: Mapping[str, str]
) -> dict[Global, Any]:
    """Return the object that each name stands for.

    Args:
        found: the names of the model.
        allowed: what the user allows.
        sources: the source texts in the file by dotted name.

    Raises:
        UnsupportedContent: it is a program of TorchScript.
        UnsafeContent: a name is of a kind that no model needs.
        ClassesMissing: names are not known and not allowed; all of them are listed.
    """
    found = list(found)
    if any(mention.name.module.startswith("__torch__") for mention in found):
        raise UnsupportedContent(
            "the model is a program of TorchScript, which has no classes in Python",
            advice="torch.jit.load runs it, if you trust it; torchkeep.load has its weights.",
        )
    values = {mention.name: _object_of(mention, allowed) for mention in found}
    objects = {name: value for name, value in values.items() if value is not None}
    missing = [name for name in values if name not in objects]
    if missing and allowed.run_source:
        objects |= _run(missing, sources)
        missing = [name for name in missing if name not in objects]
    if missing:
        names = tuple(str(name) for name in missing)
        raise ClassesMissing(
            "the model is made of classes that are not known here: "
            f"{', '.join(map(printable, names))}",
            names=names,
        )
    return objects


def _object_of(mention: Mention, allowed: Allowed) -> Any:
    """Return what a name stands for; None if it is neither known nor allowed.

    Raises:
        UnsafeContent: it is of a kind that no model needs, and the user did not give it.
    """
    name = mention.name
    given = allowed.classes.get(str(name).lstrip("."))
    if given is not None:
        return given
    if "<locals>" in name.name:  # of a function's body: nothing can look it up
        return None
    reason = "" if _is_listed(name) else danger(name)
    if reason:
        raise UnsafeContent(
            f"the model asks for {name} at {mention.place or 'its root'!r}, which {reason}",
            advice="Nothing was built. Take its weights with torchkeep.load or rescue.",
        )
    known = _known(name)
    return _trusted(name, allowed) if known is None else known


def _is_listed(name: Global) -> bool:
    path = str(name)
    return path in CALLS or path in CLASSES or path in FUNCTIONS or is_torch_value(name)


def _known(name: Global) -> Any:
    """Return what a known name stands for; None if it is none, or not installed here."""
    if not _is_listed(name) and not is_among_modules(name.module):
        return None
    if str(name) == "builtins.Ellipsis":
        return builtins.Ellipsis
    value = _look_up(name)
    if _is_listed(name):
        return value
    is_class = isinstance(value, type) and is_among_modules(value.__module__)
    return value if is_class and issubclass(value, torch.nn.Module | enum.Enum) else None


def _trusted(name: Global, allowed: Allowed) -> Any:
    """Return a class or a function of a package that the user trusts; None if it is none."""
    if not any(_is_below(name.module, top) for top in allowed.trust):
        return None
    value = _look_up(name)
    if not isinstance(value, type | types.FunctionType):
        return None
    # What a trusted package has imported from elsewhere is not its own.
    return value if any(_is_below(value.__module__, top) for top in allowed.trust) else None


def _is_below(module: str, top: str) -> bool:
    return module == top or module.startswith(f"{top}.")


def _look_up(name: Global) -> Any:
    """Return what a name stands for, reached through classes only; None if there is nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old names of modules warn that they are old
            value: Any = importlib.import_module(name.module)
            first, *rest = name.name.split(".")
            value = getattr(value, first)  # a module may make it when it is asked for
    except (ImportError, AttributeError):
        return None
    for part in rest:
        if not isinstance(value, type):
            return None
        value = next((vars(cls)[part] for cls in value.__mro__ if part in vars(cls)), None)
        value = value.__func__ if isinstance(value, staticmethod) else value
    return value


def _run(missing: Iterable[Global], sources: Mapping[str, str]) -> dict[Global, Any]:
    """Run the source texts of a file, and return what they define of the missing names.

    They see each other, and torch under its usual names. One that needs another waits for it.
    """
    scope: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    scope |= {"math": math, "Variable": torch.autograd.Variable, "__name__": "torchkeep_source"}
    waiting = dict(sources)
    problem = ""
    while waiting:
        before = len(waiting)
        for path, text in list(waiting.items()):
            try:
                exec(compile(text, f"<source of {path}>", "exec"), scope)  # noqa: S102 - asked for
                del waiting[path]
            except Exception as error:  # a stranger's text may fail in any way
                problem = f"{path}: {type(error).__name__}: {error}"
        if len(waiting) == before:
            break
    found = {
        name: scope[name.name.rpartition(".")[2]]
        for name in missing
        if name.name.rpartition(".")[2] in scope and str(name) in sources
    }
    if waiting and not all(name in found for name in missing if str(name) in sources):
        raise ClassesMissing(
            f"the source text in the file can't be run ({problem})",
            names=tuple(str(name) for name in missing if name not in found),
            advice="Take it out with torchkeep rescue, mend it, and give the classes.",
        )
    return found
