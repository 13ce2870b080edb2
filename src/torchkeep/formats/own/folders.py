"""A checkpoint folder of ours, and the folder of a run.

Layout: see `own.manifest`. A run's folder holds one such folder per checkpoint, `step-<step>`, or
one file, `step-<step>.pth` (see `own.one_file`).

The tree of a checkpoint is what a person would look for: the facts of the manifest (`step`,
`epoch`, `metrics`, `date`, ...), then each captured object under its own name (`model` is a state
dict, `optimizer` has `state` and `param_groups`), then `rng` and what else the state has. That of a
run is the tree of its newest checkpoint that is whole.

Limits: whole means here that the manifest's digest and the sizes of the files are right. The
digests of files and tensors take reading every byte, and are compared when that is done. The modes
of the modules and the flags of the parameters stay in the manifest; of the history, only the last
row is told.

Source: docs/files.md; checkpointing/state/capturing.py for what a state has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchkeep.contents import (
    Box,
    Chunk,
    Contents,
    Finding,
    Memory,
    Storage,
    TensorEntry,
    Value,
    contiguous_stride,
)
from torchkeep.errors import DamagedFile, FileMissing, FileProblem
from torchkeep.files import digest
from torchkeep.formats.folders.below import look_below
from torchkeep.formats.folders.dcp_metadata import SavedTensor, tiling
from torchkeep.formats.folders.folder import (
    Folder,
    FolderKind,
    listed,
    look_into,
    unreadable,
)
from torchkeep.formats.joining import join_members
from torchkeep.formats.own import metadata
from torchkeep.formats.own.manifest import (
    CHECKPOINT_NAME,
    FORMAT,
    MANIFEST,
    MODEL_FILES,
    MODEL_INDEX,
    ONE_FILE,
    OWN_FILES,
    STATE_FILE,
    TENSOR_FILES,
    StoredTensor,
    checkpoint_step,
    is_own_file,
    name_of,
    read_manifest,
    stored_tensors,
    told_by,
    wrong_size,
)
from torchkeep.formats.own.metadata import TRAINING_STATE
from torchkeep.formats.own.one_file import manifest_of
from torchkeep.formats.own.structure import inert

_FACTS = (
    *("step", "epoch", "batch", "date", "metrics", "ranks"),
    *("versions", "git", "metadata", "inexact"),
)
"""What is taken over from the manifest, in the order in which it is told."""

_STATE_MARK = json.dumps(next(iter(TRAINING_STATE))).encode()
"""What stands in the first bytes of every state file."""

_MOST_CHECKPOINTS = 1_000
"""Manifests that are read in one run."""


# --- A checkpoint ------------------------------------------------------------------------------


def is_checkpoint(folder: Folder) -> bool:
    """Whether a folder is a checkpoint of ours, or what is left of one."""
    if MANIFEST in folder.files and FORMAT.encode() in folder.head(MANIFEST):
        return True
    if STATE_FILE in folder.files and _STATE_MARK in folder.head(STATE_FILE):
        return True
    has_part = not folder.files.keys().isdisjoint(OWN_FILES)
    return has_part and CHECKPOINT_NAME.fullmatch(folder.path.name) is not None


def describe_checkpoint(folder: Folder) -> Contents:
    """Return what a checkpoint holds, as far as it is there."""
    own = [name for name in TENSOR_FILES if name in folder.files]
    own += [name for name in folder.files if is_own_file(name) and name not in OWN_FILES]
    strangers = [name for name in folder.files if not is_own_file(name)]
    members = {name: folder.examine(name) for name in own}
    others, notes = look_into(folder, strangers)
    members |= others
    if strangers:
        text = f"{len(strangers)} files in it are not torchkeep's: {listed(strangers)}"
        notes.append(Finding("extra-file", "note", "", text))
    try:
        manifest = read_manifest(folder.path, limits=folder.limits)
    except FileProblem as problem:
        return _without_manifest(folder, members, problem, notes)
    root, findings = _state(folder.path, manifest, members)
    findings += _index_problems(folder, manifest)
    joined = join_members(
        folder.path,
        folder.nbytes,
        CHECKPOINT.name,
        members,
        kind=f"checkpoint of a torchkeep run at {told_by(manifest)}{_by_ranks(manifest)}",
        findings=(*findings, *unreadable(members), *notes),
    )
    return replace(joined, root=root, digests=_digests(manifest, members))


def _by_ranks(manifest: Mapping[str, Any]) -> str:
    ranks = manifest.get("ranks", 1)
    return f" by {ranks} ranks" if ranks > 1 else ""


def _index_problems(folder: Folder, manifest: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with the index of a model in two files: no tensor would tell."""
    expected = manifest["files"].get(MODEL_INDEX)
    if expected is None or MODEL_INDEX not in folder.files:
        return []
    try:
        is_right = digest(folder.read(MODEL_INDEX, expected["nbytes"])) == expected["digest"]
    except FileProblem:
        is_right = False
    text = f"{MODEL_INDEX} differs from what was written"
    return [] if is_right else [Finding("index", "damaged", MODEL_INDEX, text)]


def _digests(manifest: Mapping[str, Any], members: Mapping[str, Contents]) -> dict[Memory, str]:
    """Return the digests that the manifest has of the tensors in its files."""
    found = {}
    for stored in stored_tensors(manifest):
        entry = _entries(members, stored.file).get(stored.key)
        if isinstance(entry, TensorEntry):
            found[entry.memory] = stored.digest
    return found


def _entries(members: Mapping[str, Contents], file: str) -> Mapping[str, TensorEntry]:
    member = members.get(file)
    return {} if member is None else member.tensors


def _without_manifest(
    folder: Folder, members: Mapping[str, Contents], problem: FileProblem, notes: list[Finding]
) -> Contents:
    """Return what is left of a checkpoint whose manifest is missing or can't be used."""
    what = "is missing" if isinstance(problem, FileMissing) else f"is unusable: {problem.problem}"
    text = f"the manifest {what}; the step, the epoch and the rest of the state can't be told"
    finding = Finding("manifest", "damaged", MANIFEST, text)
    joined = join_members(
        folder.path,
        folder.nbytes,
        CHECKPOINT.name,
        members,
        kind="checkpoint of a torchkeep run without its manifest",
        findings=(finding, *unreadable(members), *notes),
        problem=None if members else DamagedFile(text),
    )
    model = _model(members)
    return replace(joined, root={"model": model} if model else joined.root)


def _model(members: Mapping[str, Contents]) -> dict[Value, Value]:
    """Return the model's state dict as its files have it."""
    roots = [members[name].root for name in MODEL_FILES if name in members]
    return {key: item for root in roots if isinstance(root, dict) for key, item in root.items()}


def _state(
    path: Path, manifest: Mapping[str, Any], members: Mapping[str, Contents]
) -> tuple[dict[str, Value], list[Finding]]:
    """Return the tree of a checkpoint, and what is wrong with it."""
    findings = []
    if problem := wrong_size(path, manifest["files"]):
        findings.append(Finding("file-size", "damaged", "", problem))
    tensors, missing, extra, broken = _tensors(manifest, members)
    if broken and not missing:
        text = f"{len(broken)} tensors can't be put together: {listed(broken)}"
        findings.append(Finding("missing-piece", "damaged", MANIFEST, text))
    if missing:
        text = f"{len(missing)} tensors of the manifest are in no file: {listed(missing)}"
        findings.append(Finding("missing-tensor", "damaged", MANIFEST, text))
    if extra:
        text = f"{len(extra)} tensors are in a file and not in the manifest: {listed(extra)}"
        findings.append(Finding("extra-tensor", "damaged", MANIFEST, text))
    root = _facts(manifest)
    try:
        state = inert(manifest["structure"], tensors)
    except DamagedFile as problem:
        findings.append(Finding("structure", "damaged", MANIFEST, problem.problem))
        model = _model(members)
        state = {"model": model} if model else {}
    _put_state(root, state)
    return root, findings


def _tensors(
    manifest: Mapping[str, Any], members: Mapping[str, Contents]
) -> tuple[dict[str, TensorEntry], list[str], list[str], list[str]]:
    """Return the tensors by their names in the structure, and what is wrong with them.

    That is the missing ones, those too many, and what keeps pieces from being put together.
    """
    tensors: dict[str, TensorEntry] = {}
    pieces: dict[str, list[tuple[StoredTensor, TensorEntry]]] = {}
    missing = []
    for stored in stored_tensors(manifest):
        entry = _entries(members, stored.file).get(stored.key)
        if entry is None:
            missing.append(stored.name)
        elif stored.offsets is None:
            tensors[stored.name] = entry
        else:
            pieces.setdefault(stored.name, []).append((stored, entry))
    problems = {name: _misfit(parts) for name, parts in pieces.items()}
    tensors |= {
        name: _put_together(name, parts, fits=not problems[name]) for name, parts in pieces.items()
    }
    broken = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    extra = [
        name_of(file, key)
        for file, digests in manifest["tensors"].items()
        for key in _entries(members, file)
        if key not in digests
    ]
    return tensors, missing, extra, broken


_Parts = list[tuple[StoredTensor, TensorEntry]]
"""What a manifest says of the pieces of a tensor, and what files hold of them."""


def _misfit(parts: _Parts) -> str:
    """Return why pieces are not those of one tensor; empty if they are."""
    first, entry = parts[0]
    if any((it.shape, piece.dtype) != (first.shape, entry.dtype) for it, piece in parts):
        return "its pieces are of several tensors"
    if any(len(piece.shape) != len(first.shape) for _, piece in parts):
        return "its pieces have another number of dimensions"
    problem = tiling(SavedTensor(entry.dtype, first.shape, _boxes(parts)))
    return "" if problem is None else problem.text


def _boxes(parts: _Parts) -> tuple[Box, ...]:
    return tuple(Box(stored.offsets or (), piece.shape) for stored, piece in parts)


def _put_together(name: str, parts: _Parts, *, fits: bool) -> TensorEntry:
    """Return a sharded tensor; without chunks, so that it can't be read, if pieces don't fit."""
    first, entry = parts[0]
    chunks = [
        Chunk(box.offsets, box.shape, path, piece.storage.offset or 0, piece.nbytes, it.digest)
        for box, (it, piece) in zip(_boxes(parts), parts, strict=True)
        if (path := piece.storage.path) is not None
    ]
    return TensorEntry(
        dtype=entry.dtype,
        shape=first.shape,
        stride=contiguous_stride(first.shape),
        storage=Storage(name, 0, None),
        chunks=tuple(chunks) if fits else (),
    )


def _facts(manifest: Mapping[str, Any]) -> dict[str, Value]:
    facts: dict[str, Value] = {}
    for name in _FACTS:
        try:
            value = inert(manifest.get(name), {})
        except DamagedFile:
            continue
        if value not in (None, {}, []):
            facts[name] = value
    return facts


def _put_state(root: dict[str, Value], state: Value) -> None:
    """Add the objects of a state under their names, and the rest of it."""
    parts = state if isinstance(state, dict) else {}
    objects = parts.get("objects")
    for name, node in _table(objects).items():
        value = _unwrapped(node)
        if isinstance(value, dict) and set(value) == {"state_dict", "other_buffers"}:
            root[f"{name}_other_buffers"] = value["other_buffers"]
            value = value["state_dict"]
        root[name if name not in root else f"objects.{name}"] = value
    for name, value in parts.items():
        if name == "progress":
            value = _last_of_log(value)
        if name not in ("objects", "inexact") and value not in ({}, []):
            root[name if name not in root else f"state.{name}"] = value


def _last_of_log(progress: Value) -> Value:
    """Return the progress without its history's older rows, and what the facts tell as well."""
    if not isinstance(progress, dict):
        return progress
    rest = {key: value for key, value in progress.items() if key not in ("step", "epoch")}
    history = rest.get("history")
    return {**rest, "history": history[-1:]} if isinstance(history, list) else rest


def _unwrapped(node: Value) -> Value:
    """Return what a captured object's node holds, as the object's own `state_dict()` gives it."""
    if not isinstance(node, dict) or "kind" not in node:
        return node
    kind, state = node["kind"], node.get("state")
    if kind == "items" and isinstance(node.get("items"), dict):
        return {key: _unwrapped(item) for key, item in node["items"].items()}
    if not isinstance(state, dict):
        return state
    if kind == "module":
        parts = {name: state.get(name) for name in ("state_dict", "other_buffers")}
        return parts if parts["other_buffers"] else parts["state_dict"]
    if kind == "optimizer":
        return {"class": state.get("class"), **_table(state.get("state_dict"))}
    return state.get("state", state) if kind != "value" else state


def _table(value: Value) -> dict[Value, Value]:
    return value if isinstance(value, dict) else {}


# --- A run -------------------------------------------------------------------------------------


def is_run(folder: Folder) -> bool:
    """Whether there are checkpoints of ours in a folder."""
    has_folder = any((folder.path / name / MANIFEST).is_file() for name in _checkpoints(folder))
    return has_folder or any(FORMAT.encode() in folder.head(name) for name in _one_files(folder))


def _checkpoints(folder: Folder) -> list[str]:
    return [name for name in folder.folders if CHECKPOINT_NAME.fullmatch(name)]


def _one_files(folder: Folder) -> list[str]:
    """Return the names of files that checkpoints which are one file have."""
    return [
        name
        for name in folder.files
        if name.endswith(ONE_FILE) and checkpoint_step(Path(name)) is not None
    ]


def describe_run(folder: Folder) -> Contents:
    """Return the newest whole checkpoint of a run, and what the others say about themselves."""
    one_files = _one_files(folder)
    names = sorted([*_checkpoints(folder), *one_files])
    told = [_told_by(folder, name) for name in names[-_MOST_CHECKPOINTS:]]
    told.sort(key=lambda item: (item[0] or math.inf, item[1].path.name))
    checkpoints = {item.path.name: item for _, item in told}
    whole = [name for name, item in checkpoints.items() if not _problem(item)]
    newest = _whole(folder, checkpoints[whole[-1]]) if whole else None
    findings = [
        Finding("checkpoint", "damaged", name, _problem(item))
        for name, item in checkpoints.items()
        if _problem(item)
    ]
    if len(names) > _MOST_CHECKPOINTS:
        text = f"only the last {_MOST_CHECKPOINTS} of its {len(names)} checkpoints were looked at"
        findings.append(Finding("not-looked-into", "ambiguous", "", text))
    others = {name: item for name, item in checkpoints.items() if name not in whole[-1:]}
    joined = _beside(folder, others, [name for name in folder.files if name not in one_files])
    if newest is not None:
        checkpoints[newest.path.name] = newest
    num = f"{len(names)} checkpoint{'s' if len(names) > 1 else ''}"
    told_newest = f"newest step {_step(newest)}" if newest else "none of them whole"
    return Contents(
        path=folder.path,
        nbytes=folder.nbytes + sum(item.nbytes for _, item in told if not _is_one_file(item)),
        container=RUN.name,
        root=None if newest is None else newest.root,
        findings=(*findings, *(newest.findings if newest else ()), *joined.findings),
        globals=(*(newest.globals if newest else ()), *joined.globals),
        kind=f"run of {num}, {told_newest}",
        members=(*checkpoints.values(), *(m for m in joined.members if m.path.name not in others)),
        problem=None if newest else DamagedFile("none of the run's checkpoints is whole"),
    )


def _whole(folder: Folder, told: Contents) -> Contents:
    return told if _is_one_file(told) else describe_checkpoint(folder.inner(told.path.name))


def _is_one_file(told: Contents) -> bool:
    return told.container != CHECKPOINT.name


def _step(checkpoint: Contents) -> Value:
    root = _table(checkpoint.root)
    return root.get("step", root.get("global_step"))


def _beside(folder: Folder, others: Mapping[str, Contents], names: list[str]) -> Contents:
    """Return what is to be judged beside the newest checkpoint: files of ours and of others.

    Args:
        folder: the run's folder.
        others: the other checkpoints. What is in a folder is told of if it is none of ours.
        names: the files beside the checkpoints.
    """
    members, skipped = look_into(folder, names)
    for name, item in others.items():
        if _is_one_file(item):
            members[name] = item
            continue
        strangers, left_out = _strangers(folder, item.path)
        members |= strangers
        skipped += left_out
    return join_members(folder.path, 0, RUN.name, members, findings=tuple(skipped))


def _strangers(folder: Folder, path: Path) -> tuple[dict[str, Contents], list[Finding]]:
    """Return what lies in a checkpoint that is only told of, and is none of its own files."""
    try:
        inner = folder.inner(path.name)
    except FileProblem as problem:
        text = f"{path.name}: {problem.problem}"
        return {}, [Finding("not-looked-into", "ambiguous", path.name, text)]
    below = look_below(inner, [name for name in inner.files if not is_own_file(name)])
    members = {f"{path.name}/{name}": member for name, member in below.members.items()}
    return members, below.findings


def _told_by(folder: Folder, name: str) -> tuple[int, Contents]:
    """Return the serial number of a checkpoint (0 if unknown), and what its manifest tells."""
    path = folder.path / name
    if name in folder.files:
        return _told_by_file(folder, name)
    try:
        manifest = read_manifest(path, limits=folder.limits)
    except FileProblem as problem:
        text = "is missing" if isinstance(problem, FileMissing) else problem.problem
        broken = DamagedFile(f"{MANIFEST}: {text}", path=path)
        return 0, Contents(path, 0, CHECKPOINT.name, None, problem=broken)
    problem_text = wrong_size(path, manifest["files"])
    return manifest["serial"], Contents(
        path=path,
        nbytes=sum(file["nbytes"] for file in manifest["files"].values()),
        container=CHECKPOINT.name,
        root=_facts(manifest),
        kind=f"checkpoint at {told_by(manifest)}",
        problem=DamagedFile(problem_text, path=path) if problem_text else None,
    )


def _told_by_file(folder: Folder, name: str) -> tuple[int, Contents]:
    """Return what `_told_by` does of a checkpoint that is one file; it is described as a whole."""
    contents = folder.examine(name)
    try:
        return manifest_of(contents.root)["serial"], contents
    except DamagedFile as problem:
        broken = DamagedFile(f"the manifest: {problem.problem}", path=contents.path)
        return 0, replace(contents, problem=contents.problem or broken)


def _problem(contents: Contents) -> str:
    return "" if contents.problem is None else contents.problem.problem


CHECKPOINT = FolderKind(metadata.CHECKPOINT, is_checkpoint, describe_checkpoint)
RUN = FolderKind("torchkeep-run", is_run, describe_run, _checkpoints)
