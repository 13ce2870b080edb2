from __future__ import annotations

import html
import json
import math
import re

from torchkeep.report import Best
from torchkeep.report.charts import chart, description
from torchkeep.report.history import epoch_numbers, panels


def figure(history: list[dict[str, object]], best: Best | None = None) -> str:
    return chart(panels(history)[0], epoch_numbers(history), best)


def test_a_long_curve_has_all_of_its_points():
    found = figure([{"loss": 1 + epoch % 7} for epoch in range(1000)])
    (path,) = re.findall(r' d="M([^"]*)"', found)
    assert len(path.split()) == 1000
    assert path.endswith(f"1000.0,{(1 - 6 / 8) * 190:.1f}")
    assert "<circle" not in found


def test_one_epoch_is_a_dot():
    found = figure([{"loss": 1.5}])
    assert "<path" not in found
    assert found.count('<circle cx="50.00%"') == 1


def test_what_is_not_finite_is_a_gap_a_cross_and_a_sentence():
    found = figure([{"loss": value} for value in (3.0, 2.0, math.nan, math.inf, 1.0, None)])
    assert found.count("<path") == 1
    assert found.count('class="bad"') == 2
    assert "\N{MULTIPLICATION SIGN} training is not finite in epoch 3, 4." in found
    nothing = figure([{"loss": math.nan}] * 12)
    assert "training is not finite in epoch 1, 2, 3, 4, 5, 6, 7, 8 and 4 more." in nothing


def test_the_best_epoch_is_marked_and_ringed_where_it_was_measured():
    history: list[dict[str, object]] = [{"loss": value} for value in (3.0, 1.0, 2.0)]
    assert figure(history, Best("loss", 1.0, 2)).count('r="6"') == 1
    assert "best: 2" in figure(history, Best("val_accuracy", 0.9, 2))
    assert 'r="6"' not in figure(history, Best("val_accuracy", 0.9, 2))
    assert 'class="best"' not in figure(history, Best("loss", 1.0, 4))


def test_a_picture_says_in_words_what_it_shows():
    history = [{"loss": value, "val_loss": math.nan} for value in (3.0, 1.0, 2.0)]
    assert description(panels(history)[0], epoch_numbers(history)) == (
        "Loss by epoch. training: from 3 to 2, lowest 1 in epoch 2, highest 3 in epoch 1. "
        "validation: no finite value."
    )


def test_the_pointer_finds_every_value():
    found = figure([{"loss": 2.0, "val_loss": None}, {"loss": 1.0, "val_loss": math.nan}])
    (data,) = re.findall(r'data-hover="([^"]*)"', found)
    assert json.loads(html.unescape(data)) == {
        "names": ["training", "validation"],
        "looks": ["t", "v"],
        "rows": [
            ["1", 0.0, ["2", "0.0"], ["\N{EN DASH}", None]],
            ["2", 100.0, ["1", "190.0"], ["NaN", None]],
        ],
    }
