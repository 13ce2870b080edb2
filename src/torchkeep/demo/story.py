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
from torchkeep.checkpointing.layout import MODEL_FILE, read_state
from torchkeep.checkpointing.layout.export import export_checkpoint
from torchkeep.checkpointing.runs.checkpoints import Checkpoint
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.demo.child import as_options, events
from torchkeep.demo.digits import Settings, new_network, write_digits
from torchkeep.demo.processes import kill_child_when, run_child
from torchkeep.demo.proofs import Proof, require, show
from torchkeep.errors import SaveRefused
from torchkeep.files import remove_folder
from torchkeep.loading import load_into
from torchkeep.saving import save

MARKER = ".torchkeep-demo"
"""A file in the folder that a demo made, so that the next one may replace its contents."""

_TRAIN = "torchkeep.demo.train_digits"


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
        num_train, num_val = write_digits(self._data, max_per_digit=self.settings.max_per_digit)
        self._say(f"{num_train:,} images to train on, {num_val:,} to validate, in {self._data}")

    def train_without_interruption(self) -> None:
        """Train the reference."""
        self._begin("Train a ResNet18, without interruption: the reference")
        self._say(
            f"a checkpoint every {self.settings.every_steps} steps and after every epoch: model, "
            "optimizer, scheduler, random generators, place in the data"
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
        resumed = [e["step"] for e in self._events("interrupted") if e["event"] == "resumed"]
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
            ("same scheduler and random state", lambda s: [s["objects"]["scheduler"], s["rng"]]),
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
        weights = self._newest("interrupted").path / MODEL_FILE
        options = self._child_options("evaluate", [f"--weights={weights}"])
        self._run_child("torchkeep.demo.evaluate_digits", "evaluate", options)
        result = self._events("evaluate")[-1]
        history = read_state(self._newest("interrupted").path)["progress"]["history"]
        expected = int(history[-1]["num_correct"])
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
        weights = self.out / "files" / "parameters.pth"
        target = self.out / "files" / "digits-5-to-9.safetensors"
        extra = [f"--run={self._run('transfer')}", f"--weights={weights}", f"--save-to={target}"]
        options = self._child_options("transfer", extra)
        self._run_child("torchkeep.demo.transfer_digits", "transfer", options)
        done = self._events("transfer")[-1]
        self._say(
            f"{done['num_loaded']} tensors loaded, {', '.join(done['skipped'])} new; "
            f"{done['num_frozen']} parameters frozen; saved as {target.name}"
        )
        before, after = done["before"], done["after"]
        self._compare(
            "the frozen backbone did not move",
            [before["backbone"], after["backbone"]],
            how="digests before and after",
        )
        self._prove(
            "the new head learnt its task",
            "images it was not trained on",
            f"{done['accuracy']:.1%}",
            holds=before["head"] != after["head"]
            and done["accuracy"] >= self.settings.least_accuracy,
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
        return self.out / "data"

    def _run(self, name: str) -> Path:
        return self.out / "runs" / name

    def _report(self, name: str) -> Path:
        return self.out / "reports" / f"{name}.jsonl"

    def _events(self, name: str) -> list[dict[str, Any]]:
        return events(self._report(name))

    def _newest(self, run: str) -> Checkpoint:
        return newest_whole(self._run(run)).checkpoint

    def _run_child(self, module: str, report: str, options: list[str]) -> None:
        run_child(module, options, self._report(report), self.console)

    def _child_options(self, report: str, options: list[str]) -> list[str]:
        data = [f"--data={self._data}", f"--report={self._report(report)}"]
        return [*options, *data, *as_options(self.settings)]

    def _train_options(self, run: str, *, num_workers: int = 0) -> list[str]:
        options = [f"--run={self._run(run)}", f"--workers={num_workers}"]
        return self._child_options(run, options)

    def _kill_step(self) -> int:
        """Return a step in the middle of a middle epoch, and not right after a checkpoint."""
        steps = [e for e in self._events("reference") if e["event"] == "step"]
        num_steps = sum(1 for event in steps if event["epoch"] == 0)
        step = num_steps * (self.settings.num_epochs // 2) + num_steps // 2
        return step if step % self.settings.every_steps else step + 1

    def _write_files(self, trap: Path) -> list[Path]:
        """Write the same network in the ways that people do, and return the files."""
        checkpoint = self._newest("interrupted").path
        model = new_network()
        load_into(model, checkpoint / MODEL_FILE)
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
