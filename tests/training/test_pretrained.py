"""Networks with the weights of their library: from its cache, and told where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from torchkeep.errors import FileMissing, WrongArgument
from torchkeep.networks import build, is_of_library
from torchkeep.training import evaluating, replace_head
from torchkeep.training.classifier import Card, load_classifier, save_classifier
from torchkeep.training.data import Preprocessing, transform_of
from torchkeep.training.pretrained import arguments_of, pretrained
from torchkeep.training.starting import start
from training.samples import Net, shifted


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no weights on the disk, and nowhere to fetch them from."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # The client has read its environment by now, and would try for a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_weights_of_a_library_are_adapted_to_the_channels(no_network: None, tmp_path: Path) -> None:
    weights = torchvision.models.MobileNet_V2_Weights.DEFAULT
    theirs = torchvision.models.mobilenet_v2()
    place = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), place)
    begun = start("mobilenet_v2", "default", ["cat", "dog"], 1)
    old, new = theirs.features[0][0].weight, begun.model.features[0][0].weight
    assert torch.equal(new, old.sum(dim=1, keepdim=True))
    assert (begun.input_channels, begun.weights) == (1, f"torchvision's {weights}")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("arch", "place"), [("resnet18", "resnet18-f37072fd.pth"), ("timm/resnet18", "timm/resnet18")]
)
def test_without_a_network_it_says_how_to_bring_the_weights(arch: str, place: str) -> None:
    with pytest.raises(FileMissing, match="can't be fetched") as caught:
        start(arch, "default", ["a", "b"])
    assert place in str(caught.value)
    assert "--weights" in str(caught.value)


def test_weights_from_the_library_s_cache_come_with_their_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real loader takes a file of the right name from its cache, whatever is in it.
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    theirs = shifted(torchvision.models.squeezenet1_1())
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    begun = start("squeezenet1_1", "default", ["a", "b"])
    assert begun.arch == "torchvision/squeezenet1_1"
    assert begun.weights == "torchvision's SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert torch.equal(begun.model.features[0].bias, theirs.features[0].bias)
    assert begun.preprocessing == Preprocessing()


def test_a_transformer_for_larger_images_is_named_so_that_a_file_may_have_it_made() -> None:
    with torch.device("meta"):
        theirs, usual = (torchvision.models.vit_b_16(image_size=size) for size in (64, 224))
    name = f"torchvision/vit_b_16{arguments_of(theirs)}"
    assert name == "torchvision/vit_b_16(image_size=64)"
    assert is_of_library(name)
    shapes = [item.shape for item in build(name, device="meta").parameters()]
    assert shapes == [item.shape for item in theirs.parameters()]
    assert arguments_of(usual) == arguments_of(Net()) == ""


def test_a_file_may_name_sizes_and_no_other_arguments() -> None:
    assert is_of_library("timm/test_vit(img_size=32, patch_size=4)")
    for text in ("checkpoint_path='x'", "img_size=32,patch_size=4", "img_size=99999", "a=1"):
        assert not is_of_library(f"timm/test_vit({text})")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_what_torchvision_does_with_its_weights_alone_is_kept_with_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    theirs = build(f"torchvision/{name}")
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / weights.url.rpartition("/")[2])
    theirs.transform_input = True
    begun = start(name, "default", ("a", "b", "c"))
    replace_head(theirs, 3)
    theirs.fc = begun.model.fc
    picture = Image.effect_noise((400, 340), 90).convert("RGB")
    recipe = begun.preprocessing
    assert recipe is not None
    expected = Preprocessing(recipe.height, recipe.width, recipe.resize)
    with evaluating(theirs), evaluating(begun.model):
        found = begun.model(transform_of(recipe)(picture)[None])
        assert torch.allclose(found, theirs(transform_of(expected)(picture)[None]), atol=1e-5)
    save_classifier(
        begun.model, Card(begun.arch, ("a", "b", "c"), recipe), tmp_path / "it.safetensors"
    )
    again, card = load_classifier(tmp_path / "it.safetensors")
    with evaluating(again):
        assert torch.equal(again(transform_of(card.preprocessing)(picture)[None]), found)


def test_a_network_of_timm_with_arguments_is_that_network_with_its_weights(
    no_network: None,
) -> None:
    with pytest.raises(FileMissing, match="the weights of timm/vit_tiny_patch16_224 are not here"):
        pretrained("timm/vit_tiny_patch16_224(img_size=96)")
    with pytest.raises(WrongArgument, match="can't be made with"):
        pretrained("timm/resnet18(img_size=96)")
