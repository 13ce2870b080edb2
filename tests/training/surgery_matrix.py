"""Head replacement, freezing, a training step and save/load, for one network after another.

`python tests/training/surgery_matrix.py` takes every classifier of torchvision and one or more of
each family of timm, and prints a table. It ends with 1 if one fails. Values are random: no files
are fetched.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import torchkeep
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.networks import build
from torchkeep.training.surgery import (
    freeze_all_but_head,
    freeze_stages,
    head_names,
    parameter_groups,
    replace_head,
    stages,
    trainable,
    unfreeze,
)

NUM_CLASSES = 3

SIZES = {"inception_v3": 299, "googlenet": 96, "alexnet": 96, "maxvit_t": 224}
"""Image sizes of torchvision's networks that don't take 64 pixels, besides `vit_...`."""

SEEDS = {"torchvision/squeezenet1_0": 1}
"""Others than 0, with which the last ReLU lets nothing through."""

TIMM = """
beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 halonet26t repvgg_a0 gernet_s
mobileone_s0 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto
convnextv2_atto crossvit_tiny_240 cs3darknet_focus_s cspresnet50 davit_tiny
deit_tiny_distilled_patch16_224 deit3_small_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_b0 tf_efficientnetv2_b0 efficientvim_m1
efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf
gcvit_xxtiny ghostnet_050 hardcorenas_a hgnetv2_b0 hgnet_tiny hiera_tiny_224 hrnet_w18_small
inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_050 levit_128s
levit_conv_128s mambaout_femto maxvit_rmlp_pico_rw_256 coatnet_pico_rw_224 poolformerv2_s12
caformer_s18 convformer_s18 mixer_s32_224 gmlp_ti16_224 resmlp_12_224 mobilenetv3_small_050
mobilenetv4_conv_small mobilenetv4_hybrid_medium mobilevit_xxs mobilevitv2_050 mvitv2_tiny
nest_tiny nextvit_small nf_regnet_b0 nf_resnet26 dm_nfnet_f0 pit_ti_224 pvt_v2_b0 rdnet_tiny
regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvit_m0_9 res2net50_14w_8s resnest14d
resnet18 resnet18d ecaresnet26t seresnet18 resnetv2_50x1_bit resnetv2_18 rexnet_100 selecsls42
legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 tiny_vit_5m_224
tnt_s_patch16_224 tresnet_m twins_pcpvt_small vgg11 visformer_tiny vit_tiny_patch16_224
vit_relpos_small_patch16_224 vit_tiny_r_s16_p8_224
vit_xsmall_patch16_clip_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_dw xception41
legacy_xception xcit_nano_12_p16_224 test_vit test_byobnet test_resnet
""".split()


@dataclass(frozen=True)
class Row:
    """What one network did."""

    name: str
    head: str = ""
    num_stages: int = 0
    num_parameters: int = 0
    seconds: float = 0.0
    num_without: int = 0
    """Trainable parameters that got a gradient of exactly 0 in one of the two steps."""
    problem: str = ""


def size_of(name: str, model: nn.Module) -> int:
    """Return a small image size that the network takes."""
    library, _, short = name.partition("/")
    if library == "torchvision":
        return 224 if short.startswith("vit_") else SIZES.get(short, 64)
    config = model.pretrained_cfg
    smallest = (config.get("min_input_size") or (3, 0, 0))[1]
    return config["input_size"][1] if config.get("fixed_input_size") else max(96, smallest)


def make(name: str) -> nn.Module:
    torch.manual_seed(SEEDS.get(name, 0))
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.AlphaDropout):
            module.p = 0.0
        if type(module).__name__ in ("StochasticDepth", "DropPath"):
            module.p = module.drop_prob = 0.0
    with torch.no_grad():  # some begin as nothing, with zeros that no gradient passes
        for parameter in model.parameters():
            if not parameter.count_nonzero():
                parameter.normal_(std=0.02)
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def digests(model: nn.Module) -> dict[str, object]:
    return {name: fingerprint(item.detach()) for name, item in tensors(model).items()}


def outputs_of(found: object) -> Iterator[torch.Tensor]:
    """Yield all outputs of a model that may have auxiliary ones."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for item in found:
            yield from outputs_of(item)


def train(model: nn.Module, inputs: torch.Tensor, optimizer: torch.optim.Optimizer) -> set[str]:
    """Take one step by which all moves that has a gradient; return what has one of exactly 0."""
    model.train()
    loss = sum(
        (item.flatten(1)[:, :NUM_CLASSES].softmax(1)[:, 0] + item.mean()).sum()
        for item in outputs_of(model(inputs))
        if item.is_floating_point()
    )
    loss.backward()
    optimizer.step()
    return {
        name
        for name, item in model.named_parameters()
        if item.grad is not None and not item.grad.count_nonzero()
    }


def check_step(model: nn.Module, inputs: torch.Tensor, groups: list, resting: set[str]) -> int:
    """Make sure that a step changes no bit of the tensors named, and all other parameters.

    Returns how many of these had a gradient of exactly 0, which are few: one before a norm that
    takes it away, or behind a ReLU that lets nothing through.
    """
    before = digests(model)
    model.zero_grad()
    without = train(model, inputs, torch.optim.Adam(groups, lr=1e-3, eps=1e-30)) - resting
    after = digests(model)
    moved = sorted(name for name in resting if before[name] != after[name])
    assert not moved, f"frozen, and changed: {len(moved)}, {moved[:3]}"
    learns = {name for name, _ in model.named_parameters()} - resting
    assert len(without) <= len(learns) * 0.02, f"no gradient: {sorted(without)[:3]}"
    stuck = sorted(name for name in learns - without if before[name] == after[name])
    assert not stuck, f"trainable, and unchanged: {len(stuck)}, {stuck[:3]}"
    return len(without)


def check(name: str, folder: Path) -> Row:
    """Take a network through all of it."""
    model = make(name)
    head = replace_head(model, NUM_CLASSES)
    parts = stages(model)
    assert parts[-1].name == "head"
    told = [item for part in parts for item in part.parameters]
    assert sorted(told) == sorted(key for key, _ in model.named_parameters()), "stages"
    size = size_of(name, model)
    inputs = torch.rand(2, 3, size, size)
    with torch.no_grad():
        model.eval()(inputs)  # some make tables of indices at first
    freeze_all_but_head(model)
    body = {key for key in tensors(model) if key.rpartition(".")[0] not in head.names}
    num_without = check_step(model, inputs, trainable(model), body)
    unfreeze(model)
    freeze_stages(model, half := len(parts) // 2)
    first = {item for part in parts[:half] for item in (*part.parameters, *part.buffers)}
    groups = parameter_groups(model, 1e-3, decay=0.95, weight_decay=0.01)
    num_without += check_step(model, inputs, groups, first)
    with torch.no_grad():
        model.eval()
        for item in outputs_of(model(inputs)):
            assert item.shape == (2, NUM_CLASSES), f"an output of {tuple(item.shape)}"
    torchkeep.save(model, folder / "it.safetensors", overwrite=True)
    other = make(name)
    replace_head(other, NUM_CLASSES)
    torchkeep.load_into(other, folder / "it.safetensors")
    same = fingerprint(other.state_dict()) == fingerprint(model.state_dict())
    assert same, "not what was saved"
    assert head_names(other) == head.names
    num = sum(item.numel() for item in model.parameters())
    return Row(name, ", ".join(head.names), len(parts), num, num_without=num_without)


def tried(name: str) -> Row:
    """Return the row of a network, with the problem if it has one."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            row = check(name, Path(folder))
        except Exception as error:  # the table has it
            row = Row(name, problem=f"{type(error).__name__}: {error}"[:300])
    gc.collect()
    return Row(**(asdict(row) | {"seconds": time.monotonic() - begin}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="as torchvision/resnet18; by default all")
    parser.add_argument("--skip", nargs="*", default=[], help="names to leave out")
    parser.add_argument("--library", choices=("torchvision", "timm"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    names = given.names or [item for item in everything() if item.startswith(given.library or "")]
    for name in names:
        if name in given.skip:
            continue
        row = tried(name)
        failed += bool(row.problem)
        verdict = row.problem or f"{row.head}, {row.num_stages} stages"
        verdict += f", {row.num_without} without gradient" if row.num_without else ""
        size = f"{row.num_parameters / 1e6:.1f}M"
        print(f"{row.name:48} {size:>8} {row.seconds:6.1f} s  {verdict}", flush=True)
    print(f"{len(names)} networks, {failed} failed")
    return 1 if failed else 0


def everything() -> list[str]:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision/{name}" for name in known] + [f"timm/{name}" for name in TIMM]


if __name__ == "__main__":
    sys.exit(main())
