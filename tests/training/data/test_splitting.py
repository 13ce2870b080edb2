"""What is kept for validation, by the names alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.errors import WrongArgument
from torchkeep.training.data import split


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers())
def test_each_sample_is_in_one_part_and_each_class_of_two_in_both(labels, share, seed):
    names = [f"{label}/{at}.png" for at, label in enumerate(labels)]
    if max(map(labels.count, labels)) < 2:
        with pytest.raises(WrongArgument, match="no class has two images"):
            split(names, labels, share, seed=seed)
        return
    train, val = split(names, labels, share, seed=seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        kept = sum(labels[at] == label for at in val)
        assert kept == (0 if count == 1 else min(max(round(share * count), 1), count - 1))


def test_it_goes_by_the_names_whatever_their_order():
    names = [f"a/{number}.png" for number in range(50)]
    train, val = split(names, [0] * 50, 0.3)
    kept = {names[at] for at in val}
    turned = names[::-1]
    assert {turned[at] for at in split(turned, [0] * 50, 0.3)[1]} == kept
    assert {names[at] for at in split(names, [0] * 50, 0.3, seed=1)[1]} != kept
    assert len(train) == 35


def test_an_image_more_moves_one_other_at_the_most():
    names = [f"a/{number}.png" for number in range(50)]
    before = {names[at] for at in split(names, [0] * 50, 0.3)[1]}
    for extra in range(100):
        more = [*names, f"a/new-{extra}.png"]
        after = {more[at] for at in split(more, [0] * 51, 0.3)[1]}
        assert len(before - after) <= 1


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(WrongArgument, match="the share for validation is"):
        split(["a", "b"], [0, 0], share)
