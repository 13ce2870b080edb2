"""Why no model should have a name in it, told from the name alone.

A name that is on no list needs trust; the rules here say which are worse than that. They are rules
rather than a list of all functions that run a command, because that list has no end.
"""

from __future__ import annotations

from torchkeep.contents import Global
from torchkeep.identify.safety.lists import (
    ALLOWED_IN_SOME,
    DENIED,
    ESCAPES,
    ESCAPING_ATTRIBUTES,
    HARMLESS_MODULES,
    PLAIN,
    PYTHON_MODULES,
    REASONS,
    RUNNERS,
    SHARED_CLASSES,
    SHARED_MODULES,
    STRICT_LIBRARIES,
    TORCH_DENIED,
    TORCH_FUNCTIONS,
    TORCH_TOP_DENIED,
    UNREMARKABLE,
    WEIGHTS_ONLY,
)

_UNUSUAL = "is nothing that a model needs"
_REACHES = "reaches through one thing to another"


def weights_only_allows(path: str, release: str) -> bool:
    """Whether `torch.load(weights_only=True)` of a release in `RELEASES` allows a name.

    >>> weights_only_allows("torch.Size", "2.13"), weights_only_allows("torch.bcomplex32", "2.13")
    (True, False)
    """
    releases = ALLOWED_IN_SOME.get(path)
    return path in WEIGHTS_ONLY if releases is None else release in releases


def is_harmless(name: Global) -> bool:
    """Whether a name only makes plain values or tensors."""
    path = str(name)
    return path in WEIGHTS_ONLY or path in PLAIN


def is_dangerous(name: Global) -> bool:
    """Whether a name is of a kind that no model needs.

    >>> is_dangerous(Global("posix", "system")), is_dangerous(Global("torch.nn", "Linear"))
    (True, False)
    """
    return bool(danger(name))


def danger(name: Global) -> str:
    """Return what is wrong with a name, or an empty text if it is at most a matter of trust.

    >>> danger(Global("random", "_os.system"))
    'reaches through one thing to another'
    """
    path = str(name)
    if path in UNREMARKABLE or is_harmless(name):
        return ""
    return _of_python(name) or _by_escaping(name) or _by_its_name(name) or _of_a_library(name, path)


def _of_python(name: Global) -> str:
    """Return what is wrong with a name of Python's own library, or of one that is as mighty."""
    top = name.module.partition(".")[0]
    first = name.name.partition(".")[0]
    if top in HARMLESS_MODULES:
        parts = {*name.module.split(".")[1:], first}
        is_worse = bool(parts & HARMLESS_MODULES[top])
        is_private = top == "uuid" and first.startswith("_")
        return _UNUSUAL if is_worse or is_private else ""
    if top in ("builtins", "__builtin__", "__builtins__"):
        is_error = first[:1].isupper() and first.endswith(_ERRORS)
        return "" if is_error else REASONS["builtins"]
    if top in SHARED_MODULES and not _is_pythons(name):
        return ""
    if top in REASONS:
        return REASONS[top]
    return _UNUSUAL if top in PYTHON_MODULES else ""


_ERRORS = ("Error", "Exception", "Warning", "Exit", "Interrupt", "Iteration", "Group")


def _is_pythons(name: Global) -> bool:
    """Whether a name in a module that people also call their own is one of Python's."""
    top, _, below = name.module.partition(".")
    if top == "test":
        return below.partition(".")[0] in ("support", "libregrtest", "regrtest", "__main__")
    if below:  # none of the others has modules inside
        return False
    return name.name[:1].islower() or str(name) in SHARED_CLASSES or "." in name.name


def _by_escaping(name: Global) -> str:
    """Return what is wrong with a name that leads out of the module that it names."""
    parts = name.name.split(".")
    # dill names the dictionary of the module that a function is from.
    if not ESCAPING_ATTRIBUTES.isdisjoint(parts) and name.name != "__dict__":
        return "reaches into the interpreter"
    if any(part.lstrip("_") in ESCAPES for part in parts):
        return _REACHES
    if any(part in ("builtins", "__builtin__", "cPickle") for part in name.module.split(".")[1:]):
        return _REACHES
    if len(parts) == 1 or str(name).startswith(TORCH_FUNCTIONS):
        return ""
    is_method = parts[-1][:1].islower() or parts[-1].startswith("_")
    top = name.module.partition(".")[0]
    is_strict = top in STRICT_LIBRARIES or top in PYTHON_MODULES
    return _REACHES if parts[0][:1].islower() or (is_method and is_strict) else ""


def _by_its_name(name: Global) -> str:
    return RUNNERS.get(name.name.rpartition(".")[2], "")


def _of_a_library(name: Global, path: str) -> str:
    if path.startswith(DENIED):
        return _UNUSUAL
    return _of_torch(name, path) if name.module.partition(".")[0] == "torch" else ""


def _of_torch(name: Global, path: str) -> str:
    """Return what is wrong with a name of PyTorch's.

    Files name its classes, and functions out of a few modules. The other functions load, write,
    compile and run, in new ways with each release.
    """
    if path.startswith(TORCH_DENIED):
        return _UNUSUAL
    if name.module == "torch":
        is_hidden = name.name.startswith("_")
        return _UNUSUAL if is_hidden or name.name in TORCH_TOP_DENIED else ""
    is_function = not name.name.lstrip("_")[:1].isupper()
    return _UNUSUAL if is_function and not path.startswith(TORCH_FUNCTIONS) else ""
