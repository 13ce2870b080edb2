"""Other people's exporters: what they print, say when they fail, write, and tell their makers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torchkeep.wording import shortened


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what exporters say of themselves off the screen; what matters raises.

    torch.jit tells that it is deprecated at every call: the documentation says so once. Where
    torch.export can't follow a branch, it prints its graph to stderr, before it raises.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """Return an error's class, and the first line of its message that says something."""
    return f"{type(error).__name__}: {first_line(str(error))}"


def first_line(text: str) -> str:
    """Return the first line of a message that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(lines[0] if lines else "no message", 300)


def write_whole(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write what PyTorch saves, by way of memory: its own writer ends the process on a full disk.

    Raises:
        OSError: the system refuses.
    """
    memory = io.BytesIO()
    save(memory)
    with path.open("wb") as file:
        file.write(memory.getbuffer())


def import_onnxruntime() -> Any:
    """Return onnxruntime, imported without its telemetry.

    It tells Microsoft what it runs otherwise, and leaves an identifier in `~/.cache`.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # type: ignore[import-untyped]

    return onnxruntime
