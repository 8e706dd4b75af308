"""What looks like one of the stories and is not: the rules mended for them let it pass."""

from __future__ import annotations

import numpy as np
import pytest
from logs import falling, log, noisy, said

from surefoot.doctor import Examination, Finding, RootCause, examine
from surefoot.journal.series import Column, LoggedRun, Message, Role

FP16 = {"dtype": "True"}
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 600.00 MiB"


def one(examination: Examination, code: str) -> Finding | None:
    return next((f for f in examination.findings if f.code == code), None)


def skips(count: int, among: int) -> list[Message]:
    lines = np.linspace(3, among, count).astype(int)
    return [
        said("nan_gradient", int(line), "NaN/Inf gradients detected. Skipping optimizer step.")
        for line in lines
    ]


def test_skips_for_ever_without_a_scale_are_a_scaler_that_is_replaced() -> None:
    found = one(examine(log(*skips(30, 400), loss=falling(400), settings=FP16)), "SF203")
    assert found is not None
    assert found.cause is RootCause.SCALER_MISUSE
    assert "halved 65,536 to nothing" in " ".join(map(str, found.evidence))


def test_some_skips_at_the_start_are_how_a_scale_finds_its_place() -> None:
    assert examine(log(*skips(8, 40), loss=falling(400), settings=FP16)).healthy


def test_skips_of_a_run_in_bfloat16_are_not_laid_to_a_scaler() -> None:
    run = log(*skips(30, 400), loss=falling(400), settings={"dtype": "bf16"})
    assert one(examine(run), "SF203") is None


@pytest.mark.parametrize(
    ("phase", "cause"),
    [(199, RootCause.UNKNOWN), (20, RootCause.MEMORY_LEAK)],
    ids=["where more layers are trained from then on", "long after that"],
)
def test_memory_that_runs_out(phase: int, cause: RootCause) -> None:
    run = log(
        said("phase", phase, "STAGE 2: all layers unfrozen"),
        said("out_of_memory", 201, OOM),
        loss=falling(199),
    )
    found = one(examine(run), "SF602")
    assert found is not None
    assert found.cause is cause


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Killed", "SF602"),
        ("RuntimeError: DataLoader worker (pid 17) is killed by signal: Killed.", "SF603"),
    ],
)
def test_who_was_killed(text: str, code: str) -> None:
    examination = examine(log(said("worker_killed", 50, text), loss=falling(48)))
    assert one(examination, code) is not None
    assert {f.code for f in examination.findings} & {"SF602", "SF603"} >= {code}


@pytest.mark.parametrize(("weight", "sick"), [("0.5", True), ("0.0", False), (None, False)])
def test_a_term_of_0_is_a_fault_where_it_has_a_weight(weight: str | None, sick: bool) -> None:
    box = falling(60, 1.7, 0.9)
    given = {"cpe_weight": weight} if weight else {}
    run = log(loss=box + 0.0, box=box, cpe_loss=[0.0] * 60, settings=given)
    examination = examine(run)
    found = one(examination, "SF301")
    assert found is not None
    assert found.sick is sick


def test_a_box_loss_that_is_flat_beside_a_living_metric_is_no_lack_of_decoding() -> None:
    run = log(
        box=noisy([2.45] * 80, 0.01), cls=falling(80, 1.4, 0.5), mAP=[0.1, 0.2, 0.3, 0.35, 0.4]
    )
    assert one(examine(run), "SF309") is None


def test_an_untrained_binned_loss_that_falls_is_a_note() -> None:
    run = log(dfl=falling(80, 11.3, 2.0), cls=falling(80, 1.4, 0.5))
    examination = examine(run)
    found = one(examination, "SF311")
    assert found is not None
    assert not found.sick
    assert examination.healthy
    assert "4 ln 16" in found.title


def rates(values: np.ndarray, **settings: str) -> LoggedRun:
    steps, lines = np.arange(values.size, dtype=float), np.arange(2, values.size + 2)
    column = Column("lr", Role.LEARNING_RATE, values, steps + 300, lines)
    loss = Column("loss", Role.LOSS, falling(values.size), steps + 300, lines)
    return LoggedRun("train.log", "by hand", (loss, column), (), settings, lines=500)


def test_an_excerpt_of_a_warm_up_is_no_climb_to_a_floor() -> None:
    warming = rates(np.linspace(1e-6, 4e-4, 40), schedule="cosine", min_lr="1e-5")
    assert one(examine(warming), "SF510") is None


def test_a_group_with_a_rate_of_its_own_does_not_overshoot() -> None:
    arch = 1.5e-3 * np.sin(np.linspace(0.2, 3.0, 60))
    assert one(examine(rates(arch, schedule="onecycle", lr="1e-3")), "SF509") is None


def test_a_card_that_is_broken_in_float16_is_a_note_where_all_is_finite() -> None:
    card = said("weak_half_gpu", 1, "Device: NVIDIA GeForce GTX 1660 Ti")
    examination = examine(log(card, loss=falling(60), settings=FP16))
    assert examination.healthy
    assert one(examination, "SF209") is not None


@pytest.mark.parametrize(
    ("error", "named", "cause"),
    [
        ("RuntimeError: BCELoss are unsafe to autocast.", "logarithm", "numerically_unsafe_op"),
        ("AssertionError: rows must sum to 1.0", "probabilities", "numerically_unsafe_op"),
        ("RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
         "no gradient", "dead_loss"),
        ("RuntimeError: size mismatch for head.weight: copying a param with shape",
         "checkpoint", "unknown"),
        ("ImportError: cannot import name 'x' from 'y'", "module", "unknown"),
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x4 and 5x2)",
         "widths", "unknown"),
    ],
)  # fmt: skip
def test_an_error_is_named_by_its_words(error: str, named: str, cause: str) -> None:
    found = one(examine(log(said("exception", 50, error), loss=falling(48))), "SF910")
    assert found is not None
    assert named in found.title
    assert found.cause.value == cause


@pytest.mark.parametrize(
    "error",
    [
        "AssertionError: counts sum to 10",
        "RuntimeError: the optimizer diverged",
        "ValueError: loss is nan",
    ],
)
def test_an_error_that_is_not_known_is_not_named(error: str) -> None:
    assert one(examine(log(said("exception", 50, error), loss=falling(48))), "SF910") is None


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("AssertionError: No inf checks were recorded for this optimizer.", {"SF302"}),
        ("RuntimeError: unscale_() has already been called on this", {"SF204", "SF302"}),
    ],
)
def test_a_constant_loss_explains_a_scaler_that_finds_nothing(text: str, codes: set[str]) -> None:
    run = log(said("scaler_misuse", 9, text), loss=[0.1] * 20)
    assert {f.code for f in examine(run).findings if f.sick} == codes


def test_a_first_loss_that_is_low_by_its_making_is_not_one_that_was_thrown() -> None:
    """Task-aligned targets are near 0 while nothing overlaps, and so is the first loss."""
    steps = np.arange(120)
    loss = noisy(2.0 + 6.0 * np.exp(-steps / 35.0), 0.1)
    loss[0], loss[3] = 1.1, 13.0
    assert examine(log(loss=loss)).healthy
    loss[60:] = noisy(np.full(60, 1.2), 0.02)  # where it began, and there it stays
    assert one(examine(log(loss=loss)), "SF806") is not None
