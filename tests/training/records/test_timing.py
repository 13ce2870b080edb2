"""How long a run takes is kept by one of the processes that train together."""

from __future__ import annotations

from pathlib import Path

import torch

from torchkeep.training.records.timing import TIME_FILE, Times


def test_only_the_process_that_writes_for_all_keeps_it(tmp_path: Path) -> None:
    with Times(tmp_path, torch.device("cpu"), is_kept=False):
        pass
    assert list(tmp_path.iterdir()) == []
    with Times(tmp_path, torch.device("cpu")) as times:
        pass
    assert [item.name for item in tmp_path.iterdir()] == [TIME_FILE]
    assert Times(tmp_path, torch.device("cpu")).total == times.total
