"""The machine reads what CPython's unpickler reads, and refuses what that refuses."""

from __future__ import annotations

import math
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pickles.comparing import same
from torchkeep.contents import DictObject, Object
from torchkeep.errors import DamagedFile, TorchkeepError
from torchkeep.pickles.constructors import CONSTRUCTORS
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.pickled import Pickled
from torchkeep.pickles.source import ByteSource

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def fuzz(num_examples: int) -> settings:
    return settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def run(stream: bytes) -> Pickled:
    return run_pickle(ByteSource.of_bytes(stream), constructors=CONSTRUCTORS)


# --- Plain values ------------------------------------------------------------------------------

keys = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8)
hashable = st.recursive(
    keys | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
leaves = (
    hashable
    | st.floats()
    | st.complex_numbers()
    | st.binary(max_size=300)
    | st.binary(max_size=20).map(bytearray)
    | st.integers(-(1 << 2100), 1 << 2100)
    | st.text(max_size=300)
    | st.sets(hashable, max_size=4)
    | st.frozensets(hashable, max_size=4)
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(hashable, inner, max_size=5)
    ),
    max_leaves=12,
)


@fuzz(250)
@given(tree=trees, protocol=st.sampled_from(PROTOCOLS), twice=st.booleans())
def test_plain_values_are_read_as_python_reads_them(tree: Any, protocol: int, twice: bool) -> None:
    stream = pickle.dumps([tree, tree] if twice else tree, protocol)
    pickled = run(stream)
    assert same(pickled.root, pickle.loads(stream))
    assert not pickled.findings
    assert pickled.protocol == (protocol if protocol >= 2 else 0)


def test_a_shared_list_stays_shared_and_a_cycle_stays_a_cycle() -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    for protocol in PROTOCOLS:
        root = run(pickle.dumps([shared, shared], protocol)).root
        assert root[0] is root[1]
        assert root[0][1] is root[0]


# --- The same errors -----------------------------------------------------------------------------

SAMPLE = {
    "text": "w\u00e9ight",
    "bytes": b"\xff\x00",
    "numbers": [0, 255, 65535, -1, 1 << 40, 1.5, math.inf],
    "flags": (True, False, None),
    "nested": {1: {2: (3, [4])}, "set": {5}},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_is_cut_anywhere_is_truncated(protocol: int) -> None:
    stream = pickle.dumps(SAMPLE, protocol)
    for length in range(len(stream)):
        with pytest.raises(DamagedFile, match="truncated"):
            run(stream[:length])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_follows_the_stop_is_not_read(protocol: int) -> None:
    stream = pickle.dumps(SAMPLE, protocol)
    source = ByteSource.of_bytes(stream + b"\xff" * 10)
    assert same(run_pickle(source, constructors=CONSTRUCTORS).root, SAMPLE)
    assert source.remaining == 10


# One line each of what C's unpickler refuses, and why.
REFUSED = {
    b".": "stack is empty",
    b"(.": "stack is empty",
    b"K\x01(.": "stack is empty",
    b"0N.": "stack is empty",
    b"2N.": "stack is empty",
    b"K\x01(2.": "stack is empty",
    b"K\x01(\x85.": "stack is empty",
    b"K\x01(K\x02\x86.": "stack is empty",
    b"K\x01K\x02(K\x03\x87.": "stack is empty",
    b"](K\x01a.": "stack is empty",
    b"](q\x00.": "stack is empty",
    b"](e.": None,  # to nothing: C stops at the mark's own place, and so it is fine
    b"t.": "no MARK",
    b"1.": "no MARK",
    b"(u.": "stack is empty",
    b"}(K\x01u.": "key without a value",
    b"(K\x01d.": "key without a value",
    b"}]K\x01s.": "list as a key",
    b"}}K\x01s.": "dict as a key",
    b"(]\x91.": "list as a key",
    b"}(]\x85K\x01u.": "list as a key",
    b"h\x00.": "memo entry 0",
    b"g5\n.": "memo entry 5",
    b"N\x94h\x01.": "memo entry 1",
    b"Np-1\n.": "negative memo index",
    b"Np0x1\n.": "integer belongs",
    b"Np\n.": "empty line",
    b"I\n.": "empty line",
    b"I08\n.": "integer belongs",
    b"Iabc\n.": "integer belongs",
    b"I" + b"9" * 5000 + b"\n.": "integer belongs",
    b"L5LL\n.": "integer belongs",
    b"L010L\n.": "integer belongs",
    b"F1e999\n.": "float belongs",
    b"F 1.5\n.": "float belongs",
    b"F1_5.0\n.": "float belongs",
    b"F\n.": "empty line",
    b"Sabc\n.": "without its quotes",
    b"S'abc\"\n.": "without its quotes",
    b"S'\n.": "without its quotes",
    b"S'abc'\r\n.": "without its quotes",
    b"S'\\x4'\n.": "broken string",
    b"V\\u12\n.": "not raw-unicode-escape",
    b"\x8c\x01\xff.": "not utf-8",
    b"P\xff\n.": "not ascii",
    b"cm\n\n.": "empty line",
    b"c\nn\n.": "empty line",
    b"c\xff\nn\n.": "not UTF-8",
    b"\x80\x06N.": "protocol 6",
    b"\x8b\xff\xff\xff\xffN.": "negative length",
    b"\x95\x40\x00\x00\x00\x00\x00\x00\x00N.": "frame of 64 bytes is cut off",
    b"(o.": "without a class",
    b"N\x98.": "read-only buffer of something else",
}


@pytest.mark.parametrize("stream", REFUSED)
def test_what_python_refuses_is_refused_with_the_reason(stream: bytes) -> None:
    reason = REFUSED[stream]
    if reason is None:
        assert same(run(stream).root, pickle.loads(stream))
        return
    with pytest.raises(Exception):  # noqa: B017, PT011  (C raises many kinds)
        pickle.loads(stream)
    with pytest.raises(DamagedFile, match=reason):
        run(stream)


# --- Agreement on programs that no pickler writes -----------------------------------------------


SNIPPETS = [
    *b"N\x88\x89]})\x8f((((0122tdleuas\x85\x86\x87\x91\x90\x94\x94..\x98",
    b"K\x01",
    b"K\x02",
    b"I01\n",
    b"I 1\n",
    b"I-3\n",
    b"L7L\n",
    b"F2.5\n",
    b"X\x01\x00\x00\x00a",
    b"\x8c\x01b",
    b"C\x01c",
    b"\x96\x01\x00\x00\x00\x00\x00\x00\x00d",
    b"U\x01e",
    b"q\x00",
    b"q\x03",
    b"p1\n",
    b"p07\n",
    b"h\x00",
    b"h\x01",
    b"h\x03",
    b"g1\n",
    b"g7\n",
    b"\x80\x02",
    b"\x80\x04",
    b"\x95\x03\x00\x00\x00\x00\x00\x00\x00",
    b"b",
]
programs = st.lists(
    st.sampled_from([bytes([s]) if isinstance(s, int) else s for s in SNIPPETS]), max_size=25
).map(lambda parts: b"".join(parts) + b".")


def check_agreement(stream: bytes) -> None:
    """Assert that both read the same, or that the machine says what it does not follow."""
    try:
        mine = run(stream)
    except DamagedFile:
        mine = None
    try:
        theirs = pickle.loads(stream)  # there is no name in it
    except Exception:
        assert mine is None or mine.findings, stream
    else:
        assert mine is not None, stream
        assert same(mine.root, theirs) or mine.findings, stream


@fuzz(1500)
@given(program=programs)
def test_odd_programs_mean_what_they_mean_to_python(program: bytes) -> None:
    check_agreement(program)


STREAMS = [pickle.dumps(SAMPLE, protocol) for protocol in PROTOCOLS]
STREAMS.append(pickle.dumps([np.float32(1), np.arange(3), DamagedFile], 2))


def problem_with(stream: bytes) -> str:
    """Return the message of the one kind of error that a stream may cause."""
    try:
        run(stream)
    except TorchkeepError as error:
        return str(error)
    return ""


@fuzz(1500)
@given(
    stream=st.sampled_from(STREAMS),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    removed=st.none() | st.tuples(st.integers(0, 10_000), st.integers(1, 8)),
)
def test_a_damaged_pickle_raises_nothing_but_our_errors(
    stream: bytes, changes: list[tuple[int, int]], removed: tuple[int, int] | None
) -> None:
    damaged = bytearray(stream)
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    if removed is not None:
        start = removed[0] % len(damaged)
        del damaged[start : start + removed[1]]
    assert "\n" not in problem_with(bytes(damaged))


@fuzz(1500)
@given(stream=st.binary(max_size=80))
def test_random_bytes_raise_nothing_but_our_errors(stream: bytes) -> None:
    assert len(problem_with(stream)) < 300


# --- Python 2 and NumPy --------------------------------------------------------------------------


def test_python_2_strings_are_text_if_they_can_be_and_bytes_otherwise() -> None:
    assert run(b"U\x02\xc3\xa9.").root == "\u00e9"
    assert run(b"U\x02\xff\x00.").root == b"\xff\x00"
    assert run(b"S'\\xff\\x00'\n.").root == b"\xff\x00"
    # PyTorch reads them as UTF-8.
    assert pickle.loads(b"U\x02\xc3\xa9.", encoding="utf-8") == "\u00e9"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_of_protocol_2_are_bytes(protocol: int) -> None:
    data = bytes(range(256))
    pickled = run(pickle.dumps(data, protocol))
    assert pickled.root == data
    assert [str(name) for name in pickled.globals] == (["_codecs.encode"] if protocol < 3 else [])


SCALARS = [
    np.float64(1.5),
    np.float32(-0.0),
    np.float16(2),
    np.int64(-1),
    np.uint8(255),
    np.int16(-2),
    np.bool_(True),
    np.complex64(1 + 2j),
    np.complex128(-1j),
    np.array(7, ">i4")[()],
    np.str_("Größe 😀"),
    np.array("abc", ">U3")[()],
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: scalar.dtype.str)
def test_a_numpy_number_or_text_is_that_value(scalar: np.generic, protocol: int) -> None:
    pickled = run(pickle.dumps(scalar, protocol))
    assert same(pickled.root, scalar.item())
    assert not pickled.findings


def test_any_other_numpy_scalar_stays_a_recipe() -> None:
    for scalar in (np.datetime64("2020-01-01"), np.bytes_(b"ab")):
        pickled = run(pickle.dumps(scalar, 2))
        assert isinstance(pickled.root, Object)
        assert not pickled.findings


def test_an_array_stays_a_recipe_with_its_bytes() -> None:
    root = run(pickle.dumps(np.arange(3, dtype="<i2"), 2)).root
    assert isinstance(root, Object)
    version, shape, dtype, is_fortran, data = root.state
    assert (version, shape, is_fortran) == (1, (3,), False)
    assert data == struct.pack("<3h", 0, 1, 2)
    assert dtype.args[0] == "i2"


# --- Objects -------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("__dict__", "slot")


class Listed(list[int]):
    pass


class Mapped(dict[str, int]):
    pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_keeps_its_class_its_attributes_and_its_content(protocol: int) -> None:
    listed, mapped = Listed([1, 2]), Mapped(a=1)
    listed.note = "n"  # type: ignore[attr-defined]
    got_list, got_dict = run(pickle.dumps((listed, mapped), protocol)).root
    assert (got_list.class_path, got_list.items) == (f"{__name__}.Listed", [1, 2])
    assert got_list.attributes == {"note": "n"}
    assert (got_dict.class_path, got_dict.pairs) == (f"{__name__}.Mapped", {"a": 1})


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p >= 2])
def test_slots_are_attributes_too(protocol: int) -> None:
    value = Slotted()
    value.slot, value.plain = 1, 2
    assert run(pickle.dumps(value, protocol)).root.attributes == {"slot": 1, "plain": 2}


def test_an_ordered_dict_keeps_its_order_and_its_attributes() -> None:
    stream = b"ccollections\nOrderedDict\n)R(K\x02K\x01K\x01K\x02u}X\x01\x00\x00\x00mK\x03sb."
    root = run(stream).root
    assert isinstance(root, DictObject)
    assert list(root.items()) == [(2, 1), (1, 2)]
    assert (root.class_path, root.attributes) == ("collections.OrderedDict", {"m": 3})


def test_two_states_of_an_object_are_both_kept() -> None:
    root = run(b"cm\nC\n)\x81}K\x01K\x02sb}K\x03K\x04sb.").root
    assert root.state == {1: 2, 3: 4}
    assert run(b"cm\nC\n)\x81K\x01bK\x02b.").root.state == (1, 2)
