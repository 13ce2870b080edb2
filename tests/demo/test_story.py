"""A small demo runs from end to end, and fails if a claim does."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace

import pytest
from rich.console import Console

from torchkeep.demo import run
from torchkeep.demo.digits import Settings
from torchkeep.demo.processes import run_child
from torchkeep.demo.proofs import Proof, require, show
from torchkeep.demo.story import MARKER, Story, make_room
from torchkeep.errors import ProofFailed, SaveRefused

SMALL = Settings(
    num_epochs=2,
    batch_size=16,
    every_steps=4,
    max_per_digit=12,
    transfer_epochs=1,
    least_accuracy=0.0,
)


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return the folder, the output and the proofs of a small demo."""
    out, screen = tmp_path_factory.mktemp("demo") / "out", console()
    proofs = run(out, console=screen, settings=SMALL)
    return out, screen.file.getvalue(), proofs


def test_every_claim_is_proven(told):
    _, _, proofs = told
    assert len(proofs) == 13
    assert all(proof.holds for proof in proofs)


def test_the_output_is_plain_text_of_80_columns(told):
    _, text, _ = told
    assert "\x1b" not in text
    *lines, command = text.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert command.startswith("   torchkeep inspect /")  # in one piece, to be pasted
    assert command.endswith("/out/files/training-checkpoint.pth")
    assert "killed after step 9 (epoch 2, batch 3)" in text
    # The save of step 8 is written beside step 9, which a busy disk may not let it finish; that of
    # step 4 has, since a save waits for the one before it.
    assert re.search(r"goes on after step [48] of 12\n", text)
    assert "Whole model: torchvision.models.resnet.ResNet" in text
    assert text.count("epoch   2 of 2") == 2  # the reference and the resumed run


def test_the_files_are_left_to_look_at(told):
    out, _, _ = told
    assert sorted(item.name for item in out.iterdir()) == [
        MARKER,
        "data",
        "files",
        "reports",
        "runs",
    ]
    assert (out / "runs" / "transfer" / "best.safetensors").exists()
    assert not (out / "files" / "EXECUTED").exists()
    assert len(list((out / "data" / "digits" / "train" / "7").glob("*.png"))) == 9


def test_a_claim_that_is_not_true_fails_the_demo(told):
    out, _, _ = told
    story = Story(out, console(), replace(SMALL, least_accuracy=1.1))
    story.evaluate_in_a_fresh_process()
    with pytest.raises(ProofFailed, match=r"1 of 3 claims are not true: the network is good \("):
        story.conclude(0.0)
    assert "FALSE" in story.console.file.getvalue()


def test_paths_and_results_are_text_and_no_markup(tmp_path):
    screen = console()
    story = Story(tmp_path / "x[bold]y[/red]:smile:", screen, SMALL)
    story.introduce()
    story.write_data()
    story._prove("[red]claim", "how[/bold]", "[x]", holds=True)
    story.conclude(0.0)
    text = "".join(screen.file.getvalue().split())
    assert text.count("x[bold]y[/red]:smile:") == 3
    assert "   torchkeep inspect '/" in screen.file.getvalue()  # a shell's special characters
    assert all(part in text for part in ("[red]claim", "how[/bold]", "[x]"))


def test_what_a_child_says_is_no_markup_either(tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(
        "import sys\nprint('a [/red] :smile: line')\nsys.exit('[/bold] :smile: failed')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    screen = console()
    with pytest.raises(ProofFailed, match="the child process noisy ended with exit status 1"):
        run_child("noisy", [], tmp_path / "noisy.jsonl", screen)
    assert screen.file.getvalue() == "a [/red] :smile: line\n[/bold] :smile: failed\n\n"


def test_a_child_that_fails_fails_the_demo(told):
    out, _, _ = told
    story = Story(out, console(), replace(SMALL, num_epochs=0))
    with pytest.raises(ProofFailed, match=r"process torchkeep ended with exit status 12"):
        story.train_without_interruption()
    assert "epochs is 0, and has to be at least 1" in " ".join(
        story.console.file.getvalue().split()
    )


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    mine = tmp_path / "data" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(SaveRefused, match="this was not made by a demo, and nothing in it is"):
        run(tmp_path, console=console(), settings=SMALL)
    assert mine.read_text() == "years of work"


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SaveRefused, match="was not made by a demo"):
        make_room(tmp_path / "out")


def test_an_earlier_demo_is_replaced_and_other_files_in_it_stay(tmp_path):
    make_room(tmp_path / "out")
    (tmp_path / "out" / "runs" / "old").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    make_room(tmp_path / "out")
    assert not (tmp_path / "out" / "runs" / "old").exists()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_narrow_terminal_gets_a_list_without_broken_words():
    screen = Console(file=io.StringIO(), width=40)
    show([Proof("water is wet", "the finger of a volunteer", "1234abcd = 1234abcd", True)], screen)
    assert screen.file.getvalue().splitlines() == [
        "true  water is wet",
        "the finger of a volunteer: 1234abcd = ",
        "1234abcd",
    ]


def test_the_table_shows_each_claim_and_whether_it_holds():
    screen = console()
    proofs = [
        Proof("water is wet", "finger", "wet", True),
        Proof("ice is hot", "finger", "", False),
    ]
    show(proofs, screen)
    lines = screen.file.getvalue().splitlines()
    assert any("water is wet" in line and "true" in line for line in lines)
    assert any("ice is hot" in line and "FALSE" in line for line in lines)
    require(proofs[:1])
    with pytest.raises(ProofFailed, match=r"1 of 2 claims are not true: ice is hot"):
        require(proofs)
