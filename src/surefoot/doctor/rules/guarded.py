"""What surefoot's own guard saw and wrote down: where a bad value came up, what was rolled back."""

from __future__ import annotations

from collections.abc import Iterator

from surefoot.doctor.case import Case
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.remedies import remedy_for
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import counted, said_at
from surefoot.journal.series import Message

__all__ = ["RULES"]

_NAN_CODES = ("SF101", "SF102", "SF103", "SF104", "SF105", "SF106")
_MANY_ROLLBACKS = 3


@rule("SF108", "a bad value that the record of its step traced")
def traced(case: Case) -> Iterator[Finding]:
    """The guard ran the step again and saw where the first value that is no number came up."""
    kinds = ("fault_input", "fault_loss", "fault_backward", "fault_module", "fault_state")
    told = case.of_kind(*kinds)
    if not told:
        return
    # What comes after the first may be its consequence: weights that are bad are bad for good.
    first = told[0]
    cause, confidence = _behind(first, case)
    share = len(told) / max(1, sum(c.values.size for c in case.losses[:1]))
    yield Finding(
        code="SF108",
        title=f"a value that is no number was traced: {_after_step(first)}",
        cause=cause,
        severity=Severity.CRITICAL if share > 0.1 else Severity.WARNING,
        confidence=confidence,
        **said_at(first),
        evidence=(
            Evidence("traced", first.text, first.text),
            Evidence("times", len(told), f"{counted(len(told), 'step')} of {_of(case)} traced so"),
        ),
        not_this=_NOT.get(first.kind, ()),
        remedy=_REMEDY.get(first.kind, ()) or remedy_for(cause, case, first.line),
        log_next=("surefoot replay RUN --step N runs the refused step again, alone",),
        explains=_NAN_CODES,
    )


_NOT = {
    "fault_input": ("not lr_too_high: the value was bad before the model saw it",),
    "fault_loss": ("not the model: every module's output was finite",),
    "fault_backward": ("not bad data: the forward pass and the loss were finite",),
}
_REMEDY = {
    "fault_input": (
        "SafeLoader(loader, check=...) sets such samples aside; mend the file or the transform",
        "check every sample before it is batched: torch.isfinite on inputs and targets",
    ),
    "fault_backward": (
        "sqrt, norm, pow and atan2 have no finite gradient at 0, and torch.where lets through the "
        "NaN of the branch not taken: make the argument safe before the operation",
    ),
    "fault_state": (
        "find the step that made the weights bad, or go back to a checkpoint before it",
        "Policy(bad_state='rollback') goes back by itself",
    ),
}


def _behind(first: Message, case: Case) -> tuple[RootCause, float]:
    if first.kind == "fault_input":
        return RootCause.BAD_DATA_OR_LABELS, 0.9
    if first.kind == "fault_state":
        return RootCause.UNKNOWN, 0.6
    if first.kind == "fault_module" and first.values.get("infinite") and case.precision == "fp16":
        return RootCause.FP16_OVERFLOW, 0.8
    return RootCause.NUMERICALLY_UNSAFE_OP, 0.65 if first.kind == "fault_module" else 0.8


def _after_step(message: Message) -> str:
    return message.text.partition(": ")[2][:140] or message.text[:140]


def _of(case: Case) -> str:
    return counted(sum(c.values.size for c in case.losses[:1]), "step")


@rule("SF208", "half precision that the first batch did not bear")
def fell_back(case: Case) -> Iterator[Finding]:
    """The check before the first step chose another precision than the one that was asked for."""
    told = case.of_kind("precision_fallback")
    if told:
        yield Finding(
            code="SF208",
            title=f"the run trains in {told[0].text[:140]}",
            cause=RootCause.FP16_OVERFLOW,
            severity=Severity.NOTE,
            confidence=0.6,
            **said_at(told[0]),
            evidence=(Evidence("message", told[0].text, told[0].text[:160]),),
            not_this=("not a fault of this run: it trains in what the first batch did bear",),
            remedy=("ask for the precision that was chosen, or mend the layer that overflows",),
        )


@rule("SF506", "a learning rate that jumped tenfold")
def jumped(case: Case) -> Iterator[Finding]:
    """More than ten times what it ever was, from one step to the next: no warm-up does that."""
    told = case.of_kind("rate_jumped")
    if told:
        yield Finding(
            code="SF506",
            title=f"the learning rate jumped to {case.rate_at(told[0].line):.3g} in one step",
            cause=RootCause.SCHEDULE_ERROR,
            severity=Severity.WARNING,
            confidence=0.7,
            **said_at(told[0]),
            evidence=(Evidence("jumps", len(told), f"{counted(len(told), 'jump')} of that kind"),),
            not_this=("not a warm-up: that raises the rate by little in each step",),
            remedy=(
                "step the schedule once for every optimizer step, and restore its state on resume",
                "check the units: steps or epochs",
            ),
            explains=("SF502",),
        )


@rule("SF810", "a run that had to be rolled back")
def rolled_back(case: Case) -> Iterator[Finding]:
    """The weights were bad or the loss had left its valley; the guard went back to a snapshot."""
    told = case.of_kind("rolled_back")
    if not told:
        return
    undone, left = case.of_kind("rollback_undone"), case.of_kind("diverged")
    gave_up = case.said("TrainingDiverged", kind="exception")
    serious = bool(undone or gave_up or len(told) >= _MANY_ROLLBACKS)
    cause = RootCause.SPIKE_RECOVERED
    if serious:
        cause = RootCause.LR_TOO_HIGH if left else RootCause.UNKNOWN
    yield Finding(
        code="SF810",
        title=f"the run was rolled back {counted(len(told), 'time')}"
        + (" and did not recover by that" if serious else " and went on"),
        cause=cause,
        severity=Severity.WARNING if serious else Severity.NOTE,
        confidence=0.6 if serious else 0.7,
        **said_at(told[0]),
        evidence=(
            Evidence("rollbacks", len(told), f"first: {told[0].text[:120]}"),
            *((Evidence("undone", len(undone), "going back was undone"),) if undone else ()),
            *((Evidence("diverged", len(left), f"{left[0].text[:120]}"),) if left else ()),
        ),
        remedy=remedy_for(RootCause.LR_TOO_HIGH, case, told[0].line) if serious else (),
        log_next=("which samples the steps before the rollback had",) if serious else (),
        explains=("SF804",),
    )


@rule("SF909", "a loop that works on the gradients beside the guard")
def beside(case: Case) -> Iterator[Finding]:
    """Clipped, unscaled or zeroed by hand where the guard does it, or never zeroed at all."""
    touched, kept = case.of_kind("gradients_touched"), case.of_kind("gradients_kept")
    told = touched or kept
    if not told:
        return
    yield Finding(
        code="SF909",
        title=(
            "something beside the guard changes the gradients between two micro-batches"
            if touched
            else "gradients of earlier steps were not zeroed and are part of later ones"
        ),
        cause=RootCause.SCALER_MISUSE if touched else RootCause.EXPLODING_GRADIENTS,
        severity=Severity.WARNING,
        confidence=0.75,
        **said_at(told[0]),
        evidence=(Evidence("times", len(told), f"on {counted(len(told), 'step')}"),),
        not_this=("not a larger learning rate: the gradient itself is not that of the batch",),
        remedy=(
            "take clip_grad_norm_, unscale_ and zero_grad out of the loop: guard.step does them"
            if touched
            else "zero the gradients once for every optimizer step",
        ),
    )


RULES: tuple[Rule, ...] = (traced, fell_back, jumped, rolled_back, beside)
