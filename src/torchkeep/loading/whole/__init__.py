"""Whole models, rebuilt without unpickling: from our own files, and from `torch.save(model)`.

Both are the same inert values, read by their formats. `parts` walks them, `names` finds the classes
that are allowed, `checks` looks at every object before `building` makes any, `proving` compares
the result with the file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from torchkeep.contents import Contents, Object
from torchkeep.errors import ClassesMissing, FileProblem, UnsupportedContent, WrongArgument
from torchkeep.files import Scratch
from torchkeep.formats.own.metadata import LEFT_OUT
from torchkeep.formats.plain_json import json_or_text
from torchkeep.identify import Inspection, identify_whole
from torchkeep.identify.digests import stored_digests
from torchkeep.identify.module_lines import tree_lines
from torchkeep.identify.selection import choose
from torchkeep.identify.whole_models import WholeModel, whole_models
from torchkeep.loading.devices import usable_device
from torchkeep.loading.whole.building import Builder
from torchkeep.loading.whole.checks import check_parts
from torchkeep.loading.whole.names import Allowed, resolve
from torchkeep.loading.whole.parts import mentions
from torchkeep.loading.whole.proving import prove
from torchkeep.matching.policy import listed
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.tensors import TensorReader
from torchkeep.wording import printable


def load_model(
    path: str | os.PathLike[str],
    *,
    select: str = "auto",
    classes: Mapping[str, Any] | None = None,
    trust: str | Sequence[str] = (),
    run_source: bool = False,
    device: str | torch.device = "cpu",
    limits: Limits = DEFAULT_LIMITS,
) -> torch.nn.Module:
    """Return the whole model in a file, rebuilt without unpickling anything, and proven.

    It takes what `save(model, path, whole=True)` wrote, and what plain `torch.save(model, path)`
    did in any release. Modules are made as unpickling makes them, without their constructors. The
    classes of torch.nn, torchvision and timm are known; any other must be given or allowed.
    Wrappers (DataParallel, DistributedDataParallel, torch.compile) are left out. At the end every
    parameter and buffer is compared with the file, bit for bit. Hooks and the like that the model
    had, and that no file can hold, are told of by a warning.

    Args:
        path: the file.
        select: which model, if the file has several (`model`, `ema`); as for `load_into`.
        classes: classes (or functions) by the dotted names that the file has for them, such as
            `{"old.path.Net": Net}` for one that was moved or renamed.
        trust: a package, or several, whose classes may be imported by the names in the file.
        run_source: run the source text that the file has of its classes. That is a stranger's
            program: read it before, with `torchkeep rescue`.
        device: where the tensors are made, whatever they were saved from.
        limits: bounds of the work that a file may cause.

    Raises:
        ClassesMissing: classes are not known here; the message has all of them, the model's tree,
            and the call that would help.
        UnsafeContent: the file asks for what no model needs. Nothing was built.
        UnsupportedContent: a class can't take what the file has for it.
        FileProblem: the file is missing, damaged, or of no readable kind.
        LoadMismatch: there is no whole model in it, or it is not clear which one is meant.
        WrongArgument: `classes` is no dict, or the device can't be used here.
        ProofFailed: the result differs from the file, because a class changes what it is given.
    """
    allowed = Allowed(_given(classes), listed(trust), run_source)
    device = usable_device(device)
    with Scratch() as scratch:
        inspection = identify_whole(path, limits, scratch)
        try:
            model = _chosen(inspection, select)
            objects = resolve(mentions(model.root), allowed, model.sources)
            check_parts(model.root, objects, frozenset(allowed.classes))
        except ClassesMissing as problem:
            raise _explained(problem, inspection, model, select, allowed) from None
        except FileProblem as problem:
            raise problem.in_file(path) from None
        contents = inspection.contents
        with TensorReader(
            path, device=device, digests=stored_digests(contents), stamps=contents.stamps
        ) as reader:
            made = _built(model.root, objects, reader)
        _warn_of_what_is_missing(contents)
        return made


def _warn_of_what_is_missing(contents: Contents) -> None:
    """Warn of hooks and the like that the saved model had, and that it may compute with."""
    left_out = json_or_text(contents.metadata.get(LEFT_OUT, "[]"))
    if isinstance(left_out, list) and left_out:
        listed_out = printable("; ".join(map(str, left_out[:_MAX_SHOWN])))
        more = f"; and {len(left_out) - _MAX_SHOWN} more" if len(left_out) > _MAX_SHOWN else ""
        warnings.warn(
            f"{contents.path}: the model had what a file can't hold: {listed_out}{more}. "
            "Register it again, if what the model computes depends on it.",
            stacklevel=3,
        )


_MAX_SHOWN = 5


def _built(root: Object, objects: Mapping[Any, Any], reader: TensorReader) -> torch.nn.Module:
    builder = Builder(objects, reader)
    try:
        model: torch.nn.Module = builder.build(root)
        prove(root, builder.made, reader)
    except RecursionError:
        raise UnsupportedContent(
            "the model is nested too deeply to be built", path=reader.path
        ) from None
    except FileProblem as problem:
        raise problem.in_file(reader.path) from None
    return model


def _chosen(inspection: Inspection, select: str) -> WholeModel:
    """Return the whole model that is meant.

    Raises:
        LoadMismatch: there is none, or it is not clear which.
        DamagedFile: the structure in a file of ours is broken.
    """
    models = whole_models(inspection)
    if list(models) == [""] and select == "auto":
        return models[""]
    among = tuple(item for item in inspection.state_dicts if item.name in models)
    chosen, _ = choose(replace(inspection, state_dicts=among), select)
    return models[chosen.name]


def _given(classes: Mapping[str, Any] | None) -> dict[str, Any]:
    if classes is not None and not isinstance(classes, Mapping):
        raise WrongArgument(
            f"classes is a {type(classes).__name__}, and should be a dict",
            advice="Give the classes by the names in the file: {'old.path.Net': Net}.",
        )
    return dict(classes or {})


def _explained(
    problem: ClassesMissing,
    inspection: Inspection,
    model: WholeModel,
    select: str,
    allowed: Allowed,
) -> ClassesMissing:
    """Return the error with what the model looks like, and with what would help."""
    path, names = os.fspath(inspection.path), problem.names
    lines = _calls(path, names, select)
    for library in _libraries_missing(names):
        lines.append(f"Or install {library}, whose classes are known.")
    unused = allowed.classes.keys() - {str(item.name) for item in mentions(model.root)}
    for name in sorted(unused, key=list(allowed.classes).index):
        lines.append(f"The model has nothing that is called {name!r}, as classes= says.")
    if any(name in model.sources for name in names) and not allowed.run_source:
        lines.append("Their source text is in the file; run_source=True runs it: read it before.")
    lines.append(f"Without them: torchkeep rescue {path} FOLDER takes out weights and structure.")
    tree = tree_lines(model.tree(inspection.contents, inspection.limits))
    lines += ["The model:", *tree[:_MOST_LINES]]
    lines += [f"... ({len(tree):,} lines)"] if len(tree) > _MOST_LINES else []
    advice = f"{problem.advice}\n".lstrip() + "\n".join(lines)
    return ClassesMissing(problem.problem, advice=advice, path=path, names=names)


def _calls(path: str, names: Sequence[str], select: str) -> list[str]:
    """Return the calls that would help, each with what was chosen in the one that failed."""
    chosen = "" if select == "auto" else f", select={select!r}"
    given = ", ".join(f"{name!r}: {_last_name(name)}" for name in names)
    call = f"  torchkeep.load_model({path!r}{chosen}"
    lines = ["Give the classes:", f"{call}, classes={{{given}}})"]
    tops = dict.fromkeys(name.partition(".")[0] for name in names)
    cannot_be_imported = ("__main__", "builtins", *_LIBRARIES)
    if not any("<" in name for name in names) and not tops.keys() & set(cannot_be_imported):
        trusted = "".join(f"{top!r}, " for top in tops).rstrip(" ")
        lines += [
            "or, if they can be imported by these names:",
            f"{call}, trust=({trusted}))",
        ]
    return lines


def _libraries_missing(names: Sequence[str]) -> list[str]:
    """Return which of the known libraries some names are from, and are not installed."""
    tops = {name.partition(".")[0] for name in names}
    return [name for name in _LIBRARIES if name in tops and not find_spec(name)]


_LIBRARIES = ("torch", "torchvision", "timm")
"""Their classes are looked up without being trusted, so that to trust them adds little."""


def _last_name(path: str) -> str:
    """Return what a class is called in its module; a lambda has no name."""
    last = path.rpartition(".")[2]
    return last if last.isidentifier() else "..."


_MOST_LINES = 100
"""Lines of a model's tree in an error."""

__all__ = ["load_model"]
