"""What can be saved of a whole model whose classes are gone: weights, structure, source texts.

    FOLDER/
      weights.safetensors        the state dict, under the names that the live model would have
      other-tensors.safetensors  buffers that a state dict leaves out, if there are any
      structure.txt              the modules, as `print(model)` would show them
      structure.json             the same for programs, with every attribute
      sources/*.py               the source texts in the file, as they are; nothing runs them
      README.txt                 what is what, and how to go on

Of a file with several models, each has a folder of its own, called by its path in the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torchkeep.contents import Memory, TensorEntry, child_path
from torchkeep.elements import ElementReader
from torchkeep.errors import FileProblem
from torchkeep.files import Scratch, atomic_folder, write_file
from torchkeep.identify import Inspection, identify_whole
from torchkeep.identify.digests import differs_from_digest, known_digest, stored_digests
from torchkeep.identify.json_form import Room, module_form
from torchkeep.identify.module_lines import tree_lines
from torchkeep.identify.modules import ModuleNode
from torchkeep.identify.whole_models import WholeModel, whole_models
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.wording import counted, printable
from torchkeep.writing.safetensors import TensorData, write_safetensors

WEIGHTS = "weights.safetensors"
OTHER_TENSORS = "other-tensors.safetensors"
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Rescued:
    """One model that was rescued."""

    name: str
    """Its path in the file; empty if it is the file's root."""
    folder: Path
    """Where its parts are."""
    class_path: str
    """The dotted name of its class."""
    num_tensors: int
    """Tensors of its state dict that were saved."""
    num_parameters: int
    """Elements of its parameters, shared ones counted once."""
    sources: tuple[str, ...]
    """Classes whose source text was in the file, by dotted name."""
    left_out: tuple[str, ...]
    """Tensors that safetensors has no form for (sparse, quantized), by name."""


@dataclass(frozen=True, slots=True)
class RescueReport:
    """What was rescued from a file."""

    path: Path
    """The file."""
    folder: Path
    """The folder that was made."""
    models: tuple[Rescued, ...]
    """The models, in the file's order."""

    def __str__(self) -> str:
        return "\n".join(
            f"{model.folder}: {model.class_path}, {counted(model.num_parameters, 'parameter')} in "
            f"{counted(model.num_tensors, 'tensor')}, {counted(len(model.sources), 'source text')}"
            + (f"; left out: {', '.join(model.left_out)}" if model.left_out else "")
            for model in self.models
        )


def rescue(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> RescueReport:
    """Take weights, structure and source texts out of a whole model, running nothing of it.

    It needs none of the model's classes, and works for what `torch.save(model)` wrote in any
    release, for models in a checkpoint, and for files of `save(model, path, whole=True)`.

    Args:
        path: the file.
        folder: a new folder; it appears whole or not at all.
        limits: bounds of the work that a file may cause.

    Raises:
        LoadMismatch: there is no whole model in the file.
        FileProblem: it is missing, damaged, or of no readable kind.
        SaveRefused: the folder exists, or can't be made.
    """
    with Scratch() as scratch:
        inspection = identify_whole(path, limits, scratch)
        try:
            models = whole_models(inspection)
        except FileProblem as problem:
            raise problem.in_file(path) from None
        with atomic_folder(folder) as temporary:
            rescued = []
            parts = _folder_names(models) if len(models) > 1 else [""]
            for part, model in zip(parts, models.values(), strict=True):
                (temporary / part).mkdir(exist_ok=True)
                rescued.append(_rescue(inspection, model, temporary / part, Path(folder) / part))
    return RescueReport(Path(path), Path(folder), tuple(rescued))


def _rescue(inspection: Inspection, model: WholeModel, temporary: Path, folder: Path) -> Rescued:
    node = model.tree(inspection.contents, inspection.limits)
    weights = node.state_dict()
    others = _non_persistent(node)
    left_out = [name for name, entry in (weights | others).items() if not _is_plain(entry)]
    _write_tensors(inspection, weights, temporary / WEIGHTS)
    if others:
        _write_tensors(inspection, others, temporary / OTHER_TENSORS)
    _write_text(temporary / "structure.txt", "\n".join(tree_lines(node)))
    form = module_form(node, Room(10_000 + inspection.nbytes))
    _write_text(temporary / "structure.json", json.dumps(form, indent=1))
    sources = _sources(node, model)
    for name, text in _file_names(sources).items():
        (temporary / "sources").mkdir(exist_ok=True)
        _write_text(temporary / "sources" / name, text)
    _write_text(temporary / "README.txt", _readme(inspection, model, node, sources, left_out))
    parameters = {
        entry.memory: entry.numel for _, part in node.walk() for entry in part.parameters.values()
    }
    return Rescued(
        model.name,
        folder,
        node.class_path,
        len(weights) - sum(name in weights for name in left_out),
        sum(parameters.values()),
        tuple(sources),
        tuple(left_out),
    )


def _non_persistent(node: ModuleNode) -> dict[str, TensorEntry]:
    """Return the buffers that a state dict leaves out, by the names that they would have in it."""
    return {
        child_path(path, name): entry
        for path, part in node.walk()
        for name, entry in part.buffers.items()
        if name in part.non_persistent
    }


def _is_plain(entry: TensorEntry) -> bool:
    return not (entry.is_composite or entry.quantizer)


def _write_tensors(inspection: Inspection, entries: Mapping[str, TensorEntry], path: Path) -> None:
    """Write the plain ones of some tensors; each that stands under two names is stored once."""
    data: dict[Memory, TensorData] = {}
    tensors: dict[str, TensorData] = {}
    contents = inspection.contents
    with ElementReader(contents.path, stamps=contents.stamps) as reader:
        for name, entry in entries.items():
            if _is_plain(entry):
                made = TensorData(entry.dtype, entry.shape, reader.payload(entry, name))
                tensors[name] = data.setdefault(entry.memory, made)
        report = write_safetensors(tensors, path, durable=False)
    digests = stored_digests(contents)
    for name, found in report.digests.items():
        if known_digest(entries[name], digests) not in (None, found):
            raise differs_from_digest(name, inspection.path)


def _write_text(path: Path, text: str) -> None:
    # What a stranger wrote may hold halves of characters, which no file can.
    write_file(path, f"{text}\n".encode("utf-8", "backslashreplace"), durable=False)


# --- Source texts ------------------------------------------------------------------------------


def _sources(node: ModuleNode, model: WholeModel) -> dict[str, str]:
    """Return the source texts of a model by dotted name, those of each module included."""
    own = {part.class_path: part.source for _, part in node.walk() if part.source is not None}
    return {**model.sources, **own}


def _file_names(sources: Mapping[str, str]) -> dict[str, str]:
    """Return the texts by names that are files' in one folder, whatever the classes are called."""
    names = _told_apart(map(_file_name, sources))
    return {f"{name}.py": text for name, text in zip(names, sources.values(), strict=True)}


def _folder_names(models: Iterable[str]) -> list[str]:
    return _told_apart(_file_name(name or "model") for name in models)


def _told_apart(stems: Iterable[str]) -> list[str]:
    """Return names with a number where one was there before, in whatever case.

    >>> _told_apart(["a", "A", "a"])
    ['a', 'A-2', 'a-3']
    """
    found: dict[str, str] = {}
    for stem in stems:
        name, number = stem, 2
        while name.lower() in found:
            name, number = f"{stem}-{number}", number + 1
        found[name.lower()] = name
    return list(found.values())


def _file_name(text: str) -> str:
    r"""Return a text as a file's name: nothing in it leads elsewhere.

    >>> _file_name("model.Net"), _file_name("../../etc/x"), _file_name("")
    ('model.Net', 'etc_x', 'unnamed')
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:_LONGEST_NAME]
    return plain.strip("._-") or "unnamed"


# --- README ------------------------------------------------------------------------------------


def _readme(
    inspection: Inspection,
    model: WholeModel,
    node: ModuleNode,
    sources: Mapping[str, str],
    left_out: list[str],
) -> str:
    classes = dict.fromkeys(part.class_path for _, part in node.walk())
    place = f" under {printable(model.name)!r}" if model.name else ""
    lines = [
        f"Rescued from {printable(str(inspection.path))}{place}, running nothing of it.",
        "",
        f"{WEIGHTS}: the model's state dict. With the class at hand, and PyTorch:",
        f"    model = {printable(node.class_path.rpartition('.')[2])}(...)",
        f"    torchkeep.load_into(model, {WEIGHTS!r})",
        "structure.txt: its modules, with what their constructors got.",
        "structure.json: the same for programs, with every attribute and shape.",
    ]
    if _non_persistent(node):
        lines.append(f"{OTHER_TENSORS}: buffers that a state dict leaves out.")
    if sources:
        lines += [
            "sources: source texts of classes, as the file has them. They are a stranger's",
            "programs: read before you run one.",
        ]
    if left_out:
        lines.append(f"Not in {WEIGHTS}: {', '.join(map(printable, left_out))} (no plain tensors).")
    lines += ["", "Its classes:", *(f"    {printable(path)}" for path in classes)]
    return "\n".join(lines)
