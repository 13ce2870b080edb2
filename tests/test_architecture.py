"""What the design promises about the whole: a torch-free half, one public API, one licence."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import torchkeep

ROOT = Path(__file__).parents[1]

# Python code for a child process: from here on, these packages can't be imported.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "numpy", "torchvision", "safetensors"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
assert not {"torch", "numpy"} & set(sys.modules)
"""


def run_blocked(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter that can import neither torch nor NumPy."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return one file of each readable format, as their own libraries write them."""
    import pickle

    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("files")
    model = torch.nn.Linear(3, 2)
    torch.save(model, folder / "whole.pth")
    torch.save(
        {"model": model.state_dict(), "epoch": 3},
        folder / "legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "values.pkl").write_bytes(pickle.dumps({"epoch": 3}))
    return sorted(folder.iterdir())


# --- The torch-free half -----------------------------------------------------------------------


def test_the_blocker_blocks():
    for name in ("torch", "numpy", "torch.nn"):
        done = run_blocked(f"import {name}")
        assert done.returncode == 1
        assert "ImportError" in done.stderr
        assert "is blocked" in done.stderr


def test_a_module_that_needs_torch_fails_here():
    assert "torch is blocked" in run_blocked("import torchkeep.tensors").stderr
    assert "torch is blocked" in run_blocked("import torchkeep; torchkeep.save").stderr


def test_a_name_that_needs_torch_says_how_to_install_it():
    program = (
        "import torchkeep\n"
        "Blocker.find_spec = lambda *_: (_ for _ in ()).throw("
        "ModuleNotFoundError('no torch', name='torch'))\n"
        "try: torchkeep.save\n"
        "except ModuleNotFoundError as error: print(error.name, error, sep=': ')\n"
    )
    assert run_blocked(program).stdout == (
        "torch: torchkeep.save needs torch, not installed here. "
        "Install it with: pip install 'torchkeep[torch]'\n"
    )


def test_every_format_is_inspected_without_torch_and_numpy(files: list[Path]):
    program = "import sys, torchkeep\nfor f in sys.argv[1:]: print(torchkeep.inspect(f).summary)"
    done = run_blocked(program, *files)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [torchkeep.inspect(path).summary for path in files]


def test_both_formats_are_written_without_torch_and_numpy(tmp_path: Path):
    program = """
from torchkeep.contents import Storage, TensorEntry
from torchkeep.writing.payload import of_bytes
from torchkeep.writing.safetensors import TensorData
from torchkeep.writing.shards import write_shards
from torchkeep.writing.torch_zip import write_torch_zip
data = of_bytes(bytes(range(48)))
turned = TensorEntry("int32", (3, 4), (1, 3), Storage("", 48, None))
write_torch_zip({"x": [turned], "epoch": 3}, lambda storage: data, sys.argv[1] + "/a.pth")
tensors = {"a": TensorData("uint8", (48,), data), "b": TensorData("int32", (12,), data)}
write_shards(tensors, sys.argv[1] + "/model.safetensors", 50)
"""
    done = run_blocked(program, tmp_path)
    assert (done.stderr, done.returncode) == ("", 0)
    expected = torch.tensor(list(range(48)), dtype=torch.uint8)
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    assert torch.equal(found["x"][0], expected.view(torch.int32).view(4, 3).t())
    parts = torchkeep.load(tmp_path / "model.safetensors.index.json")
    assert torch.equal(parts["a"], expected)
    assert torchkeep.verify(tmp_path).verified


@pytest.mark.parametrize("options", [(), ("--json", "--tensors"), ("--tree",)])
def test_the_command_line_works_without_torch_and_numpy(files: list[Path], options: tuple[str]):
    program = "from torchkeep.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_blocked(program, "inspect", *options, *files)
    assert (done.stderr, done.returncode) == ("", 0)
    assert len(done.stdout.splitlines()) >= len(files)


def test_a_whole_model_is_rescued_without_torch_and_numpy(files: list[Path], tmp_path: Path):
    program = "from torchkeep.cli import main; sys.exit(main(['rescue', *sys.argv[1:]]))"
    whole = next(path for path in files if path.stem == "whole")
    done = run_blocked(program, whole, tmp_path / "out")
    assert (done.stderr, done.returncode) == ("", 0)
    model = torch.nn.Linear(3, 2)
    torchkeep.load_into(model, tmp_path / "out" / "weights.safetensors")
    assert torch.equal(model.weight, torch.load(whole, weights_only=False).weight)


def test_files_are_compared_without_torch_and_numpy(files: list[Path]):
    program = "from torchkeep.cli import main; sys.exit(main(['diff', *sys.argv[1:]]))"
    whole, old = (next(path for path in files if path.stem == name) for name in ("whole", "legacy"))
    for path in files:
        done = run_blocked(program, path, path)
        assert (done.stderr, done.returncode) == ("", 0)
        assert done.stdout.startswith("equal: ")
    torch.save(torch.nn.Linear(3, 2), whole)
    done = run_blocked(program, whole, old)
    assert (done.stderr, done.returncode) == ("", 1)
    assert done.stdout.startswith("different: 2 changed of 2 tensors")
    assert "needs PyTorch: pip install 'torchkeep[torch]'" in done.stdout


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_are_converted_without_torch_and_numpy(
    suffix: str, files: list[Path], tmp_path: Path
):
    program = "from torchkeep.cli import main; sys.exit(main(['convert', *sys.argv[1:]]))"
    for path in files:
        if path.suffix == ".pkl" and suffix == ".safetensors":
            continue  # it has no tensors
        made = tmp_path / f"{path.stem}{suffix}"
        done = run_blocked(program, path, made)
        assert (done.stderr, done.returncode) == ("", 0)
        shapes = [
            sorted(item.entry.shape for item in torchkeep.inspect(file).tensors())
            for file in (path, made)
        ]
        assert shapes[0] == shapes[1]


def test_importing_torchkeep_loads_nothing_heavy():
    program = (
        "import sys, torchkeep.cli\n"
        "print(sorted({'torch', 'numpy', 'rich', 'json'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "['json']\n"


def test_inspecting_imports_no_module_that_it_does_not_use(files: list[Path]):
    program = (
        "import sys, torchkeep; torchkeep.inspect(sys.argv[1])\n"
        "print(sorted({'rich', 'json', 'secrets', 'concurrent.futures'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, files[0]], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['json']\n"


# --- The public API ----------------------------------------------------------------------------


def test_every_public_name_is_there_and_nothing_else_is():
    assert sorted(torchkeep.__all__) == dir(torchkeep)
    assert all(getattr(torchkeep, name) is not None for name in torchkeep.__all__)
    with pytest.raises(AttributeError, match="module 'torchkeep' has no attribute 'nothing'"):
        _ = torchkeep.nothing


def test_every_public_name_has_a_docstring():
    names = [name for name in torchkeep.__all__ if name != "__version__"]
    assert [name for name in names if not getattr(torchkeep, name).__doc__] == []


OF_MODULES = """
starting.start starting.Start
preparing.prepare preparing.Prepared checkup.try_rates retraining.retrain
retraining.Result retraining.Event
checkup.check_up
classifier.Card classifier.save_classifier classifier.load_classifier classifier.read_card
prediction.predict prediction.Prediction
""".split()
"""What is public of modules that `torchkeep.training` does not import."""


def test_the_reference_documents_what_is_public_and_nothing_else():
    from torchkeep import checkpointing, exporting, report, training
    from torchkeep.training import data, diagnosis, pruning

    text = (ROOT / "docs" / "reference.md").read_text()
    documented = {line[4:] for line in text.splitlines() if line.startswith("::: ")}
    public = {f"torchkeep.{name}" for name in torchkeep.__all__}
    public |= {
        f"{package.__name__}.{name}"
        for package in (checkpointing, training, data, diagnosis, pruning, report, exporting)
        for name in package.__all__
        if name not in torchkeep.__all__
    }
    public |= {f"torchkeep.training.{name}" for name in OF_MODULES}
    # The root of the errors is on the page of all errors.
    public -= {"torchkeep.__version__", "torchkeep.TorchkeepError"}
    assert documented == public | {"torchkeep.errors"}


# --- The project -------------------------------------------------------------------------------


def test_the_command_and_the_type_marker_are_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"torchkeep": "torchkeep.cli:main"}
    assert (ROOT / "src" / "torchkeep" / "py.typed").exists()


def test_the_core_needs_neither_torch_nor_numpy():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if name.startswith(("torch", "numpy"))]


def contracts() -> list[list[str]]:
    """Return the modules of each contract: the layers, those without torch, the silent ones."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    of_all = [item for item in table["contracts"] if "containers" not in item]
    return [item.get("layers") or item["source_modules"] for item in of_all]


def test_the_map_of_the_layers_has_every_module_in_the_order_that_is_enforced():
    text = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    rows = [line.split()[0] for line in text.splitlines()[1:] if line[:1].isalpha()]
    folder = ROOT / "src" / "torchkeep"
    there = {f"{it.name}/" if it.is_dir() else it.name for it in folder.glob("[a-z]*")}
    assert set(rows) == there - {"py.typed"}
    layers = contracts()[0]
    assert [f"torchkeep.{row.rstrip('/').removesuffix('.py')}" for row in rows] == layers


def test_the_packages_of_training_say_what_is_in_each_of_their_files():
    paths = list((ROOT / "src" / "torchkeep" / "training").rglob("__init__.py"))
    assert len(paths) > 4
    for path in paths:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        rows = re.findall(r"^(\w+(?:\.py|/))\s+\w", text, re.MULTILINE)
        items = path.parent.glob("[a-z]*")
        there = [f"{item.name}/" if item.is_dir() else item.name for item in items]
        assert sorted(rows) == sorted(there), path


def test_only_the_command_line_and_the_demo_are_in_no_contract_of_their_own():
    layers, without_torch, silent = contracts()
    left = set(layers) - {*without_torch, *silent}
    assert left == {"torchkeep.cli", "torchkeep.demo"}
