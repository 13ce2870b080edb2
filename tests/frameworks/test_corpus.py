"""Files that torch, NumPy and plain Python write raise no false alarm and are what they are.

The other scripts of this folder need frameworks that the project does not: see `corpus.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchkeep
from frameworks import beside_torch, report
from frameworks.corpus import HERE, SKIPPED, TESTS, names
from frameworks.expected import FACTS_NAME, expecting, facts_of, start


def written(name: str, folder: Path) -> list[report.Row]:
    """Return the rows of the files that a script writes in a process of its own."""
    command = [sys.executable, "-P", str(HERE / "corpus.py"), "--write-one", str(folder), name]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(report.rows_of(folder, beside_torch=True))


@pytest.mark.parametrize(
    "name",
    [
        "numpy_arrays",
        "plain_python",
        "stand_ins",
        "torch_objects",
        "torch_optimizers",
        "torch_schedulers",
    ],
)
def test_benign_files_are_judged_and_named_rightly(name: str, tmp_path: Path) -> None:
    rows = written(name, tmp_path / name)
    assert len(rows) > 50
    assert [(row.path, row.problem, row.reasons) for row in rows if row.false_alarm] == []
    assert [(row.path, row.wrong) for row in rows if row.wrong] == []
    assert [(row.path, row.beside_torch) for row in rows if row.beside_torch] == []


def test_the_report_tells_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    start(folder)
    expecting(folder / "broken.pt", role="checkpoint").write_bytes(b"\x80\x02}q\x00(")
    expecting(folder / "dict.pkl", role="tensor", verdict="data-only").write_bytes(b"\x80\x02}.")
    expecting(folder / "code.pkl", code=True).write_bytes(b"cos\nsystem\n.")
    (folder / "attack.pkl").write_bytes(b"cos\nsystem\n.")
    (folder / "notes.txt").write_text("no model")
    rows = {row.path: row for row in report.rows_of(folder)}
    assert list(rows) == [
        f"some/{name}" for name in ("attack.pkl", "broken.pt", "code.pkl", "dict.pkl")
    ]
    assert rows["some/broken.pt"].problem.startswith("DamagedFile")
    assert rows["some/dict.pkl"].wrong == ["role 'tensor', is 'object'"]
    assert [row.path for row in rows.values() if row.false_alarm] == [
        "some/attack.pkl",
        "some/broken.pt",
    ]
    assert report.show(tmp_path, ["some"], every=False, as_json=False) == 1


def test_few_alarms_are_no_failure_and_more_are(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    start(folder)
    for number in range(199):
        (folder / f"{number}.pkl").write_bytes(b"\x80\x02}.")
    for number in range(2):
        (folder / f"raw{number}.bin").write_bytes(b"\1\2\3\4")
    assert report.show(tmp_path, ["some"], every=False, as_json=False) == 0
    (folder / "raw2.bin").write_bytes(b"\1\2\3\4")
    assert report.show(tmp_path, ["some"], every=False, as_json=False) == 1


def test_what_differs_from_torch_is_told(tmp_path: Path) -> None:
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": torch.ones(2), "b": torch.ones(1)}, path)
    found = torchkeep.inspect(path)
    assert list(beside_torch.differences(path, found)) == []
    torch.save({"a": torch.ones(3), "c": torch.ones(1)}, other)
    assert list(beside_torch.differences(other, found)) == [
        "tensors [('a', ('float32', (3,), (1,))), ('c', ('float32', (1,), (1,)))], "
        "is [('a', ('float32', (2,), (1,))), ('b', ('float32', (1,), (1,)))]",
    ]
    torch.save(torch.nn.Linear(2, 3), other)
    assert list(beside_torch.differences(other, found)) == ["weights_only False, is True"]
    linear = torchkeep.inspect(other)
    torch.save(torch.nn.Linear(2, 4), other)
    assert list(beside_torch.differences(other, linear)) == ["state dict of '' as torch's"]


def test_what_nothing_compares_can_not_be_expected(tmp_path: Path) -> None:
    start(tmp_path / "some")
    with pytest.raises(ValueError, match=r"nothing compares \{'color'\}"):
        expecting(tmp_path / "some" / "file.pt", color="red")
    expecting(tmp_path / "some" / "deep" / "file.pt", role="tensor")
    assert facts_of(tmp_path / "some") == {"deep/file.pt": {"role": "tensor"}}


def test_every_script_is_run_and_nothing_else() -> None:
    scripts = names()
    assert {"lightning", "timm", "stand_ins"} <= set(scripts)
    assert not {"beside_torch", "corpus", "expected", "networks", "report", "test_corpus"} & set(
        scripts
    )
    for name in scripts:
        text = (TESTS / "frameworks" / f"{name}.py").read_text()
        assert "def write(folder: Path) -> None:" in text, name
        assert FACTS_NAME not in text, name
