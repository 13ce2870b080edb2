from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report.made import confusion, history, hostile_run, png, usual_run
from torchkeep.errors import SaveRefused
from torchkeep.report import Best, LayerRow, Mistake, RunReport, render_report, write_report

TIMES = "\N{MULTIPLICATION SIGN}"

RUNS = {
    "usual": usual_run(),
    "hostile": hostile_run(),
    "nothing": RunReport(""),
    "one epoch": RunReport("x", history=history(1), mistakes=[]),
    "a thousand": RunReport("x", history=history(1000), confusion=confusion(200)),
}


class Outline(HTMLParser):
    """What a page is made of, and whether every element ends where it should."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=RUNS)
def outline(request: pytest.FixtureRequest) -> Outline:
    return Outline(render_report(RUNS[request.param]))


def test_every_element_ends(outline: Outline):
    assert outline.open == []
    assert len(outline.of("h1")) == 1


def test_nothing_of_a_run_becomes_markup(outline: Outline):
    assert len(outline.of("script")) == len(outline.of("style")) == 1
    for _, attributes in outline.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_the_page_lets_in_its_own_style_and_script_alone(outline: Outline):
    (policy,) = [m for m in outline.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:; ")
    for name in ("style", "script"):
        index = [tag for tag, _ in outline.elements if tag in {"style", "script"}].index(name)
        text = [text for text in outline.texts if len(text) > 2500][index]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in (policy["content"] or "")


def test_whoever_can_not_see_it_is_told(outline: Outline):
    assert all(picture.get("alt") for picture in outline.of("img"))
    assert len(outline.of("caption")) == len(outline.of("table"))
    assert all(head.get("scope") for head in outline.of("th"))
    for picture in outline.of("svg"):
        if picture.get("role") == "img":
            assert picture["aria-label"]


def text_of(run: RunReport) -> str:
    texts = Outline(render_report(run)).texts
    return " ".join(" ".join(text for text in texts if len(text) < 2500).split())


def test_the_page_tells_all_that_is_known():
    text = text_of(usual_run())
    for told in [
        "Leaves, resnet18",
        "Best validation accuracy 0.925 in epoch 12, after 15 epochs of training.",
        "resnet18-f37072fd.pth", "/data/leaves", "resized to 224 pixels", "30, 60", "2.14.0",
        "CPU, 1 thread", "2 h 3 min", "aaadc1c", "oak 80 20", "ash \N{EN DASH} 3", "All 120 33",
        "batch size 32", "pretrained yes",
        "27 of 33 right (81.8%)", "oak 81.8% 90.0% 85.7% 20", "ash \N{EN DASH} 0.0% 0.0% 3",
        "is oak taken for elm 91.3% val/oak/17.png loss 2.44",
        "10,947 parameters, of which 1,539 are trained (14.1%).",
        f"conv1 Conv2d 64 {TIMES} 3 {TIMES} 7 {TIMES} 7 9,408 frozen",
        f"fc Linear 3 {TIMES} 512 1,539 yes 0.01",
    ]:  # fmt: skip
        assert told in text
    assert text.index("Problem 3 files are in both splits. Remove") < text.index("Note The vali")


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (RunReport("x"), "No epoch was finished."),
        (RunReport("x", history=history(3)), "3 epochs of training; no epoch is marked"),
        (
            RunReport("x", history=history(1), best=Best("loss", 2.3, 1)),
            "Loss 2.3 in epoch 1, 1 epoch of training.",
        ),
        (RunReport("x", result="Stopped by hand."), "Stopped by hand."),
    ],
)
def test_the_result_is_a_sentence(run: RunReport, sentence: str):
    assert sentence in text_of(run)


def test_what_is_not_known_has_no_heading():
    assert re.findall("<h2>(.*?)</h2>", render_report(RunReport("x"))) == ["Curves"]
    assert "Worst mistakes There are none." in text_of(RunReport("x", mistakes=[]))
    assert len(re.findall("<h2>", render_report(usual_run()))) == 8


def test_a_picture_is_part_of_the_page_and_anything_else_is_not_shown():
    kinds = [png(8), png(200), b"\xff\xd8\xff\xe0x", b"<svg onload=alert(1)>", b"", None]
    mistakes = [Mistake(kind, "f", "a", "b", 0.5, 1.0) for kind in kinds]
    pictures = Outline(render_report(RunReport("x", mistakes=mistakes))).of("img")
    sources = [picture["src"] or "" for picture in pictures]
    assert [source.split(";")[0] for source in sources] == [
        "data:image/png", "data:image/png", "data:image/jpeg",
    ]  # fmt: skip
    assert base64.b64decode(sources[1].partition(",")[2]) == png(200)
    assert [picture["class"] for picture in pictures] == ["picture coarse", "picture", "picture"]


def test_every_epoch_is_in_the_table_up_to_two_thousand():
    def rows(page: str) -> int:
        return page.split("<tbody>")[1].split("</tbody>")[0].count("<tr")

    def long_run(num_epochs: int) -> RunReport:
        epochs = [{"loss": 1.0}] * num_epochs
        return RunReport("x", history=epochs, best=Best("loss", 1.0, 4001))

    assert rows(render_report(long_run(2000))) == 2000
    page = render_report(long_run(4400))
    assert rows(page) == 1467 + 2  # every third, the best and the last
    assert "The numbers of one epoch in 3, as a table" in page


def test_many_layers_are_folded():
    layers = [LayerRow(f"layer{place}", "Linear", (2, 2), 6, True, 0.1) for place in range(41)]
    assert "<summary>All 41 layers</summary>" in render_report(RunReport("x", layers=layers))
    assert "All 40 layers" not in render_report(RunReport("x", layers=layers[:40]))


def test_the_same_run_gives_the_same_file_and_an_old_one_stays(tmp_path: Path):
    page = tmp_path / "report.html"
    write_report(page, usual_run())
    before = page.read_bytes()
    assert before.startswith(b"<!doctype html>")
    with pytest.raises(SaveRefused, match=r"report\.html: "):
        write_report(page, RunReport("other"))
    assert page.read_bytes() == before
    write_report(page, replace(usual_run()), overwrite=True)
    assert page.read_bytes() == before


def test_a_report_needs_neither_torch_nor_numpy():
    program = "import sys, torchkeep.report; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
