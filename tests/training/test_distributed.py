"""Several ranks train one network: what they have in common, and what it has to be worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpointing.gang import on_ranks
from torchkeep.checkpointing import list_checkpoints
from torchkeep.errors import WrongArgument
from torchkeep.training.classifier import load_classifier
from torchkeep.training.distributed.processes import check_sharing
from torchkeep.training.evaluation import answers
from torchkeep.training.preparing import loaders, prepare
from torchkeep.training.settings import Settings
from training.rank_runs import USUAL, kinds_on_rank, on_rank, train
from training.samples import Net

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed"
)

SAME: dict[str, dict[str, Any]] = {
    "uneven": {"data": "training.samples:uneven"},
    "in steps": {"data": "training.samples:uneven", "accumulate": 4, "clip_norm": 0.5, "ema": 0.8},
    "weighed": {"data": "training.samples:uneven", "class_weights": True, "label_smoothing": 0.1},
    "in stages": {"freeze": "all-but-head", "unfreeze": {1: "body", 2: "all"}, "lr_decay": 0.5},
    "a view": {"arch": "training.samples:Viewed"},
}
"""What must be the same on any number of ranks."""

OTHERS: dict[str, dict[str, Any]] = {
    "norms": {"arch": "training.samples:Net", "ema": 0.9, "mix": "mixup"},
    "8 bits": {"qat": True, "ema": 0.9},
    "stopped": {"arch": "training.samples:Net", "epochs": 20, "patience": 1, "lr": 0.5},
    "fp16": {"precision": "fp16", "clip_norm": 1.0, "check": False},
    "helped": {"arch": "training.samples:Helped", "freeze": "1", "unfreeze": {1: "all"}},
}
"""What depends on who is in a batch, or on chance."""


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "best.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Any]]]:
    """Return the folder of each way to train, and what its ranks said, by the kind."""
    root = tmp_path_factory.mktemp("runs")
    alone = {name: train(root / "alone" / name, options) for name, options in SAME.items()}
    found = {"alone": (root / "alone", [alone])}
    for name in ("replicated", "sharded"):
        kinds = {
            kind: {**options, "shard": name == "sharded"}
            for kind, options in (SAME | OTHERS).items()
        }
        found[name] = root / name, on_ranks(2, kinds_on_rank, root / name, kinds)
    return found


@pytest.mark.parametrize("way", ["replicated", "sharded"])
@pytest.mark.parametrize("kind", SAME)
def test_two_ranks_train_as_one_does(runs: Any, way: str, kind: str) -> None:
    (place, [alone]), (here, ranks) = runs["alone"], runs[way]
    one, two = alone[kind], ranks[0][kind]
    assert len(one["history"]) == len(two["history"])
    for row, other in zip(one["history"], two["history"], strict=True):
        assert other == pytest.approx(row, rel=2e-4, abs=1e-6)
    assert two["answers"][:2] == one["answers"][:2]
    assert two["answers"][2] == pytest.approx(one["answers"][2], rel=1e-2, abs=1e-5)
    expected, found = tensors_of(place / kind), tensors_of(here / kind)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-2, atol=1e-4), name


def test_the_last_epoch_is_the_same_on_all(runs: Any) -> None:
    for way in ("replicated", "sharded"):
        first, second = (rank["stopped"] for rank in runs[way][1])
        assert first["stopped"]
        assert second["stopped"]
        assert len(first["history"]) < 20


@pytest.mark.parametrize("kind", SAME | OTHERS)
def test_ranks_end_with_the_same(runs: Any, kind: str) -> None:
    for way in ("replicated", "sharded"):
        first, second = (rank[kind] for rank in runs[way][1])
        for name in ("history", "answers", "buffers"):
            assert first[name] == second[name], (way, name)
        assert first["random"] != second["random"]  # each drops out by itself


@pytest.mark.parametrize("kind", OTHERS)
def test_a_sharded_network_learns_what_a_whole_one_does(runs: Any, kind: str) -> None:
    (_, whole), (_, sharded) = runs["replicated"], runs["sharded"]
    for row, other in zip(whole[0][kind]["history"], sharded[0][kind]["history"], strict=True):
        assert other == pytest.approx(row, rel=2e-3, abs=1e-5)


def test_the_first_rank_speaks_for_all(runs: Any) -> None:
    for way in ("replicated", "sharded"):
        first, second = (rank["uneven"]["told"] for rank in runs[way][1])
        assert {"begun", "step", "epoch"} <= set(first)
        assert second == []


@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_the_best_model_is_a_plain_one(runs: Any, way: str) -> None:
    folder, ranks = runs[way]
    arch = "training.samples:Net"
    model, _ = load_classifier(folder / "norms" / "best.safetensors", arch=arch)
    assert tensors_of(folder / "norms").keys() == Net().state_dict().keys()
    prepared = prepare("training.samples:stripes", Settings(**USUAL | {"arch": arch}))
    said = answers(model, loaders(prepared)[1])
    assert said.loss.tolist() == pytest.approx(ranks[0]["norms"]["answers"][2], rel=1e-4, abs=1e-5)


def digests(folder: Path) -> Any:
    newest = list_checkpoints(folder)[-1]
    return json.loads((newest.path / "manifest.json").read_text())["tensors"]


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_whose_ranks_are_killed_goes_on_bit_for_bit(tmp_path: Path, shard: bool) -> None:
    options = {
        "arch": "training.samples:Net",
        "ema": 0.9,
        "accumulate": 2,
        "shard": shard,
        "freeze": "all-but-head",
        "unfreeze": {1: "all"},
        "every_steps": 1,
    }
    whole = on_ranks(2, on_rank, tmp_path / "whole", options, None)
    with pytest.raises(AssertionError, match=r"the ranks ended with \[-9, "):
        on_ranks(2, on_rank, tmp_path / "run", options, 5)
    assert list_checkpoints(tmp_path / "run")[-1].step < 6
    again = on_ranks(2, on_rank, tmp_path / "run", options, None)
    assert [rank["history"] for rank in again] == [rank["history"] for rank in whole]
    assert [rank["random"] for rank in again] == [rank["random"] for rank in whole]
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_what_can_not_be_shared_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"equal shares of batches of 10\. .* of 9 or 12\."):
        check_sharing(Settings(batch_size=10), 3)
    with pytest.raises(WrongArgument, match=r"batches of 2\. Choose a --batch-size of 4\."):
        check_sharing(Settings(batch_size=2), 4)
    with pytest.raises(WrongArgument, match=r"several processes, and this is one\. Start several"):
        prepare("training.samples:stripes", Settings(**USUAL | {"shard": True}))
    for name in ("compile", "channels_last"):
        with pytest.raises(
            WrongArgument, match=f"--shard does not go with --{name}".replace("_", "-")
        ):
            check_sharing(Settings(shard=True, **{name: True}), 2)
    with pytest.raises(WrongArgument, match="2 processes can't train on cuda:1: each has"):
        check_sharing(Settings(device="cuda:1"), 2)
