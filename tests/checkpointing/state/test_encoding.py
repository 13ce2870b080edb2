"""A state survives JSON and named tensors without losing a bit."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchkeep.checkpointing import Checkpointer, capture
from torchkeep.checkpointing.layout import read_state
from torchkeep.checkpointing.state.encoding import decode, encode, fingerprint, is_plain
from torchkeep.errors import DamagedFile, SaveRefused
from torchkeep.formats.plain_json import parse_json

CHARACTERS = st.characters(exclude_categories=())
"""Halves of surrogate pairs too, which Python has for file names that are no UTF-8."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(allow_nan=False),
    st.text(CHARACTERS),
    st.binary(max_size=20),
)
KEYS = st.one_of(
    st.text(CHARACTERS, max_size=5), st.integers(), st.booleans(), st.tuples(st.integers())
)


def containers(inner):
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(st.sampled_from(["$", "a", "items"]), inner),
    )


STATES = st.recursive(SCALARS, containers, max_leaves=12)


def round_trip(value):
    tensors, structure = encode(value)
    return decode(tensors, json.loads(json.dumps(structure, allow_nan=False)))


def exact(value):
    """Return what compares equal only for the same bits, types and order of keys."""
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, dict):
        return type(value), [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return type(value), [exact(item) for item in value]
    return type(value), value


@given(STATES)
def test_every_plain_value_comes_back_with_its_type_and_bits(value):
    assert exact(round_trip(value)) == exact(value)


NO_DATA = st.sampled_from([object, print, np.array(["a"]), range(3), slice(1)])


@given(st.recursive(SCALARS | NO_DATA, containers, max_leaves=12))
def test_what_is_plain_can_be_encoded(value):
    try:
        encode(value)
    except SaveRefused:
        assert not is_plain(value)


@pytest.mark.parametrize(
    "value",
    [
        {
            "a": {
                1: [None, True, 1.5, b"", torch.int8, torch.ones(1)],
                (2, "b"): nn.Linear(1, 1).bias,
            }
        },
        [torch.device("cpu"), torch.Size([1]), OrderedDict(a={3}), Counter("b"), deque([1j])],
    ],
)
def test_all_that_common_states_are_made_of_is_plain(value):
    encode(value)
    assert is_plain(value)


@given(STATES)
def test_the_structure_is_json_that_any_reader_takes(value):
    structure = encode(value)[1]
    strict = json.dumps(structure, allow_nan=False)
    assert parse_json(strict) == structure
    assert all(abs(number) <= 2**53 for number in integers(json.loads(strict)))


def integers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in integers(item)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset({"a"}),
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cuda:1"),
        OrderedDict(b=1, a=2),
        Counter({3: 2, 5: 1}),
        deque([1, 2], maxlen=4),
    ],
)
def test_containers_and_types_of_torch_come_back(value):
    back = round_trip({"x": value})["x"]
    assert back == value
    assert type(back) is type(value)


def test_an_integer_may_be_longer_than_python_prints():
    number = -(1 << 20_000)
    assert (round_trip(number) == number) is True


def test_a_deque_keeps_its_length_limit():
    assert round_trip(deque([1], maxlen=4)).maxlen == 4


def test_numpy_scalars_and_arrays_keep_their_dtype():
    scalar, array = round_trip([np.float32(0.1), np.arange(3, dtype=np.uint8)])
    assert scalar == np.float32(0.1)
    assert scalar.dtype == np.float32
    assert isinstance(scalar, np.generic)
    assert array.tolist() == [0, 1, 2]
    assert array.dtype == np.uint8


def test_tensors_are_named_by_their_place_and_kept_as_they_are():
    weight = torch.randn(2)
    tensors, structure = encode({"model": {"fc.weight": weight}, 0: (weight, torch.ones(1))})
    assert list(tensors) == ["model/fc.weight", "0/1"]
    back = decode(tensors, structure)
    assert back["model"]["fc.weight"] is back[0][0] is weight


def test_two_places_with_the_same_name_are_told_apart():
    state = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    back = round_trip(state)
    assert back["a/b"].item() == 0
    assert back["a"]["b"].item() == 1


def test_a_value_without_a_lossless_form_is_refused_by_its_place():
    with pytest.raises(SaveRefused, match=r"optimizer/hook is a builtins\.function, which can't"):
        encode({"optimizer": {"hook": integers}})
    with pytest.raises(SaveRefused, match=r"names is a numpy\.ndarray"):
        encode({"names": np.array(["a"])})


def test_a_structure_that_names_a_missing_tensor_is_damaged():
    with pytest.raises(DamagedFile, match=r"can't be put together \(KeyError\('gone'\)\)"):
        decode({}, {"$": "tensor", "name": "gone"})


def test_the_fingerprint_sees_every_bit_and_nothing_else():
    zero = {"w": torch.tensor([0.0, math.nan]), "lr": 0.1}
    assert fingerprint(zero) == fingerprint({"w": zero["w"].clone(), "lr": 0.1})
    others = [
        {"w": torch.tensor([-0.0, math.nan]), "lr": 0.1},
        {"w": zero["w"].reshape(1, 2), "lr": 0.1},
        {"w": zero["w"].view(torch.int32), "lr": 0.1},
        {"w": zero["w"], "lr": 0.1 + 2**-56},
        {"v": zero["w"], "lr": 0.1},
    ]
    assert len({fingerprint(state) for state in [zero, *others]}) == 6


def test_the_fingerprint_does_not_depend_on_the_strides():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert fingerprint([tensor]) == fingerprint([tensor.t().contiguous().t()])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32], ids=str)
def test_complex_numbers_that_safetensors_lacks_are_kept_as_pairs(dtype):
    value = torch.tensor([[1 + 2j, -0.0 + 3j]], dtype=torch.complex128).to(dtype)
    tensors, structure = encode({"spectrum": value, "again": value, "turned": value.t().conj()})
    assert {name: list(item.shape) for name, item in tensors.items()} == {
        "spectrum": [1, 2, 2],
        "turned": [2, 1, 2],
    }
    assert not any(item.is_complex() for item in tensors.values())
    assert tensors["spectrum"].data_ptr() == value.data_ptr()  # no copy
    back = decode(tensors, json.loads(json.dumps(structure)))
    assert back["spectrum"].dtype == back["again"].dtype == dtype
    assert torch.equal(torch.view_as_real(back["spectrum"]), torch.view_as_real(value))
    assert torch.equal(back["turned"].to(torch.complex64), value.t().conj().to(torch.complex64))


def test_complex_arrays_of_numpy_come_back():
    array = np.array([1 + 2j, 3j], dtype=np.complex128)
    back = round_trip([array, array[0]])
    assert back[0].dtype == np.complex128
    assert back[0].tolist() == array.tolist()
    assert back[1] == array[0]


def test_complex_numbers_come_back_from_the_disk(tmp_path):
    spectrum = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    model = nn.ParameterDict({"spectrum": spectrum})
    optimizer = torch.optim.Adam(model.parameters())
    spectrum.abs().sum().backward()
    optimizer.step()
    objects = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path, **objects, durable=False) as checkpointer:
        saved = read_state(checkpointer.save())
    assert saved["inexact"] == []
    assert fingerprint(saved["objects"]) == fingerprint(capture(objects)["objects"])
