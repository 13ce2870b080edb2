"""Numbers as the page shows them."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

NOTHING = "\N{EN DASH}"
"""What stands where a value is missing or not defined."""
TIMES = "\N{MULTIPLICATION SIGN}"
"""What stands between the parts of a shape, and where a value is not finite."""


def number(value: float, digits: int = 4) -> str:
    """Return a number in few digits: plain where that is short, else as a power of ten.

    >>> number(0.97222), number(3e-05), number(12345.6), number(7.0), number(float("nan"))
    ('0.9722', '3e-05', '12,350', '7', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    if value and not 1e-4 <= abs(value) < 1e9:
        mantissa, _, exponent = f"{value:.{min(digits, 3) - 1}e}".partition("e")
        return f"{_without_zeros(mantissa)}e{exponent}"
    # Only all of it is 1: a share of 0.99996 must not look like it.
    while value < 1 and digits < 15 and float(f"{value:.{digits}g}") == 1:
        digits += 1
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    return _without_zeros(f"{rounded:,.{decimals}f}")


def _without_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def as_float(value: Any) -> float:
    """Return a real number as a float; of one that is too large, infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def shown(value: object) -> str:
    """Return any value of a history or a setting as text.

    >>> shown(None), shown(True), shown(0.1), shown((1, 2)), shown("adam")
    ('–', 'yes', '0.1', '1, 2', 'adam')
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    if isinstance(value, Real):
        return number(as_float(value))
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return str(value)


def duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> duration(0.25), duration(42), duration(200), duration(7385), duration(200_000)
    ('0.25 s', '42 s', '3 min 20 s', '2 h 3 min', '2 d 7 h')
    """
    if not math.isfinite(seconds) or seconds < 0:
        return NOTHING
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    whole = round(seconds)
    for size, unit, small_size, small_unit in _UNITS:
        if whole >= size:
            small = whole % size // small_size
            return f"{whole // size} {unit}" + (f" {small} {small_unit}" if small else "")
    return f"{whole} s"


_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
