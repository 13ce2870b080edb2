"""A folder of model files: what transformers, its Trainer, PEFT and diffusers write, or any other.

Layout: files side by side, of which any may be missing

    config.json                what the model is (transformers); model_index.json (diffusers)
    model.safetensors          the parameters; or pytorch_model.bin; or an index and its parts
    adapter_config.json        what an adapter is, with adapter_model.safetensors (PEFT)
    trainer_state.json         how far the training is (transformers.Trainer), with
    training_args.bin, optimizer.pt, scheduler.pt, scaler.pt, rng_state.pth

The tree is a dictionary from each file's name to what it holds; the JSON files above are plain
values. If there are only indexes (see `sharded`), it is the state dict that the first of them
stands for, and folders within are told of beside it.

A folder within is described as what it is, if it is of a kind of its own; otherwise each of its
files is told of under its path (see `below`, also for the limits).

Limits: of a log only the last row of each quantity is told.

Source: transformers/trainer.py (`_save_checkpoint`), transformers/trainer_callback.py
(`TrainerState`), peft/peft_model.py (`save_pretrained`), diffusers/pipelines/pipeline_utils.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torchkeep.contents import Contents, Files, Finding, Value
from torchkeep.errors import FileProblem, LimitReached, NotAModelFile
from torchkeep.formats.folders.below import look_below
from torchkeep.formats.folders.folder import Folder, FolderKind, listed, unreadable
from torchkeep.formats.folders.sharded import describe_index, indexes, is_index
from torchkeep.formats.joining import join_members
from torchkeep.formats.own import folders as own_folders
from torchkeep.formats.plain_json import parse_json
from torchkeep.wording import counted

_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
_TRAINER = "trainer_state.json"
_PIPELINE = "model_index.json"
_RESULTS = ("all_results.json", "eval_results.json", "train_results.json")
_STATES = (_CONFIG, _ADAPTER, _PIPELINE, _TRAINER, "params.json", *_RESULTS)
"""JSON files that are told of as plain values."""
_MOST_JSON_NBYTES = 16 << 20
_TARGET = b'"_target_"'
"""What Hydra and its kin call stands under this key."""


@dataclass(slots=True)
class _Found:
    """What was met in a folder."""

    states: dict[str, Value] = field(default_factory=dict)
    """The JSON files that are told of, by name."""
    indexes: dict[str, Contents] = field(default_factory=dict)
    models: dict[str, Contents] = field(default_factory=dict)
    """The files that can be opened, those in folders within under their paths."""
    folders: dict[str, Contents] = field(default_factory=dict)
    """The folders within that are of a kind of their own."""
    nbytes_below: int = 0
    findings: list[Finding] = field(default_factory=list)
    num_others: int = 0

    @property
    def members(self) -> dict[str, Contents]:
        """All that can be opened, the indexes first."""
        return {**self.indexes, **self.models, **self.folders}


def describe(folder: Folder) -> Contents:
    """Return what the model files of a folder hold."""
    found = _Found()
    _read_states(folder, found)
    _open_models(folder, found)
    if not found.members and not found.states and not found.findings:
        raise _no_model(folder, found)
    findings = (*found.findings, *_remote_code(found.states), *unreadable(found.members))
    joined = join_members(
        folder.path,
        folder.nbytes + found.nbytes_below,
        KIND.name,
        found.members,
        kind=_told(found),
        findings=findings,
        problem=None if found.members else _no_model(folder, found),
    )
    if found.indexes and all("/" in name for name in found.models):
        return _as_index(joined, found)
    return replace(joined, root=Files({**found.states, **joined.root}))


def _no_model(folder: Folder, found: _Found) -> FileProblem:
    if not folder.files and not folder.folders and not folder.others:
        return NotAModelFile("the folder is empty", advice="Check the path.")
    advice = "Give the file or the folder that has the model."
    for finding in found.findings:
        if finding.rule == "not-looked-into":
            return LimitReached(f"no model was met in the folder; {finding.text}", advice=advice)
    num = found.num_others + len(found.states)
    text = "there is no model file in the folder"
    if num:
        files = "the only file" if num == 1 else f"none of the {num:,} files"
        text = f"{files} in the folder is {'no' if num == 1 else 'a'} model"
    return NotAModelFile(text, advice=advice)


def _as_index(joined: Contents, found: _Found) -> Contents:
    """Return the folder as what the first of its indexes stands for."""
    name, main = next(iter(found.indexes.items()))
    config: Value = found.states.get(_CONFIG, {})
    told = _architecture(config)
    facts = {key: str(config[key])[:200] for key in _TOLD_KEYS if key in config}
    return replace(
        joined,
        container=main.container,
        root=main.root,
        metadata={**main.metadata, **facts, "index": name},
        kind=(main.kind.replace("state dict", told, 1) if told else main.kind)
        + _with_folders(found),
        members=(
            *(main.members if len(found.indexes) == 1 else found.indexes.values()),
            *found.models.values(),
            *found.folders.values(),
        ),
        problem=main.problem,
    )


_TOLD_KEYS = tuple(
    "architectures architecture model_type torch_dtype dtype transformers_version".split()
)


# --- What lies in it ---------------------------------------------------------------------------


def _read_states(folder: Folder, found: _Found) -> None:
    for name in _STATES:
        if name not in folder.files:
            continue
        try:
            data = folder.read(name, _MOST_JSON_NBYTES)
            value = parse_json(data, allow_nan=True)
        except LimitReached as problem:
            found.findings.append(Finding("large-json", "note", name, problem.problem))
            continue
        except FileProblem as problem:
            found.findings.append(Finding("broken-json", "damaged", name, problem.problem))
            continue
        if isinstance(value, dict):
            found.states[name] = _shortened(value)
        if _TARGET in data:
            found.models[name] = folder.examine(name)


def _shortened(table: dict[str, Any]) -> dict[str, Value]:
    """Return a table without what would swamp everything else: logs and two-way label tables."""
    short = dict(table)
    log = table.get("log_history")
    if isinstance(log, list):
        rows = [row for row in log if isinstance(row, dict)]
        short["log_history"] = {key: value for row in rows for key, value in row.items()}
    labels = table.get("id2label")
    if isinstance(labels, dict) and list(labels) == [str(index) for index in range(len(labels))]:
        short["id2label"] = list(labels.values())
        short.pop("label2id", None)
    return short


def _open_models(folder: Folder, found: _Found) -> None:
    claimed = set(found.states)
    for name in indexes(folder):
        contents, shards = describe_index(folder, name)
        if not isinstance(contents.problem, NotAModelFile):
            found.indexes[name] = contents
            claimed |= {name, *shards}
    waiting = [name for name in folder.files if name not in claimed]
    below = look_below(folder, waiting, without=claimed)
    found.models |= below.files
    found.folders |= below.folders
    found.findings += below.findings
    found.nbytes_below = below.nbytes
    found.num_others = below.num_others


def is_model(folder: Folder) -> bool:
    """Whether something in a folder says that it is a model, and not just a place for files."""
    if any(name in folder.files for name in _STATES):
        return True
    return any(is_index(name, folder.head(name)) for name in folder.files if ".json" in name)


def _remote_code(states: Mapping[str, Value]) -> list[Finding]:
    """Note classes that transformers would import from the folder, if it is told to."""
    config = states.get(_CONFIG)
    table = config.get("auto_map") if isinstance(config, dict) else None
    if not isinstance(table, dict) or not table:
        return []
    text = f"loading it with trust_remote_code=True would run {listed(map(str, table.values()))}"
    return [Finding("remote-code", "note", _CONFIG, text)]


# --- What it is --------------------------------------------------------------------------------


def _told(found: _Found) -> str:
    """Return what the folder is in a few words."""
    states = found.states
    config, adapter, trainer = states.get(_CONFIG), states.get(_ADAPTER), states.get(_TRAINER)
    if isinstance(trainer, dict):
        return f"HF Trainer checkpoint{_progress(trainer)}{_of(config)}"
    if isinstance(adapter, dict):
        kind, base = adapter.get("peft_type"), adapter.get("base_model_name_or_path")
        return f"PEFT adapter ({_short(kind)}) for {_short(base)}{_with_folders(found)}"
    if isinstance(states.get(_PIPELINE), dict):
        return f"diffusers pipeline: {_short(states[_PIPELINE].get('_class_name'))}"
    if isinstance(config, dict) and (told := _architecture(config)):
        return f"model folder of {told}{_with_folders(found)}"
    num = len(found.indexes) + len(found.models)
    parts = [counted(num, "model file")] if num or not found.folders else []
    parts += [counted(found.num_others, "other file")] if found.num_others else []
    return f"folder of {_listing([*parts, *_folders(found)])}"


def _with_folders(found: _Found) -> str:
    folders = _folders(found)
    return f", with {_listing(folders)}" if folders else ""


def _folders(found: _Found) -> list[str]:
    """Return how many folders of which kinds there are, and which checkpoint is the newest."""
    kinds = Counter(_kind_of(contents) for contents in found.folders.values())
    checkpoints = [item for item in found.folders.values() if _kind_of(item) == _CHECKPOINT]
    steps = [int(step[1]) for item in checkpoints if (step := _AT_STEP.search(item.kind))]
    newest = f", newest at step {max(steps)}" if steps else ""
    if len(checkpoints) == 1:
        newest = newest.removeprefix(", newest")
    others = [counted(num, kind) for kind, num in kinds.items() if kind != _CHECKPOINT]
    return others + ([counted(len(checkpoints), _CHECKPOINT) + newest] if checkpoints else [])


_CHECKPOINT = "checkpoint"
_AT_STEP = re.compile(r"\bstep (\d{1,18})\b")
_KINDS = {
    "dcp": "distributed checkpoint",
    own_folders.CHECKPOINT.name: _CHECKPOINT,
    own_folders.RUN.name: "run",
}


def _kind_of(contents: Contents) -> str:
    """Return what a folder within is called when it is counted."""
    if contents.kind.startswith(("HF Trainer checkpoint", "DeepSpeed checkpoint")):
        return _CHECKPOINT
    return _KINDS.get(contents.container, "model folder")


def _listing(parts: list[str]) -> str:
    """Return parts as a list in words.

    >>> _listing(["a"]), _listing(["a", "b"]), _listing(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), *parts[-1:]])


def _progress(trainer: dict[str, Any]) -> str:
    step, most, epoch = (trainer.get(key) for key in ("global_step", "max_steps", "epoch"))
    words = f" at step {step}" if isinstance(step, int) else ""
    words += f" of {most}" if words and isinstance(most, int) and most > 0 else ""
    return words + (f", epoch {epoch:g}" if isinstance(epoch, int | float) else "")


def _of(config: Value) -> str:
    told = _architecture(config) if isinstance(config, dict) else ""
    return f", {told}" if told else ""


def _architecture(config: dict[str, Any]) -> str:
    """Return the class that a config.json names, or the type; empty if neither."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return _short(names[0])
    for key in ("model_type", "architecture", "_class_name"):
        if isinstance(config.get(key), str):
            return _short(config[key])
    return ""


def _short(value: Value) -> str:
    return value[:80] if isinstance(value, str) else "unknown"


def _any_folder(folder: Folder) -> bool:
    del folder
    return True


KIND = FolderKind("folder", _any_folder, describe, own_folders=None)
