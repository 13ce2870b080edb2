"""`torchkeep slim`: what a person sees, what a program gets, and the exit code.

The verb is called as the command line does it once it is listed in `cli.VERBS`.
"""

from __future__ import annotations

import argparse
import json
import re

import pytest
import torch
from torch.utils.data import DataLoader

import torchkeep
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.cli import slim
from torchkeep.errors import SaveRefused, WrongArgument
from torchkeep.networks import build
from torchkeep.training import evaluate, replace_head
from torchkeep.training.classifier import Card, load_classifier, save_classifier
from torchkeep.training.data import Preprocessing, open_data, transform_of
from torchkeep.training.pruning import load_slim, read_structure
from torchkeep.training.starting import start

NAME = "torchvision/squeezenet1_1"
TOLD = ("--arch", NAME, "--size", "64")


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    slim.add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["slim", *words])
    return options.run(options)


@pytest.fixture
def model(tmp_path):
    torchkeep.save(build(NAME), tmp_path / "model.pth")
    return str(tmp_path / "model.pth")


def test_a_network_is_slimmed_and_can_be_loaded(model, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert command(model, *TOLD, "--ratio", "0.5", "-o", str(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 26 layers narrower"
    assert lines[1].startswith("  parameters: ")
    assert lines[1].endswith(" of 1,235,496")
    slimmed = load_slim(out)
    assert f"{sum(p.numel() for p in slimmed.parameters()):,} of" in lines[1]
    with pytest.raises(SaveRefused, match=r"is there already\. Give --overwrite to replace it"):
        command(model, *TOLD, "--ratio", "0.5", "-o", str(out))
    before = fingerprint(slimmed.state_dict())
    assert command(model, *TOLD, "--ratio", "0.5", "-o", str(out), "--overwrite", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["structure"]["network"] == NAME
    assert document["after"]["num_parameters"] < document["before"]["num_parameters"]
    assert fingerprint(load_slim(out).state_dict()) == before


def test_a_wrong_ratio_writes_nothing(model, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(WrongArgument, match=r"between 0 and 1, not 1\.5"):
        command(model, *TOLD, "--ratio", "1.5", "-o", str(out))
    assert not out.exists()


def test_a_wrong_size_is_a_wrong_command_line(model, capsys):
    with pytest.raises(SystemExit):
        command(model, *TOLD, "--ratio", "0.5", "-o", "x.safetensors", "--multiple-of", "0")
    assert "'0' is no number from 1 on" in capsys.readouterr().err


def test_it_is_a_model_of_its_arch(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(torchkeep.TorchkeepError, match="the file and the model differ"):
        command(str(tmp_path / "other.pth"), *TOLD, "--ratio", "0.5", "-o", str(tmp_path / "o.pth"))
    with pytest.raises(WrongArgument, match="there are no weights to start from in it"):
        command(str(tmp_path / "other.pth"), "--ratio", "0.5", "-o", str(tmp_path / "o.pth"))
    layers = [torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)]
    torch.save(torch.nn.Sequential(*layers).state_dict(), tmp_path / "other.pth")
    with pytest.raises(WrongArgument, match="fit no network of torchvision or timm"):
        command(str(tmp_path / "other.pth"), "--ratio", "0.5", "-o", str(tmp_path / "o.pth"))


def test_a_file_of_weights_need_not_be_named(model, tmp_path):
    out = tmp_path / "out.safetensors"
    assert command(model, "--size", "64", "--ratio", "0.5", "-o", str(out)) == 0
    structure = read_structure(out)
    assert (structure.network, structure.num_classes) == (NAME, 1000)
    told = torchkeep.inspect(out).summary
    assert told.startswith(f"Parameters only: slimmed {NAME}, "), told
    with pytest.raises(WrongArgument, match="does not say its classes, so that it can't be eval"):
        command(model, "--ratio", "0.5", "-o", str(tmp_path / "o.pth"), "--data", "digits")


def test_what_says_its_classes_does_so_afterwards_and_can_be_slimmed_again(tmp_path, capsys):
    first, second, third = (str(tmp_path / f"{number}.safetensors") for number in range(3))
    network = build(NAME)
    replace_head(network, 10)
    classes = tuple("0123456789")
    ranges = {"features.0": (0.0, 1.0)}  # those of what it was
    save_classifier(network, Card(NAME, classes, Preprocessing(32, 32, None), qat=ranges), first)
    words = ("--ratio", "0.5", "--data", "digits", "-o")
    assert command(first, *words, second) == 0
    assert re.search(r"accuracy: [\d.]+%, and was [\d.]+%", capsys.readouterr().out)
    assert command(second, *words, third, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["after"]["num_parameters"] < document["before"]["num_parameters"]
    model, card = load_classifier(third)
    assert (card.classes, card.qat) == (classes, None)
    assert sum(item.numel() for item in model.parameters()) == document["after"]["num_parameters"]
    data = open_data("digits").transformed(*[transform_of(card.preprocessing)] * 2)
    found = evaluate(model, DataLoader(data.val, 64)).accuracy
    assert found == pytest.approx(document["accuracy"]["after"])
    begun = start(None, third, classes)
    assert torch.equal(begun.model.state_dict()["features.0.weight"], model.features[0].weight)
