"""TorchScript archives are described as what `torch.jit.load` makes of them, and nothing is run."""

from __future__ import annotations

import pickle
import random
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from formats.building import object_pickle, rewrite_zip, rules
from formats.samples import DTYPES
from formats.samples_programs import (
    SAMPLES,
    Colour,
    EveryDtype,
    Pair,
    Stateful,
    WithConstants,
    check_tensor,
    check_tensors,
    load_script,
    root_module,
    save_script,
    script_module,
    state_dict_of,
    torchscript_classes,
    write_frozen,
    write_lite,
    write_script,
    write_traced,
    write_zip,
)
from torchkeep.contents import Global, Object, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, UnsupportedContent
from torchkeep.files import InputFile
from torchkeep.formats import describe, examine
from torchkeep.identify import identify
from torchkeep.pickles.limits import Limits

PROGRAM = {("program", "needs-trust")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


# --- What PyTorch writes today -------------------------------------------------------------------


def test_the_state_dict_is_that_of_the_loaded_module(path: Path) -> None:
    write_script(path)
    loaded = load_script(path)
    contents = describe(path)
    check_tensors(state_dict_of(contents), loaded.state_dict())
    assert contents.container == "torchscript"
    assert set(rules(contents)) == PROGRAM


def test_parameters_and_buffers_are_told_apart_by_the_code(path: Path) -> None:
    write_script(path)
    loaded = load_script(path)
    node = identify(describe(path)).modules[0][1]
    found = list(node.walk())
    parameters = {f"{where}.{name}" for where, part in found for name in part.parameters}
    buffers = {f"{where}.{name}" for where, part in found for name in part.buffers}
    assert parameters == {name for name, _ in loaded.named_parameters(remove_duplicate=False)}
    assert buffers == {name for name, _ in loaded.named_buffers(remove_duplicate=False)}
    flags = dict(loaded.named_parameters(remove_duplicate=False))
    for where, part in found:
        for name, entry in part.parameters.items():
            assert entry.is_parameter
            assert entry.requires_grad == flags[f"{where}.{name}"].requires_grad
    assert not any(e.is_parameter for _, part in found for e in part.buffers.values())


def test_the_module_tree_has_classes_attributes_and_source(path: Path) -> None:
    write_script(path)
    contents = describe(path)
    node = identify(contents).modules[0][1]
    assert node.class_path == "__torch__.formats.samples_programs.Net"
    assert [child.name for child in node.children] == ["a", "b", "c", "tied", "listed", "weights"]
    assert node.training is True
    a, b = node.children[:2]
    assert a.attributes["note"] == "héllo"
    assert (a.attributes["sizes"], a.attributes["table"]) == ([1, 2, 3], {"a": 1.5})
    assert a.attributes["pair"] == (1, "x")
    # What the code has as constants is what the constructor got.
    assert b.children[0].attributes["in_features"] == 4
    assert b.children[1].attributes["eps"] == 1e-05
    assert b.children[0].source is not None
    assert b.children[0].source.startswith("class Linear(Module):\n")
    assert "torch.linear(input, weight, bias)" in b.children[0].source


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_an_attribute(path: Path) -> None:
    write_script(path)
    loaded = load_script(path)
    entry = root_module(describe(path)).state["_modules"]["a"].state["plain"]
    check_tensor("plain", entry, loaded.a.plain)
    assert "a.plain" not in state_dict_of(describe(path))


def test_two_names_of_one_module_share_their_tensors(path: Path) -> None:
    write_script(path)
    modules = root_module(describe(path)).state["_modules"]
    for name, entry in modules["a"].state["_buffers"].items():
        assert entry.memory == modules["c"].state["_buffers"][name].memory
    tied = modules["tied"].state["_parameters"]["weight"]
    first = modules["b"].state["_modules"]["0"].state["_parameters"]["weight"]
    assert tied.memory == first.memory


def test_what_the_archive_says_about_itself_is_kept(path: Path) -> None:
    write_script(path)
    contents = describe(path)
    assert contents.metadata["extra/config.txt"] == "stride=32"
    assert contents.metadata["byteorder"] == "little"
    assert contents.kind == "TorchScript program: Net with forward"
    assert contents.pickle_protocol == 2
    assert Global("__torch__.formats.samples_programs", "Net") in contents.globals


def test_constants_are_shown_under_the_names_of_the_code(path: Path) -> None:
    write_traced(path)
    contents = describe(path)
    constants = root_module(contents).state["CONSTANTS"]
    assert list(constants) == ["c0"]
    check_tensor("c0", constants["c0"], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert "CONSTANTS.c0" in contents.sources[root_module(contents).class_path]
    check_tensors(state_dict_of(contents), load_script(path).state_dict())


def test_the_inputs_of_a_trace_have_shapes_and_no_bytes(path: Path) -> None:
    write_traced(path)
    inputs = root_module(describe(path)).state["traced_inputs"]
    entry = inputs["forward"][0]["args"][0] if isinstance(inputs["forward"][0], dict) else None
    entry = entry or inputs["forward"][0]
    assert (entry.shape, entry.dtype) == ((2, 3), "float32")
    assert entry.storage.offset is None
    assert set(rules(describe(path))) == PROGRAM


def test_a_frozen_module_has_its_weights_among_the_constants(path: Path) -> None:
    write_frozen(path)
    torch.manual_seed(0)
    live = WithConstants()
    constants = root_module(describe(path)).state["CONSTANTS"]
    shapes = {entry.shape: entry for entry in constants.values()}
    check_tensor("weight", shapes[4, 3], live.lin.weight)
    assert state_dict_of(describe(path)) == {}


def test_an_archive_for_phones_has_the_same_tensors_and_its_instructions_constants(
    path: Path,
) -> None:
    write_lite(path)
    contents = describe(path)
    assert contents.container == "torchscript-lite"
    assert contents.kind.startswith("TorchScript program for phones (bytecode of version ")
    torch.manual_seed(0)
    live = WithConstants()
    check_tensors(state_dict_of(contents), live.state_dict())
    state = root_module(contents).state
    (table,) = state["bytecode"].values()
    (entry,) = [item for item in table if isinstance(item, TensorEntry)]
    check_tensor("constant", entry, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert entry.storage is state["CONSTANTS"]["c0"].storage


def test_an_archive_of_instructions_alone_is_described(path: Path) -> None:
    write_lite(path)
    rewrite_zip(path, lambda name, data: data if re.search(r"byte|vers|constants/", name) else None)
    contents = describe(path)
    assert contents.container == "torchscript-lite"
    (table,) = contents.root["bytecode"].values()
    assert any(isinstance(item, TensorEntry) for item in table)


def test_every_dtype_is_told_and_found(path: Path) -> None:
    save_script(path, script_module(lambda: EveryDtype(DTYPES)))
    contents = describe(path)
    check_tensors(state_dict_of(contents), load_script(path).state_dict())
    assert len(state_dict_of(contents)) == len(DTYPES)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs = [Pair(1, torch.ones(2))]
        self.colour = Colour.BLUE
        self.device = torch.device("cpu")
        self.nothing = None
        self.number = 1 + 2j
        self.register_buffer("sparse", torch.eye(2).to_sparse())
        self.register_buffer(
            "quantized", torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.qint8)
        )
        self.flags = [True, False]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.pairs[0][0]


def test_odd_values_keep_what_they_say(path: Path) -> None:
    save_script(path, script_module(Odd))
    contents = describe(path)
    assert set(rules(contents)) == PROGRAM
    state = root_module(contents).state
    assert state["device"] == "cpu"
    assert (state["number"], state["flags"]) == (1 + 2j, [True, False])
    assert (state["colour"].class_path.rpartition(".")[2], state["colour"].args) == ("Colour", (2,))
    sparse, quantized = state["_buffers"]["sparse"], state["_buffers"]["quantized"]
    assert (sparse.layout, sparse.shape) == ("sparse_coo", (2, 2))
    assert [name for name, _ in sparse.parts] == ["indices", "values"]
    assert (quantized.dtype, quantized.shape) == ("qint8", (3,))


def test_the_state_of_a_class_that_sets_it_itself_is_shown_as_it_is(path: Path) -> None:
    save_script(path, script_module(Stateful))
    contents = describe(path)
    inner = root_module(contents).state["_modules"]["inner"].state
    tensor, training = inner["__getstate__"]
    check_tensor("state", tensor, torch.full((2,), 2.0))
    assert training is True
    assert inner["_parameters"] == {}
    assert list(state_dict_of(contents)) == ["lin.weight", "lin.bias"]


def test_the_root_folder_has_any_name_and_the_archive_lies_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "ä b.pt"
    write_script(path)
    check_tensors(state_dict_of(describe(path)), load_script(path).state_dict())


# --- Older files ---------------------------------------------------------------------------------


def test_before_1_6_every_other_tensor_was_a_buffer(path: Path) -> None:
    write_script(path)
    state = load_script(path).state_dict()

    def older(name: str, data: bytes) -> bytes | None:
        if name.endswith(("byteorder", "serialization_id")):
            return None
        return re.sub(rb"  __buffers__ = .*\n", b"", data) if name.endswith(".py") else data

    rewrite_zip(path, older)
    found = state_dict_of(describe(path))
    assert {"b.1.running_mean", "a.scale"} <= set(found)
    assert set(found) - set(state) == {"a.plain", "c.plain"}
    assert set(found) >= set(state)


def test_without_the_code_a_gradient_tells_a_parameter(path: Path) -> None:
    write_script(path)
    rewrite_zip(path, lambda name, data: None if "/code/" in name else data)
    node = identify(describe(path)).modules[0][1]
    parts = dict(node.walk())
    assert set(parts["a.lin"].parameters) == {"weight", "bias"}
    assert set(parts["a"].buffers) == {"scale", "strided", "plain"}


# --- Files that are not as they should be --------------------------------------------------------


def changed(path: Path, change: Callable[[str, bytes], bytes | None]) -> set[tuple[str, str]]:
    """Write a sample, changed; return what is found besides that it is a program."""
    write_script(path)
    rewrite_zip(path, change)
    return set(rules(examine(path))) - PROGRAM


def added(path: Path, name: str, data: bytes) -> set[tuple[str, str]]:
    write_script(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data)
    return set(rules(examine(path))) - PROGRAM


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


@pytest.mark.parametrize(
    "name", ["data.pkl", "constants.pkl", "code/__torch__.py.debug_pkl", "mobile_debug_handles.pkl"]
)
def test_names_in_every_pickle_are_told(path: Path, name: str) -> None:
    write_script(path)
    evil = pickle.dumps(Evil(), 2)
    rewrite_zip(path, lambda record, data: None if record.endswith(f"/{name}") else data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"model/{name}", evil)
    contents = examine(path)
    assert Global("posix", "system") in contents.globals
    assert identify(contents).safety.verdict == "dangerous"


def test_names_in_a_broken_debug_pickle_are_told(path: Path) -> None:
    evil = pickle.dumps(Evil(), 2)[:-1]
    found = added(path, "model/code/x.py.debug_pkl", evil)
    assert found == {("broken-pickle", "ambiguous")}
    assert Global("posix", "system") in examine(path).globals


def test_names_before_a_break_are_told(path: Path) -> None:
    evil = pickle.dumps([Evil(), 1], 2)[:-2]
    write_script(path)
    rewrite_zip(path, lambda name, data: evil if name.endswith("/constants.pkl") else data)
    contents = examine(path)
    assert isinstance(contents.problem, DamagedFile)
    assert Global("posix", "system") in contents.globals
    assert Global("__torch__.formats.samples_programs", "Net") in contents.globals


def test_a_pickle_among_the_users_files_is_looked_into(path: Path) -> None:
    assert added(path, "model/extra/more.bin", pickle.dumps(Evil(), 2)) == set()
    contents = examine(path)
    assert [member.container for member in contents.members] == ["pickle"]
    assert Global("posix", "system") in contents.globals


def test_a_compressed_file_among_the_users_is_not_looked_into(path: Path) -> None:
    write_script(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/x", b"\x80\x02" + b"a" * 70_000)
    (member,) = examine(path).members
    assert isinstance(member.problem, UnsupportedContent)
    assert "is compressed, and not looked into" in str(member.problem)


def test_long_texts_are_not_kept(path: Path) -> None:
    assert added(path, "model/extra/long.txt", b"x" * 70_000) == set()
    assert "extra/long.txt" not in examine(path).metadata


def test_a_first_record_of_another_folder_is_found(path: Path) -> None:
    write_script(path)
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    write_zip(path, [("evil/x", b""), *records])
    assert ("root-folder", "ambiguous") in rules(examine(path))


def test_a_second_kind_makes_it_ambiguous(path: Path) -> None:
    assert ("two-kinds", "ambiguous") in added(path, "model/archive_format", b"pt2")
    (finding,) = [item for item in examine(path).findings if item.rule == "two-kinds"]
    assert finding.text == "the archive is torchscript, and torch-export too"


def test_without_its_pickle_it_is_damaged(path: Path) -> None:
    write_script(path)
    rewrite_zip(path, lambda name, data: None if name.endswith("/data.pkl") else data)
    with pytest.raises(DamagedFile, match=r"the archive has no record data\.pkl"):
        describe(path)


def test_a_missing_storage_gives_no_tensor(path: Path) -> None:
    found = changed(path, lambda name, data: None if name == "model/data/2" else data)
    assert ("missing-storage", "damaged") in found


def test_a_storage_of_another_size_is_found(path: Path) -> None:
    found = changed(path, lambda name, data: data + b"\0" if name == "model/data/0" else data)
    assert found == {("storage-size", "damaged")}


def test_compressed_tensors_can_not_be_read_in_place(path: Path) -> None:
    write_script(path)
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records:
            archive.writestr(name, data)
    with pytest.raises(UnsupportedContent, match="tensor bytes data/0 are compressed"):
        describe(path)


def test_an_unknown_byte_order_is_refused(path: Path) -> None:
    write_script(path)
    rewrite_zip(path, lambda name, data: b"middle" if name.endswith("byteorder") else data)
    with pytest.raises(DamagedFile, match="'middle', neither little nor big"):
        describe(path)


def test_bytes_behind_a_pickle_are_found(path: Path) -> None:
    found = changed(path, lambda name, data: data + b"x" if name.endswith("/data.pkl") else data)
    assert found == {("trailing-bytes", "ambiguous")}


# --- Whoever wants to wear it out ----------------------------------------------------------------


def peak(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def deflated(path: Path, records: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in records:
            packed = zipfile.ZIP_DEFLATED if len(data) > 200 else zipfile.ZIP_STORED
            archive.writestr(name, data, packed)


@pytest.mark.parametrize(
    "block",
    [
        b"def a\n",
        b"class A(Module):\n",
        b'  __parameters__ = ["a", ]\n',
        b"  a : Final[int] = ((((((((\n",
        b"x",
        b'  __annotations__["',
    ],
)
def test_code_that_unfolds_costs_little(path: Path, block: bytes) -> None:
    code = (b"class A(Module):\n" + block * (1_000_000 // len(block)))[:1_000_000]
    records = [
        ("m/data.pkl", b"\x80\x02N."),
        ("m/constants.pkl", b"\x80\x02)."),
        ("m/code/a.py", code),
        ("m/version", b"3\n"),
    ]
    deflated(path, records)
    assert path.stat().st_size < 10_000
    assert peak(lambda: examine(path)) < 60_000_000


def test_many_files_that_unfold_together_are_refused(path: Path) -> None:
    records = [(f"m/code/{i}.py", b"x" * 1_000_000) for i in range(20)]
    deflated(path, [("m/constants.pkl", b"\x80\x02)."), ("m/data.pkl", b"\x80\x02N."), *records])
    problem = r"unpack from \d+ to \d+ bytes, more than the limit expansion=64 times"
    with pytest.raises(LimitReached, match=problem):
        describe(path)


def test_constants_that_every_module_would_get_are_bounded(path: Path) -> None:
    """The constants stand once in the code, and in each of the modules."""
    code = "class A(Module):\n" + "".join(f"  a{i} : Final[int] = {i}\n" for i in range(2_000))
    with torchscript_classes(["__torch__.A"]) as classes:
        made = [classes["__torch__.A"]() for _ in range(2_000)]
        for item in made:
            item.training = True
        data = object_pickle(made)
    records = [
        ("m/data.pkl", data),
        ("m/constants.pkl", b"\x80\x02)."),
        ("m/code/__torch__.py", code.encode()),
    ]
    deflated(path, records)
    with pytest.raises(LimitReached, match="modules unfold into far more than it has bytes"):
        describe(path)


def test_modules_nested_without_end_are_walked_without_recursion(path: Path) -> None:
    with torchscript_classes(["__torch__.A"]):
        # Each BUILD sets the module before it as an attribute of the next one.
        opening = b"c__torch__\nA\n)\x81}(X\x08\x00\x00\x00training\x88X\x01\x00\x00\x00m"
        data = b"\x80\x02" + opening * 5_000 + b"N" + b"ub" * 5_000 + b"."
    write_zip(path, [("m/data.pkl", data), ("m/constants.pkl", b"\x80\x02)."), ("m/version", b"3")])
    contents = describe(path)
    with pytest.raises(LimitReached, match="nested"):
        identify(contents)


def test_modules_that_hold_themselves_are_walked_once(path: Path) -> None:
    data = b"\x80\x02c__torch__\nA\n)\x81q\x00}(X\x08\x00\x00\x00training\x88"
    data += b"X\x01\x00\x00\x00mh\x00ub."
    write_zip(path, [("m/data.pkl", data), ("m/constants.pkl", b"\x80\x02)."), ("m/version", b"3")])
    root = root_module(describe(path))
    assert root.state["_modules"]["m"] is root


@pytest.mark.parametrize(
    "state",
    [
        b"N",
        b"]",
        b"}(K\x01K\x02u",
        b"}(X\x0b\x00\x00\x00_parametersK\x01u",
        b"}(X\x08\x00\x00\x00_modules]u",
        b"}((K\x01tNu",
    ],
)
def test_any_state_is_described(path: Path, state: bytes) -> None:
    data = b"\x80\x02c__torch__\nA\n)\x81" + state + b"b."
    code = b"class A(Module):\n  __parameters__ = [1]\n"
    records = [
        ("m/data.pkl", data),
        ("m/constants.pkl", b"\x80\x02)."),
        ("m/code/__torch__.py", code),
        ("m/version", b"3"),
    ]
    write_zip(path, records)
    contents = describe(path)
    assert isinstance(contents.root, Object)
    identify(contents).tensors()


@pytest.mark.parametrize("pickled", [b"\x80\x02N.", b"\x80\x02K\x05.", b"\x80\x02]K\x01a."])
@pytest.mark.parametrize("name", ["data", "constants", "bytecode", "traced_inputs"])
def test_pickles_of_something_else_are_described(path: Path, name: str, pickled: bytes) -> None:
    write_traced(path)
    rewrite_zip(path, lambda record, data: None if record.endswith(f"/{name}.pkl") else data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"model/{name}.pkl", pickled)
    identify(describe(path)).tensors()


@pytest.mark.parametrize(
    "program",
    [
        "(4, ('f', 3))",
        "(4, ('f', (('constants', 3),)))",
        "(4, ('f',))",
        "('x', (1, (('constants', ([1],)),)))",
        "(True, 3)",
    ],
)
def test_instructions_of_any_form_are_described(path: Path, program: str) -> None:
    write_lite(path)
    pickled = pickle.dumps(eval(program), 2)
    rewrite_zip(path, lambda name, data: pickled if name.endswith("bytecode.pkl") else data)
    describe(path)


FEW = [sample for sample in SAMPLES if sample.container.startswith("torchscript")]


@pytest.mark.parametrize("sample", FEW, ids=lambda sample: sample.name)
def test_a_flipped_byte_breaks_nothing(path: Path, sample: Any) -> None:
    sample.write(path)
    whole = path.read_bytes()
    rng = random.Random(0)
    for place in rng.sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[place] ^= rng.randint(1, 255)
        path.write_bytes(damaged)
        contents = examine(path)
        if contents.problem is None:
            try:
                tensors = identify(contents).tensors()
            except FileProblem:
                continue
            for named in tensors:
                stored = named.entry.storage
                end = (stored.offset or 0) + stored.nbytes
                assert stored.offset is None or end <= len(whole), place


def nbytes_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many bytes it takes to describe a file."""
    sizes: list[int] = []
    read_at = InputFile.read_at

    def counting(self: InputFile, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    with monkeypatch.context() as patch:
        patch.setattr(InputFile, "read_at", counting)
        describe(path)
    return sum(sizes)


def test_only_directory_pickles_and_code_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for width in (1_000, 4_000):
        save_script(path, script_module(partial(nn.Linear, width, 100)))
        counts.append(nbytes_read(path, monkeypatch))
    assert path.stat().st_size > 1_600_000
    assert counts[1] < counts[0] + 100


def test_more_records_than_allowed_are_refused(path: Path) -> None:
    write_script(path)
    with pytest.raises(LimitReached, match="records"):
        describe(path, limits=Limits(records=3))
