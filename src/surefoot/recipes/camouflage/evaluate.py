"""``surefoot eval camouflage``: the table that papers print, and the masks behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from surefoot.data.camouflage import (
    CamouflageDataset,
    CamouflageItems,
    PairList,
    Predictor,
    centre_gaussian,
    find_pairs,
    find_test_sets,
    mean_mask,
    nothing,
)
from surefoot.errors import ConfigError, DataError
from surefoot.metrics.segmentation import ImageScore, SegmentationScores
from surefoot.metrics.segmentation_table import difference, score_table
from surefoot.recipes.camouflage.pictures import SheetRow, draw_sheet
from surefoot.recipes.camouflage.segmenter import Segmenter
from surefoot.recipes.camouflage.validate import score_predictor

__all__ = ["EvalConfig", "Evaluated", "evaluate", "evaluate_items"]

_SHOWN = 4
"""Of the best images on a sheet, and of the worst."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Score a trained segmenter on test sets, beside predictions that took no training."""

    checkpoint: Path
    """Run folder (its best checkpoint is taken), one of its checkpoints, or an .onnx file."""
    dataset_path: Path | None = None
    """Folder of the data set: every test set in it is scored for itself."""
    images: Path | None = None
    """Folder of images, where the layout is none of these; with --masks."""
    masks: Path | None = None
    """Folder of their masks."""
    weights: str | None = None
    """model or ema; those that the checkpoint's score was measured on where it is not given."""
    device: str = "cpu"
    """cpu, cuda, cuda:1..."""
    stretch: bool = False
    """Bring every map to 0..1 first, as published tables do; it hides faint maps."""
    baselines: bool = True
    """Score predictions that took no training as well."""
    out: Path | None = None
    """Folder for scores.json, a CSV of every image and a sheet of the best and worst masks."""

    def __post_init__(self) -> None:
        if (self.images is None) != (self.masks is None):
            raise ConfigError("--images and --masks go together; one of them is missing.")
        if self.dataset_path is None and self.images is None:
            raise ConfigError("eval: nothing to score on; give --dataset-path, or --images.")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A data set's scores, of the model and of what took no training."""

    name: str
    scores: SegmentationScores
    baselines: Mapping[str, SegmentationScores]

    def table(self) -> str:
        """All of them, and by how much the model is better than the best of the others."""
        rows = {"model": self.scores.summary()}
        rows |= {name: scores.summary() for name, scores in self.baselines.items()}
        lines = [f"{self.name}", score_table(rows)]
        able = {n: s.summary().s_measure or 0.0 for n, s in self.baselines.items()}
        if able:
            best = max(able, key=able.__getitem__)
            better = difference(self.scores, self.baselines[best], "s_measure")
            lines.append(f"S above {best}: {better}")
        return "\n".join(lines)


def evaluate(config: EvalConfig) -> list[Evaluated]:
    """Score every test set that the settings name.

    Raises:
        ConfigError: settings that cannot work.
        DataError: no data set is there.
        CheckpointError: nothing whole to load.
    """
    segmenter = Segmenter.load(config.checkpoint, device=config.device, weights=config.weights)
    found: list[Evaluated] = []
    training = _training(config) if config.baselines else None
    for name, pairs in _sets(config).items():
        items = CamouflageDataset(pairs, size=segmenter.size, augment=None)
        done = evaluate_items(segmenter, items, config=config, name=name, training=training)
        found.append(done)
    if config.out is not None:
        values = {one.name: asdict(one.scores.summary()) for one in found}
        text = json.dumps({"model": segmenter.source, "sets": values}, indent=2)
        (config.out / "scores.json").write_text(text + "\n", encoding="utf-8")
    return found


def evaluate_items(
    segmenter: Segmenter,
    items: CamouflageItems,
    *,
    config: EvalConfig,
    name: str,
    training: CamouflageItems | None = None,
) -> Evaluated:
    """Score a data set, and write its files where the settings want them.

    Args:
        segmenter: the model.
        items: the data set.
        config: what is wanted.
        name: of the data set.
        training: whose masks are averaged, for a baseline.
    """
    scores = score_predictor(segmenter.mask, items, stretch=config.stretch)
    able: dict[str, Predictor] = {}
    if config.baselines:
        able |= {"nothing": nothing, "centre": centre_gaussian}
    if training is not None:
        able["mean mask"] = mean_mask(training)
    baselines = {
        n: score_predictor(predict, items, stretch=config.stretch) for n, predict in able.items()
    }
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        scores.write_csv(config.out / f"{name}.csv")
        _draw(segmenter, items, scores, config.out / f"{name}.png", name)
    return Evaluated(name=name, scores=scores, baselines=baselines)


def _draw(
    segmenter: Segmenter, items: CamouflageItems, scores: SegmentationScores, path: Path, name: str
) -> None:
    ranked = sorted(
        (row for row in scores.per_image if row.s_measure is not None),
        key=lambda row: -(row.s_measure or 0.0),
    )
    best = ranked[: min(_SHOWN, (len(ranked) + 1) // 2)]
    worst = ranked[len(best) :][-_SHOWN:]
    rows = [_row(segmenter, items, row, "best") for row in best]
    rows += [_row(segmenter, items, row, "worst") for row in worst]
    mean = scores.summary().s_measure
    draw_sheet(
        rows,
        path,
        title=f"{name}: the best {len(best)} and the worst {len(worst)} of {len(ranked)} masks",
        subtitle=f"image, truth, mask, and both: amber what was found, green the true outline. "
        f"S-measure, mean {0.0 if mean is None else mean:.3f}. {Path(segmenter.source).name}",
    )


def _row(segmenter: Segmenter, items: CamouflageItems, row: ImageScore, word: str) -> SheetRow:
    picture, mask = items.original(row.index)
    caption = f"{word}: S {row.s_measure:.3f}, IoU {row.iou or 0.0:.3f}, {row.id}"
    return SheetRow(
        picture=picture, truth=mask, probability=segmenter.mask(picture), caption=caption
    )


def _sets(config: EvalConfig) -> dict[str, PairList]:
    if config.images is None or config.masks is None:
        assert config.dataset_path is not None
        return find_test_sets(config.dataset_path)
    images, masks = config.images.absolute(), config.masks.absolute()
    pairs = find_pairs(images.parent, split="test", images=images, masks=masks)
    return {config.images.name: pairs}


def _training(config: EvalConfig) -> CamouflageItems | None:
    """Whose masks can be averaged; None where no training set lies beside the test sets."""
    if config.dataset_path is None:
        return None
    try:
        pairs = find_pairs(config.dataset_path, split="train", decode=False)
    except DataError:
        return None
    return CamouflageDataset(pairs, size=96, augment=None)
