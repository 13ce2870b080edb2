"""What people torch.save besides plain state dicts, and what torch's own tools write."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from frameworks.expected import expecting
from frameworks.networks import Discriminator, Generator, SmallNet, train

NET = "frameworks.networks.SmallNet"


def write(folder: Path) -> None:
    torch.manual_seed(0)
    _state_dicts(folder)
    _whole_modules(folder)
    _averages(folder)
    _checkpoints(folder)
    _random_states(folder)
    _tensors(folder)
    _programs(folder)
    _distributed(folder)


def _state_dicts(folder: Path) -> None:
    net = SmallNet()
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    pruned = SmallNet()
    prune.l1_unstructured(pruned.fc, "weight", 0.5)
    lstm = nn.LSTM(4, 8, num_layers=2, bidirectional=True)
    dicts: dict[str, Any] = {
        "plain": net.state_dict(),
        "data_parallel": nn.DataParallel(net).state_dict(),
        "compiled": torch.compile(net).state_dict(),
        "half": copy.deepcopy(net).half().state_dict(),
        "bfloat16": copy.deepcopy(net).bfloat16().state_dict(),
        "weight_norm": normed.state_dict(),
        "spectral_norm": parametrizations.spectral_norm(nn.Linear(4, 4)).state_dict(),
        "pruned": pruned.state_dict(),
        "lstm": lstm.state_dict(),
        "attention": nn.TransformerEncoderLayer(8, 2).state_dict(),
        "one_linear": nn.Linear(4, 4).state_dict(),
        "one_embedding": nn.Embedding(4, 4).state_dict(),
        "plain_dict": dict(net.state_dict()),
        "parameters_by_name": dict(net.named_parameters()),
        "keep_vars": net.state_dict(keep_vars=True),
        "numbered": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).state_dict(),
        "meta": SmallNet().to("meta").state_dict(),
        "renamed": OrderedDict((f"encoder.{k}", v) for k, v in net.state_dict().items()),
        "parameter_list": nn.ParameterList([torch.ones(2), torch.ones(3)]).state_dict(),
        "buffer_only": nn.BatchNorm2d(4, affine=False).state_dict(),
    }
    for name, value in dicts.items():
        path = expecting(
            folder / f"state_dict_{name}.pt",
            role="state_dict",
            verdict="data-only",
            framework=None,
            state_dicts={"": "model"},
        )
        torch.save(value, path)


def _whole_modules(folder: Path) -> None:
    hooked = SmallNet()
    hooked.register_forward_hook(_hook)
    wrapped = nn.DataParallel(SmallNet())
    quantized = torch.ao.quantization.quantize_dynamic(SmallNet(), {nn.Linear})
    modules: dict[str, tuple[nn.Module, str]] = {
        "net": (SmallNet(), NET),
        "half": (SmallNet().half(), NET),
        "frozen": (SmallNet().requires_grad_(False).eval(), NET),
        "hooked": (hooked, NET),
        "data_parallel": (wrapped, "torch.nn.parallel.data_parallel.DataParallel"),
        "quantized": (quantized, NET),
        "sequential": (
            nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.GELU())),
            "torch.nn.modules.container.Sequential",
        ),
        "weight_norm": (nn.utils.weight_norm(nn.Linear(4, 4)), "torch.nn.modules.linear.Linear"),
        "loss": (nn.CrossEntropyLoss(torch.ones(3)), "torch.nn.modules.loss.CrossEntropyLoss"),
    }
    for name, (module, cls) in modules.items():
        for is_zip in (True, False):
            path = expecting(
                folder / f"module_{name}_{'zip' if is_zip else 'legacy'}.pt",
                role="module",
                verdict="needs-trust",
                framework=None,
                classes=[cls],
            )
            with _no_warnings():
                torch.save(module, path, _use_new_zipfile_serialization=is_zip)
    path = expecting(folder / "module_list.pt", role="checkpoint", classes=[NET, NET])
    torch.save([SmallNet(), SmallNet()], path)


def _hook(module: nn.Module, inputs: Any, output: Any) -> None:
    """Do nothing; it is here to be named in a pickle."""


def _no_warnings() -> Any:
    import warnings

    context = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return context


def _averages(folder: Path) -> None:
    net = SmallNet()
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ema.update_parameters(net)
    path = expecting(folder / "averaged.pt", role="state_dict", state_dicts={"": "ema"})
    torch.save(ema.state_dict(), path)
    swa = AveragedModel(net)
    path = expecting(folder / "averaged_whole.pt", role="module", state_dicts={"": "ema"})
    torch.save(swa, path)
    for key in ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema", "swa_model"):
        path = expecting(
            folder / f"with_{key}.pt", role="checkpoint", state_dicts={"model": "model", key: "ema"}
        )
        torch.save({"model": net.state_dict(), key: net.state_dict(), "step": 10}, path)


def _checkpoints(folder: Path) -> None:
    generator, discriminator = Generator(), Discriminator()
    adams = [
        torch.optim.Adam(m.parameters(), betas=(0.5, 0.999)) for m in (generator, discriminator)
    ]
    gan = {
        "netG": generator.state_dict(),
        "netD": discriminator.state_dict(),
        "optG": adams[0].state_dict(),
        "optD": adams[1].state_dict(),
        "iter": 1000,
    }
    path = expecting(
        folder / "gan.pt",
        role="checkpoint",
        optimizers=["Adam", "Adam"],
        state_dicts={"netG": "other", "netD": "other"},
        framework=None,
    )
    torch.save(gan, path)
    net = SmallNet()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    train(net, [sgd])
    everything = {
        "arch": "smallnet",
        "epoch": 4,
        "best_acc1": torch.tensor(71.5),
        "state_dict": net.state_dict(),
        "optimizer": sgd.state_dict(),
        "classes": ["cat", "dog", "owl"],
        "class_to_idx": {"cat": 0, "dog": 1, "owl": 2},
        "history": {"loss": [1.0, 0.5], "acc": [0.3, 0.7]},
        "args": {"lr": 0.1, "batch_size": 8},
    }
    path = expecting(
        folder / "imagenet_example.pth.tar",
        role="checkpoint",
        optimizers=["SGD"],
        state_dicts={"state_dict": "model"},
        framework=None,
        verdict="data-only",
    )
    torch.save(everything, path)
    facts = {"role": "checkpoint", "optimizers": ["SGD"], "classes": [NET]}
    path = expecting(folder / "whole_net_and_optimizer.pt", **facts)
    torch.save({"model": net, "optimizer": sgd, "epoch": 2}, path)
    path = expecting(folder / "tuple.pt", role="checkpoint", optimizers=["SGD"])
    torch.save((net.state_dict(), sgd.state_dict(), 7), path)
    path = expecting(folder / "nested.pt", role="checkpoint", optimizers=["SGD"])
    torch.save({"state": {"model": {"net": net.state_dict()}, "optim": sgd.state_dict()}}, path)


def _random_states(folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    states = {
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": [torch.get_rng_state()],
        "numpy_rng_state": np.random.get_state(),
        "python_rng_state": random.getstate(),
    }
    path = expecting(folder / "rng.pt", role="object", rng=list(states), state_dicts={})
    torch.save(states, path)
    path = expecting(
        folder / "rng_in_checkpoint.pt",
        role="checkpoint",
        rng=["rng.torch", "rng.random", "rng.numpy"],
    )
    net = SmallNet()
    rng = {
        "torch": torch.get_rng_state(),
        "random": random.getstate(),
        "numpy": np.random.get_state(),
    }
    torch.save({"model": net.state_dict(), "rng": rng}, path)
    path = expecting(folder / "generator.pt", role="checkpoint", rng=["sampler"])
    torch.save({"model": net.state_dict(), "sampler": generator.get_state()}, path)
    path = expecting(folder / "numpy_generator.pt", role="object", rng=["numpy_rng"])
    torch.save({"numpy_rng": np.random.default_rng(0)}, path)
    path = expecting(folder / "random_object.pt", role="object", rng=["rng"])
    torch.save({"rng": random.Random(0)}, path)


def _tensors(folder: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors: dict[str, Any] = {
        "float": base,
        "view": base[1:, ::2],
        "transposed": base.T,
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "complex": torch.ones(3, dtype=torch.complex64),
        "conj": torch.ones(3, dtype=torch.complex64).conj(),
        "float8": base.to(torch.float8_e4m3fn),
        "bool": base > 3,
        "parameter": nn.Parameter(base),
        "quantized": torch.quantize_per_tensor(base, 0.1, 0, torch.quint8),
        "quantized_channels": torch.quantize_per_channel(
            base, torch.ones(4), torch.zeros(4), 0, torch.qint8
        ),
        "uint16": torch.ones(3, dtype=torch.uint16),
    }
    for name, value in tensors.items():
        path = expecting(folder / f"tensor_{name}.pt", role="tensor", verdict="data-only")
        torch.save(value, path)
    with _no_warnings():
        odd: dict[str, Any] = {
            "coo": base.to_sparse(),
            "csr": base.to_sparse_csr(),
            "bsr": base.to_sparse_bsr((2, 2)),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "jagged": torch.nested.nested_tensor(
                [torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged
            ),
            "list": [base, base[0]],
            "dict": {"x": base, "y": base[:, 0]},
            "dataset": torch.utils.data.TensorDataset(base, base[:, 0]),
            "subset": torch.utils.data.Subset([1, 2, 3], [0, 2]),
            "storage": base.untyped_storage(),
            "packed": nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
            "dtype": {"dtype": torch.float16, "device": torch.device("cpu"), "size": base.shape},
        }
        for name, value in odd.items():
            torch.save(value, expecting(folder / f"tensor_{name}.pt", framework=None))


def _programs(folder: Path) -> None:
    net = SmallNet().eval()
    images = torch.ones(2, 1, 4, 4)
    with _no_warnings():
        path = expecting(folder / "scripted.pt", role="program", container="torchscript")
        torch.jit.script(net).save(str(path))
        path = expecting(folder / "traced.pt", role="program", container="torchscript")
        torch.jit.save(torch.jit.trace(net, images), str(path))
        path = expecting(folder / "exported.pt2", role="program", container="torch-export")
        torch.export.save(torch.export.export(net, (images,)), str(path))
        path = expecting(folder / "lite.ptl", role="program", container="torchscript-lite")
        torch.jit.script(net)._save_for_lite_interpreter(str(path))
        path = expecting(folder / "packaged.pt", role="program", container="torch-package")
        with torch.package.PackageExporter(str(path)) as exporter:
            exporter.intern("frameworks.**")
            exporter.extern(["torch.**", "collections.**"])
            exporter.save_pickle("model", "model.pkl", net)


def _distributed(folder: Path) -> None:
    net = SmallNet()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    train(net, [sgd])
    path = expecting(folder / "dcp", role="checkpoint", container="dcp")
    with _no_warnings():
        state = {"model": net.state_dict(), "optimizer": sgd.state_dict(), "step": 3}
        dcp.save(state, checkpoint_id=str(path), no_dist=True)
        path = expecting(folder / "dcp_model", role="state_dict", container="dcp")
        dcp.save(net.state_dict(), checkpoint_id=str(path), no_dist=True)
