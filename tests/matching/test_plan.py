"""matching/plan.py: a pure function; every key of both sides is accounted for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matching.descriptions import entry, slot
from torchkeep.errors import WrongArgument
from torchkeep.matching.adaptations import Adapted
from torchkeep.matching.plan import Assignment, Mismatch, plan
from torchkeep.matching.policy import Policy
from torchkeep.matching.slots import Slot

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
        Mismatch("a.bias", "a.bias", "float32 [4]", "float32 [3]"),
        Mismatch("c", "c", "a value of type int", "float32 [1]"),
    )
    assert not steps.is_complete
    assert steps.coverage == pytest.approx(6 / 25)


def test_skipped_keys_of_the_model_and_of_the_file_are_left_alone() -> None:
    file = {"a.weight": entry(3, 2), "a.bias": entry(3), "fc.weight": entry(9), "aux.w": entry(1)}
    steps = plan(file, MODEL, Policy(adapt={"fc.*": "skip", "aux.*": "skip"}))
    assert steps.is_complete
    assert steps.skipped == ("fc.weight",)
    assert steps.unused == ("fc.weight", "aux.w")


HALF = Adapted("cast", "float16 to float32", ("float32",))


def test_a_cast_is_planned_only_where_it_was_asked_for_and_helps() -> None:
    file = {"a": entry(2, dtype="float16"), "b": entry(2, dtype="int64"), "c": entry(2)}
    model = {"a": slot(2), "b": slot(2), "c": slot(2)}
    assert [item.would_fit for item in plan(file, model).mismatched] == [("cast",), ()]
    steps = plan(file, model, Policy(adapt={"*": "cast"}))
    assert steps.assignments == (Assignment("a", "a", (HALF,)), Assignment("c", "c"))
    assert [item.target for item in steps.mismatched] == ["b"]  # an integer is no float


def test_the_first_pattern_that_matches_counts() -> None:
    file = {"fc.w": entry(2, dtype="float16"), "a.w": entry(2, dtype="float16")}
    model = {"fc.w": slot(2), "a.w": slot(2)}
    steps = plan(file, model, Policy(adapt={"fc.*": "skip", "*": "cast"}))
    assert steps.skipped == ("fc.w",)
    assert steps.assignments == (Assignment("a.w", "a.w", (HALF,)),)


def test_patterns_are_compared_without_wrappers() -> None:
    wrapped = {f"module.{key}": value for key, value in MODEL.items()}
    assert plan(FILE, wrapped, Policy(adapt={"fc.*": "skip"})).skipped == ("module.fc.weight",)


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


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"the pattern 'fx\.\*' matches no key of the model or"):
        plan(FILE, MODEL, Policy(adapt={"fx.*": "skip"}))


def test_several_adaptations_are_tried_in_order() -> None:
    file, model = {"fc.w": entry(5, 3), "b": entry(4)}, {"fc.w": slot(2, 3), "b": slot(4)}
    steps = plan(file, model, Policy(adapt={"*": ("sum-channels", "slice", "skip")}))
    assert [[item.name for item in step.adaptations] for step in steps.assignments] == [
        ["slice"],
        [],
    ]
    file["fc.w"] = entry(5, 4)
    steps = plan(file, model, Policy(adapt={"*": ("sum-channels", "slice", "skip")}))
    assert (steps.skipped, steps.unused) == (("fc.w",), ("fc.w",))


def test_what_is_allowed_anywhere_is_used_where_it_is_usual() -> None:
    file = {"pos_embed": entry(1, 17, 8), "table": entry(1, 17, 8), "w": entry(2, dtype="float16")}
    model = {"pos_embed": slot(1, 26, 8), "table": slot(1, 26, 8), "w": slot(2)}
    steps = plan(file, model, Policy(allow=("resample", "cast")))
    assert [step.target for step in steps.assignments] == ["pos_embed", "w"]
    assert [item.target for item in steps.mismatched] == ["table"]
    steps = plan(file, model, Policy(adapt={"table": "resample"}, allow=("resample", "cast")))
    assert steps.is_complete


def test_fresh_values_are_planned_for_what_the_file_lacks_or_has() -> None:
    file = {"a": entry(2), "b": entry(2)}
    steps = plan(file, {"b": slot(2), "c": slot(2)}, Policy(adapt={"*": "reset"}))
    assert steps.reset == ("b", "c")
    assert (steps.unused, steps.unexpected) == (("b",), ("a",))


def test_a_share_that_is_enough_leaves_the_rest_alone() -> None:
    file, model = {"a": entry(9), "x": entry(1)}, {"a": slot(9), "b": slot(1)}
    steps = plan(file, model, Policy(min_coverage=0.9))
    assert steps.is_allowed
    assert not steps.is_complete
    assert (steps.missing, steps.unexpected) == (("b",), ("x",))
    assert not plan(file, model, Policy(min_coverage=0.91)).is_allowed
    assert not plan(file, model).is_allowed
    assert not plan({}, model, Policy(min_coverage=0)).is_allowed  # nothing at all is never enough


def test_all_parameters_are_not_enough_if_a_buffer_is_missing() -> None:
    model = {"a": slot(9), "b": slot(1, is_buffer=True)}
    steps = plan({"a": entry(9)}, model)
    assert steps.coverage == 1
    assert not steps.is_allowed


def test_coverage_counts_what_comes_from_the_file() -> None:
    file = {"fc.w": entry(4, 5), "mean": entry(100)}
    model = {"fc.w": slot(8, 5), "mean": slot(100, is_buffer=True)}
    assert plan(file, model, Policy(adapt={"fc.*": "slice"})).coverage == 0.5
    assert plan({"mean": entry(100)}, {"mean": model["mean"]}).coverage == 1


def test_counters_of_batches_that_old_files_lack_are_left_alone() -> None:
    model = {"bn.weight": slot(3), "bn.num_batches_tracked": slot(dtype="int64", is_buffer=True)}
    steps = plan({"bn.weight": entry(3)}, model)
    assert steps.is_complete
    assert steps.skipped == ("bn.num_batches_tracked",)
    model["x.num_batches_tracked"] = model["bn.num_batches_tracked"]
    newer = {"bn.weight": entry(3), "x.num_batches_tracked": entry(dtype="int64")}
    assert plan(newer, model).missing == ("bn.num_batches_tracked",)


def test_what_names_gained_and_lost_on_the_way_is_told() -> None:
    steps = plan({"module.a.w": entry(2)}, {"net.a.w": slot(2)})
    assert (steps.stripped, steps.added) == (("module",), ("net",))
    names = {"a.parametrizations.w.original0": slot(2), "a.b": slot(1)}
    steps = plan({"_orig_mod.a.w_g": entry(2), "_orig_mod.a.b": entry(1)}, names)
    assert (steps.stripped, steps.added, steps.renamed) == (("_orig_mod",), (), ("weight_norm",))


def test_a_known_name_without_wrappers_is_believed() -> None:
    steps = plan({"module.w": entry(2)}, {"module.module.w": slot(2, name="module.w")})
    assert steps.assignments == (Assignment("module.module.w", "module.w"),)


KEYS = st.sampled_from(["a", "b.w", "b.v", "module.a", "module.b.w", "c._orig_mod.w", "c.w"])
SHAPES = st.sampled_from([(1,), (2, 3), ()])
DTYPES = st.sampled_from(["float32", "float16", "int64"])


@given(
    st.dictionaries(KEYS, st.builds(lambda s, d: entry(*s, dtype=d), SHAPES, DTYPES)),
    st.dictionaries(KEYS, st.builds(lambda s, d: slot(*s, dtype=d), SHAPES, DTYPES)),
    st.sampled_from([{}, {"*": "skip"}, {"*": "cast"}, {"*": ("slice", "reset")}]),
    st.sampled_from([(), ("slice", "cast")]),
)
def test_every_key_of_both_sides_is_in_exactly_one_place(file, model, adapt, allow) -> None:
    policy = Policy(adapt=adapt if file or model else {}, allow=allow)
    steps = plan(file, model, policy)
    mismatched = [item.target for item in steps.mismatched]
    filled = [step.target for step in steps.assignments]
    left = [*steps.skipped, *steps.reset, *steps.missing, *mismatched]
    assert sorted([*filled, *left]) == sorted(model)
    used = [step.source for step in steps.assignments]
    mismatched = [item.source for item in steps.mismatched]
    assert sorted([*used, *mismatched, *steps.unexpected, *steps.unused]) == sorted(file)
    assert 0 <= steps.coverage <= 1
    for step in steps.assignments:
        one, two = file[step.source], model[step.target]
        names = [item.name for item in step.adaptations]
        assert (one.shape != two.shape) == ("slice" in names)
        assert (one.dtype != two.dtype) == ("cast" in names)
