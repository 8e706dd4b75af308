"""The consoles of the two systems, written anew: bars, blocks and summaries with chosen numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = [
    "REFDET_START",
    "Lines",
    "amid",
    "camo_bars",
    "camo_epochs",
    "camo_start",
    "falling",
    "flat",
    "refdet_bars",
    "refdet_block",
    "refdet_epochs",
    "refdet_start",
    "traceback",
]

Lines = list[str]
_CLOCK = "2025-11-16 22:{:02d}:{:02d} | INFO     | {}"


def falling(count: int, start: float, end: float, sigma: float = 0.02, seed: int = 0) -> np.ndarray:
    """What a healthy loss does: fast at first, then slower, with noise."""
    generator = np.random.default_rng(seed)
    curve = end + (start - end) * np.exp(-np.arange(count) / (0.25 * count))
    return curve * (1 + sigma * generator.standard_normal(count))


def flat(count: int, value: float, sigma: float = 0.01, seed: int = 0) -> np.ndarray:
    """A level with noise."""
    return value * (1 + sigma * np.random.default_rng(seed).standard_normal(count))


def amid(lines: Sequence[str], say: Callable[[int], Sequence[str]], every: int = 1) -> Lines:
    """``lines`` with what ``say`` makes of the index after every so many of them."""
    return [
        each
        for index, line in enumerate(lines)
        for each in (line, *(say(index) if index % every == 0 else ()))
    ]


def traceback(where: str, error: str) -> Lines:
    """A Python traceback that ends in ``error``."""
    return [
        "Traceback (most recent call last):",
        f'  File "{where}", line 212, in <module>',
        "    main()",
        f'  File "{where}", line 187, in main',
        "    outputs = step(batch)",
        error,
    ]


def refdet_start(rate: float = 1e-5, scheduler: str = "LambdaLR", **settings: object) -> Lines:
    """What the detector's trainer is called with, and prints before the first batch."""
    given = " ".join(f"--{name} {value}" for name, value in settings.items())
    return [
        f"python train.py --stage 2 --mixed_precision True {given}",
        _CLOCK.format(12, 31, f"Initial learning rate: {rate:.6e}"),
        _CLOCK.format(12, 31, "Optimizer: AdamW"),
        _CLOCK.format(12, 31, f"Scheduler: {scheduler}"),
    ]


REFDET_START = refdet_start(gradient_accumulation=4)


def refdet_bars(
    losses: Sequence[float] | np.ndarray, rate: float | Sequence[float] = 1e-5, **more: object
) -> Lines:
    """One bar for each batch of an epoch."""
    epoch, first, total = more.get("epoch", 1), int(str(more.get("first", 1))), len(losses)
    whole = int(str(more.get("total", first + total - 1)))
    lines = Lines()
    for index, loss in enumerate(losses):
        at = first + index
        lr = rate if isinstance(rate, float) else rate[index]
        filled = "█" * (20 * at // whole)
        spent = divmod(int(2.5 * at), 60)
        clock = f"{spent[0]:02d}:{spent[1]:02d}<04:11, 2.50s/it"
        lines.append(
            f"Epoch {epoch}: {100 * at // whole:3d}%|{filled:<20}| {at}/{whole} "
            f"[{clock}, loss={loss:.4f}, lr={lr:.6f}]"
        )
    return lines


def refdet_block(at: int, heading: str, **values: float | str) -> Lines:
    """A block of the debug log: the heading stands below a line with the time."""
    clock = _CLOCK.format(at // 60 % 60, at % 60, "")
    rows = [
        f"  {name}: {value if isinstance(value, str) else format(value, '.6f')}"
        for name, value in values.items()
    ]
    return [clock, f"{heading}:", *rows]


def refdet_losses(at: int, total: float, **terms: float) -> Lines:
    """The losses of one debugged batch."""
    values = {"Total Loss": total, **{f"{name}_loss": value for name, value in terms.items()}}
    begins = _CLOCK.format(at // 60 % 60, at % 60, f"BATCH {at} - Type: detection")
    return [begins, *refdet_block(at, "Loss Components", **values)]


def refdet_epochs(train: Sequence[float] | np.ndarray, **metrics: Sequence[float]) -> Lines:
    """A summary for each epoch."""
    lines = Lines()
    for epoch, loss in enumerate(train, start=1):
        lines += ["=" * 60, f"Epoch {epoch} Summary (412.3s)", "=" * 60, f"Train Loss: {loss:.4f}"]
        lines += [
            f"{name.replace('_', ' ')}: {values[epoch - 1]:.4f}" for name, values in metrics.items()
        ]
    return lines


def camo_start(**settings: object) -> Lines:
    """The flags of the segmenter's trainer."""
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    return [
        f"python train_ultimate.py train --dataset-path /data/COD10K {given}".rstrip(),
        "Found 6000 training images",
        "=" * 70,
    ]


def camo_bars(
    losses: Sequence[float] | np.ndarray, epoch: int = 44, epochs: int = 140, total: int = 125
) -> Lines:
    """One bar for each batch of an epoch."""
    lines = Lines()
    for index, loss in enumerate(losses, start=1):
        filled = "█" * (10 * index // total)
        lines.append(
            f"Epoch {epoch}/{epochs}: {100 * index // total:3d}%|{filled:<10}| {index}/{total} "
            f"[{int(2.8 * index) // 60:02d}:{int(2.8 * index) % 60:02d}<05:42, loss={loss:.4f}]"
        )
    return lines


def camo_epochs(
    losses: Sequence[float] | np.ndarray,
    ious: Sequence[float] | np.ndarray,
    rates: Sequence[tuple[float, float]] = (),
    first: int = 1,
    epochs: int = 140,
) -> Lines:
    """Loss and metrics of each epoch, and the learning rate of both groups if given."""
    lines = Lines()
    for index, (loss, iou) in enumerate(zip(losses, ious, strict=True)):
        dice = 2 * iou / (1 + iou)
        lines.append(f"Epoch {first + index}/{epochs}")
        if rates:
            head, backbone = rates[index]
            lines.append(f"   LR: {head:.6f} | Backbone LR: {backbone:.6f}")
        lines.append(f"Loss: {loss:.4f} | IoU: {iou:.4f} | Dice: {dice:.4f}")
    return lines
