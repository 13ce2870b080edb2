"""The parts of the page that say what was trained, on what, with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchkeep.report.amounts import NOTHING, TIMES, duration, number, shown
from torchkeep.report.data import Facts, Finding, LayerRow
from torchkeep.report.markup import Child, Markup, joined, name_of, tag
from torchkeep.report.tables import Column, folded_if_long, table
from torchkeep.wording import counted, shortened

_SEVERITIES = {"problem": "Problem", "warning": "Warning", "note": "Note"}


def findings_part(findings: Sequence[Finding]) -> Markup:
    """Return the findings, the worst first, each with its severity in words."""
    order = list(_SEVERITIES)
    ranked = sorted(findings, key=lambda one: order.index(one.severity))
    return tag("ul", map(_finding, ranked), class_="findings")


def _finding(one: Finding) -> Markup:
    word = tag("strong", _SEVERITIES[one.severity], class_="severity")
    advice = tag("p", one.advice, class_="advice") if one.advice else None
    return tag("li", word, tag("div", tag("p", one.text), advice), class_=one.severity)


def run_part(facts: Facts) -> Markup | None:
    """Return what computed, how long, and everything that was chosen."""
    about: list[tuple[str, Child]] = [
        ("Architecture", facts.architecture),
        ("First weights", facts.weights),
        ("Device", facts.device),
        ("Duration", None if facts.duration_s is None else duration(facts.duration_s)),
        ("Code", tag("code", facts.git_revision) if facts.git_revision else None),
    ]
    parts = [
        _pairs("Run", about),
        _pairs("Settings", _worded(facts.settings)),
        _pairs("Versions", _worded(facts.versions)),
    ]
    return tag("div", parts, class_="columns") if any(parts) else None


def _worded(values: Mapping[str, object]) -> list[tuple[str, Child]]:
    return [(name.replace("_", " "), shown(value)) for name, value in values.items()]


def _pairs(heading: str, pairs: Sequence[tuple[str, Child]]) -> Markup | None:
    known = [(name, value) for name, value in pairs if value]
    if not known:
        return None
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in known]
    return tag("div", tag("h3", heading), tag("dl", rows))


def data_part(facts: Facts) -> Markup:
    """Return where the images lie, how many of which there are, and what was done to them."""
    steps = [tag("li", step) for step in facts.preprocessing]
    about = [
        tag("p", "The images lie in ", tag("code", facts.data_folder), ".")
        if facts.data_folder
        else None,
        joined(tag("h3", "Preprocessing"), tag("ol", steps, class_="steps")) if steps else None,
    ]
    told = tag("div", about) if any(about) else None
    return tag("div", told, _counts(facts.counts), class_="split")


def _counts(counts: Mapping[str, Mapping[str, int]]) -> Markup | None:
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    if not classes:
        return None
    totals = [f"{sum(split.values()):,}" for split in counts.values()]
    columns = [Column("Class", is_name=True)]
    columns += [Column(shortened(split, 20), is_number=True) for split in counts]
    found = table(
        "Images of each class",
        columns,
        [[name_of(name, 60), *_of_class(name, counts)] for name in classes],
        foot=[["All", *totals]],
    )
    parts = ", ".join(f"{total} {split}" for total, split in zip(totals, counts, strict=True))
    title = f"Images of each of {counted(len(classes), 'class')} ({parts})"
    return folded_if_long(title, len(classes), found)


def _of_class(name: str, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [f"{split[name]:,}" if name in split else NOTHING for split in counts.values()]


def layers_part(layers: Sequence[LayerRow]) -> Markup:
    """Return the layers, and how much of them is trained."""
    total = sum(one.num_parameters for one in layers)
    trained = sum(one.num_parameters for one in layers if one.trainable)
    summary = tag(
        "p",
        f"{counted(total, 'parameter')}, of which {trained:,} are trained"
        f"{f' ({number(trained / total * 100, 3)}%)' if total else ''}.",
    )
    found = table(
        "The network's layers",
        [
            Column("Layer", is_name=True, is_code=True),
            Column("Kind"),
            Column("Shape", is_code=True),
            Column("Parameters", is_number=True),
            Column("Trained"),
            Column("Learning rate", is_number=True),
        ],
        [_layer(one) for one in layers],
        row_classes=["frozen" if _is_frozen(one) else None for one in layers],
    )
    return joined(summary, folded_if_long(f"All {len(layers):,} layers", len(layers), found))


def _is_frozen(one: LayerRow) -> bool:
    return bool(one.num_parameters) and not one.trainable


def _layer(one: LayerRow) -> list[Child]:
    trained = "yes" if one.trainable else "frozen"
    rate = NOTHING if one.learning_rate is None else number(one.learning_rate)
    return [
        name_of(one.name),
        one.kind,
        f" {TIMES} ".join(map(str, one.shape)) or NOTHING,
        f"{one.num_parameters:,}",
        trained if one.num_parameters else NOTHING,
        rate,
    ]
