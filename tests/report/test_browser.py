"""The page in a real browser: nothing in the console, nothing fetched, everything laid out."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from report.browser import needs_browser, screenshot, visit
from report.made import confusion, history, hostile_run, usual_run
from torchkeep.report import RunReport, render_report, write_report

pytestmark = needs_browser

# Appended to a page without its policy: writes what was measured where a test can read it.
MEASURE = """<script>
const told = [];
const wide = document.documentElement.scrollWidth - innerWidth;
told.push(`${innerWidth} pixels, too wide by ${Math.max(0, wide)}`);
for (const part of document.querySelectorAll("section, figure, table, .cards li, h1")) {
  const box = part.getBoundingClientRect();
  if (!part.closest("details") && (box.width < 50 || box.height < 10)) told.push(`${part} is flat`);
}
document.title = told.join("; ");
</script>"""

TAKE_OVER = """<title></title><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => { document.title = frame.contentDocument.title; });
</script>"""

USE = """<script>
const plot = document.querySelector(".plot"), box = plot.getBoundingClientRect();
const where = { clientX: box.right, clientY: box.top + 20, bubbles: true };
plot.dispatchEvent(new PointerEvent("pointermove", where));
const tip = document.querySelector(".tip");
const told = [tip.innerText.replaceAll("\\n", ", ")];
plot.parentElement.dispatchEvent(new PointerEvent("pointerleave"));
told.push(document.querySelector(".tip") === null);
const table = [...document.querySelectorAll("table")].find((one) => one.innerText.includes("F1"));
const first = () => [...table.tBodies[0].rows].map((row) => row.cells[0].innerText).join(" ");
told.push(first());
for (const column of [4, 4, 4, 1, 1]) {
  const button = table.querySelectorAll("th button")[column];
  button.click();
  told.push(`${button.closest("th").getAttribute("aria-sort")}: ${first()}`);
}
document.title = told.join("; ");
</script>"""


def with_script(run: RunReport, script: str, page: Path) -> Path:
    """Write the page without its policy, with one more script at its end."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_report(run))
    page.write_text(text.replace("</body>", f"{script}</body>"), "utf-8")
    return page


def title(dom: str) -> str:
    return re.findall("<title>(.*?)</title>", dom)[-1]


def test_the_browser_would_tell_of_errors_and_of_requests(tmp_path: Path):
    page = tmp_path / "bad.html"
    page.write_text("<script>nobody.home()</script><img src='http://127.0.0.1:9/x.png'>")
    met = visit(page)
    assert "nobody is not defined" in "".join(met.console)
    assert met.fetched == ["http://127.0.0.1:9/x.png"]


@pytest.mark.parametrize("run", [usual_run(), hostile_run()], ids=["usual", "hostile"])
def test_a_page_runs_without_errors_and_fetches_nothing(run: RunReport, tmp_path: Path):
    page = tmp_path / "report.html"
    write_report(page, run)
    met = visit(page)
    assert (met.console, met.fetched) == ([], [])
    assert "owned" not in title(met.dom) or "&lt;script" in title(met.dom)
    assert "<button" in met.dom  # its own script ran under its own policy


@pytest.mark.parametrize(
    ("run", "width"),
    [(usual_run(), 360), (hostile_run(), 360), (hostile_run(), 1400)],
    ids=["usual, narrow", "hostile, narrow", "hostile, wide"],
)
def test_every_part_is_laid_out_and_nothing_sticks_out(run: RunReport, width: int, tmp_path: Path):
    page = with_script(run, MEASURE, tmp_path / "report.html")
    # A window is never narrower than 500 pixels, a frame may be.
    frame = html.escape(page.read_text("utf-8"))
    page.write_text(f'<iframe width="{width}" height="900" srcdoc="{frame}"></iframe>{TAKE_OVER}')
    met = visit(page, 1500)
    assert title(met.dom) == f"{width} pixels, too wide by 0"


def test_values_appear_under_the_pointer_and_tables_are_sorted(tmp_path: Path):
    met = visit(with_script(usual_run(), USE, tmp_path / "report.html"))
    assert met.console == []
    assert title(met.dom).split("; ") == [
        "epoch 15, training: 0.1533, validation: 0.2185", "true",
        "oak elm ash",
        "ascending: ash elm oak", "descending: oak elm ash", "ascending: ash elm oak",
        # By precision: what has none stands last.
        "ascending: elm oak ash", "descending: elm oak ash",
    ]  # fmt: skip


def test_a_page_is_not_blank(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    page = tmp_path / "report.html"
    write_report(page, RunReport("x", history=history(1000), confusion=confusion(100)))
    screenshot(page, 800, 1200)
    with image.open(page.with_suffix(".png")) as picture:
        shades = picture.convert("L").histogram()
    assert sum(1 for count in shades if count) > 20
    assert max(shades) < 0.98 * sum(shades)
