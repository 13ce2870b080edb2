"""The epochs of a run, as other programs read them."""

from __future__ import annotations

import json
from pathlib import Path

from torchkeep.training.records.history import write_history


def test_a_number_that_json_has_not_is_null_there(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "loss": 0.5, "val_loss": x} for x in (float("nan"), float("inf"), 0.25)]
    write_history(tmp_path, rows)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert lines[0] == '{"epoch": 0, "loss": 0.5, "val_loss": null}'
    assert [json.loads(line)["val_loss"] for line in lines] == [None, None, 0.25]
    table = (tmp_path / "history.csv").read_text().splitlines()
    assert table == ["epoch,loss,val_loss", "0,0.5,nan", "0,0.5,inf", "0,0.5,0.25"]
