"""State dicts are told from other tables of tensors, and the model's from its averages."""

from __future__ import annotations

import pytest

from effort import at_most
from torchkeep.contents import Array, DictObject, Storage, TensorEntry, Value
from torchkeep.identify.modules import ModuleNode
from torchkeep.identify.state_dicts import (
    is_state_dict,
    state_dict_of_mapping,
    state_dict_of_module,
)


def tensor(*shape: int, dtype: str = "float32") -> TensorEntry:
    stride = tuple(range(len(shape), 0, -1))
    return TensorEntry(dtype, shape, stride, Storage("0", 1 << 20, 0))


def ordered(items: dict[str, Value], *, from_torch: bool) -> DictObject:
    table = DictObject("collections.OrderedDict")
    table.update(items)
    if from_torch:
        table.attributes["_metadata"] = {}
    return table


def node(cls: str, **children: ModuleNode) -> ModuleNode:
    inner = tuple(children.values())
    weight = {"weight": tensor(2, 3)}
    return ModuleNode("", cls, {}, weight, {}, frozenset(), inner, None, None)


@pytest.mark.parametrize(
    "value",
    [
        {"fc.weight": tensor(2, 2)},
        {"weight": tensor(2, 2), "bias": tensor(2)},
        {"0.weight": tensor(2)},
        {"encoder.layers.0.attn$q.weight": tensor(2), "_extra_state": 3},
        {"decoder_weight": tensor(2)},
        {"prompt_embeddings": tensor(4, 8)},
        ordered({"x": tensor(2)}, from_torch=True),
        {"shadow_params": [tensor(2), tensor(3)], "decay": 0.9, "num_updates": 3},
    ],
)
def test_tables_of_parameters_are_state_dicts(value: Value) -> None:
    assert is_state_dict(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [tensor(2)],
        {"data": tensor(2), "labels": tensor(2)},
        {"fc.weight": tensor(2), "a": 1, "b": 2},
        {0: tensor(2)},
        {"a.b": 1, "c.d": 2},
        # Lightning's best_k_models: paths of files and their scores.
        {"runs/v0/epoch=0-step=4.ckpt": tensor()},
        {"epoch=0.5": tensor(), "val acc.1": tensor()},
        {"val/acc.mean": tensor()},
        ordered({"x": tensor(2)}, from_torch=False),
        {"shadow_params": [1, 2]},
        {"shadow_params": []},
    ],
)
def test_other_tables_are_none(value: Value) -> None:
    assert not is_state_dict(value)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("", "model"),
        ("model", "model"),
        ("state_dict", "model"),
        ("MODEL_STATE_DICT", "model"),
        ("state.model", "model"),
        ("generator", "other"),
        ("hyper_parameters.loss", "other"),
        ("ema", "ema"),
        ("state_dict_ema", "ema"),
        ("ema_state_dict", "ema"),
        ("model_ema", "ema"),
        ("netG_EMA", "ema"),
        ("gEma", "ema"),
        ("swa_model", "ema"),
        ("ema.state_dict", "ema"),
        ("shadow", "ema"),
        ("emanet", "other"),
        ("emails.model", "model"),
        ("optimizer.exp_avg", "other"),
        ("swallow", "other"),
    ],
)
def test_a_state_dict_is_what_its_name_says(name: str, role: str) -> None:
    assert state_dict_of_mapping(name, {"fc.weight": tensor(2)}).role == role


def test_the_counter_of_an_averaged_model_makes_it_one() -> None:
    table = {"n_averaged": tensor(dtype="int64"), "module.fc.weight": tensor(2, 3)}
    found = state_dict_of_mapping("model", table)
    assert (found.role, found.prefix, found.num_parameters) == ("ema", "module.", 6)


def test_averages_in_a_list_are_numbered() -> None:
    found = state_dict_of_mapping("ema", {"shadow_params": [tensor(2), tensor(3)], "decay": 0.9})
    assert found.role == "ema"
    assert list(found.entries) == ["shadow_params.0", "shadow_params.1"]
    assert found.num_parameters == 5
    # ... wherever they are kept
    assert state_dict_of_mapping("model", {"shadow_params": [tensor(2)]}).role == "ema"


@pytest.mark.parametrize(
    ("cls", "role"),
    [
        ("torch.optim.swa_utils.AveragedModel", "ema"),
        ("timm.utils.model_ema.ModelEmaV3", "ema"),
        ("ema_pytorch.ema_pytorch.EMA", "ema"),
        ("project.EmaNet", "ema"),
        ("project.Emanet", "model"),
        ("emanet.Net", "model"),
    ],
)
def test_a_pickled_average_is_known_by_its_class(cls: str, role: str) -> None:
    assert state_dict_of_module("", node(cls)).role == role


def test_what_can_not_be_trained_is_no_parameter() -> None:
    table = {
        "attn.weight": tensor(4, 4),
        "attn.relative_position_index": tensor(7, 7, dtype="int64"),
        "attn.mask": tensor(5, dtype="bool"),
        "bn.running_mean": tensor(3),
        "bn.num_batches_tracked": tensor(dtype="int64"),
        "quantized.weight": tensor(2, dtype="uint8"),
    }
    found = state_dict_of_mapping("", table)
    assert (found.num_parameters, found.num_tensors) == (18, 6)


def test_arrays_count_as_the_tensors_that_are_made_of_them() -> None:
    storage = Storage("", 24, None, data=bytes(24))
    table = {
        "a.weight": Array("float32", (2, 3), False, storage),
        "b.weight": Array("float32", (2, 3), True, storage),
    }
    assert is_state_dict(table)
    found = state_dict_of_mapping("model", table)
    assert found.entries["a.weight"] == TensorEntry("float32", (2, 3), (3, 1), storage)
    assert found.entries["b.weight"] == TensorEntry("float32", (2, 3), (1, 2), storage)
    assert (found.num_parameters, found.nbytes) == (12, 48)
    assert not is_state_dict({"data": table["a.weight"], "labels": table["b.weight"]})


def test_a_key_of_very_many_parts_costs_no_time() -> None:
    with at_most(50):
        assert not is_state_dict({"a." * 10_000 + "b/c": tensor(2)})
        assert is_state_dict({"a." * 10_000 + "b": tensor(2)})
