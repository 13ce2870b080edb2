"""Whether Python would run as a pickle what looks like text, or like nothing known.

An unpickler looks at no magic number: it runs opcode after opcode, and what it called before it
met a byte that is none stays called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torchkeep.contents import Finding, Global, Value
from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.files import Readable
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.pickled import Constructor, Pickled
from torchkeep.pickles.source import ByteSource

_SHORT_LINES = tuple(b"%c" % opcode for opcode in b"FILPcgip")
"""Opcodes whose text is a number, a name or a persistent id. The length of a safetensors header
starts with one of these in one file of thirty, and no line may end for gigabytes behind it."""
_LONGEST_LINE = 8192
_MOST_STEPS = 1_000_000
_MOST_NBYTES = 16 << 20
"""Bytes of a text that goes on until a line ends, which may be never."""


def find_hidden_pickle(file: Readable, limits: Limits) -> tuple[tuple[Global, ...], list[Finding]]:
    """Return the names that unpickling the file would use, and what is to be said about it.

    Both are empty if an unpickler would refuse the file before it does anything.
    """
    head = file.read_at(0, min(file.nbytes, _LONGEST_LINE))
    if head.startswith(_SHORT_LINES) and b"\n" not in head:
        return (), []  # what such a line holds is never that long
    watch = _Watch()
    try:
        pickled: Pickled = run_pickle(
            ByteSource(file.read_at, 0, file.nbytes),
            persistent=_refuse,
            constructors=watch,
            builder=watch.build,
            limits=replace(
                limits,
                steps=min(limits.steps, _MOST_STEPS),
                pickle_nbytes=min(limits.pickle_nbytes, _MOST_NBYTES),
            ),
        )
        acts = bool(pickled.globals)
    except FileProblem as problem:
        if not isinstance(problem.seen, Pickled):
            return (), []
        pickled = problem.seen
        acts = watch.has_acted or isinstance(problem, LimitReached)
        acts = acts or any(finding.severity == "dangerous" for finding in pickled.findings)
    if not acts:
        return (), []
    text = "it does not look like a pickle, and Python would run it as one"
    return pickled.globals, [*pickled.findings, Finding("hidden-pickle", "ambiguous", "", text)]


def _refuse(pid: Value) -> Value:
    """Stop at a persistent id, as Python does where nobody told it what to do with one."""
    del pid
    raise DamagedFile("a persistent id stands where no program takes one")


class _Watch(Mapping[str, Constructor]):
    """Answers none of a pickle's calls, and remembers whether there were any."""

    def __init__(self) -> None:
        self.has_acted = False

    def __getitem__(self, name: str) -> Constructor:
        self.has_acted = True
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:  # an empty table would not be asked
        return True

    def build(self, target: Value, state: Value) -> None:
        """Remember that a state is set on something, which may run its class's code."""
        del target, state
        self.has_acted = True
