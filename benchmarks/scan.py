"""Which attacks are seen, and which honest files are suspected: torchkeep and other scanners.

    python benchmarks/scan.py                                 the corpus of tests/attacks
    python benchmarks/scan.py --benign DIR                    and honest files of your own
    pip install picklescan modelscan fickling                 to have somebody to compare with

A scanner has seen an attack if it says anything but that the file is fine, an error included. An
honest file is suspected if it is called worse than in need of trust. Each file is scanned in a
process of its own, for ten seconds at the most: some of these files are made to take for ever.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

Scanner = Callable[[Path], str]
"""Returns `fine`, `trust`, or a worse word for a file."""
LIMIT_S = 10


def torchkeep(path: Path) -> str:
    from torchkeep.identify.scan import scan

    (found,) = scan(path)
    return {"data-only": "fine", "needs-trust": "trust"}.get(found.verdict, found.verdict)


def picklescan(path: Path) -> str:
    scanner = importlib.import_module("picklescan.scanner")
    found = scanner.scan_file_path(str(path))
    if found.issues_count or found.scan_err:
        return "bad"
    return "trust" if found.suspicious_count else "fine"


def modelscan(path: Path) -> str:
    scanner = importlib.import_module("modelscan.modelscan").ModelScan()
    found = scanner.scan(str(path))
    return "bad" if found["summary"]["total_issues"] or found["errors"] else "fine"


def fickling(path: Path) -> str:
    fickle = importlib.import_module("fickling.fickle")
    analysis = importlib.import_module("fickling.analysis")
    with path.open("rb") as file:
        stacked = fickle.StackedPickle.load(file)
    worst = max(analysis.check_safety(pickled).severity for pickled in stacked)
    return "bad" if worst > analysis.Severity.LIKELY_SAFE else "fine"


SCANNERS: tuple[Scanner, ...] = (torchkeep, picklescan, modelscan, fickling)


def in_child(scanner: Scanner, path: Path, results: multiprocessing.SimpleQueue[str]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with Path(os.devnull).open("w") as null:
        sys.stdout = sys.stderr = null
        try:
            results.put(scanner(path))
        except BaseException:
            results.put("error")


def ask(scanner: Scanner, path: Path) -> str:
    """Return what a scanner says of a file."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=in_child, args=(scanner, path, results))
    child.start()
    child.join(LIMIT_S)
    if child.is_alive():
        child.kill()
        child.join()
        return "no answer"
    return results.get() if not results.empty() else "crash"


def write_attacks(folder: Path) -> list[Path]:
    """Write the corpus and return its files."""
    from attacks.corpus import CORPUS

    paths = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, attack in enumerate(CORPUS):
            paths.append(folder / attack.file_name)
            paths[-1].write_bytes(attack.make(f"m{number}"))
    return paths


def write_honest(folder: Path) -> list[Path]:
    """Write what torch and safetensors write, in all forms that the tests know."""
    from formats.samples import SAMPLES

    paths = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, sample in enumerate(SAMPLES):
            path = folder / f"{number}.pth"
            sample.write(path)
            paths += [path] if path.is_file() else []
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--benign", type=Path, metavar="DIR", help="honest files to scan as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        attacks, honest = Path(name, "attacks"), Path(name, "honest")
        attacks.mkdir()
        honest.mkdir()
        bad, good = write_attacks(attacks), write_honest(honest)
        if options.benign:
            good += sorted(path for path in options.benign.rglob("*") if path.is_file())
        print(f"{len(bad)} attacks, {len(good)} honest files\n")
        print(f"{'':12}{'attacks seen':>16}{'suspected':>13}{'no answer':>12}{'ms per file':>14}")
        for scanner in SCANNERS:
            if importlib.util.find_spec(scanner.__name__) is None:
                print(f"{scanner.__name__:12}{'not installed':>16}")
                continue
            report(scanner, bad, good)


def report(scanner: Scanner, bad: list[Path], good: list[Path]) -> None:
    if scanner is torchkeep:
        importlib.import_module("torchkeep.identify.scan")
    start = time.perf_counter()
    on_bad = Counter(ask(scanner, path) for path in bad)
    on_good = Counter(ask(scanner, path) for path in good)
    elapsed_ms = 1000 * (time.perf_counter() - start) / (len(bad) + len(good))
    seen = 1 - on_bad["fine"] / len(bad)
    suspected = 1 - (on_good["fine"] + on_good["trust"]) / len(good)
    print(
        f"{scanner.__name__:12}{seen:>16.1%}{suspected:>13.1%}"
        f"{on_bad['no answer'] + on_good['no answer']:>12}{elapsed_ms:>14.1f}"
    )


if __name__ == "__main__":
    main()
