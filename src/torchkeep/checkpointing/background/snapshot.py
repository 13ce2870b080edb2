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

from torchkeep.checkpointing.background.arena import Arena
from torchkeep.checkpointing.background.cuda import CudaCopies, nbytes_on_device
from torchkeep.checkpointing.background.samples import sample_at
from torchkeep.checkpointing.layout import UNPLACED, Placement
from torchkeep.checkpointing.state.sharded import local_of
from torchkeep.tensors import plain_on_cpu

_SMALL_NBYTES = 32 << 10
"""Up to here a copy is quicker than to make sure that nobody changes the original."""

_PIECE_NBYTES = 8 << 20
"""What is copied in one go: `finish` waits for no more than that of the other thread."""

_ALIGNMENT = 64


@dataclass(slots=True)
class _Copied:
    """A tensor that is copied into the arena."""

    name: str
    tensor: torch.Tensor
    """It counts its changes; of a sharded one, the memory is another's."""
    nbytes: int
    address: int
    """Where it was when the snapshot began."""
    version: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    """What it was then; some programs change it in place."""
    memory: torch.UntypedStorage
    """Held, so that nobody frees it while another thread copies, as a change of `.data` would."""
    start: int = 0
    """Where in the arena its copy begins."""


class Snapshot:
    """Tensors as they are at this moment; `begin` comes first, and at once.

    Args:
        tensors: by name, on any device; of sharded ones this rank's piece is copied.
        first_names: for each name the first one that the same tensor has.
        steady: the addresses of those that only an optimizer's step changes.
        at_once: names of tensors that are copied at once, whatever `steady` says.
        placement: where in the arena to put copies, as they are to lie in files.

    Attributes:
        nbytes: what `begin` needs of an arena.
        device_nbytes: what the copies of other devices' tensors need.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        first_names: Mapping[str, str],
        steady: Collection[int],
        at_once: Collection[str] = (),
        placement: Placement = UNPLACED,
    ) -> None:
        self.nbytes = placement.nbytes
        self._names = first_names
        self._clones: dict[str, torch.Tensor] = {}
        self._moving: list[_Copied] = []
        self._steady: list[_Copied] = []
        self._cuda: tuple[list[_Copied], list[_Copied]] = [], []
        for name, owner in tensors.items():
            if first_names[name] != name:
                continue
            tensor = local_of(owner)
            if not _is_plain_run(tensor):
                self._clones[name] = _clone(tensor)
                continue
            address, nbytes = tensor.data_ptr(), tensor.nbytes
            is_counted = not owner.is_inference()  # nobody counts the changes of such a one
            version = owner._version if is_counted else 0
            form = tensor.dtype, tensor.shape, tensor.stride()
            memory = tensor.untyped_storage()
            item = _Copied(name, owner, nbytes, address, version, *form, memory)
            is_steady = is_counted and address in steady and name not in at_once
            if tensor.is_cuda:
                self._cuda[is_steady].append(item)
                continue
            (self._steady if is_steady and nbytes > _SMALL_NBYTES else self._moving).append(item)
            start = placement.starts.get(name)
            if start is None or start % tensor.element_size():
                start = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
                self.nbytes = start + nbytes
            item.start = start
        self.device_nbytes = nbytes_on_device(
            local_of(item.tensor) for items in self._cuda for item in items
        )

    def begin(self, arena: Arena, cuda: CudaCopies) -> None:
        """Copy what may move before the next step.

        Args:
            arena: where the copies go. It is this snapshot's until they are no longer needed.
            cuda: where those of CUDA devices go, likewise.
        """
        self._cuda_copies = cuda
        on_device = [[local_of(item.tensor) for item in items] for items in self._cuda]
        copies = cuda.begin(*on_device)
        names = [item.name for items in self._cuda for item in items]
        self._clones.update(zip(names, copies, strict=True))
        self._memory = arena.reserve(self.nbytes)
        self._base = self._memory.data_ptr()
        for item in self._moving:
            ctypes.memmove(self._base + item.start, item.address, item.nbytes)
        self._samples = [sample_at(item.address, item.nbytes) for item in self._steady]
        self._pieces = deque(_cut(self._steady))
        self._num_left = len(self._pieces)
        self._condition = threading.Condition()
        self._counted: list[str] | None = None

    def _copy(self, piece: _Piece) -> None:
        for item, done, nbytes in piece:
            # Who has put a tensor's memory elsewhere, or freed it (`resize_`), has changed it.
            if local_of(item.tensor).data_ptr() == item.address:
                # without Python's lock
                ctypes.memmove(self._base + item.start + done, item.address + done, nbytes)

    def finish(self) -> None:
        """Copy what nobody else copies, and return when all is copied."""
        while self._pieces:
            try:
                piece = self._pieces.popleft()
            except IndexError:  # the other thread took the last one
                break
            self._copy(piece)
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
            if self._counted is None:
                self._counted = self._find_counted()

    def _give_up(self) -> None:
        """Let go without having copied everything; whoever waits for the rest is told."""
        with self._condition:
            self._pieces.clear()
            self._num_left = 0
            self._counted = [item.name for item in self._steady]
            self._condition.notify_all()

    def changed(self) -> list[str]:
        """Return the names of the tensors that were changed before `let_go`. `wait` comes first.

        One that was changed after it was copied counts as well, where that can't be told. If
        something changed tensors of a device and was not counted, all of them are named: whatever
        it was (a graph that replays steps), it will come again.
        """
        with self._condition:
            changed = self._find_counted() if self._counted is None else self._counted
        changed = changed or self._find_uncounted()
        _, on_device = self._cuda
        if self._cuda_copies.differ([self._clones[item.name] for item in on_device]):
            changed = list(dict.fromkeys([*changed, *(item.name for item in on_device)]))
        return changed

    def _find_counted(self) -> list[str]:
        """Return which tensors have another version than at the beginning, or another place."""
        _, on_device = self._cuda
        return [
            item.name
            for item in (*self._steady, *on_device)
            if item.tensor._version != item.version
            or local_of(item.tensor).data_ptr() != item.address
        ]

    def _find_uncounted(self) -> list[str]:
        """Return which copies are not what their tensors were at the beginning."""
        return [
            item.name
            for item, sample in zip(self._steady, self._samples, strict=True)
            if sample_at(self._base + item.start, item.nbytes) != sample
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the copies by name, those of one tensor as one object. `wait` comes first."""
        copied = (*self._moving, *self._steady)
        memory = {dtype: self._memory.view(dtype) for dtype in {item.dtype for item in copied}}
        copies = {
            item.name: memory[item.dtype].as_strided(
                item.shape, item.stride, item.start // item.dtype.itemsize
            )
            for item in copied
        }
        copies |= self._clones
        return {name: copies[first] for name, first in self._names.items()}


_Piece = list[tuple[_Copied, int, int]]
"""Tensors, or a part of one: where in it that begins, and how much it is."""


def _cut(items: list[_Copied]) -> list[_Piece]:
    """Return all of some tensors in pieces."""
    pieces: list[_Piece] = []
    room = 0
    for item in items:
        for done in range(0, item.nbytes, _PIECE_NBYTES):
            nbytes = min(_PIECE_NBYTES, item.nbytes - done)
            if nbytes > room:
                pieces.append([])
                room = _PIECE_NBYTES
            pieces[-1].append((item, done, nbytes))
            room -= nbytes
    return pieces


def _is_plain_run(tensor: torch.Tensor) -> bool:
    """Whether its memory is one run of plain bytes that can be copied as it is."""
    return (
        (tensor.is_cpu or tensor.is_cuda)
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_nested
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
