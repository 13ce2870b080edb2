"""What a user wrote into a file's metadata, apart from what tells how the file came about."""

from __future__ import annotations

from torchkeep.contents import Contents
from torchkeep.formats.own.metadata import FACTS, RESERVED
from torchkeep.matching.tied import tied_names

CONVERTED_FROM = "converted_from"
"""Metadata key that says which file a converted one was made from, as JSON."""

_OF_ANY_SAVE = frozenset({*FACTS, "format", CONVERTED_FROM})
_OF_A_ZIP = ("version", "byteorder", "format_version", "storage_alignment", "serialization_id")
"""What an archive of torch says about itself."""
_ZIP_VERSION = "3"
"""The version of the archives that torchkeep writes; a `version` of the user's hides it."""


def user_metadata(contents: Contents) -> dict[str, str]:
    """Return the texts that a user gave to safetensors files, or to a torch zip of torchkeep's.

    Raises:
        DamagedFile: torchkeep's own tables in it are broken.
    """
    metadata = contents.metadata
    left_out = {*_OF_ANY_SAVE, *tied_names(contents)}
    if contents.container == "torch-zip" and "torchkeep_version" in metadata:
        left_out |= {key for key in _OF_A_ZIP if key != "version" or metadata[key] == _ZIP_VERSION}
    elif contents.container == "safetensors-sharded":
        left_out |= {"total_size", "index"}
    elif contents.container != "safetensors":
        return {}
    return {
        key: text
        for key, text in metadata.items()
        if key not in left_out and not key.startswith(RESERVED)
    }
