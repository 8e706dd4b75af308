"""Kill a training at random moments until it is done: is it the run that nobody killed, to the bit?

    python -m benchmarks.kill [--quick] [--recipe NAME] [--kills N] [--seed S] [--out FILE.md]

Each life of a run is a process of its own, the real command. It is ended by SIGKILL: somewhere
during its start, after a random number of steps, or while a checkpoint is being written (its folder
is watched for the draft); or by SIGTERM, after which it must leave with the status that says that
it can go on, without losing a step. Then it is started again with --resume, until it is done. What
is compared at the end is the last checkpoint: every weight, the average, the optimizer's moments,
schedule, guard, criterion, random states and position. A course is one run from its first start to
its end; courses are made until the kills are used up. ``--out`` writes the table between the marks
of a Markdown file.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.interleave import machine
from benchmarks.kill_recipes import RECIPES, Recipe
from surefoot.checkpoint import RESUMABLE, CheckpointStore
from surefoot.journal import JournalReader

BEGIN, END = "<!-- kill: begin -->", "<!-- kill: end -->"
_STATE = ("epoch", "best", "order", "learner", "rng")
_LOOK = 0.002
"""Seconds between two looks at a life; a save of the small model takes some fifty times as long."""
_WAIT = 300.0
"""Seconds in which a life has to come to the moment that was drawn for it."""


@dataclass
class Tally:
    """What was done to a recipe's runs, and what came of it."""

    courses: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """By moment."""
    drafts: int = 0
    """Kills that left a half-written checkpoint."""
    anew: int = 0
    """Lives that had to begin from nothing: no checkpoint was there yet."""
    again: int = 0
    """Steps that were made a second time."""
    differ: list[str] = field(default_factory=list)
    """What was not the same at the end of a course; nothing is the promise."""

    @property
    def total(self) -> int:
        """Lives that were cut short."""
        return sum(self.kills.values())

    def row(self, name: str) -> str:
        """A row of the table."""
        moments = [self.kills[moment] for moment in ("start", "step", "save", "SIGTERM")]
        equal = f"{self.courses} of {self.courses}"
        if self.differ:
            equal = f"NO: {self.differ[0]}"
        cells = [name, self.total, *moments, self.drafts, self.anew, self.again, equal]
        return "| " + " | ".join(map(str, cells)) + " |"


HEAD = """\
| recipe | lives ended | in the start | after a step | in a save | by SIGTERM | half-written \
checkpoints left | begun anew | steps made twice | courses that ended bit-equal |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


class Course:
    """One run, killed and gone on with until it is done."""

    def __init__(self, recipe: Recipe, folder: Path, rng: random.Random, tally: Tally) -> None:
        self._recipe, self._rng, self.tally = recipe, rng, tally
        self.run, self._data = folder / "run", folder.parent / "data"
        self._log = folder / "said.txt"
        folder.mkdir(parents=True)

    def go(self, kills: int, *, saves: float = 0.3, asks: float = 0.15) -> None:
        """Live and die; the last life ends by itself.

        Args:
            kills: lives that are ended, at most: a run that gets done before is done.
            saves: share of them that is ended while a checkpoint is written.
            asks: share that is ended by SIGTERM.
        """
        for _ in range(kills):
            moment = self._rng.choices(
                ["save", "SIGTERM", "start", "step"], [saves, asks, 0.1, 0.9 - saves - asks]
            )[0]
            if self._live(moment):
                return
        if not self._live(""):
            raise RuntimeError(f"the last life of {self.run} did not end by itself")

    def _live(self, moment: str) -> bool:
        """Whether the run got done before its moment came."""
        before = self._steps()
        life = self._start()
        if moment and self._comes(life, moment):
            if moment == "SIGTERM":
                life.send_signal(signal.SIGTERM)
                if life.wait(_WAIT) == 0 or self._done():
                    return True
                self._expect(life.returncode == RESUMABLE, f"status {life.returncode}")
                self._expect(self._newest() == self._steps() or not self._steps(), "steps lost")
            else:
                life.kill()
                life.wait(_WAIT)
                if self._done():
                    return True
            self.tally.kills[moment] += 1
            self.tally.drafts += any((self.run / "checkpoints").glob(".saving-*"))
            self.tally.again += max(0, self._steps() - max(self._newest(), before))
            return False
        self._expect(life.wait(_WAIT) == 0, f"status {life.returncode}")
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        resume = ["--resume", str(self.run)]
        if self._newest() < 0:
            self.tally.anew += self.run.exists()
            shutil.rmtree(self.run, ignore_errors=True)
            resume = [*self._recipe.flags(self._data), "--save-dir", str(self.run)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "surefoot", *self._recipe.verb, *resume],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
            )

    def _comes(self, life: subprocess.Popen[bytes], moment: str) -> bool:
        """Wait for the moment; False where the run was done before."""
        begun = time.monotonic()
        after = self._steps() + self._rng.randint(2, max(4, self._recipe.steps // 10))
        delay = self._rng.uniform(0.0, 0.02 if moment == "save" else self._recipe.delay)
        started = self._rng.uniform(0.0, 4.0)
        while life.poll() is None and time.monotonic() - begun < _WAIT:
            time.sleep(_LOOK)
            if moment == "start":
                if time.monotonic() - begun >= started:
                    return True
            elif self._steps() >= after and (
                moment != "save" or any((self.run / "checkpoints").glob(".saving-*"))
            ):
                time.sleep(delay)
                return life.poll() is None
        return False

    def _steps(self) -> int:
        """Optimizer steps that the journal knows of, the highest number."""
        journal = self.run / "journal.jsonl"
        if not journal.exists() or not journal.stat().st_size:
            return 0
        with journal.open("rb") as file:
            file.seek(-min(journal.stat().st_size, 2**14), os.SEEK_END)
            tail = file.read()
        numbers = re.findall(rb'"kind": *"step",[^\n]*?"step": *(\d+),', tail)
        return 1 + int(numbers[-1]) if numbers else 0

    def _newest(self) -> int:
        found = CheckpointStore(self.run / "checkpoints").newest()
        return -1 if found is None else found.step

    def _done(self) -> bool:
        """Whether it was hit when its last checkpoint was written already."""
        found = CheckpointStore(self.run / "checkpoints").newest()
        return found is not None and found.load_state()["epoch"] == self._recipe.epochs

    def _expect(self, kept: bool, problem: str) -> None:
        if not kept:
            said = self._log.read_text("utf-8", "replace")[-2000:]
            raise RuntimeError(f"{self.run}: {problem}; it said:\n{said}")


def difference(ours: Path, theirs: Path) -> str:
    """What is not the same to the bit at the end of two runs; empty where nothing is."""
    ends = [CheckpointStore(run / "checkpoints").newest() for run in (ours, theirs)]
    if ends[0] is None or ends[1] is None or ends[0].weights != ends[1].weights:
        return "there is no checkpoint to compare"
    for name in ends[0].weights:
        if found := _differs(ends[0].load_weights(name), ends[1].load_weights(name), name):
            return found
    states = [end.load_state() for end in ends if end is not None]
    kept = [{part: state[part] for part in _STATE if part in state} for state in states]
    return _differs(kept[0], kept[1], "state")


def _differs(a: Any, b: Any, place: str) -> str:
    if type(a) is not type(b):
        return place
    if isinstance(a, torch.Tensor):
        return "" if torch.equal(a, b) else place
    if isinstance(a, list | tuple):
        a, b = dict(enumerate(cast(Sequence[Any], a))), dict(enumerate(cast(Sequence[Any], b)))
    if not isinstance(a, Mapping):
        return "" if a == b else place
    one, other = cast(Mapping[Any, Any], a), cast(Mapping[Any, Any], b)
    if one.keys() != other.keys():
        return place
    found = (_differs(one[key], other[key], f"{place}[{key!r}]") for key in one)
    return next(filter(None, found), "")


def torment(recipe: Recipe, folder: Path, *, kills: int, seed: int, lives: int) -> Tally:
    """Kill until the kills are used up, and compare the end of every course.

    Args:
        recipe: what is trained.
        folder: an empty one.
        kills: lives that are ended, all courses together, at least.
        seed: of the moments.
        lives: kills of one course, at most.
    """
    tally, rng = Tally(), random.Random(seed)
    whole = Course(recipe, folder / "whole", rng, Tally())
    whole.go(0)
    while tally.total < kills:
        course = Course(recipe, folder / f"course-{tally.courses}", rng, tally)
        course.go(min(lives, kills - tally.total))
        tally.courses += 1
        if found := difference(course.run, whole.run):
            tally.differ.append(found)
        list(JournalReader(course.run / "journal.jsonl"))  # every line of it can be read
        print(f"  course {tally.courses}: {tally.total} lives ended; differs: {found or 'nothing'}")
        shutil.rmtree(course.run)
    return tally


def write_between_marks(page: Path, text: str) -> None:
    """Put ``text`` in the place of what stands between the marks of a page."""
    said = page.read_text("utf-8")
    head, begin, rest = said.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: there is no {BEGIN} followed by {END} in it; put them there.")
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="six kills of a tiny run")
    parser.add_argument("--recipe", choices=list(RECIPES), action="append")
    parser.add_argument("--kills", type=int, default=None, help="of each recipe; 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="page whose marked block is written")
    options = parser.parse_args()
    tiny = ["refdet, tiny", "camouflage, tiny"]
    names = options.recipe or (tiny if options.quick else ["refdet", "camouflage"])
    kills = options.kills or (6 if options.quick else 100)
    rows: list[str] = []
    differ = False
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="surefoot-kill-"))
        print(f"{name}, in {folder}")
        tally = torment(RECIPES[name], folder, kills=kills, seed=options.seed, lives=25)
        rows.append(tally.row(name))
        differ |= bool(tally.differ)
        if not tally.differ:
            shutil.rmtree(folder)
    quick = " --quick" if options.quick else ""
    command = f"python -m benchmarks.kill{quick} --kills {kills} --seed {options.seed}"
    text = "\n".join([f"`{command}`; {machine()}", "", HEAD, *rows])
    print(text)
    if options.out is not None:
        write_between_marks(options.out, text)
    if differ:
        sys.exit(1)


if __name__ == "__main__":
    main()
