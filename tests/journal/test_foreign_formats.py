"""A short sample of each format, in our own words and numbers, and what is read of it."""

from __future__ import annotations

import io

import numpy as np
import pytest

from surefoot.journal.foreign import read_log
from surefoot.journal.series import Role

GIB, MIB = 2.0**30, 2.0**20


def read(text):
    (run,) = read_log(io.StringIO(text))
    return run


def one(run, role, group=None):
    """The only column of a role (and group)."""
    found = [c for c in run.of(role) if group is None or c.group == group]
    assert len(found) == 1, [(c.name, c.role, c.group) for c in run.columns]
    return found[0]


def named(run, name):
    found = [c for c in run.columns if c.name == name]
    assert len(found) == 1, [c.name for c in run.columns]
    return found[0]


def test_transformers_dict_lines():
    run = read(
        "{'loss': 2.31, 'grad_norm': 4.5, 'learning_rate': 5e-05, 'epoch': 0.25}\n"
        "{'loss': 2.12, 'grad_norm': nan, 'learning_rate': 4e-05, 'epoch': 0.5}\n"
        "{'eval_loss': 2.2, 'eval_accuracy': 0.41, 'eval_runtime': 3.2, 'epoch': 0.5}\n"
        "{'train_runtime': 99.5, 'train_loss': 2.2, 'epoch': 0.5}\n"
    )
    assert run.format == "transformers"
    loss = one(run, Role.LOSS)
    assert (loss.values.tolist(), loss.steps.tolist(), loss.per) == (
        [2.31, 2.12],
        [0.25, 0.5],
        "epoch",
    )
    assert np.isnan(one(run, Role.GRADIENT_NORM).values[1])
    assert one(run, Role.VALIDATION_LOSS).lines.tolist() == [3]
    assert one(run, Role.METRIC).better == "higher"
    assert "train_loss" not in [c.name for c in run.of(Role.LOSS)]


def test_transformers_bar_and_dict_on_one_line_take_the_step_from_the_bar():
    run = read(
        "\r 50%|█████     | 100/200 [00:10<00:10,  9.80it/s]{'loss': 1.5, 'epoch': 1.0}\n"
        "\r 55%|█████▌    | 110/200 [00:11<00:09,  9.90it/s]{'loss': 1.4, 'epoch': 1.1}\n"
    )
    assert one(run, Role.LOSS).steps.tolist() == [100, 110]
    assert one(run, Role.THROUGHPUT).values.tolist() == [9.8, 9.9]
    assert run.settings["steps"] == "200"


def test_activations_of_debug_underflow_overflow():
    run = read(
        "Detected inf/nan during batch_number=3\nabs min  abs max  metadata\n"
        "          encoder.block.0.wo Linear\n"
        "1.10e-06 2.40e+03 input[0]\n3.00e-04 6.10e+04 output\n"
        "          encoder.block.0.dropout Dropout\n3.00e-04 6.10e+04 input[0]\n0.00e+00      "
        "inf output\n"
    )
    assert named(run, "abs max of output").values.tolist() == [61000.0, np.inf]
    assert [m.kind for m in run.messages] == ["nan_warning"]


def test_ultralytics_console_keeps_the_last_of_a_bar_and_adds_the_terms_up():
    head = "      Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size\n"
    rows = "".join(
        f"\r\x1b[K        1/2       2.5G      1.{b}      2.0      1.5         31        640: "
        f"{50 * b}%|{'█' * b}| {b}/2 [00:01<00:00,  5.00it/s]"
        for b in (0, 1, 2)
    )
    valid = (
        "                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95): "
        "100%|██| 4/4 [00:01<00:00,  3.1it/s]\n"
        "                   all        128        929       0.64       0.53       0.60       0.44\n"
    )
    second = (
        "        2/2       2.6G      1.1      1.9      1.4         28        640: 100%|██| 2/2\n"
    )
    run = read(head + rows + "\n" + valid + head + second + valid)
    assert run.format == "ultralytics"
    assert named(run, "box_loss").values.tolist() == [1.2, 1.1]
    assert named(run, "box_loss").steps.tolist() == [1, 2]
    assert np.allclose(one(run, Role.LOSS).values, [4.7, 4.4])
    assert one(run, Role.DEVICE_MEMORY).values.tolist() == [2.5 * GIB, 2.6 * GIB]
    assert {c.name: c.group for c in run.of(Role.METRIC)}["mAP50"] == "validation"


def test_ultralytics_results_csv():
    run = read(
        "                  epoch,         train/box_loss,  train/cls_loss,  train/dfl_loss,"
        "  metrics/mAP50(B),  val/box_loss,  val/cls_loss,  val/dfl_loss,  lr/pg0,  lr/pg1\n"
        "   1,  1.5,  2.5,  1.2,  0.10,  1.6,  2.4,  1.3,  0.001,  0.002\n"
        "   2,  1.4,  2.1,  1.1,  0.15,  1.5,  2.3,  1.3,  0.002,  0.004\n"
    )
    assert run.format == "ultralytics"
    assert np.allclose(one(run, Role.LOSS).values, [5.2, 4.6])
    assert np.allclose(one(run, Role.VALIDATION_LOSS).values, [5.3, 5.1])
    assert [c.group for c in run.of(Role.LEARNING_RATE)] == ["0", "1"]
    assert len(run.of(Role.TERM)) == 6


OPENMMLAB = "2026/01/02 03:04:05 - mmengine - INFO - Epoch(train) "


def test_openmmlab_text_counts_batches_across_epochs():
    run = read(
        "".join(
            f"{OPENMMLAB}[{e}][{b}/200]  lr: 1.0000e-03  eta: 0:11:29  time: 0.035  data_time: "
            f"0.007  "
            f"memory: 1200  grad_norm: 3.5  loss: 1.5  loss_cls: 1.0  loss_bbox: 0.5\n"
            for e, b in [(1, 100), (1, 200), (2, 100), (2, 200)]
        )
        + "2026/01/02 03:05:05 - mmengine - INFO - Epoch(val) [2][20/20]    coco/bbox_mAP: 0.31  "
        "data_time: 0.01  time: 0.02\n"
    )
    assert run.format == "openmmlab"
    assert one(run, Role.LOSS).steps.tolist() == [100, 200, 300, 400]
    assert "the sum of loss_cls, loss_bbox" in one(run, Role.LOSS).read_as
    assert one(run, Role.DEVICE_MEMORY).values[0] == 1200 * MIB
    assert one(run, Role.METRIC).steps.tolist() == [400]
    assert {c.group for c in run.of(Role.STEP_TIME)} >= {"", "data"}


def test_openmmlab_json():
    run = read(
        '{"env_info": "sys.platform: linux", "seed": 1}\n'
        + "".join(
            f'{{"mode": "train", "epoch": {e}, "iter": {i}, "lr": 0.02, "memory": 900, '
            f'"data_time": 0.05, "loss_cls": 0.6, "loss_bbox": 0.4, "loss": 1.0, "time": 0.3}}\n'
            for e, i in [(1, 50), (1, 100), (2, 50), (2, 100)]
        )
        + '{"mode": "val", "epoch": 2, "iter": 500, "lr": 0.02, "bbox_mAP": 0.31}\n'
    )
    assert one(run, Role.LOSS).steps.tolist() == [50, 100, 150, 200]
    assert one(run, Role.METRIC).group == "validation"


def test_detectron2_text_and_json():
    run = read(
        "".join(
            f"[05/01 10:00:0{i} d2.utils.events]:  eta: 1:23:45  iter: {19 + 20 * i}  "
            f"total_loss: 2.{i}"
            f"  loss_cls: 1.{i}  loss_box_reg: 1.0  time: 0.25  last_time: 0.24  data_time: 0.01  "
            f"lr: 0.0004  max_mem: 2500M\n"
            for i in range(3)
        )
        + "[05/01 10:01:00 d2.evaluation.testing]: copypaste: Task: bbox\n"
        "[05/01 10:01:00 d2.evaluation.testing]: copypaste: AP,AP50,AP75\n"
        "[05/01 10:01:00 d2.evaluation.testing]: copypaste: 38.1,58.2,40.5\n"
    )
    assert run.format == "detectron2"
    assert one(run, Role.LOSS).steps.tolist() == [19, 39, 59]
    assert one(run, Role.DEVICE_MEMORY).values[0] == 2500 * MIB
    assert {c.name: c.values[0] for c in run.of(Role.METRIC)}["AP50"] == 58.2
    run = read('{"eta_seconds": 9.5, "iteration": 19, "loss_cls": 1.4, "total_loss": 1.4}\n' * 2)
    assert one(run, Role.LOSS).values.tolist() == [1.4, 1.4]


def test_megatron_sums_up_the_skipped_iterations():
    run = read(
        "".join(
            f" [2026-01-02 03:04:0{i}] iteration {10 * i:8d}/  500000 | consumed samples: "
            f"{1280 * i:10d} "
            f"| elapsed time per iteration (ms): 1234.5 | learning rate: 1.0{i}0E-06 | lm loss: "
            f"1.0{i}E+01 | loss scale: {65536 / 2**i:.1f} | grad norm: 0.3{i} | number of skipped "
            f"iterations:   2 | number of nan iterations:   0 |\n"
            for i in (1, 2, 3)
        )
        + " validation loss at iteration 30 | lm loss value: 9.8E+00 | lm loss PPL: 1.8E+04 |\n"
    )
    assert run.format == "megatron"
    assert one(run, Role.LOSS).steps.tolist() == [10, 20, 30]
    assert one(run, Role.SKIPPED).values.tolist() == [2, 4, 6]
    assert one(run, Role.STEP_TIME).values[0] == 1.2345
    assert one(run, Role.LOSS_SCALE).values.tolist() == [32768, 16384, 8192]
    assert one(run, Role.VALIDATION_LOSS).values.tolist() == [9.8]


def test_deepspeed_lines_and_overflows():
    run = read(
        "[2026-01-02 03:04:05,123] [INFO] [loss_scaler.py:181:update_scale] [deepspeed] OVERFLOW! "
        "Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768\n"
        "[2026-01-02 03:04:06,123] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=1, "
        "lr=[1e-05, 2e-05], mom=[(0.9, 0.95), (0.9, 0.95)]\n"
        "[2026-01-02 03:04:06,129] [INFO] [timer.py:199:stop] "
        "epoch=0/micro_step=10/global_step=10, "
        "RunningAvgSamplesPerSec=173.4, CurrSamplesPerSec=171.9, MemAllocated=3.5GB, "
        "MaxMemAllocated=22.0GB\n"
    )
    assert run.format == "deepspeed"
    assert one(run, Role.LOSS_SCALE).values.tolist() == [32768]
    assert run.messages[0].values == {"attempted": 65536.0, "scale": 32768.0}
    assert [c.group for c in run.of(Role.LEARNING_RATE)] == ["", "1"]
    assert max(c.values[0] for c in run.of(Role.DEVICE_MEMORY)) == 22 * GIB
    assert not run.of(Role.LOSS), "neither a line of the source nor a scale is a loss"


def test_fairseq_progress_pipes_and_json():
    run = read(
        "".join(
            f"| epoch 001:    {i}00 / 1000 loss=1{9 - i}.3, nll_loss=11.9, ppl=3903.2, wps=1234, "
            f"ups=0.5, "
            f"num_updates={i}00, lr=1e-0{i}, gnorm=2.{i}, clip=7, loss_scale=128, train_wall=50\n"
            for i in (1, 2, 3)
        )
        + "| NOTE: gradient overflow detected, ignoring gradient, setting loss scale to: 64.0\n"
        "| epoch 001 | valid on 'valid' subset | loss 8.3 | nll_loss 7.1 | ppl 139.1 | "
        "num_updates 300\n"
    )
    assert run.format == "fairseq"
    assert one(run, Role.LOSS).steps.tolist() == [100, 200, 300]
    assert one(run, Role.GRADIENT_NORM).values.tolist() == [2.1, 2.2, 2.3]
    assert one(run, Role.LOSS_SCALE).values.tolist() == [128, 128, 128, 64]
    assert one(run, Role.VALIDATION_LOSS).values.tolist() == [8.3]
    assert not run.of(Role.CLIP_THRESHOLD), "fairseq's clip is a share, not a threshold"
    run = read(
        '2026-01-02 03:04:05 | INFO | train_inner | {"epoch": 1, "update": 0.1, "loss": "16.4", '
        '"ppl": "86945.6", "num_updates": "7", "lr": "2e-05", "gnorm": "18.2", "loss_scale": "4"}\n'
        '2026-01-02 03:04:06 | INFO | valid | {"epoch": 1, "valid_loss": "16.6", '
        '"valid_num_updates": "7"}\n'
    )
    assert (one(run, Role.LOSS).values[0], one(run, Role.LOSS).steps[0]) == (16.4, 7)
    assert one(run, Role.VALIDATION_LOSS).values.tolist() == [16.6]


def test_timm_and_torchvision():
    run = read(
        "".join(
            f"Train: {e} [{b:4d}/500 ({b // 5:3d}%)]  Loss: 6.{9 - e}5 (6.90)  Time: 0.312s,  "
            f"110.20/s  "
            f"(0.3s,  110.2/s)  LR: 1.000e-0{e + 1}  Data: 0.012 (0.013)\n"
            for e in (0, 1)
            for b in (0, 250)
        )
        + "Test: [  10/97]  Time: 0.2 (0.2)  Loss:  6.80 (6.85)  Acc@1:  0.6 ( 0.5)  Acc@5:  2.1 "
        "( 2.0)\n"
    )
    assert run.format == "timm"
    assert one(run, Role.LOSS).steps.tolist() == [0, 250, 500, 750]
    assert one(run, Role.VALIDATION_LOSS).values.tolist() == [6.8]
    run = read(
        "Epoch: [0]  [  10/5005]  eta: 1:02:03  lr: 0.1  loss: 6.9 (7.0)  acc1: 0.1 (0.1)  "
        "time: 0.5  data: 0.1  max mem: 5000\n"
        "Epoch: [1]  [   0/5005]  eta: 1:02:03  lr: 0.1  loss: 6.8 (6.9)  acc1: 0.2 (0.1)  "
        "time: 0.5  data: 0.1  max mem: 5100\n"
    )
    assert run.format == "torchvision"
    assert one(run, Role.LOSS).steps.tolist() == [10, 5005]
    assert one(run, Role.DEVICE_MEMORY).values[1] == 5100 * MIB


def test_nanogpt_and_its_kin():
    run = read(
        "step 0: train loss 10.9, val loss 11.0\n"
        + "".join(f"iter {i}: loss 10.{9 - i}00, time 123.45ms, mfu 12.30%\n" for i in range(6))
    )
    assert run.format == "nanogpt"
    assert one(run, Role.LOSS).name == "loss"
    assert one(run, Role.VALIDATION_LOSS).values.tolist() == [11.0]
    assert one(run, Role.STEP_TIME).values[0] == pytest.approx(0.12345)
    run = read(
        "s:0 tel:11.01\ns:0 trl:11.00 lr:0.000001 norm:15.37\ns:1 trl:10.9 lr:0.000002 norm:1.2\n"
    )
    assert one(run, Role.LOSS).values.tolist() == [11.0, 10.9]
    assert one(run, Role.GRADIENT_NORM).values.tolist() == [15.37, 1.2]
    assert one(run, Role.VALIDATION_LOSS).steps.tolist() == [0]


def test_keras_bars_with_backspaces_and_colours():
    old = "".join(
        f"Epoch {e}/3\n 8/32 [=====>.......] - ETA: 3s - loss: 2.{8 - e} - acc: 0.2"
        f"{chr(8) * 40}\r32/32 [============] - 1s 8ms/step - loss: 2.{7 - e} - acc: 0.3 - "
        f"val_loss: 2.9\n"
        for e in (1, 2, 3)
    )
    run = read(old)
    assert run.format == "keras"
    assert one(run, Role.LOSS).steps.tolist() == [8, 32, 40, 64, 72, 96]
    assert one(run, Role.VALIDATION_LOSS).lines.tolist() == [2, 4, 6]
    new = "".join(
        f"Epoch {e}/3\n\x1b[1m32/32\x1b[0m \x1b[32m━━━━━━━━━━━━\x1b[0m\x1b[37m\x1b[0m "
        f"\x1b[1m1s\x1b[0m "
        f"8ms/step - accuracy: 0.8 - loss: 0.{9 - e} - val_loss: nan\n"
        for e in (1, 2, 3)
    )
    run = read(new)
    assert one(run, Role.LOSS).values.tolist() == [0.8, 0.7, 0.6]
    assert np.isnan(one(run, Role.VALIDATION_LOSS).values).all()
    assert run.settings["epochs" if run.columns[0].per == "epoch" else "steps"]


def test_caffe_keeps_net_outputs_apart_from_the_smoothed_loss():
    run = read(
        "".join(
            f"I0814 12:34:5{i}.789012 12345 solver.cpp:228] Iteration {20 * i} (12.3 iter/s, "
            f"1.6s/20 iters),"
            f" loss = 2.{9 - i}\nI0814 12:34:56.789012 12345 solver.cpp:244]     Train net "
            f"output #0: "
            f"loss_bbox = 0.3 (* 1 = 0.3 loss)\nI0814 12:34:56.789012 12345 sgd_solver.cpp:106] "
            f"Iteration {20 * i}, lr = 0.01\n"
            for i in range(4)
        )
        + "    Test net output #0: accuracy = 0.25\n"
    )
    assert run.format == "caffe"
    assert one(run, Role.LOSS).steps.tolist() == [0, 20, 40, 60]
    assert one(run, Role.TERM).name == "Train net output loss_bbox"
    assert (one(run, Role.METRIC).group, one(run, Role.METRIC).values[0]) == ("validation", 0.25)


def test_mxnet():
    run = read(
        "".join(
            f"INFO:root:Epoch[{e}] Batch [{b}]\tSpeed: 438.14 "
            f"samples/sec\tTrain-accuracy=0.0{b // 100 + e}\n"
            for e in (0, 1)
            for b in (100, 200)
        )
        + "INFO:root:Epoch[1] Validation-accuracy=0.5\n"
    )
    assert run.format == "mxnet"
    assert one(run, Role.THROUGHPUT).values[0] == 438.14
    assert [c.group for c in run.of(Role.METRIC)] == ["train", "validation"]


def test_lightning_progress_line():
    run = read(
        "Epoch 0:  10%|█         | 100/1000 [00:10<01:20, 11.00it/s, v_num=3, "
        "train_loss_step=2.5]\n"
        "Epoch 1:  10%|█         | 100/1000 [00:10<01:20, 11.00it/s, v_num=3, "
        "train_loss_step=2.1]\n"
    )
    assert run.format == "lightning"
    assert one(run, Role.LOSS).steps.tolist() == [100, 1100]
    assert "v_num" not in [c.name for c in run.columns]


def test_notes_by_hand_with_arrows():
    run = read(
        "Epoch 1:\n  Memory: 30 GB → 44 GB → 61 GB → OOM KILL\n  Gradients: 4.9M → clipped to 8.0\n"
        "  Loss: 6.5 → 26.2 (jumps 4x)\n"
    )
    assert one(run, Role.HOST_MEMORY).values.tolist() == [30 * GIB, 44 * GIB, 61 * GIB]
    assert one(run, Role.LOSS).values.tolist() == [6.5, 26.2]
    assert one(run, Role.GRADIENT_NORM, "").values.tolist() == [4.9e6]
    assert one(run, Role.GRADIENT_NORM, "after clipping").values.tolist() == [8.0]
    assert [m.kind for m in run.messages] == ["worker_killed"]
