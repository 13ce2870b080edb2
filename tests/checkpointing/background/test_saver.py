"""Checkpoints that are written while the loop goes on are those of the step that asked for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchkeep.checkpointing import Checkpointer, list_checkpoints
from torchkeep.checkpointing.background import arena, saver
from torchkeep.checkpointing.background.thread import Background
from torchkeep.checkpointing.layout import read_state
from torchkeep.checkpointing.preemption import SignalWatch
from torchkeep.checkpointing.runs import folder as run_folder
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import EXIT_PREEMPTED, Preempted, SaveRefused, TrainingDiverged


class Run:
    """Three steps per epoch of a model with a parameter that is worth to be copied later."""

    def __init__(self, folder, **options) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 512), nn.BatchNorm1d(512), nn.Linear(512, 64))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.loader = DataLoader(TensorDataset(torch.randn(12, 64)), 4, shuffle=True)
        options = {"durable": False, "keep_last": None, "every_steps": 1} | options
        self.ckpt = Checkpointer(folder, model=self.model, optimizer=self.optimizer, **options)

    def train(self, num_epochs: int = 2, on_step=None, after_step=None) -> Run:
        with self.ckpt as ckpt:
            for _ in ckpt.epochs(num_epochs):
                for (inputs,) in ckpt.batches(self.loader):
                    if on_step is not None:
                        on_step(self)
                    self.optimizer.zero_grad()
                    loss = self.model(inputs).square().mean()
                    loss.backward()
                    self.optimizer.step()
                    ckpt.step(loss=loss.item())
                    if after_step is not None:
                        after_step(self)
        return self


class Late:
    """A writer that begins as late as it may, so that a test does not depend on who is quicker."""

    is_busy = False

    def __init__(self) -> None:
        self.job = None

    def start(self, job) -> None:
        self.wait()
        self.job = job

    def wait(self) -> None:
        job, self.job = self.job, None
        if job is not None:
            job()

    def check(self) -> None:
        self.wait()

    close = wait


def states(folder) -> dict[str, str]:
    """Return the digest of each checkpoint's state by name, but for what differs by nature."""
    return {item.path.name: fingerprint(read_state(item.path)) for item in list_checkpoints(folder)}


def test_they_are_the_same_as_those_that_the_loop_waits_for(tmp_path):
    Run(tmp_path / "waiting", background=False).train()
    Run(tmp_path / "beside").train()
    expected = states(tmp_path / "waiting")
    assert len(expected) == 6
    assert states(tmp_path / "beside") == expected


def test_they_are_written_by_another_thread(tmp_path, monkeypatch):
    threads = set()
    write = run_folder.write_part

    def noted(*args, **options):
        threads.add(threading.current_thread().name)
        return write(*args, **options)

    monkeypatch.setattr(run_folder, "write_part", noted)
    Run(tmp_path / "a").train()
    assert all(name.startswith("torchkeep-save") for name in threads)
    threads.clear()
    Run(tmp_path / "b", max_copy_nbytes=1000).train()
    assert threads == {"MainThread"}  # there is no memory for the copies


def test_the_loop_goes_on_while_one_is_written(tmp_path, monkeypatch):
    may_write = threading.Event()
    write = run_folder.write_part

    def held(*args, **options):
        assert may_write.wait(60)
        return write(*args, **options)

    monkeypatch.setattr(run_folder, "write_part", held)
    run = Run(tmp_path, every_steps=2, every_epochs=None)
    steps = []

    def on_step(run) -> None:
        steps.append(run.ckpt.num_steps)
        if len(steps) == 4:
            assert list_checkpoints(tmp_path) == []  # that of step 2 is held up, and step 3 done
            may_write.set()

    run.train(on_step=on_step)
    assert steps == list(range(6))
    may_write.set()
    monkeypatch.undo()
    Run(tmp_path / "expected", every_steps=2, every_epochs=None, background=False).train()
    assert states(tmp_path) == states(tmp_path / "expected")


def test_what_fails_is_raised_by_the_next_call(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise SaveRefused("the disk is full")

    monkeypatch.setattr(run_folder, "write_part", broken)
    run = Run(tmp_path)
    with pytest.raises(SaveRefused, match="disk is full"):
        run.train()
    assert run.ckpt.last_saved is None
    run.ckpt.close()  # may be called again


def test_what_fails_at_last_is_raised_at_the_end(tmp_path, monkeypatch):
    write = run_folder.write_part

    def broken(path, *args, **options):
        if path.name.startswith("step-00000006"):
            raise SaveRefused("the disk is full")
        return write(path, *args, **options)

    monkeypatch.setattr(run_folder, "write_part", broken)
    with pytest.raises(SaveRefused, match="disk is full"):
        Run(tmp_path, every_steps=None).train()


def test_the_end_saves_what_an_earlier_save_could_not(tmp_path, monkeypatch):
    write, refusals = run_folder.write_part, [SaveRefused("the disk is full")]

    def refused_once(*args, **options):
        if refusals:
            raise refusals.pop()
        return write(*args, **options)

    monkeypatch.setattr(run_folder, "write_part", refused_once)
    with pytest.raises(SaveRefused, match="disk is full"), Run(tmp_path).ckpt as ckpt:
        ckpt.save(wait=False)
    assert len(list_checkpoints(tmp_path)) == 1


def test_to_close_tells_what_failed(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise SaveRefused("the disk is full")

    monkeypatch.setattr(run_folder, "write_part", broken)
    ckpt = Run(tmp_path).ckpt
    ckpt.save(wait=False)
    with pytest.raises(SaveRefused, match="disk is full"):
        ckpt.close()
    ckpt.close()


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("wait", [True, False])
def test_what_can_not_be_kept_is_refused_as_by_a_save_that_is_waited_for(tmp_path, wait):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.eye(2).to_sparse_csr())
    ckpt = Checkpointer(tmp_path / "run", model=model)

    def save() -> None:
        ckpt.save(wait=wait)
        ckpt.wait()

    with pytest.raises(SaveRefused, match="mask"):
        save()
    ckpt.close()


def test_an_error_of_the_program_is_not_hidden(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise SaveRefused("the disk is full")

    def fail(run) -> None:
        if run.ckpt.num_steps == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(run_folder, "write_part", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        Run(tmp_path).train(on_step=fail)
    assert "disk is full" in caught.value.__notes__[0]


def test_who_changes_parameters_by_hand_gets_another_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "Background", Late)

    def clip(run) -> None:
        run.model[0].weight.data.clamp_(-0.01, 0.01)  # after the batch was fetched: too late

    run = Run(tmp_path / "beside", every_epochs=None)
    with pytest.warns(UserWarning, match=r"model/.*0\.weight .*changed between two steps"):
        run.train(on_step=clip)
    expected = Run(tmp_path / "waiting", background=False, every_epochs=None).train(on_step=clip)
    found, wanted = states(tmp_path / "beside"), states(tmp_path / "waiting")
    assert set(wanted) - set(found) == {"step-00000001"}  # the one that was given up
    for name in sorted(found)[1:]:
        assert found[name] == wanted[name], name
    assert run.ckpt.num_steps == expected.ckpt.num_steps == 6


def test_a_change_that_shows_when_it_is_written_takes_it_back(tmp_path, monkeypatch):
    answers = iter([[], ["objects/model/state/state_dict/0.weight"]])
    monkeypatch.setattr(saver.Snapshot, "changed", lambda snapshot: next(answers, []))
    with pytest.warns(UserWarning, match=r"0\.weight changed between two steps"):
        Run(tmp_path, every_epochs=None).train()
    assert min(states(tmp_path)) == "step-00000002"
    assert len(states(tmp_path)) == 5


@pytest.mark.filterwarnings("ignore:.*changed between two steps")
def test_the_last_step_is_kept_though_its_checkpoint_was_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "Background", Late)
    run = Run(tmp_path, every_steps=None, every_epochs=None)
    with run.ckpt as ckpt:
        for _ in ckpt.epochs(1):
            for (inputs,) in ckpt.batches(run.loader):
                run.model(inputs).sum().backward()
                run.optimizer.step()
                ckpt.step()
        ckpt.save(wait=False)
        run.model[0].weight.data.zero_()
    (only,) = list_checkpoints(tmp_path)
    saved = read_state(only.path)["objects"]["model"]["state"]["state_dict"]["0.weight"]
    assert torch.equal(saved, run.model[0].weight)


def test_a_step_inside_the_backward_pass_is_seen(tmp_path):
    """One optimizer per parameter, which steps as soon as the gradient is there."""

    def train(folder, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 64))
        optimizers = [torch.optim.Adam([item], lr=0.01) for item in model.parameters()]

        for parameter, optimizer in zip(model.parameters(), optimizers, strict=True):

            def update(parameter, optimizer=optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            parameter.register_post_accumulate_grad_hook(update)
        loader = DataLoader(TensorDataset(torch.randn(12, 64)), 4)
        with Checkpointer(
            folder,
            model=model,
            optimizer=optimizers,
            every_steps=1,
            durable=False,
            keep_last=None,
            **options,
        ) as ckpt:
            for _ in ckpt.epochs(2):
                for (inputs,) in ckpt.batches(loader):
                    model(inputs).square().mean().backward()
                    ckpt.step()

    train(tmp_path / "waiting", background=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "beside")
    assert states(tmp_path / "beside") == states(tmp_path / "waiting")


def test_a_job_is_waited_for_and_its_error_raised_once():
    background = Background()
    done = []
    background.start(lambda: done.append(1))
    background.start(lambda: done.append(2))
    background.wait()
    assert done == [1, 2]
    background.start(lambda: done[99])
    with pytest.raises(IndexError):
        background.wait()
    background.wait()
    background.close()
    background.close()


# --- Signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_after_the_step_and_ends_the_program(tmp_path, name):
    before = signal.getsignal(signal.SIGTERM)

    def ask(run) -> None:
        if run.ckpt.num_steps == 4:
            os.kill(os.getpid(), getattr(signal, name))

    run = Run(tmp_path, every_steps=None)
    with pytest.raises(Preempted) as caught:
        run.train(on_step=ask)
    assert (caught.value.code, caught.value.signal) == (EXIT_PREEMPTED, name)
    newest = list_checkpoints(tmp_path)[-1]
    assert (newest.step, newest.batch, newest.inexact) == (5, 2, ())
    assert signal.getsignal(signal.SIGTERM) is before
    assert Run(tmp_path).train().ckpt.resumed_from.step == 5


def test_pieces_alone_leave_signals_as_they_are(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    ckpt = Run(tmp_path).ckpt
    ckpt.save()
    ckpt.restore()
    assert signal.getsignal(signal.SIGTERM) is before
    ckpt.close()


def test_two_runs_share_the_handlers(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    first, second = Run(tmp_path / "a").ckpt, Run(tmp_path / "b").ckpt
    with first:
        second.__enter__()
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is not before
    second.close()
    assert signal.getsignal(signal.SIGTERM) is before


PROGRAM = """
import os, sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import torchkeep

class Data(TensorDataset):
    def __getitem__(self, index):
        if os.environ.get("WORKER_IGNORES") and torch.utils.data.get_worker_info():
            import signal
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        return super().__getitem__(index)

model = nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(Data(torch.ones(400, 2)), 4, num_workers=2, multiprocessing_context="fork")
with torchkeep.Checkpointer(sys.argv[1], model=model, optimizer=optimizer) as ckpt:
    for epoch in ckpt.epochs(1000):
        for (inputs,) in ckpt.batches(loader):
            optimizer.zero_grad()
            model(inputs).sum().backward()
            optimizer.step()
            ckpt.step()
            print(ckpt.num_steps, flush=True)
"""


def test_a_program_with_workers_ends_with_the_documented_code(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"WORKER_IGNORES": "1"},
    )
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_PREEMPTED
    last = int(rest.split()[-1]) if rest.split() else 3
    assert list_checkpoints(tmp_path / "run")[-1].step == last


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = Run(tmp_path, stop_on_nan=True)

    def poison(run) -> None:
        if run.ckpt.num_steps == 3:
            run.loader.dataset.tensors[0].fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match="loss is nan after step 5"):
        run.train(on_step=poison)
    newest = read_state(list_checkpoints(tmp_path)[-1].path)
    assert newest["progress"]["step"] == 4
    weights = newest["objects"]["model"]["state"]["state_dict"].values()
    assert all(item.isfinite().all() for item in weights)


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), MemoryError()])
def test_a_system_that_has_less_memory_than_it_said_makes_the_loop_wait(
    tmp_path, monkeypatch, error
):
    def fail(nbytes):
        raise error

    expected = Run(tmp_path / "a").train()
    monkeypatch.setattr(arena, "pages", fail)
    found = Run(tmp_path / "b").train()
    one, other = (
        read_state(list_checkpoints(tmp_path / name)[-1].path)["objects"] for name in "ab"
    )
    assert fingerprint(one) == fingerprint(other)
    assert found.ckpt.history == expected.ckpt.history


def test_an_interrupted_start_waits_for_the_job_that_may_have_begun(monkeypatch):
    """Else the next snapshot would be copied into the memory that it is written from."""
    background, begun, done = Background(), threading.Event(), []

    def job():
        begun.set()
        time.sleep(0.2)
        done.append(True)

    real = ThreadPoolExecutor.submit

    def interrupted(pool, work):
        real(pool, work)
        assert begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.start(job)
    assert done == [True]
    monkeypatch.undo()
    background.start(lambda: done.append(False))
    background.close()
    assert done == [True, False]


def test_a_lazy_parameter_is_named_beside_the_loop_too(tmp_path):
    model = nn.LazyLinear(3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    ckpt = Checkpointer(tmp_path, model=model, optimizer=optimizer)
    with pytest.raises(SaveRefused, match="weight"):
        ckpt.save(wait=False)
    ckpt.close()


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="there is no such signal here")
def test_what_looks_after_workers_is_off_from_a_signal_to_the_next_run():
    before = signal.getsignal(signal.SIGCHLD)
    watch = SignalWatch(("SIGUSR1",))
    os.kill(os.getpid(), signal.SIGUSR1)
    watch.close()
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    SignalWatch(("SIGUSR1",)).close()
    assert signal.getsignal(signal.SIGCHLD) == before
