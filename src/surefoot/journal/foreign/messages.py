"""Lines in words that are evidence: overflows, exceptions, warnings, what the machine said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from surefoot.journal.foreign.numbers import to_float
from surefoot.journal.series import Message

__all__ = ["MAX_TEXT", "Messages", "Rule", "rule_for"]

MAX_TEXT = 300
"""Characters of a line that are kept."""
MAX_OF_A_KIND = 5_000
"""Messages of one kind that are kept: as many of the first as of the last, half each."""
_N = r"[-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|inf|nan)"


@dataclass(frozen=True)
class Rule:
    """What lines of one kind look like."""

    kind: str
    pattern: re.Pattern[str]


def _rules(*rules: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(kind, re.compile(pattern)) for kind, pattern in rules)


_RULES = _rules(
    (
        "scale_at_minimum",
        rf"(?i)minimum loss scale(?: of)? ?(?:{_N} )?reached(?: \((?P<scale>{_N})\))?"
        r"|loss scale (?:is )?(?:already )?at (?:the )?minimum",
    ),
    (
        "overflow",
        rf"Gradient overflow\..*reducing loss scale to (?P<scale>{_N})"
        rf"|OVERFLOW!.*Attempted loss scale: (?P<attempted>{_N}),? (?:reducing to (?P<next>{_N})"
        rf"|but)"
        rf"|(?:gradient )?overflow detected,.*loss scale to:? ?(?P<set>{_N})"
        rf"|(?i:over-?flow).{{0,80}}(?:loss[ _]?)?scale\D{{0,20}}(?P<any>{_N})"
        r"|(?i:gradient[s]? over-?flow|overflow on global rank|overflow detected)",
    ),
    (
        "scaler_misuse",
        r"No inf checks were recorded|unscale_\(\) has already been called"
        r"|unscale_\(\) is being called"
        r"|step\(\) has already been called since the last update|Attempting to unscale FP16"
        r"|_?(?:growth|scale) is None"
        r"|must be called (?:at least once )?before (?:scaler\.)?(?:step|update)",
    ),
    (
        "out_of_memory",
        r"(?i)(?:CUDA|HIP|MPS|XPU)?[ .]*out ?of ?memory(?!.*(?:oom-kill|killed process))"
        r"|OutOfMemoryError"
        r"|CUBLAS_STATUS_ALLOC_FAILED|can.t allocate memory|cannot allocate memory"
        r"|RESOURCE_EXHAUSTED"
        r"|(?<!\w)MemoryError|cudaErrorMemoryAllocation",
    ),
    (
        "worker_killed",
        r"DataLoader worker \(?pid|(?i:oom[- _]kill)|Killed process|(?i:killed by signal"
        r"|signal 9\b|SIGKILL)"
        r"|^\s*Killed\s*$|(?i:exit ?code:? ?-?(?:9|137)\b)|(?i:bus error)|slurm.*oom",
    ),
    (
        "nan_gradient",
        r"(?i)(?:nan|inf|non-?finite|not finite)\W*(?:/|or|and)?\W*(?:nan|inf(?:inity)?)?\W*"
        r"(?:values? )?(?:detected |found |values? )?(?:in )?(?:the )?(?:final )?grad"
        r"|grad\w*.{0,40}(?:is|are|contains?|has|have|=|:)\s*(?:nan|inf|non-?finite"
        r"|not finite)\b.{0,60}(?:skip|stop|abort|!)"
        r"|total norm of order .* for gradients .* is non-finite",
    ),
    (
        "nan_warning",
        r"returned nan values in its|(?i:(?:nan|inf)(?:/| or | and )?(?:nan"
        r"|inf)? (?:values? )?(?:found|detected|encountered)? ?"
        r"in (?:the )?(?:input|model|loss|aux|output|forward|prediction|weights?|parameters?))"
        r"|(?i:detected (?:inf|nan)(?:/(?:nan|inf))? (?:during|in))"
        r"|(?i:\bloss (?:is|was|became|=|==|:)? ?(?:nan|inf|infinite|not finite"
        r"|non-?finite)\b.*(?:stop|abort|exit|diverg|skip|!|terminat))"
        r"|(?i:diverged with loss|(?:nan|infinite|non-?finite) (?:or nan )?(?:train(?:ing)? )?loss)"
        r"|(?:invalid value|divide by zero|overflow) encountered",
    ),
    (
        "schedule_order",
        r"lr_scheduler\.step\(\)`? before `?optimizer\.step\(\)|Tried to step \d+ times",
    ),
    (
        "device_assert",
        r"device-side assert|(?i:CUDA error|CUDNN_STATUS_\w+|CUBLAS_STATUS_\w+)"
        r"|Assertion `[^`]*` failed",
    ),
    (
        "swallowed",
        r"(?i)(?:detailed error|error|exception|failed) (?:at|in|on|during|for) (?:batch|step"
        r"|iteration|sample)\b"
        r"|(?i:skipping (?:this |the |bad |corrupt\w* )?(?:batch|sample|image|iteration))",
    ),
    (
        "refused",
        r"(?i)skipp(?:ing|ed) (?:this |the |an? )?(?:optimi[sz]er |optimi[sz]ation |training "
        r"|weight |gradient )?"
        r"(?:step|update)",
    ),
    (
        "resumed",
        r"(?i)(?:\bresum(?:e|ed|ing):? (?:training|from|run|epoch|at|step|checkpoint)"
        r"|=> loaded checkpoint|\b(?:continuing|continued) (?:training )?from"
        r"|\brestored? (?:model|checkpoint|from))",
    ),
    ("timeout", r"(?i)watchdog caught collective|nccl.*time ?d? ?out|collective operation timeout"),
    (
        "stopped",
        r"(?i)early stopp(?:ing|ed)|\bexploding, abort|training (?:was )?(?:interrupted|aborted"
        r"|stopped)"
        r"|KeyboardInterrupt",
    ),
    (
        "data_warning",
        r"(?i)corrupt(?:ed)? (?:image|jpeg|label|file|sample)|premature end of (?:jpeg|data)"
        r"|truncated image|"
        r"ignoring corrupt|(?:no|0) labels? found",
    ),
    (
        "exception",
        r"^\s*(?:\[\w*\d*\]:? ?)?(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt"
        r"|Exit)\b(?::|\s*$|,)"
        r"|^\S+\.py: error: (?:unrecognized arguments|the following arguments|argument )",
    ),
    (
        "weak_half_gpu",
        r"(?i)\bGTX ?16[3-6]0\b|\b(?:Quadro|NVIDIA) T(?:400|500|550|600|1000|1200|2000)\b",
    ),
    (
        "phase",
        r"^\W*(?:STAGE|Stage|PHASE|Phase) \d+\b[^\d=]*$"
        r"|(?i:\bunfr(?:oze|eezing)\b)(?!.*[=:]\s*-?\d)",
    ),
    ("error", r"(?:^|[\]\s|-])(?:ERROR|CRITICAL|FATAL)(?:[\]\s|:-]|$)"),
)
_SUSPECT = re.compile(
    r"(?i)overflow|minimum|at min|inf |nan|unscale|memory|alloc|EXHAUSTED|kill|signal|exit|bus err"
    r"|finite|diverged|encountered|scheduler|tried to|assert|cud|cublas|error|exception|skip|resum"
    r"|loaded|continuing|restore|nccl|collective|stop|abort|interrupt|corrupt|premature|truncat|labels"
    r"|fail|inf/|infinite|scale is none|called|gtx|(?:quadro|nvidia) t\d|stage|phase|unfr"
)


def rule_for(text: str) -> Rule | None:
    """The first rule that a line fits, or None.

    >>> rule_for("AssertionError: No inf checks were recorded for this optimizer.").kind
    'scaler_misuse'
    >>> rule_for("step 3: loss 0.5") is None
    True
    """
    if _SUSPECT.search(text) is None:
        return None
    return next((rule for rule in _RULES if rule.pattern.search(text)), None)


@dataclass
class Messages:
    """What was said, in the log's order, with a bound for each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    """How many there were of each kind, kept or not."""
    _first: list[tuple[int, Message]] = field(default_factory=list)
    _last: dict[str, list[tuple[int, Message]]] = field(default_factory=dict)

    def add(self, place: int, rule: Rule, text: str) -> None:
        """Take a line that fits a rule."""
        found = rule.pattern.search(text)
        told = found.groupdict() if found else {}
        values = {_NAMED.get(name, name): to_float(said) for name, said in told.items() if said}
        self.say(place, rule.kind, text, values)

    def say(self, place: int, kind: str, text: str, values: Mapping[str, float]) -> None:
        """Take a line of a kind, with the numbers in it."""
        self.counts[kind] += 1
        entry = (place, Message(kind, 0, _clean(text), values=values))
        if self.counts[kind] <= MAX_OF_A_KIND // 2:
            self._first.append(entry)
            return
        last = self._last.setdefault(kind, [])
        last.append(entry)
        if len(last) > MAX_OF_A_KIND:
            del last[: MAX_OF_A_KIND // 2]

    def kept(self) -> list[tuple[int, Message]]:
        """The messages with their places, in order; their line is not set yet."""
        entries = [*self._first]
        for last in self._last.values():
            entries += last[-MAX_OF_A_KIND // 2 :]
        entries.sort(key=lambda entry: entry[0])
        return entries


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_NAMED = {"set": "scale", "next": "scale", "any": "scale"}


def _clean(text: str) -> str:
    return _CONTROL.sub(" ", text).strip()[:MAX_TEXT]
