"""The plain Python objects that people put into checkpoints, by each way of pickling them."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import itertools
import logging
import operator
import pathlib
import pickle
import re
import string
import types
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import torch

from frameworks.expected import expecting
from frameworks.networks import SmallNet


class Phase(enum.Enum):
    TRAIN = "train"
    TEST = "test"


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Level(str, enum.Enum):  # noqa: UP042 (as people wrote it before 3.11)
    LOW = "low"


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    phase: Phase = Phase.TRAIN
    layers: list[int] = dataclasses.field(default_factory=lambda: [1, 2])


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    name: str = "x"
    size: int = 3


class Point(NamedTuple):
    x: float
    y: float


class Meter:
    """The AverageMeter of the ImageNet example."""

    def __init__(self) -> None:
        self.val, self.avg, self.sum, self.count = 0.0, 0.5, 1.0, 2


class Vocabulary(dict):
    """A subclass of a builtin with attributes of its own."""

    unknown = 0


class Bag(list):
    pass


def relu(x: Any) -> Any:
    return max(x, 0)


def make_vocabulary() -> Vocabulary:
    vocabulary = Vocabulary(a=1, b=2)
    vocabulary.size = 2
    return vocabulary


PLAIN: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, data="/data", layers=[1, 2], resume=None),
    "simple_namespace": types.SimpleNamespace(lr=0.1),
    "default_dict_of_lists": collections.defaultdict(list, loss=[1.0, 0.5]),
    "default_dict_of_ints": collections.defaultdict(int, a=3),
    "default_dict_of_floats": collections.defaultdict(float, a=3.0),
    "default_dict_of_dicts": collections.defaultdict(dict, a={"b": 1}),
    "default_dict_of_sets": collections.defaultdict(set, a={1}),
    "ordered_dict": collections.OrderedDict(a=1),
    "counter": collections.Counter("abba"),
    "deque": collections.deque([1, 2, 3], maxlen=5),
    "datetime": {
        "at": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC),
        "day": datetime.date(2026, 1, 2),
        "time": datetime.time(1, 2),
        "took": datetime.timedelta(seconds=3),
    },
    "path": {"root": pathlib.PurePosixPath("/data/x"), "here": pathlib.Path("runs")},
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "complex": 1 + 2j,
    "slice": {"a": slice(1, 2)},
    "sets": {"a": {1, 2}, "b": frozenset([3])},
    "bytes": {"a": b"\x00\xff", "b": bytearray(b"abc")},
    "numbers": {"big": 1 << 200, "inf": float("inf"), "nan": float("nan"), "neg": -5},
    "text": {"unicode": "Größe ✓", "lone": "\udc80", "long": "x" * 300},
    "none": {"a": None},
    "vocabulary_of_words": {"word2idx": {"a": 0, "b": 1}, "idx2word": ["a", "b"]},
}
"""Made by nothing but builders of plain values."""

OBJECTS: dict[str, Any] = {
    "range": range(0, 10, 2),
    "ellipsis": {"a": ..., "b": NotImplemented},
    "enum": {"phase": Phase.TRAIN, "flag": Flag.A | Flag.B, "level": Level.LOW},
    "dataclass": Config(),
    "slotted": Slotted(),
    "named_tuple": Point(1.0, 2.0),
    "object": {"losses": Meter(), "top1": Meter()},
    "dict_subclass": make_vocabulary(),
    "list_subclass": Bag([1, 2]),
    "function": {"activation": relu},
    "classes": {"model": SmallNet, "optimizer": torch.optim.SGD, "loss": torch.nn.MSELoss},
    "builtin_functions": {"a": len, "b": max, "c": sum, "d": print, "e": round},
    "torch_functions": {"a": torch.relu, "b": torch.nn.functional.relu, "c": torch.sigmoid},
    "partial": {"norm": functools.partial(torch.nn.BatchNorm2d, eps=1e-3)},
    "partial_of_function": functools.partial(relu, 3),
    "regex": {"tokens": re.compile(r"\w+", re.IGNORECASE)},
    "item_getter": {"key": operator.itemgetter(1), "add": operator.add, "mul": operator.mul},
    "count": itertools.count(3),
    "bound_method": Meter().__init__,
    "logger": logging.getLogger("train"),
    "level": {"level": logging.INFO},
    "address": ipaddress.ip_address("127.0.0.1"),
    "template": string.Template("$a"),
    "exception": ValueError("no such thing"),
    "types": {"int": int, "list": list, "none": type(None), "type": type},
    "date_range": [datetime.timezone(datetime.timedelta(hours=2))],
    "user_dict": collections.UserDict(a=1),
    "chain_map": collections.ChainMap({"a": 1}, {"b": 2}),
    "zip_iterator": iter([1, 2, 3]),
}
"""Made by classes or functions that are neither dangerous nor builders of plain values."""


def write(folder: Path) -> None:
    for name, value in PLAIN.items():
        for protocol in range(6):
            facts = {"role": "object", "container": "pickle", "framework": None}
            path = expecting(folder / f"{name}_{protocol}.pkl", verdict="data-only", **facts)
            path.write_bytes(pickle.dumps(value, protocol))
        path = expecting(folder / f"{name}.pt", role="object", verdict="data-only")
        torch.save({"config": value}, path)
    for name, value in OBJECTS.items():
        for protocol in (0, 2, 5):
            facts = {"role": "object", "container": "pickle", "framework": None}
            try:
                data = pickle.dumps(value, protocol)
            except (TypeError, pickle.PicklingError):
                continue  # slots can't be pickled by the oldest protocols
            expecting(folder / f"{name}_{protocol}.pkl", **facts).write_bytes(data)
        path = expecting(
            folder / f"{name}_in_checkpoint.pt",
            role="checkpoint",
            state_dicts={"model": "model"},
            framework=None,
        )
        torch.save({"model": SmallNet().state_dict(), "config": value}, path)
