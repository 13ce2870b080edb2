"""Several ranks of one run: processes that are forked from one that has loaded PyTorch.

They end as torchrun would end them: when one dies, the others are killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("numpy", "torch", "torch._dynamo", "torch.distributed.fsdp"),
        *("torch.distributed.checkpoint", "torchkeep.checkpointing"),
    ]
)

NOT_TOLD = 255
"""What `multiprocessing.popen_forkserver` returns where the server's answer was lost, which happens
now and then when a process is killed."""


def run_gang(
    main: Callable[..., None],
    given: Sequence[Sequence[Any]],
    timeout_s: float,
    *,
    kill: bool = True,
) -> list[int]:
    """Run a function in as many processes as there are arguments; return their exit statuses.

    Args:
        main: what they run; it gets the path of a file, where they meet, behind its arguments.
        given: the arguments of each.
        timeout_s: how long that may take.
        kill: kill the others when one has failed; else they have to end by themselves.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [CONTEXT.Process(target=_run, args=(main, *some, store)) for some in given]
        for process in processes:
            process.start()
        _wait(processes, timeout_s, kill=kill)
        for process in processes:
            # A loader's worker that was forked just as its parent died never notices.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return [process.exitcode for process in processes]


def _run(main: Callable[..., None], *args: Any) -> None:
    os.setpgrp()  # so that whatever it starts can be ended with it
    main(*args)


def join(rank: int, size: int, store: str, stderr: Path | None = None) -> None:
    """Make this process one of the ranks that meet at a file.

    Args:
        rank: which one.
        size: how many they are.
        store: where they meet.
        stderr: where to what it says goes: when one rank is killed, the others complain.
    """
    from torch import distributed

    if stderr is not None:
        with stderr.open("ab") as file:
            os.dup2(file.fileno(), 2)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size
    )


def _wait(processes: Sequence[Any], timeout_s: float, *, kill: bool) -> None:
    """Return when all have ended, or one has failed and the others are to be killed."""
    end = time.monotonic() + timeout_s
    left = list(processes)
    while left and (rest := end - time.monotonic()) > 0:
        wait([process.sentinel for process in left], rest)
        left = [process for process in left if process.exitcode is None]
        if kill and any(process.exitcode for process in processes):
            return


def on_ranks(size: int, do: Callable[..., Any], *args: Any, timeout_s: float = 120) -> list[Any]:
    """Run a function of a module on each of some ranks; return what each returned.

    Args:
        size: how many ranks.
        do: the function; it gets the rank first.
        args: what else it gets.
        timeout_s: how long that may take.

    Raises:
        AssertionError: a rank failed; the message has what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [(do, rank, size, args, folder) for rank in range(size)]
        statuses = run_gang(_on_rank, given, timeout_s, kill=False)
        told = [path.read_text() for path in sorted(folder.glob("stderr-*"))]
        assert not any(statuses), "\n".join([f"the ranks ended with {statuses}", *told])
        return [pickle.loads((folder / f"{rank}").read_bytes()) for rank in range(size)]


def _on_rank(
    do: Callable[..., Any], rank: int, size: int, args: Sequence[Any], folder: Path, store: str
) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    join(rank, size, store, folder / f"stderr-{rank}")
    (folder / f"{rank}").write_bytes(pickle.dumps(do(rank, *args)))
    distributed.destroy_process_group()
