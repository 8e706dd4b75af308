"""Lines in words: which are evidence of what, and which settings a log shows."""

from __future__ import annotations

import io

import pytest

from surefoot.journal.foreign import read_log
from surefoot.journal.foreign.messages import MAX_OF_A_KIND, rule_for
from surefoot.journal.foreign.settings import settings_in
from surefoot.journal.series import Role


def read(text):
    (run,) = read_log(io.StringIO(text))
    return run


SAID = {
    "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 32768.0": "overflow",
    "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 64, reducing to 32": "overflow",
    "OVERFLOW! Rank 3 Skipping step. Attempted loss scale: 64, but hysteresis is 2. Reducing "
    "hysteresis to 1": "overflow",
    "NOTE: gradient overflow detected, ignoring gradient, setting loss scale to: 2.0": "overflow",
    "| WARNING: overflow detected, setting loss scale to: 0.0625": "overflow",
    "FloatingPointError: Minimum loss scale reached (0.0001). Your loss is probably exploding.": (
        "scale_at_minimum"
    ),
    "Exception: Current loss scale already at minimum - cannot decrease scale anymore.": (
        "scale_at_minimum"
    ),
    "AssertionError: No inf checks were recorded for this optimizer.": "scaler_misuse",
    "RuntimeError: unscale_() has already been called on this optimizer since the last update().": (
        "scaler_misuse"
    ),
    "ValueError: Attempting to unscale FP16 gradients.": "scaler_misuse",
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB": "out_of_memory",
    "MemoryError": "out_of_memory",
    "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed.": "worker_killed",
    "Out of memory: Killed process 4711 (python)": "worker_killed",
    "Killed": "worker_killed",
    "RuntimeError: Function 'SqrtBackward0' returned nan values in its 0th output.": "nan_warning",
    "NaN or Inf found in input tensor.": "nan_warning",
    "Loss is nan, stopping training": "nan_warning",
    "ERROR:tensorflow:Model diverged with loss = NaN.": "nan_warning",
    "RuntimeWarning: invalid value encountered in log": "nan_warning",
    "WARNING - NaN/Inf gradient in backbone.layer1.conv.weight": "nan_gradient",
    "WARNING: The grad norm is nan. Skipping updating the model.": "nan_gradient",
    "The total norm of order 2.0 for gradients from `parameters` is non-finite": "nan_gradient",
    "UserWarning: Detected call of `lr_scheduler.step()` before `optimizer.step()`.": (
        "schedule_order"
    ),
    "ValueError: Tried to step 3751 times. The total number of steps is 3750": "schedule_order",
    "RuntimeError: CUDA error: device-side assert triggered": "device_assert",
    "ERROR - SKIPPING batch 12 after KeyError": "swallowed",
    "Error at batch 7: shapes differ": "swallowed",
    "skipped optimizer step": "refused",
    "Resuming training from epoch 12": "resumed",
    "=> loaded checkpoint 'out/last.pt' (epoch 12)": "resumed",
    "[rank1]: torch.distributed.DistBackendError: NCCL watchdog caught collective operation "
    "timeout": ("timeout"),
    "Early stopping after 12 epochs": "stopped",
    "ignoring corrupt image/label: a.jpg": "data_warning",
    "KeyError: 'pred_boxes'": "exception",
    "torch.linalg.LinAlgError: singular": "exception",
    "[10:11:12] ERROR - boxes have x2 <= x1": "error",
}


@pytest.mark.parametrize("text", SAID)
def test_what_a_line_is_evidence_of(text):
    rule = rule_for(text)
    assert rule is not None
    assert rule.kind == SAID[text]


@pytest.mark.parametrize(
    "text",
    [
        "step 3: loss 0.5",
        "information about the finance data was loaded",
        "Errors are counted per epoch, 3 so far",
        "loss: nan",
        "inference took 3 s",
        "memory: 392",
        "no error was found",
    ],
)
def test_what_is_evidence_of_nothing(text):
    assert rule_for(text) is None


def test_the_scale_of_overflows_is_a_column_even_where_no_line_logs_it():
    run = read(
        "".join(
            f"OVERFLOW! Rank 0 Skipping step. Attempted loss scale: {2**k}, reducing to "
            f"{2 ** (k - 1)}\n"
            for k in range(16, 10, -1)
        )
    )
    (scale,) = run.of(Role.LOSS_SCALE)
    assert scale.values.tolist() == [2.0**k for k in range(15, 9, -1)]
    assert [m.values["attempted"] for m in run.messages] == [2.0**k for k in range(16, 10, -1)]


def test_the_last_line_of_a_traceback_is_the_message():
    run = read(
        "step 1 loss 2.0\nstep 2 loss nan\nTraceback (most recent call last):\n"
        '  File "train.py", line 12, in <module>\n    loss.backward()\nValueError: loss is not '
        "finite\n"
    )
    assert [(m.kind, m.line, m.step) for m in run.messages] == [("exception", 6, 2.0)]


def test_a_message_is_cut_and_clean():
    run = read("ValueError: \x1b[31m" + "x" * 2000 + "\x07\n")
    (message,) = run.messages
    assert len(message.text) == 300
    assert message.text.startswith("ValueError: xxx")


def test_messages_are_bounded_and_the_first_and_last_are_kept():
    count = MAX_OF_A_KIND + 500
    run = read("".join(f"step {i} loss 0.5\nValueError: number {i}\n" for i in range(count)))
    assert len(run.messages) == MAX_OF_A_KIND
    assert run.messages[0].text == "ValueError: number 0"
    assert run.messages[-1].text == f"ValueError: number {count - 1}"
    assert any(f"{count:,} messages of the kind exception" in note for note in run.notes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "Namespace(lr=0.001, optimizer='adamw', fp16=True, clip_grad=None)",
            {"lr": "0.001", "optimizer": "adamw", "fp16": "True"},
        ),
        (
            "python train.py --learning_rate 3e-4 --bf16 --max-grad-norm=1.0 --batch-size 8",
            {"lr": "3e-4", "bf16": "True", "clip": "1.0", "batch_size": "8"},
        ),
        ("weight_decay: 0.05", {"weight_decay": "0.05"}),
        (
            '"warmup_steps": 500, "lr_scheduler_type": "cosine"',
            {"warmup": "500", "schedule": "cosine"},
        ),
        ("Using AMP", {"dtype": "AMP"}),
        ("the clip was long", {}),
    ],
)
def test_settings_in_a_line(text, told):
    assert settings_in(text) == told


def test_settings_are_taken_from_the_lines_before_the_training_only():
    run = read(
        "fp16: True\nmax_grad_norm = 1.0\n"
        + "".join(f"step {i} loss 1 lr 0.{i}\n" for i in range(1, 9))
    )
    assert run.settings == {"fp16": "True", "clip": "1.0"}
