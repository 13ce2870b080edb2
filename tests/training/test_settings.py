"""How a network is retrained: what can't be meant is refused."""

from __future__ import annotations

from typing import Any

import pytest

from torchkeep.errors import WrongArgument
from torchkeep.training.settings import Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0, and has to be at least 1"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0, and has to be above 0"),
        ({"ema": 5.0}, "ema is 5.0, and has to be from 0 to 1"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs is nan"),
        ({"channels": 0}, "channels is 0, and has to be at least 1"),
        ({"channels": 4097}, "channels is 4097, and has to be at most 4096"),
        ({"threads": 10**12}, "threads is 1000000000000, and has to be at most 4096"),
        (
            {"seed": 1 << 64},
            "seed is 18446744073709551616, and has to be at most 18446744073709551615",
        ),
        ({"seed": -(1 << 63) - 1}, "seed is -9223372036854775809, and has to be at least -9223"),
        ({"lr": 0.0}, "lr is 0.0, and has to be above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"precision": "int8"}, "there is no precision 'int8'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongArgument, match=message):
        Settings(**options)
