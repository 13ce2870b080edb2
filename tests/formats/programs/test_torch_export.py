"""Exported programs are described as what `torch.export.load` makes of them, and nothing is run."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.building import rules
from formats.samples_programs import (
    Records,
    check_tensor,
    check_tensors,
    deprecated,
    export_bytes,
    exported,
    middle_export_records,
    old_export_records,
    records_of,
    state_dict_of,
    write_export,
    write_native_export,
    write_zip,
)
from torchkeep.contents import Global
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.files import InputFile
from torchkeep.formats import describe, examine
from torchkeep.formats.programs.export_schema import DTYPES, hazards
from torchkeep.identify import identify
from torchkeep.pickles.limits import Limits

PROGRAM = {("program", "needs-trust")}
WEIGHTS = "archive/data/weights/model_weights_config.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt2"


@cache
def loaded() -> Any:
    """Return what PyTorch loads from the sample."""
    with deprecated():
        return torch.export.load(io.BytesIO(export_bytes()))


def load(path: Path) -> Any:
    with deprecated():
        return torch.export.load(path)


def with_change(path: Path, change: Callable[[str, bytes], bytes | None]) -> Any:
    """Write the sample, changed, and describe it."""
    records = [(name, change(name, data)) for name, data in records_of(export_bytes())]
    write_zip(path, [(name, data) for name, data in records if data is not None])
    return examine(path)


def with_json(path: Path, name: str, change: Callable[[Any], object]) -> Any:
    """Write the sample with the JSON of a record changed, and describe it."""

    def changed(record: str, data: bytes) -> bytes:
        if not record.endswith(name):
            return data
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return with_change(path, changed)


def meta_of(config: Any, name: str) -> Any:
    return config["config"][name]["tensor_meta"]


# --- The same as PyTorch -------------------------------------------------------------------------


def test_the_tensors_are_those_of_the_loaded_program(path: Path) -> None:
    write_export(path)
    contents = describe(path)
    assert (contents.container, set(rules(contents))) == ("torch-export", PROGRAM)
    entries = state_dict_of(contents, "state_dict")
    check_tensors(entries, loaded().state_dict)
    constants = {name: loaded().constants[name] for name in contents.root["constants"]}
    check_tensors(contents.root["constants"], constants)
    assert set(constants) == set(loaded().constants)


def test_parameters_and_buffers_are_told_apart(path: Path) -> None:
    write_export(path)
    entries = state_dict_of(describe(path), "state_dict")
    parameters = {name for name, entry in entries.items() if entry.is_parameter}
    assert parameters == set(loaded().graph_signature.parameters)
    for name, tensor in loaded().state_dict.items():
        assert entries[name].requires_grad == tensor.requires_grad, name


def test_the_program_says_what_it_takes_and_gives(path: Path) -> None:
    write_export(path)
    contents = describe(path)
    program = contents.root["program"]
    assert list(program["inputs"]) == ["x"]
    assert re.fullmatch(r"float32 \[s\d+, 3\]", program["inputs"]["x"])
    y, n = program["outputs"].values()
    assert y.startswith("float32 [s")
    assert n == "int"
    assert program["torch_version"] == torch.__version__
    assert program["opset_version"] == {"aten": 10}
    nodes = [node for node in loaded().graph.nodes if node.op == "call_function"]
    assert program["num_nodes"] == len(nodes) == sum(program["operators"].values())
    assert program["operators"]["torch.ops.aten.linear.default"] == 2
    start = f"exported program of PyTorch {torch.__version__}: {len(nodes)} operations, 1 input, "
    assert contents.kind.startswith(start)


def test_the_sample_inputs_and_the_users_files_are_there(path: Path) -> None:
    write_export(path)
    contents = describe(path)
    ((entry,), _) = contents.root["sample_inputs"]
    check_tensor("x", entry, torch.ones(2, 3))
    assert contents.metadata["extra/notes.txt"] == "hello"
    assert (contents.metadata["archive_format"], contents.metadata["archive_version"]) == (
        "pt2",
        "0",
    )
    assert [member.container for member in contents.members] == ["torch-zip"]


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_archives_of_2_1_to_2_5_are_described(path: Path, suffix: str) -> None:
    write_zip(path, old_export_records(suffix))
    contents = describe(path)
    assert (contents.container, set(rules(contents))) == ("torch-export", PROGRAM)
    program = load(path)
    check_tensors(state_dict_of(contents, "state_dict"), program.state_dict)
    assert set(contents.root["constants"]) >= {"constant"}
    ((entry,), _) = contents.root["sample_inputs"]
    check_tensor("x", entry, torch.ones(2, 3))
    assert contents.metadata["extra_files/notes.txt"] == "hello"
    assert contents.root["program"]["num_nodes"] > 5


def test_archives_of_2_6_and_2_7_are_described(path: Path) -> None:
    write_zip(path, middle_export_records())
    contents = describe(path)
    assert (contents.container, set(rules(contents))) == ("torch-export", PROGRAM)
    check_tensors(state_dict_of(contents, "state_dict"), load(path).state_dict)
    parameters = {n for n, e in state_dict_of(contents, "state_dict").items() if e.is_parameter}
    assert parameters == set(loaded().graph_signature.parameters)


def test_several_models_are_told_apart(path: Path) -> None:
    from torch.export.pt2_archive._package import package_pt2

    buffer = io.BytesIO()
    with deprecated():
        package_pt2(buffer, exported_programs={"one": exported(), "two": exported()})
    path.write_bytes(buffer.getvalue())
    contents = describe(path)
    assert list(contents.root) == ["one", "two"]
    assert contents.kind == "2 exported programs"
    for name in ("one", "two"):
        entries = state_dict_of(contents, f"{name}.state_dict")
        check_tensors(entries, loaded().state_dict)


def test_a_state_dict_is_one_whatever_its_tensors_names(path: Path) -> None:
    def rename(config: Any) -> None:
        config["config"] = {"x": next(iter(config["config"].values()))}

    contents = with_json(path, "weights_config.json", rename)
    assert list(state_dict_of(contents, "state_dict")) == ["x"]


def test_every_type_has_pytorchs_name_for_it() -> None:
    from torch._export.serde.schema import ScalarType
    from torch._export.serde.serialize import deserialize_scalar_type

    known = {item for item in ScalarType if item is not ScalarType.UNKNOWN}
    assert set(DTYPES) == {int(item) for item in known}
    for item in known:
        assert f"torch.{DTYPES[item]}" == str(deserialize_scalar_type(item))


# --- Machine code --------------------------------------------------------------------------------


def test_a_package_of_machine_code_needs_trust_and_shows_its_weights(path: Path) -> None:
    tensors = write_native_export(path)
    contents = describe(path)
    assert set(rules(contents)) == {*PROGRAM, ("native-code", "needs-trust")}
    assert contents.kind == "AOTInductor package of 1 compiled model"
    check_tensors(state_dict_of(contents, "state_dict"), tensors)
    assert identify(contents).safety.verdict == "needs-trust"


# --- What loading it would run -------------------------------------------------------------------

HONEST = [
    "s0",
    "2*s0 + 1",
    "Max(1, s0//2)",
    "Mul(Integer(2), Symbol('s77', positive=True, integer=True))",
    "Float('0.5', precision=53)",
    "Piecewise((s0, s0 > 2), (1, True))",
    "Eq(Mod(s0, 4), 0) & (u0 <= 3)",
]
EVIL = [
    "__import__('os').system('true')",
    'S(\'__import__("os").system("true")\')',
    "sympify('x')",
    "Symbol('x').func",
    "eval(s0)",
    "lambda: 0",
    "s0;s1",
    "s0[0]",
    'Symbol("s0")',
]


@pytest.mark.parametrize("text", HONEST)
def test_expressions_of_sizes_are_no_cause_for_alarm(text: str) -> None:
    found = hazards({"as_expr": {"expr_str": text}}, "")
    assert found.findings == []


@pytest.mark.parametrize("text", EVIL)
def test_an_expression_that_is_code_is_dangerous(path: Path, text: str) -> None:
    def change(program: Any) -> None:
        values = program["graph_module"]["graph"]["sym_int_values"]
        values["evil"] = {"as_expr": {"expr_str": text, "hint": None}}

    contents = with_json(path, "models/model.json", change)
    (finding,) = [item for item in contents.findings if item.rule == "code-in-json"]
    assert finding.severity == "dangerous"
    assert "which no exporter writes and loading it would evaluate" in finding.text
    assert identify(contents).safety.verdict == "dangerous"


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[0] >= 2",
        "L['class']['import os'].size()[1] == L['y'].size()[0]",
        "not math.isnan(L['args'][0])",
        "torch.sym_max(L['x'].size()[0], 3) <= 4",
    ],
)
def test_guards_are_no_cause_for_alarm(guard: str) -> None:
    assert hazards({"guards_code": [guard]}, "").findings == []


@pytest.mark.parametrize(
    "guard",
    ["__import__('os').system('true')", 'True, "") or (1', "exec('x')", "torch.hub.load('a')", 3],
)
def test_a_guard_that_is_code_is_dangerous(path: Path, guard: Any) -> None:
    contents = with_json(path, "models/model.json", lambda p: p.update(guards_code=[guard]))
    assert ("code-in-json", "dangerous") in rules(contents)


@pytest.mark.parametrize("target", ["torch.os.system", "torch.hub.load", "math.__loader__.load"])
def test_an_operator_that_is_none_is_dangerous(path: Path, target: str) -> None:
    def change(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    assert ("code-in-json", "dangerous") in rules(with_json(path, "models/model.json", change))


def test_operators_of_the_installed_pytorch_are_no_cause_for_alarm() -> None:
    from torch._export.serde.serialize import _SYM_OPS

    names = [f"{op.__module__}.{op.__name__}" for op in _SYM_OPS]
    names += ["torch.ops.aten.add.Tensor", "torch.ops.higher_order.cond", "#ext:op"]
    assert hazards([{"target": name} for name in names], "").findings == []


def spec(context: Any, kind: str = "builtins.dict") -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": []}])


@pytest.mark.parametrize(
    "text",
    [
        spec(json.dumps([{"__enum__": True, "fqn": "os:system", "name": "x"}])),
        spec({"default_factory_module": "os", "default_factory_name": "system"}),
        spec(json.dumps([{"__enum__": 1, "fqn": "os:system"}])).replace(
            "__enum__", "\\u005f_enum__"
        ),
    ],
)
def test_what_the_description_of_inputs_would_import_is_told(path: Path, text: str) -> None:
    def change(program: Any) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text

    contents = with_json(path, "models/model.json", change)
    assert Global("os", "system") in contents.globals
    assert identify(contents).safety.verdict == "dangerous"


def test_a_description_of_inputs_that_is_broken_is_found(path: Path) -> None:
    def change(program: Any) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = (
            '{"a": 1, "a": 2}'
        )

    assert ("broken-spec", "ambiguous") in rules(with_json(path, "models/model.json", change))


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def pickled_evil() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": Evil()}, buffer)
    return buffer.getvalue()


def test_names_in_a_weight_that_is_pickled_are_told(path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        if name.endswith("/weight_3"):
            return pickled_evil()
        if name.endswith("weights_config.json"):
            config = json.loads(data)
            for item in config["config"].values():
                item["use_pickle"] |= item["path_name"] == "weight_3"
            return json.dumps(config).encode()
        return data

    contents = with_change(path, change)
    assert Global("posix", "system") in contents.globals
    assert identify(contents).safety.verdict == "dangerous"


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/weights/weight_99",
        "archive/data/constants/opaque_obj_0",
        "archive/extra/hidden",
        "archive/data/sample_inputs/other.pt",
    ],
)
@pytest.mark.parametrize("make", [pickled_evil, lambda: pickle.dumps(Evil(), 2)])
def test_pickles_that_nothing_refers_to_are_looked_into(
    path: Path, name: str, make: Callable[[], bytes]
) -> None:
    write_zip(path, [*records_of(export_bytes()), (name, make())])
    contents = examine(path)
    assert Global("posix", "system") in contents.globals


def test_objects_among_the_constants_are_looked_into(path: Path) -> None:
    config = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    records = [
        (
            name,
            json.dumps({"config": {"o": config}}).encode() if "constants_config" in name else data,
        )
        for name, data in records_of(export_bytes())
    ]
    evil = ("archive/data/constants/opaque_obj_0", pickle.dumps([Evil()], 4))
    write_zip(path, [*records, evil])
    contents = examine(path)
    assert Global("posix", "system") in contents.globals
    assert contents.root["constants"]["o"][0].class_path == "posix.system"


# --- Files that are not as they should be --------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sizes": [{"as_int": 99}, {"as_int": 3}]}, "bytes of storage"),
        ({"sizes": [{"as_int": -1}, {"as_int": 3}]}, "not negative"),
        ({"sizes": [{"as_expr": {"expr_str": "s0"}}, {"as_int": 3}]}, "sizes is not known"),
        ({"sizes": 3}, "do not belong together"),
        ({"strides": [{"as_int": 3}]}, "do not belong together"),
        ({"strides": [{"as_int": 1 << 62}, {"as_int": 1}]}, "bytes of storage"),
        ({"storage_offset": {"as_int": 1 << 62}}, "bytes of storage"),
        ({"storage_offset": {"as_int": True}}, "sizes is not known"),
        ({"dtype": 99}, "its type 99 is unknown"),
        ({"dtype": "7"}, "its type 7 is unknown"),
        ({"layout": 1}, "its layout 1 is not that of plain bytes"),
    ],
)
def test_a_tensor_that_makes_no_sense_is_found(
    path: Path, fields: dict[str, Any], text: str
) -> None:
    contents = with_json(
        path, "weights_config.json", lambda c: meta_of(c, "lin.weight").update(fields)
    )
    (finding,) = [item for item in contents.findings if item.rule == "malformed-tensor"]
    assert (finding.severity, finding.place) == ("damaged", "lin.weight")
    assert text in finding.text
    assert "lin.weight" not in state_dict_of(contents, "state_dict")


@pytest.mark.parametrize("value", [None, 3, [], {"config": 3}, {"config": {"w": 3}}])
def test_a_config_of_any_form_is_described(path: Path, value: Any) -> None:
    def change(name: str, data: bytes) -> bytes:
        return json.dumps(value).encode() if name.endswith("weights_config.json") else data

    contents = with_change(path, change)
    assert contents.problem is None or "is no JSON object" in contents.problem.problem


def test_a_missing_record_is_found(path: Path) -> None:
    contents = with_change(path, lambda name, data: None if name.endswith("weight_2") else data)
    (finding,) = [item for item in contents.findings if item.rule == "missing-record"]
    assert (finding.place, finding.severity) == ("bn.weight", "damaged")


def test_weights_without_their_bytes_keep_their_shapes(path: Path) -> None:
    contents = with_change(path, lambda name, data: b"" if "weights/weight_" in name else data)
    entries = state_dict_of(contents, "state_dict")
    assert entries["lin.weight"].shape == (4, 3)
    assert {entry.storage.device for entry in entries.values()} == {"meta"}


def test_an_archive_of_another_format_is_not_read(path: Path) -> None:
    contents = with_change(path, lambda n, d: b"mtia" if n.endswith("archive_format") else d)
    assert isinstance(contents.problem, UnsupportedContent)
    assert "an archive of the unknown format 'mtia'" in str(contents.problem)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100_000, b'{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["models/model.json", "weights_config.json"])
def test_broken_json_is_damaged(path: Path, name: str, data: bytes) -> None:
    contents = with_change(path, lambda n, d: data if n.endswith(name) else d)
    assert isinstance(contents.problem, DamagedFile)
    assert f"record '{name}'" in str(contents.problem).replace("data/weights/model_", "")


def test_a_json_longer_than_allowed_is_not_parsed(path: Path) -> None:
    write_export(path)
    with pytest.raises(LimitReached, match="header_nbytes"):
        describe(path, limits=Limits(header_nbytes=5_000))


def test_json_of_any_form_is_described(path: Path) -> None:
    """Every value of the program's JSON is replaced in turn by one of another kind."""
    rng = random.Random(0)
    whole = json.loads(dict(records_of(export_bytes()))["archive/models/model.json"])
    for _ in range(60):
        program = json.loads(json.dumps(whole))
        spot: Any = program
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            key = rng.choice(keys)
            inner = spot[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
                spot[key] = rng.choice([None, 3, "x", [], {}, [1], {"a": 1}, -1, 1e400])
                break
            spot = inner
        data = json.dumps(program).encode()
        contents = with_change(path, lambda n, d, data=data: data if "models/" in n else d)
        assert contents.problem is None


def nested(data: bytes, levels: int) -> bytes:
    """Return an export whose sample input is an export, and so on."""
    for _ in range(levels):
        records: Records = [
            ("a/archive_format", b"pt2"),
            ("a/data/sample_inputs/model.pt", data),
            ("a/data/weights/model_weights_config.json", b'{"config": {}}'),
        ]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, part in records:
                archive.writestr(name, part)
        data = buffer.getvalue()
    return data


def test_exports_in_exports_are_not_followed_without_end(path: Path) -> None:
    path.write_bytes(nested(b"x", 30))
    contents = examine(path)
    depth, inner = 0, contents
    while inner.members:
        (inner,) = inner.members
        depth += 1
    assert depth == 4
    assert isinstance(inner.problem, LimitReached)
    assert identify(contents).safety.verdict == "ambiguous"


def test_only_directory_json_and_pickles_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for nbytes in (100_000, 4_000_000):
        sizes: list[int] = []
        read_at = InputFile.read_at

        def counting(
            self: InputFile, offset: int, nbytes: int, sizes: Any = sizes, read: Any = read_at
        ) -> bytes:
            sizes.append(nbytes)
            return bytes(read(self, offset, nbytes))

        with_change(path, lambda n, d, size=nbytes: d.ljust(size) if "weight_0" in n else d)
        with monkeypatch.context() as patch:
            patch.setattr(InputFile, "read_at", counting)
            describe(path)
        counts.append(sum(sizes))
    assert counts[1] < counts[0] + 100
