"""When the state itself is bad: go back to the last one that proved itself.

Refusing undoes one step and costs one step; it cannot mend a weight that is NaN already, a moment
that will make it so, or a run that has left the valley. Then, and only then, the guard goes back to
a snapshot that was looked through when it was taken and that survived the steps after it. Schedule,
random numbers and the order of the data stay where they are: what did the damage is not replayed.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from surefoot.guard.policy import Policy
from surefoot.guard.snapshot import Snapshot, TrainingState
from surefoot.records import Culprit, Event, StepRecord

__all__ = ["Recovery", "Trouble"]


class Trouble(NamedTuple):
    """What was found and done after a step."""

    event: Event
    culprits: tuple[Culprit, ...] = ()
    exhausted: bool = False
    """It was one rollback more than the policy allows."""


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
        self._since_taken = self._since_rollback = 0
        self._refusals = self._high = 0
        self.rollbacks = self._slow_steps = 0

    def begin(self) -> None:
        """Before the first step: the state one starts from is the first to fall back to."""
        if self._policy.snapshot_interval and self._proven is None:
            self._proven = self._take()

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
        self._high = self._high + 1 if leaves or (stays and self._high) else 0
        self._since_taken += record.applied
        self._slow_steps = max(0, self._slow_steps - record.applied)
        often = self._refusals > 0 and self._refusals % self._policy.suspect_after == 0
        suspicious = often or self._high == 1
        if suspicious or self._since_taken >= self._policy.snapshot_interval:
            faults = self._proven.faults(self._state)
            if self._agree(bool(faults)):
                return self._go_back(faults)
        if self._high >= self._policy.divergence_patience:
            return self._give_up_on_level() if self._before is not None else self._leave_valley()
        self._keep(record)
        return None

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

    def _agree(self, flag: bool) -> bool:
        """True on every rank when it is on one: a shard may be bad on a single rank."""
        if not self._together:
            return flag
        vote = torch.tensor(float(flag))
        if torch.distributed.get_backend() == "nccl":
            vote = vote.cuda()
        torch.distributed.all_reduce(vote, torch.distributed.ReduceOp.MAX)
        return bool(vote)

    def _take(self) -> Snapshot:
        snapshot = self._spare.pop()
        snapshot.take(self._state)
        return snapshot

    def _keep(self, record: StepRecord) -> None:
        calm = record.applied and not self._high
        if self._before is not None and calm:
            self._since_rollback += 1
            if self._since_rollback >= self._policy.snapshot_survives:
                self._before = self._release(self._before)  # it helped
        if self._candidate is not None and self._high:
            self._candidate = self._release(self._candidate)
        elif self._candidate is not None and self._since_taken >= self._policy.snapshot_survives:
            self._proven, old = self._candidate, self._proven
            self._candidate = self._release(old)
        if self._since_taken >= self._policy.snapshot_interval and calm:
            self._candidate = self._release(self._candidate)
            self._candidate, self._since_taken = self._take(), 0

    def _release(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            self._spare.append(snapshot)

    def _go_back(self, faults: tuple[Culprit, ...]) -> Trouble:
        assert self._proven is not None
        self._proven.restore(self._state)
        self._candidate = self._release(self._candidate)
        self._since_taken = self._refusals = self._high = self._since_rollback = 0
        self.rollbacks += 1
        self._slow_steps = self._policy.rollback_steps
        exhausted = self.rollbacks > self._policy.max_rollbacks
        return Trouble(Event.ROLLED_BACK, faults, exhausted)

    def _leave_valley(self) -> Trouble:
        """The loss stays far above what it was: go back, but remember from where."""
        self._candidate = self._release(self._candidate)
        before = self._take()
        trouble = self._go_back(())
        self._before = before
        return trouble

    def state_dict(self) -> dict[str, Any]:
        """What outlives the process: how often, and how long the rates stay small."""
        return {"rollbacks": self.rollbacks, "slow_steps": self._slow_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the snapshots start with the loaded state."""
        self.rollbacks, self._slow_steps = state["rollbacks"], state["slow_steps"]

    def _give_up_on_level(self) -> Trouble:
        """Going back did not help: the data changed, not the weights. Undo it."""
        assert self._before is not None
        self._before.restore(self._state)
        self._before = self._release(self._before)
        self._high = self._slow_steps = 0
        self.rollbacks -= 1
        return Trouble(Event.ROLLBACK_UNDONE)
