"""saving/safetensors.py: files that the safetensors package and torchkeep itself read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch as reference
import torch
from safetensors import safe_open

from torchkeep.errors import SaveRefused
from torchkeep.files import CHUNK_NBYTES, digest
from torchkeep.formats.own.metadata import DIGESTS, TIED
from torchkeep.formats.safetensors import DTYPES
from torchkeep.loading import load
from torchkeep.saving import save, write_safetensors
from torchkeep.tensors import bytes_of, plain_on_cpu, same_bits, torch_dtype
from torchkeep.writing.safetensors import _ORDER


def header_of(path: Path) -> tuple[int, dict]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return 8 + length, json.loads(data[8 : 8 + length])


def random_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    raw = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.view(dtype).squeeze(-1)


# --- What is read back -------------------------------------------------------------------------


def test_every_dtype_of_the_format_is_read_back_by_the_reference(tmp_path: Path) -> None:
    tensors = {
        name: random_bits(torch_dtype(name), 3, 2) for name in DTYPES.values() if "4_" not in name
    }
    write_safetensors(tensors, tmp_path / "a.safetensors")
    back = reference.load_file(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    assert all(same_bits(back[name], tensor) for name, tensor in tensors.items())


def test_pairs_of_four_bits_are_counted_as_the_format_counts_them(tmp_path: Path) -> None:
    pairs = random_bits(torch.float4_e2m1fn_x2, 3, 2)
    write_safetensors({"w": pairs}, tmp_path / "a.safetensors")
    _, header = header_of(tmp_path / "a.safetensors")
    assert header["w"] == {"dtype": "F4", "shape": [3, 4], "data_offsets": [0, 6]}


def test_any_layout_in_memory_is_stored_as_its_values(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "turned": base.t(),
        "strided": base[::2, 1::3],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "conjugated": torch.tensor([1 + 2j, 3j]).conj(),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "computed": torch.ones(2, requires_grad=True) * 3,
    }
    write_safetensors(tensors, tmp_path / "a.safetensors")
    back = reference.load_file(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert back[name].shape == tensor.shape, name
        assert torch.equal(back[name], tensor.detach()), name


def test_the_payload_equals_the_reference_writers_byte_for_byte(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        f"{'zyx'[n]}.{n}.{kind}": random_bits(torch_dtype(DTYPES[kind]), 5, n)
        for kind in _ORDER
        if kind in DTYPES and kind != "F4"
        for n in range(3)
    }
    write_safetensors(tensors, tmp_path / "ours.safetensors")
    reference.save_file(tensors, tmp_path / "theirs.safetensors")
    start, ours = header_of(tmp_path / "ours.safetensors")
    their_start, theirs = header_of(tmp_path / "theirs.safetensors")
    del ours["__metadata__"]
    assert list(ours.items()) == list(theirs.items())  # the order too
    data, their_data = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("ours", "theirs"))
    assert data[start:] == their_data[their_start:]
    assert start % 64 == 0


def test_tensors_larger_than_a_chunk_are_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    count = CHUNK_NBYTES // 4
    tensors = {"small": torch.randn(3), "large": torch.randn(2 * count + 1), "b": torch.randn(7)}
    report = write_safetensors(tensors, tmp_path / "a.safetensors")
    back = reference.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert report.nbytes == (tmp_path / "a.safetensors").stat().st_size


def test_thousands_of_small_tensors_are_each_in_their_place(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.full((n % 5,), float(n)) for n in range(3000)}
    write_safetensors(tensors, tmp_path / "a.safetensors", durable=False)
    back = reference.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_no_tensors_make_a_valid_file(tmp_path: Path) -> None:
    report = write_safetensors({}, tmp_path / "a.safetensors")
    assert reference.load_file(tmp_path / "a.safetensors") == {}
    assert report.num_tensors == 0


def test_names_of_any_script_are_kept(tmp_path: Path) -> None:
    names = ["层.权重", 'quote"d', "back\\slash", "tab\t", "é", "", " "]
    write_safetensors({name: torch.ones(1) for name in names}, tmp_path / "a.safetensors")
    assert set(reference.load_file(tmp_path / "a.safetensors")) == set(names)


# --- Metadata and digests ----------------------------------------------------------------------


def test_metadata_and_digests_stand_in_the_header(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4).t(), "a": torch.arange(3), "e": torch.empty(0)}
    report = write_safetensors(tensors, tmp_path / "a.safetensors", metadata={"epoch": "3"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["epoch"] == "3"
    assert metadata["format"] == "pt"
    expected = {name: digest(bytes_of(plain_on_cpu(item))) for name, item in tensors.items()}
    assert json.loads(metadata[DIGESTS]) == expected == report.digests


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2)}
    write_safetensors(tensors, tmp_path / "one", metadata={"k": "v"})
    write_safetensors(dict(reversed(tensors.items())), tmp_path / "two", metadata={"k": "v"})
    start, _ = header_of(tmp_path / "one")
    assert (tmp_path / "one").read_bytes()[start:] == (tmp_path / "two").read_bytes()[start:]
    write_safetensors(tensors, tmp_path / "three", metadata={"k": "v"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()


# --- Tied tensors ------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_tensor_is_stored_once_and_the_reference_loads_it(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    path = tmp_path / "a.safetensors"
    report = write_safetensors(model.state_dict(), path)
    assert report.tied == {"head.weight": "embedding.weight"}
    assert report.digests["head.weight"] == report.digests["embedding.weight"]
    assert report.num_tensors == 2
    start, header = header_of(path)
    assert path.stat().st_size == start + 5 * 3 * 4
    assert header["__metadata__"]["head.weight"] == "embedding.weight"
    assert json.loads(header["__metadata__"][TIED]) == report.tied
    missing, unexpected = reference.load_model(other, path)
    assert (missing, unexpected) == (set(), [])
    assert torch.equal(other.head.weight, model.head.weight)


def test_views_that_are_not_the_same_tensor_are_stored_each(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tensors = {
        "base": base,
        "part": base[:3],
        "turned": base.view(2, 3).t(),
        "conj": torch.view_as_complex(base.view(3, 2)),
        "conj2": torch.view_as_complex(base.view(3, 2)).conj(),
        "none": base[:0],
    }
    report = write_safetensors(tensors, tmp_path / "a.safetensors")
    assert report.tied == {}
    back = reference.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_metadata_can_not_be_called_as_a_tensor_is(tmp_path: Path) -> None:
    state = Tied().state_dict()
    for name in state:
        with pytest.raises(SaveRefused, match=f"metadata key '{name}' is the name of a tensor too"):
            write_safetensors(state, tmp_path / "a.safetensors", metadata={name: "x"})
    assert list(tmp_path.iterdir()) == []


def test_a_tied_tensor_may_be_called_as_a_fact_of_every_save(tmp_path: Path) -> None:
    shared = torch.ones(2)
    save({"a": shared, "date": shared}, tmp_path / "a.safetensors", metadata={"date": "today"})
    assert load(tmp_path / "a.safetensors").keys() == {"a", "date"}


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.empty(2, device="meta"), r"tensor 'x' is on the meta device and has no values"),
        (torch.eye(2).to_sparse(), r"tensor 'x' is sparse \(torch.sparse_coo\).*to_dense\(\)"),
        (torch.nn.parameter.UninitializedParameter(), r"tensor 'x' is not initialised yet"),
        (torch.ones(2, dtype=torch.complex128), r"tensor 'x' has dtype complex128, which safe"),
        ([1, 2], r"'x' is of type builtins.list, and only tensors"),
    ],
)
def test_what_the_format_can_not_hold_is_refused_by_name(
    tmp_path: Path, value: object, message: str
) -> None:
    with pytest.raises(SaveRefused, match=message):
        write_safetensors({"fine": torch.ones(1), "x": value}, tmp_path / "a.safetensors")  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_class_that_keeps_its_values_elsewhere_is_refused(tmp_path: Path) -> None:
    class Odd(torch.Tensor):
        pass

    with pytest.raises(SaveRefused, match=r"tensor 'x' is a .*Odd, whose values are not its bytes"):
        write_safetensors({"x": torch.ones(2).as_subclass(Odd)}, tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", 3])
def test_a_name_that_the_format_can_not_hold_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(SaveRefused, match="is no name that safetensors can store"):
        write_safetensors({name: torch.ones(1)}, tmp_path / "a.safetensors")  # type: ignore[dict-item]


def test_a_header_past_the_formats_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchkeep.writing.safetensors.MAX_HEADER_NBYTES", 1000)
    with pytest.raises(SaveRefused, match=r"header would take 1,\d+ bytes, and .* allows 1,000\."):
        write_safetensors({"x": torch.ones(1)}, tmp_path / "a", metadata={"text": "x" * 1000})


# --- Memory ------------------------------------------------------------------------------------


def test_saving_never_holds_a_second_copy_of_the_state(tmp_path: Path) -> None:
    # Not contiguous, so that each has to be copied on its way: 48 tensors of 4 MiB.
    tensors = {f"t{n}": torch.ones(1024, 1024).t() for n in range(48)}
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")  # resets the peak
    before = resident_nbytes("VmRSS")
    write_safetensors(tensors, tmp_path / "a.safetensors", durable=False)
    assert resident_nbytes("VmHWM") - before < 64 << 20


def resident_nbytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
