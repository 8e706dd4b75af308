"""What was found while images and masks were paired: told in full, and never passed over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

__all__ = ["PairReport"]

_SHOWN = 3


def _told(text: str) -> tuple[str, ...]:
    return field(default=(), metadata={"told": text})


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What does not pair, cannot be read, differs, or was left out, by stem.

    >>> report = PairReport(folders=("Imgs and GT",), pairs=8, images_without_mask=("moth", "owl"))
    >>> print(report)
    8 pairs from Imgs and GT
      images without a mask, left out: 2 (moth, owl)
    """

    folders: tuple[str, ...] = ()
    """Where was looked, a phrase each."""
    pairs: int = 0
    """Pairs that can be used."""
    images_without_mask: tuple[str, ...] = _told("images without a mask, left out")
    masks_without_image: tuple[str, ...] = _told("masks without an image")
    unreadable: tuple[str, ...] = _told("pairs that cannot be read, left out")
    """The file and the reason."""
    sizes_differ: tuple[str, ...] = _told("images of another size than their mask, resized to it")
    """The stem and both sizes, width x height."""
    other_values: tuple[str, ...] = _told(
        "masks with values other than 0 and 255, cut above 127, or above 0 where none is above 1"
    )
    """The stem and the values."""
    empty_masks: tuple[str, ...] = _told("masks without an object")
    """Camouflaged images only; those of non-camouflaged ones are empty by definition."""
    repeated: tuple[str, ...] = _told("images that come twice, the first kept")
    leaked: tuple[str, ...] = _told("training images that are in COD10K's test set too, left out")
    noncam: tuple[str, ...] = _told("non-camouflaged images left out")

    @property
    def clean(self) -> bool:
        """Nothing to tell of, but for what was left out on purpose."""
        meant = ("leaked", "noncam")
        return not any(getattr(self, f.name) for f in _telling() if f.name not in meant)

    def __str__(self) -> str:
        lines = [f"{self.pairs} pairs from {'; '.join(self.folders) or 'nowhere'}"]
        for f in _telling():
            entries: tuple[str, ...] = getattr(self, f.name)
            if entries:
                shown = ", ".join(entries[:_SHOWN])
                more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
                lines.append(f"  {f.metadata['told']}: {len(entries)} ({shown}{more})")
        return "\n".join(lines)

    def adding(self, **found: Iterable[str]) -> PairReport:
        """A copy with more entries."""
        return replace(self, **{name: (*getattr(self, name), *new) for name, new in found.items()})


def _telling() -> list[Field[Any]]:
    return [f for f in fields(PairReport) if "told" in f.metadata]
