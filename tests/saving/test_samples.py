"""saving/samples.py: what a save keeps to prove a later load, and what it refuses to keep."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch as reference
import torch
from torch import nn

import torchkeep
from torchkeep.errors import SaveRefused
from torchkeep.formats.own.samples import Samples, decode_samples
from torchkeep.saving import save
from torchkeep.saving.samples import live, live_tensor


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))


def stored(path: Path) -> Samples:
    return decode_samples(torchkeep.inspect(path).metadata["torchkeep.samples"])


class Named(nn.Module):
    """Takes arguments with and without names, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0, extra: Any = None) -> Any:
        return {"logits": self.layer(x) * scale, "extra": extra}


# --- What is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_inputs_and_outputs_are_kept_and_other_readers_see_only_the_weights(
    tmp_path: Path, suffix: str
) -> None:
    model, x = net(), torch.randn(5, 3)
    path = tmp_path / f"model{suffix}"
    save(model, path, samples=x)
    found = stored(path)
    assert (found.device, found.dtype, found.preprocess) == ("cpu", "float32", "")
    (sample,) = found.samples
    assert torch.equal(live_tensor(sample.args[0]), x)
    assert torch.equal(live_tensor(sample.outputs[""]), model.eval()(x))
    plain = reference.load_file(path) if suffix == ".safetensors" else torch.load(path)
    net().load_state_dict(plain, strict=True)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model, random = net(), torch.get_rng_state()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save(model, tmp_path / "model.pth", samples=torch.randn(5, 3, generator=torch.Generator()))
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_samples_may_be_arguments_names_or_a_list_of_such(tmp_path: Path) -> None:
    x = torch.ones(1, 3)
    path = tmp_path / "model.safetensors"
    named = {"x": x, "scale": 2.0, "extra": [1, (True, None), {"text": "a"}]}
    save(Named(), path, samples=[x, (x,), named])
    first, second, third = stored(path).samples
    assert first == second
    assert list(first.outputs) == ["logits"]
    assert third.kwargs["scale"] == 2.0
    assert live(third.kwargs["extra"]) == [1, (True, None), {"text": "a"}]
    assert torch.equal(
        live_tensor(third.outputs["logits"]), 2 * live_tensor(first.outputs["logits"])
    )
    assert list(third.outputs) == ["logits", "extra.0", "extra.1.0"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_kept_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2).to(dtype)
    save(model, tmp_path / "model.pth", samples=torch.ones(1, 3, dtype=dtype))
    found = stored(tmp_path / "model.pth")
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert live_tensor(found.samples[0].outputs[""]).dtype == dtype


def test_raw_inputs_are_kept_with_the_output_for_what_they_become(tmp_path: Path) -> None:
    def preprocess(image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255

    model, image = net(), torch.randint(0, 256, (2, 3), dtype=torch.uint8)
    save(model, tmp_path / "model.pth", samples=image, preprocess=preprocess)
    found = stored(tmp_path / "model.pth")
    assert found.preprocess.endswith(f"{__name__.rpartition('.')[2]}.{preprocess.__qualname__}")
    assert torch.equal(live_tensor(found.samples[0].args[0]), image)
    expected = model.eval()(preprocess(image))
    assert torch.equal(live_tensor(found.samples[0].outputs[""]), expected)


def test_preprocessing_without_a_name_of_its_own_is_called_by_its_class(tmp_path: Path) -> None:
    save(
        net(),
        tmp_path / "model.pth",
        samples=torch.ones(2, 3),
        preprocess=partial(torch.mul, other=2),
    )
    assert stored(tmp_path / "model.pth").preprocess == "functools.partial"


def test_the_same_model_and_samples_give_the_same_bytes(tmp_path: Path) -> None:
    model, x = net(), torch.ones(2, 3)
    for name in ("one", "two"):
        save(model, tmp_path / f"{name}.pth", samples=x, metadata={"date": "2026-11-26"})
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "two.pth").read_bytes()


def test_the_samples_of_a_wrapped_model_are_run_through_the_wrapper(tmp_path: Path) -> None:
    model = nn.DataParallel(net())
    save(model, tmp_path / "model.pth", samples=torch.ones(2, 3))
    assert stored(tmp_path / "model.pth").samples[0].outputs.keys() == {""}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_metric_is_plain_metadata(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    save(net(), path, metric={"accuracy": 0.973, "errors": 3})
    metadata = torchkeep.inspect(path).metadata
    assert json.loads(metadata["metric"]) == {"accuracy": 0.973, "errors": 3}
    assert "torchkeep.samples" not in metadata


# --- What is refused, before anything is written -----------------------------------------------


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, training=True)


class Silent(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        return None


class Sparse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to_sparse()


X = torch.ones(64, 3)

REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a state dict": (
        {"x": X},
        {"samples": X},
        "samples need a model to be run on, and this is a dict. Pass the module itself to save, "
        "not its state dict.",
    ),
    "no samples": (
        net(),
        {"samples": []},
        "the list of samples is empty. Give one sample at least.",
    ),
    "more samples than a model should be run on": (
        net(),
        {"samples": [X] * 1001},
        "there are 1,001 samples, and 1,000 can be stored. Give fewer, or a batch as one sample.",
    ),
    "preprocessing of nothing": (
        net(),
        {"preprocess": torch.abs},
        "preprocess is of no use without samples. Pass samples=...",
    ),
    "a sample that does not fit": (
        nn.Linear(4, 1),
        {"samples": [torch.ones(1, 4), X]},
        "the model can't be run on sample 2 (RuntimeError: mat1 and mat2 shapes cannot be "
        "multiplied (64x3 and 4x1)). Give samples as the model takes them: a tensor, a tuple of "
        "arguments, or a dict of named ones.",
    ),
    "a random model": (
        Random(),
        {"samples": X},
        "the model gives another output for sample 1 when it is run again, in evaluation mode. "
        "What is random can't be proven by samples: fix it in the model or the preprocessing, or "
        "give a metric.",
    ),
    "random preprocessing": (
        net(),
        {"samples": X, "preprocess": lambda x: x + torch.rand(x.shape)},
        "when it is run again",
    ),
    "no output": (Silent(), {"samples": X}, "the model's output for sample 1 has no tensors."),
    "a sparse output": (
        Sparse(),
        {"samples": X},
        "the model can't be run on sample 1",
    ),
    "too much": (
        nn.Identity(),
        {"samples": torch.zeros(1 << 19, dtype=torch.float32).reshape(1, -1).expand(2, -1)},
        "the samples with their outputs take more than 4,194,304 bytes. Give fewer or smaller "
        "samples, or a metric.",
    ),
    "an array": (
        net(),
        {"samples": np.ones((2, 3), dtype=np.float32)},
        "the input of sample 1 holds a numpy.ndarray. Give tensors, finite numbers, texts, and "
        "lists, tuples and dicts of them; of an image or an array make a tensor.",
    ),
    "an infinite number": (
        Named(),
        {"samples": {"x": X, "scale": float("inf")}},
        "the input of sample 1 holds a builtins.float.",
    ),
    "a key that is no text": (
        Named(),
        {"samples": {"x": X, "extra": {1: 2}}},
        "the input of sample 1 has the key 1. Use texts as keys.",
    ),
    "a sparse tensor": (
        net(),
        {"samples": X.to_sparse()},
        "the input of sample 1 holds a tensor that is not stored with samples (float32, "
        "torch.sparse_coo, on cpu). Make a plain tensor of numbers of it.",
    ),
    "a metric that is no number": (
        net(),
        {"metric": {"accuracy": float("nan")}},
        "the metric 'accuracy' is nan, and has to be a finite number. Pass plain numbers by name: "
        "metric={'accuracy': 0.973}.",
    ),
    "a metric in a tensor": (
        net(),
        {"metric": {"accuracy": torch.tensor(0.5)}},
        "the metric 'accuracy' is tensor(0.5000), and has to be a finite number.",
    ),
    "a metric twice": (
        net(),
        {"metric": {"accuracy": 0.5}, "metadata": {"metric": "x"}},
        "metadata key 'metric' is what metric=... is stored under. Use another key, or leave "
        "metric out.",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_prove_anything_is_refused(tmp_path: Path, name: str) -> None:
    obj, options, message = REFUSED[name]
    path = tmp_path / "model.pth"
    with pytest.raises(SaveRefused) as caught:
        save(obj, path, **options)
    assert message in str(caught.value)
    assert not path.exists()
