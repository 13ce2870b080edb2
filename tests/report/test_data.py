from __future__ import annotations

import pytest

from torchkeep.errors import WrongArgument
from torchkeep.report import Confusion, RunReport


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            [[1, 2], [3]],
            "row 1 of the confusion matrix has 1 counts for 2 classes. "
            "Give one count per class, a row per true class.",
        ),
        (
            [[1, 2]],
            "the confusion matrix has 1 row for 2 classes. Give one row per class.",
        ),
        (
            [[1, 2], [0, -3]],
            "row 1 of the confusion matrix has a negative count: -3. "
            "Give how often each class was predicted.",
        ),
    ],
)
def test_a_matrix_that_fits_no_classes_is_refused(counts: list[list[int]], message: str):
    with pytest.raises(WrongArgument) as caught:
        Confusion(["a", "b"], counts)
    assert str(caught.value) == message


def test_all_but_the_title_may_be_unknown():
    run = RunReport("x")
    assert (run.best, run.confusion, run.mistakes, list(run.history)) == (None, None, None, [])
