"""loading/replay.py: a loaded model does what it did, or the difference is measured and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as reference
import torch
from torch import nn

import torchkeep
from torchkeep.errors import DamagedFile, FileMissing, ProofFailed, WrongArgument
from torchkeep.loading import Replay, load_into, replay
from torchkeep.loading.replay import replay_stored
from torchkeep.saving import save

LARGE = (
    "Usual causes: layers of one shape swapped, another preprocessing (size, mean, channel order), "
    "dropout or training mode within the forward, another activation, or weights that were not "
    "loaded."
)
SMALL = (
    "Usual causes of a small difference: another eps, another form of the activation, another "
    "precision or kind of device, or a preprocessing that is a little different; rtol=... allows "
    "more."
)


def network(**layers: nn.Module) -> nn.Sequential:
    """Return a classifier of images whose BatchNorm has seen some; layers can be exchanged."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for number, (width, wider) in enumerate([(3, 16), (16, 16), (16, 16)]):
        model.append(nn.Conv2d(width, wider, 3, padding=1))
        model.append(layers.get("norm") or nn.BatchNorm2d(wider, eps=1e-5))
        model.append(layers.get(f"act{number}") or nn.GELU())
    for layer in (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 10)):
        model.append(layer)
    model(torch.randn(8, 3, 16, 16))
    return model


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[".safetensors", ".pth"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"model{request.param}"
    save(network(), path, samples=IMAGES, metric={"accuracy": 0.973})
    return path


def loaded(path: Path, model: nn.Module | None = None) -> nn.Module:
    model = network() if model is None else model
    load_into(model, path)
    return model


# --- Proven ------------------------------------------------------------------------------------


def test_a_model_that_was_loaded_right_is_proven(path: Path) -> None:
    model = loaded(path)
    done = torchkeep.replay(model, path)
    assert done.is_proven
    assert (done.path, done.num_samples, done.metrics) == (path, 1, ())
    (output,) = done.outputs
    assert (output.sample, output.name, output.expected) == (1, "", "float32 [2, 10]")
    assert output.found == output.expected
    assert output.largest_relative < 2e-5
    assert output.argmax_agreement == 1.0
    assert all(module.training for module in model.modules())
    assert str(done).startswith(f"{path}: 1 sample run again, outputs differ by at most ")


def test_another_precision_is_compared_by_its_own_digits(path: Path) -> None:
    found = {
        dtype: replay(loaded(path).to(dtype), path).outputs[0]
        for dtype in (torch.float64, torch.bfloat16)
    }
    assert found[torch.float64].largest_relative < 2e-5
    assert found[torch.float64].found == "float64 [2, 10]"
    assert 2e-5 < found[torch.bfloat16].largest_relative < 5e-2


def test_a_model_in_another_layout_is_proven(path: Path) -> None:
    assert replay(loaded(path).to(memory_format=torch.channels_last), path).is_proven


def test_a_wrapped_model_is_proven(path: Path) -> None:
    assert replay(nn.DataParallel(loaded(path)), path).is_proven


def test_names_lists_and_tuples_of_inputs_come_back_as_they_were_given(tmp_path: Path) -> None:
    class Picky(nn.Module):
        def forward(self, pair: Any, *, options: Any) -> Any:
            assert type(pair) is tuple
            assert options == {"which": [1, None, "b"], "scale": 0.5}
            return pair[0] * options["scale"], {"other": pair[1]}

    given = {
        "pair": (torch.ones(2), torch.ones(1)),
        "options": {"which": [1, None, "b"], "scale": 0.5},
    }
    save(Picky(), tmp_path / "model.pth", samples=[given])
    assert [item.name for item in replay(Picky(), tmp_path / "model.pth").outputs] == [
        "0",
        "1.other",
    ]


def test_metadata_that_was_read_already_is_enough(path: Path) -> None:
    metadata = torchkeep.inspect(path).metadata
    assert replay_stored(loaded(path), metadata, path).is_proven


# --- Caught ------------------------------------------------------------------------------------


def swapped(path: Path) -> nn.Module:
    """Return what plain `load_state_dict` makes of a model whose layers are in another order."""
    state = reference.load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    for part in ("weight", "bias"):
        state[f"3.{part}"], state[f"6.{part}"] = state[f"6.{part}"], state[f"3.{part}"]
    model = network()
    model.load_state_dict(state)
    return model


def another_eps(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return model


def with_dropout(path: Path) -> nn.Module:
    class Restless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    return loaded(path, network(act2=Restless()))


WRONG: dict[str, tuple[Callable[[Path], nn.Module], str]] = {
    "layers of one shape swapped": (swapped, LARGE),
    "another activation": (lambda path: loaded(path, network(act1=nn.ReLU())), LARGE),
    "dropout in the forward": (with_dropout, LARGE),
    "weights not loaded": (lambda path: network(act2=nn.Tanh()), LARGE),
    "another eps": (lambda path: another_eps(loaded(path)), SMALL),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_tensor_shows_is_caught(path: Path, name: str) -> None:
    make, causes = WRONG[name]
    with pytest.raises(ProofFailed) as caught:
        replay(make(path), path)
    message = str(caught.value)
    assert message.startswith(
        f"{path}: the model does not do what it did when it was saved: the output of sample 1 "
        "(float32 [2, 10]) differs by up to "
    )
    assert "% of the predictions agree. " in message
    assert message.endswith(causes)
    assert isinstance(caught.value.replay, Replay)
    assert not caught.value.replay.is_proven


def test_how_much_is_allowed_can_be_said(path: Path) -> None:
    assert replay(another_eps(loaded(path)), path, rtol=0.5).is_proven
    assert replay(another_eps(loaded(path)), path, atol=1.0).is_proven
    with pytest.raises(ProofFailed):
        replay(another_eps(loaded(path)), path, rtol=0.0, atol=0.0)


def test_another_preprocessing_is_caught(tmp_path: Path) -> None:
    def normalized(image: torch.Tensor, mean: float = 0.5) -> torch.Tensor:
        return image.float() / 255 - mean

    path, model = tmp_path / "model.pth", network()
    raw = (IMAGES * 50 + 128).clamp(0, 255).to(torch.uint8)
    save(model, path, samples=raw, preprocess=normalized)
    assert replay(model, path, preprocess=normalized).is_proven
    for wrong in (lambda x: normalized(x, 0.4), lambda x: normalized(x.flip(1))):
        with pytest.raises(ProofFailed, match="preprocessing"):
            replay(model, path, preprocess=wrong)
    with pytest.raises(WrongArgument) as caught:
        replay(model, path)
    assert "its samples are raw inputs, which went through " in str(caught.value)
    assert str(caught.value).endswith("normalized. Pass your preprocess=... as well.")


def test_a_head_of_another_size_is_told_as_such(path: Path) -> None:
    model = loaded(path)
    model[-1] = nn.Linear(16, 5)
    with pytest.raises(ProofFailed) as caught:
        replay(model, path)
    assert "the output of sample 1 is float32 [2, 5] instead of float32 [2, 10]. " in str(
        caught.value
    )
    assert str(caught.value).endswith(
        "Usual causes: another head or number of classes, or another model."
    )


class Heads(nn.Module):
    """Returns an output for each name."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict.fromkeys(self.names, x)


def test_a_missing_output_is_named_and_of_many_the_first_are(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save(Heads(*"abcdefgh"), path, samples=torch.ones(1))
    with pytest.raises(ProofFailed) as caught:
        replay(Heads("h"), path)
    assert "output 'a' of sample 1 (float32 [1]) is missing; output 'b'" in str(caught.value)
    assert "output 'e' of sample 1 (float32 [1]) is missing; and 2 more." in str(caught.value)


def test_a_model_that_does_not_take_the_samples_is_told_so(path: Path) -> None:
    with pytest.raises(ProofFailed) as caught:
        replay(nn.Linear(3, 2), path)
    assert f"{path}: the model can't be run on stored sample 1 (RuntimeError: mat1" in str(
        caught.value
    )
    assert str(caught.value).endswith(
        "Is it the model that was saved, on one device, and is preprocess the same?"
    )


# --- Metrics -----------------------------------------------------------------------------------


def test_a_metric_is_evaluated_and_compared(path: Path) -> None:
    seen = []

    def accuracy(model: nn.Module) -> float:
        seen.append((model.training, torch.is_grad_enabled()))
        return 0.9735

    model = loaded(path)
    done = replay(model, path, metric={"accuracy": accuracy})
    assert seen == [(False, False)]
    assert model.training
    assert (done.metrics[0].expected, done.metrics[0].found) == (0.973, 0.9735)
    assert str(done).endswith("; accuracy 0.9735, stored 0.973")


@pytest.mark.parametrize("found", [0.95, 0.99, float("nan")])
def test_another_metric_is_caught(path: Path, found: float) -> None:
    with pytest.raises(ProofFailed) as caught:
        replay(loaded(path), path, metric={"accuracy": lambda _: found})
    assert f": accuracy is {found:.6g}, and 0.973 was stored. " in str(caught.value)
    assert str(caught.value).endswith(
        "Usual causes: other data or another preprocessing, or other weights."
    )


def test_a_metric_needs_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save(network(), path, metric={"error": 3})
    done = replay(network(), path, metric={"error": lambda _: 3.0})
    assert (done.num_samples, str(done)) == (0, f"{path}: error 3, stored 3")


# --- Nothing to compare with -------------------------------------------------------------------


def test_a_file_without_samples_is_no_proof(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save(network(), path)
    with pytest.raises(WrongArgument) as caught:
        replay(network(), path)
    assert str(caught.value) == (
        f"{path}: it carries no samples. Save it with samples=..., or pass "
        "metric={name: function}."
    )


def test_a_metric_that_was_not_stored_is_named(path: Path) -> None:
    with pytest.raises(WrongArgument) as caught:
        replay(loaded(path), path, metric={"f1": lambda _: 1.0})
    assert str(caught.value) == (
        f"{path}: no metric 'f1' is stored (there are: accuracy). "
        "Save it with metric={'f1': ...}."
    )


def test_preprocessing_that_was_not_used_is_refused(path: Path) -> None:
    with pytest.raises(WrongArgument) as caught:
        replay(loaded(path), path, preprocess=torch.abs)
    assert str(caught.value) == (
        f"{path}: it has no raw inputs for preprocess. Leave preprocess out, or save with "
        "samples=raw, preprocess=...."
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"torchkeep.samples": "{}"}, "its stored samples can't be read: they have no version 1"),
        ({"metric": "[1]"}, "its metadata 'metric' is no table of numbers."),
        ({"metric": "{"}, "its metadata 'metric' is no table of numbers."),
        ({"metric": "[" * 100_000}, "its metadata 'metric' is no table of numbers."),
    ],
)
def test_damaged_metadata_is_told_with_the_file(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    reference.save_file({"x": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(DamagedFile) as caught:
        replay(network(), path, metric={"accuracy": lambda _: 1.0})
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"none\.pth: there is no such file"):
        replay(network(), tmp_path / "none.pth")
