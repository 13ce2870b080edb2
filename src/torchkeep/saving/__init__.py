"""Models and states to files that plain torch and safetensors read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchkeep.errors import SaveRefused
from torchkeep.saving.metadata import JSON, save_metadata
from torchkeep.saving.modules import non_persistent_buffers, unwrapped_state
from torchkeep.saving.report import SaveReport
from torchkeep.saving.safetensors import write_safetensors
from torchkeep.saving.torch_zip import write_torch_zip
from torchkeep.saving.whole import Described, describe_whole

_SAFETENSORS = (".safetensors",)
_TORCH_ZIP = (".pth", ".pt", ".ckpt", ".bin")


def save(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, JSON] | None = None,
    whole: bool = False,
    durable: bool = True,
    overwrite: bool = False,
) -> SaveReport:
    """Save a model's parameters, a state dict or a checkpoint; return what was written.

    The suffix chooses the format: `.safetensors` takes a module or a flat dict of tensors; `.pth`,
    `.pt`, `.ckpt` and `.bin` take any tree of dicts, lists, tensors and plain values, and are read
    by plain `torch.load(weights_only=True)`. The file appears whole or not at all.

    Args:
        obj: a module (its state dict is saved, under the names it has without DataParallel,
            DistributedDataParallel, FSDP and torch.compile), a state dict, or a tree.
        path: the file; its folder must exist.
        metadata: JSON values to keep with it, such as a version, the training parameters, the
            data set. The date (UTC) and the versions of torchkeep, torch and Python are added; a
            `date` given here takes the place of the clock's.
        whole: store the model's structure beside its parameters, so that `load_model` rebuilds it.
            The file is a plain state dict to everyone else.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there. Without it an existing file is left alone.

    Raises:
        SaveRefused: a value can't be stored in this format (it is named), the suffix is unknown,
            the place is taken or can't be written to, or the disk is full. An old file is intact.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SAFETENSORS + _TORCH_ZIP:
        raise SaveRefused(
            f"{os.fspath(path)}: the suffix {suffix!r} names no format",
            advice=f"Use one of {', '.join(_SAFETENSORS + _TORCH_ZIP)}.",
        )
    stripped: tuple[str, ...] = ()
    not_saved: tuple[str, ...] = ()
    model, described = obj, Described()
    if isinstance(model, torch.nn.Module):
        not_saved = () if whole else non_persistent_buffers(model)
        obj, stripped = unwrapped_state(model)
    if whole:
        described = describe_whole(model, obj)
    write = write_safetensors if suffix in _SAFETENSORS else write_torch_zip
    report = write(
        _flat(obj) if suffix in _SAFETENSORS else obj,
        path,
        metadata=save_metadata(metadata) | described.texts,
        durable=durable,
        overwrite=overwrite,
    )
    return replace(
        report,
        stripped=stripped,
        not_saved=not_saved,
        needs=described.needs,
        left_out=described.left_out,
    )


def _flat(obj: object) -> Mapping[str, torch.Tensor]:
    if not isinstance(obj, Mapping):
        raise SaveRefused(
            f"a {type(obj).__qualname__} can't be stored as safetensors, only a dict of tensors",
            advice="Save as .pth, or give each tensor a name.",
        )
    return obj


__all__ = ["SaveReport", "save", "write_safetensors", "write_torch_zip"]
