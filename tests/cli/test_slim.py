"""`torchkeep slim`: what a person sees, what a program gets, and the exit code.

The verb is called as the command line does it once it is listed in `cli.VERBS`.
"""

from __future__ import annotations

import argparse
import json

import pytest
import torch

import torchkeep
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.cli import slim
from torchkeep.errors import SaveRefused, WrongArgument
from torchkeep.networks import build
from torchkeep.training.pruning import load_slim

NAME = "torchvision/squeezenet1_1"


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    slim.add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["slim", *words, "--arch", NAME, "--size", "64"])
    return options.run(options)


@pytest.fixture
def model(tmp_path):
    torchkeep.save(build(NAME), tmp_path / "model.pth")
    return str(tmp_path / "model.pth")


def test_a_network_is_slimmed_and_can_be_loaded(model, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert command(model, "--ratio", "0.5", "-o", str(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 26 layers narrower"
    assert lines[1].startswith("  parameters: ")
    assert lines[1].endswith(" of 1,235,496")
    slimmed = load_slim(out)
    assert f"{sum(p.numel() for p in slimmed.parameters()):,} of" in lines[1]
    with pytest.raises(SaveRefused, match=r"is there already\. Give --overwrite to replace it"):
        command(model, "--ratio", "0.5", "-o", str(out))
    before = fingerprint(slimmed.state_dict())
    assert command(model, "--ratio", "0.5", "-o", str(out), "--overwrite", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["structure"]["network"] == NAME
    assert document["after"]["num_parameters"] < document["before"]["num_parameters"]
    assert fingerprint(load_slim(out).state_dict()) == before


def test_a_wrong_ratio_writes_nothing(model, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(WrongArgument, match=r"between 0 and 1, not 1\.5"):
        command(model, "--ratio", "1.5", "-o", str(out))
    assert not out.exists()


def test_a_wrong_size_is_a_wrong_command_line(model, capsys):
    with pytest.raises(SystemExit):
        command(model, "--ratio", "0.5", "-o", "x.safetensors", "--multiple-of", "0")
    assert "'0' is no number from 1 on" in capsys.readouterr().err


def test_it_is_a_model_of_its_arch(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(torchkeep.TorchkeepError, match="the file and the model differ"):
        command(str(tmp_path / "other.pth"), "--ratio", "0.5", "-o", str(tmp_path / "o.pth"))
