from __future__ import annotations

from report.made import confusion
from torchkeep.report import Confusion
from torchkeep.report.classes import figures_part
from torchkeep.report.matrix import MOST_DRAWN, MOST_OPEN, confusion_part, level


def test_a_cell_is_as_strong_as_its_share_of_the_row_and_mistakes_are_stronger():
    assert [level(part, 100, is_mistake=False) for part in (0, 1, 50, 91, 100)] == [0, 1, 5, 10, 10]
    assert [level(part, 100, is_mistake=True) for part in (0, 1, 4, 50, 100)] == [0, 1, 2, 8, 10]


def test_few_classes_have_their_counts_open():
    found = confusion_part(confusion(MOST_OPEN))
    assert "<details" not in found
    assert found.count("10</td>") == MOST_OPEN
    assert "300 of 330 right (90.9%)." in found


def test_a_hundred_classes_are_a_picture_with_the_counts_folded():
    found = confusion_part(confusion(100))
    picture, counts = found.split("<details>")
    assert picture.count("<rect") == 2 * 100 + 12
    assert "<title>kind 4 taken for kind 5: 1</title>" in picture
    assert "<title>kind 4 recognised: 10</title>" in picture
    assert "One class in 5 is named" in picture
    assert counts.count("10</td>") == 100


def test_a_thousand_classes_are_their_most_confused_pairs_alone():
    found = confusion_part(confusion(1000))
    assert "A matrix of 1,000 \N{MULTIPLICATION SIGN} 1,000 is too large to read" in found
    assert found.count("<tr") == 1 + 36
    assert "matrix" not in confusion_part(confusion(MOST_DRAWN + 1)).split("<table")[1]


def test_no_mistake_is_said_so():
    found = confusion_part(Confusion(["a", "b", "c"], [[1, 0, 0], [0, 2, 0], [0, 0, 0]]))
    assert "No class was taken for another." in found


def test_of_many_classes_the_worst_stand_first_and_all_are_folded():
    counts = [list(row) for row in confusion(50).counts]
    counts[17] = [0] * 50
    counts[17][3] = 11
    found = figures_part(Confusion(confusion(50).classes, counts))
    open_part, folded = found.split("<details>")
    assert "The 15 classes with the lowest F1" in open_part
    first = open_part.split("<tbody>")[1].split("</tr>")[0]
    assert "<bdi>kind 17</bdi>" in first
    assert folded.count("<bdi>") == 50
    assert "The 15" not in figures_part(confusion(40))
