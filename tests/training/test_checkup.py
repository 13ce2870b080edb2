"""The checks on a training that has been prepared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import Dataset

from torchkeep.training.checkup import check_up, try_rates
from torchkeep.training.preparing import prepare
from torchkeep.training.settings import Settings
from training.samples import DATA, NET


def test_rates_are_tried_on_more_than_one_batch_and_change_nothing() -> None:
    prepared = prepare(DATA, Settings(arch=NET, weights="none", size=12, batch_size=8))
    model = prepared.start.model
    before = {name: item.clone() for name, item in model.state_dict().items()}
    told: list[tuple[int, int]] = []
    seen: set[int] = set()

    class Watched(Dataset):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, index: int) -> object:
            seen.add(index)
            return prepared.data.train[index]

    watched = replace(prepared, data=replace(prepared.data, train=Watched()))
    random = torch.get_rng_state()
    curve = try_rates(watched, lambda *place: told.append(place))
    assert told == [(number, 100) for number in range(1, len(curve.rates) + 1)]
    assert seen == set(range(48))
    assert torch.equal(torch.get_rng_state(), random)
    for name, item in model.state_dict().items():
        assert torch.equal(item, before[name]), name


def test_a_precision_that_the_processor_has_to_imitate_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"arch": NET, "weights": "none", "size": 12, "device": "cpu"}
    for is_supported in (False, True):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda it=is_supported: it
        )
        found = check_up(prepare(DATA, Settings(precision="bf16", **options)))
        texts = [item.text for item in found if item.check == "slow-precision"]
        assert texts == [
            "this processor has no instructions for bf16, and takes many times as long"
        ] * (not is_supported)
    assert not [x for x in check_up(prepare(DATA, Settings(**options))) if "slow" in x.check]
