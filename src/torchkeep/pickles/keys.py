"""Which values may be dictionary keys and set members, checked before Python hashes them.

Hashing a tuple hashes what is in it, recursively and without a cache: a few hundred bytes of
pickle can ask for a hash that overflows the C stack or takes until the end of the universe.
"""

from __future__ import annotations

from torchkeep.contents import Value
from torchkeep.errors import DamagedFile
from torchkeep.pickles.limits import Limits

_BITS_PER_NODE = 10


def check_key(value: Value, limits: Limits) -> None:
    """Raise unless `value` can be hashed at a small cost.

    Raises:
        DamagedFile: it is a list, a dict or a set.
        LimitReached: it has too many parts, or is an integer of too many digits.
    """
    if isinstance(value, str):  # nearly always
        return
    waiting, nodes = [value], 0
    while waiting:
        item = waiting.pop()
        # The hash of an integer is computed anew each time, from all of its digits.
        nodes += 1 + (item.bit_length() >> _BITS_PER_NODE if isinstance(item, int) else 0)
        limits.check("key_nodes", nodes)
        if isinstance(item, list | dict | set | bytearray):
            kind = type(item).__name__
            raise DamagedFile(f"the pickle uses a {kind} as a key, which Python can't hash")
        if isinstance(item, tuple | frozenset):
            limits.check("key_nodes", nodes + len(item))
            waiting.extend(item)
