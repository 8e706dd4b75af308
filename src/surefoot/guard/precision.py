"""Is half precision good enough for this model on this device? Asked once, on the first batch.

The same batch goes through in half precision and in float32, with the same random numbers: loss and
gradients have to be finite, and near. Where they are not, the next wider precision is tried, and
what was wrong is said. Nothing of the model, its gradients or the random sequences is changed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from surefoot.errors import ConfigError
from surefoot.guard.deviation import Deviation, Passed, deviation
from surefoot.guard.first_batch import Compute, FirstBatch, Half, Precision
from surefoot.guard.policy import Policy

__all__ = ["PrecisionCheck", "PrecisionTrial", "check_precision", "has_bf16"]

_SCALE_STEP = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionTrial:
    """What came of one half precision."""

    precision: Half
    good: bool = False
    says: str = ""
    """A sentence without capital and full stop."""
    loss_scale: float = 1.0
    """At which the gradient was finite, or the last one that was tried."""
    deviation: Deviation | None = None
    """From float32; None where something was not finite."""
    control: Deviation | None = None
    """What rounding the weights alone does in float32; None where it was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionCheck:
    """What was asked, what is chosen, and why."""

    asked: Precision
    chosen: Precision
    reason: str
    """A sentence without capital and full stop."""
    trials: tuple[PrecisionTrial, ...] = ()

    @property
    def amp(self) -> Half | None:
        """The choice as :class:`~surefoot.guard.Guard` takes it."""
        return None if self.chosen == "fp32" else self.chosen

    def __str__(self) -> str:
        instead = "" if self.asked == self.chosen else f" instead of {self.asked}"
        return f"{self.chosen}{instead}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a journal."""
        return asdict(self)


def has_bf16(device: torch.device) -> bool:
    """Whether the device itself computes in bfloat16; elsewhere it is emulated, and slow.

    On a CPU that takes AVX512-BF16 or AMX, on an NVIDIA GPU the Ampere generation or a later one.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_precision(
    model: nn.Module, compute: Compute, amp: Half | None, *, policy: Policy | None = None
) -> PrecisionCheck:
    """Try the first batch in half precision and in float32, and choose.

    Two forward and backward passes where all is well, a few more where something is not. Peak
    memory is that of a float32 step without optimizer state. Ranks under
    ``DistributedDataParallel`` choose alike; sharded weights are not compared.

    Args:
        model: everything that ``compute`` trains or moves, with float32 weights. Its mode (training
            or not) is the caller's choice.
        compute: forward pass and loss of one batch: a scalar or named terms. It opens no autocast
            of its own; the one that the guard would use is put around it.
        amp: the precision that is asked for.
        policy: gives the loss scale that fp16 starts at.

    Returns:
        What to give to the guard as ``amp``, and why: as asked, else bf16 (where the device has
        it), else float32.

    Raises:
        ConfigError: an unknown ``amp``.
        UsageError: the loss depends on no parameter of the model.
        Exception: whatever ``compute`` raises in float32 as well.

    >>> model, batch = nn.Linear(8, 1), torch.ones(4, 8)
    >>> check_precision(model, lambda: model(batch).mean(), "bf16").chosen
    'bf16'
    >>> check_precision(model, lambda: (model(batch) * 1e6).mean(), "fp16").chosen == "fp16"
    False
    """
    if amp is None:
        return PrecisionCheck(asked="fp32", chosen="fp32", reason="as asked")
    if amp not in ("bf16", "fp16"):
        raise ConfigError(f"check_precision: amp={amp!r}: 'bf16', 'fp16' or None.")
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        reason = "not compared with float32, because the weights are sharded over ranks"
        return PrecisionCheck(asked=amp, chosen=amp, reason=reason)
    return _Check(model, compute, policy or Policy()).choose(amp)


class _Check:
    """The choice. Ranks that train together make the same passes, because a layer may wait for the
    others in its forward pass.
    """

    def __init__(self, model: nn.Module, compute: Compute, policy: Policy) -> None:
        self._batch, self._policy = FirstBatch(model, compute), policy
        self._device = next(model.parameters()).device
        self._together = any(
            isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()
        )
        self._float32: Passed | None = None

    def choose(self, asked: Half) -> PrecisionCheck:
        """Down the ladder until one is good."""
        native, trials = has_bf16(self._device), list[PrecisionTrial]()
        ladder: tuple[Half, ...] = ("fp16", "bf16") if asked == "fp16" and native else (asked,)
        for precision in ladder:
            trials.append(self._try(precision))
            if trials[-1].good:
                break
            if self._anywhere(not self._exact().finite):
                reason = (
                    "loss and gradient of the first batch are not finite in float32 either, so "
                    "precision is not to blame"
                )
                return PrecisionCheck(
                    asked=asked, chosen=asked, reason=reason, trials=tuple(trials)
                )
        reason, good = "; ".join(trial.says for trial in trials), trials[-1].good
        if not native and (asked == "bf16" or not good):
            reason += f"; bf16 is only emulated on this {self._device.type.upper()}"
        chosen: Precision = trials[-1].precision if good else "fp32"
        return PrecisionCheck(asked=asked, chosen=chosen, reason=reason, trials=tuple(trials))

    def _try(self, precision: Half) -> PrecisionTrial:
        trial = PrecisionTrial(precision=precision)
        try:
            half, scale = self._scaled_down(precision)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that this precision does not have
            problem = (str(error) or type(error).__name__).splitlines()[0]
            return replace(trial, says=f"{precision} cannot be computed ({problem})")
        trial = replace(trial, loss_scale=scale)
        if self._anywhere(not half.finite):
            where = self._batch.where(precision, scale)
            elsewhere = f"{precision} is not finite on another rank"
            return replace(trial, says=elsewhere if half.finite else where)
        exact = self._exact()
        if self._anywhere(not exact.finite):
            return trial
        trial = self._judge(trial, half, exact)
        if self._anywhere(not trial.good) and trial.good:
            return replace(trial, good=False, says=f"{precision} is not near on another rank")
        if precision == "fp16" and scale < self._policy.initial_scale:
            came_down = f"its gradients overflow until the loss scale is down to {scale:g}"
            trial = replace(trial, says=f"{trial.says}; {came_down}")
        return trial

    def _judge(self, trial: PrecisionTrial, half: Passed, exact: Passed) -> PrecisionTrial:
        """By itself, and if that is not enough against what rounded weights alone do."""
        off, name = deviation(half, exact), trial.precision
        near = off.near()
        says = (
            f"{name} {'agrees with' if near else 'is not near'} float32 on the first batch: {off}"
        )
        trial = replace(trial, deviation=off, good=near, says=says)
        if not self._anywhere(not near):
            return trial
        rounded = self._batch.run_rounded(name)
        if near or not rounded.finite:
            return trial
        control = deviation(rounded, exact)
        alone = f"rounding the weights alone gives {control.cosine:.4f}"
        if off.near(control):
            says = f"{name} is as near to float32 as this model lets it be: {off}"
            return replace(trial, good=True, control=control, says=f"{says} ({alone})")
        return replace(trial, control=control, says=f"{says} ({alone})")

    def _scaled_down(self, precision: Half) -> tuple[Passed, float]:
        """A pass, with a loss scale at which the gradient does not overflow, if there is one."""
        if precision != "fp16":
            return self._batch.run(precision), 1.0
        scale, least = self._policy.initial_scale, self._policy.min_scale
        half = self._batch.run(precision, scale)
        while self._anywhere(math.isfinite(half.loss) and not half.finite) and scale > least:
            scale = max(scale / _SCALE_STEP, least)
            half = self._batch.run(precision, scale)
        return half, scale

    def _exact(self) -> Passed:
        if self._float32 is None:
            self._float32 = self._batch.run("fp32")
        return self._float32

    def _anywhere(self, flag: bool) -> bool:
        """True on every rank when it is on one."""
        if not self._together:
            return flag
        on_gpu = torch.distributed.get_backend() == "nccl"
        vote = torch.tensor(float(flag), device=self._device if on_gpu else "cpu")
        torch.distributed.all_reduce(vote, torch.distributed.ReduceOp.MAX)
        return bool(vote)
