"""Where a run takes place: what is recorded with a checkpoint, and what would change its results.

The same program gives other bits under another PyTorch, another number of threads (sums are
split differently), other determinism flags, another kind of GPU.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchkeep import __version__


def versions() -> dict[str, str]:
    """Return the versions of torchkeep, Python and the loaded libraries that compute."""
    found = {
        "torchkeep": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for name in ("numpy", "torchvision"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    return found


def environment() -> dict[str, Any]:
    """Return the settings that the bits of a result depend on."""
    return {
        "torch": str(torch.__version__),
        "num_threads": torch.get_num_threads(),
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "machine": platform.machine(),
        "cuda_devices": _cuda_devices(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _cuda_devices() -> list[str]:
    """Return the names of the devices, if CUDA is in use; asking would start it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    return [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]


_TEXTS: dict[str, str] = {
    "torch": "PyTorch was {saved} and is {now}",
    "num_threads": "{saved} threads were used and now {now}: call torch.set_num_threads({saved})",
    "default_dtype": "the default dtype was {saved} and is {now}",
    "deterministic_algorithms": "torch.use_deterministic_algorithms was {saved} and is {now}",
    "float32_matmul_precision": "the precision of float32 matmul was {saved} and is {now}",
    "cudnn_deterministic": "torch.backends.cudnn.deterministic was {saved} and is {now}",
    "cudnn_benchmark": "torch.backends.cudnn.benchmark was {saved} and is {now}",
    "machine": "the processor was {saved} and is {now}",
    "cuda_devices": "the CUDA devices were {saved} and are {now}",
    "world_size": "{saved} processes trained together, and now {now} do",
}


def differences(saved: Mapping[str, Any]) -> list[str]:
    """Return why a run that was saved under other settings may not go on bit for bit."""
    now = environment()
    return [
        text.format(saved=saved[name], now=now[name])
        for name, text in _TEXTS.items()
        if name in saved and saved[name] != now[name]
    ]


def git_revision() -> str | None:
    """Return the commit of the program's working tree, with `+changes` if it has any.

    The program is the main script's folder, or else the current one. None without git, or outside
    a repository.
    """
    git = shutil.which("git")
    if git is None:
        return None
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = Path(script).resolve().parent if script else Path.cwd()
    revision = _git(git, folder, "rev-parse", "HEAD")
    if not revision:
        return None
    changes = _git(git, folder, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}+changes" if changes else revision


def _git(program: str, folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  (fixed arguments, no shell)
            [program, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
