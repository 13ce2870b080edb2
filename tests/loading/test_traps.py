"""Traps that others fall into without a word: here each ends fixed and proven, or refused.

Each test shows first that plain PyTorch says nothing, so that it is known when that changes.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from torchkeep.errors import LoadMismatch, ProofFailed, WrongArgument
from torchkeep.loading import load, load_into
from torchkeep.saving import save
from torchkeep.tensors import same_bits


class Net(torch.nn.Module):
    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.bn = torch.nn.BatchNorm2d(8)
        self.fc = torch.nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(images)).mean((2, 3)))


def trained(num_classes: int = 4) -> Net:
    model = Net(num_classes)
    model(torch.randn(4, 3, 8, 8))
    return model


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(same_bits(a, b) for a, b in pairs)


def written(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def test_strict_false_that_matches_nothing_leaves_a_random_model(tmp_path: Path) -> None:
    # torchgeo#4036: the result is dropped, and the model is as random as before.
    state = {f"encoder.net.{key}": value for key, value in trained().state_dict().items()}
    path, model = written(tmp_path / "a.pth", state), Net()
    before = model.conv.weight.clone()
    model.load_state_dict(torch.load(path), strict=False)
    assert torch.equal(model.conv.weight, before)
    load_into(model, path)  # one prefix before all keys: taken off, and reported
    assert same_bits(model.conv.weight, state["encoder.net.conv.weight"])
    other = {f"{number}.{key}": value for number, (key, value) in enumerate(state.items())}
    with pytest.raises(LoadMismatch):
        load_into(Net(), written(tmp_path / "b.pth", other))


def test_another_shape_stops_even_strict_false(tmp_path: Path) -> None:
    # pytorch#24139: strict=False is no "load what fits".
    path = written(tmp_path / "a.pth", trained(10).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for fc"):
        Net().load_state_dict(torch.load(path), strict=False)
    report = load_into(Net(), path, adapt={"fc.*": "skip"})
    assert report.skipped == ("fc.weight", "fc.bias")


def test_a_changed_head_excuses_nothing_else(tmp_path: Path) -> None:
    # timm turns strict off for all keys when the class count differs: a lost tensor is not seen.
    state = trained(10).state_dict()
    del state["bn.running_var"]
    path = written(tmp_path / "a.pth", state)
    with pytest.raises(LoadMismatch) as caught:
        load_into(Net(), path, adapt={"fc.*": "skip"})
    assert caught.value.missing == ("bn.running_var",)


def test_weights_that_are_initialised_again_afterwards_are_noticed(tmp_path: Path) -> None:
    # transformers#46620: loaded, then initialised once more, with a clean report.
    class Again(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch.nn.init.normal_(self.fc.weight)
            return super().forward(images)

    class AtOnce(Net):
        def state_dict(self, *args, **kwargs):
            torch.nn.init.normal_(self.fc.weight)
            return super().state_dict(*args, **kwargs)

    path, model = written(tmp_path / "a.pth", trained().state_dict()), Again()
    model.load_state_dict(torch.load(path))
    report = load_into(model, path)
    model(torch.randn(2, 3, 8, 8))
    with pytest.raises(ProofFailed, match=r"has changed in 4 of 9 tensors: .*'fc.weight'"):
        report.check(model)
    with pytest.raises(ProofFailed, match=r"'fc.weight' differs from the file's 'fc.weight' after"):
        load_into(AtOnce(), path)


def test_a_count_is_not_a_list_of_names(tmp_path: Path) -> None:
    # Ultralytics: "Transferred 5/9 items", and which ones nobody knows.
    path = written(tmp_path / "a.pth", trained(10).state_dict())
    report = load_into(Net(), path, adapt={"fc.*": "skip"})
    loaded = {step.target for step in report.loaded}
    assert loaded | set(report.skipped) == set(Net().state_dict())
    assert report.coverage == pytest.approx(240 / 276)  # parameters, not names


def test_two_keys_renamed_to_one_are_refused(tmp_path: Path) -> None:
    # mmengine: the last one wins.
    state = {f"{part}.{k}": v for part in ("old", "new") for k, v in trained().state_dict().items()}
    path = written(tmp_path / "a.pth", state)
    with pytest.raises(WrongArgument, match=r"'old\.conv\.weight' and 'new\.conv\.weight' would"):
        load_into(Net(), path, rename={"old.*": "*", "new.*": "*"})


def test_cutting_off_seven_characters_damages_other_keys(tmp_path: Path) -> None:
    # The recipe `k[7:]` of many tutorials.
    state = {f"module.{key}": value for key, value in trained().state_dict().items()}
    assert [key[7:] for key in ("module.fc.bias", "classifier.bias")] == ["fc.bias", "ier.bias"]
    state["classifier.bias"] = torch.zeros(1)
    path, model = written(tmp_path / "a.pth", state), Net()
    report = load_into(model, path, adapt={"classifier.*": "skip"})
    assert same_bits(model.fc.bias, state["module.fc.bias"])
    assert report.unused == ("classifier.bias",)


def test_integers_do_not_become_floats_without_a_word(tmp_path: Path) -> None:
    state = trained().state_dict() | {"fc.bias": torch.tensor([1, 2, 3, 2**60 + 1])}
    path, model = written(tmp_path / "a.pth", state), Net()
    model.load_state_dict(torch.load(path))  # copied, converted, rounded
    assert int(model.fc.bias[3]) != 2**60 + 1
    with pytest.raises(LoadMismatch, match=r"fc\.bias: int64 \[4\] in the file, float32 \[4\] in"):
        load_into(Net(), path)
    with pytest.raises(LoadMismatch, match=r"fc\.bias: int64 \[4\] in the file"):
        load_into(Net(), path, allow=["cast"])


def test_half_precision_does_not_arrive_without_a_word(tmp_path: Path) -> None:
    path, model = written(tmp_path / "a.pth", trained().half().state_dict()), Net()
    model.load_state_dict(torch.load(path))
    assert model.fc.bias.dtype == torch.float32
    with pytest.raises(LoadMismatch, match=r"adapt=\{'\*': 'cast'\}"):
        load_into(Net(), path)
    report = load_into(model, path, allow=["cast"])
    assert all(step.adaptations for step in report.loaded if "num_batches" not in step.target)


def test_rows_of_classes_in_another_order_are_put_right(tmp_path: Path) -> None:
    # Folders are sorted as texts: "10" comes before "2".
    state = {"state_dict": trained().state_dict(), "classes": ["1", "2", "9", "10"]}
    path, model = written(tmp_path / "a.pth", state), Net()
    model.load_state_dict(torch.load(path)["state_dict"])  # fits, and is wrong for ["1", "10", ...]
    load_into(model, path, adapt={"fc.*": "classes"}, classes=["1", "10", "2", "9"])
    assert torch.equal(model.fc.weight, state["state_dict"]["fc.weight"][[0, 3, 1, 2]])


def test_of_two_state_dicts_the_one_that_was_taken_is_named(tmp_path: Path) -> None:
    model, average = trained(), trained()
    state = {"ema_state_dict": average.state_dict(), "model_state_dict": model.state_dict()}
    path, other = written(tmp_path / "a.pth", state), Net()
    assert "'model_state_dict' is the model's state dict" in str(load_into(other, path))
    assert same(other, model)
    assert load_into(other, path, select="ema").state_dict == "ema_state_dict"
    assert same(other, average)


def test_a_tied_weight_that_the_file_has_twice_must_be_one(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    state = {"embed.weight": torch.randn(5, 3), "head.weight": torch.randn(5, 3)}
    path, model = written(tmp_path / "a.pth", state), Tied()
    model.load_state_dict(torch.load(path))  # the last one wins
    assert torch.equal(model.embed.weight, state["head.weight"])
    with pytest.raises(LoadMismatch, match="is one tensor in the model, and the file has two diff"):
        load_into(Tied(), path)


def test_weight_norm_of_another_time_is_not_left_random(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        old = torch.nn.utils.weight_norm(torch.nn.Linear(3, 4))
    new = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 4))
    path = written(tmp_path / "a.pth", old.state_dict())
    report = load_into(new, path)
    assert torch.equal(new(torch.ones(1, 3)), old(torch.ones(1, 3)))
    assert report.plan.renamed == ("weight_norm",)
    path = written(tmp_path / "b.pth", new.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        old.load_state_dict(torch.load(path))
    load_into(old, path)
    assert torch.equal(new(torch.ones(1, 3)), old(torch.ones(1, 3)))


def test_an_optimizers_state_is_no_model(tmp_path: Path) -> None:
    model = trained()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    path = written(tmp_path / "a.pth", {"optimizer": optimizer.state_dict(), "epoch": 3})
    with pytest.raises(LoadMismatch, match="there is no state dict in this file"):
        load_into(Net(), path)


def test_an_empty_state_dict_fills_nothing_and_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", {"state_dict": OrderedDict()})
    Net().load_state_dict(torch.load(path)["state_dict"], strict=False)
    with pytest.raises(LoadMismatch):
        load_into(Net(), path)


class Twins(torch.nn.Module):
    """Has two layers of one shape."""

    def __init__(self, *, swapped: bool = False) -> None:
        super().__init__()
        first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.one, self.two = (second, first) if swapped else (first, second)
        self.swapped = swapped

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        one, two = (self.two, self.one) if self.swapped else (self.one, self.two)
        return two(torch.relu(one(values)))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_layers_of_one_shape_that_are_swapped_are_noticed(tmp_path: Path, name: str) -> None:
    # No tensor tells: all names and shapes fit, and all values arrive.
    model, other = Twins(), Twins(swapped=True)
    save(model, tmp_path / name, samples=torch.randn(8, 4))
    other.load_state_dict(load(tmp_path / name, select="auto"))
    with pytest.raises(ProofFailed, match=r"does not do what it did .* one shape swapped"):
        load_into(other, tmp_path / name)
    load_into(other, tmp_path / name, replay=False)
    report = load_into(Twins(), tmp_path / name)
    assert report.replayed is not None
    assert report.replayed.is_proven
    assert "; does what it did on 1 sample" in str(report)


def test_a_model_that_was_adapted_is_not_asked_for_what_it_did(tmp_path: Path) -> None:
    save(Twins(), tmp_path / "a.safetensors", samples=torch.randn(8, 4))
    report = load_into(Twins(), tmp_path / "a.safetensors", adapt={"two.*": "skip"})
    assert report.replayed is None
    assert report.not_replayed == "something was adapted or left out"


def test_a_model_that_changes_itself_while_it_runs_is_noticed(tmp_path: Path) -> None:
    class Again(Twins):
        calls = 0

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            result = super().forward(values)
            self.calls += 1
            if self.calls == 1:
                torch.nn.init.normal_(self.two.bias)
            return result

    save(Twins(), tmp_path / "a.safetensors", samples=torch.randn(8, 4))
    with pytest.raises(ProofFailed, match=r"'two\.bias' differs from the file's 'two\.bias' after"):
        load_into(Again(), tmp_path / "a.safetensors")
