"""The modules of a pickled model, one line each, as `print(model)` would show them.

Siblings that hold the same, name apart, share their lines: `(0...11): 12 x Block`. Of a module's
attributes those are shown that say something: what is off, or as PyTorch sets it by default, is
left out here, and kept in the JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.showing import clip, show
from torchkeep.wording import counted

if TYPE_CHECKING:
    from torchkeep.identify.modules import ModuleNode

INDENT = "  "
MAX_DEPTH = 40
"""Levels that are shown; real networks have ten."""

_USUAL = frozenset(
    {
        ("affine", "True"),
        ("batch_first", "False"),
        ("dilation", "1"),
        ("eps", "1e-05"),
        ("groups", "1"),
        ("momentum", "0.1"),
        ("output_padding", "0"),
        ("padding", "0"),
        ("padding_mode", "zeros"),
        ("stride", "1"),
        ("track_running_stats", "True"),
    }
)
"""Values that the constructors of torch.nn give by default, `(1, 1)` being written as `1`."""


def tree_lines(node: ModuleNode, *, depth: int = MAX_DEPTH) -> list[str]:
    """Return the lines of a module and of all below it; the first has no name in front."""
    lines = [_head(node)]
    if node.children and depth == 0:
        return [*lines, f"{INDENT}... ({counted(len(node.children), 'module')} below)"]
    runs: list[tuple[list[str], list[str]]] = []
    for child in node.children:
        body = tree_lines(child, depth=depth - 1)
        if runs and runs[-1][1] == body:
            runs[-1][0].append(child.name)
        else:
            runs.append(([child.name], body))
    for names, (head, *rest) in runs:
        lines.append(f"{INDENT}{_label(names)} {head}")
        lines += [INDENT + line for line in rest]
    return lines


def _label(names: list[str]) -> str:
    if len(names) == 1:
        return f"({clip(names[0])}):"
    return f"({clip(names[0])}...{clip(names[-1])}): {len(names)} x"


def _head(node: ModuleNode) -> str:
    """Return the class with its telling attributes, and the number of its own parameters."""
    values = {clip(name): _show_attribute(value) for name, value in node.attributes.items()}
    told = [
        f"{name}={value}"
        for name, value in values.items()
        if value not in ("None", "False") and (name, value) not in _USUAL
    ]
    numel = sum(entry.numel for entry in node.parameters.values())
    held = f", {counted(numel, 'parameter')}" if numel else ""
    return f"{clip(node.class_path.rpartition('.')[2])}({', '.join(told)}){held}"


def _show_attribute(value: object) -> str:
    """Return a value on a short line; `(3, 3)` is as good as 3."""
    # Only numbers: to compare tuples of tuples can take for ever.
    if isinstance(value, tuple) and value and all(type(item) is int for item in value):
        value = value[0] if len(set(value)) == 1 else value
    return show(value, depth=1)
