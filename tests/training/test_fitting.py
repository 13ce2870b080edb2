"""Whether a network takes the images that it will be shown."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import WrongArgument
from torchkeep.training import Settings
from torchkeep.training.fitting import check_fit
from torchkeep.training.preparing import prepare
from torchkeep.training.starting import start
from training.samples import DATA, NET, Net


@pytest.mark.parametrize(
    ("arch", "size", "batch_size", "message", "advice"),
    [
        (
            "timm/vit_tiny_patch16_224",
            96,
            8,
            r"timm/vit_tiny_patch16_224 can't take 2 images of 96 x 96 pixels in evaluation "
            r"\(AssertionError: Input height \(96\) doesn't match model \(224\)",
            r"It is made for 224 x 224: --size 224\.",
        ),
        ("alexnet", 32, 8, "alexnet can't take .* too small", r"for 224 x 224: --size 224\."),
        (
            "timm/test_resnet",
            32,
            1,
            r"can't take 1 image of 32 x 32 pixels in training \(ValueError: Expected more than 1",
            r"Give a larger --batch-size, or a larger --size\.",
        ),
        (
            "fcn_resnet50",
            64,
            8,
            r"gives a value of type OrderedDict in evaluation for 2 images, and not \[2, 10\]",
            "Choose a network that classifies images. Networks for detection, segmentation or vid",
        ),
    ],
)
def test_a_network_that_can_t_take_the_images_is_refused_before_the_training(
    arch: str, size: int, batch_size: int, message: str, advice: str
) -> None:
    settings = Settings(arch=arch, weights="none", size=size, batch_size=batch_size)
    with pytest.raises(WrongArgument, match=message) as caught:
        prepare("digits", settings)
    assert advice.replace("\\", "") in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda x: x[:, :, None],
            r"gives \[2, 5, 1\] in .* 2 images, and not \[2, 5\]",
        ),
        (lambda x: x[:, :4], r"gives \[2, 4\] in evaluation"),
        (lambda x: (x, x), "gives a value of type tuple in evaluation"),
    ],
)
def test_a_network_gives_a_number_per_class(returned, message: str) -> None:
    class Other(Net):
        def forward(self, images: torch.Tensor):
            return returned(super().forward(images))

    with pytest.raises(WrongArgument, match=message):
        check_fit(Other(), NET, torch.zeros(3, 12, 12), 5)


def test_auxiliary_outputs_are_for_training_and_may_be_off() -> None:
    class Other(Net):
        others: tuple[object, ...] = (None,)

        def forward(self, images: torch.Tensor):
            made = super().forward(images)
            return (made, *self.others) if self.training else made

    model = Other()
    check_fit(model, NET, torch.zeros(3, 12, 12), 5)
    model.others = (torch.zeros(2, 5), None)
    check_fit(model, NET, torch.zeros(3, 12, 12), 5)
    model.others = (torch.zeros(2, 4),)
    with pytest.raises(WrongArgument, match=r"gives \[2, 4\] in training"):
        check_fit(model, NET, torch.zeros(3, 12, 12), 5)


def test_a_trial_leaves_no_trace() -> None:
    model = start("timm/test_resnet", "none", ["a", "b"]).model.train()
    model.drop_rate = 0.5
    before = fingerprint(model.state_dict()), torch.get_rng_state()
    modes = [item.training for item in model.modules()]
    check_fit(model, "timm/test_resnet", torch.zeros(3, 32, 32), 2)
    assert fingerprint(model.state_dict()) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert [item.training for item in model.modules()] == modes


def test_what_can_t_be_copied_is_not_tried() -> None:
    model = Net()
    model.kept = torch.zeros(1, requires_grad=True) * 2
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    check_fit(model, NET, torch.zeros(3, 12, 12), 99)


def test_the_networks_of_others_are_told_with_their_error() -> None:
    class Picky(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise KeyError("\x1b" * 999)

    with pytest.raises(WrongArgument, match=r"\(KeyError: .*Choose another --size, or --arch") as e:
        check_fit(Picky(), NET, torch.zeros(3, 12, 12), 5)
    assert isinstance(e.value.__cause__, KeyError)
    assert "\x1b" not in str(e.value)


def test_tensors_of_one_s_own_come_to_the_network_as_they_are() -> None:
    assert prepare(DATA, Settings(arch=NET, weights="none", size=999)).card.arch == NET
    with pytest.raises(WrongArgument, match="alexnet can't take 2 images of 12 x 12 pixels"):
        prepare(DATA, Settings(arch="alexnet", weights="none"))
