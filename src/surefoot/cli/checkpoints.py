"""``surefoot checkpoints RUN``: what a run has saved, whether it is whole, and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from surefoot.checkpoint import Checkpoint, CheckpointStore, Listed, verify_legacy
from surefoot.checkpoint.weights import write_weights
from surefoot.errors import CheckpointError, ConfigError
from surefoot.recipes.run_folder import CHECKPOINTS
from surefoot.recipes.session import find_checkpoint

__all__ = ["run"]

_BAD = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """List a run's checkpoints: good or bad, which is the best, how large they are.

    A file that torch.save wrote can be given, too: its records are compared with their checksums.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder, its folder of checkpoints, or one checkpoint; or a file of torch.save."""
    verify: bool = False
    """Read every byte and compare it with its checksum, not sizes alone; the exit status is 1
    where one is bad."""
    export: Path | None = None
    """Write weights to this new safetensors file, for any program that reads those: of the best
    checkpoint, or the newest where none was saved as best."""
    weights: str | None = None
    """Which of its weights to export; those that the metric was measured on where this is not
    given."""


def run(arguments: Sequence[str]) -> int:
    """List, verify, export; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="surefoot checkpoints")
    if options.run.is_file():
        return _legacy(options.run)
    folder = options.run / CHECKPOINTS
    store = CheckpointStore(folder if folder.is_dir() else options.run)
    listed = store.listing(verify=options.verify)
    if options.export is not None:
        print(_export(options.run, options.export, options.weights))
        return 0
    if not listed:
        print(_one(find_checkpoint(options.run)[0]))
        return 0
    print(_table(store.folder, listed, verified=options.verify))
    return _BAD if options.verify and any(one.problem for one in listed) else 0


def _legacy(path: Path) -> int:
    found = verify_legacy(path)
    print(
        f"{path}: every byte of its {found.records} records ({_size(found.bytes)}) is what "
        "torch.save wrote."
    )
    return 0


def _one(found: Checkpoint) -> str:
    names = ", ".join(found.weights)
    return f"{found.path}: step {found.step}, weights {names}; every byte is what was saved."


def _table(folder: Path, listed: Sequence[Listed], *, verified: bool) -> str:
    good = [one for one in listed if not one.problem]
    best = max((one for one in good if one.manifest and one.manifest.best), default=None, key=_age)
    rows = [("checkpoint", "saved", "metric", "weights", "size", "")]
    rows += [_row(one, verified=verified, best=one is best) for one in listed]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    total = _size(sum(one.bytes for one in listed))
    found = f"{len(listed)} checkpoint{'s' if len(listed) > 1 else ''}"
    bad = len(listed) - len(good)
    return "\n".join(
        [
            f"{folder}: {found}, {total}, {bad or 'none'} bad",
            *(line.rstrip() for line in lines),
            f"A run goes on from {good[-1].path.name}." if good else "There is none to go on from.",
            *([] if verified else ["Only sizes were compared; --verify reads every byte."]),
        ]
    )


def _age(one: Listed) -> int:
    return int(one.path.name.partition("-")[0])


def _row(one: Listed, *, verified: bool, best: bool) -> tuple[str, str, str, str, str, str]:
    found = one.manifest
    fate = f"BAD: {one.problem}" if one.problem else "good" if verified else "whole"
    if found is None:
        return one.path.name, "", "", "", _size(one.bytes), fate
    metric = "" if found.metric is None else f"{found.metric:.4g} ({found.measured_on})"
    saved = found.saved.replace("T", " ")[:16]
    names = " ".join(found.weights)
    return one.path.name, saved, metric, names, _size(one.bytes), fate + ", best" * best


def _size(count: int) -> str:
    """A number of bytes for people.

    >>> _size(950), _size(12_345_678)
    ('950 B', '12.3 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _export(path: Path, to: Path, wanted: str | None) -> str:
    if to.exists():
        raise ConfigError(f"--export {to}: is there already; name another file or remove it.")
    found, rejected = find_checkpoint(path, best=True)
    usual = "ema" if "ema" in found.weights else found.weights[-1]
    name = wanted or found.measured_on or usual
    # Names that stand for one tensor get one each: other programs know nothing of our ties.
    weights = {key: value.clone() for key, value in found.load_weights(name).items()}
    beside = to.with_name(f".{to.name}.partial")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_weights(beside, weights)
        beside.rename(to)
    except OSError as problem:
        beside.unlink(missing_ok=True)
        raise CheckpointError(
            f"--export {to}: could not be written: {problem.strerror or problem}.", path=to
        ) from problem
    count = sum(value.numel() for value in weights.values())
    told = "".join(f"passed over {one}\n" for one in rejected)
    return (
        f"{told}{to}: the {name} weights of {found.path.name}, {len(weights)} tensors, "
        f"{count / 1e6:.2f} M values."
    )
