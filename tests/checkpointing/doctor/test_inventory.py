"""What a live run holds that a checkpoint can't is named, and nothing else is."""

from __future__ import annotations

import functools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from torchkeep.checkpointing import inventory

GLOBAL = np.random.default_rng(0)


class Data(Dataset):
    """A data set of the program, with whatever attributes a test gives it."""

    def __init__(self, **attributes) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        return torch.zeros(1)


class UsesGlobal(Data):
    def __getitem__(self, index):
        return torch.zeros(1) + GLOBAL.normal()


def jitter(x):
    return x + GLOBAL.normal()


class CallsFunction(Data):
    def __getitem__(self, index):
        return [jitter(value) for value in (1.0, 2.0)]


class Slotted:
    __slots__ = ("__rng",)

    def __init__(self) -> None:
        self.__rng = random.Random(0)


def places(objects, loader=None, rule="private-generator") -> list[str]:
    return [item.place for item in inventory(objects, loader) if item.rule == rule]


def of_data(**attributes) -> list[str]:
    return places({}, DataLoader(Data(**attributes), 2))


def test_an_ordinary_run_has_no_findings():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    optimizer = torch.optim.Adam(model.parameters())
    objects = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        "extra": {"best": 1.0},
        "ema": None,
    }
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        TensorDataset(torch.zeros(4, 2)), 2, shuffle=True, generator=generator, num_workers=2
    )
    assert inventory(objects, loader) == []


@pytest.mark.parametrize(
    ("generator", "kind"),
    [
        (random.Random(0), "random.Random"),
        (np.random.default_rng(0), "numpy.random.Generator"),
        (np.random.RandomState(0), "numpy.random.RandomState"),
        (np.random.PCG64(0), "numpy.random.PCG64"),
        (torch.Generator(), "torch.Generator"),
    ],
)
def test_a_private_generator_of_a_data_set_is_named(generator, kind):
    (found,) = inventory({}, DataLoader(Data(rng=generator), 2))
    assert (found.rule, found.severity, found.place) == (
        "private-generator",
        "inexact",
        "loader.dataset.rng",
    )
    assert found.text == f"this {kind} is not captured: after a resume it starts anew"
    assert found.advice.startswith("Capture it, or do without it: draw from the global ones")


def test_generators_are_found_wherever_a_data_set_can_reach_them():
    rng = random.Random(0)
    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    assert of_data(transform=[cycle, {"a": (rng,)}]) == ["loader.dataset.transform[1]['a'][0]"]
    assert of_data(transform=lambda x: x + rng.random()) == ["loader.dataset.transform.rng"]
    assert of_data(transform=functools.partial(max, rng)) == ["loader.dataset.transform.args[0]"]
    assert of_data(draw=rng.random) == ["loader.dataset.draw.__self__"]
    assert of_data(inner=Slotted()) == ["loader.dataset.inner._Slotted__rng"]
    assert of_data(transform=jitter)[0].endswith("test_inventory.GLOBAL")
    module = nn.Sequential(nn.Identity())
    module[0].rng = rng
    assert of_data(transforms=module) == ["loader.dataset.transforms.0.rng"]


@pytest.mark.parametrize("kind", [UsesGlobal, CallsFunction])
def test_a_generator_among_the_globals_that_the_data_set_uses_is_named(kind):
    (place,) = places({}, DataLoader(kind(), 2))
    assert place.startswith("loader.dataset.__getitem__.")
    assert place.endswith("test_inventory.GLOBAL")


def test_the_global_generators_are_captured_and_so_not_named():
    assert of_data(a=random.random, b=np.random.rand, c=torch.default_generator) == []


def test_the_loaders_own_generators_are_captured_and_a_samplers_are_not():
    class Sampler(torch.utils.data.Sampler):
        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def __iter__(self):
            return iter(self.rng.permutation(4).tolist())

        def __len__(self) -> int:
            return 4

    assert places({}, DataLoader(Data(), 2, sampler=Sampler())) == ["loader.sampler.rng"]
    assert places({}, DataLoader(Data(), 2, collate_fn=lambda x: GLOBAL)) != []


def test_a_generator_that_is_captured_is_not_named_unless_workers_have_copies_of_it():
    rng = random.Random(0)
    objects = {"extra": {"rng": [rng]}}
    assert places(objects, DataLoader(Data(rng=rng), 2)) == []
    assert places(objects, DataLoader(Data(rng=rng), 2, num_workers=2)) == ["loader.dataset.rng"]


def test_a_generator_in_a_module_is_named_and_one_that_keeps_itself_is_not():
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator()

    class Keeps:
        def __init__(self) -> None:
            self.rng = random.Random(0)

        def state_dict(self):
            return {"rng": list(self.rng.getstate()[1])}

        def load_state_dict(self, state):
            pass

    found = inventory({"model": nn.Sequential(Noise()), "extra": {"keeps": Keeps()}})
    assert [item.place for item in found] == ["model.0.generator"]
    assert found[0].advice == "Capture it, or do without it: pass it in extra={...}."


def test_the_systems_generator_can_not_be_captured_at_all():
    (found,) = inventory({}, DataLoader(Data(rng=random.SystemRandom()), 2))
    assert found.advice == "Use a random.Random: no state of the system's generator can be kept."


def test_what_capture_itself_can_not_keep_is_named():
    (found,) = inventory({"extra": {"log": object()}})
    assert (found.rule, found.severity) == ("not-captured", "inexact")
    assert "extra" in found.text
    (found,) = inventory({"best": 0.5})
    assert found.text == "best is a plain value, which can't be put back; pass it in a dict"


def test_a_loader_that_can_not_tell_its_order_is_named():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(4))

    (found,) = inventory({}, DataLoader(Stream(), 2))
    assert (found.rule, found.severity, found.place) == ("order", "inexact", "loader")
    assert found.text.startswith("a Stream has samples in an order that nobody else knows: ")
    assert inventory({}, [1, 2])[0].text.startswith("a list can't tell its order: ")


def test_a_loader_with_a_state_is_named_only_for_its_workers():
    class Stateful:
        num_workers = 0

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

        def __iter__(self):
            return iter(())

    loader = Stateful()
    assert inventory({}, loader) == []
    loader.num_workers = 2
    assert inventory({}, loader)[0].text == (
        "the workers of a Stateful draw new seeds when it is resumed"
    )


def test_the_search_ends_in_a_huge_data_set_and_says_so():
    class Node:
        def __init__(self) -> None:
            self.following = None

    first = node = Node()
    for _ in range(30_000):
        node.following = Node()
        node = node.following
    node.rng = random.Random(0)
    (found,) = inventory({}, DataLoader(Data(chain=first, paths=["x"] * 1_000_000), 2))
    assert (found.rule, found.severity) == ("not-looked-into", "note")
    assert found.text == ("only 20,000 objects within it were looked at for private generators")


def test_an_attribute_whose_code_fails_or_draws_is_not_run():
    class Trap(Data):
        @property
        def rng(self):
            raise RuntimeError("it was run")

        def __getattr__(self, name):
            raise RuntimeError("it was run")

    class TrapDict(dict):
        def items(self):
            raise RuntimeError("it was run")

        def __len__(self):
            raise RuntimeError("it was run")

    class TrapKey:
        def __repr__(self):
            raise RuntimeError("it was run")

    rng = random.Random(0)
    (place,) = places({}, DataLoader(Trap(table=TrapDict({TrapKey(): rng})), 2))
    assert place == "loader.dataset.table[a TrapKey]"


def test_nothing_is_drawn_by_looking():
    before = torch.get_rng_state(), random.getstate()
    inventory({"model": nn.Dropout()}, DataLoader(Data(), 2, shuffle=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_thread_beside_the_main_one_is_noted():
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="prefetch")
    thread.start()
    try:
        found = [item for item in inventory({}) if item.rule == "thread"]
    finally:
        end.set()
        thread.join()
    assert [item.severity for item in found] == ["note"]
    assert found[0].text.startswith("the thread 'prefetch' runs beside the main one")


def test_several_processes_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    (found,) = inventory({})
    assert (found.rule, found.severity) == ("world-size", "inexact")
    assert found.text.startswith("4 processes train together")
