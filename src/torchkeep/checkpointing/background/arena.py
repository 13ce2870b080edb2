"""Memory that copies are made into, used again from one snapshot to the next.

Fresh memory costs more than the copy: the system has to find and clear each page of it, which takes
several times as long as to fill a page that is there already.
"""

from __future__ import annotations

from pathlib import Path

import torch

from torchkeep.files import BLOCK_NBYTES, pages


class Arena:
    """One run of bytes that grows when more is asked for, and never shrinks.

    On Linux a forked process does not inherit it. If it did, the next snapshot would find every
    page shared with the DataLoader's workers, and copy it once more.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """How much there is."""
        return self._memory.numel()

    def reserve(self, nbytes: int) -> torch.Tensor:
        """Return whole blocks of at least `nbytes` bytes.

        What was returned before is used again: its contents are no longer the caller's.
        """
        if nbytes > self.nbytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # give the old ones back first
            self._memory = torch.frombuffer(
                pages(-(-nbytes // BLOCK_NBYTES) * BLOCK_NBYTES), dtype=torch.uint8
            )
        return self._memory


def free_nbytes() -> int:
    """Return the bytes of memory that are free or could be; a great number if it can't be told.

    A container may have less than the machine: that is the smaller one then.
    """
    return min(_free_in_machine(), _free_in_container())


def _free_in_machine() -> int:
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            facts = dict(line.split(":", 1) for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _UNKNOWN


def _free_in_container() -> int:
    """Return what Linux's control groups (version 2) leave this process: the narrowest tells."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::/")[2].strip()
    except OSError:
        return _UNKNOWN
    group = _CONTROL_GROUPS / own
    return min(_free_in_group(item) for item in (group, *group.parents[: len(Path(own).parts)]))


def _free_in_group(group: Path) -> int:
    try:
        limit = (group / "memory.max").read_text(encoding="ascii")
        used = (group / "memory.current").read_text(encoding="ascii")
        with (group / "memory.stat").open(encoding="ascii") as lines:
            facts = dict(line.split() for line in lines)
        # Pages of files are given back when somebody needs them.
        return max(int(limit) - int(used) + int(facts["inactive_file"]), 0)
    except (OSError, KeyError, ValueError):  # "max" is no number: there is no limit
        return _UNKNOWN


_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_UNKNOWN = 1 << 62
