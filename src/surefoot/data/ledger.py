"""What went wrong while data were loaded: a record of each, and how many there may be."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from surefoot.errors import CheckpointError, ConfigError, DataError

__all__ = ["DataIncident", "Ledger", "Limit"]

_VERSION = 1
_NAMED = 3
_TWICE = 2
_LOG = logging.getLogger("surefoot.data")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much may go wrong before loading stops, so that a broken data set is not trained on."""

    count: int = 100
    """Samples that may be quarantined in a run."""
    share: float = 0.05
    """Share of the data set that may be quarantined, 0 to 1; one sample always may."""
    deaths: int = 10
    """Workers that may die within 1,000 batches."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.deaths < 0 or not 0 <= self.share <= 1:
            raise ConfigError(
                f"Limit: count={self.count} and deaths={self.deaths} are 0 or more, "
                f"share={self.share} is 0 to 1."
            )

    def of(self, length: int | None) -> int:
        """Samples of a data set of ``length`` that may be quarantined.

        >>> Limit().of(1000), Limit().of(10), Limit().of(10**6), Limit(count=0).of(10)
        (50, 1, 100, 0)
        """
        if length is None:
            return self.count
        return min(self.count, max(1, int(self.share * length)))


@dataclass(frozen=True, kw_only=True)
class DataIncident:
    """One sample that could not be used, or one worker that died."""

    what: str
    """``exception``, ``refused`` by a check, ``misfit`` that could not be batched with the others,
    or ``killed``: a worker died while it loaded it."""
    quarantined: bool
    """Whether the sample is never loaded again; a worker's first death is only told."""
    index: Any
    """Of the sample in its data set; None where a worker died and loaded none."""
    epoch: int
    batch: int | None
    """Number of the batch in its epoch, from 0; None where a worker died and loaded none."""
    place: int | None
    """In the batch, from 0; None for one that was tried in the place of another."""
    error: str
    """Type of the exception, or name of the check."""
    text: str
    """What it said."""
    worker: int | None
    """That loaded it; None: the main process."""
    replaced_by: Any = None
    """Index of the sample that took its place."""

    def __str__(self) -> str:
        by = "" if self.worker is None else f", worker {self.worker}"
        at = "" if self.batch is None else f", batch {self.batch}"
        where = f"epoch {self.epoch}{at}{by}"
        if self.index is None:
            return f"a data worker died and was replaced ({where}): {self.text}"
        fate = "is not loaded again" if self.quarantined else "is tried once more"
        instead = "" if self.replaced_by is None else f"; sample {self.replaced_by!r} in its place"
        return f"sample {self.index!r} {fate} ({where}): {self.error}: {self.text}{instead}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for ``journal.event("data", **incident.to_dict())``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; unknown fields of a newer version are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class Ledger:
    """Everything that went wrong in a run's loading; it says when that is too much.

    Args:
        limit: how much there may be.
        length: samples of the data set, where that is known.
        on_record: told of each incident; the log where there is none.
    """

    def __init__(
        self,
        limit: Limit,
        length: int | None,
        on_record: Callable[[DataIncident], object] | None,
    ) -> None:
        self._limit, self._allowed, self._length = limit, limit.of(length), length
        self._on_record = on_record
        self._deaths = deque[int](maxlen=limit.deaths + 1)
        self._suspects = Counter[Hashable]()
        self.batches = 0
        self.passes = 0
        self.quarantined: list[DataIncident] = []
        self.banned: frozenset[Hashable] = frozenset()

    def add(self, incident: DataIncident) -> None:
        """Tell of an incident, and keep it where a sample was quarantined.

        Raises:
            DataError: there have been too many.
        """
        if incident.quarantined:
            if incident.index in self.banned:
                return  # it was in flight when it was found
            self.quarantined.append(incident)
            self.banned |= {incident.index}
        if self._on_record is None:
            _LOG.warning("%s", incident)
        else:
            self._on_record(incident)
        if len(self.quarantined) > self._allowed:
            raise DataError(self._too_many())

    def add_death(self, incident: DataIncident) -> None:
        """A worker died; a sample it happened to twice is quarantined.

        Raises:
            DataError: there have been too many, of either.
        """
        if len(self._suspects) > 1000:
            self._suspects.clear()
        self._suspects[incident.index] += incident.index is not None
        twice = self._suspects[incident.index] >= _TWICE
        self.add(replace(incident, quarantined=twice))
        self._deaths.append(self.batches)
        if len(self._deaths) > self._limit.deaths and self.batches - self._deaths[0] < 1000:
            raise DataError(
                f"loading data: {len(self._deaths)} workers died within "
                f"{self.batches - self._deaths[0] + 1} batches; the limit is "
                f"{self._limit.deaths} within 1,000. The last: {incident.text} Where the system is "
                "short of memory, use fewer workers or a smaller prefetch_factor; otherwise load "
                "with num_workers=0 to see which call crashes."
            )

    def stuck(self, keys: Any) -> DataError:
        """The error for a batch that no sample could be found for."""
        told = "; ".join(f"{one.index!r} ({one.error}: {one.text})" for one in self._last)
        return DataError(
            f"loading data: nothing could be put in the place of bad samples of the batch "
            f"{keys!r}. The last ones: {told}. Look at these, or at the check that refused them."
        )

    @property
    def _last(self) -> list[DataIncident]:
        return self.quarantined[-_NAMED:]

    def _too_many(self) -> str:
        first = ", ".join(
            f"{one.index!r} ({one.error}: {one.text})" for one in self.quarantined[:_NAMED]
        )
        more = len(self.quarantined) - _NAMED
        return (
            f"loading data: {len(self.quarantined)} samples"
            f"{'' if self._length is None else f' of {self._length}'} could not be used, and "
            f"{self._allowed} may be (count={self._limit.count}, share={self._limit.share:g}): "
            f"{first}{f' and {more} more' if more > 0 else ''}. Mend or remove them, or look at "
            "the check that refused them; where so many are to be expected, allow them by "
            "limit=Limit(count=..., share=...)."
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values that a checkpoint can hold."""
        return {
            "version": _VERSION,
            "passes": self.passes,
            "quarantined": [one.to_dict() for one in self.quarantined],
            "suspects": list(self._suspects.items()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            CheckpointError: it is no such state, or one of a newer version.
        """
        if state.get("version") != _VERSION:
            raise CheckpointError(
                f"quarantine of version {state.get('version')!r}; this surefoot reads {_VERSION}. "
                "Give what state_dict() returned, or update surefoot."
            )
        try:
            found = [DataIncident.from_dict(values) for values in state["quarantined"]]
            suspects = Counter[Hashable](dict(state["suspects"]))
            self.passes = int(state["passes"])
        except (AttributeError, LookupError, TypeError, ValueError) as damage:
            raise CheckpointError(f"quarantine: the state is damaged: {damage!r}.") from damage
        self.quarantined, self._suspects = found, suspects
        self.banned = frozenset(one.index for one in found)
