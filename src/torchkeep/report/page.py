"""The page: its parts in order, and what makes it safe to open.

The page's own content security policy lets in nothing but the style and the script that stand in
it, by their digests, and pictures that are part of it. So even if a name slipped through the
escaping, nothing would run and nothing would be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import resources

from torchkeep.files import write_file
from torchkeep.report.amounts import duration, number, shown
from torchkeep.report.charts import chart
from torchkeep.report.classes import figures_part
from torchkeep.report.data import RunReport
from torchkeep.report.deployments import deployments_part
from torchkeep.report.facts import data_part, findings_part, layers_part, run_part
from torchkeep.report.history import columns, epoch_numbers, panels
from torchkeep.report.markup import Child, Markup, joined, tag
from torchkeep.report.matrix import confusion_part
from torchkeep.report.mistakes import mistakes_part
from torchkeep.report.tables import Column, folded, table
from torchkeep.wording import counted, shortened

_MOST_ROWS = 2000


def write_report(path: str | os.PathLike[str], run: RunReport, *, overwrite: bool = False) -> None:
    """Write the page about `run` to `path`, whole or not at all.

    The page is one file: it fetches nothing, and reads the same without its script. The same run
    gives the same bytes.

    Args:
        path: the file, such as `report.html`.
        run: what the page tells.
        overwrite: replace what is there.

    Raises:
        SaveRefused: the place exists and `overwrite` is not set, or can't be written to.
    """
    write_file(path, render_report(run).encode(), overwrite=overwrite)


def render_report(run: RunReport) -> str:
    """Return the page about `run` as HTML."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", shortened(run.title, 100)),
        Markup('<link rel="icon" href="data:,">'),
        tag("style", style),
    )
    body = tag("body", _header(run), tag("main", _parts(run)), tag("script", script))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _resource(name: str) -> Markup:
    text = resources.files("torchkeep.report").joinpath(name).read_text("utf-8")
    return Markup(text.replace("\r\n", "\n"))


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _header(run: RunReport) -> Markup:
    figures = [tag("div", tag("dt", name), tag("dd", value)) for name, value in _figures(run)]
    return tag(
        "header",
        tag("h1", shortened(run.title, 160) or "Training run"),
        tag("p", run.result or result_sentence(run), class_="result"),
        tag("dl", figures, class_="figures") if figures else None,
    )


def result_sentence(run: RunReport) -> str:
    """Return the result in one sentence, of what is known."""
    if not run.history:
        return "No epoch was finished."
    trained = f"{counted(len(run.history), 'epoch')} of training"
    if run.best is None:
        return f"{trained}; no epoch is marked as the best."
    best = f"{_worded(run.best.metric)} {number(run.best.value)} in epoch {run.best.epoch}"
    return (
        f"Best {best}, after {trained}."
        if len(run.history) > 1
        else f"{best[:1].upper()}{best[1:]}, {trained}."
    )


def _worded(metric: str) -> str:
    name = metric.removeprefix("val_").replace("_", " ")
    return f"validation {name}" if metric.startswith("val_") else name


def _figures(run: RunReport) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if run.best is not None:
        found.append((_worded(run.best.metric), number(run.best.value)))
        found.append(("best epoch", f"{run.best.epoch:,} of {len(run.history):,}"))
    if run.facts.architecture:
        found.append(("network", shortened(run.facts.architecture, 40)))
    if run.layers:
        found.append(("parameters", f"{sum(one.num_parameters for one in run.layers):,}"))
    images = sum(sum(split.values()) for split in run.facts.counts.values())
    if images:
        found.append(("images", f"{images:,}"))
    if run.facts.duration_s is not None:
        found.append(("duration", duration(run.facts.duration_s)))
    return found


def _parts(run: RunReport) -> list[Markup]:
    confusion, facts = run.confusion, run.facts
    has_data = facts.data_folder or facts.preprocessing or facts.counts
    results: list[tuple[str, Child]] = [
        ("Findings", findings_part(run.findings) if run.findings else None),
        ("Curves", _curves(run)),
        ("Confusion matrix", confusion_part(confusion) if confusion else None),
        ("Classes", figures_part(confusion) if confusion else None),
        ("Worst mistakes", None if run.mistakes is None else mistakes_part(run.mistakes)),
    ]
    ways: list[tuple[str, Child]] = [
        ("Data", data_part(facts) if has_data else None),
        ("Network", layers_part(run.layers) if run.layers else None),
        ("How it was made", run_part(facts)),
    ]
    return [*_sections(results), deployments_part(()), *_sections(ways)]


def _sections(parts: list[tuple[str, Child]]) -> list[Markup]:
    return [tag("section", tag("h2", name), content) for name, content in parts if content]


def _curves(run: RunReport) -> Markup:
    if not run.history:
        return tag("p", "No epoch was finished, so there are no curves.")
    epochs = epoch_numbers(run.history)
    drawn = [chart(panel, epochs, run.best) for panel in panels(run.history)]
    return joined(tag("div", drawn, class_="charts"), _numbers(run, epochs))


def _numbers(run: RunReport, epochs: list[float]) -> Markup:
    """Return the curves as a table; of a very long run every so many epochs, the best, the last."""
    every = -(-len(epochs) // _MOST_ROWS)
    last, best = len(epochs) - 1, run.best.epoch if run.best else None
    kept = [
        index
        for index, epoch in enumerate(epochs)
        if index % every == 0 or index == last or epoch == best
    ]
    names = columns(run.history)
    rows = [
        [number(epochs[index], 12), *[shown(run.history[index].get(name)) for name in names]]
        for index in kept
    ]
    told = "The numbers of every epoch" if every == 1 else f"The numbers of one epoch in {every}"
    heads = [Column("Epoch"), *[Column(shortened(name, 30), is_number=True) for name in names]]
    looks = ["best-row" if epochs[index] == best else None for index in kept]
    found = table(told, heads, rows, row_classes=looks)
    return folded(f"{told}, as a table", found)
