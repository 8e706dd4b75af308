"""Bad samples and dead workers: what is told, what takes their place, and what stays the same."""

from __future__ import annotations

import ast
import gc
import inspect
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

from surefoot.data import vision
from surefoot.data.quarantine import DataIncident, Limit, SafeLoader, finite_values, label_range
from surefoot.data.watched import Board, Request, Watched, WorkerStart
from surefoot.errors import CheckpointError, ConfigError, DataError

LOTS = Limit(count=1000, share=1.0, deaths=1000)


class Noisy(Dataset):
    """Samples that draw from every generator, and misbehave where they are told to."""

    def __init__(self, length: int, faults: dict[int, Callable[[], Any]] | None = None) -> None:
        self.length, self.faults = length, faults or {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.faults and (instead := self.faults[index]()) is not None:
            return instead
        drawn = float(torch.rand(())) + random.random() + np.random.rand()
        return torch.tensor([float(index), drawn], dtype=torch.float64), index % 10


def broken() -> None:
    raise OSError("image file is truncated")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_unless(path: Path) -> None:
    """A worker dies the first time."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def indices(batches: Any) -> list[list[int]]:
    return [batch[0][:, 0].int().tolist() for batch in batches]


def seed_all() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def drawn_next() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), float(torch.rand(()))


# -- while nothing is wrong --------------------------------------------------------------------


def _kinds(data: Dataset, workers: int) -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(7)
    more = {"num_workers": workers}
    return {
        "shuffled": {"batch_size": 4, "shuffle": True, **more},
        "in order, short last batch": {"batch_size": 4, **more},
        "drop last": {"batch_size": 4, "drop_last": True, **more},
        "own generator": {"batch_size": 4, "shuffle": True, "generator": generator, **more},
        "with replacement": {
            "batch_size": 4,
            "sampler": RandomSampler(data, replacement=True, num_samples=70),
            **more,
        },
        "no batches": {"batch_size": None, "shuffle": True, **more},
        "batch sampler": {"batch_sampler": [[1, 2], [0], [5, 4, 3]], **more},
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", _kinds(Noisy(1), 0))
def test_a_healthy_loader_gives_the_same_bits_and_draws_the_same_numbers(
    kind: str, workers: int
) -> None:
    seen = []
    for protect in (lambda loader: loader, SafeLoader):
        seed_all()
        data = Noisy(19)
        loader = protect(DataLoader(data, **_kinds(data, workers)[kind]))
        batches, between = [], []
        for _ in range(2):
            for batch in loader:
                batches.append(batch)
                between.append(drawn_next())
        seen.append((batches, between, drawn_next(), len(loader)))
    plain, safe = seen
    torch.testing.assert_close(safe, plain, rtol=0, atol=0)


def test_persistent_workers_go_on_with_their_own_numbers() -> None:
    seen = []
    for protect in (lambda loader: loader, SafeLoader):
        seed_all()
        options = {"num_workers": 2, "persistent_workers": True, "shuffle": True}
        loader = protect(DataLoader(Noisy(13), batch_size=3, **options))
        batches = []
        for stop in (99, 2, 99):
            batches += [batch for _, batch in zip(range(stop), loader, strict=False)]
        seen.append((batches, drawn_next()))
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)


def test_many_at_once_is_loaded_as_the_data_set_does_it() -> None:
    calls: list[list[int]] = []

    class Many(Noisy):
        def __getitems__(self, wanted: list[int]) -> list[Any]:
            calls.append(wanted)
            return [self[index] for index in wanted]

    assert indices(SafeLoader(DataLoader(Many(6), batch_size=3))) == [[0, 1, 2], [3, 4, 5]]
    assert calls == [[0, 1, 2], [3, 4, 5]]


def test_it_stands_in_for_its_loader() -> None:
    loader = DataLoader(Noisy(10), batch_size=4)
    safe = SafeLoader(loader)
    assert safe.batch_size == 4
    assert safe.dataset is loader.dataset
    assert len(safe) == 3
    assert indices(loader) == indices(safe)  # the loader is protected with it
    with pytest.raises(AttributeError, match="no attribute 'btach_size'"):
        _ = safe.btach_size


# -- bad samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_told_of_and_not_loaded_again(
    tmp_path: Path, workers: int
) -> None:
    tries = tmp_path / "tries"

    def counted() -> None:
        with tries.open("a") as file:
            file.write("x")
        raise OSError("image file is truncated")

    told: list[DataIncident] = []
    loader = SafeLoader(
        DataLoader(Noisy(12, {5: counted}), batch_size=4, num_workers=workers),
        limit=LOTS,
        on_record=told.append,
    )
    for _ in range(3):
        assert indices(loader) == [[0, 1, 2, 3], [4, 6, 6, 7], [8, 9, 10, 11]]
    assert tries.read_text() == "x"
    (incident,) = told
    assert loader.quarantined == (incident,)
    assert incident == DataIncident(
        what="exception",
        quarantined=True,
        index=5,
        epoch=0,
        batch=1,
        place=1,
        error="OSError",
        text="image file is truncated",
        worker=None if workers == 0 else 1,
        replaced_by=6,
    )
    assert DataIncident.from_dict(incident.to_dict()) == incident


def test_the_next_good_one_goes_round_the_batch_and_then_into_the_data_set() -> None:
    faults = dict.fromkeys([3, 4, 5, 6, 7, 8], broken)
    loader = SafeLoader(DataLoader(Noisy(12, faults), batch_size=4), limit=LOTS)
    # 3 -> 0; 4, 5, 6, 7 -> 8 is bad, so 9; 8 -> 9
    assert indices(loader) == [[0, 1, 2, 0], [9, 9, 9, 9], [9, 9, 10, 11]]
    assert {one.index: one.replaced_by for one in loader.quarantined} == {
        3: 0, 4: 9, 5: 9, 6: 9, 7: 9, 8: None
    }  # fmt: skip


@settings(max_examples=50)
@given(st.sets(st.integers(0, 14), max_size=14), st.integers(1, 6), st.booleans())
def test_whatever_is_bad_every_batch_is_full_and_every_good_sample_is_in_its_place(
    bad: set[int], batch_size: int, shuffle: bool
) -> None:
    def batches(faults: set[int]) -> list[list[int]]:
        torch.manual_seed(0)
        data = Noisy(15, dict.fromkeys(faults, broken))
        loader = DataLoader(data, batch_size=batch_size, shuffle=shuffle)
        safe = SafeLoader(loader, limit=LOTS, on_record=lambda _: None)
        first = indices(safe)
        assert {one.index for one in safe.quarantined} == faults
        torch.manual_seed(0)
        assert indices(safe) == first  # known or not yet known, the same takes its place
        return first

    for wanted, got in zip(batches(set()), batches(bad), strict=True):
        for right, instead in zip(wanted, got, strict=True):
            assert instead == right if right not in bad else instead not in bad


def test_no_sample_of_a_batch_is_given_to_collate_twice() -> None:
    def popping(samples: list[dict[str, int]]) -> list[int]:
        return [sample.pop("label") for sample in samples]

    class Dicts(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> dict[str, int]:
            return broken() if index == 0 else {"label": index}

    loader = SafeLoader(DataLoader(Dicts(), batch_size=3, collate_fn=popping), limit=LOTS)
    assert list(loader) == [[1, 1, 2]]


def test_a_label_out_of_range_never_reaches_the_loss() -> None:
    labels = torch.tensor([0, 1, 2, 10, 4, -1])
    told: list[DataIncident] = []
    loader = SafeLoader(
        DataLoader(TensorDataset(torch.randn(6, 3), labels), batch_size=3),
        check=label_range(10),
        limit=LOTS,
        on_record=told.append,
    )
    assert [batch[1].tolist() for batch in loader] == [[0, 1, 2], [4, 4, 4]]
    assert str(told[0]) == (
        "sample 3 is not loaded again (epoch 0, batch 1): label_range: label 10 is out of range: "
        "num_classes=10 allows 0 to 9; sample 4 in its place"
    )
    assert told[1].text == "label -1 is out of range: num_classes=10 allows 0 to 9"
    assert [one.what for one in told] == ["refused", "refused"]


def test_every_check_is_asked_and_one_that_fails_is_a_refusal() -> None:
    data = [{"x": torch.ones(2), "y": 1} for _ in range(4)]
    data[1] = {"x": torch.tensor([1.0, float("inf")]), "y": 1}
    data[2] = {"x": torch.ones(2)}
    loader = SafeLoader(
        DataLoader(data, batch_size=4, collate_fn=len),
        check=[label_range(2, at="y"), finite_values()],
        limit=LOTS,
        on_record=lambda _: None,
    )
    assert list(loader) == [4]
    assert [(one.index, one.error, one.text) for one in loader.quarantined] == [
        (1, "finite_values",
         "['x'] holds 1 value that is not finite, the first inf at [1], of shape [2]"),
        (2, "KeyError", "'y'"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (9, None),
        (np.int64(10), "label 10 is out of range: num_classes=10 allows 0 to 9 and 255"),
        (255, None),
        (torch.tensor([[1, 2], [3, 40]]), "label 40 at [1, 1] is out of range: num"),
        (torch.tensor([-1, -1, 3]), "label -1 at [0] is out of range (2 such labels): num"),
        (3.0, "labels are float64; expected integers from 0 to 9"),
        (torch.zeros(0, dtype=torch.int64), None),
        (True, None),
    ],
)
def test_labels_of_every_kind(value: Any, said: str | None) -> None:
    found = label_range(10, ignore=[255])((None, value))
    assert found == said if said is None else (found or "").startswith(said)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1.0, (torch.ones(2), "name")]}, None),
        ({"a": [1.0, (2.0, float("nan"))]}, "['a'][1][1] holds 1 value that is not finite"),
        (torch.tensor([0.0, float("inf")], dtype=torch.bfloat16), "the sample holds 1 value"),
        (np.array([[np.nan, 1], [np.inf, 2]]), "the sample holds 2 values that are not finite, the "
         "first nan at [0, 0], of shape [2, 2]"),
        (np.array(["text"]), None),
        (2, None),
    ],
)  # fmt: skip
def test_finite_values_are_looked_for_everywhere(value: Any, said: str | None) -> None:
    found = finite_values()(value)
    assert found == said if said is None else (found or "").startswith(said)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_of_another_shape_is_replaced(workers: int) -> None:
    def other() -> tuple[Tensor, int]:
        return torch.zeros(7, dtype=torch.float64), 3

    loader = SafeLoader(
        DataLoader(Noisy(8, {2: other}), batch_size=4, num_workers=workers),
        limit=LOTS,
        on_record=lambda _: None,
    )
    assert indices(loader) == [[0, 1, 3, 3], [4, 5, 6, 7]]
    (incident,) = loader.quarantined
    assert (incident.index, incident.what, incident.replaced_by) == (2, "misfit", 3)
    assert "stack expects each tensor to be equal size" in incident.text


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch waits for seconds for a worker whose exception it has raised."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_collate_function_is_no_sample_s_fault(workers: int) -> None:
    def collate(samples: list[Any]) -> Any:
        raise NotImplementedError("no such batch")

    loader = SafeLoader(DataLoader(Noisy(4), batch_size=2, collate_fn=collate, num_workers=workers))
    with pytest.raises(NotImplementedError, match="no such batch"):
        next(iter(loader))
    assert loader.quarantined == ()


def test_samples_loaded_many_at_once_are_told_apart_when_it_fails() -> None:
    data = Subset(Noisy(12, {4: broken}), range(2, 12))
    loader = SafeLoader(DataLoader(data, batch_size=5), limit=LOTS, on_record=lambda _: None)
    assert indices(loader) == [[2, 3, 5, 5, 6], [7, 8, 9, 10, 11]]
    assert [one.index for one in loader.quarantined] == [2]


def test_a_data_set_with_names_for_indices(tmp_path: Path) -> None:
    data = {"a": 1, "b": 2, "c": 3}

    class Named(Dataset):
        def __getitem__(self, name: str) -> int:
            return data[name]

    loader = SafeLoader(
        DataLoader(Named(), batch_sampler=[["a", "x"], ["b", "c"]]), on_record=lambda _: None
    )
    assert [batch.tolist() for batch in loader] == [[1, 1], [2, 3]]
    assert [(one.index, one.error) for one in loader.quarantined] == [("x", "KeyError")]


# -- how much is too much ------------------------------------------------------------------------


def test_too_many_bad_samples_end_the_run_with_the_first_few() -> None:
    told: list[DataIncident] = []
    faults = dict.fromkeys(range(0, 40, 3), broken)
    loader = SafeLoader(
        DataLoader(Noisy(40, faults), batch_size=4),
        limit=Limit(count=3, share=1),
        on_record=told.append,
    )
    with pytest.raises(
        DataError,
        match=r"loading data: 4 samples of 40 could not be used, and 3 may be "
        r"\(count=3, share=1\): 0 \(OSError: image file is truncated\), 3 .*, 6 .* and 1 more\. "
        r"Mend .*limit=Limit\(",
    ):
        list(loader)
    assert len(told) == 4


def test_a_batch_without_any_good_sample_and_no_other_is_an_error() -> None:
    data = Noisy(2, {0: broken, 1: broken})
    loader = SafeLoader(DataLoader(data, batch_size=2), limit=LOTS, on_record=lambda _: None)
    with pytest.raises(
        DataError, match=r"nothing could be put in the place .* of the batch \[0, 1\]\. The last "
        r"ones: 0 \(OSError: image file is truncated\); 1 "
    ):  # fmt: skip
        list(loader)


@pytest.mark.parametrize("values", [{"count": -1}, {"share": 1.5}, {"share": float("nan")}])
def test_an_impossible_limit_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Limit: count=.* share=.* is 0 to 1"):
        Limit(**values)


def test_without_anyone_to_tell_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    list(SafeLoader(DataLoader(Noisy(9, {5: broken}), batch_size=3)))
    assert [record.getMessage() for record in caplog.records] == [
        "sample 5 is not loaded again (epoch 0, batch 1): OSError: image file is truncated; "
        "sample 3 in its place"
    ]


# -- workers -------------------------------------------------------------------------------------


def test_a_killed_worker_costs_no_batch_moves_none_and_draws_nothing(tmp_path: Path) -> None:
    options = {"batch_size": 4, "shuffle": True, "num_workers": 2}
    seed_all()
    plain, plain_next = indices(DataLoader(Noisy(40), **options)), drawn_next()
    seed_all()
    told: list[DataIncident] = []
    faults = {17: lambda: killed_unless(tmp_path / "a"), 30: lambda: killed_unless(tmp_path / "b")}
    loader = SafeLoader(DataLoader(Noisy(40, faults), **options), on_record=told.append)
    assert (indices(loader), drawn_next()) == (plain, plain_next)
    assert sorted(one.index for one in told) == [17, 30]
    assert {(one.what, one.quarantined, one.error) for one in told} == {
        ("killed", False, "SIGKILL")
    }
    assert "is tried once more" in str(told[0])
    assert "was ended by SIGKILL, as the system does where memory runs out" in told[0].text


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("many_at_once", [False, True])
def test_a_sample_that_kills_its_worker_twice_is_set_aside(
    persistent: bool, many_at_once: bool
) -> None:
    data: Dataset = Noisy(16, {6: killed})
    if many_at_once:
        data = Subset(data, range(16))
    told: list[DataIncident] = []
    loader = SafeLoader(
        DataLoader(data, batch_size=4, num_workers=2, persistent_workers=persistent),
        limit=LOTS,
        on_record=told.append,
    )
    expected = [[0, 1, 2, 3], [4, 5, 7, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert indices(loader) == expected
    assert indices(loader) == expected
    assert [(one.index, one.quarantined) for one in told if one.index is not None] == [
        (6, False),
        (6, True),
    ]
    assert [(one.batch, one.what) for one in loader.quarantined] == [(1, "killed")]
    assert len(told) == 2 + many_at_once


def kill_one_of(loader: SafeLoader) -> None:
    survivor = loader.loader._iterator
    process = survivor._batches._workers[0]
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_death_while_the_training_computes_is_not_raised_there() -> None:
    told: list[DataIncident] = []
    loader = SafeLoader(
        DataLoader(Noisy(24), batch_size=4, num_workers=2, persistent_workers=True),
        on_record=told.append,
    )
    seen = []
    for number, batch in enumerate(loader):
        seen += indices([batch])
        if number == 2:
            kill_one_of(loader)
            for _ in range(1000):  # the signal is handled between two of these
                pass
    assert seen == [list(range(first, first + 4)) for first in range(0, 24, 4)]
    assert len(told) == 1


def test_a_worker_that_died_between_two_epochs_is_replaced() -> None:
    told: list[DataIncident] = []
    loader = SafeLoader(
        DataLoader(Noisy(8), batch_size=4, num_workers=1, persistent_workers=True),
        on_record=told.append,
    )
    first = indices(loader)
    kill_one_of(loader)
    assert indices(loader) == first
    (incident,) = told
    assert (incident.index, incident.batch, incident.epoch) == (None, None, 0)
    assert str(incident).startswith("a data worker died and was replaced (epoch 0, worker 0): work")


def test_workers_that_keep_dying_end_the_run() -> None:
    faults = dict.fromkeys(range(3, 12), killed)
    loader = SafeLoader(
        DataLoader(Noisy(12, faults), batch_size=3, num_workers=1),
        limit=Limit(count=99, share=1.0, deaths=2),
        on_record=lambda _: None,
    )
    with pytest.raises(
        DataError, match=r"3 workers died within 1 batches; the limit is 2 within 1,000\. The "
        r"last: worker process \d+ was ended by SIGKILL.*use fewer workers.*num_workers=0"
    ):  # fmt: skip
        list(loader)


def test_a_silent_worker_is_ended_after_the_loader_s_timeout(tmp_path: Path) -> None:
    def silent() -> None:
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            time.sleep(600)

    told: list[DataIncident] = []
    loader = DataLoader(Noisy(6, {4: silent}), batch_size=3, num_workers=1, timeout=0.5)
    assert indices(SafeLoader(loader, on_record=told.append)) == [[0, 1, 2], [3, 4, 5]]
    assert [(one.index, one.error, one.text) for one in told] == [
        (4, "timeout", "silent for 0.5 s, so it was ended")
    ]


@pytest.mark.usefixtures("impatient")
def test_an_error_of_a_worker_s_start_is_handed_on() -> None:
    def start(worker: int) -> None:
        raise ValueError("no such device")

    loader = SafeLoader(
        DataLoader(Noisy(4), num_workers=1, worker_init_fn=start), on_record=lambda _: None
    )
    with pytest.raises(ValueError, match="no such device"):
        next(iter(loader))


def test_a_worker_s_start_sees_the_data_set_that_it_knows() -> None:
    def start(worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        info.dataset.faults[1] = lambda: (torch.full((2,), 77.0, dtype=torch.float64), 0)

    loader = DataLoader(Noisy(2), batch_size=2, num_workers=1, worker_init_fn=start)
    assert indices(SafeLoader(loader)) == [[0, 77]]


def test_workers_can_be_sent_everything_they_need() -> None:
    board = Board(2)
    watched = Watched(Noisy(4), len, True, (label_range(3), finite_values()), board)
    sent = pickle.loads(ForkingPickler.dumps((watched, WorkerStart(None))))[0]
    answer = sent[Request(0, [0, 1], frozenset(), singly=False)]
    assert (answer.batch, answer.complete, answer.troubles) == (2, True, ())
    sent.board.write(1, 70_000, 9)
    assert (board.read(1), board.read(0)) == ((70_000, 9), None)
    sent.board.clear(1)
    assert board.read(1) is None


# -- going on ------------------------------------------------------------------------------------


def test_the_quarantine_goes_on_after_a_resume(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    first = SafeLoader(DataLoader(Noisy(9, {4: broken}), batch_size=3), on_record=lambda _: None)
    expected = indices(first)
    torch.save(first.state_dict(), file)
    told: list[DataIncident] = []
    second = SafeLoader(
        DataLoader(Noisy(9, {4: lambda: pytest.fail("loaded again")}), batch_size=3),
        on_record=told.append,
    )
    second.load_state_dict(torch.load(file, weights_only=True))
    assert indices(second) == expected
    assert (told, second.quarantined) == ([], first.quarantined)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "quarantine of version None; this surefoot reads 1"),
        ({"version": 2}, "version 2"),
        ({"version": 1, "passes": 0, "suspects": [], "quarantined": [{"what": "x"}]}, "damaged"),
    ],
)
def test_another_state_is_refused(state: dict[str, Any], said: str) -> None:
    loader = SafeLoader(DataLoader(Noisy(3)))
    with pytest.raises(CheckpointError, match=said):
        loader.load_state_dict(state)


def test_the_epoch_is_the_sampler_s_where_it_counts_them() -> None:
    sampler = torch.utils.data.DistributedSampler(Noisy(6), num_replicas=2, rank=0)
    loader = SafeLoader(
        DataLoader(Noisy(6, dict.fromkeys(range(5), broken)), sampler=sampler),
        limit=LOTS,
        on_record=lambda _: None,
    )
    sampler.set_epoch(7)
    next(iter(loader))
    assert {one.epoch for one in loader.quarantined} == {7}


# -- what it cannot protect ----------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class OwnIterators(DataLoader):
    def _get_iterator(self) -> Any:
        return super()._get_iterator()


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (lambda: [1, 2], r"SafeLoader\(list\): expected a DataLoader"),
        (lambda: DataLoader(Stream()), r"Stream is an IterableDataset.*no index.*map-style"),
        (lambda: OwnIterators(Noisy(2)), r"a OwnIterators has iterators of its own"),
    ],
)
def test_what_it_cannot_protect_is_refused(loader: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SafeLoader(loader())


WITHOUT_VISION = """
import sys
for name in ("av", "PIL", "torchvision"):
    sys.modules[name] = None
from surefoot.data import AeroEyes, SHAPES, SafeLoader, letterbox
from surefoot.errors import ConfigError
assert SafeLoader.__module__ == "surefoot.data.quarantine"
for use in (lambda: AeroEyes.open("x"), lambda: list(SHAPES), lambda: letterbox(None, 3)):
    try:
        use()
    except ConfigError as error:
        print(error)
"""


def test_it_needs_no_decoder_of_pictures_and_the_rest_says_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VISION], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "surefoot.data.AeroEyes needs av: pip install 'surefoot[vision]'.",
        "surefoot.data.SHAPES needs PIL: pip install 'surefoot[vision]'.",
        "surefoot.data.letterbox needs PIL: pip install 'surefoot[vision]'.",
    ]


def test_every_name_of_the_vision_parts_has_a_home() -> None:
    tree = ast.parse(inspect.getsource(vision))
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: str(node.module).removeprefix("surefoot.data.")
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == vision._HOME
    assert vision.__all__ == list(vision._HOME)
    for name in vision.__all__:
        assert not isinstance(getattr(vision, name), vision._Missing), name
    with pytest.raises(AttributeError, match="has no attribute 'AeroEye'"):
        _ = vision.AeroEye
