"""How long a run takes and how fast it is: measured, and so no part of its exact state."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from torchkeep.errors import DamagedFile
from torchkeep.files import write_file
from torchkeep.formats.plain_json import parse_json

TIME_FILE = "time.json"


class Times:
    """What a run's epochs took, those of earlier processes too; a context that counts the time.

    Args:
        folder: the run's; what was kept there is read. What can't be read counts as nothing.
        device: where it computes.
        is_kept: whether this process is the one that writes for those it trains with.

    Attributes:
        rows: by epoch, `seconds` of its training and `images_per_second`, as far as is known. Of
            an epoch that was broken off it is what the process measured that ended it.
    """

    def __init__(self, folder: Path, device: torch.device, *, is_kept: bool = True) -> None:
        self._folder, self._device, self._is_kept = folder, device, is_kept
        self._before, self.rows = _read(folder)
        self._begun: float | None = None

    def __enter__(self) -> Times:
        self._begun = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._before, self._begun = self.total, None
        self.keep()

    @property
    def total(self) -> float:
        """The seconds that the run has taken so far, without what a killed process did last."""
        return self._before + (0.0 if self._begun is None else self.now() - self._begun)

    def now(self) -> float:
        """Return the time in seconds, when the device has done what it was told."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()

    def add(self, epoch: int, begun: float, num_images: int) -> None:
        """Keep what an epoch's training took, which began at a time of `now`."""
        self.rows.pop(epoch, None)
        if num_images:
            seconds = self.now() - begun
            self.rows[epoch] = {"seconds": seconds, "images_per_second": num_images / seconds}

    def keep(self) -> None:
        """Write what is known into the run's folder."""
        if not self._is_kept:
            return
        table = {"seconds": self.total, "epochs": self.rows}
        text = json.dumps(table) + "\n"
        write_file(self._folder / TIME_FILE, text.encode(), durable=False, overwrite=True)


def _read(folder: Path) -> tuple[float, dict[int, dict[str, float]]]:
    """Return what was kept: the seconds in all, and the rows. Nothing, if it is not as written."""
    try:
        table: Any = parse_json((folder / TIME_FILE).read_bytes())
        rows = {
            int(epoch): {name: float(row[name]) for name in ("seconds", "images_per_second")}
            for epoch, row in table["epochs"].items()
        }
        return float(table["seconds"]), rows
    except (OSError, DamagedFile, TypeError, ValueError, KeyError, AttributeError):
        return 0.0, {}
