"""`torchkeep demo`: the whole life of a small model, proven step by step."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchkeep.errors import MissingExtra

NEEDS = ("torch", "torchvision", "sklearn", "PIL")
"""The modules of the extra `demo`."""

DESCRIPTION = """\
Train a small ResNet18 on handwritten digits, kill the training with SIGKILL in
the middle of an epoch, resume it, and prove that the result is bit for bit that
of a run that was never interrupted. Then inspect every file that was written,
evaluate in a fresh process, and transfer the network to other classes.

It needs the extra `demo` (pip install 'torchkeep[demo]'), three minutes on two
cores, and no network."""

EPILOG = """\
The files stay where they are, for you to look at:
  torchkeep inspect torchkeep-demo/...

The exit code is 0 if every claim was proven, else 1."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "demo",
        help="train, kill, resume, and prove that nothing was lost",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("torchkeep-demo"),
        help="where to leave the files (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo, and return 0.

    Raises:
        ProofFailed: a claim is not true.
        MissingExtra: what the demo needs is not installed.
    """
    from importlib.util import find_spec

    from torchkeep.demo import run as run_demo

    missing = [module for module in NEEDS if find_spec(module) is None]
    if missing:
        raise MissingExtra.for_modules("the demo", missing, "demo")
    run_demo(options.out)
    return 0
