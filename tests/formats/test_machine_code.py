"""Code is told by its name, or by its first bytes."""

from __future__ import annotations

import pytest

from torchkeep.formats.machine_code import is_native, is_pickle, is_source


@pytest.mark.parametrize(
    "name",
    "x.so x.so.1.2 x.dll x.dylib x.pyd x.node X.EXE x.o x.a x.cubin x.ptx x.spv x.cpp x.wasm "
    "x.pyc x.pyo x.class x.jar".split(),
)
def test_what_is_called_machine_code_is_taken_for_it(name: str) -> None:
    assert is_native(name)
    assert not is_source(name)
    assert not is_pickle(name)


@pytest.mark.parametrize("name", "so x.so1 x.so. x.solo data.pkl x.txt a x.so.txt x.cpp.md".split())
def test_other_names_are_not(name: str) -> None:
    assert not is_native(name)


@pytest.mark.parametrize(
    "head", ["7f454c46", "4d5a9000", "feedface", "cffaedfe", "cafebabe", "0061736d"]
)
def test_machine_code_is_told_by_its_first_bytes_under_any_name(head: str) -> None:
    assert is_native("notes.txt", bytes.fromhex(head))
    assert not is_native("notes.txt", bytes.fromhex(head)[:1])


def test_source_and_pickles_are_told_by_name_and_pickles_by_their_start() -> None:
    assert all(map(is_source, ["x.py", "X.PYW", "x.sh", "x.bat", "x.cmd", "x.ps1", "x.ipynb"]))
    assert all(map(is_pickle, ["x.pkl", "x.pickle", "x.debug_pkl"]))
    assert is_pickle("x", b"\x80\x02")
    assert not any(is_pickle("x", head) for head in (b"", b"\x80", b"\x80\x01", b"\x80\x06"))
