"""Distributed checkpoints: what PyTorch's ranks saved becomes one file, and the other way round."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import torchkeep
from checkpointing.gang import on_ranks
from converting import ranks
from converting.ranks import full_tensors, network
from formats.samples_folders import quietly, spread, trained, write_ranks
from torchkeep.comparing import diff
from torchkeep.converting import convert
from torchkeep.errors import (
    DamagedFile,
    ProofFailed,
    SaveRefused,
    UnsafeContent,
    WrongArgument,
)
from torchkeep.formats import describe
from torchkeep.writing import dcp as dcp_writer


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what three ranks of gloo saved: `dcp`, and the full tensors."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(3, ranks.save, folder)
    return folder


def as_torch_loads(folder: Path) -> Any:
    path = folder.with_name(f"{folder.name}.as-torch-loads")
    quietly(dcp_to_torch_save, folder, path)
    return torch.load(path, weights_only=False)


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Assert that two trees are the same: types, order of keys, bits."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}.{number}")
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), path
        numbers = [it.contiguous().view(-1).view(torch.uint8) for it in (one, other)]
        assert torch.equal(*numbers), path
    else:
        assert repr(one) == repr(other), path


def checkpoint() -> dict[str, Any]:
    """Return what a training saves, every kind of value in it."""
    net, optimizer, scheduler = trained()
    return {
        "model": OrderedDict(net.state_dict()),
        "optimizer": {
            key: value for key, value in optimizer.state_dict().items() if key != "state"
        },
        "state": {str(key): value for key, value in optimizer.state_dict()["state"].items()},
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "best": float("nan"),
        "nothing": None,
        "names": ["a", "b"],
        "shape": (2, (3, "x")),
        "both": (torch.arange(3.0), 1),
        "scalar": torch.tensor(7),
        "no rows": torch.empty(0, 3),
        "transposed": torch.arange(12.0).view(3, 4).t(),
        "list": [torch.arange(3.0), {"x": torch.ones(1)}],
        **{f"{key}.weight": value for key, value in full_tensors().items()},
    }


def saved(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


# --- From ranks --------------------------------------------------------------------------------


def test_what_ranks_saved_becomes_one_file_bit_for_bit(by_ranks: Path, tmp_path: Path) -> None:
    convert(by_ranks / "dcp", tmp_path / "made.pth")
    made = torch.load(tmp_path / "made.pth")
    full = torch.load(by_ranks / "full.pth")
    tensors = full_tensors()
    for key, values in {"": full["model"], **full["optim"]["state"]}.items():
        found = made["optim"]["state"][key] if key else made["model"]
        assert_same({name: found[name] for name in values}, dict(values), key)
    assert_same(made["rows"], tensors)
    assert_same(made["columns"], {key: it for key, it in tensors.items() if it.dim() > 1})
    assert (made["epoch"], made["copies"].tolist()) == (3, [0, 1, 2, 3])


def test_a_state_dict_of_ranks_becomes_safetensors(by_ranks: Path, tmp_path: Path) -> None:
    report = convert(by_ranks / "dcp", tmp_path / "made.safetensors")
    assert report.state_dict == "model"
    made = load_file(tmp_path / "made.safetensors")
    full = torch.load(by_ranks / "full.pth")["model"]
    assert_same(made, {key: full[key] for key in made})
    assert made.keys() == full.keys()
    network().load_state_dict(made)


def test_ranks_become_hugging_face_shards_and_these_ranks_again(
    by_ranks: Path, tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    source, shards = by_ranks / "dcp", tmp_path / "hf" / "model.safetensors"
    report = convert(source, shards, select="rows", shard_nbytes=500)
    assert len(report.shards) > 3
    assert diff(source, tmp_path / "hf", select="rows", select_b="auto", verify=True).equal
    back = convert(tmp_path / "hf", tmp_path / "again", to="dcp", num_ranks=2)
    assert [path.name for path in back.shards] == ["__0_0.distcp", "__1_0.distcp"]
    again = as_torch_loads(tmp_path / "again")
    assert_same({key: again[key] for key in full_tensors()}, full_tensors())


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_ranks_become_more_ranks_or_fewer(by_ranks: Path, num_ranks: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    convert(by_ranks / "dcp", made, to="dcp", num_ranks=num_ranks)
    shards = {f"__{rank}_0.distcp" for rank in range(num_ranks)}
    assert {path.name for path in made.iterdir()} == {".metadata", *shards}
    assert_same(as_torch_loads(made), as_torch_loads(by_ranks / "dcp"))


def test_ranks_of_another_number_load_what_was_made_of_theirs(
    by_ranks: Path, tmp_path: Path
) -> None:
    convert(by_ranks / "dcp", tmp_path / "dcp", to="dcp", num_ranks=4)
    shutil.copy(by_ranks / "full.pth", tmp_path)
    on_ranks(2, ranks.load, tmp_path)


# --- To ranks ----------------------------------------------------------------------------------


def test_a_checkpoint_is_loaded_by_torch_as_it_loads_its_own(tmp_path: Path) -> None:
    state = checkpoint()
    source = saved(state, tmp_path / "a.pth")
    report = convert(source, tmp_path / "made", to="dcp", num_ranks=3)
    quietly(dcp.save, state, checkpoint_id=tmp_path / "torch's")
    assert_same(as_torch_loads(tmp_path / "made"), as_torch_loads(tmp_path / "torch's"))
    assert (report.path, report.container) == (tmp_path / "made", "dcp")
    assert report.nbytes == sum(path.stat().st_size for path in report.path.iterdir())
    assert (report.left_out, report.notes) == ((), ())
    assert diff(source, tmp_path / "made", verify=True).equal


def test_plain_tensors_are_filled_by_torch(tmp_path: Path) -> None:
    tensors = full_tensors()
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "made", to="dcp", num_ranks=3)
    found = {key: torch.zeros_like(it) for key, it in tensors.items()}
    quietly(dcp.load, found, checkpoint_id=tmp_path / "made")
    assert_same(found, tensors)


def test_the_metadata_is_that_of_torch(tmp_path: Path) -> None:
    """Everything that is not about the places: what torch wrote it reads as it reads ours."""
    state = checkpoint()
    convert(saved(state, tmp_path / "a.pth"), tmp_path / "made", to="dcp")
    quietly(dcp.save, state, checkpoint_id=tmp_path / "torch's")
    ours, theirs = (
        FileSystemReader(tmp_path / name).read_metadata() for name in ("made", "torch's")
    )
    assert ours.planner_data == theirs.planner_data
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert list(ours.state_dict_metadata) == list(theirs.state_dict_metadata)
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert ours.version == theirs.version
    for place in ours.storage_data.values():
        assert vars(place).keys() == vars(next(iter(theirs.storage_data.values()))).keys()


def test_tensors_are_split_as_fsdp2_does(tmp_path: Path) -> None:
    state = {"uneven": torch.randn(7, 3), "few": torch.randn(2, 2), "scalar": torch.tensor(1.0)}
    convert(saved(state, tmp_path / "a.pth"), tmp_path / "made", to="dcp", num_ranks=4)
    saved_as = FileSystemReader(tmp_path / "made").read_metadata().state_dict_metadata
    for name, tensor in state.items():
        pieces = torch.chunk(tensor, 4) if tensor.dim() else (tensor,)
        assert [chunk.sizes for chunk in saved_as[name].chunks] == [it.shape for it in pieces]
    assert (tmp_path / "made" / "__3_0.distcp").stat().st_size > 0  # the scalar: it had the least


def test_the_work_is_spread_over_the_ranks(tmp_path: Path) -> None:
    state = {"w": torch.randn(64, 64), **{f"s{n}": torch.tensor(float(n)) for n in range(40)}}
    state |= {f"v{n}": n for n in range(40)}
    convert(saved(state, tmp_path / "a.pth"), tmp_path / "made", to="dcp", num_ranks=4)
    sizes = [path.stat().st_size for path in (tmp_path / "made").glob("*.distcp")]
    assert max(sizes) < 1.1 * min(sizes)


def test_what_a_distributed_checkpoint_has_not_is_told(tmp_path: Path) -> None:
    weight = torch.ones(3, 2)
    state = {
        "model": {"a.weight": weight, "b.weight": weight},
        "mixed": {0: {"step": torch.tensor(1)}, "1": 2},
        "numbers": {0: {"step": torch.tensor(1)}, 1: {2: 3}},
        "empty": {"inner": {}},
        "list": [weight.clone(), {}],
    }
    report = convert(saved(state, tmp_path / "a.pth"), tmp_path / "made", to="dcp")
    assert report.notes == (
        "'empty.inner' has no items, which only torchkeep knows.",
        "'list.1' has no items, which only torchkeep knows.",
        "'numbers' has keys that are texts for PyTorch.",
        "'numbers.1' has keys that are texts for PyTorch.",
        "'mixed' has keys that are texts now.",
        "'model.b.weight' is the same tensor as 'model.a.weight', and is stored again.",
    )
    assert report.left_out == ()
    quietly(dcp.save, state, checkpoint_id=tmp_path / "torch's")
    assert_same(as_torch_loads(tmp_path / "made"), as_torch_loads(tmp_path / "torch's"))


def test_what_it_can_not_have_is_refused_by_name(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    cases = [
        ({"a": {"s": sparse}}, r"tensor 'a\.s' is a sparse_coo tensor, which a distributed"),
        ({1: 2, "1": 3}, r"two values would be called '1'\. Rename one of them, or leave it out"),
        ([torch.ones(1)], r"a distributed checkpoint has values by name, and this is none"),
    ]
    for state, text in cases:
        with pytest.raises(SaveRefused, match=text):
            convert(saved(state, tmp_path / "a.pth"), tmp_path / "made", to="dcp")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_the_choices_of_a_conversion_hold(tmp_path: Path) -> None:
    net = network()
    state = {"model": torch.nn.DataParallel(net).state_dict(), "epoch": 3}
    source = saved(state, tmp_path / "a.pth")
    convert(source, tmp_path / "a", to="dcp", num_ranks=2, select="auto", strip=True)
    assert_same(as_torch_loads(tmp_path / "a"), dict(net.state_dict()))
    report = convert(source, tmp_path / "b", to="dcp", num_ranks=3, dtype="bfloat16")
    assert report.cast is not None
    halves = torch.nn.DataParallel(network().bfloat16()).state_dict()
    assert_same(as_torch_loads(tmp_path / "b")["model"], dict(halves))


def test_more_ranks_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"w": torch.randn(11, 3), "t": torch.arange(12.0).view(3, 4).t(), "n": 1}
    source = saved(state, tmp_path / "a.pth")
    monkeypatch.setattr(dcp_writer, "_MOST_OPEN", 2)
    convert(source, tmp_path / "made", to="dcp", num_ranks=7)
    assert_same(as_torch_loads(tmp_path / "made"), state)
    assert torchkeep.verify(tmp_path / "made").ok


def test_an_optimizer_stays_one(tmp_path: Path) -> None:
    """PyTorch makes texts of the numbers of its parameters, and drops a state without any."""
    net, optimizer, _ = trained()
    fresh = torch.optim.SGD(net.parameters(), lr=0.5).state_dict()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "fresh": fresh}
    convert(saved(state, tmp_path / "a.pth"), tmp_path / "made", to="dcp", num_ranks=2)
    convert(tmp_path / "made", tmp_path / "more", to="dcp", num_ranks=3)
    for name in ("made", "more"):
        convert(tmp_path / name, tmp_path / f"{name}.pth")
        found = torch.load(tmp_path / f"{name}.pth")
        assert_same(found["optimizer"], state["optimizer"])
        assert found["fresh"] == fresh
        assert torchkeep.inspect(tmp_path / name).optimizers[0].family == "AdamW"
        assert diff(tmp_path / "a.pth", tmp_path / name, verify=True).equal


def test_an_optimizer_that_pytorch_saved_can_be_loaded_by_its_numbers(tmp_path: Path) -> None:
    net, optimizer, _ = trained()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    quietly(dcp.save, state, checkpoint_id=tmp_path / "torch's")
    report = convert(tmp_path / "torch's", tmp_path / "made.pth")
    note = "The keys of 'optimizer.state' are numbers again, as its 'params' are."
    assert report.notes == (note,)
    found = torch.load(tmp_path / "made.pth")["optimizer"]
    assert_same(found["state"], state["optimizer"]["state"])
    fresh = torch.optim.AdamW(net.parameters())
    fresh.load_state_dict(found)
    assert set(fresh.state) == set(net.parameters())


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "1", '{"empty": 1, "numbered": [1]}', '{"empty": [[]], "numbered": [["w"]]}'),
        '{"empty": [["w"], ["w", "x"], ["list", 9999999999], [true]]}',
        '{"numbered": [["n"], ["n", 0], ["list", 7, "x"], ["none"]]}',
    ],
)
def test_a_shape_that_makes_no_sense_tells_nothing(text: str, tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "list": [torch.ones(1)], "n": {"a": 1}}
    quietly(dcp.save, state, checkpoint_id=tmp_path)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    metadata.torchkeep = {"torchkeep.shape": text}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_same(torchkeep.load(tmp_path), state)


# --- What goes along ---------------------------------------------------------------------------


def test_the_metadata_and_the_digests_go_along(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    torchkeep.save({"w": torch.randn(5, 2)}, source, metadata={"version": "7", "note": "mine"})
    convert(source, tmp_path / "made", to="dcp", num_ranks=2)
    told = torchkeep.inspect(tmp_path / "made").contents.metadata
    assert (told["note"], told["version"]) == ("mine", "7")
    assert '"name": "a.safetensors"' in told["converted_from"]
    convert(tmp_path / "made", tmp_path / "back.safetensors")
    back = torchkeep.inspect(tmp_path / "back.safetensors").contents.metadata
    assert (back["note"], back["version"]) == ("mine", "7")
    assert "save_id" not in back


def test_a_rank_of_another_checkpoint_is_told_by_the_digests(tmp_path: Path) -> None:
    for number in (1, 2):
        torch.manual_seed(number)
        source = saved({"w": torch.randn(6, 2), "b": torch.ones(4)}, tmp_path / f"{number}.pth")
        convert(source, tmp_path / f"dcp{number}", to="dcp", num_ranks=2)
    mixed = tmp_path / "dcp1"
    assert torchkeep.verify(mixed).ok
    shutil.copy(tmp_path / "dcp2" / "__1_0.distcp", mixed)
    text = r"tensor 'w' differs from what was saved: its digest is another one"
    with pytest.raises(DamagedFile, match=text):
        convert(mixed, tmp_path / "made.pth")
    with pytest.raises(DamagedFile, match=text):
        torchkeep.load(mixed)
    found = torchkeep.verify(mixed)
    text = "the bytes of tensor 'w' do not match the digest that was saved with them"
    assert [item.text for item in found.findings] == [text]


# --- What may go wrong -------------------------------------------------------------------------


def test_an_interrupted_conversion_leaves_no_folder(tmp_path: Path) -> None:
    source = saved({f"l{n}": torch.randn(2000) for n in range(2000)}, tmp_path / "a.pth")
    program = (
        "import os, signal, sys, torchkeep\n"
        "def stop(done, total):\n"
        "    if done > total * float(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "torchkeep.convert(*sys.argv[1:3], to='dcp', num_ranks=2, progress=stop)\n"
    )
    for share in ("0.1", "0.49", "0.7", "0.99"):
        command = [sys.executable, "-c", program, source, tmp_path / "made", share]
        assert subprocess.run(command, check=False).returncode == -9
        assert not (tmp_path / "made").exists()


def test_a_writer_that_errs_is_caught_before_the_folder_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved({"w": torch.arange(12.0).view(6, 2)}, tmp_path / "a.pth")
    write = dcp_writer._Writing.write_ranks

    def write_wrongly(self: Any, folder: Path, ranks: range, durable: bool) -> None:
        write(self, folder, ranks, durable)
        self.plan.places["w", 0], self.plan.places["w", 1] = (
            self.plan.places["w", 1],
            self.plan.places["w", 0],
        )

    monkeypatch.setattr(dcp_writer._Writing, "write_ranks", write_wrongly)
    with pytest.raises(ProofFailed, match=r"made: 'w' differs from the source after writing"):
        convert(source, tmp_path / "made", to="dcp", num_ranks=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_progress_counts_writing_and_reading_back(tmp_path: Path) -> None:
    source = saved({"a": torch.zeros(1 << 21), "b": torch.ones(5), "n": 1}, tmp_path / "a.pth")
    calls: list[tuple[int, int]] = []
    made = tmp_path / "made"
    convert(source, made, to="dcp", num_ranks=3, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (2 * ((1 << 23) + 20),) * 2


def test_a_full_disk_is_one_error_that_names_the_shard(tmp_path: Path) -> None:
    source = saved({"w": torch.ones(1 << 20)}, tmp_path / "a.pth")
    program = (
        "import resource, signal, sys, torchkeep\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: torchkeep.convert(*sys.argv[1:], to='dcp', num_ranks=2)\n"
        "except torchkeep.TorchkeepError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, source, tmp_path / "made"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"/made/__[01]_0\.distcp: larger than a file may be here", done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    source = saved({"w": torch.ones(2)}, tmp_path / "a.pth")
    (tmp_path / "made").mkdir()
    text = r"made: there is something already\. Choose another name; a folder is never replaced"
    with pytest.raises(SaveRefused, match=text):
        convert(source, tmp_path / "made", to="dcp", overwrite=True)
    with pytest.raises(SaveRefused, match=r"made: its folder does not exist"):
        convert(source, tmp_path / "none" / "made", to="dcp")


def test_arguments_of_no_use_are_refused(tmp_path: Path) -> None:
    source = saved({"w": torch.ones(2)}, tmp_path / "a.pth")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"to": "dpc"}, r"there is no format 'dpc' to convert to\. Use to='dcp'"),
        ({"num_ranks": 2}, r"num_ranks is 2, which only a distributed checkpoint has\. Pass to="),
        ({"to": "dcp", "num_ranks": 0}, r"num_ranks is 0, and there is one rank at least"),
        ({"to": "dcp", "shard_nbytes": 9}, r"is split by ranks, not by size\. Give num_ranks"),
    ]
    for arguments, text in cases:
        with pytest.raises(WrongArgument, match=text):
            convert(source, tmp_path / "made", **arguments)
    text = r"the suffix '' names no format\. Use one of .* For a folder, pass to='dcp' \(--to dcp\)"
    with pytest.raises(SaveRefused, match=text):
        convert(source, tmp_path / "made")


# --- Sources that are not whole ------------------------------------------------------------------


def copied(by_ranks: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(by_ranks / "dcp", tmp_path / "dcp"))


TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("made.pth", {}),
    ("made.safetensors", {"select": "rows"}),
    ("made", {"to": "dcp", "num_ranks": 2}),
]
every_target = pytest.mark.parametrize(("name", "arguments"), TARGETS)


@every_target
def test_a_missing_shard_is_refused_by_its_name(
    by_ranks: Path, name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = copied(by_ranks, tmp_path)
    (folder / "__1_0.distcp").unlink()
    text = r"1 of 3 shards can't be opened: '__1_0\.distcp'\. Copy or download what is missing"
    with pytest.raises(DamagedFile, match=text):
        convert(folder, tmp_path / name, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["dcp"]


@every_target
def test_a_piece_that_was_cut_off_is_refused_by_the_tensors_name(
    by_ranks: Path, name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = copied(by_ranks, tmp_path)
    shard = folder / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:20_000])
    with pytest.raises(DamagedFile, match=r"tensor '.*' can't be put together: some of its pieces"):
        convert(folder, tmp_path / name, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["dcp"]
    assert "'__0_0.distcp' is truncated: " in told(folder)


@every_target
def test_a_flipped_bit_is_refused_by_the_tensors_name(
    by_ranks: Path, name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = copied(by_ranks, tmp_path)
    full = full_tensors()["box.int64"]
    shard = folder / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    rows = data.index(bytes(full[:2].numpy().tobytes()))
    data[rows + 9] ^= 1
    shard.write_bytes(data)
    text = r"a piece of tensor '.*box\.int64' can't be used: the bytes of storage .* do not match"
    with pytest.raises(DamagedFile, match=text):
        convert(folder, tmp_path / name, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["dcp"]
    assert not torchkeep.verify(folder).ok


def told(folder: Path) -> str:
    return "\n".join(finding.text for finding in describe(folder).findings)


def test_a_shard_of_another_model_is_told_by_shapes_and_places(tmp_path: Path) -> None:
    """Of PyTorch's checkpoints, no shard says to which save it belongs: what differs must tell."""
    for name, rows in (("a", 6), ("b", 8)):
        whole = torch.randn(rows, 3)
        half = rows // 2
        write_ranks(
            tmp_path / name,
            [
                {"w": spread(whole, ((0, 0), (half, 3)))},
                {"w": spread(whole, ((half, 0), (half, 3)))},
            ],
        )
    shutil.copy(tmp_path / "b" / "__1_0.distcp", tmp_path / "a")
    with pytest.raises(DamagedFile, match=r"tensor 'w' can't be put together"):
        convert(tmp_path / "a", tmp_path / "made.pth")
    assert "a piece of 'w' is said to be float32 [3, 3], and is not" in told(tmp_path / "a")


class Hostile:
    def __init__(self, call: Any, *arguments: str) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("where", ["metadata", "planner_data", "value"])
def test_a_hostile_metadata_or_value_is_never_run(where: str, tmp_path: Path) -> None:
    mark, folder = tmp_path / "was run", tmp_path / "dcp"
    hostile = Hostile(os.system, f"touch {mark}")
    state: dict[str, Any] = {"w": torch.ones(4), "n": hostile if where == "value" else 1}
    quietly(dcp.save, state, checkpoint_id=folder)
    if where != "value":
        path = folder / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        metadata.planner_data["w"] = hostile
        path.write_bytes(pickle.dumps(hostile if where == "metadata" else metadata))
    expected: dict[str, tuple[type[Exception], str]] = {
        "metadata": (DamagedFile, r"the pickle is not the metadata of a distributed checkpoint"),
        "planner_data": (
            UnsafeContent,
            r"dcp/\.metadata: the metadata of this checkpoint would run (posix|nt)\.system when it",
        ),
        "value": (SaveRefused, r"'n' would need (posix|nt)\.system to be imported"),
    }
    kind, text = expected[where]
    for name, arguments in (("made.pth", {}), ("made", {"to": "dcp"})):
        with pytest.raises(kind, match=text):
            convert(folder, tmp_path / name, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["dcp"]
    assert torchkeep.inspect(folder / ".metadata").safety.verdict == "dangerous"
    assert not mark.exists()


# --- Without torch, and without memory ---------------------------------------------------------

_PEAK = (
    "import json, resource, sys, torchkeep, torchkeep.converting\n"
    "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
    "before = peak()\n"
    "torchkeep.convert(*sys.argv[1:3], durable=False, **json.loads(sys.argv[3]))\n"
    "assert 'torch' not in sys.modules\n"
    "print(peak() - before)\n"
)


def test_memory_stays_far_below_the_largest_tensor(tmp_path: Path) -> None:
    whole = torch.randn(4001, 8192)  # 125 MiB
    thirds = [(0, 2731), (2731, 2731), (5462, 2730)]
    states = [
        {
            "model": {
                "rows.weight": spread(whole, ((1334 * n, 0), (min(1334, 4001 - 1334 * n), 8192))),
                "columns.weight": spread(whole, ((0, start), (4001, width))),
            }
        }
        for n, (start, width) in enumerate(thirds)
    ]
    write_ranks(tmp_path / "dcp", states)
    del states
    for name, arguments in (
        *(("a.pth", "{}"), ("a.safetensors", "{}")),
        ("made", '{"to": "dcp", "num_ranks": 5}'),
    ):
        command = [sys.executable, "-c", _PEAK, tmp_path / "dcp", tmp_path / name, arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 50 << 20, name
    for name in ("a.safetensors", "made"):
        found = torchkeep.load(tmp_path / name)
        model = found.get("model", found)
        assert all(it.equal(whole) for it in model.values())
