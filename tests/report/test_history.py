from __future__ import annotations

import math

import pytest

from torchkeep.report.history import MOST_SERIES, columns, epoch_numbers, panels


def drawn(*names: str) -> list[tuple[str, list[tuple[str, str]]]]:
    found = panels([dict.fromkeys(names, 1.0)])
    return [(panel.title, [(one.name, one.label) for one in panel.series]) for panel in found]


def test_what_belongs_together_shares_a_panel_and_losses_come_first():
    assert drawn("lr", "accuracy", "val_loss", "seconds", "val_accuracy", "loss", "lr_head") == [
        ("Loss", [("loss", "training"), ("val_loss", "validation")]),
        ("Accuracy", [("accuracy", "training"), ("val_accuracy", "validation")]),
        ("Learning rate", [("lr", "lr"), ("lr_head", "lr_head")]),
    ]


def test_a_log_scale_is_for_losses_and_learning_rates():
    found = panels([{"loss": 1.0, "aux_loss": 1.0, "f1": 1.0, "learning_rate": 0.1}])
    assert [(panel.title, panel.may_log) for panel in found] == [
        ("Loss", True),
        ("Aux loss", True),
        ("F1", False),
        ("Learning rate", True),
    ]


def test_a_metric_on_its_own_is_called_by_its_name():
    assert drawn("f1", "val_top5") == [
        ("F1", [("f1", "f1")]),
        ("Top5", [("val_top5", "validation")]),
    ]
    assert drawn("train/loss", "loss") == [
        ("Loss", [("train/loss", "train/loss"), ("loss", "loss")])
    ]


def test_more_curves_than_can_be_told_apart_are_left_to_the_table():
    (panel,) = panels([{f"lr_{group}": 0.1 for group in range(MOST_SERIES + 3)}])
    assert (len(panel.series), panel.num_left_out) == (MOST_SERIES, 3)


def test_only_numbers_are_drawn_and_whatever_is_missing_is_none():
    history = [{"loss": 1, "note": "x", "on": True}, {"epoch": 2, "loss": 10**400}, {"late": 0.5}]
    first, late = panels(history)
    assert first.series[0].values == (1.0, math.inf, None)
    assert late.series[0].values == (None, None, 0.5)
    assert columns(history) == ["loss", "note", "on", "late"]


@pytest.mark.parametrize(
    ("given", "numbers"),
    [([0, 1, 2], [0, 1, 2]), ([5, 7, 9], [5, 7, 9]), ([1, 1, 2], [1, 2, 3]), ([None, 1], [1, 2]),
     ([math.nan, 1.0], [1, 2]), ([], [])],
)  # fmt: skip
def test_epochs_have_their_own_numbers_if_these_rise(given: list[object], numbers: list[int]):
    assert epoch_numbers([{"epoch": number} for number in given]) == numbers
