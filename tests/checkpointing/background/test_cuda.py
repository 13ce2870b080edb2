"""What the CPU's tests say of checkpoints, said of models on a CUDA device."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import torchkeep
from torchkeep import Checkpointer
from torchkeep.checkpointing.background import cuda as cuda_copies
from torchkeep.checkpointing.background.arena import Arena
from torchkeep.checkpointing.background.cuda import CudaCopies
from torchkeep.checkpointing.background.snapshot import Snapshot
from torchkeep.tensors import first_names, same_bits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WIDTH = 512
NUM_EPOCHS = 2
NUM_BATCHES = 7


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(WIDTH, WIDTH),
    ).cuda()


def train(folder, *, stop_after: int | None = None, **settings) -> tuple[dict, dict, list]:
    """Train with mixed precision; return the model's and the optimizer's state, and the losses."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), fused=settings.pop("fused", False))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    scaler = torch.amp.GradScaler("cuda")
    data = torch.utils.data.TensorDataset(torch.randn(NUM_BATCHES * 8, WIDTH))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    ckpt = Checkpointer(
        folder,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        every_steps=1,
        **settings,
    )
    with ckpt:
        for _ in ckpt.epochs(NUM_EPOCHS):
            for (batch,) in ckpt.batches(loader):
                noise = torch.randn(8, WIDTH, device="cuda")
                with torch.autocast("cuda"):
                    loss = (model(batch.cuda()) - noise).square().mean()
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                ckpt.step(loss=loss)
                if ckpt.num_steps == stop_after:
                    raise KeyboardInterrupt
    return model.state_dict(), optimizer.state_dict(), ckpt.history


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("form", ["folder", "pth"])
def test_a_run_that_was_broken_off_ends_where_it_would_have_ended(tmp_path, form, fused):
    expected = train(tmp_path / "whole", format=form, fused=fused)
    for stop in (1, 5, NUM_BATCHES, NUM_BATCHES + 3):
        folder = tmp_path / f"{stop}"
        with pytest.raises(KeyboardInterrupt):
            train(folder, stop_after=stop, format=form, fused=fused)
        model, optimizer, history = train(folder, format=form, fused=fused)
        assert history == expected[2]
        assert all(same_bits(model[name], tensor) for name, tensor in expected[0].items())
        for number, state in expected[1]["state"].items():
            found = optimizer["state"][number]
            assert all(same_bits(found[name], tensor) for name, tensor in state.items())


def test_without_memory_for_copies_the_run_waits_and_is_as_exact(tmp_path):
    expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "small", stop_after=4, max_copy_nbytes=1000)
    model, _, history = train(tmp_path / "small", max_copy_nbytes=1000)
    assert history == expected[2]
    assert all(same_bits(model[name], tensor) for name, tensor in expected[0].items())


def test_memory_that_can_not_be_pinned_is_used_as_it_is(tmp_path, monkeypatch):
    real = torch.empty

    def empty(*sizes, pin_memory=False, **options):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return real(*sizes, **options)

    expected = train(tmp_path / "pinned")
    monkeypatch.setattr(cuda_copies.torch, "empty", empty)
    model, _, _ = train(tmp_path / "not")
    assert all(same_bits(model[name], tensor) for name, tensor in expected[0].items())


# --- Snapshots -----------------------------------------------------------------------------------


def on_device(count: int = 6, size: int = 8 << 20) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    live = {f"{number}": torch.randn(size, device="cuda") for number in range(count)}
    live["half"] = torch.randn(size, device="cuda").half()
    live["transposed"] = torch.randn(300, 200, device="cuda").t()
    live["view"] = torch.randn(3, 1000, device="cuda")[1]
    live["byte"] = torch.arange(999, device="cuda").byte()
    live["complex"] = torch.randn(1000, dtype=torch.complex128, device="cuda")
    live["scalar"] = torch.tensor(7.0, device="cuda")
    live["empty"] = torch.empty(0, 5, device="cuda")
    return live


def addresses(named: dict[str, torch.Tensor]) -> set[int]:
    return {tensor.data_ptr() for tensor in named.values()}


def taken(live, steady, copies=None) -> Snapshot:
    snapshot = Snapshot(live, first_names(live), steady)
    snapshot.begin(Arena(), copies or CudaCopies())
    return snapshot


def test_a_snapshot_has_the_tensors_of_its_moment_though_the_host_never_waits():
    live, copies = on_device(), CudaCopies()
    live["buffer"] = torch.randn(1 << 20, device="cuda")
    for _ in range(3):
        before = {name: tensor.cpu() for name, tensor in live.items()}
        snapshot = taken(live, addresses(live) - {live["buffer"].data_ptr()}, copies)
        live["buffer"].add_(1)
        snapshot.let_go()
        for tensor in live.values():
            tensor.zero_() if tensor.dtype == torch.uint8 else tensor.mul_(2)
        snapshot.wait()
        assert snapshot.changed() == []
        made = snapshot.tensors()
        assert all(same_bits(made[name], tensor) for name, tensor in before.items())


def test_a_snapshot_taken_in_a_stream_of_the_program_waits_for_that():
    live = on_device()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        for name in "012345":
            live[name].fill_(3)
        snapshot = taken(live, addresses(live))
        snapshot.let_go()
        for name in "012345":
            live[name].fill_(4)
    snapshot.wait()
    assert snapshot.changed() == []
    assert all((snapshot.tensors()[name] == 3).all() for name in "012345")


@pytest.mark.parametrize("name", ["0", "5", "half", "transposed", "view", "byte"])
def test_a_change_that_pytorch_does_not_count_is_noticed(name):
    live = on_device()
    live[name].data.add_(1)  # to load a kernel for the first time waits for the device
    taken(live, addresses(live)).wait()
    snapshot = Snapshot(live, first_names(live), addresses(live))
    copies = CudaCopies()
    # What the copies wait for keeps them from being made before the change.
    real = copies._places

    def places(tensors):
        for stream in copies._streams.values():
            with torch.cuda.stream(stream):
                torch.cuda._sleep(1_000_000_000)
        return real(tensors)

    copies._streams[live[name].device] = torch.cuda.Stream()
    copies._places = places
    snapshot.begin(Arena(), copies)
    live[name].data.add_(1)
    snapshot.let_go()
    snapshot.wait()
    assert name in snapshot.changed()


def test_a_step_that_a_graph_replays_is_noticed(tmp_path):
    """A replay calls no hook and counts no change: the state would be of two moments."""
    model = nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(24)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    batch = torch.randn(4, 2048, device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=False)
        model(batch).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with (
        Checkpointer(tmp_path, model=model, optimizer=optimizer, every_epochs=None) as ckpt,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        for _ in range(5):
            graph.replay()
            ckpt.save(wait=False)
            graph.replay()
            before = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
            ckpt.wait()
        assert any("changed between two steps" in str(item.message) for item in told)
        path = ckpt.save(wait=False)  # copied at once from now on: exact again
        graph.replay()
        ckpt.wait()
    saved = torchkeep.load(path / "model.safetensors")
    assert all(same_bits(saved[name], tensor) for name, tensor in before.items())
