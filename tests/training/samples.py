"""A small network and small data, by the names that `torchkeep.training` opens them by."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from torchkeep.errors import FileMissing

NET = "training.samples:Net"
DATA = "training.samples:stripes"
CLASSES = ["across", "down", "both"]


class Net(nn.Module):
    """Has a stage that can be frozen, BatchNorm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = self.body(self.stem(images).relu()).relu()
        return self.head(self.drop(inner.mean(dim=(2, 3))))


class Grey(Net):
    """Takes images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem[0] = nn.Conv2d(1, 6, 3, 2, 1, bias=False)


class Hungry(Net):
    """Asks for more memory than there is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + torch.empty(1 << 50)[0]


class Plain(nn.Module):
    """Has nothing that depends on who else is in a batch, or on chance."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(images).relu()).relu().mean(dim=(2, 3)))


class Turned(nn.Sequential):
    """Returns a view."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).flatten(2)


class Viewed(Plain):
    """Adds in place to a view that a block of it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Turned(*self.body)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = self.body(self.stem(images).relu())
        inner += 1
        return self.head(inner.relu().mean(dim=2))


class Helped(Net):
    """Has an auxiliary output in training, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        made = super().forward(images)
        return (made, self.aux(self.stem(images).mean(dim=(2, 3)))) if self.training else made


def shifted(model: nn.Module) -> nn.Module:
    """Return a network whose tensors differ from each other and from what they were."""
    with torch.no_grad():
        for number, item in enumerate(model.state_dict().values()):
            item.copy_(torch.full_like(item, number + 1))
    return model


def lonely() -> TensorDataset:
    """Return images of one class."""
    data = TensorDataset(torch.randn(6, 3, 12, 12), torch.zeros(6, dtype=torch.int64))
    data.classes = ["cat"]
    return data


def mislabelled() -> tuple[TensorDataset, TensorDataset]:
    """Return the same images, one with a label of no class."""
    parts = stripes()
    parts[0].tensors[1][3] = 3
    return parts


def renamed() -> tuple[TensorDataset, TensorDataset]:
    """Return the same images with other names of their classes."""
    parts = stripes()
    for part in parts:
        part.classes = ["one", "two", "three"]
    return parts


def stripes(count: int = 72) -> tuple[TensorDataset, TensorDataset]:
    """Return images of stripes in three directions, some of which are for validation."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, 12, 12, generator=generator) * 0.3
    labels = torch.arange(count) % 3
    wave = torch.tensor([1.0, 1.0, -1.0, -1.0] * 3)
    images[labels != 1] += wave[None, None, :, None]
    images[labels != 0] += wave[None, None, None, :]
    parts = [TensorDataset(images[a:b], labels[a:b]) for a, b in ((0, 48), (48, count))]
    for part in parts:
        part.classes = CLASSES
    return parts[0], parts[1]


def uneven() -> tuple[TensorDataset, TensorDataset]:
    """Return fewer of them, of one class fewer still: no batch size divides their numbers."""
    train, val = stripes()
    kept = [at for at, label in enumerate(train.tensors[1]) if label != 1 or at % 2]
    parts = [TensorDataset(*(x[kept[:37]] for x in train.tensors))]
    parts.append(TensorDataset(*(x[:23] for x in val.tensors)))
    for part in parts:
        part.classes = CLASSES
    return parts[0], parts[1]


class Broken(TensorDataset):
    """Loses an image on the second of several processes, after a while."""

    num_asked = 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        self.num_asked += 1
        if self.num_asked == 40 and os.environ.get("RANK") == "1":
            raise FileMissing("the image has gone")
        return super().__getitem__(index)


def broken() -> tuple[TensorDataset, TensorDataset]:
    """Return the same images, of which one will be gone for the second process."""
    train, val = stripes()
    lost = Broken(*train.tensors)
    lost.classes = CLASSES
    return lost, val


class Killed(TensorDataset):
    """After a while kills the second of several processes, while the first one takes its time."""

    num_asked = 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        self.num_asked += 1
        if self.num_asked == 40:
            if os.environ.get("RANK") == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        return super().__getitem__(index)


def killed_early() -> None:
    """End the second process before there is any data."""
    if os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)


def killed() -> tuple[TensorDataset, TensorDataset]:
    """Return the same images, one of which is the end of the second process."""
    train, val = stripes()
    lost = Killed(*train.tensors)
    lost.classes = CLASSES
    return lost, val


def another() -> tuple[TensorDataset, TensorDataset]:
    """Return fewer images in the second of several processes."""
    return stripes(64 if os.environ.get("RANK") == "1" else 72)


def never() -> tuple[TensorDataset, TensorDataset]:
    """Return the same images, but not in the first of several processes, which takes its time."""
    if os.environ.get("RANK") == "0":
        print("asleep", flush=True)
        time.sleep(1000)
    return stripes()


class Drawing(TensorDataset):
    """Draws random numbers whenever it is asked for a sample."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        image, label = super().__getitem__(index)
        return image + torch.rand(()) * 0.01, label


def drawing() -> tuple[Drawing, Drawing]:
    """Return the same images, a little brighter by chance."""
    parts = tuple(Drawing(*part.tensors) for part in stripes())
    for part in parts:
        part.classes = CLASSES
    return parts


def write_photos(root: Path) -> Path:
    """Write the same images as grey files into folders, and return the folder of all."""
    for part, data in zip(("train", "val"), stripes(), strict=True):
        for number, (image, label) in enumerate(data):
            folder = root / part / CLASSES[int(label)]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (image[0] * 40 + 128).clamp(0, 255).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def bands(num_channels: int = 5) -> tuple[TensorDataset, TensorDataset]:
    """Return the same images with other channels than three."""
    parts = stripes()
    for part in parts:
        images, labels = part.tensors
        turns = [at % 3 for at in range(num_channels)]
        part.tensors = images[:, turns], labels
    return parts


def pictures() -> tuple[list[tuple[Image.Image, int]], list[tuple[Image.Image, int]]]:
    """Return pictures, of which there are fewer of the second class."""
    numbers = random.Random(3)
    pairs = [
        (Image.frombytes("RGB", (14, 12), numbers.randbytes(14 * 12 * 3)), int(at % 4 == 0))
        for at in range(28)
    ]
    return pairs[:20], pairs[20:]


def grey() -> tuple[TensorDataset, TensorDataset]:
    """Return the same images in one channel."""
    return bands(1)
