"""The mixture of experts: sparse, without a loop, with a router that learns and stays even."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu

from surefoot.models.camouflage import Experts

EXPERTS = 4


def kinds(count: int, seed: int = 0) -> Tensor:
    """Feature maps of four kinds in turn: which channels are active differs, as between scenes."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 8, 6, 6, generator=g)
    for i in range(count):
        kind = i % 4
        x[i, 2 * kind : 2 * kind + 2] *= 4
    return x


def share_of_each(experts: Experts, x: Tensor) -> Tensor:
    chosen = experts.probability(x).topk(experts.chosen, dim=1).indices
    return torch.bincount(chosen.flatten(), minlength=EXPERTS) / chosen.numel()


def test_two_experts_refine_an_image_weighed_by_the_router() -> None:
    """Against the obvious loop over images and experts."""
    experts, x = Experts(8, EXPERTS), kinds(5)
    nn.init.normal_(experts.router.weight)
    refined, _ = experts(x)
    for i in range(len(x)):
        p = experts.probability(x[i : i + 1])[0]
        best = p.argsort(descending=True)[:2].tolist()
        expected = x[i]
        for e in best:
            y = gelu(conv2d(x[i : i + 1], experts.spatial[e], padding=2, groups=8))[0]
            y = torch.einsum("oc,chw->ohw", experts.mix[e], y)
            expected = expected + p[e] / p[best].sum() * y
        torch.testing.assert_close(refined[i], expected, rtol=1e-4, atol=1e-5)


def test_the_router_and_every_expert_get_gradient_from_the_task_alone() -> None:
    experts, x = Experts(8, EXPERTS), kinds(8)
    nn.init.normal_(experts.router.weight)
    chosen = experts.probability(x).topk(2, dim=1).indices
    assert chosen.unique().numel() == EXPERTS
    refined, _ = experts(x)
    refined.square().mean().backward()
    assert experts.router.weight.grad.abs().min() > 0
    for parameter in (experts.spatial, experts.mix):
        assert (parameter.grad.flatten(1).abs().sum(1) > 0).all()


def test_the_balance_term_is_1_when_even_and_has_gradient() -> None:
    experts, x = Experts(8, EXPERTS), kinds(8)
    nn.init.zeros_(experts.router.weight)
    _, even = experts(x)
    assert even.item() == pytest.approx(1.0)
    with torch.no_grad():
        experts.router.bias[:2] = 3.0
    for _ in range(50):
        _, uneven = experts(x)
    assert uneven.item() > 1.8
    uneven.backward()
    # Down for those that get everything, up for the others.
    assert (experts.router.bias.grad[:2] > 0).all()
    assert (experts.router.bias.grad[2:] < 0).all()


def test_usage_is_a_running_mean_that_evaluation_leaves_alone() -> None:
    experts, x = Experts(8, EXPERTS), kinds(8)
    with torch.no_grad():
        experts.router.bias[0] = 9.0
        experts.router.bias[1] = 8.0
    experts(x)
    torch.testing.assert_close(experts.usage, torch.tensor([0.275, 0.275, 0.225, 0.225]))
    before = experts.usage.clone()
    experts.eval()(x)
    assert torch.equal(experts.usage, before)
    assert "usage" in experts.state_dict()


def learn(balance: float, steps: int = 150) -> Tensor:
    """Trains with a router that starts collapsed; the share of choices that each expert ends with.

    The task: an image's channels in an order that depends on its kind.
    """
    torch.manual_seed(0)
    experts = Experts(8, EXPERTS)
    with torch.no_grad():
        experts.router.bias[:2] = 2.0
    assert share_of_each(experts, kinds(16))[2:].sum() == 0
    optimizer = torch.optim.AdamW(experts.parameters(), lr=1e-2)
    for step in range(steps):
        x = kinds(8, seed=step)
        target = torch.stack([m.roll(1 + i % 4, 0) for i, m in enumerate(x)])
        refined, uneven = experts(x)
        loss = (refined - target).square().mean() + balance * uneven
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return share_of_each(experts, kinds(64, seed=999))


def test_the_router_does_not_collapse() -> None:
    shares = learn(balance=0.1)
    assert (shares > 0.1).all(), shares  # 0.25 would be even


def test_without_the_balance_term_it_stays_collapsed() -> None:
    """What shows that the test above can fail."""
    shares = learn(balance=0.0)
    assert (shares == 0).sum() >= 1, shares
