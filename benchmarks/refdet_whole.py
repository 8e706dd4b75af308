"""A whole training step of RefDet at the original's setting: two objects, two frames of each.

    python -m benchmarks.refdet_whole                       # 4 frames of 640 px, 6 photos of 512 px
    python -m benchmarks.refdet_whole --preset pocket --image 128 --photo 64 --rounds 2

Forward, assignment, loss, backward, measure, clip and AdamW, as ``surefoot train refdet`` takes
them, on random pictures: nothing of a step depends on what they show. The original took 7.45 s
(float32, median of 15 on two threads of an AMD EPYC), of which 2.72 s were the forward pass of its
support encoder, a ViT-S/16 over the same six photos, one at a time. That pass is timed here as
well, so that a step of the original on this machine can be estimated from it.
"""

from __future__ import annotations

import argparse

import torch

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
from surefoot.guard import Guard
from surefoot.models import DinoSupport
from surefoot.recipes.refdet.build import Plan
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.learner import Learner
from surefoot.recipes.refdet.options import LossOptions, ModelOptions
from surefoot.shapes import Episode

ORIGINAL_MS = 7450.0
ORIGINAL_STEP_PER_ENCODER = 7.45 / 2.722
ENCODER = "the six photos through the ViT, one at a time"


def an_episode(options: argparse.Namespace) -> Episode:
    """Two objects, each in two frames, and three photos of each."""
    torch.manual_seed(0)
    count, side = 2 * 2, float(options.image)
    low = torch.rand(count, 2) * side * 0.7
    return Episode(
        images=torch.rand(count, 3, options.image, options.image),
        sample_ids=tuple(map(str, range(count))),
        supports=torch.rand(2, 3, 3, options.photo, options.photo),
        boxes=torch.cat([low, low + side * 0.1], dim=1),
        box_image=torch.arange(count),
        box_object=torch.arange(count) // 2,
        ignore=torch.zeros(count, dtype=torch.bool),
    )


def step_of(loss: LossOptions, options: argparse.Namespace) -> tuple[Way, Learner]:
    """A step with these terms, and what takes it."""
    torch.manual_seed(0)
    config = TrainConfig(
        model=ModelOptions(preset=options.preset, fusion=options.fusion), loss=loss
    )
    learner = Learner(config, Plan(100, 100, 1), torch.device(options.device), None)
    learner.model.train()
    episode = an_episode(options).to(options.device)
    guard: Guard = learner.guard
    return ((lambda: None), lambda: guard.step(learner.loss(episode))), learner


def main() -> None:
    """Time the step with its default terms and with all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--preset", choices=("nano", "pocket"), default="nano")
    parser.add_argument("--fusion", default="tokens")
    parser.add_argument("--image", type=int, default=640)
    parser.add_argument("--photo", type=int, default=512)
    options = parser.parse_args()
    options.rounds = options.rounds or 10
    every = LossOptions(cpe_weight=0.2, triplet_weight=0.3, absence_weight=0.5)
    step, learner = step_of(LossOptions(), options)
    ways: dict[str, Way] = {
        "surefoot": step,
        "surefoot, with cpe, triplet and absence": step_of(every, options)[0],
    }
    support = learner.model.support
    if isinstance(support, DinoSupport):
        photos = an_episode(options).supports.flatten(0, 1).to(options.device)

        def encode() -> None:
            with torch.no_grad():
                for photo in photos:
                    support(photo[None])

        ways[ENCODER] = (lambda: None), encode
    print(machine(options.device))
    rows = interleave(ways, rival="surefoot", warmup=2, **clocked(options))
    title = (
        f"A step of RefDet {options.preset}, 4 frames of {options.image} px, 6 photos of "
        f"{options.photo} px, fp32"
    )
    print_table(title, rows, rival="surefoot")
    save_rows(options.json, title, rows)
    _against_the_original(rows)


def _against_the_original(rows: list[Row]) -> None:
    by_name = {row.name: row.milliseconds for row in rows}
    ours = by_name["surefoot"]
    share = float(torch.tensor(ours).median()) / ORIGINAL_MS
    print(f"of the original's 7,450 ms on its machine: {share:.2f}")
    if ENCODER in by_name:
        estimated = torch.tensor(ours / (by_name[ENCODER] * ORIGINAL_STEP_PER_ENCODER))
        low, middle, high = estimated.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
        print(f"of the original's on this machine, estimated: {middle:.2f} ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
