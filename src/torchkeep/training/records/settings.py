"""What a run was started with, and whether another start is the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchkeep.checkpointing import list_checkpoints
from torchkeep.errors import CheckpointProblem, DamagedFile
from torchkeep.files import write_file
from torchkeep.formats.plain_json import parse_json
from torchkeep.training.records.names import SETTINGS_FILE
from torchkeep.training.settings import Settings
from torchkeep.wording import printable

_MAY_CHANGE = frozenset(
    "allow_inexact channels_last check compile device download every_steps shard skip_broken "
    "tensorboard threads workers".split()
)
"""What may be another when a run goes on: how it computes, and not what."""


def write_settings(folder: Path, settings: Settings, data: Mapping[str, Any]) -> None:
    """Keep in a run's folder how it is trained, and on what.

    Args:
        folder: the run's.
        settings: its settings.
        data: what tells its data from others.
    """
    text = json.dumps(settings.to_json() | {"data": dict(data)}, indent=1) + "\n"
    write_file(folder / SETTINGS_FILE, text.encode(), durable=False, overwrite=True)


def check_settings(folder: Path, settings: Settings, data: Mapping[str, Any]) -> None:
    """Make sure that a run's folder has no checkpoint yet, or is of a run like this one.

    Raises:
        CheckpointProblem: it was started with other settings, or on other data.
        DamagedFile: what it says of them can't be read.
    """
    path = folder / SETTINGS_FILE
    if not path.exists() or not list_checkpoints(folder):
        return
    before = parse_json(path.read_bytes())
    if not isinstance(before, dict):
        raise DamagedFile("these are no settings", advice="Remove the file.", path=path)
    then = before.pop("data", {})
    now = {key: x for key, x in settings.to_json().items() if key not in _MAY_CHANGE}
    different = _differences(before, now)
    if isinstance(then, dict):
        different += _differences(then, data)
    if different:
        raise CheckpointProblem(
            f"{printable(str(folder))}: the run was started with other settings: "
            f"{printable('; '.join(different))}",
            advice="Choose another folder, or give what it had.",
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before[name]!r} and is {value!r}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]
