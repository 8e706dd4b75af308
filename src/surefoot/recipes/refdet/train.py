"""``surefoot train refdet``: the program, its loop in view.

    surefoot train refdet --stage 2 --data_root datasets/train --val_data_root datasets/val \\
        --n_way 4 --n_query 4 --gradient_clip_norm 10

The nano preset is a GPU's work; ``--preset pocket`` trains on two CPU cores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TextIO

import torch

from surefoot import __version__
from surefoot.checkpoint import Checkpoint, SaveOutcome, capture_rng, restore_rng
from surefoot.checkpoint.signals import Interrupted, Interruption
from surefoot.data import AeroEyes
from surefoot.errors import CheckpointError, ConfigError
from surefoot.guard import MemoryWatch
from surefoot.guard.halved_step import step_in_halves
from surefoot.guard.out_of_memory import Halved
from surefoot.recipes.hardware import (
    Amp,
    choose_amp,
    choose_device,
    device_memory_mb,
    seed_everything,
)
from surefoot.recipes.progress import EpochBar, EpochSummary, clock
from surefoot.recipes.refdet.build import Learner, Plan
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.feed import Feed
from surefoot.recipes.refdet.halves import halves_of
from surefoot.recipes.refdet.measuring import Outcome, detector_of, measure
from surefoot.recipes.refdet.sources import Sources, open_sources
from surefoot.recipes.refdet.validate import Detector, Evaluation
from surefoot.recipes.run_folder import CONFIG, FAILURES, new_run_folder, run_folder_of
from surefoot.recipes.session import Saving, Session, find_checkpoint
from surefoot.records import Verdict
from surefoot.shapes import Episode

__all__ = ["Outcome", "Run", "train", "train_on_folders"]


def train_on_folders(config: TrainConfig, *, stream: TextIO | None = None) -> Outcome:
    """Train on the folders that ``config.data`` names; see :func:`train`."""
    return train(config, open_sources(config), stream=stream)


def train(config: TrainConfig, sources: Sources, *, stream: TextIO | None = None) -> Outcome:
    """Train from the settings, or go on where ``config.run.resume`` stopped.

    Args:
        config: the settings; they are kept in the run folder.
        sources: episodes to learn from, and videos to calibrate and measure on.
        stream: where progress is written; standard output where it is not given.

    Raises:
        ConfigError: settings that cannot work, or a folder that holds another run.
        CheckpointError: nothing whole to start from or to go on with.
        TrainingDiverged: too many steps in a row were refused; a note says where to go on.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came, and the run is saved; it is a ``SystemExit``.
    """
    started = time.monotonic()
    anomalies = torch.autograd.set_detect_anomaly(config.run.debug_mode)
    with Interruption() as stop, anomalies:
        run = Run(config, sources, stream or sys.stdout, stop)
        with run.open():
            run.stop_if_asked()
            for epoch in range(run.finished_epochs, run.plan.epochs):
                run.train_epoch(epoch)
                with run.session.stalls.paused():
                    run.end_epoch(epoch)
    return Outcome(
        folder=run.folder,
        detector=run.detector(),
        evaluation=run.evaluation,
        seconds=time.monotonic() - started,
    )


class Run:
    """A training run: what learns, what it learns from, and the folder it writes to."""

    folder: Path
    session: Session
    amp: Amp

    def __init__(
        self,
        config: TrainConfig,
        sources: Sources,
        stream: TextIO,
        stop: Interruption | None = None,
    ) -> None:
        self.config, self.sources, self.stream = config, sources, stream
        self._stop = stop or Interruption()
        self.device = choose_device(config.hardware.device)
        wanted = config.hardware.precision if config.hardware.mixed_precision else "fp32"
        self.amp, self._why = choose_amp(wanted, self.device)
        self._untried = config.hardware.check_precision and self.amp is not None
        self._memory = MemoryWatch(allowance=config.data.cache_mb * 2.0**20)
        self.plan = Plan.of(config, len(sources.episodes))
        seed_everything(config.run.seed)
        self.learner = Learner(config, self.plan, self.device, self.amp)
        self.finished_epochs = 0
        self.best: float | None = None
        self._inexact: tuple[str, ...] = ()
        self.evaluation: Evaluation | None = None
        self._feed = Feed(config, sources.episodes, self.device)
        self._order = self._feed.order
        self._halves = halves_of(self.learner, self._halved)
        self._saved_at = (-1, -1)

    # -- an epoch --------------------------------------------------------------------------------

    def train_epoch(self, epoch: int) -> None:
        """Every episode of the epoch that it has not had, one guarded micro-batch each."""
        count = self._feed.begin(epoch, self.plan)
        if not count:
            return  # it was saved after its last step
        episodes = self._tried(self._feed.episodes(count))
        learner, guard = self.learner, self.learner.guard
        title = f"Epoch {epoch + 1}/{self.plan.epochs}"
        bar = EpochBar(title=title, total=count, stream=self.stream)
        summary = EpochSummary(self.learner.group_names)
        learner.model.train()
        for episode in guard.batches(episodes):
            ids = episode.sample_ids
            record = step_in_halves(guard, self._halves, learner.terms, episode, sample_ids=ids)
            self._order.advance()
            pieces = self._halves.pieces
            self.session.step(record, **({"pieces": pieces} if pieces > 1 else {}))
            bar.update(record)
            summary.add(record)
            if record.verdict is not Verdict.ACCUMULATED:
                self.stop_if_asked()
                if self.session.save_due:
                    self._save(None, best=False, wait=False)
            if growth := self._memory.step():
                self.session.journal.event("memory", **growth.to_dict())
                self._interject(f"  {growth}")
        bar.close()
        memory = device_memory_mb(self.device)
        fields = summary.fields() | {"device_memory_mb": memory}
        self.session.journal.event("epoch", epoch=epoch + 1, **fields)
        self._say(*summary.lines(loss_scale=self.amp == "fp16", device_memory_mb=memory))

    def _tried(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """The same episodes; half precision is tried on the run's first one before it is used."""
        first = next(episodes, None) if self._untried else None
        if first is None:
            return episodes
        self._untried = False
        self.learner.model.train()
        check = self.learner.check_precision(first, self.config.optimizer, self.amp)
        if check.amp != self.amp:
            self.learner.guard.keep_failures(self.folder / FAILURES)
            self.amp = check.amp
        self.session.journal.event("precision", why=self._why, **check.to_dict())
        self._say(f"Precision {check}")
        return chain([first], episodes)

    def end_epoch(self, epoch: int) -> None:
        """Measure and save, where it is their turn.

        Raises:
            CheckpointError: what the run has come to could not be saved.
        """
        done = epoch + 1
        run, last = self.config.run, done == self.plan.epochs
        metric, better = None, False
        if self.sources.held_out and (last or done % run.val_interval == 0):
            self.evaluation = self._measure(self.sources.held_out, done)
            metric = self.evaluation.right.st_iou
            better = self.best is None or metric > self.best
            self.best = metric if better else self.best
        self.finished_epochs = done
        self._order.set_epoch(done)
        if last or better or done % run.save_interval == 0:
            outcome = self._save(metric, best=better, wait=last)
            if last and outcome is not None and not outcome.saved:
                raise CheckpointError(outcome.problem, path=self.session.store.folder)
        if not last:
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Save and leave, where a signal asked for it.

        Raises:
            Interrupted: the run can go on from here.
            CheckpointError: nothing could be saved, and there is nothing older to go on from.
        """
        if not self._stop.requested:
            return
        if self._saved_at != (self.finished_epochs, self._order.position):
            self._save(None, best=False)
        raise self.session.interrupted(self._stop.signal_name, self._steps)

    @property
    def _steps(self) -> int:
        guard = self.learner.guard
        return guard.applied_steps + guard.refused_steps

    def _say(self, *lines: str) -> None:
        self.stream.write("".join(f"{line}\n" for line in lines))
        self.stream.flush()

    def _halved(self, halved: Halved) -> None:
        if halved.tried:
            self.session.journal.event("halved", step=self._steps, **halved.to_dict())
            self._interject(f"  {halved}")

    def _interject(self, line: str) -> None:
        """Under the bar, which stands there without a line's end on a terminal."""
        self._say(*([""] if self.stream.isatty() else []), line)

    # -- measuring -------------------------------------------------------------------------------

    def detector(self) -> Detector:
        """The model as it is measured: its average, where there is one."""
        return detector_of(self.config, self.learner.evaluated[1], self.device, self.amp)

    def _measure(self, held_out: AeroEyes, epoch: int) -> Evaluation:
        started, calibration = time.monotonic(), self.sources.calibration
        try:
            with self._stop.at_once():
                evaluation = measure(self.detector(), calibration, held_out, self.config.data)
        except Interrupted:
            self.stop_if_asked()  # saved as after the epoch's last step; the run goes on with this
            raise
        name = self.learner.evaluated[0]
        self.session.journal.event("evaluation", epoch=epoch, weights=name, **evaluation.to_dict())
        took = clock(time.monotonic() - started)
        self._say(f"  held out ({name} weights, {took}): {evaluation.line()}")
        return evaluation

    # -- the run folder --------------------------------------------------------------------------

    def open(self) -> Session:
        """Load what is to be loaded, then open the run folder, a new one or the resumed one."""
        config, resume = self.config, self.config.run.resume
        if resume is None:
            if config.run.checkpoint is not None:
                self._start_from(config.run.checkpoint)
            self.folder = new_run_folder(config.run.save_dir, "refdet")
            return self._open_session([])
        found, rejected = find_checkpoint(resume)
        self._go_on_from(found)
        source = run_folder_of(resume)
        self.folder = config.run.save_dir or source
        if self.folder.resolve() != source.resolve():
            self.folder = new_run_folder(self.folder, "refdet")
        session = self._open_session(config.differences(TrainConfig.load(source / CONFIG)))
        session.journal.event("continued", epoch=self.finished_epochs, checkpoint=found.path.name)
        self._say(*(f"  passed over {one}" for one in rejected))
        inside = f" and {done} episodes of the next" if (done := self._order.position) else ""
        self._say(
            f"Going on from {found.path}, after epoch {self.finished_epochs}{inside}",
            *(f"  no longer exact: {line}" for line in self._inexact),
        )
        return session

    def _open_session(self, changed: list[str]) -> Session:
        run = replace(self.config.run, save_dir=self.folder, resume=None)
        settings = replace(self.config, run=run)
        settings.save(self.folder / CONFIG)
        self.learner.guard.keep_failures(self.folder / FAILURES)
        self.session = Session(
            self.folder,
            recipe="refdet",
            run={
                "version": __version__,
                "device": str(self.device),
                "precision": self.amp or "fp32",
                "groups": self.learner.group_names,
                "settings": settings.to_dict(),
                "changed": changed,
            },
            say=self._say,
            saving=Saving(run.save_steps, run.keep_last, run.keep_every, run.save_in_background),
        )
        self._say(*self._headline(), *(f"  changed: {line}" for line in changed))
        return self.session

    def _headline(self) -> list[str]:
        count = sum(p.numel() for p in self.learner.model.parameters())
        return [
            f"RefDet {self.config.model.preset}, {count / 1e6:.2f} M parameters, on {self.device} "
            f"in {self.amp or 'fp32'} ({self._why}): {self.plan.epochs} epochs, "
            f"{self.plan.total_steps} optimizer steps ({self.plan.warmup_steps} of warm-up), into "
            f"{self.folder}"
        ]

    def _start_from(self, path: Path) -> None:
        found, _ = find_checkpoint(path, best=True)
        name = "ema" if "ema" in found.weights else "model"
        self.learner.load_weights(found.load_weights(name), name=name)

    def _go_on_from(self, found: Checkpoint) -> None:
        state = found.load_state()
        learner, self.finished_epochs, self.best = self.learner, state["epoch"], state["best"]
        if self.finished_epochs >= self.plan.epochs:
            raise ConfigError(
                f"--resume {self.config.run.resume}: its {self.finished_epochs} epochs are done, "
                f"and --epochs (or --max-steps) asks for {self.plan.epochs}. Raise it to train on."
            )
        learner.load_weights(found.load_weights("model"))
        if learner.averaged is not None and "ema" in found.weights:
            learner.averaged.module.load_state_dict(found.load_weights("ema"))
        learner.load_state_dict(state["learner"])
        self._order.set_epoch(self.finished_epochs)
        if "order" in state:  # checkpoints of old lie between two epochs and have none
            self._inexact += self._order.load_state_dict(state["order"])
        self._inexact += restore_rng(state["rng"])

    def _save(self, metric: float | None, *, best: bool, wait: bool = True) -> SaveOutcome | None:
        state = {
            "epoch": self.finished_epochs,
            "order": self._order.state_dict(),
            "best": self.best,
            "learner": self.learner.state_dict(),
            "rng": capture_rng(),
        }
        outcome = self.session.save(
            self._steps,
            state,
            weights=self.learner.weights(),
            metric=None if metric is None else float(metric),
            measured_on=None if metric is None else self.learner.evaluated[0],
            best=best,
            wait=wait,
        )
        if outcome is not None and outcome.saved:
            self._saved_at = (self.finished_epochs, self._order.position)
        return outcome
