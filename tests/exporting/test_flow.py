"""The flow from a network to its file: what is refused, and what is told."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from exporting.samples import RECIPE, classifier, images, inputs, net
from torchkeep.errors import (
    ExportRefused,
    MissingExtra,
    ProofFailed,
    WrongArgument,
)
from torchkeep.exporting import (
    Onnx,
    Pt2,
    Subject,
    Tolerance,
    TorchScript,
    export,
    open_subject,
    prove,
)
from torchkeep.exporting.targets.exporters import first_line, quietly
from torchkeep.networks import build


class Branching(torch.nn.Module):
    """Goes one way or the other by a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x - 1


@pytest.mark.parametrize("target", [Onnx(), Pt2()], ids=["onnx", "pt2"])
def test_a_branch_on_a_value_is_refused_with_the_ways_out(
    target: Onnx | Pt2, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = r"test_flow\.py, line \d+: return x \* 2 if x\.sum\(\) > 0 else x - 1 \("
    with pytest.raises(ExportRefused, match=rf"decides by values, .*, at .*{line}") as caught:
        export(Branching(), tmp_path / "net.file", target=target, example=torch.ones(4, 3))
    assert capfd.readouterr() == ("", "")
    assert "torch.cond" in caught.value.advice
    assert "--by script" in caught.value.advice
    assert not [*tmp_path.iterdir()]


_BRANCHING = """
class Net(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/home/\x1b[31mme\n.py", r", at /home/\\x1b\[31mme\\n\.py, line 4 \("),
        (f"{Path(torch.__file__).parent}friend/net.py", r", at .*torchfriend/net\.py, line 4 \("),
        (f"/{'x' * 100_000}/net.py", r", at /x{9,500}\.\.\.x{9,500}/net\.py, line 4 \("),
        ("", r"which a graph can't \("),
    ],
    ids=["escapes", "beside torch", "long", "no name"],
)
def test_the_line_of_a_branch_is_told_whatever_its_file_is_called(
    name: str, told: str, tmp_path: Path
) -> None:
    names: dict[str, Any] = {"torch": torch, "__name__": "net"}
    exec(compile(_BRANCHING, name, "exec"), names)
    with pytest.raises(ExportRefused, match=rf"decides by values.*{told}"):
        export(names["Net"](), tmp_path / "net.pt2", example=torch.ones(4, 3))


def test_a_script_keeps_a_branch_and_a_trace_that_lost_one_is_found(tmp_path: Path) -> None:
    rows = torch.cat([torch.full((1, 3), -1.0), torch.ones(8, 3)])
    export(Branching(), tmp_path / "net.ts", target=TorchScript(by="script"), example=rows)
    with pytest.raises(ProofFailed, match="it does not do what the original does"):
        export(Branching(), tmp_path / "traced.ts", target=TorchScript(), example=rows)


def test_a_number_that_becomes_a_size_is_no_matter_of_the_batch(tmp_path: Path) -> None:
    class Cut(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = int(x.abs().sum().item())
            return x[:, :count] if count < 2 else x

    with pytest.raises(ExportRefused, match=r"the network decides by values"):
        export(Cut(), tmp_path / "net.pt2", example=torch.ones(4, 3))


def test_a_source_that_can_not_be_scripted_is_refused(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * len(dict.fromkeys(dir(self), 1))

    with pytest.raises(ExportRefused, match="TorchScript can't script the network"):
        export(Odd(), tmp_path / "n.ts", target=TorchScript(by="script"), example=torch.ones(4, 3))


def test_a_network_that_is_random_can_not_be_compared(tmp_path: Path) -> None:
    class Random(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(x, 0.5, training=True)

    with pytest.raises(ExportRefused, match="something else each time, in evaluation mode as well"):
        export(Random(), tmp_path / "net.onnx", example=torch.ones(4, 300))


def test_a_file_of_somebody_else_is_proven_without_what_it_need_not_say(tmp_path: Path) -> None:
    subject, path = open_subject(classifier(tmp_path)), tmp_path / "theirs.ts"
    with quietly():
        torch.jit.save(torch.jit.trace(subject.model, torch.ones(2, 3, 24, 24)), path)
    report = prove(subject, path, data=images(tmp_path / "data"))
    assert report.images_prepared == 0
    assert not (tmp_path / "theirs.ts.json").exists()


def test_accuracy_is_of_what_has_classes(tmp_path: Path) -> None:
    class First(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3))

    subject = Subject(First(), "a net", preprocessing=RECIPE)
    with pytest.raises(WrongArgument, match=r"no class can be read off .* first output, \[3\]"):
        export(subject, tmp_path / "net.ts", data=images(tmp_path / "data"))


def test_accuracy_is_counted_with_as_many_rows_as_the_file_takes(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    path = tmp_path / "net.ts"
    how: dict[str, Any] = {"example": inputs(4), "dynamic": "none", "data": data}
    report = export(Subject(net(), "a net", preprocessing=RECIPE), path, **how)
    assert report.accuracy is not None
    usual = export(Subject(net(), "a net", preprocessing=RECIPE), tmp_path / "any.ts", data=data)
    assert report.accuracy == usual.accuracy
    assert report.accuracy.num_samples % 4


def test_a_suffix_that_tells_no_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match=r"net\.bin: its suffix tells no target"):
        export(net(), tmp_path / "net.bin", example=inputs())
    with pytest.raises(WrongArgument, match="no target called 'coreml'"):
        export(net(), tmp_path / "net.onnx", target="coreml", example=inputs())


def test_a_precision_or_a_way_that_a_target_lacks_is_refused() -> None:
    with pytest.raises(WrongArgument, match="the target onnx has no precision 'int3'"):
        Onnx(precision="int3")
    with pytest.raises(WrongArgument, match="no TorchScript by 'luck'"):
        TorchScript(by="luck")


def test_tolerances_are_shares() -> None:
    with pytest.raises(WrongArgument, match="agreement is 99, and has to be from 0 to 1"):
        Tolerance(1e-4, 0.999, 99, 0)
    with pytest.raises(WrongArgument, match="rtol is nan, and has to be at least 0"):
        Tolerance(float("nan"), 0.999, 1, 0)


def test_a_tolerance_of_nothing_finds_the_smallest_difference(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.GELU())
    strict = Tolerance(0, 0, 0, 0)
    with pytest.raises(ProofFailed, match="it does not do what the original does"):
        export(model, tmp_path / "net.onnx", example=torch.randn(9, 300), tolerance=strict)


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path: Path) -> None:
    script = f"""
        import sys
        from importlib.abc import MetaPathFinder

        class Blocker(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "onnxruntime":
                    raise ModuleNotFoundError(name, name=name)

        sys.meta_path.insert(0, Blocker())
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *_: None if name == "onnxruntime" else real(name)
        import torch, torchkeep
        path = {str(tmp_path / "n.onnx")!r}
        torchkeep.export(torch.nn.Linear(2, 2), path, example=torch.ones(2, 2))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert MissingExtra.__name__ in done.stderr
    assert "the target onnx needs onnxruntime, not installed here" in done.stderr
    assert "torchkeep[export]" in done.stderr


def test_a_report_is_read_by_printing_it(tmp_path: Path) -> None:
    report = export(net(), tmp_path / "net.onnx", example=inputs())
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{tmp_path}/net.onnx: proven to do what the original does (onnx,")
    assert any(line.startswith("  batch 7  ") for line in lines)
    assert any(line.startswith("  batch 1, median  ") for line in lines)


def test_exporters_say_nothing_on_the_screen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(net(), tmp_path / "net.onnx", example=inputs())
    export(net(), tmp_path / "net.pt2", example=inputs())
    assert capfd.readouterr() == ("", "")


def test_a_message_of_many_lines_is_cut_to_the_first_that_says_something() -> None:
    assert first_line("\n\n  what happened\nwhere") == "what happened"
    assert first_line("") == "no message"


def test_what_was_guessed_and_what_the_file_does_not_say_is_told(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build("timm/test_resnet", num_classes=3).state_dict(), path)
    subject = open_subject(path, arch="timm/test_resnet", num_classes=3)
    report = export(subject, tmp_path / "net.onnx")
    assert report.notes == (
        "images are prepared as is usual for timm/test_resnet: weights.pth does not say how",
        "it names no classes: weights.pth has no names",
    )
    known = export(classifier(tmp_path), tmp_path / "known.onnx")
    assert known.notes == ()


def test_a_file_of_another_precision_is_said_to_be_perhaps_one(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net(), path, target=Onnx(precision="float16"), example=inputs())
    with pytest.raises(ProofFailed, match="it does not do what the original does") as caught:
        prove(net(), path, example=inputs())
    assert "--precision" in caught.value.advice
    prove(net(), path, target=Onnx(precision="float16"), example=inputs())


def test_a_half_of_a_network_whose_inputs_have_no_rows_is_proven(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    target = Onnx(precision="float16")
    report = export(Sum(), tmp_path / "net.onnx", target=target, example=torch.tensor(2.0))
    assert len(report.comparisons) == 1
