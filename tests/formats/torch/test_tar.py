"""The oldest format: what it holds, and what is said when it is not whole.

PyTorch 2 still reads it, which is what it is compared with.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from formats.building import Call, StorageId, object_pickle, rules
from formats.samples_archives import (
    DATA,
    every_part,
    tar_file,
    tar_records,
    tar_state_dict,
    tar_storage,
    tar_tensor,
    torch_tar,
    write_every_part,
    write_tar_state_dict,
)
from torchkeep.contents import Contents, Global, Object, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import InputFile, MemoryFile
from torchkeep.formats import describe, examine, examine_open
from torchkeep.pickles.limits import DEFAULT_LIMITS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Couldn't retrieve source"),
    pytest.mark.filterwarnings("ignore:.*source code of class"),
    pytest.mark.filterwarnings("ignore:.*Python 3.14 will.*filter extracted"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def one_tensor(**options: Any) -> dict[str, bytes]:
    """Return the files of an archive of one float tensor `w` of 4 elements."""
    storages = options.pop("storages", [tar_storage(1, "FloatStorage", 4, b"0123456789abcdef")])
    tensors = options.pop("tensors", [tar_tensor(2, 1, (4,), (1,))])
    return tar_records(options.pop("tree", {"w": StorageId("2")}), tensors, storages, **options)


def written(path: Path, records: dict[str, bytes] | None = None, **options: Any) -> Contents:
    path.write_bytes(torch_tar(one_tensor(**options) if records is None else records))
    return examine(path)


def live_tensor(entry: TensorEntry, data: bytes) -> torch.Tensor:
    """Return the tensor that an entry describes, from the file's own bytes."""
    stored = entry.storage
    assert stored.offset is not None
    raw = bytearray(data[stored.offset : stored.offset + stored.nbytes])
    flat = torch.frombuffer(raw, dtype=getattr(torch, entry.dtype))
    return flat.as_strided(entry.shape, entry.stride, entry.storage_offset)


def table(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.dtype, Any, Any, str]]:
    """Return what PyTorch knows of its tensors, with the first name that has the same memory."""
    first: dict[Any, str] = {}
    return [
        (
            name,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
            first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name),
        )
        for name, tensor in tensors.items()
    ]


def described_table(
    entries: dict[str, TensorEntry],
) -> list[tuple[str, torch.dtype, Any, Any, str]]:
    first: dict[Any, str] = {}
    return [
        (
            name,
            getattr(torch, entry.dtype),
            entry.shape,
            entry.stride,
            first.setdefault(entry.memory, name),
        )
        for name, entry in entries.items()
    ]


# --- The same as PyTorch reads --------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_tar_state_dict, write_every_part])
def test_the_tensors_are_those_that_torch_loads(path: Path, write: Any) -> None:
    write(path)
    loaded = torch.load(path, weights_only=False)  # the file was written a line above
    contents = describe(path)
    assert contents.container == "torch-tar"
    assert contents.findings == ()
    assert list(contents.root) == list(loaded)
    theirs = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor) and v.numel()}
    mine = {k: contents.root[k] for k in theirs}
    assert described_table(mine) == table(theirs)
    data = path.read_bytes()
    for name, tensor in theirs.items():
        assert torch.equal(live_tensor(mine[name], data), tensor), name
        assert mine[name].requires_grad == tensor.requires_grad, name
        assert mine[name].is_parameter == isinstance(tensor, nn.Parameter), name


def test_what_is_described_besides_the_tensors(path: Path) -> None:
    write_every_part(path)
    contents = describe(path)
    assert contents.metadata == {"protocol_version": "1000", "machine": "little endian"}
    assert contents.root["epoch"] == 7
    storage = contents.root["storage"]
    assert (storage.shape, storage.storage_offset, storage.storage.key) == ((6,), 4, "11")
    names = {str(name) for name in contents.globals}
    assert names == {
        "collections.OrderedDict",
        "torch.FloatStorage",
        "torch.LongStorage",
        "torch.FloatTensor",
        "torch.nn.parameter.Parameter",
    }


def test_the_source_of_a_class_is_kept_as_text(path: Path) -> None:
    text = "class Linear(Module):\n    pass\n"
    cls = StorageId((nn.Linear, "linear.py", text))
    contents = written(path, tree=[cls, cls])
    assert contents.findings == ()
    assert contents.sources == {"torch.nn.modules.linear.Linear": text}
    assert contents.root == [Global("torch.nn.modules.linear", "Linear")] * 2
    assert torch.load(path, weights_only=False) == [nn.Linear, nn.Linear]


def test_a_whole_model_of_that_time_is_described_and_loaded(path: Path) -> None:
    """Its class stands before its state as a persistent id, not as a name."""
    weight: OrderedDict[str, Any] = OrderedDict(weight=StorageId("2"), bias=None)
    state = {"_parameters": weight, "_buffers": OrderedDict(), "_modules": OrderedDict()}
    state |= {"training": False, "in_features": 4, "out_features": 1}
    module = b"\x80\x02" + object_pickle(StorageId((nn.Linear, None, None)))[2:-1] + b")\x81"
    records = one_tensor(tensors=[tar_tensor(2, 1, (1, 4), (4, 1))])
    records["pickle"] = module + object_pickle(state)[2:-1] + b"b."
    contents = written(path, records)
    assert contents.findings == ()
    assert isinstance(contents.root, Object)
    assert contents.root.class_path == "torch.nn.modules.linear.Linear"
    assert contents.root.attributes["_parameters"]["weight"].shape == (1, 4)
    assert torch.load(path, weights_only=False).weight.shape == (1, 4)


def test_a_file_with_a_time_is_read_as_those_of_that_time_are(path: Path) -> None:
    """PyTorch's tars start with a table for the time, which is no whole number."""
    path.write_bytes(tar_file(list(one_tensor().items()), mtime=1485049682.0))
    assert path.read_bytes().startswith(b"././@PaxHeader\0")
    contents = describe(path)
    assert (contents.container, contents.findings) == ("torch-tar", ())
    assert torch.load(path, weights_only=False)["w"].shape == contents.root["w"].shape
    packed = examine_open(
        MemoryFile(gzip.compress(path.read_bytes()), Path("m.gz")), DEFAULT_LIMITS
    )
    assert [member.container for member in packed.members] == ["torch-tar"]


def test_a_file_that_lost_its_end_is_still_one_of_these(path: Path) -> None:
    whole = tar_file(list(one_tensor().items()), mtime=1485049682.0)
    path.write_bytes(whole[: whole.index(b"storages") - 600])
    contents = examine(path)
    assert contents.container == "torch-tar"
    assert isinstance(contents.problem, DamagedFile)
    assert contents.metadata["protocol_version"] == "1000"


def test_the_order_of_the_files_does_not_matter(path: Path) -> None:
    records = one_tensor()
    contents = written(path, dict(reversed(records.items())))
    assert contents.findings == ()
    assert contents.root["w"].shape == (4,)
    torch.load(path, weights_only=False)


def test_an_archive_without_system_information_is_loaded_too(path: Path) -> None:
    records = one_tensor()
    del records["sys_info"]
    assert written(path, records).root["w"].shape == (4,)
    torch.load(path, weights_only=False)


def test_a_file_that_torch_does_not_look_at_is_a_note(path: Path) -> None:
    contents = written(path, one_tensor() | {"readme": b"x"})
    assert rules(contents) == [("extra-record", "note")]
    assert contents.findings[0].place == "readme"


def test_torch_refuses_such_a_file_where_weights_only_is_set(path: Path) -> None:
    write_tar_state_dict(path)
    with pytest.raises(RuntimeError, match=r"Cannot use ``weights_only=True`` with files saved in"):
        torch.load(path, weights_only=True)


# --- What it would run ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sys_info", "storages", "tensors", "pickle"])
def test_what_any_of_its_pickles_names_is_seen(path: Path, name: str) -> None:
    records = one_tensor()
    records[name] = pickle.dumps(Call(os.getcwd, ()), 2)
    contents = written(path, records)
    assert Global("posix" if sys.platform != "win32" else "nt", "getcwd") in contents.globals


def test_torch_runs_the_storages_of_an_archive_that_has_nothing_else(path: Path) -> None:
    """So the file `storages` alone makes a tar one of PyTorch's."""
    mark = path.parent / "was here"
    path.write_bytes(tar_file([("storages", pickle.dumps(Call(os.mkdir, (str(mark),)), 2))]))
    contents = examine(path)
    assert not mark.exists()
    assert contents.container == "torch-tar"
    assert Global("posix", "mkdir") in contents.globals or Global("nt", "mkdir") in contents.globals
    assert isinstance(contents.problem, DamagedFile)
    with pytest.raises(TypeError):
        torch.load(path, weights_only=False)  # a line above says what it does
    assert mark.exists()


def test_a_tar_that_starts_with_another_file_is_one_of_pytorch_all_the_same(path: Path) -> None:
    files = [("readme.txt", b"hello"), *one_tensor().items()]
    path.write_bytes(tar_file(files))
    contents = examine(path)
    assert contents.container == "torch-tar"
    assert contents.root["w"].shape == (4,)
    assert torch.load(path, weights_only=False)["w"].shape == (4,)


def test_a_link_in_the_place_of_a_file_is_dangerous(path: Path) -> None:
    """tarfile writes the link, and PyTorch reads what it leads to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    path.write_bytes(buffer.getvalue())
    contents = examine(path)
    assert rules(contents) == [("link", "dangerous")]
    assert str(contents.problem).endswith("the archive's 'storages' is a link, not a file.")


def test_of_two_files_of_one_name_the_last_is_read_and_both_are_told(path: Path) -> None:
    other = one_tensor(tree={"second": StorageId("2")})["pickle"]
    path.write_bytes(tar_file([*one_tensor().items(), ("pickle", other)]))
    contents = examine(path)
    assert rules(contents) == [("duplicate-record", "ambiguous")]
    assert list(contents.root) == ["second"] == list(torch.load(path, weights_only=False))


def test_a_persistent_id_of_nothing_is_ambiguous(path: Path) -> None:
    contents = written(path, tree=[StorageId("99"), StorageId(("a", "b"))])
    assert rules(contents) == [("persistent-id", "ambiguous")]
    assert all(isinstance(item, Object) for item in contents.root)


# --- Damage ---------------------------------------------------------------------------------------


def storage_of(nbytes: int, told: int) -> bytes:
    """Return a float storage of these bytes that tells another count of elements."""
    whole = tar_storage(1, "FloatStorage", 4, bytes(nbytes))
    return whole.replace(struct.pack("<q", nbytes // 4), struct.pack("<q", told), 1)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "more storages than there are": ({"num_storages": 2}, "the archive's table of storages is"),
    "no number of storages": ({"num_storages": "1"}, "does not say how many storages it has"),
    "a negative number of tensors": ({"num_tensors": -1}, "does not say how many tensors it has"),
    "more tensors than there are": ({"num_tensors": 9}, "the pickle is truncated at byte"),
    "a storage with more bytes than there are": (
        {"storages": [storage_of(16, 1 << 40)]},
        "storage 1 of the archive says it has 4398046511104 bytes, and 22 are there",
    ),
    "a storage of negative length": (
        {"storages": [storage_of(16, -4)]},
        "storage 1 of the archive says it has -16 bytes, and 22 are there",
    ),
    "a storage with a key that is no number": (
        {"storages": [tar_storage("1", "FloatStorage", 4, b"")]},
        "the archive's table of storages is broken",
    ),
    "a list of parts of something else": ({"views": ["x"]}, "list of parts of storages is broken"),
    "no storages": (
        {"storages": []},
        "asks for storage 1, which it does not have",
    ),
    "a part of nothing": ({"views": [(3, 9, 0, 1)]}, "asks for storage 9, which it does not have"),
    "a part that reaches over the end": (
        {"views": [(3, 1, 2, 3)]},
        "storage 3 is elements 2 to 5 of another one, which has 4",
    ),
    "a part of three numbers": ({"views": [(3, 1, 2)]}, "list of parts of storages is broken"),
    "a tensor of nothing": (
        {"tensors": [tar_tensor(2, 9, (4,), (1,))]},
        "asks for storage 9, which it does not have",
    ),
    "a tensor that reaches over the end": (
        {"tensors": [tar_tensor(2, 1, (5,), (1,))]},
        "tensor 2 of the archive is broken: a tensor of shape (5,) needs 20 bytes",
    ),
    "a tensor of negative size": (
        {"tensors": [tar_tensor(2, 1, (-1,), (1,))]},
        "tensor 2 of the archive is broken: sizes and strides",
    ),
    "a tensor of a million dimensions": (
        {"tensors": [pickle.dumps((2, 1, None), 2) + struct.pack("<i4x", 1 << 20)]},
        "tensor 2 has 1048576 dimensions",
    ),
    "a table of tensors of something else": (
        {"tensors": [pickle.dumps("x", 2)]},
        "the archive's table of tensors is broken",
    ),
}


@pytest.mark.parametrize(("options", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_an_archive_that_contradicts_itself_is_damaged(
    path: Path, options: dict[str, Any], problem: str
) -> None:
    contents = written(path, **options)
    assert isinstance(contents.problem, DamagedFile)
    assert problem in str(contents.problem)
    assert str(contents.problem).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["tensors", "pickle"])
def test_an_archive_that_lacks_a_file_is_damaged(path: Path, name: str) -> None:
    records = one_tensor()
    del records[name]
    problem = str(written(path, records).problem)
    assert f"the archive has no file '{name}', without which it can't be loaded" in problem


@pytest.mark.parametrize("name", ["sys_info", "storages", "tensors", "pickle"])
def test_bytes_behind_the_last_pickle_are_noticed(path: Path, name: str) -> None:
    records = one_tensor()
    records[name] += b"more"
    assert rules(written(path, records)) == [("trailing-bytes", "ambiguous")]


def test_something_else_in_the_place_of_the_list_of_parts_is_damage(path: Path) -> None:
    contents = written(path, one_tensor() | {"storages": pickle.dumps(0, 2) + pickle.dumps({}, 2)})
    assert "has no list of parts of storages where it belongs" in str(contents.problem)


def test_a_persistent_id_may_be_a_number(path: Path) -> None:
    contents = written(path, tree={"w": StorageId(2)})
    assert contents.root["w"].shape == (4,)
    assert torch.load(path, weights_only=False)["w"].shape == (4,)


def test_a_system_information_that_is_none_is_damage(path: Path) -> None:
    contents = written(path, one_tensor() | {"sys_info": pickle.dumps(3)})
    assert "has no system information where it belongs" in str(contents.problem)


def small() -> bytes:
    return torch_tar(one_tensor(), padding=512)


def in_memory(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.pth")), DEFAULT_LIMITS)


def test_a_file_cut_at_any_length_is_one_error() -> None:
    whole = small()
    assert in_memory(whole).problem is None
    for length in range(len(whole)):
        problem = in_memory(whole[:length]).problem
        assert isinstance(problem, FileProblem), length
        assert str(problem).startswith("model.pth: "), length
        assert "\n" not in str(problem), length


def test_a_flipped_byte_is_an_error_or_leaves_every_tensor_inside_the_file() -> None:
    whole = small()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF if place % 2 else 0x01
        contents = in_memory(bytes(damaged))
        entry = contents.root.get("w") if isinstance(contents.root, dict) else None
        if contents.problem is None and isinstance(entry, TensorEntry):
            assert entry.storage.offset is not None
            assert entry.storage.offset + entry.storage.nbytes <= len(whole), place


def test_an_archive_of_many_tensors_costs_the_same_whatever_their_size(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = []
    read_at = InputFile.read_at

    def counting(self: InputFile, offset: int, nbytes: int) -> bytes:
        num_read.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(InputFile, "read_at", counting)
    totals = []
    for numel in (1 << 12, 1 << 20):
        storage = tar_storage(1, "FloatStorage", 4, bytes(4 * numel))
        written(path, storages=[storage], tensors=[tar_tensor(2, 1, (numel,), (1,))])
        totals.append(sum(num_read))
        num_read.clear()
    assert totals[1] - totals[0] < 1 << 17


def test_the_state_dict_of_the_samples_has_every_type() -> None:
    records, live = tar_state_dict()
    assert len(live) == 8
    assert set(records) == {"sys_info", "pickle", "tensors", "storages"}
    assert set(every_part()) == set(records)
    assert DATA.numel() == 12
