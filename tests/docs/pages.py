"""The pages of the documentation as programs: Python blocks, commands, and what they print.

A ```` ```python ```` block runs; a ```` ```text ```` block right after it is its output. In a
```` ```console ```` block, lines with `$ ` are commands and the others their output. In an
expected output, `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_VERBS = (
    "inspect",
    "scan",
    "verify",
    "match",
    "convert",
    "diff",
    "rescue",
    "runs",
    "prune",
    "doctor",
    "train",
    "evaluate",
    "predict",
    "slim",
    "export",
    "--version",
)
"""What is run of a page's commands; the others take minutes, or change the machine."""

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    start: int
    """Place of the text in the page."""
    line: int
    """Line of the text's start in the page, from 1."""
    follows: bool
    """Whether nothing but blank lines is between the block before and this one."""


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found, end = [], -1
    for match in _FENCE.finditer(page):
        start = match.start("text")
        between = page[end : match.start()] if end >= 0 else "no block before"
        line = page.count("\n", 0, start) + 1
        found.append(Block(match["language"], match["text"], start, line, not between.strip()))
        end = match.end()
    return found


def run_page(page: str, name: str) -> str:
    """Run a page in the current folder; return it with the outputs that came in place of others.

    A page that is right comes back unchanged. Where an expected output matches, `...` and all, it
    stays as it is.
    """
    module = types.ModuleType("page")
    sys.modules["page"] = module  # so that classes of the page can be pickled
    pieces, end, printed = [], 0, ""
    try:
        for block in blocks(page):
            new = block.text
            if block.language == "python":
                printed = _run_python(block, name, module)
            elif block.language == "text" and block.follows and printed:
                new, printed = _agreed(block.text, printed), ""
            elif block.language == "console":
                new = _run_console(block.text)
            pieces += [page[end : block.start], new]
            end = block.start + len(block.text)
    finally:
        del sys.modules["page"]
    return "".join([*pieces, page[end:]])


def _run_python(block: Block, name: str, module: types.ModuleType) -> str:
    # Blank lines before it, so that a traceback has the page's line numbers.
    code = compile("\n" * (block.line - 1) + block.text, name, "exec")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, vars(module))
    return output.getvalue()


def _run_console(text: str) -> str:
    lines: list[str] = []
    for part in re.split(r"^(?=\$ )", text, flags=re.MULTILINE):
        command, _, expected = part.partition("\n")
        output = _output_of(shlex.split(command.removeprefix("$ "), comments=True))
        if output is not None:
            expected = _agreed(expected, output)
        lines += [command + "\n" if part else "", expected]
    return "".join(lines)


def _output_of(words: list[str]) -> str | None:
    """Return what a command writes: torchkeep's, or an example's; None for others."""
    if words[:1] == ["torchkeep"] and words[1] in _VERBS:
        return forked.output_of(words[1:])
    settings, words = _settings(words)
    place = next((n for n, word in enumerate(words) if word.startswith("examples/")), None)
    if words[:1] not in (["python"], ["torchrun"]) or place is None:
        return None
    start = ["-m", "torch.distributed.run"] if words[0] == "torchrun" else []
    command = [
        sys.executable,
        *start,
        *words[1:place],
        str(ROOT / words[place]),
        *words[place + 1 :],
    ]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if start else subprocess.STDOUT,  # torchrun tells of each kill
        env={**os.environ, **settings},
        text=True,
        check=False,
    )
    return done.stdout


def _settings(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that a command begins with, and the rest of it."""
    settings = {}
    while words and re.fullmatch(r"[A-Z_]+=\w+", words[0]):
        name, _, value = words[0].partition("=")
        settings[name] = value
        words = words[1:]
    return settings, words


def _agreed(expected: str, found: str) -> str:
    matches = doctest.OutputChecker().check_output(expected, found, doctest.ELLIPSIS)
    return expected if matches else found
