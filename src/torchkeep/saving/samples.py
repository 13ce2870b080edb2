"""What a save keeps besides the weights so that a later load can be proven by what the model does.

Layers of one shape that were swapped, another preprocessing, activation or eps: no tensor shows
them, and a model's outputs do. `loading/replay.py` compares them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from torchkeep.errors import SaveRefused
from torchkeep.formats.own.metadata import METRIC, SAMPLES
from torchkeep.formats.own.samples import (
    DTYPES,
    MAX_NBYTES,
    MAX_SAMPLES,
    Node,
    Sample,
    Samples,
    SampleTensor,
    encode_samples,
)
from torchkeep.outputs import (
    ATOL,
    Preprocess,
    as_arguments,
    default_rtol,
    difference,
    generators_kept,
    place_of,
    run,
)
from torchkeep.tensors import bytes_of, dtype_name, plain_on_cpu, torch_dtype

_FEWER = "Give fewer or smaller samples, or a metric."


def proof_texts(
    obj: Any,
    *,
    samples: Any = None,
    preprocess: Preprocess | None = None,
    metric: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the metadata by which a load can be proven; empty if nothing was given.

    Args:
        obj: the model.
        samples: a tensor, a tuple of arguments, a dict of named ones, or a list of such.
        preprocess: makes of a sample what the model takes.
        metric: figures that the model has reached, such as `{"accuracy": 0.973}`.
        metadata: what the caller stores besides.

    Raises:
        SaveRefused: `metadata` has a metric already, there is no model to run, it can't be run on a
            sample, it is random even in evaluation mode, a value can't be stored, or the samples
            are too large.
    """
    texts = {}
    if metric is not None:
        if METRIC in (metadata or {}):
            raise SaveRefused(
                f"metadata key {METRIC!r} is what metric=... is stored under",
                advice="Use another key, or leave metric out.",
            )
        texts[METRIC] = json.dumps(_checked_metric(metric))
    if samples is not None:
        texts[SAMPLES] = _samples_text(obj, samples, preprocess)
    elif preprocess is not None:
        raise SaveRefused("preprocess is of no use without samples", advice="Pass samples=...")
    return texts


def _checked_metric(metric: Mapping[str, float]) -> dict[str, float]:
    for name, value in metric.items():
        if not isinstance(name, str) or type(value) not in (int, float) or not math.isfinite(value):
            raise SaveRefused(
                f"the metric {name!r} is {value!r}, and has to be a finite number",
                advice="Pass plain numbers by name: metric={'accuracy': 0.973}.",
            )
    return dict(metric)


def _samples_text(model: Any, samples: Any, preprocess: Preprocess | None) -> str:
    if not isinstance(model, torch.nn.Module):
        raise SaveRefused(
            f"samples need a model to be run on, and this is a {type(model).__qualname__}",
            advice="Pass the module itself to save, not its state dict.",
        )
    given = samples if isinstance(samples, list) else [samples]
    if not given:
        raise SaveRefused("the list of samples is empty", advice="Give one sample at least.")
    if len(given) > MAX_SAMPLES:
        raise SaveRefused(
            f"there are {len(given):,} samples, and {MAX_SAMPLES:,} can be stored",
            advice="Give fewer, or a batch as one sample.",
        )
    device, dtype = place_of(model)
    room = _Room()
    made = tuple(
        _sample(model, item, number, preprocess, room) for number, item in enumerate(given, 1)
    )
    return encode_samples(Samples(made, device.type, dtype_name(dtype), _name_of(preprocess)))


def _name_of(preprocess: Preprocess | None) -> str:
    """Return what to call it; the place in memory that a repr has would change with each save."""
    if preprocess is None:
        return ""
    named = preprocess if hasattr(preprocess, "__qualname__") else type(preprocess)
    return f"{named.__module__}.{named.__qualname__}"


def _sample(
    model: torch.nn.Module, item: Any, number: int, preprocess: Preprocess | None, room: _Room
) -> Sample:
    args, kwargs = as_arguments(item)
    what = f"input of sample {number}"
    stored_args = tuple(_stored(arg, what, room) for arg in args)
    stored_kwargs = {_text(name, what): _stored(arg, what, room) for name, arg in kwargs.items()}
    outputs = _steady_outputs(model, args, kwargs, number, preprocess)
    what = f"output of sample {number}"
    stored = {name: _stored_tensor(value, what, room) for name, value in outputs.items()}
    return Sample(stored_args, stored_kwargs, stored)


def _steady_outputs(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    number: int,
    preprocess: Preprocess | None,
) -> dict[str, torch.Tensor]:
    """Return the model's outputs, after having seen that it gives them twice."""
    try:
        with generators_kept(model):
            outputs, again = (run(model, args, kwargs, preprocess=preprocess) for _ in range(2))
    except Exception as error:  # the model is the caller's, and may raise anything
        raise SaveRefused(
            f"the model can't be run on sample {number} ({type(error).__name__}: {error})",
            advice="Give samples as the model takes them: a tensor, a tuple of arguments, or a "
            "dict of named ones.",
        ) from error
    if not outputs:
        raise SaveRefused(f"the model's output for sample {number} has no tensors")
    device, dtype = place_of(model)
    for name, tensor in outputs.items():
        rtol = default_rtol(dtype, tensor.dtype, on_cpu=device.type == "cpu")
        if not difference(number, name, tensor, again.get(name), rtol=rtol, atol=ATOL).is_close:
            raise SaveRefused(
                f"the model gives another output for sample {number} when it is run again, in "
                "evaluation mode",
                advice="What is random can't be proven by samples: fix it in the model or the "
                "preprocessing, or give a metric.",
            )
    return outputs


# --- What is stored ----------------------------------------------------------------------------


class _Room:
    """How many bytes of tensors may still be stored."""

    def __init__(self) -> None:
        self.left = MAX_NBYTES

    def take(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise SaveRefused(
                f"the samples with their outputs take more than {MAX_NBYTES:,} bytes", advice=_FEWER
            )


def _stored(value: Any, what: str, room: _Room) -> Node:
    if isinstance(value, torch.Tensor):
        return _stored_tensor(value, what, room)
    if type(value) in (list, tuple):
        return type(value)(_stored(item, what, room) for item in value)
    if type(value) is dict:
        return {_text(key, what): _stored(item, what, room) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise SaveRefused(
        f"the {what} holds a {type(value).__module__}.{type(value).__qualname__}",
        advice="Give tensors, finite numbers, texts, and lists, tuples and dicts of them; of an "
        "image or an array make a tensor.",
    )


def _text(key: Any, what: str) -> str:
    if not isinstance(key, str):
        raise SaveRefused(f"the {what} has the key {key!r}", advice="Use texts as keys.")
    return key


def _stored_tensor(tensor: torch.Tensor, what: str, room: _Room) -> SampleTensor:
    dtype = dtype_name(tensor.dtype)
    if dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
        raise SaveRefused(
            f"the {what} holds a tensor that is not stored with samples ({dtype}, {tensor.layout}, "
            f"on {tensor.device})",
            advice="Make a plain tensor of numbers of it.",
        )
    room.take(tensor.numel() * tensor.element_size())
    return SampleTensor(dtype, tuple(tensor.shape), bytes(bytes_of(plain_on_cpu(tensor))))


def live(node: Node) -> Any:
    """Return what was stored with its tensors made again, on the CPU."""
    if isinstance(node, SampleTensor):
        return live_tensor(node)
    if isinstance(node, list | tuple):
        return type(node)(map(live, node))
    if isinstance(node, dict):
        return {name: live(item) for name, item in node.items()}
    return node


def live_tensor(stored: SampleTensor) -> torch.Tensor:
    """Return the tensor that was stored, on the CPU."""
    tensor = torch.empty(stored.shape, dtype=torch_dtype(stored.dtype))
    bytes_of(tensor)[:] = stored.data
    return tensor
