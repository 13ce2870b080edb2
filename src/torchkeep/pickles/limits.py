"""How much work a file may ask for before it is put aside."""

from __future__ import annotations

from dataclasses import dataclass

from torchkeep.errors import LimitReached


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds for reading one file. Reaching one says nothing about the file's intent.

    The defaults are far above what a model of a trillion parameters needs.
    """

    pickle_nbytes: int = 1 << 30
    """Bytes of one pickle stream, after decompression."""
    copied_nbytes: int = 1 << 30
    """About what the copies take that a pickle asks for (`list(x)`, `x.encode()`)."""
    steps: int = 50_000_000
    """Opcodes of one pickle stream."""
    depth: int = 500
    """Levels of nesting in the tree of values."""
    places: int = 10_000_000
    """Values visited when the tree is walked; a value that stands in two places counts twice."""
    key_nodes: int = 1_000
    """Values inside one dictionary key or set member."""
    key_collisions: int = 100
    """Keys of one table that share a hash."""
    records: int = 4_000_000
    """Records of an archive."""
    archive_depth: int = 3
    """Archives in archives that are followed."""
    expansion: int = 64
    """How many times its packed size something may unpack to. Pickles of many tensors reach 30."""
    header_nbytes: int = 100_000_000
    """Bytes of a safetensors header (the format's own bound) or of a zip's directory."""

    def check(self, name: str, amount: int) -> None:
        """Raise `LimitReached` if `amount` is above the limit called `name`."""
        if amount > getattr(self, name):
            raise self.reached(name)

    def reached(self, name: str) -> LimitReached:
        """Return the error that says that the limit called `name` was reached."""
        return LimitReached(
            f"reading needs more than the limit {name}={getattr(self, name):,} allows",
            advice=how_to_raise(name),
        )


def how_to_raise(name: str) -> str:
    """Return the advice to whoever meets the limit called `name`."""
    return (
        f"If you trust the file, allow more: limits=Limits({name}=...) in Python, "
        f"--limit {name}=... on the command line."
    )


DEFAULT_LIMITS = Limits()
"""What every reader uses unless told otherwise."""
