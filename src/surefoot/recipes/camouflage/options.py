"""The settings of a camouflage run, by subject; :class:`CamouflageConfig` puts them together.

Every class checks its own values and names the flag it refuses. No torch is imported here: a wrong
flag is an answer within a tenth of a second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from surefoot.errors import ConfigError
from surefoot.recipes.run_options import RunOptions as CommonRunOptions
from surefoot.recipes.settings import need, need_finite

__all__ = [
    "DataOptions",
    "HardwareOptions",
    "LossOptions",
    "ModelOptions",
    "OptimizerOptions",
    "RunOptions",
]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The images and masks that are learnt from; validation is held out of them."""

    dataset_path: Path | None = None
    """Folder of the data set: COD10K-v3 as distributed, TrainDataset/ and TestDataset/, or any of
    the layouts in the documentation. Its test sets are not touched."""
    images: Path | None = None
    """Folder of the training images, where the layout is none of these; with --masks."""
    masks: Path | None = None
    """Folder of their masks, paired by file name."""
    procedural: int = 0
    """Learn from this many procedural images an epoch, made anew each time, instead of files."""
    val_share: float = 0.1
    """Share of the training pairs that is held out for validation, by super-class."""
    include_noncam: bool = False
    """Learn from the images that COD10K calls non-camouflaged, too, with empty masks."""
    keep_leaked: bool = False
    """Keep the two images that are in COD10K's training and in its test set."""
    img_size: int = 384
    """Side of the square an image is brought to, in pixels; a multiple of 32 is not resampled."""
    augment: bool = True
    """Flip, scale, turn and tint the training images."""
    batch_size: int = 2
    """Images of a micro-batch."""
    num_workers: int = 4
    """Processes that decode and augment, no more than there are cores; 0 = in the training
    process. They change nothing of what is learnt."""
    cache_mb: float = 0.0
    """Memory for decoded files, in MB for each worker; worth it for small sets."""

    def __post_init__(self) -> None:
        if (self.images is None) != (self.masks is None):
            raise ConfigError("--images and --masks go together; one of them is missing.")
        if self.procedural and (self.dataset_path or self.images):
            raise ConfigError("--procedural takes the place of files; leave --dataset-path out.")
        need(self.procedural >= 0, "--procedural", self.procedural, ">= 0")
        need(0 < self.val_share < 1, "--val-share", self.val_share, "between 0 and 1")
        need(self.img_size >= 32, "--img-size", self.img_size, "at least 32 pixels")
        need(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")
        need(self.num_workers >= 0, "--num-workers", self.num_workers, ">= 0")
        need(self.cache_mb >= 0, "--cache-mb", self.cache_mb, ">= 0")

    @property
    def workers(self) -> int:
        """As many as the cores carry."""
        return min(self.num_workers, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network."""

    backbone: str = "pvt_v2_b2"
    """A network of timm with maps at strides 4 to 32, or tiny, which a CPU can train."""
    pretrained: bool = True
    """Start from the backbone's published weights (from the hub, or timm's local cache). A failure
    to get them is an error; tiny has none."""
    backbone_weights: Path | None = None
    """Start from this file of them instead: .safetensors, or a .pth of tensors."""
    channels: int = 64
    """Width of the decoder."""
    num_experts: int = 0
    """Experts of the mixture that refines every level; 0 = none. 6 are what the original had."""

    def __post_init__(self) -> None:
        need(self.channels >= 2 and self.channels % 2 == 0, "--channels", self.channels, "even")
        need(self.num_experts >= 0, "--num-experts", self.num_experts, ">= 0")
        if self.backbone == "tiny" and self.backbone_weights is not None:
            raise ConfigError("--backbone-weights: tiny has no published weights; leave it out.")


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Weight of each loss term."""

    structure_weight: float = 1.0
    """Boundary-weighted cross-entropy and IoU of the mask (about 1.4 at random initialisation)."""
    deep_supervision_weight: float = 1.0
    """The same of the masks on the way, the finest counting 1/2, the next 1/4; 0 = off."""
    edge_weight: float = 0.5
    """Cross-entropy and dice of the outline."""
    uncertainty_weight: float = 1.0
    """Penalty for indecision; it grows from 0 to this over the run, along half a cosine."""
    dice_weight: float = 0.0
    """Dice of the mask; 0 = not computed."""
    focal_weight: float = 0.0
    """Focal loss of the mask; 0 = not computed."""
    balance_weight: float = 0.01
    """How evenly the experts are used; without experts there is no such term."""

    def __post_init__(self) -> None:
        for name in ("structure", "deep_supervision", "edge", "uncertainty", "dice", "focal"):
            value = getattr(self, f"{name}_weight")
            need_finite(f"--{name.replace('_', '-')}-weight", value)
            need(value >= 0, f"--{name.replace('_', '-')}-weight", value, ">= 0")
        need(self.balance_weight >= 0, "--balance-weight", self.balance_weight, ">= 0")
        if not any((self.structure_weight, self.dice_weight, self.focal_weight)):
            raise ConfigError(
                "--structure-weight, --dice-weight and --focal-weight are all 0: no mask is learnt "
                "from that; give at least one a weight above 0."
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW, its schedule in two stages, and the guard's clipping."""

    lr: float = 2.5e-4
    """Peak learning rate of the decoder in stage 1."""
    stage2_lr: float | None = None
    """Peak of the decoder in stage 2; half of --lr where it is not given."""
    backbone_lr_scale: float = 0.1
    """The backbone's learning rate as a share of the decoder's, under every schedule."""
    weight_decay: float = 1e-4
    """AdamW's decoupled decay; biases, norms and other 1-d parameters get none."""
    scheduler: Literal["onecycle", "cosine", "none"] = "onecycle"
    """onecycle: up and down again in each stage. cosine: down in each stage. In optimizer steps."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up at the start of each stage, before what --scheduler says."""
    accumulation_steps: int = 4
    """Micro-batches per optimizer step; their mean is used, and an epoch's last window may be
    shorter."""
    grad_clip: float = 0.5
    """Largest global L2 norm of the true (unscaled) gradient; 0 = no clipping."""
    use_ema: bool = True
    """Keep a moving average of the weights, measured and saved beside them."""
    ema_decay: float = 0.999
    """Its decay, which rises as (1 + n) / (10 + n) after n steps until it is reached."""

    def __post_init__(self) -> None:
        need_finite("--lr", self.lr, above=0.0)
        if self.stage2_lr is not None:
            need_finite("--stage2-lr", self.stage2_lr, above=0.0)
        need_finite("--backbone-lr-scale", self.backbone_lr_scale, above=0.0)
        need(self.weight_decay >= 0, "--weight-decay", self.weight_decay, ">= 0")
        need(self.warmup_epochs >= 0, "--warmup-epochs", self.warmup_epochs, ">= 0")
        need(self.accumulation_steps >= 1, "--accumulation-steps", self.accumulation_steps, ">= 1")
        need(self.grad_clip >= 0, "--grad-clip", self.grad_clip, ">= 0, 0 for off")
        need(0 < self.ema_decay < 1, "--ema-decay", self.ema_decay, "between 0 and 1")

    @property
    def second_lr(self) -> float:
        """The decoder's peak in stage 2."""
        return 0.5 * self.lr if self.stage2_lr is None else self.stage2_lr


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """Where it runs, and how precisely."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1..."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on hardware that has it, else fp16 on a GPU and fp32 on a CPU. In fp16 the loss
    scale starts at 1,024 and grows by 1.5 every 1,000 steps."""
    no_amp: Annotated[bool, arg(name="no-amp")] = False
    """float32 throughout, whatever --precision says."""
    sync_batchnorm: bool = False
    """Of several processes on GPUs: BatchNorm takes its statistics over all their batches. Else
    each takes those of its own, and the running ones are the first process's."""
    fsdp: bool = False
    """Of several processes: each keeps a part of weights, gradients, moments and average (FSDP2),
    and gathers the rest when it is needed: for networks that do not fit into one GPU."""
    check_precision: bool = True
    """Before the first step, try half precision on the first batch beside fp32, and fall back where
    it is not finite or not near."""

    @property
    def wanted(self) -> str:
        """The precision that is asked for."""
        return "fp32" if self.no_amp else self.precision


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonRunOptions):
    """Length, folder and start of the run."""

    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = ("stage1_epochs", *CommonRunOptions.AT_LEAST_ZERO)

    epochs: int = 120
    """Epochs of both stages."""
    stage1_epochs: int = 30
    """The first of them, in which the backbone is frozen, its BatchNorm too."""
    seed: int = 42
    """Start of every random sequence."""
