"""The random number generators that a training run draws from.

Python's, NumPy's global one (if NumPy is loaded), torch's on the CPU and on every CUDA device,
as plain data. Also the private seeding of one sample, which leaves all of them as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch

from torchkeep.errors import CheckpointProblem

_WORD = 0xFFFFFFFF


def capture_rng() -> dict[str, Any]:
    """Return the state of every global generator: `python`, `numpy`, `torch`, `cuda`.

    NumPy's is there only if NumPy is loaded, CUDA's only if CUDA is in use: asking for it would
    start CUDA.
    """
    state: dict[str, Any] = {"python": python_state(random), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = numpy_state(numpy.random.get_state(legacy=False))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put every generator of a state from `capture_rng` back to where it was.

    Raises:
        CheckpointProblem: the state has more CUDA devices than there are here.
    """
    set_python_state(random, state["python"])
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        # The run that was saved drew from NumPy, so this one will, though it may load it later.
        import_module("numpy").random.set_state(from_numpy_state(state["numpy"]))
    if "cuda" in state:
        saved, here = len(state["cuda"]), torch.cuda.device_count()
        if saved > here:
            raise CheckpointProblem(
                f"the checkpoint has the random state of {saved} CUDA devices; there are {here}",
                advice="Resume on as many devices, or restore with rng=False.",
            )
        for device, device_state in enumerate(state["cuda"]):
            torch.cuda.set_rng_state(device_state, device)


# Python's and NumPy's states hold hundreds of words; as tensors they don't swell the JSON.


def python_state(generator: Any) -> dict[str, Any]:
    """Return the state of a `random.Random`, or of the module `random`, as plain data."""
    version, words, gauss = generator.getstate()
    return {"version": version, "words": torch.tensor(words), "gauss": gauss}


def set_python_state(generator: Any, state: dict[str, Any]) -> None:
    """Restore what `python_state` returned."""
    generator.setstate((state["version"], tuple(state["words"].tolist()), state["gauss"]))


def numpy_state(state: Any) -> Any:
    """Return a NumPy bit generator's state dict with its arrays as tensors, wide enough each."""
    if isinstance(state, dict):
        return {key: numpy_state(item) for key, item in state.items()}
    if not hasattr(state, "dtype") or not state.ndim:
        return state
    wide = torch.uint64 if state.dtype.itemsize == 8 else torch.int64
    return torch.tensor(state.tolist(), dtype=wide)


def from_numpy_state(state: Any) -> Any:
    """Return what NumPy takes for a state from `numpy_state`."""
    if isinstance(state, dict):
        return {key: from_numpy_state(item) for key, item in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put Python's, NumPy's and torch's CPU generator back when the block ends."""
    numpy = sys.modules.get("numpy")
    python, torch_cpu = random.getstate(), torch.get_rng_state()
    legacy = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(torch_cpu)
        if numpy is not None:
            numpy.random.set_state(legacy)


def seed_all(*key: object) -> None:
    """Seed Python, NumPy (if loaded) and torch's CPU generator from `key`.

    The seed is a hash of the key's `repr`, so neighbouring keys have unrelated streams.
    """
    raw = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    number = int.from_bytes(raw, "little")
    random.seed(number)
    # torch.manual_seed would seed CUDA as well, which a worker process must not touch.
    torch.default_generator.manual_seed(number & 0xFFFFFFFFFFFFFFFF)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed([(number >> shift) & _WORD for shift in (0, 32, 64, 96)])
