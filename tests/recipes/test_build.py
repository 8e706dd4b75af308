"""From settings to model, groups, schedule and average."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from surefoot.errors import ConfigError
from surefoot.recipes.averages import average_of
from surefoot.recipes.refdet import ModelOptions, OptimizerOptions, RunOptions, TrainConfig
from surefoot.recipes.refdet.build import (
    Plan,
    build_model,
    parameter_groups,
    warmup_cosine,
)
from surefoot.recipes.refdet.learner import Learner

TINY_VIT = ModelOptions(support_encoder="vit_tiny_patch16_224", freeze_support_layers=11)


def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one() -> None:
    model = build_model(TINY_VIT)
    groups = parameter_groups(model, OptimizerOptions())
    grouped = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert len({id(p) for p in grouped}) == len(grouped)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in grouped} == trainable
    assert len(trainable) < len(list(model.parameters()))


def test_the_support_encoder_learns_at_a_tenth_and_vectors_do_not_decay() -> None:
    groups = parameter_groups(build_model(TINY_VIT), OptimizerOptions(lr=1e-3, weight_decay=0.1))
    facts = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert facts == {
        "support": (pytest.approx(1e-4), 0.1),
        "support.1d": (pytest.approx(1e-4), 0.0),
        "rest": (1e-3, 0.1),
        "rest.1d": (1e-3, 0.0),
    }
    for group in groups:
        one_d = str(group["name"]).endswith(".1d")
        assert all((p.ndim < 2) == one_d for p in group["params"])  # type: ignore[attr-defined]


def test_pocket_has_no_slow_group() -> None:
    groups = parameter_groups(build_model(ModelOptions(preset="pocket")), OptimizerOptions())
    assert [group["name"] for group in groups] == ["rest", "rest.1d"]


def test_frozen_blocks_are_as_many_as_asked_for() -> None:
    model = build_model(replace(TINY_VIT, freeze_support_layers=0))
    assert all(p.requires_grad for p in model.support.parameters())


def test_the_schedule_counts_optimizer_steps_not_batches() -> None:
    config = TrainConfig(
        run=RunOptions(epochs=10),
        optimizer=OptimizerOptions(gradient_accumulation=4, warmup_epochs=2.0),
    )
    plan = Plan.of(config, episodes=10)
    assert (plan.steps_per_epoch, plan.total_steps, plan.warmup_steps) == (3, 30, 6)
    factor = warmup_cosine(plan)
    assert [factor(0), factor(5), factor(6)] == pytest.approx([1 / 6, 1.0, 1.0])
    assert factor(30) == pytest.approx(0.01)
    assert all(factor(s) > factor(s + 1) for s in range(6, 30))


def test_warm_up_is_at_most_half_of_the_run() -> None:
    config = TrainConfig(run=RunOptions(epochs=1), optimizer=OptimizerOptions(warmup_epochs=3.0))
    assert Plan.of(config, episodes=10).warmup_steps == 5


def test_max_steps_sets_the_length_and_the_end_of_the_cosine() -> None:
    plan = Plan.of(TrainConfig(run=RunOptions(epochs=100, max_steps=25)), episodes=10)
    assert (plan.epochs, [plan.steps_in(epoch) for epoch in range(3)]) == (3, [10, 10, 5])
    assert warmup_cosine(plan)(25) == pytest.approx(0.01)


def test_the_average_warms_up_and_copies_counters() -> None:
    model = nn.BatchNorm1d(2)
    averaged = average_of(model, 0.999)
    averaged.update_parameters(model)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.num_batches_tracked.fill_(7)
    averaged.update_parameters(model)
    share = 1 - (1 + 1) / (10 + 1)
    assert averaged.module.weight[0].item() == pytest.approx(1.0 + 2.0 * share)
    assert averaged.module.num_batches_tracked.item() == 7
    for _ in range(20_000):
        averaged.n_averaged += 1
    before = averaged.module.weight[0].item()
    averaged.update_parameters(model)
    assert averaged.module.weight[0].item() == pytest.approx(before + 0.001 * (3.0 - before))


def test_without_an_average_the_raw_weights_are_measured() -> None:
    config = TrainConfig(
        model=ModelOptions(preset="pocket"), optimizer=OptimizerOptions(ema_decay=0.0)
    )
    learner = Learner(config, Plan(1, 1, 0), torch.device("cpu"), None)
    assert learner.evaluated == ("model", learner.model)
    assert set(learner.weights()) == {"model"}


def test_a_state_of_other_groups_is_refused() -> None:
    pocket = TrainConfig(model=ModelOptions(preset="pocket"))
    learner = Learner(pocket, Plan(1, 1, 0), torch.device("cpu"), None)
    state = learner.state_dict()
    state["optimizer"]["param_groups"] = state["optimizer"]["param_groups"][:1]
    with pytest.raises(ConfigError, match=r"does not fit .*start anew with --checkpoint"):
        learner.load_state_dict(state)


def test_cosine_never_leaves_its_range() -> None:
    factor = warmup_cosine(Plan(7, 70, 9))
    assert all(0.01 <= factor(step) <= 1.0 and math.isfinite(factor(step)) for step in range(200))
