"""matching/names.py: keys meet by name, through wrappers, prefixes and renames."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.errors import WrongArgument
from torchkeep.matching.names import match_names, prefixes


def pairs(source: list[str], target: list[str], **kwargs) -> dict[str, str]:
    """Return the model's keys with the file's."""
    return match_names(source, dict(zip(target, target, strict=True)), **kwargs).pairs


@pytest.mark.parametrize("before", ["", "module.", "module.module.", "_orig_mod.module."])
@pytest.mark.parametrize("after", ["", "module.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_wrappers_before_all_keys_do_not_matter(before: str, after: str) -> None:
    names = ["fc.weight", "fc.bias", "a.b.c"]
    found = pairs([before + name for name in names], [after + name for name in names])
    assert found == {after + name: before + name for name in names}


def test_wrappers_further_down_do_not_matter() -> None:
    source = ["backbone.module.a", "blocks.0._checkpoint_wrapped_module.b", "c"]
    assert pairs(source, ["backbone.a", "blocks.0.b", "c"]) == {
        "backbone.a": "backbone.module.a",
        "blocks.0.b": "blocks.0._checkpoint_wrapped_module.b",
        "c": "c",
    }
    assert pairs(["backbone.a"], ["backbone._orig_mod.module.a"]) == {
        "backbone._orig_mod.module.a": "backbone.a"
    }


def test_a_part_of_the_model_that_is_called_module_is_no_wrapper() -> None:
    names = ["module.fc.weight", "module.fc.bias"]
    assert pairs(names, names) == {name: name for name in names}
    inner = ["fc.weight", "module.fc.weight"]
    assert pairs([f"module.{name}" for name in inner], inner) == {
        name: f"module.{name}" for name in inner
    }


def test_a_key_that_fits_two_places_alike_fits_none() -> None:
    assert pairs(["x.y.a"], ["x.module.y.a", "x.y.module.a"]) == {}
    assert pairs(["x.module.y.a", "x.y.module.a"], ["x.y.a"]) == {}


def test_one_prefix_comes_off_either_side() -> None:
    names = ["fc.weight", "fc.bias"]
    assert pairs([f"model.{name}" for name in names] + ["loss.w"], names) == {
        name: f"model.{name}" for name in names
    }
    assert pairs(names, [f"net.backbone.{name}" for name in names]) == {
        f"net.backbone.{name}": name for name in names
    }


def test_a_prefix_that_is_not_alone_stays() -> None:
    source = ["gen.a.w", "gen.b.w", "dis.a.w", "dis.b.w"]
    assert pairs(source, ["a.w", "b.w"]) == {}


def test_a_prefix_that_brings_less_than_half_together_stays() -> None:
    assert pairs(["model.a", "model.b"], ["a", "x", "y"]) == {}


def test_names_that_pytorch_has_changed_meet() -> None:
    old = ["conv.weight_g", "conv.weight_v", "conv.bias", "norm.gamma"]
    new = [
        "conv.parametrizations.weight.original0",
        "conv.parametrizations.weight.original1",
        "conv.bias",
        "norm.weight",
    ]
    found = match_names(old, dict(zip(new, new, strict=True)))
    assert found.pairs == dict(zip(new, old, strict=True))
    assert found.renamed == ("weight_norm", "gamma and beta")
    assert pairs(new, old) == dict(zip(old, new, strict=True))


def test_parts_of_different_norms_do_not_meet() -> None:
    assert pairs(["a.parametrizations.weight.original1"], ["a.parametrizations.weight.0._v"]) == {}


def test_the_users_rules_come_first() -> None:
    found = match_names(["module.encoder.a", "module.b"], {"a": "a", "b": "b"}, {"encoder.*": "*"})
    assert found.pairs == {"a": "module.encoder.a", "b": "module.b"}
    assert found.source == {"module.encoder.a": "a", "module.b": "b"}


def test_rules_may_be_written_for_the_keys_as_they_stand() -> None:
    assert pairs(["module.x"], ["y"], rules={"module.x": "y"}) == {"y": "module.x"}


def test_an_idle_rule_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"rename: the rule 'zz\.\*' fits no key"):
        pairs(["a"], ["a"], rules={"zz.*": "*"})


def test_prefixes_are_counted() -> None:
    assert prefixes(["a.x", "a.y", "b.x", "c"], {"x", "y"}) == [("a.", 2), ("b.", 1)]


PARTS = st.sampled_from(["a", "b", "module", "_orig_mod", "weight_g", "gamma", "model"])
KEYS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), unique=True, max_size=7)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(KEYS, KEYS)
def test_no_key_meets_two(source: list[str], target: list[str]) -> None:
    found = match_names(source, dict(zip(target, target, strict=True)))
    assert set(found.pairs) <= set(target)
    assert len(set(found.pairs.values())) == len(found.pairs)
    assert set(found.pairs.values()) <= set(source)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(KEYS)
def test_the_same_keys_meet_as_they_are(keys: list[str]) -> None:
    assert pairs(keys, keys) == {key: key for key in keys}
