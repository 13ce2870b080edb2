"""The corpus of attacks: none is called harmless, and none gets anything to run."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attacks.attack import CLASSES, Attack
from attacks.corpus import CORPUS
from effort import million_turns
from torchkeep.cli import main


@dataclass(frozen=True)
class Written:
    """The corpus on disk, and what a child process made of it."""

    folder: Path
    markers: dict[str, str]
    reports: dict[str, dict[str, Any]]
    nbytes_used: int

    def path(self, attack: Attack) -> Path:
        return self.folder / attack.file_name


# A child process that scans each file, and is told by the interpreter of everything that happens.
WATCHED = """
import codecs, importlib, json, pathlib, pkgutil, sys, time
import bz2, heapq, lzma, tarfile, zlib  # what Python or a reader loads when it needs it
import torchkeep.formats, torchkeep.identify, torchkeep.pickles
from torchkeep.identify.scan import scan

for package in (torchkeep.formats, torchkeep.identify, torchkeep.pickles):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for name in ("ascii", "cp437", "latin-1", "raw-unicode-escape", "utf-16", "utf-16-le", "utf-8-sig"):
    codecs.lookup(name)
paths = sys.stdin.read().splitlines()
known = set(paths)
events = []

def hook(event, args):
    is_read = event == "open" and str(args[0]) in known and not args[2] & 3
    if not is_read and event not in ("array.__new__", "builtins.id"):
        events.append(f"{event} {args!r}"[:200])

sys.addaudithook(hook)
for path in paths:
    start = time.process_time()
    (found,) = scan(path)
    seconds = time.process_time() - start
    seen, events[:] = list(events), []
    print(json.dumps({**found.to_json(), "events": seen, "seconds": seconds}))
    events.clear()
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
print(json.dumps(sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))))
"""


def watch(paths: list[Path], program: str = WATCHED, cwd: Path | None = None) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("attacks")
    markers = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says that names stand twice: they are meant to
        for number, attack in enumerate(CORPUS):
            markers[attack.name] = f"m{number}"
            (folder / attack.file_name).write_bytes(attack.make(f"m{number}"))
    *reports, nbytes = watch([folder / attack.file_name for attack in CORPUS], cwd=folder)
    by_name = {attack.name: report for attack, report in zip(CORPUS, reports, strict=True)}
    return Written(folder, markers, by_name, nbytes)


# --- The corpus itself ---------------------------------------------------------------------------


def test_every_class_of_attacks_is_there_in_several_variants() -> None:
    counts = Counter(attack.kind for attack in CORPUS)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) >= 3
    assert len(CORPUS) >= 700


def test_every_attack_has_a_name_and_a_file_of_its_own() -> None:
    assert len({attack.name for attack in CORPUS}) == len(CORPUS)
    assert len({attack.file_name.casefold() for attack in CORPUS}) == len(CORPUS)


LOADERS = {
    "pickle": (  # what takes long to import is there before the children part
        "import pickle, numpy.f2py, numpy.testing\n"
        "load = lambda path: pickle.load(open(path, 'rb'))\n"
    ),
    "stacked": (
        "import pickle\n"
        "def load(path):\n"
        "    with open(path, 'rb') as file:\n"
        "        while True:\n"
        "            pickle.load(file)\n"
    ),
    "numpy": "import numpy\nload = lambda path: numpy.load(path, allow_pickle=True)\n",
    "torch": "import torch\nload = lambda path: torch.load(path, weights_only=False)\n",
    "torch-pickle": "import pickle, torch\nload = lambda path: pickle.load(open(path, 'rb'))\n",
}

# Each load is a child of its own, since some payloads replace or end their process.
PROOF = """
import os, sys, warnings
warnings.simplefilter("ignore")
for path in sys.stdin.read().splitlines():
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        try:
            load(path)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("loader", LOADERS)
def test_the_payloads_are_real(loader: str, written: Written) -> None:
    attacks = [attack for attack in CORPUS if attack.proof == loader]
    assert attacks
    watch([written.path(attack) for attack in attacks], LOADERS[loader] + PROOF, written.folder)
    markers = [written.folder / written.markers[attack.name] for attack in attacks]
    duds = [a.name for a, marker in zip(attacks, markers, strict=True) if not marker.exists()]
    for marker in markers:
        marker.unlink(missing_ok=True)
    assert "; ".join(duds) == ""


# --- What torchkeep makes of it ------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_an_attack_gets_the_verdict_that_it_deserves(kind: str, written: Written) -> None:
    wanted = {attack.name: attack.verdict for attack in CORPUS if attack.kind == kind}
    found = {name: written.reports[name]["verdict"] for name in wanted}
    assert found == wanted


def test_no_attack_is_called_data_only(written: Written) -> None:
    assert "data-only" not in {report["verdict"] for report in written.reports.values()}
    assert all(report["findings"] for report in written.reports.values())


def test_scanning_imports_runs_writes_and_connects_to_nothing(written: Written) -> None:
    events = {name: report["events"] for name, report in written.reports.items()}
    assert {name: seen for name, seen in events.items() if seen} == {}
    files = {attack.file_name for attack in CORPUS}
    assert {path.name for path in written.folder.iterdir()} == files


def test_the_watch_sees_what_it_watches_for(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"].")
    broken = WATCHED.replace("    (found,)", "    import pstats; open('m', 'w')\n    (found,)")
    report, _ = watch([path], broken, tmp_path)
    assert any(event.startswith("import ('pstats'") for event in report["events"])
    assert any(event.startswith("open ('m'") for event in report["events"])


def test_no_attack_takes_long_or_much_memory(written: Written) -> None:
    most = 150 * million_turns()
    slow = {name: r["seconds"] for name, r in written.reports.items() if r["seconds"] > most}
    assert slow == {}
    assert written.nbytes_used < 400_000_000


def test_the_command_line_exits_with_13_for_each(written: Written, capsys: Any) -> None:
    codes = {attack.name: main(["scan", str(written.path(attack))]) for attack in CORPUS}
    capsys.readouterr()
    assert {name: code for name, code in codes.items() if code != 13} == {}


def test_inspecting_an_attack_is_no_bug(written: Written, capsys: Any) -> None:
    codes = {
        attack.name: main(["inspect", "--json", str(written.path(attack))]) for attack in CORPUS
    }
    capsys.readouterr()
    assert {name: code for name, code in codes.items() if code == 70} == {}
