"""A training step of the camouflage trainer: forward, loss, backward and AdamW, per image.

    python -m benchmarks.camouflage_step                      # pvt_v2_b2, 352 pixels, batch 2
    python -m benchmarks.camouflage_step --backbone tiny --image 64 --rounds 2

Four ways in turn: float32 and bfloat16 autocast, each with the structure loss as it is usually
written (every map enlarged to the image, and a 31x31 mean taken anew for each of them) and with
ours. Beside them what the original took for a step of its own, measured once on two threads of the
machine named below: 1.452 s per image, float32, 352 pixels. Since that holds for that machine only,
the forward pass of the original's encoder is timed as well: there it was 268 of the step's 2,904
ms, and a step of the original on this machine is estimated from it. Each way's peak memory comes
from a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.interleave import (
    Row,
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from surefoot.losses import segmentation_terms
from surefoot.models.camouflage import CamouflageNet, CamouflageOutput, parameter_groups

__all__ = ["Setting", "naive_terms", "step_of"]

ORIGINAL_MS = 1452.0
ORIGINAL = "CamoXpert, edgenext_base, 7 experts, batch 2, 352 px, fp32, 2 threads of an AMD EPYC"
ORIGINAL_STEP_PER_ENCODER = 2904 / 268
ENCODER = "edgenext_base, forward only"
RIVAL = "naive structure loss, fp32"
NOTHING: Callable[[], object] = lambda: None  # noqa: E731


@dataclass(frozen=True)
class Setting:
    """What a step is taken of."""

    backbone: str
    channels: int
    batch: int
    image: int
    device: str


def naive_structure_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """As most repositories have it: the weights anew for every map, from a square window."""
    window = 31 * mask.shape[-1] // 352 // 2 * 2 + 1
    mean = F.avg_pool2d(mask, window, stride=1, padding=window // 2)
    w = 1 + 5 * (mean - mask).abs()
    bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    bce = (w * bce).sum((2, 3)) / w.sum((2, 3))
    p = logits.sigmoid()
    both, either = (w * p * mask).sum((2, 3)), (w * (p + mask)).sum((2, 3))
    return (bce + 1 - (both + 1) / (either - both + 1)).mean()


def naive_terms(output: CamouflageOutput, mask: Tensor) -> Tensor:
    """Every map at the size of the image."""
    total = naive_structure_loss(output.mask, mask)
    for steps_back, logits in enumerate(reversed(output.deep), start=1):
        z = F.interpolate(logits, size=mask.shape[-2:], mode="bilinear", align_corners=False)
        total = total + naive_structure_loss(z, mask) / 2**steps_back
    return total


def our_terms(output: CamouflageOutput, mask: Tensor) -> Tensor:
    return segmentation_terms(output, mask).total


LOSSES: dict[str, Callable[[CamouflageOutput, Tensor], Tensor]] = {
    "naive structure loss": naive_terms,
    "surefoot": our_terms,
}
WAYS = [f"{loss}, {precision}" for precision in ("fp32", "bf16") for loss in LOSSES]


def batch_of(setting: Setting) -> tuple[Tensor, Tensor]:
    """Noise, and a disc of a sixth of the image."""
    torch.manual_seed(0)
    side, device = setting.image, setting.device
    images = torch.rand(setting.batch, 3, side, side, device=device)
    along = torch.linspace(-1, 1, side, device=device)
    disc = (along[:, None].hypot(along[None]) < 0.46).float()
    return images, disc.expand(setting.batch, 1, -1, -1).contiguous()


def step_of(way: str, setting: Setting) -> Callable[[], object]:
    """One way's whole step, on a model of its own."""
    loss_name, precision = way.rsplit(", ", 1)
    kind = torch.device(setting.device).type
    images, mask = batch_of(setting)
    model = CamouflageNet(setting.backbone, channels=setting.channels).to(setting.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-5, 0.1), fused=True)

    def step() -> None:
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            output = model(images)
            loss = LOSSES[loss_name](output, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def encoder_of(setting: Setting) -> Callable[[], object]:
    """The forward pass of the original's encoder, in training mode."""
    import timm

    images, _ = batch_of(setting)
    encoder = timm.create_model("edgenext_base", features_only=True).to(setting.device)
    return lambda: encoder(images)


def loss_of(name: str, setting: Setting) -> Callable[[], object]:
    """The loss alone, forward and backward, on outputs that are there."""
    images, mask = batch_of(setting)
    model = CamouflageNet(setting.backbone, channels=setting.channels).to(setting.device)
    said = model(images)
    leaves = [z.detach().requires_grad_() for z in (said.mask, *said.deep)]
    output = CamouflageOutput(mask=leaves[0], deep=tuple(leaves[1:]))
    return lambda: torch.autograd.grad(LOSSES[name](output, mask), leaves)


def peak_of(way: str, setting: Setting) -> float:
    """MiB at most during two steps: of the device, or of the process beyond what it began with."""
    if setting.device.startswith("cuda"):
        step = step_of(way, setting)
        step(), step()
        return torch.cuda.max_memory_allocated() / 2**20
    before = _resident_peak()
    step = step_of(way, setting)
    step(), step()
    return _resident_peak() - before


def _resident_peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss counts what the parent process held as well
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peaks(setting: Setting) -> dict[str, float]:
    """Each way in a process that has done nothing else."""
    found: dict[str, float] = {}
    for way in WAYS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[way] = pool.submit(peak_of, way, setting).result()
    return found


def print_per_image(rows: list[Row], memory: dict[str, float], setting: Setting) -> None:
    """Milliseconds per image, beside the original's there and its estimate here."""
    of = {row.name: float(np.median(row.milliseconds)) / setting.batch for row in rows}
    here = of.pop(ENCODER) * ORIGINAL_STEP_PER_ENCODER
    of |= {"the original, estimated for this machine": here, "the original, measured": ORIGINAL_MS}
    print(f"\n{'per image':46}{'ms':>10}{'of estimate':>13}{'of measured':>13}{'peak MiB':>10}")
    for name, ms in of.items():
        peak = f"{memory[name]:10.0f}" if name in memory else f"{'-':>10}"
        print(f"{name:46}{ms:10.1f}{ms / here:13.2f}{ms / ORIGINAL_MS:13.2f}{peak}")
    print(f"measured: {ORIGINAL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="pvt_v2_b2")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image", type=int, default=352, help="side in pixels")
    parser.add_argument("--warmup", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    add_options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or 10
    setting = Setting(
        options.backbone, options.channels, options.batch, options.image, options.device
    )
    memory = peaks(setting) if options.memory else {}
    print(machine(options.device))
    shown = f"{setting.backbone}, batch {setting.batch}, {setting.image} px"

    ways: dict[str, Way] = {way: (NOTHING, step_of(way, setting)) for way in WAYS}
    ways[ENCODER] = (NOTHING, encoder_of(setting))
    rows = interleave(ways, rival=RIVAL, warmup=options.warmup, **clocked(options))
    print_table(f"Step, {shown}", rows, rival=RIVAL)
    print_per_image(rows, memory, setting)
    save_rows(options.json, f"Step, {shown}", rows)

    naive = "naive structure loss"
    alone: dict[str, Way] = {name: (NOTHING, loss_of(name, setting)) for name in LOSSES}
    rows = interleave(alone, rival=naive, warmup=options.warmup, **clocked(options))
    print_table(f"The loss alone, {shown}", rows, rival=naive)
    save_rows(options.json, f"The loss alone, {shown}", rows)


if __name__ == "__main__":
    main()
