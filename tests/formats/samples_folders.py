"""Folders of every kind, written by the libraries that own them, or laid out as they do it.

A sample writes a folder and returns what it holds, as live Python and torch objects.
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

import torchkeep
from formats.samples import Sample


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.125)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return net, optimizer, scheduler


# --- Shards and their index ----------------------------------------------------------------------


def write_index(folder: Path, name: str, weight_map: dict[str, str], **metadata: Any) -> None:
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_shards(
    folder: Path,
    *,
    stem: str = "model",
    suffix: str = "safetensors",
    variant: str = "",
    num: int = 3,
) -> dict[str, torch.Tensor]:
    """Write a state dict in several files, as `save_pretrained` lays it out."""
    folder.mkdir(exist_ok=True)
    state = dict(network().state_dict())
    names, weight_map = list(state), {}
    for number in range(num):
        file = f"{stem}{variant}-{number + 1:05d}-of-{num:05d}.{suffix}"
        part = {name: state[name] for name in names[number::num]}
        if suffix == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    write_index(folder, f"{stem}.{suffix}.index{variant}.json", weight_map, total_size=total)
    return state


# --- Distributed checkpoints ---------------------------------------------------------------------


def nested_state() -> dict[str, Any]:
    net, optimizer, scheduler = trained()
    return {
        "model": net.state_dict(),
        "optim": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "names": ["a", "b"],
        "odd": {
            "scalar": torch.tensor(7),
            "empty": torch.empty(0, 3),
            "half": torch.ones(2).half(),
        },
        "list": [torch.arange(3.0), {"x": torch.ones(1)}],
    }


def write_dcp(folder: Path, *, state: Callable[[], dict[str, Any]] = nested_state) -> Any:
    value = state()
    quietly(dcp.save, value, checkpoint_id=folder)
    return value


def write_dcp_threads(folder: Path) -> Any:
    """Write two shards, and a file for each tensor in turn."""
    value = nested_state()
    quietly(dcp.save, value, storage_writer=dcp.FileSystemWriter(folder, thread_count=2))
    return value


def write_hf_dcp(folder: Path) -> Any:
    """Write what rank 0 writes for everyone: safetensors with an index."""
    state = dict(network().state_dict())
    numbers = {name: 1 + index % 2 for index, name in enumerate(state)}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=numbers)
    quietly(dcp.save, state, storage_writer=writer)
    return state


class Spread(torch.Tensor):
    """A tensor of which this rank has some boxes."""

    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape)),
                    properties=TensorProperties.create_from_tensor(torch.Tensor(self)),
                    size=self.size(),
                ),
            )
            for offsets, shape in self.boxes
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        offsets, shape = next(box for box in self.boxes if box[0] == tuple(index.offset or ()))
        place = tuple(slice(n, n + size) for n, size in zip(offsets, shape, strict=True))
        return self.as_subclass(torch.Tensor)[place].clone()


def spread(tensor: torch.Tensor, *boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Spread:
    made = tensor.as_subclass(Spread)
    made.boxes = list(boxes)
    return made


def write_ranks(
    folder: Path, states: Iterable[dict[str, Any]], writer: Callable[[Path], Any] | None = None
) -> None:
    """Write what several ranks hold, as they would together, with no process group."""
    writers, planners, plans = [], [], []
    for rank, state in enumerate(states):
        one = (writer or dcp.FileSystemWriter)(folder)
        planner = DefaultSavePlanner()
        one.set_up_storage_writer(rank == 0)
        planner.set_up_planner(state, one.storage_meta(), rank == 0)
        plans.append(one.prepare_local_plan(planner.create_local_plan()))
        writers.append(one)
        planners.append(planner)
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = [
        one.write_data(planner.finish_plan(plan), planner).wait()
        for one, planner, plan in zip(writers, planners, plans, strict=True)
    ]
    quietly(writers[0].finish, metadata, results)


ROWS = torch.arange(30.0).view(5, 6)


def rank_states() -> list[dict[str, Any]]:
    """Return what two ranks hold: split by rows, by columns, into four boxes; and whole."""
    numbers = torch.arange(12).view(3, 4)
    return [
        {
            "model": {
                "rows": spread(ROWS, ((0, 0), (3, 6))),
                "columns": spread(ROWS, ((0, 0), (5, 2))),
                "boxes": spread(numbers, ((0, 0), (2, 3)), ((2, 3), (1, 1))),
                "whole": torch.ones(3),
            },
            "epoch": 2,
        },
        {
            "model": {
                "rows": spread(ROWS, ((3, 0), (2, 6))),
                "columns": spread(ROWS, ((0, 2), (5, 4))),
                "boxes": spread(numbers, ((0, 3), (2, 1)), ((2, 0), (1, 3))),
                "whole": torch.ones(3),
            },
            "of rank 1": "x",
        },
    ]


def write_two_ranks(folder: Path) -> Any:
    write_ranks(folder, rank_states())
    numbers = torch.arange(12).view(3, 4)
    model = {"rows": ROWS, "columns": ROWS, "boxes": numbers, "whole": torch.ones(3)}
    return {"model": model, "epoch": 2, "of rank 1": "x"}


def write_hf_ranks(folder: Path) -> Any:
    """Write the safetensors shards of two ranks, which no index tells of."""
    folder.mkdir()
    states = [
        {"fc.weight": spread(ROWS, ((0, 0), (3, 6))), "fc.bias": torch.ones(3)},
        {"fc.weight": spread(ROWS, ((3, 0), (2, 6))), "fc.bias": torch.ones(3)},
    ]
    write_ranks(folder, states, lambda path: HuggingFaceStorageWriter(path, save_distributed=True))
    return {"fc.weight": ROWS, "fc.bias": torch.ones(3)}


# --- Folders of the frameworks -------------------------------------------------------------------


CONFIG = {
    "architectures": ["TinyForImages"],
    "model_type": "tiny",
    "id2label": {"0": "cat", "1": "dog"},
    "label2id": {"cat": 0, "dog": 1},
    "hidden_size": 4,
}
TOLD_CONFIG = {
    "architectures": ["TinyForImages"],
    "model_type": "tiny",
    "id2label": ["cat", "dog"],
    "hidden_size": 4,
}
TRAINER_STATE = {
    "epoch": 1.5,
    "global_step": 300,
    "max_steps": 600,
    "best_metric": None,
    "log_history": [
        {"loss": 0.5, "epoch": 1.0, "step": 200},
        {"eval_loss": float("nan"), "epoch": 1.0, "step": 200},
        {"loss": 0.25, "epoch": 1.5, "step": 300},
    ],
}


def save_vanished(path: Path, module: str, name: str, **attributes: Any) -> None:
    """Save an object whose class can't be imported afterwards."""
    package = module.partition(".")[0]
    made = types.ModuleType(module)
    cls = type(name, (), {"__module__": module})
    setattr(made, name, cls)
    sys.modules |= {package: types.ModuleType(package), module: made}
    item = cls()
    item.__dict__.update(attributes)
    try:
        torch.save(item, path)
    finally:
        del sys.modules[module], sys.modules[package]


def write_hf_model(folder: Path) -> Any:
    folder.mkdir()
    state = dict(network().state_dict())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "README.md").write_text("# A model\n")
    return {"model.safetensors": state, "config.json": TOLD_CONFIG}


def write_trainer(folder: Path) -> Any:
    """Write what `transformers.Trainer` leaves in a checkpoint folder."""
    files = write_hf_model(folder)
    _, optimizer, scheduler = trained()
    files["optimizer.pt"] = optimizer.state_dict()
    files["scheduler.pt"] = scheduler.state_dict()
    files["rng_state.pth"] = {"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(files[name], folder / name)
    where = folder / "training_args.bin"
    save_vanished(where, "transformers.training_args", "TrainingArguments", seed=42)
    (folder / "trainer_state.json").write_text(json.dumps(TRAINER_STATE, indent=2))
    log = {"loss": 0.25, "eval_loss": float("nan"), "epoch": 1.5, "step": 300}
    return {**files, "trainer_state.json": {**TRAINER_STATE, "log_history": log}}


def write_adapter(folder: Path) -> Any:
    folder.mkdir()
    state = {"base_model.model.q.lora_A.weight": torch.ones(2, 3)}
    save_file(state, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "base_model_name_or_path": "tiny/base", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return {"adapter_model.safetensors": state}


def write_pipeline(folder: Path) -> Any:
    folder.mkdir()
    parts = {name: write_hf_model(folder / name) for name in ("unet", "vae")}
    index = {"_class_name": "TinyPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return parts


def write_deepspeed(folder: Path) -> Any:
    """Write what DeepSpeed leaves: a folder of the newest step, and its name."""
    inner = folder / "global_step500"
    inner.mkdir(parents=True)
    (folder / "latest").write_text("global_step500")
    model = {"module": network().state_dict(), "global_steps": 500, "ds_version": "0.16.0"}
    files = {"mp_rank_00_model_states.pt": model}
    for rank in range(2):
        flat = {"optimizer_state_dict": {"single_partition_of_fp32_groups": [torch.ones(9)]}}
        files[f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"] = flat
    for name, value in files.items():
        torch.save(value, inner / name)
    return files


def write_run(folder: Path) -> Any:
    """Write a run of ours of three checkpoints; return what the newest one holds."""
    net, optimizer, scheduler = trained()
    objects = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
    extra = {"counts": {"seen": 5}}
    loader = torch.utils.data.DataLoader(torch.ones(4, 3), batch_size=1)
    with torchkeep.Checkpointer(folder, **objects, extra=extra, keep_last=None) as checkpointer:
        for _ in checkpointer.epochs(3):
            for batch in checkpointer.batches(loader):
                optimizer.zero_grad()
                loss = net(torch.cat([batch, batch + 1])).sum()
                loss.backward()
                optimizer.step()
                checkpointer.step(loss=loss.item())
            scheduler.step()
    return {
        "model": dict(net.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "extra": extra,
    }


def write_checkpoint(folder: Path) -> Any:
    held = write_run(folder.with_name("run of another name"))
    folder.with_name("run of another name").joinpath("step-00000012").rename(folder)
    return held


def write_loose(folder: Path) -> Any:
    folder.mkdir()
    state = network().state_dict()
    torch.save(state, folder / "first.pth")
    save_file(dict(state), folder / "second.safetensors")
    (folder / "notes.txt").write_text("two models\n")
    (folder / "train.py").write_text("import torch\n")
    return {"first.pth": state, "second.safetensors": dict(state)}


def quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no process group; an older checkpoint is there
        return call(*args, **kwargs)


FOLDER_SAMPLES = [
    Sample("safetensors in shards", "safetensors-sharded", write_shards),
    Sample(
        "torch files in shards",
        "torch-sharded",
        partial(write_shards, stem="pytorch_model", suffix="bin"),
    ),
    Sample("a variant in shards", "safetensors-sharded", partial(write_shards, variant=".fp16")),
    Sample("DCP", "dcp", write_dcp),
    Sample("DCP of two threads", "dcp", write_dcp_threads),
    Sample("DCP of two ranks", "dcp", write_two_ranks),
    Sample("DCP in safetensors of two ranks", "dcp", write_hf_ranks),
    Sample("DCP as Hugging Face has it", "safetensors-sharded", write_hf_dcp),
    Sample("Hugging Face model", "folder", write_hf_model),
    Sample("Hugging Face Trainer", "folder", write_trainer),
    Sample("PEFT adapter", "folder", write_adapter),
    Sample("diffusers pipeline", "folder", write_pipeline),
    Sample("DeepSpeed", "folder", write_deepspeed),
    Sample("run of ours", "torchkeep-run", write_run),
    Sample("checkpoint of ours", "torchkeep-checkpoint", write_checkpoint),
    Sample("loose files", "folder", write_loose),
]
"""One of each kind of folder and of what it may hold."""
