"""The processes of a training: started by `--nproc` through torchrun, and heard as one.

Of several processes the one speaks to which something happens first: if rank 3 finds an image that
is gone, the others only find that rank 3 is. Who is first is told by the store that torchrun keeps
for its processes. The others end without a word, with the same exit code.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torchkeep.cli import failures, siblings
from torchkeep.cli.progress import passing_line
from torchkeep.cli.siblings import LAUNCHER, OUTCOME, SAVING_S
from torchkeep.errors import EXIT_PREEMPTED, Preempted, TorchkeepError, WrongArgument

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_COMMAND = "TORCHKEEP_TRAIN_COMMAND"
"""The command line that has started them, as JSON."""
LAUNCH = "launch"
"""Under which metadata a checkpoint has that."""
_KEY, _CODE = "torchkeep/speakers", "torchkeep/code"
"""In the store: how many want to speak, and the exit code of the first."""
_MEETING = "RANK", "MASTER_ADDR", "MASTER_PORT"
"""What processes have in their environment to find each other."""
_SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"
_SHOW_CURSOR = "\x1b[?25h"
_SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a process."""


# --- Starting them -----------------------------------------------------------------------------


def launch(words: Sequence[str], num_processes: int) -> int:
    """Have torchrun start this command in several processes; return their exit code."""
    import json

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from torchkeep.checkpointing.doctor.environment import command

    logging.disable(logging.CRITICAL)  # torchrun's own story; ours is told by the processes
    with tempfile.TemporaryDirectory(prefix="torchkeep-") as place:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            # It would make a folder for logs that nobody deletes.
            logs_specs=DefaultLogsSpecs(log_dir=place),
            run_id=f"torchkeep-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            signals_to_handle=_SIGNALS,
            shutdown_timeout=SAVING_S,
        )
        outcome = Path(place, "outcome")
        os.environ[OUTCOME], os.environ[LAUNCHER] = str(outcome), str(os.getpid())
        os.environ[_COMMAND] = json.dumps(command(Path()))
        # Together they have as many threads as one would take.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(_num_cores() // num_processes, 1)))
        if sys.stderr.isatty():
            # It stands until the first of them has something to say.
            sys.stderr.write(f"starting {num_processes} processes ...")
            sys.stderr.flush()
        try:
            elastic_launch(config, sys.executable)(*_as_module(), "torchkeep", *words)
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            if code < 0 and not outcome.exists():  # it was killed before the others minded that
                _clear_line()
                name = signal.Signals(-code).name
                failures.report(siblings.gone(f"was ended by {name}", who="a"))
            return siblings.code_left(code if code >= 0 else _SIGNALLED - code)
        except SignalException as error:
            if error.sigval == signal.SIGINT and not outcome.exists():
                _clear_line()
                return failures.report_interrupt()
            return siblings.code_left(_SIGNALLED + error.sigval)
        finally:
            if sys.stdout.isatty():
                sys.stdout.write(_SHOW_CURSOR)  # one that drew a bar may have had no time for that
                sys.stdout.flush()
            del os.environ[OUTCOME], os.environ[LAUNCHER], os.environ[_COMMAND]
    return 0


def _as_module() -> list[str]:
    """Return the options by which Python finds torchkeep where it was found for this process.

    Else `-m` would look among the user's files first, which may have any names.
    """
    return ["-m"] if sys.path[:1] in ([""], [str(Path.cwd())]) else ["-P", "-m"]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_of(folder: Path) -> Mapping[str, Any]:
    """Return what a checkpoint has to know to be gone on with by `torchkeep resume`.

    That is the command line with `--nproc`; of what torchrun itself has started there is none.
    """
    import json

    command = json.loads(os.environ.get(_COMMAND, "null"))
    return {} if command is None else {LAUNCH: command | {"run": str(folder.resolve())}}


# --- As one ------------------------------------------------------------------------------------


@contextmanager
def together(device: str, num_wanted: int | None) -> Iterator[bool]:
    """Have the processes that were started together train as one; yield whether this one speaks.

    Args:
        device: see `Settings.device`.
        num_wanted: the value of `--nproc`.

    Raises:
        WrongArgument: torchrun has started this process, and `--nproc` is given; or something else
            has, which does not say how the processes find each other.
    """
    from torchkeep.training.distributed.processes import num_launched, process_group

    if num_launched() == 1:
        yield True
        return
    from torch.distributed.rendezvous import rendezvous

    if lacking := [name for name in _MEETING if name not in os.environ]:
        raise WrongArgument(
            f"the environment has WORLD_SIZE={num_launched()}, and no {', '.join(lacking)}",
            advice="Start the processes with torchrun, or one alone without WORLD_SIZE.",
        )
    siblings.look_after()
    shared, rank, _ = next(rendezvous("env://"))
    store = _of_this_start(shared)
    if rank:
        _be_silent()
    try:
        if num_wanted is not None and not siblings.is_launched():
            raise WrongArgument(
                "--nproc starts processes, and torchrun has started some already",
                advice="Leave it out; torchrun's --nproc-per-node says how many there are.",
            )
        with process_group(device, store):
            if not rank:
                _clear_line()
            yield rank == 0
        siblings.take_leave()
    except Preempted:
        _end(EXIT_PREEMPTED)
    except (Exception, KeyboardInterrupt) as error:
        _fail(error, store)


def _of_this_start(store: Store) -> Store:
    """Return a store without what processes have left in it that torchrun has started before.

    torchrun keeps one store for all of its starts (`--max-restarts`). In it are the addresses of
    processes that are gone, and that one has spoken. On several machines the counts of starts may
    differ, since each counts those that failed there.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _clear_line() -> None:
    """Have something said in place of what `launch` says while the processes start."""
    with passing_line():
        pass


def _be_silent() -> None:
    """Say nothing of what the first process says as well."""
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (until the end)


def _fail(error: Exception | KeyboardInterrupt, store: Store) -> NoReturn:
    """Say what has happened, if nobody has said anything yet, and end with its exit code."""
    if siblings.has_spoken():
        _end(siblings.code_left(failures.EXIT_DIFFERENT))
    code = failures.EXIT_DIFFERENT
    with suppress(RuntimeError):  # who keeps the store is gone
        if store.add(_KEY, 1) > 1:
            _end(int(store.get(_CODE)))
        if int(os.environ["RANK"]):
            sys.stderr = sys.__stderr__  # it was silent
        _clear_line()
        code = failures.report_any(_told(error))
        store.set(_CODE, str(code))
    _end(code)


def _told(error: Exception | KeyboardInterrupt) -> Exception | KeyboardInterrupt:
    """Return an error as it is to be told: that another process has ended is nobody's bug."""
    if isinstance(error, TorchkeepError):
        error.problem = error.problem.removeprefix("rank 0: ")  # which acts for all
    if not (_is_of_group(error) or _is_of_group(error.__cause__)):
        return error
    return siblings.gone()


def _is_of_group(error: BaseException | None) -> bool:
    """Whether an error is what PyTorch raises where processes do not reach each other."""
    from torch import distributed

    # gloo's are plain RuntimeErrors that begin with the place in its source.
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "/gloo/" in str(error)
    )


def _end(code: int) -> NoReturn:
    """End at once, since others may be waited for in vain."""
    siblings.leave_code(code)
    sys.stdout.flush()
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(code)
