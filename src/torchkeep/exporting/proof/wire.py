"""Messages between a process and the one that runs a written file: a line of JSON, then arrays.

Of each array the line has dtype and shape; its bytes follow. Nothing is unpickled on either side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import IO, Any

import numpy as np


def send(stream: IO[bytes], message: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
    """Write a message and its arrays, of numbers."""
    arrays = [np.ascontiguousarray(array) for array in arrays]
    described = [[array.dtype.str, array.shape] for array in arrays]
    stream.write(json.dumps({**message, "arrays": described}).encode() + b"\n")
    for array in arrays:
        stream.write(array.data if array.size else b"")
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Any]]:
    """Return the next message and its arrays.

    Raises:
        EOFError: the other side is gone.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    return message, [_array(stream, np.dtype(kind), shape) for kind, shape in message["arrays"]]


def _array(stream: IO[bytes], dtype: Any, shape: list[int]) -> Any:
    nbytes = dtype.itemsize * math.prod(shape)
    data = bytearray(stream.read(nbytes))
    if len(data) < nbytes:
        raise EOFError
    return np.frombuffer(data, dtype).reshape(shape)
