"""When the state itself is bad: go back to the last one that proved itself.

Refusing undoes one step and costs one step; it cannot mend a weight that is NaN already, a moment
that will make it so, or a run that has left the valley. Then, and only then, the guard goes back to
a snapshot that was looked through when it was taken and that survived the steps after it. Schedule,
random numbers and the order of the data stay where they are: what did the damage is not replayed.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from surefoot.guard.level import Level
from surefoot.guard.policy import Policy
from surefoot.guard.ranks import agree, share
from surefoot.guard.replicas import Replicas
from surefoot.guard.snapshot import Snapshot, TrainingState
from surefoot.records import Culprit, Event, StepRecord

__all__ = ["Recovery", "Trouble"]

_BETTER = 0.7
"""A rollback has helped when the level is below so much of what it was."""


class Trouble(NamedTuple):
    """What was found and done after a step."""

    events: tuple[Event, ...]
    culprits: tuple[Culprit, ...] = ()
    stop: str = ""
    """Why the run has to end; empty: it goes on."""
    ranks: tuple[int, ...] = ()
    """On which of several the state was bad."""

    def told_by(self, record: StepRecord) -> None:
        """Let the record say so. A bad state explains its gradients, not the other way round."""
        values = record.__dict__
        values["bad_ranks"] = tuple(sorted({*record.bad_ranks, *self.ranks}))
        values["events"] = (*record.events, *self.events)
        values["culprits"] = self.culprits or record.culprits


class Recovery:
    """Takes snapshots, watches the records, rolls back.

    Two snapshots are held: the proven one, and a candidate that becomes the proven one after
    ``policy.snapshot_survives`` applied steps without trouble.
    """

    def __init__(self, state: TrainingState, policy: Policy, *, together: bool) -> None:
        self._state, self._policy, self._together = state, policy, together
        self._proven: Snapshot | None = None
        self._candidate: Snapshot | None = None
        self._before: Snapshot | None = None
        self._spare = [Snapshot() for _ in range(3)]
        self._norms: dict[str, float] | None = None
        """Of the state as it is now, where it has been looked through."""
        self._since_taken = self._since_rollback = 0
        self._refusals = self._high = 0
        self._level, self._level_before = Level(ratio=policy.drift_ratio), math.nan
        self._replicas = Replicas(state) if together else None
        self.rollbacks = self._slow_steps = 0

    def begin(self) -> None:
        """Before the first step: the state one starts from is the first to fall back to."""
        if self._policy.snapshot_interval and self._proven is None:
            self._proven = self._take()
            if self._replicas is not None:
                self._replicas.begin()

    def after(self, record: StepRecord, *, far_off: tuple[bool, bool]) -> Trouble | None:
        """Look at a step that is over; the state is the one it left.

        Args:
            record: of that step.
            far_off: whether its loss is far above what it was, and whether it still is once it has
                been; long enough in a row, the run has left its valley.
        """
        if self._proven is None:
            return None
        self._refusals = 0 if record.applied else self._refusals + 1
        leaves, stays = far_off
        self._norms = None
        self._high = self._high + 1 if leaves or (stays and self._high) else 0
        self._since_taken += record.applied
        self._slow_steps = max(0, self._slow_steps - record.applied)
        often = self._refusals > 0 and self._refusals % self._policy.suspect_after == 0
        suspicious = often or self._high == 1
        if suspicious or self._since_taken >= self._policy.snapshot_interval:
            trouble = self.look()
            if trouble is not None:
                return trouble
        drifted = self._follow_level(record)
        if self._before is not None:
            return self._weigh(record)
        if drifted or self._high >= self._policy.divergence_patience:
            return self._leave_valley()
        if self._replicas is not None and self._due(record):
            drift = self._replicas.drifted(self._proven)
            if drift is not None:
                return self._mend(*drift)
        self._keep(record)
        return None

    def look(self) -> Trouble | None:
        """Look the state through now."""
        if self._proven is None:
            return None
        faults, self._norms = self._proven.faults(self._state)
        if not self._together:
            return self._mend(faults) if faults else None
        # A shard may be bad on a single rank.
        return self._mend(*share(faults)) if agree(bool(faults)) else None

    def _follow_level(self, record: StepRecord) -> bool:
        """Whether the loss has crept away. A gradient norm rises in many a healthy run; where it
        stands in for the loss it is only compared with itself around a rollback.
        """
        if not record.applied:
            return False
        if self._together or not record.loss > 0.0:
            self._level.add(record.grad_norm, drifts=False)
            return False
        return self._level.add(record.loss)

    @contextmanager
    def rates(self, optimizer: torch.optim.Optimizer) -> Generator[None]:
        """For a while after a rollback every learning rate is smaller, under any schedule."""
        if not self._slow_steps:
            yield
            return
        usual: list[Any] = [group["lr"] for group in optimizer.param_groups]
        try:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self._policy.rollback_rate
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, usual, strict=True):
                group["lr"] = rate

    def _take(self) -> Snapshot:
        snapshot = self._spare.pop()
        snapshot.take(self._state, self._norms)
        return snapshot

    def _due(self, record: StepRecord) -> bool:
        """Whether it is time for the next snapshot."""
        calm = record.applied and not self._high and self._level.in_valley
        return calm and self._since_taken >= self._policy.snapshot_interval

    def _keep(self, record: StepRecord) -> None:
        if self._candidate is not None and self._high:
            self._candidate = self._release(self._candidate)
        elif self._candidate is not None and self._since_taken >= self._policy.snapshot_survives:
            self._proven, old = self._candidate, self._proven
            self._candidate = self._release(old)
        if self._due(record):
            self._candidate = self._release(self._candidate)
            self._candidate, self._since_taken = self._take(), 0

    def _release(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            self._spare.append(snapshot)

    def _mend(self, faults: tuple[Culprit, ...], ranks: tuple[int, ...] = ()) -> Trouble:
        """The state is bad: it cannot be trained on."""
        if self._policy.bad_state == "raise":
            reason = "The state has gone bad and the policy asks to stop then."
            return Trouble((), faults, reason, ranks)
        return self._go_back((), faults)._replace(ranks=ranks)

    def _go_back(self, events: tuple[Event, ...], faults: tuple[Culprit, ...] = ()) -> Trouble:
        assert self._proven is not None
        self._proven.restore(self._state)
        self._norms = None
        self._candidate = self._release(self._candidate)
        self._since_taken = self._refusals = self._high = self._since_rollback = 0
        self._level.forget(best=False)
        self.rollbacks += 1
        self._slow_steps = self._policy.rollback_steps
        stop = ""
        if self.rollbacks > self._policy.max_rollbacks:
            stop = (
                f"The state went bad {self.rollbacks} times; it was rolled back each time and the "
                "run is stopped now."
            )
        return Trouble((*events, Event.ROLLED_BACK), faults, stop)

    def _leave_valley(self) -> Trouble | None:
        """The loss is far above what it was: go back, but remember from where."""
        first = self._high in (0, self._policy.divergence_patience)
        if self._policy.divergence == "record":
            self._level.forget(best=True)
            return Trouble((Event.DIVERGED,)) if first else None
        if self._policy.divergence == "raise":
            return Trouble((Event.DIVERGED,), (), "The run diverged and the policy asks to stop.")
        self._candidate = self._release(self._candidate)
        before, self._level_before = self._take(), self._level.now(self._policy.divergence_patience)
        trouble = self._go_back((Event.DIVERGED,))
        self._before = before
        return trouble

    def _weigh(self, record: StepRecord) -> Trouble | None:
        """After a divergence was rolled back: is it better where the run is now?"""
        self._since_rollback += record.applied
        if self._since_rollback < self._policy.divergence_patience:
            return None
        if self._level.now() > _BETTER * self._level_before:
            return self._undo()
        self._before = self._release(self._before)
        self._since_taken = 0
        return None

    def _undo(self) -> Trouble:
        """Going back did not help: the data changed, not the weights."""
        assert self._before is not None
        self._before.restore(self._state)
        self._before = self._release(self._before)
        self._level.forget(best=True)
        self._high = self._slow_steps = 0
        self.rollbacks -= 1
        return Trouble((Event.ROLLBACK_UNDONE,))

    def state_dict(self) -> dict[str, Any]:
        """What outlives the process: how often, how long the rates stay small, and what is on its
        way to a verdict.
        """
        return {
            "rollbacks": self.rollbacks,
            "slow_steps": self._slow_steps,
            "refusals": self._refusals,
            "high": self._high,
            "level": self._level.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the snapshots start with the loaded state."""
        self.rollbacks, self._slow_steps = state["rollbacks"], state["slow_steps"]
        self._refusals, self._high = state.get("refusals", 0), state.get("high", 0)
        if "level" in state:
            self._level.load_state_dict(state["level"])
