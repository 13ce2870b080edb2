"""PaddlePaddle: its pickles of parameters and of an optimizer's state."""

from __future__ import annotations

from pathlib import Path

import paddle

from frameworks.expected import expecting


def write(folder: Path) -> None:
    net = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.BatchNorm1D(3))
    adam = paddle.optimizer.Adam(parameters=net.parameters())
    net(paddle.ones([2, 4])).sum().backward()
    adam.step()
    facts = {"container": "paddle", "framework": "PaddlePaddle"}
    paddle.save(net.state_dict(), str(expecting(folder / "net.pdparams", **facts)))
    paddle.save(adam.state_dict(), str(expecting(folder / "net.pdopt", **facts)))
    checkpoint = {"epoch": 1, "model": net.state_dict(), "optimizer": adam.state_dict()}
    paddle.save(checkpoint, str(expecting(folder / "checkpoint.pdparams", **facts)))
    paddle.save(paddle.ones([2]), str(folder / "tensor.pdtensor"))
