"""What every reader promises: the tensors of the library that wrote the file, or one error.

The suite runs over every sample of `samples.py`; the first test says that every reader has one.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from formats import samples, samples_archives, samples_foreign, samples_programs
from formats.building import legacy_file, legacy_tensor, safetensors_file
from formats.samples import Sample
from torchkeep.contents import Contents, DictObject, Global, Object, TensorEntry
from torchkeep.errors import FileProblem
from torchkeep.files import InputFile
from torchkeep.formats import READERS, describe
from torchkeep.formats.zips.kinds import ZIP_KINDS
from torchkeep.identify import NamedTensor, identify

FOREIGN = set("gguf onnx hdf5 executorch lua-torch7 paddle git-lfs-pointer text unknown".split())
"""Containers whose readers name a file; their own tests are beside this one."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested"),
]
SAMPLES = [
    *samples.SAMPLES,
    *samples_archives.SAMPLES,
    *samples_foreign.SAMPLES,
    *samples_programs.SAMPLES,
]
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
# One of each container, for what takes long.
FEW = [
    sample
    for sample in SAMPLES
    if sample.name.endswith((" state dict", " checkpoint", "old views", "pickle protocol 2"))
]
# Those that torch.load reads: the class of the whole models is gone.
LOADABLE = [
    sample
    for sample in samples.SAMPLES
    if sample.container.startswith("torch-") and not sample.name.endswith("whole model")
]
few_samples = pytest.mark.parametrize("sample", FEW, ids=lambda sample: sample.name)


def test_every_reader_has_a_sample() -> None:
    containers = {reader.name for reader in (*READERS, *ZIP_KINDS)}
    assert {sample.container for sample in SAMPLES} >= containers - FOREIGN
    assert {sample.container for sample in FEW} >= containers - FOREIGN


# --- The same tensors ----------------------------------------------------------------------------


class Comparison:
    """Compares a tree of inert values with the live objects that were saved."""

    def __init__(self, data: bytes, *, ordered: bool = True) -> None:
        self.data = data
        self.ordered = ordered
        self.num_tensors = 0
        self.storages: dict[int, int] = {}

    def check(self, path: str, mine: Any, theirs: Any) -> None:
        if isinstance(theirs, torch.Tensor):
            self.check_tensor(path, mine, theirs)
        elif isinstance(theirs, torch.UntypedStorage | torch.TypedStorage):
            typed = isinstance(theirs, torch.TypedStorage)
            dtype = theirs.dtype if typed else torch.uint8
            self.check_tensor(path, mine, torch.empty(0, dtype=dtype).set_(theirs))
        elif isinstance(theirs, nn.Module):
            self.check_module(path, mine, theirs)
        elif isinstance(theirs, dict):
            self.check_dict(path, mine, theirs)
        elif isinstance(theirs, torch.dtype):
            assert mine == Global("torch", str(theirs).removeprefix("torch.")), path
        elif isinstance(theirs, list | tuple):
            assert type(mine) is (list if type(theirs) is list else tuple), path
            assert len(mine) == len(theirs), path
            for index, pair in enumerate(zip(mine, theirs, strict=True)):
                self.check(f"{path}.{index}", *pair)
        else:
            assert (type(mine), mine) == (type(theirs), theirs), path

    def check_dict(self, path: str, mine: Any, theirs: dict[Any, Any]) -> None:
        assert isinstance(mine, DictObject if type(theirs) is not dict else dict), path
        assert sorted(mine, key=str) == sorted(theirs, key=str), path
        if self.ordered:
            assert list(mine) == list(theirs), path
        for key, value in theirs.items():
            self.check(f"{path}.{key}", mine[key], value)
        if hasattr(theirs, "_metadata"):
            assert mine.attributes["_metadata"] == theirs._metadata, path

    def check_module(self, path: str, mine: Any, theirs: nn.Module) -> None:
        cls = type(theirs)
        assert isinstance(mine, Object), path
        assert mine.class_path == f"{cls.__module__}.{cls.__qualname__}", path
        for name in ("training", "_parameters", "_buffers", "_modules"):
            self.check(f"{path}.{name}", mine.attributes[name], getattr(theirs, name))

    def check_tensor(self, path: str, mine: Any, theirs: torch.Tensor) -> None:
        self.num_tensors += 1
        assert isinstance(mine, TensorEntry), path
        assert f"torch.{mine.dtype}" == str(theirs.dtype), path
        assert f"torch.{mine.layout}" == str(theirs.layout) or mine.layout == "nested", path
        if theirs.layout is not torch.strided or theirs.is_nested:
            self.check_parts(path, mine, theirs)
            return
        assert mine.shape == tuple(theirs.shape), path
        assert mine.stride == theirs.stride() or not theirs.numel(), path  # NumPy has its own
        assert mine.requires_grad == theirs.requires_grad, path
        assert mine.is_parameter == isinstance(theirs, nn.Parameter), path
        assert mine.storage.device == theirs.device.type, path
        if theirs.is_meta:
            assert mine.storage.offset is None, path
            return
        self.check_bytes(path, mine, theirs)

    def check_parts(self, path: str, mine: TensorEntry, theirs: torch.Tensor) -> None:
        """Check a tensor that is made of others."""
        assert mine.stride == (), path
        if theirs.is_nested:
            assert mine.shape == theirs.shape[:1] if mine.layout == "jagged" else (theirs.size(0),)
        else:
            assert mine.shape == tuple(theirs.shape), path
        names = {"values": "_values", "indices": "_indices"}
        for name, part in mine.parts:
            if name in ("sizes", "strides") or (name == "offsets" and mine.layout == "nested"):
                continue
            inner = names.get(name, name) if theirs.layout is torch.sparse_coo else name
            live = getattr(theirs, inner)()
            self.check_tensor(f"{path}.{name}", part, live.values() if live.is_nested else live)

    def check_bytes(self, path: str, mine: TensorEntry, theirs: torch.Tensor) -> None:
        stored = mine.storage
        if stored.nbytes:
            assert stored.offset is not None, path
            raw = bytearray(self.data[stored.offset : stored.offset + stored.nbytes])
            assert len(raw) == stored.nbytes, path
            live = torch.frombuffer(raw, dtype=torch.uint8).untyped_storage()
            if stored.byteorder == "big":
                live.byteswap(theirs.dtype)
            dtype = theirs.int_repr().dtype if theirs.is_quantized else theirs.dtype
            got = torch.empty(0, dtype=dtype).set_(
                live, mine.storage_offset, mine.shape, mine.stride
            )
            assert bits(got) == bits(theirs.int_repr() if theirs.is_quantized else theirs), path
        # The same storage here exactly where it is the same there.
        if theirs.numel():
            start = theirs.data_ptr() - mine.storage_offset * theirs.element_size()
            assert self.storages.setdefault(id(stored), start) == start, path


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@every_sample
def test_a_sample_is_described_as_what_was_saved(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    saved = sample.write(path)
    contents = describe(path)
    assert (contents.path, contents.container) == (path, sample.container)
    assert contents.nbytes == path.stat().st_size
    assert {finding.severity for finding in contents.findings} <= {"note", "needs-trust"}
    if saved is None:  # a program: its own tests know what is in it
        return
    # Safetensors puts the tensors into an order of its own.
    comparison = Comparison(path.read_bytes(), ordered=sample.container != "safetensors")
    comparison.check("", contents.root, saved)
    assert len(set(comparison.storages.values())) == len(comparison.storages)


@pytest.mark.parametrize("sample", LOADABLE, ids=lambda sample: sample.name)
def test_a_sample_is_described_as_what_torch_loads(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sample.write(path)
    loaded = torch.load(path, weights_only=False)  # the file was written a line above
    Comparison(path.read_bytes()).check("", describe(path).root, loaded)


@every_sample
def test_no_other_reader_takes_a_sample(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sample.write(path)
    head, nbytes = path.read_bytes()[:512], path.stat().st_size
    takers = [reader.name for reader in READERS if reader.sniff(head, nbytes)]
    # Zip archives are told apart by their records.
    expected = "archive" if head.startswith(b"PK") else sample.container
    assert takers[0] == expected
    assert set(takers[1:]) <= {"pickle", "text", "unknown"}  # a legacy stream starts like a pickle


# --- Damage --------------------------------------------------------------------------------------


@every_sample
def test_a_file_that_is_cut_anywhere_is_one_error(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sample.write(path)
    whole = path.read_bytes()
    rng = random.Random(0)
    lengths = {0, 1, 2, 8, 9, 10, 100, len(whole) // 2, *range(len(whole) - 30, len(whole))}
    lengths |= {rng.randrange(len(whole)) for _ in range(40)}
    for length in sorted(length for length in lengths if 0 <= length < len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileProblem) as caught:
            describe(path)
        assert str(caught.value).startswith(f"{path}: "), length
        assert "\n" not in str(caught.value), length


@every_sample
def test_bytes_behind_the_end_are_noticed(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sample.write(path)
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    try:
        contents = describe(path)
    except FileProblem:
        return
    assert "trailing-bytes" in [finding.rule for finding in contents.findings]


@few_samples
def test_a_flipped_byte_is_an_error_a_finding_or_harmless(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sample.write(path)
    whole = path.read_bytes()
    before = describe(path)
    rng = random.Random(0)
    places = structure(sample, before, whole)
    for place in rng.sample(places, min(200, len(places))):
        damaged = bytearray(whole)
        damaged[place] ^= rng.randint(1, 255)
        path.write_bytes(damaged)
        try:
            after = describe(path)
        except FileProblem:
            continue
        for named in tensors_of(after):
            stored = named.entry.storage
            assert stored.offset is None or stored.offset + stored.nbytes <= len(whole), place
        if sample.container == "torch-zip":  # the others have no checksum
            assert after.findings or outline(after) == outline(before), place


def tensors_of(contents: Contents) -> tuple[NamedTensor, ...]:
    """Return the tensors that `inspect` tells of, in objects as well; none if it refuses to."""
    try:
        return identify(contents).tensors()
    except FileProblem:
        return ()


def structure(sample: Sample, contents: Contents, whole: bytes) -> list[int]:
    """Return the offsets of the bytes that are no tensor's."""
    payload: set[int] = set()
    for entry in entries(contents.root):
        start = entry.storage.offset or 0
        payload.update(range(start, start + entry.storage.nbytes))
    return [place for place in range(len(whole)) if place not in payload]


def entries(value: Any) -> Iterator[TensorEntry]:
    if isinstance(value, TensorEntry):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from entries(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from entries(item)


def outline(contents: Contents) -> list[Any]:
    """Return the tensors without their checksums, which are compared when they are read."""
    return [
        (e.dtype, e.shape, e.stride, e.storage.key, e.storage.offset, e.storage.nbytes)
        for e in entries(contents.root)
    ]


# --- Cost ----------------------------------------------------------------------------------------

HUGE = 1 << 30  # elements of 4 bytes


def write_zip(path: Path, numel: int) -> None:
    with torch.serialization.skip_data():
        torch.save({"w": torch.empty(numel)}, path)


def write_legacy(path: Path, numel: int) -> None:
    legacy_file(path, legacy_tensor(numel), {"1": (4, b"")})
    head = path.read_bytes()[:-8] + numel.to_bytes(8, "little")
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + 4 * numel)


def write_tensors(path: Path, numel: int) -> None:
    row = {"dtype": "F32", "shape": [numel], "data_offsets": [0, 4 * numel]}
    safetensors_file(path, {"w": row})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 4 * numel)


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_tensors])
def test_describing_costs_the_same_whatever_the_size_of_the_tensors(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read_at = InputFile.read_at

    def counting(self: InputFile, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(InputFile, "read_at", counting)
    path = tmp_path / "model.pth"
    counts = []
    for numel in (1 << 20, HUGE):
        write(path, numel)
        assert path.stat().st_size >= 4 * numel
        sizes.clear()
        contents = describe(path)
        assert contents.root["w"].shape == (numel,)
        assert contents.root["w"].storage.nbytes == 4 * numel
        counts.append((len(sizes), sum(sizes)))
        path.unlink()
    assert abs(counts[0][0] - counts[1][0]) <= 1  # larger than 4 GB is zip64
    assert max(nbytes for _, nbytes in counts) < 150_000


def test_what_is_described_can_be_copied_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    FEW[0].write(path)
    assert outline(copy.deepcopy(describe(path))) == outline(describe(path))
