"""What a GGUF model says about itself."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from formats.building_foreign import gguf
from formats.samples_foreign import FACTS, FLOATS, TENSORS
from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.pickles.limits import DEFAULT_LIMITS


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.gguf")), DEFAULT_LIMITS)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_header_is_read(version: int, order: str) -> None:
    data = gguf(FACTS, TENSORS, version=version, order=order)
    contents = look(data)
    assert contents.kind == (
        f"GGUF model of version {version}: llama, Tiny, 3 tensors (1 F32, 1 Q4_0, 1 BF16)"
    )
    assert contents.metadata == {
        "version": str(version),
        "general.architecture": "llama",
        "general.name": "Tiny",
        "tokenizer.ggml.tokens": "20 texts",
        "tokenizer.ggml.scores": "[0.5, 1.5]",
        "llama.context_length": "2048",
    }
    entry = contents.root["output.weight"]
    assert (entry.dtype, entry.shape, entry.stride) == ("float32", (2, 3), (3, 1))
    start = entry.storage.offset
    assert data[start : start + entry.storage.nbytes] == FLOATS.tobytes()
    assert entry.storage.byteorder == ("little" if order == "<" else "big")
    assert contents.root["blk.0.weight"] == "Q4_0, shape [4, 64]"
    assert contents.root["blk.0.norm"].dtype == "bfloat16"
    assert isinstance(contents.problem, UnsupportedContent)


def test_every_type_of_value_is_shown() -> None:
    facts: list[tuple[str, int, Any]] = [
        ("u8", 0, 255),
        ("i8", 1, -1),
        ("u16", 2, 65_535),
        ("i16", 3, -300),
        ("i32", 5, -7),
        ("u64", 10, 1 << 63),
        ("i64", 11, -(1 << 63)),
        ("f32", 6, 0.1),
        ("f64", 12, 1e300),
        ("yes", 7, True),
        ("few", 9, (4, [1, 2])),
        ("texts", 9, (8, ["a", "b"])),
        ("many", 9, (4, [0] * 100)),
        ("none", 9, (8, [])),
        ("long", 8, "x" * 1000),
    ]
    assert look(gguf(facts)).metadata == {
        "version": "3",
        "u8": "255",
        "i8": "-1",
        "u16": "65535",
        "i16": "-300",
        "i32": "-7",
        "u64": "9223372036854775808",
        "i64": "-9223372036854775808",
        "f32": "0.100000001",
        "f64": "1e+300",
        "yes": "true",
        "few": "[1, 2]",
        "texts": "['a', 'b']",
        "many": "100 numbers",
        "none": "[]",
        "long": "x" * 200 + "...",
    }


@pytest.mark.parametrize(
    ("kind", "name", "num_elements", "nbytes"),
    [
        (2, "Q4_0", 64, 36),
        (8, "Q8_0", 64, 68),
        (10, "Q2_K", 256, 84),
        (12, "Q4_K", 512, 288),
        (14, "Q6_K", 256, 210),
        (20, "IQ4_NL", 32, 18),
        (39, "MXFP4", 32, 17),
    ],
)
def test_packed_types_take_their_blocks(
    kind: int, name: str, num_elements: int, nbytes: int
) -> None:
    data = gguf(
        [("general.alignment", 4, 1)], [("w", (num_elements,), kind, bytes(nbytes))], alignment=1
    )
    assert look(data).root == {"w": f"{name}, shape [{num_elements}]"}
    assert isinstance(look(data).problem, UnsupportedContent)
    assert isinstance(look(data[:-1]).problem, DamagedFile)


def test_an_adapter_is_told_from_a_model() -> None:
    assert look(gguf([("general.type", 8, "adapter")])).kind.startswith("GGUF adapter")


def test_the_alignment_that_the_file_states_is_used() -> None:
    data = gguf([("general.alignment", 4, 64)], TENSORS[:1], alignment=64)
    start = look(data).root["output.weight"].storage.offset
    assert start % 64 == 0
    assert data[start : start + 24] == FLOATS.tobytes()


PLAIN = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (PLAIN, None),
        (PLAIN + "{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ x | attr('a') }}", "| attr"),
        ("{{ x['\\x5f\\x5fclass'] }}", "\\x5f"),
        ("y" * 500 + "{{ cycler.__init__.__globals__.os }}", "__init__"),
    ],
)
def test_a_template_that_leaves_its_sandbox_is_dangerous(template: str, found: str | None) -> None:
    findings = look(gguf([("tokenizer.chat_template", 8, template)])).findings
    if found is None:
        assert findings == ()
    else:
        assert [(f.rule, f.severity) for f in findings] == [("template-code", "dangerous")]
        assert found in findings[0].text


def test_a_template_that_is_too_long_to_look_at_is_ambiguous() -> None:
    findings = look(gguf([("tokenizer.chat_template", 8, " " * 1_100_000)])).findings
    assert [(f.rule, f.severity) for f in findings] == [("template-code", "ambiguous")]


W = ("w", (2, 3), 0, FLOATS.tobytes())
REFUSED = [
    (gguf(FACTS, TENSORS)[:-40], "the file is truncated: tensor 'blk.0.norm' needs bytes"),
    (gguf([], [TENSORS[1]])[:-40], "the file is truncated: tensor 'blk.0.weight' ends at"),
    (gguf([], [W, W]), "the header has tensor 'w' twice"),
    (gguf([("a", 4, 1), ("a", 4, 1)]), "the header has the fact 'a' twice"),
    (gguf([("general.alignment", 4, 0)]), "aligns the tensors to 0 bytes"),
    (gguf([("general.alignment", 8, "x")]), "aligns the tensors to x bytes"),
    (gguf([("a", 9, (8, []))])[:24] + b"\1\0\0\0\0\0\0\0a\x63\0\0\0", "unknown type 99"),
    (gguf([], [("w", (1,) * 65, 0, b"")]), "tensor 'w' has 65 dimensions"),
    (gguf([], [("w", (1 << 40, 1 << 40), 0, b"")]), "more elements than can be"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0), "bytes are needed at byte 16"),
]


@pytest.mark.parametrize(("data", "problem"), REFUSED, ids=[row[1] for row in REFUSED])
def test_a_header_that_contradicts_itself_is_refused(data: bytes, problem: str) -> None:
    contents = look(data)
    assert isinstance(contents.problem, DamagedFile)
    assert problem in str(contents.problem)
    assert contents.container == "gguf"


def test_a_newer_version_is_not_guessed_at() -> None:
    contents = look(gguf(version=4))
    assert isinstance(contents.problem, UnsupportedContent)
    assert "this is a GGUF model of version 4" in str(contents.problem)


def test_a_type_of_the_future_is_named_by_its_number() -> None:
    contents = look(gguf([], [("w", (4,), 99, b"")]))
    assert contents.root == {"w": "type 99, shape [4]"}
    assert contents.kind.endswith("1 tensor (1 type 99)")
