"""A disk in memory that can lose its power: what was not synced may be there, or not, or in part.

A file's bytes are safe after its sync, and a name after the sync of its folder. Before that a file
may have what it had at its last sync, or zeros of the right length, or half of its bytes; and a
folder may have any of the sets of names that it had since its last sync. That is more than any one
file system does: ext4 and XFS keep the order of the names over all folders, others over one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from crash.recording import Call


@dataclass
class File:
    """A file, whatever its names."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class Folder:
    """A folder: the names that it has had since its last sync, oldest first."""

    versions: list[dict[str, Node]] = field(default_factory=lambda: [{}])

    @property
    def names(self) -> dict[str, Node]:
        return self.versions[-1]

    def change(self, name: str, node: Node | None) -> None:
        names = dict(self.names)
        names.pop(name, None)
        if node is not None:
            names[name] = node
        self.versions.append(names)


Node = File | Folder
Tree = dict[str, bytes | None]
"""What lies on a disk: the bytes of files and None for folders, by path, folders first."""

WAYS = ("all", "none", "zeros", "half", "names", "bytes", "mixed")
"""What a power loss leaves of that which is not synced; see `Disk.after_power_loss`."""


class Disk:
    """Does what calls say, and remembers what is safe."""

    def __init__(self) -> None:
        self.root = Folder()
        self._opened: dict[int, Node] = {}

    def _node(self, path: str) -> Node:
        node: Node = self.root
        for part in Path(path).parts:
            assert isinstance(node, Folder), path
            node = node.names[part]
        return node

    def _folder_of(self, path: str) -> tuple[Folder, str]:
        folder = self._node(str(Path(path).parent))
        assert isinstance(folder, Folder), path
        return folder, Path(path).name

    def _target(self, target: str | int) -> Node:
        return self._opened[target] if isinstance(target, int) else self._node(target)

    def do(self, call: Call) -> None:
        getattr(self, f"_{call.kind}")(call.target, call.value)

    def _open(self, path: str, value: tuple[int, int]) -> None:
        number, flags = value
        if flags & os.O_CREAT:
            folder, name = self._folder_of(path)
            if name not in folder.names:
                folder.change(name, File())
        self._opened[number] = node = self._node(path)
        if flags & os.O_TRUNC and isinstance(node, File):
            node.data.clear()

    def _write(self, target: int, value: tuple[int, bytes]) -> None:
        offset, data = value
        file = self._target(target)
        assert isinstance(file, File)
        file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset : offset + len(data)] = data

    def _cut(self, target: str | int, nbytes: int) -> None:
        file = self._target(target)
        assert isinstance(file, File)
        del file.data[nbytes:]
        file.data.extend(bytes(nbytes - len(file.data)))

    _grow = _cut

    def _sync(self, target: int, value: None) -> None:
        node = self._target(target)
        if isinstance(node, File):
            node.synced = bytes(node.data)
        else:
            del node.versions[:-1]

    def _link(self, path: str, new: str) -> None:
        folder, name = self._folder_of(new)
        folder.change(name, self._node(path))

    def _rename(self, path: str, new: str) -> None:
        node = self._node(path)
        (old_folder, old), (folder, name) = self._folder_of(path), self._folder_of(new)
        if old_folder is not folder:
            folder.change(name, node)
            old_folder.change(old, None)
            return
        # Both at once: a rename within a folder is atomic.
        names = dict(folder.names)
        del names[old]
        names[name] = node
        folder.versions.append(names)

    def _unlink(self, path: str, value: None) -> None:
        folder, name = self._folder_of(path)
        folder.change(name, None)

    _rmdir = _unlink

    def _mkdir(self, path: str, value: None) -> None:
        folder, name = self._folder_of(path)
        folder.change(name, Folder())

    def after_power_loss(self, way: str, chance: random.Random) -> Tree:
        """Return what is found when the power is back.

        Args:
            way: `all` is kept, as if only the program had died; `none` is kept that is not
                synced; `zeros` or `half` of the bytes of files that are not synced, with all names;
                all `names` and no bytes; all `bytes` and no names; or `mixed`, something else for
                each file and each folder.
            chance: what decides for `mixed`.
        """
        tree: Tree = {}
        self._collect(self.root, "", way, chance, tree)
        return tree

    def _collect(
        self, folder: Folder, prefix: str, way: str, chance: random.Random, tree: Tree
    ) -> None:
        versions = folder.versions
        kept = versions[0] if way in ("none", "bytes") else versions[-1]
        for name, node in sorted((chance.choice(versions) if way == "mixed" else kept).items()):
            if isinstance(node, Folder):
                tree[prefix + name] = None
                self._collect(node, f"{prefix}{name}/", way, chance, tree)
            else:
                part = chance.choice(WAYS[:4]) if way == "mixed" else way
                tree[prefix + name] = _left_of(node, part)


def _left_of(file: File, way: str) -> bytes:
    data = bytes(file.data)
    if data == file.synced or way in ("all", "bytes"):
        return data
    if way == "zeros":
        return bytes(len(data))
    if way == "half":
        return data[: len(data) // 2]
    return file.synced


def lay_out(tree: Tree, folder: Path) -> None:
    """Write a tree into a folder."""
    for name, data in tree.items():
        path = folder / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_bytes(data)


def tree_of(folder: Path) -> Tree:
    """Return what lies in a real folder."""
    paths: Iterable[Path] = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in paths
    }
