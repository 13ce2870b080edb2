"""One conversion from a described source to a written and proven file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from torchkeep.contents import Memory, TensorEntry, Value
from torchkeep.converting.preparing import (
    Outgoing,
    Prepared,
    Wish,
    metadata_for,
    own_texts,
    prepare_state_dict,
    prepare_tree,
)
from torchkeep.converting.proof import Expected, leaves_of, prove
from torchkeep.converting.report import Cast, ConvertReport
from torchkeep.converting.supply import Supply
from torchkeep.errors import FileProblem, SaveRefused
from torchkeep.files import Progress
from torchkeep.formats import describe
from torchkeep.formats.folders.dcp_nest import Way
from torchkeep.identify import Inspection
from torchkeep.writing.dcp import write_dcp
from torchkeep.writing.dcp_flat import Flat, flatten, key_of
from torchkeep.writing.report import SaveReport
from torchkeep.writing.safetensors import TensorData, write_safetensors
from torchkeep.writing.shards import write_shards
from torchkeep.writing.torch_zip import write_torch_zip

Container = Literal["safetensors", "torch-zip", "dcp"]
"""What is written."""


class Conversion:
    """One conversion: what is written, and what it has to be.

    Args:
        inspection: the source.
        supply: its tensors.
        wish: what is wanted of it.
        container: the format of the new file.
        is_cast: whether tensors get another dtype.

    Raises:
        SaveRefused: a value can't be stored in this format; it is named.
        LoadMismatch: it is not clear which state dict is meant.
        WrongArgument: a name's rule is of no use.
        FileProblem: a tensor can't be read.
    """

    def __init__(
        self,
        inspection: Inspection,
        supply: Supply,
        wish: Wish,
        container: Container,
        *,
        is_cast: bool,
    ) -> None:
        self.inspection = inspection
        self.supply = supply
        self.container = container
        self.outgoing = Outgoing(inspection, supply)
        self.expected: dict[str, Expected | Value] = {}
        is_flat = container == "safetensors" or wish.select is not None
        try:
            self.prepared: Prepared = (
                prepare_state_dict(inspection, wish)
                if is_flat
                else prepare_tree(inspection, wish, supply)
            )
        except FileProblem as problem:
            raise problem.in_file(inspection.path) from None
        own = own_texts(inspection.contents)
        if self.prepared.renamed or is_cast:  # it is of other names, or of other numbers
            left_out = (*self.prepared.left_out, *own)
            own, self.prepared = {}, replace(self.prepared, left_out=left_out)
        self.metadata = own | metadata_for(inspection.contents, self.prepared.texts)

    def run(
        self, temporary: Path, path: Path, *, durable: bool, progress: Progress | None
    ) -> SaveReport:
        """Write a temporary file, and prove it; errors name the final `path`."""
        write = self.zip_writer() if self.container == "torch-zip" else self.safetensors_writer()
        return self._run(write, temporary, path, durable, Steps(progress))

    def run_ranks(
        self,
        temporary: Path,
        path: Path,
        num_ranks: int,
        *,
        durable: bool,
        progress: Progress | None,
    ) -> SaveReport:
        """Write a distributed checkpoint into a temporary folder, and prove it."""
        write = partial(self.dcp_writer(), num_ranks=num_ranks)
        saved = self._run(write, temporary, path, durable, Steps(progress))
        return replace(saved, files=tuple(path / file.name for file in saved.files))

    def _run(
        self,
        write: Callable[..., SaveReport],
        temporary: Path,
        path: Path,
        durable: bool,
        steps: Steps,
    ) -> SaveReport:
        try:
            saved = write(temporary, durable=durable, progress=steps.writing)
        except SaveRefused as error:
            problem = error.problem.replace(str(temporary), str(path))
            raise SaveRefused(problem, advice=error.advice) from None
        self.prove(temporary, path, steps)
        return saved

    def run_shards(
        self,
        path: Path,
        shard_nbytes: int,
        *,
        durable: bool,
        overwrite: bool,
        progress: Progress | None,
    ) -> SaveReport:
        """Write safetensors files of a given size, and prove them."""
        steps = Steps(progress)
        saved = write_shards(
            self.data(),
            path,
            shard_nbytes,
            metadata=self.metadata,
            durable=durable,
            overwrite=overwrite,
            progress=steps.writing,
        )
        self.prove(saved.path, saved.path, steps)
        return saved

    def data(self) -> dict[str, TensorData]:
        """Return the tensors for safetensors, and note what has to come out."""
        tensors = self.prepared.tensors or {}
        data = self.outgoing.data(tensors)
        self.expected = self.outgoing.expected_data(data, tensors)
        return data

    def safetensors_writer(self) -> Callable[..., SaveReport]:
        """Return what writes a file, given its path."""
        return partial(write_safetensors, self.data(), metadata=self.metadata)

    def zip_writer(self) -> Callable[..., SaveReport]:
        """Return what writes a file, given its path."""
        tensors = self.prepared.tensors
        root = self.prepared.root if tensors is None else self.outgoing.entries(tensors)
        self.expected = self.outgoing.expected_tree(root)
        return partial(write_torch_zip, root, self.supply.payload_of, metadata=self.metadata)

    def dcp_writer(self) -> Callable[..., SaveReport]:
        """Return what writes into a folder, given its path and the number of ranks."""
        tensors = self.prepared.tensors
        root = self.prepared.root if tensors is None else self.outgoing.entries(tensors)
        flat = flatten(root)
        self.note(flat)
        self.expected = self.outgoing.expected_tree(flat.values)
        payload_of = self.supply.payload_of
        return partial(write_dcp, flat, self.outgoing.elements, payload_of, metadata=self.metadata)

    def note(self, flat: Flat) -> None:
        """Note what a distributed checkpoint has in another form than the source."""
        texts = [_told(way, "has no items, which only torchkeep knows") for way in flat.empty]
        texts += [_told(way, "has keys that are texts for PyTorch") for way in flat.numbered]
        texts += [_told(way, "has keys that are texts now") for way in flat.renamed]
        seen: dict[Memory, str] = {}
        for key, value in flat.values.items():
            if isinstance(value, TensorEntry) and value.numel:
                first = seen.setdefault(value.memory, key)
                if first != key:
                    texts.append(f"{key!r} is the same tensor as {first!r}, and is stored again.")
        self.prepared = replace(self.prepared, notes=(*self.prepared.notes, *texts))

    def prove(self, written: Path, path: Path, steps: Steps) -> None:
        """Raise unless what was written is what it should be."""
        found = leaves_of(describe(written))
        prove(found, self.expected, self.inspection.path, path, steps.proving)

    def report(
        self, source: Path, path: Path, saved: SaveReport, cast: Cast | None
    ) -> ConvertReport:
        """Return what was done."""
        prepared = self.prepared
        return ConvertReport(
            source=source,
            path=path if self.container == "dcp" else saved.path if saved.files else path,
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
            shards=saved.files[1:],
        )


def _told(way: Way, what: str) -> str:
    return f"{key_of(way) or 'the root'!r} {what}."


class Steps:
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
