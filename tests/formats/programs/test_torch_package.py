"""Packages are described as what `PackageImporter` loads from them, and nothing is imported."""

from __future__ import annotations

import io
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.building import rules
from formats.samples_programs import (
    PACKAGED,
    Records,
    check_tensor,
    check_tensors,
    deprecated,
    export_bytes,
    package_bytes,
    records_of,
    state_dict_of,
    write_package,
    write_zip,
)
from torchkeep.contents import Global, Object
from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.formats import describe, examine
from torchkeep.formats.programs.torch_package import class_sources
from torchkeep.identify import identify
from torchkeep.pickles.limits import Limits

HONEST = {("program", "needs-trust"), ("source-code", "needs-trust")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@cache
def importer() -> Any:
    return torch.package.PackageImporter(io.BytesIO(package_bytes()))


@cache
def unpickled(name: str) -> Any:
    with deprecated():
        return importer().load_pickle("model", name)


def root_folder() -> str:
    return records_of(package_bytes())[0][0].partition("/")[0]


def with_record(path: Path, name: str, data: bytes) -> Any:
    """Write the sample with one more record, or another in its place, and describe it."""
    name = f"{root_folder()}/{name}"
    records = [row for row in records_of(package_bytes()) if row[0] != name]
    write_zip(path, [*records, (name, data)])
    return examine(path)


# --- The same as PyTorch -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pkl", "traced.pkl"])
def test_the_state_dict_of_a_pickled_module_is_that_of_the_loaded_one(
    path: Path, name: str
) -> None:
    write_package(path)
    contents = describe(path)
    assert (contents.container, set(rules(contents))) == ("torch-package", HONEST)
    check_tensors(state_dict_of(contents, f"model/{name}"), unpickled(name).state_dict())


def test_a_pickle_of_any_name_is_found_and_shares_its_storages(path: Path) -> None:
    write_package(path)
    root = describe(path).root
    assert list(root) == ["model/model.pkl", "model/traced.pkl", "model/both"]
    both = root["model/both"]
    live = unpickled("both")
    assert (both["n"], live["n"]) == (3, 3)
    check_tensor("weight", both["weight"], live["weight"])
    assert both["weight"].is_parameter
    first = root["model/model.pkl"].state["_modules"]["lin"].state["_parameters"]["weight"]
    assert both["weight"].storage is first.storage


def test_torchscript_inside_a_pickle_is_a_module_like_any_other(path: Path) -> None:
    write_package(path)
    contents = describe(path)
    check_tensors(
        state_dict_of(contents, "model/both.script"), unpickled("both")["script"].state_dict()
    )
    script = contents.root["model/both"]["script"]
    assert script.class_path == "__torch__.sample_package.net.Net"
    assert "def forward" in contents.sources[script.class_path]
    weight = script.state["_modules"]["lin"].state["_parameters"]["weight"]
    assert weight.storage is contents.root["model/both"]["weight"].storage


def test_a_traced_module_has_its_attributes(path: Path) -> None:
    write_package(path)
    traced = describe(path).root["model/traced.pkl"]
    assert traced.class_path == "torch.fx.graph_module.reduce_package_graph_module"
    assert traced.args[0].startswith("fx-generated.")
    assert traced.state["training"] is True


def test_the_source_code_is_there_by_module_and_by_class(path: Path) -> None:
    write_package(path)
    contents = describe(path)
    assert contents.sources["sample_package.net"] == PACKAGED
    text = contents.sources["sample_package.net.Net"]
    assert text.startswith("class Net(nn.Module):\n")
    assert text.rstrip().endswith("return self.lin(x)")
    assert "def forward(self, x):" in contents.sources["fx-generated._0"]
    tree = dict(identify(contents).modules)
    assert tree["model/model.pkl"].source == text


def test_what_the_package_says_about_itself_is_kept(path: Path) -> None:
    write_package(path)
    contents = describe(path)
    assert contents.metadata["python_version"].startswith(f"{sys.version_info.major}.")
    assert "torch.nn" in contents.metadata["extern_modules"].split(", ")
    assert set(contents.metadata["extern_modules"].split(", ")) == set(importer().extern_modules)
    start = "package (torch.package) of 3 objects and 2 files of Python; needs torch, "
    assert contents.kind.startswith(start)
    assert contents.pickle_protocol == 3


def test_nothing_of_the_package_is_imported(path: Path) -> None:
    write_package(path)
    before = set(sys.modules)
    identify(describe(path))
    assert not {name for name in set(sys.modules) - before if name.startswith("sample_package")}


def test_classes_are_cut_out_by_indentation() -> None:
    text = "class A(\n    B,\n):\n    x = 1\n\n    # c\n# d\n    y = 2\nz = 3\nclass AB:\n  pass\n"
    names = (Global("m", "A"), Global("m", "AB"), Global("m", "C"), Global("n", "A"))
    assert class_sources({"m": text}, names) == {
        "m.A": text[: text.index("z = 3")],
        "m.AB": "class AB:\n  pass\n",
    }
    assert class_sources({"m": "class A:\n"}, (Global("m", "A|B"), Global("m", "(("))) == {}


# --- What is in it besides -----------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["model/evil.pkl", "texts/x", "texts/readme.txt"])
def test_a_pickle_of_any_protocol_under_any_name_is_looked_into(
    path: Path, name: str, protocol: int
) -> None:
    contents = with_record(path, name, pickle.dumps([Evil()], protocol))
    assert Global("posix", "system") in contents.globals
    assert identify(contents).safety.verdict == "dangerous"


def test_a_file_of_another_kind_is_looked_into(path: Path) -> None:
    contents = with_record(path, "texts/program", export_bytes())
    assert [member.container for member in contents.members] == ["torch-export"]
    assert "texts/program.state_dict" in [item.name for item in identify(contents).state_dicts]


def test_names_before_a_break_are_told(path: Path) -> None:
    evil = pickle.dumps([Evil(), 1], 2)[:-2]
    contents = with_record(path, "model/evil.pkl", evil)
    assert isinstance(contents.problem, DamagedFile)
    assert Global("posix", "system") in contents.globals
    contents = with_record(path, "model/evil", evil)
    assert contents.problem is None
    assert Global("posix", "system") in contents.globals
    (member,) = contents.members
    assert isinstance(member.problem, DamagedFile)


def test_bytes_that_only_start_like_a_pickle_are_a_file_that_can_not_be_read(path: Path) -> None:
    contents = with_record(path, "texts/x", b"\x80\x02\xff\xff")
    assert contents.problem is None
    (member,) = contents.members
    assert isinstance(member.problem, DamagedFile)
    assert list(contents.root) == ["model/model.pkl", "model/traced.pkl", "model/both"]


def test_a_package_without_code_needs_trust_for_its_pickles_alone(path: Path) -> None:
    records: Records = [
        ("p/.data/extern_modules", b""),
        ("p/model/data.pkl", pickle.dumps({"a": 1}, 3)),
        ("p/.data/version", b"6\n"),
    ]
    write_zip(path, records)
    contents = describe(path)
    assert (contents.findings, contents.root) == ((), {"model/data.pkl": {"a": 1}})
    assert contents.kind == "package (torch.package) of 1 object and 0 files of Python"


def persistent(pid: bytes) -> bytes:
    """Return a pickle of what a persistent id stands for, given the id's own opcodes."""
    return b"\x80\x02" + pid + b"Q."


@pytest.mark.parametrize(
    "pid",
    [
        b"N",
        b")",
        b"(X\x0e\x00\x00\x00reduce_packaget",
        b"(X\x0e\x00\x00\x00reduce_packageNNt",
        b"(X\x0e\x00\x00\x00reduce_packageK\x01NNt",
        b"(X\x0e\x00\x00\x00reduce_packageK\x01cos\nsystem\nNt",
    ],
)
def test_a_persistent_id_that_makes_no_sense_is_found(path: Path, pid: bytes) -> None:
    contents = with_record(path, "model/odd.pkl", persistent(pid))
    assert ("persistent-id", "ambiguous") in rules(contents)


def test_what_another_function_would_rebuild_is_kept_as_a_recipe(path: Path) -> None:
    pid = b"(X\x0e\x00\x00\x00reduce_packageK\x01cos\nsystem\nX\x04\x00\x00\x00true\x85t"
    contents = with_record(path, "model/odd.pkl", persistent(pid))
    made = contents.root["model/odd.pkl"]
    assert (made.class_path, made.args) == ("os.system", ("true",))
    assert identify(contents).safety.verdict == "dangerous"


@pytest.mark.parametrize(
    "args", [b")", b"N\x85", b"X\x02\x00\x00\x0099\x85", b"K\x01\x85", b"K\x01K\x02\x86"]
)
def test_a_torchscript_module_that_is_not_there_is_found(path: Path, args: bytes) -> None:
    name = b"ctorch.jit._script\nunpackage_script_module\n"
    pid = b"(X\x0e\x00\x00\x00reduce_packageK\x01" + name + args + b"t"
    contents = with_record(path, "model/odd.pkl", persistent(pid))
    assert contents.problem is None
    made = contents.root.get("model/odd.pkl")
    assert made is None or isinstance(made, Object)


def test_a_torchscript_module_that_asks_for_itself_is_read_once(path: Path) -> None:
    name = b"ctorch.jit._script\nunpackage_script_module\n"
    pid = b"(X\x0e\x00\x00\x00reduce_package" + name + b"X\x01\x00\x00\x009\x85t"
    many = b"\x80\x02](" + (pid + b"Q") * 100 + b"e."
    records: Records = [
        ("p/.data/extern_modules", b""),
        ("p/.data/ts_code/9/data.pkl", many),
        ("p/model.pkl", many),
    ]
    write_zip(path, records)
    contents = describe(path)
    made = contents.root["model.pkl"]
    assert len(made) == 100
    assert len({id(item) for item in made}) == 1
    assert ("persistent-id", "ambiguous") in rules(contents)


def test_a_missing_storage_gives_no_tensor(path: Path) -> None:
    records = [row for row in records_of(package_bytes()) if not row[0].endswith("1.storage")]
    write_zip(path, records)
    assert ("missing-storage", "damaged") in rules(examine(path))


def test_a_long_list_of_modules_is_not_read(path: Path) -> None:
    write_package(path)
    with pytest.raises(LimitReached, match="header_nbytes"):
        describe(path, limits=Limits(header_nbytes=150))
