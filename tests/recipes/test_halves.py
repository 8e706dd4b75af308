"""Memory that runs out: the step is computed in halves, and nothing else changes."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surefoot import Guard, LossTerms, Policy
from surefoot.errors import ConfigError, UsageError
from surefoot.guard import Halved, Halves, TooLarge, step_in_halves
from surefoot.guard.out_of_memory import is_out_of_memory
from surefoot.guard.splits import Piece, halve
from surefoot.journal import JournalReader
from surefoot.recipes.refdet.build import Plan
from surefoot.recipes.refdet.halves import EpisodeSplit
from surefoot.recipes.refdet.learner import Learner
from surefoot.recipes.refdet.sources import open_sources
from surefoot.recipes.refdet.train import train
from surefoot.shapes import Episode


def no_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Small(nn.Module):
    """A network on a device that holds so many samples: forward, and backward, where it says so."""

    def __init__(self, *, holds: int = 99, backward_holds: int = 99, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 4)
        )
        self.head = nn.Linear(4, 1)
        self.holds, self.backward_holds = holds, backward_holds
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        between = self.body(x)  # so that statistics and random numbers have moved
        if len(x) > self.holds:
            no_memory()
        if len(x) > self.backward_holds and between.requires_grad:
            between.register_hook(no_memory)  # the head's gradient is there already
        return self.head(between)

    def loss(self, x: Tensor) -> Tensor:
        return self(x).square().mean()


def alike(**settings: Any) -> tuple[Small, Small]:
    """Two networks with the same weights; the first one is on the small device."""
    torch.manual_seed(3)
    free = Small(dropout=settings.get("dropout", 0.0))
    small = Small(**settings)
    small.load_state_dict(free.state_dict())
    return small, free


def by_hand(model: Small, x: Tensor, sizes: Sequence[int], share: float = 1.0) -> None:
    for piece in x.split(list(sizes)):
        (model.loss(piece) * (len(piece) / len(x)) * share).backward()


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b), name


OUT = {"forward": "holds", "backward": "backward_holds"}


@pytest.mark.parametrize("where", OUT)
@pytest.mark.parametrize(("holds", "sizes"), [(4, (4, 4)), (2, (2, 2, 2, 2)), (6, (4, 4))])
def test_gradients_statistics_and_random_numbers_are_those_of_an_accumulation_by_hand(
    where: str, holds: int, sizes: Sequence[int]
) -> None:
    small, free = alike(**{OUT[where]: holds, "dropout": 0.5})
    x, told = torch.randn(8, 3), list[Halved]()
    torch.manual_seed(11)
    terms = Halves(small, on_halved=told.append).backward(small.loss, x)
    after = torch.rand(3)
    torch.manual_seed(11)
    by_hand(free, x, sizes)
    assert torch.equal(after, torch.rand(3))
    assert_same(small, free)
    assert not terms.total.requires_grad
    assert [one.sizes for one in told] == [sizes]
    assert told[0].problem == "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize("where", OUT)
def test_a_window_whose_later_micro_batch_does_not_fit_loses_nothing(where: str) -> None:
    small, free = alike(**{OUT[where]: 4, "dropout": 0.5})
    batches = [torch.randn(n, 3) for n in (4, 3, 6, 2)]
    halves = Halves(small)
    torch.manual_seed(5)
    for batch in batches:
        halves.backward(small.loss, batch)
    torch.manual_seed(5)
    for batch, sizes in zip(batches, [(4,), (3,), (3, 3), (2,)], strict=True):
        by_hand(free, batch, sizes)
    assert_same(small, free)


@pytest.mark.parametrize("where", OUT)
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_a_guarded_run_is_the_one_that_accumulates_by_hand(where: str, amp: Any) -> None:
    small, free = alike(**{OUT[where]: 4})
    policy = Policy.conservative()
    guards = [
        Guard(m, torch.optim.SGD(m.parameters(), lr=0.05), accumulate=2, amp=amp, policy=policy)
        for m in (small, free)
    ]
    halves, records = Halves(small), []
    for step in range(6):
        x = torch.randn(6 if step == 3 else 4, 3)
        records.append(step_in_halves(guards[0], halves, small.loss, x, sample_ids=["a"]))
        assert halves.pieces == (2 if step == 3 else 1)
        pieces = x.split(3) if step == 3 else [x]
        with guards[1].autocast():
            parts = [free.loss(piece) for piece in pieces]
        total = torch.stack(parts).mean() if len(parts) > 1 else parts[0]
        guards[1].step(total)
    assert [r.verdict.value for r in records] == ["accumulated", "applied"] * 3
    assert all(not r.events or {e.value for e in r.events} <= {"clipped"} for r in records)
    assert records[3].sample_ids == ("a", "a")
    near = {"rtol": 2e-2, "atol": 2e-3} if amp else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(small.state_dict(), free.state_dict(), **near)


def test_a_refusal_in_pieces_leaves_no_trace() -> None:
    small, _ = alike(holds=2)
    guard = Guard(small, torch.optim.SGD(small.parameters(), lr=0.1))
    halves = Halves(small)
    step_in_halves(guard, halves, small.loss, torch.randn(4, 3))
    before = copy.deepcopy(small.state_dict())
    x = torch.randn(4, 3)
    x[3] = torch.nan
    assert step_in_halves(guard, halves, small.loss, x).refused
    torch.testing.assert_close(small.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in small.parameters())


def test_a_size_that_did_not_fit_is_not_tried_again_at_once() -> None:
    small, _ = alike(holds=4)
    halves, told = Halves(small), list[Halved]()
    halves._on_halved = told.append
    for _ in range(3):
        small.zero_grad()
        halves.backward(small.loss, torch.randn(8, 3))
    assert small.seen == [8, 4, 4, 4, 4, 4, 4]
    assert [one.tried for one in told] == [True, False, False]
    halves.backward(small.loss, torch.randn(6, 3))
    assert small.seen[7:] == [6, 3, 3]  # smaller than what did not fit: it was tried
    for _ in range(100):
        small.zero_grad()
        halves.backward(small.loss, torch.randn(8, 3))
    assert Counter(small.seen[7:])[8] == 1


@pytest.mark.parametrize("where", OUT)
def test_the_graph_of_the_failed_attempt_is_gone_before_the_next_one(where: str) -> None:
    small, _ = alike(**{OUT[where]: 4})
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def compute(x: Tensor) -> Tensor:
        alive.append(sum(ref() is not None for ref in kept))
        activation = small.body[0](x).exp()
        kept.append(weakref.ref(activation))  # saved for the backward pass by exp
        return small.loss(x) + activation.mean()

    gc.disable()
    try:
        guard = Guard(small, torch.optim.SGD(small.parameters(), lr=0.1))
        step_in_halves(guard, Halves(small), compute, torch.randn(8, 3))
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_what_is_smallest_and_does_not_fit_ends_with_the_sizes() -> None:
    model = nn.Linear(3, 1)

    def compute(x: Tensor) -> Tensor:
        return model(x).mean() if len(x) > 9 else no_memory()

    with pytest.raises(
        TooLarge, match=r"of a batch of 5 samples not even a piece of 1 fits.*2\.00 GiB\. Take smal"
    ) as ended:
        Halves(model).backward(compute, torch.randn(5, 3))
    assert isinstance(ended.value, torch.OutOfMemoryError)
    assert isinstance(ended.value, ConfigError)


def test_other_errors_pass() -> None:
    small, _ = alike()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Halves(small).backward(small.loss, torch.randn(4, 5))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_allocators_that_say_it_by_a_plain_error_are_understood(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError(said))


def test_batches_of_many_kinds_are_cut() -> None:
    x = torch.arange(5)
    first, second = halve({"x": x, "names": list("abcde"), "rate": 0.5, "one": torch.tensor(1)})
    assert (first.batch["x"].tolist(), second.batch["x"].tolist()) == ([0, 1, 2], [3, 4])
    assert (first.batch["names"], second.batch["names"]) == (list("abc"), list("de"))
    assert (first.batch["rate"], int(second.batch["one"])) == (0.5, 1)
    assert (first.size, first.weight) == (3, 0.6)
    targets = [{"boxes": torch.ones(n, 4)} for n in range(5)]
    _, second = halve((x, targets))
    assert [len(target["boxes"]) for target in second.batch[1]] == [3, 4]
    assert halve(torch.ones(1, 3)) == []


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (["a"], "no tensors"),
        ((torch.ones(2), torch.ones(3)), r"tensors of \[2, 3\] rows"),
        ({"images": [torch.ones(3, 2, 2)] * 2}, "a list of tensors"),
    ],
)
def test_a_batch_whose_samples_nobody_can_tell_is_refused(batch: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said + r".*split="):
        halve(batch)


# -- RefDet --------------------------------------------------------------------------------------


@pytest.fixture
def learner_and_episode(tiny_config: Callable[..., Any], tmp_path: Path) -> tuple[Learner, Episode]:
    config = tiny_config(tmp_path / "a")
    config = replace(
        config,
        episode=replace(config.episode, n_query=4),
        loss=replace(config.loss, absence_weight=1.0),
    )
    torch.manual_seed(0)
    learner = Learner(config, Plan(3, 6, 1), torch.device("cpu"), None)
    return learner, open_sources(config).episodes[0]


def pieces_of(learner: Learner, episode: Episode, depth: int) -> list[Piece]:
    strides, assign = learner.model.config.backbone.strides, learner.criterion.config.assign
    pieces, split = [Piece(episode, len(episode.images))], EpisodeSplit(strides, assign)
    for _ in range(depth):
        pieces = [q.within(p.weight) for p in pieces for q in split(p.batch) or [p]]
    return pieces


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("empty", [(), (0, 1, 2, 3), tuple(range(8))])
def test_without_batch_statistics_the_pieces_of_an_episode_add_up_to_it(
    learner_and_episode: tuple[Learner, Episode], depth: int, empty: Sequence[int]
) -> None:
    learner, episode = learner_and_episode
    keep = ~torch.isin(episode.box_image, torch.tensor(empty))
    rows = ("boxes", "box_image", "box_object", "ignore")
    episode = replace(episode, **{name: getattr(episode, name)[keep] for name in rows})
    learner.model.eval()
    whole = learner.terms(episode)
    pieces = pieces_of(learner, episode, depth)
    assert sum(piece.size for piece in pieces) == 8
    assert [i for p in pieces for i in p.batch.sample_ids] == list(episode.sample_ids)
    parts = [learner.terms(piece.batch) for piece in pieces]
    for name, value in whole.values.items():
        added = sum(p.weight[name] * t.values[name] for p, t in zip(pieces, parts, strict=True))
        torch.testing.assert_close(added, value, msg=name, rtol=1e-4, atol=1e-5)


def test_one_scene_is_not_cut(learner_and_episode: tuple[Learner, Episode]) -> None:
    learner, episode = learner_and_episode
    (one,) = (p for p in pieces_of(learner, episode, 3)[:1])
    assert len(one.batch.images) == 1
    assert len(pieces_of(learner, one.batch, 1)) == 1


def test_a_run_on_too_small_a_device_goes_on_in_pieces_and_says_so(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Learner.terms

    def on_a_small_device(self: Learner, episode: Episode) -> LossTerms:
        if len(episode.images) > 2:
            no_memory()
        return terms(self, episode)

    monkeypatch.setattr(Learner, "terms", on_a_small_device)
    config, said = tiny_config(tmp_path / "a", max_steps=2, val_interval=9), io.StringIO()
    config = replace(config, data=replace(config.data, val_data_root=None))
    train(config, open_sources(config), stream=said)
    entries = list(JournalReader(tmp_path / "a" / "journal.jsonl"))
    halved = [entry.values for entry in entries if entry.kind == "halved"]
    assert [(one["pieces"], one["sizes"]) for one in halved] == [(2, [2, 2])]
    assert [e.values["pieces"] for e in entries if e.kind == "step"] == [2, 2]
    assert said.getvalue().count("computed in 2 pieces (2 + 2 samples)") == 1
