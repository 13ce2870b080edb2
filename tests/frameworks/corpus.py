"""Write benign files with the real frameworks, and see what torchkeep makes of them.

    python tests/frameworks/corpus.py --out DIR [NAME ...]    write the files
    python tests/frameworks/corpus.py --report DIR [NAME ...] inspect what was written

Each script of this folder runs in a process of its own, with nothing of this folder in the way of
the frameworks' own names (a script is called `lightning.py` since that is what it uses). A script
whose framework is not installed is skipped and named. `requirements.txt` lists them all.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
NOT_SCRIPTS = frozenset({"beside_torch", "corpus", "expected", "networks", "report", "__init__"})
SKIPPED = 77
"""The exit code of a script whose framework is missing; automake's convention."""
TIMEOUT_S = 900


def names() -> list[str]:
    """Return the names of all scripts."""
    scripts = (path.stem for path in HERE.glob("*.py"))
    return sorted(name for name in scripts if name not in NOT_SCRIPTS and "test" not in name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="scripts to run; all, if none is named")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="write the files under this folder")
    where.add_argument("--report", type=Path, metavar="DIR", help="inspect what lies there")
    where.add_argument("--write-one", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--torch", action="store_true", help="compare with torch.load as well")
    parser.add_argument("--all", action="store_true", help="the table shows every file")
    parser.add_argument("--json", action="store_true", help="the report as JSON lines")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names()):
        parser.error(f"no such script: {', '.join(sorted(unknown))}")
    if arguments.write_one:
        return write_one(arguments.names[0], arguments.write_one)
    chosen = arguments.names or names()
    if arguments.report:
        sys.path.append(str(TESTS))
        from frameworks import report

        return report.show(
            arguments.report,
            chosen,
            every=arguments.all,
            as_json=arguments.json,
            beside_torch=arguments.torch,
        )
    return write_all(chosen, arguments.out)


def write_all(chosen: list[str], out: Path) -> int:
    """Run each script; return 1 if one of them failed."""
    failed = False
    for name in chosen:
        folder = (out / name).absolute()
        shutil.rmtree(folder, ignore_errors=True)
        code, text = _run(name, folder)
        if code == SKIPPED:
            shutil.rmtree(folder)
            print(f"{name}: skipped, {text.strip().splitlines()[-1]}")
        elif code:
            failed = True
            print(f"{name}: FAILED\n{text[-2000:]}")
        else:
            print(f"{name}: {sum(path.is_file() for path in folder.rglob('*')) - 1} files")
    return int(failed)


def _run(name: str, folder: Path) -> tuple[int, str]:
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
    }
    with tempfile.TemporaryDirectory() as scratch:  # trainers leave logs where they are run
        environment |= {"HOME": scratch, "YOLO_CONFIG_DIR": scratch}
        command = [sys.executable, "-P", str(HERE / "corpus.py"), "--write-one", str(folder), name]
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return 1, f"it took longer than {TIMEOUT_S} s"
    return done.returncode, done.stdout


def write_one(name: str, folder: Path) -> int:
    """Run one script in this process."""
    sys.path.append(str(TESTS))
    from frameworks import expected

    expected.start(folder)
    try:
        importlib.import_module(f"frameworks.{name}").write(folder)
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed")
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
