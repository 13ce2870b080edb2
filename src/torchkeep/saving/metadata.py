"""What every save says about itself: when and by what it was made, and what the user adds.

Metadata is a flat table of texts, the same in both formats: in a safetensors file it is the
header's `__metadata__`, in a torch zip the record `torchkeep.json`. Values that the user gives and
that are no texts are stored as JSON text.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime

import torch

from torchkeep import __version__
from torchkeep.errors import SaveRefused
from torchkeep.formats.own.metadata import RESERVED

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
"""What a metadata value may be."""


def save_metadata(metadata: Mapping[str, JSON] | None = None) -> dict[str, str]:
    """Return the table of texts to be stored: torchkeep's own keys, then the user's.

    Own keys are `date` (UTC, ISO 8601, to the second), `torchkeep_version`, `torch_version` and
    `python_version`. The user's win, so a given `date` makes the file reproducible.

    Raises:
        SaveRefused: a key is no text or is torchkeep's to set, or a value can't be written as JSON.
    """
    table = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "torchkeep_version": __version__,
        "torch_version": str(torch.__version__),
        "python_version": platform.python_version(),
    }
    for key, value in (metadata or {}).items():
        table[_checked_key(key)] = value if isinstance(value, str) else _json_text(key, value)
    return table


def _checked_key(key: object) -> str:
    if not isinstance(key, str):
        raise SaveRefused(f"metadata key {key!r} is no text", advice="Use texts as keys.")
    if key.startswith(RESERVED):
        raise SaveRefused(f"metadata key {key!r} is set by torchkeep", advice="Use another key.")
    return key


def _json_text(key: str, value: JSON) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SaveRefused(
            f"metadata {key!r} can't be written as JSON ({error})",
            advice="Use None, booleans, numbers, texts, lists and dicts.",
        ) from None
