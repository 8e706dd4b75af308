"""surefoot's own loop: guard, safe loader, checkpoints, journal and memory watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from benchmarks.chaos.columns.base import Column

if TYPE_CHECKING:
    from benchmarks.chaos.fault import Fault
    from benchmarks.chaos.run import Run

__all__ = ["Diary", "Surefoot"]


class Diary:
    """The run's journal; what it cannot take while the disk is full is printed instead."""

    def __init__(self, run: Run) -> None:
        from surefoot.journal import JournalWriter

        self._run = run
        name = f"journal.rank{run.rank}.jsonl" if run.setting.world > 1 else "journal.jsonl"
        self._journal = JournalWriter(run.spec.folder / name, run={"seed": run.seed})

    def record(self, record: Any) -> None:
        """A step."""
        from surefoot.errors import JournalError

        try:
            self._journal.write(record)
        except JournalError:
            self._run.say("step", **record.to_dict())

    def event(self, kind: str, **fields: Any) -> None:
        """Anything else."""
        from surefoot.errors import JournalError

        try:
            self._journal.event(kind, **fields)
        except JournalError as problem:
            self._run.say(kind, **fields)
            print(problem)

    def close(self) -> None:
        """The last line is on the disk."""
        self._journal.close()


class Surefoot(Column):
    """The loop that the documentation of surefoot shows."""

    name, title = "surefoot", "surefoot, own loop"
    needs = ("surefoot",)
    fp16 = "can"
    records = True

    def not_staged(self, fault: Fault) -> str | None:
        """What the guard does by itself, nobody can forget."""
        if fault.key == "38":
            return "the guard zeroes the gradients"
        return super().not_staged(fault)

    def train(self, run: Run) -> nn.Module:
        """Everything that the library has against faults, at its defaults."""
        self.diary = Diary(run)
        try:
            return self._train(run)
        except BaseException as error:
            self.diary.event("stopped", error=type(error).__name__, message=str(error))
            raise

    def _train(self, run: Run) -> nn.Module:
        from surefoot import Guard
        from surefoot.guard import MemoryWatch

        self.net = run.net()
        self.optimizer = run.optimizer(self.net)
        model = run.parallel(self.net)
        half = run.setting.fp16
        guard = self.guard = Guard(
            model,
            self.optimizer,
            clip=1.0,
            accumulate=run.setting.accumulate,
            amp="fp16" if half else None,
        )
        watch, self.step = MemoryWatch(), 0
        self._open(run)
        if run.resumes:
            self._resume()
        for x, y, ids in self._batches(run.steps):
            with guard.autocast():
                loss = run.loss(model(x), y)
            record = guard.step(loss, sample_ids=[str(i) for i in ids.tolist()])
            if run.misuse:  # somebody's extra line beside the guard
                nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.diary.record(record)
            if growth := watch.step():
                fields = growth.to_dict()
                self.diary.event("memory", step=self.step, message=str(growth), **fields)
            if record.verdict.value == "accumulated":
                continue
            run.metric(self.step, loss)
            self.step += 1
            every = run.checkpoint_every
            if every and (self.step % every == 0 or self.store.retry_due):
                self._save()
        if (last := guard.flush()) is not None:
            self.diary.record(last)
        self.diary.event("finished", step=self.step)
        self.diary.close()
        return self.net

    def _open(self, run: Run) -> None:
        """Where samples come from and where checkpoints go."""
        from surefoot.checkpoint import CheckpointStore, SampleOrder
        from surefoot.data import SafeLoader, label_range

        data = run.data()
        self.store = CheckpointStore(run.checkpoints)
        self.order = SampleOrder(data, batch_size=run.batch, seed=run.seed)
        loader = DataLoader(data, batch_sampler=self.order, num_workers=run.setting.workers)
        self.loader = SafeLoader(loader, check=label_range(10), on_record=self._incident)

    def _batches(self, steps: int) -> Iterator[Any]:
        while self.step < steps:
            for batch in self.order.batches(self.loader):
                yield batch
                if self.step == steps:
                    return

    def _incident(self, incident: Any) -> None:
        self.diary.event("quarantine", step=self.step, message=str(incident), **incident.to_dict())

    def _save(self) -> None:
        from surefoot.checkpoint import capture_rng

        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"step": self.step, "rng": capture_rng()}
        weights = {"model": self.net.state_dict()}
        outcome = self.store.try_save(self.step, state, weights=weights)
        kind = "checkpoint" if outcome.saved else "checkpoint_failed"
        self.diary.event(kind, message=str(outcome), **outcome.to_dict())

    def _resume(self) -> None:
        from surefoot.checkpoint import restore_rng

        newest = self.store.newest()
        for one in self.store.rejected:
            path, reason = one.path.name, one.reason
            self.diary.event("checkpoint_rejected", path=path, message=str(one), reason=reason)
        if newest is None:
            return
        self.net.load_state_dict(newest.load_weights())
        state = newest.load_state()
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        restore_rng(state["rng"])
        self.step = state["step"]
        self.diary.event("continued", step=self.step, path=newest.path.name)

    def _parts(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "guard": self.guard,
            "order": self.order,
            "loader": self.loader,
        }
