"""What may be a dictionary key, decided before Python computes its hash."""

from __future__ import annotations

from typing import Any

import pytest

from effort import at_most
from torchkeep.contents import DictObject, Global, Object
from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.pickles.keys import Keys, check_key
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

FINE = ["a" * 10_000, b"b" * 10_000, 5, -(1 << 64), 1.5, None, (1, (2, ("x",))), frozenset({1})]


@pytest.mark.parametrize("key", [*FINE, Global("m", "n"), Object(None, ())], ids=repr)
def test_values_with_a_cheap_hash_may_be_keys(key: Any) -> None:
    check_key(key, DEFAULT_LIMITS)
    hash(key)


@pytest.mark.parametrize("kind", [list, dict, set, bytearray])
def test_values_without_a_hash_may_not_wherever_they_stand(kind: type) -> None:
    for key in (kind(), (kind(),), (1, (2, (kind(),)))):
        with pytest.raises(DamagedFile, match=f"uses a {kind.__name__} as a key"):
            check_key(key, DEFAULT_LIMITS)


def test_a_mapping_with_a_class_may_not() -> None:
    with pytest.raises(DamagedFile, match="as a key, which Python can't hash"):
        check_key(DictObject("collections.OrderedDict"), DEFAULT_LIMITS)


def test_a_key_of_many_parts_reaches_a_limit() -> None:
    limits = Limits(key_nodes=10)
    check_key(tuple(range(9)), limits)
    for key in (tuple(range(10)), ((((1,) * 4,) * 4,) * 4,) * 4, frozenset(range(10)), 1 << 20_000):
        with pytest.raises(LimitReached, match="key_nodes=10"):
            check_key(key, limits)


COLLIDING = [
    [k * ((1 << 61) - 1) for k in range(1, 100)],
    [(k * ((1 << 61) - 1), 2) for k in range(1, 100)],
]


@pytest.mark.parametrize("keys", COLLIDING, ids=["integers", "tuples of them"])
def test_keys_that_share_a_hash_reach_a_limit(keys: list[Any]) -> None:
    assert len({hash(key) for key in keys}) == 1
    table: dict[Any, Any] = {}
    guard = Keys(Limits(key_collisions=50))
    for key in keys[:50]:
        guard.check(key, table)
    with pytest.raises(LimitReached, match="key_collisions=50"):
        guard.check(keys[50], table)
    guard.check(keys[50], {"another": "table"})


def test_many_keys_of_hashes_of_their_own_reach_none() -> None:
    guard, table = Keys(Limits(key_collisions=1)), {}
    for key in (*range(-1000, 1000), *map(str, range(1000)), *((k, k) for k in range(1000)), None):
        guard.check(key, table)


def test_keys_of_tables_that_are_gone_do_not_count() -> None:
    guard = Keys(Limits(key_collisions=1))
    for _ in range(100):
        guard.check(1.5, [1.5])


def test_a_megabyte_of_keys_that_share_hashes_takes_no_second() -> None:
    groups = [[h + k * ((1 << 61) - 1) for k in range(1, 101)] for h in range(700)]
    guard, table = Keys(DEFAULT_LIMITS), dict[Any, Any]()
    with at_most(50):
        for key in (key for group in groups for key in group):
            guard.check(key, table)
            table[key] = None
    with pytest.raises(LimitReached, match="key_collisions=100"):
        guard.check(101 * ((1 << 61) - 1), table)
