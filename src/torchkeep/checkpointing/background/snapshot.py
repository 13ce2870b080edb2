"""A state's tensors as they are now, copied while the program goes on.

Nothing that an optimizer's step changes moves during the next forward and backward pass. So only
what may move before that is copied at once: buffers, generators, gradients, all that is small. The
rest, parameters and the optimizer's own tensors, is copied by another thread; `let_go` is called
before the next step and copies what is left.

Who changes a parameter by hand in between breaks the rule. PyTorch counts the changes of a tensor
(`Tensor._version`); those that go round the count (`.data`) show in a few elements that were taken
when the snapshot was. Then the snapshot is no good, and `changed` says what was changed.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from torchkeep.checkpointing.background.arena import PAGE_NBYTES, Arena
from torchkeep.checkpointing.background.cuda import CudaCopies, nbytes_on_device
from torchkeep.checkpointing.background.samples import Samples
from torchkeep.tensors import identity, plain_on_cpu

_SMALL_NBYTES = 32 << 10
"""Up to here a copy is quicker than to make sure that nobody changes the original."""

_PIECE_NBYTES = 8 << 20
"""What is copied in one go: `finish` waits for no more than that of the other thread."""


@dataclass(slots=True)
class _Copied:
    """A tensor that is copied into the arena."""

    name: str
    tensor: torch.Tensor
    nbytes: int
    address: int
    """Where it was when the snapshot began."""
    start: int
    """Where in the arena its copy begins."""
    version: int


class Snapshot:
    """Tensors as they are at this moment; `begin` comes first, and at once.

    Args:
        tensors: by name, on any device.
        steady: the addresses of those that only an optimizer's step changes.
        at_once: names of tensors that are copied at once, whatever `steady` says.

    Attributes:
        nbytes: what `begin` needs of an arena.
        device_nbytes: what the copies of other devices' tensors need.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        steady: Collection[int],
        at_once: Collection[str] = (),
    ) -> None:
        self.nbytes = 0
        self._names: dict[str, str] = {}
        self._clones: dict[str, torch.Tensor] = {}
        self._moving: list[_Copied] = []
        self._steady: list[_Copied] = []
        self._cuda: tuple[list[_Copied], list[_Copied]] = [], []
        first_of = _FirstNames()
        for name, tensor in tensors.items():
            self._names[name] = first_of.find(tensor, name)
            if self._names[name] != name:
                continue
            if not _is_plain_run(tensor):
                self._clones[name] = _clone(tensor)
                continue
            is_steady = tensor.data_ptr() in steady and name not in at_once
            is_steady = is_steady and not tensor.is_inference()  # nobody counts its changes
            if tensor.is_cuda:
                self._cuda[is_steady].append(_copied(name, tensor))
            elif tensor.nbytes <= _SMALL_NBYTES:
                self._clones[name] = tensor.detach().clone()
            else:
                (self._steady if is_steady else self._moving).append(self._placed(name, tensor))
        self.device_nbytes = nbytes_on_device(item.tensor for items in self._cuda for item in items)

    def _placed(self, name: str, tensor: torch.Tensor) -> _Copied:
        item = _copied(name, tensor)
        # At the same place in its page as the original: see `_CLOSE` in files/reading.py.
        item.start = self.nbytes + (tensor.data_ptr() - self.nbytes) % PAGE_NBYTES
        self.nbytes = item.start + item.nbytes
        return item

    def begin(self, arena: Arena, cuda: CudaCopies) -> None:
        """Copy what may move before the next step.

        Args:
            arena: where the copies go. It is this snapshot's until they are no longer needed.
            cuda: where those of CUDA devices go, likewise.
        """
        self._cuda_copies = cuda
        with torch.no_grad():
            self._samples = Samples([item.tensor for item in self._steady])
        on_device = [[item.tensor for item in items] for items in self._cuda]
        copies = cuda.begin(*on_device)
        names = [item.name for items in self._cuda for item in items]
        self._clones.update(zip(names, copies, strict=True))
        self._memory = arena.reserve(self.nbytes)
        self._base = self._memory.data_ptr()
        for item in self._moving:
            ctypes.memmove(self._base + item.start, item.tensor.data_ptr(), item.nbytes)
        self._pieces = deque(self._cut())
        self._num_left = len(self._pieces)
        self._condition = threading.Condition()
        self._changed: list[str] | None = None

    def _cut(self) -> list[tuple[_Copied, int]]:
        """Return what is to be copied later: tensors, and where in them a piece begins."""
        return [
            (item, done) for item in self._steady for done in range(0, item.nbytes, _PIECE_NBYTES)
        ]

    def _copy(self, item: _Copied, done: int) -> None:
        # Who puts a tensor's memory elsewhere, or frees it, has changed it: nothing is copied then.
        if item.tensor.data_ptr() == item.address:
            nbytes = min(_PIECE_NBYTES, item.nbytes - done)
            target = self._base + item.start + done
            ctypes.memmove(target, item.address + done, nbytes)  # without Python's lock

    def finish(self) -> None:
        """Copy what nobody else copies, and return when all is copied."""
        while self._pieces:
            try:
                piece = self._pieces.popleft()
            except IndexError:  # the other thread took the last one
                break
            self._copy(*piece)
            with self._condition:
                self._num_left -= 1
                self._condition.notify_all()
        with self._condition:
            # Below 0 where somebody gave up while the other thread had a piece under way.
            self._condition.wait_for(lambda: self._num_left <= 0)

    def wait(self) -> None:
        """Finish, and return when the copies of other devices' tensors are there as well."""
        self.finish()
        self._cuda_copies.wait()

    def let_go(self) -> None:
        """Finish, since the tensors are about to change; what changes them later does no harm.

        The thread that changes them calls this.
        """
        try:
            self.finish()
        except BaseException:  # Ctrl-C: the piece that was under way counts for nobody
            self._give_up()
            raise
        self._cuda_copies.let_go()
        with self._condition:
            if self._changed is None:
                self._changed = self._find_changed()

    def _give_up(self) -> None:
        """Let go without having copied everything; whoever waits for the rest is told."""
        with self._condition:
            self._pieces.clear()
            self._num_left = 0
            self._changed = [item.name for item in self._steady]
            self._condition.notify_all()

    def changed(self) -> list[str]:
        """Return the names of the tensors that were changed before `let_go`. `wait` comes first.

        One that was changed after it was copied counts as well, where that can't be told. If
        something changed tensors of a device and was not counted, all of them are named: whatever
        it was (a graph that replays steps), it will come again.
        """
        with self._condition:
            changed = self._find_changed() if self._changed is None else self._changed
        _, on_device = self._cuda
        if self._cuda_copies.differ([self._clones[item.name] for item in on_device]):
            changed = list(dict.fromkeys([*changed, *(item.name for item in on_device)]))
        return changed

    def _find_changed(self) -> list[str]:
        _, on_device = self._cuda
        changed = [
            item.name
            for item in (*self._steady, *on_device)
            if item.tensor._version != item.version or item.tensor.data_ptr() != item.address
        ]
        if changed:  # one that was moved may be of another shape, and its copy can't be looked at
            return changed
        copies = [self._view(item) for item in self._steady]
        return [self._steady[number].name for number in self._samples.differing(copies)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the copies by name, those of one tensor as one object. `wait` comes first."""
        copies = {item.name: self._view(item) for item in (*self._moving, *self._steady)}
        copies |= self._clones
        return {name: copies[first] for name, first in self._names.items()}

    def _view(self, item: _Copied) -> torch.Tensor:
        run = self._memory[item.start : item.start + item.nbytes]
        like = item.tensor
        return torch.as_strided(run.view(like.dtype), like.shape, like.stride())


class _FirstNames:
    """Finds tensors that are one. Most have an address of their own, which tells it at once."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[str, torch.Tensor]] = {}
        self._identities: dict[tuple[object, ...], str] = {}

    def find(self, tensor: torch.Tensor, name: str) -> str:
        """Return the name that came first of the tensor, which may be this one."""
        if tensor.layout != torch.strided:  # it has no address, and is only itself
            return name
        address = tensor.data_ptr()
        if address and address not in self._at:
            self._at[address] = name, tensor
            return name
        if address:
            first, other = self._at[address]
            self._identities.setdefault(identity(other), first)
        return self._identities.setdefault(identity(tensor), name)


def _copied(name: str, tensor: torch.Tensor) -> _Copied:
    version = 0 if tensor.is_inference() else tensor._version
    return _Copied(name, tensor, tensor.nbytes, tensor.data_ptr(), 0, version)


def _is_plain_run(tensor: torch.Tensor) -> bool:
    """Whether its memory is one run of plain bytes that can be copied as it is."""
    return (
        (tensor.is_cpu or tensor.is_cuda)
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.data_ptr() % tensor.element_size() == 0
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
        and _is_dense(tensor)
    )


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill one run of memory from its address on, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.strided:  # who writes it says that it can't be kept
        return tensor.detach().clone()
    plain = plain_on_cpu(tensor)
    return plain.clone() if plain.data_ptr() == tensor.data_ptr() else plain
