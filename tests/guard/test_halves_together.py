"""Memory that runs out on one process of several: it computes in halves, and nobody waits long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard.ranks import fingerprints, spread, world
from surefoot import Guard
from surefoot.guard import Halves, TooLarge
from surefoot.guard.halved_together import StepsTogether


def no_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Small(nn.Module):
    """A network on a device that holds so many samples, forward or backward; a part is not used."""

    def __init__(self, where: str, holds: int, *, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 8), norm(8), nn.Tanh(), nn.Linear(8, 4))
        self.head, self.spare = nn.Linear(4, 1), nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.where, self.holds = where, holds
        self.moves = 0.1 if norm is nn.BatchNorm1d else 0.0

    def forward(self, x: Tensor) -> Tensor:
        between = self.body(x)
        full = len(x) > self.holds
        if full and self.where == "forward":
            no_memory()
        if full and self.where == "backward":
            between.register_hook(no_memory)  # the head's gradient is there already
        found = self.head(between).square()
        with torch.no_grad():
            before = self.mean.clone()
            self.mean.lerp_(found.mean(), self.moves)
        return (found * (1 + before)).mean()


# What memory running out in a backward pass leaves is the gradient of the whole batch for one part,
# and of its pieces for another; without statistics over the batch they are the same.
NORMS = {"forward": nn.BatchNorm1d, "backward": nn.LayerNorm}


def batches(rank: int, micro: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * micro + rank))


def trained(
    rank: int, *, where: str, short: Sequence[int], accumulate: int, unused: bool, steps: int = 5
) -> Any:
    """What every process holds at the end where the ``short`` ones hold two samples."""
    inner = Small(where, 2 if rank in short else 99, norm=NORMS[where])
    if not unused:
        inner.spare = nn.Linear(1, 1).requires_grad_(False)
    # so small a bucket that the head's gradient is on its way when memory runs out
    model = spread(inner, "ddp", find_unused_parameters=unused, bucket_cap_mb=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    guard = Guard(model, optimizer, clip=1.0, accumulate=accumulate)
    halves = Halves(inner)
    take = StepsTogether(guard, halves, model).step
    records, pieces = [], []
    for micro in range(steps * accumulate):
        records.append(take(batches(rank, micro), sample_ids=[f"{rank}"]))
        pieces.append(halves.pieces)
    said = [(r.verdict.value, round(r.grad_norm, 6)) for r in records if r.applied]
    weights = {n: p.detach().clone() for n, p in inner.named_parameters()}
    return said, pieces, fingerprints(model, optimizer), weights


def by_hand(
    rank: int, *, where: str, short: Sequence[int], accumulate: int, steps: int = 5
) -> dict[str, Tensor]:
    """The same sums without a wrapper: pieces, shares, and a mean over processes."""
    model = Small("nowhere", 99, norm=NORMS[where])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    micro = 0
    for _ in range(steps):
        for inside in range(accumulate):
            if not inside:
                for buffer in model.buffers():
                    torch.distributed.broadcast(buffer, src=0)
            x = batches(rank, micro)
            for piece in x.split(2) if rank in short else [x]:
                (model(piece) * (len(piece) / len(x)) / accumulate).backward()
            micro += 1
        learning = [p for p in model.parameters() if p.grad is not None]
        for parameter in learning:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("short", [(1,), (0,), (0, 1)], ids=["second", "first", "both"])
def test_a_forward_pass_that_does_not_fit_gives_the_gradients_of_pieces(short, accumulate):
    settings = {"where": "forward", "short": short, "accumulate": accumulate}
    told = world(2).run(trained, unused=True, **settings)
    assert told[0][0] == told[1][0]
    assert len(told[0][0]) == 5
    assert told[0][2] == told[1][2]
    for rank, (_, pieces, *_) in enumerate(told):
        assert pieces == [2 if rank in short else 1] * (5 * accumulate)
    expected = world(2).run(by_hand, **settings)
    for name, tensor in expected[0].items():
        torch.testing.assert_close(told[0][3][name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("unused", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("short", [(1,), (0, 1)], ids=["second", "both"])
def test_a_backward_pass_that_does_not_fit_is_finished_in_pieces(short, accumulate, unused):
    settings = {"where": "backward", "short": short, "accumulate": accumulate}
    told = world(2).run(trained, unused=unused, **settings)
    assert told[0][:1] == told[1][:1]
    assert len(told[0][0]) == 5
    assert told[0][2] == told[1][2]
    for rank, (_, pieces, *_) in enumerate(told):
        assert pieces == [2 if rank in short else 1] * (5 * accumulate)
    expected = world(2).run(by_hand, **settings)
    for name in told[0][3].keys() & expected[0].keys() - {"spare.weight", "spare.bias"}:
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(told[0][3][name], expected[0][name], msg=name, **near)


class Counted:
    """Messages that Python asks for; the reducer's own are none of these."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("all_reduce", "all_gather", "broadcast", "all_gather_object"):
            inner = getattr(torch.distributed, name)
            patch.setattr(torch.distributed, name, self._counting(name, inner))

    def _counting(self, name: str, inner: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return inner(*args, **kwargs)

        return call


def messages(rank: int, short: Sequence[int]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        settings = {"where": "forward", "short": short, "accumulate": 2, "unused": True}
        trained(rank, steps=2, **settings)
        return [c for c in counted.calls if c != "all_gather_object"]


def test_halves_send_no_message_that_a_healthy_step_does_not_send():
    assert world(2).run(messages, short=(1,)) == world(2).run(messages, short=())


def refused(rank: int, *, kind: str) -> str:
    """Of both, for one alone would leave the other waiting for what it cannot send."""
    inner = Small("forward", 2)
    settings = {"gradient_as_bucket_view": True} if kind == "ddp" else {}
    model = spread(inner, kind, **settings)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    try:
        StepsTogether(guard, Halves(inner), model).step(batches(rank, 0))
    except TooLarge as error:
        return str(error)
    return "went on"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("fsdp", "the weights are divided between the processes, and all have to make the same"),
        ("ddp", "it is not one DistributedDataParallel with gradients of its own"),
    ],
)
def test_where_one_cannot_do_it_alone_the_error_says_so(kind, why):
    for rank, said in enumerate(world(2).run(refused, kind=kind)):
        assert f"out of memory on process {rank}, and the step cannot be computed in halves" in said
        assert why in said
        assert "Tried to allocate 2.00 GiB" in said
        assert "Take smaller batches" in said


def one_sample(rank: int) -> str:
    model = spread(Small("forward", 0), "ddp", find_unused_parameters=True)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    try:
        StepsTogether(guard, Halves(model.module), model).step(batches(rank, 0))
    except TooLarge as error:
        return str(error)
    return "went on"


def test_a_sample_that_does_not_fit_ends_the_run():
    for said in world(2).run(one_sample):
        assert "out of memory: of a batch of 4 samples not even a piece of 1 fits" in said
