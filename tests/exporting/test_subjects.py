"""What is exported: a live module, a file, a run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from exporting.samples import Net, classifier, images, inputs, net
from torchkeep.errors import (
    FileMissing,
    SaveRefused,
    WrongArgument,
)
from torchkeep.exporting import (
    export,
    open_subject,
    taking_pixels,
)
from torchkeep.networks import build
from torchkeep.saving import save


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="a OrderedDict is no network"):
        export(net().state_dict(), tmp_path / "net.onnx", example=inputs())


def test_a_file_is_of_its_run_only_where_the_run_is(tmp_path: Path) -> None:
    assert open_subject(classifier(tmp_path)).run is None


def test_weights_are_exported_with_the_name_of_their_network(tmp_path: Path) -> None:

    torch.manual_seed(0)
    save(build("timm/test_resnet", num_classes=7), tmp_path / "weights.pth")
    subject = open_subject(tmp_path / "weights.pth", arch="timm/test_resnet", num_classes=7)
    assert subject.preprocessing is not None
    assert not subject.is_recipe_told
    report = export(subject, tmp_path / "net.ts")
    assert not report.is_real
    assert report.example == "16 images of random numbers, in place of real ones"


def test_a_whole_model_needs_no_name(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    torch.save(model, tmp_path / "whole.pth")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((9, 4), np.float32))
    report = export(tmp_path / "whole.pth", tmp_path / "net.ts", example=tmp_path / "rows.npy")
    assert report.is_real
    assert report.example == "rows.npy, 9 rows"


def test_a_whole_model_that_is_recognised_needs_no_example(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save(network, tmp_path / "whole.pth")
    subject = open_subject(tmp_path / "whole.pth")
    assert (subject.arch, subject.is_recipe_told) == ("torchvision/squeezenet1_1", False)
    assert subject.preprocessing is not None
    # Nothing of what is around it is known.
    torch.save(torch.nn.Sequential(network), tmp_path / "within.pth")
    assert open_subject(tmp_path / "within.pth").preprocessing is None


def test_a_whole_model_of_timm_gets_the_recipe_of_the_one_that_it_says_it_is(
    tmp_path: Path,
) -> None:
    timm = pytest.importorskip("timm")
    # Weights alone are taken for those of efficientnet_lite0, whose images have other values.
    torch.save(timm.create_model("tf_efficientnet_lite0", num_classes=3), tmp_path / "whole.pth")
    subject = open_subject(tmp_path / "whole.pth")
    assert subject.arch == "timm/tf_efficientnet_lite0"
    assert subject.preprocessing is not None
    assert subject.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_wrapped_model_on_any_device_is_exported_as_what_is_within(tmp_path: Path) -> None:
    wrapped = torch.nn.DataParallel(net())
    assert isinstance(open_subject(wrapped).model, Net)
    compiled = torch.compile(net())
    assert isinstance(open_subject(compiled).model, Net)


def test_pixels_go_in_where_they_are_asked_for(tmp_path: Path) -> None:
    subject = taking_pixels(open_subject(classifier(tmp_path)))
    report = export(subject, tmp_path / "net.onnx", data=images(tmp_path / "data"))
    ((_, dtype, shape),) = report.inputs
    assert dtype == "uint8"
    assert shape == ("batch", 3, 24, 24)
    assert report.images_prepared == 3


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("suffix", ["onnx", "pt2", "ts"])
def test_a_file_whose_name_is_no_unicode_is_a_source(suffix: str, tmp_path: Path) -> None:
    named = tmp_path / os.fsdecode(b"b\xff.safetensors")
    classifier(tmp_path).rename(named)
    assert export(named, tmp_path / f"net.{suffix}").source == named.name


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SaveRefused, match="its folder can't be written to"):
        export(net(), tmp_path / "none" / "net.onnx", example=inputs())
    with pytest.raises(FileMissing, match=r"there is no best\.safetensors and no last"):
        export(tmp_path, tmp_path / "net.onnx")
