from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from effort import at_most
from identify.networks import OTHERS, Shapes, named, resnet, shapes_of
from torchkeep.errors import DamagedFile
from torchkeep.identify.architectures import (
    NOT_IN_WEIGHTS,
    THRESHOLD,
    ArchitectureMatch,
    in_words,
    recognise,
    search,
)
from torchkeep.identify.architectures import table as table_module
from torchkeep.identify.architectures.search import recognise_in
from torchkeep.identify.architectures.table import PATH, Table, fill, shipped_table

WIDTHS, DEPTHS = [64, 128, 256, 512], [2, 2, 2, 2]


@pytest.fixture(autouse=True)
def on_meta():
    with torch.device("meta"):
        yield


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that builds the table."""
    path = Path(__file__).parents[2] / "scripts" / "build_architectures.py"
    spec = importlib.util.spec_from_file_location("build_architectures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def best_names(matches: tuple[ArchitectureMatch, ...]) -> set[str]:
    return {match.name for match in matches if match.score == matches[0].score}


def filled(rules: dict[str, str]) -> Shapes:
    """Return the tensors of a signature for 37 classes."""
    return {
        key: tuple(map(int, filter(None, fill(shape, 37, 3).split(","))))
        for key, shape in rules.items()
    }


def alexnet(head: nn.Module) -> nn.Module:
    sizes = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
    layers: list[nn.Module] = [nn.ReLU() for _ in range(13)]
    for at, (before, after, kernel) in sizes.items():
        layers[at] = nn.Conv2d(before, after, kernel)
    return named(features=nn.Sequential(*layers), classifier=head)


# --- What is recognised --------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_model_of_the_table_is_recognised_with_other_classes_and_behind_a_prefix(prefix):
    table = shipped_table()
    for signature in range(0, len(table), 31):
        shapes = filled(table.shapes(signature))
        matches = recognise({prefix + key: shape for key, shape in shapes.items()})
        assert set(table.names(signature)) <= best_names(matches)
        assert matches[0].prefix == ("model." if prefix == "model." else "")
        has_classes = any("c" in shape for shape in table.shapes(signature).values())
        assert matches[0].num_classes == (37 if has_classes else None)


def test_libraries_that_agree_on_a_model_are_a_tie_and_the_plainest_name_comes_first():
    matches = recognise(shapes_of(resnet(WIDTHS, DEPTHS)))
    assert [match.name for match in matches] == [
        "torchvision/resnet18",
        "timm/resnet18",
        "timm/resnetblur18",
    ]
    assert {match.score for match in matches} == {1.0}
    assert {match.num_classes for match in matches} == {10}
    assert {match.input_channels for match in matches} == {3}
    assert matches[0].missing == matches[0].unexpected == matches[0].mismatched == ()


def test_a_resnet18_for_small_images_with_another_head_is_one_with_its_differences():
    model = resnet(WIDTHS, DEPTHS, stem=3)
    model.fc = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))
    best = recognise(shapes_of(model))[0]
    assert best.name == "torchvision/resnet18"
    assert 0.9 < best.score < 1
    assert best.missing == ("fc.weight", "fc.bias")
    assert best.unexpected == ("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")
    assert best.mismatched == ("conv1.weight",)
    assert best.num_classes is None
    assert best.input_channels == 3


def test_a_resnet18_with_names_of_its_own_for_shortcuts_is_just_one_still():
    """The CIFAR networks that are copied most; the threshold is below them on purpose."""
    model = resnet(WIDTHS, DEPTHS, stem=3, shortcut="shortcut", head="linear")
    best = recognise(shapes_of(model))[0]
    assert best.name == "torchvision/resnet18"
    assert THRESHOLD <= best.score < THRESHOLD + 0.02


def test_an_alexnet_with_one_layer_for_its_three_is_one_still():
    best = recognise(shapes_of(alexnet(nn.Linear(9216, 10))))[0]
    assert best.name == "torchvision/alexnet"
    assert best.score > THRESHOLD
    assert "classifier.1.weight" in best.missing


def test_a_model_without_its_head_agrees_and_has_no_number_of_classes():
    model = resnet(WIDTHS, DEPTHS)
    model.fc = nn.Identity()
    best = recognise(shapes_of(model))[0]
    assert (best.name, best.score, best.num_classes) == ("torchvision/resnet18", 1.0, None)
    assert best.missing == ("fc.weight", "fc.bias")


def test_another_number_of_input_channels_is_no_difference():
    model = resnet(WIDTHS, DEPTHS)
    model.conv1 = nn.Conv2d(1, 64, 7, bias=False)
    best = recognise(shapes_of(model))[0]
    assert (best.score, best.input_channels) == (1.0, 1)


def test_files_older_than_the_counters_of_batchnorm_agree():
    shapes = shapes_of(resnet(WIDTHS, DEPTHS))
    old = {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(shapes)
    assert recognise(old) == recognise(shapes)


def test_the_count_of_an_averaged_model_is_not_a_tensor_of_it():
    averaged = torch.optim.swa_utils.AveragedModel(resnet(WIDTHS, DEPTHS))
    best = recognise(shapes_of(averaged))[0]
    assert (best.name, best.score, best.unexpected) == ("torchvision/resnet18", 1.0, ())


def test_a_lightning_module_with_weights_for_its_loss_is_recognised():
    model = named(model=resnet(WIDTHS, DEPTHS), criterion=named())
    model.criterion.register_buffer("weight", torch.empty(10))
    best = recognise(shapes_of(model))[0]
    assert (best.name, best.prefix, best.num_classes) == ("torchvision/resnet18", "model.", 10)
    assert best.unexpected == ("criterion.weight",)
    assert best.score > 0.99
    assert not best.is_part


def test_a_prefix_may_have_several_components_and_keys_are_told_as_they_are_written():
    model = named(module=named(student=named(backbone=resnet(WIDTHS, DEPTHS, stem=3))))
    best = recognise(shapes_of(model))[0]
    assert (best.name, best.prefix) == ("torchvision/resnet18", "student.backbone.")
    assert best.mismatched == ("module.student.backbone.conv1.weight",)


def test_the_numbers_do_not_depend_on_a_tensor_that_differs():
    shapes = shapes_of(resnet(WIDTHS, DEPTHS))
    shapes["fc.bias"] = (11,)
    best = recognise(shapes)[0]
    assert best.mismatched == ("fc.bias",)
    assert best.num_classes == 10


@pytest.mark.parametrize("shape", [(), (10, 1), (0,), (2**70,), (-3,)])
def test_a_tensor_that_can_not_have_such_a_shape_votes_for_no_number(shape):
    shapes = shapes_of(resnet(WIDTHS, DEPTHS)) | {"fc.bias": shape}
    assert [(match.num_classes, match.mismatched) for match in recognise(shapes)[:1]] == [
        (10, ("fc.bias",))
    ]
    del shapes["fc.weight"]
    best = recognise(shapes)[0]
    assert (best.num_classes, best.mismatched, best.missing) == (None, ("fc.bias",), ("fc.weight",))


def test_what_stands_beside_each_component_of_a_prefix_is_unexpected():
    shapes = {f"net.body.{key}": shape for key, shape in shapes_of(resnet(WIDTHS, DEPTHS)).items()}
    beside = {"scale": (1,), "net.temperature": (1,), "net.body.extra": (1,)}
    best = recognise(shapes | beside)[0]
    assert (best.name, best.prefix) == ("torchvision/resnet18", "net.body.")
    assert set(best.unexpected) == beside.keys()


def test_models_below_the_best_follow_only_if_the_best_differs():
    """A model with an auxiliary head is so near the one without that both are compared."""
    table = shipped_table()
    name = "torchvision/fcn_resnet50"
    [signature] = [it for it in range(len(table)) if name in table.names(it)]
    shapes = filled(table.shapes(signature))
    assert [match.name for match in recognise(shapes)] == [name]
    del shapes["backbone.bn1.weight"]
    matches = recognise(shapes)
    assert [match.name for match in matches[:2]] == [name, f"{name}(aux_loss=True)"]
    assert 1 > matches[0].score > matches[1].score
    assert len({match.score for match in matches}) <= 4


# --- A part of a larger network ------------------------------------------------------------------


def decoder() -> nn.Module:
    """The convolutions that a U-Net has behind its encoder."""
    steps = [(768, 256), (384, 128), (192, 64), (128, 32), (32, 16)]
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(a, b, 3), nn.BatchNorm2d(b)) for a, b in steps),
        nn.Conv2d(16, 2, 3),
    )


def encoder(stem: int = 7) -> nn.Module:
    model = resnet(WIDTHS, [3, 4, 6, 3], stem=stem)
    del model.fc
    return model


def test_the_encoder_of_a_larger_network_is_a_part_of_it():
    unet = named(encoder=encoder(), decoder=decoder())
    best = recognise(shapes_of(unet))[0]
    assert (best.name, best.prefix, best.is_part) == ("torchvision/resnet34", "encoder.", True)
    assert THRESHOLD < best.score < 0.9
    assert in_words(recognise(shapes_of(unet))) == "contains resnet34 under encoder"


def test_the_encoder_may_have_no_name_of_its_own():
    unet = encoder()
    unet.up = decoder()
    words = in_words(recognise(shapes_of(unet)))
    assert words == "contains resnet34 and 32 more tensors"


def test_a_backbone_with_a_head_beside_it_is_a_part_too():
    model = named(backbone=encoder(), head=nn.Linear(512, 5))
    best = recognise(shapes_of(model))[0]
    assert (best.is_part, best.prefix) == (True, "backbone.")


def test_a_changed_encoder_in_a_larger_network_is_no_guess():
    unet = named(encoder=encoder(stem=3), decoder=decoder())
    assert recognise(shapes_of(unet)) == ()


def test_a_network_with_another_head_is_no_part():
    model = resnet(WIDTHS, DEPTHS)
    model.fc = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))
    assert not recognise(shapes_of(model))[0].is_part
    assert not recognise(shapes_of(resnet(WIDTHS, DEPTHS)))[0].is_part


# --- What is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", OTHERS, ids=lambda network: network.__name__)
def test_a_network_of_no_table_gives_none(network):
    shapes = shapes_of(network())
    assert shapes
    assert recognise(shapes) == ()
    assert recognise({f"module.{key}": shape for key, shape in shapes.items()}) == ()


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("ResNet", lambda vision: (vision.resnet.Bottleneck, [3, 4, 6, 3], 1000, False, 1, 48)),
        ("VisionTransformer", lambda vision: (224, 16, 12, 5, 240, 960)),
        ("SwinTransformer", lambda vision: ([4, 4], 48, [2, 2, 6, 2], [2, 4, 8, 16], [7, 7])),
        ("MobileNetV2", lambda vision: (1000, 0.6)),
        ("MNASNet", lambda vision: (0.9,)),
        ("DenseNet", lambda vision: (12, (6, 12, 24, 16))),
        ("ShuffleNetV2", lambda vision: ([4, 8, 4], [24, 60, 120, 240, 512])),
    ],
)
def test_a_family_of_the_table_in_another_width_gives_none(family, arguments):
    vision = pytest.importorskip("torchvision").models
    assert recognise(shapes_of(getattr(vision, family)(*arguments(vision)))) == ()


def test_nothing_and_counters_alone_give_none():
    assert recognise({}) == ()
    assert recognise({"bn1.num_batches_tracked": (), "n_averaged": ()}) == ()


# --- Real models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("efficientnet_b0", {}),
        ("vit_b_16", {}),
        ("swin_t", {}),
        ("fcn_resnet50(aux_loss=True)", {"weights_backbone": None, "aux_loss": True}),
        ("maskrcnn_resnet50_fpn", {"weights_backbone": None}),
        ("ssdlite320_mobilenet_v3_large", {"weights_backbone": None}),
        ("googlenet(aux_logits=False)", {"aux_logits": False, "init_weights": False}),
        ("r3d_18", {}),
    ],
)
def test_models_of_torchvision_are_recognised(name, arguments):
    models = pytest.importorskip("torchvision").models
    model = models.get_model(name.partition("(")[0], weights=None, num_classes=7, **arguments)
    best = recognise(shapes_of(model))[0]
    assert (best.name, best.score, best.num_classes) == (f"torchvision/{name}", 1.0, 7)


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_224", "convnext_atto", "mobilenetv4_conv_small", "maxvit_nano_rw_256"],
)
def test_models_of_timm_are_recognised(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=7, in_chans=4)
    matches = recognise(shapes_of(model))
    assert f"timm/{name}" in best_names(matches)
    assert (matches[0].score, matches[0].num_classes, matches[0].input_channels) == (1.0, 7, 4)


@pytest.mark.parametrize(
    ("name", "new", "old"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2"),
        ("vit_b_32", r"mlp\.0", "mlp.linear_1"),
    ],
)
def test_the_names_in_files_that_torchvision_published_are_known(name, new, old):
    models = pytest.importorskip("torchvision").models
    shapes = shapes_of(models.get_model(name, weights=None))
    renamed = {
        re.sub("mlp.3", "mlp.linear_2", re.sub(new, old, key)): shapes[key] for key in shapes
    }
    assert renamed.keys() != shapes.keys()
    best = recognise(renamed)[0]
    assert (best.name, best.score) == (f"torchvision/{name}", 1.0)


# --- Hostile state dicts -------------------------------------------------------------------------


def patchwork() -> Shapes:
    """Return tensors of as many signatures as one state dict can name without being too heavy."""
    table = shipped_table()
    shapes: Shapes = {}
    for signature in random.Random(1).sample(range(len(table)), 60):
        for key, shape in table.shapes(signature).items():
            if shape.replace(",", "").isdigit() and len(shapes) < 3_000:
                shapes[key] = tuple(map(int, shape.split(",")))
    return shapes


@pytest.mark.parametrize(
    "make",
    [
        lambda: {f"layer{number}.weight": (64, 64, 3, 3) for number in range(100_000)},
        lambda: {"a" * 1_000_000 + str(number): (1,) for number in range(20)},
        lambda: {"." * 1_000_000 + str(number): (1,) for number in range(20)},
        lambda: {"a." * 200 + str(number): (1,) for number in range(2_000)},
        lambda: {"": (), ".": (1,), "..": (2,), "\ud800": (3,), "\n \t": (4,)},
        lambda: {"conv1.weight": (10**5_000, -1), "bn1.weight": (-64,), "fc.weight": (2**63, 512)},
        lambda: {f"fc.weight{number}": (1,) * 100_000 for number in range(100)},
        lambda: {f"module.{number}.weight": (number,) for number in range(5_000)},
        patchwork,
    ],
    ids="100,000_keys long_keys dots deep odd huge_sizes many_dims all_differ patchwork".split(),
)
def test_a_hostile_state_dict_costs_little_and_gives_none(make):
    shapes = make()
    shipped_table()
    with at_most(50):
        assert recognise(shapes) == ()


def test_no_more_than_so_many_signatures_are_compared(monkeypatch):
    """Vision transformers of one size are many, and any of them could be the one that this was."""
    compare = search._compare
    compared = []
    monkeypatch.setattr(search, "_compare", lambda *args: compared.append(args) or compare(*args))
    table = shipped_table()
    [signature] = [
        it for it in range(len(table)) if "timm/deit_base_patch16_224" in table.names(it)
    ]
    shapes = filled(table.shapes(signature))
    broken = {key: shape for key, shape in shapes.items() if not key.endswith("norm1.bias")}
    assert "timm/deit_base_patch16_224" in best_names(recognise(broken))
    assert len(compared) == search._MOST_COMPARED


def test_what_no_model_can_have_is_told_as_unexpected():
    shapes = shapes_of(resnet(WIDTHS, DEPTHS))
    odd = {"x" * 1_000: (1,), "fc.scale": (10**30,)}
    best = recognise(shapes | odd)[0]
    assert best.name == "torchvision/resnet18"
    assert set(best.unexpected) == odd.keys()
    assert best.score < 1


# --- In words ------------------------------------------------------------------------------------


def a_match(name: str = "torchvision/resnet18", **other: object) -> ArchitectureMatch:
    values = {
        "score": 1.0, "num_classes": 10, "input_channels": 3, "missing": (), "unexpected": (),
        "mismatched": (), "prefix": "",
    }  # fmt: skip
    return ArchitectureMatch(name, **(values | other))


@pytest.mark.parametrize(
    ("matches", "words"),
    [
        ([], ""),
        ([a_match()], "resnet18 for 10 classes"),
        ([a_match(), a_match("timm/resnet18")], "resnet18 for 10 classes"),
        ([a_match(), a_match("timm/b", score=0.9)], "resnet18 for 10 classes"),
        ([a_match(), a_match("timm/b")], "resnet18 for 10 classes (or b)"),
        (
            [a_match(f"timm/{name}") for name in "abcde"],
            "a for 10 classes (or 4 of the same shapes)",
        ),
        ([a_match(num_classes=1, input_channels=1)], "resnet18 for 1 class and 1 input channel"),
        ([a_match(num_classes=None, input_channels=None)], "resnet18"),
        ([a_match(num_classes=None, missing=("fc.weight",))], "resnet18 without its head"),
        (
            [a_match(score=0.9, missing=("a", "b"), unexpected=("c",), mismatched=("d",))],
            "resnet18 for 10 classes, but for 4 tensors",
        ),
        (
            [a_match(named_by="arch"), a_match("timm/resnetblur18")],
            "resnet18 for 10 classes (by arch)",
        ),
        (
            [a_match(named_by="its class"), a_match("timm/b", named_by="its class")],
            "resnet18 for 10 classes (or b; by its class)",
        ),
        (
            [a_match(score=0.8, is_part=True, num_classes=None, prefix="net.encoder.")],
            "contains resnet18 under net.encoder",
        ),
        (
            [a_match(score=0.8, is_part=True, unexpected=("a",)), a_match("timm/b", score=0.8)],
            "contains resnet18 for 10 classes (or b) and 1 more tensor",
        ),
    ],
)
def test_a_match_is_a_part_of_a_sentence(matches, words):
    assert in_words(matches) == words


def test_what_weights_can_not_tell_is_named():
    assert {"activation functions", "the names of the classes"} <= set(NOT_IN_WEIGHTS)


# --- The table -----------------------------------------------------------------------------------


def test_the_table_names_the_libraries_and_holds_their_models():
    table = shipped_table()
    libraries = [line.split(" ") for line in table.versions]
    assert [name for name, _ in libraries] == ["torchvision", "timm"]
    assert all(re.fullmatch(r"\d+\.\d+(\.\w+)*", version) for _, version in libraries)
    names = {name for signature in range(len(table)) for name in table.names(signature)}
    assert len([name for name in names if name.startswith("torchvision/")]) > 100
    assert len([name for name in names if name.startswith("timm/")]) > 1_000


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_table_has_every_model_of_the_installed_library(library):
    module = pytest.importorskip(library)
    version = module.__version__.partition("+")[0]
    if f"{library} {version}" not in shipped_table().versions:
        pytest.skip(f"the table is not of {library} {version}")
    listed = module.list_models() if library == "timm" else module.models.list_models()
    names = {
        name
        for signature in range(len(shipped_table()))
        for name in shipped_table().names(signature)
    }
    absent = {f"{library}/{name}" for name in listed} - names
    assert all(name.startswith("torchvision/quantized_") for name in absent)


def test_the_script_writes_the_table_again_from_what_is_in_it(script):
    table = shipped_table()
    models = [
        (name, table.shapes(signature))
        for signature in range(len(table))
        for name in table.names(signature)
    ]
    assert script.encode(list(table.versions), models) == PATH.read_bytes()


def test_rules_are_learned_from_models_and_found_again(script):
    """A head of four per class and one more, and a patch embedding of sixteen per channel."""

    class Odd(nn.Module):
        def __init__(self, num_classes: int, in_chans: int = 3) -> None:
            super().__init__()
            self.embed = nn.Linear(16 * in_chans, 32)
            self.blocks = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)])
            self.norm = nn.BatchNorm1d(32)
            self.boxes = nn.Linear(32, 4 * num_classes + 1)

    recipe = script.Recipe("mine/odd", Odd, takes_channels=True)
    tensors, remarks = script.learn(recipe)
    assert remarks == []
    assert tensors["embed.weight"] == "32,16i"
    assert tensors["boxes.weight"] == "4c+1,32"
    assert "norm.num_batches_tracked" not in tensors
    table = Table(script.encode(["mine 1.0"], [("mine/odd", tensors)]))
    [match] = recognise_in(table, shapes_of(Odd(20, in_chans=2)))
    assert (match.name, match.score, match.num_classes, match.input_channels) == (
        "mine/odd",
        1,
        20,
        2,
    )
    shapes = shapes_of(Odd(20)) | {"boxes.weight": (83, 32), "boxes.bias": (83,)}
    [match] = recognise_in(table, shapes)
    assert (match.num_classes, match.mismatched) == (None, ("boxes.weight", "boxes.bias"))


def test_a_size_that_follows_no_rule_is_remarked(script):
    class Square(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.table = nn.Linear(2, 10_000 // num_classes)

    _, remarks = script.learn(script.Recipe("mine/square", Square))
    assert remarks == ["table.weight depends on the number of classes, and not by a rule"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data[:20], "it has 20 bytes"),
        (lambda data: b"PK" + data[2:], r"it starts with b'PKarch', not b'tkarch'"),
        (lambda data: data[:6] + b"\x63\x00" + data[8:], "its layout is version 99, not 1"),
        (lambda data: data[:-1], "its checksum does not agree"),
        (lambda data: data[:500] + b"\xff" + data[501:], "its checksum does not agree"),
    ],
)
def test_a_broken_table_is_told_with_what_to_do(change, what):
    with pytest.raises(DamagedFile, match=f"table of architectures is broken: {what}") as caught:
        Table(change(PATH.read_bytes()))
    assert caught.value.advice == "Install torchkeep again."
    assert caught.value.path == str(PATH)


def test_a_table_that_is_not_there_is_told(monkeypatch, tmp_path):
    shipped_table.cache_clear()
    monkeypatch.setattr(table_module, "PATH", tmp_path / "table.bin")
    with pytest.raises(DamagedFile, match="it can't be read"):
        recognise({"weight": (1,)})
    monkeypatch.undo()
    shipped_table.cache_clear()
    assert recognise({"weight": (1,)}) == ()
