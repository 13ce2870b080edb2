"""Which values may be dictionary keys and set members, checked before Python hashes them.

Hashing a tuple hashes what is in it, recursively and without a cache: a few hundred bytes of
pickle can ask for a hash that overflows the C stack or takes until the end of the universe. And
keys that share a hash are compared with each other, one by one: Python takes an integer modulo
2**61 - 1 for its hash, so that a file can have as many of those as it likes.
"""

from __future__ import annotations

from collections import Counter

from torchkeep.contents import Value
from torchkeep.errors import DamagedFile
from torchkeep.pickles.limits import Limits

_BITS_PER_NODE = 10
_LEAST_SHARED = (1 << 61) - 1
"""Integers below it in size have a hash of their own, but for -1."""


class Keys:
    """The keys of one file, counted by the hashes that they share."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sharing: Counter[tuple[int, int]] = Counter()
        # Kept alive, so that no other table gets the same id.
        self._tables: dict[int, object] = {}

    def check(self, key: Value, table: object) -> None:
        """Raise unless `key` can be put into `table` at a small cost.

        Raises:
            DamagedFile: it is a list, a dict or a set.
            LimitReached: it has too many parts, or shares its hash with too many keys.
        """
        if isinstance(key, str):  # nearly always, and their hashes are seeded anew at each start
            return
        check_key(key, self._limits)
        if isinstance(key, int) and -_LEAST_SHARED < key < _LEAST_SHARED:
            return
        self._tables[id(table)] = table
        place = id(table), hash(key)
        self._sharing[place] += 1
        if self._sharing[place] > self._limits.key_collisions:
            self._limits.check("key_collisions", self._sharing[place])


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
