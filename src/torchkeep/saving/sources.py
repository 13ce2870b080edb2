"""The source text of a model's own classes, each a file that could be run by itself.

A class's text alone lacks what its file imported. So the imports that the text uses stand above it,
those of the user's own package excepted, which won't be there.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

_HAVE_NO_OWN = {"torch", "torchvision", "timm", "numpy", *sys.stdlib_module_names}
"""Packages whose classes need no source text: who loads the model has them."""


def source_texts(named: Iterable[Any]) -> dict[str, str]:
    """Return the source text of the user's classes and functions by dotted name.

    Base classes that are the user's are among them; what was typed into a console is not.
    """
    found = {}
    for item in named:
        for part in reversed(item.__mro__) if isinstance(item, type) else (item,):
            path = f"{part.__module__}.{part.__qualname__}"
            if path.partition(".")[0] in _HAVE_NO_OWN - {"__main__"} or path in found:
                continue
            try:
                text = textwrap.dedent(inspect.getsource(part))
            except (OSError, TypeError):  # typed into a console, or written in C
                continue
            found[path] = _with_imports(text, part)
    return found


def _with_imports(text: str, part: Any) -> str:
    """Return a text below the imports of its file that it uses."""
    module = inspect.getmodule(part)
    try:
        whole = inspect.getsource(module) if module else ""
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        statements = ast.parse(whole).body
    except (OSError, TypeError, SyntaxError):  # a lambda's text is a piece of a line
        return text
    own = part.__module__.partition(".")[0]
    lines = [ast.unparse(node) for node in statements if _is_used_import(node, names, own)]
    return "\n".join(lines) + "\n\n\n" + text if lines else text


def _is_used_import(node: ast.stmt, names: set[str], own: str) -> bool:
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level or module.partition(".")[0] == own or module == "__future__":
            return False
    elif not isinstance(node, ast.Import):
        return False
    return any((alias.asname or alias.name.partition(".")[0]) in names for alias in node.names)
