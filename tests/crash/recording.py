"""What a program does to the files in a folder, call by call: recorded in this process.

The calls of `os` are replaced by ones that note what they do, after they did it. Threads take
turns, so that the order noted is the order in which it happened. That nothing is missed is proven
by the replay: with all calls replayed, a disk has to look like the real folder (`test_replay.py`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Call(NamedTuple):
    """One change of the disk."""

    kind: str
    """`open`, `write`, `grow`, `cut`, `sync`, `link`, `rename`, `unlink`, `mkdir` or `rmdir`."""
    target: str | int
    """A path in the folder, or the number of an opened file or folder."""
    value: Any = None
    """What is written and where, the new name, the new size, or how a file was opened."""


class Recorder:
    """Notes the calls from when it is made until `patches` is undone.

    Args:
        root: the folder whose files matter; others are not noted.
        patches: what undoes it.

    Attributes:
        calls: what was noted so far.
    """

    def __init__(self, root: Path, patches: pytest.MonkeyPatch) -> None:
        self.root = os.path.realpath(root)
        self.calls: list[Call] = []
        self._real = {name: getattr(os, name) for name in _NOTES if hasattr(os, name)}
        self._opened: dict[int, tuple[int, str]] = {}
        self._num_opened = 0
        self._turn = threading.RLock()
        for name in self._real:
            patches.setattr(os, name, self._noted(name, _NOTES[name]))
        # The library calls Linux's `fallocate` itself; what it asks for is the same.
        patches.setattr("torchkeep.files.output._fallocate", lambda: self._allocate)

    def _noted(self, name: str, note: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._turn:
                before = self._place(args[0], options) if args else None
                result = self._real[name](*args, **options)
                note(self, before, result, *args, **options)
                return result

        return call

    def _place(self, target: Any, options: dict[str, Any]) -> str | int | None:
        """Return the path in the folder, or the number of the opened file; None if elsewhere."""
        if isinstance(target, int):
            return self._opened[target][0] if target in self._opened else None
        path = os.fspath(target)
        folder = options.get("dir_fd", options.get("src_dir_fd"))
        if folder is not None:
            if folder not in self._opened:
                return None
            path = f"{self.root}/{self._opened[folder][1]}/{path}"
        return self._within(path)

    def _within(self, path: str | os.PathLike[str]) -> str | None:
        # The name itself matters, not what a link points to.
        full = str(Path(path).parent.resolve() / Path(path).name)
        return full[len(self.root) + 1 :] if f"{full}/".startswith(f"{self.root}/") else None

    def _allocate(self, fd: int, nbytes: int) -> int:
        with self._turn:
            if fd in self._opened and nbytes > os.fstat(fd).st_size:
                self._real["truncate"](fd, nbytes)
                self.calls.append(Call("grow", self._opened[fd][0], nbytes))
        return 0

    # --- What each call changes ----------------------------------------------------------------

    def _open(self, place: Any, fd: int, path: Any, flags: int, *_: Any, **options: Any) -> None:
        self._opened.pop(fd, None)
        if isinstance(place, str):
            self._num_opened += 1
            self._opened[fd] = self._num_opened, place
            self.calls.append(Call("open", place, (self._num_opened, flags)))

    def _close(self, place: Any, result: None, fd: int) -> None:
        self._opened.pop(fd, None)

    def _pwrite(self, place: Any, count: int, fd: int, data: Any, offset: int) -> None:
        if place is not None:
            self.calls.append(Call("write", place, (offset, bytes(data)[:count])))

    def _write(self, place: Any, count: int, fd: int, data: Any) -> None:
        if place is not None:
            offset = os.lseek(fd, 0, os.SEEK_CUR) - count
            self.calls.append(Call("write", place, (offset, bytes(data)[:count])))

    def _truncate(self, place: Any, result: None, path: Any, nbytes: int) -> None:
        if place is not None:
            self.calls.append(Call("cut", place, nbytes))

    def _fsync(self, place: Any, result: None, fd: int) -> None:
        if place is not None:
            self.calls.append(Call("sync", place))

    def _two_names(
        self, kind: str, place: Any, old: Any, new: Any, options: dict[str, Any]
    ) -> None:
        assert not options.get("dst_dir_fd"), "such a call is not known here"
        target = self._within(new)
        assert (place is None) == (target is None), "a file comes from elsewhere, or goes there"
        if place is not None:
            self.calls.append(Call(kind, place, target))

    def _link(self, place: Any, result: None, old: Any, new: Any, **options: Any) -> None:
        self._two_names("link", place, old, new, options)

    def _rename(self, place: Any, result: None, old: Any, new: Any, **options: Any) -> None:
        self._two_names("rename", place, old, new, options)

    def _unlink(self, place: Any, result: None, path: Any, **options: Any) -> None:
        if place is not None:
            self.calls.append(Call("unlink", place))

    def _mkdir(self, place: Any, result: None, path: Any, *_: Any, **options: Any) -> None:
        if place is not None:
            self.calls.append(Call("mkdir", place))

    def _rmdir(self, place: Any, result: None, path: Any, **options: Any) -> None:
        if place is not None:
            self.calls.append(Call("rmdir", place))


_NOTES: dict[str, Callable[..., None]] = {
    "open": Recorder._open,
    "close": Recorder._close,
    "pwrite": Recorder._pwrite,
    "write": Recorder._write,
    "truncate": Recorder._truncate,
    "ftruncate": Recorder._truncate,
    "fsync": Recorder._fsync,
    "link": Recorder._link,
    "rename": Recorder._rename,
    "replace": Recorder._rename,
    "unlink": Recorder._unlink,
    "remove": Recorder._unlink,
    "mkdir": Recorder._mkdir,
    "rmdir": Recorder._rmdir,
}
