"""The stack, the marks and the memo of a pickle, which CPython guards as this does."""

from __future__ import annotations

from itertools import islice

from torchkeep.contents import Value
from torchkeep.errors import DamagedFile
from torchkeep.pickles.source import ByteSource

_RECENT = 64
"""Entries of the memo among which a value that was just made is looked for."""


class Stack:
    """Values on top of each other, with marks between them, and those that are remembered.

    Every method raises `DamagedFile` where there is nothing to be taken.

    Args:
        source: where the pickle is read, for the place in an error.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.stack: list[Value] = []
        self.push = self.stack.append
        self.marks: list[int] = []
        self.fence = 0  # the stack's length at the last mark: nothing below may be taken
        self.memo: dict[int, Value] = {}

    def pop(self) -> Value:
        """Remove and return the top value."""
        if len(self.stack) <= self.fence:
            raise self.empty()
        return self.stack.pop()

    def top(self) -> Value:
        """Return the top value."""
        if len(self.stack) <= self.fence:
            raise self.empty()
        return self.stack[-1]

    def empty(self) -> DamagedFile:
        """Return the error of who finds nothing above the last mark."""
        return DamagedFile(f"the pickle's stack is empty at byte {self.source.position}")

    def pop_from(self, start: int) -> list[Value]:
        """Remove and return the values from a height on, the lowest first."""
        if start < self.fence:
            raise self.empty()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self) -> None:
        """Put a mark on the top: nothing below is taken until it is gone."""
        self.fence = len(self.stack)
        self.marks.append(self.fence)

    def pop_mark(self) -> int:
        """Forget the last mark, and return where it was."""
        if not self.marks:
            raise DamagedFile(f"the pickle has no MARK for byte {self.source.position}")
        mark = self.marks.pop()
        self.fence = self.marks[-1] if self.marks else 0
        return mark

    def pop_to_mark(self) -> list[Value]:
        """Remove and return the values above the last mark, and the mark."""
        return self.pop_from(self.pop_mark())

    def remember(self, index: int) -> None:
        """Keep the top value under a number."""
        if index < 0:
            raise DamagedFile("the pickle stores under a negative memo index")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        """Push the value that is kept under a number."""
        try:
            self.push(self.memo[index])
        except KeyError:
            raise DamagedFile(
                f"the pickle asks for memo entry {index}, which was never stored"
            ) from None

    def replace_top(self, value: Value) -> None:
        """Put `value` in the place of the top one, also for those who remember that."""
        old = self.stack[-1]
        self.stack[-1] = value
        # A value is remembered as soon as it is made, a little before its state is.
        for index in islice(reversed(self.memo), _RECENT):
            if self.memo[index] is old:
                self.memo[index] = value
