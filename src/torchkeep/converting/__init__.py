"""A model file in another format: streaming, proven, and without torch where nothing is computed.

`preparing` says what is to be written, `supply` hands out the tensors, the packages `writing` and
`elements` do the work, and `proof` reads the result back before it takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torchkeep.contents import TensorEntry, Value
from torchkeep.converting.casting import Caster
from torchkeep.converting.names import Strip
from torchkeep.converting.preparing import (
    Outgoing,
    Prepared,
    Wish,
    metadata_for,
    prepare_state_dict,
    prepare_tree,
)
from torchkeep.converting.proof import leaves_of, prove
from torchkeep.converting.report import Cast, ConvertReport
from torchkeep.converting.supply import Supply
from torchkeep.elements import ElementReader
from torchkeep.errors import FileProblem, SaveRefused
from torchkeep.files import Scratch, staged_file
from torchkeep.formats import describe, describe_whole
from torchkeep.identify import Inspection, Progress, identify
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.writing.report import SaveReport
from torchkeep.writing.safetensors import write_safetensors
from torchkeep.writing.suffixes import format_of
from torchkeep.writing.torch_zip import write_torch_zip


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
    durable: bool = True,
    overwrite: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write a model file in another format, and prove that it holds the same.

    The suffix of `path` chooses the format. A `.safetensors` file gets one flat state dict, and the
    plain values of the source (epoch, class names) as metadata; a `.pth`, `.pt`, `.ckpt` or `.bin`
    the whole tree, so that a checkpoint stays one. A whole model becomes its state dict. Tied
    tensors stay tied, views of one storage stay views in a torch zip, the source's metadata goes
    along, and what it was made from stands there as `converted_from`.

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
        durable: sync the file and its folder.
        overwrite: replace what is there, even the source itself.
        limits: bounds of the work that the source may cause.
        progress: is told the bytes that were written and read back, and how many there are.

    Raises:
        FileProblem: the source is missing, damaged, or of no readable kind.
        LoadMismatch: it is not clear which state dict is meant.
        SaveRefused: a value can't be stored in this format (it is named), a number overflows, the
            place is taken or can't be written to. An old file is intact.
        WrongArgument: a rule, a prefix or a dtype is of no use.
        MissingExtra: a cast is asked for, and PyTorch is not installed.
        ProofFailed: what was read back differs from the source. An old file is intact.
    """
    container = format_of(path)
    wish = Wish(select, drop_optimizer, drop_objects, strip, rename or {})
    caster = Caster(dtype, allow_overflow=allow_overflow) if dtype else None
    with Scratch() as scratch:
        inspection = _inspected(source, limits, scratch)
        _check_place(inspection, Path(path), overwrite=overwrite)
        with ElementReader(inspection.path, checksums=True) as reader:
            supply = Supply(reader, caster)
            conversion = _Conversion(inspection, supply, wish, container)
            with staged_file(path, durable=durable, overwrite=overwrite) as temporary:
                saved = conversion.run(temporary, Path(path), durable=durable, progress=progress)
    cast = caster.cost() if caster is not None else None
    return conversion.report(Path(source), Path(path), saved, cast)


def _inspected(path: str | os.PathLike[str], limits: Limits, scratch: Scratch) -> Inspection:
    try:
        return identify(describe_whole(path, limits=limits, scratch=scratch), limits)
    except FileProblem as problem:
        raise problem.in_file(path) from None


def _check_place(inspection: Inspection, path: Path, *, overwrite: bool) -> None:
    """Raise if the new file would take the place of the source unasked, or of a part of it."""
    if not path.exists():
        return
    parts = {item.entry.storage.path for item in inspection.tensors(arrays=True)}
    if inspection.path.is_file():
        parts.add(inspection.path)
    if not any(part is not None and part.exists() and part.samefile(path) for part in parts):
        return
    if not (inspection.path.is_file() and inspection.path.samefile(path)):
        raise SaveRefused(
            f"{path}: this is a part of the source", advice="Choose another name or folder."
        )
    if not overwrite:
        raise SaveRefused(
            f"{path}: this is the source itself",
            advice="Choose another name, or pass overwrite=True (--overwrite) to replace it.",
        )


class _Conversion:
    """One conversion: what is written, and what it has to be."""

    def __init__(
        self,
        inspection: Inspection,
        supply: Supply,
        wish: Wish,
        container: Literal["safetensors", "torch-zip"],
    ) -> None:
        self.inspection = inspection
        self.supply = supply
        self.container = container
        self.outgoing = Outgoing(inspection, supply)
        is_flat = container == "safetensors" or wish.select is not None
        try:
            self.prepared: Prepared = (
                prepare_state_dict(inspection, wish)
                if is_flat
                else prepare_tree(inspection, wish, supply)
            )
        except FileProblem as problem:
            raise problem.in_file(inspection.path) from None

    def run(
        self, temporary: Path, path: Path, *, durable: bool, progress: Progress | None
    ) -> SaveReport:
        """Write a temporary file, and prove it; errors name the final `path`."""
        steps = _Steps(progress)
        metadata = metadata_for(self.inspection.contents, self.prepared.texts)
        tensors = self.prepared.tensors
        try:
            if self.container == "safetensors" and tensors is not None:
                data = self.outgoing.data(tensors)
                expected = self.outgoing.expected_data(data, tensors)
                saved = write_safetensors(
                    data, temporary, metadata=metadata, durable=durable, progress=steps.writing
                )
            else:
                root = self.root(tensors)
                expected = self.outgoing.expected_tree(root)
                saved = write_torch_zip(
                    root,
                    self.supply.payload_of,
                    temporary,
                    metadata=metadata,
                    durable=durable,
                    progress=steps.writing,
                )
        except SaveRefused as error:
            problem = error.problem.replace(str(temporary), str(path))
            raise SaveRefused(problem, advice=error.advice) from None
        found = leaves_of(describe(temporary))
        prove(found, expected, self.inspection.path, path, steps.proving)
        return saved

    def root(self, tensors: dict[str, TensorEntry] | None) -> Value:
        """Return the tree that goes into a torch zip."""
        return self.prepared.root if tensors is None else self.outgoing.entries(tensors)

    def report(
        self, source: Path, path: Path, saved: SaveReport, cast: Cast | None
    ) -> ConvertReport:
        """Return what was done."""
        prepared = self.prepared
        return ConvertReport(
            source=source,
            path=path,
            container=self.container,
            nbytes=saved.nbytes,
            num_tensors=saved.num_tensors,
            state_dict=prepared.state_dict,
            why=prepared.why,
            renamed=prepared.renamed,
            tied=saved.tied,
            cast=cast,
            in_metadata=tuple(prepared.texts),
            left_out=prepared.left_out,
            notes=prepared.notes,
        )


class _Steps:
    """Two passes over the same bytes, writing and proving, told as one."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._written = 0

    def writing(self, done: int, total: int) -> None:
        """Tell how far the first pass is."""
        self._written = total
        if self._progress is not None:
            self._progress(done, 2 * total)

    def proving(self, done: int, total: int) -> None:
        """Tell how far the second pass is."""
        if self._progress is not None:
            self._progress(self._written + done, self._written + total)


__all__ = ["Cast", "ConvertReport", "convert"]
