"""Archives of PyTorch 1.0 to 1.2 and of the C++ API are described as what PyTorch makes of them."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.building import Call, rules
from formats.samples_programs import (
    OLD_CODE,
    Records,
    bits,
    check_tensor,
    check_tensors,
    cpp_records,
    load_script,
    old_model,
    old_program_records,
    old_records,
    old_tensor_def,
    root_module,
    state_dict_of,
    torchscript_classes,
    write_zip,
)
from torchkeep.contents import Global, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.formats import describe, examine
from torchkeep.identify import identify
from torchkeep.pickles.limits import Limits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def model_of(path: Path, model: dict[str, Any], attributes: Any = (7,)) -> Any:
    write_zip(path, old_records(model, attributes))
    return describe(path)


# --- The same as PyTorch -------------------------------------------------------------------------


def old_state_dict() -> dict[str, torch.Tensor]:
    """Return what `old_records` holds: the child's weight is a part of the parent's."""
    whole = torch.arange(6.0)
    return {"w": whole.view(2, 3), "running": torch.arange(4), "0.weight": whole[3:]}


@pytest.mark.parametrize("make", [old_records, old_program_records])
def test_the_state_dict_is_that_of_the_tables(path: Path, make: Any) -> None:
    write_zip(path, make())
    contents = describe(path)
    check_tensors(state_dict_of(contents), old_state_dict())
    node = identify(contents).modules[0][1]
    entries = [entry for _, part in node.walk() for entry in part.parameters.values()]
    assert [(entry.is_parameter, entry.requires_grad) for entry in entries] == [(True, True)] * 2
    assert [list(part.buffers) for _, part in node.walk()] == [["running"], []]


def test_the_state_dict_of_a_newer_archive_is_that_of_the_loaded_module(path: Path) -> None:
    write_zip(path, cpp_records())
    contents = describe(path)
    loaded = load_script(path)
    check_tensors(state_dict_of(contents), loaded.state_dict())
    node = identify(contents).modules[0][1]
    flags = {
        f"{where}.{name}".lstrip("."): entry.requires_grad
        for where, part in node.walk()
        for name, entry in part.parameters.items()
    }
    assert flags == {name: item.requires_grad for name, item in loaded.named_parameters()}


def test_a_program_is_torchscript_and_anything_else_is_not(path: Path) -> None:
    write_zip(path, old_program_records())
    contents = describe(path)
    assert contents.container == "torchscript"
    assert contents.kind == "TorchScript program of PyTorch 1.0 to 1.2: model with forward"
    assert set(rules(contents)) == {("program", "needs-trust")}
    assert "def forward" in contents.sources["__torch__.model"]
    write_zip(path, old_records())
    contents = describe(path)
    assert (contents.container, contents.findings) == ("torch-cpp", ())
    assert contents.kind == "values saved by the C++ API of PyTorch 1.0 to 1.2"


def test_newer_archives_of_the_c_plus_plus_api_are_told_from_programs(path: Path) -> None:
    write_zip(path, cpp_records())
    contents = describe(path)
    assert (contents.container, contents.findings) == ("torch-cpp", ())
    assert contents.kind == "values saved by PyTorch's C++ API"
    method = b"  def forward(self) -> int:\n    return 1\n"
    records = [
        (name, data + method if name.endswith("__torch__.py") else data)
        for name, data in cpp_records()
    ]
    write_zip(path, records)
    assert describe(path).container == "torchscript"


def test_modules_are_named_by_their_place_as_pytorch_does(path: Path) -> None:
    write_zip(path, old_records())
    root = root_module(describe(path))
    assert root.class_path == "__torch__.model"
    assert root.state["_modules"]["0"].class_path == "__torch__.model._0"
    assert root.state["count"] == 7


def test_what_the_model_says_about_its_writer_is_kept(path: Path) -> None:
    write_zip(path, old_records())
    metadata = describe(path).metadata
    assert metadata["protoVersion"] == "3"
    assert (metadata["producerName"], metadata["version"]) == ("pytorch", "1")


def test_both_spellings_and_numbers_of_protobufs_json_are_read(path: Path) -> None:
    text = json.dumps(old_model())
    for camel, snake in (
        ("isBuffer", "is_buffer"),
        ("tensorId", "tensor_id"),
        ("mainModule", "main_module"),
        ("dataType", "data_type"),
        ("requiresGrad", "requires_grad"),
    ):
        text = text.replace(camel, snake)
    model = json.loads(text)
    model["tensors"][0]["dims"] = [2, 3]
    model["tensors"][1]["data_type"] = 10
    write_zip(path, old_records(model))
    check_tensors(state_dict_of(describe(path)), old_state_dict())


def test_fields_with_their_default_value_may_be_missing(path: Path) -> None:
    model = old_model()
    del model["mainModule"]["parameters"][0]["tensorId"]
    del model["mainModule"]["parameters"][0]["isBuffer"]
    del model["tensors"][0]["offset"]
    write_zip(path, old_records(model))
    check_tensors(state_dict_of(describe(path)), old_state_dict())


TYPES = {
    "FLOAT": torch.float32,
    "INT32": torch.int32,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT64": torch.int64,
    "FLOAT16": torch.float16,
    "DOUBLE": torch.float64,
}


def test_every_type_is_told_and_found(path: Path) -> None:
    tensors = {f"t{i}": torch.tensor([0, 1, 1]).to(dtype) for i, dtype in enumerate(TYPES.values())}
    model = old_model()
    model["mainModule"]["submodules"] = []
    model["mainModule"]["parameters"] = [
        {"isBuffer": True, "tensorId": str(i), "name": name} for i, name in enumerate(tensors)
    ]
    model["tensors"] = [old_tensor_def(f"tensors/{i}", (3,), kind) for i, kind in enumerate(TYPES)]
    records = [row for row in old_records(model) if "/tensors/" not in row[0]]
    records += [(f"model/tensors/{i}", bits(item)) for i, item in enumerate(tensors.values())]
    write_zip(path, records)
    check_tensors(state_dict_of(describe(path)), tensors)


def test_a_quantized_tensor_is_told_with_its_scale(path: Path) -> None:
    model = old_model()
    quantized = {"isQuantized": True, "scale": 0.5, "zeroPoint": "3"}
    model["tensors"][1] = old_tensor_def("tensors/1", (4,), "INT8", **quantized)
    entry = state_dict_of(model_of(path, model))["running"]
    assert (entry.dtype, entry.quantizer) == ("qint8", ("per_tensor_affine", 0.5, 3))


def test_attributes_refer_to_tensors_by_number(path: Path) -> None:
    import torch.jit._pickle

    model = old_model()
    model["mainModule"]["attributes"] = [
        {"type": "List[Tensor]", "name": "listed", "id": "0"},
        {"type": "Tensor", "name": "buffer", "id": "1"},
        {"type": "Optional[int]", "name": "none", "id": "-1"},
        {"type": "List[int]", "name": "ints", "id": "2"},
    ]
    by_id = torch.jit._pickle.build_tensor_from_id
    attributes = (
        [Call(by_id, (1,))],
        Call(by_id, (2,)),
        Call(torch.jit._pickle.build_intlist, ([1, 2],)),
    )
    contents = model_of(path, model, attributes)
    state = root_module(contents).state
    check_tensor("listed", state["listed"][0], torch.arange(4))
    assert (state["none"], state["ints"]) == (None, [1, 2])
    # At that time a buffer was an attribute like any other.
    assert list(state_dict_of(contents)) == ["w", "running", "buffer", "0.weight"]
    check_tensor("buffer", state["_buffers"]["buffer"], torch.arange(3.0) + 3)


def test_the_made_up_classes_of_1_1_are_understood(path: Path) -> None:
    with torchscript_classes(["__main__.TensorID", "__main__.IntList"]):
        data = (
            b"\x80\x02](c__main__\nTensorID\n)\x81K\x01bc__main__\nIntList\n)\x81](K\x04K\x05ebe."
        )
    model = old_model()
    model["protoVersion"] = "2"
    model["mainModule"]["attributes"] = [
        {"type": "Tensor", "name": "t", "id": "0"},
        {"type": "List[int]", "name": "ints", "id": "1"},
    ]
    state = root_module(model_of(path, model, data)).state
    check_tensor("t", state["_buffers"]["t"], torch.arange(4))
    assert state["ints"] == [4, 5]


def test_the_state_for_a_modules_own_setstate_is_shown(path: Path) -> None:
    model = old_model()
    main = model["mainModule"]
    main["getStateAttributeId"] = "0"
    main["parameters"][0]["tensorId"] = "-1"
    contents = model_of(path, model, (("state", 1),))
    assert root_module(contents).state["__getstate__"] == ("state", 1)
    assert list(state_dict_of(contents)) == ["running", "0.weight"]


# --- What PyTorch 1.2.0 wrote --------------------------------------------------------------------

WRITTEN_BY_1_2 = (
    '{"protoVersion":"5","mainModule":{"submodules":[{"submodules":[{"torchscriptArena":{'
    '"key":"code/script_a_lin.py"},"parameters":[{"isBuffer":false,"tensorId":"2","name":'
    '"bias"},{"isBuffer":false,"tensorId":"3","name":"weight"}],"name":"lin","optimize":t'
    'rue,"attributes":[{"type":"List[str]","name":"__constants__","id":"5"}],"torchscript'
    'DebugArena":{"key":"debug/script_a_lin.pkl"}}],"torchscriptArena":{"key":"code/scrip'
    't_a.py"},"name":"a","optimize":true,"attributes":[{"type":"List[int]","name":"names"'
    ',"id":"2"},{"type":"Tensor","name":"scale","id":"3"},{"type":"List[str]","name":"__c'
    'onstants__","id":"4"}],"torchscriptDebugArena":{"key":"debug/script_a.pkl"}}],"torch'
    'scriptArena":{"key":"code/script.py"},"parameters":[{"isBuffer":false,"tensorId":"0"'
    ',"name":"frozen"},{"isBuffer":false,"tensorId":"1","name":"w"}],"name":"script","opt'
    'imize":true,"attributes":[{"type":"List[Tensor]","name":"tl","id":"0"},{"type":"Tens'
    'or","name":"running","id":"1"}],"torchscriptDebugArena":{"key":"debug/script.pkl"}},'
    '"producerName":"pytorch","producerVersion":"1.0","tensors":[{"dims":["2"],"offset":"'
    '0","strides":["1"],"requiresGrad":false,"dataType":"FLOAT","data":{"key":"tensors/0"'
    '},"device":"cpu","isQuantized":false},{"dims":["3","2"],"offset":"0","strides":["1",'
    '"3"],"requiresGrad":true,"dataType":"FLOAT","data":{"key":"tensors/1"},"device":"cpu'
    '","isQuantized":false},{"dims":["4"],"offset":"0","strides":["1"],"requiresGrad":tru'
    'e,"dataType":"FLOAT","data":{"key":"tensors/2"},"device":"cpu","isQuantized":false},'
    '{"dims":["4","3"],"offset":"0","strides":["3","1"],"requiresGrad":true,"dataType":"F'
    'LOAT","data":{"key":"tensors/3"},"device":"cpu","isQuantized":false},{"dims":["2"],"'
    'offset":"0","strides":["1"],"requiresGrad":false,"dataType":"FLOAT","data":{"key":"t'
    'ensors/4"},"device":"cpu","isQuantized":false},{"dims":["4"],"offset":"0","strides":'
    '["1"],"requiresGrad":false,"dataType":"INT64","data":{"key":"tensors/5"},"device":"c'
    'pu","isQuantized":false},{"dims":["2"],"offset":"0","strides":["1"],"requiresGrad":f'
    'alse,"dataType":"FLOAT","data":{"key":"tensors/6"},"device":"cpu","isQuantized":fals'
    "e}]}"
)
ATTRIBUTES_OF_1_2 = (
    b"\x80\x02(ctorch.jit._pickle\nbu"
    b"ild_tensorlist\nq\x00(](ctor"
    b"ch.jit._pickle\nbuild_ten"
    b"sor_from_id\nq\x01(K\x04tRq\x02etR"
    b"q\x03h\x01(K\x05tRq\x04ctorch.jit._p"
    b"ickle\nbuild_intlist\nq\x05(]"
    b"(K\x01K\x02K\x03etRq\x06h\x01(K\x06tRq\x07](X"
    b"\x01\x00\x00\x00kq\x08eq\t](X\x04\x00\x00\x00biasq\nX"
    b"\x0b\x00\x00\x00in_featuresq\x0bX\x0c\x00\x00\x00ou"
    b"t_featuresq\x0ceq\rt."
)


def test_the_tables_that_pytorch_1_2_wrote_are_understood(path: Path) -> None:
    """The JSON and the pickle are those of a module that was saved by PyTorch 1.2.0."""
    shapes = [(2,), (3, 2), (4,), (4, 3), (2,), (4,), (2,)]
    nbytes = [8, 24, 16, 48, 8, 32, 8]
    records = [
        ("script/version", b"1\n"),
        *((f"script/code/{name}.py", OLD_CODE) for name in ("script", "script_a", "script_a_lin")),
        ("script/attributes.pkl", ATTRIBUTES_OF_1_2),
        *((f"script/tensors/{i}", bytes([i]) * size) for i, size in enumerate(nbytes)),
        ("script/model.json", WRITTEN_BY_1_2.encode()),
    ]
    write_zip(path, records)
    contents = describe(path)
    assert set(rules(contents)) == {("program", "needs-trust")}
    entries = state_dict_of(contents)
    expected = {"frozen": 0, "w": 1, "running": 5, "a.scale": 6, "a.lin.bias": 2, "a.lin.weight": 3}
    assert list(entries) == list(expected)
    for name, index in expected.items():
        assert entries[name].storage.key == f"tensors/{index}", name
        assert entries[name].shape == shapes[index], name
    assert entries["w"].stride == (1, 3)
    assert [name for name, entry in entries.items() if entry.is_parameter] == [
        *("frozen", "w", "a.lin.bias", "a.lin.weight")
    ]
    assert not entries["frozen"].requires_grad
    root = root_module(contents)
    assert root.state["tl"][0].storage.key == "tensors/4"
    assert root.state["_modules"]["a"].state["names"] == [1, 2, 3]


# --- Files that are not as they should be --------------------------------------------------------


def broken(change: Any) -> dict[str, Any]:
    model = copy.deepcopy(old_model())
    change(model)
    return model


def set_tensor(index: int, **fields: Any) -> Any:
    return lambda model: model["tensors"][index].update(fields)


def set_parameter(**fields: Any) -> Any:
    return lambda model: model["mainModule"]["parameters"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (set_tensor(0, dims=["7", "7"], strides=["7", "1"]), "needs 196 bytes of storage"),
        (set_tensor(0, offset="-1"), "do not belong together"),
        (set_tensor(0, offset=str(1 << 62)), "bytes of storage"),
        (set_tensor(0, strides=["1"]), "do not belong together"),
        (set_tensor(0, dataType="STRING"), "its type 'STRING' is unknown"),
        (set_tensor(0, dataType=99), "its type '99' is unknown"),
        (set_tensor(0, dataType=None), "its type 'None' is unknown"),
        (set_tensor(0, isQuantized=True), "there is no quantized float32"),
        (set_tensor(0, data={}), "it lies in no record"),
        (set_tensor(0, data={"key": 3}), "it lies in no record"),
        (set_tensor(1, data={"key": "tensors/9"}), "bytes of storage"),
    ],
)
def test_a_tensor_that_makes_no_sense_is_found(path: Path, change: Any, text: str) -> None:
    contents = model_of(path, broken(change))
    (finding,) = [item for item in contents.findings if item.rule == "malformed-tensor"]
    assert finding.severity == "damaged"
    assert text in finding.text
    assert len(state_dict_of(contents)) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.update(tensors={}), "no list where tensors belongs"),
        (lambda m: m.update(tensors=[3]), "a plain value where a message belongs"),
        (lambda m: m.update(mainModule=[]), "a plain value where a message belongs"),
        (set_tensor(0, dims=["x"]), "'x' where a number belongs"),
        (set_tensor(0, dims=[True]), "'True' where a number belongs"),
        (set_tensor(0, dims=[str(1 << 63)]), "where a number belongs"),
        (set_tensor(0, offset="9" * 5_000), "where a number belongs"),
        (
            lambda m: m["mainModule"]["parameters"][0].update(tensorId="3"),
            "value 3 of a table of 3",
        ),
        (lambda m: m["mainModule"]["parameters"][0].update(tensorId="-2"), "value -2"),
        (lambda m: m["mainModule"]["attributes"][0].update(id="1"), "value 1 of a table of 1"),
    ],
)
def test_a_model_that_contradicts_itself_is_damaged(path: Path, change: Any, text: str) -> None:
    write_zip(path, old_records(broken(change)))
    with pytest.raises(DamagedFile) as caught:
        describe(path)
    assert text in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_a_model_that_is_no_json_object_is_damaged(path: Path, data: bytes) -> None:
    records = [(n, data if n.endswith("model.json") else d) for n, d in old_records()]
    write_zip(path, records)
    with pytest.raises(DamagedFile, match=r"record 'model\.json'"):
        describe(path)


def test_without_the_model_it_is_damaged(path: Path) -> None:
    write_zip(path, [row for row in old_records() if not row[0].endswith(".json")])
    with pytest.raises(DamagedFile, match=r"no record model\.json"):
        describe(path)


def test_a_json_longer_than_allowed_is_not_parsed(path: Path) -> None:
    write_zip(path, old_records())
    with pytest.raises(LimitReached, match="header_nbytes"):
        describe(path, limits=Limits(header_nbytes=700))


def test_names_of_nested_modules_do_not_add_up(path: Path) -> None:
    model = old_model()
    module = model["mainModule"]
    for _ in range(200):
        module["submodules"] = [{"name": "x" * 2_000}]
        module = module["submodules"][0]
    write_zip(path, old_records(model))
    with pytest.raises(LimitReached, match="modules are nested deeper"):
        describe(path)


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def test_names_in_the_pickles_are_told(path: Path) -> None:
    evil = pickle.dumps((Evil(),), 2)
    records = [(n, evil if n.endswith("attributes.pkl") else d) for n, d in old_records()]
    write_zip(path, records)
    assert Global("posix", "system") in describe(path).globals
    write_zip(path, [*old_records(), ("model/debug/model.pkl", evil)])
    contents = describe(path)
    assert Global("posix", "system") in contents.globals
    assert identify(contents).safety.verdict == "dangerous"


def flipped(records: Records, rng: random.Random) -> Records:
    index = rng.randrange(len(records))
    name, data = records[index]
    damaged = bytearray(data)
    damaged[rng.randrange(len(damaged))] ^= rng.randint(1, 255)
    return [*records[:index], (name, bytes(damaged)), *records[index + 1 :]]


@pytest.mark.parametrize("make", [old_records, old_program_records, cpp_records])
def test_a_flipped_byte_under_a_right_checksum_breaks_nothing(path: Path, make: Any) -> None:
    rng = random.Random(0)
    for _ in range(150):
        write_zip(path, flipped(make(), rng))
        contents = examine(path)
        if contents.problem is not None:
            continue
        try:
            tensors = identify(contents).tensors()
        except FileProblem:
            continue
        for named in tensors:
            assert isinstance(named.entry, TensorEntry)
            assert named.entry.nbytes_needed <= named.entry.storage.nbytes
