"""Models of torchvision and timm, saved both ways and rebuilt: the same output, bit for bit.

`benchmarks/whole_models.py` does the same with all of them.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from torchkeep.loading import load_model
from torchkeep.saving import save

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

FROM_TORCHVISION = (
    "efficientnet_b0 fasterrcnn_mobilenet_v3_large_320_fpn mnasnet0_5 mobilenet_v3_small "
    "raft_small resnet18 shufflenet_v2_x0_5 squeezenet1_1"
).split()
FROM_TIMM = (
    "convit_tiny fasternet_t0 fastvit_t8 ghostnet_050 levit_128s mobilevit_xxs test_byobnet "
    "test_convnext test_mambaout test_nfnet test_vit xcit_nano_12_p16_224"
).split()
"""benchmarks/whole_models.py takes all of them."""


def run(model: nn.Module, inputs: tuple[object, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        made = model(*inputs)
    flat, waiting = [], [made]
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            flat.append(item)
        else:
            waiting += item.values() if isinstance(item, dict) else item
    return flat


def assert_rebuilt(model: nn.Module, inputs: tuple[object, ...], folder: Path) -> None:
    expected = run(model.eval(), inputs)
    assert expected
    own, pickled = folder / "model.safetensors", folder / "model.pt"
    report = save(model, own, whole=True, durable=False)
    assert (report.needs, report.left_out) == ((), ())
    torch.save(model, pickled)
    for path in (own, pickled):
        again = load_model(path)
        found = run(again, inputs)
        assert all(map(torch.equal, found, expected)), path
        assert list(again.state_dict()) == list(model.state_dict())
        path.unlink()


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_a_model_of_torchvision_is_rebuilt(name: str, tmp_path: Path):
    has_backbone = {"weights_backbone": None} if "rcnn" in name else {}
    model = torchvision.models.get_model(name, weights=None, **has_backbone)
    inputs: tuple[object, ...] = (torch.randn(1, 3, 64, 64),)
    if "rcnn" in name:
        inputs = ([torch.rand(3, 64, 64)],)
    elif "raft" in name:
        inputs = (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own functions in torchvision
        assert_rebuilt(model, inputs, tmp_path)


@pytest.mark.parametrize("name", FROM_TIMM)
def test_a_model_of_timm_is_rebuilt(name: str, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own functions in timm
        model = timm.create_model(name, pretrained=False)
        picture = torch.randn(1, *model.default_cfg["input_size"])
        assert_rebuilt(model, (picture,), tmp_path)
