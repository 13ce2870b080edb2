"""torchkeep.convert: whatever can be read becomes a file of ours that holds the same, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from formats import samples, samples_archives, samples_folders, samples_programs
from formats.samples import Sample
from torchkeep.comparing import diff
from torchkeep.converting import convert
from torchkeep.errors import LoadMismatch, SaveRefused
from torchkeep.identify import inspect

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested"),
]

SAMPLES = [
    *samples.SAMPLES,
    *samples_archives.SAMPLES,
    *samples_programs.SAMPLES,
    *samples_folders.FOLDER_SAMPLES,
]
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


@every_sample
def test_every_sample_becomes_a_torch_zip_with_the_same_tensors(
    sample: Sample, tmp_path: Path
) -> None:
    source, made = tmp_path / "source", tmp_path / "made.pth"
    sample.write(source)
    report = convert(source, made, drop_objects=True)
    torch.load(made, weights_only=True)
    before = {item.path for item in inspect(source).tensors(arrays=True)}
    after = {item.path for item in inspect(made).tensors()}
    if not report.notes and not report.left_out:
        assert after == before
    print(report, report.notes, report.left_out)


@every_sample
def test_every_state_dict_becomes_safetensors(sample: Sample, tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made.safetensors"
    sample.write(source)
    try:
        report = convert(source, made)
    except (LoadMismatch, SaveRefused) as error:
        print(error)
        return
    assert diff(source, made, select=report.state_dict or "auto", select_b="auto").equal
    print(report, report.left_out)
