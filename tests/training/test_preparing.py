"""All that a training needs, made from its settings, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from torchkeep.errors import WrongArgument
from torchkeep.training.classifier import load_classifier, save_classifier
from torchkeep.training.preparing import loaders, loss_of, prepare
from torchkeep.training.settings import Settings
from training.samples import DATA, NET


def settings(**options: Any) -> Settings:
    usual = {"arch": NET, "weights": "none", "batch_size": 8, "size": 12}
    return Settings(**usual | options)


@pytest.mark.parametrize(
    ("data", "channels", "there"), [(DATA, 5, 3), (DATA, 1, 3), ("training.samples:bands", 3, 5)]
)
def test_tensors_of_other_channels_than_were_said_are_refused(
    data: str, channels: int, there: int
) -> None:
    message = rf"gives tensors of the shape \[{there}, 12, 12\], and .* takes \[{channels}, h"
    with pytest.raises(WrongArgument, match=message):
        prepare(data, settings(channels=channels))


def test_pictures_have_one_channel_or_three() -> None:
    for channels in (1, 3):
        assert prepare("digits", settings(channels=channels)).card.input_channels == channels
    with pytest.raises(WrongArgument, match="images have 1 channel or 3, and the network takes 5"):
        prepare("digits", settings(channels=5))


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(WrongArgument, match="has images of one class alone, cat: there is nothing"):
        prepare("training.samples:lonely", settings())


def test_rare_classes_count_as_much_as_others() -> None:
    prepared = prepare(DATA, settings(class_weights=True))
    uneven = Subset(prepared.data.train, [0, 1, 2, 3])  # of the classes 0, 1, 2, 0
    loss = loss_of(replace(prepared, data=replace(prepared.data, train=uneven)))
    weight = loss.keywords["weight"].cpu()
    assert torch.allclose(weight, torch.tensor([2 / 3, 4 / 3, 4 / 3]))


def test_a_last_batch_of_one_is_dropped() -> None:
    train, _ = loaders(prepare(DATA, settings(batch_size=47)))
    assert len(train) == 1
    assert len(loaders(prepare(DATA, settings(batch_size=48)))[0]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": "some"}, "nothing is frozen by 'some'"),
        ({"freeze": "all-but:nowhere"}, "'nowhere' is no module or parameter"),
        ({"freeze": "99"}, "a number of stages from 0 to"),
        ({"unfreeze": {1: "nowhere"}}, "'nowhere' is no module or parameter"),
        ({"optimizer": "magic"}, "there is no optimizer 'magic'"),
        ({"schedule": "magic"}, "there is no schedule 'magic'"),
        ({"device": "magic"}, "device 'magic' can't be used here"),
        ({"augment": "magic"}, "there is no augmentation 'magic'"),
        ({"arch": None}, "nothing tells which network"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_training(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(WrongArgument, match=message):
        prepare(DATA, settings(**options))


def test_a_network_made_for_images_of_a_size_sees_such_and_its_file_says_so(tmp_path: Path) -> None:
    arch = "timm/test_vit(img_size=32, patch_size=4)"
    prepared = prepare("digits", Settings(arch=arch, weights="none"))
    assert (prepared.card.preprocessing.height, prepared.card.arch) == (32, arch)
    save_classifier(prepared.start.model, prepared.card, tmp_path / "it.safetensors")
    model, card = load_classifier(tmp_path / "it.safetensors")
    assert card == prepared.card
    assert len(model.pos_embed[0]) == 65
    again = prepare("digits", Settings(weights=str(tmp_path / "it.safetensors")))
    assert again.card == card
