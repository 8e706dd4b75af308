"""Faults that nobody asked for, and that a guard has every reason to fear."""

from __future__ import annotations

from benchmarks.chaos import disk, strikes
from benchmarks.chaos.fault import (
    DAMAGE,
    NANS,
    RESUMES,
    SPIKES,
    SPIKES_SAID,
    Entry,
    Expect,
    Fault,
    Plan,
    Setting,
    Struck,
    a_file,
    a_rank,
    a_rate,
    any_place,
    only_samples,
    tensor,
)

__all__ = ["fears"]

_INF, _NAN = float("inf"), float("nan")
_NAN_OR_INF = "nonfinite_loss nonfinite_gradient norm_overflow"


def fears(plan: Plan) -> list[Fault]:
    """All of them, struck by this plan."""
    return [*_state(plan), *_timing(plan), *_losses(plan), *_rates(plan), *_world(plan)]


def _state(plan: Plan) -> list[Fault]:
    at = plan.at
    soon = range(at, at + 60)
    return [
        Fault(
            key="19",
            title="NaN in BatchNorm's running_var",
            strike=lambda: [strikes.BufferValue(at)],
            expect=Expect.of("rolled_back buffers_mended", soon, tensor("norm.running_var")),
            text=NANS,
            setting=Setting(batchnorm=True),
        ),
        Fault(
            key="20",
            title="exp_avg_sq of one tensor set to 0",
            strike=lambda: [
                strikes.MomentValue(at, 0.0, key="exp_avg_sq", everywhere=True),
            ],
            expect=Expect.of(SPIKES_SAID, soon, any_place),
            text=SPIKES,
        ),
        Fault(
            key="21",
            title="exp_avg_sq negative in one element",
            strike=lambda: [strikes.MomentValue(at, -1e-3, key="exp_avg_sq")],
            expect=Expect.of("rolled_back", soon, tensor("fc1.weight", "exp_avg_sq of fc1.weight")),
            text=NANS,
        ),
        Fault(
            key="22",
            title="one weight NaN and one NaN batch at the same step",
            strike=lambda: [strikes.WeightValue(at, _NAN), strikes.BadInput([at])],
            expect=Expect.of("rolled_back", soon, tensor("fc1.weight")),
            text=NANS,
        ),
        Fault(
            key="23",
            title="one weight set to NaN at the last step",
            strike=lambda: [strikes.WeightValue(plan.steps - 1, _NAN)],
            expect=Expect.of("rolled_back", range(plan.steps - 1, plan.steps + 1), any_place),
            text=NANS,
        ),
        *_finite(plan),
    ]


def _finite(plan: Plan) -> list[Fault]:
    at = plan.at
    soon = range(at, at + 60)
    return [
        Fault(
            key="24",
            title="a weight of the first layer set to 1e30",
            strike=lambda: [strikes.WeightValue(at, 1e30, parameter="conv.weight")],
            expect=Expect.of("rolled_back", soon, tensor("conv.weight")),
            text=SPIKES,
        ),
        Fault(
            key="25",
            title="one weight set to 100, a bit flip that is not absurd",
            strike=lambda: [strikes.WeightValue(at, 100.0)],
            expect=Expect.of(SPIKES_SAID, soon, any_place),
            text=SPIKES,
        ),
        Fault(
            key="26",
            title="a layer frozen by mistake",
            strike=lambda: [strikes.Freeze(at)],
            expect=Expect.of("no_gradient silent_parameter", soon, tensor("fc1.weight")),
            text="frozen|no grad|requires_grad",
        ),
    ]


def _timing(plan: Plan) -> list[Fault]:
    at, last = plan.at, plan.steps
    near = range(at, at + 1)
    weight = tensor("fc1.weight")
    return [
        Fault(
            key="27",
            title="NaN in gradients every other step",
            strike=lambda: [strikes.Gradient(range(at, last, 2))],
            expect=Expect.of("nonfinite_gradient", near, weight),
            text=NANS,
        ),
        Fault(
            key="28",
            title="NaN input batch at the very first step",
            strike=lambda: [strikes.BadInput([0])],
            expect=Expect.of(_NAN_OR_INF, range(1), only_samples),
            text=NANS,
        ),
        Fault(
            key="29",
            title="NaN input batch at the last step",
            strike=lambda: [strikes.BadInput([last - 1])],
            expect=Expect.of(_NAN_OR_INF, range(last - 1, last), only_samples),
            text=NANS,
        ),
        Fault(
            key="30",
            title="one NaN sample in one batch",
            strike=lambda: [strikes.BadInput([at], place=9)],
            expect=Expect.of(_NAN_OR_INF, near, only_samples),
            text=NANS,
        ),
        Fault(
            key="31",
            title="one sample NaN in every epoch",
            strike=lambda: [strikes.BadSample(321)],
            expect=Expect.of(_NAN_OR_INF, range(plan.steps), only_samples),
            text=NANS,
        ),
        Fault(
            key="32",
            title="9 fp16 overflows in a row",
            strike=lambda: [strikes.Gradient(range(at, at + 9), _INF)],
            expect=Expect.of("overflow", near, weight),
            text=NANS,
            setting=Setting(fp16=True),
        ),
        Fault(
            key="33",
            title="gradients x1000 for one step",
            strike=lambda: [strikes.Gradient([at], times=1000.0, parameter=None)],
            expect=Expect.of(SPIKES_SAID, near, any_place),
            text=SPIKES,
        ),
    ]


def _losses(plan: Plan) -> list[Fault]:
    at = plan.at
    near, while_long = range(at, at + 1), range(at, at + 20)
    return [
        Fault(
            key="34",
            title="loss x10 in one batch",
            strike=lambda: [strikes.BadLoss([at], times=10.0)],
            expect=Expect.of(SPIKES_SAID, near, any_place),
            text=SPIKES,
        ),
        Fault(
            key="35",
            title="loss Inf in one batch (a class weight)",
            strike=lambda: [strikes.BadLoss([at], times=_INF)],
            expect=Expect.of(_NAN_OR_INF, near, any_place),
            text=NANS,
        ),
        Fault(
            key="36",
            title="the loss is a constant for 20 steps",
            strike=lambda: [strikes.BadLoss(while_long)],
            expect=Expect.of("no_gradient stopped", while_long, _says_no_gradient),
            text="no grad|constant|does not require|plateau",
        ),
        Fault(
            key="37",
            title="all gradients zero for 20 steps",
            strike=lambda: [strikes.Gradient(while_long, times=0.0, parameter=None)],
            expect=Expect.of("gradient_zero", while_long, any_place),
            text="zero|vanish|no grad",
        ),
        Fault(
            key="38",
            title="zero_grad forgotten for 50 steps",
            strike=lambda: [strikes.Forget(range(at, at + 50))],
            expect=Expect.of("gradients_kept", range(at, at + 50), any_place),
            text="zero_grad|stale|spike|explo",
        ),
    ]


def _rates(plan: Plan) -> list[Fault]:
    at = plan.at
    while_long = 3 * plan.eighth
    return [
        Fault(
            key="39",
            title="learning rate 0 for 50 steps",
            strike=lambda: [strikes.Rate(lambda n: 0.0 if at <= n < at + 50 else 1.0)],
            expect=Expect.of("zero_rate", range(at, at + 50), a_rate),
            text="learning rate",
        ),
        Fault(
            key="40",
            title="learning rate x1.05 a step for three eighths of the run",
            strike=lambda: [
                strikes.Rate(lambda n: 1.05 ** (n - at) if at <= n < at + while_long else 1.0)
            ],
            expect=Expect.of(SPIKES_SAID, range(at, at + while_long + 20), a_rate),
            text=SPIKES,
        ),
    ]


def _world(plan: Plan) -> list[Fault]:
    at, every = plan.at, plan.epoch
    kill = lambda: [strikes.Kill(at + plan.eighth)]  # noqa: E731
    return [
        Fault(
            key="41",
            title="DDP: one weight 1.0 larger on one of two ranks (a silent bit flip)",
            strike=lambda: [strikes.WeightValue(at, 1.0, rank=1)],
            expect=Expect.of(
                "ranks_differ replicas_differ rolled_back", range(at, plan.steps), _rank_and_weight
            ),
            text="differ|mismatch|diverge",
            setting=Setting(world=2),
        ),
        Fault(
            key="42",
            title="DDP: one weight NaN on one of two ranks",
            strike=lambda: [strikes.WeightValue(at, _NAN, rank=1)],
            expect=Expect.of("rolled_back", range(at, at + 60), _rank_and_weight),
            text=NANS,
            setting=Setting(world=2),
        ),
        Fault(
            key="43",
            title="a DataLoader worker killed",
            strike=lambda: [strikes.KillWorker(123)],
            expect=Expect.of("quarantine worker_died", range(plan.steps), _a_worker),
            text="worker",
            setting=Setting(workers=2),
        ),
        Fault(
            key="44",
            title="killed in the middle of a checkpoint save, then auto-resume",
            strike=lambda: [disk.DieWhileSaving(range(at - 1, at), 2**18)],
            expect=Expect.of("continued", range(plan.steps), a_file),
            text=RESUMES,
            checkpoint_every=every,
            lives=2,
        ),
        Fault(
            key="45",
            title="one bit flipped in the newest checkpoint, then auto-resume",
            strike=kill,
            expect=Expect.of("checkpoint_rejected", range(plan.steps), a_file),
            text=DAMAGE,
            checkpoint_every=every,
            lives=2,
            damage="bit",
        ),
    ]


def _says_no_gradient(entry: Entry, struck: Struck) -> bool:
    """The loss has no history, or no parameter got a gradient."""
    return "gradient" in str(entry.get("message", "")) or any_place(entry, struck)


def _rank_and_weight(entry: Entry, struck: Struck) -> bool:
    return a_rank(1)(entry, struck) and tensor("fc1.weight")(entry, struck)


def _a_worker(entry: Entry, struck: Struck) -> bool:
    """A worker or a sample."""
    return "worker" in str(dict(entry)).lower() or bool(entry.get("sample_ids"))
