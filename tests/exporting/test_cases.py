"""What may vary in a file, and what it is proven with for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exporting.samples import inputs, net
from torchkeep.errors import (
    ExportRefused,
    ProofFailed,
    WrongArgument,
)
from torchkeep.exporting import (
    export,
    prove,
)


def test_what_may_vary_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="nothing is dynamic in the way of 'all'"):
        export(net(), tmp_path / "net.onnx", example=inputs(), dynamic="all")
    with pytest.raises(WrongArgument, match="no input 'y'"):
        export(net(), tmp_path / "net.onnx", example=inputs(), dynamic={"y": {0: "rows"}})
    with pytest.raises(WrongArgument, match="x has dimensions 0 to 3, and no 4"):
        export(net(), tmp_path / "net.onnx", example=inputs(), dynamic={"x": {4: "rows"}})


def test_a_size_that_the_network_fixes_is_refused_where_it_was_to_vary(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.bias

    with pytest.raises(ExportRefused, match=r"takes one size alone where it was to take any"):
        export(Fixed(), tmp_path / "net.pt2", example=torch.ones(2, 3))
    report = export(Fixed(), tmp_path / "net.pt2", example=torch.ones(2, 3), dynamic="none")
    assert [each.case for each in report.comparisons] == ["batch 2, rows from 1"]


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "ts"])
def test_sizes_that_the_network_itself_does_not_take_are_refused_at_once(
    suffix: str, tmp_path: Path
) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    out, told = tmp_path / f"net.{suffix}", []
    refused = r"it can't be run on batch 2, height 40, width 72, \[2, 3, 40, 72\]: RuntimeError"
    rows = torch.ones(4, 3, 8, 8)
    with pytest.raises(ExportRefused, match=refused) as caught:
        export(model, out, example=rows, dynamic="sizes", notify=told.append)
    assert "'batch' (the default)" in caught.value.advice
    assert told == ["reading the network"]
    export(model, out, example=rows)
    with pytest.raises(
        WrongArgument, match=r"the original can't be run on batch 1, \[1, 3, 9, 9\]"
    ):
        prove(model, out, example=torch.ones(4, 3, 9, 9))


class Words(torch.nn.Module):
    """Takes sequences of any length, and weights that are the same for all of them."""

    def __init__(self, longest: int = 100) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(50, 8)
        self.longest = longest

    def forward(self, words: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found = self.embedding(words)[:, : self.longest] * weights
        return found.sum(1)


def _words() -> dict[str, torch.Tensor]:
    return {"words": torch.randint(50, (9, 6)), "weights": torch.rand(8)}


def test_a_length_that_varies_is_proven_at_another_one(tmp_path: Path) -> None:
    dynamic = {"words": {0: "batch", 1: "length"}}
    report = export(Words(), tmp_path / "net.onnx", example=_words(), dynamic=dynamic)
    cases = [each.case for each in report.comparisons]
    assert cases == ["batch 1", "batch 2", "batch 7", "batch 2, length 9"]
    assert report.inputs[0][2] == ("batch", "length")
    assert report.inputs[1][2] == (8,)


def test_a_length_that_a_trace_has_fixed_is_found(tmp_path: Path) -> None:
    class Fixed(Words):
        def forward(self, words: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            # What was the length of the example is a number in the trace.
            self.longest = int(words.shape[1])
            return super().forward(words, weights)

    dynamic = {"words": {0: "batch", 1: "length"}}
    with pytest.raises(ProofFailed, match="output of batch 2, length 9"):
        export(Fixed(), tmp_path / "net.ts", example=_words(), dynamic=dynamic)


def test_sizes_vary_where_the_batch_does_not(tmp_path: Path) -> None:
    dynamic = {"x": {2: "height"}}
    report = export(net(), tmp_path / "net.onnx", example=inputs(3), dynamic=dynamic)
    cases = [each.case for each in report.comparisons]
    assert cases == ["batch 3, rows from 1", "batch 3, height 56"]
    assert report.inputs[0][2] == (3, 3, "height", 24)
