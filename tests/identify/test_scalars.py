"""A value that was saved as a tensor of no dimensions is told as its number."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep
from torchkeep.contents import Storage, TensorEntry
from torchkeep.files import InputFile
from torchkeep.identify.scalars import with_numbers

NUMBERS: dict[str, torch.Tensor] = {
    "bool": torch.tensor(True),
    "negative": torch.tensor(-7, dtype=torch.int8),
    "large": torch.tensor(2**63 - 1),
    "half": torch.tensor(0.5, dtype=torch.float16),
    "bfloat": torch.tensor(-3.0, dtype=torch.bfloat16),
    "float": torch.tensor(0.3),
    "double": torch.tensor(0.1, dtype=torch.float64),
    "complex": torch.tensor(1 + 2j),
    "conjugated": torch.tensor(1 + 2j).conj(),
    "negated": torch.tensor(1 + 2j).conj().imag,
    "view": torch.arange(5)[3],
    "parameter": nn.Parameter(torch.tensor(4.0)),
}


@pytest.mark.parametrize("is_zip", [True, False])
def test_the_number_is_that_of_the_tensor(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save({"best": NUMBERS}, path, _use_new_zipfile_serialization=is_zip)
    values = torchkeep.inspect(path).values
    assert values == {f"best.{name}": tensor.item() for name, tensor in NUMBERS.items()}


def test_a_checkpoint_tells_how_far_it_got(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    checkpoint = {
        "model": {**model.state_dict(), "scale.weight": torch.tensor(2.0)},
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "epoch": torch.tensor(3),
        "losses": [torch.tensor(0.5), torch.tensor(0.25)],
    }
    torch.save(checkpoint, tmp_path / "a.pt")
    inspection = torchkeep.inspect(tmp_path / "a.pt")
    assert inspection.values == {"epoch": 3, "losses.0": 0.5, "losses.1": 0.25}
    assert inspection.summary.endswith("AdamW, epoch 3.")


def test_an_array_of_no_dimensions_and_numpys_scalars_are_numbers_too(tmp_path: Path) -> None:
    made = {
        "array": np.array(4.5),
        "float": np.float32(0.5),
        "int": np.int64(3),
        "complex": np.complex64(1j),
        "text": np.str_("resnet"),
        "date": np.datetime64("2026-11-25"),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(made))
    del made["date"]  # it has no number that says anything by itself
    assert torchkeep.inspect(tmp_path / "a.pkl").values == made


def test_what_can_not_be_read_stays_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(16)))

    def entry(dtype: str, offset: int | None, nbytes: int = 4, **kwargs: Any) -> TensorEntry:
        storage = Storage("0", nbytes, offset, path=kwargs.pop("path", path))
        return TensorEntry(dtype, (), (), storage, **kwargs)

    values: dict[str, Any] = {
        "fine": entry("uint8", 7),
        "behind the file": entry("float32", 14),
        "behind its storage": entry("float32", 0, nbytes=4, storage_offset=1),
        "packed": entry("float32", None),
        "in no file": entry("float32", 0, path=None),
        "in a lost file": entry("float32", 0, path=tmp_path / "b.bin"),
        "of another kind": entry("float8_e5m2", 0),
        "of a kind that torch lacks": entry("f4", 0),
        "quantized": entry("qint8", 0, quantizer=("per_tensor_affine", 0.5, 0)),
        "no tensor": 5,
    }
    found = with_numbers(values)
    assert list(found) == list(values)
    assert found == {**values, "fine": 7}
    assert with_numbers({"a": 1}) == {"a": 1}


def test_the_other_byte_order_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x01\x02\x3f\x80")
    storage = Storage("0", 4, 0, byteorder="big", path=path)
    made = {
        "a": TensorEntry("int16", (), (), storage),
        "b": TensorEntry("bfloat16", (), (), storage, storage_offset=1),
    }
    assert with_numbers(made) == {"a": 258, "b": 1.0}


def test_only_so_many_are_read_and_each_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = [torch.tensor(n) for n in range(1_500)]
    torch.save({"counters": counters, "big": torch.zeros(1 << 20)}, tmp_path / "a.pt")
    reads: list[int] = []
    read_at = InputFile.read_at

    def counted(self: InputFile, offset: int, nbytes: int) -> bytes:
        reads.append(nbytes)
        return read_at(self, offset, nbytes)

    contents = torchkeep.inspect(tmp_path / "a.pt").contents
    values = {f"{n}": entry for n, entry in enumerate(contents.root["counters"])}
    monkeypatch.setattr(InputFile, "read_at", counted)
    assert list(with_numbers(values).values()) == list(range(1_500))
    assert len(reads) < 150
    assert sum(reads) < 600_000
    shown = torchkeep.inspect(tmp_path / "a.pt").values
    assert list(shown.values()) == list(range(1_000))


def test_one_in_a_packed_archive_is_shown_as_a_tensor(tmp_path: Path) -> None:
    torch.save({"loss": torch.tensor(0.5)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.pt", "a.pt")
    values = torchkeep.inspect(tmp_path / "a.zip").to_json()["values"]
    assert values == {"a.pt.loss": "<float32 tensor []>"}
