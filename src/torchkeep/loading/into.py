"""A file's parameters into a live model: plan, act, proof."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from torchkeep.contents import TensorEntry, Value
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, LoadMismatch, ProofFailed
from torchkeep.files import Scratch, grouped_by_size, in_parallel
from torchkeep.formats import examine
from torchkeep.identify import Inspection, StateDict, identify
from torchkeep.identify.digests import stored_digests
from torchkeep.identify.selection import all_values, choose
from torchkeep.loading.report import Loaded, LoadReport
from torchkeep.loading.targets import Target
from torchkeep.loading.trees import materialize_tree
from torchkeep.matching.adaptations import ADAPTATIONS
from torchkeep.matching.explain import Call, advise, summarize, table
from torchkeep.matching.keys import strip_wrappers
from torchkeep.matching.plan import Assignment, LoadPlan, plan
from torchkeep.matching.tied import tied_names
from torchkeep.tensors import TensorReader, same_bits


def load_into(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    select: str = "auto",
    adapt: Mapping[str, str] | None = None,
    assign: bool = False,
) -> LoadReport:
    """Load a file's parameters and persistent buffers into a model, and prove it.

    The file may be anything that holds a state dict: the parameters alone, a training checkpoint,
    a whole model (whose pickle is not run), safetensors. Prefixes of DataParallel,
    DistributedDataParallel, FSDP and torch.compile are matched on both sides. First the whole load
    is planned; unless the plan accounts for every key of both sides, nothing is done. Nor is it if
    a tensor of a file that torchkeep saved differs from its digest. After the act every tensor of
    the model is compared with the file's, bit for bit, or where the file has digests, with its
    digest. What a module keeps as extra state is given back and not compared.

    Args:
        model: the model, on any device. Its training mode is left as it is.
        path: the file.
        select: which state dict, if there are several: `auto` takes the model's, `ema` the moving
            average, anything else is its name in the file.
        adapt: what may be done to keys that don't fit, by key pattern (as in `fnmatch`, first match
            first): `skip` leaves the model's own values, or the file's unused; `cast` converts to
            the model's dtype.
        assign: replace the model's tensors instead of writing into them. A model on the `meta`
            device needs it. An optimizer made before still has the old ones.

    Raises:
        FileProblem: the file is missing, damaged, or of no readable kind. The model is untouched.
        LoadMismatch: the file and the model differ; the message has what is missing, unexpected
            and mismatched, and the call that loads the rest. The model is untouched.
        ProofFailed: a tensor differs from the file's after the act, because the model changes its
            values by itself.
    """
    with Scratch() as scratch:
        inspection = _inspect(path, scratch)
        chosen, why = choose(inspection, select)
        target = Target.of(model, assign=assign)
        source = _source(inspection, chosen, target)
        steps = plan(source, target.slots, adapt=adapt)
        call = Call(os.fspath(path), select, adapt or {}, assign)
        if not steps.is_complete:
            raise _mismatch(steps, source, target, call)
        with TensorReader(path, digests=stored_digests(inspection.contents)) as reader:
            act = _Act(reader, source, target, steps)
            act.check()
            act.assign() if assign else act.copy()
            act.prove(Target.of(model, assign=True))
    return _report(Path(path), chosen, why, steps, target)


def _inspect(path: str | os.PathLike[str], scratch: Scratch) -> Inspection:
    """Return what `inspect` does, with what lies packed in an archive unpacked."""
    contents = examine(path, scratch=scratch)
    if isinstance(contents.problem, DamagedFile | LimitReached):
        raise contents.problem
    try:
        return identify(contents)
    except FileProblem as problem:
        raise problem.in_file(path) from None


def _source(
    inspection: Inspection, chosen: StateDict, target: Target
) -> dict[str, TensorEntry | Value]:
    """Return the file's values by key, with the tied names that it left out and the model has."""
    source = all_values(inspection, chosen)
    wanted = set(strip_wrappers(target.slots).values())
    tied = tied_names(inspection.contents)
    return source | {name: source[kept] for name, kept in tied.items() if name in wanted}


def _mismatch(
    steps: LoadPlan, source: Mapping[str, Any], target: Target, call: Call
) -> LoadMismatch:
    return LoadMismatch(
        f"{call.path}: the file and the model differ: {summarize(steps)}",
        advice=f"{advise(steps, source, target.slots, call)}\n{table(steps)}",
        missing=steps.missing,
        unexpected=steps.unexpected,
        mismatched=tuple(item.target for item in steps.mismatched),
    )


class _Act:
    """The steps of a complete plan, on an open file and a live model."""

    def __init__(
        self,
        reader: TensorReader,
        source: Mapping[str, TensorEntry | Value],
        target: Target,
        steps: LoadPlan,
    ) -> None:
        self.reader = reader
        self.source = source
        self.target = target
        tensors = [step for step in steps.assignments if step.target in target.tensors]
        self.tensors = tensors
        self.extra = [step for step in steps.assignments if step.target not in target.tensors]
        # Of the keys of one tensor, one is written; the proof looks at all.
        self.unique = list({target.first_of(step.target): step for step in tensors}.items())

    def check(self) -> None:
        """Find out before the act what would fail in it.

        Raises:
            FileProblem: a tensor of the file can't be read.
            LoadMismatch: the file has two values for what is one tensor in the model.
        """
        for step in self.tensors:
            self.reader.check(self.source[step.source], step.source)
        written = {key: step.source for key, step in self.unique}
        for step in self.tensors:
            other = written[self.target.first_of(step.target)]
            if not self._is_same(step.source, other):
                raise LoadMismatch(
                    f"{step.target!r} is one tensor in the model, and the file has two different "
                    f"ones for it, {step.source!r} and {other!r}",
                    advice="Untie them in the model, or skip one of the keys.",
                )

    def _is_same(self, key: str, other: str) -> bool:
        one, two = self.source[key], self.source[other]
        return key == other or one == two or same_bits(self.reader.read(one), self.reader.read(two))

    def copy(self) -> None:
        """Write into the model's tensors, after all of the file's were compared with digests."""
        in_parallel(self._verify_group, grouped_by_size(self.unique, self._nbytes_of))
        in_parallel(self._copy_group, grouped_by_size(self.unique, self._nbytes_of))
        self._set_extra()

    def _nbytes_of(self, item: tuple[object, Assignment]) -> int:
        nbytes: int = self.source[item[1].source].nbytes
        return nbytes

    def _verify_group(self, group: list[tuple[str, Assignment]]) -> None:
        for _, step in group:
            self.reader.verify(self.source[step.source], step.source)

    def _copy_group(self, group: list[tuple[str, Assignment]]) -> None:
        for first, step in group:
            live = self.target.tensors[first]
            if step.adaptation is None:
                self.reader.fill(live, self.source[step.source], step.source)
            else:
                with torch.no_grad():
                    live.copy_(self._adapted(step, live))

    def assign(self) -> None:
        """Replace the model's tensors, on the device where they are (the CPU for meta ones)."""
        groups = grouped_by_size(self.unique, self._nbytes_of)
        values = chain.from_iterable(in_parallel(self._read_group, groups))
        self.target.replace(dict(values))
        self._set_extra()

    def _read_group(self, group: list[tuple[str, Assignment]]) -> list[tuple[str, torch.Tensor]]:
        values = []
        for first, step in group:
            live = self.target.tensors[first]
            device = torch.device("cpu") if live.is_meta else live.device
            values.append((first, self._adapted(step, live).to(device)))
        return values

    def _set_extra(self) -> None:
        for step in self.extra:
            value = materialize_tree(self.source[step.source], self.reader)
            self.target.set_extra_state(step.target, value)

    def _adapted(self, step: Assignment, live: torch.Tensor) -> torch.Tensor:
        """Return the file's tensor as the model is to have it."""
        tensor = self.reader.read(self.source[step.source], step.source)
        apply = ADAPTATIONS[step.adaptation].apply if step.adaptation else None
        adapted: torch.Tensor = tensor if apply is None else apply(tensor, live)
        return adapted

    def prove(self, now: Target) -> None:
        """Compare the model, asked anew for its state, with the file.

        Raises:
            ProofFailed: they differ.
        """
        pairs = [(now.tensors.get(step.target), step) for step in self.tensors]
        groups = grouped_by_size(pairs, self._nbytes_of)
        for step in chain.from_iterable(in_parallel(self._differing, groups)):
            raise ProofFailed(
                f"{step.target!r} differs from the file's {step.source!r} after loading",
                advice="The model changes or copies its own state; don't use it as loaded.",
            )

    def _differing(
        self, group: Iterable[tuple[torch.Tensor | None, Assignment]]
    ) -> list[Assignment]:
        return [step for live, step in group if live is None or not self._is_proven(step, live)]

    def _is_proven(self, step: Assignment, live: torch.Tensor) -> bool:
        if step.adaptation is None:
            return self.reader.matches(live, self.source[step.source], step.source)
        return same_bits(live, self._adapted(step, live))


def _report(path: Path, chosen: StateDict, why: str, steps: LoadPlan, target: Target) -> LoadReport:
    loaded = tuple(
        Loaded(step.target, step.source, step.adaptation, target.slots[step.target].shape)
        for step in steps.assignments
        if step.target in target.tensors
    )
    extra = [step.target for step in steps.assignments if step.target not in target.tensors]
    return LoadReport(
        path=path,
        state_dict=chosen.name,
        why=why,
        stripped=steps.stripped,
        loaded=loaded,
        extra_state=tuple(extra),
        skipped=steps.skipped,
        unused=steps.unused,
        coverage=steps.coverage,
        proven=True,
    )
