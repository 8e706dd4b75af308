"""The guard in Lightning's Trainer, as a callback.

    trainer = Trainer(callbacks=[GuardCallback(clip=1.0)])

A refused step moves no scheduler and no :class:`WeightAveraging`; the guard's counters and windows
are in the optimizer state of every checkpoint. Automatic and manual optimization, one optimizer or
several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError, TrainingDiverged, UsageError
from surefoot.guard import Attachment, Clip, Policy, attach
from surefoot.integrations.held import HeldScheduler, StepCount
from surefoot.integrations.losses import LossRoute, innermost
from surefoot.integrations.report import RunReport, journal_path
from surefoot.integrations.resume import guard_state, restore_guard

try:
    import lightning
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as problem:
    raise ModuleNotFoundError(
        "surefoot.integrations.lightning needs the package lightning, which is not installed: "
        "pip install 'surefoot[lightning]'.",
        name=problem.name,
    ) from problem

__all__ = ["GuardCallback"]


class GuardCallback(Callback):
    """Guards every optimizer step of ``trainer.fit``.

    Args:
        clip: as for :class:`~surefoot.Guard`; then leave ``gradient_clip_val`` out of the Trainer.
            It works with fused optimizers under ``16-mixed`` as well, which Lightning's own does
            not. With None, ``gradient_clip_val`` clips as ever, except gradients that are not
            finite, so that the record can name the layer.
        policy: what happens when something is wrong.
        journal: True for ``journal.jsonl`` in the logger's folder, or in ``default_root_dir`` where
            there is no logger; False for none; or a file.
        sample_ids: gives the names of a batch's samples, for the record; without it the batch is
            named by epoch and number.

    >>> GuardCallback(clip=1.0).attachments
    ()
    """

    def __init__(
        self,
        *,
        clip: float | Clip | Sequence[Clip] | None = None,
        policy: Policy | None = None,
        journal: Path | str | bool = True,
        sample_ids: Callable[[Any], Sequence[str]] | None = None,
    ) -> None:
        self._clip, self._policy, self._journal = clip, policy, journal
        self._sample_ids = sample_ids
        self._run: _Run | None = None
        self._kept: list[Any] = []
        self.report: RunReport | None = None
        """Of the fit that is under way, or of the last one."""

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """One for each optimizer, while ``fit`` runs."""
        return () if self._run is None else self._run.guards

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What an earlier ``fit`` has left is none of this one's."""
        if stage == "fit":
            self._kept = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers are there, and no checkpoint is loaded yet."""
        self._finish()
        _check(trainer, pl_module, self._clip)
        self.report = RunReport(
            journal_path(self._journal, trainer.log_dir or trainer.default_root_dir),
            run={"framework": "lightning", "framework_version": lightning.__version__},
        )
        self._run = _Run(trainer, pl_module, self.report, clip=self._clip, policy=self._policy)
        self._run.restore(self._kept)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What a checkpoint held is loaded."""
        if self._run is not None:
            self._run.begin()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The names of the samples that the next loss is about."""
        if self._run is None:
            return
        if self._sample_ids is not None:
            self._run.sample_ids = tuple(self._sample_ids(batch))
        else:
            self._run.sample_ids = (f"epoch {trainer.current_epoch}, batch {batch_idx}",)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """The loss of a micro-batch, as it goes into backward."""
        if self._run is not None:
            self._run.observe(loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The gradients are complete, and the Trainer has not clipped them yet."""
        if self._run is not None:
            self._run.spare_from_clipping(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What was lent for one step goes back."""
        if self._run is not None:
            self._run.clip_again()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """The run is cut short; the journal says by what."""
        self._finish(exception)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is taken off again; the summary is printed."""
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint that is saved after ``fit``, when the optimizers have no guard."""
        return {"guards": self._kept if self._run is None else self._run.states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning calls this before the optimizers are there."""
        self._kept = state_dict["guards"]

    def _finish(self, error: BaseException | None = None) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if not isinstance(error, TrainingDiverged):
            self._kept = run.states()
        run.end(error)


def _check(trainer: Trainer, module: LightningModule, clip: Any) -> None:
    if trainer.strategy.handles_gradient_accumulation:
        raise UsageError(
            f"surefoot: {type(trainer.strategy).__name__} takes its steps inside its own engine, "
            "which calls no torch optimizer; surefoot cannot see them."
        )
    if not [o for o in trainer.optimizers if o.param_groups]:
        raise UsageError(
            f"surefoot: {type(module).__name__}.configure_optimizers gives no optimizer, so there "
            "is no step to guard. Return one, or leave GuardCallback out."
        )
    if clip is not None and trainer.gradient_clip_val:
        raise ConfigError(
            f"surefoot: Trainer(gradient_clip_val={trainer.gradient_clip_val}) and "
            f"GuardCallback(clip={clip}) would clip one after the other. Leave gradient_clip_val "
            "out: surefoot clips the true gradient, after it has looked at it."
        )


class _Run:
    """One ``fit``: what hangs where, so that it can be taken off again."""

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        report: RunReport,
        *,
        clip: float | Clip | Sequence[Clip] | None,
        policy: Policy | None,
    ) -> None:
        self._trainer, self._module, self._report = trainer, module, report
        self._clip_val: int | float | None = None
        self.sample_ids: tuple[str, ...] = ()
        # The closure of automatic optimization gives the loss after its division.
        self._route = LossRoute(knows_closures=module.automatic_optimization)
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._optimizers = [innermost(o) for o in trainer.optimizers]
        self._held: list[tuple[Any, HeldScheduler]] = []
        self._averages: list[Any] = []
        self._counts: list[StepCount] = []
        self.guards: tuple[Attachment, ...] = ()
        try:
            for number, optimizer in enumerate(self._optimizers):
                extra = {"optimizer": number} if len(self._optimizers) > 1 else {}
                make = partial(
                    attach,
                    optimizer,
                    module if not extra else part_of(module, optimizer),
                    clip=clip,
                    policy=policy,
                    scaler=self._scaler,
                    on_record=partial(report.write, **extra),
                )
                self.guards = (*self.guards, self._route.add(optimizer, make))
        except UsageError:
            self.end(None)
            raise
        self._hold_schedulers()
        self._hold_averages()

    def states(self) -> list[Any]:
        """Of every guard."""
        return [guard_state(optimizer) for optimizer in self._optimizers]

    def restore(self, states: list[Any]) -> None:
        """The inverse; nothing where the optimizers are others."""
        if len(states) == len(self._optimizers):
            for optimizer, state in zip(self._optimizers, states, strict=True):
                restore_guard(optimizer, state)

    def begin(self) -> None:
        """Steps that a checkpoint tells of are none of this run."""
        for count in self._counts:
            count.moved()

    def observe(self, loss: Tensor) -> None:
        """Lightning has divided the loss by the accumulation, and multiplied it by its scale."""
        true = loss.detach()
        if self._scaler is not None:
            true = true / self._scaler.scale(torch.ones((), device=true.device))
        if self._module.automatic_optimization:
            true = true * self._trainer.accumulate_grad_batches
        self._route.observe(true, self.sample_ids)

    def spare_from_clipping(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the Trainer clip this step only if its gradients are finite.

        Otherwise one NaN makes all of them NaN. The step is refused anyhow.
        """
        if not self._trainer.gradient_clip_val:
            return
        groups = innermost(optimizer).param_groups
        gradients = [p.grad for g in groups for p in g["params"] if p.grad is not None]
        if not math.isfinite(float(nn.utils.get_total_norm(gradients))):
            self._clip_val = self._trainer.gradient_clip_val
            self._trainer.gradient_clip_val = None

    def clip_again(self) -> None:
        """The Trainer's clipping is what it was."""
        if self._clip_val is not None:
            self._trainer.gradient_clip_val, self._clip_val = self._clip_val, None

    def end(self, error: BaseException | None) -> None:
        """Take everything off, print the summary and close the journal."""
        self.clip_again()
        for config, scheduler in self._held:
            config.scheduler = scheduler.held
        for averaging in self._averages:
            averaging.__dict__.pop("should_update", None)
        try:
            for optimizer, _ in zip(self._optimizers, self.guards, strict=False):
                self._route.remove(optimizer)
        finally:
            self._report.close(error)

    def _hold_schedulers(self) -> None:
        for config in self._trainer.lr_scheduler_configs:
            number = self._optimizers.index(innermost(config.scheduler.optimizer))
            held: Any = HeldScheduler(config.scheduler, self.guards[number])
            config.scheduler = held
            self._held.append((config, held))
            self._counts.append(held.count)

    def _hold_averages(self) -> None:
        """Averages of weights that are taken after every step wait for one that was applied."""
        if len(self._optimizers) > 1:
            return
        callbacks: list[Any] = self._trainer.callbacks  # pyright: ignore
        for averaging in callbacks:
            if hasattr(averaging, "should_update"):
                count = StepCount(*self.guards)
                averaging.should_update = partial(_should_update, averaging.should_update, count)
                self._averages.append(averaging)
                self._counts.append(count)


def _should_update(
    usual: Callable[..., bool],
    count: StepCount,
    step_idx: int | None = None,
    epoch_idx: int | None = None,
) -> bool:
    moved = step_idx is None or count.moved()
    return usual(step_idx=step_idx, epoch_idx=epoch_idx) and moved


def part_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    """The children of a module that are this optimizer's alone; else the whole module.

    With several optimizers, as for a generator and a discriminator, a refused step of one must not
    take back the buffers and weights that the other has moved.
    """
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    part, covered = nn.Module(), set[int]()
    for name, child in module.named_children():
        held = {id(p) for p in child.parameters()}
        if held and held <= own:
            part.add_module(name, child)
            covered |= held
    return part if covered == own else module
