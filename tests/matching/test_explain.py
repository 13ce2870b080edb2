"""matching/explain.py: what a person reads about a plan."""

from __future__ import annotations

from matching.descriptions import entry, file_of, model_of, slot
from torchkeep.matching.explain import options, overview, summarize, table
from torchkeep.matching.plan import plan
from torchkeep.matching.policy import Policy
from torchkeep.matching.slots import Slot


def test_the_summary_counts_what_is_left_over() -> None:
    steps = plan(file_of(a=(1,), b=(2,), c=(1,)), model_of(b=(3,), c=(1,), d=(1,)))
    assert summarize(steps) == (
        "1 missing in the file, 1 with another shape or dtype, 1 unexpected in the file"
    )


def test_the_table_shows_both_shapes_and_the_nearest_name() -> None:
    steps = plan(
        file_of(fc__weight=(10, 4), head__bias=(1,)), model_of(fc__weight=(5, 4), heads__bias=(1,))
    )
    assert table(steps) == (
        "  missing in the file (1):\n"
        "    heads.bias (the file has head.bias)\n"
        "  with another shape or dtype (1):\n"
        "    fc.weight: float32 [10, 4] in the file, float32 [5, 4] in the model\n"
        "  unexpected in the file (1):\n"
        "    head.bias"
    )


def test_the_table_names_the_adaptation_that_would_help() -> None:
    steps = plan({"conv1.weight": entry(8, 3, 7, 7)}, {"conv1.weight": slot(8, 1, 7, 7)})
    assert table(steps).endswith("float32 [8, 1, 7, 7] in the model; sum-channels would do")


def test_a_long_table_is_cut() -> None:
    steps = plan({}, {f"k{n}": Slot("float32", ()) for n in range(20)})
    assert table(steps).endswith("    k7\n    ... and 12 more")


def test_the_overview_tells_everything_that_is_no_plain_copy() -> None:
    file = {
        "module.stem.weight": entry(8, 3, 3, 3),
        "module.conv.weight_g": entry(4, 1),
        "module.conv.weight_v": entry(4, 2),
        "module.fc.weight": entry(10, 4),
    }
    model = {
        "stem.weight": slot(8, 1, 3, 3),
        "conv.parametrizations.weight.original0": slot(4, 1),
        "conv.parametrizations.weight.original1": slot(4, 2),
        "fc.weight": slot(5, 4),
        "norm.weight": slot(4),
    }
    rules = {"fc.*": "skip", "stem.*": "sum-channels", "norm.*": "reset"}
    assert overview(plan(file, model, Policy(adapt=rules))) == (
        "2 tensors as they are, 1 adapted, 1 skipped, 1 reset, 1 unused in the file; "
        "77.7% of the model's parameters\n"
        "dropped from the file's names: module\n"
        "names of another time: weight_norm\n"
        "  adapted (1):\n"
        "    stem.weight: sum-channels (3 input channels added up)\n"
        "  kept as the model has it (1):\n"
        "    fc.weight\n"
        "  given fresh values (1):\n"
        "    norm.weight"
    )


def test_a_plan_prints_as_its_overview_with_the_advice_last() -> None:
    steps = plan(file_of(a=(1,)), model_of(a=(1,), b=(1,)))
    assert str(steps) == overview(steps)
    assert str(steps).endswith("  missing in the file (1):\n    b (the file has a)") or "b" in str(
        steps
    )


def test_options_are_written_as_python_reads_them() -> None:
    assert options({"adapt": {"a": "skip"}, "allow": (), "assign": True}) == (
        ", adapt={'a': 'skip'}, assign=True"
    )
