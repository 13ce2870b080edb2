"""What a network is called with: inputs that are given, and what is refused of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporting.samples import RECIPE, classifier, images, inputs, net
from torchkeep.errors import DamagedFile, WrongArgument
from torchkeep.exporting import Onnx, Subject, export, open_subject
from torchkeep.exporting.examples import read_examples, validation_of
from torchkeep.training.data import open_data
from torchkeep.training.data.samples import files_of


def test_without_an_example_nothing_tells_what_a_live_network_takes(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="nothing tells what a live Net is called with"):
        export(net(), tmp_path / "net.onnx")


def test_an_example_of_the_wrong_shape_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(WrongArgument, match=r"can't be run on the example, \[2, 5, 24, 24\]"):
        export(net(), tmp_path / "net.onnx", example=torch.ones(4, 5, 24, 24))
    with pytest.raises(WrongArgument, match=r"does not fit Net\.forward"):
        export(net(), tmp_path / "net.onnx", example={"y": inputs()})
    with pytest.raises(WrongArgument, match="the example's x is a str, and no tensor"):
        export(net(), tmp_path / "net.onnx", example=("images",))
    assert not [*tmp_path.iterdir()]


def _npy(array: Any) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", b"nothing"),
        ("x.npy", b""),
        ("x.npz", b"PK\x03\x04nothing"),
        ("x.npy", _npy(np.array(["a"]))),
        ("x.npy", _npy(inputs().numpy())[:-100]),
    ],
    ids=["noise", "empty", "archive", "texts", "truncated"],
)
def test_a_file_that_holds_no_arrays_is_no_example(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match="it holds no arrays of numbers"):
        export(net(), tmp_path / "net.ts", example=tmp_path / name)
    with pytest.raises(WrongArgument, match="the example's x has no rows"):
        export(net(), tmp_path / "net.ts", example=inputs()[:0])


def test_an_array_may_have_its_bytes_in_the_other_order(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(_npy(inputs().numpy().astype(">f4")))
    assert export(net(), tmp_path / "net.ts", example=tmp_path / "x.npy").is_real


class Product(torch.nn.Module):
    """Takes what has no rows, and what has as many as it likes."""

    def forward(self, factor: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return factor * (x @ weight)


@pytest.mark.parametrize("dynamic", ["none", {"x": {0: "batch"}}])
def test_inputs_need_not_have_the_same_number_of_rows(dynamic: Any, tmp_path: Path) -> None:
    example = torch.tensor(2.0), torch.randn(4, 3), torch.randn(3, 5)
    report = export(Product(), tmp_path / "net.ts", example=example, dynamic=dynamic)
    assert report.speeds[0].original.batch_size == (4 if dynamic == "none" else 1)


def test_ranges_of_eight_bits_are_not_learnt_from_random_numbers(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="int8 learns from real inputs") as caught:
        export(classifier(tmp_path), tmp_path / "net.onnx", target=Onnx(precision="int8"))
    assert "--calibrate" in caught.value.advice
    assert not (tmp_path / "net.onnx").exists()


def test_int8_is_calibrated_with_as_many_rows_as_the_file_takes(tmp_path: Path) -> None:
    target = Onnx(precision="int8")
    report = export(net(), tmp_path / "n.onnx", target=target, example=inputs(), dynamic="none")
    assert report.inputs[0][2] == (9, 3, 24, 24)


def test_an_unknown_recipe_and_images_do_not_go_together(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    subject = Subject(net(), "a net")
    with pytest.raises(WrongArgument, match="nothing tells how images are prepared for a net"):
        export(subject, tmp_path / "net.ts", example=data)
    with pytest.raises(WrongArgument, match="nothing tells how images are prepared for a net"):
        export(subject, tmp_path / "net.ts", example=inputs(), data=data)
    export(Subject(net(), "a net", preprocessing=RECIPE), tmp_path / "net.ts", example=data)


def test_all_images_of_a_folder_are_for_validation_if_that_is_said(tmp_path: Path) -> None:
    data, model = images(tmp_path / "val"), classifier(tmp_path)
    counts = []
    for at, whole in enumerate((False, True)):
        report = export(model, tmp_path / f"{at}.onnx", data=data, whole=whole)
        assert report.accuracy is not None
        counts.append(report.accuracy.num_samples)
    assert counts == [3, 15]
    int8 = Onnx(precision="int8")
    with pytest.raises(WrongArgument, match=r"val has no images to train on, and int8 learns"):
        export(model, tmp_path / "8.onnx", target=int8, data=data, whole=True)


def test_data_are_split_as_the_run_has_split_them(tmp_path: Path) -> None:
    run, data = tmp_path / "run", images(tmp_path / "data")
    run.mkdir()
    classifier(run)
    expected = open_data(data, val_share=0.4, seed=3)
    (run / "settings.json").write_text('{"val_share": 0.4, "seed": 3}')
    subject = open_subject(run)
    found = validation_of(subject, data, whole=False)
    assert _files_of(found) == _files_of(expected.val)
    assert _files_of(found) != _files_of(open_data(data, val_share=0.4).val)
    seen = read_examples(subject, data, part="train")
    assert (seen.num_rows, read_examples(subject, data).num_rows) == (9, 6)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"val_share": "all", "seed": null}'])
def test_settings_of_somebody_else_are_no_hindrance(text: str, tmp_path: Path) -> None:
    data, model = images(tmp_path / "data"), classifier(tmp_path)
    (tmp_path / "settings.json").write_text(text)
    found = validation_of(open_subject(model), data, whole=False)
    assert _files_of(found) == _files_of(open_data(data).val)


def _files_of(samples: Any) -> list[str]:
    return [str(path) for path, _ in files_of(samples)]


def test_a_folder_may_have_a_part_for_validation_alone(tmp_path: Path) -> None:
    images(tmp_path / "data" / "val")
    report = export(classifier(tmp_path), tmp_path / "net.onnx", data=tmp_path / "data")
    assert report.accuracy is not None
    assert report.accuracy.num_samples == 15
