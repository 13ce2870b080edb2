"""What several ranks write is one checkpoint, whoever reads it."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import torchkeep
from checkpointing.gang import on_ranks
from torchkeep.checkpointing import Checkpointer, newest_whole
from torchkeep.checkpointing.layout import (
    damage,
    read_data_of_ranks,
    read_manifest,
    read_part,
    read_state,
    write_part,
)
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.checkpointing.state.encoding import encode, fingerprint
from torchkeep.checkpointing.state.sharded import part_of
from torchkeep.errors import CheckpointProblem, DamagedFile, InexactResume, SaveRefused
from torchkeep.formats.own.manifest import manifest_digest

FACTS = {
    "serial": 1,
    "step": 4,
    "epoch": 1,
    "batch": 0,
    "metrics": {},
    "inexact": [],
    "date": "2026-01-01T00:00:00+00:00",
}
SHARD = "shard-00002-model-00001-of-00001.safetensors"


def state_of(rank: int) -> dict:
    """Return a state of which some is alike on all ranks, some not, and some of each rank alone."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        **{f"layer{n}.weight": torch.randn(300, 311, generator=generator) for n in range(5)},
        "layer2.stats": torch.full((37,), float(rank)),
        "half": torch.randn(50_001, generator=generator).bfloat16(),
    }
    weights["tied"] = weights["layer0.weight"]
    moments = {n: {"exp_avg": torch.randn(90_000, generator=generator)} for n in range(4)}
    return {
        "objects": {
            "model": {"kind": "module", "state": {"state_dict": weights}},
            "optimizer": {"kind": "optimizer", "state": {"state": moments, "rate": 0.5}},
            "extra": {"kind": "value", "state": {"rank": rank}},
        },
        "inexact": ["it was raining"] if rank == 1 else [],
        "rng": {"torch": torch.full((5,), rank, dtype=torch.uint8)},
        "data": {"order": torch.arange(10 + rank)},
    }


def write(rank: int, folder: Path, background: bool) -> None:
    ranks = Ranks.here(30)
    ranks.connect()
    part = part_of(*encode(state_of(rank)))
    write_part(folder, part, facts=FACTS, ranks=ranks, durable=False, background=background)


@pytest.fixture(scope="module", params=[False, True], ids=["waiting", "background"])
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "step-00000004"
    on_ranks(3, write, folder, request.param)
    return folder


def test_what_all_have_alike_is_as_one_process_writes_it(written, tmp_path):
    alone = tmp_path / "step-00000004"
    state = {name: item for name, item in state_of(0).items() if name in ("objects", "inexact")}
    write_part(alone, part_of(*encode(state)), facts=FACTS, durable=False)
    for name in ("model.safetensors", "state.safetensors"):
        assert (written / name).read_bytes() == (alone / name).read_bytes(), name
    assert load_file(written / "model.safetensors")["layer2.stats"].tolist() == [0.0] * 37
    names = {path.name for path in written.iterdir()}
    own = {f"rank-0000{rank}.safetensors" for rank in range(3)}
    assert names == {"manifest.json", "model.safetensors", "state.safetensors", *own}


def test_each_rank_gets_back_what_it_had(written):
    for rank in range(3):
        found, expected = read_part(written, Ranks(rank, 3)), state_of(rank)
        assert fingerprint(found) == fingerprint(expected)
    first = fingerprint({**state_of(0), "inexact": []})
    assert fingerprint(read_state(written)) == first
    assert fingerprint(read_part(written, Ranks(1, 2))) == first  # another number of ranks
    assert damage(written) == ""
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["inexact"] == ["rank 1: it was raining"]
    own = manifest["tensors"]["rank-00002.safetensors"]
    assert sorted(own) == ["data/order", "objects/model/state/state_dict/layer2.stats", "rng/torch"]


@pytest.mark.parametrize("place", ["rank-00002.safetensors", "model.safetensors"])
def test_any_rank_finds_a_bit_that_turned(written, tmp_path, place):
    broken = shutil.copytree(written, tmp_path / "step-00000004")
    path = broken / place
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    told = [damage(broken, ranks=Ranks(rank, 3)) for rank in range(3)]
    assert sorted(map(bool, told)) == [False, False, True]
    assert place in damage(broken)
    with pytest.raises(DamagedFile, match="differs from what was written"):
        read_part(broken, Ranks(2, 3))


def test_a_manifest_tells_of_each_rank(written, tmp_path):
    broken = shutil.copytree(written, tmp_path / "step-00000004")
    (broken / "rank-00001.safetensors").unlink()
    assert damage(broken) == "rank-00001.safetensors is missing"
    assert torchkeep.verify(broken).state == "damaged"
    kind = torchkeep.inspect(broken).contents.kind
    assert kind.endswith("by 3 ranks")


def test_what_a_rank_had_for_itself_is_of_the_same_checkpoint(tmp_path):
    """Its tensors may be alike in two checkpoints, and the plain values beside them not."""
    for number in (1, 2):
        on_ranks(2, write_numbered, tmp_path / f"step-0000000{number}", number)
    broken, other = tmp_path / "step-00000002", tmp_path / "step-00000001"
    shutil.copy(other / "rank-00001.safetensors", broken)
    for read in (
        lambda: read_part(broken, Ranks(1, 2)),
        lambda: read_data_of_ranks(broken),
    ):
        with pytest.raises(DamagedFile, match=r"rank-00001.*its header differs"):
            read()


def write_numbered(rank: int, folder: Path, number: int) -> None:
    ranks = Ranks.here(30)
    ranks.connect()
    state = {"objects": {}, "inexact": [], "data": {"batch": number, "order": torch.arange(3)}}
    write_part(folder, part_of(*encode(state)), facts=FACTS, ranks=ranks, durable=False)


@pytest.mark.parametrize("told", [{"ranks": 10**15}, {"ranks": "x"}, {"boxes": None}])
def test_a_manifest_of_one_process_knows_of_no_ranks(tmp_path, told):
    folder = tmp_path / "step-00000004"
    write_part(folder, part_of(*encode(state_of(0))), facts=FACTS, durable=False)
    manifest = read_manifest(folder) | told
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedFile, match=r"version 2 knows of no ranks"):
        read_state(folder)
    assert torchkeep.verify(folder).state == "damaged"


# --- Sharded -----------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(inputs)))


def sharded(size: int) -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(model.first, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank: int, run: Path, num_epochs: int, options: dict) -> dict:
    """Train a sharded model; return its whole tensors."""
    warnings.simplefilter("error")
    model = sharded(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(rank)
    with Checkpointer(run, model=model, optimizer=optimizer, timeout_s=30, **options) as ckpt:
        for _ in ckpt.epochs(num_epochs):
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
    state = model.state_dict()
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "run"
    (state, *_) = on_ranks(3, train, folder, 2, {"keep_last": None})
    return folder, state


def test_shards_are_a_whole_model_for_everybody(run, tmp_path):
    folder, expected = run
    newest = folder / "step-00000002"
    assert torchkeep.inspect(newest).state_dicts[0].num_tensors == 9
    for found in (
        torchkeep.load(newest)["model"],
        read_state(newest)["objects"]["model"]["state"]["state_dict"],
    ):
        assert fingerprint(dict(found)) == fingerprint(expected)
    torchkeep.convert(newest, tmp_path / "model.safetensors")
    assert fingerprint(load_file(tmp_path / "model.safetensors")) == fingerprint(
        dict(sorted(expected.items()))
    )
    assert torchkeep.verify(newest).state == "ok"


def test_the_whole_model_may_stand_beside_its_shards(run, tmp_path):
    _, expected = run
    options = {"whole_model": True, "keep_last": 1}
    (state, *_) = on_ranks(3, train, tmp_path / "run", 2, options)
    newest = tmp_path / "run" / "step-00000002"
    assert fingerprint(state) == fingerprint(expected)
    whole = load_file(newest / "model.safetensors")
    assert fingerprint(whole) == fingerprint(dict(sorted(expected.items())))
    assert damage(newest) == ""
    assert torchkeep.verify(newest).state == "ok"
    assert fingerprint(dict(torchkeep.load(newest)["model"])) == fingerprint(expected)
    assert on_ranks(2, resume, tmp_path / "run", True) == ["step-00000002"] * 2


def test_pytorch_reads_the_shards_by_its_own_reader(run):
    folder, expected = run
    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    reader = dcp.HuggingFaceStorageReader(str(folder / "step-00000002"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(found, storage_reader=reader, no_dist=True)
    assert fingerprint(found) == fingerprint(expected)


def resume(rank: int, run: Path, allow_inexact: bool) -> str:
    model = sharded(torch.distributed.get_world_size())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ckpt = Checkpointer(
        run, model=model, optimizer=optimizer, allow_inexact=allow_inexact, timeout_s=30
    )
    try:
        return ckpt.restore().path.name
    except CheckpointProblem as error:
        return f"{type(error).__name__}: {error}"
    finally:
        ckpt.close()


def test_shards_of_two_checkpoints_are_no_checkpoint(run, tmp_path):
    mixed = shutil.copytree(run[0], tmp_path / "mixed")
    shutil.copy(mixed / "step-00000001" / SHARD, mixed / "step-00000002" / SHARD)
    found = newest_whole(mixed)
    assert found.checkpoint.step == 1
    assert f"{SHARD}: its header differs from what was written" in found.skipped[0].problem
    with pytest.raises(DamagedFile, match="differs from what was written"):
        read_state(mixed / "step-00000002")
    with pytest.raises(DamagedFile, match=r"tensor 'model\.first\.weight from \[3, 0\] on'"):
        torchkeep.load(mixed / "step-00000002")
    assert on_ranks(3, resume, mixed, False) == ["step-00000001"] * 3


def test_a_bit_that_turned_in_a_shard_is_found_by_whoever_reads_it(run, tmp_path):
    broken = shutil.copytree(run[0] / "step-00000002", tmp_path / "step-00000002")
    data = bytearray((broken / SHARD).read_bytes())
    data[-3] ^= 4
    (broken / SHARD).write_bytes(data)
    target = tmp_path / "model.safetensors"
    with pytest.raises(DamagedFile, match=r"a piece of tensor .* differs from what was written"):
        torchkeep.convert(broken, target)
    assert not target.exists()
    with pytest.raises(DamagedFile, match="its digest is another one"):
        torchkeep.load(broken)
    assert torchkeep.verify(broken).state == "damaged"
    assert SHARD in damage(broken)


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("no boxes", r"its 'boxes' is not what a checkpoint has there"),
        ("a whole one besides", r"it has tensor first.weight as a whole, and once more"),
        ("fewer ranks", r"it names .*, and 2 ranks have written it"),
        ("over another", r"first.weight: its pieces overlap"),
        ("outside", r"first.weight: its pieces overlap"),
        ("elsewhere", r"the pieces of .*first.weight are of several tensors"),
        ("flat", r"first.weight.*another number of dimensions"),
    ],
)
def test_pieces_that_are_not_those_of_one_tensor_are_refused(run, tmp_path, how, problem):
    folder, _ = run
    broken = shutil.copytree(folder / "step-00000002", tmp_path / "step-00000002")
    manifest = read_manifest(broken)
    boxes = manifest["boxes"]
    if how == "no boxes":
        del manifest["boxes"]
    elif how == "a whole one besides":
        del boxes[SHARD]["first.weight"]
    elif how == "fewer ranks":
        manifest["ranks"] = 2
    elif how == "over another":
        boxes[SHARD]["first.weight"]["offsets"] = [0, 0]
    elif how == "outside":
        boxes[SHARD]["first.weight"]["offsets"] = [1 << 48, 0]
    elif how == "elsewhere":
        boxes[SHARD]["first.weight"]["shape"] = [9, 5]
    else:
        flat = {"offsets": [0], "shape": [35]}
        for pieces in boxes.values():
            pieces.update({key: flat for key in pieces if key == "first.weight"})
    manifest["digest"] = manifest_digest(manifest)
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedFile, match=problem):
        read_state(broken)
    assert torchkeep.verify(broken).state == "damaged"


def test_a_missing_shard_is_named(run, tmp_path):
    broken = shutil.copytree(run[0], tmp_path / "broken")
    (broken / "step-00000002" / SHARD).unlink()
    assert newest_whole(broken).skipped[0].problem == f"{SHARD} is missing"
    with pytest.raises(Exception, match=SHARD):
        read_state(broken / "step-00000002")
    with pytest.raises(DamagedFile, match=r"6 tensors of the manifest are in no file"):
        torchkeep.load(broken / "step-00000002")


def test_another_number_of_ranks_needs_consent(run):
    told = on_ranks(2, resume, run[0], False)
    assert told[0] == told[1]
    assert told[0].startswith(InexactResume.__name__)
    assert "3 ranks trained together, and now it is 2. " in told[0]
    assert "allow_inexact=True" in told[0]
    assert on_ranks(2, resume, run[0], True) == ["step-00000002"] * 2


def resume_otherwise(rank: int, run: Path, allow_inexact: bool) -> str:
    """Go on with all of the model on each rank."""
    ckpt = Checkpointer(
        run, model=nn.parallel.DistributedDataParallel(Small()), allow_inexact=allow_inexact
    )
    try:
        ckpt.restore()
        return "; ".join(ckpt.inexact)
    except CheckpointProblem as error:
        return str(error)
    finally:
        ckpt.close()


def test_ddp_in_the_place_of_fsdp2_needs_consent(run):
    expected = "each rank had the model in pieces (FSDP2), and now it is as a whole (DDP)"
    told = on_ranks(3, resume_otherwise, run[0], False)
    assert all(expected in text for text in told)
    assert all("allow_inexact=True" in text for text in told)
    told = on_ranks(3, resume_otherwise, run[0], True)
    assert all(expected in text for text in told)


def save_as_one_file(rank: int, run: Path) -> str:
    ckpt = Checkpointer(run, model=nn.Linear(2, 2), format="pth", timeout_s=30)
    try:
        ckpt.save()
    except Exception as error:  # of any kind
        return str(error)
    return "saved"


def test_one_file_is_too_little_for_several_ranks(tmp_path):
    for told in on_ranks(2, save_as_one_file, tmp_path):
        assert '2 ranks have more to keep than one file holds. Pass format="folder"' in told


def refused(rank: int, run: Path) -> str:
    extra = {"t": torch.ones(3, device="meta" if rank == 1 else "cpu")}
    ckpt = Checkpointer(run, model=nn.Linear(2, 2), extra=extra, timeout_s=30)
    try:
        ckpt.save()
    except SaveRefused as error:
        told = str(error)
    ckpt.close()
    return told + "".join(path.name for path in run.glob("*step*"))


def test_what_one_rank_can_not_keep_leaves_nothing_of_the_others(tmp_path):
    told = on_ranks(2, refused, tmp_path / "run")
    assert told[0].startswith("rank 1: tensor 'objects/extra/state/t' is on the meta device")
    assert told[1].startswith("tensor 'objects/extra/state/t' is on the meta device")
    assert "step" not in told[0].partition("first.")[2]


# --- Spread over some of the ranks --------------------------------------------------------------


def parallel() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model of which a part is tensor-parallel, sharded over the other two ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    return model, torch.optim.AdamW(model.parameters(), foreach=False)


def whole(model: nn.Module) -> dict:
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


def train_parallel(rank: int, run: Path, stops: list[int]) -> dict:
    """Train until the last of some steps, with a new program after each of them."""
    for stop in stops:
        model, optimizer = parallel()
        with Checkpointer(run, model=model, optimizer=optimizer, timeout_s=30) as ckpt:
            for _ in ckpt.epochs(stop):
                generator = torch.Generator().manual_seed(ckpt.num_steps)
                model(torch.randn(4, 5, generator=generator)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                ckpt.step()
    return whole(model)


def test_what_each_row_of_a_mesh_has_is_kept_once(tmp_path):
    (expected, *_) = on_ranks(4, train_parallel, tmp_path / "expected", [3])
    (found, *_) = on_ranks(4, train_parallel, tmp_path / "found", [1, 3])
    assert fingerprint(found) == fingerprint(expected)
    newest = tmp_path / "found" / "step-00000003"
    assert torchkeep.verify(newest).state == "ok"
    assert fingerprint(dict(torchkeep.load(newest)["model"])) == fingerprint(expected)


def write_pieces(rank: int, folder: Path, kind: str) -> str:
    """Write a state of a sharded tensor that ranks do not have alike; return what is said."""
    init_device_mesh("cpu", (2,))
    everywhere = DeviceMesh("cpu", [0, 1])
    own = [DeviceMesh("cpu", [0]), DeviceMesh("cpu", [1])]  # all ranks make each
    size = 4 + rank * (kind == "other sizes")
    local = torch.full((size,), 1.0 + rank * (kind == "other values"))
    value = DTensor.from_local(local, own[rank], [Shard(0)])
    if kind == "a gap":
        placement = (Shard(0), Replicate())[rank]
        value = DTensor.from_local(torch.ones(2 + 2 * rank), everywhere, [placement])
    elif kind == "summands":
        value = DTensor.from_local(torch.ones(4), everywhere, [Partial()])
    try:
        ranks = Ranks.here(30)
        ranks.connect()
        node = {"kind": "module", "state": {"state_dict": {"w": value}}}
        part = ranks.each(lambda: part_of(*encode({"objects": {"model": node}, "inexact": []})))
        part = replace(part, tensors={name: it.to_local() for name, it in part.tensors.items()})
        write_part(folder, part, facts=FACTS, ranks=ranks, durable=False)
    except SaveRefused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("other sizes", r"state_dict/w is float32 \[4\] on rank 0 and float32 \[5\] on rank 1"),
        ("a gap", "state_dict/w: 2 of 4 elements are in no piece"),
        ("summands", r"state_dict/w' is \(Partial\(sum\),\): what ranks have is still to be added"),
    ],
)
def test_pieces_that_can_not_be_put_together_again_are_not_saved(tmp_path, kind, problem):
    told = on_ranks(2, write_pieces, tmp_path / "step-00000004", kind)
    assert all(re.search(problem, text) for text in told), told
    assert list(tmp_path.iterdir()) == []


def test_copies_that_are_not_alike_are_told_of(tmp_path):
    for kind, reasons in (
        ("alike", []),
        (
            "other values",
            [
                "rank 1: its copy of objects/model/state/state_dict/w is not that of the ranks "
                "before it"
            ],
        ),
    ):
        folder = tmp_path / kind / "step-00000004"
        folder.parent.mkdir()
        assert on_ranks(2, write_pieces, folder, kind) == ["", ""]
        assert read_manifest(folder)["inexact"] == reasons
        assert torchkeep.load(folder)["model"]["w"].tolist() == [1.0] * 4
