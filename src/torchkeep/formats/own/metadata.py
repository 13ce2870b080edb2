"""What torchkeep itself writes into files besides the tensors: the names, and how to read them.

Whoever writes and whoever reads takes them from here. Each table is a JSON object of texts.
"""

from __future__ import annotations

from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile
from torchkeep.formats.plain_json import parse_json

METADATA_RECORD = "torchkeep.json"
"""The record of a torch zip that holds what `__metadata__` does in safetensors."""

CHECKPOINT = "torchkeep-checkpoint"
"""The container's name of a checkpoint's folder."""

RESERVED = "torchkeep."
"""Metadata keys that begin so are set by torchkeep alone."""

SLIMMED = "slimmed"
"""Metadata key of how a network differs from the one of its name: see `training.pruning`."""

DIGESTS = "torchkeep.digests"
"""Metadata key of the tensors' digests: a table from name to `files.digest`."""

TIED = "torchkeep.tied"
"""Metadata key of the names that share one tensor: a table from a name left out to the one kept."""

SAMPLES = "torchkeep.samples"
"""Metadata key of sample inputs with their outputs; see `formats/own/samples.py`."""

STRUCTURE = "torchkeep.structure"
"""Metadata key of the module tree of a model that was saved whole."""

LEFT_OUT = "torchkeep.left_out"
"""Metadata key of what a model that was saved whole had, and a file can't hold: a list of texts."""

METRIC = "metric"
"""Metadata key of the figures that a model had reached: a JSON object of numbers."""

FACTS = ("date", "torchkeep_version", "torch_version", "python_version")
"""Metadata keys that every save has."""

TRAINING_STATE: dict[str, str] = {"torchkeep.content": "training state"}
"""Metadata of the safetensors file that holds what a checkpoint of ours has besides the model."""


def stored_table(contents: Contents, key: str) -> dict[str, str] | None:
    """Return a table of ours from a file's metadata; None if the file has none.

    Raises:
        DamagedFile: it is no table of texts.
    """
    text = contents.metadata.get(key)
    if text is None:
        return None
    table = parse_texts(text)
    if table is None:
        raise DamagedFile(
            f"its metadata {key!r} is not the table that torchkeep writes",
            advice="Copy or download the file again.",
            path=contents.path,
        )
    return table


def parse_texts(text: str | bytes) -> dict[str, str] | None:
    """Return a JSON object of texts; None if it is anything else.

    >>> parse_texts('{"a": "b"}'), parse_texts('{"a": 1}'), parse_texts("{")
    ({'a': 'b'}, None, None)
    """
    try:
        table = parse_json(text)
    except DamagedFile:
        return None
    is_table = isinstance(table, dict) and all(isinstance(item, str) for item in table.values())
    return table if is_table else None
