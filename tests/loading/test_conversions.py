"""loading/conversions.py: a model's own loading code is asked, and changes nothing by that."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from torchkeep.errors import LoadMismatch
from torchkeep.loading import load_into, plan
from torchkeep.saving import save
from torchkeep.tensors import same_bits


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(same_bits(a, b) for a, b in pairs)


class Renamed(torch.nn.Module):
    """Was called otherwise before version 2."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 3)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            for name in ("weight", "bias"):
                old = f"{prefix}old.{name}"
                if old in state_dict:
                    state_dict[f"{prefix}inner.{name}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Hooked(torch.nn.Linear):
    """Renames, drops and computes by a registered hook."""

    def __init__(self) -> None:
        super().__init__(2, 3)
        self.seen = 0
        self.register_load_state_dict_pre_hook(self.convert)
        self.register_load_state_dict_post_hook(self.count)

    @staticmethod
    def convert(module, state, prefix, *_) -> None:
        state.pop(f"{prefix}legacy", None)
        if f"{prefix}kernel" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
        if f"{prefix}half_a" in state:
            state[f"{prefix}bias"] = state.pop(f"{prefix}half_a") + state.pop(f"{prefix}half_b")

    @staticmethod
    def count(module, keys) -> None:
        assert keys.missing_keys == keys.unexpected_keys == []
        module.seen += 1


@pytest.mark.parametrize("wrap", [lambda model: model, torch.nn.DataParallel])
def test_an_overridden_loader_renames(tmp_path: Path, wrap) -> None:
    model, other = torch.nn.Sequential(Renamed()), torch.nn.Sequential(Renamed())
    state = {key.replace("inner", "old"): value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    report = load_into(wrap(other), tmp_path / "a.pth")
    assert same(model, other)
    assert report.plan.converted == ("0.old.weight", "0.old.bias")
    assert "2 keys converted by the model's own code" in str(report)


def test_a_hook_renames_and_drops(tmp_path: Path) -> None:
    model, other = Hooked(), Hooked()
    state = {"kernel": model.weight.data, "bias": model.bias.data, "legacy": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    report = load_into(other, tmp_path / "a.pth")
    assert same(model, other)
    assert report.plan.converted == ("kernel", "legacy")
    assert report.unused == ("legacy",)


def test_what_a_hook_computes_stays_missing(tmp_path: Path) -> None:
    half = torch.ones(3)
    state = {"weight": torch.ones(3, 2), "half_a": half, "half_b": half}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(LoadMismatch) as caught:
        load_into(Hooked(), tmp_path / "a.pth")
    assert caught.value.missing == ("bias",)


@pytest.mark.parametrize("in_place", [False, True])
def test_values_that_a_model_changes_while_it_loads_are_not_taken_as_they_are(
    tmp_path: Path, in_place: bool
) -> None:
    class Scaled(torch.nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            key = f"{prefix}weight"
            if in_place:
                state_dict[key].mul_(2)
            else:
                state_dict[key] = state_dict[key] * 2
            super()._load_from_state_dict(state_dict, prefix, *args)

    model = Scaled(2, 3)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match="weight: values that the model's own loading code, run"):
        load_into(Scaled(2, 3), tmp_path / "a.pth")
    report = load_into(Scaled(2, 3), tmp_path / "a.pth", adapt={"weight": "skip"})
    assert report.skipped == ("weight",)


def test_loading_code_that_needs_values_is_not_taken_for_doing_nothing(tmp_path: Path) -> None:
    class Curious(torch.nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            if state_dict[f"{prefix}weight"].abs().max().item() > 1:
                state_dict[f"{prefix}weight"] /= 2
            super()._load_from_state_dict(state_dict, prefix, *args)

    model = torch.nn.Sequential(Curious(2, 3), torch.nn.Linear(3, 1))
    torch.save({k: v + 2 for k, v in model.state_dict().items()}, tmp_path / "a.pth")
    with pytest.raises(LoadMismatch) as caught:
        load_into(model, tmp_path / "a.pth")
    assert caught.value.mismatched == ("0.weight", "0.bias")
    assert "load_state_dict" in str(caught.value)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_code_that_must_know_a_version_is_asked_for_its_own(tmp_path: Path, name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    model, other = models.mnasnet0_5(num_classes=3), models.mnasnet0_5(num_classes=3)
    save(model, tmp_path / name)
    report = load_into(other, tmp_path / name)
    assert same(model, other)
    assert report.plan.converted == ()


def test_hooks_for_afterwards_are_called_once(tmp_path: Path) -> None:
    torch.save(Hooked().state_dict(), tmp_path / "a.pth")
    model = Hooked()
    plan(model, tmp_path / "a.pth")
    assert model.seen == 0
    load_into(model, tmp_path / "a.pth")
    assert model.seen == 1


class Scaled(torch.nn.Linear):
    """Puts in what files from before it had a scale lack."""

    def __init__(self, scale: float) -> None:
        super().__init__(2, 3)
        self.scale = torch.nn.Parameter(torch.full((3,), scale))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.setdefault(f"{prefix}scale", torch.ones(3))
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_what_a_module_puts_in_is_left_alone_only_if_the_model_has_just_that(
    tmp_path: Path,
) -> None:
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "a.pth")
    assert load_into(Scaled(1.0), tmp_path / "a.pth").plan.skipped == ("scale",)
    with pytest.raises(LoadMismatch) as caught:
        load_into(Scaled(2.0), tmp_path / "a.pth")
    assert caught.value.missing == ("scale",)


def test_asking_changes_nothing(tmp_path: Path) -> None:
    class Greedy(torch.nn.Linear):
        taken = None

        def _load_from_state_dict(self, state_dict, prefix, *args):
            self.taken = state_dict.get(f"{prefix}other")
            self._parameters["weight"] = None
            self.register_buffer("new", torch.ones(1))
            super()._load_from_state_dict(state_dict, prefix, *args)
            raise ValueError("and then it fails")

    model = torch.nn.Sequential(Greedy(2, 3))
    torch.save({"0.other": torch.ones(1), "0.weight": torch.ones(3, 2)}, tmp_path / "a.pth")
    before = model.state_dict()
    with pytest.raises(LoadMismatch):
        load_into(model, tmp_path / "a.pth")
    assert model[0].taken is None
    assert all(same_bits(value, before[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_old_files_of_torchvision_load_into_the_newest_models(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.vit_b_16(image_size=32)
    old = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): value
        for key, value in model.state_dict().items()
    }
    torch.save(old, tmp_path / "vit.pth")
    other = models.vit_b_16(image_size=32)
    report = load_into(other, tmp_path / "vit.pth")
    assert same(model, other)
    assert len(report.plan.converted) == 48


def test_pytorchs_warnings_about_the_stand_ins_are_not_shown(tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    names = ("weight", "bias", "running_mean", "running_var")
    torch.save({f"other.{name}": torch.ones(2) for name in names}, tmp_path / "a.pth")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        plan(model, tmp_path / "a.pth")
    assert not shown
