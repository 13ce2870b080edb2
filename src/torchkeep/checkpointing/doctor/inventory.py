"""What of a live run a checkpoint can't hold: generators that nobody sees, loaders without a state.

A run is exact only if everything that moves is captured. What `capture` is given it captures or
names itself; this looks for what it is not given: a data set that draws from a generator of its
own, a transform, a sampler, a collate function, a global of the program's module.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from torchkeep.checkpointing.doctor.environment import world_size
from torchkeep.checkpointing.doctor.findings import Finding
from torchkeep.checkpointing.sample_order import generators_of, has_known_indices
from torchkeep.checkpointing.state.capturing import capture
from torchkeep.checkpointing.state.kinds import is_stateful

_MOST_PLACES = 20_000
"""Objects that are looked at in one loader or object."""
_MOST_ITEMS = 100
"""Items of one list or dict that are looked at: lists of samples have millions, all alike."""


def inventory(objects: Mapping[str, object], loader: Iterable[Any] | None = None) -> list[Finding]:
    """Return what of a live run a checkpoint can't hold. Nothing is changed, nothing is drawn.

    Args:
        objects: what is captured, as for `torchkeep.capture`.
        loader: what the batches come from, the one that is given to `batches()`.
    """
    leaves = [leaf for name, item in objects.items() for leaf in _leaves(name, item)]
    captured = {id(item) for _, item in leaves if _is_generator(item)}
    findings = [
        Finding("not-captured", "inexact", "", reason)
        for reason in capture(objects, rng=False, copy=False)["inexact"]
    ]
    for place, item in leaves:
        if not _keeps_itself(item):
            findings += _private(item, place, captured, "pass it in extra={...}")
    if loader is not None:
        findings += _of_loader(loader, captured)
    return [*findings, *_threads(), *_processes()]


def _leaves(place: str, item: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is captured by itself, and where it is: the items of dicts and lists."""
    if type(item) is dict:
        for key, value in item.items():
            yield from _leaves(place + _in_brackets(key), value)
    elif type(item) is list:
        for number, value in enumerate(item):
            yield from _leaves(f"{place}[{number}]", value)
    elif item is not None and not isinstance(item, _PLAIN):
        yield place, item


def _keeps_itself(item: object) -> bool:
    """Tell whether it says itself what belongs to its state, a module's attributes excepted."""
    return isinstance(item, Optimizer) or (
        is_stateful(item) and not isinstance(item, torch.nn.Module)
    )


# --- A loader ----------------------------------------------------------------------------------


def _of_loader(loader: Iterable[Any], captured: set[int]) -> Iterator[Finding]:
    if is_stateful(loader):
        if getattr(loader, "num_workers", 0):
            yield Finding(
                "workers",
                "inexact",
                "loader",
                f"the workers of a {type(loader).__name__} draw new seeds when it is resumed",
                advice="Use a plain DataLoader over a map-style data set.",
            )
        return
    if not has_known_indices(loader):
        yield _without_order(loader)
    yield from _private(
        loader,
        "loader",
        _kept(loader, captured),
        "draw from the global ones, which are seeded anew for every sample",
    )


def private_generators(
    objects: Mapping[str, object], loader: Iterable[Any]
) -> list[tuple[str, object]]:
    """Return the generators that a loader holds and nobody captures, with their places.

    Args:
        objects: what is captured.
        loader: what the batches come from; nothing is said of one that keeps its own state.
    """
    if is_stateful(loader):
        return []
    leaves = [leaf for name, item in objects.items() for _, leaf in _leaves(name, item)]
    kept = _kept(loader, {id(item) for item in leaves if _is_generator(item)})
    return [(where, item) for where, item in _Walk(loader, "loader") if id(item) not in kept]


def _kept(loader: Iterable[Any], captured: set[int]) -> set[int]:
    """Return the ids of the generators of a loader that are where they were after a resume."""
    kept = {id(item) for item in generators_of(loader)}
    # A worker has a copy, which moves on by itself; what is captured is where it began.
    return kept if getattr(loader, "num_workers", 0) else kept | captured


def _without_order(loader: Iterable[Any]) -> Finding:
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, IterableDataset):
        what = f"a {type(dataset).__name__} has samples in an order that nobody else knows"
    else:
        what = f"a {type(loader).__name__} can't tell its order"
    return Finding(
        "order",
        "inexact",
        "loader",
        f"{what}: a resumed epoch walks it again from its start, and skips what was seen",
        advice="Use a DataLoader over a map-style data set, or a loader with state_dict().",
    )


# --- Generators in attributes ------------------------------------------------------------------


def _private(item: object, place: str, kept: set[int], advice: str) -> Iterator[Finding]:
    """Yield the generators that are reached from an object, and are not kept."""
    walk = _Walk(item, place)
    for where, found in walk:
        if id(found) in kept:
            continue
        yield Finding(
            "private-generator",
            "inexact",
            where,
            f"this {_kind(found)} is not captured: after a resume it starts anew",
            advice=f"Capture it, or do without it: {advice}."
            if not isinstance(found, random.SystemRandom)
            else "Use a random.Random: no state of the system's generator can be kept.",
        )
    if walk.is_cut:
        text = f"only {_MOST_PLACES:,} objects within it were looked at for private generators"
        yield Finding("not-looked-into", "note", place, text)


class _Walk:
    """The generators that are reached from an object, each once, the nearest first.

    What is walked over is kept in `seen`, so that no id comes again, and cycles end.
    """

    def __init__(self, start: object, place: str) -> None:
        self.seen: dict[int, object] = {id(start): start}
        self.waiting: deque[tuple[str, Any]] = deque([(place, start)])
        self.is_cut = False

    def __iter__(self) -> Iterator[tuple[str, object]]:
        while self.waiting:
            place, item = self.waiting.popleft()
            if _is_generator(item):
                if not _is_global(item):
                    yield place, item
                continue
            for name, part in _parts(item):
                if id(part) in self.seen or _holds_nothing(part):
                    continue
                if len(self.seen) >= _MOST_PLACES:
                    self.is_cut = True
                    return
                self.seen[id(part)] = part
                self.waiting.append((f"{place}{name}", part))


_PLAIN = str | bytes | bytearray | int | float | complex | None | torch.Tensor | torch.dtype
"""What holds nothing else."""


def _holds_nothing(part: object) -> bool:
    return isinstance(part, _PLAIN) or (type(part) in (dict, list, tuple, set) and not part)


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, with what is to be added to its name."""
    if isinstance(item, ModuleType | type) or _is_array(item):
        return
    if isinstance(item, functools.partial):
        yield from ((".func", item.func), (".args", item.args), (".keywords", item.keywords))
    elif isinstance(item, MethodType | BuiltinMethodType):
        yield ".__self__", item.__self__
        yield "", getattr(item, "__func__", None)
    elif isinstance(item, FunctionType):
        yield from _parts_of_function(item)
    elif isinstance(item, dict):
        # The methods of dict itself: a class derived from it may do anything in its own.
        yield from ((_in_brackets(key), part) for key, part in _first(dict.items(item)))
    else:
        kind = next((kind for kind in _SEQUENCES if isinstance(item, kind)), None)
        if kind is not None:
            items = _first(kind.__iter__(item))
            yield from ((f"[{number}]", part) for number, part in enumerate(items))
    if not isinstance(item, FunctionType):
        yield from _attributes(item)
        yield from _methods(item)


_SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset, deque)


def _in_brackets(key: object) -> str:
    return f"[{key!r:.40}]" if type(key) in (str, int) else f"[a {type(key).__name__}]"


def _is_array(item: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(item, numpy.ndarray)


def _first(items: Iterable[Any]) -> Iterator[Any]:
    return (item for _, item in zip(range(_MOST_ITEMS), items, strict=False))


def _attributes(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield what stands in an object itself; nothing of the object's own code runs for that."""
    try:
        table = object.__getattribute__(item, "__dict__")
    except (AttributeError, TypeError):
        table = {}
    if isinstance(table, dict):
        for name, part in list(table.items()):
            if name in ("_modules", "_buffers", "_parameters") and isinstance(part, dict):
                yield from ((f".{inner}", value) for inner, value in part.items())
            else:
                yield f".{name}", part
    for kind in type(item).__mro__:
        for name in _slots(kind):
            try:
                yield f".{name}", object.__getattribute__(item, name)
            except AttributeError:
                continue


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(
        f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    )


def _methods(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield the functions of an object's class that the program wrote."""
    for kind in type(item).__mro__:
        if _is_library(kind.__module__):
            continue
        for name, part in vars(kind).items():
            if isinstance(part, FunctionType):
                yield f".{name}", part


_LIBRARIES = frozenset({"torch", "torchvision", "torchkeep", "numpy", "PIL", "timm", "torchdata"})


def _is_library(module: str | None) -> bool:
    name = (module or "").partition(".")[0]
    return name in _LIBRARIES or (name in sys.stdlib_module_names and name != "__main__")


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function refers to: its closure, its defaults, the program's globals."""
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # it is not assigned yet
            continue
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    if _is_library(function.__module__):
        return
    for name in dict.fromkeys(_names_in(function.__code__)):
        part = function.__globals__.get(name)
        # Of a module's globals only generators and functions: whatever else a program has in its
        # globals would be found from everywhere.
        if _is_generator(part) or isinstance(part, FunctionType):
            yield f".{function.__module__}.{name}", part


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the global names that code uses, also that of functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _is_generator(item: object) -> bool:
    return isinstance(item, (random.Random, torch.Generator, *_numpy_generators()))


def _numpy_generators() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return ()
    kinds = numpy.random
    return kinds.Generator, kinds.RandomState, kinds.BitGenerator


def _is_global(generator: object) -> bool:
    """Tell whether it is the one that a library's own functions draw from: those are captured."""
    own = [random.random.__self__, torch.default_generator]  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        own += [numpy.random.rand.__self__, numpy.random.get_bit_generator()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        own += torch.cuda.default_generators
    return any(generator is item for item in own)


def _kind(generator: object) -> str:
    module = type(generator).__module__.partition(".")[0].lstrip("_")
    name = type(generator).__name__
    return f"{'numpy.random' if module == 'numpy' else module}.{name}"


# --- The process -------------------------------------------------------------------------------


def _threads() -> Iterator[Finding]:
    """Yield the threads that run beside the main one, but for those of torch and ours."""
    for thread in threading.enumerate():
        if thread is threading.main_thread() or thread.name.startswith(_KNOWN_THREADS):
            continue
        yield Finding(
            "thread",
            "note",
            "",
            f"the thread {thread.name!r} runs beside the main one: if it draws from the global "
            "generators or changes what is captured, that comes in no fixed order",
        )


_KNOWN_THREADS = ("torchkeep-", "QueueFeederThread", "pin_memory", "Thread-pin", "tqdm", "asyncio_")


def _processes() -> Iterator[Finding]:
    number = world_size()
    if number > 1:
        yield Finding(
            "world-size",
            "inexact",
            "",
            f"{number} processes train together, and a checkpoint has the generators and the "
            "place in the data of one of them",
        )
