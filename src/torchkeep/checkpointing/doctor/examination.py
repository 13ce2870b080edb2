"""What stands between a run and an exact resume, as far as its folder and this machine tell.

What only the live objects of the program tell is in `inventory`.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.doctor.environment import (
    git_commit,
    is_folder,
    program_folder,
    versions,
)
from torchkeep.checkpointing.doctor.findings import Finding
from torchkeep.checkpointing.layout import read_manifest
from torchkeep.checkpointing.runs.checkpoints import Checkpoint, verified
from torchkeep.checkpointing.runs.overview import look_at_run
from torchkeep.files import TEMPORARY_MARK
from torchkeep.showing import show
from torchkeep.wording import counted, size


def examine_run(run: str | os.PathLike[str], *, verify: bool = False) -> list[Finding]:
    """Return what a resume of a run would meet here and now, the worst first.

    The newest checkpoint is read, every byte of it, until one is found that is whole.

    Args:
        run: the run's folder.
        verify: read the others as well.

    Raises:
        FileMissing, CheckpointProblem, NoCheckpoint: it is not the folder of a run.
    """
    found = look_at_run(run, verify=verify)
    findings = [] if verify else list(_damage_of_newest(found.checkpoints))
    skipped = {item.place for item in findings}
    findings += [_damaged(item, item.problem) for item in found.checkpoints if item.problem]
    whole = [
        item for item in found.checkpoints if not item.problem and item.path.name not in skipped
    ]
    if not whole:
        text = "none of its checkpoints is whole: there is nothing to go on with"
        findings.append(Finding("no-checkpoint", "blocked", "", text))
    else:
        findings += [_newest(whole[-1]), *compare(whole[-1]), *_disk(found.path, whole[-1])]
    findings += _writer(found.writer) or _leftovers(found.path)
    return sorted(findings, key=lambda item: _ORDER.index(item.severity))


_ORDER = ("blocked", "damaged", "inexact", "note")


def compare(checkpoint: Checkpoint) -> list[Finding]:
    """Return what is different now from when a checkpoint was made, and what it lacks.

    What a program sets for itself, such as the determinism flags, is not known from outside; it
    is compared when the run goes on.

    Raises:
        FileProblem: its manifest can't be read.
    """
    manifest = read_manifest(checkpoint.path)
    name = checkpoint.path.name
    found = [Finding("incomplete", "inexact", name, text) for text in checkpoint.inexact]
    found += _of_the_machine(_table(manifest, "environment"))
    found += _of_the_versions(_table(manifest, "versions"))
    found += _of_the_program(manifest)
    return found


def _table(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table of facts; they are a file's, and may be anything."""
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}


# --- What is different -------------------------------------------------------------------------


def _of_the_machine(saved: Mapping[str, Any]) -> Iterator[Finding]:
    for name, (rule, now, text) in _machine().items():
        if saved.get(name) not in (None, [], now):
            told = text.format(saved=_shown(saved[name]), now=_shown(now))
            yield Finding(rule, "inexact", "", told)
    threads, here = saved.get("num_threads"), torch.get_num_threads()
    if threads not in (None, here):
        used = counted(threads, "thread") if type(threads) is int else f"{_shown(threads)} threads"
        yield Finding(
            "threads",
            "note",
            "",
            f"the run used {used}, and PyTorch takes {here} here",
            advice=f"Unless the program sets it itself, set OMP_NUM_THREADS={_shown(threads)}.",
        )
    world = saved.get("world_size", 1)
    if world != 1:
        yield Finding(
            "world-size",
            "note",
            "",
            f"{_shown(world)} processes trained together",
            advice="Start as many, in the way in which they were started.",
        )


def _machine() -> dict[str, tuple[str, Any, str]]:
    """Return by the fact's name: the finding's, what is so here, and what to say."""
    is_there = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count() * is_there)]
    return {
        "torch": ("versions", str(torch.__version__), "PyTorch was {saved} and is {now}"),
        "machine": ("machine", platform.machine(), "the processor was {saved} and is {now}"),
        "cuda_devices": ("devices", devices, "the CUDA devices were {saved} and are {now}"),
    }


def _of_the_versions(saved: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the libraries of another version; PyTorch's own is the machine's business."""
    here = versions()
    for name in sorted(saved.keys() - {"torch"}):
        now = here.get(name) or _installed(name)
        if saved[name] != now and not _is_build_of(saved[name], now):
            told = f"is {now}" if now else "is not installed"
            text = f"{_shown(name)} was {_shown(saved[name])} and {told}"
            yield Finding("versions", "note", "", text)


def _is_build_of(saved: object, now: str) -> bool:
    """Whether a version, such as 0.29.1+cu130, is what the installation calls 0.29.1."""
    return isinstance(saved, str) and "+" not in now and saved.partition("+")[0] == now


def _installed(name: str) -> str:
    try:
        return version(name)
    except (PackageNotFoundError, ValueError):
        return ""


def _of_the_program(manifest: Mapping[str, Any]) -> Iterator[Finding]:
    saved, start = manifest.get("git"), start_of(manifest)
    if not isinstance(saved, str) or start is None or not is_folder(start.folder):
        return
    now = git_commit(start.folder)
    if now is None:
        text = f"the program was at commit {_shown(saved[:12])}, and is in no repository now"
        yield Finding("git", "note", "", text)
    elif now != saved.removesuffix(_CHANGES):
        text = f"the program was at commit {_commit(saved)}, and is at {_shown(now[:12])}"
        yield Finding("git", "note", "", text)
    elif saved.endswith(_CHANGES):
        text = f"the program is commit {_commit(saved)}; they may be others now"
        yield Finding("git", "note", "", text)


_CHANGES = "+changes"


def _commit(revision: str) -> str:
    start = _shown(revision.removesuffix(_CHANGES)[:12])
    return f"{start} with changes" if revision.endswith(_CHANGES) else start


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return show(value)


def machine() -> dict[str, Any]:
    """Return what is compared of this machine and of what is installed, by name."""
    here = {**versions(), **{name: _installed(name) for name in _LIBRARIES}}
    settings = {name: now for name, (_, now, _) in _machine().items()}
    return {
        **{name: here[name] for name in sorted(here) if here[name]},
        "machine": settings["machine"],
        "system": platform.platform(),
        "num_threads": torch.get_num_threads(),
        "cuda_devices": settings["cuda_devices"],
    }


_LIBRARIES = ("numpy", "torchvision", "safetensors", "timm")


# --- How it was started ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """How the program of a run was started. It is what a file says: show it before it is run."""

    argv: tuple[str, ...]
    """The command line; the first word may be a short name."""
    executable: str
    """The interpreter's path, or an empty text."""
    cwd: Path
    """Where it was started."""
    run: Path | None
    """The run that it went on with."""

    @property
    def folder(self) -> Path:
        """See `program_folder`."""
        return program_folder(self.argv, self.cwd)


def start_of(manifest: Mapping[str, Any]) -> Start | None:
    """Return how the program that made a checkpoint was started; None if it does not say."""
    saved = _table(manifest, "command")
    argv, cwd = saved.get("argv"), saved.get("cwd")
    if not (isinstance(argv, list) and argv and all(map(_is_word, argv)) and _is_word(cwd)):
        return None
    if not Path(str(cwd)).is_absolute():  # it would be wherever who asks happens to be
        return None
    executable, run = (saved[key] if _is_word(saved.get(key)) else "" for key in _PATHS)
    return Start(tuple(argv), executable, Path(str(cwd)), Path(run) if run else None)


_PATHS = ("executable", "run")


def _is_word(value: object) -> bool:
    """Tell whether it may be a word of a command line."""
    return isinstance(value, str) and "\0" not in value


# --- What is wrong with the folder -------------------------------------------------------------


def _damage_of_newest(checkpoints: tuple[Checkpoint, ...]) -> Iterator[Finding]:
    """Read the newest checkpoints until one is whole; yield those that are not."""
    for item in reversed(checkpoints):
        if not item.problem:
            problem = verified(item).problem
            if not problem:
                return
            yield _damaged(item, problem)


def _damaged(checkpoint: Checkpoint, problem: str) -> Finding:
    return Finding(
        "damaged",
        "damaged",
        checkpoint.path.name,
        problem,
        advice="A resume skips it; `torchkeep prune --damaged` removes it.",
    )


def _newest(checkpoint: Checkpoint) -> Finding:
    text = f"a resume goes on from here: {checkpoint.point}"
    return Finding("newest", "note", checkpoint.path.name, text)


def _disk(run: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    free = shutil.disk_usage(run).free
    if free < checkpoint.nbytes:
        text = f"the disk has {size(free)} free, and a checkpoint takes {size(checkpoint.nbytes)}"
        advice = "Free some space: a new one is written before an old one goes."
        yield Finding("disk", "blocked", "", text, advice)


def _writer(writer: str) -> list[Finding]:
    return [Finding("writer", "note", "", f"{writer} writes to it now")] if writer else []


def _leftovers(run: Path) -> list[Finding]:
    """Return what an interrupted write left; while somebody writes, it may be what is written."""
    found = [item for item in run.iterdir() if TEMPORARY_MARK in item.name]
    if not found:
        return []
    text = f"an interrupted write left {counted(len(found), 'temporary folder')}"
    return [Finding("leftovers", "note", "", text, "The next run or prune removes it.")]
