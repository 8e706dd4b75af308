"""The guard in Ultralytics' trainers, as callbacks.

    model = YOLO("yolov8n.yaml")
    attach(model)
    model.train(data="coco8.yaml")

A refused step moves no average of the weights, and one NaN no longer costs an epoch. Nothing of
Ultralytics is imported here: what a trainer has is reached through the trainer it hands over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.errors import UsageError
from surefoot.guard import Attachment, Clip, Policy
from surefoot.guard import attach as attach_guard
from surefoot.integrations.losses import LossRoute
from surefoot.integrations.report import RunReport, journal_path
from surefoot.integrations.resume import LoadedState
from surefoot.records import Event, StepRecord
from surefoot.shapes import LossTerms

__all__ = ["attach", "callbacks"]


def attach(
    model: Any,
    *,
    clip: float | Clip | Sequence[Clip] | None = None,
    policy: Policy | None = None,
    journal: Path | str | bool = True,
) -> None:
    """Guard every step of ``model.train(...)``; before it is called.

    Args:
        model: a ``YOLO``, or anything else with ``add_callback``: a trainer as well.
        clip: as for :class:`~surefoot.Guard`, on top of Ultralytics' own clipping at a norm of 10.
        policy: what happens when something is wrong.
        journal: True for ``journal.jsonl`` in the run's ``save_dir``, False for none, or a file.

    Raises:
        UsageError: no ``add_callback``.

    >>> class Model:
    ...     def add_callback(self, event, function):
    ...         print(event)
    >>> attach(Model())
    on_pretrain_routine_start
    on_train_start
    on_train_batch_end
    on_train_epoch_end
    on_train_end
    """
    if not hasattr(model, "add_callback"):
        raise UsageError(
            f"surefoot: a YOLO model or a trainer was expected, not {type(model).__name__}."
        )
    watch = _Watch(clip, policy, journal)
    if hasattr(model, "build_optimizer"):
        watch.made(model)  # a trainer has told of itself while it was made
    for event, function in watch.callbacks().items():
        model.add_callback(event, function)


def callbacks(
    *,
    clip: float | Clip | Sequence[Clip] | None = None,
    policy: Policy | None = None,
    journal: Path | str | bool = True,
) -> Mapping[str, Callable[[Any], None]]:
    """The callbacks that :func:`attach` adds, by event; for one model or trainer.

    Args:
        clip: see :func:`attach`.
        policy: see :func:`attach`.
        journal: see :func:`attach`.

    >>> list(callbacks())[1]
    'on_train_start'
    """
    return _Watch(clip, policy, journal).callbacks()


class _Watch:
    """What the callbacks share from one event to the next."""

    def __init__(
        self,
        clip: float | Clip | Sequence[Clip] | None,
        policy: Policy | None,
        journal: Path | str | bool,
    ) -> None:
        self._settings: dict[str, Any] = {"clip": clip, "policy": policy}
        self._journal = journal
        self._loaded: LoadedState | None = None
        self._run: _Run | None = None

    def callbacks(self) -> dict[str, Callable[[Any], None]]:
        """By event."""
        return {
            "on_pretrain_routine_start": self.made,
            "on_train_start": self.start,
            "on_train_batch_end": self.batch_end,
            "on_train_epoch_end": self.epoch_end,
            "on_train_end": self.end,
        }

    def made(self, trainer: Any) -> None:
        """The trainer is there; optimizer and model are not yet."""
        if self._loaded is not None:
            return
        self._loaded = LoadedState(trainer, "build_optimizer")
        usual = trainer.train

        def train() -> Any:
            try:
                return usual()
            except BaseException as error:
                self._finish(error)  # no callback hears of an exception in every version
                raise
            finally:
                self._finish()
                trainer.__dict__.pop("train", None)

        trainer.train = train

    def start(self, trainer: Any) -> None:
        """Everything is there, what a checkpoint held as well."""
        report = RunReport(
            journal_path(self._journal, trainer.save_dir), run={"framework": "ultralytics"}
        )
        self._run = _Run(trainer, report, self._settings)
        if self._loaded is not None:
            self._loaded.hand_on(trainer.optimizer)

    def batch_end(self, trainer: Any) -> None:
        if self._run is not None:
            self._run.follow()

    def epoch_end(self, trainer: Any) -> None:
        """Ultralytics goes back a whole epoch for a last batch whose loss is not finite.

        The guard has refused that batch, or will when its window closes, so the last loss that was
        finite is shown instead.
        """
        if self._run is not None and self._run.finite_loss is not None:
            trainer.loss = self._run.finite_loss

    def end(self, trainer: Any) -> None:
        """The training is over."""
        self._finish()

    def _finish(self, error: BaseException | None = None) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.end(error)
        if self._loaded is not None:
            self._loaded.remove()
            self._loaded = None


class _Run:
    """One ``train``: what hangs where, so that it can be taken off again."""

    def __init__(self, trainer: Any, report: RunReport, settings: Mapping[str, Any]) -> None:
        self._trainer, self._report, self._settings = trainer, report, settings
        self._route = LossRoute()
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._stepping = False
        self.finite_loss: Tensor | None = None
        self._usual_step = trainer.optimizer_step
        trainer.optimizer_step = self._step
        self._forward = trainer.model.register_forward_hook(self._look)
        self._attach()

    def _attach(self) -> None:
        self._optimizer: torch.optim.Optimizer = self._trainer.optimizer
        # The guard's hook comes after this one, and Ultralytics' clipping before both.
        self._before = self._optimizer.register_step_pre_hook(self._show)
        scaler = self._trainer.scaler
        self._guard: Attachment = self._route.add(
            self._optimizer,
            lambda: attach_guard(
                self._optimizer,
                self._trainer.model,
                scaler=scaler if scaler.is_enabled() else None,
                on_record=self._heard,
                **self._settings,
            ),
        )
        self._after = self._optimizer.register_step_post_hook(self._hold)

    def _detach(self) -> None:
        self._before.remove()
        self._after.remove()
        self._route.remove(self._optimizer)

    def follow(self) -> None:
        """After a batch: the average moves again, and a new optimizer is guarded in its turn."""
        self._trainer.ema.enabled = True
        loss = self._trainer.loss
        if loss is not None and math.isfinite(float(loss.detach())):
            self.finite_loss = loss.detach()
        if self._trainer.optimizer is not self._optimizer:
            self._detach()
            self._attach()

    def end(self, error: BaseException | None) -> None:
        """Take everything off, print the summary and close the journal."""
        self._trainer.__dict__.pop("optimizer_step", None)
        self._forward.remove()
        if self._trainer.ema is not None:
            self._trainer.ema.enabled = True
        try:
            self._detach()
        finally:
            self._report.close(error)

    def _look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward pass of a training batch gives the loss and its parts."""
        batch = inputs[0] if inputs else None
        if self._stepping:
            return  # the guard runs the pass again, to see where it went wrong
        if not (module.training and isinstance(batch, dict) and isinstance(output, tuple)):
            return
        names = output[1] if isinstance(output[1], dict) else self._trainer.loss_names
        files = [Path(file).name for file in batch.get("im_file", ())]
        self._route.observe(_terms(output[0], tuple(names), len(batch["img"])), files)

    def _step(self) -> None:
        """Ultralytics' own, but gradients that are not finite are kept from its clipping.

        One NaN would make all of them NaN, and the layer it came from could not be named. A scaler
        that is switched on refuses such a step by itself, and wants to see the gradients for it.
        """
        held = [p for p in self._trainer.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in held]
        if gradients and not self._trainer.scaler.is_enabled():
            norm: Tensor = nn.utils.get_total_norm(gradients)
            if not math.isfinite(float(norm)):
                self._hidden = list(zip(held, gradients, strict=True))
                for parameter in held:
                    parameter.grad = None
        self._usual_step()

    def _show(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._stepping = True
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self._hidden = []

    def _hold(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The average of the weights is updated right after this step, if it is enabled."""
        self._stepping = False
        last = self._guard.last
        self._trainer.ema.enabled = last is None or not last.refused

    def _heard(self, record: StepRecord) -> None:
        self._report.write(record)
        if Event.ROLLED_BACK in record.events:
            averaged, model = self._trainer.ema.ema, self._trainer.model
            # What the bad weights have put into the average cannot be taken out of it again.
            averaged.load_state_dict(getattr(model, "module", model).state_dict())


def _terms(loss: Tensor, names: Sequence[str], images: int) -> LossTerms:
    """The parts of a loss by name; Ultralytics sums them and multiplies by the batch's size."""
    values = loss.detach().reshape(-1)
    if len(names) != len(values):
        return LossTerms({"loss": values.sum()}, {})
    raw = {str(name): value / images for name, value in zip(names, values, strict=True)}
    return LossTerms(raw, dict.fromkeys(raw, float(images)))
