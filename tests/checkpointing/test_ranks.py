"""What ranks do together, all know of; and nobody waits for one that is gone."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from checkpointing.gang import join, on_ranks, run_gang
from torchkeep.checkpointing.boundary import Boundary, Told
from torchkeep.checkpointing.ranks import ALONE, Ranks, num_ranks_here
from torchkeep.errors import CheckpointProblem, DamagedFile, SaveRefused


def connected(timeout_s: float = 30.0) -> Ranks:
    ranks = Ranks.here(timeout_s)
    ranks.connect()
    return ranks


def text_of(do) -> str:
    """Return what an error says."""
    try:
        do()
    except Exception as error:  # of any kind
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refuse(text: str):
    raise SaveRefused(text, advice="Free some space.")


def agreeing(rank: int) -> dict:
    ranks = connected()
    return {
        "is": (ranks.rank, ranks.size, ranks.is_first, ranks.is_alone),
        "first": ranks.first(lambda: f"of {rank}"),
        "every": ranks.every(lambda: rank * 2),
        "gathered": ranks.gathered(lambda: rank + 5),
        "each": ranks.each(lambda: rank),
        "any": (ranks.any(rank == 1), ranks.any(False)),
        "lowest": ranks.lowest(torch.tensor([rank, 3 - rank])).tolist(),
        "first fails": text_of(lambda: ranks.first(lambda: refuse("disk full"))),
        "one fails": text_of(lambda: ranks.each(lambda: refuse("no") if rank == 1 else 1)),
        "every, one fails": text_of(lambda: ranks.every(lambda: 1 // rank)),
        "gathered, one fails": text_of(
            lambda: ranks.gathered(lambda: refuse("no") if rank == 2 else 1)
        ),
        "not to be sent": text_of(lambda: ranks.each(lambda: fail_strangely(rank))),
        "file": text_of(lambda: ranks.first(lambda: damaged())),
        "and still": ranks.first(lambda: "they talk"),
    }


def fail_strangely(rank: int) -> None:
    class Strange(Exception):  # of no module, so that no other process knows it
        pass

    if rank == 0:
        raise Strange("what is this")


def damaged() -> None:
    raise DamagedFile("it is cut off", path="a.pth")


def test_what_ranks_do_together_all_know_of():
    found = on_ranks(3, agreeing)
    assert [item.pop("is") for item in found] == [
        (0, 3, True, False),
        (1, 3, False, False),
        (2, 3, False, False),
    ]
    assert [item.pop("gathered") for item in found] == [[5, 6, 7], [6], [7]]
    assert [item.pop("each") for item in found] == [0, 1, 2]
    errors = [{name: item.pop(name) for name in list(item) if "fail" in name} for item in found]
    assert all(item == found[0] for item in found)
    assert found[0]["first"] == "of 0"
    assert found[0]["every"] == [0, 2, 4]
    assert found[0]["any"] == (True, False)
    assert found[0]["lowest"] == [0, 1]
    assert found[0]["not to be sent"].startswith("RuntimeError: Strange(")
    assert found[0]["file"] == "DamagedFile: a.pth: it is cut off."
    assert found[0]["and still"] == "they talk"
    assert errors[0] == {
        "first fails": "SaveRefused: disk full. Free some space.",
        "one fails": "SaveRefused: rank 1: no. Free some space.",
        "every, one fails": "ZeroDivisionError: integer division or modulo by zero",
        "gathered, one fails": "SaveRefused: rank 2: no. Free some space.",
    }
    assert errors[1]["one fails"] == "SaveRefused: no. Free some space."  # its own


def crossing(rank: int) -> list[Told]:
    boundary = Boundary(connected())
    told = [
        Told(1, "", 0, False),
        Told(2, "SIGTERM" if rank == 1 else "", 1, rank == 0),
        Told(3, "", 1, False),
    ]
    found = [boundary.cross(item) for item in told]
    boundary.cross(Told(4 + rank, "", 1, False))
    with pytest.raises(CheckpointProblem, match=r"at step [45], and others from step 4 to 5\. All"):
        boundary.cross(Told(9, "", 1, False))
    return found


def test_what_is_told_at_one_boundary_is_known_at_the_next():
    for found in on_ranks(2, crossing):
        assert found == [Told(), Told(1, "", 0, False), Told(2, "SIGTERM", 1, True)]
    now = Told(3, "SIGTERM", 2, True)
    assert Boundary(ALONE).cross(now) is now


def left_alone(how: str, rank: int, size: int, folder, store: str) -> None:
    join(rank, size, store)
    ranks = connected(timeout_s=4.0)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else time.sleep(8)
        return
    begun = time.monotonic()
    first = text_of(lambda: ranks.each(lambda: 1))
    waited = time.monotonic() - begun
    again = text_of(lambda: ranks.first(lambda: 1))
    (folder / f"{rank}").write_text(f"{first}\n{again}\n{waited}")


@pytest.mark.parametrize("how", ["killed", "late"])
def test_nobody_waits_longer_than_it_is_said_for_one_that_is_gone(tmp_path, how):
    run_gang(left_alone, [(how, rank, 3, tmp_path) for rank in range(3)], 60, kill=False)
    for rank in (0, 2):
        first, again, waited = (tmp_path / f"{rank}").read_text().splitlines()
        assert first.startswith(
            f"CheckpointProblem: rank {rank}: another one of the 3 ranks has ended, or did not "
            "answer within 4 s ("
        )
        assert first.endswith("to make as many steps, and to call its methods alike.")
        assert "GLHF" not in first
        assert again == first  # at once: nobody knows how far the others are
        assert float(waited) < 7.5


def interrupted(rank: int) -> tuple[str, str]:
    ranks = connected(timeout_s=2.0)

    def do() -> int:
        if rank == 1:
            raise KeyboardInterrupt
        return rank

    if rank == 1:
        with pytest.raises(KeyboardInterrupt):
            ranks.each(do)
        return "", text_of(lambda: ranks.each(lambda: 1))
    return text_of(lambda: ranks.each(do)), text_of(lambda: ranks.each(lambda: 1))


def test_one_that_was_interrupted_does_not_answer_to_another_question():
    (first, again), (_, mine) = on_ranks(2, interrupted)
    assert first == again
    assert first.startswith("CheckpointProblem: rank 0: another one of the 2 ranks has ended, or ")
    assert mine.startswith(
        "CheckpointProblem: rank 1: it was interrupted (KeyboardInterrupt). Start"
    )


def test_alone_one_agrees_with_itself():
    assert ALONE.first(lambda: 1) == ALONE.each(lambda: 1) == 1
    assert ALONE.every(lambda: 1) == ALONE.gathered(lambda: 1) == [1]
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.send_highest(torch.tensor([3]))().tolist() == [3]
    with pytest.raises(SaveRefused, match="full"):
        ALONE.each(lambda: refuse("full"))


def test_torchrun_says_how_many_ranks_share_a_machine(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert num_ranks_here() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert num_ranks_here() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "many")
    assert num_ranks_here() == 1
