"""What a pickle may say of a NumPy dtype: all that NumPy writes, and nothing that can't be."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from torchkeep.contents import Finding
from torchkeep.formats.torch.unpickling import run_torch_pickle
from torchkeep.pickles.limits import DEFAULT_LIMITS
from torchkeep.pickles.source import ByteSource

PLAIN: dict[str, Any] = {
    "numbers": "f4",
    "numbers of the other order": ">f8",
    "long numbers": "g",
    "flags": "?",
    "texts": "U3",
    "no texts": "U0",
    "bytes": "S5",
    "raw bytes": "V8",
    "dates": "M8[ns]",
    "spans": "m8[D]",
    "objects": "O",
    "a record": [("a", "f4"), ("b", "S3")],
    "a record with a gap": {"names": ["a"], "formats": ["f8"], "offsets": [8], "itemsize": 32},
    "a record with titles": [(("title", "name"), "f4")],
    "a record of records": [("x", [("y", "U2")]), ("t", "f4", (2,))],
    "an array in each element": ("f4", (2, 3)),
    "no fields": [],
    "an aligned record": np.dtype([("a", "i1"), ("b", "f8")], align=True),
}


def findings(value: Any, protocol: int) -> list[Finding]:
    source = ByteSource.of_bytes(pickle.dumps(value, protocol))
    return list(run_torch_pickle(source, limits=DEFAULT_LIMITS).findings)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_what_numpy_writes_is_fine(name: str, protocol: int) -> None:
    dtype = np.dtype(PLAIN[name])
    assert findings([dtype, np.zeros(2, dtype), dtype], protocol) == []


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_record_with_objects_needs_trust(protocol: int) -> None:
    array = np.zeros(2, [("a", "f4"), ("b", [("c", "O")])])
    assert [(f.rule, f.severity) for f in findings(array, protocol)] == [
        ("numpy-record", "needs-trust")
    ]


def changed(dtype: Any, state: tuple[Any, ...]) -> Any:
    """Return something that is pickled as a dtype with another state."""

    class Changed:
        def __reduce__(self) -> tuple[Any, ...]:
            made, arguments, _ = np.dtype(dtype).__reduce__()  # type: ignore[misc]
            return made, arguments, state

    return Changed()


NUMBER = np.dtype("f8")


@pytest.mark.parametrize(
    ("dtype", "state", "text"),
    [
        ("O", (3, "|", None, None, None, -1, -1, 0), "does not say what its elements are"),
        ("f8", (3, "<", None, None, None, -1, -1, 63), "does not say what its elements are"),
        ("f8", (3, "<", None, None, None, -1, -1, "0"), "does not say what its elements are"),
        ("S8", (3, "|", None, None, None, 9, 1, 0), "another size than its own"),
        ("V8", (3, ">", None, None, None, 8, 1, 0), "a byte order, and has none"),
        ("V8", (3, "|", None, ("a",), {"a": (NUMBER, 1)}, 8, 1, 16), "parts that do not fit"),
        ("V8", (3, "|", None, ("a",), {"a": (NUMBER, -1)}, 8, 1, 16), "parts that do not fit"),
        ("V8", (3, "|", None, ("a",), {"a": ("f8", 0)}, 8, 1, 16), "parts that do not fit"),
        ("V8", (3, "|", None, ("a",), ["a"], 8, 1, 16), "parts that do not fit"),
        ("V8", (3, "|", (NUMBER, (2,)), None, None, 8, 1, 0), "parts that do not fit"),
        ("V8", (3, "|", (NUMBER, -1), None, None, 8, 1, 0), "parts that do not fit"),
        ("f8", (3, "<"), "a state that NumPy does not write"),
    ],
)
def test_a_state_that_cannot_be_is_dangerous(dtype: str, state: tuple[Any, ...], text: str) -> None:
    (found,) = findings(changed(dtype, state), 2)
    assert (found.rule, found.severity) == ("numpy-dtype", "dangerous")
    assert text in found.text
    assert found.text.endswith("its arrays would reach into foreign memory")
