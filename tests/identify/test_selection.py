"""identify/selection.py: the state dict that is meant, or the list to choose from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchkeep.errors import LoadMismatch
from torchkeep.identify import inspect
from torchkeep.identify.selection import all_values, choose, value_at


def chosen(tmp_path: Path, tree: object, select: str = "auto") -> tuple[str, str]:
    torch.save(tree, tmp_path / "file.pth")
    item, why = choose(inspect(tmp_path / "file.pth"), select)
    return item.name, why


def state() -> dict[str, torch.Tensor]:
    return torch.nn.Linear(2, 3).state_dict()


def test_the_only_state_dict_is_chosen(tmp_path: Path) -> None:
    assert chosen(tmp_path, state()) == ("", "It is one state dict.")
    name, why = chosen(tmp_path, {"strange": state(), "epoch": 1})
    assert (name, why) == ("strange", "'strange' is its only state dict.")


def test_the_models_is_chosen_among_others(tmp_path: Path) -> None:
    name, why = chosen(tmp_path, {"discriminator": state(), "model": state(), "ema": state()})
    assert name == "model"
    assert why == "'model' is the model's state dict, beside 'discriminator', 'ema'."


def test_a_name_may_be_the_last_part_of_the_path(tmp_path: Path) -> None:
    tree = {"nets": {"generator": state(), "critic": state()}}
    assert chosen(tmp_path, tree, "critic")[0] == "nets.critic"
    assert chosen(tmp_path, tree, "nets.generator")[0] == "nets.generator"


def test_the_moving_average_is_found_by_its_role(tmp_path: Path) -> None:
    name, why = chosen(tmp_path, {"model": state(), "state_dict_ema": state()}, "ema")
    assert (name, why) == ("state_dict_ema", "'state_dict_ema' is its only moving average.")


@pytest.mark.parametrize(
    ("tree", "select", "problem"),
    [
        (("netG", "netD"), "auto", "the file has 2 state dicts, and none is clearly the main one"),
        (("netG", "netD"), "x", "no state dict is called select='x'"),
        (("netG", "netD"), "ema", "no state dict is called select='ema'"),
        (("ema_1", "ema_2"), "ema", "more than one state dict fits select='ema'"),
    ],
)
def test_an_unclear_choice_lists_the_candidates(
    tmp_path: Path, tree: tuple[str, str], select: str, problem: str
) -> None:
    with pytest.raises(LoadMismatch) as caught:
        chosen(tmp_path, {name: state() for name in tree}, select)
    text = str(caught.value)
    assert f"file.pth: {problem}. Choose one of:\n" in text
    for name in tree:
        assert f"  select={name!r}: " in text
    assert "2 tensors, 9 parameters" in text


def test_values_are_found_by_paths_whose_parts_hold_dots() -> None:
    root = {"a": {"b": 1}, "a.b": {"c": 2}, "list": [0, {"x": 3}], 4: "four"}
    assert value_at(root, "") is root
    assert value_at(root, "a.b") == 1
    assert value_at(root, "a.b.c") == 2
    assert value_at(root, "list.1.x") == 3
    assert value_at(root, "4") == "four"
    assert value_at(root, "a.nothing") is None


def test_values_that_are_no_tensors_come_with_the_state_dict(tmp_path: Path) -> None:
    torch.save({"model": {**state(), "_extra_state": 3}, "x": 1}, tmp_path / "file.pth")
    inspection = inspect(tmp_path / "file.pth")
    item, _ = choose(inspection)
    assert all_values(inspection, item)["_extra_state"] == 3
    torch.save(torch.nn.Linear(2, 3), tmp_path / "file.pth")
    inspection = inspect(tmp_path / "file.pth")
    item, _ = choose(inspection)
    assert all_values(inspection, item).keys() == {"weight", "bias"}


@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_the_model_of_a_folder_goes_before_those_of_its_checkpoints(
    is_checkpoint: bool, tmp_path: Path
) -> None:
    for where in (".", "checkpoint-1", "checkpoint-2"):
        (tmp_path / where).mkdir(exist_ok=True)
        torch.save({"w.weight": torch.ones(2)}, tmp_path / where / "model.pth")
        if is_checkpoint:
            (tmp_path / where / "trainer_state.json").write_text('{"global_step": 1}')
    chosen, _ = choose(inspect(tmp_path))
    assert chosen.name == "model.pth"
    (tmp_path / "model.pth").unlink()
    with pytest.raises(LoadMismatch, match="none is clearly the main one"):
        choose(inspect(tmp_path))


def test_of_several_files_in_a_folder_none_is_taken_for_what_is_in_it(tmp_path: Path) -> None:
    torch.save({"state_dict": state(), "epoch": 1}, tmp_path / "b.ckpt")
    chosen, _ = choose(inspect(tmp_path))
    assert chosen.name == "b.ckpt.state_dict"
    torch.save(state(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match="several files of it hold a state dict, and none"):
        choose(inspect(tmp_path))
    assert choose(inspect(tmp_path), "a.pth")[0].name == "a.pth"
