"""Conditioning by attention over support tokens: exact, though nothing per pair is made."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from surefoot.models import PrototypeScore, References, TokenConditioning

B, A, N, T, D = 2, 5, 3, 4, 8


def inputs() -> tuple[Tensor, References]:
    return normalize(torch.randn(B, A, D), dim=-1), References(
        prototypes=normalize(torch.randn(N, D), dim=-1),
        shots=normalize(torch.randn(N, 2, D), dim=-1),
        tokens=torch.randn(N, T, D),
    )


def opened() -> TokenConditioning:
    """A module whose value projection has left zero."""
    module = TokenConditioning(D)
    torch.nn.init.normal_(module.value.weight)
    return module


def test_it_starts_as_the_plain_cosine() -> None:
    e, references = inputs()
    torch.testing.assert_close(TokenConditioning(D)(e, references), e @ references.prototypes.mT)


def test_it_equals_attention_written_out_pair_by_pair() -> None:
    e, references = inputs()
    module = opened()
    given = module(e, references)
    for b in range(B):
        for a in range(A):
            for n in range(N):
                tokens = module.norm(references.tokens[n])
                u = module.value(tokens)
                v = 0.5 * u / (1 + u.square().sum(-1, keepdim=True)).sqrt()
                w = torch.softmax(module.key(tokens) @ module.query(e[b, a]), dim=0)
                c = e[b, a] + (w[:, None] * v).sum(0)
                torch.testing.assert_close(given[b, a, n], c @ references.prototypes[n])


def test_it_moves_the_score_by_less_than_its_reach() -> None:
    e, references = inputs()
    module = opened()
    torch.nn.init.normal_(module.value.weight, std=1e3)
    moved = module(e, references) - e @ references.prototypes.mT
    assert 0.1 < moved.abs().max() <= 0.5


def test_an_objects_score_does_not_depend_on_the_other_objects() -> None:
    e, references = inputs()
    module = opened()
    alone = References(
        prototypes=references.prototypes[1:2],
        shots=references.shots[1:2],
        tokens=references.tokens[1:2],
    )
    torch.testing.assert_close(module(e, alone)[..., 0], module(e, references)[..., 1])


def test_scale_starts_at_ten_and_keeps_its_gradient_at_its_bounds() -> None:
    score = PrototypeScore()
    torch.testing.assert_close(score.scale.detach(), torch.tensor(10.0))
    for raw in (-12.0, 12.0):
        score.raw_scale.data.fill_(raw)
        score.zero_grad()
        score(torch.ones(1, 1, 1), torch.zeros(1, 1)).sum().backward()
        assert 0 < score.scale < score.most
        assert score.raw_scale.grad > 0


def test_objectness_moves_a_logit_by_at_most_three_and_always_has_gradient() -> None:
    objectness = torch.tensor([[-60.0, -6.0, 0.0, 6.0, 30.0]], requires_grad=True)
    logits = PrototypeScore()(torch.zeros(1, 5, 1), objectness)[0, :, 0]
    assert (logits + 7).abs().max() <= 3
    logits[1:].sum().backward()
    assert (objectness.grad[0, 1:] > 0).all()
