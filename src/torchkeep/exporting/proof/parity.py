"""What a written file gives, compared with what the original gives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchkeep.errors import WrongArgument
from torchkeep.outputs import ATOL


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a file may be from the original."""

    rtol: float
    """The largest difference of two elements, as a share of the output's largest value."""
    cosine: float
    """The least cosine of the angle between the outputs as vectors."""
    agreement: float
    """The least share of the predictions whose highest output is the same, over all cases."""
    accuracy_drop: float
    """What accuracy may be lost on validation data, as a share: 0.01 is one point."""
    or_as_exact: bool = False
    """Whether a result that differs by more may be as near to the one in float64 as the original's
    is (`proving.AS_EXACT`)."""

    def __post_init__(self) -> None:
        if not self.rtol >= 0:
            raise WrongArgument(f"rtol is {self.rtol}, and has to be at least 0")
        for name in ("cosine", "agreement", "accuracy_drop"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise WrongArgument(f"{name} is {value}, and has to be from 0 to 1")


_TIGHT = 0.01
"""Below that much of the largest value, two classes that are so near to each other are alike."""

TOLERANCES = {
    "float32": Tolerance(1e-4, 0.99999, 1.0, 0.0, or_as_exact=True),
    "float16": Tolerance(2e-2, 0.999, 0.97, 0.005),
    "bfloat16": Tolerance(1e-1, 0.99, 0.95, 0.01),
    "int8": Tolerance(0.5, 0.95, 0.9, 0.01),
    "int8-dynamic": Tolerance(0.5, 0.95, 0.9, 0.01),
}
"""By precision."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one output of one case compares."""

    case: str
    """What was run, such as `batch 2`."""
    output: str
    """The name of the output."""
    largest: float
    """The largest difference of two elements; infinite if the shapes differ."""
    mean: float
    """The mean difference."""
    scale: float
    """The largest absolute value of the original's."""
    cosine: float
    """The cosine of the angle between both."""
    agreement: float | None
    """The share of predictions whose highest output is the same; None for what is no prediction."""
    problem: str
    """What is not as it has to be; empty if it is."""
    num_predictions: int = 0
    """How many predictions were compared: the rows of a classifier's output."""
    is_as_exact: bool = False
    """Whether it differs by more than is usual, and is as near to float64 as the original is."""

    @property
    def relative(self) -> float:
        """The largest difference in relation to the largest value."""
        if not self.scale:
            return math.inf if self.largest else 0.0
        return self.largest / self.scale


def compare(case: str, output: str, expected: Any, found: Any, allowed: Tolerance) -> Comparison:
    """Return how an array compares with the expected one.

    Args:
        case: what was run.
        output: its name.
        expected: the original's array.
        found: the file's.
        allowed: how far it may be.
    """
    if expected.shape != found.shape:
        shapes = f"its shape is {list(found.shape)}, and {list(expected.shape)} was expected"
        return Comparison(case, output, math.inf, math.inf, 0.0, 0.0, None, shapes)
    one, two = _as_float64(expected), _as_float64(found)
    with np.errstate(invalid="ignore"):  # of infinities
        gaps = np.abs(one - two)
    gaps = np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, gaps)
    gaps = np.nan_to_num(gaps, nan=np.inf, posinf=np.inf)
    is_exact = expected.dtype.kind not in "fc"
    if is_exact:  # float64 has not all large integers
        gaps = np.where(expected == found, 0.0, np.maximum(gaps, 1.0))
    finite = np.abs(one)[np.isfinite(one)]
    result = Comparison(
        case,
        output,
        largest=float(gaps.max(initial=0.0)),
        mean=float(gaps.mean()) if gaps.size else 0.0,
        scale=float(finite.max(initial=0.0)),
        cosine=_cosine(one, two),
        agreement=(share := _agreement(expected, one, two, allowed.rtol)),
        problem="",
        num_predictions=0 if share is None else expected.size // expected.shape[1],
    )
    if one.size and np.isnan(one).all():
        nothing = "the original's is nowhere a number (NaN), so that nothing can be compared"
        return replace(result, problem=nothing)
    return _judged(result, is_exact=is_exact, allowed=allowed)


def _as_float64(array: Any) -> Any:
    """Return an array in float64; of complex numbers both parts, one after the other."""
    if array.dtype.kind != "c":
        return array.astype(np.float64)
    return np.stack([array.real, array.imag], -1).astype(np.float64)


def agreements(comparisons: Iterable[Comparison]) -> dict[str, tuple[int, int]]:
    """Return by output how many predictions are the same, of how many in all cases.

    One case alone says little: of one image either all agree or none.
    """
    found: dict[str, tuple[int, int]] = {}
    for each in comparisons:
        if each.agreement is not None:
            same, count = found.get(each.output, (0, 0))
            more = round(each.agreement * each.num_predictions)
            found[each.output] = same + more, count + each.num_predictions
    return found


def disagreement(comparisons: Iterable[Comparison], allowed: Tolerance) -> str:
    """Return which output gives too many other classes; empty if none does.

    Args:
        comparisons: of all cases. Those that are as exact as the original do not count.
        allowed: how many may.
    """
    judged = [each for each in comparisons if not each.is_as_exact]
    for output, (same, count) in agreements(judged).items():
        if same < allowed.agreement * count:
            return (
                f"{output}: {same:,} of {count:,} predictions agree ({same / count:.1%}), and "
                f"{allowed.agreement:.1%} is the least"
            )
    return ""


def _judged(result: Comparison, *, is_exact: bool, allowed: Tolerance) -> Comparison:
    most = 0.0 if is_exact else allowed.rtol * result.scale if result.scale else ATOL
    problem = ""
    if not result.largest <= most:
        problem = (
            f"it differs by up to {result.largest:.2g}, {result.relative:.2g} of its largest "
            f"value, and {most:.2g} is allowed"
        )
    elif result.cosine < allowed.cosine:
        problem = f"its cosine is {result.cosine:.6f}, and {allowed.cosine:g} is the least"
    return replace(result, problem=problem)


def _cosine(one: Any, two: Any) -> float:
    # By the largest value first: squares of large numbers overflow, of small ones vanish.
    one, two = _scaled(one), _scaled(two)
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    if norms == 0:
        return 1.0 if np.array_equal(one, two) else 0.0
    value = float(one.ravel() @ two.ravel()) / norms
    return value if math.isfinite(value) else 0.0


def _scaled(values: Any) -> Any:
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    scale = largest or 1.0
    return np.nan_to_num(values, nan=0.0, posinf=scale, neginf=-scale) / scale


def _agreement(expected: Any, one: Any, two: Any, rtol: float) -> float | None:
    """Compare predictions, along the last of two dimensions, or the second of more.

    Where the original's two highest are nearer to each other than what is allowed, either is right.
    That is for tight bounds: one that is wide would make every class right, and such a precision
    is allowed a share of others (`Tolerance.agreement`).
    """
    if expected.ndim < 2 or expected.dtype.kind != "f" or expected.shape[1] < 2 or not one.size:
        return None
    chosen, first = two.argmax(axis=1), one.argmax(axis=1)
    of_chosen, of_first = (
        np.take_along_axis(one, np.expand_dims(places, 1), 1) for places in (chosen, first)
    )
    slack = rtol * np.abs(one[np.isfinite(one)]).max(initial=0.0) if rtol < _TIGHT else 0.0
    with np.errstate(invalid="ignore"):  # of infinities
        is_as_high = (of_first - of_chosen <= slack).squeeze(1)
    return float(((chosen == first) | is_as_high).mean())
