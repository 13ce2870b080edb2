"""The processes that train together, and how they come to one mind.

PyTorch's own process group does the training. Beside it each `Ranks` has a group of its own, over
gloo: what is agreed on a checkpoint must not meet the gradients on their way, and works on the CPU
whatever the training's backend is. One that fails, or waits longer than `timeout_s`, is never used
again: nobody can know how far the others are.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from torchkeep.errors import CheckpointProblem, TorchkeepError

T = TypeVar("T")

TIMEOUT_S = 600.0
"""How long one rank waits for another, unless the caller says."""

_LOOK = (
    "Look at what the other ranks said. All of them have to open the Checkpointer, to make as many "
    "steps, and to call its methods alike."
)


class Ranks:
    """The processes of a run as one of them sees it. Alone it agrees with itself, at no cost.

    Each method is called by all ranks, in the same order, or nobody gets an answer.

    Args:
        rank: which of them this is; the first one is 0.
        size: how many they are.
        timeout_s: how long to wait for the others.

    Attributes:
        rank, size: likewise.
    """

    def __init__(self, rank: int = 0, size: int = 1, timeout_s: float = TIMEOUT_S) -> None:
        self.rank = rank
        self.size = size
        self._timeout_s = timeout_s
        self._group: Any = None
        self._failed, self._advice = "", _LOOK

    @classmethod
    def here(cls, timeout_s: float = TIMEOUT_S) -> Ranks:
        """Return those of the process group that is initialised, or this process alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(timeout_s=timeout_s)
        return cls(distributed.get_rank(), distributed.get_world_size(), timeout_s)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that acts for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    def connect(self) -> None:
        """Have a group for this object alone. All ranks call it.

        Raises:
            CheckpointProblem: some rank does not come.
        """
        if not self.is_alone and self._group is None:
            self._group = self._asked(
                lambda: distributed.new_group(
                    backend="gloo", timeout=timedelta(seconds=self._timeout_s)
                )
            )

    def apart(self) -> Ranks:
        """Return the same ranks for another thread, to be connected."""
        return Ranks(self.rank, self.size, self._timeout_s)

    # --- Agreeing ------------------------------------------------------------------------------

    def first(self, do: Callable[[], T]) -> T:
        """Have the first rank do something; return its result, or raise its error, on all.

        Raises:
            CheckpointProblem: a rank has ended, or does not answer.
        """
        if self.is_alone:
            return do()
        answer: Any = self._attempt(do) if self.is_first else None
        found: Any = self._broadcast(answer)
        result, error = answer if self.is_first else found
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def every(self, do: Callable[[], T]) -> list[T]:
        """Have each rank do something; return all results, in the order of the ranks, on all.

        Raises:
            Exception: what the first rank that failed raised; all raise it.
            CheckpointProblem: a rank has ended, or does not answer.
        """
        if self.is_alone:
            return [do()]
        answers: list[Any] = [None] * self.size
        mine = self._attempt(do)
        self._asked(lambda: distributed.all_gather_object(answers, mine, group=self._group))
        answers[self.rank] = mine
        failed = _failed(answers)
        if failed is not None:
            raise self._of(*failed)
        return [result for result, _ in answers]

    def each(self, do: Callable[[], T]) -> T:
        """Have each rank do something; return this one's result if it went well on all.

        Raises:
            Exception: what the first rank that failed raised; all raise it.
            CheckpointProblem: a rank has ended, or does not answer.
        """
        if self.is_alone:
            return do()
        result, error = self._attempt(do)
        place = torch.tensor([self.size if error is None else self.rank])
        failed = int(self.lowest(place))
        if failed < self.size:
            told: Any = self._broadcast(error, failed)
            raise self._of(failed, told, mine=error)
        return result  # type: ignore[return-value]  # it is one, since nobody failed

    def gathered(self, do: Callable[[], T]) -> list[T]:
        """Do as `each` does; return all results, in the order of the ranks, on the first one.

        On the others it is only their own.
        """
        result = self.each(do)
        if self.is_alone:
            return [result]
        results: list[Any] | None = [None] * self.size if self.is_first else None
        self._asked(
            lambda: distributed.gather_object(result, results, group_dst=0, group=self._group)
        )
        return results or [result]

    def meet(self) -> None:
        """Return when all ranks have come to this place."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on some rank."""
        return int(self.lowest(torch.tensor([0 if flag else 1]))) == 0

    def lowest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the lowest of all ranks' values, place by place."""
        if not self.is_alone:
            operation = distributed.ReduceOp.MIN
            self._asked(lambda: distributed.all_reduce(values, op=operation, group=self._group))
        return values

    def send_highest(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to find the highest of all ranks' values; return what waits for it."""
        if self.is_alone:
            return lambda: values
        operation = distributed.ReduceOp.MAX
        work: Any = self._asked(
            lambda: distributed.all_reduce(values, op=operation, group=self._group, async_op=True)
        )

        def wait() -> torch.Tensor:
            self._asked(work.wait)
            return values

        return wait

    # --- Talking -------------------------------------------------------------------------------

    def _attempt(self, do: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """Return what comes of something, and the error if it fails, as it can be sent."""
        with self._in_step():
            try:
                return do(), None
            except Exception as error:
                return None, error if _can_be_sent(error) else RuntimeError(f"{error!r}")

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Never ask the others again if this one is interrupted: they are in the midst of it."""
        try:
            yield
        except Exception:
            raise
        except BaseException as interrupt:
            self._failed = f"rank {self.rank}: it was interrupted ({type(interrupt).__name__})"
            self._advice = "Start the program again."
            raise

    def _broadcast(self, value: object, source: int = 0) -> object:
        """Return what the source has, on all ranks."""
        box = [value]
        self._asked(
            lambda: distributed.broadcast_object_list(box, group_src=source, group=self._group)
        )
        return box[0]

    def _asked(self, ask: Callable[[], T]) -> T:
        if self._failed:
            raise CheckpointProblem(self._failed, advice=self._advice)
        try:
            with self._in_step():
                return ask()
        except RuntimeError as error:  # what c10d raises are kinds of it
            self._failed = (
                f"rank {self.rank}: another one of the {self.size} ranks has ended, or did not "
                f"answer within {self._timeout_s:g} s ({_told(error)})"
            )
            raise CheckpointProblem(self._failed, advice=_LOOK) from error

    def _of(self, rank: int, error: Exception, mine: Exception | None = None) -> Exception:
        """Return an error of some rank as it is to be raised here; `mine` if it is this one's."""
        if rank == self.rank and mine is not None:  # which knows where it was raised
            return mine
        if rank != self.rank and isinstance(error, TorchkeepError):
            error.problem = f"rank {rank}: {error.problem}"
        elif rank != self.rank:
            error.add_note(f"This happened on rank {rank}.")
        return error


ALONE = Ranks()
"""One process that nobody trains with."""


def num_ranks_here() -> int:
    """Return how many ranks share this machine's memory, as far as torchrun has said."""
    return max(said_by_torchrun("LOCAL_WORLD_SIZE", 1), 1)


def said_by_torchrun(name: str, otherwise: int) -> int:
    """Return a number that torchrun, or the like, has given to a process that it has started."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise


def _can_be_sent(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (it is our own)
    except Exception:
        return False
    return True


def _failed(answers: Sequence[Any]) -> tuple[int, Exception] | None:
    """Return the first rank that failed, and its error."""
    for rank, (_, error) in enumerate(answers):
        if error is not None:
            return rank, error
    return None


def _told(error: Exception) -> str:
    """Return what gloo says, without the line of its source and its guesses.

    >>> _told(RuntimeError("[/gloo/tcp/pair.cc:5] Closed by peer [::1]:5. This is typical. GLHF!"))
    'Closed by peer [::1]:5'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[[^]]*\] ", "", lines[0]).partition(". ")[0][:200]
