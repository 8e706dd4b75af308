"""Every sample once an epoch, whoever loads it, and the same ones after a resume."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from surefoot.checkpoint import CheckpointStore, SampleOrder, capture_rng, restore_rng
from surefoot.data.quarantine import DataIncident, SafeLoader
from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.guard import Guard

sizes = st.tuples(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5))
"""Samples, batch size, processes."""


def orders(samples: int, batch_size: int | None, world: int, **more: Any) -> list[SampleOrder]:
    return [
        SampleOrder(samples, batch_size=batch_size, rank=rank, world_size=world, **more)
        for rank in range(world)
    ]


def steps(ranks: list[SampleOrder]) -> list[list[list[int]]]:
    """For each step, what every process gets."""
    return [list(step) for step in zip(*map(list, ranks), strict=True)]


def flat(batches: Any) -> list[int]:
    return [int(sample) for batch in batches for sample in batch]


@given(sizes, st.booleans(), st.booleans(), st.integers(0, 3))
def test_together_the_processes_see_every_sample_once(
    size: tuple[int, int, int], shuffle: bool, drop_last: bool, epoch: int
) -> None:
    samples, batch_size, world = size
    full = batch_size * world
    assume(samples >= (full if drop_last else world))
    ranks = orders(samples, batch_size, world, shuffle=shuffle, drop_last=drop_last)
    for order in ranks:
        order.set_epoch(epoch)
    parts = steps(ranks)
    assert {len(order) for order in ranks} == {len(parts)}
    seen = [sample for step in parts for batch in step for sample in batch]
    whole = np.random.default_rng([0, epoch]).permutation(samples) if shuffle else range(samples)
    if drop_last:
        assert seen == list(whole)[: samples // full * full]
    else:
        assert seen == list(whole)  # in the order of one process with the whole batch, too
    for number, step in enumerate(parts):
        lengths = {len(batch) for batch in step}
        assert max(lengths) - min(lengths) <= 1
        if number < len(parts) - 1:
            assert lengths == {batch_size}
        assert min(lengths) >= 1
        assert max(lengths) <= batch_size + 1


@given(sizes, st.booleans(), st.data())
def test_the_rest_of_an_epoch_is_what_would_have_come(
    size: tuple[int, int, int], drop_last: bool, data: st.DataObject
) -> None:
    samples, batch_size, world = size
    assume(samples >= (batch_size * world if drop_last else world))
    make = lambda: orders(samples, batch_size, world, seed=5, drop_last=drop_last)  # noqa: E731
    whole = make()[0]
    whole.set_epoch(2)
    expected = list(whole)
    stop = data.draw(st.integers(0, len(expected)))
    first = make()[0]
    first.set_epoch(2)
    running = first.batches(first)
    taken = [next(running) for _ in range(stop)]
    assert first.position == stop
    resumed = make()[0]
    assert resumed.load_state_dict(first.state_dict()) == ()
    assert taken + list(resumed.batches(resumed)) == expected
    assert (resumed.epoch, resumed.position) == (3, 0)


@given(sizes, sizes, st.data())
def test_other_batches_and_other_processes_go_on_with_the_samples_that_are_left(
    before: tuple[int, int, int], after: tuple[int, int, int], data: st.DataObject
) -> None:
    samples, batch_size, world = before
    _, new_batch_size, new_world = after
    assume(samples >= max(world, new_world))
    ranks = orders(samples, batch_size, world)
    stop = data.draw(st.integers(0, len(ranks[0])))
    done: list[int] = []
    for order in ranks:
        running = order.batches(order)
        done += flat(next(running) for _ in range(stop))
    states = [order.state_dict() for order in ranks]
    assert all(state == states[0] for state in states)
    resumed = orders(samples, new_batch_size, new_world)
    told = {order.load_state_dict(states[0]) for order in resumed}
    rest = [sample for step in steps(resumed) for sample in flat(step)]
    (said,) = told
    left = samples - len(done) - len(rest)
    if left:
        assert left < new_world
        assert f"the last {left} samples of the epoch are left out" in said[-1]
    else:
        assert sorted(done + rest) == list(range(samples))
    same = (batch_size, world) == (new_batch_size, new_world)
    assert any("processes x batch_size" in line for line in said) == (not same)


def test_what_is_no_longer_exact_is_said() -> None:
    saved = SampleOrder(100, batch_size=8, rank=0, world_size=2, seed=1).state_dict()
    other = SampleOrder(90, batch_size=4, seed=2, shuffle=False, drop_last=True)
    seed, shuffle, data, size, last = other.load_state_dict(saved)
    assert seed == "the order goes on with the saved seed 1, not with 2."
    assert shuffle == "the order goes on with shuffle=True, as it was saved."
    assert data.startswith("the data set had 100 samples and has 90: ")
    assert size.startswith("batches of 1 x 4 samples (processes x batch_size) where the run was ")
    assert "with 2 x 8: the rest of the epoch has the same samples, each once, in other b" in size
    assert last.startswith("drop_last is True and was False")
    (same_sum,) = SampleOrder(100, batch_size=16, seed=1).load_state_dict(saved)
    assert "together they are the same batches, but each process gets another part" in same_sum


@given(st.integers(1, 40), st.integers(1, 4))
def test_a_loader_without_batches_gets_single_samples(samples: int, world: int) -> None:
    assume(samples >= world)
    ranks = orders(samples, None, world)
    seen = [sample for step in steps(ranks) for sample in step]
    whole = np.random.default_rng([0, 0]).permutation(samples).tolist()
    assert seen == whole[: samples // world * world]


def test_every_epoch_has_another_order_and_every_seed() -> None:
    order = SampleOrder(40, batch_size=5)
    epochs = [flat(order.batches(order)) for _ in range(3)]
    other = SampleOrder(40, batch_size=5, seed=1)
    assert len({tuple(epoch) for epoch in [*epochs, flat(other)]}) == 4
    assert order.epoch == 3


def test_a_plain_loop_gets_a_new_order_every_time_too() -> None:
    order = SampleOrder(40, batch_size=5)
    loader = DataLoader(torch.arange(40), batch_sampler=order, num_workers=2)
    first, second = flat(loader), flat(loader)
    assert first != second
    again = SampleOrder(40, batch_size=5)
    assert [flat(again.batches(again)) for _ in range(2)] == [first, second]
    order.set_epoch(0)
    assert flat(loader) == first


def test_to_set_the_epoch_that_it_is_moves_nothing() -> None:
    order = SampleOrder(10, batch_size=2)
    running = order.batches(order)
    next(running)
    order.set_epoch(0)
    assert order.position == 1
    order.set_epoch(4)
    assert (order.epoch, order.position, len(order)) == (4, 0, 5)


# -- with a loader -------------------------------------------------------------------------------


class Noisy(Dataset):
    """Samples that draw from every global generator."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        noise = [random.gauss(0, 1), np.random.randn(), float(torch.randn(()))]
        return torch.tensor([index, *noise], dtype=torch.float64)


def epoch_of(order: SampleOrder, **loader: Any) -> Iterator[Tensor]:
    return order.batches(DataLoader(order.seeded(Noisy(21)), batch_sampler=order, **loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_loaded_ahead_do_not_count(workers: int) -> None:
    whole = list(epoch_of(SampleOrder(21, batch_size=4)))
    first = SampleOrder(21, batch_size=4)
    for number, _batch in enumerate(epoch_of(first, num_workers=workers), start=1):
        state = first.state_dict()
        assert (state["batches_done"], state["samples_done"]) == (number, min(4 * number, 21))
        second = SampleOrder(21, batch_size=4)
        second.load_state_dict(state)
        if not workers or number == 2:
            rest = list(epoch_of(second, num_workers=workers))
            torch.testing.assert_close(rest, whole[number:], rtol=0, atol=0)
    assert number == 6


def test_a_sample_draws_the_same_numbers_in_every_process_and_others_in_another_epoch() -> None:
    seen = {}
    for workers in (0, 1, 2):
        order = SampleOrder(21, batch_size=4, seed=9)
        loader = DataLoader(
            order.seeded(Noisy(21)),
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        rows = [torch.cat(list(order.batches(loader))) for _ in range(2)]
        seen[workers] = [row[row[:, 0].argsort()] for row in rows]
    for workers in (1, 2):
        torch.testing.assert_close(seen[workers], seen[0], rtol=0, atol=0)
    assert not (seen[0][0][:, 1:] == seen[0][1][:, 1:]).any()


def test_seeding_samples_leaves_the_training_s_own_numbers_alone() -> None:
    random.gauss(0, 1)  # Python and NumPy keep a spare one
    np.random.randn()
    state = capture_rng()
    list(epoch_of(SampleOrder(21, batch_size=4)))
    list(epoch_of(SampleOrder(21, batch_size=4), num_workers=1))
    after = capture_rng()
    assert torch.equal(after.pop("torch"), state.pop("torch"))
    assert after == state


def test_workers_are_seeded_anew_in_every_epoch_and_after_every_resume() -> None:
    """For data sets whose samples are not seeded one by one."""
    order = SampleOrder(8, batch_size=4)
    loader = DataLoader(Noisy(8), batch_sampler=order, num_workers=1)
    first, second = (torch.cat(list(order.batches(loader)))[:, 1:] for _ in range(2))
    assert not (first == second).any()


def test_a_loader_of_another_order_is_an_error() -> None:
    order = SampleOrder(8, batch_size=4)
    with pytest.raises(UsageError, match=r"gave more than the 2 batches .*batch_sampler=order"):
        list(order.batches(DataLoader(Noisy(8), batch_size=2)))


def test_what_looks_ahead_on_the_way_does_not_count() -> None:
    guard = Guard(model := nn.Linear(1, 1), torch.optim.SGD(model.parameters(), lr=0.1))
    order = SampleOrder(8, batch_size=2)
    state = torch.get_rng_state()
    running = order.batches(DataLoader(torch.arange(8), batch_sampler=order), through=guard.batches)
    next(running)
    assert order.position == 1
    assert len(list(running)) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert (order.epoch, order.position) == (1, 0)
    order.advance()
    assert order.position == 1


def test_a_loader_that_ends_early_does_not_end_the_epoch() -> None:
    order = SampleOrder(8, batch_size=2)
    batches = list(order)
    assert list(order.batches(batches[:3])) == batches[:3]
    assert (order.epoch, order.position) == (0, 3)
    assert list(order.batches(order)) == batches[3:]
    assert (order.epoch, order.position) == (1, 0)


def train(store: CheckpointStore, stop: int) -> dict[str, Tensor]:
    """A run of two epochs and a bit that can stop after any step, and goes on from there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    order = SampleOrder(21, batch_size=4, seed=4)
    done = 0
    if (found := store.newest()) is not None:
        state = found.load_state()
        model.load_state_dict(found.load_weights())
        optimizer.load_state_dict(state["optimizer"])
        assert order.load_state_dict(state["order"]) == ()
        restore_rng(state["rng"])
        done = found.step
    loader = DataLoader(order.seeded(Noisy(21)), batch_sampler=order, num_workers=done % 2)
    while done < 14:
        for batch in order.batches(loader):
            optimizer.zero_grad()
            model(batch[:, 1:]).square().mean().backward()
            optimizer.step()
            done += 1
            if done == stop:
                state = {
                    "optimizer": optimizer.state_dict(),
                    "order": order.state_dict(),
                    "rng": capture_rng(),
                }
                store.save(done, state, weights={"model": model.state_dict()})
                return model.state_dict()
            if done == 14:
                break
    return model.state_dict()


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 11, 12])
def test_a_run_that_goes_on_is_bit_for_bit_the_one_that_never_stopped(
    tmp_path: Path, stop: int
) -> None:
    expected = train(CheckpointStore(tmp_path / "whole", keep_last=1), 99)
    store = CheckpointStore(tmp_path / "stopped", keep_last=1)
    train(store, stop)
    torch.testing.assert_close(train(store, 99), expected, rtol=0, atol=0)


class Killing(Noisy):
    """Its worker dies the first time one of the samples is loaded; another sample is broken."""

    def __init__(self, killed: Path) -> None:
        super().__init__(21)
        self.killed = killed

    def __getitem__(self, index: int) -> Tensor:
        if index == 9:
            raise OSError("image file is truncated")
        if index == 7 and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_dead_worker_and_a_bad_sample_move_no_bit_of_the_others(tmp_path: Path) -> None:
    told: list[DataIncident] = []
    whole = torch.cat(list(epoch_of(SampleOrder(21, batch_size=4))))
    order = SampleOrder(21, batch_size=4)
    loader = DataLoader(order.seeded(Killing(tmp_path)), batch_sampler=order)
    safe = SafeLoader(loader, on_record=told.append)
    first = [next(order.batches(safe))]
    resumed = SampleOrder(21, batch_size=4)
    resumed.load_state_dict(order.state_dict())
    killing = resumed.seeded(Killing(tmp_path / "killed"))
    loader = DataLoader(killing, batch_sampler=resumed, num_workers=2)
    again = SafeLoader(loader, on_record=told.append)
    again.load_state_dict(safe.state_dict())
    seen = torch.cat([*first, *resumed.batches(again)])
    others = whole[:, 0] != 9
    torch.testing.assert_close(seen[others], whole[others], rtol=0, atol=0)
    assert sorted((one.index, one.quarantined) for one in told) == [(7, False), (9, True)]


# -- arguments and states ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"samples": 0, "batch_size": 2}, "0 samples for 1 processes .* at least one sample"),
        ({"samples": 3, "batch_size": 2, "drop_last": True, "world_size": 2, "rank": 0}, "full b"),
        ({"samples": 3, "batch_size": 0}, "batch_size=0; at least 1, or None"),
        ({"samples": 3, "batch_size": 1, "seed": -1}, "seed=-1; 0 or more"),
        ({"samples": 3, "batch_size": 1, "rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"samples": 3, "batch_size": 1, "rank": 0, "world_size": 0}, "world_size=0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SampleOrder(**arguments)


def test_a_negative_epoch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set_epoch\(-1\): epochs count from 0"):
        SampleOrder(3, batch_size=1).set_epoch(-1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "sample order of version 2; this surefoot reads 1"),
        ({"epoch": None}, "sample order: the state is damaged: TypeError"),
        ({"batch_size": "x", "world_size": "y"}, "sample order: the state is damaged: TypeError"),
    ],
)
def test_another_state_is_refused_and_moves_nothing(change: dict[str, Any], said: str) -> None:
    order = SampleOrder(9, batch_size=2)
    before = order.state_dict()
    with pytest.raises(CheckpointError, match=said):
        order.load_state_dict(before | {"samples_done": 4} | change)
    assert order.state_dict() == before


@settings(max_examples=20)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 10**9))
def test_every_seed_can_be_one(seed: int, epoch: int, index: int) -> None:
    order = SampleOrder(2, batch_size=1, seed=seed)
    order.set_epoch(epoch)
    data = order.seeded([0.0, 1.0])
    assert (order.seed, order.epoch, len(data), data[1]) == (seed, epoch, 2, 1.0)
    assert sorted(flat(order)) == [0, 1]
