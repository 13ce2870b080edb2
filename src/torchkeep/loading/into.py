"""A file's parameters into a live model: plan, act, proof."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from torchkeep.contents import DictObject, TensorEntry, Value
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, LoadMismatch, WrongArgument
from torchkeep.files import Scratch
from torchkeep.formats import examine
from torchkeep.formats.own.metadata import SAMPLES
from torchkeep.garbage import collection_paused
from torchkeep.identify import Inspection, StateDict, identify
from torchkeep.identify.architectures import recognise
from torchkeep.identify.architectures.words import in_words
from torchkeep.identify.digests import stored_digests
from torchkeep.identify.selection import all_values, choose, class_names, value_at
from torchkeep.loading.acting import Act
from torchkeep.loading.conversions import computes_values, own_conversion
from torchkeep.loading.devices import usable_device
from torchkeep.loading.replay import replay_stored, why_not_replayed
from torchkeep.loading.report import LoadReport
from torchkeep.loading.targets import Target
from torchkeep.matching.adaptations import ClassNames
from torchkeep.matching.explain import options, summarize, table
from torchkeep.matching.plan import LoadPlan
from torchkeep.matching.plan import plan as plan_for
from torchkeep.matching.policy import Policy, listed
from torchkeep.matching.suggest import advise
from torchkeep.matching.tied import tied_names
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.tensors import TensorReader


def plan(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    select: str = "auto",
    rename: Mapping[str, str] | None = None,
    adapt: Mapping[str, str | Sequence[str]] | None = None,
    allow: Collection[str] = (),
    classes: Sequence[str] | ClassNames | None = None,
    min_coverage: float = 1.0,
    limits: Limits = DEFAULT_LIMITS,
) -> LoadPlan:
    """Return what `load_into` would do with the same arguments, and do nothing.

    Print it to read it. `is_allowed` says whether the load would go ahead; a model on the `meta`
    device is as good as any.

    Raises:
        FileProblem: the file is missing, damaged, or of no readable kind.
        LoadMismatch: it is not clear which state dict is meant.
        WrongArgument: a name, a pattern or a rename is of no use.
    """
    policy = _policy(rename, adapt, allow, classes, min_coverage)
    with Scratch() as scratch:
        file = _File.read(path, select, limits, scratch)
        target = Target.of(model, assign=True)
        return file.planned(file.source_for(target), target, policy, assign=False)


@collection_paused()
def load_into(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    select: str = "auto",
    rename: Mapping[str, str] | None = None,
    adapt: Mapping[str, str | Sequence[str]] | None = None,
    allow: Collection[str] = (),
    classes: Sequence[str] | ClassNames | None = None,
    min_coverage: float = 1.0,
    assign: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | Literal["file"] | None = None,
    mmap: bool = False,
    replay: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> LoadReport:
    """Load a file's parameters and persistent buffers into a model, and prove it.

    The file may be anything that holds a state dict: the parameters alone, a training checkpoint,
    a whole model (whose pickle is not run), safetensors, shards. Prefixes of DataParallel,
    DistributedDataParallel, FSDP and torch.compile are matched on both sides, and so are names that
    PyTorch has changed. First the whole load is planned; unless the plan accounts for every key of
    both sides, nothing is done. Nor is it if a tensor of a file that torchkeep saved differs from
    its digest. After the act every tensor of the model, asked for anew, is compared with the
    file's, bit for bit, adapted ones through their adaptation. What a module keeps as extra state
    is given back and not compared.

    Args:
        model: the model, on any device. Its training mode is left as it is.
        path: the file.
        select: which state dict, if there are several: `auto` takes the model's, `ema` the moving
            average, anything else is its name in the file.
        rename: new names for the file's keys, by the old ones: `{"encoder.*": "*"}`.
        adapt: what may be done to keys that don't fit, by pattern: as in `fnmatch`, or the name of
            a module for all that is in it; the first that matches counts. `skip` leaves the model's
            own values, or the file's unused; `reset` has the module make fresh ones; `cast`
            converts to the model's dtype; `resample` resizes tables of positions; `sum-channels`,
            `repeat-channels`, `average-channels` are for another number of input channels;
            `classes` takes the rows of classes with the same names, `slice` the first rows. Several
            are tried in order.
        allow: names of adaptations that may be used wherever they are usual and help.
        classes: the names of the model's classes in the order of its outputs, for `classes`. The
            file's are looked for in it; `ClassNames(file=..., model=...)` gives both.
        min_coverage: the share of the model's parameters that must be loaded. Below 1, what is
            missing, unexpected or doesn't fit is left alone, and reported.
        assign: replace the model's tensors instead of writing into them. A model on the `meta`
            device needs it. An optimizer made before still has the old ones.
        device: with `assign`, where the new tensors are; by default where the model's are, and the
            CPU for those on `meta`.
        dtype: with `assign`, the dtype of the floating-point tensors, if not the model's; `file`
            for what the file has.
        mmap: with `assign`, map the file instead of reading it: memory is used as the tensors are,
            and may be shared with other processes. The file must not be changed meanwhile, and
            nothing is compared with digests.
        replay: run the model on the samples that the file carries (see `save`), unless something
            was adapted or left out, or the samples are raw. That shows what no tensor does, such as
            layers of one shape swapped.
        limits: bounds of the work that a file may cause.

    Raises:
        FileProblem: the file is missing, damaged, or of no readable kind. The model is untouched.
        LoadMismatch: the file and the model differ; the message has what is missing, unexpected
            and mismatched, and the call that loads the rest. The model is untouched.
        WrongArgument: a name, a pattern or a rename is of no use. The model is untouched.
        ProofFailed: a tensor differs from the file's after the act, because the model changes its
            values by itself; or the model does not do on the file's samples what it did.
    """
    if not assign and (mmap or device is not None or dtype is not None):
        raise WrongArgument(
            "mmap, device and dtype are for new tensors", advice="Pass assign=True with them."
        )
    policy = _policy(rename, adapt, allow, classes, min_coverage)
    place = None if device is None else usable_device(device)
    with Scratch() as scratch:
        file = _File.read(path, select, limits, scratch)
        target = Target.of(model, assign=assign, dtype=dtype)
        source = file.source_for(target)
        steps = file.planned(source, target, policy, assign=assign)
        if not steps.is_allowed:
            raise _mismatch(path, steps)
        metadata = file.inspection.contents.metadata
        has_samples = replay and SAMPLES in metadata
        obstacle = "" if steps.is_plain else "something was adapted or left out"
        if has_samples and not obstacle:
            obstacle = why_not_replayed(metadata, path)
        with file.opened(mmap=mmap) as reader:
            act = Act(reader, source, target, steps, place)
            act.check()
            act.assign() if assign else act.copy()
            digests = act.prove(model)
            replayed = None
            if has_samples and not obstacle:
                replayed = replay_stored(model, metadata, path)
                act.prove(model)  # a model may initialise itself when it is first used
        return LoadReport(Path(path), steps, digests, replayed, obstacle if has_samples else "")


def _policy(
    rename: Mapping[str, str] | None,
    adapt: Mapping[str, str | Sequence[str]] | None,
    allow: Collection[str],
    classes: Sequence[str] | ClassNames | None,
    min_coverage: float,
) -> Policy:
    names = classes if isinstance(classes, ClassNames) else ClassNames(model=tuple(classes or ()))
    return Policy(rename or {}, adapt or {}, listed(allow), names, min_coverage)


_SHARD = re.compile(r"(.+)-\d{5,}-of-\d{5,}(\.\w+)")


def _mismatch(path: str | os.PathLike[str], steps: LoadPlan) -> LoadMismatch:
    advice = steps.advice
    if shard := _SHARD.fullmatch(Path(path).name):
        index = f"{shard[1]}{shard[2]}.index.json"
        advice = f"This is one of several shards: give {index}, or their folder.\n{advice}"
    return LoadMismatch(
        f"{os.fspath(path)}: the file and the model differ: {summarize(steps)}",
        advice=f"{advice}\n{table(steps)}",
        missing=steps.missing,
        unexpected=steps.unexpected,
        mismatched=tuple(item.target for item in steps.mismatched),
    )


@dataclass(frozen=True, slots=True)
class _File:
    """A file, and the state dict in it that is meant."""

    path: str | os.PathLike[str]
    select: str
    inspection: Inspection
    chosen: StateDict
    why: str

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], select: str, limits: Limits, scratch: Scratch
    ) -> _File:
        contents = examine(path, limits=limits, scratch=scratch)
        if isinstance(contents.problem, DamagedFile | LimitReached):
            raise contents.problem
        try:
            inspection = identify(contents, limits, architectures=False)
        except FileProblem as problem:
            raise problem.in_file(path) from None
        return cls(path, select, inspection, *choose(inspection, select))

    def opened(self, *, mmap: bool) -> TensorReader:
        """Return the file open for its tensors: the one that was described, and no other."""
        contents = self.inspection.contents
        digests = stored_digests(contents)
        return TensorReader(
            self.path, mmap=mmap, digests=digests, remember=True, stamps=contents.stamps
        )

    def source_for(self, target: Target) -> dict[str, TensorEntry | Value]:
        """Return the values by key, with tied names that the file left out and the model has."""
        source = all_values(self.inspection, self.chosen)
        wanted = {slot.name for slot in target.slots.values()} | target.slots.keys()
        tied = tied_names(self.inspection.contents)
        return source | {name: source[kept] for name, kept in tied.items() if name in wanted}

    def planned(
        self,
        source: Mapping[str, TensorEntry | Value],
        target: Target,
        policy: Policy,
        *,
        assign: bool,
    ) -> LoadPlan:
        """Return the plan, with what to do where it leaves something over."""
        policy = self._with_class_names(policy)
        steps = plan_for(source, target.slots, policy)
        if not steps.is_complete or computes_values(target.model):
            conversion = own_conversion(target, source, policy.rename, self._versions())
            steps = plan_for(source, target.slots, policy, conversion)
        steps = replace(steps, state_dict=self.chosen.name, why=self.why)
        if steps.is_allowed:
            return steps
        chosen = {"select": "" if self.select == "auto" else self.select, "assign": assign}
        call = f"load_into(model, {os.fspath(self.path)!r}{options(chosen)}"
        advice = advise(steps, source, target.slots, policy, call, self._looks_like)
        return replace(steps, advice=advice)

    def _versions(self) -> dict[str, dict[str, Any]]:
        """Return the modules' versions that the state dict was saved with, by path."""
        table = value_at(self.inspection.contents.root, self.chosen.name)
        found = table.attributes.get("_metadata") if isinstance(table, DictObject) else None
        versions = found if isinstance(found, dict) else {}
        return {
            str(path): {"version": facts["version"]}
            for path, facts in versions.items()
            if isinstance(facts, dict) and isinstance(facts.get("version"), int)
        }

    def _looks_like(self) -> str:
        matches = recognise({key: entry.shape for key, entry in self.chosen.entries.items()})
        return f"By names and shapes the file is: {in_words(matches)}." if matches else ""

    def _with_class_names(self, policy: Policy) -> Policy:
        if not policy.classes.model or policy.classes.file:
            return policy
        names = class_names(self.inspection)
        if not names:
            raise WrongArgument(
                f"{os.fspath(self.path)}: the file does not say what its classes are called",
                advice="Pass classes=torchkeep.ClassNames(file=[...], model=[...]).",
            )
        return replace(policy, classes=replace(policy.classes, file=names))
