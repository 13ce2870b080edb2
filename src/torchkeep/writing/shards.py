"""A state dict in several safetensors files, with the index that tells which tensor is where.

`formats/folders/sharded.py` has the layout, which is that of Hugging Face. The shards are written
beside each other under temporary names; they get their own when the last one is whole, and then the
index, which is what makes them a model, gets its.

An earlier save in the same place stays whole until then. Only if it has shards of the same names
must these be replaced one by one; so its index is removed first, and whoever is interrupted in that
moment leaves shards without an index, which no reader takes for a model.

Source: huggingface_hub/serialization/_base.py (`split_state_dict_into_shards_factory`), _torch.py
(`save_torch_state_dict`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from torchkeep.errors import SaveRefused, WrongArgument
from torchkeep.files import OutputFile, Progress, atomic_file, remove_files
from torchkeep.formats.own.metadata import FACTS, TIED
from torchkeep.writing.report import SaveReport
from torchkeep.writing.safetensors import Layout, TensorData, untied, write_safetensors
from torchkeep.writing.stream import Meter
from torchkeep.writing.suffixes import format_of

_TOTAL = "total_size"
"""What the index's metadata calls the bytes of all tensors."""


def write_shards(
    tensors: Mapping[str, TensorData],
    path: str | os.PathLike[str],
    shard_nbytes: int,
    *,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SaveReport:
    """Write named tensors into files of a given size, and an index; what fits one file is one.

    Args:
        tensors: what is stored, by name. Names that have the very same object are one tensor, which
            is stored once. Payloads are read once, from several threads.
        path: the name of the model, `folder/model.safetensors`. The files of several are called
            `model-00001-of-00003.safetensors` and `model.safetensors.index.json`.
        shard_nbytes: bytes of tensors in a file at the most; a larger tensor has one for itself.
        metadata: texts for the index. The shards have date and versions of them.
        durable: sync the files and their folder, so that a power loss can't undo the save.
        overwrite: replace an earlier save of this name, whether it was in shards or not.
        progress: is called as the tensors' bytes are written.

    Raises:
        SaveRefused: a tensor can't be stored in this format (it is named), or the place can't be
            written to, or there is something already.
    """
    name, texts = Path(path), dict(metadata or {})
    shards = _split(tensors, shard_nbytes)
    earlier = _earlier_files(name)
    if earlier and not overwrite:
        raise SaveRefused(
            f"{earlier[0]}: there is something already",
            advice="Choose another name, or pass overwrite=True to replace it.",
        )
    if len(shards) > 1:
        model = _Model(name, tensors, shards, texts)
        report = model.write(durable=durable, overwrite=overwrite, progress=progress)
    else:
        report = write_safetensors(
            tensors,
            name,
            metadata=texts,
            durable=durable,
            overwrite=overwrite,
            progress=progress,
        )
    remove_files(
        [file for file in earlier if file not in (report.path, *report.files)], durable=durable
    )
    return report


def check_shard_nbytes(path: str | os.PathLike[str], shard_nbytes: int) -> None:
    """Raise unless the file of this name can be split into shards of this size.

    Raises:
        WrongArgument: it is no safetensors file, or a shard would have no room.
        SaveRefused: its suffix chooses no format.
    """
    if format_of(path) != "safetensors":
        raise WrongArgument(
            f"{os.fspath(path)}: only safetensors can be split into shards",
            advice="Give a name that ends in .safetensors, or leave shard_nbytes out.",
        )
    if shard_nbytes < 1:
        raise WrongArgument(
            f"shard_nbytes is {shard_nbytes}, and a file needs room for a byte at least",
            advice="Give the bytes of a file, such as 5 * 10**9.",
        )


def _split(tensors: Mapping[str, TensorData], shard_nbytes: int) -> list[dict[str, TensorData]]:
    """Return the tensors of each file, in their order, names of one tensor in the same file."""
    kept, tied = untied(tensors)
    shards: list[dict[str, TensorData]] = [{}]
    home: dict[str, dict[str, TensorData]] = {}
    room = shard_nbytes
    for name, data in kept.items():
        nbytes = data.payload.nbytes
        if nbytes > shard_nbytes:
            home[name] = {}
            shards.insert(len(shards) - 1, home[name])
        else:
            if nbytes > room:
                shards.append({})
                room = shard_nbytes
            home[name] = shards[-1]
            room -= nbytes
        home[name][name] = data
    for name, first in tied.items():
        home[first][name] = tensors[name]
    return [shard for shard in shards if shard] or [{}]


def _earlier_files(name: Path) -> list[Path]:
    """Return the files of an earlier save of this name, its index first."""
    pattern = re.compile(re.escape(name.stem) + r"-[0-9]{5,}-of-[0-9]{5,}" + re.escape(name.suffix))
    try:
        files = sorted(file for file in name.parent.iterdir() if pattern.fullmatch(file.name))
    except OSError:  # writing will say what is wrong with the folder
        return []
    return [file for file in (_index_of(name), name) if file.exists()] + files


def _index_of(name: Path) -> Path:
    return name.with_name(f"{name.name}.index.json")


def index_of(
    where: Mapping[str, str], tied: Mapping[str, str], nbytes: int, texts: Mapping[str, str]
) -> bytes:
    """Return the index of a model in several files.

    Args:
        where: the file of each tensor, in the order of the state dict.
        tied: the names that are left out in the files, each with the one that stands for it.
        nbytes: bytes of the tensors in the files.
        texts: what the index says besides.
    """
    own = {TIED: json.dumps(dict(tied))} if tied else {}
    metadata = {**tied, **texts, **own, _TOTAL: nbytes}
    weight_map = {name: file for name, file in where.items() if name not in tied}
    table = {"metadata": metadata, "weight_map": weight_map}
    return json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n"


class _Model:
    """A model in several files, laid out."""

    def __init__(
        self,
        name: Path,
        tensors: Mapping[str, TensorData],
        shards: list[dict[str, TensorData]],
        texts: dict[str, str],
    ) -> None:
        if _TOTAL in texts:
            raise SaveRefused(
                f"metadata key {_TOTAL!r} is the index's own", advice="Use another key."
            )
        self.names = list(tensors)
        self.index_path = _index_of(name)
        facts = {key: text for key, text in texts.items() if key in FACTS}
        self.layouts = {
            name.with_name(f"{name.stem}-{n:05d}-of-{len(shards):05d}{name.suffix}"): Layout(
                shard, facts
            )
            for n, shard in enumerate(shards, 1)
        }
        self.tied = {
            dropped: kept
            for layout in self.layouts.values()
            for dropped, kept in layout.tied.items()
        }
        self.payload_nbytes = sum(layout.payload_nbytes for layout in self.layouts.values())
        self.index = self._index(shards, texts)

    def _index(self, shards: list[dict[str, TensorData]], texts: Mapping[str, str]) -> bytes:
        where = {
            name: path.name
            for path, shard in zip(self.layouts, shards, strict=True)
            for name in shard
        }
        where = {name: where[name] for name in self.names}
        return index_of(where, self.tied, self.payload_nbytes, texts)

    def write(self, *, durable: bool, overwrite: bool, progress: Progress | None) -> SaveReport:
        meter = Meter(progress, self.payload_nbytes)
        found: dict[str, str] = {}
        with ExitStack() as stack:

            def opened(path: Path) -> OutputFile:
                return stack.enter_context(atomic_file(path, durable=durable, overwrite=overwrite))

            # What is entered first takes its name last.
            opened(self.index_path).write_at(0, self.index)
            for path, layout in self.layouts.items():
                file = opened(path)
                found |= layout.write(file, meter)
                file.flush()
            if any(path.exists() for path in self.layouts):
                remove_files([self.index_path], durable=durable)
        digests = {name: found[name] for name in self.names}
        nbytes = len(self.index) + sum(layout.nbytes for layout in self.layouts.values())
        files = (self.index_path, *self.layouts)
        return SaveReport(self.index_path, nbytes, len(digests), digests, self.tied, files=files)
