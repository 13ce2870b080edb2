"""saving/live.py: tensors as they stand in memory, in both formats, read back in three ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch as reference
import torch

from torchkeep.files import memory_at
from torchkeep.loading import load
from torchkeep.saving import save
from torchkeep.saving.live import payload_of_elements
from torchkeep.tensors import same_bits

_BASE = torch.arange(240.0)
_COMPLEX = torch.view_as_complex(torch.arange(12.0).view(6, 2))

CASES: dict[str, Callable[[], torch.Tensor]] = {
    "scalar": lambda: torch.tensor(2.5),
    "scalar at an offset": lambda: _BASE[17],
    "empty": lambda: torch.empty(0, 3),
    "empty part": lambda: _BASE[5:5],
    "turned": lambda: _BASE.view(12, 20).t(),
    "every other": lambda: _BASE[3::2],
    "expanded": lambda: torch.tensor([1.0, 2.0]).expand(5, 2),
    "expanded scalar": lambda: torch.tensor(7.0).expand(3, 4),
    "overlapping": lambda: _BASE.unfold(0, 7, 3),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last 3d": lambda: torch.randn(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d),
    "permuted": lambda: torch.randn(2, 3, 4).permute(2, 0, 1),
    "far into its storage": lambda: torch.zeros(1 << 22)[-3:],
    "conjugated": lambda: _COMPLEX.conj(),
    "conjugated and turned": lambda: _COMPLEX.view(2, 3).mH,
    "negated": lambda: _COMPLEX.conj().imag,
    "parameter": lambda: torch.nn.Parameter(torch.randn(3)),
    "parameter of a view": lambda: torch.nn.Parameter(_BASE.view(12, 20).t()),
    "buffer": lambda: torch.nn.Buffer(torch.randn(3)),
    "computed": lambda: torch.ones(2, requires_grad=True) * 3,
    "sizes of one": lambda: torch.as_strided(_BASE, (1, 4, 1), (999, 2, 77), 3),
    "made in inference mode": lambda: made_in_inference_mode(),
}


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.arange(6.0).view(2, 3).t()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", CASES)
def test_a_tensor_comes_back_whatever_it_looks_like_in_memory(
    tmp_path: Path, case: str, suffix: str
) -> None:
    torch.manual_seed(0)
    tensor, path = CASES[case](), tmp_path / f"file{suffix}"
    save({"x": tensor, "other": torch.ones(2)}, path)
    if suffix == ".pth":
        theirs = torch.load(path, weights_only=True)
        assert theirs["x"].stride() == tensor.stride() or "conj" in case or "neg" in case
    else:
        theirs = reference.load_file(path)
    for found in (theirs, load(path), load(path, mmap=True)):
        assert same_bits(found["x"], tensor)
        assert same_bits(found["other"], torch.ones(2))
    assert path.stat().st_size < 10_000


def test_what_shares_memory_shares_it_again_in_a_torch_zip(tmp_path: Path) -> None:
    base = torch.arange(100.0)
    state = {"a": base[10:20], "b": base[15:30:5], "c": torch.nn.Parameter(base[12:14])}
    save(state, tmp_path / "file.pth")
    found = load(tmp_path / "file.pth")
    with torch.no_grad():
        found["a"][5] = -1
        found["a"][2] = -2
    assert found["b"].tolist() == [-1, 20, 25]
    assert found["c"].tolist() == [-2, 13]


def test_memory_that_the_program_puts_aside_stays_as_long_as_it_is_written() -> None:
    tensor = torch.arange(1000, dtype=torch.float32)
    payload = payload_of_elements(tensor)
    address = tensor.data_ptr()
    tensor.data = torch.zeros(1000)
    torch.full((1000,), 7.0)  # would take the memory, were it free
    written = b"".join(payload.read(0, payload.nbytes))
    assert written == bytes(memory_at(address, 4000)) == torch.arange(1000.0).numpy().tobytes()
