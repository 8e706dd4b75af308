"""The guard in the Trainer of Hugging Face Transformers.

    trainer = Trainer(model, arguments, train_dataset=data)
    attach(trainer)
    trainer.train()

The Trainer steps through Accelerate, so this is :mod:`surefoot.integrations.accelerate` at the
right moments: a refused step moves no scheduler, and the guard's counters and windows are in the
``optimizer.pt`` of every checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surefoot.errors import UsageError
from surefoot.guard import Clip, Policy
from surefoot.integrations.accelerate import AcceleratedGuard, require_own
from surefoot.integrations.report import RunReport, journal_path
from surefoot.integrations.resume import LoadedState

try:
    import transformers
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments
except ModuleNotFoundError as problem:
    raise ModuleNotFoundError(
        "surefoot.integrations.transformers needs the packages transformers and accelerate, and "
        f"{problem.name} is not installed: pip install 'surefoot[transformers]'.",
        name=problem.name,
    ) from problem

__all__ = ["TrainerGuard", "attach"]


def attach(
    trainer: Trainer,
    *,
    clip: float | Clip | Sequence[Clip] | None = None,
    policy: Policy | None = None,
    journal: Path | str | bool = True,
) -> TrainerGuard:
    """Guard every step of ``trainer.train()``; before it is called, any number of times.

    Args:
        trainer: any Trainer, a subclass of it as well.
        clip: as for :class:`~surefoot.Guard`; it takes the place of ``max_grad_norm``, which then
            only measures. With None, ``max_grad_norm`` clips as ever, but leaves gradients that are
            not finite as they are, so that the record can name the layer.
        policy: what happens when something is wrong.
        journal: True for ``journal.jsonl`` in ``output_dir``, False for none, or a file.

    Returns:
        The callback that was added; its ``detach()`` takes everything out again.

    Raises:
        UsageError: a Trainer that is guarded already, or one that trains with DeepSpeed.
    """
    if trainer.is_deepspeed_enabled:
        raise UsageError(
            "surefoot: DeepSpeed takes its steps inside its own engine, which calls no torch "
            "optimizer; surefoot cannot see them."
        )
    if any(isinstance(known, TrainerGuard) for known in trainer.callback_handler.callbacks):
        raise UsageError(
            "surefoot: this Trainer is guarded already; one attach(trainer) is enough."
        )
    guard = TrainerGuard(trainer, clip=clip, policy=policy, journal=journal)
    trainer.add_callback(guard)
    return guard


class TrainerGuard(TrainerCallback):
    """What :func:`attach` adds to a Trainer.

    Args:
        trainer: see :func:`attach`.
        clip: see :func:`attach`.
        policy: see :func:`attach`.
        journal: see :func:`attach`.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        clip: float | Clip | Sequence[Clip] | None,
        policy: Policy | None,
        journal: Path | str | bool,
    ) -> None:
        self._trainer = trainer
        self._clip, self._policy, self._journal = clip, policy, journal
        self._guard: AcceleratedGuard | None = None
        self._loaded = LoadedState(trainer, "create_optimizer")
        self._usual_train = trainer.train
        trainer.train = self._train
        self.report: RunReport | None = None
        """Of the run that is under way, or of the last one."""

    @property
    def last(self) -> Any:
        """The :class:`~surefoot.StepRecord` of the last step; None before the first."""
        return None if self._guard is None else self._guard.last

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Optimizer and model are prepared, and what a checkpoint held is loaded."""
        self._end()
        trainer: Any = self._trainer
        require_own(trainer.optimizer, trainer.model_wrapped)
        self.report = RunReport(
            journal_path(self._journal, args.output_dir),
            run={"framework": "transformers", "framework_version": transformers.__version__},
        )
        self._guard = AcceleratedGuard(
            trainer.accelerator,
            trainer.optimizer,
            trainer.model_wrapped,
            self.report,
            clip=self._clip,
            policy=self._policy,
        )
        self._guard.serve(
            divided_by=lambda: trainer.current_gradient_accumulation_steps,
            clips=self._clip is None,
        )
        self._loaded.hand_on(trainer.optimizer)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Everything is taken off again; the summary is printed."""
        self._end()

    def detach(self) -> None:
        """The Trainer is as it was before :func:`attach`."""
        self._end()
        self._loaded.remove()
        self._trainer.__dict__.pop("train", None)
        self._trainer.remove_callback(self)

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        """No callback hears of an exception, so this looks out for it."""
        try:
            return self._usual_train(*args, **kwargs)
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException | None = None) -> None:
        if self._guard is not None:
            self._guard.detach(error)
