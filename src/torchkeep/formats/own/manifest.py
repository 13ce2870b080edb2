"""The folder of a checkpoint of ours, and its manifest: what stands where, and what must be true.

    step-00001200/
      model.safetensors    the model's state dict, as anyone would save it
      state.safetensors    every other tensor of the state
      manifest.json        written last: what the state is made of, digests, facts for a person

Parameters that are frozen have a file of their own, which the checkpoints of a run share (a hard
link). The model is two shards and an index then, as Hugging Face names them. Frozen parameters of
other objects (a teacher, an average) are in a file of their own likewise.

      model-00001-of-00002.safetensors    the frozen parameters
      model-00002-of-00002.safetensors    the rest of the state dict
      model.safetensors.index.json        which tensor is where
      state-frozen.safetensors            frozen parameters of other objects

What several ranks have trained together has, besides, a file of each of them:

      shard-00001-model-00001-of-00001.safetensors   of a sharded model: the first rank's pieces
      rank-00000.safetensors                         its pieces of other tensors
      rank-00001.safetensors                         of others also what they have each for itself

A shard is as PyTorch's `HuggingFaceStorageWriter` lays it out, and its reader reads it. Where a
piece begins in its tensor stands in the manifest as well (`boxes`). What a rank has for itself
(random states, the order of its samples) stands in its own file: its tensors, and in the header the
parts of the structure that differ from the first rank's (`RANK_STRUCTURE`). Such a checkpoint has
version 3.

A checkpoint may also be one file, `step-00001200.pth`; see `own.one_file`.

Nothing of a manifest is used before it was checked: it is a file like any other.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from torchkeep.errors import DamagedFile, FileProblem, UnsupportedContent
from torchkeep.files import InputFile, digest
from torchkeep.formats.own.metadata import TRAINING_STATE
from torchkeep.formats.own.structure import inert
from torchkeep.formats.plain_json import parse_json
from torchkeep.pickles.limits import Limits

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
FROZEN_MODEL_FILE = "model-00001-of-00002.safetensors"
TRAINED_MODEL_FILE = "model-00002-of-00002.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
STATE_FILE = "state.safetensors"
FROZEN_STATE_FILE = "state-frozen.safetensors"
MODEL_FILES = (MODEL_FILE, FROZEN_MODEL_FILE, TRAINED_MODEL_FILE)
TENSOR_FILES = (*MODEL_FILES, STATE_FILE, FROZEN_STATE_FILE)
OWN_FILES = (MANIFEST, MODEL_INDEX, *TENSOR_FILES)
"""Every name that a file in a checkpoint's folder may have, but for those of ranks."""

FORMAT = "torchkeep checkpoint"
FORMAT_VERSION = 2
RANKS_VERSION = 3
"""The version of what several ranks have written."""
_VERSIONS = (FORMAT_VERSION, RANKS_VERSION)
_MOST_NBYTES = 1 << 30
"""More than a manifest of a million tensors has."""

_LAST_VERSION = 1000
"""No torchkeep will write this one: a manifest that has it is broken, and not newer."""

CHECKPOINT_NAME = re.compile(r"step-(\d{8,})(?:-\d+)?")
"""The names of the checkpoints in a run's folder; the number is that of the finished steps."""

ONE_FILE = ".pth"
"""What the name of a checkpoint that is one file ends with."""

_RANK_FILE = re.compile(r"rank-(\d{5})\.safetensors")
_MODEL_SHARD = re.compile(r"shard-(\d{5})-model-00001-of-00001\.safetensors")
RANK_STRUCTURE = "torchkeep.rank_structure"
"""Metadata key of the parts of the structure that a rank has for itself."""

OBJECTS = "objects/"
"""Tensors with names like this are of a captured object."""
_MODEL_PREFIX = f"{OBJECTS}model/state/state_dict/"
"""Tensors with names like this are the model's state dict, and go into a file of their own."""


def folder_name(step: int, revision: int = 1) -> str:
    """Return the name of a checkpoint's folder, one that `CHECKPOINT_NAME` matches.

    >>> folder_name(1200), folder_name(1200, 2)
    ('step-00001200', 'step-00001200-2')
    """
    name = f"step-{step:08d}"
    return name if revision == 1 else f"{name}-{revision}"


def checkpoint_step(path: Path) -> int | None:
    """Return the step in a checkpoint's name; None if the name is none of a folder or a file.

    >>> checkpoint_step(Path("run/step-00000007.pth")), checkpoint_step(Path("run/step-7"))
    (7, None)
    """
    match = CHECKPOINT_NAME.fullmatch(path.name.removesuffix(ONE_FILE))
    return int(match[1]) if match else None


def is_checkpoint_there(path: Path) -> bool:
    """Whether there is a folder or a file under a name that a checkpoint of that kind has."""
    is_kind = path.is_file if path.name.endswith(ONE_FILE) else path.is_dir
    return checkpoint_step(path) is not None and is_kind()


def place_of(name: str) -> tuple[str, str]:
    """Return the file that holds a tensor of the structure, and the tensor's name in it.

    That is where nothing is frozen; see `split_files`.

    >>> place_of("rng/torch"), place_of("objects/model/state/state_dict/fc.bias")
    (('state.safetensors', 'rng/torch'), ('model.safetensors', 'fc.bias'))
    """
    if name.startswith(_MODEL_PREFIX):
        return MODEL_FILE, name.removeprefix(_MODEL_PREFIX)
    return STATE_FILE, name


def texts_of(file: str) -> dict[str, str]:
    """Return what stands in the header of a file of tensors, besides the tensors."""
    return TRAINING_STATE if file in (STATE_FILE, FROZEN_STATE_FILE) else {}


def name_of(file: str, key: str) -> str:
    """Return the name that a tensor of a file has in the structure: what `place_of` undoes."""
    is_model = file in MODEL_FILES or is_model_shard(file)
    return f"{_MODEL_PREFIX}{key}" if is_model else key


def place_of_piece(name: str, rank: int) -> tuple[str, str]:
    """Return the file of a rank that holds its piece of a tensor, and the piece's name in it.

    >>> place_of_piece("objects/model/state/state_dict/fc.bias", 1)
    ('shard-00002-model-00001-of-00001.safetensors', 'fc.bias')
    """
    if name.startswith(_MODEL_PREFIX):
        return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors", place_of(name)[1]
    return rank_file(rank), name


def rank_file(rank: int) -> str:
    """Return the name of the file that a rank has for itself."""
    return f"rank-{rank:05d}.safetensors"


def is_model_shard(name: str) -> bool:
    """Whether a file holds what a rank has of a sharded model."""
    return _MODEL_SHARD.fullmatch(name) is not None


def is_own_file(name: str) -> bool:
    """Whether a file in a checkpoint's folder may have a name."""
    return name in OWN_FILES or _rank_of(name) is not None


def _rank_of(file: str) -> int | None:
    """Return which rank has written a file for itself; None if it is of all."""
    if match := _RANK_FILE.fullmatch(file):
        return int(match[1])
    return int(match[1]) - 1 if (match := _MODEL_SHARD.fullmatch(file)) else None


def split_files(file: str) -> tuple[str, str]:
    """Return the files that stand for one with frozen tensors: for those, and for the rest.

    >>> split_files(STATE_FILE)
    ('state-frozen.safetensors', 'state.safetensors')
    """
    if file == MODEL_FILE:
        return FROZEN_MODEL_FILE, TRAINED_MODEL_FILE
    return FROZEN_STATE_FILE, STATE_FILE


class StoredTensor(NamedTuple):
    """A tensor of which a manifest says where it is."""

    name: str
    """Its name in the structure."""
    file: str
    """The file that holds it."""
    key: str
    """The name under which it is stored there: its own, or that of one that it is tied to."""
    digest: str
    """The digest of its bytes."""
    offsets: tuple[int, ...] | None = None
    """Of a piece, where in the tensor it begins; None if it is all of it."""
    shape: tuple[int, ...] = ()
    """Of a piece, the sizes of the tensor."""


def stored_tensors(manifest: Mapping[str, Any], rank: int = 0) -> Iterator[StoredTensor]:
    """Yield where the tensors of a checkpoint are, file by file; of a sharded one, each piece.

    Args:
        manifest: the checkpoint's.
        rank: whose; what the other ranks have for themselves is left out.
    """
    others = {rank_file(other) for other in range(manifest.get("ranks", 1)) if other != rank}
    for file, digests in manifest["tensors"].items():
        tied, boxes = manifest["tied"][file], manifest.get("boxes", {}).get(file, {})
        for key, expected in digests.items():
            place = name_of(file, key), file, tied.get(key, key), expected
            if key in boxes:
                box = boxes[key]
                yield StoredTensor(*place, tuple(box["offsets"]), tuple(box["shape"]))
            elif file not in others:
                yield StoredTensor(*place)


def told_by(manifest: Mapping[str, Any]) -> str:
    """Return how far a checkpoint is, in a few words."""
    return f"step {manifest['step']}, epoch {manifest['epoch']}, saved {manifest['date'][:40]}"


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of all that a manifest says but its digest."""
    rest = {key: item for key, item in manifest.items() if key != "digest"}
    return digest(json.dumps(rest, sort_keys=True).encode())


def read_manifest(
    folder: str | os.PathLike[str], *, limits: Limits | None = None
) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Args:
        folder: the checkpoint, which may be one file as well.
        limits: bounds of its length; None if the run is the caller's own.

    Raises:
        FileMissing: there is none.
        DamagedFile: it is not what was written.
        LimitReached: it is longer than `limits` allows.
    """
    if _is_file(folder):
        from torchkeep.formats.own.one_file import read_manifest_of  # which uses this module

        return read_manifest_of(folder, limits=limits)
    path = Path(folder) / MANIFEST
    with InputFile(path) as file:
        try:
            if limits is not None:
                limits.check("header_nbytes", file.nbytes)
            if file.nbytes > _MOST_NBYTES:
                raise DamagedFile(f"it has {file.nbytes:,} bytes, which no manifest has")
            return parse_manifest(file.read_at(0, file.nbytes))
        except FileProblem as error:
            raise error.in_file(path) from None


def _is_file(path: str | os.PathLike[str]) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # why, will be told by whoever opens it
        return False


def parse_manifest(text: str | bytes) -> dict[str, Any]:
    """Return the manifest that a text is.

    Raises:
        DamagedFile: it is none, or not what was written.
    """
    try:
        manifest = parse_json(text)
        _check_manifest(manifest)
    except RecursionError:  # for its digest it is written again, which takes more of Python's stack
        raise DamagedFile("it is nested too deeply") from None
    checked: dict[str, Any] = manifest
    return checked


def _check_manifest(manifest: object) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamagedFile("it is not the manifest of a checkpoint")
    version = manifest.get("version")
    if type(version) is int and RANKS_VERSION < version < _LAST_VERSION:
        raise UnsupportedContent(
            f"it has version {version}, and this torchkeep reads {RANKS_VERSION}",
            advice="Use the torchkeep that wrote it, or a newer one.",
        )
    if version not in _VERSIONS or type(version) is not int:
        raise DamagedFile(
            f"it has version {reprlib.repr(manifest.get('version'))}, and this torchkeep reads "
            f"{RANKS_VERSION}",
            advice="Use the torchkeep that wrote it, or a newer one.",
        )
    if manifest.get("digest") != manifest_digest(manifest):
        raise DamagedFile("its digest differs from what was written")
    wrong = [name for name, is_right in _FIELDS.items() if not is_right(manifest.get(name))]
    if wrong:
        raise DamagedFile(f"its {wrong[0]!r} is not what a checkpoint has there")
    if not isinstance(inert(manifest["metrics"], {}), dict):
        raise DamagedFile("its 'metrics' is not what a checkpoint has there")
    holders = manifest["files"].keys() - {MODEL_INDEX}
    if not holders == manifest["tensors"].keys() == manifest["tied"].keys():
        raise DamagedFile("its 'files', 'tensors' and 'tied' name different files")
    if version == RANKS_VERSION:
        _check_ranks(manifest)
    elif told := [name for name in ("ranks", "boxes") if name in manifest]:
        raise DamagedFile(f"it has {told[0]!r}, and version {version} knows of no ranks")


def _check_ranks(manifest: Mapping[str, Any]) -> None:
    """Make sure that a manifest tells of ranks as ours do, and of no file that is missing in it.

    Raises:
        DamagedFile: it does not.
    """
    ranks: Any = manifest.get("ranks")
    boxes: Any = manifest.get("boxes")
    if type(ranks) is not int or not 0 < ranks <= _MOST_RANKS:
        raise DamagedFile("its 'ranks' is not what a checkpoint has there")
    if not _is_table(boxes, lambda pieces: _is_table(pieces, _is_box)):
        raise DamagedFile("its 'boxes' is not what a checkpoint has there")
    stored = manifest["tensors"]
    if any(pieces.keys() - stored.get(file, {}).keys() for file, pieces in boxes.items()):
        raise DamagedFile("its 'boxes' and 'tensors' name different tensors")
    if missing := [rank_file(n) for n in range(1, ranks) if rank_file(n) not in stored]:
        raise DamagedFile(f"it names no {missing[0]}, and {ranks} ranks have written it")
    if more := [file for file in stored if (_rank_of(file) or 0) >= ranks]:
        raise DamagedFile(f"it names {more[0]}, and {ranks} ranks have written it")
    shards = {file for file in stored if is_model_shard(file)}
    wholes = [key for file in shards for key in stored[file].keys() - boxes.get(file, {}).keys()]
    in_pieces = {key for file in shards for key in boxes.get(file, {})}
    if twice := [key for key, num in Counter(wholes).items() if num > 1 or key in in_pieces]:
        raise DamagedFile(f"it has tensor {twice[0]} as a whole, and once more")


def _is_box(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    sizes = value.get("offsets"), value.get("shape")
    return (
        all(isinstance(item, list) and all(map(_is_count, item)) for item in sizes)
        and len(value["offsets"]) == len(value["shape"]) <= _MOST_DIMENSIONS
    )


_MOST_RANKS = 100_000
_MOST_DIMENSIONS = 64
_LARGEST_COUNT = 1 << 48
"""Sizes and steps stay below this, and so does a number that is made from them."""


def _is_table(value: object, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_right, value.values()))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_COUNT


def _are_files(value: object) -> bool:
    """Tell whether it names our files, and no others: a manifest is no list of what to read."""

    def is_file(facts: Any) -> bool:
        return (
            isinstance(facts, dict)
            and _is_count(facts.get("nbytes"))
            and _is_text(facts.get("digest"))
        )

    if not _is_table(value, is_file):
        return False
    return all(name != MANIFEST and is_own_file(name) for name in cast("dict[str, Any]", value))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "files": _are_files,
    "tensors": lambda value: _is_table(value, lambda digests: _is_table(digests, _is_text)),
    "tied": lambda value: _is_table(value, lambda names: _is_table(names, _is_text)),
    "structure": lambda value: isinstance(value, dict),
    "serial": _is_count,
    "step": _is_count,
    "epoch": _is_count,
    "batch": _is_count,
    "metrics": lambda value: isinstance(value, dict),
    "date": _is_text,
    "inexact": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}
"""What is read from a manifest, and whether it is of the right kind."""


def wrong_size(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which file is missing or has another size than its manifest says; empty if none."""
    for name, expected in files.items():
        try:
            nbytes = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if problem := size_problem(name, nbytes, expected):
            return problem
    return ""


def size_problem(name: str, nbytes: int, expected: Mapping[str, Any]) -> str:
    """Return what is wrong with the size of a file of the manifest; empty if nothing is."""
    wanted = expected["nbytes"]
    return "" if nbytes == wanted else f"{name} has {nbytes} bytes instead of {wanted}"
