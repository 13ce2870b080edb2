"""Patterns for keys, the same wherever torchkeep takes one."""

from __future__ import annotations

from fnmatch import fnmatchcase


def covers(pattern: str, name: str) -> bool:
    """Return whether a pattern means a key, or a module that the key lies in.

    >>> covers("fc", "fc.weight"), covers("a.*", "a.0.weight"), covers("fc", "fc2.weight")
    (True, True, False)
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
