"""What became of a step, why, and what else happened: words that carry their own sentence."""

from __future__ import annotations

from surefoot.faults import Sentence

__all__ = ["Cause", "Event", "Verdict"]


class Verdict(Sentence):
    """What became of a call to ``guard.step``."""

    APPLIED = "applied", "the optimizer stepped"
    REFUSED = "refused", "the step was refused; everything is as it was before it"
    ACCUMULATED = "accumulated", "the gradient was added to the window; the step comes later"


class Cause(Sentence):
    """Why a step was refused."""

    NONE = "none", "nothing was wrong"
    NONFINITE_LOSS = "nonfinite_loss", "the loss was NaN or Inf"
    NONFINITE_GRADIENT = "nonfinite_gradient", "a gradient was NaN or Inf"
    OVERFLOW = "overflow", "gradients overflowed fp16 at this loss scale; the scale was backed off"
    STALE = "stale", "the gradient belonged to weights that have been rolled back since"
    SPIKE = "spike", "the loss or the gradient was far above that of the accepted steps"
    NORM_OVERFLOW = (
        "norm_overflow",
        "every gradient was finite, but their norm is beyond float32: an absurd gradient",
    )
    NO_GRADIENT = "no_gradient", "the loss depends on none of the optimizer's parameters"


class Event(Sentence):
    """What else happened during a step, beside its verdict."""

    CLIPPED = "clipped", "the gradient was longer than the threshold and was shortened to it"
    RATE_JUMPED = "rate_jumped", "a learning rate is more than ten times what it ever was before"
    ZERO_RATE = "zero_rate", "every learning rate is 0, after it was not: the step changes nothing"
    LOSS_SPIKE = "loss_spike", "the loss was far above that of the accepted steps"
    GRADIENT_SPIKE = (
        "gradient_spike",
        "the gradient norm was far above that of the accepted steps",
    )
    GRADIENTS_KEPT = (
        "gradients_kept",
        "the gradients of the steps before were not zeroed and are part of this one",
    )
    GRADIENTS_TOUCHED = (
        "gradients_touched",
        "between two micro-batches something else changed the gradients: clip_grad_norm_, unscale_ "
        "and zero_grad have no place beside guard.step",
    )
    GRADIENT_ZERO = "gradient_zero", "every gradient was exactly 0: nothing is learnt from this"
    SILENT_PARAMETER = (
        "silent_parameter",
        "parameters of the optimizer have had no gradient for many steps: frozen by mistake?",
    )
    SILENT_TERM = (
        "silent_term",
        "a term of the loss has had no gradient in any of the first steps: it teaches nothing",
    )
    DIVERGED = (
        "diverged",
        "the loss has left its valley: it stayed far above what it was, or crept away",
    )
    ROLLED_BACK = (
        "rolled_back",
        "the state was bad, so weights, buffers and optimizer went back to the last good snapshot",
    )
    ROLLBACK_UNDONE = (
        "rollback_undone",
        "going back did not help, so the state from before it was put in again",
    )
    PARTIAL_WINDOW = (
        "partial_window",
        "the window closed with fewer micro-batches than asked; their mean was used",
    )
    SCALE_BACKED_OFF = "scale_backed_off", "the loss scale was reduced"
    SCALE_GREW = "scale_grew", "the loss scale was raised"
    SCALE_AT_FLOOR = "scale_at_floor", "the loss scale stands at its floor"
    BACKWARD_SKIPPED = "backward_skipped", "the loss was not finite, so backward was not run"
    BUFFERS_MENDED = (
        "buffers_mended",
        "module buffers were NaN or Inf though no step here had made them so; they were put back",
    )
    BATCH_OUTLYING = (
        "batch_outlying",
        "the batch was so unlike all others that BatchNorm's running statistics leave it out",
    )
    BUFFERS_RESTORED = (
        "buffers_restored",
        "module buffers were put back to what they were before the forward pass",
    )
