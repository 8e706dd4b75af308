"""A loop that Accelerate drives, with one more line."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

from integrations.conftest import (  # noqa: E402
    BAD,
    BATCH,
    STEPS,
    differing,
    loss_of,
    named_rows,
    net,
    rows,
    tensors,
)
from surefoot.errors import TrainingDiverged, UsageError  # noqa: E402
from surefoot.guard import Policy  # noqa: E402
from surefoot.integrations.accelerate import attach  # noqa: E402
from surefoot.journal import JournalReader  # noqa: E402
from surefoot.records import Cause, Event  # noqa: E402
from surefoot.testing import bad_gradient  # noqa: E402


class Run:
    """Model, optimizer, schedule and loader as a user of Accelerate has them."""

    def __init__(self, *, accumulate=1, scaler=None, fused=False, sgd=False, folder=None, **data):
        self.accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=accumulate, project_dir=folder
        )
        if scaler is not None:
            self.accelerator.scaler = scaler
        model = net()
        kind = torch.optim.SGD if sgd else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=1e-2, fused=fused)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)
        loader = DataLoader(TensorDataset(*rows(**data)), batch_size=BATCH)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, optimizer, loader, schedule
        )

    def train(self, *, clip=None, bad_step=None, flip=None):
        for number, (features, labels) in enumerate(self.loader):
            if number == flip:
                with torch.no_grad():
                    self.model[0].weight[0, 0] = math.nan
            with self.accelerator.accumulate(self.model):
                loss = nn.functional.cross_entropy(self.model(features), labels)
                if number == bad_step:
                    with bad_gradient(self.model[3].weight, math.inf):
                        self.accelerator.backward(loss)
                else:
                    self.accelerator.backward(loss)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        return self

    @property
    def rate(self):
        return self.schedule.get_last_lr()[0]


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, None), (1, 0.2), (3, 0.2)])
def test_a_clean_run_is_the_same_to_the_bit(accumulate, clip):
    bare = Run(accumulate=accumulate).train(clip=clip)
    run = Run(accumulate=accumulate)
    with attach(run.accelerator, run.optimizer, run.model) as guard:
        run.train(clip=clip)
        assert guard.report.applied == math.ceil(STEPS / accumulate)
    assert differing(tensors(run.model), tensors(bare.model)) == []
    assert run.rate == bare.rate


def test_a_nan_batch_leaves_no_trace_in_weights_buffers_or_schedule():
    bare = Run(without=BAD).train()
    run = Run(bad=BAD)
    with attach(run.accelerator, run.optimizer, run.model) as guard:
        run.train()
    assert (guard.report.applied, guard.report.refused) == (STEPS - 1, 1)
    assert differing(tensors(run.model), tensors(bare.model)) == []
    assert run.rate == bare.rate


def test_the_record_says_step_cause_and_samples_and_accelerate_calls_the_step_skipped():
    run = Run(bad=0)
    guard = attach(run.accelerator, run.optimizer, run.model)
    features, labels = next(iter(run.loader))
    guard.name_samples(["a", "b", "c", "d"])
    run.accelerator.backward(nn.functional.cross_entropy(run.model(features), labels))
    run.optimizer.step()
    assert (guard.last.step, guard.last.cause) == (0, Cause.NONFINITE_LOSS)
    assert guard.last.sample_ids == ("a", "b", "c", "d")
    assert math.isnan(guard.last.loss)
    assert run.optimizer.step_was_skipped
    assert run.accelerator.optimizer_step_was_skipped
    guard.detach()
    assert not run.accelerator.optimizer_step_was_skipped


def test_the_layer_is_named_though_the_loop_clips_before_the_step():
    run = Run()
    guard = attach(run.accelerator, run.optimizer, run.model)
    run.train(clip=0.2, bad_step=STEPS - 1)
    assert guard.last.cause is Cause.NONFINITE_GRADIENT
    assert [(c.name, c.kind) for c in guard.last.culprits] == [("3.weight", "Inf")]
    guard.detach()


def test_accelerates_own_clipping_gives_the_norm_it_gave():
    bare, run = Run(), Run()
    guard = attach(run.accelerator, run.optimizer, run.model)
    for each in (bare, run):
        features, labels = next(iter(each.loader))
        each.accelerator.backward(nn.functional.cross_entropy(each.model(features), labels))
    parameters = run.model.parameters()
    ours = run.accelerator.clip_grad_norm_(parameters, 0.1)
    theirs = bare.accelerator.clip_grad_norm_(bare.model.parameters(), 0.1)
    assert torch.equal(ours, theirs)
    for a, b in zip(run.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    guard.detach()


def test_surefoot_clips_as_accelerate_would():
    bare = Run(sgd=True).train(clip=0.2)
    run = Run(sgd=True)
    with attach(run.accelerator, run.optimizer, run.model, clip=0.2) as guard:
        run.train()
        assert Event.CLIPPED in guard.last.events
        assert guard.last.grad_norm > 0.2
    for ours, theirs in zip(run.model.parameters(), bare.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_bad_micro_batch_refuses_its_window_and_the_loss_is_the_windows_mean():
    run = Run(accumulate=2, bad=BAD)
    guard = attach(run.accelerator, run.optimizer, run.model)
    run.train()
    assert (guard.report.applied, guard.report.refused) == (STEPS // 2 - 1, 1)
    assert guard.last.micro_batches == 2
    with torch.no_grad():
        expected = nn.functional.cross_entropy(net()(rows()[0][:BATCH]), rows()[1][:BATCH])
    assert guard.last.loss == pytest.approx(float(expected), rel=0.5)
    guard.detach()


@pytest.mark.parametrize("fused", [True, False])
def test_with_a_loss_scale_the_schedule_waits_for_a_refused_step(fused):
    # accelerate#4242: of a fused optimizer Accelerate does not notice that its scaler refused.
    run = Run(bad=BAD, fused=fused, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    guard = attach(run.accelerator, run.optimizer, run.model)
    run.train()
    assert (guard.report.applied, guard.report.refused) == (STEPS - 1, 1)
    assert run.rate == pytest.approx(1e-2 * 0.9 ** (STEPS - 1))
    assert all(torch.isfinite(t).all() for t in tensors(run.model).values())
    assert guard.last.loss < 10.0  # the true loss, not the scaled one
    guard.detach()


def test_counters_and_weights_go_on_after_a_resume(tmp_path):
    whole = Run(bad=BAD)
    first = Run(bad=BAD)
    for each in (whole, first):
        with attach(each.accelerator, each.optimizer, each.model):
            each.train()
            if each is first:
                each.accelerator.save_state(str(tmp_path / "state"))
            else:
                each.train()
    again = Run(bad=BAD)
    with attach(again.accelerator, again.optimizer, again.model) as guard:
        again.accelerator.load_state(str(tmp_path / "state"))
        again.train()
        assert guard.last.step == 2 * STEPS - 1
        assert (guard.last.applied_steps, guard.last.refused_steps) == (2 * STEPS - 2, 2)
    assert differing(tensors(again.model), tensors(whole.model)) == []
    assert again.rate == whole.rate


def test_the_journal_lies_in_the_project_folder_and_a_line_sums_up(tmp_path, capsys, caplog):
    run = Run(bad=BAD, folder=str(tmp_path / "run"))
    with attach(run.accelerator, run.optimizer, run.model):
        run.train()
    journal = JournalReader(tmp_path / "run" / "journal.jsonl")
    assert journal.run["framework"] == "accelerate"
    assert [record.step for record in journal.steps() if record.refused] == [BAD]
    assert capsys.readouterr().err.endswith(
        "surefoot: 7 steps applied, 1 refused (1 nonfinite_loss), 0 rollbacks; the records are in "
        f"{tmp_path / 'run' / 'journal.jsonl'}\n"
    )
    assert "step 3: the step was refused" in caplog.text


def test_a_run_that_diverges_ends_with_everything_taken_off(tmp_path):
    run = Run(bad=BAD, folder=str(tmp_path))
    guard = attach(run.accelerator, run.optimizer, run.model, policy=Policy.strict())
    with pytest.raises(TrainingDiverged) as caught:
        run.train()
    assert caught.value.record.step == BAD
    assert type(run.optimizer) is accelerate.optimizer.AcceleratedOptimizer
    assert "surefoot" not in {*vars(run.accelerator), *vars(run.optimizer.optimizer)}
    assert [entry.kind for entry in JournalReader(guard.report.path)][-1] == "stopped"


def test_after_detaching_a_nan_is_no_longer_refused():
    run = Run(bad=BAD)
    attach(run.accelerator, run.optimizer, run.model).detach()
    assert "backward" not in vars(run.accelerator)
    run.train()
    assert not all(torch.isfinite(t).all() for t in tensors(run.model).values())


def test_with_two_optimizers_each_loss_is_judged_by_the_step_that_follows_it():
    accelerator = accelerate.Accelerator(cpu=True)
    nets = [net(), net()]
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in nets]
    prepared = accelerator.prepare(*nets, *optimizers)
    nets, optimizers = prepared[:2], prepared[2:]
    guards = [
        attach(accelerator, optimizer, each)
        for optimizer, each in zip(optimizers, nets, strict=True)
    ]
    features, labels = rows(bad=0)
    for each, optimizer, start in zip(nets, optimizers, (0, BATCH), strict=True):
        part = slice(start, start + BATCH)
        loss = nn.functional.cross_entropy(each(features[part]), labels[part])
        accelerator.backward(loss)
        optimizer.step()
    assert [g.last.cause for g in guards] == [Cause.NONFINITE_LOSS, Cause.NONE]
    assert math.isfinite(guards[1].last.loss)
    guards[0].detach()
    assert "backward" in vars(accelerator)
    guards[1].detach()
    assert "backward" not in vars(accelerator)


def test_misuse_is_answered_with_what_to_do():
    accelerator = accelerate.Accelerator(cpu=True)
    model = net()
    bare = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"Attach after accelerator\.prepare\(\.\.\.\)"):
        attach(accelerator, bare, model)
    model, optimizer = accelerator.prepare(model, bare)
    with pytest.raises(UsageError, match="none of the optimizer's parameters belongs to this"):
        attach(accelerator, optimizer, net())
    guard = attach(accelerator, optimizer, model)
    with pytest.raises(UsageError, match="guarded already"):
        attach(accelerator, optimizer, model)
    guard.detach()
    assert "backward" not in vars(accelerator)
    attach(accelerator, optimizer, model).detach()


def test_an_engine_that_steps_by_itself_is_refused(monkeypatch):
    run = Run()
    monkeypatch.setattr(
        accelerate.Accelerator, "distributed_type", accelerate.DistributedType.DEEPSPEED
    )
    with pytest.raises(UsageError, match="DEEPSPEED takes its steps inside its own engine"):
        attach(run.accelerator, run.optimizer, run.model)


def test_a_weight_that_goes_bad_is_rolled_back():
    run = Run()
    with attach(run.accelerator, run.optimizer, run.model) as guard:
        run.train(flip=BAD)
    assert (guard.report.refused, guard.report.rollbacks) == (3, 1)
    assert all(torch.isfinite(t).all() for t in tensors(run.model).values())


def _on_a_rank(folder):
    run = Run(bad=BAD, folder=folder)
    with attach(run.accelerator, run.optimizer, run.model) as guard:
        run.train(clip=0.2)
    verdicts = [record.applied for record in JournalReader(guard.report.path).steps()]
    torch.save((verdicts, run.rate, tensors(run.model)), f"{guard.report.path}.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_two_ranks_refuse_what_one_of_them_cannot_bear(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerate.debug_launcher(_on_a_rank, (str(tmp_path),), num_processes=2)
    found = [torch.load(tmp_path / f"journal{rank}.jsonl.pt") for rank in ("", ".rank1")]
    (ours, rate, weights), (theirs, their_rate, their_weights) = found
    assert ours == theirs
    assert ours.count(False) == 1
    assert rate == their_rate
    assert all(torch.isfinite(t).all() for t in weights.values())
    names = [name for name in weights if "running" not in name]
    assert [n for n in names if not torch.equal(weights[n], their_weights[n])] == []


def test_the_pages_snippet_runs(snippet, capsys):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    names = snippet(
        "Accelerate",
        {
            "accelerator": accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2),
            "model": model,
            "optimizer": optimizer,
            "loader": DataLoader(named_rows(), BATCH),
            "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
            "loss_of": loss_of,
        },
    )
    assert names["guard"].last.sample_ids == tuple(f"row {n}" for n in range(24, 32))
    assert "surefoot: 4 steps applied, 0 refused" in capsys.readouterr().err
