"""PEFT: adapters as safetensors and as pickles."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from frameworks.expected import expecting


def write(folder: Path) -> None:
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    adapters = {
        "lora": LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    }
    for name, adapter in adapters.items():
        model = get_peft_model(GPT2LMHeadModel(config), adapter)
        model.save_pretrained(folder / name)
        path = expecting(
            folder / name / "adapter_model.safetensors", role="state_dict", framework="PEFT"
        )
        assert path.exists()
        model.save_pretrained(folder / f"{name}_bin", safe_serialization=False)
        expecting(folder / f"{name}_bin" / "adapter_model.bin", role="state_dict", framework="PEFT")
        torch.save(model, expecting(folder / f"{name}_whole.pt", role="module"))
