"""The digests that a file carries, and what they say about a tensor."""

from __future__ import annotations

from dataclasses import replace

from torchkeep.contents import Storage, TensorEntry
from torchkeep.identify.digests import known_digest

ENTRY = TensorEntry("float32", (2,), (1,), Storage("0", 8, 0))


def test_the_one_digest_of_a_tensor_is_known():
    assert known_digest(ENTRY, {ENTRY.memory: frozenset({"a"})}) == "a"


def test_a_tensor_without_a_digest_or_with_two_has_none_that_is_known():
    assert known_digest(ENTRY, {}) is None
    assert known_digest(ENTRY, {ENTRY.memory: frozenset({"a", "b"})}) is None


def test_the_digest_of_big_endian_bytes_says_nothing_about_little_endian_ones():
    other = replace(ENTRY, storage=replace(ENTRY.storage, byteorder="big"))
    assert known_digest(other, {other.memory: frozenset({"a"})}) is None
