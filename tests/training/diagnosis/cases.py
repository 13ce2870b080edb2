"""Real digits, and a small network that learns them."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MEAN, STD = (0.305,), (0.376,)
CLASSES = tuple("0123456789")


@functools.cache
def digits():
    """Return images `[1797, 1, 8, 8]`, normalised, and labels, shuffled."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32).div(16).unsqueeze(1)
    return images.sub(MEAN[0]).div(STD[0])[order], torch.tensor(found.target)[order]


def batch(number=64):
    images, labels = digits()
    return images[:number].clone(), labels[:number].clone()


def loaders(num_train=1200, batch_size=32):
    images, labels = digits()
    train = TensorDataset(images[:num_train], labels[:num_train])
    validation = TensorDataset(images[1200:], labels[1200:])
    generator = torch.Generator().manual_seed(1)
    return (
        DataLoader(train, batch_size, shuffle=True, generator=generator),
        DataLoader(validation, 256),
    )


def network(seed=0, classes=10):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(128, classes),
    )


def checks(findings):
    return [item.check for item in findings]
