"""One optimizer step: measure, judge, apply or refuse, say what happened."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from surefoot.guard.accumulation import Accumulation
from surefoot.guard.apply import Hand, OwnStep, seed_momentum
from surefoot.guard.arrival import Arrival, LazyRecord
from surefoot.guard.blame import all_finite, with_ranges
from surefoot.guard.buffers import BufferKeeper
from surefoot.guard.clip import Clip
from surefoot.guard.history import History
from surefoot.guard.inspector import Inspector
from surefoot.guard.measure import Measured, ParameterTable
from surefoot.guard.policy import Policy
from surefoot.guard.ranks import align, take_over
from surefoot.guard.recovery import Recovery
from surefoot.guard.scale import ForeignScale, LossScale
from surefoot.guard.shorten import Shortener
from surefoot.guard.snapshot import TrainingState
from surefoot.guard.spike import DeviceSpikes, HostSpikes
from surefoot.guard.verdict import (
    Facts,
    Tally,
    landed,
    learning_rates,
    reason_to_stop,
    record_of,
)
from surefoot.records import Cause, Event, StepRecord

__all__ = ["Stepper"]

_ALIKE_ALREADY = (Cause.STALE, Cause.SPIKE)
"""Verdicts that every rank comes to by itself."""


class Stepper:
    """Judges windows whose gradients lie in the parameters; a :class:`Hand` does what it says.

    Both ways in share it: a loop of one's own, where the hand calls ``optimizer.step()``, and
    somebody else's, where the hand sits in the hooks of a step that is under way.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip: Clip | None,
        policy: Policy,
        on_device: bool,
        together: bool,
        repair: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.table = ParameterTable(model, optimizer)
        self.buffers = BufferKeeper(model, repair=repair)
        self.shortener = Shortener(clip, self.table)
        self.scale: LossScale | ForeignScale | None = None
        self.tally, self.history = Tally(), History()
        self.schedulers = list[torch.optim.lr_scheduler.LRScheduler]()
        self.averages = list[torch.optim.swa_utils.AveragedModel]()
        self.protected = list[torch.optim.swa_utils.AveragedModel]()
        """What goes back with the weights; of these the guard itself updates ``averages``."""
        self.together, self.on_device = together, on_device
        self._model, self._policy = model, policy
        self._state = TrainingState(model, self.table, self.protected, self.buffers)
        self.recovery = Recovery(self._state, policy, together=together)
        self.inspector = Inspector(model, self.table, self.buffers, policy, together=together)
        self.hand: Hand = OwnStep(optimizer, lambda: self.recovery.rates(optimizer))
        self.spikes = DeviceSpikes(policy, self.table.device) if on_device else HostSpikes(policy)
        self._pending: LazyRecord | None = None
        self._last: StepRecord | None = None
        self._far_off = (False, False)
        self.gradients_kept = False
        """Somebody else's loop did not zero them after the last step."""

    def close(self, micro: Accumulation, accumulate: int) -> StepRecord:
        """Judge the window's gradients and apply or refuse them; they are gone afterwards.

        Raises:
            TrainingDiverged: the policy's limit was reached; the step was refused all the same.
        """
        stale = self.settle()
        try:
            return self.follow(self.decide(micro, accumulate, stale=stale))
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self.buffers.window_closed()

    def decide(self, micro: Accumulation, accumulate: int, *, stale: bool) -> StepRecord:
        """The verdict, carried out by the hand; :meth:`follow` it once the step is over.

        Args:
            micro: what the window's micro-batches had to say.
            accumulate: how many there should have been.
            stale: what :meth:`settle` has just answered.
        """
        facts = replace(self._facts(micro, accumulate), stale=stale)
        self.inspector.window_closed(facts.step)
        if micro.poisoned or stale:
            return self._refuse_unmeasured(micro, facts)
        if facts.loss_votes and self.tally.applied and self.table.untouched:
            return self._refuse_unmeasured(micro, replace(facts, unreached=True))
        self.recovery.begin()
        measured = self.table.measure()
        facts = replace(facts, silent=self.table.fell_silent())
        if self.on_device and seed_momentum(self.optimizer):
            return self._decide_on_device(micro, measured, facts)
        return self._decide_on_host(micro, measured, facts)

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
            self.follow(pending)
        finally:
            self._state.forward_ahead = False
        return Event.ROLLED_BACK in pending.events

    def read(self) -> None:
        """Let the last step's verdict count. Whatever it asks of other ranks has to wait for the
        next step: one of them alone may want to know.
        """
        if not self.together:
            self.settle()
        elif self._pending is not None:
            self._pending.resolve()

    def follow(self, record: StepRecord) -> StepRecord:
        """Mend the state if the record shows that it is bad; stop if the policy says so.

        Raises:
            TrainingDiverged: the policy does.
        """
        if record is self._pending:
            return record  # followed when it has arrived
        all_ask = self.together and record.refused and record.cause not in _ALIKE_ALREADY
        if all_ask:
            align(record, self.table.names)
        self.inspector.inspect(record)  # before anything is rolled back
        if all_ask:
            take_over(record)
        trouble = self.recovery.after(record, far_off=self._far_off)
        if trouble is not None:
            trouble.told_by(record)
            if Event.ROLLBACK_UNDONE in trouble.events:
                self.spikes.forget()
        self._last = record
        self.history.add(record)
        stop = (trouble and trouble.stop) or reason_to_stop(record, self.tally, self._policy)
        if stop:
            raise self.history.last_words(stop, record)
        return record

    def finish(self, record: StepRecord | None) -> StepRecord | None:
        """Look the state through after the last step: nobody would see later what it has left.

        Returns:
            ``record``, or the last one, which then tells of a state that had to be put back.
        """
        self.settle()
        trouble = self.recovery.look()
        if trouble is None or self._last is None:
            return record
        trouble.told_by(self._last)
        if trouble.stop:
            raise self.history.last_words(trouble.stop, self._last)
        return self._last

    def _facts(self, micro: Accumulation, accumulate: int) -> Facts:
        number, self.tally.step = self.tally.step, self.tally.step + 1
        rates = learning_rates(self.optimizer)
        return Facts(
            step=number,
            loss=math.nan,
            raw_terms=(math.nan,) * len(micro.names),
            term_names=micro.names,
            term_weights=micro.weights,
            learning_rates=rates,
            gradients_kept=self.gradients_kept,
            gradients_touched=micro.touched,
            zero_rate=self.tally.rate_vanished(rates),
            rate_jumped=self.tally.rate_jumps(rates, self._policy.window_warmup),
            micro_batches=micro.micro_batches or 1,
            accumulate=accumulate,
            sample_ids=tuple(micro.sample_ids),
            rank=torch.distributed.get_rank() if self.together else 0,
            loss_votes=not self.together and micro.micro_batches > 0,
            unit=micro.micro_batches / accumulate if micro.micro_batches else 1.0,
            scale_floor=None if self.scale is None else self.scale.floor,
        )

    # -- where reading is free, or the optimizer leaves no choice ---------------------------------

    def _read(self, micro: Accumulation, facts: Facts) -> Facts:
        raw, loss = micro.means()
        scale = 1.0 if self.scale is None else float(self.scale.value)
        mended = self.buffers.mended_here()
        facts = replace(facts, loss=float(loss), raw_terms=raw.tolist(), mended=mended)
        return replace(facts, scale=scale, next_scale=scale)

    def _refuse_unmeasured(self, micro: Accumulation, facts: Facts) -> StepRecord:
        self.hand.refuse()
        facts = replace(
            self._read(micro, facts),
            backward_skipped=micro.poisoned,
            buffers_moved=self.buffers.restore(),
        )
        return self._conclude(facts)

    def _decide_on_host(self, micro: Accumulation, measured: Measured, facts: Facts) -> StepRecord:
        facts = self._read(micro, facts)
        held = 1.0 if self.scale is None else float(self.scale.held)
        theirs = None if self.scale is None else self.scale.found_inf
        total = math.nan if theirs is not None and float(theirs) > 0 else float(measured.total)
        facts = replace(facts, unit=held * facts.unit, total_norm=total)
        facts = self._watch_for_spikes(facts)
        if facts.good:
            norm = facts.total_norm / facts.unit
            divisor, effective = self.shortener.on_host(measured, norm, facts.unit)
            if facts.gradient_spike and self._policy.spike == "clip":
                more = max(1.0, norm / effective / facts.usual_norm)
                divisor, effective = divisor * more, effective * more
            self.shortener.learn(norm, good=True)
            self.hand.apply(measured.gradients, divisor, facts.unit)
            facts = replace(facts, clip_divisor=effective, outlying=self.buffers.leave_out())
            facts = replace(facts, mended=facts.mended + self.buffers.mended_here())
        else:
            self.hand.refuse()
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
        record = self._conclude(facts)
        if not facts.good:
            by_name = dict(zip(facts.names, measured.gradients, strict=True))
            found = with_ranges(record.culprits, by_name, facts.unit)
            record.__dict__["culprits"] = found
        return record

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
            facts,
            loss_spike=found.loss,
            gradient_spike=found.gradient,
            loss_away=found.loss_away,
            gradient_away=found.gradient_away,
            usual_norm=found.usual_norm,
            spike_refused=refused,
        )

    # -- where reading would stop the device ------------------------------------------------------

    def _decide_on_device(
        self, micro: Accumulation, measured: Measured, facts: Facts
    ) -> StepRecord:
        raw, loss = micro.means()
        device = measured.total.device
        raw, loss, total = raw.to(device), loss.to(device), measured.total.float()
        one = torch.ones_like(total)
        scale = one if self.scale is None else self.scale.value.to(device)
        unit = facts.unit if self.scale is None else self.scale.held.to(device) * facts.unit
        theirs = None if self.scale is None else self.scale.found_inf
        if theirs is not None:
            total = torch.where(theirs.to(device) > 0, math.nan, total)
        norm = total / unit
        # Asked as "is it good?", so that a NaN, which compares false, is refused.
        gradients_bad = ~(norm < math.inf)
        loss_bad = ~torch.isfinite(loss) & facts.loss_votes
        assert isinstance(self.spikes, DeviceSpikes)
        spikes, usual = self.spikes.watch(loss, norm, gradients_bad | loss_bad, facts.loss_votes)
        bad = gradients_bad | loss_bad | spikes[2]
        shortened = self.shortener.on_device(measured, norm, torch.as_tensor(unit, device=device))
        self.shortener.learn(norm, ~bad)
        divisor = None if self.shortener.clip is None else shortened.divisor
        if self._policy.spike == "clip":
            more = (norm / shortened.effective / usual).clamp(min=1.0)
            more = torch.where(spikes[1], more, one)
            divisor = shortened.divisor * more
            shortened = shortened._replace(effective=shortened.effective * more)
        self.hand.leave_to_device(divisor, unit, bad)
        outlying = self.buffers.outlying()
        undo = bad if outlying is None else bad | outlying | self.buffers.broken
        moved = self.buffers.restore(undo)
        spikes = torch.cat([spikes, (~one.bool() if outlying is None else outlying & ~bad)[None]])
        next_scale = scale
        if self.scale is not None:
            self.scale.update(overflow=gradients_bad, freeze=loss_bad)
            next_scale = self.scale.value.to(device)
        # In the order in which verdict.landed takes them apart.
        head = [loss, total, shortened.effective, scale, next_scale, one * unit, *spikes.float()]
        mended, flags = self.buffers.mended()
        parts = [torch.stack(head), raw, measured.norms.float(), flags.to(total)]
        arrival = Arrival(torch.cat(parts))
        names = [self.table.names[i] for i in measured.indices]
        facts = replace(facts, names=names, buffers_moved=moved, mended=mended)
        self._pending = LazyRecord(lambda: self._conclude(landed(facts, arrival.read())))
        return self._pending

    def _conclude(self, facts: Facts) -> StepRecord:
        self.tally.count(good=facts.good)
        self._far_off = facts.far_off
        record = self.inspector.add_samples(record_of(facts, self.tally))
        for averaged in self.averages if facts.good else ():
            averaged.update_parameters(self._model)
        for scheduler in self.schedulers if facts.good else ():
            scheduler.step()
        return record
