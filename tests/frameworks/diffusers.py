"""Diffusers: a pipeline's folder, its EMA, LoRA weights of a network."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from frameworks.expected import expecting


def write(folder: Path) -> None:
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(unet, DDPMScheduler(10)).save_pretrained(folder / "pipeline")
    weights = folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    expecting(weights, role="state_dict", container="safetensors")
    unet.save_pretrained(folder / "bin", safe_serialization=False)
    expecting(folder / "bin" / "diffusion_pytorch_model.bin", role="state_dict")
    unet.save_pretrained(folder / "shards", max_shard_size="20KB")
    expecting(folder / "shards", container="safetensors-sharded", role="state_dict")
    ema = EMAModel(unet.parameters(), model_cls=UNet2DModel, model_config=unet.config)
    torch.save(ema.state_dict(), expecting(folder / "ema.pt"))
    whole = expecting(folder / "unet_whole.pt", role="module", framework="Diffusers")
    torch.save(unet, whole)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    torch.save(vae.state_dict(), expecting(folder / "vae.pt", role="state_dict"))
    scheduler = expecting(folder / "scheduler_whole.pt", role="object", framework="Diffusers")
    torch.save(DDPMScheduler(10), scheduler)
