"""Where a run takes place: what is recorded with a checkpoint, and what would change its results.

The same program gives other bits under another PyTorch, another number of threads (sums are
split differently), other determinism flags, another kind of GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torchkeep import __version__
from torchkeep.checkpointing.ranks import said_by_torchrun
from torchkeep.writing.safetensors import is_utf8


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
        "world_size": world_size(),
    }


def world_size() -> int:
    """Return how many processes train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return said_by_torchrun("WORLD_SIZE", 1)


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
    "world_size": "{saved} ranks trained together, and now it is {now}",
}


def differences(saved: object) -> list[str]:
    """Return why a run that was saved under other settings may not go on bit for bit.

    What is no table of settings tells nothing.
    """
    now = environment()
    saved = saved if isinstance(saved, Mapping) else {}
    return [
        text.format(saved=saved[name], now=now[name])
        for name, text in _TEXTS.items()
        if name in saved and saved[name] != now[name]
    ]


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return ""


_FOLDER_AT_START = _current_folder()
"""Where the program was when it imported us: it may go elsewhere before it saves."""


def command(run: Path) -> dict[str, Any] | None:
    """Return how this program was started, for `torchkeep resume` to start it again.

    Args:
        run: the folder of the run that it goes on with.

    Returns:
        `argv` (the whole command line), `executable` (the interpreter's path, which `argv` may
        have a short name for), `cwd`, and `run`. None where starting that again would not start
        the program: a notebook, a prompt, a child of multiprocessing, one of several processes
        that torchrun or the like started; or where a name is no text, which JSON can't hold.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    is_file = script is not None and not script.startswith("<")  # as in <stdin>
    is_program = is_file or sys.argv[:1] == ["-c"]
    is_child = multiprocessing.parent_process() is not None or not _LAUNCHED.isdisjoint(os.environ)
    if not is_program or is_child:
        return None
    argv, where = list(sys.orig_argv), str(run.resolve())
    if not all(map(is_utf8, (*argv, sys.executable, _FOLDER_AT_START, where))):
        return None
    return {"argv": argv, "executable": sys.executable, "cwd": _FOLDER_AT_START, "run": where}


_LAUNCHED = frozenset(
    {"TORCHELASTIC_RUN_ID", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"}
)
"""What torchrun, `accelerate launch` and their like set for the processes that they start."""


def git_revision() -> str | None:
    """Return the commit of the program's working tree, with `+changes` if it has any.

    The tree is that of `program_folder`. None without git, or outside a repository.
    """
    folder = program_folder(sys.orig_argv, Path.cwd())
    revision = git_commit(folder)
    if not revision:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}+changes" if changes else revision


def program_folder(argv: Sequence[str], cwd: Path) -> Path:
    """Return the folder of the script in a command line, or else where it was started.

    A command that is installed, such as `torchkeep train`, is none of the user's programs.
    """
    for word in argv[1:]:
        script = cwd / word
        if word.endswith(".py") and is_folder(script.parent) and script.is_file():
            return script.parent
    return cwd


def is_folder(path: Path) -> bool:
    """Whether there is a folder; no if the system can't tell, as of a path that is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def git_commit(folder: Path) -> str | None:
    """Return the commit that a folder's working tree is at; None without one.

    The folder may be a stranger's: nothing that its repository configures is run. To ask whether
    there are changes would run its filters and its file monitor.
    """
    return _git(folder, "rev-parse", "HEAD")


def _git(folder: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
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
