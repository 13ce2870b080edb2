"""converting/proof.py: whatever differs from what was meant is found and named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchkeep.contents import TensorEntry, Value
from torchkeep.converting.proof import Expected, leaves_of, prove
from torchkeep.errors import DamagedFile, ProofFailed
from torchkeep.files import digest
from torchkeep.formats import describe
from torchkeep.tensors import bytes_of
from torchkeep.writing.payload import of_bytes

SOURCE, PATH = Path("source"), Path("made")


def expected(tensor: torch.Tensor, known: str | None = None) -> Expected:
    dtype = str(tensor.dtype).removeprefix("torch.")
    payload = of_bytes(bytes(bytes_of(tensor.contiguous())))
    return Expected(dtype, tuple(tensor.shape), payload, known)


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Value]:
    tensor = torch.arange(4.0)
    torch.save({"a": tensor, "b": tensor + 1, "n": 1, "x": float("nan")}, tmp_path / "made")
    return leaves_of(describe(tmp_path / "made"))


WHOLE = {
    "a": expected(torch.arange(4.0)),
    "b": expected(torch.arange(4.0) + 1),
    "n": 1,
    "x": float("nan"),
}


def test_what_is_as_meant_is_proven_and_counted(found: dict[str, Value]) -> None:
    calls: list[tuple[int, int]] = []
    prove(found, WHOLE, SOURCE, PATH, lambda *call: calls.append(call))
    assert calls == [(16, 32), (32, 32)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", expected(torch.arange(4.0) + 1)),
        ("b", expected(torch.arange(4.0).view(2, 2) + 1)),
        ("a", expected(torch.arange(4, dtype=torch.int32))),
        ("a", 1),
        ("n", 2),
        ("n", True),
        ("n", expected(torch.ones(1))),
        ("x", 0.0),
        ("missing", 1),
    ],
)
def test_what_is_not_as_meant_is_named(
    name: str, value: Expected | Value, found: dict[str, Value]
) -> None:
    text = f"made: '{name}' differs from the source after writing. If it happens again, check"
    with pytest.raises(ProofFailed, match=text):
        prove(found, WHOLE | {name: value}, SOURCE, PATH)


def test_what_is_too_much_is_named(found: dict[str, Value]) -> None:
    with pytest.raises(ProofFailed, match="made: 'b' differs from the source"):
        prove(found, {key: item for key, item in WHOLE.items() if key != "b"}, SOURCE, PATH)


def test_a_source_that_differs_from_its_own_digest_is_damaged(found: dict[str, Value]) -> None:
    entry = found["a"]
    assert isinstance(entry, TensorEntry)
    known = digest(bytes(bytes_of(torch.arange(4.0))))
    prove(found, WHOLE | {"a": expected(torch.arange(4.0), known)}, SOURCE, PATH)
    text = "source: tensor 'a' differs from what was saved: its digest is another one. Copy or"
    with pytest.raises(DamagedFile, match=text):
        prove(found, WHOLE | {"a": expected(torch.arange(4.0), "0" * 32)}, SOURCE, PATH)
