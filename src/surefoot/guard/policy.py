"""What the guard does when something is wrong: data, not subclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surefoot.errors import ConfigError

__all__ = ["Policy"]

_WORDS = {
    "nonfinite": ("refuse", "raise"),
    "spike": ("record", "clip", "refuse", "raise"),
    "bad_state": ("roll_back", "raise"),
    "divergence": ("roll_back", "record", "raise"),
}
_AT_LEAST_ONE = (
    "max_consecutive_refusals",
    "max_consecutive_spikes",
    "growth_interval",
    "suspect_after",
    "divergence_patience",
)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What happens at each event.

    >>> Policy.conservative().initial_scale
    1024.0
    """

    nonfinite: Literal["refuse", "raise"] = "refuse"
    """A NaN or Inf in the loss or a gradient: refuse that step and go on, or raise
    :class:`~surefoot.errors.TrainingDiverged` at once. A fp16 overflow above the scale's floor is
    normal and never raises by itself."""
    spike: Literal["record", "clip", "refuse", "raise"] = "record"
    """A loss or gradient norm far above those of the accepted steps: say so in the record; or
    shorten the gradient to ``spike_ratio`` times the usual norm as well; or refuse the step; or
    raise. The guard's ``clip`` acts in any case."""
    spike_deviation: float = 8.0
    """A spike lies so many robust standard deviations (of the logarithm) above the median, or half
    as many for the fifth step in a row..."""
    spike_ratio: float = 3.0
    """...and is at least so many times the median."""
    max_consecutive_spikes: int = 5
    """So many spikes in a row may be refused; if the level stays, it is the new level."""
    window_size: int = 128
    """Accepted steps that the median and the deviation are taken over."""
    window_warmup: int = 20
    """Accepted steps before anything is called a spike."""
    max_consecutive_refusals: int = 100
    """So many refusals in a row end the run with ``TrainingDiverged``. A run of fp16 overflows from
    2^24 down to the floor takes 24."""
    snapshot_interval: int = 50
    """Applied steps between two snapshots of weights, buffers, averages and optimizer state in host
    memory (two at a time, a third during a divergence); 0: none, and no rollback."""
    snapshot_survives: int = 10
    """Applied steps without trouble before a snapshot counts as good."""
    suspect_after: int = 3
    """The state itself is looked through after every so many refusals in a row."""
    bad_state: Literal["roll_back", "raise"] = "roll_back"
    """Weights, buffers or optimizer state are not finite, or absurd."""
    divergence: Literal["roll_back", "record", "raise"] = "roll_back"
    """The loss has left its valley: far above what it was for many steps, or crept away."""
    divergence_patience: int = 20
    """Steps in a row whose loss is a spike, or has not come back from one, before the run is taken
    to have diverged."""
    drift_ratio: float = 10.0
    """The median loss of the last 32 steps at so many times its best is a divergence, too."""
    max_rollbacks: int = 5
    """One more ends the run with ``TrainingDiverged``."""
    rollback_rate: float = 0.5
    """After a rollback learning rates are multiplied by this..."""
    rollback_steps: int = 100
    """...for so many applied steps, whatever the schedule."""
    inspect_refusals: int = 8
    """So many refusals are looked into (the forward pass is run again), and after them every one
    whose number is a power of two; 0: none, and nothing is kept for it."""
    term_gradients_every: int = 500
    """Steps between two looks at the gradient of each loss term alone, which cost one backward pass
    more than there are terms; in the first ten steps one is taken until every term has had a
    gradient. 0: only when a step was refused."""
    initial_scale: float = 2.0**16
    """First loss scale (fp16 only)."""
    growth_factor: float = 2.0
    """The scale is multiplied by this after ``growth_interval`` clean steps."""
    backoff_factor: float = 0.5
    """The scale is multiplied by this after an overflow."""
    growth_interval: int = 2000
    """Clean optimizer steps between two raises of the scale."""
    min_scale: float = 1.0
    """Floor of the scale. A gradient that overflows here is not the scale's fault."""
    max_scale: float = 2.0**24
    """Ceiling of the scale."""

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ConfigError(
                    f"Policy.{name}: {', '.join(map(repr, words[:-1]))} or {words[-1]!r}, not "
                    f"{getattr(self, name)!r}."
                )
        if not self.drift_ratio > 1.0:
            raise ConfigError(f"Policy.drift_ratio: above 1, not {self.drift_ratio}.")
        if not (self.spike_deviation > 0.0 and self.spike_ratio >= 1.0):
            raise ConfigError(
                "Policy: spike_deviation is above 0 and spike_ratio at least 1, not "
                f"{self.spike_deviation} and {self.spike_ratio}."
            )
        if self.snapshot_interval and not 0 < self.snapshot_survives < self.snapshot_interval:
            raise ConfigError(
                "Policy: 0 < snapshot_survives < snapshot_interval (or snapshot_interval=0), not "
                f"{self.snapshot_survives} and {self.snapshot_interval}."
            )
        if not 0.0 < self.rollback_rate <= 1.0:
            raise ConfigError(f"Policy.rollback_rate: in (0, 1], not {self.rollback_rate}.")
        for name in ("inspect_refusals", "term_gradients_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"Policy.{name}: at least 0, not {getattr(self, name)}.")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"Policy.{name}: at least 1, not {getattr(self, name)}.")
        if not self.growth_factor > 1.0 > self.backoff_factor > 0.0:
            raise ConfigError(
                "Policy: growth_factor is above 1 and backoff_factor between 0 and 1, not "
                f"{self.growth_factor} and {self.backoff_factor}."
            )
        if not 0.0 < self.min_scale <= self.initial_scale <= self.max_scale:
            raise ConfigError(
                "Policy: 0 < min_scale <= initial_scale <= max_scale, not "
                f"{self.min_scale}, {self.initial_scale}, {self.max_scale}."
            )

    @classmethod
    def default(cls) -> Policy:
        """Refuse what is not finite, record spikes, roll back a bad state, stop when it is enough:
        the same as ``Policy()``.
        """
        return cls()

    @classmethod
    def conservative(cls) -> Policy:
        """fp16 settings for fine-tuning: a low first scale that grows slowly."""
        return cls(initial_scale=2.0**10, growth_factor=1.5, growth_interval=1000)

    @classmethod
    def strict(cls) -> Policy:
        """Stop at the first NaN or Inf, spike, bad state or divergence."""
        return cls(nonfinite="raise", spike="raise", bad_state="raise", divergence="raise")
