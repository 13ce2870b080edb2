"""What a file is: its role, its models and optimizers, its safety. Nothing here imports torch.

`inspect` and `verify` take a path, `identify_whole` one of a file whose tensors will be read,
`identify` what was read already; `scan` judges many files.
`survey` walks the tree and sorts what it meets; the other modules each know one kind of thing;
`inspection` holds the result, and `json_form` spells it out.
"""

from __future__ import annotations

import os
from dataclasses import replace

from torchkeep.contents import Contents, Files, Finding, Value, name_within
from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.files import Progress, Scratch
from torchkeep.formats import describe_whole, examine
from torchkeep.formats.own.metadata import STRUCTURE
from torchkeep.identify.architectures import (
    NOT_IN_WEIGHTS,
    ArchitectureMatch,
    in_words,
    named_by_class,
    named_by_values,
    prefer,
    recognise,
)
from torchkeep.identify.frameworks import framework
from torchkeep.identify.inspection import Inspection
from torchkeep.identify.integrity import (
    Integrity,
    integrity_of,
    verify_file,
    verify_inspected,
)
from torchkeep.identify.modules import ModuleNode, is_module, module_tree
from torchkeep.identify.optimizers import Optimizer
from torchkeep.identify.safety import Safety, judge
from torchkeep.identify.state_dicts import StateDict
from torchkeep.identify.summary import (
    MOST_NAMED,
    main_state_dict,
    role_of,
    separate_networks,
    summarise,
)
from torchkeep.identify.survey import Survey, survey
from torchkeep.identify.tree import Budget, NamedTensor
from torchkeep.identify.whole_models import own_structure
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits


def inspect(
    path: str | os.PathLike[str],
    *,
    verify: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Inspection:
    """Return what a model file is and what it holds, without running or importing anything in it.

    Only headers, directories and pickles are read, and of the tensors a few single numbers (see
    `scalars`); PyTorch is not needed. What is no model, or one of another ecosystem, is described
    as far as its header tells: `contents.problem` then says why no tensors can be taken from it.

    Args:
        path: a file, or a folder that holds a model: shards, a distributed checkpoint, a run.
        verify: read the tensors as well, and compare them with the file's checksums.
        limits: bounds of the work that a file may cause.
        progress: with `verify`, is told the bytes read and the bytes there are.

    Raises:
        FileMissing: there is nothing at the path.
        FileUnreadable: it may not be read.
        DamagedFile: it is truncated, or contradicts itself.
        LimitReached: reading it takes more than a limit allows.
    """
    contents = examine(path, limits=limits)
    if isinstance(contents.problem, DamagedFile | LimitReached):
        raise contents.problem
    try:
        inspection = identify(contents, limits)
        if not verify:
            return inspection
        return replace(inspection, integrity=verify_inspected(contents, limits, progress))
    except FileProblem as problem:
        raise problem.in_file(path) from None


def verify(
    path: str | os.PathLike[str],
    *,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Integrity:
    """Return whether a file is whole: every byte of every tensor is read and compared.

    What it is compared with is what the file has: the archive's checksums, the digests that
    torchkeep saves. `num_unchecked` counts what has neither.

    Args:
        path: a file, or a folder that holds a model.
        limits: bounds of the work that a file may cause.
        progress: is told the bytes read and the bytes there are.

    Raises:
        FileProblem: as `inspect` does; also for a file that is no model.
    """
    try:
        return verify_file(path, limits, progress)
    except FileProblem as problem:
        raise problem.in_file(path) from None


def identify_whole(path: str | os.PathLike[str], limits: Limits, scratch: Scratch) -> Inspection:
    """Return what a file of one model is, every tensor of it within reach.

    Args:
        path: a file, or a folder that holds a model.
        limits: bounds of the work that a file may cause.
        scratch: where to unpack what lies packed; it must stay open while tensors are read.

    Raises:
        FileProblem: it is missing, damaged, or of no readable kind; the file is named.
    """
    try:
        return identify(describe_whole(path, limits=limits, scratch=scratch), limits)
    except FileProblem as problem:
        raise problem.in_file(path) from None


def identify(
    contents: Contents,
    limits: Limits = DEFAULT_LIMITS,
    *,
    is_part: bool = False,
    architectures: bool = True,
) -> Inspection:
    """Return what a description of a file amounts to.

    Args:
        contents: the description.
        limits: bounds of the walks over its tree.
        is_part: whether it lies in an archive or a folder.
        architectures: whether to look for the networks that the state dicts fit; who loads needs
            none.

    Raises:
        LimitReached: as `inspect` does.
    """
    safety = judge(contents, limits, is_part=is_part)
    contents, members = _with_members(contents, limits)
    found = _surveyed(contents, limits)
    contents = _with_structure(contents, found, limits)
    role = role_of(contents, found)
    main = main_state_dict(found)
    several = main is not None and _are_several_models(contents, members, main)
    written_by = framework(contents)
    architecture: tuple[ArchitectureMatch, ...] = ()
    if main and not several and architectures:
        architecture = _architecture(main, found, contents, written_by)
    return Inspection(
        path=contents.path,
        nbytes=contents.nbytes,
        container=contents.container,
        role=role,
        summary=summarise(
            role,
            contents,
            found,
            architecture,
            framework=written_by,
            several=several,
            networks=_networks(found, contents) if architectures and not several else [],
        ),
        state_dicts=tuple(found.state_dicts),
        optimizers=tuple(found.optimizers),
        schedulers=tuple(found.schedulers),
        scalers=tuple(found.scalers),
        rng=tuple(found.rng),
        values=found.values,
        modules=tuple(found.modules),
        framework=written_by,
        architecture=architecture,
        safety=safety,
        integrity=integrity_of(contents),
        contents=contents,
        members=members,
        limits=limits,
    )


def _surveyed(contents: Contents, limits: Limits) -> Survey:
    try:
        return survey(contents, Budget.for_contents(contents, limits))
    except RecursionError:  # a module in a module takes several of Python's own frames
        raise LimitReached("the file's values are nested too deep to be walked") from None


def _with_structure(contents: Contents, found: Survey, limits: Limits) -> Contents:
    """Put the modules of a file that was saved whole among what was found.

    The parameters are there without them, so a structure that is broken is only told of.
    """
    try:
        structure = own_structure(contents)
    except DamagedFile as problem:
        finding = Finding("structure", "damaged", STRUCTURE, problem.problem)
        return replace(contents, findings=(*contents.findings, finding))
    if structure is not None and is_module(structure.root):
        budget = Budget.for_contents(contents, limits)
        found.modules.append(("", module_tree(structure.root, structure.sources, budget)))
    return contents


def _with_members(contents: Contents, limits: Limits) -> tuple[Contents, tuple[Inspection, ...]]:
    """Return an archive or a folder without the trees in it that can't be walked, and its files.

    One file whose values unfold without end must not keep the others from being told of.
    """
    members: list[Inspection] = []
    findings: list[Finding] = []
    trees: dict[int, Value] = {}  # what is left of the trees that are not left as they are
    for member in contents.members:
        try:
            inspection = identify(member, limits, is_part=True)
        except LimitReached as problem:
            name = name_within(contents.path, member.path)
            findings.append(Finding("not-walked", "ambiguous", name, problem.problem))
            lost = replace(member, root=None, problem=problem.in_file(member.path))
            inspection = identify(lost, limits, is_part=True)
            inspection = replace(inspection, safety=judge(member, limits, is_part=True))
        members.append(inspection)
        if inspection.contents.root is not member.root:
            trees[id(member.root)] = inspection.contents.root
    if trees and isinstance(contents.root, Files):
        left = ((name, trees.get(id(tree), tree)) for name, tree in contents.root.items())
        root = Files((name, tree) for name, tree in left if tree is not None)
        contents = replace(contents, root=root, findings=(*contents.findings, *findings))
    return contents, tuple(members)


def _networks(found: Survey, contents: Contents) -> list[tuple[StateDict, str]]:
    """Return the networks of a file that has several, each with its architecture in words."""
    networks = separate_networks(found)
    is_few = len(networks) <= MOST_NAMED
    return [
        (item, in_words(_architecture(item, found, contents, None)) if is_few else "")
        for item in networks
    ]


def _are_several_models(whole: Contents, members: tuple[Inspection, ...], main: StateDict) -> bool:
    """Whether the files of an archive or a folder are models on their own, and not parts of one."""
    holders = [name_within(whole.path, it.path) for it in members if it.state_dicts]
    return len(holders) > 1 and any(f"{main.name}.".startswith(f"{name}.") for name in holders)


def _architecture(
    main: StateDict, found: Survey, contents: Contents, written_by: str | None
) -> tuple[ArchitectureMatch, ...]:
    """Return what the main state dict fits, what the file itself names before what it does not."""
    matches = recognise({key: entry.shape for key, entry in main.entries.items()})
    if not matches:
        return ()
    node = next((node for path, node in found.modules if path == main.name), None)
    inner = node and node.descendant(main.prefix + matches[0].prefix)
    by_class = named_by_class(inner.class_path) if inner else ()
    by_values = named_by_values(contents.metadata | found.values, written_by)
    return prefer(matches, [*by_class, *by_values])


__all__ = [
    "NOT_IN_WEIGHTS",
    "ArchitectureMatch",
    "Inspection",
    "Integrity",
    "ModuleNode",
    "NamedTensor",
    "Optimizer",
    "Safety",
    "StateDict",
    "identify",
    "inspect",
    "verify",
]
