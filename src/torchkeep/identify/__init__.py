"""What a file is: its role, its models and optimizers, its safety. Nothing here imports torch.

`inspect` is the one door. `survey` walks the tree and sorts what it meets; the other modules each
know one kind of thing; `inspection` holds the result, and `json_form` spells it out.
"""

from __future__ import annotations

import os

from torchkeep.contents import Contents
from torchkeep.errors import FileProblem, LimitReached
from torchkeep.formats import describe
from torchkeep.identify.frameworks import framework
from torchkeep.identify.inspection import Inspection, Integrity
from torchkeep.identify.modules import ModuleNode
from torchkeep.identify.optimizers import Optimizer
from torchkeep.identify.safety import Safety, judge
from torchkeep.identify.state_dicts import StateDict
from torchkeep.identify.summary import role_of, summarise
from torchkeep.identify.survey import survey
from torchkeep.identify.tree import Budget, NamedTensor
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits


def inspect(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Inspection:
    """Return what a model file is and what it holds, without running or importing anything in it.

    Only headers, directories and pickles are read, never the tensors; PyTorch is not needed.

    Args:
        path: a file.
        limits: bounds of the work that a file may cause.

    Raises:
        FileMissing: there is nothing at the path.
        FileUnreadable: it is a folder, or may not be read.
        NotAModelFile: it is something else: a web page, a Git LFS pointer, text, nothing.
        DamagedFile: it is truncated, or contradicts itself.
        LimitReached: reading it takes more than a limit allows.
        UnsupportedContent: it is of a kind that is recognised and not read.
    """
    contents = describe(path, limits=limits)
    try:
        return identify(contents, limits)
    except FileProblem as problem:
        raise problem.in_file(path) from None


def identify(contents: Contents, limits: Limits = DEFAULT_LIMITS) -> Inspection:
    """Return what a description of a file amounts to. Raises `LimitReached` as `inspect` does."""
    try:
        found = survey(contents, Budget.for_contents(contents, limits))
    except RecursionError:  # a module in a module takes several of Python's own frames
        raise LimitReached("the file's values are nested too deep to be walked") from None
    role = role_of(contents, found)
    damaged = tuple(item for item in contents.findings if item.severity == "damaged")
    return Inspection(
        path=contents.path,
        nbytes=contents.nbytes,
        container=contents.container,
        role=role,
        summary=summarise(role, contents, found),
        state_dicts=tuple(found.state_dicts),
        optimizers=tuple(found.optimizers),
        schedulers=tuple(found.schedulers),
        scalers=tuple(found.scalers),
        rng=tuple(found.rng),
        values=found.values,
        modules=tuple(found.modules),
        framework=framework(contents),
        safety=judge(contents),
        integrity=Integrity(ok=not damaged, findings=damaged),
        contents=contents,
        limits=limits,
    )


__all__ = [
    "Inspection",
    "Integrity",
    "ModuleNode",
    "NamedTensor",
    "Optimizer",
    "Safety",
    "StateDict",
    "identify",
    "inspect",
]
