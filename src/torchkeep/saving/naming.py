"""Names of files that are made of what the save says about itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter

from torchkeep.errors import SaveRefused

_FORBIDDEN = ("/", "\\", "\0")
"""What a value may not bring into a name: it would lead to another folder."""


def filled_path(
    path: str | os.PathLike[str], given: Mapping[str, object], texts: Mapping[str, str]
) -> Path:
    """Return the path with the fields of its last component filled in.

    `net-{version}-{epoch:03}.pth` takes the values of `version` and `epoch`. `{date}` is the day
    alone, since a time has colons. `{{` and `}}` stand for braces; a name without any is itself.

    Args:
        path: the path. Folders are taken as they are.
        given: the metadata as the user gave it, so that numbers can be formatted.
        texts: all metadata as it is stored.

    Raises:
        SaveRefused: a field has no value, or one that is no part of a name.
    """
    whole = Path(path)
    if "{" not in whole.name and "}" not in whole.name:
        return whole
    try:
        name = "".join(_pieces(whole.name, {**texts, **given, "date": texts["date"][:10]}))
    except ValueError as error:
        raise SaveRefused(
            f"{whole.name!r} can't be filled in ({error})",
            advice="Write a field as {version} or {epoch:03}, and a brace as {{ or }}.",
        ) from None
    return whole.with_name(name)


def _pieces(template: str, values: Mapping[str, object]) -> Iterator[str]:
    for literal, field, spec, conversion in Formatter().parse(template):
        yield literal
        if field is None:
            continue
        if conversion:
            raise ValueError(f"!{conversion} is not supported")
        if field not in values:
            known = ", ".join(sorted(values))
            raise SaveRefused(
                f"{template!r} has a field {field!r}, which the metadata does not have",
                advice=f"Give metadata={{{field!r}: ...}}, or use one of: {known}.",
            )
        yield _part_of_name(field, values[field], spec or "")


def _part_of_name(field: str, value: object, spec: str) -> str:
    if not isinstance(value, str | int | float):
        raise SaveRefused(
            f"metadata {field!r} is a {type(value).__name__}, which can't be a part of a name",
            advice="Use texts and numbers in names.",
        )
    part = format(value, spec)
    if not part or any(sign in part for sign in _FORBIDDEN):
        raise SaveRefused(
            f"metadata {field!r} is {part!r}, which can't be a part of a name",
            advice="Take out the slashes, or leave the field out of the name.",
        )
    return part
