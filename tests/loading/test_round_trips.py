"""Real networks, saved in every way and loaded in every way: what arrives is what was saved.

`make test-models` takes all of torchvision's networks and the families of timm; the ordinary run a
few.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("timm")

from loading.names_of_networks import chosen
from torchkeep.loading import load_into, plan
from torchkeep.networks import build
from torchkeep.saving import save
from torchkeep.tensors import same_bits

State = dict[str, torch.Tensor]


def empty(name: str, **kwargs) -> torch.nn.Module:
    return build(name, device="meta", **kwargs)


def filled(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give a model on meta memory and values, faster than its own initialisation."""
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            if value.is_floating_point():
                value.uniform_(-1, 1, generator=generator)
            elif not value.dtype.is_complex:
                value.fill_((seed + number) % 2)
    return model


def same(one: State, other: State, *, but: set[str] = frozenset()) -> bool:
    assert one.keys() == other.keys()
    return all(same_bits(value, other[key]) for key, value in one.items() if key not in but)


# --- Ways to save ------------------------------------------------------------------------------


def save_plain(model: torch.nn.Module, folder: Path) -> Path:
    save(model, folder / "plain.safetensors", durable=False)
    return folder / "plain.safetensors"


def save_wrapped(model: torch.nn.Module, folder: Path) -> Path:
    state = {f"module._orig_mod.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": state, "loss": 0.1}, folder / "wrapped.pth")
    return folder / "wrapped.pth"


def save_average(model: torch.nn.Module, folder: Path) -> Path:
    state = model.state_dict()
    average = {f"module.{key}": value for key, value in state.items()}
    average["n_averaged"] = torch.tensor(7)
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    save({"model": other, "ema": average}, folder / "average.pth", durable=False)
    return folder / "average.pth"


def save_whole(model: torch.nn.Module, folder: Path) -> Path:
    torch.save(model, folder / "whole.pth")
    return folder / "whole.pth"


WAYS: dict[str, tuple[Callable[[torch.nn.Module, Path], Path], str]] = {
    "plain": (save_plain, "auto"),
    "wrapped": (save_wrapped, "auto"),
    "average": (save_average, "ema"),
    "whole": (save_whole, "auto"),
}


# --- The trips ---------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # pytest would keep some gigabytes
        yield Path(name)


@pytest.mark.parametrize("name", chosen())
def test_what_was_saved_in_any_way_arrives_in_any_model(name: str, folder: Path) -> None:
    model = filled(empty(name), seed=1)
    state = model.state_dict()
    other = filled(empty(name), seed=2)
    wrapped = torch.nn.DataParallel(other)
    for way, (write, select) in WAYS.items():
        path = write(model, folder)
        report = load_into(wrapped if way == "wrapped" else other, path, select=select)
        assert same(state, other.state_dict()), way
        assert report.coverage == 1
        assert len(report.digests) == len(state)
        path.unlink()
        filled(other, seed=2)
    fresh = empty(name)
    path = save_plain(model, folder)
    load_into(wrapped_in_compile(fresh), path, assign=True, mmap=True)
    assert same(state, fresh.state_dict())


def wrapped_in_compile(model: torch.nn.Module) -> torch.nn.Module:
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, torch.nn.Module)
    return compiled


@pytest.mark.parametrize("name", chosen())
def test_a_model_for_other_classes_gets_everything_but_its_head(name: str, folder: Path) -> None:
    try:
        model = empty(name, num_classes=11)
        other = empty(name, num_classes=7)
    except Exception as problem:  # a network without classes
        pytest.skip(f"it can't be built for other classes: {problem}")
    state = filled(model, seed=1).state_dict()
    before = {key: value.clone() for key, value in filled(other, seed=2).state_dict().items()}
    path = save_wrapped(model, folder)
    heads = {item.target for item in plan(other, path).mismatched}
    if not heads:
        pytest.skip("its state does not depend on the classes")
    report = load_into(other, path, adapt=dict.fromkeys(heads, "skip"))
    now = other.state_dict()
    assert same(state, now, but=heads)
    assert all(same_bits(now[key], before[key]) for key in heads)
    assert set(report.skipped) == heads
    load_into(other, path, adapt=dict.fromkeys(heads, "slice"))
    for key in heads:
        rows = now[key].shape[0]
        assert same_bits(now[key], state[key][:rows])
