"""What must be true of a run's folder, whatever was done to the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crash.run import Kind, Log, Trainee
from torchkeep.checkpointing import list_checkpoints, newest_whole
from torchkeep.formats.own.manifest import OWN_FILES, checkpoint_step


@dataclass(frozen=True)
class Verdict:
    """What a folder was found to hold."""

    step: int
    """The step that a new run went on from; 0 for none."""
    last_done: int
    """The last one that the run had been told to be written."""
    num_temporaries: int
    """Temporaries that lay in the folder before a new run opened it."""
    damaged: tuple[str, ...]
    """The names of damaged checkpoints, newest first."""

    @property
    def outcome(self) -> str:
        """Say in a word which checkpoint was found."""
        if not self.step:
            return "nothing was saved yet"
        return "the one in the making" if self.step > self.last_done else "the last written"


@dataclass(frozen=True)
class Told:
    """What a run's log says."""

    contents: dict[int, set[str]]
    """What the checkpoint of each step has to hold: one content, however often it was made."""
    last_done: int
    """The newest step of which a checkpoint was written; 0 for none."""


def read_log(path: str | Path) -> Told:
    """Return what a run told. A last line without an end was never told."""
    log = Path(path)
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    contents: dict[int, set[str]] = {}
    last_done = 0
    for line in lines:
        what, step, *content = line.split()
        if what == "announced":
            contents.setdefault(int(step), set()).update(content)
        else:
            last_done = max(last_done, int(step))
    return Told(contents, last_done)


def judge(
    folder: str | Path,
    log: str | Path,
    *,
    width: int = 96,
    kind: Kind = "folder",
    goes_on: bool = True,
    may_be_damaged: bool = False,
) -> Verdict:
    """Open the run as its user would after a crash, and check all that was promised.

    Args:
        folder: the run's folder.
        log: what the run told.
        width: that of the run's model.
        kind: what its checkpoints are.
        goes_on: let the new run make a step and save it, and check what is there then.
        may_be_damaged: whether an older checkpoint may be damaged, and be named so.
    """
    folder = Path(folder)
    told = read_log(log)
    before = _names(folder)
    found = list_checkpoints(folder)
    trainee = Trainee(width, kind)
    with trainee.checkpointer(folder, background=False) as ckpt:
        step = ckpt.resumed_from.step if ckpt.resumed_from else 0
        damaged = [item.path.name for item in (*ckpt.skipped, *found) if item.problem]
        verdict = Verdict(
            step, told.last_done, _num_temporaries(before), tuple(dict.fromkeys(damaged))
        )
        where = f"{verdict}, {before}"
        assert step or not found, f"it began anew beside checkpoints: {where}"
        assert step >= told.last_done, f"a written checkpoint is gone: {where}"
        assert ckpt.num_steps == step, where
        if step:
            assert told.contents[step] == {trainee.content()}, f"other content: {where}"
        assert may_be_damaged or not verdict.damaged, f"it is damaged: {where}"
        assert not _num_temporaries(_names(folder)), f"temporaries stay: {_names(folder)}"
        _check_whole(folder)
        if goes_on:
            _go_on(trainee, ckpt, folder, log)
    return verdict


def _go_on(trainee: Trainee, ckpt, folder: Path, log: str | Path) -> None:
    step = ckpt.num_steps + 1
    for _ in ckpt.epochs(1_000_000):
        for (inputs,) in ckpt.batches(trainee.loader):
            trainee.step(inputs)
            with Log(log) as told:
                told.announce(step, trainee.content())
                ckpt.step()
                told.done(ckpt.save())
            break
        if ckpt.num_steps == step:  # the epoch may have had no batch left
            break
    skipped = {item.path for item in ckpt.skipped}
    found = list_checkpoints(folder)
    whole = [item for item in found if not item.problem and item.path not in skipped]
    assert [item.step for item in whole] == [step], f"the old ones stay: {_names(folder)}"
    assert newest_whole(folder).checkpoint.step == step


def _check_whole(folder: Path) -> None:
    """Check that nothing lies in the folder but checkpoints, and in those nothing else."""
    for item in folder.iterdir():
        if item.name == ".lock":
            continue
        assert checkpoint_step(item) is not None, f"{item.name} stays"
        if item.is_dir():
            others = {file.name for file in item.iterdir()} - set(OWN_FILES)
            assert not others, f"{others} stay in {item.name}"


def _names(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))


def _num_temporaries(names: list[str]) -> int:
    return sum("torchkeep-tmp" in name.rsplit("/", 1)[-1] for name in names)
