"""formats/own/samples.py: samples in a text and back, and texts that somebody else wrote."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from releases import TOO_DEEP
from torchkeep.contents import ITEM_SIZE
from torchkeep.errors import DamagedFile
from torchkeep.formats.own.samples import (
    DTYPES,
    MAX_NBYTES,
    Sample,
    Samples,
    SampleTensor,
    decode_samples,
    encode_samples,
    summary,
)

PAIR = SampleTensor("float32", (2,), struct.pack("<2f", 1.0, -2.0))


def samples(*made: Sample) -> Samples:
    return Samples(made or (Sample((PAIR,), {}, {"": PAIR}),), "cpu", "float32", "")


# --- There and back ----------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> SampleTensor:
    dtype = draw(st.sampled_from(sorted(DTYPES - {"bool"})))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    nbytes = ITEM_SIZE[dtype]
    for size in shape:
        nbytes *= size
    return SampleTensor(dtype, shape, draw(st.binary(min_size=nbytes, max_size=nbytes)))


plain = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
nodes = st.recursive(
    (plain | tensors()).filter(lambda node: node not in (float("inf"), float("-inf"))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.lists(nodes, max_size=3), st.dictionaries(st.text(), nodes, max_size=2), tensors())
def test_samples_come_back_as_they_were(
    args: list[Any], kwargs: dict[str, Any], output: SampleTensor
) -> None:
    given_ = samples(Sample(tuple(args), kwargs, {"logits": output}))
    text = encode_samples(given_)
    assert decode_samples(text) == given_
    assert encode_samples(decode_samples(text)) == text


def test_the_text_is_the_documented_one() -> None:
    assert json.loads(encode_samples(samples())) == {
        "version": 1,
        "device": "cpu",
        "dtype": "float32",
        "preprocess": "",
        "samples": [
            {
                "args": [{"$": "tensor", "dtype": "float32", "shape": [2], "data": "AACAPwAAAMA="}],
                "kwargs": {},
                "outputs": {
                    "": {"$": "tensor", "dtype": "float32", "shape": [2], "data": "AACAPwAAAMA="}
                },
            }
        ],
    }


def test_a_number_that_json_lacks_is_not_written() -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        encode_samples(samples(Sample((float("nan"),), {}, {"": PAIR})))


# --- Texts of strangers ------------------------------------------------------------------------


def text_with(tensor: dict[str, Any] | None = None, **changes: Any) -> str:
    table = json.loads(encode_samples(samples()))
    if tensor is not None:
        table["samples"][0]["args"][0] |= tensor
    return json.dumps(table | changes)


def nested(depth: int) -> str:
    hole = json.dumps("hole")
    text = json.dumps({"args": ["hole"], "kwargs": {}, "outputs": {}})
    return text_with(samples=["sample"]).replace(
        '"sample"', text.replace(hole, "[" * depth + "]" * depth)
    )


BAD = {
    "no JSON": ("nonsense", "it is no valid JSON"),
    "half a surrogate pair": ("\ud800", "it is no valid JSON"),
    "no object": ("[]", "no version 1"),
    "a newer version": (text_with(version=2), "no version 1; a newer torchkeep may know them"),
    "a device that is a number": (text_with(device=3), "'device' is missing or of a wrong kind"),
    "no samples": (text_with(samples=[]), "there are none"),
    "too many samples": (text_with(samples=[{}] * 1001), "there are 1,001"),
    "a dtype of the model that is none": (
        text_with(dtype="load"),
        "their model is of type 'load'",
    ),
    "samples of another kind": (text_with(samples={}), "'samples' is missing or of a wrong kind"),
    "no outputs": (
        text_with(samples=[{"args": [], "kwargs": {}, "outputs": {}}]),
        "a sample has no outputs",
    ),
    "a type that runs code": (text_with({"dtype": "object"}), "a tensor of type 'object'"),
    "a quantized type": (text_with({"dtype": "qint8"}), "a tensor of type 'qint8'"),
    "an unknown node": (text_with({"$": "pickle"}), "there is a tensor of type 'float32'"),
    "a shape that overflows": (
        text_with({"shape": [2**62, 4]}),
        "a tensor has an impossible shape",
    ),
    "a negative size": (text_with({"shape": [-2]}), "a tensor has an impossible shape"),
    "a size that is a truth": (text_with({"shape": [True, 2]}), "an impossible shape"),
    "too many dimensions": (text_with({"shape": [1] * 65}), "an impossible shape"),
    "an empty tensor with strides that overflow": (
        text_with({"shape": [0, *[MAX_NBYTES] * 3], "data": ""}),
        "a tensor has more than 4,194,304 bytes",
    ),
    "a huge tensor": (text_with({"shape": [1 << 21]}), "a tensor has more than 4,194,304 bytes"),
    "fewer bytes": (text_with({"data": "AACAPw=="}), "a tensor of 8 bytes has 8 characters"),
    "as many characters of fewer bytes": (
        text_with({"data": "AACAPwAAAA=="}),
        "a tensor of 8 bytes has 7",
    ),
    "characters outside of base64": (text_with({"data": "AACAPwAAAM!="}), "are no base64"),
    "characters outside of ASCII": (text_with({"data": "AACAPwAAAMé="}), "are no base64"),
    "a bool that is neither": (
        text_with({"dtype": "bool", "shape": [3], "data": "AAEC"}),
        "a bool is neither 0 nor 1",
    ),
    "deep nesting": (nested(100_000), "nested too deeply"),
    "some nesting": (nested(TOO_DEEP), "nested too deeply"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_text_that_is_not_ours_is_refused(name: str) -> None:
    text, reason = BAD[name]
    with pytest.raises(DamagedFile) as caught:
        decode_samples(text)
    assert str(caught.value).startswith("its stored samples can't be read: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith(". Copy or download the file again.")
    assert summary(text) == str(caught.value)


def test_samples_that_are_too_large_together_are_refused() -> None:
    large = SampleTensor("uint8", (MAX_NBYTES,), bytes(MAX_NBYTES))
    text = encode_samples(samples(Sample((), {}, {"": large})))
    assert decode_samples(text).nbytes == MAX_NBYTES
    with pytest.raises(DamagedFile, match=r"more than 4,194,304 bytes together"):
        decode_samples(encode_samples(samples(Sample((PAIR,), {}, {"": large}))))


def test_a_text_longer_than_any_of_ours_is_not_parsed() -> None:
    with pytest.raises(DamagedFile, match=r"they take 16,777,217 characters"):
        decode_samples(" " * (1 << 24) + "x")


# --- In words ----------------------------------------------------------------------------------


def image(*shape: int) -> SampleTensor:
    nbytes = 1
    for size in shape:
        nbytes *= size
    return SampleTensor("uint8", shape, bytes(nbytes))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            [Sample((PAIR,), {}, {"": PAIR})],
            "1 sample with its outputs, float32 [2] -> float32 [2]",
        ),
        (
            [Sample((image(2, 3),), {}, {"": PAIR})] * 2,
            "2 samples with their outputs, uint8 [2, 3] -> float32 [2]",
        ),
        (
            [
                Sample((image(2),), {"x": [image(3), "text"]}, {"": PAIR}),
                Sample((), {}, {"": PAIR}),
            ],
            "2 samples with their outputs, uint8 [2], uint8 [3] -> float32 [2], "
            "others of other shapes",
        ),
        (
            [Sample(("text",), {}, dict.fromkeys("abcd", PAIR))],
            "1 sample with its outputs, no tensors -> float32 [2], float32 [2], float32 [2], ...",
        ),
    ],
)
def test_samples_are_told_in_one_line(made: list[Sample], said: str) -> None:
    assert summary(encode_samples(samples(*made))) == said


def test_the_preprocessing_is_told_and_can_not_break_the_line() -> None:
    text = encode_samples(
        Samples((Sample((PAIR,), {}, {"": PAIR}),), "cpu", "float32", "my\n\x1b[31m")
    )
    assert summary(text).endswith(r"float32 [2], preprocessed by my\n\x1b[31m")
