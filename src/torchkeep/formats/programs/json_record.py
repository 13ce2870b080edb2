"""JSON in a record, read within bounds."""

from __future__ import annotations

from typing import Any

from torchkeep.errors import DamagedFile
from torchkeep.formats.plain_json import parse_json
from torchkeep.formats.zips.rooted import Archive


def read_json(archive: Archive, name: str) -> Any:
    """Return the JSON value in the record of this name below the root, which must be there.

    Raises:
        DamagedFile: it is no JSON, or has a key twice.
        LimitReached: it is longer than the limit called `header_nbytes`.
        UnsupportedContent: as `read_record` does.
    """
    record = archive.directory.records[archive.root + name]
    archive.limits.check("header_nbytes", max(record.nbytes, record.packed_nbytes))
    data = archive.read(name)
    try:
        # Python writes NaN and infinities into JSON as words.
        return parse_json(data, allow_nan=True)
    except DamagedFile as error:
        raise DamagedFile(f"record {name!r}: {error.problem}"[:300]) from None


def read_object(archive: Archive, name: str) -> dict[str, Any]:
    """Return a JSON object; `DamagedFile` if it is anything else. Errors as in `read_json`."""
    value = read_json(archive, name)
    if not isinstance(value, dict):
        raise DamagedFile(f"record {name!r} is no JSON object")
    return value
