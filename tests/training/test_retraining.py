"""The whole flow, on a small network: what a run leaves, and how it goes on."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import (
    CheckpointProblem,
    FileMissing,
    OutOfMemory,
    TrainingDiverged,
    WrongArgument,
)
from torchkeep.training.checkup import check_up, try_rates
from torchkeep.training.classifier import load_classifier
from torchkeep.training.diagnosis import Finding
from torchkeep.training.evaluation import answers, evaluate
from torchkeep.training.preparing import loaders, prepare
from torchkeep.training.records.findings import add_findings, read_findings
from torchkeep.training.retraining import Event, Result, retrain
from torchkeep.training.settings import Settings
from torchkeep.wording import printable
from training.samples import CLASSES, DATA, NET, Net

USUAL: dict[str, Any] = {
    "arch": NET,
    "weights": "none",
    "epochs": 4,
    "batch_size": 8,
    "lr": 0.02,
    "size": 12,
    "deterministic": torch.cuda.is_available(),
}


def settings(**options: Any) -> Settings:
    return Settings(**USUAL | options)


class Stop(Exception):
    """Ends a run in its midst."""


def run(folder: Path, stop_at: int | None = None, data: str = DATA, **options: Any) -> Result:
    """Train; break off after a step if that is asked for."""

    def notify(event: Event) -> None:
        if event.kind == "step" and event.step == stop_at:
            raise Stop

    return retrain(prepare(data, settings(**options)), folder, notify=notify)


def test_a_run_leaves_a_model_that_is_as_good_as_it_says(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    assert result.history[result.best_epoch]["val_accuracy"] == 1.0
    assert not result.stopped_early
    model, card = load_classifier(result.best, arch=NET)
    assert (card.classes, card.arch) == (tuple(CLASSES), NET)
    assert not model.training
    _, val = loaders(prepare(DATA, settings()))
    found = evaluate(model, val)
    row = result.history[result.best_epoch]
    assert (found.accuracy, found.loss) == (row["val_accuracy"], pytest.approx(row["val_loss"]))
    said = answers(model, val)
    assert torch.equal(said.predicted, result.answers.predicted)
    assert said.confusion(3) == [[8, 0, 0], [0, 8, 0], [0, 0, 8]]


def test_a_run_leaves_its_history_and_settings_for_other_programs(tmp_path: Path) -> None:
    result = run(tmp_path)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    exact = [
        {k: float(v) for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in rows
    ]
    assert exact == list(result.history)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [{k: float(v) for k, v in row.items()} for row in rows]
    assert json.loads((tmp_path / "settings.json").read_text())["lr"] == 0.02


def test_it_tells_how_long_each_epoch_took_and_how_fast_it_was(tmp_path: Path) -> None:
    told: list[Event] = []
    options = settings(every_steps=1)

    def notify(event: Event) -> None:
        told.append(event)
        if event.kind == "step" and event.step == 9:  # the third batch of the second epoch
            raise Stop

    with pytest.raises(Stop):
        retrain(prepare(DATA, options), tmp_path, notify=notify)
    first = json.loads((tmp_path / "time.json").read_text())
    (row,) = first["epochs"].values()
    assert row["images_per_second"] * row["seconds"] == pytest.approx(48)
    assert told[7].values.items() >= row.items()
    assert first["seconds"] > row["seconds"] > 0
    result = retrain(prepare(DATA, options), tmp_path)
    assert result.times[0] == row
    assert sorted(result.times) == [0, 1, 2, 3]
    # Of an epoch that was broken off, what is left: three batches and the one that was lost.
    rest = result.times[1]["images_per_second"] * result.times[1]["seconds"]
    assert rest == pytest.approx(48 - 2 * 8)
    assert result.seconds > first["seconds"] + sum(result.times[at]["seconds"] for at in (1, 2, 3))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in row} for line in lines] == list(result.times.values())
    assert "images_per_second" not in json.dumps(result.history)
    again = retrain(prepare(DATA, options), tmp_path)
    assert (again.times, again.history) == (result.times, result.history)
    (tmp_path / "time.json").write_text("[3]")
    assert retrain(prepare(DATA, options), tmp_path).times == {}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in stages": {"freeze": "all-but-head", "unfreeze": {1: "body", 2: "all"}, "lr_decay": 0.5},
    "averaged and mixed": {"ema": 0.8, "mix": "mixup", "accumulate": 4, "clip_norm": 1.0},
    "fp16": {"precision": "fp16", "schedule": "linear", "warmup_epochs": 1.5},
    "with workers": {"workers": 2, "epochs": 5},
    "of five channels": {"data": "training.samples:bands", "channels": 5},
    "of pictures": {
        "data": "training.samples:pictures",
        "augment": "randaugment",
        "mix": "cutmix",
        "workers": 2,
        "class_weights": True,
        "channels_last": True,
    },
    "in steps": {"optimizer": "nadam", "schedule": "steps", "warmup_epochs": 1, "patience": 1},
    "in 8 bits": {"qat": True, "ema": 0.8, "accumulate": 2, "precision": "fp16"},
    "in 8 bits and in stages": {"qat": True, "freeze": "all-but-head", "unfreeze": {1: "all"}},
    "weighed": {"class_weights": True, "label_smoothing": 0.1, "optimizer": "sgd"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(tmp_path: Path, kind: str) -> None:
    options = {**KINDS[kind], "every_steps": 2}
    whole = run(tmp_path / "whole", **options | {"workers": 0})
    num_steps = int(whole.history[-1]["step"])
    for stop_at in (1, num_steps // 2, num_steps // 2 + 1, num_steps):
        folder = tmp_path / str(stop_at)
        with pytest.raises(Stop):
            run(folder, stop_at, **options)
        found = run(folder, **options)
        assert found.history == whole.history
        for name in ("best.safetensors", "last.safetensors"):
            (model, card), (other, its_card) = [
                load_classifier(place / name, arch=NET) for place in (folder, tmp_path / "whole")
            ]
            assert fingerprint(model.state_dict()) == fingerprint(other.state_dict())
            assert card == its_card


@pytest.mark.parametrize("seed", [-(1 << 63), (1 << 64) - 1])
def test_any_seed_of_pytorch_is_good(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path, seed=seed, epochs=1).history


def test_what_is_frozen_stays_and_what_is_not_moves(tmp_path: Path) -> None:
    prepared = prepare(DATA, settings(freeze="all-but:body,head", epochs=1))
    model = prepared.start.model
    before = {name: fingerprint(item) for name, item in model.state_dict().items()}
    retrain(prepared, tmp_path)
    after = {name: fingerprint(item) for name, item in model.state_dict().items()}
    same = {name for name in before if before[name] == after[name]}
    assert same == {name for name in before if name.startswith("stem")}


def test_what_is_unfrozen_on_schedule_is_no_finding(tmp_path: Path) -> None:
    run(tmp_path, **KINDS["in stages"])
    assert [item.check for item in read_findings(tmp_path)] == []


def test_what_goes_wrong_is_told_once_and_stands_in_the_report(tmp_path: Path) -> None:
    told: list[Event] = []
    for _ in range(2):
        prepared = prepare(DATA, settings(lr=1e-12, optimizer="sgd", epochs=3))
        retrain(prepared, tmp_path, notify=told.append)
    found = [event.finding for event in told if event.finding is not None]
    assert len({item.text for item in found}) == len(found) > 0
    assert found == read_findings(tmp_path)
    assert found[0].text[:60] in (tmp_path / "report.html").read_text()
    (tmp_path / "findings.jsonl").write_text((tmp_path / "findings.jsonl").read_text()[:-5])
    assert read_findings(tmp_path) == found[:-1]
    assert add_findings(tmp_path, found) == found[-1:]
    assert read_findings(tmp_path) == found


def test_a_run_that_has_ended_gives_its_result_again(tmp_path: Path) -> None:
    first, again = run(tmp_path), run(tmp_path)
    assert again.history == first.history
    assert torch.equal(again.answers.loss, first.answers.loss)


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(CheckpointProblem, match=r"other settings: lr was 0.02 and is 0.5\. Choose"):
        run(tmp_path, epochs=1, lr=0.5)
    assert run(tmp_path, epochs=1, channels_last=True).history


def test_other_data_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    prepared = prepare("training.samples:renamed", settings(epochs=1))
    with pytest.raises(CheckpointProblem, match=r"source was .*; classes was \['across', 'down'"):
        retrain(prepared, tmp_path)


@pytest.mark.parametrize(("data", "channels"), [("bands", 5), ("grey", 1)])
def test_a_model_for_other_channels_is_as_good_as_it_says(
    tmp_path: Path, data: str, channels: int
) -> None:
    source = f"training.samples:{data}"
    torch.save(Net().state_dict(), tmp_path / "x.pth")
    options = {"weights": str(tmp_path / "x.pth"), "epochs": 6, "channels": channels}
    result = run(tmp_path / "run", data=source, **options)
    assert result.history[result.best_epoch]["val_accuracy"] == 1.0
    model, card = load_classifier(result.best, arch=NET)
    assert (card.input_channels, card.preprocessing.num_channels) == (channels, channels)
    _, val = loaders(prepare(source, settings(channels=channels)))
    assert evaluate(model, val).accuracy == 1.0
    assert read_findings(tmp_path / "run") == []
    again = prepare(source, settings(weights=str(result.best)))
    assert again.card.preprocessing == card.preprocessing
    assert not again.start.has_new_head
    with pytest.raises(WrongArgument, match=f"channels? need --channels {channels}"):
        run(tmp_path / "run", data=source, **options | {"channels": None})


def test_a_start_that_failed_leaves_the_folder_free(tmp_path: Path) -> None:
    prepared = prepare(DATA, settings(arch="training.samples:Hungry", check=False))
    with pytest.raises(OutOfMemory):
        retrain(prepared, tmp_path)
    assert run(tmp_path, batch_size=4, epochs=1).history


def test_it_stops_when_nothing_gets_better_and_does_not_begin_again(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=40, patience=2)
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 3 < 40
    again = run(tmp_path, epochs=40, patience=2)
    assert again.history == result.history


def test_an_average_forgets_where_a_short_training_began(tmp_path: Path) -> None:
    result = run(tmp_path / "run", ema=0.9999)
    assert result.history[-1]["val_accuracy"] == 1.0
    prepared = prepare(DATA, settings(ema=0.9999, epochs=1))
    seen: list[dict[str, torch.Tensor]] = []

    def notify(event: Event) -> None:
        if event.kind == "step":
            seen.append({k: x.clone() for k, x in prepared.start.model.state_dict().items()})

    retrain(prepared, tmp_path / "one", notify=notify)
    kept, _ = load_classifier(tmp_path / "one" / "last.safetensors", arch=NET)
    for name, found in kept.state_dict().items():
        expected = seen[0][name]
        for count, state in enumerate(seen[1:], 1):
            decay = min(0.9999, (1 + count) / (10 + count))
            is_count = name.endswith("num_batches_tracked")
            now = state[name]
            expected = now if is_count else torch.lerp(expected, now, 1 - decay)
        assert torch.allclose(found, expected), name


def test_a_run_that_is_gone_on_with_is_not_taken_for_one_that_learns_nothing(
    tmp_path: Path,
) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stop_at=20, every_steps=4, epochs=8)
    run(tmp_path, epochs=8)
    assert read_findings(tmp_path) == []


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"loss is (nan|inf)"):
        run(tmp_path, optimizer="sgd", lr=1e30, every_steps=1)
    assert list(tmp_path.glob("step-*"))


def test_a_run_that_begins_anew_has_nothing_of_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"with a lower learning rate \(--find-lr suggests"):
        run(tmp_path, optimizer="sgd", lr=1e30)
    before = Finding("loss-values", "error", "the loss of step 2 is nan", "")
    assert add_findings(tmp_path, [before]) == [before]
    run(tmp_path, epochs=1)
    assert before not in read_findings(tmp_path)


def test_too_little_memory_is_told_with_what_to_do(tmp_path: Path) -> None:
    for check in (False, True):
        prepared = prepare(DATA, settings(arch="training.samples:Hungry", check=check))
        with pytest.raises(OutOfMemory, match=r"for batches of 8\. Make them smaller"):
            retrain(prepared, tmp_path / str(check))


def test_a_network_with_auxiliary_outputs_is_retrained(tmp_path: Path) -> None:
    helped = "training.samples:Helped"
    result = run(tmp_path, arch=helped)
    assert read_findings(tmp_path) == []
    model, _ = load_classifier(result.best, arch=helped)
    assert model.aux.out_features == 3
    assert result.history[-1]["val_accuracy"] == 1.0


def test_a_label_of_no_class_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    prepared = prepare("training.samples:mislabelled", settings())
    (found,) = [item for item in check_up(prepared) if item.severity == "error"]
    assert found.check == "labels-range"
    for train in (lambda: retrain(prepared, tmp_path), lambda: try_rates(prepared)):
        with pytest.raises(
            WrongArgument, match="sample 3 has the label 3, and there are 3 classes"
        ):
            train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_goes_in_the_midst_of_a_run_is_named_and_the_run_goes_on(
    tmp_path: Path, workers: int
) -> None:
    for number in range(20):
        folder = tmp_path / "photos" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), 12 * number).save(folder / f"{number}.png")
    lost = next(tmp_path.glob("photos/1/*.png"))
    told = f"{printable(str(lost))}: the image has gone since the folder was looked through. Put it"

    def train(where: str, *, losing: bool) -> Result:
        def notify(event: Event) -> None:
            if losing and event.kind == "step" and event.step == 4:
                lost.rename(tmp_path / "aside")

        options = {"workers": workers, "every_steps": 1, "batch_size": 4, "check": False}
        prepared = prepare(tmp_path / "photos", settings(**options))
        return retrain(prepared, tmp_path / where, notify=notify)

    whole = train("whole", losing=False)
    with pytest.raises(FileMissing, match=re.escape(told)) as caught:
        train("run", losing=True)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(CheckpointProblem, match=r"num_\w+ was .*; files_and_labels was"):
        train("run", losing=False)
    (tmp_path / "aside").rename(lost)
    assert train("run", losing=False).history == whole.history
