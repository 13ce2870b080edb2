"""What slimming does to the networks of torchvision and timm, as a table.

    python tests/training/pruning_matrix.py [NETWORK ...]

Each is slimmed by half, saved, loaded again and compared, in a process that may take a while.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from torchkeep.errors import TorchkeepError
from torchkeep.modes import evaluating
from torchkeep.networks import build
from torchkeep.training.pruning import load_slim, save_slim, slim

NETWORKS = (
    *("torchvision/resnet18", "torchvision/resnet50", "torchvision/resnext50_32x4d"),
    *("torchvision/vgg11_bn", "torchvision/alexnet", "torchvision/squeezenet1_1"),
    *("torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small", "torchvision/mnasnet0_5"),
    *("torchvision/efficientnet_b0", "torchvision/densenet121", "torchvision/convnext_tiny"),
    *("torchvision/regnet_y_400mf", "torchvision/shufflenet_v2_x1_0", "torchvision/googlenet"),
    *("torchvision/vit_b_16", "torchvision/swin_t", "torchvision/maxvit_t"),
    *("timm/resnet18", "timm/convnext_atto", "timm/efficientnet_b0", "timm/mobilenetv3_small_100"),
    *("timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"),
)
_OF_A_SIZE = ("vit", "swin")


def row(name: str) -> str:
    size = 224 if any(part in name for part in _OF_A_SIZE) else 64
    begin = time.monotonic()
    model = build(name, num_classes=10)
    inputs = torch.randn(2, 3, size, size)
    try:
        report = slim(model, 0.5, inputs=inputs, runs=3)
    except TorchkeepError as error:
        return f"{name:38} refused: {str(error)[:150]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slim.safetensors")
        save_slim(model, path, report.structure, network=name, num_classes=10)
        again = load_slim(path)
    with evaluating(model), evaluating(again):
        is_same = torch.equal(model(inputs), again(inputs))
    before, after = report.before, report.after
    return (
        f"{name:38} {after.num_parameters / before.num_parameters:10.2f}"
        f" {after.num_macs / before.num_macs:6.2f} {report.latency.ratio:6.2f}"
        f" {'same' if is_same else 'DIFFERS':>8} {time.monotonic() - begin:6.0f} s"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{'network':38} parameters   MACs   time   loaded")
    for network in sys.argv[1:] or NETWORKS:
        print(row(network), flush=True)
