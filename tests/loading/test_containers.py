"""Every container that holds a state dict fills a model: the suite of the readers, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import torchkeep
from formats import samples, samples_archives, samples_folders, samples_foreign, samples_programs
from torchkeep.contents import TensorEntry
from torchkeep.formats.containers import CONTAINERS
from torchkeep.loading import load_into
from torchkeep.tensors import TensorReader, same_bits, torch_dtype

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested"),
]
SAMPLES = [
    *samples.SAMPLES,
    *samples_archives.SAMPLES,
    *samples_foreign.SAMPLES,
    *samples_programs.SAMPLES,
    *samples_folders.FOLDER_SAMPLES,
]
LOADED: set[str] = set()


def model_for(entries: Mapping[str, TensorEntry]) -> torch.nn.Module:
    """Return a model with a buffer of other values for each key."""
    model = torch.nn.Module()
    for key, entry in entries.items():
        owner, *names = model, *key.split(".")
        for name in names[:-1]:
            if name not in owner._modules:
                owner.add_module(name, torch.nn.Module())
            owner = owner.get_submodule(name)
        owner.register_buffer(names[-1], torch.zeros(entry.shape, dtype=torch_dtype(entry.dtype)))
    return model


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_every_state_dict_of_every_container_fills_a_model(sample, tmp_path: Path) -> None:
    path = tmp_path / "sample"
    written = sample.write(path)
    path = written if isinstance(written, Path) else path
    inspection = torchkeep.inspect(path)
    if inspection.contents.problem is not None:
        return
    for found in inspection.state_dicts:
        plain = {
            key: entry
            for key, entry in found.entries.items()
            if entry.layout == "strided" and not entry.quantizer and is_a_name(key)
        }
        rest = dict.fromkeys(found.entries.keys() - plain.keys(), "skip")
        for assign in (False, True) if plain else ():
            model = model_for(plain)
            select = found.name or "auto"
            report = load_into(model, path, select=select, adapt=rest, assign=assign)
            check(model, plain, path)
            assert report.digests.keys() == plain.keys()
            LOADED.add(sample.container)


def check(model: torch.nn.Module, entries: Mapping[str, TensorEntry], path: Path) -> None:
    state = model.state_dict()
    with TensorReader(path) as reader:
        assert all(same_bits(state[key], reader.read(entry)) for key, entry in entries.items())


def is_a_name(key: str) -> bool:
    return all(part and not hasattr(torch.nn.Module(), part) for part in key.split("."))


def test_every_container_of_weights_was_among_them() -> None:
    if not LOADED:
        pytest.skip("runs after the test above")
    # Samples without a state dict; what is described only; and what is no model.
    others = "pickle gguf onnx hdf5 executorch paddle lua-torch7 git-lfs-pointer text"
    assert CONTAINERS.keys() - {*others.split(), "unknown"} == LOADED
