"""A model file in another format: streaming, proven, and without torch where nothing is computed.

`hostile` refuses what would run something, `preparing` says what is to be written (`numbering`
mends an optimizer's keys for it), `supply` hands out the tensors, `conversion` lets `writing` write
them, and `proof` reads the result back before it takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torchkeep.converting.casting import Caster
from torchkeep.converting.conversion import Container, Conversion
from torchkeep.converting.hostile import check_metadata
from torchkeep.converting.names import Strip
from torchkeep.converting.preparing import Wish
from torchkeep.converting.report import Cast, ConvertReport
from torchkeep.converting.supply import Supply
from torchkeep.elements import ElementReader
from torchkeep.errors import SaveRefused, WrongArgument
from torchkeep.files import Progress, Scratch, atomic_folder, staged_file
from torchkeep.identify import Inspection, identify_whole
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.writing.shards import check_shard_nbytes
from torchkeep.writing.suffixes import format_of


def convert(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    select: str | None = None,
    drop_optimizer: bool = False,
    drop_objects: bool = False,
    strip: Strip = None,
    rename: Mapping[str, str] | None = None,
    dtype: str | None = None,
    allow_overflow: bool = False,
    shard_nbytes: int | None = None,
    to: Literal["dcp"] | None = None,
    num_ranks: int = 1,
    durable: bool = True,
    overwrite: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write a model file in another format, and prove that it holds the same.

    The suffix of `path` chooses the format. A `.safetensors` file gets one flat state dict, and the
    plain values of the source (epoch, class names) as metadata; a `.pth`, `.pt`, `.ckpt` or `.bin`
    the whole tree, so that a checkpoint stays one, and so does a distributed checkpoint. A whole
    model becomes its state dict. Tied tensors stay tied but in a distributed checkpoint, views of
    one storage stay views in a torch zip, the source's metadata goes along, and what it was made
    from stands there as `converted_from`.

    Tensors stream from file to file; memory stays near a few megabytes, or near a tensor that does
    not lie in one run. Before the new file takes its place it is read back, and each tensor is
    compared with the source. Nothing in the source runs, and PyTorch is needed only for `dtype`.

    Args:
        source: any file or folder whose tensors can be read.
        path: the new file.
        select: one state dict alone, as `load_into` takes it: `auto`, `ema`, or a name. None means
            the whole tree for a torch zip, and `auto` for safetensors.
        drop_optimizer: leave out the states of optimizers.
        drop_objects: leave out what would need a class or a function when it is loaded, instead of
            refusing it.
        strip: True takes away what wrappers put into the keys; a text, this prefix of them.
        rename: rules for the keys, new by old, `*` standing for any text: `{"encoder.*": "*"}`. In
            a whole tree they are meant for the main state dict, and for one of the same keys.
        dtype: cast the floating tensors of state dicts, as in `"float16"`; the report has the cost.
        allow_overflow: let finite numbers become infinite in that; else it is refused.
        shard_nbytes: bytes of tensors in a file at the most (safetensors only); what has more is
            written to several files and an index, as `save` does it. These take their places before
            they are read back.
        to: "dcp" makes `path` a folder with a distributed checkpoint, which
            `torch.distributed.checkpoint.load` reads on any number of ranks: the whole tree, or one
            state dict. None means that the suffix chooses.
        num_ranks: how many files that has. Tensors are split along their first dimension, as FSDP2
            does it.
        durable: sync the file and its folder.
        overwrite: replace what is there, even the source itself; but never a folder.
        limits: bounds of the work that the source may cause.
        progress: is told the bytes that were written and read back, and how many there are.

    Raises:
        FileProblem: the source is missing, damaged, or of no readable kind; or it is a distributed
            checkpoint whose metadata would run something (`UnsafeContent`).
        LoadMismatch: it is not clear which state dict is meant.
        SaveRefused: a value can't be stored in this format (it is named), a number overflows, the
            place is taken or can't be written to. An old file is intact.
        WrongArgument: a rule, a prefix or a dtype is of no use.
        MissingExtra: a cast is asked for, and PyTorch is not installed.
        ProofFailed: what was read back differs from the source. An old file is intact.
    """
    container = _container(path, to, num_ranks, shard_nbytes)
    wish = Wish(select, drop_optimizer, drop_objects, strip, rename or {})
    caster = Caster(dtype, allow_overflow=allow_overflow) if dtype else None
    with Scratch() as scratch:
        inspection = identify_whole(source, limits, scratch)
        check_metadata(inspection)
        _check_place(inspection, Path(path), overwrite=overwrite, sharded=shard_nbytes is not None)
        stamps = inspection.contents.stamps
        with ElementReader(inspection.path, checksums=True, stamps=stamps) as reader:
            supply = Supply(reader, caster)
            is_cast = caster is not None
            conversion = Conversion(inspection, supply, wish, container, is_cast=is_cast)
            if container == "dcp":
                with atomic_folder(path, durable=durable) as folder:
                    saved = conversion.run_ranks(
                        folder, Path(path), num_ranks, durable=durable, progress=progress
                    )
                    reader.check_unchanged()
            elif shard_nbytes is not None:
                saved = conversion.run_shards(
                    Path(path),
                    shard_nbytes,
                    durable=durable,
                    overwrite=overwrite,
                    progress=progress,
                )
            else:
                with staged_file(path, durable=durable, overwrite=overwrite) as temporary:
                    saved = conversion.run(
                        temporary, Path(path), durable=durable, progress=progress
                    )
                    reader.check_unchanged()
    cast = caster.cost() if caster is not None else None
    return conversion.report(Path(source), Path(path), saved, cast)


def _container(
    path: str | os.PathLike[str], to: str | None, num_ranks: int, shard_nbytes: int | None
) -> Container:
    """Return what is to be written.

    Raises:
        SaveRefused: the path's suffix chooses nothing.
        WrongArgument: an argument is of no use.
    """
    if to not in (None, "dcp"):
        raise WrongArgument(f"there is no format {to!r} to convert to", advice="Use to='dcp'.")
    if num_ranks < 1 or (to is None and num_ranks != 1):
        text = f"num_ranks is {num_ranks}"
        if num_ranks < 1:
            raise WrongArgument(f"{text}, and there is one rank at least")
        raise WrongArgument(
            f"{text}, which only a distributed checkpoint has",
            advice="Pass to='dcp' as well (--to dcp).",
        )
    if to == "dcp":
        if shard_nbytes is not None:
            raise WrongArgument(
                "a distributed checkpoint is split by ranks, not by size",
                advice="Give num_ranks (--ranks) in place of shard_nbytes (--shard-size).",
            )
        return "dcp"
    if shard_nbytes is not None:
        check_shard_nbytes(path, shard_nbytes)
    try:
        return format_of(path)
    except SaveRefused as error:
        advice = f"{error.advice} For a folder, pass to='dcp' (--to dcp)."
        raise SaveRefused(error.problem, advice=advice) from None


def _check_place(inspection: Inspection, path: Path, *, overwrite: bool, sharded: bool) -> None:
    """Raise if the new file would take the place of the source unasked, or of a part of it."""
    parts = {item.entry.storage.path for item in inspection.tensors(arrays=True)} - {None}
    if inspection.path.is_file():
        parts.add(inspection.path)
    is_itself = inspection.path.is_file() and path.exists() and inspection.path.samefile(path)
    if is_itself and not overwrite:
        raise SaveRefused(
            f"{path}: this is the source itself",
            advice="Choose another name, or pass overwrite=True to replace it.",
        )
    in_the_way = [part for part in parts if part and _is_taken_by(part, path, sharded=sharded)]
    if in_the_way and (sharded or not is_itself):
        raise SaveRefused(
            f"{path}: {in_the_way[0]} is a part of the source, and would be replaced",
            advice="Choose another name or folder.",
        )


def _is_taken_by(part: Path, path: Path, *, sharded: bool) -> bool:
    """Whether a file has the name of the new one, or may have that of one of its shards."""
    if not part.exists():  # it was unpacked into memory
        return False
    if not sharded:
        return path.exists() and part.samefile(path)
    return part.resolve().parent == path.resolve().parent and part.name.startswith(path.stem)


__all__ = ["Cast", "ConvertReport", "convert"]
