"""Models and states to files that plain torch and safetensors read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from torchkeep.errors import SaveRefused
from torchkeep.files import Progress
from torchkeep.saving.metadata import JSON, save_metadata
from torchkeep.saving.modules import non_persistent_buffers, unwrapped_state
from torchkeep.saving.naming import filled_path
from torchkeep.saving.safetensors import write_safetensors
from torchkeep.saving.samples import proof_texts
from torchkeep.saving.torch_zip import write_torch_zip
from torchkeep.saving.whole import Described, describe_whole
from torchkeep.writing.report import SaveReport
from torchkeep.writing.shards import check_shard_nbytes
from torchkeep.writing.suffixes import format_of


def save(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, JSON] | None = None,
    whole: bool = False,
    shard_nbytes: int | None = None,
    samples: Any = None,
    preprocess: Callable[..., Any] | None = None,
    metric: Mapping[str, float] | None = None,
    durable: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SaveReport:
    """Save a model's parameters, a state dict or a checkpoint; return what was written.

    The suffix chooses the format: `.safetensors` takes a module or a flat dict of tensors; `.pth`,
    `.pt`, `.ckpt` and `.bin` take any tree of dicts, lists, tensors and plain values, and are read
    by plain `torch.load(weights_only=True)`. The file appears whole or not at all.

    Args:
        obj: a module (its state dict is saved, under the names it has without DataParallel,
            DistributedDataParallel, FSDP and torch.compile), a state dict, or a tree.
        path: the file; its folder must exist. The name may have fields, as in
            `net-{version}-{date}.pth`: keys of the metadata, the `date` (the day) and the versions
            that every save has. A brace is written twice.
        metadata: JSON values to keep with it, such as a version, the training parameters, the
            data set. The date (UTC) and the versions of torchkeep, torch and Python are added; a
            `date` given here takes the place of the clock's.
        whole: store the model's structure beside its parameters, so that `load_model` rebuilds it.
            The file is a plain state dict to everyone else.
        shard_nbytes: bytes of tensors in a file at the most (safetensors only). What has more is
            written to `model-00001-of-00003.safetensors` and so on, with an index beside them, as
            Hugging Face's libraries do; a single tensor that has more gets a file of its own.
        samples: inputs of the model, to be kept with its outputs so that `replay` can prove a later
            load: a tensor, a tuple of arguments, a dict of named ones, or a list of such. The model
            is run on each, in evaluation mode. At most 4 MiB with the outputs.
        preprocess: makes of a sample what the model takes; then raw inputs are kept.
        metric: figures that the model has reached, such as `{"accuracy": 0.973}`. They are kept as
            the metadata `metric`, and `replay` compares them.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there. Without it an existing file is left alone.
        progress: is called with the bytes that are written so far and with all, as they are
            written; from other threads than the caller's, one at a time.

    Raises:
        SaveRefused: a value can't be stored in this format (it is named), the suffix is unknown,
            a field of the name has no value, the place is taken or can't be written to, the disk is
            full, or the model can't be run on the samples. An old file is intact.
        WrongArgument: `shard_nbytes` is of no use here.
    """
    texts = save_metadata(metadata)
    path = filled_path(path, metadata or {}, texts)
    container = format_of(path)
    if shard_nbytes is not None:
        check_shard_nbytes(path, shard_nbytes)
    # What torchkeep itself keeps with a model, under keys that begin with `torchkeep.`, joins here.
    own = proof_texts(obj, samples=samples, preprocess=preprocess, metric=metric, metadata=metadata)
    stripped: tuple[str, ...] = ()
    not_saved: tuple[str, ...] = ()
    model, described = obj, Described()
    if isinstance(model, torch.nn.Module):
        not_saved = () if whole else non_persistent_buffers(model)
        obj, stripped = unwrapped_state(model)
    if whole:
        described = describe_whole(model, obj)
        own = own | described.texts
    if container == "safetensors":
        write = partial(write_safetensors, _flat(obj), shard_nbytes=shard_nbytes)
    else:
        write = partial(write_torch_zip, obj)
    report = write(
        path, metadata=texts | own, durable=durable, overwrite=overwrite, progress=progress
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
