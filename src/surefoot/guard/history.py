"""What went wrong lately, for the last words of a run that has to stop."""

from __future__ import annotations

from collections import Counter, deque

from surefoot.errors import TrainingDiverged
from surefoot.records import Cause, Event, StepRecord

__all__ = ["History"]

_NOTABLE = (
    Event.RATE_JUMPED,
    Event.DIVERGED,
    Event.ROLLED_BACK,
    Event.ROLLBACK_UNDONE,
    Event.SCALE_AT_FLOOR,
    Event.BUFFERS_MENDED,
)
_WARM, _RATE_EVERY = 64, 16
"""A warm-up is left out; 64 samples reach about a thousand steps back."""
_GROWN = 10.0
_ADVICE = {
    Cause.NONFINITE_LOSS: "Look at the samples and at the term of the loss that is not finite.",
    Cause.NONFINITE_GRADIENT: (
        "The loss was finite and its gradient was not: look for sqrt, norm, log or a division "
        "whose argument reaches 0 near the first parameter named."
    ),
    Cause.OVERFLOW: (
        "The loss scale fell and fell: the gradients overflow fp16 at any scale. Train in bf16 or "
        "fp32, or look for what makes them so large."
    ),
    Cause.NORM_OVERFLOW: "Check the learning rate and the range of the inputs.",
    Cause.NO_GRADIENT: "Look at how the loss of these batches is made.",
    Cause.SPIKE: "Look at the samples of the spikes, and at the learning rate.",
}


class History:
    """Refusals and notable events of the last steps; bounded.

    >>> history = History()
    >>> history.diagnosis()
    ()
    """

    def __init__(self) -> None:
        self._bad: deque[StepRecord] = deque(maxlen=128)
        self._rates: deque[tuple[int, float]] = deque(maxlen=64)
        self._steps = 0

    def add(self, record: StepRecord) -> None:
        """One more step is over."""
        self._steps = record.step + 1
        if record.step >= _WARM and record.step % _RATE_EVERY == 0 and record.learning_rates:
            self._rates.append((record.step, max(record.learning_rates)))
        if record.refused or any(event in _NOTABLE for event in record.events):
            self._bad.append(record)

    def last_words(self, stop: str, record: StepRecord) -> TrainingDiverged:
        """What a run is stopped with: why, the last step, and the diagnosis."""
        story = self.diagnosis()
        message = "\n".join([f"{stop} The last step: {record}.", *story])
        return TrainingDiverged(message, record=record, diagnosis=story)

    def diagnosis(self) -> tuple[str, ...]:
        """What happened, where first, what came before it, and what to do: a sentence each."""
        refused = [r for r in self._bad if r.refused]
        if not self._bad:
            return ()
        lines = list[str]()
        if refused:
            counts = Counter(r.cause for r in refused).most_common()
            named = ", ".join(f"{n} because {cause}" for cause, n in counts)
            span = self._steps - refused[0].step
            lines.append(f"Of the last {span} steps {len(refused)} were refused: {named}.")
            lines.append(f"The first of them was {refused[0]}.")
            names = Counter(c.name for r in refused for c in r.culprits[:1]).most_common(3)
            if names:
                often = ", ".join(f"{name} ({n})" for name, n in names)
                lines.append(f"Parameters named first, and how often: {often}.")
        for event in _NOTABLE:
            steps = [r.step for r in self._bad if event in r.events]
            if steps:
                lines.append(f"At step {_listed(steps)}: {event}.")
        if self._rates:
            (then, low), (now, rate) = min(self._rates, key=lambda r: r[1]), self._rates[-1]
            if rate > _GROWN * low > 0.0:
                lines.append(
                    f"The learning rate grew from {low:.3g} (step {then}) to {rate:.3g} "
                    f"(step {now})."
                )
        if refused and (advice := _ADVICE.get(refused[-1].cause)):
            lines.append(advice)
        return tuple(lines)


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:4]))
    return shown + (f" and {len(steps) - 4} more" if len(steps) > 4 else "")
