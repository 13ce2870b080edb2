"""HTML as values: what is a plain `str` is escaped, so nothing of a run becomes markup.

All of the page is made with `tag`, which takes texts and other elements. Only what it returned is a
`Markup`, and only that is left as it is.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from torchkeep.wording import printable

LONGEST_TEXT = 2000
"""Characters of one text of a run that are shown. A file name may have been made to fill pages."""

_EMPTY = frozenset({"meta", "img", "col", "br"})


class Markup(str):
    """HTML that is put into the page as it is."""

    __slots__ = ()


Child = str | int | None
"""What stands in an element: `Markup`, a text or a number to be escaped, or nothing."""


def escaped(text: str) -> Markup:
    r"""Return a text as HTML: of the five special characters, none is left.

    Control characters, direction overrides and halves of surrogate pairs are written as escapes,
    since a browser would obey the former and UTF-8 has no place for the latter.

    >>> escaped('<b title="x">\u202e')
    '&lt;b title=&quot;x&quot;&gt;\\u202e'
    """
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return Markup(html.escape(printable(cut)))


def tag(name: str, /, *children: Child | Iterable[Child], **attributes: Child) -> Markup:
    """Return an element with its children; `for_="x"` gives `for="x"`, `data_x` gives `data-x`.

    An attribute that is None is left out, and one that is "" has no value.

    >>> tag("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    named = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        return Markup(f"<{name}{named}>")
    return Markup(f"<{name}{named}>{joined(*children)}</{name}>")


def joined(*children: Child | Iterable[Child]) -> Markup:
    """Return children one after the other, those that are plain text escaped."""
    return Markup("".join(_child(child) for child in children))


def _child(child: Child | Iterable[Child]) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int):
        return escaped(str(child))
    return joined(*child)


def _attribute(key: str, value: Child) -> str:
    if value is None:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value == "":
        return f" {name}"
    text = value if isinstance(value, Markup) else escaped(str(value))
    return f' {name}="{text}"'


def name_of(text: str, longest: int = 120) -> Markup:
    """Return a class's or file's name, apart from the direction of the text around it.

    A longer one is cut, and whole in the tooltip.
    """
    if len(text) <= longest:
        return tag("bdi", text or "(no name)")
    return tag("bdi", f"{text[: longest - 1]}…", title=text)
