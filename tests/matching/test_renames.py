"""matching.renames: rules of the user, and names that PyTorch has changed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.errors import WrongArgument
from torchkeep.matching.renames import KNOWN_RENAMES, other_names, rename

NAMES = st.lists(st.text("ab.*", min_size=1, max_size=6), unique=True, max_size=6)


@pytest.mark.parametrize(
    ("rules", "key", "name"),
    [
        ({"encoder.*": "*"}, "encoder.fc.weight", "fc.weight"),
        ({"*": "model.*"}, "fc.weight", "model.fc.weight"),
        ({"*.gamma": "*.weight"}, "norm.1.gamma", "norm.1.weight"),
        ({"a.*.b.*": "c.*.*"}, "a.1.b.2", "c.1.2"),
        ({"layers.*.attn.*": "layers.*.attention.*"}, "layers.0.attn.q", "layers.0.attention.q"),
        ({"a.*": "b.*", "*": "c.*"}, "a.x", "b.x"),
        ({"a.b": "x"}, "a.b", "x"),
        ({"a.*": "fixed"}, "a.b", "fixed"),
        ({"*.weight": "*"}, "a.\n.weight", "a.\n"),
    ],
)
def test_the_first_rule_that_fits_renames_a_key(rules, key, name) -> None:
    others = ["zz"] if "*" in rules and len(rules) > 1 else []
    assert rename([key, *others], rules)[key] == name


def test_a_dot_in_a_rule_is_a_dot() -> None:
    assert rename(["a.b", "axb"], {"a.b": "c"}) == {"a.b": "c", "axb": "axb"}


def test_two_keys_with_one_name_are_refused() -> None:
    with pytest.raises(WrongArgument, match=r"rename: 'a\.w' and 'b\.w' would both be called 'w'"):
        rename(["a.w", "b.w"], {"a.*": "*", "b.*": "*"})
    with pytest.raises(WrongArgument, match=r"'a\.w' and 'w' would both be called 'w'"):
        rename(["a.w", "w"], {"a.*": "*"})


def test_a_rule_that_fits_nothing_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"rename: the rule 'x\.\*' fits no key"):
        rename(["a"], {"x.*": "*"})
    with pytest.raises(WrongArgument, match=r"the rule 'a\.b' fits no key, or only those that an"):
        rename(["a.b"], {"a.*": "*", "a.b": "c"})


def test_a_star_that_stands_for_nothing_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"rename: '\*\.\*' has more \* than 'a\.\*'"):
        rename(["a.b"], {"a.*": "*.*"})


@given(NAMES)
def test_adding_a_prefix_and_dropping_it_changes_nothing(keys: list[str]) -> None:
    added = rename(keys, {"*": "p.*"} if keys else {})
    assert list(added.values()) == [f"p.{key}" for key in keys]
    back = rename(added.values(), {"p.*": "*"} if keys else {})
    assert list(back.values()) == keys


def test_every_known_rename_works_in_both_directions() -> None:
    for item in KNOWN_RENAMES:
        old, new = (f"conv.{text.format(name='weight')}" for text in (item.old, item.new))
        assert (new, item.what) in other_names(old)
        assert (old, item.what) in other_names(new)
        assert (item.new.format(name="w"), item.what) in other_names(item.old.format(name="w"))
    assert other_names("conv.kernel") == []


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_the_known_names_are_those_of_the_installed_torch(norm: str) -> None:
    old = getattr(torch.nn.utils, norm)(torch.nn.Linear(3, 4)).state_dict()
    new = getattr(torch.nn.utils.parametrizations, norm)(torch.nn.Linear(3, 4)).state_dict()
    for one, two in ((old, new), (new, old)):
        for name, tensor in one.items():
            found = [other for other, _ in other_names(name) if other in two]
            assert name in two or [two[other].shape for other in found] == [tensor.shape]
