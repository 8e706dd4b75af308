"""Every fusion: the quick way over all pairs equals the plain one, and the reference counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from surefoot.errors import UsageError
from surefoot.models import (
    CrossScaleAttention,
    Fusion,
    Levels,
    PyramidAttention,
    References,
    SupportPlaces,
    TokenConditioning,
)

LEVELS: Levels = ((4, 6, 4), (2, 3, 8), (1, 2, 16))
STRIDES = (4, 8, 16)
A, D = 24 + 6 + 2, 32
NAMES = ("tokens", "psalm", "cheaf")
GRIDS = 1 + 4 + 16


def fusion(name: str) -> Fusion:
    """With weights that have left their start."""
    made = {
        "tokens": lambda: TokenConditioning(D, value_std=1 / D),
        "psalm": lambda: PyramidAttention(D, STRIDES),
        "cheaf": lambda: CrossScaleAttention(D, STRIDES),
    }[name]()
    return made.double()


def references(objects: int = 3, photos: int = 2) -> References:
    shots = normalize(torch.randn(objects, photos, D, dtype=torch.float64), dim=-1)
    return References(
        prototypes=normalize(shots.mean(1), dim=-1),
        shots=shots,
        tokens=torch.randn(objects, 2 * photos, D, dtype=torch.float64),
        places=torch.randn(objects, photos, GRIDS, D, dtype=torch.float64),
    )


def embeddings(images: int = 2) -> Tensor:
    return normalize(torch.randn(images, A, D, dtype=torch.float64), dim=-1)


def likeness(module: Fusion, e: Tensor, r: References) -> Tensor:
    return module(e, r, module.look(e, LEVELS), LEVELS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=8, deadline=None)
@given(images=st.integers(1, 3), objects=st.integers(1, 4), photos=st.integers(1, 3))
def test_all_pairs_at_once_equal_the_conditioned_embedding_times_the_prototype(
    name: str, dtype: torch.dtype, images: int, objects: int, photos: int
) -> None:
    module, e, r = fusion(name).to(dtype), embeddings(images), references(objects, photos)
    e, r = e.to(dtype), References(**{k: v.to(dtype) for k, v in vars(r).items()})
    scene = module.look(e, LEVELS)
    image = torch.arange(images).repeat_interleave(objects)
    object = torch.arange(objects).repeat(images)
    c = module.paired(e[image], r.take(object), None if scene is None else scene[image], LEVELS)
    direct = (c * r.prototypes[object][:, None]).sum(-1)
    given_ = module(e, r, scene, LEVELS)
    assert given_.dtype == c.dtype == dtype
    torch.testing.assert_close(given_[image, :, object], direct, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_near_the_cosine_and_yet_the_photos_count(name: str) -> None:
    module, e, r = fusion(name), embeddings(), references()
    plain, given_ = e @ r.prototypes.mT, likeness(module, e, r)
    assert (given_ - plain).square().mean() < 0.1 * plain.square().mean()
    # The same prototype, what the photos show beside it another's: 0.3 % would be nothing.
    swapped = replace(r, tokens=r.tokens.roll(1, 0), places=r.places.roll(1, 0))
    moved = (likeness(module, e, swapped) - given_).square().mean()
    assert moved.sqrt() > 0.01 * given_.square().mean().sqrt()


@pytest.mark.parametrize("name", ["psalm", "cheaf"])
def test_photos_count_on_every_level(name: str) -> None:
    module, e, r = fusion(name), embeddings(), references()
    moved = likeness(module, e, replace(r, places=r.places.roll(1, 0))) - likeness(module, e, r)
    parts = moved.split([h * w for h, w, _ in LEVELS], dim=1)
    assert all(part.abs().mean() > 1e-3 for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_likenesses_and_conditioned_embeddings_are_bounded_whatever_the_weights(name: str) -> None:
    module, e, r = fusion(name), embeddings(), references()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=30)
    moved = likeness(module, e, r) - e @ r.prototypes.mT
    assert 0.05 < moved.abs().max() <= 0.5
    rows = torch.tensor([0, 1])
    c = module.paired(e, r.take(rows), module.look(e, LEVELS), LEVELS)
    assert c.norm(dim=-1).max() <= 1.5 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_photos_does_not_matter_but_each_of_them_does(name: str) -> None:
    module, e, r = fusion(name), embeddings(), references(photos=3)
    if name == "tokens":
        assert r.tokens.shape == (3, 6, D)
        turned = replace(r, tokens=r.tokens.unflatten(1, (3, 2)).roll(1, 1).flatten(1, 2))
        without = replace(r, tokens=r.tokens[:, 2:])
    else:
        turned = replace(r, places=r.places[:, [2, 0, 1]])
        without = replace(r, places=r.places[:, 1:])
    given_ = likeness(module, e, r)
    torch.testing.assert_close(likeness(module, e, turned), given_, atol=1e-12, rtol=0)
    assert (likeness(module, e, without) - given_).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_an_objects_likeness_does_not_depend_on_the_others_or_an_image_on_its_batch(
    name: str,
) -> None:
    module, e, r = fusion(name), embeddings(3), references()
    alone = likeness(module, e[1:2], r.take(torch.tensor([2])))
    torch.testing.assert_close(alone[0, :, 0], likeness(module, e, r)[1, :, 2])


def test_psalm_is_a_gate_and_attention_written_out_cell_by_cell() -> None:
    module, e, r = fusion("psalm"), embeddings(1), references()
    given_, at = likeness(module, e, r), 0
    for height, width, stride in LEVELS:
        attention, gate = module.attention[str(stride)], module.gate[str(stride)]
        seen = 1 + 4 if stride == 4 else GRIDS
        for n in range(3):
            tokens = attention.norm(r.places[n, :, :seen].reshape(-1, D))
            u = attention.value(tokens)
            v = 0.3 * u / (1 + u.square().sum(-1, keepdim=True)).sqrt()
            h = 0.2 * torch.tanh(gate(r.prototypes[n]))
            for a in range(at, at + height * width):
                w = torch.softmax(attention.key(tokens) @ attention.query(e[0, a]), dim=0)
                c = e[0, a] + e[0, a] * h + w @ v
                torch.testing.assert_close(given_[0, a, n], c @ r.prototypes[n])
        at += height * width


def test_cheaf_is_efficient_attention_and_a_gated_local_branch_written_out() -> None:
    module, e, r = fusion("cheaf"), embeddings(1), references()
    scene = module.look(e, LEVELS)
    given_ = module(e, r, scene, LEVELS)
    at, heads = 0, D // 16
    for height, width, stride in LEVELS:
        own = module.levels[str(stride)]
        for n in range(3):
            y = module.norm(r.places[n].reshape(-1, D))
            keys, values = own.key(y).softmax(0), own.value(y)
            gate = torch.sigmoid(own.gate(r.prototypes[n]))
            for a in range(at, at + height * width):
                phi, local = scene[0, a, :D], scene[0, a, D:]
                c = e[0, a] + gate * local
                for h in range(heads):
                    i = slice(16 * h, 16 * (h + 1))
                    u = values[:, i]
                    v = 0.3 / math.sqrt(heads) * u / (1 + u.square().sum(-1, keepdim=True)).sqrt()
                    c[i] += phi[i] @ (keys[:, i].mT @ v)
                torch.testing.assert_close(given_[0, a, n], c @ r.prototypes[n])
        at += height * width


def test_cheafs_queries_see_the_neighbouring_levels_and_no_further() -> None:
    module, e = fusion("cheaf"), embeddings(1)
    starts = {4: slice(0, 24), 8: slice(24, 30), 16: slice(30, 32)}

    def reached(source: int) -> set[int]:
        other = e.clone()
        other[:, starts[source]] = normalize(torch.randn_like(other[:, starts[source]]), dim=-1)
        moved = module.look(other, LEVELS) - module.look(e, LEVELS)
        return {s for s, cells in starts.items() if moved[:, cells].abs().max() > 1e-6}

    assert reached(4) == {4, 8}
    assert reached(8) == {4, 8, 16}
    assert reached(16) == {8, 16}


def test_cheafs_queries_are_shares_of_each_head() -> None:
    phi = fusion("cheaf").look(embeddings(), LEVELS)[..., :D].unflatten(-1, (2, 16))
    torch.testing.assert_close(phi.sum(-1), torch.ones(2, A, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["psalm", "cheaf"])
def test_one_level_can_be_asked_for_by_itself(name: str) -> None:
    module, e, r = fusion(name), embeddings(3), references()
    scene, cells = module.look(e, LEVELS), slice(24, 30)
    whole = module.paired(e, r, scene, LEVELS)
    part = module.paired(e[:, cells], r, None if scene is None else scene[:, cells], ((2, 3, 8),))
    torch.testing.assert_close(part, whole[:, cells])


@pytest.mark.parametrize("name", ["psalm", "cheaf"])
def test_what_does_not_belong_together_is_refused(name: str) -> None:
    module, e, r = fusion(name), embeddings(), references()
    scene = module.look(e, LEVELS)
    with pytest.raises(UsageError, match=rf"{name}: the references have no places"):
        module(e, replace(r, places=None), scene, LEVELS)
    with pytest.raises(UsageError, match=r"32 cells, but the levels .* have 6"):
        module(e, r, scene, LEVELS[1:2])
    with pytest.raises(UsageError, match=rf"{name}: a level of stride 32; this model's are"):
        module(e, r, scene, (*LEVELS[:2], (1, 2, 32)))
    if name == "cheaf":
        with pytest.raises(UsageError, match=r"what is read off the scene is missing"):
            module(e, r, None, LEVELS)


def test_a_pyramid_of_places_is_means_over_cells_weighed_by_attention() -> None:
    places = SupportPlaces(6, 5, grids=(1, 2)).double()
    tokens = torch.randn(2, 3, 1 + 4 * 6, 6, dtype=torch.float64)
    equal = places(tokens, (4, 6))
    values = places.value(places.norm(tokens)).float()
    loose, dense = values[:, :, :1], values[:, :, 1:].unflatten(2, (4, 6))
    quarters = dense.unflatten(2, (2, 2)).unflatten(4, (2, 3)).mean((3, 5)).flatten(2, 3)
    expected = torch.cat((loose, dense.mean((2, 3))[:, :, None], quarters), dim=2)
    torch.testing.assert_close(equal, expected)
    torch.nn.init.normal_(places.attention.weight)
    weights = places.attention(places.norm(tokens[:, :, 1:])).softmax(2).float()
    torch.testing.assert_close(places(tokens, (4, 6))[:, :, 1], (weights * values[:, :, 1:]).sum(2))


def test_a_grid_finer_than_the_photo_still_has_a_token_in_every_cell() -> None:
    places = SupportPlaces(6, 5, grids=(4,))(torch.randn(1, 1, 2 * 3, 6), (2, 3))
    assert places.shape == (1, 1, 16, 5)
    assert places.isfinite().all()
