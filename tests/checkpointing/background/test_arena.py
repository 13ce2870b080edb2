"""How much memory copies may take is asked of the machine and of its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchkeep.checkpointing.background import arena

MIB = 1 << 20


def write_group(folder: Path, limit: str, used: int, inactive: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nslab 7\n")


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("max", str(100 * MIB), 60 * MIB),
        (str(90 * MIB), "max", 50 * MIB),
        (str(80 * MIB), str(100 * MIB), 40 * MIB),
        (str(10 * MIB), "max", 0),
    ],
)
def test_the_narrowest_group_tells(tmp_path, monkeypatch, outer, inner, expected):
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::/")[2].strip()
    write_group(tmp_path / "outer", outer, 50 * MIB, 10 * MIB)
    write_group(tmp_path / "outer" / own, inner, 50 * MIB, 10 * MIB)
    if not Path(own).parts:  # the process is in the one group that there is
        write_group(tmp_path / "outer", min(outer, inner, key=as_number), 50 * MIB, 10 * MIB)
    monkeypatch.setattr(arena, "_CONTROL_GROUPS", tmp_path / "outer")
    assert arena.free_nbytes() == expected


def as_number(limit: str) -> float:
    return float("inf") if limit == "max" else float(limit)


def test_no_limit_and_no_groups_leave_what_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr(arena, "_CONTROL_GROUPS", tmp_path)
    without = arena.free_nbytes()
    write_group(tmp_path, "max", 50 * MIB, 10 * MIB)
    assert MIB < without < 1 << 62
    assert MIB < arena.free_nbytes() < 1 << 62
