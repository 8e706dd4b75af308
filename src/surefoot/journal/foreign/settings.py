"""Settings that a log shows: a printed Namespace, a command line, ``fp16: True``."""

from __future__ import annotations

import re

__all__ = ["is_start", "settings_in"]

_NAMES = {
    "lr": "lr learning_rate base_lr peak_lr lr0 max_lr init_lr",
    "initial_lr": "initial_learning_rate initial_lr",
    "dtype": "dtype precision mixed_precision torch_dtype amp_dtype param_dtype compute_dtype",
    "fp16": "fp16 half float16 use_fp16 fp16_run",
    "bf16": "bf16 bfloat16 use_bf16",
    "amp": "amp use_amp enable_amp mixed",
    "clip": "max_grad_norm clip_grad clip_norm gradient_clip_val grad_clip clip gradient_clip_norm "
    "clip_grad_norm max_norm clip_gradients grad_clip_norm grad_norm_clip gradient_clipping",
    "batch_size": "batch_size per_device_train_batch_size train_batch_size batch bs "
    "micro_batch_size "
    "samples_per_gpu imgs_per_batch ims_per_batch batch_size_per_gpu "
    "train_micro_batch_size_per_gpu "
    "global_batch_size",
    "accumulation": "gradient_accumulation_steps accumulate_grad_batches gradient_accumulation "
    "update_freq accum_iter accumulate grad_accum accumulation_steps",
    "optimizer": "optimizer optim opt solver optimizer_name",
    "weight_decay": "weight_decay wd weightdecay",
    "warmup": "warmup_steps warmup warmup_ratio warmup_epochs warmup_iters warmup_updates "
    "lr_warmup_iters warmup_iterations num_warmup_steps",
    "schedule": "lr_scheduler lr_scheduler_type scheduler sched lr_policy lr_schedule",
    "epochs": "epochs num_train_epochs max_epochs num_epochs total_epochs max_epoch",
    "steps": "max_steps total_steps max_iters max_iter train_iters num_train_steps max_update "
    "total_iters",
    "initial_scale": "initial_loss_scale init_scale fp16_init_scale initial_scale_power "
    "loss_scale init_loss_scale",
    "minimum_scale": "min_loss_scale min_scale minimum_loss_scale",
    "scale_window": "loss_scale_window growth_interval fp16_scale_window scale_window",
    "workers": "num_workers workers dataloader_num_workers",
    "momentum": "momentum beta1",
    "eps": "adam_eps adam_epsilon eps opt_eps",
    "resume": "resume resume_from resume_from_checkpoint restore_file",
    "seed": "seed",
    "ema_decay": "ema_decay model_ema_decay ema_momentum",
    "epoch_length": "iterations_per_epoch steps_per_epoch iters_per_epoch batches_per_epoch",
    "min_lr": "min_lr eta_min lr_min minimum_lr min_learning_rate",
    "vocabulary": "vocab_size",
    "classes": "num_classes nc num_labels",
}
_CANONICAL = {spelled: name for name, all_ in _NAMES.items() for spelled in all_.split()}
_WORDS = "|".join(
    sorted((re.escape(w).replace("_", "[_ -]") for w in _CANONICAL), key=len, reverse=True)
)
_PAIR = re.compile(
    rf"(?<![\w./])(?P<dashes>--)?(?P<name>(?i:{_WORDS}))[\"']?(?P<sep>\s*[:=]\s*|\s+(?!-))"
    r"(?P<value>\"[^\"]{1,60}\"|'[^']{1,60}'|[^\s,;(){}|\[\]]{1,60})"
)
_WEIGHT = re.compile(r"--?(?P<term>[a-z]\w{0,20}?)[_-](?:loss[_-])?weight[ =]+(?P<value>[\d.]+)\b")
"""Weights of the terms of a loss, as a command line gives them."""
_SPOKEN = re.compile(
    r"\b(?:using|with|in) (?P<dtype>fp16|bf16|float16|bfloat16|fp32|AMP|mixed precision)", re.I
)
_START = re.compile(
    r"Namespace\(|TrainingArguments|\*{3,} ?Running training|(?i:\b(?:start(?:ing)?"
    r"|begin(?:ning)?) (?:of )?train)"
    r"|Initial learning rate|distributed init|(?i:^(?:python3?|torchrun|accelerate launch"
    r"|deepspeed) )"
    r"|Command ?(?:line)?(?: args)?:|(?i:training config|hyper-?parameters?)[^.]{0,10}:?\s*$"
)


def is_start(text: str) -> bool:
    """Whether a line is what a program prints before it trains.

    >>> is_start("Namespace(lr=0.1, epochs=3)"), is_start("step 3: loss 0.5")
    (True, False)
    """
    return _START.search(text) is not None


def settings_in(text: str) -> dict[str, str]:
    """The settings that a line shows, each under one name however it was spelled.

    >>> settings_in("python train.py --learning-rate 3e-4 --fp16 --clip-norm=1.0")
    {'lr': '3e-4', 'clip': '1.0', 'fp16': 'True'}
    >>> settings_in("Namespace(optimizer='adamw', weight_decay=0.05)")
    {'optimizer': 'adamw', 'weight_decay': '0.05'}
    >>> settings_in("python train.py --cpe_weight 0.5 --weight-decay 0.05")
    {'weight_decay': '0.05', 'cpe_weight': '0.5'}
    """
    told = dict[str, str]()
    for found in _PAIR.finditer(text):
        name = _CANONICAL[re.sub(r"[ -]", "_", found["name"].lower())]
        value = found["value"].strip("\"'").rstrip(".")
        spaced = not found["sep"].strip()
        if spaced and not found["dashes"]:
            continue
        if value and value not in ("None", "null", "none", "-"):
            told.setdefault(name, value)
    for found in re.finditer(r"--(fp16|bf16|amp)(?=\s*$|\s+--)", text):
        told.setdefault(found[1], "True")
    for found in _WEIGHT.finditer(text):
        told.setdefault(f"{found['term']}_weight", found["value"])
    if (said := _SPOKEN.search(text)) is not None:
        told.setdefault("dtype", said["dtype"])
    return told
