"""Messages between a process and the one that runs a written file: a line of JSON, then arrays.

Of each array the line has dtype and shape; its bytes follow. Nothing is unpickled on either side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

_SMALL_NBYTES = 1 << 16
"""Up to here a copy costs nothing; an array of no size has no buffer that can be written."""


def send(stream: IO[bytes], message: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
    """Write a message and its arrays.

    Raises:
        TypeError: an array holds Python's objects, and no numbers.
    """
    arrays = [np.asarray(array, order="C") for array in arrays]
    if any(array.dtype.hasobject for array in arrays):
        raise TypeError("an array of objects can't be sent")
    described = [[array.dtype.str, array.shape] for array in arrays]
    stream.write(json.dumps({**message, "arrays": described}).encode() + b"\n")
    for array in arrays:
        stream.write(array.tobytes() if array.nbytes < _SMALL_NBYTES else array.data)
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
