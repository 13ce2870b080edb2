"""Every opcode does what CPython's unpickler does with it."""

from __future__ import annotations

import pickle
import pickletools
import struct
from typing import Any

import pytest

from pickles.comparing import same
from torchkeep.contents import Global, Object
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.pickles.constructors import CONSTRUCTORS
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.opcodes import OPCODES
from torchkeep.pickles.pickled import PERSISTENT_ID, Pickled
from torchkeep.pickles.source import ByteSource


def run(stream: bytes) -> Pickled:
    return run_pickle(ByteSource.of_bytes(stream), constructors=CONSTRUCTORS)


def u4(number: int) -> bytes:
    return struct.pack("<I", number)


def u8(number: int) -> bytes:
    return struct.pack("<Q", number)


# Each opcode with streams that use it, and what they leave. CPython agrees with each.
PLAIN: list[tuple[str, bytes, Any]] = [
    ("PROTO", b"\x80\x05N.", None),
    ("FRAME", b"\x80\x04\x95" + u8(2) + b"K\x07.", 7),
    ("STOP", b"K\x01K\x02.", 2),
    ("MARK", b"(K\x01K\x02t.", (1, 2)),
    ("POP", b"K\x01K\x020.", 1),
    ("POP", b"K\x01(0.", 1),
    ("POP_MARK", b"K\x01(K\x02K\x031.", 1),
    ("DUP", b"K\x052\x86.", (5, 5)),
    ("PUT", b"K\x09p12\n0g12\n.", 9),
    ("PUT", b"K\x09p010\n0h\x0a.", 9),
    ("BINPUT", b"K\x09q\xff0h\xff.", 9),
    ("LONG_BINPUT", b"K\x09r" + u4(70000) + b"0j" + u4(70000) + b".", 9),
    ("MEMOIZE", b"K\x09\x94K\x08\x94h\x00h\x01\x86.", (9, 8)),
    ("MEMOIZE", b"K\x09q\x05K\x08\x94h\x01.", 8),
    ("GET", b"K\x07q\x0ag10\n.", 7),
    ("BINGET", b"K\x07q\x0ah\x0a.", 7),
    ("LONG_BINGET", b"K\x07q\x0aj" + u4(10) + b".", 7),
    ("NONE", b"N.", None),
    ("NEWTRUE", b"\x88.", True),
    ("NEWFALSE", b"\x89.", False),
    ("INT", b"I-12\n.", -12),
    ("INT", b"I01\n.", True),
    ("INT", b"I00\n.", False),
    ("INT", b"I0x1f\n.", 31),
    ("INT", b"I017\n.", 15),
    ("INT", b"I99999999999999999999\n.", 99999999999999999999),
    ("BININT", b"J\xfe\xff\xff\xff.", -2),
    ("BININT1", b"K\xff.", 255),
    ("BININT2", b"M\xff\xff.", 65535),
    ("LONG", b"L-5L\n.", -5),
    ("LONG", b"L5\n.", 5),
    ("LONG1", b"\x8a\x00.", 0),
    ("LONG1", b"\x8a\x02\x00\xff.", -256),
    ("LONG4", b"\x8b" + u4(2) + b"\x00\x01.", 256),
    ("FLOAT", b"F-1.5e3\n.", -1500.0),
    ("FLOAT", b"Fnan\n.", float("nan")),
    ("BINFLOAT", b"G\x3f\xf8\x00\x00\x00\x00\x00\x00.", 1.5),
    ("STRING", b"S'a\\x41\\n'\n.", "aA\n"),
    ("STRING", b'S"it\'s"\n.', "it's"),
    ("BINSTRING", b"T" + u4(3) + b"abc.", "abc"),
    ("SHORT_BINSTRING", b"U\x03abc.", "abc"),
    ("BINBYTES", b"B" + u4(2) + b"\xff\x00.", b"\xff\x00"),
    ("SHORT_BINBYTES", b"C\x02\xff\x00.", b"\xff\x00"),
    ("BINBYTES8", b"\x8e" + u8(1) + b"z.", b"z"),
    ("BYTEARRAY8", b"\x96" + u8(1) + b"z.", bytearray(b"z")),
    ("READONLY_BUFFER", b"C\x01z\x98.", b"z"),
    ("UNICODE", b"Va\\u00e9\n.", "a\u00e9"),
    ("UNICODE", b"V\n.", ""),
    ("BINUNICODE", b"X" + u4(2) + "\u00e9".encode() + b".", "\u00e9"),
    ("BINUNICODE", b"X" + u4(3) + b"\xed\xa0\x80.", "\ud800"),
    ("SHORT_BINUNICODE", b"\x8c\x02" + "\u00e9".encode() + b".", "\u00e9"),
    ("BINUNICODE8", b"\x8d" + u8(1) + b"q.", "q"),
    ("EMPTY_LIST", b"].", []),
    ("APPEND", b"]K\x01a.", [1]),
    ("APPENDS", b"](K\x01K\x02e.", [1, 2]),
    ("LIST", b"(K\x01K\x02l.", [1, 2]),
    ("EMPTY_TUPLE", b").", ()),
    ("TUPLE", b"(K\x01K\x02K\x03K\x04t.", (1, 2, 3, 4)),
    ("TUPLE1", b"K\x01\x85.", (1,)),
    ("TUPLE2", b"K\x01K\x02\x86.", (1, 2)),
    ("TUPLE3", b"K\x01K\x02K\x03\x87.", (1, 2, 3)),
    ("EMPTY_DICT", b"}.", {}),
    ("DICT", b"(K\x01K\x02d.", {1: 2}),
    ("SETITEM", b"}K\x01K\x02s.", {1: 2}),
    ("SETITEMS", b"}(K\x01K\x02K\x01K\x03u.", {1: 3}),
    ("EMPTY_SET", b"\x8f.", set()),
    ("ADDITEMS", b"\x8f(K\x01K\x01\x90.", {1}),
    ("FROZENSET", b"(K\x01K\x02\x91.", frozenset({1, 2})),
    ("GLOBAL", b"ccollections\nOrderedDict\n)R.", pickle.loads(b"ccollections\nOrderedDict\n)R.")),
    ("STACK_GLOBAL", b"\x8c\x08builtins\x8c\x03set\x93]\x85R.", set()),
    ("REDUCE", b"cbuiltins\ncomplex\nK\x01K\x02\x86R.", 1 + 2j),
    ("INST", b"(K\x01K\x02ibuiltins\ncomplex\n.", 1 + 2j),
    ("OBJ", b"(cbuiltins\ncomplex\nK\x01K\x02o.", 1 + 2j),
    ("NEWOBJ", b"cbuiltins\ncomplex\nK\x01K\x02\x86\x81.", 1 + 2j),
    ("NEWOBJ_EX", b"cbuiltins\ncomplex\nK\x01\x85}\x92.", 1 + 0j),
]

# What CPython would make live objects of, and stays a recipe here.
INERT = [
    ("BUILD", b"cm\nC\n)\x81}X\x01\x00\x00\x00aK\x01sb.", "m.C", {"a": 1}),
    ("PERSID", b"Pkey\n.", "pickle.<persistent id>", None),
    ("BINPERSID", b"K\x01Q.", "pickle.<persistent id>", None),
    ("EXT1", b"\x82\x05)R.", "copyreg.<extension 5>", None),
    ("EXT2", b"\x83\x05\x01)R.", "copyreg.<extension 261>", None),
    ("EXT4", b"\x84\x05\x00\x00\x01)R.", "copyreg.<extension 16777221>", None),
]


@pytest.mark.parametrize(("name", "stream", "expected"), PLAIN)
def test_an_opcode_leaves_what_cpython_leaves(name: str, stream: bytes, expected: Any) -> None:
    assert same(run(stream).root, expected)
    assert same(run(stream).root, pickle.loads(stream))
    assert not run(stream).findings


@pytest.mark.parametrize(("name", "stream", "class_path", "state"), INERT)
def test_an_opcode_that_makes_an_object_leaves_its_recipe(
    name: str, stream: bytes, class_path: str, state: Any
) -> None:
    root = run(stream).root
    assert isinstance(root, Object)
    assert root.class_path == class_path
    assert root.state == state


def test_a_buffer_outside_of_the_stream_is_reported_as_unsupported() -> None:
    with pytest.raises(UnsupportedContent, match="buffers that are not in the file"):
        run(b"\x80\x05\x97.")


def test_the_tables_cover_all_opcodes() -> None:
    tried = {name for name, *_ in [*PLAIN, *INERT]} | {"NEXT_BUFFER"}
    assert tried == set(OPCODES.values())
    assert len(OPCODES) == len(tried) == 68


def test_the_opcodes_are_those_of_python() -> None:
    assert {ord(op.code): op.name for op in pickletools.opcodes} == OPCODES


def test_each_row_of_the_tables_uses_the_opcode_that_it_names() -> None:
    codes = {name: code for code, name in OPCODES.items()}
    assert all(codes[name] in stream for name, stream, *_ in [*PLAIN, *INERT])


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - set(OPCODES)))
def test_a_byte_that_is_no_opcode_is_damage(opcode: int) -> None:
    with pytest.raises(DamagedFile, match="byte 1 is no opcode"):
        run(b"N" + bytes([opcode]) + b".")


def test_a_persistent_id_is_given_to_whoever_resolves_it() -> None:
    pids: list[Any] = []

    def resolve(pid: Any) -> str:
        pids.append(pid)
        return "resolved"

    source = ByteSource.of_bytes(b"(X\x01\x00\x00\x00aK\x01tQPtext\n\x86.")
    assert run_pickle(source, persistent=resolve).root == ("resolved", "resolved")
    assert pids == [("a", 1), "text"]
    assert run(b"K\x01Q.").root.callee == PERSISTENT_ID


def test_names_are_given_in_the_order_of_first_mention_under_their_new_spelling() -> None:
    stream = b"\x80\x02(c__builtin__\nset\ncb\nX\nc__builtin__\nset\ncwhichdb\nwhichdb\nt."
    assert run(stream).globals == (
        Global("builtins", "set"),
        Global("b", "X"),
        Global("dbm", "whichdb"),
    )
    # From protocol 3 on names are taken as they are.
    assert run(b"\x80\x03c__builtin__\nset\n.").globals == (Global("__builtin__", "set"),)
