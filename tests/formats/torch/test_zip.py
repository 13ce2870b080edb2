"""A torch archive that lies about its storages, its root or its bytes is found out."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import torchkeep
from formats.building import Call, StorageId, object_pickle, rewrite_zip, torch_records, zip_file
from torchkeep.contents import Object, TensorEntry
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.formats import describe
from torchkeep.pickles.limits import Limits
from torchkeep.tensors import TensorReader, same_bits

Records = list[tuple[str, bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def findings(
    path: Path, records: Records, packing: int = zipfile.ZIP_STORED
) -> list[tuple[str, str, str]]:
    zip_file(path, records, packing)
    return [(f.rule, f.severity, f.text) for f in describe(path).findings]


def without(name: str) -> Records:
    return [row for row in torch_records() if row[0] != f"archive/{name}"]


def test_the_archive_that_the_other_tests_spoil_is_clean(path: Path) -> None:
    assert findings(path, torch_records()) == []
    entry = describe(path).root["w"]
    assert (entry.shape, entry.storage.nbytes) == ((4,), 16)
    assert torch.load(path, weights_only=True)["w"].tolist() == [0, 1, 2, 3]
    assert describe(path).metadata == {"version": "3", "byteorder": "little"}


def test_the_metadata_of_torchkeeps_own_files_is_read(path: Path) -> None:
    own = b'{"epoch": "3", "version": "1.2", "byteorder": "middle"}'
    assert findings(path, [*torch_records(), ("archive/torchkeep.json", own)]) == []
    assert describe(path).metadata == {"epoch": "3", "version": "1.2", "byteorder": "middle"}
    assert describe(path).root["w"].storage.byteorder == "little"
    with pytest.raises(LimitReached, match="header_nbytes"):
        describe(path, limits=Limits(header_nbytes=len(own) - 1))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"a": 1}', b"[" * 100_000, b'{"a": "\\ud800"}', b'{"a":"","a":""}']
)
def test_broken_metadata_is_found(path: Path, data: bytes) -> None:
    text = "the record of the metadata is no JSON object of texts"
    records = [*torch_records(), ("archive/torchkeep.json", data)]
    assert findings(path, records) == [("metadata", "damaged", text)]
    assert describe(path).metadata == {"version": "3", "byteorder": "little"}


def test_a_storage_that_is_shorter_than_declared_gives_no_tensor(path: Path) -> None:
    """CVE-2026-24747: a tensor must not look behind its record."""
    zip_file(path, torch_records(declared=1000))
    contents = describe(path)
    assert isinstance(contents.root["w"], Object)
    assert [(f.rule, f.severity) for f in contents.findings] == [
        ("malformed-call", "damaged"),
        ("storage-size", "damaged"),
    ]
    assert "needs 4000 bytes of storage '0', which has 16" in contents.findings[0].text
    assert contents.findings[1].text == "the pickle says 4000 bytes, record data/0 has 16"


def test_a_storage_that_is_longer_than_declared_is_found(path: Path) -> None:
    text = "the pickle says 16 bytes, record data/0 has 20"
    assert findings(path, torch_records(nbytes=20)) == [("storage-size", "damaged", text)]
    assert describe(path).root["w"].storage.nbytes == 16


def test_a_missing_storage_gives_no_tensor(path: Path) -> None:
    found = findings(path, without("data/0"))
    assert ("missing-storage", "damaged", "there is no record data/0") in found
    assert isinstance(describe(path).root["w"], Object)


def test_one_key_with_two_sizes_is_ambiguous(path: Path) -> None:
    def tensor(numel: int) -> Call:
        where = StorageId(("storage", torch.FloatStorage, "0", "cpu", numel))
        return Call(torch._utils._rebuild_tensor, (where, 0, (2,), (1,)))

    records = [("archive/data.pkl", object_pickle([tensor(4), tensor(2)])), *without("data.pkl")]
    text = "storage '0' is declared with 16 and 8 bytes"
    assert findings(path, records) == [("storage-size", "ambiguous", text)]


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_was_zipped_anew_is_loaded_as_torch_loads_it(path: Path, mmap: bool) -> None:
    zip_file(path, torch_records(), zipfile.ZIP_DEFLATED)
    contents = describe(path)
    entry = contents.root["w"]
    assert (entry.storage.offset, entry.storage.nbytes) == (None, 16)
    assert [(f.rule, f.severity) for f in contents.findings] == [("compressed", "ambiguous")]
    expected = torch.load(path)["w"]
    assert same_bits(torchkeep.load(path, mmap=mmap)["w"], expected)
    with TensorReader(path) as reader:
        live = torch.zeros(4)
        reader.fill(live, entry)
        assert same_bits(live, expected)
        assert reader.match(live, entry)


def test_tensor_bytes_that_are_packed_in_another_way_are_refused(path: Path) -> None:
    zip_file(path, torch_records(), zipfile.ZIP_BZIP2)
    with pytest.raises(UnsupportedContent, match="is packed with method 12"):
        describe(path)


def test_a_packed_pickle_is_read(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in torch_records():
            packed = zipfile.ZIP_DEFLATED if name.endswith(".pkl") else zipfile.ZIP_STORED
            archive.writestr(name, data, packed)
    assert describe(path).root["w"].shape == (4,)


def test_a_pickle_with_a_wrong_checksum_is_damaged(path: Path) -> None:
    zip_file(path, torch_records())
    data = path.read_bytes()
    assert data.count(b"_rebuild_tensor_v2") == 1
    path.write_bytes(data.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"))
    with pytest.raises(DamagedFile, match=r"record .* does not match its checksum"):
        describe(path)


@pytest.mark.parametrize("offset", [1, 1 << 62])
@pytest.mark.parametrize("stride", [1, 1 << 62])
def test_a_view_that_reaches_over_its_storage_is_no_tensor(
    path: Path, offset: int, stride: int
) -> None:
    where = StorageId(("storage", torch.FloatStorage, "0", "cpu", 4))
    call = Call(torch._utils._rebuild_tensor, (where, offset, (4,), (stride,)))
    found = findings(path, [("archive/data.pkl", object_pickle(call)), *without("data.pkl")])
    assert [row[:2] for row in found] == [("malformed-call", "damaged")]
    assert isinstance(describe(path).root, Object)


@pytest.mark.parametrize(
    "args",
    [
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (1,)),
        (True, (2,), (1,)),
        (0, 2, 1),
        (0, (2.0,), (1,)),
        (0, ("2",), (1,)),
    ],
)
def test_sizes_that_are_no_sizes_make_no_tensor(path: Path, args: tuple[Any, ...]) -> None:
    where = StorageId(("storage", torch.FloatStorage, "0", "cpu", 4))
    call = Call(torch._utils._rebuild_tensor, (where, *args))
    found = findings(path, [("archive/data.pkl", object_pickle(call)), *without("data.pkl")])
    assert [row[:2] for row in found] == [("malformed-call", "damaged")]


@pytest.mark.parametrize(
    "pid",
    [
        "storage",
        ("module", torch.nn.Linear, "0", "cpu"),
        ("storage", "FloatStorage", "0", "cpu", 4),
        ("storage", torch.FloatStorage, "0", "cpu", -4),
        ("storage", torch.FloatStorage, "0", "cpu", True),
        ("storage", torch.FloatStorage, None, "cpu", 4),
        ("storage", torch.FloatStorage, "0", 0, 4),
        ("storage", torch.nn.Linear, "0", "cpu", 4),
        ("storage", [[]], [[]], [[]], [[]]),
    ],
)
def test_a_persistent_id_that_names_no_storage_is_ambiguous(path: Path, pid: Any) -> None:
    pickled = object_pickle([StorageId(pid)] * 3)
    found = findings(path, [("archive/data.pkl", pickled), *without("data.pkl")])
    assert found == [("persistent-id", "ambiguous", "a persistent id names no storage")]


def test_bytes_behind_the_pickle_in_its_record_are_ambiguous(path: Path) -> None:
    stacked = object_pickle({}) + pickle.dumps("another")
    found = findings(path, [("archive/data.pkl", stacked), *without("data.pkl")])
    assert found[0][:2] == ("trailing-bytes", "ambiguous")
    assert found[0][2].endswith("bytes follow the pickle in its record")


def test_records_that_torch_does_not_look_at_are_named(path: Path) -> None:
    found = findings(path, [*torch_records(), ("archive/notes", b"N."), ("archive/more/x", b"")])
    text = "PyTorch does not look at this record"
    assert found == [("extra-record", "note", text)] * 2
    assert torch.load(path, weights_only=True)["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["other/x", "x", "../../etc/passwd", "Archive/x", "/archive/x"])
def test_a_record_outside_of_the_root_makes_pytorch_refuse_the_file(path: Path, name: str) -> None:
    text = "it lies outside of the archive's folder, and PyTorch refuses the whole file"
    found = findings(path, [*torch_records(), (name, b"x")])
    assert ("outside-root", "ambiguous", text) in found
    safety = torchkeep.inspect(path).safety
    assert (safety.verdict, safety.weights_only) == ("ambiguous", False)
    with pytest.raises(RuntimeError, match="file in archive is not in a subdirectory"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["archive/evil.pkl", "archive/data/evil.pkl", "archive/mod.PY"])
def test_a_hidden_pickle_or_source_makes_the_archive_ambiguous(path: Path, name: str) -> None:
    (found,) = findings(path, [*torch_records(), (name, b"N.")])
    assert found[:2] == ("hidden-code", "ambiguous")


@pytest.mark.parametrize("name", ["archive/x.EXE", "archive/data/aoti/x.so.1", "archive/x.cubin"])
def test_what_is_called_machine_code_is_dangerous(path: Path, name: str) -> None:
    (found,) = findings(path, [*torch_records(), (name, b"N.")])
    assert found[:2] == ("hidden-code", "dangerous")


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["archive/notes", "archive/x.bat", "archive/data/7"])
def test_machine_code_under_any_name_is_dangerous(path: Path, name: str, packing: int) -> None:
    found = findings(path, [*torch_records(), (name, b"\x7fELF" + bytes(400))], packing)
    assert ("hidden-code", "dangerous") in [row[:2] for row in found]


def test_the_version_may_be_where_newer_files_have_it(path: Path) -> None:
    assert findings(path, [*without("version"), ("archive/.data/version", b"3")]) == []
    assert torch.load(path, weights_only=True)["w"].tolist() == [0, 1, 2, 3]


def test_a_record_that_torch_takes_for_its_own_is_ambiguous(path: Path) -> None:
    """PyTorch looks records up without regard to case: it would swap this file's bytes."""
    records = [*without("byteorder"), ("archive/data.pkl", object_pickle({}))]
    records = [*dict(records).items(), ("archive/BYTEORDER", b"big")]
    assert ("case-variant", "ambiguous") in [row[:2] for row in findings(path, records)]


def test_an_archive_that_torch_does_not_open_says_why(path: Path) -> None:
    version = "there is no record version, without which PyTorch does not load the archive"
    assert findings(path, without("version")) == [("missing-record", "damaged", version)]
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)
    found = findings(path, [("first/x", b""), *torch_records()])
    assert ("root-folder", "ambiguous") in [row[:2] for row in found]
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("order", [b"BIG", b"middle", b""])
def test_an_unknown_byte_order_is_damage(path: Path, order: bytes) -> None:
    zip_file(path, [*without("byteorder"), ("archive/byteorder", order)])
    with pytest.raises(DamagedFile, match="neither little nor big"):
        describe(path)
    with pytest.raises(ValueError, match="Unknown endianness"):
        torch.load(path, weights_only=True)


def test_without_a_byte_order_it_is_little(path: Path) -> None:
    assert findings(path, without("byteorder")) == []
    assert describe(path).root["w"].storage.byteorder == "little"


def test_two_pickles_are_damage(path: Path) -> None:
    zip_file(path, [*torch_records(), ("second/data.pkl", b"N.")])
    with pytest.raises(DamagedFile, match=r"2 records data\.pkl, and one is expected"):
        describe(path)


def test_the_root_may_have_any_name(path: Path) -> None:
    torch.save({"w": torch.ones(1)}, path.with_name("模型 v1.pth"))
    assert describe(path.with_name("模型 v1.pth")).findings == ()
    torch.save({"w": torch.ones(1)}, path)
    rewrite_zip(path, lambda name, data: data)
    assert isinstance(describe(path).root["w"], TensorEntry)


def test_findings_are_told_once(path: Path) -> None:
    where = StorageId(("storage", torch.FloatStorage, "9", "cpu", 4))
    zip_file(path, [("archive/data.pkl", object_pickle([where] * 50)), *without("data.pkl")])
    assert [f.rule for f in describe(path).findings] == ["missing-storage"]
