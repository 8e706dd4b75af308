"""The guard in a loop that Hugging Face Accelerate drives.

    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    guard = attach(accelerator, optimizer, model, clip=1.0)

The loop stays as it is. A refused step counts as skipped, so the prepared scheduler stays where it
is, as does whatever else asks ``accelerator.optimizer_step_was_skipped``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from surefoot.errors import TrainingDiverged, UsageError
from surefoot.guard import Attachment, Clip, Policy
from surefoot.guard import attach as attach_guard
from surefoot.integrations.losses import LossRoute, innermost
from surefoot.integrations.report import RunReport, journal_path

try:
    import accelerate
    from accelerate import Accelerator, DistributedType
    from accelerate.optimizer import AcceleratedOptimizer
except ModuleNotFoundError as problem:
    raise ModuleNotFoundError(
        "surefoot.integrations.accelerate needs the package accelerate, which is not installed: "
        "pip install 'surefoot[accelerate]'.",
        name=problem.name,
    ) from problem

__all__ = ["AcceleratedGuard", "attach"]

_ENGINES = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def attach(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    clip: float | Clip | Sequence[Clip] | None = None,
    policy: Policy | None = None,
    journal: Path | str | bool = True,
) -> AcceleratedGuard:
    """Guard the steps of a prepared optimizer; once for each optimizer, after ``prepare``.

    Args:
        accelerator: whose ``backward`` the loop calls; that is where the loss is seen.
        optimizer: what ``accelerator.prepare`` returned.
        model: the module whose parameters it steps, prepared or not.
        clip: as for :class:`~surefoot.Guard`; then leave ``accelerator.clip_grad_norm_`` out. With
            None, and ``clip_grad_norm_`` in the loop, that clips as ever, but leaves gradients that
            are not finite as they are, so that the record can name the layer.
        policy: what happens when something is wrong.
        journal: True for ``journal.jsonl`` in ``accelerator.project_dir`` where there is one, False
            for none, or a file.

    Raises:
        UsageError: an optimizer that is not prepared, is guarded already, or steps inside an
            engine (DeepSpeed, Megatron-LM); a model that is not the optimizer's.

    >>> accelerator = Accelerator(cpu=True)
    >>> net = nn.Linear(2, 1)
    >>> model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters()))
    >>> guard = attach(accelerator, optimizer, model)
    >>> accelerator.backward(model(torch.full((1, 2), torch.nan)).sum())
    >>> optimizer.step()
    >>> guard.last.cause, accelerator.optimizer_step_was_skipped
    (<Cause.NONFINITE_LOSS: 'nonfinite_loss'>, True)
    """
    if accelerator.distributed_type in _ENGINES:
        raise UsageError(
            f"surefoot: {accelerator.distributed_type.value} takes its steps inside its own "
            "engine, which calls no torch optimizer; surefoot cannot see them."
        )
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise UsageError(
            f"surefoot: a prepared optimizer was expected, not {type(optimizer).__name__}. Attach "
            "after accelerator.prepare(...), to what it returned."
        )
    require_own(optimizer, model)
    report = RunReport(
        journal_path(journal, accelerator.project_dir),
        run={"framework": "accelerate", "framework_version": accelerate.__version__},
    )
    return AcceleratedGuard(accelerator, optimizer, model, report, clip=clip, policy=policy)


class AcceleratedGuard:
    """What :func:`attach` leaves in place. Also a context manager that ends it.

    Args:
        accelerator: see :func:`attach`.
        optimizer: prepared.
        model: the module whose parameters it steps.
        report: takes the records.
        clip: see :func:`attach`.
        policy: see :func:`attach`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: AcceleratedOptimizer,
        model: nn.Module,
        report: RunReport,
        *,
        clip: float | Clip | Sequence[Clip] | None,
        policy: Policy | None,
    ) -> None:
        self.report = report
        self._accelerator, self._optimizer = accelerator, optimizer
        self._inner = innermost(optimizer)
        self._front = _Front.before(accelerator)
        scaler = accelerator.scaler if optimizer.scaler is not None else None
        try:
            self.attachment: Attachment = self._front.route.add(
                self._inner,
                lambda: attach_guard(
                    self._inner,
                    model,
                    clip=clip,
                    policy=policy,
                    scaler=scaler,
                    on_record=report.write,
                ),
            )
        except UsageError:
            self._front.remove_if_idle()
            raise
        self._was = type(optimizer)
        optimizer.__class__ = _GuardedOptimizer
        optimizer.__dict__["surefoot"] = self

    @property
    def last(self) -> Any:
        """The :class:`~surefoot.StepRecord` of the last step; None before the first."""
        return self.attachment.last

    def name_samples(self, sample_ids: Sequence[str]) -> None:
        """Names of the samples that the next ``accelerator.backward`` is about."""
        self._front.sample_ids = tuple(sample_ids)

    def serve(self, *, divided_by: Callable[[], int], clips: bool) -> None:
        """For a trainer that calls the accelerator.

        Args:
            divided_by: what it has divided a loss by before ``accelerator.backward`` gets it.
            clips: whether ``accelerator.clip_grad_norm_`` clips, or gives the norm only.
        """
        self._front.divided_by, self._front.clips = divided_by, clips

    def detach(self, error: BaseException | None = None) -> None:
        """Take everything off again, print the summary and close the journal.

        Args:
            error: what ended the run early; the journal says so.
        """
        if self._optimizer.__dict__.pop("surefoot", None) is None:
            return
        self._optimizer.__class__ = self._was
        try:
            self._front.route.remove(self._inner)
        finally:
            self._front.remove_if_idle()
            self.report.close(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach(error)


class _GuardedOptimizer(AcceleratedOptimizer):
    """Says of a refused step what Accelerate says of one that its scaler skipped.

    An optimizer takes this class while it is guarded, and takes its own again afterwards.
    """

    @property
    def step_was_skipped(self) -> bool:
        last = self.__dict__["surefoot"].last
        return super().step_was_skipped or (last is not None and last.refused)

    def step(self, closure: Any = None) -> None:
        try:
            super().step(closure)
        except TrainingDiverged as error:
            self.__dict__["surefoot"].detach(error)
            raise


class _Front:
    """Stands in front of the two methods of an accelerator that see losses and gradients."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.route = LossRoute()
        self.sample_ids: tuple[str, ...] = ()
        self.clips = True
        self.divided_by: Callable[[], int] = lambda: 1
        self._accelerator = accelerator
        self._backward, self._clip = accelerator.backward, accelerator.clip_grad_norm_
        accelerator.backward = self.backward
        accelerator.clip_grad_norm_ = self.clip_grad_norm_
        accelerator.__dict__["surefoot"] = self

    @classmethod
    def before(cls, accelerator: Accelerator) -> _Front:
        """The one that is there already, or a new one."""
        return accelerator.__dict__.get("surefoot") or cls(accelerator)

    def remove_if_idle(self) -> None:
        """Step aside when nobody is guarded any more."""
        if not len(self.route):
            for name in ("backward", "clip_grad_norm_", "surefoot"):
                self._accelerator.__dict__.pop(name, None)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """As Accelerate's, after a look at the loss."""
        ids, self.sample_ids = self.sample_ids, ()
        self.route.observe(loss.detach() * self.divided_by(), ids)
        self._backward(loss, **kwargs)

    def clip_grad_norm_(
        self, parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: int = 2
    ) -> Tensor | None:
        """As Accelerate's, but gradients that are not finite stay as they are.

        Otherwise one NaN makes all of them NaN, and one Inf makes all others 0. The step is refused
        anyhow; which layer it came from is all that is left to learn from them.
        """
        listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        gradients = [p.grad for p in listed if p.grad is not None]
        sharded = any(hasattr(gradient, "device_mesh") for gradient in gradients)
        if self._accelerator.distributed_type not in _PLAIN or sharded:
            return self._clip(listed, max_norm if self.clips else torch.inf, norm_type)
        self._accelerator.unscale_gradients()
        total = nn.utils.get_total_norm(gradients, norm_type)
        if self.clips:
            # A norm of 0 asks for no shortening: every gradient is multiplied by 1.
            asked = torch.where(torch.isfinite(total), total, torch.zeros_like(total))
            nn.utils.clip_grads_with_norm_(listed, max_norm, asked)
        return total


def require_own(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse a model that the optimizer does not train.

    Raises:
        UsageError: none of the optimizer's parameters is the model's.
    """
    held = {id(p) for p in model.parameters()}
    if not any(id(p) in held for group in optimizer.param_groups for p in group["params"]):
        raise UsageError(
            f"surefoot: none of the optimizer's parameters belongs to this {type(model).__name__}. "
            "Give the model that the optimizer steps; records take the layers' names from it."
        )
