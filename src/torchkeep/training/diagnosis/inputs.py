"""What is wrong with a batch before it enters the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchkeep.training.diagnosis.findings import Finding
from torchkeep.training.diagnosis.trial import device_of
from torchkeep.wording import counted

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SLACK = 0.02
"""How far values may be outside of what is expected, as a share of its range: rounding, bicubic."""
_FLAT = 0.05
"""A batch whose values take up less of the range than this has hardly any contrast."""


def wrong_shape(inputs: torch.Tensor, *, channels: int = 3) -> list[Finding]:
    """Return an error if the batch is not `[n, channels, height, width]`."""
    shape = list(inputs.shape)
    if len(shape) != 4:
        text = f"the batch has the shape {shape}; a network for images takes [n, {channels}, h, w]"
        advice = "Add the batch's dimension with unsqueeze(0)." if len(shape) == 3 else ""
        return [Finding("input-shape", "error", text, advice)]
    if shape[1] == channels:
        return []
    if shape[3] == channels:
        text = f"the batch has the shape {shape}: the channels come last, and should be second"
        return [Finding("input-shape", "error", text, "Use inputs.permute(0, 3, 1, 2).")]
    text = f"the batch has {counted(shape[1], 'channel')}, and the network takes {channels}"
    advice = "Convert the images: image.convert('RGB'), or 'L' for one channel."
    return [Finding("input-shape", "error", text, advice)]


def wrong_dtype(inputs: torch.Tensor, model: nn.Module) -> list[Finding]:
    """Return an error if the batch's dtype is not the model's; autocast converts by itself."""
    wanted = next((item.dtype for item in model.parameters() if item.is_floating_point()), None)
    kind = inputs.device.type
    if wanted is None or inputs.dtype == wanted:
        return []
    if inputs.is_floating_point() and torch.is_autocast_enabled(kind):
        return []
    text = f"the batch is {inputs.dtype}, and the model {wanted}"
    advice = (
        f"Use inputs.to({wanted})."
        if inputs.is_floating_point()
        else "Scale whole numbers to 0..1: v2.ToDtype(torch.float32, scale=True)."
    )
    return [Finding("input-dtype", "error", text, advice)]


def wrong_device(inputs: torch.Tensor, model: nn.Module) -> list[Finding]:
    """Return an error if the batch is not where the model is."""
    there = device_of(model)
    if inputs.device == there:
        return []
    text = f"the batch is on {inputs.device}, and the model on {there}"
    advice = f"Use inputs.to({str(there)!r})."
    if there.type == "meta":
        advice = "Tensors on meta have no values: load the weights before."
    return [Finding("input-device", "error", text, advice)]


def not_finite(inputs: torch.Tensor) -> list[Finding]:
    """Return an error if there is NaN or infinity in the batch."""
    bad = ~torch.isfinite(inputs)
    if not bad.any():
        return []
    samples = int(bad.flatten(1).any(dim=1).sum()) if inputs.ndim > 1 else int(bad.sum())
    num_nan = int(torch.isnan(inputs).sum())
    text = (
        f"{counted(num_nan, 'NaN')} and {counted(int(bad.sum()) - num_nan, 'infinite value')} in "
        f"{samples} of {counted(len(inputs), 'sample')}"
    )
    advice = "Look at these samples' transforms: a division by a zero spread, or a broken file."
    return [Finding("input-values", "error", text, advice)]


def constant_images(inputs: torch.Tensor) -> list[Finding]:
    """Return what images have one value per channel: all (error), or some (warning)."""
    if inputs.ndim < 3 or not inputs.numel() or not torch.isfinite(inputs).all():
        return []
    flat = inputs.flatten(2) if inputs.ndim > 3 else inputs.flatten(1).unsqueeze(1)
    blank = (flat.amax(dim=2) == flat.amin(dim=2)).all(dim=1)
    number = int(blank.sum())
    if not number or flat.shape[2] == 1:
        return []
    text = f"{number} of {counted(len(inputs), 'image')} in the batch have the same value all over"
    advice = "Look at the transforms and files: whole numbers divided by 255 // 1, an empty crop?"
    if number < len(inputs):
        advice = "Look at these files."
    return [
        Finding("constant-images", "error" if number == len(inputs) else "warning", text, advice)
    ]


def not_normalised(
    inputs: torch.Tensor,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> list[Finding]:
    """Return a finding if the batch can't come from images by `(pixel / 255 - mean) / std`.

    The verdict is made by the range of the values, which is certain: a batch of dark images has
    another mean than one of bright ones, and is as good.

    Args:
        inputs: `[n, channels, height, width]`.
        mean: what the weights expect to be subtracted per channel, of values in 0..1.
        std: what they expect to be divided by.
    """
    if inputs.ndim != 4 or inputs.shape[1] != len(mean) or not torch.isfinite(inputs).all():
        return []
    values = inputs.detach().double().transpose(0, 1).flatten(1).cpu()
    shift = torch.tensor(list(mean), dtype=torch.double)
    scale = torch.tensor(list(std), dtype=torch.double)
    lowest, highest = (-shift / scale), ((1 - shift) / scale)
    verdict = _verdict(values, lowest, highest)
    if verdict is None:
        return []
    severity_is_error, problem, advice = verdict
    text = (
        f"{problem}: per channel the mean is {_rounded(values.mean(dim=1))} and the spread "
        f"{_rounded(values.std(dim=1))}, values go from {float(values.min()):.3g} to "
        f"{float(values.max()):.3g}; images in 0..1 with this mean and std give "
        f"{float(lowest.min()):.3g} to {float(highest.max()):.3g}"
    )
    severity = "error" if severity_is_error else "warning"
    return [Finding("not-normalised", severity, text, advice)]  # type: ignore[arg-type]


def _verdict(
    values: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor
) -> tuple[bool, str, str] | None:
    """Return whether it is an error, what was probably done instead, and what to do.

    Args:
        values: `[channels, n]`.
        lowest: what a black pixel becomes, `[channels]`.
        highest: what a white pixel becomes.
    """
    low, high = float(values.min()), float(values.max())
    span = highest - lowest
    if low == high:
        return None
    least, most = values.amin(dim=1), values.amax(dim=1)
    is_within = bool(
        (least >= lowest - _SLACK * span).all() and (most <= highest + _SLACK * span).all()
    )
    normalise = "Use v2.Normalize(mean, std) with what the weights were trained with."
    if not is_within and low >= 0 and 16 < high <= 255:
        advice = f"Divide by 255 (v2.ToDtype(torch.float32, scale=True)). {normalise}"
        return True, "values are those of bytes, 0..255", advice
    if not is_within:
        advice = f"Is it normalised twice, or with others' mean and std? {normalise}"
        return False, "values are out of what normalised images have", advice
    if low >= 0 and high <= 1 and bool((lowest < -0.5).any()) and bool((highest > 1.2).all()):
        return False, "values are in 0..1, and not normalised", normalise
    if _is_symmetric(low, high) and bool((lowest < -1.2).all() and (highest > 1.2).all()):
        return False, "values are in -1..1, as from a mean and std of 0.5", normalise
    if bool(((most - least) < _FLAT * span).all()):
        advice = "Are the pixels divided by 255 twice? Look at an image as it enters the network."
        return False, "there is hardly any contrast", advice
    return None


def _is_symmetric(low: float, high: float) -> bool:
    """Tell whether black and white are -1 and 1 exactly."""
    return abs(low + 1) < 1e-4 and abs(high - 1) < 1e-4


def _rounded(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.2f}" for value in values.tolist())
