"""Lightning's Trainer, with one callback."""

from __future__ import annotations

import math
import pickle
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

import surefoot  # noqa: E402
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
from surefoot.errors import ConfigError, TrainingDiverged, UsageError  # noqa: E402
from surefoot.guard import Policy  # noqa: E402
from surefoot.integrations.lightning import GuardCallback  # noqa: E402
from surefoot.journal import JournalReader  # noqa: E402
from surefoot.records import Cause, Event  # noqa: E402
from surefoot.testing import bad_gradient  # noqa: E402


class Module(lightning.LightningModule):
    """One optimizer, one schedule that moves at every step."""

    def __init__(self, *, spoil=None, sgd=False, fused=False):
        super().__init__()
        self.net = net()
        self.spoil, self.sgd, self.fused = spoil, sgd, fused
        self._open = None

    def training_step(self, batch, number):
        if number == self.spoil:
            self._open = bad_gradient(self.net[3].weight, math.inf)
            self._open.__enter__()
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, *_):
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    def configure_optimizers(self):
        kind = torch.optim.SGD if self.sgd else torch.optim.AdamW
        optimizer = kind(self.parameters(), lr=1e-2, fused=self.fused)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(module, *callbacks, data=None, ckpt_path=None, **settings):
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **settings,
    }
    trainer = lightning.Trainer(callbacks=list(callbacks), **settings)
    loader = DataLoader(TensorDataset(*rows(**(data or {}))), batch_size=BATCH)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def rate_of(trainer):
    return trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0]


# Lightning's own: one from a torch newer than it, one on machines with more cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (1, 0.2), (3, 0.2)])
def test_a_clean_run_is_the_same_to_the_bit(accumulate, clip):
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    bare, module = Module(), Module()
    plain = fit(bare, **settings)
    callback = GuardCallback()
    trainer = fit(module, callback, **settings)
    assert callback.report.applied == math.ceil(STEPS / accumulate)
    assert differing(tensors(module), tensors(bare)) == []
    assert rate_of(trainer) == rate_of(plain)


def test_a_nan_batch_leaves_no_trace_in_weights_buffers_or_schedule():
    bare, module, callback = Module(), Module(), GuardCallback()
    plain = fit(bare, data={"without": BAD})
    trainer = fit(module, callback, data={"bad": BAD})
    assert (callback.report.applied, callback.report.refused) == (STEPS - 1, 1)
    assert differing(tensors(module), tensors(bare)) == []
    assert rate_of(trainer) == rate_of(plain)
    # The host's own counter goes on: it counts batches, not steps that were taken.
    assert trainer.global_step == STEPS


def test_the_record_says_step_cause_and_batch(tmp_path):
    fit(Module(), GuardCallback(journal=tmp_path / "j.jsonl"), data={"bad": BAD})
    journal = JournalReader(tmp_path / "j.jsonl")
    assert journal.run["framework"] == "lightning"
    (refused,) = [record for record in journal.steps() if record.refused]
    assert (refused.step, refused.cause) == (BAD, Cause.NONFINITE_LOSS)
    assert refused.sample_ids == (f"epoch 0, batch {BAD}",)
    assert math.isnan(refused.loss)


def test_samples_are_named_by_the_users_function():
    seen = []
    callback = GuardCallback(sample_ids=lambda batch: [str(int(y)) for y in batch[1]])
    fit(Module(), callback, Watch(lambda: seen.append(callback.attachments[0].last)))
    assert seen[-1].sample_ids == tuple(str(int(y)) for y in rows()[1][-BATCH:])


class Watch(lightning.Callback):
    """Looks at something after every batch."""

    def __init__(self, look):
        self._look = look

    def on_train_batch_end(self, *_):
        self._look()


def test_the_layer_is_named_though_the_trainer_clips():
    callback, seen = GuardCallback(), []
    watch = Watch(lambda: seen.append(callback.attachments[0].last))
    trainer = fit(Module(spoil=BAD), callback, watch, gradient_clip_val=0.2)
    (refused,) = [record for record in seen if record.refused]
    assert refused.cause is Cause.NONFINITE_GRADIENT
    assert [(c.name, c.kind) for c in refused.culprits] == [("net.3.weight", "Inf")]
    assert trainer.gradient_clip_val == 0.2


def test_surefoot_clips_as_lightning_would():
    bare, module, callback, seen = Module(sgd=True), Module(sgd=True), GuardCallback(clip=0.2), []
    fit(bare, gradient_clip_val=0.2)
    fit(module, callback, Watch(lambda: seen.append(callback.attachments[0].last)))
    assert any(Event.CLIPPED in record.events for record in seen)
    for ours, theirs in zip(module.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_window_is_the_mean_of_its_micro_batches():
    callback, seen = GuardCallback(), []
    watch = Watch(lambda: seen.append(callback.attachments[0].last))
    fit(Module(), callback, watch, accumulate_grad_batches=3)
    twin = net()
    with torch.no_grad():
        features, labels = (part[: 3 * BATCH].split(BATCH) for part in rows())
        pairs = zip(features, labels, strict=True)
        losses = [nn.functional.cross_entropy(twin(x), y) for x, y in pairs]
    assert seen[2].micro_batches == 3
    assert seen[2].loss == pytest.approx(float(torch.stack(losses).mean()))
    assert seen[2].sample_ids == tuple(f"epoch 0, batch {n}" for n in range(3))


@pytest.mark.parametrize("fused", [True, False])
def test_with_a_loss_scale_the_loss_is_the_true_one_and_the_schedule_waits(fused):
    # lightning#15501: of a fused optimizer Lightning itself cannot clip with a scale.
    plugin = lightning.plugins.MixedPrecision(
        "16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)
    )
    callback, seen = GuardCallback(clip=0.2), []
    watch = Watch(lambda: seen.append(callback.attachments[0].last))
    module = Module(fused=fused)
    trainer = fit(module, callback, watch, data={"bad": BAD}, plugins=[plugin])
    assert [n for n, record in enumerate(seen) if record.refused] == [BAD]
    assert all(record.loss < 2.0 for record in seen if record.applied)
    assert rate_of(trainer) == pytest.approx(1e-2 * 0.9 ** (STEPS - 1))
    assert all(torch.isfinite(t).all() for t in tensors(module).values())


@pytest.mark.skipif(
    not hasattr(lightning.callbacks, "EMAWeightAveraging"),
    reason="this version of lightning averages no weights",
)
def test_an_average_of_the_weights_does_not_move_with_a_refused_step():
    def averaging():
        return lightning.callbacks.EMAWeightAveraging(decay=0.5)

    bare = Module()
    fit(bare, averaging(), data={"without": BAD})
    # After the fit a module holds the average; the order of the two callbacks is of no matter.
    for callbacks in ([GuardCallback(), averaging()], [averaging(), GuardCallback()]):
        module = Module()
        fit(module, *callbacks, data={"bad": BAD})
        assert differing(tensors(module), tensors(bare)) == []
        assert not any("should_update" in vars(callback) for callback in callbacks)


@pytest.mark.parametrize("bad", [0, BAD])
def test_counters_weights_and_schedule_go_on_after_a_resume(tmp_path, bad):
    whole, first, again = Module(), Module(), Module()
    fit(whole, GuardCallback(), data={"bad": bad}, max_epochs=2)
    trainer = fit(first, GuardCallback(), data={"bad": bad})
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    callback, seen = GuardCallback(), []
    watch = Watch(lambda: seen.append(callback.attachments[0].last))
    trainer = fit(
        again, callback, watch, data={"bad": bad}, max_epochs=2, ckpt_path=tmp_path / "a.ckpt"
    )
    assert [record.step for record in seen] == list(range(STEPS, 2 * STEPS))
    assert (seen[-1].applied_steps, seen[-1].refused_steps) == (2 * STEPS - 2, 2)
    assert differing(tensors(again), tensors(whole)) == []
    assert rate_of(trainer) == pytest.approx(1e-2 * 0.9 ** (2 * STEPS - 2))


class Pair(lightning.LightningModule):
    """Two nets, two optimizers, two schedules, stepped by hand."""

    def __init__(self, *, closure=False, bad=0):
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second, self.closure, self.bad = net(), net(), closure, bad

    def training_step(self, batch, number):
        schedules = self.lr_schedulers()
        for i, (part, optimizer) in enumerate(
            zip((self.first, self.second), self.optimizers(), strict=True)
        ):
            features = batch[0] if i == self.bad else batch[0].nan_to_num()

            def closure(part=part, features=features, optimizer=optimizer):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(part(features), batch[1])
                self.manual_backward(loss)
                return loss

            if self.closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            schedules[i].step()

    def configure_optimizers(self):
        both = [torch.optim.AdamW(p.parameters(), lr=1e-2) for p in (self.first, self.second)]
        return both, [torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.9) for o in both]


@pytest.mark.parametrize("closure", [False, True])
def test_of_two_optimizers_only_the_one_with_the_bad_loss_is_refused(tmp_path, closure):
    bare, clean, module = Pair(closure=closure), Pair(closure=closure), Pair(closure=closure)
    fit(bare, data={"without": BAD})
    callback = GuardCallback(journal=tmp_path / "j.jsonl")
    trainer = fit(module, callback, data={"bad": BAD})
    assert differing(tensors(module.first), tensors(bare.first)) == []
    rates = [config.scheduler.get_last_lr()[0] for config in trainer.lr_scheduler_configs]
    assert rates == pytest.approx([1e-2 * 0.9 ** (STEPS - 1), 1e-2 * 0.9**STEPS])
    entries = [e for e in JournalReader(tmp_path / "j.jsonl") if e.kind == "step"]
    refused = [
        (e.values["optimizer"], e.values["step"]) for e in entries if "ref" in e.values["verdict"]
    ]
    assert refused == [(0, BAD)]
    losses = [e.number("loss") for e in entries if e.values["optimizer"] == 1]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    fit(clean, GuardCallback())
    bare = Pair(closure=closure)
    fit(bare)
    assert differing(tensors(clean), tensors(bare)) == []


def test_a_refused_step_takes_nothing_back_that_the_other_optimizer_has_moved():
    bare, module = Pair(bad=None), Pair(bad=1)
    fit(bare, data={"bad": BAD})
    fit(module, GuardCallback(), data={"bad": BAD})
    assert differing(tensors(module.first), tensors(bare.first)) == []
    assert differing(tensors(module.second), tensors(bare.second)) != []


def test_a_run_that_diverges_ends_with_everything_taken_off(tmp_path):
    module, callback = Module(), GuardCallback(policy=Policy.strict(), journal=tmp_path / "j.jsonl")
    with pytest.raises(TrainingDiverged, match="step 3: the step was refused"):
        fit(module, callback, data={"bad": BAD})
    assert callback.attachments == ()
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert "surefoot" not in vars(optimizer)
    kinds = [entry.kind for entry in JournalReader(tmp_path / "j.jsonl")]
    assert kinds[-1] == "stopped"


def test_after_a_fit_everything_is_taken_off():
    module, callback = Module(), GuardCallback()
    trainer = fit(module, callback)
    assert type(trainer.lr_scheduler_configs[0].scheduler) is torch.optim.lr_scheduler.StepLR
    assert "surefoot" not in vars(trainer.optimizers[0])


def test_a_callback_that_waits_for_its_fit_can_be_pickled():
    callback = pickle.loads(pickle.dumps(GuardCallback(clip=1.0, policy=Policy.strict())))
    fit(Module(), callback)
    assert callback.report.applied == STEPS


def test_one_callback_serves_one_fit_after_the_other():
    callback, seen = GuardCallback(), []
    watch = Watch(lambda: seen.append(callback.attachments[0].last.step))
    for _ in range(2):
        fit(Module(), callback, watch)
    assert seen == [*range(STEPS), *range(STEPS)]


def test_misuse_is_answered_with_what_to_do():
    class Nothing(Module):
        def configure_optimizers(self):
            return None

    with (
        pytest.warns(UserWarning, match="will run with no optimizer"),
        pytest.raises(UsageError, match=r"Nothing\.configure_optimizers gives no optimizer"),
    ):
        fit(Nothing(), GuardCallback())
    with pytest.raises(
        ConfigError, match=r"gradient_clip_val=0\.5.*would clip one after the other"
    ):
        fit(Module(), GuardCallback(clip=1.0), gradient_clip_val=0.5)

    class Engine(lightning.strategies.SingleDeviceStrategy):
        handles_gradient_accumulation = True

    with pytest.raises(UsageError, match="Engine takes its steps inside its own engine"):
        fit(Module(), GuardCallback(), strategy=Engine("cpu"))

    class Guarded(Module):
        def configure_optimizers(self):
            optimizers, schedules = super().configure_optimizers()
            surefoot.attach(optimizers[0], self)
            return optimizers, schedules

    with pytest.raises(UsageError, match="guarded already"):
        fit(Guarded(), GuardCallback())


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_two_ranks_refuse_what_one_of_them_cannot_bear(tmp_path):
    callback = GuardCallback(journal=tmp_path / "j.jsonl")
    trainer = lightning.Trainer(
        callbacks=[callback],
        strategy="ddp_fork",
        devices=2,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(*rows(bad=BAD)), batch_size=BATCH)
    module = Module()
    trainer.fit(module, loader)
    journals = [JournalReader(tmp_path / name) for name in ("j.jsonl", "j.rank1.jsonl")]
    records = [list(journal.steps()) for journal in journals]
    verdicts = [[record.applied for record in ours] for ours in records]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].count(False) == 1
    refused = [next(record for record in ours if record.refused) for ours in records]
    assert [record.rank for record in refused] == [0, 1]
    assert Cause.NONFINITE_LOSS in {record.cause for record in refused}
    assert all(torch.isfinite(t).all() for t in tensors(module).values())


def test_a_weight_that_goes_bad_is_rolled_back():
    class Flipped(Module):
        def on_train_batch_start(self, batch, number):
            if number == BAD:
                with torch.no_grad():
                    self.net[0].weight[0, 0] = math.nan

    module, callback = Flipped(), GuardCallback()
    fit(module, callback)
    assert (callback.report.refused, callback.report.rollbacks) == (3, 1)
    assert all(torch.isfinite(t).all() for t in tensors(module).values())


def test_the_pages_snippet_runs(snippet, capsys):
    class Named(Module):
        def training_step(self, batch, number):
            return loss_of(self.net, batch)

    quiet = partial(
        lightning.Trainer,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(named_rows(), BATCH)
    snippet("Lightning", {"Trainer": quiet, "module": Named(), "loader": loader})
    records = list(JournalReader("journal.jsonl").steps())
    assert records[-1].sample_ids == ("row 28", "row 29", "row 30", "row 31")
    assert "surefoot: 8 steps applied, 0 refused" in capsys.readouterr().err
