"""Lightning's Trainer, by itself and with surefoot's callback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from benchmarks.chaos.columns.base import Column

if TYPE_CHECKING:
    from benchmarks.chaos.fault import Fault
    from benchmarks.chaos.run import Run

__all__ = ["Lightning"]


class Lightning(Column):
    """``Trainer.fit`` with ``gradient_clip_val`` and a ``ModelCheckpoint``."""

    needs = ("lightning",)
    name, title = "lightning", "Lightning"

    def not_staged(self, fault: Fault) -> str | None:
        """Lightning changes 16-mixed to bf16-mixed on the CPU."""
        if fault.setting.fp16:
            return "switches fp16 to bf16 on the CPU"
        return super().not_staged(fault)

    def train(self, run: Run) -> nn.Module:
        """As the documentation has it."""
        from lightning.pytorch import LightningModule, Trainer
        from lightning.pytorch.callbacks import ModelCheckpoint

        net = run.net()

        class Module(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def configure_optimizers(self) -> Any:
                return run.optimizer(net)

            def training_step(self, batch: Any, index: int) -> Any:
                x, y, _ = batch
                loss = run.loss(self.net(x), y)
                run.metric(self.global_step, loss)
                return loss

            def on_after_backward(self) -> None:
                if run.misuse:
                    nn.utils.clip_grad_norm_(self.parameters(), 1.0)

        callbacks: list[Any] = [*self.callbacks(run)]
        if run.checkpoint_every:
            saver = ModelCheckpoint(
                run.checkpoints,
                every_n_train_steps=run.checkpoint_every,
                save_top_k=-1,
                save_last=True,
            )
            callbacks.append(saver)
        world = run.setting.world
        trainer = Trainer(
            accelerator="cpu",
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            max_steps=run.steps,
            accumulate_grad_batches=run.setting.accumulate,
            gradient_clip_val=None if run.misuse else 1.0,
            callbacks=callbacks,
            default_root_dir=run.spec.folder,
            logger=False,
            enable_checkpointing=bool(run.checkpoint_every),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(run.data(), run.batch, shuffle=True, num_workers=run.setting.workers)
        self.protect(loader, run)
        resume = run.resumes and (run.checkpoints / "last.ckpt").exists()
        trainer.fit(Module(), loader, ckpt_path="last" if resume else None)
        return net

    def newest_file(self, folder: Path) -> Path:
        """The one that a restart takes."""
        return folder / "last.ckpt"

    def callbacks(self, run: Run) -> list[Any]:
        """Further callbacks."""
        return []

    def protect(self, loader: DataLoader[Any], run: Run) -> None:
        """What is done to the loader."""
