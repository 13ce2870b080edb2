"""A written file, proven: run by its own runtime in a process of its own, and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from torchkeep.errors import DamagedFile, ProofFailed, WrongArgument
from torchkeep.exporting.cases import Case, cases_of, every_row
from torchkeep.exporting.examples import Examples
from torchkeep.exporting.pixels import prepared
from torchkeep.exporting.proof.layers import first_layer_that_differs, first_tensor_that_differs
from torchkeep.exporting.proof.parity import Comparison, Tolerance, compare, disagreement
from torchkeep.exporting.proof.session import Session
from torchkeep.exporting.proof.timing import side_by_side
from torchkeep.exporting.report import Accuracy, Speed
from torchkeep.exporting.subjects import Subject
from torchkeep.exporting.targets.arrays import as_array
from torchkeep.exporting.targets.exporters import reason
from torchkeep.exporting.targets.target import VALIDATION_BATCH, Target
from torchkeep.formats.plain_json import parse_json
from torchkeep.modes import evaluating
from torchkeep.outputs import named_tensors
from torchkeep.training.data.preprocessing import from_json
from torchkeep.training.data.samples import Samples, length_of
from torchkeep.training.quantizing import fake_quantize
from torchkeep.wording import counted, printable

WRITER = "torchkeep"
"""The text by which a file says that torchkeep has written it: its version."""

THROUGHPUT_BATCH = 16
"""The batch size whose samples per second are told, beside the latency of one."""

LONG_CALL_S = 0.1
"""A network that takes longer for one sample is not timed with a batch."""

AS_EXACT = 4.0
"""A file whose results in float32 are further off than is usual may still be as right as the
original's, where the network makes much of small differences. It is then compared with the same
network in float64: its error may be so many times the original's own."""

Notify = Callable[[str], object]
"""Is told what is being done, in a few words."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is exported or proven, and with what."""

    target: Target
    """What the file is. One of int8 is compared with what a network that was trained for 8 bits
    computes in them; all others with the network itself."""
    subject: Subject
    """The original."""
    examples: Examples
    """Inputs, and what may vary."""
    tolerance: Tolerance
    """How far the file may be from the original."""
    validation: Samples | None
    """Images with labels, as the network takes them, or None."""
    notify: Notify
    """Is told what is being done."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen of a file."""

    inputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    """Name, dtype and shape of each input, as the file has them."""
    comparisons: tuple[Comparison, ...]
    """Each output of each case."""
    images_prepared: int
    """Images that the file's own recipe made the same of as the original's."""
    speeds: tuple[Speed, ...]
    """By batch size."""
    accuracy: Accuracy | None
    """On validation data."""


def prove_file(task: Task, path: Path, *, is_ours: bool) -> Proof:
    """Run a written file on what the original is run on, and compare.

    Args:
        task: what it is to be, and what it is compared with.
        path: the file.
        is_ours: whether it was just written here, and so has to say its classes and its recipe.
            Others need not.

    Raises:
        ProofFailed: its runtime can't run it, or it differs.
    """
    try:
        name, threads = task.target.name, torch.get_num_threads()
        with evaluating(task.subject.model), Session(name, path, threads=threads) as session:
            return _Proving(task, session, is_ours=is_ours).proof()
    except ProofFailed as error:
        problem = f"{printable(path.name)}: {error.problem}"
        raise ProofFailed(problem, advice=error.advice) from error


class _Proving:
    """One file and its original, side by side."""

    def __init__(self, task: Task, session: Session, *, is_ours: bool) -> None:
        self.session, self.is_ours = session, is_ours
        self.subject, self.examples = task.subject, task.examples
        self.tolerance, self.validation, self.notify = task.tolerance, task.validation, task.notify
        self.model = _as_trained(task.subject, task.target.precision)

    def proof(self) -> Proof:
        """Return all that is to be seen, what is quick first."""
        self._check_ports()
        self._check_classes()
        comparisons = self._comparisons()
        images_prepared = self._check_recipe()
        accuracy = None if self.validation is None else self._accuracy(self.validation)
        self.notify("timing")
        speeds = tuple(self._speeds())
        return Proof(self._inputs(), comparisons, images_prepared, speeds, accuracy)

    def _inputs(self) -> tuple[tuple[str, str, tuple[int | str, ...]], ...]:
        """Return what the file takes: as its runtime tells it, or as it was called here."""
        if ports := self.session.inputs:
            return tuple((port.name, port.dtype, port.shape) for port in ports)
        examples = self.examples
        return tuple(
            (name, str(arg.dtype).removeprefix("torch."), _named_shape(arg, dims))
            for name, arg, dims in zip(examples.names, examples.args, examples.dynamic, strict=True)
        )

    def _check_ports(self) -> None:
        """Make sure that what was to vary is no number in the file."""
        ports = self.session.inputs
        if not ports:  # the runtime does not tell
            return
        args, dynamic = self.examples.args, self.examples.dynamic
        if len(ports) != len(args):
            raise ProofFailed(
                f"it takes {counted(len(ports), 'input')}, and the original {len(args)}"
            )
        for port, arg, dims in zip(ports, args, dynamic, strict=True):
            if len(port.shape) != arg.dim() or any(isinstance(port.shape[at], int) for at in dims):
                wanted = f", and {', '.join(dims.values())} was to take any size" if dims else ""
                raise ProofFailed(
                    f"its input {printable(port.name)} is {_shown(port.shape)}{wanted}",
                    advice="A size that is fixed in the file is refused by its runtime later.",
                )

    def _metadata(self) -> Mapping[str, str] | None:
        """Return what the file says of itself; None if it can't, or is somebody else's."""
        metadata = self.session.metadata
        return None if metadata is None or not (self.is_ours or WRITER in metadata) else metadata

    def _check_classes(self) -> None:
        """Compare the names that the file has for its classes with those that are known."""
        metadata, subject = self._metadata(), self.subject
        if metadata is None or not subject.classes:
            return
        found = _parsed(metadata, "classes")
        names = tuple(map(str, found)) if isinstance(found, list) else (str(found),)
        if names != subject.classes:
            raise ProofFailed(
                f"it names its classes {_some(names)}, and the original {_some(subject.classes)}",
                advice="It is the file of another network, or its names are in another order.",
            )

    def _check_recipe(self) -> int:
        """Prepare images as whoever uses the file will: by what the file says, without PyTorch."""
        metadata = self._metadata()
        if metadata is None or not self.subject.is_recipe_told:
            return 0
        recipe, num_channels = _recipe_in(metadata)
        for at, picture in enumerate(self.examples.pictures):
            expected = self.examples.args[0][at].numpy()
            found = prepared(picture, recipe) if num_channels == len(expected) else expected[:0]
            if found.shape != expected.shape or not np.allclose(found, expected, 0, 1e-5):
                raise ProofFailed(
                    f"its own preprocessing makes something else of image {at + 1} than the "
                    "original's: another size, scaling, mean or deviation",
                    advice="Its metadata 'preprocessing' is not the original's.",
                )
        return len(self.examples.pictures)

    def _comparisons(self) -> tuple[Comparison, ...]:
        found: list[Comparison] = []
        cases = cases_of(self.examples)
        if self.tolerance.agreement < 1:
            # A share is of many.
            cases.extend(every_row(self.examples))
        for case in cases:
            self.notify(f"comparing {case.name}")
            found.extend(self._compared(case))
        if problem := disagreement(found, self.tolerance):
            raise ProofFailed(f"it does not do what the original does: {problem}")
        return tuple(found)

    def _compared(self, case: Case) -> list[Comparison]:
        expected = self._expected(case)
        try:
            found = self.session.run([arg.numpy() for arg in case.args])
        except ProofFailed as error:
            raise ProofFailed(
                f"{error.problem} ({case.name})",
                advice="If other sizes work, one is fixed in the file: a shape that is computed in "
                "Python becomes a number. --dynamic none writes it for one size.",
            ) from error
        if len(found) != len(expected):
            outputs = counted(len(found), "tensor")
            raise ProofFailed(f"it gives {outputs}, and the original {len(expected)}")
        pairs = zip(expected.items(), found, strict=True)
        results = [compare(case.name, name, one, two, self.tolerance) for (name, one), two in pairs]
        wrong = next((result for result in results if result.problem), None)
        if wrong is None:
            return results
        if self._is_as_exact(case, expected, found):
            return [replace(each, problem="", is_as_exact=bool(each.problem)) for each in results]
        raise ProofFailed(
            f"it does not do what the original does: {wrong.output} of {case.name}: "
            f"{wrong.problem}. {self._culprit(case)}".rstrip(". "),
        )

    def _expected(self, case: Case) -> dict[str, Any]:
        try:
            return outputs_of(self.model, case.args)
        except Exception as error:  # the network is the caller's, and raises anything
            raise WrongArgument(
                f"the original can't be run on {case.name}, {failure(case.args, error)}",
                advice="Give an example of the shapes that it takes, or let less vary (--dynamic).",
            ) from error

    def _is_as_exact(self, case: Case, expected: Mapping[str, Any], found: Sequence[Any]) -> bool:
        """Whether a float32 result is as near to the one in float64 as the original's is."""
        if not self.tolerance.or_as_exact or any(
            one.shape != two.shape or one.dtype.kind != "f"
            for one, two in zip(expected.values(), found, strict=True)
        ):
            return False
        try:
            model = copy.deepcopy(self.model).double()
            args = [arg.double() if arg.is_floating_point() else arg for arg in case.args]
            exact = outputs_of(model, args)
        except Exception:  # a network may not be copied, or fix a type
            return False
        for (name, one), two in zip(expected.items(), found, strict=True):
            own, other = (np.abs(values - exact[name]).max(initial=0.0) for values in (one, two))
            last_bit = np.finfo(np.float32).eps * np.abs(exact[name]).max(initial=0.0)
            if not other <= AS_EXACT * max(own, last_bit):
                return False
        return True

    def _culprit(self, case: Case) -> str:
        """Return what inside the file differs first, as far as the target lets look."""
        try:
            if "layers" in self.session.abilities:
                found = self.session.looked_into("layers", [arg.numpy() for arg in case.args])
                return first_layer_that_differs(self.model, case.args, found)
            if "tensors" in self.session.abilities:
                found = self.session.looked_into("tensors")
                return first_tensor_that_differs(self.model, found)
        except ProofFailed:  # to look is help, and its failing must not hide what is wrong
            pass
        return ""

    def _accuracy(self, samples: Samples) -> Accuracy:
        batch_size = self.examples.call_size(VALIDATION_BATCH)
        num_samples = original = exported = 0
        for inputs, labels in DataLoader(samples, batch_size):
            self.notify(f"evaluating, {num_samples:,} of {length_of(samples):,} images")
            right = labels.numpy()
            if not self.examples.has_dynamic_batch:  # the last ones have to be as many, too
                inputs = inputs[torch.arange(batch_size) % len(inputs)]
            # In float32 also if it was trained for 8 bits: what these cost must not be hidden.
            one = next(iter(outputs_of(self.subject.model, (inputs,)).values()))
            two = self.session.run([inputs.numpy()])[0]
            if one.ndim < 2:
                raise WrongArgument(
                    f"no class can be read off the network's first output, {list(one.shape)}",
                    advice="Give inputs alone (--example), and no validation data (--data).",
                )
            num_samples += len(right)
            original += _num_right(one, right)
            exported += _num_right(two, right)
        found = Accuracy(num_samples, original, exported)
        if found.drop > self.tolerance.accuracy_drop:
            raise ProofFailed(
                f"it has {found.exported:,} of {found.num_samples:,} images right, and the "
                f"original {found.original:,}: {found.drop:.2%} are lost, and "
                f"{self.tolerance.accuracy_drop:.2%} may be"
            )
        return found

    def _speeds(self) -> Iterator[Speed]:
        """Time one sample, and a batch of them where that doesn't take for ever."""
        first = cases_of(self.examples)[0]
        yield (alone := self._speed(first.args))
        if self.examples.has_dynamic_batch and alone.original.median_s < LONG_CALL_S:
            yield self._speed(self.examples.rows(THROUGHPUT_BATCH))

    def _speed(self, args: Sequence[torch.Tensor]) -> Speed:
        arrays = [arg.numpy() for arg in args]
        pairs = zip(args, self.examples.dynamic, strict=True)
        rows = (len(arg) for arg, dims in pairs if 0 in dims)
        count = next(rows, self.examples.batch_size)
        return Speed(*side_by_side(lambda: self._call(args), self.session, arrays, count))

    def _call(self, args: Sequence[torch.Tensor]) -> None:
        with torch.inference_mode():
            self.subject.model(*args)


def _as_trained(subject: Subject, precision: str) -> torch.nn.Module:
    """Return what a file of a precision is compared with.

    A network that was trained for 8 bits is one that computes in them: its ranges cut off what
    training has found to be of no use, and without them it is another network.
    """
    if precision != "int8" or not subject.ranges:
        return subject.model
    model = copy.deepcopy(subject.model)
    fake_quantize(model, subject.ranges)
    return model


def outputs_of(model: torch.nn.Module, args: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return a network's outputs as arrays, by name."""
    with torch.inference_mode():
        # A copy, so that a layer that works in place changes no input.
        output = model(*(arg.clone() for arg in args))
        return {name or "output": as_array(tensor) for name, tensor in named_tensors(output)}


def _num_right(outputs: Any, labels: Any) -> int:
    """Return how many predictions are right; rows beyond the labels are there to fill a batch."""
    return int((outputs[: len(labels)].argmax(1) == labels).sum())


def failure(args: Sequence[torch.Tensor], error: Exception) -> str:
    """Return the shapes of the inputs that a network can't be run on, and why."""
    shapes = ", ".join(str(list(arg.shape)) for arg in args)
    return f"{shapes}: {reason(error)}"


def _parsed(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return parse_json(str(metadata[key]))
    except KeyError:
        raise ProofFailed(f"it does not say its {key}") from None
    except DamagedFile:
        raise ProofFailed(f"what it says of its {key} can't be read") from None


def _recipe_in(metadata: Mapping[str, str]) -> tuple[Mapping[str, Any], int]:
    """Return a file's recipe, and its channels; a file has it from anybody, so it is looked at."""
    recipe = _parsed(metadata, "preprocessing")
    plain = recipe
    if isinstance(recipe, dict):
        plain = {key: value for key, value in recipe.items() if key != "pixels"}
    try:
        return recipe, from_json(plain).num_channels
    except DamagedFile as error:
        raise ProofFailed(error.problem) from None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(str(name)[:40]) for name in names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown


def _named_shape(arg: torch.Tensor, dims: Mapping[int, str]) -> tuple[int | str, ...]:
    """Return an input's shape, with the names of the dimensions that may vary."""
    return tuple(dims.get(at, size) for at, size in enumerate(arg.shape))


def _shown(shape: Sequence[int | str]) -> str:
    return printable(f"[{', '.join(str(dim) for dim in shape)}]")
