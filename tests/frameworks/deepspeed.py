"""DeepSpeed: ZeRO's files, put together to the layout of deepspeed/runtime/engine.py."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from frameworks.expected import expecting
from frameworks.networks import SmallNet, train

NAME = "DeepSpeed"


def write(folder: Path) -> None:
    net = SmallNet()
    adam = torch.optim.AdamW(net.parameters())
    train(net, [adam])
    config = {"train_batch_size": 8, "zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}
    states = {
        "module": net.state_dict(),
        "buffer_names": ["bn.running_mean"],
        "optimizer": None,
        "param_shapes": [OrderedDict((k, v.shape) for k, v in net.named_parameters())],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": {"last_batch_iteration": 10},
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 10,
        "global_samples": 80,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": config,
        "ds_version": "0.14.0",
    }
    facts = {"framework": NAME, "stand_in": True}
    out = folder / "zero" / "global_step10"
    path = expecting(
        out / "mp_rank_00_model_states.pt",
        role="checkpoint",
        state_dicts={"module": "model"},
        schedulers=["lr_scheduler"],
        **facts,
    )
    torch.save(states, path)
    (folder / "zero" / "latest").write_text("global_step10")
    flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    inner = {
        "loss_scaler": DynamicLossScaler(2**16, 2.0, 1000, 1, 1),
        "dynamic_loss_scale": True,
        "overflow": False,
        "clip_grad": 1.0,
        "base_optimizer_state": {
            "state": {0: {"step": 10, "exp_avg": flat * 0, "exp_avg_sq": flat * 0}},
            "param_groups": adam.state_dict()["param_groups"],
        },
        "single_partition_of_fp32_groups": [flat],
        "zero_stage": ZeroStageEnum.gradients,
        "group_paddings": [0],
        "partition_count": [1],
        "ds_version": "0.14.0",
    }
    optimizer = {"optimizer_state_dict": inner, "ds_config": config, "ds_version": "0.14.0"}
    path = expecting(
        out / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        role="optimizer",
        optimizers=["AdamW"],
        **facts,
    )
    torch.save(optimizer, path)
    expecting(folder / "zero", framework=NAME)
    old = {key: states[key] for key in ("module", "optimizer", "global_steps", "skipped_steps")}
    old |= {"csr_tensor_module_names": set(), "dp_world_size": 1, "mp_world_size": 1}
    old |= {"lr_scheduler": None, "args": None, "iteration": 10}
    path = expecting(folder / "old" / "mp_rank_00_model_states.pt", framework=NAME, stand_in=True)
    torch.save(old, path)
