"""Modules in a form of their own: NVIDIA's generators, which carry their source text."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchkeep.contents import Contents, Global, Object, Storage, TensorEntry, Value
from torchkeep.identify import Inspection, identify

WEIGHT = TensorEntry("float32", (2, 3), (3, 1), Storage("0", 24, 0))
STATE: dict[Value, Value] = {"z_dim": 512, "_parameters": {"weight": WEIGHT}, "_modules": {}}
RECONSTRUCT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")


def persistent(*args: Value) -> Object:
    return Object(RECONSTRUCT, args)


def found_in(root: Value) -> Inspection:
    return identify(Contents(Path("a.pkl"), 10_000, "pickle", root, globals=(RECONSTRUCT,)))


def test_nvidias_generators_are_modules_with_their_class_and_source() -> None:
    inner = persistent({"class_name": "Mapping", "module_src": "inner", "state": STATE})
    outer = {**STATE, "_modules": {"mapping": inner}}
    meta: Value = {"class_name": "Generator", "module_src": "outer", "state": outer}
    found = found_in({"G": persistent(meta), "G_ema": persistent(meta)})
    path, node = found.modules[0]
    assert (path, node.class_path, node.source) == ("G", "Generator", "outer")
    assert (node.attributes, list(node.state_dict())) == (
        {"z_dim": 512},
        ["weight", "mapping.weight"],
    )
    assert (node.children[0].class_path, node.children[0].source) == ("Mapping", "inner")
    assert [(item.name, item.role) for item in found.state_dicts] == [
        ("G", "other"),
        ("G_ema", "ema"),
    ]
    assert found.safety.verdict == "needs-trust"


@pytest.mark.parametrize(
    "args",
    [(), ("text",), ({},), ({"state": None},), ({"state": {"_parameters": 1, "_modules": {}}},)],
)
def test_what_only_looks_like_a_generator_is_none(args: tuple[Value, ...]) -> None:
    assert found_in([persistent(*args)]).modules == ()


def test_a_class_and_a_source_that_are_no_texts_are_left_out() -> None:
    meta: Value = {"class_name": 5, "module_src": None, "state": STATE}
    ((_, node),) = found_in(persistent(meta)).modules
    assert (node.class_path, node.source) == (str(RECONSTRUCT), None)
