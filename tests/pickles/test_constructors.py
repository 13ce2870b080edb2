"""The calls that only make plain values make the values that Python makes, or are refused."""

from __future__ import annotations

import builtins
import codecs
import collections
from typing import Any

import pytest

from pickles.comparing import same
from torchkeep.contents import DictObject, Global, Object
from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.pickles.constructors import CONSTRUCTORS

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("builtins.list", ((1, 2),)),
    ("builtins.list", ()),
    ("builtins.tuple", ([1, 2],)),
    ("builtins.tuple", ()),
    ("builtins.set", ([1, 2, 1],)),
    ("builtins.set", ()),
    ("builtins.frozenset", ((1, 2),)),
    ("builtins.dict", ({1: 2},)),
    ("builtins.dict", ([(1, 2), (1, 3)],)),
    ("builtins.dict", ()),
    ("builtins.bytes", ()),
    ("builtins.bytes", ([1, 255],)),
    ("builtins.bytes", ("\u00e9", "latin1")),
    ("builtins.bytearray", ()),
    ("builtins.bytearray", (b"ab",)),
    ("builtins.bytearray", ("\u00e9", "latin-1")),
    ("builtins.complex", ()),
    ("builtins.complex", (1.5, -2)),
    ("_codecs.encode", ("\u00e9", "latin1")),
    ("_codecs.encode", ("\u00e9",)),
    ("collections.OrderedDict", ([[2, 1], [1, 2]],)),
    ("collections.OrderedDict", ()),
]


def real(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr({"builtins": builtins, "_codecs": codecs}.get(module, collections), attribute)


@pytest.mark.parametrize(("name", "args"), CALLS)
def test_a_call_makes_what_python_makes(name: str, args: tuple[Any, ...]) -> None:
    assert same(CONSTRUCTORS[name](*args), real(name)(*args))


NONSENSE: list[tuple[str, tuple[Any, ...]]] = [
    ("builtins.list", (5,)),
    ("builtins.list", (1, 2)),
    ("builtins.bytes", (5,)),
    ("builtins.bytes", ([256],)),
    ("builtins.bytearray", (1 << 40,)),
    ("builtins.complex", ("1",)),
    ("builtins.complex", (10**400,)),
    ("builtins.dict", ([1],)),
    ("_codecs.encode", ("\u20ac", "latin1")),
    ("_codecs.encode", ("x", "rot13")),
    ("_codecs.encode", ("x", "zlib")),
    ("_codecs.encode", (5,)),
    ("collections.OrderedDict", (5,)),
    ("collections.Counter", ("ab",)),
    ("numpy.core.multiarray.scalar", ()),
    ("numpy.core.multiarray.scalar", (Object(Global("numpy", "dtype"), ("f8",)), b"short")),
]


@pytest.mark.parametrize(("name", "args"), NONSENSE)
def test_nonsense_raises_what_the_machine_expects(name: str, args: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError, AttributeError)):
        CONSTRUCTORS[name](*args)


def test_keys_and_members_are_checked_before_they_are_hashed() -> None:
    bomb: Any = ()
    for _ in range(60):
        bomb = (bomb, bomb)
    for name, argument in [
        ("builtins.set", [bomb]),
        ("builtins.frozenset", [bomb]),
        ("builtins.dict", [(bomb, 1)]),
        ("collections.OrderedDict", [(bomb, 1)]),
    ]:
        with pytest.raises(LimitReached):
            CONSTRUCTORS[name](argument)
    with pytest.raises(DamagedFile, match="list as a key"):
        CONSTRUCTORS["builtins.set"]([[]])


@pytest.mark.parametrize(
    "factory", [Global("builtins", "list"), Object(Global("m", "f"), ()), None]
)
def test_a_defaultdict_starts_empty_whatever_its_factory(factory: Any) -> None:
    made = CONSTRUCTORS["collections.defaultdict"](factory)
    assert isinstance(made, DictObject)
    assert (made.class_path, dict(made)) == ("collections.defaultdict", {})


def test_objects_of_protocol_0_keep_what_they_are_made_from() -> None:
    reconstruct = CONSTRUCTORS["copyreg._reconstructor"]
    cls = Global("m", "C")
    assert reconstruct(cls, Global("builtins", "object"), None).args == ()
    assert reconstruct(cls, Global("builtins", "dict"), {1: 2}).pairs == {1: 2}
    assert reconstruct(cls, Global("builtins", "list"), [1]).items == [1]
    assert reconstruct(cls, Global("builtins", "int"), 7).args == (7,)
