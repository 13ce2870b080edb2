"""saving/torch_zip.py: files that plain torch and zipfile read back."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import torchkeep
from releases import DTYPES
from torchkeep.contents import ITEM_SIZE
from torchkeep.errors import SaveRefused
from torchkeep.files import CHUNK_NBYTES, digest
from torchkeep.formats import describe
from torchkeep.formats.own.metadata import DIGESTS
from torchkeep.saving import write_torch_zip
from torchkeep.tensors import bytes_of, plain_on_cpu, same_bits, torch_dtype


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.pth"


def back(path: Path, **kwargs) -> object:
    return torch.load(path, weights_only=True, **kwargs)


# --- Trees -------------------------------------------------------------------------------------


def test_a_tree_of_plain_values_comes_back_identical(path: Path) -> None:
    shared = [1, 2]
    tree = {
        "none": None,
        "flags": (True, False),
        "numbers": [1, -(1 << 80), 2.5, float("inf"), 1 + 2j],
        "texts": {"é": "层", 3: "three", None: "nothing", (1, "a"): "pair"},
        "bytes": b"\x00\xff",
        "array": bytearray(b"ab"),
        "set": {1, 2},
        "counter": Counter({3: 2}),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "torch": (torch.float16, torch.device("cuda:1"), torch.Size([2, 3])),
        "shared": [shared, shared],
        "empty": [[], {}, (), set(), ""],
    }
    write_torch_zip(tree, path)
    found = back(path)
    assert found == tree
    assert repr(found) == repr(tree)  # types and order too
    assert found["shared"][0] is found["shared"][1]


def test_the_file_may_say_of_its_tensors_that_they_were_elsewhere(path: Path) -> None:
    coo = torch.eye(2).to_sparse()
    write_torch_zip({"plain": torch.ones(2), "sparse": coo}, path, device="cuda:3")
    found = describe(path)
    parts = dict(found.root["sparse"].parts)
    assert {e.storage.device for e in (found.root["plain"], *parts.values())} == {"cuda:3"}
    assert torch.equal(torchkeep.load(path)["sparse"].to_dense(), torch.eye(2))


def test_numpy_scalars_become_plain_numbers(path: Path) -> None:
    tree = {"a": np.float32(2.5), "b": [np.int64(3), np.bool_(True)], "c": np.str_("x")}
    write_torch_zip(tree, path)
    assert repr(back(path)) == "{'a': 2.5, 'b': [3, True], 'c': 'x'}"


def test_the_versions_that_a_module_keeps_in_its_state_dict_come_back(path: Path) -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    write_torch_zip({"model": state}, path)
    found = back(path)["model"]
    assert type(found) is OrderedDict
    assert found._metadata == state._metadata == {"": {"version": 2}}


def test_an_optimizer_and_a_scheduler_come_back(path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    tree = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    write_torch_zip(tree, path)
    found = back(path)
    assert found["scheduler"] == tree["scheduler"]
    torch.optim.AdamW(model.parameters()).load_state_dict(found["optimizer"])
    for number, state in tree["optimizer"]["state"].items():
        for name, value in state.items():
            assert same_bits(found["optimizer"]["state"][number][name], value)


# --- Tensors -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf")  # torch's own, at the first complex32
@pytest.mark.filterwarnings("ignore:BComplex32")
@pytest.mark.parametrize("mmap", [False, True])
def test_every_dtype_comes_back_bit_for_bit(path: Path, mmap: bool) -> None:
    torch.manual_seed(0)
    tensors = {}
    for name in DTYPES:
        raw = torch.randint(0, 2, (3, 2 * ITEM_SIZE[name]), dtype=torch.uint8)
        tensors[name] = raw.view(torch_dtype(name))
    write_torch_zip(tensors, path)
    found = back(path, mmap=mmap)
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("mmap", [False, True])
def test_shared_memory_is_shared_again_with_its_strides(path: Path, mmap: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tree = {"all": base, "turned": base.t(), "some": [base[1:3, ::2], base]}
    write_torch_zip(tree, path)
    found = back(path, mmap=mmap)
    assert found["all"] is found["some"][1]
    for one, two in ((found["turned"], base.t()), (found["some"][0], base[1:3, ::2])):
        assert torch.equal(one, two)
        assert one.stride() == two.stride()
        assert one.untyped_storage().data_ptr() == found["all"].untyped_storage().data_ptr()


def test_parameters_and_gradient_flags_come_back(path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    tree = {
        "weight": weight,
        "same": weight,
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "leaf": torch.ones(2, requires_grad=True),
        "data": weight.data,
    }
    write_torch_zip(tree, path)
    found = back(path)
    for name, tensor in tree.items():
        assert type(found[name]) is type(tensor), name
        assert found[name].requires_grad is tensor.requires_grad, name
    assert found["weight"] is found["same"]
    assert found["data"].data_ptr() == found["weight"].data_ptr()


def test_conjugated_and_negated_views_come_back_as_their_values(path: Path) -> None:
    values = torch.tensor([1 + 2j, 3 - 4j])
    write_torch_zip({"conj": values.conj(), "imag": values.conj().imag}, path)
    found = back(path)
    assert found["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert found["imag"].tolist() == [-2, 4]


def test_only_what_a_view_covers_is_written(path: Path) -> None:
    big = torch.arange(1_000_000.0)
    write_torch_zip({"a": big[10:12], "b": big[11:14], "none": big[:0]}, path)
    found = back(path)
    assert found["a"].tolist() == [10, 11]
    assert found["b"].tolist() == [11, 12, 13]
    assert found["a"].untyped_storage().nbytes() == 16
    found["a"][1] = 99
    assert found["b"][0] == 99
    assert path.stat().st_size < 10_000


def test_empty_tensors_of_several_dtypes_come_back(path: Path) -> None:
    write_torch_zip([torch.empty(0), torch.empty(2, 0), torch.empty(0, dtype=torch.uint16)], path)
    one, two, three = back(path)
    assert (one.shape, two.shape, three.dtype) == ((0,), (2, 0), torch.uint16)


def test_a_tensor_alone_is_a_tree(path: Path) -> None:
    write_torch_zip(torch.arange(3), path)
    assert back(path).tolist() == [0, 1, 2]


def test_two_paths_that_read_the_same_keep_their_tensors(path: Path) -> None:
    report = write_torch_zip({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, path)
    assert back(path) == {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}
    assert len(report.digests) == 2


# --- The archive -------------------------------------------------------------------------------


def test_zipfile_finds_every_checksum_right(path: Path) -> None:
    large = torch.arange(CHUNK_NBYTES // 4 * 2 + 3, dtype=torch.int32)
    write_torch_zip({"large": large, "small": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        info = archive.getinfo("archive/data/0")
        assert zlib.crc32(bytes_of(large)) == info.CRC
        assert info.CRC != 0
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
        assert len(archive.read("archive/.data/serialization_id")) == 40


def test_each_storage_starts_at_a_multiple_of_64_bytes(path: Path) -> None:
    tensors = [torch.full((n + 1,), n, dtype=torch.uint8) for n in range(12)]
    write_torch_zip(tensors, path)
    data = path.read_bytes()
    reader = torch._C.PyTorchFileReader(str(path))
    for number, tensor in enumerate(tensors):
        offset = reader.get_record_offset(f"data/{number}")
        assert offset % 64 == 0
        assert data[offset : offset + len(tensor)] == bytes(bytes_of(tensor))


def test_the_same_tree_gives_the_same_bytes_whatever_the_name(tmp_path: Path) -> None:
    tree = {"a": torch.ones(3), "b": [1, 2]}
    write_torch_zip(tree, tmp_path / "one.pth", metadata={"k": "v"})
    write_torch_zip(tree, tmp_path / "two.pt", metadata={"k": "v"})
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_metadata_and_digests_are_a_record_that_torch_ignores(path: Path) -> None:
    base = torch.randn(3, 4)
    tree = {"model": {"w": base, "turned": base.t()}, "list": [torch.arange(3)], "n": base[:0]}
    report = write_torch_zip(tree, path, metadata={"epoch": "3"})
    with zipfile.ZipFile(path) as archive:
        table = json.loads(archive.read("archive/torchkeep.json"))
    assert table["epoch"] == "3"
    digests = {
        "model.w": digest(bytes_of(base)),
        "model.turned": digest(bytes_of(plain_on_cpu(base.t()))),
        "list.0": digest(bytes_of(torch.arange(3))),
        "n": digest(b""),
    }
    assert json.loads(table[DIGESTS]) == report.digests == digests
    assert report.num_tensors == 4
    assert report.nbytes == path.stat().st_size


# --- Refusals ----------------------------------------------------------------------------------


class Custom:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Custom(), r"'a\.1' is of type .*Custom, which can't be stored as data. Save it as plain"),
        (torch.nn.Linear(1, 1), r"'a\.1' is of type torch.*Linear.* Save its state_dict\(\)"),
        (np.ones(2), r"'a\.1' is of type numpy.ndarray.* Save torch.from_numpy\(array\)"),
        (frozenset({1}), r"'a\.1' is of type builtins.frozenset.* Save a set"),
        (len, r"'a\.1' is of type builtins.builtin_function_or_method"),
        (Path("x"), r"'a\.1' is of type pathlib.*Save str\(path\)"),
        (torch.ones(1, device="meta"), r"tensor 'a\.1' is on the meta device"),
        ({torch.ones(1): 1}, r"'a\.1' has a tensor as a key"),
        ({"b": {Custom(): 1}}, r"'a\.1\.b' is of type .*Custom"),
    ],
)
def test_what_is_not_data_is_refused_by_its_path(path: Path, value: object, message: str) -> None:
    with pytest.raises(SaveRefused, match=message):
        write_torch_zip({"a": [0, value]}, path)
    assert not path.exists()


def test_a_class_derived_from_a_plain_one_is_refused(path: Path) -> None:
    class Special(dict):
        pass

    with pytest.raises(SaveRefused, match=r"the value is of type .*Special"):
        write_torch_zip(Special(), path)


def test_a_tree_that_contains_itself_is_refused(path: Path) -> None:
    tree: dict = {"a": []}
    tree["a"].append(tree)
    with pytest.raises(SaveRefused, match=r"'a\.0' contains itself"):
        write_torch_zip(tree, path)


def test_a_tree_too_deep_for_python_is_refused(path: Path) -> None:
    tree: list = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(SaveRefused, match="nested too deeply"):
        write_torch_zip(tree, path)


def test_one_memory_with_two_dtypes_is_refused_by_both_names(path: Path) -> None:
    base = torch.ones(4)
    with pytest.raises(SaveRefused, match=r"'a' \(float32\) and 'b' \(int32\) are the same memory"):
        write_torch_zip({"a": base, "b": base.view(torch.int32)}, path)
