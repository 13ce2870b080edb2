"""NumPy's scalars and arrays, as NumPy itself pickles them, and what only looks like them."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

from torchkeep.contents import ITEM_SIZE, Array, Global, Object
from torchkeep.pickles.arrays import (
    DTYPES,
    as_bytes,
    build_array,
    is_shape,
    item_size,
    make_array,
    numpy_frombuffer,
    numpy_scalar,
    parse_dtype,
    unpack_number,
)
from torchkeep.pickles.constructors import CONSTRUCTORS
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.source import ByteSource

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ORDERS = ("<", ">")


def read(value: object, protocol: int = 4) -> Any:
    """Return what the machine makes of NumPy's own pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pickle.dumps(value, protocol)
    source = ByteSource.of_bytes(data)
    return run_pickle(source, constructors=CONSTRUCTORS, builder=build_array).root


def dtype(code: str, order: str = "<", **state: Any) -> Object:
    """Return a dtype as the machine keeps it."""
    made = Object(Global("numpy", "dtype"), (code, False, True))
    made.state = state.get("state", (3, order, None, None, None, -1, -1, 0))
    return made


def values(array: Array) -> np.ndarray[Any, Any]:
    """Return an array as NumPy reads its description."""
    assert array.storage.data is not None
    order = ">" if array.storage.byteorder == "big" else "<"
    kind = np.dtype(array.dtype).newbyteorder(order)
    flat = np.frombuffer(array.storage.data, kind)
    return flat.reshape(array.shape, order="F" if array.fortran else "C")


# --- Types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("code", DTYPES)
def test_every_type_of_numbers_has_pytorchs_name_and_its_byte_order(code: str, order: str) -> None:
    name, byteorder = parse_dtype(read(np.dtype(order + code))) or ("", "")
    assert name == np.dtype(code).name
    assert ITEM_SIZE[name] == np.dtype(code).itemsize
    if ITEM_SIZE[name] > 1:
        assert byteorder == ("big" if order == ">" else "little")


def test_the_order_in_a_code_holds_where_no_state_tells_another() -> None:
    assert parse_dtype(dtype(">f4", state=None)) == ("float32", "big")
    assert parse_dtype(dtype("<f4", state=None)) == ("float32", "little")
    assert parse_dtype(dtype("f4", ">")) == ("float32", "big")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "f4",
        Object(Global("numpy", "dtype"), ()),
        Object(Global("numpy", "dtype"), (4,)),
        Object(Global("numpy", "matrix"), ("f4",)),
        dtype("O8"),
        dtype("U5"),
        dtype("f16"),
    ],
)
def test_what_is_no_type_of_numbers_has_no_name(value: Any) -> None:
    assert parse_dtype(value) is None


@pytest.mark.parametrize("code", ["<f4", ">i8", "U5", "S7", "M8[s]", "V64", "?", "c16"])
def test_an_item_of_any_type_has_numpys_size(code: str) -> None:
    assert item_size(read(np.dtype(code))) == np.dtype(code).itemsize


@pytest.mark.parametrize("kind", [np.dtype("O"), np.dtype([("a", "f4"), ("b", "O")])])
def test_an_item_that_holds_python_objects_has_no_size(kind: Any) -> None:
    assert item_size(read(kind)) is None


@pytest.mark.parametrize("value", [None, dtype("V99999999999"), dtype("O8"), dtype("")])
def test_an_odd_type_has_no_size(value: Any) -> None:
    assert item_size(value) is None


# --- Scalars -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("code", DTYPES)
def test_a_scalar_is_the_number_that_numpy_pickled(code: str, protocol: int) -> None:
    scalar = np.array([1], code)[0]
    found = read(scalar, protocol)
    assert type(found) is type(scalar.item())
    assert found == scalar.item()


def test_a_scalar_is_read_in_its_byte_order() -> None:
    assert numpy_scalar(dtype("i2", ">"), b"\x01\x02") == 0x0102
    assert numpy_scalar(dtype("i2", "<"), b"\x01\x02") == 0x0201


def test_a_scalar_of_the_wrong_length_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="a NumPy scalar of type float64 in 5 bytes"):
        numpy_scalar(dtype("f8"), b"short")


def test_a_number_of_pytorchs_own_types_is_read_as_torch_does() -> None:
    assert unpack_number("bfloat16", "little", b"\x80\xbf") == -1.0
    assert unpack_number("bfloat16", "big", b"\xbf\x80") == -1.0
    assert unpack_number("complex32", "little", b"\x00\x3c\x00\xc0") == 1 - 2j
    assert unpack_number("float8_e5m2", "little", b"\x00") is None


def test_a_scalar_that_is_a_text_is_that_text() -> None:
    assert read(np.str_("größe 卷")) == "größe 卷"
    assert numpy_scalar(dtype("U2", ">"), "ab".encode("utf-32-be")) == "ab"
    assert isinstance(numpy_scalar(dtype("U1", "<"), b"\xff\xff\xff\xff"), Object)


@pytest.mark.parametrize("scalar", [np.bytes_(b"bytes"), np.datetime64("2020-01-01")])
def test_any_other_scalar_stays_a_recipe(scalar: Any) -> None:
    found = read(scalar)
    assert isinstance(found, Object)
    assert found.class_path == "numpy.core.multiarray.scalar"


# --- Arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("code", ["<f4", ">f4", "<i8", ">c16", "u1", "?"])
@pytest.mark.parametrize("memory", ["C", "F"])
def test_an_array_has_the_elements_that_numpy_pickled(
    code: str, memory: Any, protocol: int
) -> None:
    array = np.arange(6).reshape(2, 3).astype(code, order=memory)
    found = read(array, protocol)
    assert isinstance(found, Array)
    assert (found.dtype, found.shape) == (array.dtype.name, (2, 3))
    assert found.storage.nbytes == array.nbytes
    assert np.array_equal(values(found), array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_an_array_of_one_or_no_elements_is_one(shape: tuple[int, ...]) -> None:
    found = read(np.ones(shape, "f4"))
    assert (found.shape, found.storage.nbytes) == (shape, np.ones(shape, "f4").nbytes)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.zeros(2, "i4,f4")])
def test_an_array_of_something_else_stays_a_recipe(array: Any) -> None:
    assert isinstance(read(array), Object)


@pytest.mark.parametrize(
    ("data", "shape"), [(b"1234567", (2,)), (b"12345678", (3,)), (b"12345678", [2]), (7, (2,))]
)
def test_parts_that_contradict_each_other_make_no_array(data: Any, shape: Any) -> None:
    assert make_array(data, dtype("f4"), shape, fortran=False) is None
    kept = numpy_frombuffer(data, dtype("f4"), shape, "C")
    assert isinstance(kept, Object)
    assert kept.args[0] == data


def test_a_state_is_set_only_on_what_numpy_makes_empty() -> None:
    state = (1, (2,), dtype("f4"), False, b"12345678")
    empty = Object(Global("numpy.core.multiarray", "_reconstruct"), ())
    assert isinstance(build_array(empty, state), Array)
    assert isinstance(build_array(empty, state[1:]), Array)  # as the first versions wrote it
    assert build_array(empty, state[2:]) is None
    assert build_array(empty, list(state)) is None
    assert build_array(Object(Global("m", "_reconstruct"), ()), state) is None
    assert build_array("text", state) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((), True),
        ((1 << 62, 2), True),
        ((1,) * 64, True),
        ((1,) * 65, False),
        ((1 << 63,), False),
        ((-1,), False),
        ((True,), False),
        ((1.0,), False),
        ([2], False),
    ],
)
def test_a_shape_is_a_tuple_of_few_sizes_none_of_them_huge(value: Any, expected: bool) -> None:
    assert is_shape(value) is expected


def test_raw_bytes_are_taken_as_any_protocol_writes_them() -> None:
    assert as_bytes(b"\xff") == as_bytes(bytearray(b"\xff")) == as_bytes("\xff") == b"\xff"
    assert type(as_bytes(bytearray(b"a"))) is bytes
    assert as_bytes("\u20ac") is None
    assert as_bytes(None) is None
