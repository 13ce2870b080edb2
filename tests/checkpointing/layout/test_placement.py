"""Copies of a state lie in memory as its files will have them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchkeep.checkpointing import capture
from torchkeep.checkpointing.background.arena import Arena
from torchkeep.checkpointing.background.cuda import CudaCopies
from torchkeep.checkpointing.background.snapshot import Snapshot
from torchkeep.checkpointing.layout import UNPLACED, placement_for, read_state, write_part
from torchkeep.checkpointing.layout.placement import by_file, laid_out, placement_of
from torchkeep.checkpointing.state.encoding import encode, fingerprint
from torchkeep.checkpointing.state.sharded import Part
from torchkeep.files import BLOCK_NBYTES, direct
from torchkeep.tensors import first_names
from torchkeep.writing.safetensors import _memory_of

FACTS = {
    "serial": 1,
    "step": 1,
    "epoch": 0,
    "batch": 1,
    "metrics": {},
    "date": "2026-11-23T00:00:00+00:00",
    "inexact": [],
}
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8)


def copied(tensors, structure, path):
    """Return the copies of a state that a checkpoint at `path` is written from."""
    names = first_names(tensors)
    image = placement_for(path, Part(tensors, structure), names)
    steady = {tensor.data_ptr() for tensor in tensors.values()}
    snapshot = Snapshot(tensors, names, steady, (), image)
    snapshot.begin(Arena(), CudaCopies())
    snapshot.wait()
    return snapshot.tensors()


@st.composite
def modules(draw) -> nn.Module:
    """A module with parameters and buffers of any dtypes, shapes and orders, some of them tied."""
    module = nn.Module()
    made: list[torch.Tensor] = []
    for number in range(draw(st.integers(1, 8))):
        if made and draw(st.integers(0, 4)) == 0:
            tensor = draw(st.sampled_from(made))
        else:
            dtype = draw(st.sampled_from(DTYPES))
            shape = draw(st.lists(st.integers(0, 70), max_size=3))
            tensor = torch.randint(0, 2, shape).to(dtype)
            if tensor.dim() > 1 and draw(st.booleans()):
                tensor = tensor.transpose(0, 1)
            if dtype.is_floating_point:
                tensor = nn.Parameter(tensor, requires_grad=draw(st.booleans()))
            made.append(tensor)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(f"item{number}", tensor)
        else:
            module.register_buffer(f"item{number}", tensor)
    return module


@settings(max_examples=150, deadline=None)
@given(modules(), modules(), st.booleans())
def test_what_is_written_from_copies_is_the_state(tmp_path_factory, model, ema, shares):
    if shares:
        ema.shared = next(model.parameters(), None)
    tensors, structure = encode(capture({"model": model, "ema": ema}))
    path = tmp_path_factory.mktemp("c") / "step-00000001"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchkeep.checkpointing.layout.placement._SPLIT_NBYTES", 1000)
        patch.setattr("torchkeep.writing.safetensors.GROUP_NBYTES", 1000)
        patch.setattr(direct, "_LARGE_NBYTES", 4096)
        copies = copied(tensors, structure, path)
        write_part(path, Part(copies, structure), facts=FACTS, durable=False, background=True)
    state = capture({"model": model, "ema": ema})
    expected, found = encode(state)[0], encode(read_state(path))[0]
    assert fingerprint({k: v for k, v in found.items() if "rng" not in k}) == fingerprint(
        {k: v for k, v in expected.items() if "rng" not in k}
    )


def test_each_file_is_one_run_of_memory_that_begins_with_a_block(tmp_path):
    model = nn.Sequential(
        nn.Linear(90, 80), nn.BatchNorm1d(80), nn.Linear(80, 80), nn.Linear(80, 7)
    )
    model[2].weight.requires_grad_(False)
    model.tied = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 90)).sum().backward()
    optimizer.step()
    tensors, structure = encode(capture({"model": model, "optimizer": optimizer}))
    copies = copied(tensors, structure, tmp_path / "step-00000001")
    files = by_file(copies, structure)
    assert len(files) == 2
    for content in files.values():
        layout = laid_out({key: copies[name] for key, name in content.items()}, {})
        assert (layout.nbytes - layout.payload_nbytes) % BLOCK_NBYTES == 0
        places = layout._places
        assert _memory_of(places) is not None
        assert places[0].data.payload.address % BLOCK_NBYTES == 0


def test_a_tensor_in_two_files_leaves_a_gap_in_the_second():
    shared = torch.randn(3000)
    tensors = {
        "objects/model/state/state_dict/a": shared,
        "other/a": shared.view(-1),
        "other/b": torch.randn(5),
    }
    image = placement_of(Part(tensors, {}), first_names(tensors))
    assert image.starts == {"objects/model/state/state_dict/a": 0, "other/b": 12288 + 12000 % 4096}


def test_one_file_has_something_between_any_two_tensors(tmp_path):
    assert placement_for(tmp_path / "a.pth", Part({"t": torch.ones(3)}, {}), {"t": "t"}) is UNPLACED
