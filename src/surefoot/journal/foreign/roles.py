"""What each column means, by its name, its unit and its values."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from surefoot.journal.foreign.draft import Draft
from surefoot.journal.foreign.losses import is_loss, settle_losses
from surefoot.journal.foreign.words import LOWER, METRICS, RATES, TRAIN, bag, side
from surefoot.journal.series import Role

__all__ = ["settle"]

_MEMORY = bag("mem memory vram ram rss gpumem cpumem allocated reserved maxmem uss pss")
_HOST = bag("cpumem ram rss host cpu system sys uss pss vms process virtual rampercent")
_NOT_USED = bag("free available total limit capacity")
_DEVICE = bag("gpumem gpu cuda device vram hbm mps")
_TIME = bag("time dt elapsed duration secs seconds took latency wall")
_PER = bag("step iter iteration batch it")
_GRAD = bag("grad gradient gradients gnorm gradnorm grads")
_BINARY = {
    "kb": 2.0**10,
    "kib": 2.0**10,
    "mb": 2.0**20,
    "mib": 2.0**20,
    "gb": 2.0**30,
    "gib": 2.0**30,
}
_BESIDE = {
    "(average)": "the average that the log prints beside the value",
    "__MIN": "the least value in the points that the export drew together",
    "__MAX": "the greatest value in the points that the export drew together",
}
_UNITS = re.compile(r"(?i)(?:^|[_ (/\[])(ms|[kmg]i?b)(?:[)\]]|$|_)")


def settle(drafts: list[Draft], kinds: frozenset[str]) -> None:
    """Decide the role of every column of a run.

    Args:
        drafts: the columns; they are changed.
        kinds: what kinds of messages the log has.
    """
    for draft in drafts:
        if draft.hint is not None:
            _hinted(draft)
        else:
            _by_name(draft, kinds)
    settle_losses(drafts)
    _summaries(drafts)
    _lone_norms(drafts)
    _groups(drafts)


def _hinted(draft: Draft) -> None:
    hint = draft.hint
    assert hint is not None
    if not draft.unit:
        draft.scale(hint.factor, hint.unit)
    if hint.running:
        draft.values = np.cumsum(np.nan_to_num(draft.values))
    draft.take(hint.role, hint.why, group=hint.group, better=hint.better)


def _by_name(draft: Draft, kinds: frozenset[str]) -> None:
    words = draft.words
    for ending, why in _BESIDE.items():
        if draft.name.endswith(ending):
            draft.why = why
            return
    for decide in (_scale, _norm, _clip, _rate_of_learning, _memory, _skipped):
        if decide(draft, words, kinds):
            return
    if is_loss(draft):
        return
    for decide in (_metric, _throughput, _time):
        if decide(draft, words, kinds):
            return
    draft.why = f"a number named {draft.name!r}"


def _scale(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    if not words & {"scale", "scaler", "lossscale"}:
        return False
    named = words & {"loss", "amp", "fp16", "grad", "gradient", "scaler", "lossscale", "scaling"}
    if not named and not (words <= {"scale", "cur", "current", "new"} and _powers(draft.values)):
        return False
    if "attempted" in words or "previous" in words:
        draft.why = "the loss scale that overflowed; the new one is a column of its own"
        return True
    powers = ", and its values are powers of two" if _powers(draft.values) else ""
    draft.take(Role.LOSS_SCALE, f"named like a loss scale{powers}")
    return True


def _powers(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    if not len(known) or not (known > 0).all():
        return False
    return bool(known.max() >= 8) and bool((np.frexp(known)[0] == 0.5).mean() > 0.9)


def _norm(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    section = draft.section.lower()
    under = "grad" in section and "norm" in section
    if draft.name.strip("|‖_2") in ("g", "grad"):
        draft.take(Role.GRADIENT_NORM, "written as the norm of a gradient")
        return True
    norm = words & {"norm", "gnorm", "gradnorm", "norms", "l2"}
    counted = words & {
        "accumulation",
        "accum",
        "accumulate",
        "checkpointing",
        "steps",
        "count",
        "num",
    }
    if counted or words & {"scale", "param", "parameter"} or "threshold" in words:
        return False
    if words & {"gnorm", "gradnorm"} or (norm and words & _GRAD):
        why = "named like a gradient norm"
    elif words & _GRAD and words & {"clipped", "clipping"} and words <= _GRAD | {"clipped", "to"}:
        why = "named like what the gradient was clipped to"
    elif (
        words <= _GRAD | {"total", "l2", "max", "raw", "magnitude", "abs", "mean"} and words & _GRAD
    ):
        why = "named like the size of the gradient"
    elif under:
        why = f"stands below the heading {draft.section!r}"
    else:
        return False
    if words & {"clip", "max"} and _constant(draft) and "raw" not in words:
        draft.take(Role.CLIP_THRESHOLD, "named like the norm that gradients are clipped to")
        return True
    whole = words & _GRAD or "total" in words or words == frozenset({"norm"})
    clipped = {"clipped", "after", "post"} & words
    group = "after clipping" if clipped else "" if whole else draft.name
    draft.take(Role.GRADIENT_NORM, why, group=group)
    return True


def _constant(draft: Draft) -> bool:
    known = draft.values[np.isfinite(draft.values)]
    return len(known) > 0 and bool((known == known[0]).all())


def _clip(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    if not words & {"clip", "clipping", "clipped"} and words != frozenset({"max", "norm"}):
        return False
    if words & {
        "fraction",
        "frac",
        "ratio",
        "coef",
        "coefficient",
        "percent",
        "count",
        "rate",
        "loss",
    }:
        draft.why = "how often or how much was clipped, not the threshold"
        return True
    if words & {"norm", "threshold", "value", "val", "max", "grad"} and _constant(draft):
        draft.take(Role.CLIP_THRESHOLD, "named like the threshold of the clipping, and constant")
        return True
    return False


def _rate_of_learning(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    named = any(re.fullmatch(r"lrs?\d*|lrate", w) for w in words) or {"learning", "rate"} <= words
    if not named or words & {"scale", "mult", "ratio", "loss", "decay"}:
        return False
    draft.take(Role.LEARNING_RATE, "named like a learning rate")
    return True


def _memory(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    device = words & _DEVICE and draft.unit == "bytes"
    if not (words & _MEMORY or device) or draft.unit in ("%", "seconds", "per second"):
        return False
    if words & _NOT_USED:
        draft.why = "memory that is there or free, not what is used"
        return True
    assumed = ""
    if draft.unit != "bytes":
        found = _UNITS.search(draft.name)
        factor, assumed = (
            (_BINARY[found[1].lower()], "")
            if found and found[1].lower() in _BINARY
            else _guess(draft)
        )
        draft.scale(factor, "bytes")
    on_host = (words & _HOST and not words & _DEVICE) or (
        not words & _DEVICE and {"memory", "ram"} & words and "worker_killed" in kinds
    )
    role = Role.HOST_MEMORY if on_host else Role.DEVICE_MEMORY
    draft.take(role, f"named like memory{assumed}")
    return True


def _guess(draft: Draft) -> tuple[float, str]:
    """A unit for memory that stands without one."""
    known = draft.values[np.isfinite(draft.values)]
    size = float(np.abs(known).max()) if len(known) else 0.0
    if size >= 2.0**27:
        return 1.0, ", taken for bytes"
    if size >= 512:
        return 2.0**20, ", taken for MiB"
    return 2.0**30, ", taken for GiB"


def _skipped(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    if not words & {"skipped", "skips", "skip", "refused"} or words & {
        "lines",
        "samples",
        "images",
        "time",
    }:
        return False
    if (np.diff(draft.values) < 0).any():
        draft.values = np.cumsum(np.nan_to_num(draft.values))
        draft.take(Role.SKIPPED, "named like skipped steps; counted anew each time, so summed up")
        return True
    draft.take(Role.SKIPPED, "named like a count of skipped steps")
    return True


def _metric(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    known = {re.sub(r"\d+$", "", w) for w in words} & METRICS | words & METRICS
    if "is" in known and not re.match(r"IS(?:_|$)", draft.name):
        known -= {"is"}
    if (
        not known
        or words & {"time", "sec", "second", "best", "learning"}
        or draft.unit in ("seconds", "bytes")
    ):
        return False
    if words & {"std", "stderr"}:
        draft.why = "the spread of a metric"
        return True
    better = "lower" if known & LOWER else "higher"
    draft.take(Role.METRIC, f"named like a metric of which {better} is better", better=better)
    return True


def _throughput(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    per = {"per", "sec"} <= words or {"per", "second"} <= words or {"sec", "it"} <= words
    rated = words & RATES or per or "/s" in draft.name.lower()
    if draft.unit != "per second" and not (rated and not draft.unit):
        return False
    draft.take(Role.THROUGHPUT, "counts per second")
    draft.unit = "per second"
    return True


def _time(draft: Draft, words: frozenset[str], kinds: frozenset[str]) -> bool:
    averaged = words & _PER and words & {"avg", "average", "mean"}
    if not words & _TIME and not (draft.unit == "seconds" and (averaged or words <= _PER | {"ms"})):
        return False
    if draft.unit not in ("", "seconds"):
        return False
    found = _UNITS.search(draft.name)
    if not draft.unit:
        draft.scale(1e-3 if found and found[1].lower() == "ms" else 1.0, "seconds")
    known = draft.values[np.isfinite(draft.values)]
    rising = (
        len(known) > 3
        and bool((np.diff(known) > 0).all())
        and (known[-1] > 2 * known[0] or len(known) > 8)
    )
    if words & {"total", "train", "training", "wall", "runtime"} or (rising and not words & _PER):
        draft.why = "time since the beginning"
        return True
    group = "data" if words & {"data", "load", "loading", "loader"} else ""
    draft.take(Role.STEP_TIME, "named like the time that a step takes", group=group)
    return True


def _summaries(drafts: Sequence[Draft]) -> None:
    """``train_gnorm`` once an epoch beside ``gnorm`` at every step sums that up."""
    for one in drafts:
        bare = one.words - TRAIN
        if one.role in (Role.OTHER, Role.METRIC) or bare == one.words:
            continue
        if any(d.words == bare and 2 * len(one.values) <= len(d.values) for d in drafts):
            one.take(Role.OTHER, f"sums up what {' '.join(sorted(bare))!r} tells more often")


def _lone_norms(drafts: Sequence[Draft]) -> None:
    """``norm`` beside a loss is that of the gradient."""
    beside = {d.origin for d in drafts if d.role in (Role.LOSS, Role.TERM)}
    for draft in drafts:
        if (
            draft.role is Role.OTHER
            and draft.words == frozenset({"norm"})
            and draft.origin in beside
        ):
            draft.take(Role.GRADIENT_NORM, "a norm on the same line as the loss")


def _groups(drafts: Sequence[Draft]) -> None:
    """Name the side of a column, and tell several of one kind apart."""
    for draft in drafts:
        if draft.group:
            continue
        if draft.section.startswith("weighted "):
            draft.group = "weighted"
            continue
        draft.group = draft.side or side(tuple(draft.words))
        index = re.search(r"(?:\[|pg|group_?|lr_?)(\d+)\]?$", draft.name)
        if draft.role is Role.LEARNING_RATE and index is not None:
            draft.group = index[1]
