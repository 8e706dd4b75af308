r"""S-measure, E-measure, weighted F and MAE of masks, as camouflage papers report them.

All four are those of pysodmetrics (Fan et al. 2017, Fan et al. 2018, Margolin et al. 2014,
Perazzi et al. 2012), each image scored at its own resolution and every image counting alike.
IoU and Dice are of the prediction cut at 0.5.

pysodmetrics stretches every map to its own minimum and maximum unless told not to, and published
tables are made so: a faint map then scores like a sure one, and noise on an empty map like a find.
Here maps are scored as they are, unless ``stretch=True`` asks for the published protocol.

Two peculiarities are kept, for the numbers to be comparable: E-measure divides by one pixel too
few, so that a perfect map of n pixels has 1 + 1 / (n - 1); and the mean over its 256 thresholds
counts the threshold 0, at which everything is object, so that a perfect map has about 0.997.
"""

from __future__ import annotations

import csv
import functools
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics.bootstrap import Interval, bootstrap_interval

__all__ = ["ImageScore", "SegmentationScores", "SegmentationSummary"]

_ROUNDING = 1e-5
_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """Every score of one image; None where it is not defined."""

    index: int
    """Place in the data set; the same image has the same in every process."""
    id: str
    foreground: float
    """Share of the mask that is object."""
    s_measure: float | None = None
    e_adaptive: float | None = None
    """E-measure at twice the mean of the map, at most 1."""
    e_mean: float | None = None
    """Mean of the E-measure over 256 thresholds."""
    e_max: float | None = None
    """Largest of the E-measure over 256 thresholds; over a set it is that of the mean curve."""
    weighted_f: float | None = None
    mae: float | None = None
    """Mean absolute error."""
    iou: float | None = None
    """At threshold 0.5."""
    dice: float | None = None
    """At threshold 0.5."""
    false_positive_area: float | None = None
    """Of an image without an object, the share that is predicted to be one, at threshold 0.5."""
    e_curve: tuple[float, ...] = field(default=(), repr=False)
    """E-measure at the 256 thresholds, from the highest down."""


_SCORES = tuple(f.name for f in fields(ImageScore) if f.default is None)


@dataclass(frozen=True, kw_only=True)
class SegmentationSummary:
    """Means over images; None where there was no image to take it of."""

    images: int
    """Images with an object: all but the last score are means over these."""
    images_without_object: int
    """Kept out of all means but the last."""
    s_measure: float | None
    e_adaptive: float | None
    e_mean: float | None
    e_max: float | None
    """Largest value of the mean curve."""
    weighted_f: float | None
    mae: float | None
    iou: float | None
    dice: float | None
    false_positive_area: float | None
    """Mean over the images without an object."""


class SegmentationScores:
    """Collects images one by one; what comes out depends neither on their order nor on batches.

    Args:
        stretch: stretch every map to 0 and 1 first, as pysodmetrics does by default. Needed to
            compare with published figures; it hides faint and miscalibrated maps. A constant map
            stays as it is. IoU, Dice and the false positive area are of the map as it came.

    >>> scores = SegmentationScores()
    >>> mask = np.zeros((32, 32), dtype=np.uint8)
    >>> mask[8:24, 8:24] = 1
    >>> scores.add("moth", mask.astype(float), mask, index=0)
    >>> scores.add("rock", np.zeros((32, 32)), np.zeros((32, 32), dtype=np.uint8), index=1)
    >>> summary = scores.summary()
    >>> round(summary.s_measure, 3), summary.iou, summary.images_without_object
    (1.0, 1.0, 1)
    """

    def __init__(self, *, stretch: bool = False) -> None:
        self.stretch = stretch
        self._rows: dict[int, ImageScore] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, name: str, prediction: ArrayLike, mask: ArrayLike, *, index: int) -> None:
        """Score an image.

        Args:
            name: its id.
            prediction: H W, probabilities in [0, 1], brought to the mask's resolution. Resizing may
                overshoot by 1e-5.
            mask: H W, of 0 and 1, 0 and 255, or booleans.
            index: its place in the data set, by which :meth:`merge` knows it again.

        Raises:
            ConfigError: pysodmetrics is not installed.
            UsageError: an index that is there already, another shape, or other values.
        """
        what = f"scoring image {name!r}"
        if index in self._rows:
            raise UsageError(
                f"{what}: index {index} was added already, as {self._rows[index].id!r}; each image "
                "comes once. Rows of other processes go through merge()."
            )
        truth = _truth(mask, what)
        chances = _chances(prediction, truth.shape, what)
        self._rows[index] = self._score(index, name, chances, truth)

    def _score(
        self, index: int, name: str, chances: NDArray[np.float64], truth: NDArray[np.bool_]
    ) -> ImageScore:
        found = chances >= _THRESHOLD
        if not truth.any():
            area = float(found.mean())
            return ImageScore(index=index, id=name, foreground=0.0, false_positive_area=area)
        both, total = int((found & truth).sum()), int(found.sum()) + int(truth.sum())
        return ImageScore(
            index=index,
            id=name,
            foreground=float(truth.mean()),
            iou=both / (total - both),
            dice=2 * both / total,
            **_measured(_stretched(chances) if self.stretch else chances, truth),
        )

    @property
    def per_image(self) -> tuple[ImageScore, ...]:
        """Every image, by index; send these to another process for :meth:`merge`."""
        return tuple(self._rows[index] for index in sorted(self._rows))

    def merge(self, rows: Iterable[ImageScore]) -> None:
        """Take the images that another process scored; those that are here already are passed over.

        So a sampler that repeats images to fill up its last batch counts each of them once.

        Raises:
            UsageError: an index that stands for another image here.
        """
        for row in rows:
            here = self._rows.setdefault(row.index, row)
            if here.id != row.id:
                raise UsageError(
                    f"merging scores: index {row.index} is {here.id!r} here and {row.id!r} there; "
                    "give every process the same data set in the same order."
                )

    def summary(self) -> SegmentationSummary:
        """Means over everything added.

        Raises:
            UsageError: no image was added.
        """
        rows = self.per_image
        if not rows:
            raise UsageError("scores of masks: no image was added; there is nothing to score.")
        means = {name: _mean(self._values(name)) for name in _SCORES}
        curves = [row.e_curve for row in rows if row.e_curve]
        if curves:
            means["e_max"] = float(np.mean(curves, axis=0).max())
        empty = sum(row.false_positive_area is not None for row in rows)
        return SegmentationSummary(images=len(rows) - empty, images_without_object=empty, **means)

    def interval(self, score: str, *, seed: int = 0, level: float = 0.95) -> Interval:
        """How far the mean of a score could have come out otherwise; images count as independent.

        Args:
            score: the name of a score of :class:`ImageScore`. ``e_max`` is refused: over a set it
                is no mean.
            seed: of the resampling.
            level: confidence, between 0 and 1.

        Raises:
            ConfigError: no such score.
            UsageError: no image has it.
        """
        if score not in _SCORES or score == "e_max":
            able = ", ".join(name for name in _SCORES if name != "e_max")
            raise ConfigError(f"interval of {score!r}: expected one of {able}.")
        return bootstrap_interval(self._values(score), seed=seed, level=level)

    def _values(self, score: str) -> list[float]:
        values = (getattr(row, score) for row in self.per_image)
        return [value for value in values if value is not None]

    def write_csv(self, path: Path | str) -> None:
        """Write a row for each image, by index; what is not defined stays empty."""
        names = [f.name for f in fields(ImageScore) if f.name != "e_curve"]
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.per_image)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _truth(mask: ArrayLike, what: str) -> NDArray[np.bool_]:
    values = np.asarray(mask)
    if values.ndim != 2 or not values.size:
        raise UsageError(f"{what}: the mask has shape {values.shape}; expected H W.")
    found = {int(value) for value in np.unique(values)} if values.dtype.kind in "bui" else {-1}
    if not (found <= {0, 1} or found <= {0, 255}):
        raise UsageError(
            f"{what}: the mask is {values.dtype} from {values.min()} to {values.max()}; expected "
            "integers 0 and 1, or 0 and 255. Cut it first, at the value above which it is object."
        )
    return values > 0


def _chances(prediction: ArrayLike, shape: tuple[int, ...], what: str) -> NDArray[np.float64]:
    values = np.asarray(prediction)
    if values.dtype.kind != "f":
        raise UsageError(f"{what}: the prediction is {values.dtype}; expected floats in [0, 1].")
    if values.shape != shape:
        raise UsageError(
            f"{what}: the prediction is {values.shape} and the mask {shape}; bring the prediction "
            "to the mask's resolution, not the mask to the prediction's."
        )
    chances = values.astype(np.float64)
    low, high = float(chances.min()), float(chances.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN lands here
        raise UsageError(
            f"{what}: the prediction goes from {low:g} to {high:g}; expected probabilities in "
            "[0, 1]. Of logits take the sigmoid first; a NaN comes from the model."
        )
    return np.clip(chances, 0.0, 1.0)


def _stretched(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = chances.min(), chances.max()
    return (chances - low) / (high - low) if high > low else chances


def _measured(chances: NDArray[np.float64], truth: NDArray[np.bool_]) -> dict[str, Any]:
    """The scores of pysodmetrics, each from an object that has seen this image alone."""
    results: dict[str, Any] = {}
    for kind in _kinds():
        measure = kind()
        measure.step(chances, truth, normalize=False)
        results |= measure.get_results()
    curve = tuple(np.asarray(results["em"]["curve"], dtype=np.float64).tolist())
    return {
        "s_measure": float(results["sm"]),
        "e_adaptive": float(results["em"]["adp"]),
        "e_mean": float(np.mean(curve)),
        "e_max": max(curve),
        "weighted_f": float(results["wfm"]),
        "mae": float(results["mae"]),
        "e_curve": curve,
    }


@functools.cache
def _kinds() -> tuple[Any, ...]:
    before = random.getstate()  # something that it imports draws a number, in a run's middle
    try:
        metrics = import_module("py_sod_metrics")
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"Scores of masks need pysodmetrics, and {missing.name} is not installed: "
            "pip install 'surefoot[vision]'."
        ) from missing
    finally:
        random.setstate(before)
    return _s_measure(metrics), metrics.Emeasure, metrics.WeightedFmeasure, metrics.MAE


def _s_measure(metrics: Any) -> Any:
    class SMeasure(metrics.Smeasure):
        """That of pysodmetrics, with a value where the object's centre is at the last pixel.

        One of the four blocks around the centre has no pixels then; its weight is 0, and its
        similarity, a mean of nothing, made the whole score NaN.
        """

        def ssim(self, pred: NDArray[Any], gt: NDArray[Any]) -> float:
            return float(super().ssim(pred, gt)) if pred.size else 0.0

    return SMeasure
