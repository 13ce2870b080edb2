"""Files are proven as always, but quicker: nothing here asks how fast they are."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import forked
from torchkeep.exporting.proof import session, timing


@pytest.fixture(autouse=True)
def _timed_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "_ROUND_S", 0.002)


@pytest.fixture(autouse=True)
def _started_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = SimpleNamespace(**vars(session.subprocess) | {"Popen": forked.popen})
    monkeypatch.setattr(session, "subprocess", quick)


@pytest.fixture(autouse=True, scope="session")
def _operators_read_once() -> Iterator[None]:
    """Read the source of ONNX's operators once: PyTorch's exporter does at each export."""
    from torch.onnx._internal._lazy_import import onnxscript_apis

    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(onnxscript_apis.get_torchlib_ops)
        patch.setattr(onnxscript_apis, "get_torchlib_ops", read)
        yield
