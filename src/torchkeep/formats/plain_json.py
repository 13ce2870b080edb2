"""JSON that somebody else wrote: parsed strictly, within bounds, and told what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

from torchkeep.errors import DamagedFile


def parse_json(data: bytes | str, *, allow_nan: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        data: the text, in UTF-8 if it is bytes.
        allow_nan: take `NaN` and `Infinity`, which are no JSON and which Python writes.

    Raises:
        DamagedFile: it is no JSON, is nested too deeply, has a key twice (readers differ in which
            one they take), or has a text that no screen can show.
    """
    constant = float if allow_nan else _no_constant
    try:
        # Half of a surrogate pair, which a text may have, is no UTF-8 and refused here.
        encoded = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        text = encoded.decode("utf-8")  # given bytes, json would take UTF-16 as well
        # Half of a pair may still come from an escape, and most texts have none.
        as_table = _shown if rb"\ud" in encoded.lower() else _unique
        return json.loads(text, object_pairs_hook=as_table, parse_constant=constant)
    except UnicodeEncodeError:
        raise DamagedFile("it is no valid JSON (a text in it is not Unicode)") from None
    except ValueError as error:
        raise DamagedFile(f"it is no valid JSON ({error})") from None
    except RecursionError:
        raise DamagedFile("it is nested too deeply") from None


def json_or_text(text: str) -> Any:
    """Return the value of a text that may be JSON; if it is none, the text itself."""
    try:
        return parse_json(text)
    except DamagedFile:
        return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table


def _shown(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in pairs:  # half a surrogate pair is no text, and can't be shown
        key.encode()
        if isinstance(value, str):
            value.encode()
    return _unique(pairs)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
