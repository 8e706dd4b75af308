"""The vocabulary of training logs: which words in a name say what the number is."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = [
    "BATCH",
    "EPOCH",
    "FILLERS",
    "IGNORED",
    "KNOWN",
    "LOSSES",
    "LOWER",
    "METRICS",
    "RATES",
    "STEP",
    "TOTAL",
    "TRAIN",
    "VALIDATION",
    "WHOLE",
    "bag",
    "side",
    "tokens",
]


def bag(text: str) -> frozenset[str]:
    """The words of a text, as a set.

    >>> sorted(bag("loss lr"))
    ['loss', 'lr']
    """
    return frozenset(text.split())


EPOCH = frozenset({"epoch", "epochs", "ep"})
STEP = bag(
    "step steps iter iters iteration iterations itr it update updates gs nimg kimg s t "
    "timesteps timestep"
)
BATCH = bag("batch batches minibatch mb micro microstep nbatch")
TRAIN = bag("train training trn tr trl")
VALIDATION = bag(
    "val valid validation eval evaluation evaluate test testing dev heldout holdout tel vl"
)
LOSSES = bag(
    "loss losses xent nll ce crossentropy cost objective elbo trl tel neloss logloss energy"
)
TOTAL = frozenset({"total", "overall", "sum", "all", "combined", "full"})
WHOLE = TOTAL | bag(
    "avg average mean lm running cur current batch step epoch the per token smoothed smooth "
    "run model global main minibatch iter reduced final last this of is at cross entropy"
)
"""Words that leave a loss the whole one: ``avg loss``, ``train_loss_step``, ``lm loss``."""

_HIGHER = bag(
    "acc accuracy top1 top5 acc1 acc5 prec precision recall rec f1 fscore fmeasure auc auroc auprc "
    "map ap ar map50 map75 map95 iou miou giou dice bleu rouge meteor cider spice psnr ssim reward "
    "return rew score is r2 mcc kappa ndcg mrr hit hits hr em pck ari nmi sdr sisdr snr smeasure "
    "emeasure measure wfm wins winrate success accuracies fitness"
)
LOWER = bag(
    "ppl perplexity error err wer cer mae mse rmse mape fid kid lpips bpc bpb bpp epe abserr "
    "gnll bpd rmsle logppl"
)
METRICS = _HIGHER | LOWER
RATES = bag(
    "speed throughput wps ups fps tps sps ips tokps imgps qps tflops flops samplespersec "
    "samplespersecond"
)
IGNORED = bag(
    "eta pid port rank local seed line lineno thread node host gpu gpus gpuid device nproc world "
    "stamp timestamp date wall walltime walltimeiso remaining left version v vnum num uuid id idx "
    "job nodes cuda core cores cpu cpus workers"
)
"""A name of these words alone is no quantity of the training."""
FILLERS = bag("of is are was to at in on for with by as after now and the a an")
KNOWN = (
    EPOCH
    | STEP
    | BATCH
    | LOSSES
    | METRICS
    | RATES
    | bag(
        "lr lrate rate norm gnorm gradnorm scale scaler memory mem vram ram rss time dt grad "
        "gradient gradients gpumem cpumem skipped mfu clip loss throughput momentum mom elapsed "
        "data batchtime "
        "lossscale"
    )
) - {"is", "all", "s", "t", "data", "hit", "hits", "em", "return", "ar"}
"""Words that name a quantity also where no colon stands behind them: ``loss 2.3``."""

_SPLIT = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")


@lru_cache(maxsize=8192)
def tokens(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case.

    >>> tokens("train/loss_cls"), tokens("MaxMemAllocated"), tokens("metrics/mAP50-95(B)")[:2]
    (('train', 'loss', 'cls'), ('max', 'mem', 'allocated'), ('metrics', 'map50'))
    """
    name = re.sub(r"\bm(?=AP|IoU)|(?<=_)m(?=AP|IoU)", "M", name).replace("IoU", "Iou")
    return tuple(word.lower() for word in _SPLIT.findall(name))


def side(words: tuple[str, ...] | frozenset[str]) -> str:
    """``train``, ``validation``, or nothing, as the words of a name tell.

    >>> side(("val", "loss")), side(("train", "acc")), side(("loss",))
    ('validation', 'train', '')
    """
    if VALIDATION.intersection(words):
        return "validation"
    return "train" if TRAIN.intersection(words) else ""
