"""torchkeep.diff: what is compared with what, how it was established, and what is left aside."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import torchkeep
from formats import samples, samples_archives, samples_folders
from formats.samples import Sample
from torchkeep.comparing import Difference, Form, PartDifference, TensorDifference, diff
from torchkeep.errors import DamagedFile, FileMissing, LoadMismatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested"),
]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def checkpoint(model: nn.Module, *, epoch: int = 3, lr: float = 0.1, **more: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
    return tree | more


def only(found: Difference) -> PartDifference:
    (part,) = found.parts
    return part


def kinds(part: PartDifference) -> dict[str, str]:
    return {item.name: item.kind for item in part.tensors if item.kind != "equal"}


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


# --- Any two files -----------------------------------------------------------------------------

SAMPLES = [*samples.SAMPLES, *samples_archives.SAMPLES, *samples_folders.FOLDER_SAMPLES]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_every_sample_is_equal_to_itself(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "sample"
    sample.write(path)
    for verify in (False, True):
        found = diff(path, path, verify=verify)
        assert found.equal, found
        assert found.parts
        assert (found.left_out_a, found.left_out_b) == ((), ())
    if any(item.how == "bytes" for part in found.parts for item in part.tensors):
        assert {item.how for part in found.parts for item in part.tensors} <= {"bytes", ""}


def test_one_model_in_every_container_is_equal(tmp_path: Path) -> None:
    model = network()
    state = model.state_dict()
    torch.save({"state_dict": nn.DataParallel(model).state_dict()}, tmp_path / "wrapped.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(model, tmp_path / "whole.pth")
    save_file(state, tmp_path / "plain.safetensors")
    torchkeep.save(model, tmp_path / "ours.safetensors")
    (tmp_path / "arrays.pkl").write_bytes(
        pickle.dumps({key: value.numpy() for key, value in state.items()})
    )
    for path in tmp_path.iterdir():
        found = diff(path, tmp_path / "plain.safetensors")
        assert str(found) == "equal: 9 tensors"
        assert only(found).stripped_a == (("module",) if path.stem == "wrapped" else ())


def test_the_files_are_named_and_counted(tmp_path: Path) -> None:
    a, b = saved([torch.ones(2), 1], tmp_path / "a"), saved([torch.ones(2), 2], tmp_path / "b")
    found = diff(a, b)
    assert (found.a, found.b, found.equal, found.has_numbers) == (a, b, False, True)
    assert str(found) == "different: 1 of 1 value"
    assert str(diff(a, a)) == "equal: 1 tensor and 1 value"


# --- Tensors -----------------------------------------------------------------------------------


def test_every_relation_of_two_tensors_is_told(tmp_path: Path) -> None:
    one, two = {}, {}
    for name, a, b in (
        ("same.weight", torch.ones(3), torch.ones(3)),
        ("changed.weight", torch.ones(3), torch.tensor([1.0, 1, 3])),
        ("zero.weight", torch.tensor([0.0, math.nan]), torch.tensor([-0.0, -math.nan])),
        ("shape.weight", torch.ones(3), torch.ones(3, 1)),
        ("dtype.weight", torch.ones(3), torch.ones(3).half()),
        ("integer.weight", torch.ones(3, dtype=torch.int32), torch.ones(3)),
    ):
        one[name], two[name] = a, b
    one["a.weight"], two["b.weight"] = torch.ones(1), torch.ones(2)
    found = diff(saved(one, tmp_path / "a"), saved(two, tmp_path / "b"))
    part = only(found)
    assert kinds(part) == {
        "changed.weight": "changed",
        "zero.weight": "bits",
        "shape.weight": "shape",
        "dtype.weight": "dtype",
        "integer.weight": "dtype",
        "a.weight": "only_a",
        "b.weight": "only_b",
    }
    by_name = {item.name: item for item in part.tensors}
    assert by_name["same.weight"] == TensorDifference(
        "same.weight", "equal", Form("float32", (3,)), Form("float32", (3,)), "bytes"
    )
    assert by_name["changed.weight"].change.norm == 2
    assert by_name["zero.weight"].change.num_changed == 0
    assert by_name["dtype.weight"].change.num_changed == 0
    assert by_name["b.weight"].b == Form("float32", (2,))
    assert by_name["shape.weight"].change is None
    assert str(found) == (
        "different: 1 changed, 1 of another shape, 2 of another dtype, 1 with other bits and "
        "equal values, 1 only in A, 1 only in B of 8 tensors"
    )


def test_a_view_and_its_copy_are_equal(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    views = {"t.weight": base.t(), "s.weight": base[1:, ::2], "e.weight": base[:, :1].expand(4, 9)}
    copies = {name: view.contiguous() for name, view in views.items()}
    assert diff(saved(views, tmp_path / "a"), saved(copies, tmp_path / "b")).equal
    copies["s.weight"][2, 1] += 1
    found = only(diff(tmp_path / "a", saved(copies, tmp_path / "b")))
    assert kinds(found) == {"s.weight": "changed"}


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    state = network().state_dict()
    a = saved(state, tmp_path / "a")
    for name, tensor in state.items():
        other = {key: value.clone() for key, value in state.items()}
        other[name].view(-1).view(torch.uint8)[-1] ^= 1
        assert kinds(only(diff(a, saved(other, tmp_path / "b")))) == {name: "changed"}, tensor


@pytest.mark.parametrize("place", [0, -1])
def test_large_tensors_are_compared_from_start_to_end(place: int, tmp_path: Path) -> None:
    large = torch.zeros(3_000_000)
    a = saved({"w.weight": large}, tmp_path / "a")
    large[place] = 2
    done: list[tuple[int, int]] = []
    found = only(
        diff(a, saved({"w.weight": large}, tmp_path / "b"), progress=lambda *x: done.append(x))
    )
    change = found.tensors[0].change
    assert (change.num_changed, change.num_elements, change.largest) == (1, 3_000_000, 2)
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1] == 4 * large.nbytes


def test_equal_files_are_compared_in_little_memory_and_without_torch(tmp_path: Path) -> None:
    state = {"large.weight": torch.zeros(64 << 20), "small.weight": torch.ones(5)}
    a, b = saved(state, tmp_path / "a.pth"), tmp_path / "b.safetensors"
    save_file(state, b)
    program = (
        "import resource, sys, torchkeep, torchkeep.comparing\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "assert torchkeep.diff(*sys.argv[1:]).equal and 'torch' not in sys.modules\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", program, a, b]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80 << 20


def test_tensors_without_values_are_equal_to_each_other_only(tmp_path: Path) -> None:
    a = saved({"w.weight": torch.empty(3, device="meta")}, tmp_path / "a")
    assert diff(a, a).equal
    b = saved({"w.weight": torch.zeros(3)}, tmp_path / "b")
    assert kinds(only(diff(a, b))) == {"w.weight": "changed"}
    assert kinds(only(diff(b, a))) == {"w.weight": "changed"}


def test_sparse_and_quantized_tensors_are_compared_by_their_parts(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    quantized = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8)
    a = saved({"s.weight": sparse, "q.weight": quantized}, tmp_path / "a")
    other = {"s.weight": (2 * torch.eye(3)).to_sparse()}
    other["q.weight"] = torch.quantize_per_tensor(torch.arange(4.0), 0.25, 1, torch.qint8)
    found = only(diff(a, saved(other, tmp_path / "b")))
    assert kinds(found) == {"s.weight.values": "changed", "q.weight.<integers>": "changed"}
    assert [(item.name, item.a, item.b) for item in found.values] == [
        ("q.weight.<quantizer>.1", 0.5, 0.25)
    ]


# --- What is compared with what ----------------------------------------------------------------


def test_a_checkpoint_is_compared_with_a_bare_state_dict(tmp_path: Path) -> None:
    model = network()
    a = saved(checkpoint(model), tmp_path / "a")
    b = saved(model.state_dict(), tmp_path / "b")
    found = diff(a, b)
    assert found.equal
    assert (only(found).name_a, only(found).name_b) == ("model", "")
    assert found.left_out_a == ("the optimizer 'optimizer'", "1 other value")
    assert found.left_out_b == ()


def test_optimizers_and_values_are_compared_where_both_have_them(tmp_path: Path) -> None:
    a = saved(checkpoint(network(), lr=0.1), tmp_path / "a")
    b = saved(checkpoint(network(), lr=0.2, epoch=4, more=math.nan), tmp_path / "b")
    found = diff(a, b)
    model, optimizer, values = found.parts
    assert [part.kind for part in found.parts] == ["state dict", "optimizer", "values"]
    assert set(kinds(model).values()) == {"changed"}
    assert optimizer.counts == {"equal": 6}
    assert [(item.name, item.a, item.b) for item in optimizer.values] == [
        ("param_groups.0.lr", 0.1, 0.2)
    ]
    assert [(item.name, item.kind, item.a) for item in values.values] == [
        ("epoch", "changed", 3),
        ("more", "only_b", None),
    ]
    assert diff(b, b).equal, "a NaN is itself"


def test_values_of_other_types_differ(tmp_path: Path) -> None:
    a = saved({"n": 1, "zero": 0.0, "t": (1,), "x": torch.tensor(1)}, tmp_path / "a")
    b = saved({"n": True, "zero": -0.0, "t": [1], "x": 1}, tmp_path / "b")
    assert [item.name for item in only(diff(a, b)).values] == ["n", "zero", "x"]


def test_other_state_dicts_are_paired_by_name(tmp_path: Path) -> None:
    model, other = network(), network(1)
    a = saved({"model": model.state_dict(), "ema": other.state_dict()}, tmp_path / "a")
    b = saved({"model": model.state_dict(), "ema": model.state_dict()}, tmp_path / "b")
    found = diff(a, b)
    assert [(part.name_a, part.equal) for part in found.parts] == [("model", True), ("ema", False)]
    bare = saved(model.state_dict(), tmp_path / "c")
    assert diff(a, bare).left_out_a == ("the state dict 'ema'",)
    assert diff(bare, a).left_out_b == ("the state dict 'ema'",)


def test_files_without_a_main_state_dict_are_paired_by_name(tmp_path: Path) -> None:
    nets = {"netG": network().state_dict(), "netD": network(1).state_dict()}
    a = saved(nets, tmp_path / "a")
    found = diff(a, saved(nets | {"netE": network(2).state_dict()}, tmp_path / "b"))
    assert [(part.name_a, part.name_b) for part in found.parts] == [("netG",) * 2, ("netD",) * 2]
    assert found.left_out_b == ("the state dict 'netE'",)
    c = saved(network().state_dict(), tmp_path / "c")
    with pytest.raises(LoadMismatch, match="the file has 2 state dicts, and none is clearly"):
        diff(a, c)
    assert diff(a, c, select="netG", select_b="auto").equal
    assert not diff(a, c, select="netD", select_b="auto").equal


def test_one_state_dict_can_be_selected_on_each_side(tmp_path: Path) -> None:
    model, other = network(), network(1)
    a = saved(checkpoint(model, ema=other.state_dict()), tmp_path / "a")
    assert only(diff(a, a, select="ema")).name_a == "ema"
    found = diff(a, a, select="model", select_b="ema")
    assert not found.equal
    assert only(found).why_b == "'ema' was asked for by name."
    with pytest.raises(LoadMismatch, match="no state dict is called select='nothing'"):
        diff(a, a, select="nothing")


def test_a_file_with_a_state_dict_is_not_compared_with_one_without(tmp_path: Path) -> None:
    a, b = saved(network().state_dict(), tmp_path / "a"), saved([1], tmp_path / "b")
    with pytest.raises(LoadMismatch, match="b: there is no state dict in this file"):
        diff(a, b)


def test_whole_models_are_compared_with_their_attributes(tmp_path: Path) -> None:
    a = saved(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), tmp_path / "a")
    model = torch.load(a, weights_only=False)
    model[1].p = 0.1
    found = diff(a, saved(model, tmp_path / "b"))
    state, module = found.parts
    assert state.equal
    assert [(item.name, item.a, item.b) for item in module.values] == [("_modules.1.p", 0.5, 0.1)]
    c = saved(model.state_dict(), tmp_path / "c")
    assert diff(a, c).equal
    assert diff(a, c).left_out_a == ("the module at the root",)


def test_plain_values_in_a_state_dict_belong_to_it(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2), "a._extra_state": {"scale": 1}}
    a = saved(state, tmp_path / "a")
    b = saved(state | {"a._extra_state": {"scale": 2}}, tmp_path / "b")
    assert [item.name for item in only(diff(a, b)).values] == ["a._extra_state.scale"]


def test_tied_names_that_one_file_leaves_out_are_compared(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    whole = saved(model.state_dict(), tmp_path / "whole.pth")
    save_model(model, str(tmp_path / "theirs.safetensors"))
    torchkeep.save(model, tmp_path / "ours.safetensors")
    for name in ("theirs.safetensors", "ours.safetensors"):
        assert str(diff(whole, tmp_path / name)) == "equal: 4 tensors"
        assert str(diff(tmp_path / name, whole)) == "equal: 4 tensors"
    untied = {key: value.clone() for key, value in model.state_dict().items()}
    untied["b.weight"] += 1
    found = only(diff(tmp_path / "ours.safetensors", saved(untied, tmp_path / "untied.pth")))
    assert kinds(found) == {"b.weight": "changed"}


def test_metadata_counts_and_the_facts_of_a_save_do_not(tmp_path: Path) -> None:
    for name, metadata in (
        ("a.safetensors", {"version": "1.0", "classes": ["x", "y"], "date": "2001-01-01"}),
        ("b.safetensors", {"version": "1.0", "classes": ["x", "y"]}),
        ("a.pth", {"version": "1.0", "classes": ["x", "y"]}),
        ("c.pth", {"version": "1.1", "classes": ["x", "y"]}),
    ):
        torchkeep.save(network().state_dict(), tmp_path / name, metadata=metadata)
    assert diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").equal
    assert diff(tmp_path / "a.safetensors", tmp_path / "a.pth").equal
    found = diff(tmp_path / "a.safetensors", tmp_path / "c.pth")
    assert [(item.name, item.a, item.b) for part in found.parts for item in part.values] == [
        ("metadata.version", "1.0", "1.1")
    ]


def test_values_and_the_metadata_that_took_their_place_are_compared(tmp_path: Path) -> None:
    model = network()
    tree = {"model": model.state_dict(), "epoch": 3, "note": "3", "classes": ["x", "y"]}
    a, b = saved(tree, tmp_path / "a.pth"), tmp_path / "b.safetensors"
    torchkeep.convert(a, b)
    assert str(diff(a, b)) == str(diff(b, a)) == "equal: 9 tensors and 4 values"
    other = saved(tree | {"classes": ["x", "z"]}, tmp_path / "c.pth")
    found = diff(b, other).parts[1]
    assert [(item.name, item.a, item.b) for item in found.values] == [("classes.1", "y", "z")]


def test_checkpoints_of_a_run_are_compared_in_all_their_parts(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    run = torchkeep.Checkpointer(tmp_path / "run", model=model, optimizer=optimizer)
    first = run.save()
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    for _ in run.epochs(1):
        run.step()
    second = run.save()
    assert diff(first, first).equal
    found = diff(first, second)
    assert [part.kind for part in found.parts] == ["state dict", "optimizer", "values"]
    assert not found.parts[0].equal
    names = {item.name for item in found.parts[2].values}
    assert {"step", "epoch"} <= names
    assert not {name for name in names if name.startswith(("date", "versions"))}
    assert diff(second, saved(model.state_dict(), tmp_path / "bare.pth")).equal


def test_a_checkpoint_and_what_it_was_converted_to_are_equal(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with torchkeep.Checkpointer(tmp_path / "run", model=model, optimizer=optimizer) as run:
        folder = run.save()
    torchkeep.convert(folder, tmp_path / "converted.pth")
    assert diff(folder, tmp_path / "converted.pth").equal
    assert diff(tmp_path / "converted.pth", folder).equal


# --- How it is established ---------------------------------------------------------------------


def flip(path: Path, name: str) -> None:
    """Change a bit of a tensor in its file."""
    entry = next(i.entry for i in torchkeep.inspect(path).tensors() if i.path == name)
    data = bytearray(path.read_bytes())
    data[entry.storage.offset or 0] ^= 1
    path.write_bytes(data)


def test_equal_digests_need_no_reading_unless_it_is_asked_for(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.pth"
    torchkeep.save(network(), a)
    torchkeep.save(network(), b)
    calls: list[object] = []
    found = diff(a, b, progress=lambda *done: calls.append(done))
    assert {item.how for item in only(found).tensors} == {"digests"}
    assert calls == []
    flip(b, "2.weight")
    assert diff(a, b).equal, "it believes the digests"
    assert {item.how for item in only(diff(a, a, verify=True)).tensors} == {"bytes"}
    text = r"b.pth: tensor '2.weight' differs from what was saved: its digest is another one. Copy"
    with pytest.raises(DamagedFile, match=text):
        diff(a, b, verify=True)


def test_other_digests_are_no_proof_of_other_values(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torchkeep.save({"w.weight": torch.tensor([0.0])}, a)
    torchkeep.save({"w.weight": torch.tensor([-0.0])}, b)
    (item,) = only(diff(a, b)).tensors
    assert (item.kind, item.how) == ("bits", "bytes")


def test_a_damaged_tensor_is_named_when_it_is_read(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", saved(network().state_dict(), tmp_path / "b")
    torchkeep.save(network(), a)
    flip(a, "0.bias")
    with pytest.raises(DamagedFile, match=r"tensor '0\.bias' differs from what was saved"):
        diff(a, b)


def test_a_missing_file_and_a_missing_shard_are_errors(tmp_path: Path) -> None:
    a = saved(network().state_dict(), tmp_path / "a")
    with pytest.raises(FileMissing, match="nowhere: there is no such file"):
        diff(a, tmp_path / "nowhere")
    samples_folders.write_shards(tmp_path / "shards")
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    with pytest.raises(DamagedFile, match=r"\.safetensors"):
        diff(a, tmp_path / "shards")


def test_nothing_of_the_files_is_changed_or_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    a = saved(checkpoint(network(), bomb=Bomb()), tmp_path / "a")
    before = copy.copy(a.read_bytes())
    assert diff(a, a).equal
    assert a.read_bytes() == before
    assert not (tmp_path / "ran").exists()


def test_json_has_every_difference_and_counts_what_is_equal(tmp_path: Path) -> None:
    a = saved({"m.weight": torch.ones(2), "n.weight": torch.zeros(2)}, tmp_path / "a")
    b = saved({"m.weight": torch.ones(2), "n.weight": torch.ones(2)}, tmp_path / "b")
    form = diff(a, b).to_json()
    (part,) = form["parts"]
    assert (form["schema"], form["equal"], part["counts"]) == (1, False, {"equal": 1, "changed": 1})
    assert part["tensors"] == [
        {
            "name": "n.weight",
            "kind": "changed",
            "a": {"dtype": "float32", "shape": [2]},
            "b": {"dtype": "float32", "shape": [2]},
            "how": "bytes",
            "change": {
                "norm": pytest.approx(math.sqrt(2)),
                "relative": "inf",
                "largest": 1,
                "num_changed": 2,
                "num_elements": 2,
                "num_nan": [0, 0],
                "num_inf": [0, 0],
            },
        }
    ]
    names = [item["name"] for item in diff(a, b).to_json(equal=True)["parts"][0]["tensors"]]
    assert names == ["m.weight", "n.weight"]


def test_a_file_that_is_written_to_while_it_is_compared_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1 << 20)}, tmp_path / f"{name}.safetensors")

    def spoil(done: int, total: int) -> None:
        with (tmp_path / "b.safetensors").open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"\1" * 8)

    with pytest.raises(DamagedFile, match=r"b\.safetensors: the file was changed or replaced"):
        diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", progress=spoil)


# --- Whole models ------------------------------------------------------------------------------


def activated(activation: nn.Module) -> nn.Module:
    model = network()
    model.append(activation)
    model.register_buffer("scale", torch.ones(3), persistent=False)
    return model


def test_a_whole_model_and_its_pickle_are_equal(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("ours.safetensors", "ours.pth", "pickled.pt")]
    torchkeep.save(activated(nn.ReLU()), paths[0], whole=True)
    torchkeep.save(activated(nn.ReLU()), paths[1], whole=True)
    torch.save(activated(nn.ReLU()), paths[2])
    for a in paths:
        for b in paths:
            found = diff(a, b)
            assert found.equal, str(found)
            assert [part.kind for part in found.parts] == ["state dict", "module"]


@pytest.mark.parametrize("name", ["whole.safetensors", "whole.pth"])
def test_whole_models_of_equal_weights_and_other_modules_differ(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other = activated(nn.GELU())
    other.scale.add_(1)
    torchkeep.save(activated(nn.ReLU()), tmp_path / "a" / name, whole=True)
    torchkeep.save(other, tmp_path / "b" / name, whole=True)
    weights, modules = diff(tmp_path / "a" / name, tmp_path / "b" / name).parts
    assert weights.equal
    assert [it.name for it in modules.tensors if it.kind != "equal"] == ["_buffers.scale"]
    assert "_modules.3.<class>" in [it.name for it in modules.values if it.kind != "equal"]
