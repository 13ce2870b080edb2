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
_OF_A_DCP = ("version", "save_id")
"""What a distributed checkpoint says about itself."""
_VERSIONS = {"torch-zip": "3", "dcp": "1.0.0"}
"""The versions of what torchkeep writes; a `version` of the user's hides it."""


def user_metadata(contents: Contents) -> dict[str, str]:
    """Return the texts that a user gave to safetensors files, or to what else torchkeep writes.

    Raises:
        DamagedFile: torchkeep's own tables in it are broken.
    """
    metadata = contents.metadata
    left_out = {*_OF_ANY_SAVE, *tied_names(contents)}
    if contents.container in _VERSIONS and "torchkeep_version" in metadata:
        left_out |= {*_OF_A_ZIP} if contents.container == "torch-zip" else {*_OF_A_DCP}
        if metadata.get("version") != _VERSIONS[contents.container]:
            left_out.discard("version")
    elif contents.container == "safetensors-sharded":
        left_out |= {"total_size", "index"}
    elif contents.container != "safetensors":
        return {}
    return {
        key: text
        for key, text in metadata.items()
        if key not in left_out and not key.startswith(RESERVED)
    }
