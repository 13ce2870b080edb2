"""The page's colours against their ground, by WCAG 2.2: 4.5 for text, 3 for lines."""

from __future__ import annotations

import re
from importlib import resources

import pytest

CSS = resources.files("torchkeep.report").joinpath("page.css").read_text("utf-8")
# Light, dark, print: each `:root` names its colours.
SCHEMES = [dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in CSS.split(":root {")[1:]]


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_black_on_white_is_21():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert len(SCHEMES) == 3


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark", "print"])
def test_text_and_lines_stand_out(scheme: dict[str, str]):
    grounds = {
        "paper": ["ink", "soft", "accent", "wrong", "bad"],
        "card": ["soft"],
        "bad-bg": ["ink", "soft", "bad"],
        "warn-bg": ["ink", "soft", "warn"],
        "note-bg": ["ink", "soft", "accent"],
    }
    for ground, texts in grounds.items():
        for text in texts:
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
    for curve in range(8):
        assert contrast(scheme[f"c{curve}"], scheme["paper"]) >= 3, curve
