"""Ranks that train together come to one verdict, whoever had the bad batch."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import surefoot
from guard.conftest import batch, loss_of, net
from guard.ranks import fingerprints, spread, world
from surefoot.guard import Guard, Policy

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """A few steps on data of each rank's own; ``go`` leaves steps out, ``spoil`` makes them bad."""

    def __init__(
        self,
        rank: int,
        *,
        way: str = "guard",
        kind: str = "ddp",
        amp: str | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        decide: str = "host",
        policy: Policy | None = None,
        lr: float = 1e-2,
        wrapping: dict[str, Any] | None = None,
    ) -> None:
        self.rank, self.way, self.amp, self.accumulate = rank, way, amp, accumulate
        self.model = spread(net(), kind, **(wrapping or {}))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, fused=True)
        self.records: list[Any] = []
        self.scaler = torch.amp.GradScaler("cpu", enabled=amp == "fp16" and way == "attach")
        settings = {"clip": clip, "policy": policy, "decide": decide}
        if way == "guard":
            settings |= {"accumulate": accumulate, "amp": amp}
            self.guard = Guard(self.model, self.optimizer, **settings)
        else:
            self.attachment = surefoot.attach(
                self.optimizer,
                self.model,
                scaler=self.scaler,
                on_record=self.records.append,
                **settings,
            )

    def go(self, steps: Any, *, spoil: Any = ()) -> None:
        for step in steps:
            for micro in range(self.accumulate):
                images, labels = batch(1000 * step + 100 * micro + self.rank)
                if (step, micro, self.rank) in spoil:
                    images = images * math.nan
                (self._ours if self.way == "guard" else self._theirs)(micro, images, labels)

    def _ours(self, micro: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        with self.guard.autocast():
            loss = loss_of(self.model, images, labels)
        record = self.guard.step(loss, sample_ids=[f"of rank {self.rank}"])
        if micro + 1 == self.accumulate:
            self.records.append(record)

    def _theirs(self, micro: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        closes = micro + 1 == self.accumulate
        replicated = isinstance(self.model, nn.parallel.DistributedDataParallel)
        with self.model.no_sync() if replicated and not closes else nullcontext():
            with torch.autocast("cpu", AMP.get(self.amp), enabled=self.amp is not None):
                loss = loss_of(self.model, images, labels)
            self.attachment.observe(loss)
            self.scaler.scale(loss / self.accumulate).backward()
        if closes:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()

    def end(self) -> dict[str, Any]:
        if self.way == "guard":
            self.guard.flush()
            self.guard.detach()
        else:
            self.attachment.detach()
        return {
            "records": [r.to_dict() for r in self.records],
            "said": [str(r) for r in self.records],
            "prints": fingerprints(self.model, self.optimizer),
            "finite": all(bool(torch.isfinite(b).all()) for b in self.model.buffers()),
            "scale": self.scaler.get_scale(),
        }


def alike(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The first rank's report, once it is known that the others' weights and verdicts are equal."""
    for report in ranks:
        assert report["prints"] == ranks[0]["prints"]
        assert report["finite"]
        assert report["scale"] == ranks[0]["scale"]
        for key in ("verdict", "cause", "grad_norm", "loss_scale", "bad_ranks"):
            ours, firsts = ([r[key] for r in one["records"]] for one in (report, ranks[0]))
            assert ours == firsts, key
        told = [[s.partition("; on of rank")[0] for s in r["said"]] for r in (report, ranks[0])]
        assert told[0] == told[1]
    return ranks[0]


def one_bad_batch(rank: int, *, leave_out: bool = False, **settings: Any) -> dict[str, Any]:
    run = Run(rank, **settings)
    bad = (2, run.accumulate - 1, 1)
    run.go([s for s in range(6) if s != 2 or not leave_out], spoil={bad})
    return run.end()


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("way", ["guard", "attach"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"clip": 0.5, "decide": "device"},
        {"amp": "bf16", "clip": 0.5},
        {"accumulate": 2, "clip": 0.5},
        {"amp": "fp16", "decide": "device"},
        {"amp": "fp16", "accumulate": 2, "clip": 0.5},
    ],
    ids=lambda how: "-".join(map(str, how.values())) or "plain",
)
def test_one_ranks_nan_batch_is_refused_by_all_and_leaves_no_trace(size, kind, way, how):
    settings = {"kind": kind, "way": way, **how}
    told = alike(world(size).run(one_bad_batch, **settings))
    fp16 = how.get("amp") == "fp16"
    verdicts = [r["verdict"] for r in told["records"]]
    refused = verdicts.index("refused")
    assert verdicts.count("refused") == 1
    assert told["records"][refused]["bad_ranks"] == [1]
    said = told["said"][refused]
    assert said.count("the loss was NaN or Inf on rank 1") == 1
    assert "conv" not in said
    if way == "guard":
        assert said.endswith("; on of rank 1")  # of a window the micro-batch that was looked into
    if not fp16:  # the scale that is backed off changes what fp16 rounds to zero
        clean = alike(world(size).run(one_bad_batch, leave_out=True, **settings))
        assert told["prints"] == clean["prints"]
