"""Signals that ask a run to make room: it saves at the next step's end, and then goes.

A handler only notes the signal. To save in it would be to save in the middle of whatever the
program is doing. DataLoader workers are forked from the program and would inherit the handlers,
and then not end when they are told to; so a forked process gets the system's own back. But Ctrl-C
goes to all processes of a terminal: a worker that ends by it takes the run with it, before that
could save. So a loader's workers ignore it if the run minds it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterable
from types import FrameType
from typing import Any, ClassVar

from torchkeep.checkpointing.ranks import Ranks, said_by_torchrun
from torchkeep.errors import WrongArgument

SIGNALS: tuple[str, ...] = ("SIGTERM", "SIGUSR1")
"""The signals that a run minds: what schedulers send before they kill."""


_CHILD_ENDED: int | None = getattr(signal, "SIGCHLD", None)
"""The signal that a child has ended, by which PyTorch looks after a loader's workers."""


def check_signals(names: object) -> None:
    """Raise `WrongArgument` for what is no collection of names of signals."""
    known = {*signal.Signals.__members__, *SIGNALS}  # Windows has not all of them
    if isinstance(names, str) or not isinstance(names, Collection) or not known.issuperset(names):
        raise WrongArgument(
            f"signals is {names!r}", advice='Give names of signals, as in ("SIGTERM", "SIGUSR1").'
        )


class SignalWatch:
    """Notes signals from when it is made until it is closed.

    Only the main thread may set handlers; from another one nothing is watched.

    Args:
        names: the signals, by name; what the system lacks is left out.

    Attributes:
        received: the name of the signal that came first, or an empty text.
    """

    _open: ClassVar[list[SignalWatch]] = []
    _before: ClassVar[dict[int, Any]] = {}
    """The handlers that were there before the first watch, by signal."""
    _minded: ClassVar[frozenset[int]] = frozenset()
    """In a forked process: the signals that its parent watched for."""

    def __init__(self, names: Iterable[str] = SIGNALS) -> None:
        self.received = ""
        known = signal.Signals.__members__
        self.numbers: set[int] = {known[name] for name in names if name in known}
        if _is_main_thread():
            self._open.append(self)
            for number in self.numbers - self._before.keys():
                self._before[number] = signal.signal(number, self._note)

    @classmethod
    def _note(cls, number: int, frame: FrameType | None) -> None:
        del frame
        cls._leave_children_alone()
        for watch in cls._open:
            if number in watch.numbers and not watch.received:
                watch.received = signal.Signals(number).name

    @classmethod
    def _leave_children_alone(cls) -> None:
        """Have no error raised where a worker ends, for the rest of the program.

        A signal to all processes ends a loader's workers too. PyTorch would tell of that in the
        midst of whatever is running; so it does when the next batch is asked for.
        """
        if _CHILD_ENDED is not None and _CHILD_ENDED not in cls._before:
            cls._before[_CHILD_ENDED] = signal.signal(_CHILD_ENDED, signal.SIG_DFL)

    @classmethod
    def leave_to_parent(cls) -> None:
        """Have a loader's worker outlive what asks the run to stop; the loader ends it."""
        if signal.SIGINT in cls._minded:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if max(Ranks.here().size, said_by_torchrun("WORLD_SIZE", 1)) > 1 and hasattr(os, "setpgid"):
            # torchrun hands signals to all of a rank's process group. Ranks agree on the step after
            # which they save, and need some more batches until then.
            os.setpgid(0, 0)

    def close(self) -> None:
        """Put the handlers back that were there before, if nobody else watches.

        What PyTorch raises where a worker ends stays off if the program is to end: the next watch
        that sees its end without a signal puts it back.
        """
        if self in self._open:
            self._open.remove(self)
        watched = {number for watch in self._open for number in watch.numbers}
        if self.received and _CHILD_ENDED is not None:
            watched.add(_CHILD_ENDED)
        if _is_main_thread():
            for number in self._before.keys() - watched:
                # A handler that no Python code had set is None, and can't be put back from here.
                signal.signal(number, self._before.pop(number) or signal.SIG_DFL)

    @classmethod
    def forget_all(cls) -> None:
        """Have a forked process end by these signals, as it would without us."""
        cls._minded = frozenset(cls._before)
        for number in cls._before:
            signal.signal(number, signal.SIG_DFL)
        cls._before.clear()
        cls._open.clear()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SignalWatch.forget_all)
