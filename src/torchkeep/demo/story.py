"""The demo from its first line to its table of proofs. One method per step of the story."""

from __future__ import annotations

import os
import shlex
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from torchkeep.checkpointing import newest_whole
from torchkeep.checkpointing.layout import read_state
from torchkeep.checkpointing.layout.export import export_checkpoint
from torchkeep.checkpointing.runs.checkpoints import Checkpoint
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.demo.child import events
from torchkeep.demo.digits import FIVE, TEN, Settings, write_digits
from torchkeep.demo.processes import kill_child_when, run_child
from torchkeep.demo.proofs import Proof, require, show
from torchkeep.errors import SaveRefused
from torchkeep.files import remove_folder
from torchkeep.loading import open as open_file
from torchkeep.saving import save
from torchkeep.training.classifier import load_classifier
from torchkeep.training.records.history import METRIC
from torchkeep.training.records.names import BEST_FILE

MARKER = ".torchkeep-demo"
"""A file in the folder that a demo made, so that the next one may replace its contents."""

_TRAIN = "torchkeep"
"""The command line, as a child process: `python -m torchkeep train ...`."""


def tell(
    out: str | os.PathLike[str],
    *,
    console: Console | None = None,
    settings: Settings | None = None,
) -> tuple[Proof, ...]:
    """Run the demo; arguments, result and errors are those of `torchkeep.demo.run`."""
    story = Story(Path(out), console or Console(), settings or Settings())
    start = time.monotonic()
    story.introduce()
    story.write_data()
    story.train_without_interruption()
    story.train_and_kill()
    story.resume()
    story.inspect_files()
    story.evaluate_in_a_fresh_process()
    story.transfer()
    story.conclude(time.monotonic() - start)
    return tuple(story.proofs)


@dataclass
class Story:
    """What the steps of the demo share."""

    out: Path
    """The folder for everything that is written."""
    console: Console
    """What to print on."""
    settings: Settings
    """How large the demo is."""
    proofs: list[Proof] = field(default_factory=list)
    """What was claimed and checked so far."""
    num_begun: int = 0
    """How many steps were begun."""

    # --- The steps -----------------------------------------------------------------------------

    def introduce(self) -> None:
        """Say what is coming, and make room for it."""
        make_room(self.out)
        self.console.print("[bold]torchkeep demo[/bold]")
        self._say(
            "A small network is trained, killed, resumed, inspected, loaded and retrained. "
            "Each step is checked; at the end stands what was proven."
        )

    def write_data(self) -> None:
        """Write the digits as an image folder."""
        self._begin("Data: handwritten digits as a folder of PNG files")
        most = self.settings.max_per_digit
        num_train, num_val = write_digits(self._data, TEN, max_per_digit=most)
        write_digits(self._new_data, FIVE, max_per_digit=most)
        self._say(f"{num_train:,} images to train on, {num_val:,} to validate, in {self._data}")

    def train_without_interruption(self) -> None:
        """Train the reference."""
        self._begin("Train a ResNet18, without interruption: the reference")
        self._say(
            f"torchkeep train, with a checkpoint every {self.settings.every_steps} steps and after "
            "every epoch: model, optimizer, random generators, place in the data"
        )
        self._run_child(_TRAIN, "reference", self._train_options("reference"))

    def train_and_kill(self) -> None:
        """Train the same again, with loader workers, and kill it in the middle of an epoch."""
        self._begin("Train the same again, and kill the process (SIGKILL) within an epoch")
        kill_at = self._kill_step()
        status = kill_child_when(
            lambda event: event["event"] == "step" and event["step"] >= kill_at,
            _TRAIN,
            self._train_options("interrupted", num_workers=2),
            self._report("interrupted"),
            self.console,
        )
        last = [event for event in self._events("interrupted") if event["event"] == "step"][-1]
        kept = self._newest("interrupted")
        self._say(
            f"killed after step {last['step']} (epoch {last['epoch'] + 1}, batch {last['batch']}); "
            f"the newest whole checkpoint is {kept.path.name}"
        )
        self._prove(
            "killed by SIGKILL within an epoch",
            "exit status, steps reported",
            f"{status}, step {last['step']}, saved {kept.step}",
            holds=status == -signal.SIGKILL and last["batch"] > 0 and kept.step < last["step"],
        )

    def resume(self) -> None:
        """Give the same command again, and compare both runs."""
        self._begin("Resume: the same command again")
        kept = self._newest("interrupted")
        self._run_child(_TRAIN, "interrupted", self._train_options("interrupted", num_workers=2))
        begun = [e["step"] for e in self._events("interrupted") if e["event"] == "begun"]
        resumed = begun[1:]
        self._prove(
            "resumed from the last checkpoint",
            "the new process's report",
            f"went on after step {resumed[0] if resumed else 0}",
            holds=resumed == [kept.step],
        )
        states = [read_state(self._newest(run).path) for run in ("reference", "interrupted")]
        for claim, part in (
            ("same parameters and buffers", lambda state: state["objects"]["model"]),
            ("same optimizer state", lambda state: state["objects"]["optimizer"]),
            ("same random generators and data", lambda state: [state["rng"], state["data"]]),
            ("same loss and accuracy per epoch", lambda state: state["progress"]),
        ):
            self._compare(claim, [fingerprint(part(state)) for state in states])

    def inspect_files(self) -> None:
        """Say what every file is, in a process that loads no PyTorch."""
        self._begin("Inspect every file that was written; nothing in them is executed")
        trap = self.out / "files" / "EXECUTED"
        files = [*self._write_files(trap), *sorted(self._newest("reference").path.glob("*.safe*"))]
        options = [f"--report={self._report('inspect')}", "--", *map(str, files)]
        self._run_child("torchkeep.demo.inspect_files", "inspect", options)
        found = self._events("inspect")
        for row in found:
            path = Path(row["path"])
            self._say(Text(path.name, "bold"))
            self._say(f"{row['summary']} Safety: {row['verdict']}.", indent=6)
        self._prove(
            "inspection runs nothing in a file",
            "a trap file; PyTorch not loaded",
            f"{len(found)} files, {'sprung' if trap.exists() else 'not sprung'}",
            holds=len(found) == len(files)
            and not trap.exists()
            and not any(row["torch_loaded"] for row in found),
        )
        roles = {Path(row["path"]).name: row["role"] for row in found}
        right = [name for name, role in _EXPECTED.items() if roles.get(name) == role]
        self._prove(
            "every kind of file is recognised",
            "what the inspection says",
            f"{len(right)} of {len(_EXPECTED)}",
            holds=len(right) == len(_EXPECTED),
        )

    def evaluate_in_a_fresh_process(self) -> None:
        """Load the parameters elsewhere, and expect the same answers."""
        self._begin("Load the parameters in a fresh process and evaluate")
        options = [f"--weights={self._best('interrupted')}", f"--data={self._data}"]
        options.append(f"--report={self._report('evaluate')}")
        self._run_child("torchkeep.demo.evaluate_digits", "evaluate", options)
        result = self._events("evaluate")[-1]
        history = read_state(self._newest("interrupted").path)["progress"]["history"]
        expected = round(max(row[METRIC] for row in history) * result["num_samples"])
        accuracy = result["num_correct"] / result["num_samples"]
        self._say(
            f"{result['num_loaded']} tensors loaded; {result['num_correct']} of "
            f"{result['num_samples']} digits right ({accuracy:.1%})"
        )
        self._prove(
            "every parameter loaded and compared",
            "bits in memory and in the file",
            f"{result['coverage']:.0%} of the parameters",
            holds=result["num_proven"] == result["num_loaded"] and result["coverage"] == 1.0,
        )
        self._prove(
            "same accuracy in a fresh process",
            "images right after training, loading",
            f"{expected} and {result['num_correct']}",
            holds=result["num_correct"] == expected,
        )
        self._prove(
            "the network is good",
            "images it was not trained on",
            f"{accuracy:.1%}",
            holds=accuracy >= self.settings.least_accuracy,
        )

    def transfer(self) -> None:
        """Retrain for the digits 5 to 9."""
        self._begin("Transfer to a new task: the digits 5 to 9, with a new head")
        weights = self._best("interrupted")
        options = self._options("transfer", self._new_data, epochs=self.settings.transfer_epochs)
        options += [f"--weights={weights}", "--freeze=all-but-head", "--lr=0.01"]
        self._run_child(_TRAIN, "transfer", options)
        best = self._best("transfer")
        parts = [_parts(path) for path in (weights, best)]
        self._compare(
            "the frozen backbone did not move",
            [backbone for backbone, _ in parts],
            how="digests before and after",
        )
        history = read_state(self._newest("transfer").path)["progress"]["history"]
        accuracy = max(row[METRIC] for row in history)
        self._prove(
            "the new head learnt its task",
            "images it was not trained on",
            f"{accuracy:.1%}",
            holds=parts[0][1] != parts[1][1] and accuracy >= self.settings.least_accuracy,
        )

    def conclude(self, duration_s: float) -> None:
        """Show the table, and fail if a claim does."""
        self._begin("What was proven")
        show(self.proofs, self.console)
        self._say(f"{duration_s:.0f} seconds. Everything is in {self.out} for you to look at:")
        # On one line, however long, so that it can be pasted.
        path = shlex.quote(str(self.out / "files" / "training-checkpoint.pth"))
        self.console.print(Text(f"   torchkeep inspect {path}"), soft_wrap=True)
        require(self.proofs)

    # --- What they are made of -----------------------------------------------------------------

    @property
    def _data(self) -> Path:
        return self.out / "data" / "digits"

    @property
    def _new_data(self) -> Path:
        return self.out / "data" / "five-to-nine"

    def _run(self, name: str) -> Path:
        return self.out / "runs" / name

    def _best(self, run: str) -> Path:
        return self._run(run) / BEST_FILE

    def _report(self, name: str) -> Path:
        return self.out / "reports" / f"{name}.jsonl"

    def _events(self, name: str) -> list[dict[str, Any]]:
        return events(self._report(name))

    def _newest(self, run: str) -> Checkpoint:
        return newest_whole(self._run(run)).checkpoint

    def _run_child(self, module: str, report: str, options: list[str]) -> None:
        run_child(module, options, self._report(report), self.console)

    def _options(self, run: str, data: Path, *, epochs: int) -> list[str]:
        """Return the words of a `torchkeep train`."""
        settings = self.settings
        return [
            *("train", str(data), f"--out={self._run(run)}", f"--events={self._report(run)}"),
            *(f"--epochs={epochs}", f"--batch-size={settings.batch_size}"),
            *(f"--seed={settings.seed}", f"--threads={settings.num_threads}", "--deterministic"),
            f"--every-steps={settings.every_steps}",
        ]

    def _train_options(self, run: str, *, num_workers: int = 0) -> list[str]:
        options = self._options(run, self._data, epochs=self.settings.num_epochs)
        options += ["--arch=torchvision/resnet18", "--weights=none", f"--size={self.settings.size}"]
        return [*options, "--lr=0.002", "--warmup-epochs=1", f"--workers={num_workers}"]

    def _kill_step(self) -> int:
        """Return a step in the middle of a middle epoch, and not right after a checkpoint."""
        steps = [e for e in self._events("reference") if e["event"] == "step"]
        num_steps = sum(1 for event in steps if event["epoch"] == 0)
        step = num_steps * (self.settings.num_epochs // 2) + num_steps // 2
        return step if step % self.settings.every_steps else step + 1

    def _write_files(self, trap: Path) -> list[Path]:
        """Write the same network in the ways that people do, and return the files."""
        checkpoint = self._newest("interrupted").path
        model, _ = load_classifier(self._best("interrupted"))
        folder = trap.parent
        save(model, folder / "parameters.pth")
        save(model, folder / "parameters.safetensors")
        export_checkpoint(checkpoint, folder / "training-checkpoint.pth")
        torch.save(model, folder / "whole-model.pth")
        torch.save({"state_dict": model.state_dict(), "note": _Trap(trap)}, folder / "trap.pth")
        return [folder / name for name in _EXPECTED]

    def _begin(self, title: str) -> None:
        number = str(self.num_begun)
        self.console.print()
        self.console.print(Text.assemble((number, "bold cyan"), "  ", (title, "bold")))
        self.num_begun += 1

    def _say(self, text: str | Text, indent: int = 3) -> None:
        text = Text(text) if isinstance(text, str) else text  # no markup: it may hold any path
        for line in text.wrap(self.console, max(self.console.width - indent, 1)):
            line.rstrip()
            self.console.print(Text.assemble(" " * indent, line), soft_wrap=True)

    def _prove(self, claim: str, how: str, result: str, *, holds: bool) -> None:
        self.proofs.append(Proof(claim, how, result, holds))

    def _compare(self, claim: str, digests: list[str], how: str = "digests of both runs") -> None:
        one, other = (digest[:8] for digest in digests)
        result = f"{one} = {other}" if digests[0] == digests[1] else f"{one} is not {other}"
        self._prove(claim, how, result, holds=digests[0] == digests[1])


def _parts(path: Path) -> tuple[str, str]:
    """Return the digests of a network without its head, and of the head."""
    with open_file(path) as file:
        tensors = {name: file[name] for name in sorted(file)}
    head = {name: item for name, item in tensors.items() if name.startswith("fc.")}
    rest = {name: item for name, item in tensors.items() if name not in head}
    return fingerprint(rest), fingerprint(head)


_EXPECTED = {
    "parameters.pth": "state_dict",
    "parameters.safetensors": "state_dict",
    "training-checkpoint.pth": "checkpoint",
    "whole-model.pth": "module",
    "trap.pth": "checkpoint",
}
"""The files that the demo writes beside its runs, and what each is."""


class _Trap:
    """Leaves a file behind when it is unpickled, as a malicious file would do worse."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def make_room(out: Path) -> None:
    """Make the folder; empty it of what an earlier demo left.

    Raises:
        SaveRefused: it holds something that no demo wrote.
    """
    parts = ("data", "runs", "reports", "files")
    there = {item.name for item in out.iterdir()} if out.is_dir() else set()
    if out.exists() and (not out.is_dir() or (there and MARKER not in there)):
        raise SaveRefused(
            f"{out}: this was not made by a demo, and nothing in it is touched",
            advice="Choose another folder with --out.",
        )
    for name in parts:
        if name in there:
            remove_folder(out / name)
    for name in parts:
        (out / name).mkdir(parents=True)
    (out / MARKER).write_text("Made by `torchkeep demo`, which may replace what is in here.\n")
