"""Transformers: a Trainer's folder, saved models in shards, tokenizers, optimizers, generation."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    get_linear_schedule_with_warmup,
)
from transformers.optimization import Adafactor, get_cosine_schedule_with_warmup

from frameworks.expected import expecting
from frameworks.networks import SmallNet, train

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
HF = "HF Trainer"


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    _trainer(folder / "trainer", "adamw_torch")
    _trainer(folder / "trainer_adafactor", "adafactor")
    _models(folder)
    _tokenizers(folder)
    _optimizers(folder)


def _bert() -> Any:
    return BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=2, **TINY))


def _trainer(folder: Path, optimizer: str) -> None:
    data = [{"input_ids": torch.arange(6), "labels": torch.tensor(i % 2)} for i in range(8)]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        save_steps=2,
        optim=optimizer,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=2,
    )
    trainer = Trainer(model=_bert(), args=args, train_dataset=data)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    checkpoint = folder / "checkpoint-2"
    family = "AdamW" if optimizer == "adamw_torch" else "Adafactor"
    expecting(checkpoint, role="checkpoint", framework=HF, optimizers=[family])
    expecting(checkpoint / "model.safetensors", role="state_dict", container="safetensors")
    expecting(checkpoint / "optimizer.pt", role="optimizer", optimizers=[family])
    expecting(checkpoint / "scheduler.pt", schedulers=[""], role="object")
    expecting(checkpoint / "rng_state.pth", rng=["python", "numpy", "cpu"], role="object")
    for path in (checkpoint / "training_args.bin", folder / "final" / "training_args.bin"):
        expecting(path, role="object", framework=HF, verdict="needs-trust")


def _models(folder: Path) -> None:
    small: dict[str, Any] = {
        "bert": _bert(),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8)
        ),
        "vit": ViTForImageClassification(ViTConfig(image_size=32, num_labels=3, **TINY)),
    }
    for name, model in small.items():
        cls = f"{type(model).__module__}.{type(model).__name__}"
        path = folder / name
        model.save_pretrained(path)
        expecting(path / "model.safetensors", role="state_dict", container="safetensors")
        shards = folder / f"{name}_shards"
        model.save_pretrained(shards, max_shard_size="8KB")
        expecting(shards, role="state_dict", container="safetensors-sharded")
        path = expecting(
            folder / f"{name}.bin", role="state_dict", state_dicts={"": "model"}, framework=None
        )
        torch.save(model.state_dict(), path)
        path = expecting(
            folder / f"{name}_whole.pt", role="module", classes=[cls], verdict="needs-trust"
        )
        torch.save(model, path)


def _tokenizers(folder: Path) -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    facts = {"role": "object", "verdict": "needs-trust"}
    for name, value in (("core", core), ("fast", fast), ("config", BertConfig())):
        path = expecting(folder / f"tokenizer_{name}.pkl", **facts)
        path.write_bytes(pickle.dumps(value))
    batch = fast(["cat dog"], return_tensors="pt")
    torch.save(batch, expecting(folder / "batch.pt"))


def _optimizers(folder: Path) -> None:
    net = SmallNet()
    optimizer = Adafactor(net.parameters())
    train(net, [optimizer])
    path = expecting(folder / "adafactor.pt", role="optimizer", optimizers=["Adafactor"])
    torch.save(optimizer.state_dict(), path)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    for name, scheduler in (
        ("linear", get_linear_schedule_with_warmup(sgd, 2, 10)),
        ("cosine", get_cosine_schedule_with_warmup(sgd, 2, 10)),
    ):
        path = expecting(folder / f"schedule_{name}.pt", schedulers=["scheduler"])
        torch.save({"model": net.state_dict(), "scheduler": scheduler.state_dict()}, path)
        torch.save(scheduler, expecting(folder / f"schedule_{name}_whole.pt", schedulers=[""]))
