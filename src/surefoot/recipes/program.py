"""A training program: epochs of guarded steps, measured, saved, and gone on with after any step.

What a recipe adds is in the abstract methods of :class:`Program`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Generic, TextIO, TypeVar

from surefoot import __version__
from surefoot.checkpoint import Checkpoint, SaveOutcome
from surefoot.checkpoint.signals import Interrupted, Interruption
from surefoot.errors import CheckpointError, ConfigError
from surefoot.guard import MemoryWatch
from surefoot.guard.halves import Halves
from surefoot.guard.out_of_memory import Halved
from surefoot.recipes.feed import Feed
from surefoot.recipes.hardware import Amp, device_memory_mb
from surefoot.recipes.learner import Learner
from surefoot.recipes.length import Length
from surefoot.recipes.parts import Measured, Place
from surefoot.recipes.progress import EpochBar, EpochSummary, clock
from surefoot.recipes.run_folder import (
    AUTO,
    CHECKPOINTS,
    CONFIG,
    FAILURES,
    new_run_folder,
    run_folder_of,
    to_resume,
)
from surefoot.recipes.run_options import RunOptions
from surefoot.recipes.session import Bystander, Saving, Session, find_checkpoint
from surefoot.recipes.settings import Settings
from surefoot.records import StepRecord, Verdict

__all__ = ["Program"]

Batch = TypeVar("Batch")
Learns = TypeVar("Learns", bound=Learner[Any, Any])


class Program(ABC, Generic[Learns, Batch]):
    """A training run: what learns, what it learns from, and the folder it writes to."""

    recipe: ClassVar[str]
    """As in ``surefoot train <recipe>``."""
    unit: ClassVar[str] = "batches"
    """What micro-batches are called."""
    learner: Learns
    feed: Feed[Batch]
    plan: Length
    folder: Path
    session: Session | Bystander

    def __init__(
        self, settings: Settings, run: RunOptions, place: Place, stream: TextIO, stop: Interruption
    ) -> None:
        self.settings, self._run, self._stop = settings, run, stop
        self.ranks, self.stream = place.ranks, place.ranks.stream(stream)
        self.device, self._why = place.device, place.why
        self.amp: Amp = place.amp
        self._untried, self._divided = place.check and place.amp is not None, place.divided
        self._memory = MemoryWatch(allowance=place.cache)
        self.finished_epochs = 0
        self.best: float | None = None
        self.measured: Measured | None = None
        self._inexact: tuple[str, ...] = ()
        self._saved_at = (-1, -1)

    # -- what a recipe says ------------------------------------------------------------------------

    @abstractmethod
    def headline(self) -> list[str]:
        """What is printed first."""

    @abstractmethod
    def measure(self, epoch: int) -> Measured | None:
        """Validate; None where there is nothing to validate on."""

    def told(self, measured: Measured, took: str) -> list[str]:
        """What is printed of a measurement."""
        return [*measured.lines, f"  measured in {took}"]

    def begin_epoch(self, epoch: int) -> None:
        """Before its first step, and after a resume into it."""

    def halves(self, on_halved: Callable[[Halved], object]) -> Halves:
        """What cuts micro-batches that do not fit into memory."""
        return Halves(self.learner.guarded, on_halved=on_halved)

    def stepped(self, record: StepRecord) -> None:
        """After every micro-batch."""

    def reload(self, path: Path) -> Settings:
        """The settings that the run at ``path`` was made with."""
        return type(self.settings).load(path)

    # -- the run -----------------------------------------------------------------------------------

    def train(self) -> None:
        """From the first epoch, or from where it was cut short, to the last."""
        with self.open():
            self.stop_if_asked()
            for epoch in range(self.finished_epochs, self.plan.epochs):
                self.train_epoch(epoch)
                with self.session.stalls.paused():
                    self.end_epoch(epoch)
            self.learner.gather()

    def train_epoch(self, epoch: int) -> None:
        """Every micro-batch of the epoch that it has not had."""
        self.begin_epoch(epoch)
        count = self.feed.begin(epoch, self.plan.steps_in(epoch))
        if not count:
            return  # it was saved after its last step
        batches = self._tried(self.feed.batches(count))
        learner, guard = self.learner, self.learner.guard
        halves = self.halves(self._halved)  # anew: a stage may have thawed what was frozen
        step = self.learner.steps_with(halves)
        bar = EpochBar(
            title=f"Epoch {epoch + 1}/{self.plan.epochs}", total=count, stream=self.stream
        )
        summary = EpochSummary(learner.group_names)
        learner.begin()
        for batch in guard.batches(batches):
            record = step(batch, sample_ids=self.feed.names(batch))
            self.feed.order.advance()
            self.session.step(record, **({"pieces": halves.pieces} if halves.pieces > 1 else {}))
            bar.update(record)
            summary.add(record)
            self.stepped(record)
            if record.verdict is not Verdict.ACCUMULATED:
                self.stop_if_asked()
                if self.ranks.share(self.session.save_due):
                    self._save(None, best=False, wait=False)
            if growth := self._memory.step():
                self.session.journal.event("memory", **growth.to_dict())
                self.interject(f"  {growth}")
        bar.close()
        memory = device_memory_mb(self.device)
        fields = summary.fields() | {"device_memory_mb": memory}
        self.session.journal.event("epoch", epoch=epoch + 1, **fields)
        self.say(*summary.lines(loss_scale=self.amp == "fp16", device_memory_mb=memory))

    def _tried(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same; half precision is tried on the run's first one before it is used."""
        first = next(batches, None) if self._untried else None
        if first is None:
            return batches
        self._untried = False
        self.learner.model.train()
        check = self.learner.check_precision(first, self.amp)
        if check.amp != self.amp:
            self.learner.guard.keep_failures(self.folder / FAILURES)
            self.amp = check.amp
        self.session.journal.event("precision", why=self._why, **check.to_dict())
        self.say(f"Precision {check}")
        return chain([first], batches)

    def end_epoch(self, epoch: int) -> None:
        """Measure and save, where it is their turn.

        Raises:
            CheckpointError: what the run has come to could not be saved.
        """
        done = epoch + 1
        last, better, measured = done == self.plan.epochs, False, None
        if last or done % self._run.val_interval == 0:
            measured = self._measure(done)
        if measured is not None:
            better = self.best is None or measured.metric > self.best
            self.best = measured.metric if better else self.best
        self.finished_epochs = done
        self.feed.order.set_epoch(done)
        if last or better or done % self._run.save_interval == 0:
            outcome = self._save(measured, best=better, wait=last)
            if last and outcome is not None and not outcome.saved:
                raise CheckpointError(outcome.problem, path=self.folder / CHECKPOINTS)
        if not last:
            self.stop_if_asked()

    def _measure(self, done: int) -> Measured | None:
        started = time.monotonic()
        try:
            with self._stop.at_once():
                self.learner.agree()
                measured = self.measure(done)
        except Interrupted:
            self.stop_if_asked()  # saved as after the epoch's last step; the run goes on with this
            raise
        if measured is not None:
            self.measured = measured
            self.session.journal.event(
                "evaluation", epoch=done, weights=measured.weights, **measured.fields
            )
            self.say(*self.told(measured, clock(time.monotonic() - started)))
        return measured

    def stop_if_asked(self) -> None:
        """Save and leave, where a signal asked for it.

        Raises:
            Interrupted: the run can go on from here.
            CheckpointError: nothing could be saved, and there is nothing older to go on from.
        """
        if not self._stop.requested:
            return
        if self._saved_at != (self.finished_epochs, self.feed.order.position):
            self._save(None, best=False)
        raise self.session.interrupted(self._stop.signal_name, self.steps)

    @property
    def steps(self) -> int:
        """Optimizer steps so far, the refused ones too."""
        guard = self.learner.guard
        return guard.applied_steps + guard.refused_steps

    def say(self, *lines: str) -> None:
        """Print lines."""
        self.stream.write("".join(f"{line}\n" for line in lines))
        self.stream.flush()

    def interject(self, line: str) -> None:
        """Under the bar, which stands there without a line's end on a terminal."""
        self.say(*([""] if self.stream.isatty() else []), line)

    def _halved(self, halved: Halved) -> None:
        if halved.tried:
            self.session.journal.event("halved", step=self.steps, **halved.to_dict())
            self.interject(f"  {halved}")

    # -- the run folder ----------------------------------------------------------------------------

    def open(self) -> Session | Bystander:
        """Load what is to be loaded, then open the run folder, a new one or the resumed one."""
        run, first = self._run, self.ranks.of_first
        resume = first(lambda: to_resume(run.resume, run.save_dir))
        if resume is None:
            if run.checkpoint is not None:
                self._start_from(run.checkpoint)
            self._divide()
            again = run.resume == AUTO
            self.folder = first(lambda: new_run_folder(run.save_dir, self.recipe, again=again))
            return self._open_session([])
        found, rejected = first(lambda: find_checkpoint(resume))
        self._divide()
        self._go_on_from(found)
        source = run_folder_of(resume)
        self.folder = target = run.save_dir or source
        if target.resolve() != source.resolve():
            self.folder = first(lambda: new_run_folder(target, self.recipe))
        session = self._open_session(self.settings.differences(self.reload(source / CONFIG)))
        session.journal.event("continued", epoch=self.finished_epochs, checkpoint=found.path.name)
        self.say(*(f"  passed over {one}" for one in rejected))
        inside = (
            f" and {done} {self.unit} of the next" if (done := self.feed.order.position) else ""
        )
        self.say(
            f"Going on from {found.path}, after epoch {self.finished_epochs}{inside}",
            *(f"  no longer exact: {line}" for line in self._inexact),
        )
        return session

    def _open_session(self, changed: list[str]) -> Session | Bystander:
        self.learner.guard.keep_failures(self.folder / FAILURES)
        self.session = self._new_session(changed) if self.ranks.first else Bystander()
        if self.ranks.first:  # the others have no journal: what they meet goes to the log
            self.feed.tell(self.session.journal, self.interject)
        processes = [f"  {self.learner.together}"] if self.ranks.several else []
        self.say(*self.headline(), *processes, *(f"  changed: {c}" for c in changed))
        return self.session

    def _new_session(self, changed: list[str]) -> Session:
        run = self._run
        settings = self.settings.having(run=replace(run, save_dir=self.folder, resume=None))
        settings.save(self.folder / CONFIG)
        return Session(
            self.folder,
            recipe=self.recipe,
            run={
                "version": __version__,
                "device": str(self.device),
                "precision": self.amp or "fp32",
                "processes": self.ranks.size,
                "groups": self.learner.group_names,
                "settings": settings.to_dict(),
                "changed": changed,
            },
            say=self.say,
            interject=self.interject,
            saving=Saving(run.save_steps, run.keep_last, run.keep_every, run.save_in_background),
        )

    def _divide(self) -> None:
        if self._divided:
            self.learner.divide()

    def _start_from(self, path: Path) -> None:
        found, _ = find_checkpoint(path, best=True)
        name = "ema" if "ema" in found.weights else "model"
        self.say(f"Starting from {found.path}")
        self.say(*self.learner.start_from(found.load_weights(name), name=name))

    def _go_on_from(self, found: Checkpoint) -> None:
        state = found.load_state()
        self.finished_epochs, self.best = state["epoch"], state["best"]
        if self.finished_epochs >= self.plan.epochs and self._run.resume != AUTO:
            raise ConfigError(
                f"--resume {self._run.resume}: its {self.finished_epochs} epochs are done, and "
                f"--epochs (or --max-steps) asks for {self.plan.epochs}. Raise it to train on."
            )
        learner = self.learner
        learner.load_weights(found.load_weights("model"))
        if "ema" in found.weights:
            learner.load_average(found.load_weights("ema"))
        learner.load_state_dict(state["learner"])
        self.feed.order.set_epoch(self.finished_epochs)
        if "order" in state:  # checkpoints of old lie between two epochs and have none
            self._inexact += self.feed.order.load_state_dict(state["order"])
        self._inexact += self.ranks.put_back(state)

    def _save(
        self, measured: Measured | None, *, best: bool, wait: bool = True
    ) -> SaveOutcome | None:
        state = {
            "epoch": self.finished_epochs,
            "order": self.feed.order.state_dict(),
            "best": self.best,
            "learner": self.learner.state_dict(),
            **self.ranks.random_states(),
        }
        outcome = self.session.save(
            self.steps,
            state,
            weights=self.learner.weights(),
            metric=None if measured is None else float(measured.metric),
            measured_on=None if measured is None else measured.weights,
            best=best,
            wait=wait,
        )
        if self.ranks.share(outcome is not None and outcome.saved):
            self._saved_at = (self.finished_epochs, self.feed.order.position)
        return outcome
