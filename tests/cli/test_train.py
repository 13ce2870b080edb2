"""`torchkeep train`, `evaluate` and `predict`: from images to a model that works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from torchkeep.cli import main
from torchkeep.training.settings import Settings
from training.samples import CLASSES, NET, Net, write_photos

OPTIONS = ["--arch", NET, "--batch-size", "8", "--lr", "0.02", "--size", "12", "--augment", "none"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images, a folder per class, split in two."""
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    options = [*OPTIONS, "--weights", "none", "--epochs", "6"]
    assert main(["train", str(photos), "--out", str(folder), *options]) == 0
    return folder


def test_a_folder_of_images_becomes_a_model(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if path.suffix}
    assert names >= {"best.safetensors", "last.safetensors", "history.csv", "report.html"}
    rows = (trained / "history.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["val_accuracy"] > 0.9


def test_what_it_says_is_what_it_did(photos: Path, tmp_path: Path, capsys) -> None:
    options = [*OPTIONS, "--weights", "none", "--epochs", "2", "--freeze", "all-but-head"]
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *options]) == 0
    text = capsys.readouterr().out
    assert f"data      {photos}: 3 classes, 48 images to train on, 24 to validate" in text
    assert f"network   {NET} with fresh values" in text
    assert "trained   27 of 649 parameters" in text
    assert "epoch   2 of 2   loss " in text
    use = f"predict {tmp_path}/run/best.safetensors --arch {NET} IMAGE..."
    assert f"Use it: torchkeep {use}" in text
    assert f"Ship it: torchkeep export {tmp_path}/run run.onnx --data " in text


def test_what_it_says_is_next_can_be_done(
    photos: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my run").mkdir()
    monkeypatch.chdir(tmp_path / "my run")
    options = [*OPTIONS, "--weights", "none", "--epochs", "1"]
    assert main(["train", str(photos), "--out", ".", *options]) == 0
    text = capsys.readouterr().out
    words = shlex.split(next(line for line in text.splitlines() if line.startswith("Ship it: ")))
    assert main(words[3:]) == 0
    assert (tmp_path / "my run" / "my run.onnx").is_file()


def test_it_says_what_is_trained_for_8_bits(photos: Path, tmp_path: Path, capsys) -> None:
    options = [*OPTIONS, "--weights", "none", "--epochs", "1", "--qat"]
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *options]) == 0
    text = capsys.readouterr().out
    assert "8 bits    weights and inputs of 3 layers\nimages    " in text
    assert "% of the validation images in 8 bits, after epoch 1." in text
    options[1] = "training.samples:Helped"
    assert main(["train", str(photos), *options, "--show"]) == 0
    assert "8 bits    weights and inputs of 3 layers; in float: 1 Linear" in capsys.readouterr().out


def test_it_says_which_classes_the_weights_do_not_know(
    trained: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for folder in tmp_path.glob("photos/**/down"):
        folder.rename(folder.with_name("Down"))
    options = ["--weights", str(trained / "best.safetensors"), "--arch", NET, "--show"]
    assert main(["train", str(tmp_path / "photos"), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "new       1 class: Down"
    assert main(["train", str(photos), *options]) == 0
    assert "new  " not in capsys.readouterr().out


def test_what_happens_is_written_for_other_programs(photos: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--weights", "none", "--epochs", "1", "--events", str(tmp_path / "e")]
    assert main(["train", str(photos), "--out", str(tmp_path / "run"), *options]) == 0
    rows = list(map(json.loads, (tmp_path / "e").read_text().splitlines()))
    assert [row["batch"] for row in rows if row["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert {"event": "begun", "step": 0, "epoch": 0, "batch": 0} in rows
    assert rows[-1]["event"] == "epoch"
    assert rows[-1].keys() > {"loss", "val_loss", "val_accuracy", "lr", "images_per_second"}


def test_the_layers_are_shown_and_nothing_is_trained(photos: Path, tmp_path: Path, capsys) -> None:
    torch.save(Net().state_dict(), tmp_path / "theirs.pth")
    run = tmp_path / "run"
    options = [*OPTIONS, "--weights", str(tmp_path / "theirs.pth"), "--freeze", "all-but-head"]
    assert main(["train", str(photos), "--out", str(run), "--show", *options]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["head", "Linear", "27", "yes", "0.02"] in lines
    assert ["stem.0", "Conv2d", "162", "no"] in lines
    assert ["stem.1", "BatchNorm2d", "12", "no,", "statistics", "frozen"] in lines
    assert not run.exists()


def test_learning_rates_are_tried_and_nothing_is_trained(
    photos: Path, tmp_path: Path, capsys
) -> None:
    run = tmp_path / "run"
    words = ["train", str(photos), "--out", str(run), "--find-lr", *OPTIONS, "--weights", "none"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[lines.index("  learning rate    loss") + 1 : -2]]
    rates, losses = ([float(row[at]) for row in rows] for at in (0, 1))
    assert rates == sorted(rates)
    assert (rates[0], rates[-1], len(rates)) == (1e-6, 1.0, 19)
    assert min(losses) < losses[0] / 2
    longest = max(len(row[2]) for row in rows)
    for row, loss in zip(rows, losses, strict=True):
        assert len(row[2]) == pytest.approx(longest * loss / max(losses), abs=1)
    assert max(map(len, lines[6:-2])) < 80
    suggested = float(lines[-2].split()[1].strip(","))
    assert 1e-4 < suggested < 0.5
    assert lines[-1] == "given     0.02, which is of use"
    assert not run.exists()
    for rate, what in (("500", "too high: the loss is least at"), ("1e-09", "too low: below")):
        assert main([*words, "--lr", rate]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith(f"warning   a rate of {rate} is {what} ")
        assert line.endswith(f" Try {suggested:.1e}.")


def test_a_prediction_needs_the_file_alone(trained: Path, photos: Path, capsys) -> None:
    images = sorted(photos.glob("val/*/*.png"))
    model = str(trained / "best.safetensors")
    assert main(["predict", "--arch", NET, "--json", "--top", "1", model, *map(str, images)]) == 0
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [row["path"] for row in rows] == list(map(str, images))
    right = [row["classes"][0]["class"] == Path(row["path"]).parent.name for row in rows]
    assert sum(right) / len(right) > 0.9
    assert main(["predict", "--arch", NET, model, str(images[0])]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{images[0]}: ")
    assert line.count("%") == 3


def test_an_evaluation_goes_by_the_names_of_the_classes(
    trained: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    model = str(trained / "best.safetensors")
    assert main(["evaluate", "--arch", NET, "--json", model, str(photos)]) == 0
    found = json.loads(capsys.readouterr().out)
    best = max(
        json.loads(row)["val_accuracy"]
        for row in (trained / "history.jsonl").read_text().splitlines()
    )
    assert found["accuracy"] == pytest.approx(best)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "down").symlink_to(photos / "val" / "down")
    assert main(["evaluate", "--arch", NET, "--all", "--json", model, str(tmp_path / "some")]) == 0
    rows = json.loads(capsys.readouterr().out)["classes"]
    assert {row["class"]: row["num_samples"] for row in rows} == {"across": 0, "down": 8, "both": 0}
    assert main(["evaluate", "--arch", NET, model, str(photos)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith(f"{model}: ")
    assert "down" in text


def test_what_can_not_be_used_is_an_error_and_no_traceback(
    trained: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nonsense")
    model = str(trained / "best.safetensors")
    for words, text in (
        (["predict", "--arch", NET, model, str(bad)], "it can't be read as an image"),
        (["predict", str(bad), str(bad)], str(bad)),
        (["train", str(tmp_path / "nowhere"), *OPTIONS], "there is no such folder"),
        (["train", str(photos), *OPTIONS, "--weights", "none", "--epochs", "0"], "epochs is 0"),
        (
            ["evaluate", "--arch", NET, model, "digits"],
            "has images of 10 classes that are not known here",
        ),
    ):
        assert main(words) != 0
        assert text in capsys.readouterr().err


def test_grey_images_make_a_grey_network(photos: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    options = [*OPTIONS, "--weights", "none", "--epochs", "4", "--channels", "1"]
    assert main(["train", str(photos), "--out", str(run), *options]) == 0
    assert "images    12 x 12, grey, no augmentation" in capsys.readouterr().out
    model = str(run / "best.safetensors")
    assert main(["evaluate", "--arch", NET, "--json", model, str(photos)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
    image = str(next(photos.glob("val/down/*.png")))
    assert main(["predict", "--arch", NET, "--top", "1", model, image]) == 0
    assert capsys.readouterr().out.startswith(f"{image}: down")
    assert main(["train", str(photos), "--out", str(run), *options[:-1], "4"]) == 12
    assert "images have 1 channel or 3, and the network takes 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["evaluate", "m", "d", "--batch-size", "0"], "'0' is no number from 1 on"),
        (["evaluate", "m", "d", "--workers", "-1"], "'-1' is no number from 0 on"),
        (["predict", "m", "i", "--top", "0"], "'0' is no number from 1 on"),
        (["predict", "m", "i", "--top", "-1"], "'-1' is no number from 1 on"),
        (["predict", "m", "i", "--top", "x"], "'x' is no number from 1 on"),
        (["match", "m", "--num-classes", "0"], "'0' is no number from 1 on"),
    ],
)
def test_a_number_that_makes_no_sense_is_a_wrong_command_line(words, text, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert text in capsys.readouterr().err


def test_a_huge_image_is_no_warning_of_pillow_s(trained: Path, tmp_path: Path, capsys) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    model = str(trained / "best.safetensors")
    assert main(["predict", "--arch", NET, model, str(tmp_path / "x.png")]) == 5
    assert "x.png: it can't be read as an image (image file is trunc" in capsys.readouterr().err


def test_a_worker_s_error_is_told_without_its_traceback(
    trained: Path, tmp_path: Path, capsys
) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.png").write_bytes(b"nonsense")
    words = ["evaluate", "--arch", NET, "--all", "--workers", "1"]
    assert main([*words, str(trained / "best.safetensors"), str(tmp_path)]) == 5
    err = capsys.readouterr().err
    assert ".png: it can't be read as an image" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("place", ["no/such/file", "/dev/full"])
def test_events_that_can_not_be_written_are_told_with_the_file(
    photos: Path, tmp_path: Path, place: str, capsys
) -> None:
    if place == "/dev/full" and not Path(place).exists():
        pytest.skip("there is no /dev/full")
    options = [*OPTIONS, "--weights", "none", "--events", place, "--out", str(tmp_path / "run")]
    assert main(["train", str(photos), *options]) == 8
    assert f"{place}: the events can't be written there (No s" in capsys.readouterr().err


def test_a_run_is_not_put_into_its_own_data(photos: Path, capsys) -> None:
    options = [*OPTIONS, "--weights", "none"]
    assert main(["train", str(photos), "--out", str(photos / "runs"), *options]) == 12
    assert "would lie in its own data" in capsys.readouterr().err


def test_a_stage_is_an_epoch_and_what_is_freed(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "x", "--unfreeze", "body"])
    assert "'body' is no stage: write EPOCH:WHAT, as in 3:layer4" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_saves_and_the_same_command_goes_on(
    number: int, photos: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "torchkeep", "train", str(photos), "--out", str(tmp_path / "r")]
    words += [*OPTIONS, "--weights", "none", "--epochs", "300", "--workers", "2"]
    path = os.pathsep.join(map(str, (Path(__file__).parents[1], os.environ.get("PYTHONPATH", ""))))
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("epoch   3"):
            os.killpg(process.pid, number)  # the workers get it too, as from a terminal
            break
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert list((tmp_path / "r").glob("step-*"))
    resume = [sys.executable, "-m", "torchkeep", "resume", "--yes", str(tmp_path / "r")]
    for command in (words, resume):
        again = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
        )
        for line in again.stdout:
            if line.startswith(("goes on after", "epoch")):
                break
        again.kill()
        again.communicate()
        assert line.startswith("goes on after step ")


def test_going_on_inexactly_is_allowed_by_the_switch_that_is_named(
    photos: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    words = ["train", str(photos), "--out", str(tmp_path / "run"), *OPTIONS, "--weights", "none"]
    assert main([*words, "--epochs", "1"]) == 0
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    capsys.readouterr()
    assert main([*words, "--epochs", "1"]) == 10
    told = capsys.readouterr().err
    assert "the precision of float32 matmul was highest and is medium. Start it as it was" in told
    assert "or give --allow-inexact to go on all the same." in told
    assert "allow_inexact=True" not in told
    assert main([*words, "--epochs", "1", "--allow-inexact"]) == 0


def test_the_help_tells_the_defaults_of_the_settings(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.partition("examples:")[0].split())
    for item in fields(Settings):
        usual = item.default
        if isinstance(usual, bool) or usual is None or usual is MISSING:
            continue
        shown = re.escape(f"{usual:g}" if isinstance(usual, int | float) else usual)
        switch = f"--{item.name.replace('_', '-')} "
        mine = told.rpartition(switch)[2].partition(" --")[0]
        assert re.search(rf"\({shown}\)|{shown} \(default[;)]", mine) or (
            item.name == "weights" and "(default)" in mine
        ), item.name
