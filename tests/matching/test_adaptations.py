"""matching/adaptations.py: which adaptation fits what, and with which numbers."""

from __future__ import annotations

import pytest

from matching.descriptions import entry, slot
from torchkeep.matching.adaptations import ADAPTATIONS, NAMES, Adapted, ClassNames, adapt
from torchkeep.matching.slots import ANY_DTYPE

NO_CLASSES = ClassNames()


def fit(name: str, old, new, classes: ClassNames = NO_CLASSES) -> Adapted | None:
    return ADAPTATIONS[name].fit(entry(*old), slot(*new), classes)


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ("float32", "bfloat16", True),
        ("float16", "float64", True),
        ("float8_e4m3fn", "float32", True),
        ("uint8", "int64", True),
        ("complex64", "complex128", True),
        ("float32", "int32", False),
        ("int32", "float32", False),
        ("bool", "uint8", False),
        ("complex64", "float32", False),
    ],
)
def test_a_cast_stays_within_one_kind_of_number(source: str, target: str, fits: bool) -> None:
    steps = adapt(entry(2, dtype=source), slot(2, dtype=target), ["cast"], NO_CLASSES)
    assert steps == ((Adapted("cast", f"{source} to {target}", (target,)),) if fits else None)
    assert adapt(entry(2, dtype=source), slot(3, dtype=target), ["cast"], NO_CLASSES) is None


def test_a_place_for_any_dtype_needs_no_cast() -> None:
    assert adapt(entry(2, dtype="float16"), slot(2, dtype=ANY_DTYPE), [], NO_CLASSES) == ()


def test_the_first_rows_are_taken_and_the_rest_is_kept() -> None:
    assert fit("slice", (10, 4), (5, 4)) == Adapted("slice", "the first 5 of 10 rows", (5,))
    assert fit("slice", (10,), (12,)) == Adapted("slice", "the first 10 of 10 rows", (10,), 2)
    assert fit("slice", (10, 4), (12, 4)).num_kept == 8
    for old, new in [((10, 4), (5, 3)), ((10, 4), (10, 4)), ((10,), (5, 1)), ((), ())]:
        assert fit("slice", old, new) is None


def test_rows_are_taken_by_the_names_of_their_classes() -> None:
    classes = ClassNames(("cat", "dog", "owl"), ("owl", "emu", "cat", "elk"))
    found = fit("classes", (3, 2), (4, 2), classes)
    assert found == Adapted("classes", "2 of 3 rows by class name", ((0, 2), (2, 0)), 4)
    turned = fit("classes", (3, 2), (3, 2), ClassNames(classes.file, ("owl", "dog", "cat")))
    assert turned is not None
    assert turned.arguments == ((0, 2), (1, 1), (2, 0))
    assert fit("classes", (3, 2), (4, 3), classes) is None
    assert fit("classes", (5, 2), (4, 2), classes) is None
    assert fit("classes", (3, 2), (1, 2), ClassNames(classes.file, ("emu",))) is None
    assert fit("classes", (), (), classes) is None


def test_input_channels_are_those_of_a_convolution() -> None:
    assert fit("sum-channels", (8, 3, 7, 7), (8, 1, 7, 7)).text == "3 input channels added up"
    assert fit("sum-channels", (8, 3, 7, 7), (8, 4, 7, 7)) is None
    assert fit("repeat-channels", (8, 3, 7), (8, 5, 7)).arguments == (5,)
    assert fit("average-channels", (8, 3, 7, 7, 7), (8, 1, 7, 7, 7)).arguments == (1,)
    for name in ("sum-channels", "repeat-channels", "average-channels"):
        assert fit(name, (8, 3), (8, 1)) is None
        assert fit(name, (8, 3, 7, 7), (9, 1, 7, 7)) is None
        assert fit(name, (8, 3, 7, 7), (8, 1, 5, 5)) is None


@pytest.mark.parametrize(
    ("old", "new", "arguments"),
    [
        ((1, 197, 8), (1, 577, 8), ((14, 14), (24, 24), 1, "tokens")),
        ((1, 196, 8), (1, 256, 8), ((14, 14), (16, 16), 0, "tokens")),
        ((1, 198, 8), (1, 578, 8), ((14, 14), (24, 24), 2, "tokens")),
        ((50, 8), (197, 8), ((7, 7), (14, 14), 1, "tokens")),
        ((169, 4), (225, 4), ((13, 13), (15, 15), 0, "tokens")),
        ((732, 4), (2212, 4), ((27, 27), (47, 47), 3, "biases")),
        ((1, 8, 14, 14), (1, 8, 16, 20), ((14, 14), (16, 20), 0, "channels first")),
        ((1, 14, 14, 8), (1, 16, 20, 8), ((14, 14), (16, 20), 0, "channels last")),
        ((1, 197, 8), (1, 577, 9), None),
        ((1, 197, 8), (2, 577, 8), None),
        ((197,), (577,), None),
        ((1, 190, 8), (1, 570, 8), None),
        ((2, 8, 14, 14), (2, 8, 16, 16), None),
        ((1, 0, 8), (1, 4, 8), None),
        ((1, 4, 8), (1, 4, 8), None),
    ],
)
def test_tables_of_positions_are_told_by_their_shapes(old, new, arguments) -> None:
    found = fit("resample", old, new)
    assert (found and found.arguments) == arguments


def test_a_table_of_positions_says_what_is_done_to_it() -> None:
    assert str(fit("resample", (1, 197, 8), (1, 577, 8))) == (
        "resample (a grid of 14x14 to 24x24, 1 extra kept)"
    )


@pytest.mark.parametrize(
    ("name", "is_usual"),
    [
        ("pos_embed", True),
        ("encoder.pos_embedding", True),
        ("visual.positional_embedding", True),
        ("embeddings.position_embeddings.weight", True),
        ("layers.0.attn.relative_position_bias_table", True),
        ("head.weight", False),
        ("transposed.weight", False),
        ("composition.weight", False),
    ],
)
def test_positions_are_told_by_their_usual_names(name: str, is_usual: bool) -> None:
    one, two = entry(1, 197, 8), slot(1, 577, 8)
    assert (adapt(one, two, ["resample"], NO_CLASSES, called=name) is not None) is is_usual
    assert adapt(one, two, ["resample"], NO_CLASSES) is not None


def test_a_cast_comes_where_it_loses_least() -> None:
    wide, narrow = entry(10, 4), slot(5, 4, dtype="float16")
    names = [step.name for step in adapt(wide, narrow, ["slice", "cast"], NO_CLASSES)]
    assert names == ["slice", "cast"]
    narrow, wide = entry(10, 4, dtype="float16"), slot(5, 4)
    names = [step.name for step in adapt(narrow, wide, ["slice", "cast"], NO_CLASSES)]
    assert names == ["cast", "slice"]
    assert adapt(narrow, wide, ["slice"], NO_CLASSES) is None


def test_every_name_says_what_it_does() -> None:
    assert list(NAMES) == [*ADAPTATIONS, "skip", "reset"]
    assert all(NAMES.values())
