"""A checkpoint that all ranks of a run write at once, each a part of it.

What all have alike is written once: a model under DDP, its optimizer. Its files are shared out by
bytes, and are those that one process alone would have written. That they have it alike is not
believed but found out: while the disk is busy, each rank makes digests of all that it has. What one
of them has otherwise (a BatchNorm's statistics, an average that nobody sends around) the first rank
writes over, since its state is the checkpoint's, and the others put theirs into a file of their
own. There also is what each has for itself.

Of what is sharded each rank writes its pieces, into files of its own.

The first rank makes the folder under a temporary name, and gives it its own when all have said that
their part is on the disk. If one of them fails, or ends, or does not answer, nobody's part remains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.layout.copies import kept_once
from torchkeep.checkpointing.layout.folder import (
    note_file,
    write_index,
    write_manifest,
    write_tensors,
)
from torchkeep.checkpointing.layout.history import Earlier, has_digests
from torchkeep.checkpointing.layout.nodes import nodes_of
from torchkeep.checkpointing.layout.placement import by_rank, common_tensors, laid_out
from torchkeep.checkpointing.layout.reading_back import Written
from torchkeep.checkpointing.layout.spreading import shared_out
from torchkeep.checkpointing.layout.whole_model import write_whole_model
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.checkpointing.state.encoding import JSON
from torchkeep.checkpointing.state.sharded import Part
from torchkeep.errors import SaveRefused
from torchkeep.files import (
    atomic_folder,
    digest,
    in_parallel,
    make_room,
    part_of_file,
)
from torchkeep.formats.folders.dcp_metadata import SavedTensor, tiling
from torchkeep.formats.folders.dcp_safetensors import SHARDING_INFO
from torchkeep.formats.own.manifest import (
    FROZEN_MODEL_FILE,
    MODEL_FILES,
    OBJECTS,
    RANK_STRUCTURE,
    RANKS_VERSION,
    rank_file,
    texts_of,
)
from torchkeep.formats.own.metadata import TRAINING_STATE
from torchkeep.saving.leaves import check_tensor
from torchkeep.tensors import bytes_of, dtype_name, first_names, plain_on_cpu


def write_together(
    folder: Path,
    part: Part,
    manifest: dict[str, Any],
    *,
    ranks: Ranks,
    durable: bool,
    background: bool,
    before_naming: Callable[[], None],
    earlier: Earlier,
    whole_model: bool,
) -> Written:
    """Write what all ranks have, as one folder. All of them call it.

    Args:
        folder: the checkpoint's name; nothing may be there.
        part: what this rank has.
        manifest: the first rank's structure and facts; what is written is added.
        ranks: who writes.
        durable: sync everything.
        background: take as little of the processors as can be, for somebody else computes.
        before_naming: is called when all is written; what it raises leaves nothing behind.
        earlier: the checkpoint before, to share files with.
        whole_model: write a sharded model as one file as well.

    Returns:
        What is known of the checkpoint; on other ranks than the first, of their own files.

    Raises:
        SaveRefused: a tensor can't be kept, or the place can't be written, on some rank.
        CheckpointProblem: a rank has ended, or does not answer.
    """
    part, inexact = kept_once(part, ranks)
    share = ranks.each(lambda: _Share(part, inexact, ranks, durable=durable, background=background))
    with ExitStack() as stack:  # the first rank's: it removes the folder, or gives it its name

        def begin() -> tuple[Path, frozenset[str], dict[str, str]]:
            temporary = stack.enter_context(atomic_folder(folder, durable=durable))
            return temporary, share.begin(temporary, earlier), share.forms

        def finish() -> str:
            text_digest = share.finish(temporary, manifest, found, whole_model=whole_model)
            stack.close()
            return text_digest

        temporary, linked, forms = ranks.first(begin)
        laid_out_alike = _alike(share.forms, forms, ranks)
        signs = ranks.each(lambda: share.write_shared(temporary, linked, laid_out_alike))
        alike = _alike(signs, ranks.first(lambda: signs), ranks)

        def write_rest() -> _Files:
            share.write_over(temporary, linked, alike)
            files = share.write_own(temporary, alike)
            before_naming()
            return files

        found = ranks.gathered(write_rest)
        finished = ranks.first(finish)
    if not ranks.is_first:
        own = found[0]
        return Written(folder, own.facts(), "", own.runs)
    runs = {name: layout.runs for name, layout in share.layouts.items()}
    of_others = frozenset(name for files in found[1:] for name in files.files)
    return Written(folder, manifest, finished, runs | found[0].runs, of_others)


def _alike(signs: Mapping[str, str], of_first: Mapping[str, str], ranks: Ranks) -> set[str]:
    """Return what has the same sign on all ranks, of what the first one has."""
    same = [signs.get(name) == sign for name, sign in of_first.items()]
    on_all = ranks.lowest(torch.tensor(same, dtype=torch.uint8)).tolist()
    return {name for name, is_alike in zip(of_first, on_all, strict=True) if is_alike}


@dataclass(slots=True)
class _Files:
    """Files that a rank has written, as a manifest tells of them, and what it lacks."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, dict[str, str]] = field(default_factory=dict)
    tied: dict[str, dict[str, str]] = field(default_factory=dict)
    boxes: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    runs: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """The bytes of the tensors of each, in their order."""
    inexact: list[str] = field(default_factory=list)
    """Why a resume of this rank may not be exact."""
    pieces: list[tuple[str, SavedTensor]] = field(default_factory=list)
    """What it has of sharded tensors, by their names in the state."""

    def facts(self) -> dict[str, Any]:
        """Return what a manifest has of it: the tables themselves, to be filled."""
        return {name: getattr(self, name) for name in ("files", "tensors", "tied", "boxes")}


class _Share:
    """One rank's share of a checkpoint.

    Attributes:
        layouts: the files that are written once, as this rank would write them.
        forms: by file, a digest of how that is laid out.

    Raises:
        SaveRefused: a tensor can't be kept.
    """

    def __init__(
        self, part: Part, inexact: list[str], ranks: Ranks, *, durable: bool, background: bool
    ) -> None:
        for name, tensor in part.tensors.items():
            check_tensor(tensor, name)
        self._part, self._ranks = part, ranks
        self._inexact = [*part.structure.get("inexact", ()), *inexact]
        self._durable, self._background = durable, background
        self._files, self._own = by_rank(part, ranks.rank)
        self._common = common_tensors(part)
        self._digests: dict[str, str] = {}
        self._nodes = nodes_of(part.structure)
        self.layouts = {
            file: laid_out(self._tensors_in(file), texts_of(file)) for file in self._files
        }
        self.forms = {file: digest(layout.header({})) for file, layout in self.layouts.items()}

    def _tensors_in(self, file: str) -> dict[str, torch.Tensor]:
        return {key: self._common[name] for key, name in self._files[file].items()}

    def _digests_in(self, file: str) -> dict[str, str]:
        return {key: self._digests[name] for key, name in self._files[file].items()}

    # --- What is written once ------------------------------------------------------------------

    def begin(self, temporary: Path, earlier: Earlier) -> frozenset[str]:
        """Make room for the files that all write into; return those that are there already."""
        linked = set()
        for file, layout in self.layouts.items():
            are_digests = partial(has_digests, self._tensors_in(file))
            place, new = temporary / file, partial(self.layouts.__getitem__, file)
            if earlier.share(file, new, are_digests, place, durable=self._durable):
                linked.add(file)
            else:
                make_room(place, layout.nbytes)
        return frozenset(linked)

    def write_shared(
        self, temporary: Path, linked: Collection[str], alike: Collection[str]
    ) -> dict[str, str]:
        """Write this rank's part of what is written once, and look at everything.

        Args:
            temporary: where to.
            linked: files that are there.
            alike: those that all ranks lay out alike; any other is the first one's alone.

        Returns:
            What should be alike on all ranks, by name, with a digest of it.
        """
        ranks = self._ranks
        wanted = [file for file in self.layouts if file not in linked]
        together = [file for file in wanted if file in alike]
        sizes = [self.layouts[file].nbytes for file in together]
        parts = dict(zip(together, shared_out(sizes, ranks.rank, ranks.size), strict=True))
        if ranks.is_first:
            parts |= {f: (0, self.layouts[f].nbytes) for f in wanted if f not in together}
        self._digests = self._write_parts(temporary, parts)
        objects = {name: node for name, node in self._nodes.items() if name.startswith(OBJECTS)}
        return {
            **{name: f"{_form(self._common[name])} {it}" for name, it in self._digests.items()},
            **{name: _text_digest(node) for name, node in objects.items()},
        }

    def _write_parts(self, temporary: Path, parts: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """Write parts of files; return the digests of all that the ranks should have alike."""
        firsts = first_names(self._common)
        passing = {
            firsts[self._files[file][key]]
            for file, part in parts.items()
            for key in self.layouts[file].names_within(*part)
        }
        left = {name: self._common[name] for name in firsts.values() if name not in passing}

        def write() -> dict[str, str]:
            found: dict[str, str] = {}
            with ExitStack() as stack:
                for file, (begin, end) in parts.items():
                    if begin == end:
                        continue
                    output = stack.enter_context(
                        part_of_file(
                            temporary / file, durable=self._durable, background=self._background
                        )
                    )
                    digests = self.layouts[file].write_part(output, begin, end)
                    content = self._files[file]
                    found |= {firsts[content[key]]: text for key, text in digests.items()}
            return found

        # While one waits for the disk, or for other ranks in the same file, the other computes.
        num_threads = 1 if self._background else 2
        jobs: list[Callable[[], dict[str, str]]] = [write, partial(_digests, left)]
        written, rest = in_parallel(lambda job: job(), jobs, num_threads)
        found = written | rest
        return {name: found[first] for name, first in firsts.items()}

    def write_over(self, temporary: Path, linked: Collection[str], alike: Collection[str]) -> None:
        """Write headers, and what the first rank has where others have something else.

        It comes after all others have closed the files.
        """
        for file, layout in self.layouts.items() if self._ranks.is_first else ():
            if file in linked:
                continue
            content = self._files[file]
            differing = {layout.tied.get(k, k) for k, name in content.items() if name not in alike}
            # By bytes and not by blocks: what is beside them is right.
            with part_of_file(temporary / file, durable=self._durable) as output:
                for begin, end in layout.places_of(differing):
                    layout.write_part(output, begin, end)
                output.write_at(0, layout.header(self._digests_in(file)))

    # --- What is this rank's -------------------------------------------------------------------

    def write_own(self, temporary: Path, alike: Collection[str]) -> _Files:
        """Write what no other rank writes, and return what a manifest says of it."""
        found = _Files(inexact=self._inexact)
        texts = {rank_file(self._ranks.rank): self._own_texts(alike)}
        for file, content in self._own_files(alike).items():
            boxes = {key: self._box(name) for key, name in content.items()}
            layout = laid_out(
                {key: self._part.tensors[name] for key, name in content.items()},
                texts.get(file) or _sharding(content, self._part),
            )
            write_tensors(
                temporary / file,
                layout,
                found.facts(),
                durable=self._durable,
                background=self._background,
            )
            found.runs[file] = layout.runs
            if pieces := {key: box for key, box in boxes.items() if box is not None}:
                found.boxes[file] = pieces
            found.pieces += [self._piece(content[key]) for key in pieces]
        return found

    def _own_files(self, alike: Collection[str]) -> dict[str, dict[str, str]]:
        """Return what goes into files of this rank: the key in the file, and the state's name."""
        if self._ranks.is_first:
            return self._own
        # The others have a file in any case, in which their parts of the structure stand.
        own = rank_file(self._ranks.rank)
        differing = {name: name for name in self._digests if name not in alike}
        return {**self._own, own: self._own.get(own, {}) | differing}

    def _own_texts(self, alike: Collection[str]) -> dict[str, str]:
        if self._ranks.is_first:
            return dict(TRAINING_STATE)
        own = {
            name: node
            for name, node in self._nodes.items()
            if not name.startswith(OBJECTS) or name not in alike
        }
        return {**TRAINING_STATE, RANK_STRUCTURE: json.dumps(own, allow_nan=False)}

    def _piece(self, name: str) -> tuple[str, SavedTensor]:
        shard, dtype = self._part.shards[name], dtype_name(self._part.tensors[name].dtype)
        return name, SavedTensor(dtype, shard.shape, (shard.box,))

    def _box(self, name: str) -> dict[str, list[int]] | None:
        """Return where a piece is in its tensor; None if it is all of one."""
        if name not in self._part.shards:
            return None
        shard = self._part.shards[name]
        return {"offsets": list(shard.box.offsets), "shape": list(shard.shape)}

    # --- The end -------------------------------------------------------------------------------

    def finish(
        self, temporary: Path, manifest: dict[str, Any], found: list[_Files], *, whole_model: bool
    ) -> str:
        """Write the manifest of what all ranks have written, and return its text's digest."""
        _check_pieces(piece for files in found for piece in files.pieces)
        manifest |= {"version": RANKS_VERSION, "ranks": self._ranks.size, "boxes": {}}
        for file, layout in self.layouts.items():
            note_file(manifest, file, layout, self._digests_in(file))
        for files in found:
            for field_name, table in files.facts().items():
                manifest[field_name].update(table)
        reasons = list(manifest["inexact"])
        for rank, files in enumerate(found):
            reasons += [f"rank {rank}: {text}" for text in files.inexact if text not in reasons]
        manifest["inexact"] = reasons
        if whole_model:
            write_whole_model(temporary, manifest, durable=self._durable)
        if FROZEN_MODEL_FILE in self.layouts:
            contents = {f: self._tensors_in(f) for f in self.layouts if f in MODEL_FILES}
            write_index(temporary, contents, manifest, durable=self._durable)
        return write_manifest(temporary, manifest, durable=self._durable)


def _check_pieces(pieces: Iterable[tuple[str, SavedTensor]]) -> None:
    """Make sure that what ranks have written of sharded tensors can be put together again.

    Raises:
        SaveRefused: something is missing, or there twice: ranks do not have the same objects.
    """
    by_name: dict[str, list[SavedTensor]] = {}
    for name, piece in pieces:
        by_name.setdefault(name, []).append(piece)
    for name, parts in by_name.items():
        first, boxes = parts[0], tuple(box for part in parts for box in part.boxes)
        is_one = all((part.dtype, part.shape) == (first.dtype, first.shape) for part in parts)
        problem = tiling(replace(first, boxes=boxes)) if is_one else None
        if not is_one or problem is not None:
            text = problem.text if problem else "its pieces are of several tensors"
            raise SaveRefused(
                f"{name}: {text}",
                advice="Have each rank pass the same objects, or give them other names.",
            )


def _digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: digest(bytes_of(plain_on_cpu(item))) for name, item in tensors.items()}


def _form(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"


def _text_digest(node: JSON) -> str:
    return digest(json.dumps(node, sort_keys=True).encode())


def _sharding(content: Mapping[str, str], part: Part) -> dict[str, str]:
    """Return the text by which PyTorch's reader knows where pieces are in their tensors."""
    table = {}
    for key, name in content.items():
        shard = part.shards.get(name)
        offsets = shard.box.offsets if shard else (0,) * part.tensors[name].dim()
        table[key] = {"saved_offsets": list(offsets)}
    return {SHARDING_INFO: json.dumps(table)}
