"""A checkpoint as one `.pth`: plain torch reads it, it resumes exactly, and any damage is found."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import torchkeep
from torchkeep.checkpointing import (
    Checkpointer,
    capture,
    export_checkpoint,
    list_checkpoints,
    newest_whole,
)
from torchkeep.checkpointing.layout import (
    damage,
    read_manifest,
    read_state,
    remove_checkpoint,
    write_checkpoint,
    write_part,
)
from torchkeep.checkpointing.state.encoding import encode, fingerprint
from torchkeep.checkpointing.state.sharded import Part
from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    NoCheckpoint,
    SaveRefused,
    WrongArgument,
)
from torchkeep.formats import describe

FACTS = {
    "serial": 1,
    "step": 1,
    "epoch": 2,
    "batch": 1,
    "metrics": {"loss": 0.25, "val_loss": math.nan},
    "date": "2026-11-26T00:00:00+00:00",
    "inexact": [],
}


def trained() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    model = model.to(memory_format=torch.channels_last)
    ema = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    optimizer.step()
    scheduler.step()
    ema.update_parameters(model)
    extra = {"sampler": torch.Generator(), "seen": {"a": torch.arange(3)}}
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": torch.amp.GradScaler("cpu"),
        "ema": ema,
        "extra": extra,
    }


def write(path: Path, state: Any, **facts: Any) -> Path:
    write_checkpoint(path, state, facts=FACTS | facts, durable=False)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    state = capture(trained())
    return write(tmp_path_factory.mktemp("run") / "step-00000001.pth", state), state


@pytest.fixture
def checkpoint(written: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the checkpoint, which may be damaged."""
    return Path(shutil.copy(written[0], tmp_path / "step-00000002.pth"))


# --- What is in it -------------------------------------------------------------------------------


def test_the_state_comes_back_bit_for_bit(written: tuple[Path, Any], tmp_path: Path) -> None:
    path, state = written
    folder = write(tmp_path / "step-00000001", state)
    expected = fingerprint(read_state(folder))
    assert fingerprint(read_state(path)) == expected == fingerprint(state)
    assert fingerprint(read_state(path, mmap=True)) == expected
    assert damage(path) == ""
    assert read_manifest(path)["step"] == 1


def test_plain_torch_reads_the_usual_keys(written: tuple[Path, Any]) -> None:
    path, _ = written
    live = trained()
    found = torch.load(path, weights_only=True)
    assert (found["epoch"], found["global_step"], found["loss"]) == (2, 1, 0.25)
    assert math.isnan(found["metrics"]["val_loss"])
    for name in ("model", "optimizer", "scheduler", "scaler", "ema"):
        live[name].load_state_dict(found[f"{name}_state_dict"])
    again = capture({name: live[name] for name in ("model", "scheduler", "ema")}, rng=False)
    assert torch.equal(
        again["objects"]["model"]["state"]["state_dict"]["3.bias"],
        found["model_state_dict"]["3.bias"],
    )
    manifest = json.loads(found["torchkeep"]["manifest"])
    assert manifest["places"]["objects/model/state/state_dict/3.bias"] == [
        "model_state_dict",
        "3.bias",
    ]


def test_plain_python_puts_the_whole_state_together(written: tuple[Path, Any]) -> None:
    path, state = written
    found = torch.load(path, weights_only=True)
    places = json.loads(found["torchkeep"]["manifest"])["places"]
    tensors, _ = encode(state)
    assert places.keys() == tensors.keys()
    for name, place in places.items():
        item = found
        for key in place:
            item = item[key]
        assert torch.equal(item, tensors[name])


def test_each_tensor_is_stored_once(written: tuple[Path, Any]) -> None:
    path, state = written
    nbytes = sum(item.numel() * item.element_size() for item in encode(state)[0].values())
    records = {entry.storage.offset: entry.storage.nbytes for entry in entries(describe(path).root)}
    assert sum(records.values()) == nbytes


def entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [entry for item in value.values() for entry in entries(item)]
    if isinstance(value, list | tuple):
        return [entry for item in value for entry in entries(item)]
    return [value] if hasattr(value, "storage") else []


class Odd:
    """An object whose state dict has what plain torch does not load."""

    def state_dict(self) -> dict[Any, Any]:
        return {
            "array": numpy.arange(3.0),
            "scalar": numpy.float32(0.5),
            "deque": deque([1, 2], 5),
            "frozen": frozenset({1}),
            "set": {2},
            "tuple": (torch.ones(2), [torch.zeros(1)]),
            "keys": {1: "a", (2, "b"): torch.ones(1)},
            "ordered": OrderedDict(a=1),
            "counter": Counter("aab"),
            "large": 1 << 70,
            "inf": -math.inf,
            "complex": 1 + 2j,
            "bytes": b"\0\xff",
            "dtype": torch.bfloat16,
            "device": torch.device("cpu"),
            "size": torch.Size([2, 3]),
            "none": None,
            "$": "dollar",
        }

    def load_state_dict(self, state: Any) -> None: ...


def test_every_kind_of_value_comes_back_and_plain_torch_reads_it(tmp_path: Path) -> None:
    state = capture({"scheduler": Odd(), "extra": {"odd": Odd(), "np": numpy.arange(4)}})
    path = write(tmp_path / "step-00000001.pth", state)
    assert fingerprint(read_state(path)) == fingerprint(state)
    found = torch.load(path, weights_only=True)["scheduler_state_dict"]
    assert torch.equal(found["array"], torch.arange(3.0, dtype=torch.float64))
    assert (found["deque"], found["frozen"], found["$"]) == ([1, 2], {1}, "dollar")


def test_tensors_of_every_layout_come_back(tmp_path: Path) -> None:
    flat = torch.arange(24, dtype=torch.float32)
    tensors = {
        "its begin": flat[:8],
        "its begin of another type": flat.view(torch.int64)[:2],
        "flat": flat,
        "a view of another type": flat.view(torch.int32)[8:16],
        "transposed": flat.view(4, 6).t(),
        "expanded": torch.ones(1).expand(5),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(5),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "parameter": nn.Parameter(torch.ones(2)),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "same": flat,
    }
    path = write(tmp_path / "step-00000001.pth", {"objects": {}, **tensors})
    for mmap in (False, True):
        back = read_state(path, mmap=mmap)
        assert fingerprint(back) == fingerprint({"objects": {}, **tensors})
        assert back["same"] is back["flat"]
        assert not back["parameter"].requires_grad
    assert damage(path) == ""


@pytest.mark.parametrize("mmap", [False, True])
def test_a_sparse_tensor_comes_back(tmp_path: Path, mmap: bool) -> None:
    state = {"objects": {}, "coo": torch.eye(3).to_sparse(), "plain": torch.ones(2)}
    path = write(tmp_path / "step-00000001.pth", state)
    back = read_state(path, mmap=mmap)
    assert back["coo"].layout == torch.sparse_coo
    assert torch.equal(back["coo"].to_dense(), torch.eye(3))
    assert damage(path) == ""
    with pytest.raises(SaveRefused, match="is sparse"):
        write(tmp_path / "step-00000001", state)


def test_copies_in_one_memory_are_stored_apart(tmp_path: Path) -> None:
    memory = torch.zeros(64, dtype=torch.uint8)
    tensors = {
        "a": memory[:16].view(torch.float32).fill_(1.5),
        "b": memory[16:32].view(torch.int64).fill_(7),
    }
    path = tmp_path / "step-00000001.pth"
    structure = {name: {"$": "tensor", "name": name} for name in tensors}
    write_part(path, Part(tensors, {"objects": {}, **structure}), facts=FACTS, durable=False)
    back = read_state(path)
    assert back["a"].tolist() == [1.5] * 4
    assert back["b"].tolist() == [7] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_was_on_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    flat = torch.arange(8.0, device="cuda")
    tensors = {"flat": flat, "part": flat[2:4], "half": flat.half(), "turned": flat.view(2, 4).t()}
    path = write(tmp_path / "step-00000001.pth", {"objects": {}, **tensors})
    assert fingerprint(read_state(path)) == fingerprint({"objects": {}, **tensors})
    found = torch.load(path, weights_only=True)["torchkeep"]["tensors"]
    assert {item.device.type for item in found} == {"cpu"}


class OddTensor(torch.Tensor):
    """A tensor that hides its memory, as those of a sharded model do."""

    def data_ptr(self) -> int:
        raise RuntimeError("no storage")


def test_a_name_that_is_taken_is_refused_and_a_failed_write_leaves_nothing(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "step-00000001.pth", {"objects": {}})
    with pytest.raises(SaveRefused, match="there is something already"):
        write(path, {"objects": {}})
    for name in ("b.pth", "b"):
        with pytest.raises(SaveRefused, match="on the meta device"):
            write(tmp_path / name, {"objects": {}, "t": torch.ones(1, device="meta")})
        with pytest.raises(SaveRefused, match=r"tensor .t. is a .*OddTensor, whose values"):
            write(tmp_path / name, {"objects": {}, "t": OddTensor(torch.ones(2))})
    assert list(tmp_path.iterdir()) == [path]


# --- What a look at it tells ---------------------------------------------------------------------


def test_inspect_and_verify_tell_what_it_is(written: tuple[Path, Any]) -> None:
    found = torchkeep.inspect(written[0])
    assert found.summary.startswith("Checkpoint of a torchkeep run at step 1, epoch 2, saved 2026")
    assert [item.name for item in found.state_dicts] == ["model_state_dict", "ema_state_dict"]
    assert [item.family for item in found.optimizers] == ["AdamW"]
    assert (found.safety.verdict, found.integrity.ok) == ("data-only", True)
    assert torchkeep.verify(written[0]).state == "ok"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    torchkeep.load_into(model, written[0])


def test_two_files_are_compared_in_all_that_they_hold(
    written: tuple[Path, Any], tmp_path: Path
) -> None:
    state = written[1]
    again = write(tmp_path / "step-00000001.pth", state, date="2027-01-01", serial=7)
    assert torchkeep.diff(written[0], again).equal
    more = write(tmp_path / "step-00000002.pth", state | {"data": {"seed": 3}})
    found = torchkeep.diff(written[0], more)
    assert not found.equal
    changed = [item.name for part in found.parts for item in part.values]
    assert changed == ["torchkeep.manifest.structure.data.seed"]


def test_a_run_of_files_is_told_as_a_run(written: tuple[Path, Any], checkpoint: Path) -> None:
    run = checkpoint.parent
    write(run / "step-00000003.pth", written[1], step=3, serial=3)
    write(run / "step-00000002", written[1], step=2, serial=2)
    (run / "notes.txt").write_text("mine")
    found = torchkeep.inspect(run)
    assert found.container == "torchkeep-run"
    assert found.contents.kind == "run of 3 checkpoints, newest step 3"
    assert [item.path.name for item in found.contents.members] == [
        "step-00000002.pth",
        "step-00000002",
        "step-00000003.pth",
    ]
    counted = [path for path in run.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert found.contents.nbytes == sum(path.stat().st_size for path in counted)
    assert [item.name for item in found.state_dicts][:1] == ["model_state_dict"]
    assert torchkeep.verify(run).state == "ok"
    flip(run / "step-00000003.pth", first_tensor(run / "step-00000003.pth"))
    assert torchkeep.verify(run).state == "damaged"


def test_a_pickle_that_runs_code_beside_the_newest_is_seen(
    written: tuple[Path, Any], checkpoint: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    torch.save(Evil(), checkpoint.parent / "step-00000001.pth")
    assert torchkeep.inspect(checkpoint.parent).safety.verdict == "dangerous"


def test_another_programs_file_of_such_a_name_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "step-00000001.pth")
    assert torchkeep.inspect(tmp_path).container != "torchkeep-run"
    with pytest.raises(NoCheckpoint, match=r"step-00000001\.pth: .*not a checkpoint of torchkeep"):
        newest_whole(tmp_path)


# --- Damage --------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def first_tensor(path: Path) -> int:
    return min(entry.storage.offset for entry in entries(describe(path).root))


def test_a_flipped_bit_in_any_tensor_is_found(written: tuple[Path, Any], checkpoint: Path) -> None:
    clean = checkpoint.read_bytes()
    older = write(checkpoint.parent / "step-00000001.pth", {"objects": {}})
    places = {e.storage.offset: e.storage.nbytes for e in entries(describe(checkpoint).root)}
    assert len(places) == len(encode(written[1])[0])
    for start, nbytes in places.items():
        flip(checkpoint, start + nbytes // 2)
        assert "step-00000002.pth: the bytes of tensor" in damage(checkpoint)
        for mmap in (False, True):
            with pytest.raises(DamagedFile, match="differs from what was saved"):
                read_state(checkpoint, mmap=mmap)
        checkpoint.write_bytes(clean)
    flip(checkpoint, start)
    newest = newest_whole(checkpoint.parent)
    assert newest.checkpoint.path == older
    assert [item.path for item in newest.skipped] == [checkpoint]
    assert torchkeep.verify(checkpoint).state == "damaged"


def test_any_flipped_bit_is_found_or_harmless(written: tuple[Path, Any], checkpoint: Path) -> None:
    clean = checkpoint.read_bytes()
    expected = fingerprint(written[1])
    start = first_tensor(checkpoint)
    positions = {*range(0, start, start // 60), *range(len(clean) - 6000, len(clean), 120)}
    for position in positions:
        flip(checkpoint, position)
        problem = damage(checkpoint)
        try:
            assert fingerprint(read_state(checkpoint)) == expected
        except DamagedFile:
            assert problem
            assert problem.startswith("step-00000002.pth: ")
        checkpoint.write_bytes(clean)


def test_a_file_that_was_cut_off_is_named_and_skipped(checkpoint: Path) -> None:
    clean = checkpoint.read_bytes()
    older = write(checkpoint.parent / "step-00000001.pth", {"objects": {}})
    lengths = {*range(0, len(clean), len(clean) // 60), len(clean) - 1, len(clean) - 22}
    assert len(lengths) > 60
    for length in lengths:
        checkpoint.write_bytes(clean[:length])
        newest = newest_whole(checkpoint.parent)
        assert newest.checkpoint.path == older
        assert [item.path for item in newest.skipped] == [checkpoint]
        assert newest.skipped[0].problem
        with pytest.raises(DamagedFile, match=r"step-00000002\.pth: "):
            read_state(checkpoint)


def test_a_file_that_another_program_wrote_anew_is_no_whole_checkpoint(checkpoint: Path) -> None:
    tree = torch.load(checkpoint, weights_only=True)
    torch.save(tree, checkpoint)
    expected = "another program wrote the file anew"
    assert expected in damage(checkpoint)
    with pytest.raises(DamagedFile, match=expected):
        read_state(checkpoint)
    assert torchkeep.load(checkpoint)["epoch"] == 2


def test_a_tensor_that_is_not_where_the_manifest_says_is_damage(checkpoint: Path) -> None:
    tree = torch.load(checkpoint, weights_only=True)
    del tree["model_state_dict"]["3.bias"]
    torchkeep.save(tree, checkpoint, overwrite=True)
    expected = r"tensor objects/model/state/state_dict/3\.bias is missing"
    with pytest.raises(DamagedFile, match=expected):
        read_state(checkpoint)
    found = torchkeep.inspect(checkpoint)
    assert found.summary.startswith("Checkpoint of a torchkeep run without its manifest")
    assert "3.bias is missing" in found.integrity.findings[0].text


MANIFESTS = {
    "another digest": lambda text: text.replace('"step": 1', '"step": 7'),
    "no JSON": lambda text: text[:-1],
    "no places": lambda text: text.replace('"places"', '"plates"'),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_was_changed_is_refused(checkpoint: Path, change: Any) -> None:
    tree = torch.load(checkpoint, weights_only=True)
    tree["torchkeep"]["manifest"] = change(tree["torchkeep"]["manifest"])
    torchkeep.save(tree, checkpoint, overwrite=True)
    with pytest.raises(DamagedFile, match=r"step-00000002\.pth: it"):
        read_manifest(checkpoint)
    assert "is unusable" in list_checkpoints(checkpoint.parent)[0].problem


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pth"
    assert damage(path) == "step-00000001.pth is missing"
    with pytest.raises(FileMissing):
        read_state(path)


# --- A run ---------------------------------------------------------------------------------------


class Run:
    """A small run that may go on from either kind of checkpoint."""

    def __init__(self, folder: Path, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.ckpt = Checkpointer(
            folder, model=self.model, optimizer=self.optimizer, durable=False, **options
        )

    def train(self, num_epochs: int) -> Run:
        data = torch.utils.data.DataLoader(torch.randn(6, 2), batch_size=2, shuffle=True)
        with self.ckpt as ckpt:
            for _ in ckpt.epochs(num_epochs):
                for inputs in ckpt.batches(data):
                    loss = (self.model(inputs) + torch.rand(1)).sum()
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
                    ckpt.step(loss=loss)
        return self


@pytest.mark.parametrize("is_in_background", [False, True])
def test_a_run_goes_on_from_files_and_from_folders(tmp_path: Path, is_in_background: bool) -> None:
    whole = Run(tmp_path / "whole", background=is_in_background).train(4)
    parts = tmp_path / "parts"
    for num_epochs, kind in ((1, "pth"), (2, "folder"), (3, "pth"), (4, "pth")):
        run = Run(parts, format=kind, background=is_in_background).train(num_epochs)
    assert {path.name for path in parts.glob("step-*")} == {
        "step-00000006",
        "step-00000009.pth",
        "step-00000012.pth",
    }
    saved = [read_state(item.ckpt.last_saved)["objects"] for item in (whole, run)]
    assert fingerprint(saved[0]) == fingerprint(saved[1])
    assert [item.path.name for item in list_checkpoints(parts)] == [
        "step-00000006",
        "step-00000009.pth",
        "step-00000012.pth",
    ]
    newest = list_checkpoints(parts)[-1]
    assert newest.nbytes == newest.path.stat().st_size
    export_checkpoint(newest.path, tmp_path / "run.pth", durable=False)
    assert torch.load(tmp_path / "run.pth", weights_only=True)["step"] == 12


def test_a_file_and_a_folder_never_have_one_name(tmp_path: Path) -> None:
    with Run(tmp_path).ckpt as ckpt:
        ckpt.save()
    with Run(tmp_path, format="pth").ckpt as ckpt:
        assert ckpt.save().name == "step-00000000-2.pth"
    with Run(tmp_path).ckpt as ckpt:
        assert ckpt.save().name == "step-00000000"  # which retention made free


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="there is no format 'zip' of checkpoints"):
        Run(tmp_path, format="zip")


def test_either_kind_is_removed(written: tuple[Path, Any], checkpoint: Path) -> None:
    folder = write(checkpoint.parent / "step-00000001", written[1])
    for path in (folder, checkpoint):
        remove_checkpoint(path)
    assert list(checkpoint.parent.iterdir()) == []


def test_what_an_interrupted_write_left_goes_again(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.pth.torchkeep-tmp-0123").write_bytes(b"PK")
    with Run(tmp_path, format="pth").ckpt as ckpt:
        ckpt.save()
    assert [path.name for path in tmp_path.glob("*step*")] == ["step-00000000.pth"]
