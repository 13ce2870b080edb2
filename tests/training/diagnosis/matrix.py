"""What longer looks give: false alarms on known networks, and what a watch costs. Prints tables.

python tests/training/diagnosis/matrix.py networks    on a GPU if there is one
python tests/training/diagnosis/matrix.py overhead
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))
from torchkeep.training import freeze, replace_head, trainable
from torchkeep.training.diagnosis import Watch, examine_start, overfit_one_batch
from torchkeep.training.diagnosis.findings import Finding
from training.diagnosis.cases import batch, digits, network

NETWORKS = {
    "resnet18": 64,
    "vgg11_bn": 64,
    "vgg11": 64,
    "mobilenetv3_small_100": 64,
    "efficientnet_b0": 64,
    "densenet121": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "regnetx_002": 64,
    "mixer_s32_224": 224,
}


def pictures(size, number=16):
    """Return digits as coloured images `[n, 3, size, size]`, normalised."""
    images, labels = batch(number)
    images = functional.interpolate(images, size=(size, size), mode="bilinear")
    return images.repeat(1, 3, 1, 1), labels


def networks():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, size in NETWORKS.items():
        for is_frozen in (False, True):
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=1000).to(device)
            head = replace_head(model, 10)
            if is_frozen:
                freeze(model, except_=[head.name])
            optimizer = torch.optim.AdamW(trainable(model), lr=1e-3)
            images, labels = (item.to(device) for item in pictures(size))
            found = examine_start(model.train(), optimizer, images, labels, 10)
            result = overfit_one_batch(model, images, labels)
            print(
                f"{name:30} {'head' if is_frozen else 'all':5} "
                f"one batch: {len(result.losses) - 1:2} steps at {result.rate:g} "
                f"{show([*found, *result.findings])}",
                flush=True,
            )


def show(found: list[Finding]) -> str:
    return "nothing" if not found else "".join(f"\n    {i.check}: {i.text}" for i in found)


def overhead():
    images, labels = digits()
    cases = {
        "digits CNN, all": (network(), images[:32], labels[:32], 10),
        "digits CNN, head": (network(), images[:32], labels[:32], 10),
        "resnet18 at 64, all": (timm.create_model("resnet18", num_classes=10), *pictures(64), 2),
        "resnet18 at 64, head": (timm.create_model("resnet18", num_classes=10), *pictures(64), 2),
    }
    for name, (model, inputs, answers, factor) in cases.items():
        if name.endswith("head"):
            freeze(model, except_=["9"] if isinstance(model, nn.Sequential) else ["fc"])
        optimizer = torch.optim.SGD(trainable(model), lr=0.001, momentum=0.9)
        watch = Watch(model, optimizer, 10)
        steps, calls, ends = 50 * factor, 0.0, 0.0
        total = 0.0
        for _ in range(2):
            for _ in range(steps):
                begin = time.perf_counter()
                loss = functional.cross_entropy(model(inputs), answers)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                value = loss.item()
                middle = time.perf_counter()
                watch.after_backward()
                watch.after_step(value)
                end = time.perf_counter()
                total, calls = total + middle - begin, calls + end - middle
            begin = time.perf_counter()
            watch.after_epoch()
            ends += time.perf_counter() - begin
        number = 2 * steps
        print(
            f"{name:22} a step {total / number * 1e3:8.3f} ms, calls {calls / number * 1e6:7.1f} "
            f"us ({calls / total:.2%}), epoch's end {ends / 2 * 1e3:7.2f} ms "
            f"({ends / total:.2%} of {steps} steps)",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"networks": networks, "overhead": overhead}[sys.argv[1]]()
