"""A network to start from: by its name, with weights of its library, of a file, or with none."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from torchkeep import save
from torchkeep.errors import DamagedFile, FileMissing, LoadMismatch, WrongArgument
from torchkeep.networks import build
from torchkeep.training.classifier import Card, load_classifier, read_card, save_classifier
from torchkeep.training.data import Preprocessing
from torchkeep.training.pruning import SlimStructure, save_slim, slim
from torchkeep.training.starting import start
from training.samples import NET, Net, shifted

RECIPE = Preprocessing(12, 12, None)


def test_fresh_values_are_made_for_the_classes() -> None:
    begun = start("resnet18", "none", ["cat", "dog", "cow"])
    assert begun.model.fc.out_features == 3
    assert (begun.head, begun.has_new_head, begun.preprocessing) == (("fc",), True, None)


def test_a_file_gives_all_but_the_head_and_tells_which_network_it_is(tmp_path: Path) -> None:
    theirs = shifted(torchvision.models.resnet18(num_classes=7))
    torch.save({"state_dict": nn.DataParallel(theirs).state_dict(), "epoch": 3}, tmp_path / "x.pth")
    begun = start(None, tmp_path / "x.pth", ["cat", "dog"])
    assert begun.arch == "torchvision/resnet18"
    assert begun.has_new_head
    found = begun.model.state_dict()
    for name, item in theirs.state_dict().items():
        assert torch.equal(found[name], item) == (not name.startswith("fc.")), name
    assert begun.preprocessing is not None
    assert begun.preprocessing.resize == 256  # what the library's weights of it expect


def test_a_file_with_as_many_classes_of_no_name_gives_no_head(tmp_path: Path) -> None:
    torch.save(shifted(Net()).state_dict(), tmp_path / "x.pth")
    begun = start(NET, tmp_path / "x.pth", ["a", "b", "c", "d", "e"])
    assert begun.has_new_head
    assert not torch.equal(begun.model.head.bias, torch.full((5,), 14.0))


def test_fresh_values_are_made_for_the_channels() -> None:
    begun = start("timm/mobilenetv3_small_050", "none", ["cat", "dog"], 5)
    assert begun.model.conv_stem.weight.shape[1] == begun.input_channels == 5
    assert len(set(begun.model.conv_stem.weight[0, :, 0, 0].tolist())) == 5  # not three repeated
    assert begun.model(torch.zeros(2, 5, 64, 64)).shape == (2, 2)


def test_weights_of_a_file_are_adapted_to_the_channels_once(tmp_path: Path) -> None:
    theirs = Net()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    begun = start(NET, tmp_path / "x.pth", ["a", "b"], 6)
    old, new = theirs.stem[0].weight, begun.model.stem[0].weight
    assert torch.equal(new, old[:, [0, 1, 2, 0, 1, 2]] * 0.5)
    torch.save(begun.model.state_dict(), tmp_path / "six.pth")
    again = start(NET, tmp_path / "six.pth", ["a", "b", "c"], 6)
    assert torch.equal(again.model.stem[0].weight, new)
    with pytest.raises(LoadMismatch, match=r"stem\.0\.weight"):
        start(NET, tmp_path / "six.pth", ["a", "b", "c"], 4)
    recipe = Preprocessing(12, 12, None, (0.5,) * 6, (0.5,) * 6)
    ours = tmp_path / "ours.safetensors"
    save_classifier(begun.model, Card(NET, ("a", "b"), recipe, input_channels=6), ours)
    for channels in (None, 6):
        again = start(NET, ours, ["a", "b"], channels)
        assert torch.equal(again.model.stem[0].weight, new)
        assert (again.input_channels, again.has_new_head) == (6, False)
    grey = start(NET, ours, ["a", "b"], 1)
    assert torch.equal(grey.model.stem[0].weight, new.sum(dim=1, keepdim=True))
    model, card = load_classifier(ours, arch=NET)
    assert torch.equal(model.stem[0].weight, new)
    assert card.input_channels == 6


def test_a_network_of_other_channels_by_itself_is_loaded_as_it_is(tmp_path: Path) -> None:
    name = "training.samples:Grey"
    begun = start(name, "none", ["a", "b"])
    assert begun.input_channels is None
    path = tmp_path / "x.safetensors"
    save_classifier(begun.model, Card(name, ("a", "b"), RECIPE), path)  # whose recipe has three
    assert load_classifier(path, arch=name)[0].stem[0].in_channels == 1
    assert start(name, "none", ["a", "b"], 1).model.stem[0].in_channels == 1


def test_channels_that_are_no_number_of_them_are_refused(tmp_path: Path) -> None:
    for number, bad in enumerate((0, -3, 10**9, True, {"n": 3}, [3])):
        path = tmp_path / f"{number}.safetensors"
        told = {"arch": NET, "classes": ["a"], "preprocessing": RECIPE.to_json()}
        save(Net(), path, metadata=told | {"input_channels": bad})
        with pytest.raises(DamagedFile, match=r"its metadata 'input_channels' is no number of ch"):
            read_card(path)


def card(*classes: str) -> Card:
    return Card(NET, classes, RECIPE)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Return a classifier of five classes whose rows of the head are 0 to 4."""
    model = shifted(Net())
    with torch.no_grad():
        model.head.bias.copy_(torch.arange(5.0))
    save_classifier(model, card("a", "b", "c", "d", "e"), tmp_path / "ours.safetensors")
    return tmp_path / "ours.safetensors"


def test_a_file_with_the_same_classes_gives_its_head_too(ours: Path) -> None:
    begun = start(NET, ours, ["a", "b", "c", "d", "e"])
    assert (begun.arch, begun.has_new_head, begun.preprocessing) == (NET, False, RECIPE)
    assert torch.equal(begun.model.head.bias, torch.arange(5.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_of_another_precision_is_as_good_to_start_from(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = shifted(Net()).to(dtype)
    save_classifier(model, card("a", "b", "c", "d", "e"), tmp_path / "x.safetensors")
    found = start(NET, tmp_path / "x.safetensors", ["e", "a"]).model
    assert {item.dtype for item in found.parameters()} == {torch.float32}
    assert torch.equal(found.stem[0].weight, model.stem[0].weight.float())
    assert torch.equal(found.head.weight, model.head.weight.float()[[4, 0]])


def test_a_file_without_weights_is_told_for_what_it_is(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(2, 3, 12, 12)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "x.pth")
    with pytest.raises(
        WrongArgument, match=r"no weights to start from in it: Optimizer state"
    ) as e:
        start(None, tmp_path / "x.pth", ["a", "b"])
    assert str(e.value).endswith("Give the file of a model, or of a training checkpoint.")


def test_classes_of_the_same_name_keep_their_meaning_wherever_they_are(ours: Path) -> None:
    begun = start(NET, ours, ["d", "new", "a"])
    bias = begun.model.head.bias
    assert (bias[0].item(), bias[2].item()) == (3.0, 0.0)
    assert begun.model.head.weight.shape == (3, 8)
    assert (begun.new_classes, start(NET, ours, ["d", "a"]).new_classes) == (("new",), ())


def test_other_classes_give_a_fresh_head(ours: Path) -> None:
    begun = start(NET, ours, ["x", "y"])
    assert begun.has_new_head
    assert begun.new_classes == ()
    assert begun.model.head.out_features == 2


def test_a_file_of_another_network_is_refused(tmp_path: Path, ours: Path) -> None:
    with pytest.raises(LoadMismatch, match="not those of resnet18: 122 missing") as caught:
        start("resnet18", ours, ["a", "b"])
    assert "Another network is named by --arch.\n  missing" in str(caught.value)
    save({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(WrongArgument, match=r"fit no network .* Name the network with --arch"):
        start(None, tmp_path / "x.safetensors", ["a", "b"])
    with pytest.raises(FileMissing):
        start(None, tmp_path / "nowhere.pth", ["a", "b"])


def test_code_of_one_s_own_has_no_library_weights() -> None:
    with pytest.raises(WrongArgument, match="code of your own, for which no library has weights"):
        start(NET, "default", ["a"])
    with pytest.raises(WrongArgument, match="nothing tells which network"):
        start(None, "none", ["a"])


def test_a_classifier_comes_back_with_all_that_is_needed(ours: Path) -> None:
    model, found = load_classifier(ours, arch=NET)
    assert found == card("a", "b", "c", "d", "e")
    assert torch.equal(model.head.bias, torch.arange(5.0))


def test_a_file_may_not_name_code(ours: Path, tmp_path: Path) -> None:
    for call in (lambda: load_classifier(ours), lambda: start(None, ours, ["a"])):
        with pytest.raises(WrongArgument, match=r"is training\.samples:Net, which is no net"):
            call()
    for name in ("os:abort", "timm/resnet18(checkpoint_path='x')", "../x", "hf-hub:a/b"):
        save_classifier(
            Net(), Card(name, ("a",), RECIPE), tmp_path / "x.safetensors", overwrite=True
        )
        with pytest.raises(WrongArgument, match="but code"):
            load_classifier(tmp_path / "x.safetensors")


def told(path: Path, tensors: dict[str, torch.Tensor] | nn.Module, **texts: object) -> Path:
    """Write a file that says of itself what it likes."""
    usual = {"arch": "timm/test_resnet", "classes": ["a", "b"], "preprocessing": RECIPE.to_json()}
    save(tensors, path, metadata=usual | texts, overwrite=True)
    return path


@pytest.fixture
def small_memory() -> Iterator[None]:
    """Have no room for more than what is there and 2 GB."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(
    "texts",
    [
        {"arch": "torchvision/vit_h_14"},
        {"arch": "resnet50", "classes": [str(number) for number in range(500_000)]},
    ],
)
def test_a_small_file_that_tells_of_a_huge_network_takes_no_memory(
    tmp_path: Path, texts: dict[str, object]
) -> None:
    path = told(tmp_path / "x.safetensors", {"x": torch.zeros(3)}, **texts)
    for call in (lambda: load_classifier(path), lambda: start(None, path, ["a", "b"])):
        with pytest.raises(LoadMismatch, match=r"its weights are not those of .* missing"):
            call()


def test_a_file_must_have_as_many_outputs_as_classes(tmp_path: Path) -> None:
    path = told(tmp_path / "x.safetensors", build("timm/test_resnet", num_classes=3))
    with pytest.raises(DamagedFile) as caught:
        load_classifier(path)
    text = "x.safetensors: it names 2 classes, and fc.weight is float32 [3, 96], not float32 [2, "
    assert text in str(caught.value)
    with pytest.raises(DamagedFile, match="it names 2 classes, and"):
        start(None, path, ["a", "z"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"classes": ["a", "b", "a"]}, r"'classes' names a more than once"),
        ({"classes": []}, "'classes' names no class"),
        ({"classes": ["a", 2]}, "'classes' is no list of names"),
        ({"classes": {"a": 1}}, "'classes' is no list of names"),
        ({"preprocessing": {"height": 1 << 30}}, "its preprocessing can't be used"),
        (
            {"slimmed": SlimStructure(num_classes=1 << 18).to_text()},
            "num_classes has the width 262144, and not 1 to 131,072",
        ),
        (
            {"slimmed": SlimStructure(input_channels=1 << 11).to_text()},
            "input_channels has the width 2048, and not 1 to 1,024",
        ),
        ({"slimmed": "{}"}, r"'slimmed': this is no description of a slimmed network: it is no t"),
    ],
)
def test_a_card_that_is_damaged_is_refused_by_name(
    tmp_path: Path, texts: dict[str, object], message: str
) -> None:
    path = told(tmp_path / "x.safetensors", {"x": torch.zeros(3)}, **texts)
    for call in (lambda: load_classifier(path), lambda: start(None, path, ["a", "b"])):
        with pytest.raises(DamagedFile, match=message) as caught:
            call()
        assert "x.safetensors" in str(caught.value)


def test_a_slimmed_network_is_retrained_and_loaded_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    report = slim(model, 0.5, inputs=torch.randn(1, 3, 32, 32))
    save_slim(
        model,
        tmp_path / "slim.safetensors",
        report.structure,
        network="torchvision/resnet18",
        num_classes=4,
    )
    begun = start(None, tmp_path / "slim.safetensors", ["x", "y"])
    assert begun.arch == "torchvision/resnet18"
    assert torch.equal(begun.model.conv1.weight, model.conv1.weight)
    assert begun.model.conv1.out_channels == 32
    kept = Card(begun.arch, ("x", "y"), RECIPE, begun.structure)
    save_classifier(begun.model, kept, tmp_path / "best.safetensors")
    again, found = load_classifier(tmp_path / "best.safetensors")
    assert found == kept
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(inputs), begun.model.eval()(inputs))


def test_a_file_that_says_less_is_no_classifier(tmp_path: Path) -> None:
    save(Net(), tmp_path / "x.safetensors", metadata={"classes": ["a"]})
    assert read_card(tmp_path / "x.safetensors") is None
    with pytest.raises(WrongArgument, match="does not say its network, its classes"):
        load_classifier(tmp_path / "x.safetensors")
