"""One optimizer step: measure, judge, apply or refuse, say what happened."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from surefoot.errors import TrainingDiverged
from surefoot.guard.accumulation import Accumulation
from surefoot.guard.apply import apply_folded, apply_plain, folds, seed_momentum
from surefoot.guard.arrival import Arrival, LazyRecord
from surefoot.guard.blame import all_finite
from surefoot.guard.buffers import BufferKeeper
from surefoot.guard.clip import Clip
from surefoot.guard.measure import Measured, ParameterTable
from surefoot.guard.policy import Policy
from surefoot.guard.recovery import Recovery
from surefoot.guard.scale import LossScale
from surefoot.guard.shorten import Shortener
from surefoot.guard.snapshot import TrainingState
from surefoot.guard.spike import DeviceSpikes, HostSpikes
from surefoot.guard.verdict import Facts, Tally, escalate, learning_rates, record_of
from surefoot.records import Event, StepRecord

__all__ = ["Stepper"]


class Stepper:
    """Closes windows. It is given a window whose gradients lie in the parameters."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip: Clip | None,
        scale: LossScale | None,
        policy: Policy,
        on_device: bool,
    ) -> None:
        self.optimizer = optimizer
        self.table = ParameterTable(model, optimizer)
        self.buffers = BufferKeeper(model)
        self.shortener = Shortener(clip, self.table)
        self.scale = scale
        self.tally = Tally()
        self.schedulers: list[torch.optim.lr_scheduler.LRScheduler] = []
        self.averages: list[torch.optim.swa_utils.AveragedModel] = []
        self._model, self._policy = model, policy
        self.together = trains_together(model)
        self._state = TrainingState(model, optimizer, self.averages, self.buffers)
        self.recovery = Recovery(self._state, policy, together=self.together)
        self.on_device = on_device
        self.spikes = DeviceSpikes(policy, self.table.device) if on_device else HostSpikes(policy)
        self._folds = folds(optimizer)
        self._pending: LazyRecord | None = None

    def close(self, micro: Accumulation, accumulate: int) -> StepRecord:
        """Judge the window's gradients and apply or refuse them; they are gone afterwards.

        Raises:
            TrainingDiverged: the policy's limit was reached; the step was refused all the same.
        """
        stale = self.settle()
        facts = replace(self._facts(micro, accumulate), stale=stale)
        try:
            if micro.poisoned or stale:
                return self._refuse_unmeasured(micro, facts)
            self.recovery.begin()
            measured = self.table.measure()
            if self.on_device and seed_momentum(self.optimizer):
                return self._decide_on_device(micro, measured, facts)
            return self._decide_on_host(micro, measured, facts)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self.buffers.window_closed()

    def settle(self) -> bool:
        """Wait for the verdict of the last step, if it is still on its way, and follow it.

        Returns:
            Whether the state was rolled back, so that gradients taken since are those of weights
            that are gone.
        """
        if self._pending is None:
            return False
        pending, self._pending = self._pending, None
        pending.resolve()
        self._state.forward_ahead = self.buffers.copy_is_the_state
        try:
            self._follow(pending)
        finally:
            self._state.forward_ahead = False
        return Event.ROLLED_BACK in pending.events

    def _facts(self, micro: Accumulation, accumulate: int) -> Facts:
        number, self.tally.step = self.tally.step, self.tally.step + 1
        return Facts(
            step=number,
            loss=math.nan,
            raw_terms=(math.nan,) * len(micro.names),
            term_names=micro.names,
            term_weights=micro.weights,
            learning_rates=learning_rates(self.optimizer),
            micro_batches=micro.micro_batches,
            accumulate=accumulate,
            sample_ids=tuple(micro.sample_ids),
            rank=torch.distributed.get_rank() if self.together else 0,
            loss_votes=not self.together,
            unit=micro.micro_batches / accumulate,
            scale_floor=None if self.scale is None else self._policy.min_scale,
        )

    # -- where reading is free, or the optimizer leaves no choice ---------------------------------

    def _read(self, micro: Accumulation, facts: Facts) -> Facts:
        raw, loss = micro.means()
        scale = 1.0 if self.scale is None else float(self.scale.value)
        return replace(
            facts, loss=float(loss), raw_terms=raw.tolist(), scale=scale, next_scale=scale
        )

    def _refuse_unmeasured(self, micro: Accumulation, facts: Facts) -> StepRecord:
        facts = replace(
            self._read(micro, facts),
            backward_skipped=micro.poisoned,
            buffers_moved=self.buffers.restore(),
        )
        return self._follow(self._conclude(facts))

    def _decide_on_host(self, micro: Accumulation, measured: Measured, facts: Facts) -> StepRecord:
        facts = self._read(micro, facts)
        facts = replace(facts, unit=facts.scale * facts.unit, total_norm=float(measured.total))
        facts = self._watch_for_spikes(facts)
        if facts.good:
            norm = facts.total_norm / facts.unit
            divisor, effective = self.shortener.on_host(measured, norm, facts.unit)
            self.shortener.learn(norm, good=True)
            facts = replace(facts, clip_divisor=effective)
            self._apply_on_host(measured, facts.unit * divisor)
        else:
            facts = replace(
                facts,
                norms=measured.norms.tolist(),
                names=[self.table.names[i] for i in measured.indices],
                elements_finite=all_finite(measured.gradients),
                buffers_moved=self.buffers.restore(),
            )
        if self.scale is not None:
            device = self.scale.value.device
            self.scale.update(
                overflow=torch.tensor(not facts.total_norm < math.inf, device=device),
                freeze=torch.tensor(
                    facts.loss_votes and not math.isfinite(facts.loss), device=device
                ),
            )
            facts = replace(facts, next_scale=float(self.scale.value))
        return self._follow(self._conclude(facts))

    def _watch_for_spikes(self, facts: Facts) -> Facts:
        if not (facts.finite and isinstance(self.spikes, HostSpikes)):
            return facts
        # Ranks that train together judge by the gradient, which is the same for all of them.
        loss = facts.loss if facts.loss_votes else math.nan
        norm = facts.total_norm / facts.unit
        found = self.spikes.judge(loss, norm)
        refused = found.refuses(self._policy)
        if not refused:
            self.spikes.accept(loss, norm)
        return replace(
            facts, loss_spike=found.loss, gradient_spike=found.gradient, spike_refused=refused
        )

    def _apply_on_host(self, measured: Measured, divisor: float) -> None:
        with self.recovery.rates(self.optimizer):
            self._step_on_host(measured, divisor)

    def _step_on_host(self, measured: Measured, divisor: float) -> None:
        if not self._folds:
            apply_plain(self.optimizer, measured.gradients, divisor)
        elif divisor == 1.0:
            apply_folded(self.optimizer, divisor=None, refuse=None)
        else:
            tensor = torch.full((), divisor, device=measured.total.device)
            apply_folded(self.optimizer, divisor=tensor, refuse=None)

    # -- where reading would stop the device ------------------------------------------------------

    def _decide_on_device(
        self, micro: Accumulation, measured: Measured, facts: Facts
    ) -> StepRecord:
        raw, loss = micro.means()
        device = measured.total.device
        raw, loss, total = raw.to(device), loss.to(device), measured.total.float()
        scale = None if self.scale is None else self.scale.value
        unit = facts.unit if scale is None else scale * facts.unit
        norm = total / unit
        # Asked as "is it good?", so that a NaN, which compares false, is refused.
        gradients_bad = ~(norm < math.inf)
        loss_bad = ~torch.isfinite(loss) & facts.loss_votes
        spikes = self._spikes_on_device(loss, norm, gradients_bad | loss_bad, facts)
        bad = gradients_bad | loss_bad | spikes[2]
        shortened = self.shortener.on_device(measured, norm, torch.as_tensor(unit, device=device))
        self.shortener.learn(norm, ~bad)
        plain = self.shortener.clip is None and scale is None and facts.unit == 1.0
        divisor = None if plain else (shortened.divisor * unit).float()
        with self.recovery.rates(self.optimizer):
            apply_folded(self.optimizer, divisor=divisor, refuse=bad)
        moved = self.buffers.restore(bad)
        next_scale = scale
        if self.scale is not None:
            self.scale.update(overflow=gradients_bad, freeze=loss_bad)
            next_scale = self.scale.value
        one = torch.ones_like(total)
        head = [loss, total, shortened.effective, one if scale is None else scale]
        head += [one if next_scale is None else next_scale, *spikes.float()]
        arrival = Arrival(torch.cat([torch.stack(head), raw, measured.norms.float()]))
        names = [self.table.names[i] for i in measured.indices]
        facts = replace(facts, names=names, buffers_moved=moved)
        self._pending = LazyRecord(lambda: self._conclude(_landed(arrival, facts)))
        return self._pending

    def _spikes_on_device(self, loss: Tensor, norm: Tensor, bad: Tensor, facts: Facts) -> Tensor:
        """3, bool: the loss is a spike, the gradient is one, the step is refused for it."""
        if not isinstance(self.spikes, DeviceSpikes):
            return torch.zeros(3, dtype=torch.bool, device=norm.device)
        watched = torch.stack([loss if facts.loss_votes else torch.full_like(loss, math.nan), norm])
        found, refuse = self.spikes.judge(watched)
        self.spikes.accept(watched, ~(bad | refuse))
        return torch.cat([found, refuse[None]]) & ~bad

    # -- what follows from a verdict --------------------------------------------------------------

    def _conclude(self, facts: Facts) -> StepRecord:
        self.tally.count(good=facts.good)
        record = record_of(facts, self.tally)
        if facts.good:
            for averaged in self.averages:
                averaged.update_parameters(self._model)
            for scheduler in self.schedulers:
                scheduler.step()
        return record

    def _follow(self, record: StepRecord) -> StepRecord:
        """Mend the state if the record shows that it is bad; stop if the policy says so."""
        trouble = self.recovery.after(record)
        if trouble is not None:
            record.__dict__["events"] = (*record.events, trouble.event)
            record.__dict__["culprits"] = (*record.culprits, *trouble.culprits)[:16]
            if trouble.event is Event.ROLLBACK_UNDONE:
                self.spikes.forget()
            if trouble.exhausted:
                raise TrainingDiverged(
                    f"The state went bad {self.recovery.rollbacks} times; it was rolled back each "
                    f"time and the run is stopped now. The last time: {record}.",
                    record=record,
                )
        return escalate(record, self.tally, self._policy)


def trains_together(model: nn.Module) -> bool:
    """Whether other ranks hold the same model, so that all have to come to one verdict."""
    return isinstance(model, nn.parallel.DistributedDataParallel) or any(
        isinstance(p, DTensor) for p in model.parameters()
    )


def _landed(arrival: Arrival, facts: Facts) -> Facts:
    """The facts once the device's values are there."""
    values = arrival.read()
    loss, total, clip_divisor, scale, next_scale, *spikes = values[:8]
    split = 8 + len(facts.term_names)
    return replace(
        facts,
        loss=loss,
        total_norm=total,
        clip_divisor=clip_divisor,
        loss_spike=spikes[0] > 0,
        gradient_spike=spikes[1] > 0,
        spike_refused=spikes[2] > 0,
        scale=scale,
        next_scale=next_scale,
        unit=scale * facts.unit,
        raw_terms=values[8:split],
        norms=values[split:],
    )
