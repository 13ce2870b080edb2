"""The worst mistakes, with their pictures in the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from torchkeep.report.amounts import number
from torchkeep.report.data import Mistake
from torchkeep.report.markup import Markup, joined, name_of, tag
from torchkeep.wording import share, shortened

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_SMALL = 64


def mistakes_part(mistakes: Sequence[Mistake]) -> Markup:
    """Return a card per mistake, or a sentence if there are none."""
    if not mistakes:
        return tag("p", "There are none.")
    return tag("ol", map(_card, mistakes), class_="cards")


def _card(mistake: Mistake) -> Markup:
    told = joined(
        tag("p", tag("span", "is ", class_="quiet"), tag("b", name_of(mistake.true, 60))),
        tag(
            "p",
            tag("span", "taken for ", class_="quiet"),
            tag("b", name_of(mistake.predicted, 60), class_="wrong"),
            f" {_probability(mistake.probability)}",
        ),
        tag("p", name_of(mistake.file, 80), class_="file"),
        tag("p", f"loss {number(mistake.loss, 3)}", class_="quiet"),
    )
    return tag("li", _picture(mistake), tag("div", told))


def _probability(value: float) -> str:
    return share(value) if 0 <= value <= 1 else number(value)


def _picture(mistake: Mistake) -> Markup:
    kind = picture_kind(mistake.picture or b"")
    if not mistake.picture or not kind:
        return tag("div", "no picture", class_="picture none")
    data = base64.b64encode(mistake.picture).decode("ascii")
    return tag(
        "img",
        src=Markup(f"data:{kind};base64,{data}"),
        alt=f"{shortened(mistake.true)}, taken for {shortened(mistake.predicted)}",
        class_="picture coarse" if _is_small(mistake.picture) else "picture",
        width=112,
        height=112,
    )


def picture_kind(picture: bytes) -> str | None:
    """Return `image/png` or `image/jpeg` by a file's first bytes; None if it is neither."""
    if picture.startswith(_PNG):
        return "image/png"
    return "image/jpeg" if picture.startswith(_JPEG) else None


def _is_small(picture: bytes) -> bool:
    """Return whether it is a PNG of few pixels, which are to be seen as such, not blurred.

    Its size stands in the first chunk, big-endian (PNG specification, 11.2.1).
    """
    return picture.startswith(_PNG) and 0 < int.from_bytes(picture[16:20], "big") <= _SMALL
