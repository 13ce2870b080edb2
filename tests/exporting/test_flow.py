"""What an export refuses, and that it leaves nothing behind then."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporting.samples import RECIPE, Net, classifier, images, inputs, net, run_folder
from torchkeep.errors import (
    DamagedFile,
    ExportRefused,
    FileMissing,
    MissingExtra,
    ProofFailed,
    SaveRefused,
    WrongArgument,
)
from torchkeep.exporting import (
    Exported,
    Onnx,
    Pt2,
    Subject,
    Tolerance,
    TorchScript,
    export,
    open_subject,
    prove,
    taking_pixels,
)
from torchkeep.exporting.publishing import publish, staging_folder
from torchkeep.exporting.targets.exporters import first_line, quietly
from torchkeep.networks import build
from torchkeep.report import RunReport, write_report
from torchkeep.saving import save


def _npy(array: Any) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()


class Branching(torch.nn.Module):
    """Goes one way or the other by a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x - 1


class Sorting(torch.nn.Module):
    """Has an operator that ONNX does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


# --- Networks that can't be held ---------------------------------------------------------------


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


def test_an_output_that_is_a_number_is_refused_by_what_returns_tensors_alone(
    tmp_path: Path,
) -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"twice": x * 2, "count": 3}

    with pytest.raises(ExportRefused, match=r"its output count is no tensor, and ONNX returns"):
        export(Counting(), tmp_path / "net.onnx", example=torch.ones(4, 3))


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=r"ONNX has nothing for .*bessel_j0"):
        export(Sorting(), tmp_path / "net.onnx", example=torch.ones(4, 3))
    assert not [*tmp_path.iterdir()]


def test_a_source_that_can_not_be_scripted_is_refused(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * len(dict.fromkeys(dir(self), 1))

    with pytest.raises(ExportRefused, match="TorchScript can't script the network"):
        export(Odd(), tmp_path / "n.ts", target=TorchScript(by="script"), example=torch.ones(4, 3))


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


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="a OrderedDict is no network"):
        export(net().state_dict(), tmp_path / "net.onnx", example=inputs())


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


# --- Arguments ---------------------------------------------------------------------------------


def test_without_an_example_nothing_tells_what_a_live_network_takes(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="nothing tells what a live Net is called with"):
        export(net(), tmp_path / "net.onnx")


def test_an_example_of_the_wrong_shape_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(WrongArgument, match=r"can't be run on the example, \[2, 5, 24, 24\]"):
        export(net(), tmp_path / "net.onnx", example=torch.ones(4, 5, 24, 24))
    with pytest.raises(WrongArgument, match=r"does not fit Net\.forward"):
        export(net(), tmp_path / "net.onnx", example={"y": inputs()})
    with pytest.raises(WrongArgument, match="the example's x is a str, and no tensor"):
        export(net(), tmp_path / "net.onnx", example=("images",))
    assert not [*tmp_path.iterdir()]


def test_ranges_of_eight_bits_are_not_learnt_from_random_numbers(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="int8 learns from real inputs") as caught:
        export(classifier(tmp_path), tmp_path / "net.onnx", target=Onnx(precision="int8"))
    assert "--calibrate" in caught.value.advice
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", b"nothing"),
        ("x.npy", b""),
        ("x.npz", b"PK\x03\x04nothing"),
        ("x.npy", _npy(np.array(["a"]))),
        ("x.npy", _npy(inputs().numpy())[:-100]),
    ],
    ids=["noise", "empty", "archive", "texts", "truncated"],
)
def test_a_file_that_holds_no_arrays_is_no_example(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match="it holds no arrays of numbers"):
        export(net(), tmp_path / "net.ts", example=tmp_path / name)
    with pytest.raises(WrongArgument, match="the example's x has no rows"):
        export(net(), tmp_path / "net.ts", example=inputs()[:0])


def test_an_array_may_have_its_bytes_in_the_other_order(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(_npy(inputs().numpy().astype(">f4")))
    assert export(net(), tmp_path / "net.ts", example=tmp_path / "x.npy").is_real


class Product(torch.nn.Module):
    """Takes what has no rows, and what has as many as it likes."""

    def forward(self, factor: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return factor * (x @ weight)


@pytest.mark.parametrize("dynamic", ["none", {"x": {0: "batch"}}])
def test_inputs_need_not_have_the_same_number_of_rows(dynamic: Any, tmp_path: Path) -> None:
    example = torch.tensor(2.0), torch.randn(4, 3), torch.randn(3, 5)
    report = export(Product(), tmp_path / "net.ts", example=example, dynamic=dynamic)
    assert report.speeds[0].original.batch_size == (4 if dynamic == "none" else 1)


def test_int8_is_calibrated_with_as_many_rows_as_the_file_takes(tmp_path: Path) -> None:
    target = Onnx(precision="int8")
    report = export(net(), tmp_path / "n.onnx", target=target, example=inputs(), dynamic="none")
    assert report.inputs[0][2] == (9, 3, 24, 24)


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


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("suffix", ["onnx", "pt2", "ts"])
def test_a_file_whose_name_is_no_unicode_is_a_source(suffix: str, tmp_path: Path) -> None:
    named = tmp_path / os.fsdecode(b"b\xff.safetensors")
    classifier(tmp_path).rename(named)
    assert export(named, tmp_path / f"net.{suffix}").source == named.name


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


def test_what_may_vary_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="nothing is dynamic in the way of 'all'"):
        export(net(), tmp_path / "net.onnx", example=inputs(), dynamic="all")
    with pytest.raises(WrongArgument, match="no input 'y'"):
        export(net(), tmp_path / "net.onnx", example=inputs(), dynamic={"y": {0: "rows"}})
    with pytest.raises(WrongArgument, match="x has dimensions 0 to 3, and no 4"):
        export(net(), tmp_path / "net.onnx", example=inputs(), dynamic={"x": {4: "rows"}})


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


# --- Places ------------------------------------------------------------------------------------


def test_what_is_there_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(SaveRefused, match="there is something already"):
        export(net(), path, example=inputs())
    assert path.read_text() == "mine"
    export(net(), path, example=inputs(), overwrite=True, target=Onnx(external_data=True))
    export(net(1), path, example=inputs(), overwrite=True, target=Onnx(external_data=True))
    prove(net(1), path, example=inputs())
    assert {each.name for each in tmp_path.iterdir()} == {
        "net.onnx", "net.onnx.data", "net.onnx.json",
    }  # fmt: skip


def test_what_lies_beside_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("net.onnx.json", "net.onnx.data"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SaveRefused, match=rf"{name}: there is something already"):
            export(net(), tmp_path / "net.onnx", example=inputs())
        assert [each.read_text() for each in tmp_path.iterdir()] == ["mine"]
        (tmp_path / name).unlink()


def test_weights_beside_an_older_file_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net(), path, example=inputs(), target=Onnx(external_data=True))
    export(net(1), path, example=inputs(), overwrite=True)
    assert {each.name for each in tmp_path.iterdir()} == {"net.onnx", "net.onnx.json"}


@pytest.mark.parametrize("name", ["net.pt", "net.bin", "net.xml.json"])
def test_what_is_exported_is_never_replaced(name: str, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    torch.save(model, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    to, target = ("net.pt", "torchscript") if name == "net.pt" else ("net.xml", "openvino")
    with pytest.raises(SaveRefused, match=rf"{name}: this is what is to be exported"):
        export(
            tmp_path / name, tmp_path / to, target=target, example=torch.ones(9, 4), overwrite=True
        )
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [before]


def test_a_run_s_own_model_is_not_replaced_by_its_export(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    before = (run / "best.safetensors").read_bytes()
    with pytest.raises(SaveRefused, match=r"best\.safetensors: this is what is to be exported"):
        export(run, run / "best.safetensors", target="onnx", overwrite=True)
    assert (run / "best.safetensors").read_bytes() == before


def test_a_folder_is_refused_and_a_link_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    with pytest.raises(SaveRefused, match="this is no file"):
        export(net(), tmp_path / "real", target="onnx", example=inputs(), overwrite=True)
    link = tmp_path / "link.onnx"
    link.symlink_to(tmp_path / "real" / "net.onnx")
    target = Onnx(external_data=True)
    for seed in range(2):
        model = net(seed)
        report = export(model, link, example=inputs(), target=target, overwrite=seed == 1)
        prove(model, tmp_path / "real" / "net.onnx", example=inputs())
    assert link.is_symlink()
    assert report.path == link
    names = {each.name for each in (tmp_path / "real").iterdir()}
    assert names == {"net.onnx", "net.onnx.data", "net.onnx.json"}


@pytest.fixture
def two_versions(tmp_path: Path) -> tuple[Path, Path, Exported]:
    """An export in a folder, and another of the same names, with its report, in another."""
    target = Onnx(external_data=True)
    for seed, name in enumerate(("place", "newer")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "net.onnx"
        report = export(net(seed), path, example=inputs(), target=target)
    (tmp_path / "newer" / "net.onnx.json").unlink()
    return tmp_path / "place", tmp_path / "newer", report


def _contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_what_stops_on_the_way_to_its_place_changes_nothing(
    two_versions: tuple[Path, Path, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, newer, report = two_versions
    path, before = place / "net.onnx", _contents(place)
    replace_file = Path.replace
    for step in range(20):
        left = step

        def counting(self: Path, to: Path) -> Path:
            nonlocal left
            if self.name.startswith("older"):  # what puts back goes on
                return replace_file(self, to)
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return replace_file(self, to)

        with staging_folder(path) as folder:
            shutil.copytree(newer, folder, dirs_exist_ok=True)
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", counting)
                try:
                    publish(folder, path, report, overwrite=True, parts=[place / "net.onnx.data"])
                    break
                except KeyboardInterrupt:
                    pass
        assert _contents(place) == before
    assert step > 5
    prove(net(1), path, example=inputs())


def test_two_exports_to_one_place_do_not_mix(two_versions: tuple[Path, Path, Exported]) -> None:
    place, newer, report = two_versions
    path = place / "net.onnx"
    names = ("net.onnx", "net.onnx.data")
    versions = [{name: _contents(each)[name] for name in names} for each in (place, newer)]
    (place / "net.onnx.json").unlink()
    older = newer.with_name("older")
    shutil.copytree(place, older)

    def put(source: Path) -> None:
        with staging_folder(path) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            publish(folder, path, report, overwrite=True, parts=[place / "net.onnx.data"])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            list(pool.map(put, [newer, older] * 2))
            found = _contents(place)
            assert {name: found[name] for name in names} in versions


def test_a_failed_proof_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net(), path, example=inputs())
    before = path.read_bytes(), (tmp_path / "net.onnx.json").read_bytes()
    with pytest.raises(ProofFailed):
        export(net(), path, example=inputs(), overwrite=True, tolerance=Tolerance(0, 1, 1, 0))
    assert (path.read_bytes(), (tmp_path / "net.onnx.json").read_bytes()) == before
    assert len([*tmp_path.iterdir()]) == 2


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SaveRefused, match="its folder can't be written to"):
        export(net(), tmp_path / "none" / "net.onnx", example=inputs())
    with pytest.raises(FileMissing, match=r"there is no best\.safetensors and no last"):
        export(tmp_path, tmp_path / "net.onnx")


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "ts"])
def test_a_disk_without_room_is_said_and_nothing_is_left(suffix: str, tmp_path: Path) -> None:
    script = f"""
        import resource, signal, sys
        import torch, torchkeep
        from torchkeep.errors import SaveRefused

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            path = {str(tmp_path / f"net.{suffix}")!r}
            torchkeep.export(torch.nn.Linear(500, 500), path, example=torch.ones(9, 500))
        except SaveRefused as error:
            sys.exit(f"refused: {{error}}")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert "refused: " in done.stderr
    assert "the disk is full" in done.stderr or "could not be written" in done.stderr
    assert not [*tmp_path.iterdir()]


# --- Subjects and examples ---------------------------------------------------------------------


def test_a_run_a_file_and_a_whole_model_are_exported(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_report(run / "report.html", RunReport("a run"))
    data = images(tmp_path / "data")
    export(run, tmp_path / "a.ts", data=data)
    report = export(run / "best.safetensors", tmp_path / "a.pt2", data=data)
    page = (run / "report.html").read_text()
    assert page.count("<h2>Deployment</h2>") == 1
    assert "a.ts" in page
    assert "a.pt2" in page
    assert report.source == "best.safetensors"
    kept = [json.loads(line) for line in (run / "exports.jsonl").read_text().splitlines()]
    assert [each["name"] for each in kept] == ["a.ts", "a.pt2"]


def test_a_run_may_have_anything_in_its_list_of_exports(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_report(run / "report.html", RunReport("a run"))
    export(run, tmp_path / "a.ts")
    (line,) = (run / "exports.jsonl").read_bytes().splitlines()
    told = json.loads(line) | {"name": "<script>alert(1)</script>"}
    odd = [{"nbytes": "x"}, {"nbytes": 10**400}, {"agreement": "all"}, {"kind": 5}, {"speedup": -1}]
    lines = [json.dumps(told | each).encode() for each in ({}, *odd)]
    (run / "exports.jsonl").write_bytes(b"\n".join([*lines, b"\xff", b"[1]", b"null", b"", line]))
    export(run, tmp_path / "b.ts")
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    kept = [json.loads(each) for each in (run / "exports.jsonl").read_text().splitlines()]
    assert [each["name"] for each in kept] == [told["name"], "a.ts", "b.ts"]


def test_a_file_is_of_its_run_only_where_the_run_is(tmp_path: Path) -> None:
    assert open_subject(classifier(tmp_path)).run is None


def test_weights_are_exported_with_the_name_of_their_network(tmp_path: Path) -> None:
    from torchkeep.networks import build

    torch.manual_seed(0)
    save(build("timm/test_resnet", num_classes=7), tmp_path / "weights.pth")
    subject = open_subject(tmp_path / "weights.pth", arch="timm/test_resnet", num_classes=7)
    assert subject.preprocessing is not None
    assert not subject.is_recipe_told
    report = export(subject, tmp_path / "net.ts")
    assert not report.is_real
    assert report.example == "16 images of random numbers, in place of real ones"


def test_a_whole_model_needs_no_name(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    torch.save(model, tmp_path / "whole.pth")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((9, 4), np.float32))
    report = export(tmp_path / "whole.pth", tmp_path / "net.ts", example=tmp_path / "rows.npy")
    assert report.is_real
    assert report.example == "rows.npy, 9 rows"


def test_a_whole_model_that_is_recognised_needs_no_example(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save(network, tmp_path / "whole.pth")
    subject = open_subject(tmp_path / "whole.pth")
    assert (subject.arch, subject.is_recipe_told) == ("torchvision/squeezenet1_1", False)
    assert subject.preprocessing is not None
    # Nothing of what is around it is known.
    torch.save(torch.nn.Sequential(network), tmp_path / "within.pth")
    assert open_subject(tmp_path / "within.pth").preprocessing is None


def test_a_report_is_read_by_printing_it(tmp_path: Path) -> None:
    report = export(net(), tmp_path / "net.onnx", example=inputs())
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{tmp_path}/net.onnx: proven to do what the original does (onnx,")
    assert any(line.startswith("  batch 7  ") for line in lines)
    assert any(line.startswith("  batch 1, median  ") for line in lines)


# --- Validation data alone ---------------------------------------------------------------------


def test_all_images_of_a_folder_are_for_validation_if_that_is_said(tmp_path: Path) -> None:
    data, model = images(tmp_path / "val"), classifier(tmp_path)
    counts = []
    for at, whole in enumerate((False, True)):
        report = export(model, tmp_path / f"{at}.onnx", data=data, whole=whole)
        assert report.accuracy is not None
        counts.append(report.accuracy.num_samples)
    assert counts == [3, 15]
    int8 = Onnx(precision="int8")
    with pytest.raises(WrongArgument, match=r"val has no images to train on, and int8 learns"):
        export(model, tmp_path / "8.onnx", target=int8, data=data, whole=True)


def test_a_folder_may_have_a_part_for_validation_alone(tmp_path: Path) -> None:
    images(tmp_path / "data" / "val")
    report = export(classifier(tmp_path), tmp_path / "net.onnx", data=tmp_path / "data")
    assert report.accuracy is not None
    assert report.accuracy.num_samples == 15


def test_a_wrapped_model_on_any_device_is_exported_as_what_is_within(tmp_path: Path) -> None:
    wrapped = torch.nn.DataParallel(net())
    assert isinstance(open_subject(wrapped).model, Net)
    compiled = torch.compile(net())
    assert isinstance(open_subject(compiled).model, Net)


def test_pixels_go_in_where_they_are_asked_for(tmp_path: Path) -> None:
    subject = taking_pixels(open_subject(classifier(tmp_path)))
    report = export(subject, tmp_path / "net.onnx", data=images(tmp_path / "data"))
    ((_, dtype, shape),) = report.inputs
    assert dtype == "uint8"
    assert shape == ("batch", 3, 24, 24)
    assert report.images_prepared == 3


def test_an_unknown_recipe_and_images_do_not_go_together(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    subject = Subject(net(), "a net")
    with pytest.raises(WrongArgument, match="nothing tells how images are prepared for a net"):
        export(subject, tmp_path / "net.ts", example=data)
    with pytest.raises(WrongArgument, match="nothing tells how images are prepared for a net"):
        export(subject, tmp_path / "net.ts", example=inputs(), data=data)
    export(Subject(net(), "a net", preprocessing=RECIPE), tmp_path / "net.ts", example=data)


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


def test_an_opset_that_the_exporter_does_not_write_is_refused() -> None:
    with pytest.raises(WrongArgument, match="opset is 17, and PyTorch's exporter writes 18"):
        Onnx(opset=17)


def test_a_run_that_can_not_be_told_of_an_export_has_the_file_all_the_same(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (run / "report.html").write_text("<p>somebody else's</p>")
    with pytest.raises(DamagedFile) as caught:
        export(run, tmp_path / "net.ts")
    assert caught.value.advice.startswith("net.ts is proven, and there.")
    assert (tmp_path / "net.ts").exists()


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
