"""What a fault is: how it strikes, under which settings, and what has to be said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.chaos.inject import Injector

__all__ = [
    "DAMAGE",
    "NANS",
    "NO_ROOM",
    "RESUMES",
    "SPIKES",
    "SPIKES_SAID",
    "Entry",
    "Expect",
    "Fault",
    "Plan",
    "Setting",
    "Struck",
    "a_file",
    "a_rank",
    "a_rate",
    "a_sample",
    "any_place",
    "only_samples",
    "tensor",
]

NANS = r"(?<![a-z])(nan|inf)(?![a-z])|infinit|non.?finite|not finite|overflow"
SPIKES = rf"spike|explo|diverg|anomal|learning rate|{NANS}"
RESUMES = "resum|restor|continu"
SPIKES_SAID = "loss_spike gradient_spike diverged rolled_back"
"""Words of surefoot's own."""
DAMAGE = "corrupt|truncat|central directory|unexpected EOF|incomplete|invalid|damaged|checksum"
NO_ROOM = "no space|too large|disk"

Entry = Mapping[str, Any]
"""One thing that surefoot said: a step record or another line of its journal, with its ``kind``."""
Place = Callable[[Entry, "Struck"], bool]


_FEW = 3


@dataclass(frozen=True)
class Struck:
    """What the harness knows of a fault that struck."""

    samples: frozenset[str] = frozenset()
    """Numbers of the samples that were changed."""
    files: tuple[str, ...] = ()
    """Names that a message about the checkpoint may use: its file, its folder."""
    usual_rate: float = 1e-3


@dataclass(frozen=True)
class Plan:
    """How long a run is and when a single fault strikes."""

    steps: int = 400

    @property
    def at(self) -> int:
        """The step that a single fault strikes at, from 0: half of the steps are left then."""
        return self.steps // 2

    @property
    def epoch(self) -> int:
        """Batches in an epoch: there are four."""
        return self.steps // 4

    @property
    def eighth(self) -> int:
        """An eighth of the run."""
        return self.steps // 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a run is set up, fault or no fault; a run is compared with a clean one of its setting."""

    batchnorm: bool = False
    fp16: bool = False
    accumulate: int = 1
    """Micro-batches per optimizer step; the run has so many fewer steps."""
    world: int = 1
    """Processes under DistributedDataParallel, over gloo."""
    workers: int = 0
    """Of the data loader."""


@dataclass(frozen=True)
class Expect:
    """What surefoot has to say."""

    words: frozenset[str]
    """Causes, events or kinds of journal lines, any of which is right."""
    steps: range
    """Where the first right entry has to be."""
    place: Place
    """Whether an entry says where the fault is."""

    @classmethod
    def of(cls, words: str, steps: range, place: Place) -> Expect:
        """Words divided by blanks."""
        return cls(frozenset(words.split()), steps, place)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table."""

    key: str
    title: str
    strike: Callable[[], Sequence[Injector]]
    expect: Expect
    text: str
    """Regular expression of the words that name the problem, for columns that only print."""
    setting: Setting = field(default_factory=Setting)
    misuse: bool = False
    """The loop clips (and unscales) on every micro-batch instead of at the boundary."""
    checkpoint_every: int = 0
    """Optimizer steps between two checkpoints; 0 for none."""
    lives: int = 1
    """How often the run is started, again and again from its checkpoint while it dies."""
    damage: Literal["cut", "bit"] | None = None
    """What happens to the newest checkpoint after the first life."""
    disk: bool = False
    """The run's folder is a small file system of its own."""
    counts: bool = True
    """Whether it is one of those that the totals are over."""


# -- where: each of these looks at one entry ------------------------------------------------------


def _culprits(entry: Entry) -> list[str]:
    """Names of tensors that an entry blames."""
    return [str(culprit[0]) for culprit in entry.get("culprits", ())]


def _bare(name: str) -> str:
    """Without a wrapper's prefix and without what is said of the tensor in brackets."""
    return name.partition(" (")[0].replace("module.", "").replace("net.", "")


def _samples(entry: Entry) -> set[str]:
    """Those that an entry blames; the batch, where it could not tell them apart."""
    fault = entry.get("fault") or {}
    told = {str(name) for name in fault.get("samples") or entry.get("sample_ids", ())}
    return told | ({str(entry.get("index"))} if entry["kind"] == "quarantine" else set())


def a_sample(entry: Entry, struck: Struck) -> bool:
    """One of the samples that were changed."""
    return bool(struck.samples & _samples(entry))


def only_samples(entry: Entry, struck: Struck) -> bool:
    """Samples that were changed, and no other one."""
    told = _samples(entry)
    return bool(told) and told <= struck.samples


def tensor(*names: str) -> Place:
    """One of these, by its full name (a wrapper's prefix does not matter), among few others: to
    name every tensor that there is is to name none.
    """

    def place(entry: Entry, struck: Struck) -> bool:
        said = {_bare(name) for name in _culprits(entry)}
        return len(said) <= _FEW and any(name in said for name in names)

    return place


def any_place(entry: Entry, struck: Struck) -> bool:
    """Some tensor or some sample."""
    return bool(_culprits(entry) or _samples(entry))


def a_rate(entry: Entry, struck: Struck) -> bool:
    """A learning rate that is not the usual one, or the tensors that it spoilt."""
    rates = [float(rate) for rate in entry.get("learning_rates", ())]
    return any(rate != struck.usual_rate for rate in rates) or bool(_culprits(entry))


def a_file(entry: Entry, struck: Struck) -> bool:
    """The checkpoint's file or folder."""
    return any(name in str(dict(entry)) for name in struck.files)


def a_rank(number: int) -> Place:
    """The process that had the fault."""

    def place(entry: Entry, struck: Struck) -> bool:
        known = entry.get("bad_ranks") or [entry.get("rank")]
        named = any(f"rank {number}" in name for name in _culprits(entry))
        return (named or number in known) and any_place(entry, struck)

    return place
