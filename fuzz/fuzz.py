"""Coverage-guided fuzzing of the pickle machine and of every reader, with atheris.

    python fuzz/fuzz.py TARGET [--seconds 600] [--corpus DIR]
    python fuzz/fuzz.py --list

A target gets bytes, takes them for a file of its kind, and may answer in two ways: with a
description whose parts fit each other, or with a `FileProblem`. Anything else is a crash, which
libFuzzer writes to a file; so are more than five seconds and more than 1 GB for one input.
`make fuzz` runs all targets one after the other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["torchkeep"]):
    from targets import TARGETS, import_readers

    import_readers()

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz one reader of torchkeep.")
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list or options.target is None:
        print("\n".join(sorted(TARGETS)))
        return
    corpus = options.corpus / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={options.seconds}",
        "-timeout=5",
        "-rss_limit_mb=1024",
        "-max_len=65536",
        "-print_final_stats=1",
        f"-artifact_prefix={options.corpus}/crash-{options.target}-",
        "-verbosity=0",
    ]
    atheris.Setup(arguments, TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
