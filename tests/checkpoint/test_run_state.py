"""Random numbers go on where they stood, through a file as well."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.checkpoint import CheckpointStore, capture_rng, restore_rng
from surefoot.errors import CheckpointError


def draw() -> list[float]:
    """Some of everything, and the spare normal that Python and NumPy keep for the next call."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        *torch.rand(3).tolist(),
        torch.randn(()).item(),
    ]


@given(st.integers(0, 700))
def test_every_generator_goes_on_where_it_was_captured(count: int) -> None:
    for _ in range(count % 7):
        random.gauss(0, 1)
        np.random.randn()
    torch.rand(count)
    state = capture_rng()
    first = draw()
    assert draw() != first
    assert restore_rng(state) == ()
    assert draw() == first


def test_a_captured_state_lives_in_a_checkpoint(store: CheckpointStore) -> None:
    draw()
    store.save(1, {"rng": capture_rng()}, weights={"model": {"w": torch.ones(1)}})
    first = draw()
    checkpoint = store.newest()
    assert checkpoint is not None
    restore_rng(checkpoint.load_state()["rng"])
    assert draw() == first


def test_saving_draws_no_random_number(store: CheckpointStore) -> None:
    state = capture_rng()
    store.save(1, {"rng": state}, weights={"model": {"w": torch.ones(1)}}, metric=0.5, best=True)
    store.newest()
    first = draw()
    restore_rng(state)
    assert draw() == first


@pytest.mark.parametrize(
    "change",
    [
        {"python": (3, (1, 2), None)},
        {"numpy": {"bit_generator": "MT19937"}},
        {"torch": torch.zeros(3, dtype=torch.uint8)},
        {"torch": None},
    ],
)
def test_damaged_states_are_refused_and_change_nothing(change: dict[str, Any]) -> None:
    state = capture_rng()
    first = draw()
    restore_rng(state)
    with pytest.raises(CheckpointError, match="random states are damaged"):
        restore_rng(state | change)
    assert draw() == first


@pytest.mark.parametrize("state", [{}, {"version": 2}])
def test_a_state_of_another_version_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"random states of version (None|2)"):
        restore_rng(state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no CUDA")
def test_a_missing_device_is_said() -> None:
    state = capture_rng() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    (said,) = restore_rng(state)
    assert said.startswith("random states of 2 CUDA devices were saved and 0 are here")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_device_goes_on_where_it_was_captured(store: CheckpointStore) -> None:
    torch.rand(3, device="cuda")
    store.save(1, {"rng": capture_rng()}, weights={"model": {"w": torch.ones(4, device="cuda")}})
    first = torch.rand(3, device="cuda").tolist()
    checkpoint = store.newest()
    assert checkpoint is not None
    assert restore_rng(checkpoint.load_state()["rng"]) == ()
    assert torch.rand(3, device="cuda").tolist() == first
    assert checkpoint.load_weights(device="cuda")["w"].device.type == "cuda"
