"""The names that are used without asking: each is there, and none does more than compute."""

from __future__ import annotations

import importlib

import pytest

from torchkeep.contents import Global
from torchkeep.identify.known_parts import CALLS, CLASSES, FUNCTIONS, MODULES, is_known


@pytest.mark.parametrize("path", sorted(CLASSES | CALLS | set(MODULES)))
def test_each_class_and_module_is_there(path: str):
    if path.partition(".")[0] in ("torchvision", "timm"):
        pytest.importorskip(path.partition(".")[0])
    if path in MODULES:
        importlib.import_module(path)
        return
    module, _, name = path.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_nearly_all_functions_are_there():
    # Names come and go with the releases; a list of names that are nowhere is of no use.
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    missing = [path for path in FUNCTIONS if path.count(".") < 4 and not is_there(path)]
    assert len(missing) < len(FUNCTIONS) / 2
    here = {path.rpartition(".")[2] for path in FUNCTIONS if is_there(path)}
    assert {path.rpartition(".")[2] for path in FUNCTIONS} - here <= {"celu_", "logsigmoid"}


def is_there(path: str) -> bool:
    module, _, name = path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:  # a class in C, whose methods are meant
        outer, _, cls = module.rpartition(".")
        return hasattr(getattr(importlib.import_module(outer), cls), name)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.save",
        "timm.models.load_checkpoint",
        "timm.models._helpers.load_checkpoint",
        "torch.nn.modules.module.register_module_forward_hook",
        "builtins.eval",
        "builtins.open",
        "functools.reduce",
    ],
)
def test_a_function_that_does_more_than_compute_is_not_known(path: str):
    assert not is_known(Global(*path.rsplit(".", 1)), is_module=False)


def test_a_class_of_modules_is_known_where_the_three_libraries_have_theirs():
    assert is_known(Global("timm.layers.norm", "LayerNorm"), is_module=True)
    assert not is_known(Global("timm.layersx", "LayerNorm"), is_module=True)
    assert not is_known(Global("torch.nn.parallel", "DataParallel"), is_module=True)
