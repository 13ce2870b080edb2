"""One walk over a loader, which can be left, and gone on with in another process."""

# ruff: noqa: D102  what the methods of a walk do is said once, in `Pass`

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from torchkeep.errors import CheckpointProblem


class Pass:
    """One walk over a loader, which can be left and gone on with in another process.

    Attributes:
        loader: the user's loader.
        num_given: batches given to the user's loop.
        num_finished: batches given before the last finished step: where a resume goes on.
        is_left: whether the loop has left it, at its end or before.
        is_over: whether nothing of it is left to do.
    """

    kind: ClassVar[str]
    """What the checkpoint calls this way to walk."""

    def __init__(self, loader: Iterable[Any], key: tuple[int, int, int]) -> None:
        """Take the loader, and the `(run seed, epoch, number of the pass)` to seed from."""
        self.loader = loader
        self.key = key
        self.num_given = self.num_finished = 0
        self.is_left = False
        self.is_over = False

    def begin(self) -> None:
        """Start from the first batch."""

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs in order to go on after the last finished step."""
        return {"kind": self.kind, "batch": self.num_finished, "is_over": self.is_over}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where the pass of `state` was.

        Raises:
            CheckpointProblem: the loader is of another kind, or its data set has changed.
        """
        if state["kind"] != self.kind:
            raise CheckpointProblem(
                f"the epoch began with a loader whose place is kept by {state['kind']}, and this "
                f"{type(self.loader).__name__} is one by {self.kind}",
                advice="Resume with the loader that the run was started with.",
            )
        self.num_given = self.num_finished = state["batch"]
        self.is_over = state["is_over"]

    def remaining(self) -> Iterator[Any]:
        """Return an iterator over the batches from the cursor on."""
        return iter(()) if self.is_over else self._walk()

    def _walk(self) -> Iterator[Any]:
        raise NotImplementedError

    def served(
        self, iterator: Iterator[Any], before_next: Callable[[], object] = lambda: None
    ) -> Iterator[Any]:
        """Yield what `remaining` returned, and count it.

        Args:
            iterator: what `remaining` returned.
            before_next: called each time that the loop asks for more, before anything is fetched.
        """
        try:
            for batch in iterator:
                self.num_given += 1
                yield batch
                before_next()
            self.is_over = True
        finally:
            self.is_left = True

    def finish_step(self) -> None:
        """Count what was given so far as finished."""
        self.num_finished = self.num_given

    def order_digest(self) -> str:
        """Return a digest of all samples in their order; empty if they are not known."""
        return ""

    def inexact(self) -> list[str]:
        """Return why a resume from here may not be exact."""
        if self.num_given == self.num_finished:
            return []
        return [f"saved between batch {self.num_given} of the epoch and its step()"]


class StatefulPass(Pass):
    """A walk over a loader that can tell where it is, and be put there."""

    kind = "its own state"
    loader: Any

    def state(self) -> dict[str, Any]:
        state = super().state()
        return state if self.is_over else {**state, "loader": self.loader.state_dict()}

    def resume(self, state: dict[str, Any]) -> None:
        super().resume(state)
        if not self.is_over:
            self.loader.load_state_dict(state["loader"])

    def _walk(self) -> Iterator[Any]:
        return iter(self.loader)

    def inexact(self) -> list[str]:
        reasons = super().inexact()
        if getattr(self.loader, "num_workers", 0) and not self.is_over:
            kind = type(self.loader).__name__
            reasons.append(f"the workers of a {kind} draw new seeds when it is resumed")
        return reasons


class ReplayedPass(Pass):
    """A walk that can only begin again at the start, and skip what was seen."""

    kind = "skipping"

    def _walk(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        for _ in range(self.num_given):
            next(iterator, None)
        return iterator

    def inexact(self) -> list[str]:
        reasons = super().inexact()
        if not self.is_over:
            reasons.append(
                f"a {type(self.loader).__name__} that can't tell its order is walked again from "
                "its start; use a DataLoader over a map-style data set, or one with state_dict()"
            )
        return reasons
