"""Several ranks of one run: processes that are forked from one that has loaded PyTorch.

They end as torchrun would end them: when one dies, the others are killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
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
        main: what they run; it gets the path of a file, where they meet, behind its arguments, and
            should make its process the first of a group.
        given: the arguments of each.
        timeout_s: how long that may take.
        kill: kill the others when one has failed; else they have to end by themselves.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [CONTEXT.Process(target=main, args=(*some, store)) for some in given]
        for process in processes:
            process.start()
        _wait(processes, timeout_s, kill=kill)
        for process in processes:
            # A loader's worker that was forked just as its parent died never notices.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return [process.exitcode for process in processes]


def _wait(processes: Sequence[Any], timeout_s: float, *, kill: bool) -> None:
    """Return when all have ended, or one has failed and the others are to be killed."""
    end = time.monotonic() + timeout_s
    left = list(processes)
    while left and (rest := end - time.monotonic()) > 0:
        wait([process.sentinel for process in left], rest)
        left = [process for process in left if process.exitcode is None]
        if kill and any(process.exitcode for process in processes):
            return
