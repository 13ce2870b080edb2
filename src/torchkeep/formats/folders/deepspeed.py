"""The folder of a DeepSpeed checkpoint: one file of `torch.save` per rank, for model and optimizer.

Layout:

    latest                                              text: the newest folder's name
    global_step500/
      mp_rank_00_model_states.pt                        the module, and how the run stands
      zero_pp_rank_<n>_mp_rank_<m>_optim_states.pt      a part of the optimizer, flat
      zero_pp_rank_<n>_mp_rank_<m>_model_states.pt      a part of the parameters (ZeRO 3)

The tree is a dictionary from each file's name to what it holds. Of a folder with `latest` it is
that of the folder which `latest` names.

Limits: what ZeRO split is told of as it lies in the files, flat, and not put together again.

Source: deepspeed/runtime/engine.py (`_save_checkpoint`, `_get_zero_ckpt_name`).
"""

from __future__ import annotations

import re
from dataclasses import replace

from torchkeep.contents import Contents, Files
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.formats.folders.folder import (
    Folder,
    FolderKind,
    look_into,
    shown,
    unreadable,
    way_out,
)
from torchkeep.formats.joining import join_members

_MODEL, _OPTIMIZER = "_model_states.pt", "_optim_states.pt"
_LATEST = "latest"
_LONGEST_NAME = 255
_STEP = re.compile(r"global_step(\d{1,12})")


def _matches(folder: Folder) -> bool:
    if any(name.endswith((_MODEL, _OPTIMIZER)) for name in folder.files):
        return True
    # The Trainer of transformers puts it beside files of its own, which say more.
    return "trainer_state.json" not in folder.files and _newest(folder) is not None


def _newest(folder: Folder) -> str | None:
    """Return the folder that `latest` names, if there is one; not more than its name."""
    if not 0 < folder.files.get(_LATEST, 0) <= _LONGEST_NAME:
        return None
    name = folder.head(_LATEST).decode("utf-8", "replace").strip()
    return name if name in folder.folders else None


def describe(folder: Folder) -> Contents:
    """Return what the files of a checkpoint hold."""
    parts = [name for name in folder.files if name.endswith((_MODEL, _OPTIMIZER))]
    newest = _newest(folder)
    if not parts and newest is not None:
        return _describe_newest(folder, newest)
    members, findings = look_into(folder, list(folder.files))
    num = sum(name.endswith(_MODEL) for name in parts)
    step = _STEP.search(folder.path.name)
    told = f"DeepSpeed checkpoint{f' of step {step[1]}' if step else ''}: "
    return join_members(
        folder.path,
        folder.nbytes,
        KIND.name,
        members,
        kind=told + f"{_files(num)} of the model, {_files(len(parts) - num)} of the optimizer",
        findings=(*findings, *unreadable(members)),
        problem=None
        if any(member.problem is None for member in members.values())
        else DamagedFile("none of its files can be read"),
    )


def _files(num: int) -> str:
    return f"{num} file{'' if num == 1 else 's'}"


def _describe_newest(folder: Folder, name: str) -> Contents:
    outside = way_out(folder.path, name)
    if outside is not None:
        raise DamagedFile(outside.text)
    try:
        inner = folder.inner(name)
    except FileProblem as problem:
        raise DamagedFile(f"{shown(name)}: {problem.problem}") from None
    if not any(file.endswith((_MODEL, _OPTIMIZER)) for file in inner.files):
        raise DamagedFile(f"{shown(name)}, which {_LATEST} names, has no files of DeepSpeed")
    contents = describe(inner)
    beside, findings = look_into(folder, [name for name in folder.files if name != _LATEST])
    joined = join_members(
        folder.path, 0, KIND.name, beside, findings=(*findings, *unreadable(beside))
    )
    return replace(
        contents,
        path=folder.path,
        nbytes=contents.nbytes + folder.nbytes,
        root=Files({**joined.root, **(contents.root or {})}),
        globals=tuple(dict.fromkeys((*contents.globals, *joined.globals))),
        findings=(*contents.findings, *joined.findings),
        members=(*contents.members, *joined.members),
    )


def _own_folders(folder: Folder) -> tuple[str, ...]:
    """Return the folder that was told of as what the whole is."""
    newest = _newest(folder)
    has_parts = any(name.endswith((_MODEL, _OPTIMIZER)) for name in folder.files)
    return () if newest is None or has_parts else (newest,)


KIND = FolderKind("folder", _matches, describe, _own_folders)
