"""Claims, each with how it was checked and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchkeep.errors import ProofFailed


@dataclass(frozen=True, slots=True)
class Proof:
    """A claim that was checked."""

    claim: str
    """What is claimed."""
    how: str
    """How it was checked."""
    result: str
    """What came out, as short as it can be."""
    holds: bool
    """Whether the claim is true."""


def show(proofs: Sequence[Proof], console: Console) -> None:
    """Print the table of proofs, or a list of them where a table would break words."""
    if console.width < _TABLE_WIDTH:
        for proof in proofs:
            console.print(Text.assemble(_mark(proof), "  ", proof.claim))
            console.print(Text(f"{proof.how}: {proof.result}", "dim"))
        return
    table = Table(box=SIMPLE, expand=True, pad_edge=False)
    table.add_column("claim", ratio=6)
    table.add_column("checked by", ratio=5)
    table.add_column("found", ratio=5)
    table.add_column("")
    for proof in proofs:
        table.add_row(*map(Text, (proof.claim, proof.how, proof.result)), _mark(proof))
    console.print(table)


_TABLE_WIDTH = 70
"""Columns of a terminal that the longest word, or pair of digests, fits into in each column."""


def _mark(proof: Proof) -> Text:
    return Text("true", "green") if proof.holds else Text("FALSE", "bold red")


def require(proofs: Sequence[Proof]) -> None:
    """Raise unless every claim holds.

    Raises:
        ProofFailed: one does not; the message has each of them.
    """
    failed = [f"{proof.claim} ({proof.result})" for proof in proofs if not proof.holds]
    if failed:
        raise ProofFailed(
            f"{len(failed)} of {len(proofs)} claims are not true: {'; '.join(failed)}",
            advice="Please report this, with the whole output.",
        )
