"""networks.build: torchvision's, timm's and the user's own, by name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from torchkeep.errors import MissingExtra, WrongArgument
from torchkeep.networks import build

pytest.importorskip("torchvision")
pytest.importorskip("timm")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("torchvision/resnet18", "torchvision.models.resnet"),
        ("resnet18", "torchvision.models.resnet"),
        ("timm/resnet18", "timm.models.resnet"),
        ("torchvision/googlenet(aux_logits=False)", "torchvision.models.googlenet"),
    ],
)
def test_a_network_is_made_without_weights(name: str, module: str, device: str) -> None:
    made = build(name, num_classes=5, device=device)
    assert type(made).__module__ == module
    assert made.fc.weight.shape[0] == 5
    assert made.fc.weight.device.type == device


def test_a_network_that_computes_while_it_is_made_ends_on_meta_too() -> None:
    made = build("timm/swin_tiny_patch4_window7_224", device="meta")
    assert all(value.is_meta for value in made.state_dict().values())


def test_input_channels_are_given_to_those_that_take_them() -> None:
    assert build("timm/resnet18", input_channels=1, device="meta").conv1.weight.shape[1] == 1
    with pytest.raises(WrongArgument, match=r"resnet18 can't be made with .*in_chans=1"):
        build("torchvision/resnet18", input_channels=1)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(WrongArgument, match=r"no network called 'resnet19'. Is it .*resnet18"):
        build("resnet19")
    with pytest.raises(WrongArgument, match=r"called 'timm/z{194}\.\.\. Check its name"):
        build(f"timm/{'z' * 9000}")  # a file names networks, and may be anybody's
    with pytest.raises(WrongArgument, match=r"no network called 'timm/zzzzzzzz'. Check its name."):
        build("timm/zzzzzzzz")


@pytest.mark.parametrize("name", ["", "a b", "resnet18(", "other/resnet18"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(WrongArgument, match="is no name of a network"):
        build(name)


@pytest.mark.parametrize("text", ["3", "x=open('a')", "1", "x=,"])
def test_arguments_are_literals(text: str) -> None:
    with pytest.raises(WrongArgument, match=r"arguments in .* can't be read|can't be made with"):
        build(f"torchvision/resnet18({text})")


def test_a_class_of_ones_own_is_imported(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "def net(num_classes=3): return torch.nn.Linear(2, num_classes)\n"
        "def number(): return 3\n"
        "value = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("my_nets:net", num_classes=7).weight.shape == (7, 2)
    with pytest.raises(WrongArgument, match=r"my_nets:number gave a int, and no torch.nn.Module"):
        build("my_nets:number")
    with pytest.raises(WrongArgument, match="my_nets:value can't be called"):
        build("my_nets:value")
    with pytest.raises(
        WrongArgument, match=r"my_nets:gone can't be imported: .*Check the name, and"
    ):
        build("my_nets:gone")
    with pytest.raises(WrongArgument, match="no_such_nets:net can't be imported"):
        build("no_such_nets:net")


def test_a_module_of_the_current_folder_is_found_and_nothing_else_in_it(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "here_nets.py").write_text("import torch\nnet = lambda: torch.nn.Linear(2, 3)\n")
    (tmp_path / "here_breaks.py").write_text("import here_nets_too\n")
    (tmp_path / "here_nets_too.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    assert build("here_nets:net").weight.shape == (3, 2)
    with pytest.raises(WrongArgument, match="No module named 'here_nets_too'"):
        build("here_breaks:net")
    assert "here_breaks" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("here_nets_too")
    del sys.modules["here_nets"]


def test_a_missing_library_is_named(monkeypatch) -> None:
    def refuse(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name="timm")

    monkeypatch.setattr("torchkeep.networks.importlib.import_module", refuse)
    with pytest.raises(MissingExtra, match=r"needs timm, not installed .*'torchkeep\[train\]'"):
        build("timm/resnet18")


def test_two_networks_of_one_seed_are_the_same() -> None:
    torch.manual_seed(0)
    one = build("timm/resnet18", num_classes=2)
    torch.manual_seed(0)
    two = build("timm/resnet18", num_classes=2)
    assert torch.equal(one.conv1.weight, two.conv1.weight)
