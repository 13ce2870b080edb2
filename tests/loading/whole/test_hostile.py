"""Whole models that want more than to be rebuilt: refused by name, before anything is made."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from torchkeep.contents import DictObject, Global, Object
from torchkeep.errors import ClassesMissing, DamagedFile, UnsafeContent, UnsupportedContent
from torchkeep.formats.own.metadata import STRUCTURE
from torchkeep.formats.own.whole import Structure, write_structure
from torchkeep.loading import load_model
from torchkeep.loading.whole.building import Builder
from torchkeep.saving import save, write_safetensors

timm_models = pytest.importorskip("timm.models")


class Recipe:
    """Pickles as the call that it was given."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return self.reduced


@pytest.fixture(params=["ours.safetensors", "ours.pth", "zip.pt", "legacy.pt"])
def saved(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[nn.Module], Path]:
    """Return what saves a model, as data or as a pickle; nothing may be built of it."""

    def write(model: nn.Module) -> Path:
        path = tmp_path / request.param
        if path.stem == "ours":
            save(model, path, whole=True)
        else:
            is_zip = path.stem == "zip"
            torch.save(model, path, _use_new_zipfile_serialization=is_zip)
        monkeypatch.setattr(Builder, "build", lambda *_: pytest.fail("something was built"))
        return path

    return write


def with_attribute(name: str, value: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    vars(model[0])[name] = value
    return model


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (os.system, f"{os.name}.system"),
        (eval, "builtins.eval"),
        (torch.hub.load, "torch.hub.load"),
        (functools.partial(os.system, "true"), f"{os.name}.system"),
        (functools.partial(functools.partial(functional.relu), os.system), f"{os.name}.system"),
        ({"a": [(1, {os.system})]}, f"{os.name}.system"),
        (Recipe(os.system, ("true",)), f"{os.name}.system"),
        (Recipe(nn.Linear, (1, 1), {"x": os.system}), f"{os.name}.system"),
        (Recipe(torch.load, ("x",)), "torch.serialization.load"),
    ],
)
def test_a_name_that_no_model_needs_is_refused(
    saved: Callable[[nn.Module], Path], value: object, name: str
):
    path = saved(with_attribute("act", value))
    with pytest.raises(UnsafeContent) as caught:
        load_model(path, trust=("torch", "os", os.name, "builtins"), run_source=True)
    assert f"the model asks for {name} at '0" in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "Nothing was built." in str(caught.value)


def test_a_function_of_timm_that_loads_files_is_not_among_the_known_ones(
    saved: Callable[[nn.Module], Path],
):
    path = saved(with_attribute("act", timm_models.load_checkpoint))
    with pytest.raises((ClassesMissing, UnsafeContent), match="load_checkpoint"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("forward", functional.relu, "0 has an attribute 'forward' in place of the method"),
        ("forward", functools.partial(functional.relu), "in place of the method"),
        ("extra_repr", torch.tanh, "0 has an attribute 'extra_repr' in place of the method"),
        ("_call_impl", functional.relu, "an attribute of 0 is called _call_impl"),
        ("_wrapped_call_impl", functional.relu, "an attribute of 0 is called _wrapped_call_impl"),
        ("__class__", 1, "an attribute of 0 is called __class__"),
        ("__dict__", {}, "an attribute of 0 is called __dict__"),
        ("__call__", functional.relu, "an attribute of 0 is called __call__"),
        ("act", Recipe(functional.relu, (1,)), "0.act is made by calling torch.nn.functional.relu"),
        ("act", Recipe(nn.Linear, (1, 1)), "0.act is a torch.nn.modules.linear.Linear without"),
    ],
)
def test_an_attribute_that_is_more_than_data_is_refused(
    saved: Callable[[nn.Module], Path], name: str, value: object, problem: str
):
    path = saved(with_attribute(name, value))
    with pytest.raises(UnsafeContent) as caught:
        load_model(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize("method", ["load_state_dict", "register_forward_hook", "__init__"])
def test_a_method_that_every_module_has_can_not_be_held(
    saved: Callable[[nn.Module], Path], method: str
):
    model = nn.Sequential(nn.Linear(2, 2))
    vars(model[0])["act"] = Recipe(getattr, (model, method))
    with pytest.raises(UnsafeContent, match=r"0\.act is "):
        load_model(saved(model))


@pytest.mark.parametrize(
    ("table", "key", "value", "problem"),
    [
        ("_parameters", "weight", 3, "'weight' in _parameters of 0 is something else"),
        ("_buffers", "x.y", torch.ones(1), "_buffers of 0 has 'x.y', which is no name"),
        ("_modules", "a", functional.relu, "'a' in _modules of 0 is something else"),
        ("_modules", "__class__", nn.ReLU(), "_modules of 0 has '__class__', which is no name"),
    ],
)
def test_a_table_holds_tensors_or_modules_under_names(
    tmp_path: Path, table: str, key: str, value: object, problem: str
):
    model = nn.Sequential(nn.Linear(2, 2))
    vars(model[0])[table] = {**vars(model[0])[table], key: value}
    path = tmp_path / "model.pt"
    torch.save(model, path)
    with pytest.raises(UnsafeContent) as caught:
        load_model(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("training", 1), ("_forward_hooks", [1]), ("_non_persistent_buffers_set", {1})],
)
def test_what_every_module_has_is_of_its_kind(tmp_path: Path, name: str, value: object):
    path = tmp_path / "model.pt"
    torch.save(with_attribute(name, value), path)
    with pytest.raises(UnsafeContent, match=f"{name} of 0 is not what a module has there"):
        load_model(path)


def test_a_traced_model_brings_its_own_code_and_is_not_rebuilt(tmp_path: Path):
    path = tmp_path / "model.pt"
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    torch.save(nn.Sequential(traced), path)
    with pytest.raises((UnsafeContent, ClassesMissing), match="reduce_graph_module"):
        load_model(path)


def test_a_tensor_that_repeats_one_element_without_end_is_refused(tmp_path: Path):
    model = nn.Linear(1, 1)
    model.register_buffer("endless", torch.ones(1).expand(1 << 40))
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(UnsafeContent) as caught:
        load_model(tmp_path / "model.pt")
    assert "endless makes 4,398,046,511,104 bytes out of 4 in the file" in str(caught.value)


def test_many_tensors_that_repeat_one_element_are_refused_together(tmp_path: Path):
    model = nn.Sequential(nn.Linear(1, 1))
    for number in range(9):
        model.register_buffer(f"long{number}", torch.ones(1).expand(1 << 25))
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(UnsafeContent) as caught:
        load_model(tmp_path / "model.pt")
    assert "makes 134,217,728 bytes out of 4 in the file" in str(caught.value)


def test_a_program_of_torchscript_is_refused_with_what_to_do(tmp_path: Path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is leaving
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(UnsupportedContent) as caught:
        load_model(path)
    assert "a program of TorchScript, which has no classes in Python" in str(caught.value)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return a package of the user's with a class that would run something."""
    made = types.ModuleType("mine")

    class Config:
        def __init__(self, command: str) -> None:
            pytest.fail(f"{command} would be run")

    for cls in (Config,):
        cls.__module__, cls.__qualname__ = "mine", cls.__name__
        setattr(made, cls.__name__, cls)
    made.listing = shutil.rmtree
    monkeypatch.setitem(sys.modules, "mine", made)
    return made


def test_a_trusted_class_is_not_called_with_what_a_stranger_wrote(
    saved: Callable[[nn.Module], Path], package: types.ModuleType
):
    path = saved(with_attribute("config", Recipe(package.Config, ("rm",))))
    with pytest.raises(UnsafeContent) as caught:
        load_model(path, trust=("mine",))
    problem = "0.config is made by calling mine.Config with arguments from the file"
    assert f"{problem}. Give the class itself in classes= to allow that." in str(caught.value)


def described(path: Path, root: Object) -> Path:
    """Write a file of ours with this structure."""
    write_safetensors({}, path, metadata={STRUCTURE: write_structure(Structure(root))})
    return path


def module(**attributes: object) -> Object:
    tables = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    cls = Global("torch.nn.modules.module", "Module")
    return Object(cls, (), state={"training": True, **tables, **attributes})


def test_what_a_trusted_package_imported_from_elsewhere_is_not_trusted(
    tmp_path: Path, package: types.ModuleType
):
    path = described(tmp_path / "ours.safetensors", module(act=Global("mine", "listing")))
    with pytest.raises(ClassesMissing) as caught:
        load_model(path, trust=("mine",))
    assert caught.value.names == ("mine.listing",)


@pytest.mark.parametrize("name", ["torch.hub", "timm.models", "torch.nn.modules.os"])
def test_a_module_of_python_is_no_part_of_a_model(tmp_path: Path, name: str):
    path = described(tmp_path / "ours.safetensors", module(act=Global(*name.rsplit(".", 1))))
    with pytest.raises((ClassesMissing, UnsafeContent), match=name):
        load_model(path)


def test_a_name_may_not_lead_through_a_module(tmp_path: Path):
    name = Global("torch.nn.modules.linear", "init.math.floor")
    path = described(tmp_path / "ours.safetensors", module(act=name))
    with pytest.raises((ClassesMissing, UnsafeContent), match=r"init\.math\.floor"):
        load_model(path)


def test_calling_what_the_file_made_is_refused(tmp_path: Path):
    made = Object(Object(Global("functools", "partial"), ()), ())
    with pytest.raises(UnsafeContent, match="act is made by calling what the file made itself"):
        load_model(described(tmp_path / "ours.safetensors", module(act=made)))


def _nested(depth: int) -> tuple[object, ...]:
    made: tuple[object, ...] = ()
    for _ in range(depth):
        made = (made, made)  # 2 ** depth to a hash, and few bytes in the file
    return made


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("builtins.tuple", (Object(Global("builtins", "range"), (1 << 60,)),)),
        ("collections.deque", (Object(Global("builtins", "range"), (1 << 60,)),)),
        ("torch.Size", (Object(Global("builtins", "range"), (1 << 60,)),)),
        ("builtins.tuple", (_nested(60),)),
        ("torch.nn.utils.parametrizations._OrthMaps", (_nested(60),)),
    ],
)
def test_a_call_that_costs_more_than_its_bytes_is_refused(
    tmp_path: Path, name: str, args: tuple[object, ...]
):
    made = Object(Global(*name.rsplit(".", 1)), args)
    path = described(tmp_path / "ours.safetensors", module(table={made: 1}))
    with pytest.raises(UnsafeContent) as caught:
        load_model(path)
    assert f"table is made by calling {name} with what is not plain" in str(caught.value)


def test_what_plain_calls_make_comes_back(tmp_path: Path):
    size = Object(Global("torch", "Size"), ((2, 3),))
    queue = Object(Global("collections", "deque"), ((), 4), items=[1, 2])
    model = load_model(described(tmp_path / "ours.safetensors", module(size=size, queue=queue)))
    assert model.size == torch.Size((2, 3))
    assert (list(model.queue), model.queue.maxlen) == ([1, 2], 4)


def test_a_method_that_reads_files_can_not_be_held(tmp_path: Path):
    model = module()
    model.callee = Global("timm.models.vision_transformer", "VisionTransformer")
    bound = Object(Global("builtins", "getattr"), (model, "load_pretrained"))
    path = described(tmp_path / "ours.safetensors", module(_modules={"0": model}, act=bound))
    with pytest.raises(UnsafeContent, match="act is 'load_pretrained' of a module"):
        load_model(path)


def test_names_of_a_file_say_nothing_to_the_terminal(tmp_path: Path):
    path = described(tmp_path / "ours.safetensors", module(act=Global("a\x1b[2J", "b\n")))
    with pytest.raises(ClassesMissing) as caught:
        load_model(path)
    assert r"not known here: a\x1b[2J.b\n." in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("state", [None, (1, (), {}, None), ("x", (), {}, {"a": 1})])
def test_a_partial_of_an_unknown_form_is_refused(tmp_path: Path, state: object):
    made = Object(Global("functools", "partial"), (), state=state)
    with pytest.raises(UnsafeContent, match=r"act is a functools\.partial of "):
        load_model(described(tmp_path / "ours.safetensors", module(act=made)))


def test_a_mapping_of_another_class_is_refused(tmp_path: Path):
    path = described(tmp_path / "ours.safetensors", module(table=DictObject("os.environ")))
    with pytest.raises(UnsafeContent, match=r"table is a os\.environ, which is no known mapping"):
        load_model(path)


def test_a_root_that_is_no_module_is_refused(tmp_path: Path):
    path = described(tmp_path / "x.safetensors", Object(Global("torch", "device"), ("cpu",)))
    with pytest.raises(UnsafeContent, match="the model is no module"):
        load_model(path)


def test_a_module_that_holds_itself_is_built_and_a_deep_one_is_refused(tmp_path: Path):
    loop = module()
    loop.state["parent"] = [loop]
    model = load_model(described(tmp_path / "loop.safetensors", loop))
    assert model.parent[0] is model
    chain = tmp_path / "deep.safetensors"
    nodes = [{"list": [[place + 1]]} for place in range(100_000)] + [{"list": []}]
    table = {"version": 1, "root": [0], "nodes": nodes, "sources": {}, "libraries": {}}
    write_safetensors({}, chain, metadata={STRUCTURE: json.dumps(table)})
    with pytest.raises(DamagedFile, match="nested too deeply"):
        load_model(chain)
