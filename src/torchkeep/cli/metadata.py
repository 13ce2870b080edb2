"""What the writer of a file said about it, as rows that a person reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

from torchkeep.cli.text import clip
from torchkeep.errors import DamagedFile
from torchkeep.formats.own.metadata import RESERVED, SAMPLES, STRUCTURE
from torchkeep.formats.plain_json import parse_json
from torchkeep.identify import Inspection
from torchkeep.identify.json_form import readable_metadata

_CONTAINER_FACTS = frozenset(
    "format version format_version byteorder storage_alignment protocol_version machine".split()
)
"""Metadata that says how the file is built; a person asked what it holds."""

_MOST_LEVELS = 4


def metadata_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """Return names and values; what torchkeep reads for itself is left out.

    A value that is a JSON object, such as the training parameters, has a row for each of its own.
    """
    names = {name for item in inspection.state_dicts for name in item.entries}
    rows = [
        (clip(name), clip(text))
        for key, value in inspection.metadata.items()
        # A value that names a tensor is how safetensors records that two are one.
        if not key.startswith(RESERVED)
        and value not in names
        and not _is_of_the_container(inspection.container, key, value)
        for name, text in _unfolded(key, value)
    ]
    own = {key: text for key, text in inspection.metadata.items() if key in (SAMPLES, STRUCTURE)}
    told = readable_metadata(own).items()
    return rows + [(key.removeprefix(RESERVED), clip(text)) for key, text in told]


def _is_of_the_container(container: str, key: str, value: str) -> bool:
    if container.startswith("safetensors"):  # all other texts there are its user's
        return key == "format"
    return key in _CONTAINER_FACTS and (key != "version" or value.isdigit())


def _unfolded(key: str, value: str) -> list[tuple[str, str]]:
    if not value.startswith("{"):
        return [(key, value)]
    try:
        return list(_rows(key, parse_json(value), _MOST_LEVELS))
    except (DamagedFile, RecursionError):  # a text that begins like JSON
        return [(key, value)]


def _rows(key: str, value: object, levels: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and levels:
        for name, item in value.items():
            yield from _rows(f"{key}.{name}", item, levels - 1)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
