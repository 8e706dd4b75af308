"""What to change, as settings, with the run's own numbers in them."""

from __future__ import annotations

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import RootCause
from surefoot.doctor.rates import main_rate, rate_at

__all__ = ["clip_setting", "log_next_for", "remedy_for"]

_FIXED: dict[RootCause, tuple[str, ...]] = {
    RootCause.NUMERICALLY_UNSAFE_OP: (
        "compute it from logits: log_softmax, logsigmoid or softplus in place of log(p + eps)",
        "run the loss in float32, outside autocast",
        "a root or a division: add the epsilon inside, sqrt(x + 1e-12)",
    ),
    RootCause.BAD_DATA_OR_LABELS: (
        "check every sample before it is batched: torch.isfinite on inputs and targets, "
        "0 <= label < classes, no empty target",
        "log the ids of the samples of each step; surefoot's journal does",
    ),
    RootCause.FP16_OVERFLOW: (
        "bf16 in place of fp16 (--bf16, amp='bf16'): the same memory, the range of float32",
        "else run the layer that overflows in float32",
    ),
    RootCause.UNKNOWN: (),
}


def remedy_for(cause: RootCause, case: Case, line: int) -> tuple[str, ...]:
    """Settings against ``cause``, for a run that went wrong at ``line``."""
    if cause is RootCause.LR_TOO_HIGH:
        return (_lower_rate(case, line), *_warm_up(case, line), clip_setting(case))
    if cause is RootCause.EXPLODING_GRADIENTS:
        return (clip_setting(case), _lower_rate(case, line))
    return _FIXED.get(cause, ())


def log_next_for(case: Case) -> tuple[str, ...]:
    """What the log lacks that would tell causes of a breakdown apart."""
    wanted: list[str] = []
    if case.gradient is None:
        wanted.append("the gradient's norm at every step, before clipping")
    if main_rate(case) is None:
        wanted.append("the learning rate")
    if not case.terms:
        wanted.append("every term of the loss by itself")
    if not case.precision:
        wanted.append("the precision (fp16, bf16, float32) and the loss scale")
    return (*wanted, "the ids of the samples of the step that broke")


def _lower_rate(case: Case, line: int) -> str:
    rate = rate_at(case, line)
    if rate is None or not rate.value > 0:
        return "learning rate: a tenth of what it is"
    return f"learning rate {_round(rate.value / 10)} (a tenth of {_round(rate.value)})"


def _warm_up(case: Case, line: int) -> tuple[str, ...]:
    rate = rate_at(case, line)
    if rate is not None and rate.rising:
        return ("or a warm-up at least twice as long to the same peak",)
    return ("a linear warm-up over the first 1 to 5 % of the steps",)


def clip_setting(case: Case) -> str:
    """A threshold at twice the usual norm, if the log has norms."""
    if case.gradient is None:
        return "clip the gradient's norm: --gradient-clip-norm 1.0"
    norms = finite(case.gradient).values
    norms = norms[norms > 0]
    if not norms.size:
        return "clip the gradient's norm: --gradient-clip-norm 1.0"
    usual = float(np.median(norms[: max(3, norms.size // 2)]))
    return f"--gradient-clip-norm {_round(2 * usual)} (twice the usual norm, {_round(usual)})"


def _round(value: float) -> str:
    return f"{value:.2g}"
