"""torchkeep.convert: what can be read becomes a file of ours that holds the same, or nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import torchkeep
from formats import samples, samples_archives, samples_folders, samples_programs
from formats.samples import Sample
from torchkeep.comparing import diff
from torchkeep.converting import ConvertReport, conversion, convert
from torchkeep.errors import (
    DamagedFile,
    LoadMismatch,
    MissingExtra,
    ProofFailed,
    SaveRefused,
    UnsupportedContent,
    WrongArgument,
)
from torchkeep.files import TEMPORARY_MARK
from torchkeep.identify import Inspection, identify_whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:.*[Ss]parse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested"),
]

SAMPLES = [
    *samples.SAMPLES,
    *samples_archives.SAMPLES,
    *samples_programs.SAMPLES,
    *samples_folders.FOLDER_SAMPLES,
]
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
REFUSED = {
    "torch-zip jagged": (SaveRefused, "tensor 'j' is a jagged, which can't be stored as it is"),
    "torch-zip meta": (UnsupportedContent, "tensor 'm' has no values: it was saved from the meta"),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def checkpoint(model: nn.Module, **more: Any) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = nn.DataParallel(model).state_dict()
    tree = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3, "classes": ["a", "b"]}
    return tree | more


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


# --- Any source --------------------------------------------------------------------------------


@every_sample
def test_every_sample_becomes_a_torch_zip_with_the_same_tensors(
    sample: Sample, tmp_path: Path
) -> None:
    source, made = tmp_path / "source", tmp_path / "made.pth"
    sample.write(source)
    if sample.name in REFUSED:
        kind, text = REFUSED[sample.name]
        with pytest.raises(kind, match=text):
            convert(source, made)
        return
    report = convert(source, made, drop_objects=True)
    torch.load(made, weights_only=True)
    if report.notes or report.left_out:
        return
    before = torchkeep.inspect(source).tensors(arrays=True)
    assert {item.path for item in torchkeep.inspect(made).tensors()} == {i.path for i in before}
    found = diff(source, made)
    assert all(part.equal for part in found.parts if part.kind != "values"), found


@every_sample
def test_every_sample_becomes_a_distributed_checkpoint_or_is_refused_by_name(
    sample: Sample, tmp_path: Path
) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    sample.write(source)
    report, refused = None, ""
    try:
        report = convert(source, made, to="dcp", num_ranks=3, drop_objects=True)
    except (SaveRefused, UnsupportedContent) as problem:
        refused = str(problem)
    if report is None:
        assert re.search(r"tensor '|has values by name, and this is none", refused)
        assert not made.exists()
        return
    assert torchkeep.verify(made).ok
    if report.notes or report.left_out:
        return
    found = diff(source, made)
    assert all(part.equal for part in found.parts if part.kind != "values"), found


@every_sample
def test_the_main_state_dict_of_every_sample_becomes_safetensors(
    sample: Sample, tmp_path: Path
) -> None:
    source, made = tmp_path / "source", tmp_path / "made.safetensors"
    sample.write(source)
    if sample.name == "torch-zip meta":
        with pytest.raises(UnsupportedContent, match="has no values"):
            convert(source, made)
        return
    try:
        report = convert(source, made)
    except (LoadMismatch, SaveRefused):  # it has no main one, or one that safetensors lacks
        assert not made.exists()
        return
    assert diff(source, made, select=report.state_dict or "auto", select_b="auto").equal
    assert same(load_file(made), torchkeep.load(made) if not report.tied else load_file(made))


def test_every_source_can_be_sharded_and_back_again(tmp_path: Path) -> None:
    state = {f"l{n}.weight": torch.randn(100, 10) for n in range(10)}
    source = saved(state, tmp_path / "a.pth")
    (tmp_path / "out").mkdir()
    report = convert(source, tmp_path / "out" / "model.safetensors", shard_nbytes=9_000)
    assert report.path.name == "model.safetensors.index.json"
    assert [path.name for path in report.shards] == [
        f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)
    ]
    assert diff(source, tmp_path / "out").equal
    back = convert(tmp_path / "out", tmp_path / "back.pth")
    assert (back.num_tensors, back.container) == (10, "torch-zip")
    assert same(torch.load(tmp_path / "back.pth"), state)


# --- What is written ---------------------------------------------------------------------------


def test_a_checkpoint_becomes_safetensors_with_its_values_in_the_metadata(tmp_path: Path) -> None:
    model = network()
    source = saved(checkpoint(model, note="x", nan=float("nan")), tmp_path / "a.pth")
    made = tmp_path / "a.safetensors"
    report = convert(source, made, strip=True)
    assert load_file(made).keys() == model.state_dict().keys()
    assert all(torch.equal(load_file(made)[k], v) for k, v in model.state_dict().items())
    metadata = torchkeep.inspect(made).metadata
    assert (metadata["epoch"], metadata["classes"], metadata["note"]) == ("3", '["a", "b"]', "x")
    origin = json.loads(metadata["converted_from"])
    assert origin == {
        "name": "a.pth",
        "format": "torch-zip",
        "nbytes": source.stat().st_size,
    }
    assert metadata["date"].endswith("Z")
    assert report == ConvertReport(
        source=source,
        path=made,
        container="safetensors",
        nbytes=made.stat().st_size,
        num_tensors=9,
        state_dict="model",
        why="'model' is its only state dict.",
        renamed={f"module.{key}": key for key in model.state_dict()},
        in_metadata=("epoch", "classes", "note"),
        left_out=("optimizer", "nan"),
    )
    assert str(report) == f"{made}: 9 tensors, {report.nbytes / 1000:.1f} kB, each as in {source}"
    torchkeep.load_into(network(1), made)


def test_a_checkpoint_stays_one_in_a_torch_zip(tmp_path: Path) -> None:
    source = saved(checkpoint(network()), tmp_path / "a.pth")
    report = convert(source, tmp_path / "b.ckpt")
    assert (report.state_dict, report.left_out, report.notes) == (None, (), ())
    one, other = torch.load(source), torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert isinstance(other["model"], OrderedDict)
    assert other["model"]._metadata == one["model"]._metadata
    assert same(other["model"], one["model"])
    assert other["optimizer"]["param_groups"] == one["optimizer"]["param_groups"]
    assert diff(source, tmp_path / "b.ckpt").equal


def test_tied_tensors_stay_tied_and_views_stay_views(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {"a.weight": base, "b.weight": base, "c.weight": base.view(3, 4).t()}
    source = saved(state, tmp_path / "a.pth")
    report = convert(source, tmp_path / "b.safetensors")
    assert report.tied == {"b.weight": "a.weight"}
    loaded = torchkeep.load(tmp_path / "b.safetensors")
    assert loaded["b.weight"].data_ptr() == loaded["a.weight"].data_ptr()
    assert torch.equal(loaded["c.weight"], state["c.weight"])
    assert loaded["c.weight"].is_contiguous()
    convert(source, tmp_path / "b.pth")
    loaded = torch.load(tmp_path / "b.pth")
    assert len({item.untyped_storage().data_ptr() for item in loaded.values()}) == 1
    assert loaded["c.weight"].stride() == (1, 4)
    convert(tmp_path / "b.safetensors", tmp_path / "c.pth")
    loaded = torch.load(tmp_path / "c.pth")
    assert loaded["b.weight"].data_ptr() == loaded["a.weight"].data_ptr()


def test_a_whole_model_becomes_its_state_dict(tmp_path: Path) -> None:
    model = network()
    source = saved(model, tmp_path / "a.pth")
    report = convert(source, tmp_path / "b.pth")
    assert report.notes == ("'the root' is a state dict, and was a whole model.",)
    assert same(torch.load(tmp_path / "b.pth"), model.state_dict())
    within = saved({"ema": model, "epoch": 1}, tmp_path / "c.pth")
    report = convert(within, tmp_path / "d.pth")
    assert report.notes == ("'ema' is a state dict, and was a whole model.",)
    assert same(torch.load(tmp_path / "d.pth")["ema"], model.state_dict())


class Anything:
    def __init__(self) -> None:
        self.value = 1


def test_what_would_need_a_class_is_refused_by_name_or_left_out(tmp_path: Path) -> None:
    tree = {"model": network().state_dict(), "args": Anything(), "list": [1, Anything(), int]}
    source = saved(tree, tmp_path / "a.pth")
    text = (
        r"'args' would need tests\.converting\.test_convert\.Anything to be imported\. Leave out "
        r"all such values with drop_objects=True \(--drop-objects\)"
    )
    with pytest.raises(SaveRefused, match=text):
        convert(source, tmp_path / "b.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    report = convert(source, tmp_path / "b.pth", drop_objects=True)
    assert report.left_out == ("args", "list.1", "list.2")
    loaded = torch.load(tmp_path / "b.pth", weights_only=True)
    assert loaded.keys() == {"model", "list"}
    assert loaded["list"] == [1, None, None]
    convert(source, tmp_path / "c.pth", select="auto")
    assert torch.load(tmp_path / "c.pth").keys() == tree["model"].keys()
    with pytest.raises(SaveRefused, match="nothing would be left"):
        convert(saved(Anything(), tmp_path / "d.pth"), tmp_path / "e.pth", drop_objects=True)


def test_the_optimizer_can_be_left_out(tmp_path: Path) -> None:
    source = saved(checkpoint(network()), tmp_path / "a.pth")
    report = convert(source, tmp_path / "b.pth", drop_optimizer=True)
    assert report.left_out == ("optimizer",)
    assert torch.load(tmp_path / "b.pth").keys() == {"model", "epoch", "classes"}


def test_one_state_dict_can_be_selected(tmp_path: Path) -> None:
    other = network(1).state_dict()
    source = saved(checkpoint(network(), ema=other), tmp_path / "a.pth")
    for name in ("b.pth", "b.safetensors"):
        report = convert(source, tmp_path / name, select="ema")
        assert (report.state_dict, report.left_out) == ("ema", ("model", "optimizer"))
        assert torchkeep.load(tmp_path / name).keys() == other.keys()
    with pytest.raises(LoadMismatch, match="no state dict is called select='nothing'"):
        convert(source, tmp_path / "c.pth", select="nothing")


def test_what_stands_in_no_part_is_named_as_left_out(tmp_path: Path) -> None:
    tree = {"model": network().state_dict(), "mean": torch.ones(3), "pair": (torch.ones(2), 1)}
    tree |= {"raw": b"x", "args": Anything(), "set": {1}}
    source = saved(tree, tmp_path / "a.pth")
    assert convert(source, tmp_path / "b.safetensors").left_out == (
        *("mean", "pair.0", "raw", "args.<class>"),
    )


DTENSOR = """
import sys, warnings, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

warnings.simplefilter("ignore")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
tensor = distribute_tensor(torch.arange(6.0).view(2, 3), init_device_mesh("cpu", (1,)))
torch.save({"a.weight": tensor}, sys.argv[1])
dist.destroy_process_group()
"""


def test_a_tensor_in_a_wrapper_that_holds_all_of_it_is_written_bare(tmp_path: Path) -> None:
    source = tmp_path / "a.pth"
    subprocess.run([sys.executable, "-c", DTENSOR, source], check=True, capture_output=True)
    for name in ("b.pth", "b.safetensors"):
        convert(source, tmp_path / name)
        loaded = torchkeep.load(tmp_path / name)
        assert torch.equal(loaded["a.weight"], torch.arange(6.0).view(2, 3))


def test_arrays_become_tensors(tmp_path: Path) -> None:
    import pickle

    array = torch.arange(6.0).view(2, 3).numpy()
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a.weight": array, "n": 1}))
    report = convert(path, tmp_path / "b.pth")
    assert report.notes == ("'a.weight' is a tensor, and was a NumPy array.",)
    assert torch.load(tmp_path / "b.pth")["a.weight"].tolist() == array.tolist()


def test_values_of_every_plain_kind_survive_a_torch_zip(tmp_path: Path) -> None:
    values = {
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "set": {"x", "y"},
        "tuple": (1, (2,)),
        "dtype": torch.float16,
        "large": 1 << 70,
        "inf": float("-inf"),
        3: None,
        ("a", 1): True,
    }
    tree = {"model": network().state_dict(), **values}
    tree["again"] = tree["tuple"]
    convert(saved(tree, tmp_path / "a.pth"), tmp_path / "b.pth")
    loaded = torch.load(tmp_path / "b.pth", weights_only=True)
    assert {key: loaded[key] for key in values} == values


def test_collections_of_other_classes_are_kept_changed_or_refused(tmp_path: Path) -> None:
    looped: list[Any] = [1]
    looped.append(looped)
    tree = {
        "a.weight": torch.ones(1),
        "counter": Counter("aab"),
        "default": defaultdict(int, {"x": 1}),
        "array": bytearray(b"x"),
        "looped": looped,
    }
    made = tmp_path / "b.pth"
    report = convert(saved(tree, tmp_path / "a.pth"), made)
    assert report.notes == ("'default' is a dict, and was a collections.defaultdict.",)
    loaded = torch.load(made, weights_only=True)
    assert loaded["looped"][1] is loaded["looped"]
    assert [loaded[key] for key in ("counter", "default", "array")] == [
        *(Counter("aab"), {"x": 1}, bytearray(b"x")),
    ]
    frozen = {"a.weight": torch.ones(1), "frozen": frozenset("x"), frozenset("y"): 1, "n": 1}
    source = saved(frozen, tmp_path / "c.pth")
    with pytest.raises(SaveRefused, match="'frozen' would need frozenset to be imported"):
        convert(source, made, overwrite=True)
    convert(source, made, drop_objects=True, overwrite=True)
    assert torch.load(made, weights_only=True).keys() == {"a.weight", "n"}


def test_a_list_that_holds_itself_ends_a_diff_too(tmp_path: Path) -> None:
    looped: list[Any] = [1]
    looped.append(looped)
    source = saved({"a": looped}, tmp_path / "a.pth")
    convert(source, tmp_path / "b.pth")
    assert diff(source, tmp_path / "b.pth").equal


def test_what_safetensors_has_not_is_refused_by_name(tmp_path: Path) -> None:
    source = saved({"a.weight": torch.eye(2).to_sparse()}, tmp_path / "a.pth")
    text = "tensor 'a.weight' is sparse_coo, which safetensors has not. Convert to .pth"
    with pytest.raises(SaveRefused, match=text):
        convert(source, tmp_path / "b.safetensors")
    source = saved({"a.weight": torch.ones(2, dtype=torch.complex128)}, tmp_path / "a.pth")
    with pytest.raises(SaveRefused, match=r"tensor 'a\.weight' has dtype complex128, which"):
        convert(source, tmp_path / "b.safetensors")


# --- Names -------------------------------------------------------------------------------------


def test_keys_are_renamed_by_rules(tmp_path: Path) -> None:
    state = {"encoder.a.weight": torch.ones(1), "encoder.b.weight": torch.ones(2)}
    source = saved(state | {"head.bias": torch.ones(3)}, tmp_path / "a.pth")
    made = tmp_path / "b.safetensors"
    report = convert(source, made, strip="encoder", rename={"head.*": "fc.*"})
    assert sorted(load_file(made)) == ["a.weight", "b.weight", "fc.bias"]
    assert report.renamed == {
        "encoder.a.weight": "a.weight",
        "encoder.b.weight": "b.weight",
        "head.bias": "fc.bias",
    }
    with pytest.raises(WrongArgument, match=r"would both be called 'x'"):
        convert(source, made, rename={"encoder.*": "x"}, overwrite=True)
    with pytest.raises(WrongArgument, match=r"the rule 'nothing\.\*' fits no key"):
        convert(source, made, strip="nothing", overwrite=True)
    assert sorted(load_file(made)) == ["a.weight", "b.weight", "fc.bias"]


def test_in_a_tree_rules_are_for_the_main_state_dict_and_its_average(tmp_path: Path) -> None:
    state = {"m.a.weight": torch.ones(1), "m.b.bias": torch.ones(2)}
    tree = {"model": state, "ema": dict(state), "other": {"m.z.weight": torch.ones(1)}}
    source = saved(tree, tmp_path / "a.pth")
    convert(source, tmp_path / "b.pth", rename={"m.*": "*"})
    loaded = torch.load(tmp_path / "b.pth")
    assert [list(loaded[name]) for name in tree] == [
        ["a.weight", "b.bias"],
        ["a.weight", "b.bias"],
        ["m.z.weight"],
    ]


def test_stripping_takes_wrappers_from_every_state_dict(tmp_path: Path) -> None:
    ema = nn.DataParallel(network(1)).state_dict()
    source = saved(checkpoint(network(), ema=ema), tmp_path / "a.pth")
    convert(source, tmp_path / "b.pth", strip=True)
    loaded = torch.load(tmp_path / "b.pth")
    assert list(loaded["model"]) == list(loaded["ema"]) == list(network().state_dict())
    convert(source, tmp_path / "c.pth")
    assert list(torch.load(tmp_path / "c.pth")["ema"]) == list(ema)


# --- Another dtype -----------------------------------------------------------------------------


def test_a_cast_is_that_of_torch_and_its_cost_is_told(tmp_path: Path) -> None:
    model = network()
    model[1].running_mean[0] = 1e-9
    source = saved(checkpoint(model), tmp_path / "a.pth")
    state = torch.load(source)["model"]
    report = convert(source, tmp_path / "b.safetensors", dtype="float16")
    loaded = load_file(tmp_path / "b.safetensors")
    for key, value in state.items():
        expected = value.half() if value.is_floating_point() else value
        assert loaded[key].dtype == expected.dtype
        assert torch.equal(loaded[key], expected)
    cast = report.cast
    assert (cast.dtype, cast.num_tensors, cast.num_overflowed) == ("float16", 8, 0)
    assert cast.num_underflowed >= 1
    worst = max(
        (float((v.double() - v.half().double()).norm() / v.double().norm()), k)
        for k, v in state.items()
        if v.is_floating_point() and v.any()
    )
    assert (cast.relative, cast.worst) == (pytest.approx(worst[0], rel=1e-9), worst[1])
    assert "; 8 tensors cast to float16, relative error at most 1 (in" in str(report)
    assert "became zero" in str(report)


def test_in_a_tree_only_state_dicts_are_cast(tmp_path: Path) -> None:
    source = saved(checkpoint(network()), tmp_path / "a.pth")
    convert(source, tmp_path / "b.pth", dtype="bfloat16")
    loaded = torch.load(tmp_path / "b.pth")
    assert {v.dtype for v in loaded["model"].values()} == {torch.bfloat16, torch.int64}
    assert loaded["optimizer"]["state"][0]["exp_avg"].dtype == torch.float32


def test_views_and_tied_tensors_are_cast_once_and_stay_tied(tmp_path: Path) -> None:
    base = torch.randn(300, 1000)
    state = {"a.weight": base, "b.weight": base, "c.weight": base[:, ::3].t()}
    source = saved(state, tmp_path / "a.pth")
    for name in ("b.pth", "b.safetensors"):
        convert(source, tmp_path / name, dtype="bfloat16")
        loaded = torchkeep.load(tmp_path / name)
        assert loaded["a.weight"].data_ptr() == loaded["b.weight"].data_ptr()
        assert all(torch.equal(loaded[key], state[key].bfloat16()) for key in state)


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "inf"), ("float8_e4m3fn", "448.0")])
def test_an_overflow_is_refused_unless_it_is_allowed(dtype: str, kind: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.tensor([1.0, 1e6]), "b.weight": torch.ones(1)}
    source, made = saved(state, tmp_path / "a.pth"), tmp_path / "b.safetensors"
    text = rf"tensor 'a\.weight' has numbers as large as 1e\+06, which overflow in {dtype}\. Choose"
    with pytest.raises(SaveRefused, match=text):
        convert(source, made, dtype=dtype)
    assert not made.exists()
    report = convert(source, made, dtype=dtype, allow_overflow=True)
    assert report.cast.num_overflowed == 1
    assert "1 element overflowed" in str(report)
    assert str(float(load_file(made)["a.weight"][1])) == kind


def test_a_dtype_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(network().state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        WrongArgument, match=r"dtype 'int8' is no floating dtype\. Use one of float"
    ):
        convert(source, tmp_path / "b.pth", dtype="int8")
    monkeypatch.setattr("torchkeep.converting.casting.has_torch", lambda: False)
    with pytest.raises(MissingExtra, match="casting to float16 needs torch, not installed here"):
        convert(source, tmp_path / "b.pth", dtype="float16")


# --- Metadata ----------------------------------------------------------------------------------


def test_the_metadata_goes_along(tmp_path: Path) -> None:
    torchkeep.save(network(), tmp_path / "a.safetensors", metadata={"version": "7", "data": [1]})
    first = torchkeep.inspect(tmp_path / "a.safetensors").metadata
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    convert(tmp_path / "b.pth", tmp_path / "c.safetensors")
    metadata = torchkeep.inspect(tmp_path / "c.safetensors").metadata
    assert (metadata["version"], metadata["data"]) == ("7", "[1]")
    assert metadata["torch_version"] == first["torch_version"]
    assert json.loads(metadata["converted_from"])["name"] == "b.pth"
    assert diff(tmp_path / "a.safetensors", tmp_path / "c.safetensors").equal


def test_what_torchkeep_keeps_with_a_model_goes_along_as_long_as_it_is_true(
    tmp_path: Path,
) -> None:
    from torchkeep.saving import write_safetensors

    source = tmp_path / "a.safetensors"
    write_safetensors(network().state_dict(), source, metadata={"torchkeep.samples": "[]"})
    for name in ("b.pth", "b.safetensors"):
        assert convert(source, tmp_path / name).left_out == ()
        assert torchkeep.inspect(tmp_path / name).metadata["torchkeep.samples"] == "[]"
    for options in ({"dtype": "float16"}, {"rename": {"0.*": "first.*"}}):
        report = convert(source, tmp_path / "c.safetensors", overwrite=True, **options)
        assert report.left_out == ("torchkeep.samples",)
        assert "torchkeep.samples" not in torchkeep.inspect(report.path).metadata


def test_a_value_that_is_called_like_a_tensor_is_left_out(tmp_path: Path) -> None:
    tree = {"model": {"epoch.weight": torch.ones(1), "x.bias": torch.ones(1)}, "epoch": 1}
    report = convert(
        saved(tree, tmp_path / "a.pth"), tmp_path / "b.safetensors", rename={"x.bias": "epoch"}
    )
    assert report.left_out == ("epoch",)
    assert report.in_metadata == ()


# --- Proof, and what goes wrong ----------------------------------------------------------------


def flip(path: Path, name: str) -> None:
    """Change a bit of a tensor in its file."""
    entry = next(i.entry for i in torchkeep.inspect(path).tensors() if i.path == name)
    data = bytearray(path.read_bytes())
    data[entry.storage.offset or 0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("target", [".pth", ".safetensors"])
def test_a_damaged_source_is_not_converted(suffix: str, target: str, tmp_path: Path) -> None:
    source, made = tmp_path / f"a{suffix}", tmp_path / f"b{target}"
    torchkeep.save(network(), source)
    flip(source, "0.weight")
    with pytest.raises(DamagedFile, match=str(source)):
        convert(source, made)
    assert list(tmp_path.iterdir()) == [source]


def test_the_checksums_of_a_plain_torch_zip_are_compared(tmp_path: Path) -> None:
    source = saved(network().state_dict(), tmp_path / "a.pth")
    flip(source, "0.weight")
    with pytest.raises(
        DamagedFile, match=r"do not match the archive's checksum\. Copy or download"
    ):
        convert(source, tmp_path / "b.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_writer_that_errs_is_caught_before_the_file_takes_its_place(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(network().state_dict(), tmp_path / "a.pth")
    made = tmp_path / f"b{suffix}"
    made.write_bytes(b"old")
    name = "write_torch_zip" if suffix == ".pth" else "write_safetensors"
    write = getattr(conversion, name)

    def write_and_damage(*args: Any, **options: Any) -> Any:
        report = write(*args, **options)
        flip(report.path, "2.bias")
        return report

    monkeypatch.setattr(conversion, name, write_and_damage)
    text = rf"b{suffix}: '2\.bias' differs from the source after writing\. If it happens again"
    with pytest.raises(ProofFailed, match=text):
        convert(source, made, overwrite=True)
    assert made.read_bytes() == b"old"
    assert not [path for path in tmp_path.iterdir() if TEMPORARY_MARK in path.name]


def test_a_file_is_replaced_only_if_asked_for_and_the_source_too(tmp_path: Path) -> None:
    source = saved(checkpoint(network()), tmp_path / "a.pth")
    other = saved([1], tmp_path / "b.pth")
    with pytest.raises(SaveRefused, match=r"b\.pth: there is something already"):
        convert(source, other)
    with pytest.raises(
        SaveRefused, match=r"a\.pth: this is the source itself\. Choose another name"
    ):
        convert(source, source)
    (tmp_path / "link.pth").symlink_to(source)
    with pytest.raises(SaveRefused, match=r"link\.pth: this is the source itself"):
        convert(source, tmp_path / "link.pth")
    convert(source, source, drop_optimizer=True, overwrite=True)
    assert torch.load(source).keys() == {"model", "epoch", "classes"}


def test_a_part_of_the_source_is_never_replaced(tmp_path: Path) -> None:
    state = {f"l{n}.weight": torch.randn(100, 10) for n in range(4)}
    made = tmp_path / "m" / "model.safetensors"
    made.parent.mkdir()
    source = saved(state, tmp_path / "a.pth")
    report = convert(source, made, shard_nbytes=9_000)
    before = {path: path.read_bytes() for path in made.parent.iterdir()}
    text = "is a part of the source, and would be replaced. Choose another name or folder."
    for target, options in ((report.shards[0], {}), (made, {"shard_nbytes": 5_000})):
        with pytest.raises(SaveRefused, match=text):
            convert(made.parent, target, overwrite=True, **options)
    assert {path: path.read_bytes() for path in made.parent.iterdir()} == before


def test_arguments_of_no_use_are_refused(tmp_path: Path) -> None:
    source = saved(network().state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        SaveRefused, match=r"the suffix '\.onnx' names no format. Use one of \.safe"
    ):
        convert(source, tmp_path / "b.onnx")
    with pytest.raises(WrongArgument, match=r"only safetensors can be split into shards\. Give a"):
        convert(source, tmp_path / "b.pth", shard_nbytes=5)
    with pytest.raises(WrongArgument, match="shard_nbytes is 0, and a file needs room for a byte"):
        convert(source, tmp_path / "b.safetensors", shard_nbytes=0)


def test_a_missing_folder_and_a_full_disk_are_one_error_each(tmp_path: Path) -> None:
    source = saved({"a.weight": torch.zeros(100_000)}, tmp_path / "a.pth")
    missing = tmp_path / "no" / "b.pth"
    with pytest.raises(SaveRefused, match=f"{missing}: its folder does not exist. Create the"):
        convert(source, missing)
    made = tmp_path / "b.pth"
    made.write_bytes(b"old")
    program = (
        "import resource, sys, torchkeep\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: torchkeep.convert(*sys.argv[1:], overwrite=True)\n"
        "except torchkeep.TorchkeepError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, source, made], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{made}: larger than a file may be here; nothing was changed.")
    assert made.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_an_interrupted_conversion_leaves_the_old_file(tmp_path: Path) -> None:
    source = saved({"a.weight": torch.zeros(1 << 22)}, tmp_path / "a.pth")
    made = tmp_path / "b.safetensors"
    made.write_bytes(b"old")
    program = (
        "import os, signal, sys, torchkeep\n"
        "def stop(done, total):\n"
        "    if done > total * float(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "torchkeep.convert(*sys.argv[1:3], overwrite=True, progress=stop)\n"
    )
    for share in ("0.1", "0.4", "0.7", "0.99"):
        command = [sys.executable, "-c", program, source, made, share]
        assert subprocess.run(command, check=False).returncode == -9
        assert made.read_bytes() == b"old"


def test_progress_counts_writing_and_reading_back(tmp_path: Path) -> None:
    source = saved(
        {"a.weight": torch.zeros(1 << 22), "b.weight": torch.ones(5)}, tmp_path / "a.pth"
    )
    calls: list[tuple[int, int]] = []
    convert(source, tmp_path / "b.safetensors", progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (2 * ((1 << 24) + 20),) * 2


# --- Without torch, and without memory ---------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_memory_stays_far_below_the_largest_tensor(name: str, tmp_path: Path) -> None:
    nbytes = 256 << 20
    state = {f"l{n}.weight": torch.randn(1000) for n in range(2000)}
    state["large.weight"] = torch.randn(nbytes // 4)
    torchkeep.save(state, tmp_path / name, durable=False)
    del state
    program = (
        "import resource, sys, torchkeep, torchkeep.converting\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "torchkeep.convert(*sys.argv[1:], durable=False)\n"
        "assert 'torch' not in sys.modules\n"
        "print(peak() - before)\n"
    )
    for target in ("b.pth", "b.safetensors"):
        command = [sys.executable, "-c", program, tmp_path / name, tmp_path / target]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 80 << 20
        (tmp_path / target).unlink()


def test_deflated_sources_are_unpacked(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(100_000.0), "b.weight": torch.ones(7)}
    source = saved(state, tmp_path / "a.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(packed, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item), zipfile.ZIP_DEFLATED)
    for target in ("b.pth", "b.safetensors"):
        convert(packed, tmp_path / target)
        assert diff(source, tmp_path / target, verify=True).equal


# --- A source that does not stay as it is ------------------------------------------------------

CHANGED = r"a\.safetensors: the file was changed or replaced while it was read\. Wait until it is"


def test_a_source_that_is_written_to_meanwhile_is_not_converted(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1 << 20), "b": torch.zeros(1 << 20)}, source)

    def spoil(done: int, total: int) -> None:
        with source.open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"\1" * 8)

    with pytest.raises(DamagedFile, match=CHANGED):
        convert(source, tmp_path / "b.pth", progress=spoil)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_source_that_was_replaced_since_it_was_described_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(8)}, source)

    def replaced_afterwards(*arguments: Any) -> Inspection:
        found = identify_whole(*arguments)
        save_file({"b": torch.ones(8)}, tmp_path / "new")
        (tmp_path / "new").replace(source)
        return found

    monkeypatch.setattr("torchkeep.converting.identify_whole", replaced_afterwards)
    with pytest.raises(DamagedFile, match=CHANGED):
        convert(source, tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()
