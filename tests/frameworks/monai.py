"""MONAI: its networks whole, its handler's checkpoints, its transforms and meta tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.networks import save_state
from monai.networks.nets import DenseNet121, UNet
from monai.transforms import Compose, EnsureChannelFirst, Resize, ScaleIntensity

from frameworks.expected import expecting


def write(folder: Path) -> None:
    unet = UNet(2, in_channels=1, out_channels=2, channels=(2, 4), strides=(2,))
    cls = f"{type(unet).__module__}.{type(unet).__name__}"
    path = expecting(folder / "unet_whole.pt", role="module", classes=[cls], framework="MONAI")
    torch.save(unet, path)
    path = expecting(folder / "unet.pt", role="state_dict", state_dicts={"": "model"})
    save_state(unet, path)
    optimizer = torch.optim.Adam(unet.parameters())
    unet(torch.zeros(1, 1, 8, 8)).sum().backward()
    optimizer.step()
    path = expecting(
        folder / "states.pt",
        role="checkpoint",
        optimizers=["Adam"],
        state_dicts={"net": "model"},
        framework=None,
    )
    save_state({"net": unet, "opt": optimizer}, path)
    with torch.device("meta"):
        dense = DenseNet121(2, 1, 2)
    torch.save(dense.state_dict(), expecting(folder / "densenet.pt", role="state_dict"))
    transforms = Compose([EnsureChannelFirst(), ScaleIntensity(), Resize((8, 8))])
    path = expecting(folder / "transforms.pt", role="object", verdict="needs-trust")
    torch.save(transforms, path)
    image = MetaTensor(torch.ones(1, 4, 4), affine=torch.eye(4))
    torch.save(image, expecting(folder / "meta_tensor.pt", verdict="needs-trust"))
