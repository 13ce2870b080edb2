"""The part of the page about deployment files, which come when the page is there already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchkeep.errors import DamagedFile
from torchkeep.files import write_file
from torchkeep.report.amounts import NOTHING, number
from torchkeep.report.data import Deployment
from torchkeep.report.markup import Child, Markup, tag
from torchkeep.report.tables import Column, table
from torchkeep.wording import shortened, size

BEGIN, END = Markup("<!--deployments-->"), Markup("<!--/deployments-->")
"""Between them the part is in a page; no text of a run can hold them, since texts are escaped."""


def deployments_part(deployments: Sequence[Deployment]) -> Markup:
    """Return the part about these files, between its marks; empty if there are none."""
    if not deployments:
        return Markup(BEGIN + END)
    columns = [Column("File", is_name=True), Column("Kind")]
    heads = ("Size", "Differs by", "Same class", "Accuracy (original)", "One input", "Speed")
    columns += [Column(head, is_number=True) for head in heads]
    columns.append(Column("Proven with", is_name=True))
    found = table(
        "Deployment files, each proven in its own runtime", columns, [*map(_row, deployments)]
    )
    return Markup(BEGIN + tag("section", tag("h2", "Deployment"), found) + END)


def _row(one: Deployment) -> list[Child]:
    accuracy = NOTHING
    if one.accuracy is not None and one.original_accuracy is not None:
        accuracy = f"{one.accuracy:.2%} ({one.original_accuracy:.2%})"
    return [
        shortened(one.name, 100),
        one.kind,
        size(one.nbytes),
        number(one.difference, 2),
        NOTHING if one.agreement is None else f"{one.agreement:.1%}",
        accuracy,
        f"{number(1000 * one.latency_s, 3)} ms",
        f"{number(one.speedup, 3)} times",
        shortened(one.proven_with, 100),
    ]


def add_deployments(path: str | os.PathLike[str], deployments: Sequence[Deployment]) -> None:
    """Put the part about these files into a page, in place of the one that was there.

    Args:
        path: a page that `write_report` has written.
        deployments: all files of the run.

    Raises:
        DamagedFile: it is no such page.
        SaveRefused: it can't be written to.
    """
    page = Path(path).read_bytes().decode("utf-8", "surrogateescape")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DamagedFile("it is no report of torchkeep that can be added to", path=path)
    page = before + deployments_part(deployments) + after
    write_file(path, page.encode("utf-8", "surrogateescape"), overwrite=True)
