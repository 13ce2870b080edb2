"""matching/plan.py: a pure function; every key of both sides is accounted for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.contents import Storage, TensorEntry, contiguous_stride
from torchkeep.errors import WrongArgument
from torchkeep.matching.plan import Assignment, Mismatch, plan
from torchkeep.matching.slots import Slot


def entry(*shape: int, dtype: str = "float32") -> TensorEntry:
    return TensorEntry(dtype, shape, contiguous_stride(shape), Storage("0", 0, 0))


def slot(*shape: int, dtype: str = "float32", **kwargs) -> Slot:
    return Slot(dtype, shape, **kwargs)


FILE = {"a.weight": entry(3, 2), "a.bias": entry(3), "fc.weight": entry(5, 3)}
MODEL = {"a.weight": slot(3, 2), "a.bias": slot(3), "fc.weight": slot(5, 3)}


def test_the_same_keys_fill_each_other() -> None:
    steps = plan(FILE, MODEL)
    assert steps.assignments == tuple(Assignment(key, key) for key in MODEL)
    assert steps.is_complete
    assert steps.coverage == 1
    assert steps.stripped == ()


def test_wrappers_on_either_side_do_not_matter() -> None:
    wrapped = {f"module.{key}": value for key, value in FILE.items()}
    compiled = {f"_orig_mod.{key}": value for key, value in MODEL.items()}
    steps = plan(wrapped, compiled)
    assert steps.is_complete
    assert steps.assignments[0] == Assignment("_orig_mod.a.weight", "module.a.weight")
    assert steps.stripped == ("module",)
    assert plan(FILE, compiled).stripped == ()
    assert plan(wrapped, MODEL).is_complete


def test_missing_unexpected_and_mismatched_keys_are_named() -> None:
    file = {"a.weight": entry(3, 2), "a.bias": entry(4), "b": entry(1), "c": 7}
    model = {**MODEL, "c": slot(1)}
    steps = plan(file, model)
    assert steps.missing == ("fc.weight",)
    assert steps.unexpected == ("b",)
    assert steps.mismatched == (
        Mismatch("a.bias", "a.bias", "float32 [4]", "float32 [3]", can_cast=False),
        Mismatch("c", "c", "a value of type int", "float32 [1]", can_cast=False),
    )
    assert not steps.is_complete
    assert steps.coverage == pytest.approx(6 / 25)


def test_skipped_keys_of_the_model_and_of_the_file_are_left_alone() -> None:
    file = {"a.weight": entry(3, 2), "a.bias": entry(3), "fc.weight": entry(9), "aux.w": entry(1)}
    steps = plan(file, MODEL, adapt={"fc.*": "skip", "aux.*": "skip"})
    assert steps.is_complete
    assert steps.skipped == ("fc.weight",)
    assert steps.unused == ("fc.weight", "aux.w")


def test_a_cast_is_planned_only_where_it_was_asked_for_and_helps() -> None:
    file = {"a": entry(2, dtype="float16"), "b": entry(2, dtype="int64"), "c": entry(2)}
    model = {"a": slot(2), "b": slot(2), "c": slot(2)}
    assert [item.can_cast for item in plan(file, model).mismatched] == [True, False]
    steps = plan(file, model, adapt={"*": "cast"})
    assert steps.assignments == (Assignment("a", "a", "cast"), Assignment("c", "c"))
    assert [item.target for item in steps.mismatched] == ["b"]  # an integer is no float


def test_the_first_pattern_that_matches_counts() -> None:
    file = {"fc.w": entry(2, dtype="float16"), "a.w": entry(2, dtype="float16")}
    model = {"fc.w": slot(2), "a.w": slot(2)}
    steps = plan(file, model, adapt={"fc.*": "skip", "*": "cast"})
    assert steps.skipped == ("fc.w",)
    assert steps.assignments == (Assignment("a.w", "a.w", "cast"),)


def test_patterns_are_compared_without_wrappers() -> None:
    wrapped = {f"module.{key}": value for key, value in MODEL.items()}
    assert plan(FILE, wrapped, adapt={"fc.*": "skip"}).skipped == ("module.fc.weight",)


def test_a_key_that_was_dropped_as_tied_is_filled_by_its_twin() -> None:
    file = {"head.w": entry(3)}
    model = {"emb.w": slot(3), "head.w": slot(3, tied_to="emb.w"), "out.w": slot(3)}
    steps = plan(file, model)
    assert steps.assignments == (Assignment("emb.w", "head.w"), Assignment("head.w", "head.w"))
    assert steps.missing == ("out.w",)
    assert steps.coverage == 0.5


def test_extra_state_takes_any_value_and_counts_for_nothing() -> None:
    model = {"w": slot(2), "_extra_state": Slot("any value", (), is_extra=True)}
    steps = plan({"w": entry(2), "_extra_state": {"seen": 3}}, model)
    assert steps.is_complete
    assert steps.coverage == 1
    assert plan({"w": entry(2)}, model).missing == ("_extra_state",)


def test_the_counter_of_an_averaged_model_is_not_missed() -> None:
    file = {"n_averaged": entry(dtype="int64"), "module.w": entry(2)}
    steps = plan(file, {"w": slot(2)})
    assert steps.is_complete
    assert steps.unused == ("n_averaged",)


def test_nothing_into_nothing_is_complete_and_covers_nothing() -> None:
    steps = plan({}, {})
    assert steps.is_complete
    assert steps.coverage == 0


def test_an_unknown_adaptation_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"'resize' is no adaptation\. Use one of skip, cast"):
        plan(FILE, MODEL, adapt={"*": "resize"})


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"the pattern 'fx\.\*' matches no key of the model or"):
        plan(FILE, MODEL, adapt={"fx.*": "skip"})


KEYS = st.sampled_from(["a", "b.w", "b.v", "module.a", "module.b.w", "c._orig_mod.w", "c.w"])
SHAPES = st.sampled_from([(1,), (2, 3), ()])
DTYPES = st.sampled_from(["float32", "float16", "int64"])


@given(
    st.dictionaries(KEYS, st.builds(lambda s, d: entry(*s, dtype=d), SHAPES, DTYPES)),
    st.dictionaries(KEYS, st.builds(lambda s, d: slot(*s, dtype=d), SHAPES, DTYPES)),
    st.sampled_from([None, {"*": "skip"}, {"*": "cast"}]),
)
def test_every_key_of_both_sides_is_in_exactly_one_place(file, model, adapt) -> None:
    steps = plan(file, model, adapt=adapt if file or model else None)
    mismatched = [item.target for item in steps.mismatched]
    filled = [step.target for step in steps.assignments]
    assert sorted([*filled, *steps.skipped, *steps.missing, *mismatched]) == sorted(model)
    used = [step.source for step in steps.assignments]
    mismatched = [item.source for item in steps.mismatched]
    assert sorted([*used, *mismatched, *steps.unexpected, *steps.unused]) == sorted(file)
    assert 0 <= steps.coverage <= 1
    for step in steps.assignments:
        one, two = file[step.source], model[step.target]
        assert one.shape == two.shape
        assert step.adaptation == (None if one.dtype == two.dtype else "cast")
