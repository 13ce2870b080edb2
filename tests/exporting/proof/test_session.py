"""The process that runs a written file, and what is said when it does not."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from torchkeep.errors import ProofFailed
from torchkeep.exporting import export
from torchkeep.exporting.proof import session as sessions
from torchkeep.exporting.proof.session import Session
from torchkeep.exporting.proof.wire import receive, send


@pytest.fixture(autouse=True)
def _started_soon() -> None:
    """Each process here starts from nothing, as it does for everybody."""


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::-1],
        np.float64(3.5),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.array([np.nan, np.inf], ">f4"),
    ],
)
def test_arrays_come_as_they_were_sent(array: np.ndarray) -> None:
    pipe = io.BytesIO()
    send(pipe, {"do": "run"}, [array, array])
    pipe.seek(0)
    message, found = receive(pipe)
    assert message["do"] == "run"
    for each in found:
        assert each.dtype == array.dtype
        assert np.array_equal(each, array, equal_nan=array.dtype.kind == "f")


def test_what_was_cut_off_is_the_end() -> None:
    pipe = io.BytesIO()
    send(pipe, {}, [np.ones(5)])
    for length in (0, 5, len(pipe.getvalue()) - 1):
        with pytest.raises(EOFError):
            receive(io.BytesIO(pipe.getvalue()[:length]))


def test_objects_are_not_sent() -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        send(io.BytesIO(), {}, [np.array([object()])])


def _file(folder: Path) -> Path:
    path = folder / "net.ts"
    export(torch.nn.Linear(3, 2), path, example=torch.ones(9, 3))
    return path


def test_a_runtime_that_is_killed_is_said_with_its_signal(tmp_path: Path) -> None:
    with Session("torchscript", _file(tmp_path), threads=1) as session:
        os.kill(session._process.pid, signal.SIGKILL)
        with pytest.raises(ProofFailed, match="its runtime was ended by signal 9"):
            session.run([np.ones((1, 3), np.float32)])


def test_a_runtime_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session("torchscript", _file(tmp_path), threads=1) as session:
        os.kill(session._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(sessions, "TIMEOUT_S", 0.2)
        with pytest.raises(ProofFailed, match="its runtime was ended by signal 9"):
            session.run([np.ones((1, 3), np.float32)])


def test_a_refusal_of_the_runtime_ends_no_session(tmp_path: Path) -> None:
    with Session("torchscript", _file(tmp_path), threads=1) as session:
        with pytest.raises(ProofFailed, match="its runtime can't run it"):
            session.run([np.ones((1, 4), np.float32)])
        with pytest.raises(ProofFailed, match="it has no layers"):
            session.looked_into("layers")
        (found,) = session.run([np.ones((1, 3), np.float32)])
    assert found.shape == (1, 2)


def test_a_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProofFailed, match="its runtime can't run it"):
        Session("torchscript", tmp_path / "none.ts", threads=1)


def test_the_process_has_no_pytorch_where_the_runtime_needs_none(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(torch.nn.Linear(3, 2), path, example=torch.ones(9, 3))
    with Session("onnx", path, threads=1) as session:
        maps = Path(f"/proc/{session._process.pid}/maps")
        if not maps.exists():
            pytest.skip("only Linux tells what a process has loaded")
        loaded = maps.read_text()
    assert "onnxruntime" in loaded
    assert "libtorch" not in loaded
