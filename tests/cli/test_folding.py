from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.cli.folding import MAX_ENDINGS, Fold, fold


def patterns(names: list[str] | dict[str, object]) -> list[str]:
    shared = names if isinstance(names, dict) else dict.fromkeys(names)
    return [str(pattern) for pattern, _ in fold(shared)]


def test_layers_of_one_shape_become_a_range():
    names = [f"layers.{number}.attention.weight" for number in range(12)]
    assert patterns(names) == ["layers.{0...11}.attention.weight"]


def test_numbers_at_several_places_become_several_ranges():
    names = [f"layer1.{block}.conv{conv}.weight" for block in (0, 1) for conv in (1, 2)]
    assert patterns(names) == ["layer1.{0...1}.conv{1...2}.weight"]


def test_a_layer_of_another_shape_stands_alone():
    shapes = {f"layer.{number}.weight": (64,) for number in range(5)}
    shapes["layer.2.weight"] = (32,)
    assert patterns(shapes) == ["layer.{0...1}.weight", "layer.2.weight", "layer.{3...4}.weight"]


def test_a_gap_in_the_numbers_is_not_bridged():
    assert patterns(["a.0.w", "a.1.w", "a.3.w"]) == ["a.{0...1}.w", "a.3.w"]


def test_parts_of_one_layer_share_a_row():
    names = ["bn.weight", "bn.bias", "bn.running_mean"]
    assert patterns(names) == ["bn.{weight,bias,running_mean}"]


def test_layers_of_another_kind_share_no_row_even_if_the_shape_is_the_same():
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean"]
    assert patterns(names) == ["0.{weight,bias}", "1.{weight,bias,running_mean}"]


def test_many_endings_are_spread_over_rows():
    rows = fold(dict.fromkeys(f"statistics.{chr(97 + number)}" for number in range(20)))
    assert max(len(pattern) for pattern, _ in rows) == MAX_ENDINGS


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_row_stands_where_the_first_of_its_names_stood(order: tuple[int, int]):
    first, second = (f"layers.{number}.weight" for number in order)
    names = {"stem.weight": 1, first: 2, "middle.weight": 1, second: 2, "head.weight": 1}
    assert patterns(names) == [
        "stem.weight",
        "layers.{0...1}.weight",
        "middle.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("name", ["a.{0...1}.w", "a.{b,c}", "a.b,c", "}", ""])
def test_a_name_that_looks_like_a_pattern_stays_as_it_is(name: str):
    rows = fold({name: 1, "a.d": 1})
    assert Fold((name,)).expand() == [name]
    assert name in [str(pattern) for pattern, _ in rows]


def test_numbers_in_braces_are_not_folded():
    assert patterns(["a{0}.w", "a{1}.w"]) == ["a{0}.w", "a{1}.w"]


def test_a_number_with_a_leading_zero_stays_text():
    assert patterns(["a.00.w", "a.01.w"]) == ["a.00.w", "a.01.w"]


# Names that collide on purpose: few words, small numbers, and what patterns are written with.
components = st.one_of(
    st.sampled_from(["conv", "bn", "weight", "bias", "", "{0...1}", "a,b", "}", "x1y", "007"]),
    st.integers(0, 4).map(str),
)
names = st.dictionaries(
    st.lists(components, max_size=5).map(".".join), st.integers(0, 2), max_size=40
)


@given(names)
def test_expanding_gives_back_every_name_once_with_what_it_shares(shared: dict[str, int]):
    back = [(name, value) for pattern, value in fold(shared) for name in pattern.expand()]
    assert sorted(back) == sorted(shared.items())


@given(st.dictionaries(st.text(), st.integers(0, 1), max_size=20))
def test_any_text_survives_folding(shared: dict[str, int]):
    back = [(name, value) for pattern, value in fold(shared) for name in pattern.expand()]
    assert sorted(back) == sorted(shared.items())


@given(names)
def test_the_length_of_a_fold_is_the_number_of_its_names(shared: dict[str, int]):
    assert all(len(pattern) == len(pattern.expand()) for pattern, _ in fold(shared))
