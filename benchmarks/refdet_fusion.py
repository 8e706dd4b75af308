"""RefDet's fusions beside each other: time of a forward and backward pass, and parameters.

    python -m benchmarks.refdet_fusion                              # 4 images of 256 px, 4 objects
    OMP_NUM_THREADS=1 python -m benchmarks.refdet_fusion --cpu-time --rounds 5
    python -m benchmarks.refdet_fusion --image 64 --rounds 2        # does it run

The model is nano. The references are encoded outside the clock: what a fusion costs is on the
scene's side, and a vision transformer's time would hide it. Timed are the scene's network, the
fusion over all pairs, and the backward pass of a sum that every output is in, all the way to the
backbone's weights; ``none``, the plain cosine, is what the others are divided by. The table of
parameters counts the fusion and what encodes places for it.
"""

from __future__ import annotations

import argparse
from typing import get_args

import torch
from torch import nn

from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from surefoot.models import DinoSupportConfig, FusionName, RefDet, RefDetConfig, References

__all__ = ["a_model", "a_way", "own_parameters"]

RIVAL = "none"


def a_model(fusion: FusionName, device: str) -> RefDet:
    """Nano, with a small support encoder: its photos are not in the clock."""
    torch.manual_seed(0)
    support = DinoSupportConfig(model="vit_tiny_patch16_224", frozen_blocks=0)
    return RefDet(RefDetConfig.nano(support, fusion=fusion)).to(device)


def own_parameters(model: RefDet) -> int:
    """Of the fusion and of what encodes places for it."""
    parts = [part for part in (model.conditioning, model.places) if part is not None]
    return sum(p.numel() for part in parts for p in part.parameters())


def a_way(model: RefDet, options: argparse.Namespace) -> Way:
    """One forward and backward pass."""
    torch.manual_seed(1)
    device, side = options.device, options.image
    images = torch.rand(options.images, 3, side, side, device=device)
    photos = torch.rand(options.objects, options.photos, 3, options.photo, options.photo)
    with torch.no_grad():
        given = model.encode(photos.to(device))
    references = References(
        **{k: v if v is None else v.clone().requires_grad_() for k, v in vars(given).items()}
    )

    def prepare() -> None:
        model.zero_grad(set_to_none=True)
        for value in vars(references).values():
            if value is not None:
                value.grad = None

    def run() -> None:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=options.bf16):
            said = model.detect(images, references)
        (said.logits.mean() + said.distribution.square().mean()).backward()

    return prepare, run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--image", type=int, default=256, help="pixels a side")
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--photos", type=int, default=3, help="of each object")
    parser.add_argument("--photo", type=int, default=256, help="pixels a side")
    parser.add_argument("--bf16", action="store_true", help="autocast, as training does")
    parser.set_defaults(rounds=20)
    options = parser.parse_args(arguments)
    print(machine(options.device))
    ways: dict[str, Way] = {}
    totals: dict[str, tuple[int, int]] = {}
    for fusion in get_args(FusionName):
        model = a_model(fusion, options.device).train()
        ways[fusion] = a_way(model, options)
        totals[fusion] = (own_parameters(model), _without_photos(model))
    rows = interleave(ways, rival=RIVAL, warmup=1, **clocked(options))
    title = (
        f"{options.images} images of {options.image} px, {options.objects} objects of "
        f"{options.photos} photos, forward and backward"
    )
    print_table(title, rows, rival=RIVAL)
    save_rows(options.json, title, rows)
    print(f"\n{'parameters':46}{'fusion':>10}{'scene + fusion':>16}")
    for name, (own, total) in totals.items():
        print(f"{name:46}{own:10,}{total:16,}")


def _without_photos(model: RefDet) -> int:
    seen: list[nn.Module] = [model.backbone, model.head, model.score]
    return own_parameters(model) + sum(p.numel() for part in seen for p in part.parameters())


if __name__ == "__main__":
    main()
