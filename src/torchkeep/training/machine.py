"""The machine that a training computes on: device, threads, determinism, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from torchkeep.checkpointing import seed_all
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.errors import OutOfMemory
from torchkeep.loading.devices import usable_device
from torchkeep.training.settings import Settings


def seed_rank(settings: Settings, rank: int) -> None:
    """Have a rank draw random numbers of its own; what it augments images by does not depend on it.

    Until then all draw the same ones: fresh weights, for instance.
    """
    _seed(settings.seed, rank)


def set_up(settings: Settings) -> None:
    """Have this process compute with the threads, the determinism and the seed of some settings."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        # What cuBLAS needs to be deterministic, before CUDA is used for the first time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _seed(settings.seed)


def _seed(*numbers: int) -> None:
    seed_all("torchkeep.training", *numbers)
    torch.manual_seed(torch.initial_seed())  # the generators of other devices as well


def chosen_device(name: str) -> torch.device:
    """Return the device of this name; `auto` takes the fastest that there is.

    Raises:
        WrongArgument: PyTorch knows none of that name, or there is none here.
    """
    if name != "auto":
        return _own_gpu(usable_device(name))
    if torch.cuda.is_available():
        return _own_gpu(torch.device("cuda"))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _own_gpu(device: torch.device) -> torch.device:
    """Return the device that is this process's own, if several train together."""
    if device != torch.device("cuda") or Ranks.here().is_alone:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def memory_format(settings: Settings) -> torch.memory_format:
    """Return how images and weights are laid out in memory."""
    return torch.channels_last if settings.channels_last else torch.preserve_format


@contextmanager
def computing_as_said(settings: Settings, device: torch.device) -> Iterator[None]:
    """Compute with operations as the settings say, and say what to do if there is no memory.

    Raises:
        OutOfMemory: a batch is too large for the device.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(settings.deterministic or before)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"there is not enough memory on {device} for batches of {settings.batch_size}",
            advice=f"Make them smaller and accumulate ({_smaller(settings.batch_size)}), or try "
            f"{'' if device.type == 'cpu' else '--precision bf16, '}a smaller --size, or --freeze "
            "all-but-head.",
        ) from None
    finally:
        torch.use_deterministic_algorithms(before)


def _smaller(batch_size: int) -> str:
    quarter = max(batch_size // 4, 1)
    return f"--batch-size {quarter} --accumulate {-(-batch_size // quarter)}"


def is_slow(precision: str, device: torch.device) -> bool:
    """Whether a precision of `Settings` takes a device longer than float32 does.

    A processor without instructions for it converts all numbers to and fro.
    """
    if precision == "float32" or device.type != "cpu":
        return False
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", None)
    return ask is not None and not ask()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    # PyTorch's allocator of the CPU raises a plain RuntimeError.
    is_told = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_told or "can't allocate memory" in str(error)
