"""The run with the Trainer of transformers: `train(resume_from_checkpoint=True)`."""

from __future__ import annotations

import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from peer_runs import task

VERSION = transformers.__version__


class Unfreezing(TrainerCallback):
    def __init__(self, given: task.Given) -> None:
        self.given = given

    def on_epoch_begin(self, args, state, control, model=None, optimizer=None, **others) -> None:
        if self.given.unfreeze and round(state.epoch or 0) == 1:
            task.unfreeze(self.given, model, optimizer)


class Run(Trainer):
    given: task.Given
    seen = 0

    def compute_loss(self, model, inputs, **others):
        indices = inputs.pop("indices")
        loss = model(inputs["inputs"], inputs["labels"])
        number = self.state.global_step * self.given.accumulate + self.seen
        self.seen = (self.seen + 1) % self.given.accumulate
        task.note(self.given, number, indices, loss)
        return loss

    def training_step(self, *arguments):
        number = self.state.global_step * self.given.accumulate + self.seen
        loss = super().training_step(*arguments)
        task.reach(self.given, number)
        return loss


def run(given: task.Given) -> None:
    set_seed(7)
    model = task.network(given)
    optimizer = task.optimizer_for(given, model)
    arguments = TrainingArguments(
        output_dir=str(given.folder / "saved"),
        num_train_epochs=task.NUM_EPOCHS,
        per_device_train_batch_size=task.BATCH_SIZE,
        gradient_accumulation_steps=given.accumulate,
        dataloader_num_workers=given.workers,
        save_strategy="steps" if given.by == "steps" else "epoch",
        save_steps=given.every_steps,
        seed=7,
        max_grad_norm=0.0,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
    )
    trainer = Run(
        model,
        arguments,
        train_dataset=task.Samples(given.augment),
        optimizers=(optimizer, task.scheduler_for(given, optimizer)),
        callbacks=[Unfreezing(given)],
    )
    trainer.given = given
    saved = given.folder / "saved"
    found = get_last_checkpoint(str(saved)) if saved.exists() else None
    trainer.train(resume_from_checkpoint=found)
    task.finish(given, model, optimizer)
