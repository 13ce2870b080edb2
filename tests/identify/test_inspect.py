"""`inspect` names the right kind for files that plain torch.save wrote, and executes nothing."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep
from torchkeep.contents import Contents, Files
from torchkeep.errors import DamagedFile, FileMissing, LimitReached, NotAModelFile
from torchkeep.identify import Inspection, _are_several_models
from torchkeep.identify.state_dicts import state_dict_of_mapping
from torchkeep.pickles.limits import Limits
from watching import EVERYTHING_IS_LOADED

VANISHING = """
import torch
from torch import nn

class Vanished(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.25))
        self.head = nn.Linear(width, 3)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("cache", torch.zeros(5), persistent=False)

    def forward(self, x):
        return self.head(self.body(x))
"""

NUM_PARAMETERS = 4 * 8 + 8 + 8 + 8 + 8 * 3 + 3
# A state dict does not tell buffers from parameters; only BatchNorm's are known by name.
NUM_IN_STATE_DICT = NUM_PARAMETERS + 2
Save = Callable[[Any, str], Inspection]


@pytest.fixture(params=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    """Write an object with plain torch.save and inspect the file."""

    def write(value: Any, name: str = "model.pth") -> Inspection:
        path = tmp_path / name
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        inspection = torchkeep.inspect(path)
        assert inspection.container == f"torch-{request.param}"
        assert inspection.nbytes == path.stat().st_size
        json.dumps(inspection.to_json(tensors=True))
        return inspection

    return write


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """A model whose class can't be imported when the test inspects the file."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "vanishing.py").write_text(VANISHING)
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("vanishing")
    torch.manual_seed(0)
    yield module.Vanished()
    sys.modules.pop("vanishing", None)


def test_a_state_dict_is_parameters_only(save: Save, model: nn.Module) -> None:
    found = save(model.state_dict())
    assert found.role == "state_dict"
    assert [(item.name, item.role, item.prefix) for item in found.state_dicts] == [
        ("", "model", "")
    ]
    assert list(found.state_dicts[0].entries) == list(model.state_dict())
    assert found.state_dicts[0].num_parameters == NUM_IN_STATE_DICT
    assert found.summary == "Parameters only: 85 parameters in 10 tensors."
    assert found.safety.verdict == "data-only"
    assert found.safety.weights_only is True


def test_a_whole_model_shows_its_tree_though_its_class_is_gone(
    save: Save, model: nn.Module
) -> None:
    found = save(model)
    for name in list(sys.modules):
        if name == "vanishing":
            del sys.modules[name]
    assert found.role == "module"
    assert found.summary == "Whole model: vanishing.Vanished, 83 parameters in 10 tensors."
    (path, root), *_ = found.modules
    assert (path, root.class_path, root.training) == ("", "vanishing.Vanished", True)
    assert root.attributes["width"] == 8
    assert [name for name, _ in root.walk()] == ["", "body", "body.0", "body.1", "body.2", "head"]
    assert dict(root.walk())["body.2"].attributes["p"] == 0.25
    assert root.buffers.keys() == {"scale", "cache"}
    assert root.non_persistent == {"cache"}
    assert list(found.state_dicts[0].entries) == list(model.state_dict())
    assert found.safety.verdict == "needs-trust"
    assert "vanishing.Vanished" in found.safety.blocked
    assert found.safety.weights_only is False


def test_a_legacy_whole_model_carries_its_source_text(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "whole.pth"
    torch.save(model, path, _use_new_zipfile_serialization=False)
    root = torchkeep.inspect(path).modules[0][1]
    assert root.source is not None
    assert "class Vanished(nn.Module)" in root.source
    assert "class Linear" in dict(root.walk())["head"].source  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "SGD"),
        (lambda p: torch.optim.Adam(p), "Adam"),
        (lambda p: torch.optim.AdamW(p), "AdamW"),
        (lambda p: torch.optim.RMSprop(p), "RMSprop"),
        (lambda p: torch.optim.Adagrad(p), "Adagrad"),
        (lambda p: torch.optim.Adadelta(p), "Adadelta"),
        (lambda p: torch.optim.Adamax(p), "Adamax"),
        (lambda p: torch.optim.NAdam(p), "NAdam"),
        (lambda p: torch.optim.RAdam(p), "RAdam"),
        (lambda p: torch.optim.Rprop(p), "Rprop"),
        (lambda p: torch.optim.ASGD(p), "ASGD"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS"),
    ],
)
def test_a_training_checkpoint_names_its_optimizer(
    save: Save, model: nn.Module, make: Callable[..., torch.optim.Optimizer], family: str
) -> None:
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(6, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = save(
        {
            "epoch": 12,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "loss": 0.25,
            "rng_state": torch.get_rng_state(),
            "classes": ["cat", "dog", "owl"],
        }
    )
    assert found.role == "checkpoint"
    (state,) = found.optimizers
    assert (state.name, state.family) == ("optimizer_state_dict", family)
    assert state.param_groups[0]["num_params"] == len(list(model.parameters()))
    assert state.num_states == len(optimizer.state_dict()["state"])
    assert found.schedulers == ("scheduler",)
    assert found.rng == ("rng_state",)
    assert found.values == {"epoch": 12, "loss": 0.25, "classes": ["cat", "dog", "owl"]}
    assert found.summary == (
        f"Training checkpoint: 85 parameters in 10 tensors, {family}, scheduler, epoch 12."
    )
    assert found.safety.verdict == "data-only"


def test_a_checkpoint_without_an_optimizer_says_so(save: Save, model: nn.Module) -> None:
    found = save({"state_dict": model.state_dict(), "epoch": 3})
    assert found.role == "checkpoint"
    assert found.optimizers == ()
    assert found.summary == ("Checkpoint without optimizer: 85 parameters in 10 tensors, epoch 3.")


def test_an_optimizer_alone_is_an_optimizer(save: Save, model: nn.Module) -> None:
    found = save(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    assert found.role == "optimizer"
    assert found.summary == "Optimizer state without a model: SGD."


def test_a_dataparallel_save_names_the_wrapper(save: Save, model: nn.Module) -> None:
    found = save(nn.DataParallel(model).state_dict())
    assert found.state_dicts[0].prefix == "module."
    assert found.summary.endswith("; saved from DataParallel or DDP.")


def test_nested_wrappers_are_all_named(save: Save, model: nn.Module) -> None:
    keys = {f"module._orig_mod.{key}": value for key, value in model.state_dict().items()}
    found = save(OrderedDict(keys))
    assert found.state_dicts[0].prefix == "module._orig_mod."
    assert found.summary.endswith("; saved from torch.compile in DataParallel or DDP.")


def test_a_whole_dataparallel_model_shows_the_wrapper_as_a_module(
    save: Save, model: nn.Module
) -> None:
    found = save(nn.DataParallel(model))
    assert found.role == "module"
    assert found.modules[0][1].class_path == "torch.nn.parallel.data_parallel.DataParallel"
    assert found.state_dicts[0].prefix == "module."


@pytest.mark.parametrize("name", ["ema_state_dict", "ema", "model_ema", "state_dict_ema"])
def test_an_ema_is_told_from_the_model(save: Save, model: nn.Module, name: str) -> None:
    found = save({"model": model.state_dict(), name: model.state_dict()})
    assert [(item.name, item.role) for item in found.state_dicts] == [
        ("model", "model"),
        (name, "ema"),
    ]
    assert "2 state dicts" in found.summary
    assert "EMA" in found.summary


def test_an_averaged_model_is_an_ema(save: Save, model: nn.Module) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(model)
    found = save(averaged.state_dict())
    assert found.summary.endswith("tensors; saved from AveragedModel.")
    assert found.state_dicts[0].role == "ema"
    assert found.state_dicts[0].prefix == "module."
    assert found.state_dicts[0].num_parameters == NUM_IN_STATE_DICT


def test_two_networks_are_two_state_dicts(save: Save) -> None:
    found = save(
        {"generator": nn.Linear(2, 3).state_dict(), "discriminator": nn.Linear(3, 1).state_dict()}
    )
    assert [item.name for item in found.state_dicts] == ["generator", "discriminator"]
    assert {item.role for item in found.state_dicts} == {"other"}
    assert "2 networks (generator, discriminator), 13 parameters in all" in found.summary


def test_a_tensor_and_other_objects_are_no_models(save: Save) -> None:
    assert save(torch.zeros(2, 3)).summary == "One tensor: float32, shape [2, 3]."
    found = save({"data": torch.zeros(2), "labels": torch.ones(2)})
    assert (found.role, found.state_dicts) == ("object", ())
    assert found.summary == "No model: a dict of 2 tensors (data, labels)."


@pytest.mark.parametrize(
    ("value", "summary"),
    [
        ([torch.zeros(1)] * 3, "a list of 3 tensors"),
        ([torch.zeros(1), 5], "a list of 2"),
        ({"a": 1}, "a dict of 1 (a)"),
        (dict.fromkeys("abcdef", 1), "a dict of 6 (a, b, c, d, ...)"),
        ({1: "a"}, "a dict of 1"),
        ({"x" * 25: 1}, "a dict of 1"),
        ({}, "a dict of 0"),
        (OrderedDict(a=1), "a collections.OrderedDict of 1 (a)"),
        ({"a": torch.get_rng_state()}, "the state of random generators"),
        (
            {"rng": {"a": torch.get_rng_state(), "b": random.getstate()}, "c": random.getstate()},
            "the state of random generators",
        ),
        ({"a": torch.get_rng_state(), "step": 5}, "the state of random generators"),
        ({"a": {"b": torch.get_rng_state(), "c": 1}}, "a dict of 1 (a)"),
        ({"a": {"b": {"c": torch.get_rng_state()}}}, "a dict of 1 (a)"),
    ],
)
def test_what_is_no_model_is_told_by_its_size_and_its_keys(
    save: Save, value: Any, summary: str
) -> None:
    assert save(value).summary == f"No model: {summary}."


def test_an_object_may_be_a_model_of_another_library(save: Save) -> None:
    found = save(torch.utils.data.TensorDataset(torch.zeros(1)))
    assert found.summary == "Pickled object of torch.utils.data.dataset.TensorDataset."


class Holder(nn.Module):
    """A module that calls what it holds as DataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_whole_model_came_from_a_wrapper_only_if_it_is_one(save: Save, model: nn.Module) -> None:
    assert "saved from" not in save(Holder(model)).summary
    assert save(nn.DataParallel(model)).summary.endswith("; saved from DataParallel or DDP.")
    assert save(Holder(model).state_dict()).summary.endswith("; saved from DataParallel or DDP.")


def test_an_object_that_a_function_makes_is_named_by_its_class(save: Save) -> None:
    assert save(np.array(["a"])).summary == "Pickled object of numpy.ndarray."


def test_an_unknown_optimizer_is_said_to_be_one(save: Save) -> None:
    state = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    assert save(state).summary == "Optimizer state without a model: an unknown optimizer."


@pytest.mark.parametrize(
    ("beside", "progress"),
    [
        ({"global_steps": 10}, "global_steps 10"),
        ({"trainer": {"iteration": 12, "max_epochs": 5}}, "iteration 12"),
        ({"steps": 4, "epoch": 3}, "epoch 3"),
        ({"epoch": -1}, ""),
    ],
)
def test_how_far_the_training_got_is_told(
    save: Save, model: nn.Module, beside: dict[str, Any], progress: str
) -> None:
    summary = save({"model": model.state_dict(), **beside}).summary
    assert summary.removesuffix(".").endswith(progress or "tensors")


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested")
def test_a_tensor_of_another_layout_is_told_as_that(save: Save) -> None:
    sparse = torch.eye(3).to_sparse()
    assert save(sparse).summary == "One sparse tensor (COO): float32, shape [3, 3]."
    assert save(sparse.to_sparse_csr()).summary.startswith("One sparse tensor (CSR): ")
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert save(nested).summary == "One nested tensor: float32, shape [2]."


def test_tied_parameters_count_once_and_name_their_alias(save: Save) -> None:
    shared = nn.Linear(3, 3, bias=False)
    found = save(nn.Sequential(shared, nn.ReLU(), shared).state_dict())
    assert found.state_dicts[0].num_parameters == 9
    assert [(item.path, item.alias_of) for item in found.tensors()] == [
        ("0.weight", None),
        ("2.weight", "0.weight"),
    ]


def test_an_optimizers_parts_of_one_memory_count_each_and_the_same_part_once(save: Save) -> None:
    flat = torch.zeros(6)
    state = {0: {"a": flat[:2], "b": flat[2:], "same": flat[2:]}}
    found = save({"state": state, "param_groups": [{"params": [0], "lr": 1.0}]})
    assert found.optimizers[0].nbytes == 24
    assert [(item.alias_of, item.same_as) for item in found.tensors()] == [
        (None, None),
        ("state.0.a", None),
        ("state.0.a", "state.0.b"),
    ]


def test_the_tensor_table_has_torchs_own_shapes_and_strides(save: Save) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value = {"list": [base, base.t()[1:]], "scalar": torch.tensor(3), "half": base.half()}
    table = {item.path: item.entry for item in save(value).tensors()}
    assert table["list.1"].shape == (5, 4)
    assert table["list.1"].stride == base.t()[1:].stride()
    assert table["list.1"].storage_offset == 1
    assert table["list.1"].storage is table["list.0"].storage
    assert table["scalar"].shape == ()
    assert {path: entry.dtype for path, entry in table.items()} == {
        "list.0": "float32",
        "list.1": "float32",
        "scalar": "int64",
        "half": "float16",
    }


class _RunsACommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_payload_is_named_and_does_not_run(save: Save, model: nn.Module, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    found = save({"state_dict": model.state_dict(), "epoch": _RunsACommand(f"touch {mark}")})
    assert not mark.exists()
    assert found.safety.verdict == "dangerous"
    name = f"{os.system.__module__}.system"
    assert found.safety.findings[0].text.startswith(f"loading the file would use {name}, which")
    assert found.safety.blocked == (f"{os.system.__module__}.system",)


AUDITED = f"""
import sys
import tarfile
{EVERYTHING_IS_LOADED}
from torchkeep.identify import inspect
inspect(sys.argv[1]).to_json(tensors=True)  # every module that inspection needs is loaded now
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)))
for path in sys.argv[1:]:
    inspect(path).to_json(tensors=True)
calm = ("open", "builtins.id", "os.", "object.", "gc.", "sys._getframe", "code.__new__")
writes = [e for e in seen if e[0] == "open" and "r" not in str(e[1][1] or "r")]
loud = [event for event, _ in seen if not event.startswith(calm)]
assert not writes, writes
assert not loud, loud
assert not any(e[0] in ("os.system", "os.exec", "os.posix_spawn") for e in seen)
assert any(e[0] == "open" for e in seen)
print("quiet", "torch" in sys.modules, "numpy" in sys.modules, "vanishing" in sys.modules)
"""


def test_inspection_imports_and_runs_nothing_of_the_file(tmp_path: Path, model: nn.Module) -> None:
    torch.save(model, tmp_path / "zip.pth")
    torch.save(model, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save([_RunsACommand("exit 1")], tmp_path / "attack.pth")
    files = [str(tmp_path / name) for name in ("zip.pth", "legacy.pth", "attack.pth")]
    result = subprocess.run(
        [sys.executable, "-c", AUDITED, *files], capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    assert result.stdout.split() == ["quiet", "False", "False", "False"]


def test_a_tree_that_unfolds_without_end_reaches_a_limit(tmp_path: Path) -> None:
    # Each level holds the one below twice: 2**64 places in 300 bytes.
    level: list[Any] = [torch.zeros(1)]
    for _ in range(64):
        level = [level, level]
    path = tmp_path / "bomb.pth"
    torch.save(level, path)
    assert torchkeep.inspect(path).role == "object"
    with pytest.raises(LimitReached, match="unfold into far more places than it has bytes"):
        torchkeep.inspect(path).tensors()


def test_a_tree_that_contains_itself_ends(save: Save) -> None:
    loop: list[Any] = [torch.zeros(2)]
    loop.append(loop)
    assert [item.path for item in save({"loop": loop}).tensors()] == ["loop.0"]


def test_deep_nesting_reaches_a_limit_that_is_named(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(450):
        deep = [deep]
    path = tmp_path / "deep.pth"
    torch.save({"deep": deep}, path)
    assert torchkeep.inspect(path).values.keys() == {"deep" + ".0" * 449}
    with pytest.raises(LimitReached, match=r"deep\.pth: .*limit depth=50.*Limits\(depth=\.\.\.\)"):
        torchkeep.inspect(path, limits=Limits(depth=50))


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, model: nn.Module, keep: int) -> None:
    path = tmp_path / "cut.pth"
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    try:
        found = torchkeep.inspect(path)
    except DamagedFile as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return
    assert found.role == "unknown"
    assert str(found.contents.problem).startswith(f"{path}: ")
    assert isinstance(found.contents.problem, NotAModelFile)


def test_a_safetensors_file_is_a_state_dict(tmp_path: Path, model: nn.Module) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path, metadata={"format": "pt"})
    found = torchkeep.inspect(path)
    assert (found.container, found.role) == ("safetensors", "state_dict")
    assert found.state_dicts[0].num_parameters == NUM_IN_STATE_DICT
    assert found.to_json()["metadata"] == {"format": "pt"}
    assert found.safety.weights_only is None


def test_the_state_beside_a_checkpoints_model_is_no_model(tmp_path: Path, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torchkeep.Checkpointer(tmp_path / "run", model=model, optimizer=optimizer) as ckpt:
        folder = ckpt.save()
    assert torchkeep.inspect(folder / "model.safetensors").role == "state_dict"
    found = torchkeep.inspect(folder / "state.safetensors")
    assert (found.role, found.framework, found.state_dicts) == ("optimizer", "torchkeep", ())
    assert found.summary.startswith("Training state without the model: ")


def test_a_file_that_is_a_tar_archive_too_is_ambiguous(tmp_path: Path) -> None:
    """torch.load tries tar first, so what it would run is not what another reader shows."""
    import io
    import pickle
    import tarfile

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    block = bytearray(archive.getvalue()[:512])
    stream = io.BytesIO()
    torch.save({"a.weight": torch.zeros(200)}, stream, _use_new_zipfile_serialization=False)
    plain = stream.getvalue()
    # The legacy stream's third pickle gets a text as long as a tar header needs, and in it the sum.
    preamble = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    info = {"protocol_version": 1001, "little_endian": True, "x": "0" * 600}
    start = preamble + pickle.dumps(info, 2)
    rest = plain[plain.index(b"little_endian") :]
    rest = rest[rest.index(b".\x80\x02") + 1 :]
    block[:] = start[:512]
    block[148:156] = b"0000000\0"
    total = sum(block[:148]) + 8 * 32 + sum(block[156:512])
    block[148:156] = b"%06o\0 " % total
    (tmp_path / "plain.pth").write_bytes(start + rest)
    (tmp_path / "both.pth").write_bytes(bytes(block) + start[512:] + rest)
    assert tarfile.TarInfo.frombuf(bytes(block), "latin1", "replace").chksum == total
    assert torchkeep.inspect(tmp_path / "plain.pth").safety.verdict == "data-only"
    found = torchkeep.inspect(tmp_path / "both.pth")
    assert found.role == "state_dict"
    assert (found.safety.verdict, found.safety.weights_only) == ("ambiguous", False)
    assert "tar archive too" in found.safety.findings[0].text


def test_a_module_that_contains_itself_reaches_a_limit(save: Save, model: nn.Module) -> None:
    model._modules["again"] = model
    with pytest.raises(LimitReached, match=r"nested|unfold"):
        save(model)


def test_numbers_too_long_to_print_are_described(save: Save, model: nn.Module) -> None:
    found = save({"state_dict": model.state_dict(), "epoch": 1 << 20_000})
    assert "epoch <integer of 20001 bits>" in found.summary
    assert found.to_json()["values"]["epoch"] == "<integer of 20001 bits>"
    assert save(1 << 20_000).summary == "No model: the value '<integer of 20001 bits>'."


def test_an_index_of_names_is_one_value_and_arguments_are_one_each(save: Save) -> None:
    index = {"dr. no": 1, "cat": 0}
    labels = {"0": "cat", "1": "dr. no"}
    near = {"zero": 0, "two": 2}
    values = save(
        {"class_to_idx": index, "id2label": labels, "near": near, "args": {"lr": 0.5}}
    ).values
    assert values == {
        "class_to_idx": index,
        "id2label": labels,
        "near.zero": 0,
        "near.two": 2,
        "args.lr": 0.5,
    }
    assert list(values["class_to_idx"]) == ["dr. no", "cat"]


def test_a_list_that_stands_in_many_places_is_looked_at_once(save: Save) -> None:
    names = [str(number) for number in range(100)]
    values = save({"places": [[names] for _ in range(30)]}).values
    assert len(values) == 30
    assert len({id(value) for value in values.values()}) == 1


def test_a_folder_of_several_models_is_named_after_none_of_them(tmp_path: Path) -> None:
    torch.save(torchvision_like("resnet18"), tmp_path / "a.pth")
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "b.pth")
    inspection = torchkeep.inspect(tmp_path)
    num_parameters = sum(item.num_parameters for item in inspection.state_dicts)
    assert inspection.summary == (
        f"Folder of 2 model files: 2 state dicts, {num_parameters:,} parameters in all."
    )
    assert not inspection.architecture
    assert inspection.members[0].architecture[0].name == "torchvision/resnet18"
    (tmp_path / "b.pth").unlink()
    assert torchkeep.inspect(tmp_path).architecture[0].name == "torchvision/resnet18"


def torchvision_like(name: str) -> dict[str, torch.Tensor]:
    """Return a state dict with the names and shapes of a network, and next to nothing in memory."""
    with torch.device("meta"):
        there = importlib.import_module("torchvision.models").get_model(name).state_dict()
    return {
        key: torch.zeros((), dtype=item.dtype).expand(item.shape) for key, item in there.items()
    }


@pytest.mark.parametrize("pack", ["", "w:gz", "w"])
def test_a_loose_tensor_beside_a_model_hides_nothing(pack: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"epoch": 3, "model": nn.Linear(4, 2).state_dict()}, folder / "best.pth")
    torch.save(torch.ones(10), folder / "class_weights.pt")
    torch.save([], folder / "param_groups")
    torch.save({}, folder / "state")
    path = folder
    if pack:
        path = tmp_path / "model.archive"
        with tarfile.open(path, pack) as archive:
            for file in sorted(folder.iterdir()):
                archive.add(file, file.name)
    found = torchkeep.inspect(path)
    assert [item.name for item in found.state_dicts] == ["best.pth.model"]
    assert found.role == "checkpoint"
    assert found.optimizers == ()
    assert "10 parameters in 2 tensors, epoch 3" not in found.summary
    assert "10 parameters in 2 tensors" in found.summary


def test_networks_that_are_recognised_are_named_in_the_sentence(save: Save) -> None:
    networks = {"a": torchvision_like("resnet18"), "b": torchvision_like("vgg11")}
    assert save(networks).summary.startswith(
        "Checkpoint without optimizer: 2 networks (a: resnet18 for 1,000 classes (or resnetblur18),"
        " b: vgg11 for 1,000 classes), "
    )


def test_a_wrapped_whole_model_is_named_after_what_is_wrapped(save: Save) -> None:
    summary = save(nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))).summary
    assert summary == (
        "Whole model: torch.nn.modules.container.Sequential, 6 parameters in 2 tensors; "
        "saved from DataParallel or DDP."
    )


def test_a_pickle_without_its_archive_says_what_is_missing(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        (tmp_path / "data.pkl").write_bytes(archive.read("a/data.pkl"))
    summary = torchkeep.inspect(tmp_path / "data.pkl").summary
    assert summary == (
        "Parameters only: 6 parameters in 2 tensors; the bytes of its tensors are missing."
    )


def test_one_file_that_can_not_be_walked_does_not_hide_the_others(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "good.pth")
    (tmp_path / "sub").mkdir()
    deep = b"\x80\x02" + b"]" * 600 + b"a" * 599 + b"."
    (tmp_path / "sub" / "deep.pkl").write_bytes(deep)
    with zipfile.ZipFile(tmp_path / "sub" / "inner.zip", "w") as archive:
        archive.writestr("deep.pkl", deep)
        archive.write(tmp_path / "good.pth", "other.pth")
    inspection = torchkeep.inspect(tmp_path)
    names = ["good.pth", "sub/inner.zip.other.pth"]
    assert [item.name for item in inspection.state_dicts] == names
    assert inspection.safety.verdict == "ambiguous"
    assert inspection.integrity.state == "incomplete"
    assert "the limit depth=500" in str(inspection.members[1].contents.problem)
    assert len(inspection.tensors()) == 4


def test_a_name_that_starts_like_a_files_is_not_in_that_file(tmp_path: Path) -> None:
    whole = Contents(tmp_path, 1, "folder", Files(), kind="folder")
    model = inspection_of(tmp_path / "model")
    main = state_dict_of_mapping(
        "model_ema", {"a.weight": model.state_dicts[0].entries["a.weight"]}
    )
    assert not _are_several_models(whole, (model, inspection_of(tmp_path / "x")), main)


def inspection_of(path: Path) -> Inspection:
    torch.save({"a.weight": torch.ones(2)}, path)
    return torchkeep.inspect(path)


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(FileMissing, match="the path is empty"):
        torchkeep.inspect("")
