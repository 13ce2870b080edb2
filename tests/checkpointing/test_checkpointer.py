"""The Checkpointer around an ordinary loop."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchkeep.checkpointing import Checkpointer, list_checkpoints
from torchkeep.checkpointing.layout import read_manifest, read_state
from torchkeep.checkpointing.runs import folder as run_folder
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import (
    CheckpointProblem,
    DamagedFile,
    FileUnreadable,
    InexactResume,
    NoCheckpoint,
    SaveRefused,
    WrongArgument,
)


class Run:
    """A small run: 3 steps per epoch."""

    def __init__(self, folder, **options) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.loader = DataLoader(TensorDataset(torch.ones(9, 2)), 3, shuffle=True)
        options = {"durable": False, "keep_last": None, "background": False} | options
        self.ckpt = Checkpointer(folder, model=self.model, optimizer=self.optimizer, **options)

    def train(self, num_epochs: int = 2, stop_at: int | None = None, on_step=None) -> Run:
        with self.ckpt as ckpt:
            for _ in ckpt.epochs(num_epochs):
                for (inputs,) in ckpt.batches(self.loader):
                    if ckpt.num_steps == stop_at:
                        raise KeyboardInterrupt
                    self.optimizer.zero_grad()
                    loss = self.model(inputs).square().mean()
                    loss.backward()
                    self.optimizer.step()
                    ckpt.step(loss=loss.item())
                    if on_step is not None:
                        on_step(ckpt)
                ckpt.metrics(val_loss=-ckpt.num_steps)
        return self


def interrupted(folder, stop_at: int, **options) -> Run:
    run = Run(folder, **options)
    with pytest.raises(KeyboardInterrupt):
        run.train(stop_at=stop_at)
    return run


def names(folder) -> list[str]:
    return [item.path.name for item in list_checkpoints(folder)]


def test_it_saves_after_so_many_steps_and_after_every_epoch(tmp_path):
    Run(tmp_path, every_steps=2).train()
    assert names(tmp_path) == [
        "step-00000002",
        "step-00000003",
        "step-00000004",
        "step-00000006-2",  # the epoch's end, at a step that had been saved already
    ]


def test_what_is_unsaved_is_saved_at_the_end(tmp_path):
    Run(tmp_path, every_epochs=None).train()
    assert names(tmp_path) == ["step-00000006"]
    assert list_checkpoints(tmp_path)[0].epoch == 2
    Run(tmp_path, every_epochs=None).train()
    assert names(tmp_path) == ["step-00000006"]


def test_nothing_is_saved_on_the_way_out_of_an_error(tmp_path):
    interrupted(tmp_path, 2)
    assert names(tmp_path) == []


def test_a_resumed_run_ends_like_one_that_was_never_interrupted(tmp_path):
    expected = Run(tmp_path / "a").train()
    interrupted(tmp_path / "b", 5, every_steps=2)
    found = Run(tmp_path / "b").train()
    assert found.ckpt.resumed_from.step == 4
    assert found.ckpt.history == expected.ckpt.history
    assert [row["epoch"] for row in found.ckpt.history] == [0, 1]
    one, other = (
        read_state(list_checkpoints(tmp_path / name)[-1].path)["objects"] for name in "ab"
    )
    assert fingerprint(one) == fingerprint(other)


def test_what_the_epochs_body_does_first_counts_once(tmp_path):
    run = interrupted(tmp_path, 2, every_steps=1, extra={"log": []})
    del run
    log = []
    run = Run(tmp_path, extra={"log": log})
    with run.ckpt as ckpt:
        for epoch in ckpt.epochs(1):
            log.append(epoch)
            torch.rand(1)
            run.optimizer.param_groups[0]["lr"] *= 2
            for _ in ckpt.batches(run.loader):
                assert log == []
                assert run.optimizer.param_groups[0]["lr"] == 0.1
                ckpt.step()


def test_two_loaders_may_be_walked_side_by_side(tmp_path):
    def walk(folder, stop_at=None):
        torch.manual_seed(0)
        loaders = [DataLoader(range(6), 2, shuffle=True) for _ in range(2)]
        seen = []
        with Checkpointer(folder, extra={"x": 1}, every_steps=1, durable=False) as ckpt:
            for _ in ckpt.epochs(2):
                for pair in zip(*(ckpt.batches(loader) for loader in loaders), strict=True):
                    seen.append([batch.tolist() for batch in pair])
                    ckpt.step()
                    if ckpt.num_steps == stop_at:
                        return seen
        return seen

    whole = walk(tmp_path / "a")
    first = walk(tmp_path / "b", stop_at=4)
    assert first + walk(tmp_path / "b") == whole


# --- Breaking off ------------------------------------------------------------------------------


def ends_like_one_that_was_never_interrupted(tmp_path, folder) -> bool:
    """Go on in `folder` without any reason to doubt, and compare with a run in one go."""
    expected = Run(tmp_path / "expected").train()
    found = Run(folder, resume=True).train()
    assert found.ckpt.inexact == ()
    assert found.ckpt.history == expected.ckpt.history
    digests = [
        fingerprint(read_state(list_checkpoints(path)[-1].path)["objects"])
        for path in (tmp_path / "expected", folder)
    ]
    return digests[0] == digests[1]


def train_by_hand(run: Run, leave) -> None:
    """Train within the run's block, and call `leave` after every step: True is a `break`."""
    for _ in run.ckpt.epochs(2):
        for (inputs,) in run.ckpt.batches(run.loader):
            run.optimizer.zero_grad()
            loss = run.model(inputs).square().mean()
            loss.backward()
            run.optimizer.step()
            run.ckpt.step(loss=loss.item())
            if leave(run.ckpt):
                break
        else:
            run.ckpt.metrics(val_loss=-run.ckpt.num_steps)
            continue
        break


def interrupt(ckpt) -> bool:
    if ckpt.num_steps == 4:
        raise KeyboardInterrupt
    return False


def test_a_run_that_is_interrupted_and_then_saved_goes_on_with_the_rest(tmp_path):
    run = Run(tmp_path / "run")
    with run.ckpt as ckpt:
        with pytest.raises(KeyboardInterrupt):
            train_by_hand(run, interrupt)
        ckpt.save()
    assert list_checkpoints(tmp_path / "run")[-1].batch == 1
    assert ends_like_one_that_was_never_interrupted(tmp_path, tmp_path / "run")


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_a_run_that_breaks_out_of_both_loops_goes_on_with_the_rest(tmp_path, stop_at):
    run = Run(tmp_path / "run")
    with run.ckpt:
        train_by_hand(run, lambda ckpt: ckpt.num_steps == stop_at)
    assert ends_like_one_that_was_never_interrupted(tmp_path, tmp_path / "run")


def test_an_epoch_that_was_broken_off_goes_on_in_the_same_process(tmp_path):
    run = Run(tmp_path)
    with run.ckpt:
        train_by_hand(run, lambda ckpt: ckpt.num_steps == 4)
        train_by_hand(run, lambda ckpt: False)
    assert [row["step"] for row in run.ckpt.history] == [3, 6]


def test_a_break_out_of_the_batches_alone_lets_the_epoch_end(tmp_path):
    run = Run(tmp_path, every_steps=2)
    with run.ckpt as ckpt:
        for _ in ckpt.epochs(2):
            for _ in ckpt.batches(run.loader):
                ckpt.step()
                if ckpt.num_steps % 2 == 0:
                    break
    assert [(item.step, item.epoch) for item in list_checkpoints(tmp_path)] == [(2, 1), (4, 2)]


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_a_save_between_a_batch_and_its_step_says_that_it_is_not_exact(tmp_path):
    run = Run(tmp_path)

    def backward():
        for _ in run.ckpt.epochs(1):
            for (inputs,) in run.ckpt.batches(run.loader):
                run.model(inputs).sum().backward()
                raise KeyboardInterrupt

    with run.ckpt as ckpt:
        with pytest.raises(KeyboardInterrupt):
            backward()
        ckpt.save()
    expected = ("saved between batch 1 of the epoch and its step()",)
    assert list_checkpoints(tmp_path)[-1].inexact == expected


@pytest.mark.parametrize("stop_at", [2, 3, 4])
@pytest.mark.parametrize("place", ["model", "extra"])
def test_gradients_that_no_step_used_count_in_the_next_epoch(tmp_path, place, stop_at):
    def train(folder, stop_at=None):
        run = Run(folder)
        objects = {"model": run.model} if place == "model" else {"extra": {"nets": [run.model]}}
        with Checkpointer(folder, optimizer=run.optimizer, every_steps=1, **objects) as ckpt:
            for _ in ckpt.epochs(4):
                for number, (inputs,) in enumerate(ckpt.batches(run.loader), 1):
                    if ckpt.num_steps == stop_at:
                        raise KeyboardInterrupt
                    run.model(inputs).square().mean().backward()
                    if number % 2 == 0:
                        run.optimizer.step()
                        run.optimizer.zero_grad()
                        ckpt.step()
        return fingerprint(run.model.state_dict()), ckpt.inexact

    expected = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", stop_at)
    assert train(tmp_path / "b") == expected


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_sparse_gradients_that_no_step_used_are_named(tmp_path):
    model = nn.Embedding(9, 2, sparse=True)
    with Checkpointer(tmp_path, model=model) as ckpt:
        for _ in ckpt.epochs(1):
            for batch in ckpt.batches(DataLoader(range(9), 3)):
                model(batch).sum().backward()
    reason = "the sparse gradients of the batches after the last step() can't be kept"
    assert list_checkpoints(tmp_path)[-1].inexact == (reason,)


# --- When a due checkpoint is written ----------------------------------------------------------


def test_what_the_loop_does_after_step_is_in_the_checkpoint(tmp_path):
    def train(folder, stop_at=None):
        run = Run(folder)
        scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)
        with Checkpointer(
            folder, model=run.model, optimizer=run.optimizer, scheduler=scheduler, every_steps=2
        ) as ckpt:
            for _ in ckpt.epochs(2):
                for (inputs,) in ckpt.batches(run.loader):
                    if ckpt.num_steps == stop_at:
                        raise KeyboardInterrupt
                    run.optimizer.zero_grad()
                    run.model(inputs).square().mean().backward()
                    run.optimizer.step()
                    ckpt.step()
                    scheduler.step()
                    torch.rand(1)
        return fingerprint(run.model.state_dict()), scheduler.last_epoch, ckpt.inexact

    expected = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", stop_at=4)
    assert names(tmp_path / "b")[-1] == "step-00000004"
    assert train(tmp_path / "b") == expected == (expected[0], 6, ())


def test_a_due_checkpoint_waits_for_the_next_batch(tmp_path):
    seen = []
    Run(tmp_path, every_steps=1).train(1, on_step=lambda ckpt: seen.append(ckpt.last_saved))
    assert [path and path.name for path in seen] == [None, "step-00000001", "step-00000002"]


def test_a_due_checkpoint_is_written_before_another_pass_begins(tmp_path):
    run = Run(tmp_path, every_steps=1)
    with run.ckpt as ckpt:
        for _ in ckpt.epochs(1):
            for number in range(2):
                for _ in ckpt.batches(run.loader):
                    assert names(tmp_path) == ["step-00000001"] * number
                    ckpt.step()
                    break


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_without_batches_a_due_checkpoint_does_not_wait(tmp_path):
    with Run(tmp_path, every_steps=1).ckpt as ckpt:
        for _ in ckpt.epochs(1):
            ckpt.step()
            assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("every_epochs", [1, None])
def test_what_is_due_when_an_epoch_is_broken_off_is_saved_once(tmp_path, every_epochs):
    run = Run(tmp_path, every_steps=2, every_epochs=every_epochs)
    with run.ckpt as ckpt:
        for _ in ckpt.epochs(1):
            for _ in ckpt.batches(run.loader):
                ckpt.step()
                if ckpt.num_steps == 2:
                    break
    assert [(item.path.name, item.epoch) for item in list_checkpoints(tmp_path)] == [
        ("step-00000002", 1)
    ]


# --- What a run counts -------------------------------------------------------------------------


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    Run(tmp_path).train()
    run = Run(tmp_path)
    with run.ckpt as ckpt:
        assert list(ckpt.epochs(2)) == []
    assert run.ckpt.epoch == 2
    assert run.ckpt.num_steps == 6


def test_the_means_are_those_of_the_epoch_so_far(tmp_path):
    seen = []
    Run(tmp_path).train(1, on_step=lambda ckpt: seen.append((ckpt.num_batches, ckpt.means)))
    losses = [means["loss"] * batches for batches, means in seen]
    assert [batches for batches, _ in seen] == [1, 2, 3]
    assert losses == sorted(losses)


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    Run(tmp_path, keep_last=2, keep_best=("val_loss", "max")).train(5)
    assert names(tmp_path) == ["step-00000003", "step-00000012", "step-00000015"]


@pytest.mark.parametrize("gives_metrics", [True, False])
def test_a_metric_to_keep_the_best_by_has_to_exist(tmp_path, gives_metrics):
    def train(ckpt):
        for _ in ckpt.epochs(1):
            for _ in ckpt.batches([1]):
                ckpt.step(loss=1.0)
            if gives_metrics:
                ckpt.metrics(val_loss=2.0)

    wrong = "keep_best is for 'val_los', and the epoch's metrics are loss, val_loss"
    expected = pytest.raises(CheckpointProblem, match=wrong) if gives_metrics else nullcontext()
    # Without any it may be what was meant, until the end.
    with (
        pytest.warns(UserWarning, match="keep_best is for 'val_los', and no epoch had that"),
        Run(tmp_path, keep_best=("val_los", "min")).ckpt as ckpt,
        expected,
    ):
        train(ckpt)
    assert list_checkpoints(tmp_path)[-1].epoch == 1


def test_the_manifest_says_what_a_person_wants_to_know(tmp_path):
    Run(tmp_path, metadata={"data": "ones", "classes": ("a", "b")}).train(1)
    manifest = read_manifest(tmp_path / "step-00000003")
    assert (manifest["step"], manifest["epoch"], manifest["batch"]) == (3, 1, 0)
    assert manifest["metrics"]["val_loss"] == -3.0
    assert manifest["metrics"]["loss"] > 0
    assert manifest["versions"]["torch"] == str(torch.__version__)
    assert manifest["environment"]["num_threads"] == torch.get_num_threads()
    assert manifest["metadata"] == {"data": "ones", "classes": {"$": "tuple", "items": ["a", "b"]}}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["date"])
    assert manifest["inexact"] == []


# --- Damage ------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_skipped_and_the_run_ends_the_same(tmp_path):
    expected = Run(tmp_path / "a").train()
    interrupted(tmp_path / "b", 5, every_steps=2)
    path = tmp_path / "b" / "step-00000004" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = Run(tmp_path / "b", keep_last=1).train()
    assert found.ckpt.resumed_from.step == 3
    assert [item.problem for item in found.ckpt.skipped] == [
        "model.safetensors: tensor 0.weight differs from what was written"
    ]
    assert found.ckpt.history == expected.ckpt.history
    # Left for whoever wants to look at it, and not counted.
    assert names(tmp_path / "b") == ["step-00000004", "step-00000006"]


def test_a_run_with_nothing_but_damage_does_not_start_from_zero(tmp_path):
    interrupted(tmp_path, 2, every_steps=1)
    for item in list_checkpoints(tmp_path):
        (item.path / "state.safetensors").unlink()
    with pytest.raises(NoCheckpoint, match=r"damaged \(.*state.safetensors is missing"):
        Run(tmp_path).train()


def test_old_checkpoints_stay_if_the_new_one_reads_back_wrong(tmp_path, monkeypatch):
    interrupted(tmp_path, 2, every_steps=1)
    newest = tmp_path / "step-00000002"
    monkeypatch.setattr(
        run_folder, "damage", lambda folder, _: "bits have turned" if folder > newest else ""
    )
    with pytest.raises(CheckpointProblem, match=r"reads back wrong: bits have turned.*No older"):
        Run(tmp_path, keep_last=1).train()
    assert names(tmp_path)[:2] == ["step-00000001", "step-00000002"]


def test_what_interrupted_writes_left_is_removed(tmp_path):
    left = tmp_path / ".step-00000009.torchkeep-tmp-abc"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    Run(tmp_path).train(1)
    assert not left.exists()


# --- Starting ----------------------------------------------------------------------------------


def test_resume_can_be_insisted_on_or_ruled_out(tmp_path):
    with pytest.raises(NoCheckpoint, match="there is no checkpoint"):
        Run(tmp_path, resume=True).train()
    Run(tmp_path, resume=False).train(1)
    with pytest.raises(CheckpointProblem, match="it holds 1 checkpoint already"):
        Run(tmp_path, resume=False).train()
    assert Run(tmp_path, resume=True).train().ckpt.resumed_from.step == 3


def test_another_model_is_refused(tmp_path):
    Run(tmp_path).train(1)
    ckpt = Checkpointer(tmp_path, model=nn.Linear(2, 3), allow_inexact=True)
    with pytest.raises(CheckpointProblem, match="model: the checkpoint is of another model"):
        ckpt.restore()


def test_an_epoch_that_began_more_passes_than_it_does_now_is_refused(tmp_path):
    def train(num_loaders, stop_at=None):
        run = Run(tmp_path, every_steps=1)
        with run.ckpt as ckpt:
            for _ in ckpt.epochs(2):
                passes = [ckpt.batches(run.loader) for _ in range(num_loaders)]
                for _ in zip(*passes, strict=True):
                    if ckpt.num_steps == stop_at:
                        raise KeyboardInterrupt
                    ckpt.step()

    with pytest.raises(KeyboardInterrupt):
        train(2, stop_at=1)
    expected = r"had begun 2 passes over batches\(\) when it was saved, .*epoch began 1 now"
    with pytest.raises(CheckpointProblem, match=expected):
        train(1)
    assert names(tmp_path)[-1] == "step-00000003"


def test_a_place_that_cant_be_written_is_named_as_the_checkpoint(tmp_path, monkeypatch):
    import torchkeep.checkpointing.layout.folder as module

    def refuse(path, **_):
        raise SaveRefused(f"{path}: the disk is full")

    monkeypatch.setattr(module, "atomic_file", refuse)
    with Run(tmp_path).ckpt as ckpt, pytest.raises(SaveRefused) as caught:
        ckpt.save()
    assert caught.value.problem == f"{tmp_path}/step-00000000/model.safetensors: the disk is full"


def test_a_folder_that_cant_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointProblem, match="the run's folder can't be written to"):
        Run(tmp_path / "file").train()


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_an_inexact_checkpoint_is_refused_unless_allowed(tmp_path):
    def train(ckpt):
        for _ in ckpt.epochs(1):
            for _ in ckpt.batches([1, 2, 3]):
                ckpt.step()
                ckpt.save()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Run(tmp_path).ckpt as ckpt:
        train(ckpt)
    with pytest.raises(InexactResume, match=r"can't tell its order.*allow_inexact=True") as caught:
        Run(tmp_path).train()
    assert caught.value.reasons == list_checkpoints(tmp_path)[-1].inexact
    run = Run(tmp_path, allow_inexact=True)
    with run.ckpt as ckpt:
        assert ckpt.inexact == caught.value.reasons
        for _ in ckpt.epochs(1):
            assert list(ckpt.batches([1, 2, 3])) == [2, 3]


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_an_older_checkpoint_that_is_exact_is_offered(tmp_path):
    run = Run(tmp_path)
    with run.ckpt as ckpt:
        exact = ckpt.save()
        batches = ckpt.batches(run.loader)
        next(batches)
        ckpt.save()
    with pytest.raises(InexactResume, match=r"older one that is exact: call restore\(") as caught:
        Run(tmp_path).train()
    assert repr(str(exact)) in caught.value.advice
    ckpt = Run(tmp_path).ckpt
    ckpt.restore(exact)
    with ckpt:
        assert ckpt.inexact == ()
        assert ckpt.resumed_from.path == exact


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_steps_without_batches_are_named_as_inexact(tmp_path):
    with Run(tmp_path).ckpt as ckpt:
        for _ in ckpt.epochs(1):
            ckpt.step()
            path = ckpt.save()
            manifest = read_manifest(path)
    assert manifest["inexact"] == ["the epoch's batches were not taken from batches()"]


def test_what_differs_now_is_a_reason(tmp_path):
    Run(tmp_path).train(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(InexactResume, match=rf"call torch.set_num_threads\({threads}\)"):
            Run(tmp_path).train()
    finally:
        torch.set_num_threads(threads)


def test_objects_that_came_or_went_are_reasons(tmp_path):
    interrupted(tmp_path, 2, every_steps=1, ema=nn.Linear(1, 1))
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(InexactResume) as caught:
        Run(tmp_path, scaler=scaler).train()
    assert caught.value.reasons == (
        "the checkpoint has ema, and this run has not",
        "this run has scaler, and the checkpoint has not",
    )


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_an_older_checkpoint_can_be_gone_back_to(tmp_path):
    interrupted(tmp_path, 5, every_steps=1)
    run = Run(tmp_path)
    with run.ckpt as ckpt:
        found = ckpt.restore(tmp_path / "step-00000002")
        assert (found.step, ckpt.num_steps) == (2, 2)
        path = ckpt.save()
    assert path.name == "step-00000002-2"
    assert list_checkpoints(tmp_path)[-1].path == path  # the newest, though not the furthest


def test_going_back_to_a_damaged_checkpoint_is_refused(tmp_path):
    Run(tmp_path).train(1)
    (tmp_path / "step-00000003" / "manifest.json").write_text("{}")
    with pytest.raises(DamagedFile, match="not the manifest of a checkpoint"):
        Checkpointer(tmp_path).restore(tmp_path / "step-00000003")


# --- One owner ---------------------------------------------------------------------------------


def test_a_second_checkpointer_of_this_process_is_kept_out(tmp_path):
    expected = "this process already writes to this run"
    with Run(tmp_path).ckpt, pytest.raises(CheckpointProblem, match=expected):
        Run(tmp_path).train()
    Run(tmp_path).train(1)


def test_another_process_is_kept_out_until_it_dies(tmp_path):
    program = (
        "import sys, time; from pathlib import Path;"
        "from torchkeep.checkpointing.runs.lock import RunLock;"
        "lock = RunLock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(
                CheckpointProblem, match=rf"process {process.pid} on \S+ writes to this run\. Stop"
            ):
                Run(tmp_path).train()
        finally:
            process.kill()
    Run(tmp_path).train(1)


def test_a_forked_child_does_not_hold_the_run(tmp_path):
    ckpt = Run(tmp_path).ckpt
    ckpt.save()
    child = os.fork()
    if child == 0:  # a loader's worker that outlives its killed parent
        time.sleep(30)
        os._exit(0)
    try:
        ckpt.close()
        Run(tmp_path, resume=True).train(1)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# --- The parts alone ---------------------------------------------------------------------------


def test_save_and_restore_work_without_the_loop(tmp_path):
    run = Run(tmp_path)
    before = {name: item.clone() for name, item in run.model.state_dict().items()}
    run.ckpt.save()
    with torch.no_grad():
        run.model[0].weight.zero_()
    run.ckpt.restore()
    run.ckpt.close()
    assert all(torch.equal(before[name], item) for name, item in run.model.state_dict().items())


def test_the_seed_of_the_run_is_kept(tmp_path):
    Run(tmp_path, seed=11).train(1)
    run = Run(tmp_path)
    with run.ckpt:
        assert run.ckpt.seed == 11


def test_the_lock_and_the_checkpoints_are_all_that_is_left(tmp_path):
    Run(tmp_path).train(1)
    assert sorted(item.name for item in tmp_path.iterdir()) == [".lock", "step-00000003"]
    manifest = json.loads((tmp_path / "step-00000003" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["model.safetensors", "state.safetensors"]


@pytest.mark.parametrize("wait", [True, False])
def test_saves_of_one_step_replace_each_other(tmp_path, wait):
    with Run(tmp_path, keep_last=1, background=True).ckpt as ckpt:
        for number in range(1, 6):
            saved = ckpt.save(wait=wait)
            ckpt.wait()
            (only,) = list_checkpoints(tmp_path)
            assert (only.path, only.serial, only.problem) == (saved, number, "")


# --- Arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"every_steps": 0}, "every_steps is 0"),
        ({"every_epochs": -1}, "every_epochs is -1"),
        ({"keep_last": 0}, "keep_last is 0"),
        ({"every_steps": 2.5}, r"every_steps is 2\.5"),
        ({"keep_best": "val_loss"}, "keep_best is 'val_loss'"),
        ({"keep_best": ("val_loss", "lowest")}, "keep_best is .*lowest"),
        ({"model": {"weight": torch.ones(2)}}, "model is a dict without state_dict"),
        ({"scheduler": 0.1}, "scheduler is a float without state_dict"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_done(tmp_path, options, problem):
    with pytest.raises(WrongArgument, match=problem):
        Checkpointer(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_another_batch_size_is_said_to_wait_for_the_next_epoch(tmp_path):
    interrupted(tmp_path, stop_at=2, every_steps=1)
    run = Run(tmp_path, every_steps=1)
    run.loader = DataLoader(TensorDataset(torch.ones(9, 2)), 1, shuffle=True)
    with pytest.warns(UserWarning, match="batches of 3, as it began; the loader's 1 take effect"):
        run.train()
    assert run.ckpt.num_steps == 3 + 9


def test_two_epochs_without_steps_are_told_of(tmp_path):
    def train() -> None:
        run = Run(tmp_path)
        with run.ckpt as ckpt:
            for _ in ckpt.epochs(2):
                for _ in ckpt.batches(run.loader):
                    pass

    with pytest.warns(UserWarning, match=r"step\(\) was not called"):
        train()


def test_a_restore_that_fails_leaves_the_run_to_others(tmp_path):
    interrupted(tmp_path, 3, every_steps=1)
    other = Checkpointer(tmp_path, model=nn.Linear(7, 7))
    with pytest.raises(CheckpointProblem):
        other.restore()
    found = Run(tmp_path).train()  # nobody holds it
    assert found.ckpt.resumed_from.step == 3


def test_a_run_that_can_not_be_listed_is_left_to_others(tmp_path, monkeypatch):
    interrupted(tmp_path, 3, every_steps=1)

    def fail(*_):
        raise FileUnreadable("the folder can't be read (stale)", path=tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr("torchkeep.checkpointing.runs.folder.list_checkpoints", fail)
        run = Run(tmp_path)
        with pytest.raises(FileUnreadable):
            run.ckpt.restore()
    assert run.train().ckpt.resumed_from.step == 3


def test_what_is_put_into_extra_later_is_saved(tmp_path):
    extra = {}
    run = Run(tmp_path, extra=extra)
    extra["best"] = 0.5
    run.train()
    again = {}
    Run(tmp_path, extra=again).ckpt.restore()
    assert again == {"best": 0.5}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"signals": "SIGTERM"}, "signals is 'SIGTERM'"),
        ({"signals": ["SIGTREM"]}, "signals is"),
        ({"resume": "never"}, "resume is 'never'"),
        ({"resume": 1}, "resume is 1"),
        ({"keep_best": ("loss", "lowest")}, "keep_best is"),
        ({"keep_best": (1, "min")}, "keep_best is"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(tmp_path, options, problem):
    with pytest.raises(WrongArgument, match=re.escape(problem)):
        Run(tmp_path, **options)


@pytest.mark.parametrize("value", [torch.zeros(2), {"deep": [torch.zeros(2)]}, object()])
def test_metadata_that_a_manifest_can_not_hold_is_refused_at_once(tmp_path, value):
    with pytest.raises(SaveRefused, match="metadata/x"):
        Run(tmp_path, metadata={"x": value})


def test_a_world_size_that_is_no_number_counts_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "all")
    Run(tmp_path).train(num_epochs=1)
    assert read_manifest(tmp_path / "step-00000003")["environment"]["world_size"] == 1


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_a_checkpoint_that_reads_back_wrong_takes_no_place_of_a_good_one(tmp_path, monkeypatch):
    """Else the next prune would delete a good one for it."""
    run = Run(tmp_path, keep_last=1, every_epochs=None)
    ckpt = run.ckpt
    first = ckpt.save()
    real = run_folder.damage
    with monkeypatch.context() as patch:
        patch.setattr(
            run_folder, "damage", lambda path, _: "a bit" if path != first else real(path, _)
        )
        ckpt._state.progress.step += 1
        with pytest.raises(CheckpointProblem, match="reads back wrong: a bit"):
            ckpt.save()
    # An inexact one, which does not supersede the first.
    ckpt._state.passes.begin(run.loader, 0, 0)
    monkeypatch.setattr(ckpt._state.passes, "inexact", lambda: ["in the midst of a batch"])
    ckpt._state.progress.step += 1
    ckpt.save()
    ckpt.close()
    assert first.is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_names_that_are_no_text_are_kept(tmp_path):
    """File names may have bytes that are no UTF-8: Python makes half of a surrogate pair of it."""
    name = os.fsdecode(b"data-\xff")
    extra = {"seen": {name: [name]}}
    Run(tmp_path / name, extra=extra, metadata={"data": name}, keep_last=1).train()
    found = {"seen": {}}
    again = Run(tmp_path / name, extra=found, keep_last=1).train(3)
    assert again.ckpt.resumed_from.step == 6
    assert found == extra


def test_a_manifest_is_read_back_in_as_many_pieces_as_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("torchkeep.files.direct._WINDOW_NBYTES", 8192)
    Run(tmp_path, extra={"seen": list(range(9000))}, keep_last=1).train()
    assert names(tmp_path) == ["step-00000006"]


def test_a_frozen_sparse_parameter_is_refused_by_its_name(tmp_path):
    model = nn.Linear(2, 2)
    model.mask = nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)
    ckpt = Checkpointer(tmp_path, model=model)
    ckpt.save(wait=False)
    with pytest.raises(SaveRefused, match=r"mask.*sparse"):
        ckpt.close()
