"""The eighteen faults, with the variants of some of them."""

from __future__ import annotations

from benchmarks.chaos import disk, strikes
from benchmarks.chaos.fault import (
    DAMAGE,
    NANS,
    NO_ROOM,
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
    a_sample,
    only_samples,
    tensor,
)

__all__ = ["BATCHNORM", "eighteen"]

BATCHNORM = ("1", "2", "3", "4", "6", "15", "17b")
"""Faults that are run again with a BatchNorm in the model: those that a forward pass carries."""
_NAN_OR_INF = "nonfinite_loss nonfinite_gradient norm_overflow"
_INF = float("inf")


def eighteen(plan: Plan) -> list[Fault]:
    """All of them, struck by this plan."""
    return [*_numbers(plan), *_state(plan), *_data(plan), *_disk(plan), *_setups(plan)]


def _numbers(plan: Plan) -> list[Fault]:
    at, last = plan.at, plan.steps
    near = range(at, at + 1)
    return [
        Fault(
            key="1",
            title="one NaN input batch",
            strike=lambda: [strikes.BadInput([at])],
            expect=Expect.of(_NAN_OR_INF, near, only_samples),
            text=NANS,
        ),
        Fault(
            key="2",
            title="one batch with inputs x1e6",
            strike=lambda: [strikes.BadInput([at], times=1e6)],
            expect=Expect.of(f"{SPIKES_SAID} batch_outlying {_NAN_OR_INF}", near, a_sample),
            text=SPIKES,
        ),
        Fault(
            key="3",
            title="inf in one parameter's gradient, once",
            strike=lambda: [strikes.Gradient([at], _INF)],
            expect=Expect.of("nonfinite_gradient", near, tensor("fc1.weight")),
            text=NANS,
        ),
        Fault(
            key="4",
            title="NaN in gradients every 7th step",
            strike=lambda: [strikes.Gradient(range(at, last, 7))],
            expect=Expect.of("nonfinite_gradient", near, tensor("fc1.weight")),
            text=NANS,
        ),
        Fault(
            key="5",
            title="learning rate x1000 for 5 steps",
            strike=lambda: [strikes.Rate(lambda n: 1000.0 if at <= n < at + 5 else 1.0)],
            expect=Expect.of(f"rate_jumped {SPIKES_SAID}", range(at, at + 30), a_rate),
            text=SPIKES,
        ),
    ]


def _state(plan: Plan) -> list[Fault]:
    at = plan.at
    soon = range(at, at + 60)
    weight = tensor("fc1.weight")
    return [
        Fault(
            key="6",
            title="one weight set to NaN",
            strike=lambda: [strikes.WeightValue(at, float("nan"))],
            expect=Expect.of("rolled_back", soon, weight),
            text=NANS,
        ),
        Fault(
            key="7",
            title="one weight set to 1e30 (bit flip)",
            strike=lambda: [strikes.WeightValue(at, 1e30)],
            expect=Expect.of("rolled_back", soon, weight),
            text=SPIKES,
        ),
        Fault(
            key="8",
            title="optimizer exp_avg of one tensor set to NaN",
            strike=lambda: [strikes.MomentValue(at, float("nan"))],
            expect=Expect.of("rolled_back", soon, tensor("exp_avg of fc1.weight")),
            text=NANS,
        ),
    ]


def _data(plan: Plan) -> list[Fault]:
    at = plan.at
    return [
        Fault(
            key="9",
            title="uniform random labels for 20 batches",
            strike=lambda: [strikes.RandomLabels(range(at, at + 20))],
            expect=Expect.of(SPIKES_SAID, range(at, at + 20), a_sample),
            text=SPIKES,
        ),
        Fault(
            key="10",
            title="label index out of range in one batch",
            strike=lambda: [strikes.WrongLabel(at)],
            expect=Expect.of("quarantine", range(at - 1, at + 1), a_sample),
            text=r"out of (bounds|range)",
        ),
        Fault(
            key="11",
            title="exception in __getitem__, once",
            strike=lambda: [strikes.SampleRaises(at)],
            expect=Expect.of("quarantine", range(at - 1, at + 1), a_sample),
            text="truncated",
        ),
    ]


def _disk(plan: Plan) -> list[Fault]:
    at, end, every = plan.at, plan.steps, plan.epoch
    killed = at + plan.eighth
    kill = lambda: [strikes.Kill(killed)]  # noqa: E731
    went_on = Expect.of("continued", range(end), a_file)
    inside = 3 * plan.steps // 16
    return [
        Fault(
            key="12",
            title="SIGKILL, auto-resume (checkpoint at an epoch end)",
            strike=kill,
            expect=went_on,
            text=RESUMES,
            checkpoint_every=every,
            lives=2,
        ),
        Fault(
            key="12b",
            title="SIGKILL, auto-resume (checkpoint inside an epoch)",
            strike=kill,
            expect=went_on,
            text=RESUMES,
            checkpoint_every=inside,
            lives=2,
            counts=False,
        ),
        Fault(
            key="13",
            title="newest checkpoint cut to half, then auto-resume",
            strike=kill,
            expect=Expect.of("checkpoint_rejected", range(end), a_file),
            text=DAMAGE,
            checkpoint_every=every,
            lives=2,
            damage="cut",
        ),
        Fault(
            key="14",
            title="disk full during one checkpoint save",
            strike=lambda: [disk.FileLimit(range(at - 1, at))],
            expect=Expect.of("checkpoint_failed", range(at - 1, at + 1), a_file),
            text=NO_ROOM,
            checkpoint_every=every,
            lives=2,
        ),
        Fault(
            key="14b",
            title="disk full for a quarter of the run, a real full tmpfs",
            strike=lambda: [disk.FullDisk(range(at - plan.eighth, killed))],
            expect=Expect.of("checkpoint_failed", range(at - 1, at + 1), a_file),
            text=NO_ROOM,
            checkpoint_every=every,
            lives=2,
            disk=True,
            counts=False,
        ),
    ]


def _setups(plan: Plan) -> list[Fault]:
    at = plan.at
    burst = range(at, at + 30)
    in_one = range(at, at + 1)
    weight = tensor("fc1.weight")
    return [
        Fault(
            key="15",
            title="DDP: NaN batch on one of two ranks",
            strike=lambda: [strikes.BadInput([at], rank=1)],
            expect=Expect.of(_NAN_OR_INF, in_one, a_rank(1)),
            text=NANS,
            setting=Setting(world=2),
        ),
        Fault(
            key="16",
            title="memory leak of 2 MB per step",
            strike=lambda: [strikes.Leak()],
            expect=Expect.of("memory", range(plan.steps), _leaked),
            text="memory|leak",
        ),
        Fault(
            key="17",
            title="fp16: gradients overflow for 30 steps",
            strike=lambda: [strikes.Gradient(burst, _INF)],
            expect=Expect.of("overflow nonfinite_gradient", in_one, weight),
            text=NANS,
            setting=Setting(fp16=True),
        ),
        Fault(
            key="17b",
            title="inf gradients for 30 steps, float32",
            strike=lambda: [strikes.Gradient(burst, _INF)],
            expect=Expect.of("nonfinite_gradient", in_one, weight),
            text=NANS,
            counts=False,
        ),
        Fault(
            key="18",
            title="accumulation of 4, unscale/clip called on every micro-batch",
            strike=list,
            expect=Expect.of("misuse gradients_touched stopped", range(plan.steps), _a_line),
            text="unscale_|clip",
            setting=Setting(accumulate=4),
            misuse=True,
        ),
    ]


def _leaked(entry: Entry, struck: Struck) -> bool:
    """The tensors that pile up, by their shape."""
    return "524288" in str(entry.get("became_more"))


def _a_line(entry: Entry, struck: Struck) -> bool:
    """Which call; the event of a step has it in its sentence."""
    said = str(entry.get("message", "")).lower()
    return entry["kind"] == "step" or any(word in said for word in ("clip", "unscale"))
