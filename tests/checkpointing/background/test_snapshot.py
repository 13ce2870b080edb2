"""A snapshot has the tensors as they were when it was taken, whatever happens meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from torchkeep.checkpointing.background.arena import Arena
from torchkeep.checkpointing.background.cuda import CudaCopies
from torchkeep.checkpointing.background.snapshot import Snapshot
from torchkeep.checkpointing.background.stepping import hookable_optimizers, steady_addresses
from torchkeep.checkpointing.layout import placement_for
from torchkeep.checkpointing.state.sharded import Part
from torchkeep.tensors import first_names, same_bits

SIZE = 64 << 10


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(4, 8, 64, 64)
    return {
        "plain": torch.randn(SIZE),
        "half": torch.randn(SIZE).half(),
        "channels last": base.to(memory_format=torch.channels_last),
        "transposed": torch.randn(300, 200).t(),
        "view": torch.randn(3, SIZE)[1],
        "strided": torch.randn(SIZE, 2)[:, 0],
        "small": torch.randn(3),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "complex": torch.randn(SIZE, dtype=torch.complex64),
        "conjugated": torch.randn(SIZE, dtype=torch.complex64).conj(),
        "bool": torch.rand(SIZE) > 0.5,
        "large": torch.randn(5 << 20),
    }


def addresses(named: dict[str, torch.Tensor]) -> set[int]:
    return {tensor.data_ptr() for tensor in named.values()}


def taken(named, steady, at_once=()) -> Snapshot:
    snapshot = Snapshot(named, first_names(named), steady, at_once)
    snapshot.begin(Arena(), CudaCopies())
    return snapshot


def test_what_is_steady_is_copied_later_and_the_rest_at_once():
    live = tensors()
    before = {name: tensor.clone() for name, tensor in live.items()}
    snapshot = taken(live, addresses({"large": live["large"]}))
    for name, tensor in live.items():
        if name != "large":
            tensor.logical_not_() if tensor.dtype == torch.bool else tensor.add_(1)
    snapshot.let_go()
    live["large"].zero_()
    copies = snapshot.tensors()
    assert snapshot.changed() == []
    assert copies.keys() == live.keys()
    for name, tensor in before.items():
        assert same_bits(copies[name], tensor.resolve_conj()), name


def test_the_order_of_elements_in_memory_is_kept():
    live = tensors()
    copies = taken(live, addresses(live))
    copies.finish()
    for name in ("channels last", "transposed", "view"):
        assert copies.tensors()[name].stride() == live[name].stride(), name


def test_one_tensor_under_two_names_is_copied_once():
    weight = torch.randn(SIZE)
    snapshot = taken({"a": weight, "b": weight.detach()}, addresses({"a": weight}))
    snapshot.finish()
    copies = snapshot.tensors()
    assert copies["a"] is copies["b"]
    assert snapshot.nbytes < weight.numel() * 4 + 8192


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.mul_(2),
        lambda tensor: tensor.data.mul_(2),  # PyTorch does not count this one
        lambda tensor: tensor.data.copy_(torch.zeros(SIZE)),
    ],
)
def test_what_changes_before_it_is_copied_is_noticed(change):
    live = {"kept": torch.randn(SIZE), "changed": torch.randn(SIZE)}
    snapshot = taken(live, addresses(live))
    change(live["changed"])
    snapshot.let_go()
    assert snapshot.changed() == ["changed"]


def test_what_changes_after_it_was_let_go_is_not():
    live = {"weight": torch.randn(SIZE)}
    before = live["weight"].clone()
    snapshot = taken(live, addresses(live))
    snapshot.let_go()
    live["weight"].mul_(2)
    assert snapshot.changed() == []
    assert same_bits(snapshot.tensors()["weight"], before)


def test_what_was_noticed_once_can_be_copied_at_once():
    live = {"weight": torch.randn(SIZE)}
    before = live["weight"].clone()
    snapshot = taken(live, addresses(live), at_once={"weight"})
    live["weight"].mul_(2)
    snapshot.let_go()
    assert snapshot.changed() == []
    assert same_bits(snapshot.tensors()["weight"], before)


def test_two_threads_copy_together():
    live = {f"{number}": torch.randn(3 << 20) for number in range(8)}
    before = {name: tensor.clone() for name, tensor in live.items()}
    arena = Arena()
    for _ in range(5):
        snapshot = Snapshot(live, first_names(live), addresses(live))
        snapshot.begin(arena, CudaCopies())
        other = threading.Thread(target=snapshot.finish)
        other.start()
        snapshot.let_go()
        for tensor in live.values():
            tensor.add_(1)
        other.join()
        copies = snapshot.tensors()
        assert all(same_bits(copies[name], tensor) for name, tensor in before.items())
        before = {name: tensor.clone() for name, tensor in live.items()}


def test_who_is_interrupted_lets_nobody_wait(monkeypatch):
    """Ctrl-C while a piece is copied: the piece counts for nobody, and the writer is told."""
    live = {"weight": torch.randn(SIZE)}
    snapshot = taken(live, addresses(live))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("torchkeep.checkpointing.background.snapshot.ctypes.memmove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        snapshot.let_go()
    snapshot.wait()
    assert snapshot.changed() == ["weight"]


def test_who_is_interrupted_frees_a_writer_that_has_a_piece_under_way(monkeypatch):
    live = {f"{number}": torch.randn(2 << 20) for number in range(2)}  # a piece each
    snapshot = taken(live, addresses(live))
    under_way, may_end = threading.Event(), threading.Event()

    def copy(*_):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        under_way.set()
        assert may_end.wait(60)

    monkeypatch.setattr("torchkeep.checkpointing.background.snapshot.ctypes.memmove", copy)
    writer = threading.Thread(target=snapshot.wait, daemon=True)
    writer.start()
    assert under_way.wait(60)
    with pytest.raises(KeyboardInterrupt):
        snapshot.let_go()
    may_end.set()
    writer.join(60)
    assert not writer.is_alive()
    assert snapshot.changed() == ["0", "1"]


def test_memory_is_used_again():
    arena = Arena()
    first = arena.reserve(1 << 20)
    assert arena.reserve(1000).data_ptr() == first.data_ptr()
    assert arena.reserve(2 << 20).numel() >= 2 << 20
    assert first.numel() == 1 << 20  # who still has it may read it


def test_parameters_and_the_optimizers_tensors_are_steady():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    steady = steady_addresses({"model": model, "optimizer": optimizer})
    assert {parameter.data_ptr() for parameter in model.parameters()} <= steady
    assert optimizer.state[model[0].weight]["exp_avg"].data_ptr() in steady
    assert model[1].running_mean.data_ptr() not in steady
    assert steady_addresses({"model": model}) == set()  # nobody would say when a step comes


def test_a_parameter_that_changes_in_the_backward_pass_is_not():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    model.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    steady = steady_addresses({"model": model, "optimizer": optimizer})
    assert model.weight.data_ptr() not in steady
    assert model.bias.data_ptr() in steady


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another that has no hooks of its own, as accelerate's."""

    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer
        self.state = getattr(optimizer, "state", {})


def test_a_wrapper_tells_through_what_it_holds_or_not_at_all():
    model = nn.Linear(2, 2)
    inner = torch.optim.SGD(model.parameters())
    assert hookable_optimizers({"a": [Wrapper(Wrapper(inner))]}) == [inner]
    assert hookable_optimizers({"a": inner, "b": Wrapper(None)}) == []
    assert steady_addresses({"model": model, "a": Wrapper(inner)})
    assert steady_addresses({"model": model, "a": inner, "b": Wrapper(None)}) == set()


@pytest.mark.parametrize(
    "move",
    [
        lambda tensor: tensor.share_memory_(),
        lambda tensor: tensor.untyped_storage().resize_(0),
        lambda tensor: tensor.set_(torch.zeros(SIZE)),
        lambda tensor: tensor.set_(torch.zeros(3 * SIZE, 2)),
    ],
)
def test_memory_that_is_put_elsewhere_is_not_read_and_noticed(move):
    live = {"kept": torch.randn(SIZE), "moved": torch.randn(SIZE)}
    snapshot = taken(live, addresses(live))
    move(live["moved"])
    snapshot.wait()
    assert snapshot.changed() == ["moved"]


@pytest.mark.parametrize(
    "reshape",
    [
        lambda tensor: tensor.resize_(900),
        lambda tensor: tensor.t_(),
        lambda tensor: tensor.set_(torch.zeros(7, 7)),
    ],
)
def test_what_gets_another_shape_meanwhile_is_copied_as_it_was(reshape):
    live = {"a": torch.randn(4, 3), "b": torch.randn(5)}
    before = {name: tensor.clone() for name, tensor in live.items()}
    snapshot = taken(live, set())
    reshape(live["a"])
    snapshot.wait()
    assert all(same_bits(snapshot.tensors()[name], tensor) for name, tensor in before.items())


def test_what_can_not_be_placed_takes_no_room_twice(tmp_path):
    live = {f"{number}": torch.randn(300, 200).t() for number in range(9)}
    nbytes = sum(tensor.nbytes for tensor in live.values())
    names = first_names(live)
    placement = placement_for(tmp_path / "step-1", Part(live, {}), names)
    assert Snapshot(live, names, (), (), placement).nbytes < nbytes + 9 * 4096


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_cloned():
    live = {"nested": torch.nested.nested_tensor([torch.randn(2), torch.randn(3)])}
    snapshot = taken(live, set())
    snapshot.wait()
    (copy,) = snapshot.tensors().values()
    assert all(map(torch.equal, copy.unbind(), live["nested"].unbind()))
