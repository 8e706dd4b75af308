"""The Trainer of Transformers, and a loop that Accelerate drives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.chaos.columns.base import Column

if TYPE_CHECKING:
    from benchmarks.chaos.fault import Fault
    from benchmarks.chaos.run import Run

__all__ = ["Accelerate", "Transformers"]


class Transformers(Column):
    """``Trainer.train`` with ``max_grad_norm`` and ``save_steps``."""

    needs = ("transformers", "accelerate")
    name, title = "transformers", "Transformers Trainer"

    def not_staged(self, fault: Fault) -> str | None:
        """What the Trainer owns, nobody can call wrongly."""
        if fault.misuse:
            return "the Trainer owns clipping"
        if fault.setting.fp16:
            return "fp16 is silently float32 on the CPU"
        return super().not_staged(fault)

    def train(self, run: Run) -> nn.Module:
        """As the documentation has it."""
        from transformers import Trainer, TrainingArguments

        net = run.net()

        class WithLoss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                return {"loss": run.loss(self.net(x), labels)}

        every = run.checkpoint_every
        arguments = TrainingArguments(
            output_dir=str(run.checkpoints),
            max_steps=run.steps,
            per_device_train_batch_size=run.batch,
            gradient_accumulation_steps=run.setting.accumulate,
            dataloader_num_workers=run.setting.workers,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            use_cpu=True,
            seed=run.seed,
            save_strategy="steps" if every else "no",
            save_steps=every or 500,
            logging_steps=20,
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
        )
        trainer = self.trainer_class(Trainer, run)(
            WithLoss(),
            arguments,
            train_dataset=run.data(),
            data_collator=_collate,
            optimizers=(run.optimizer(net), None),
        )
        self.attach(trainer, run)
        resume = run.resumes and any(run.checkpoints.glob("checkpoint-*"))
        trainer.train(resume_from_checkpoint=True if resume else None)
        return net

    def trainer_class(self, usual: Any, run: Run) -> Any:
        """The Trainer, or one of its subclasses."""
        return usual

    def attach(self, trainer: Any, run: Run) -> None:
        """What is added to the Trainer."""


def _collate(samples: list[Any]) -> dict[str, Tensor]:
    return {
        "x": torch.stack([image for image, _, _ in samples]),
        "labels": torch.tensor([label for _, label, _ in samples]),
    }


class Accelerate(Column):
    """``accelerator.backward``, ``clip_grad_norm_``, ``save_state``, ``skip_first_batches``."""

    needs = ("accelerate",)
    name, title = "accelerate", "Accelerate"

    def not_staged(self, fault: Fault) -> str | None:
        """Accelerate has no scaler on the CPU."""
        if fault.setting.fp16:
            return "fp16 is silently float32 on the CPU"
        return super().not_staged(fault)

    def train(self, run: Run) -> nn.Module:
        """As the examples have it."""
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed

        set_seed(run.seed)
        accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=run.setting.accumulate,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
            project_config=ProjectConfiguration(project_dir=str(run.spec.folder)),
        )
        net = run.net()
        loader = DataLoader(run.data(), run.batch, shuffle=True, num_workers=run.setting.workers)
        model, optimizer, loader = accelerator.prepare(net, run.optimizer(net), loader)
        self.attach(accelerator, optimizer, model, loader, run)
        step = self._resume(accelerator, run) if run.resumes else 0
        done = step * run.setting.accumulate
        epoch, skip = divmod(done, run.epoch)
        while step < run.steps:
            loader.set_epoch(epoch)
            batches = accelerator.skip_first_batches(loader, skip) if skip else loader
            for x, y, ids in batches:
                if step == run.steps:
                    break
                with accelerator.accumulate(model):
                    loss = run.loss(model(x), y)
                    self.see(ids)
                    accelerator.backward(loss)
                    if run.misuse or accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                if not accelerator.sync_gradients:
                    continue
                run.metric(step, loss)
                step += 1
                if run.checkpoint_every and step % run.checkpoint_every == 0:
                    accelerator.save_state(str(run.checkpoints / f"step_{step}"))
            epoch, skip = epoch + 1, 0
        accelerator.end_training()
        return net

    def _resume(self, accelerator: Any, run: Run) -> int:
        folders = sorted(run.checkpoints.glob("step_*"), key=lambda f: int(f.name[5:]))
        if not folders:
            return 0
        print(f"resuming from {folders[-1]}")
        accelerator.load_state(str(folders[-1]))
        return int(folders[-1].name[5:])

    def attach(
        self, accelerator: Any, optimizer: Any, model: nn.Module, loader: Any, run: Run
    ) -> None:
        """What is added to the loop."""

    def see(self, ids: Tensor) -> None:
        """Numbers of the samples whose loss comes next."""
