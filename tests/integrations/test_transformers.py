"""The Trainer of Transformers, with one more line."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from integrations.conftest import BAD, BATCH, STEPS, differing, net, rows, tensors  # noqa: E402
from surefoot.errors import TrainingDiverged, UsageError  # noqa: E402
from surefoot.guard import Policy  # noqa: E402
from surefoot.integrations.transformers import attach  # noqa: E402
from surefoot.journal import JournalReader  # noqa: E402
from surefoot.records import Cause  # noqa: E402
from surefoot.testing import bad_gradient  # noqa: E402


class Classifier(nn.Module):
    """Takes what the Trainer gives and returns the loss first, as every model there does."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, features, labels=None):
        scores = self.net(features)
        return nn.functional.cross_entropy(scores, labels), scores


class InOrder(transformers.Trainer):
    """Sees the rows in their order, so that two runs see the same batches."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_of(folder, *, trainer=InOrder, data=None, **arguments):
    features, labels = rows(**(data or {}))
    pairs = [{"features": f, "labels": y} for f, y in zip(features, labels, strict=True)]
    settings = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    args = transformers.TrainingArguments(output_dir=str(folder), **{**settings, **arguments})
    return trainer(Classifier(), args, train_dataset=pairs)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_clean_run_is_the_same_to_the_bit(tmp_path, accumulate):
    bare = trainer_of(tmp_path / "a", gradient_accumulation_steps=accumulate)
    bare.train()
    trainer = trainer_of(tmp_path / "b", gradient_accumulation_steps=accumulate)
    guard = attach(trainer)
    trainer.train()
    assert guard.report.applied == math.ceil(STEPS / accumulate)
    assert differing(tensors(trainer.model), tensors(bare.model)) == []
    assert [x.get("loss") for x in trainer.state.log_history] == [
        x.get("loss") for x in bare.state.log_history
    ]


def test_a_nan_batch_leaves_no_trace_in_weights_buffers_or_schedule(tmp_path):
    constant = {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 4}
    bare = trainer_of(tmp_path / "a", data={"without": BAD}, **constant)
    bare.train()
    trainer = trainer_of(tmp_path / "b", data={"bad": BAD}, **constant)
    guard = attach(trainer)
    trainer.train()
    assert (guard.report.applied, guard.report.refused) == (STEPS - 1, 1)
    assert differing(tensors(trainer.model), tensors(bare.model)) == []
    assert trainer.lr_scheduler.get_last_lr() == bare.lr_scheduler.get_last_lr()
    # The host's own counter goes on: it counts batches, not steps that were taken.
    assert trainer.state.global_step == STEPS


class Spoiler(transformers.TrainerCallback):
    """One gradient of one step holds an Inf."""

    def __init__(self, weight, step):
        self._weight, self._step, self._open = weight, step, None

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self._step:
            self._open = bad_gradient(self._weight, math.inf)
            self._open.__enter__()

    def on_optimizer_step(self, args, state, control, **_):
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


@pytest.mark.parametrize("max_grad_norm", [0.2, 0.0])
def test_the_layer_is_named_though_the_trainer_clips_or_measures(tmp_path, max_grad_norm):
    trainer = trainer_of(tmp_path, max_grad_norm=max_grad_norm)
    trainer.add_callback(Spoiler(trainer.model.net[3].weight, BAD))
    guard = attach(trainer)
    trainer.train()
    (refused,) = [r for r in JournalReader(guard.report.path).steps() if r.refused]
    assert (refused.step, refused.cause) == (BAD, Cause.NONFINITE_GRADIENT)
    assert [(c.name, c.kind) for c in refused.culprits] == [("net.3.weight", "Inf")]


def test_surefoot_clips_in_the_place_of_the_trainer(tmp_path):
    settings = {"optim": "sgd", "max_grad_norm": 0.2}
    bare = trainer_of(tmp_path / "a", **settings)
    bare.train()
    trainer = trainer_of(tmp_path / "b", **settings)
    guard = attach(trainer, clip=0.2)
    trainer.train()
    records = list(JournalReader(guard.report.path).steps())
    # Were the gradients clipped before the guard sees them, no norm would be above 0.2.
    assert max(record.grad_norm for record in records) > 0.25
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert logged == pytest.approx([record.grad_norm for record in records])
    for ours, theirs in zip(trainer.model.parameters(), bare.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_window_is_the_mean_of_its_micro_batches(tmp_path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=3)
    guard = attach(trainer)
    with torch.no_grad():
        features, labels = (part[: 3 * BATCH].split(BATCH) for part in rows())
        twin = net()
        pairs = zip(features, labels, strict=True)
        losses = [nn.functional.cross_entropy(twin(x), y) for x, y in pairs]
    trainer.train()
    first = next(JournalReader(guard.report.path).steps())
    assert first.micro_batches == 3
    assert first.loss == pytest.approx(float(torch.stack(losses).mean()))


def test_counters_and_weights_go_on_after_a_resume(tmp_path):
    settings = {
        "save_strategy": "steps",
        "save_steps": 5,
        "num_train_epochs": 2,
        "lr_scheduler_type": "constant",
    }
    whole = trainer_of(tmp_path / "a", data={"bad": BAD}, **settings)
    attach(whole)
    whole.train()
    first = trainer_of(tmp_path / "b", data={"bad": BAD}, max_steps=5, **settings)
    attach(first)
    first.train()
    again = trainer_of(tmp_path / "b", data={"bad": BAD}, **settings)
    guard = attach(again)
    again.train(resume_from_checkpoint=True)
    records = list(JournalReader(guard.report.path).steps())
    assert [record.step for record in records] == list(range(2 * STEPS))
    assert (records[-1].applied_steps, records[-1].refused_steps) == (2 * STEPS - 2, 2)
    assert [e.kind for e in JournalReader(guard.report.path)].count("resumed") == 1
    assert differing(tensors(again.model), tensors(whole.model)) == []


def test_the_same_trainer_trains_twice_and_each_run_is_summed_up(tmp_path, capsys):
    trainer = trainer_of(tmp_path, data={"bad": BAD})
    attach(trainer, journal=False)
    trainer.train()
    trainer.train()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("surefoot")]
    line = "surefoot: 7 steps applied, 1 refused (1 nonfinite_loss), 0 rollbacks"
    assert said == [line, line]


def test_a_run_that_diverges_ends_with_everything_taken_off(tmp_path):
    trainer = trainer_of(tmp_path, data={"bad": BAD})
    guard = attach(trainer, policy=Policy.strict())
    with pytest.raises(TrainingDiverged, match="step 3: the step was refused"):
        trainer.train()
    assert "backward" not in vars(trainer.accelerator)
    assert [entry.kind for entry in JournalReader(guard.report.path)][-1] == "stopped"


def test_after_detaching_the_trainer_is_its_own_again(tmp_path):
    trainer = trainer_of(tmp_path, data={"bad": BAD})
    guard = attach(trainer)
    guard.detach()
    assert vars(trainer).keys().isdisjoint({"create_optimizer", "train"})
    assert guard not in trainer.callback_handler.callbacks
    trainer.train()
    assert not all(torch.isfinite(t).all() for t in tensors(trainer.model).values())


def test_a_second_attach_is_answered_with_what_to_do(tmp_path):
    trainer = trainer_of(tmp_path)
    attach(trainer)
    with pytest.raises(UsageError, match=r"guarded already; one attach\(trainer\) is enough"):
        attach(trainer)


def test_deepspeed_is_refused(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(UsageError, match="DeepSpeed takes its steps inside its own engine"):
        attach(trainer)


class Flip(transformers.TrainerCallback):
    """One weight becomes NaN between two steps."""

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step == BAD:
            with torch.no_grad():
                model.net[0].weight[0, 0] = math.nan


def test_a_weight_that_goes_bad_is_rolled_back(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.add_callback(Flip())
    guard = attach(trainer)
    trainer.train()
    assert (guard.report.refused, guard.report.rollbacks) == (3, 1)
    assert all(torch.isfinite(t).all() for t in tensors(trainer.model).values())


def test_the_pages_snippet_runs(tmp_path, snippet, capsys):
    like = trainer_of(tmp_path)
    names = {"Trainer": InOrder, "model": like.model, "arguments": like.args}
    snippet("Transformers", {**names, "data": like.train_dataset})
    assert "surefoot: 8 steps applied, 0 refused" in capsys.readouterr().err
