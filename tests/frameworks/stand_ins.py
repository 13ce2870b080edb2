"""Files of frameworks that the package registry lacks, or that no longer run, to their layouts.

The keys are those of the frameworks' saving functions. Classes that they pickle are made in modules
of the right names: only the names reach the files.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tarfile
import types
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from frameworks.expected import expecting
from frameworks.networks import Discriminator, Generator, SmallNet, train


def write(folder: Path) -> None:
    net = SmallNet()
    adam, sgd = torch.optim.Adam(net.parameters()), torch.optim.SGD(net.parameters(), 0.1, 0.9)
    train(net, [adam, sgd])
    parts = {
        "weights": net.state_dict(),
        "adam": adam.state_dict(),
        "sgd": sgd.state_dict(),
        "schedule": torch.optim.lr_scheduler.StepLR(sgd, 3).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "rng": torch.get_rng_state(),
    }
    for name, (framework, families, value) in _checkpoints(parts).items():
        for is_zip in (True, False):
            path = expecting(
                folder / f"{name}_{'zip' if is_zip else 'legacy'}.pt",
                role="checkpoint",
                framework=framework,
                optimizers=families,
                stand_in=True,
            )
            torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    _detectron_zoo(folder, net)
    _archives(folder, net)
    _old_optimizers(folder, net)
    _generator_pickle(folder)


def _made(path: str, base: type = object, **attributes: Any) -> Any:
    """Return an object of a class at a path, in a module that is there for as long as we write."""
    module_name, _, name = path.rpartition(".")
    module = _module(module_name)
    cls = type(name, (base,), {"__module__": module_name})
    setattr(module, name, cls)
    made = cls()
    made.__dict__.update(attributes)
    return made


def _module(name: str) -> types.ModuleType:
    """Return a module, made with the packages above it if it is not there."""
    parent = name.rpartition(".")[0]
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        if parent:
            setattr(_module(parent), name.rpartition(".")[2], sys.modules[name])
    return sys.modules[name]


def _checkpoints(parts: dict[str, Any]) -> dict[str, tuple[str | None, list[str], Any]]:
    weights, adam, sgd = parts["weights"], parts["adam"], parts["sgd"]
    schedule, scaler, rng = parts["schedule"], parts["scaler"], parts["rng"]
    arguments = argparse.Namespace(
        arch="transformer", task="translation", criterion="cross_entropy", lr=[0.1]
    )
    history = [
        {
            "criterion_name": "CrossEntropyCriterion",
            "optimizer_name": "FairseqAdam",
            "lr_scheduler_state": {"best": None},
            "num_updates": 10,
        }
    ]
    fairseq = {
        "args": arguments,
        "cfg": None,
        "model": weights,
        "criterion": None,
        "optimizer_history": history,
        "task_state": {},
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 2}, "val_loss": 0.5},
        "last_optimizer_state": adam,
    }
    meter = _made("fairseq.meters.AverageMeter", avg=0.5, count=3, sum=1.5, val=0.5)
    extra = {"train_meters": OrderedDict(loss=meter), "epoch": 1}
    yolo = _made("models.yolo.DetectionModel", nn.Module)
    nn.Module.__init__(yolo)
    yolo.conv, yolo.names, yolo.yaml = nn.Conv2d(3, 4, 3), {0: "cat"}, {"nc": 1}
    yolov5 = {
        "epoch": 3,
        "best_fitness": np.array([0.5]),
        "model": yolo.half(),
        "ema": yolo,
        "updates": 10,
        "optimizer": sgd,
        "opt": {"weights": "yolov5s.pt", "hyp": {"lr0": 0.01}},
        "git": {"branch": "master"},
        "date": "2023-01-01",
    }
    stripped = {**yolov5, "epoch": -1, "ema": None, "updates": None, "optimizer": None}
    megatron = {
        "args": argparse.Namespace(num_layers=2),
        "checkpoint_version": 3.0,
        "iteration": 100,
        "model": {"language_model": {"encoder": weights}},
        "optimizer": {"optimizer": adam, "fp32_from_fp16_params": []},
        "opt_param_scheduler": {"max_lr": 0.1, "num_steps": 5, "lr_decay_style": "cosine"},
        "rng_state": [{"random_rng_state": (3, (1,) * 625, None), "torch_rng_state": rng}],
    }
    gan = {
        "G": Generator().state_dict(),
        "D": Discriminator().state_dict(),
        "G_ema": Generator().state_dict(),
        "g_optim": adam,
        "d_optim": adam,
        "ada_aug_p": 0.1,
    }
    detectron = {"model": weights, "optimizer": sgd, "scheduler": schedule, "iteration": 99}
    rl_games = {
        "model": weights,
        "epoch": 5,
        "frame": 1000,
        "optimizer": adam,
        "last_mean_rewards": 3.5,
        "env_state": None,
    }
    slowfast = {"epoch": 3, "model_state": weights, "optimizer_state": sgd, "cfg": "MODEL: x\n"}
    classy = {"base_model": {"model": {"trunk": weights}}, "optimizer": {"optim": sgd}}
    vissl = {"phase_idx": 3, "iteration": 9, "loss": 0.1, "classy_state_dict": classy}
    tacotron = {"iteration": 5, "state_dict": weights, "optimizer": adam, "learning_rate": 1e-3}
    dino = {
        "student": {f"module.{key}": value for key, value in weights.items()},
        "teacher": weights,
        "optimizer": adam,
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 4)},
        "fp16_scaler": scaler,
    }
    espnet = {
        "model": weights,
        "reporter": {"stats": {}, "epoch": 3},
        "optimizers": [adam],
        "schedulers": [schedule],
        "scaler": None,
    }
    return {
        "fairseq": ("fairseq", ["Adam"], fairseq),
        "fairseq_old": ("fairseq", ["Adam"], {**fairseq, "extra_state": extra}),
        "fairseq_published": ("fairseq", [], {"args": arguments, "model": weights}),
        "yolov5": ("Ultralytics", ["SGD"], yolov5),
        "yolov5_stripped": ("Ultralytics", [], stripped),
        "yolox": (
            "YOLOX",
            ["SGD"],
            {
                "start_epoch": 3,
                "model": weights,
                "optimizer": sgd,
                "best_ap": 0.1,
                "curr_ap": 0.1,
            },
        ),
        "detectron2": ("detectron2", ["SGD"], detectron),
        "megatron": ("Megatron-LM", ["Adam"], megatron),
        "stylegan2_rosinality": (None, ["Adam", "Adam"], gan),
        "rl_games": ("rl_games", ["Adam"], rl_games),
        "rsl_rl": (
            "RSL-RL",
            ["Adam"],
            {
                "model_state_dict": weights,
                "optimizer_state_dict": adam,
                "iter": 5,
                "infos": None,
            },
        ),
        "slowfast": ("SlowFast", ["SGD"], slowfast),
        "vissl": ("VISSL", ["SGD"], vissl),
        "tacotron2": (None, ["Adam"], tacotron),
        "dino": (None, ["Adam"], dino),
        "espnet": ("ESPnet", ["Adam"], espnet),
        "basicsr": ("BasicSR", [], {"params": weights, "params_ema": weights}),
        "whisper": ("Whisper", [], {"dims": {"n_mels": 80}, "model_state_dict": weights}),
        "opennmt": (
            "OpenNMT",
            ["Adam"],
            {
                "model": weights,
                "generator": {"0.weight": torch.ones(2, 2)},
                "vocab": {"src": ["a"]},
                "opt": argparse.Namespace(layers=2),
                "optim": {"training_step": 5, "optimizer": adam},
            },
        ),
        "apex": (
            None,
            ["SGD"],
            {
                "model": weights,
                "optimizer": sgd,
                "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 0}},
            },
        ),
    }


def _detectron_zoo(folder: Path, net: nn.Module) -> None:
    """Write the pickles of detectron2's model zoo: arrays, no torch."""
    arrays = {key: value.numpy() for key, value in net.state_dict().items()}
    zoo = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    path = expecting(
        folder / "model_final_f10217.pkl",
        framework="detectron2",
        container="pickle",
        role="checkpoint",
        state_dicts={"model": "model"},
        verdict="data-only",
        stand_in=True,
    )
    path.write_bytes(pickle.dumps(zoo, 2))
    converted = {**arrays, "matching_heuristics": True}
    path = expecting(folder / "R-50.pkl", verdict="data-only", stand_in=True)
    path.write_bytes(pickle.dumps({"model": converted, "matching_heuristics": True}, 4))
    caffe2 = {b"blobs": {b"conv1_w": np.ones((2, 2), "f4")}}
    path = expecting(folder / "caffe2.pkl", verdict="data-only", stand_in=True)
    path.write_bytes(pickle.dumps(caffe2, 2))


def _archives(folder: Path, net: nn.Module) -> None:
    """Write NeMo's archive: a configuration and a checkpoint in a tar."""
    weights = BytesIO()
    torch.save(net.state_dict(), weights)
    parts = {"model_config.yaml": b"target: nemo.x\n", "model_weights.ckpt": weights.getvalue()}
    for name, mode in (("model.nemo", "w"), ("packed.nemo", "w:gz")):
        path = expecting(folder / name, container="archive", framework="NeMo", stand_in=True)
        with tarfile.open(path, mode) as archive:
            for part, data in parts.items():
                info = tarfile.TarInfo(f"./{part}")
                info.size = len(data)
                archive.addfile(info, BytesIO(data))


OLD_GROUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam_0.3": (
        "Adam or RAdam",
        {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0},
    ),
    "adam_1.4": (
        "Adam or AdamW",
        {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0, "amsgrad": False},
    ),
    "adam_1.13": (
        "Adam",
        {
            "lr": 0.1,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0,
            "amsgrad": False,
            "maximize": False,
            "foreach": None,
            "capturable": False,
            "differentiable": False,
            "fused": None,
        },
    ),
    "adamw_2.1": (
        "AdamW",
        {
            "lr": 0.1,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
            "amsgrad": False,
            "foreach": None,
            "maximize": False,
            "capturable": False,
            "differentiable": False,
            "fused": None,
            "initial_lr": 0.1,
        },
    ),
    "adamw_of_transformers": (
        "AdamW",
        {
            "lr": 0.1,
            "betas": (0.9, 0.999),
            "eps": 1e-6,
            "weight_decay": 0.0,
            "correct_bias": True,
        },
    ),
    "fused_adam_of_apex": (
        "Adam or AdamW",
        {
            "lr": 0.1,
            "bias_correction": True,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
        },
    ),
}
"""The options of each group as older releases wrote them, in their order."""


def _old_optimizers(folder: Path, net: nn.Module) -> None:
    for name, (family, options) in OLD_GROUPS.items():
        parameters = list(net.parameters())
        state = {
            index: {"step": 5, "exp_avg": value.detach(), "exp_avg_sq": value.detach()}
            for index, value in enumerate(parameters)
        }
        groups = [{**options, "params": list(range(len(parameters)))}]
        value = {"net": net.state_dict(), "optim": {"state": state, "param_groups": groups}}
        path = expecting(
            folder / f"{name}.t7",
            role="checkpoint",
            optimizers=[family],
            state_dicts={"net": "model"},
            stand_in=True,
        )
        torch.save(value, path, _use_new_zipfile_serialization=False)


def _generator_pickle(folder: Path) -> None:
    """Write a pickle as StyleGAN2-ADA does: its networks with their source text."""

    class Persistent:
        def __reduce__(self) -> Any:
            meta = {
                "type": "class",
                "version": 6,
                "module_src": "import torch\nclass Generator(torch.nn.Module):\n    pass\n",
                "class_name": "Generator",
                "state": {
                    "z_dim": 512,
                    "training": False,
                    "_parameters": {"const": nn.Parameter(torch.ones(4))},
                    "_modules": {"mapping": nn.Linear(2, 2)},
                },
            }
            return (persistence._reconstruct_persistent_obj, (meta,))

    persistence: Any = _module("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        return meta

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    path = expecting(
        folder / "stylegan2-ada.pkl",
        framework=None,
        role="checkpoint",
        state_dicts={"G": "other", "D": "other", "G_ema": "ema"},
        classes=["Generator"] * 3,
        stand_in=True,
    )
    networks = {"G": Persistent(), "D": Persistent(), "G_ema": Persistent(), "augment_pipe": None}
    path.write_bytes(pickle.dumps(networks))
