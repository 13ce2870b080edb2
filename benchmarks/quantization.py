"""What smaller numbers and fewer channels cost and bring, on scikit-learn's digits.

    python benchmarks/quantization.py            three networks, most of an hour on one core
    python benchmarks/quantization.py --quick    one epoch each: to see that it works
    python benchmarks/quantization.py --qat      each is trained on for 8 bits as well

A ResNet18, a MobileNetV3 and a small vision transformer are trained on four fifths of the digits,
and exported to ONNX in several precisions. Each file is proven, and its accuracy is that on the
last fifth. How fast it is is measured against float32's file, in onnxruntime, in turns, on one
thread. Then half of the ResNet18's channels go, it is retrained and exported, and compared with
itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from torchkeep.errors import ProofFailed
from torchkeep.exporting import Exported, Onnx, export
from torchkeep.training.classifier import load_classifier, save_classifier, unslimmed
from torchkeep.training.data import open_data
from torchkeep.training.preparing import prepare
from torchkeep.training.pruning import cost_of, describe_structure, slim
from torchkeep.training.retraining import retrain
from torchkeep.training.settings import Settings

NETWORKS = {
    "ResNet18": ("resnet18", 6, 2e-3),
    "MobileNetV3": ("mobilenet_v3_small", 30, 4e-3),
    "ViT": ("timm/vit_tiny_patch16_224(img_size=32, patch_size=8)", 30, 1e-3),
}
"""A network, its epochs and its learning rate."""
SIDE = 32
PRECISIONS = ("float32", "float16", "int8", "int8-dynamic")
ROUNDS = 25


def write(root: Path) -> str:
    """Write the digits as images, a folder per part and class."""
    data = open_data("digits")
    for part, samples in (("train", data.train), ("val", data.val)):
        for at in range(len(samples)):
            picture, label = samples[at]
            folder = root / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{at}.png")
    return str(root)


def trained(data: str, run: Path, epochs: int, lr: float, **how: Any) -> Path:
    """Train; return the file."""
    settings = Settings(
        size=SIDE,
        check=False,
        seed=0,
        lr=lr,
        batch_size=64,
        epochs=epochs,
        warmup_epochs=epochs / 12,
        **how,
    )
    retrain(prepare(data, settings), run)
    return run / "last.safetensors"


def exported(model: Path, precision: str, data: str, folder: Path) -> Exported | ProofFailed:
    """Export, and prove; return what is told of it, or why there is no file."""
    path = folder / f"{model.parent.name}-{precision}.onnx"
    try:
        return export(model, path, target=Onnx(precision=precision), data=data, overwrite=True)
    except ProofFailed as error:
        return error


def ratios(one: Path, two: Path) -> list[float]:
    """Return how many times as fast the second file is, with one image and with 16, in turns."""
    sessions = [_opened(path) for path in (one, two)]
    found = []
    for size in (1, 16):
        images = np.random.default_rng(0).standard_normal((size, 3, SIDE, SIDE), np.float32)
        calls = [_call(session, images) for session in sessions]
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for call, mine in zip(calls, seconds, strict=True):
                mine.extend(call() for _ in range(10))
        found.append(statistics.median(seconds[0]) / statistics.median(seconds[1]))
    return found


def _opened(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _call(session: Any, images: Any) -> Callable[[], float]:
    name = session.get_inputs()[0].name

    def call() -> float:
        begin = time.perf_counter()
        session.run(None, {name: images})
        return time.perf_counter() - begin

    return call


def compare(name: str, model: Path, data: str, folder: Path, precisions: tuple[str, ...]) -> None:
    """Print a row for each precision."""
    whole = exported(model, "float32", data, folder)
    assert isinstance(whole, Exported), whole
    for precision in precisions:
        report = whole if precision == "float32" else exported(model, precision, data, folder)
        if isinstance(report, ProofFailed):
            print(f"| {name} | {precision} | no file: {report} |", flush=True)
            continue
        accuracy = report.accuracy
        assert accuracy is not None
        one, many = ratios(whole.path, report.path)
        least = min(report.comparisons, key=lambda each: each.cosine)
        size = report.files[0].nbytes
        change = 0 - accuracy.drop  # and not -accuracy.drop, which may be -0.0
        print(
            f"| {name} | {precision} | {accuracy.exported / accuracy.num_samples:.2%} "
            f"| {change:+.2%} | {least.cosine:.5f} | {report.worst.relative:.3f} "
            f"| {size / 1e6:.2f} | {whole.files[0].nbytes / size:.2f} | {one:.2f} | {many:.2f} |",
            flush=True,
        )


def halve(model: Path, data: str, folder: Path, epochs: int, lr: float) -> None:
    """Take half of the channels out, retrain, export, and print what became of it."""
    before = exported(model, "float32", data, folder)
    network, card = load_classifier(model)
    inputs = torch.zeros(1, 3, SIDE, SIDE)
    cost = cost_of(network, inputs)
    slim(network, 0.5, inputs=inputs)
    path = folder / "slim.safetensors"
    structure = describe_structure(unslimmed(card, None), network, network=card.arch)
    save_classifier(network, replace(card, structure=structure), path)
    again = trained(data, folder / "slim", epochs, lr, weights=str(path))
    after = exported(again, "float32", data, folder)
    assert isinstance(before, Exported), before
    assert isinstance(after, Exported), after
    assert before.accuracy is not None
    assert after.accuracy is not None
    one, many = ratios(before.path, after.path)
    work = cost_of(load_classifier(again)[0], inputs).num_macs / cost.num_macs
    was, now = (each.accuracy.exported / each.accuracy.num_samples for each in (before, after))
    print(
        f"\nHalf of the channels: {work:.1%} of the multiply-accumulates, {now:.2%} right "
        f"({now - was:+.2%}), {before.files[0].nbytes / after.files[0].nbytes:.1f} times smaller, "
        f"{one:.2f} times as fast with one image, {many:.2f} with 16"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one epoch each")
    parser.add_argument("--qat", action="store_true", help="train for 8 bits as well")
    parser.add_argument("--only", choices=NETWORKS, help="one network alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network | precision | accuracy | change | least cosine | largest difference | MB "
        "| times smaller | times as fast, one image | 16 images |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        data = write(folder / "digits")
        for name in [given.only] if given.only else NETWORKS:
            arch, epochs, lr = NETWORKS[name]
            epochs = 1 if given.quick else epochs
            model = trained(data, folder / name, epochs, lr, arch=arch, weights="none")
            compare(name, model, data, folder, PRECISIONS)
            if given.qat:
                how = {"weights": str(model), "qat": True}
                again = trained(data, folder / f"{name}-qat", max(1, epochs // 6), 1e-4, **how)
                compare(f"{name}, trained for 8 bits", again, data, folder, ("int8",))
            if name == "ResNet18":
                halve(model, data, folder, epochs, lr / 2)


if __name__ == "__main__":
    main()
