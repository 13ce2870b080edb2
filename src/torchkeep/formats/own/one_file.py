"""A checkpoint of ours that is one file: a plain torch zip, `step-00001200.pth`.

Its tree has the keys that training scripts use, and one more:

    torchkeep
      manifest    the manifest as JSON text: see `own.manifest`
      tensors     a list of the state's tensors that are nowhere else in the tree
    epoch, global_step, loss, metrics
    model_state_dict, optimizer_state_dict, scheduler_state_dict, scaler_state_dict, ema_state_dict

In such a manifest `files`, `tensors` and `tied` are empty, and `places` tells for every tensor of
the structure where it is: the keys and positions that lead to it from the root. The digests are the
zip's own (`own.metadata.DIGESTS`), so a file without them is no whole checkpoint.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

from torchkeep.contents import Contents, Finding, TensorEntry, Value
from torchkeep.errors import DamagedFile, FileProblem, NotAModelFile, UnsupportedContent
from torchkeep.files import InputFile
from torchkeep.formats.own.manifest import FORMAT, parse_manifest, told_by
from torchkeep.formats.zips.rooted import open_archive
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

KEY = "torchkeep"
"""What stands in the tree besides the usual keys."""
MANIFEST_KEY = "manifest"
TENSORS_KEY = "tensors"
PLACES = "places"
"""The manifest's field that tells where the tensors are."""


def is_one_file(root: Value) -> bool:
    """Whether a file is a checkpoint of ours, by what stands in its tree."""
    text = _manifest_text(root)
    return text is not None and FORMAT in text[:200]


def told(root: Value) -> tuple[str, list[Finding]]:
    """Return what a file is in a few words if it is a checkpoint of ours, and what is wrong."""
    if not is_one_file(root):
        return "", []
    try:
        manifest = manifest_of(root)
        entries_of(root, manifest)
    except DamagedFile as problem:
        text = f"the manifest is unusable: {problem.problem}"
        finding = Finding("manifest", "damaged", f"{KEY}.{MANIFEST_KEY}", text)
        return "checkpoint of a torchkeep run without its manifest", [finding]
    return f"checkpoint of a torchkeep run at {told_by(manifest)}", []


def read_manifest_of(
    path: str | os.PathLike[str], *, limits: Limits | None = None
) -> dict[str, Any]:
    """Return the manifest of a checkpoint that is one file.

    A run's checkpoints are listed whenever one is pruned, so what need not be read is not: the
    manifest is the first text in the file, and proves itself by its digest.

    Arguments and errors are those of `read_one_file`.
    """
    with InputFile(path) as file:
        found = _first_manifest(file, limits or DEFAULT_LIMITS)
    return read_one_file(path, limits=limits)[1] if found is None else found


def _first_manifest(file: InputFile, limits: Limits) -> dict[str, Any] | None:
    """Return the manifest if it is where we write it, in a file that is not cut off."""
    try:
        directory, _ = open_archive(file, limits)
        record = directory.records[_PICKLE]
        limits.check("pickle_nbytes", record.packed_nbytes)
        data = file.read_at(record.offset, record.packed_nbytes)
        start = data.index(_BEGIN)
        (nbytes,) = struct.unpack_from("<I", data, start - 4)
        return _parsed(data[start : start + nbytes])
    except (FileProblem, KeyError, ValueError, struct.error):
        return None


_PICKLE = "archive/data.pkl"
_BEGIN = json.dumps({"format": FORMAT})[:-1].encode()
"""How a manifest begins; the length of the text is in the four bytes before it."""


def read_one_file(
    path: str | os.PathLike[str], *, limits: Limits | None = None
) -> tuple[Contents, dict[str, Any]]:
    """Return what a checkpoint that is one file holds, and its manifest.

    Args:
        path: the file.
        limits: bounds of the work; None if the run is the caller's own.

    Raises:
        FileMissing: there is none.
        DamagedFile: it is not what was written.
        LimitReached: it takes more work than `limits` allows.
    """
    from torchkeep.formats import describe  # which knows all formats, this one too

    try:
        contents = describe(path, limits=limits or DEFAULT_LIMITS)
        if not is_one_file(contents.root):
            raise DamagedFile("it is not a checkpoint of torchkeep")
        return contents, manifest_of(contents.root)
    except (NotAModelFile, UnsupportedContent) as problem:  # it was one when it was written
        raise DamagedFile(problem.problem, path=path) from None
    except FileProblem as problem:
        raise problem.in_file(path) from None


def manifest_of(root: Value) -> dict[str, Any]:
    """Return the manifest in a file's tree.

    Raises:
        DamagedFile: it is not what was written.
    """
    return _parsed(_manifest_text(root) or "")


def _parsed(text: str | bytes) -> dict[str, Any]:
    manifest = parse_manifest(text)
    places = manifest.get(PLACES)
    if not isinstance(places, dict) or not all(map(_is_place, places.values())):
        raise DamagedFile(f"its {PLACES!r} is not what a checkpoint has there")
    return manifest


def entries_of(root: Value, manifest: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """Return the tensors of the structure by name.

    Raises:
        DamagedFile: one is not where the manifest says.
    """
    return {name: _entry_at(root, place, name) for name, place in manifest[PLACES].items()}


def _manifest_text(root: Value) -> str | None:
    own = root.get(KEY) if isinstance(root, dict) else None
    text = own.get(MANIFEST_KEY) if isinstance(own, dict) else None
    return text if isinstance(text, str) else None


def _is_place(value: object) -> bool:
    return isinstance(value, list) and all(type(key) in (str, int) for key in value)


def _entry_at(root: Value, place: list[str | int], name: str) -> TensorEntry:
    found = root
    for key in place:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            raise DamagedFile(f"tensor {name} is missing") from None
    if not isinstance(found, TensorEntry):
        raise DamagedFile(f"tensor {name} is missing")
    return found
