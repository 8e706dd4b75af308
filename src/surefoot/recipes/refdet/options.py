"""The settings of a RefDet run, by subject; :class:`TrainConfig` puts them together.

Every class checks its own values and names the flag it refuses. No torch is imported here: a wrong
flag is an answer within a tenth of a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from surefoot.errors import ConfigError
from surefoot.recipes.run_options import RunOptions as CommonRunOptions
from surefoot.recipes.settings import need

__all__ = [
    "DataOptions",
    "EpisodeOptions",
    "HardwareOptions",
    "LossOptions",
    "ModelOptions",
    "OptimizerOptions",
    "RunOptions",
]

PROCEDURAL = "procedural"
LABELLED = (".json", ".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is learnt from, and what is measured on."""

    data: str = ""
    """Stage 1 learns from labelled images: a COCO .json, or the data.yaml of a YOLO set, whose val
    split is held out. procedural: drawn scenes with references, in any stage, instead of videos."""
    images: Path | None = None
    """Folder of the images of a COCO file; images/ beside it, or its own folder, where it is not
    given."""
    val_data: Path | None = None
    """COCO .json of held-out images in stage 1."""
    val_images: Path | None = None
    """Folder of the images of --val-data; found as that of --images where it is not given."""
    mosaic: float = 0.0
    """Probability that an image of stage 1 is a mosaic of four."""
    data_root: Path = Path("datasets/train")
    """Training videos: the folder that holds samples/ and annotations/, or samples/ itself."""
    annotations: Path | None = None
    """Annotation file of --data-root; looked for beside the samples where it is not given."""
    val_data_root: Annotated[Path | None, arg(aliases=["--test-data-root"])] = None
    """Held-out videos, laid out like --data-root. Without them nothing is measured, and no
    checkpoint is the best."""
    val_annotations: Annotated[Path | None, arg(aliases=["--test-annotations"])] = None
    """Annotation file of --val-data-root."""
    held_out: tuple[str, ...] = ()
    """Names of videos of --data-root that are held out instead: measured on, not trained on."""
    calibration_data_root: Path | None = None
    """Videos on which the score threshold is chosen. Never the held-out ones; the training videos
    where none are given."""
    calibration_frames: int = 200
    """Frames of each calibration video that are looked at, evenly spread; 0 = all. 200 place the
    threshold within a percent and keep 12 long training videos from taking longer than an epoch."""
    stranger_share: float = 0.2
    """The most of those frames in which references of another video's object may bring a box: the
    threshold is raised until it is so. 1 = the threshold with the best ST-IoU, whatever it finds.
    """
    val_frames: int = 0
    """Frames of each held-out video that are looked at, evenly spread; 0 = all, as the challenge
    counts."""
    num_workers: int = 2
    """Processes that decode and augment; 0 = in the training process."""
    cache_mb: int = 512
    """Decoded frames kept in memory, in MB for all workers together."""
    frame_cache: Path | None = None
    """Folder for the training videos' frames, decoded once and read from there by all workers, at
    next to no cost in memory. Later runs use it again."""
    frame_cache_mb: int = 8192
    """MB that may be written there, frames with a box first; the rest is decoded when asked for."""
    frame_cache_encoding: Literal["raw", "jpeg"] = "raw"
    """raw: to the bit what the video gives. jpeg: a tenth of the size, and not quite the same."""

    def __post_init__(self) -> None:
        if self.held_out and self.val_data_root is not None:
            raise ConfigError(
                "--held-out and --val-data-root both say what is held out; leave one out."
            )
        need(self.calibration_frames >= 0, "--calibration-frames", self.calibration_frames, ">= 0")
        share = self.stranger_share
        need(0 <= share <= 1, "--stranger-share", share, "a share from 0 to 1")
        need(self.val_frames >= 0, "--val-frames", self.val_frames, ">= 0")
        need(self.num_workers >= 0, "--num-workers", self.num_workers, ">= 0")
        need(self.cache_mb >= 0, "--cache-mb", self.cache_mb, ">= 0")
        need(self.frame_cache_mb >= 1, "--frame-cache-mb", self.frame_cache_mb, "at least 1")
        need(0 <= self.mosaic <= 1, "--mosaic", self.mosaic, "a share from 0 to 1")
        if self.data not in ("", PROCEDURAL) and Path(self.data).suffix not in LABELLED:
            raise ConfigError(
                f"--data {self.data}: is neither procedural nor a file that ends in "
                f"{', '.join(LABELLED)}; give a COCO .json or a YOLO data.yaml."
            )

    @property
    def procedural(self) -> bool:
        """Scenes are drawn."""
        return self.data == PROCEDURAL


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """What one episode shows."""

    n_way: int = 2
    """Objects asked for in an episode. Every frame is scored against every one of them."""
    n_query: int = 4
    """Frames per object; an episode has n-way x n-query frames."""
    k_shot: int = 3
    """Reference photos per object; the challenge gives three."""
    n_episodes: int = 100
    """Episodes per epoch: micro-batches, so optimizer steps = this / gradient-accumulation."""
    auto_episodes: bool = False
    """Choose --n-episodes so that an epoch shows about as many frames as there are annotated."""
    background_share: float = 0.3
    """Share of an episode's frames in which the object is absent. A false detection costs ST-IoU as
    much as a missed one, so absence has to be learnt."""
    guard_band: int = 5
    """Frames this near to one with a box are not taken for empty, where a video is long enough: the
    object may be half in view there."""
    replay_share: float = 0.0
    """Share of procedural episodes among those of the videos, against forgetting."""
    image_size: int | None = None
    """Side of the square a frame is letterboxed to, in pixels; the preset's (nano 640, pocket 128)
    where it is not given."""
    support_size: int | None = None
    """Side of a reference photo, in pixels; the preset's (nano 256, pocket 64) where it is not
    given."""
    val_image_size: int | None = None
    """Side of a frame in validation, in pixels; --image-size where it is not given. The network is
    convolutional: it may see larger frames than it was trained on."""

    def __post_init__(self) -> None:
        for flag, value in (
            ("--n-way", self.n_way),
            ("--n-query", self.n_query),
            ("--k-shot", self.k_shot),
            ("--n-episodes", self.n_episodes),
        ):
            need(value >= 1, flag, value, "at least 1")
        need(
            0.0 <= self.background_share < 1.0,
            "--background-share",
            self.background_share,
            "a share from 0 up to, not with, 1",
        )
        need(self.guard_band >= 0, "--guard-band", self.guard_band, ">= 0")
        share = self.replay_share
        need(0.0 <= share < 1.0, "--replay-share", share, "a share from 0 up to, not with, 1")
        for flag, size in (
            ("--image-size", self.image_size),
            ("--support-size", self.support_size),
            ("--val-image-size", self.val_image_size),
        ):
            need(size is None or size >= 32, flag, size, "at least 32 pixels")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network."""

    preset: Literal["nano", "pocket"] = "nano"
    """nano: YOLOv8n at 640 px with a DINO ViT-S/16 for the references (a GPU's work). pocket: the
    same classes, 0.3 M parameters, for a CPU."""
    support_encoder: Annotated[str | None, arg(aliases=["--dinov3-model"])] = None
    """timm name of the network that encodes the references; the preset's where it is not given."""
    pretrained: bool = False
    """Load the support encoder's published weights (from the hub, or timm's local cache)."""
    support_weights: Path | None = None
    """Load the support encoder's weights from this file instead: .safetensors or .pth."""
    freeze_support_layers: int = 6
    """First blocks of the support encoder that keep their weights. 6 of 12: early layers are
    generic, and the memory for their gradients is better spent on frames. Unused by pocket."""
    fusion: Literal["tokens", "psalm", "cheaf", "none"] = "tokens"
    """How the references condition the scene: attention over their tokens; PSALM, pyramid support
    attention, of every level; CHEAF, cross-scale hybrid efficient attention; or the cosine alone.
    """
    head: Literal["prototype", "dual"] = "prototype"
    """What stages 2 and 3 carry: the prototype head, or the standard head of stage 1 beside it,
    which keeps its weights and answers for the base classes."""
    classes: int = 0
    """Base classes of the standard head. Stage 1 takes them from its data."""
    freeze_yolo: Annotated[bool, arg(aliases=["--freeze-backbone"])] = False
    """The scene's backbone keeps its weights, and its BatchNorm its statistics."""

    def __post_init__(self) -> None:
        value = self.freeze_support_layers
        need(value >= 0, "--freeze-support-layers", value, ">= 0")
        need(self.classes >= 0, "--classes", self.classes, ">= 0")
        for flag, given in (
            ("--pretrained", self.pretrained),
            ("--support-weights", self.support_weights),
            ("--support-encoder", self.support_encoder),
        ):
            if given and self.preset == "pocket":
                raise ConfigError(
                    f"{flag}: the pocket preset has no support encoder of its own; leave it out, "
                    "or take --preset nano."
                )


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Weight and form of each loss term."""

    bbox_weight: float = 2.0
    """Weight of the box overlap term (about 1 at random initialisation)."""
    cls_weight: float = 1.0
    """Weight of the "is it this object" term, over every anchor point and object."""
    dfl_weight: float = 0.5
    """Weight of the distribution focal loss: a mean over the four sides, ln 16 = 2.77 at random
    initialisation, so that 0.5 keeps it below the box overlap."""
    supcon_weight: float = 1.0
    """Weight of the contrastive term that pulls an object's pixels to its own references."""
    obj_weight: float = 0.5
    """Weight of the "is any object here" term."""
    absence_weight: float = 0.0
    """Weight of the term that silences the likeliest point of every object that is not there. 0 =
    not computed."""
    cpe_weight: float = 0.0
    """Weight of contrastive proposal encoding: boxes around an object, jittered, have features
    alike, weighed by their overlap. 0 = not computed."""
    triplet_weight: float = 0.0
    """Weight of the batch-hard triplet: an object's points are nearer to its photos than to other
    objects and to empty background. 0 = not computed."""
    triplet_margin: float = 0.3
    """By how much nearer, in cosine distance."""
    bbox_loss: Literal["iou", "giou", "diou", "ciou", "wiou"] = "diou"
    """Form of the box overlap term; wiou is WIoU v3."""

    def __post_init__(self) -> None:
        for name in ("bbox", "cls", "dfl", "supcon", "obj", "absence", "cpe", "triplet"):
            value = getattr(self, f"{name}_weight")
            need(math.isfinite(value) and value >= 0, f"--{name}-weight", value, "finite and >= 0")
        need(self.triplet_margin > 0, "--triplet-margin", self.triplet_margin, "above 0")
        if not any((self.bbox_weight, self.cls_weight, self.dfl_weight)):
            raise ConfigError(
                "--bbox-weight, --cls-weight and --dfl-weight are all 0: no detector learns from "
                "that; give at least one a weight above 0."
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW, its schedule, and the guard's clipping."""

    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    support_lr_scale: float = 0.1
    """The support encoder's learning rate, times --lr: it comes trained, and a tenth keeps what it
    knows. Unused by pocket, whose one backbone does both."""
    weight_decay: float = 0.05
    """AdamW's decoupled decay; biases, norms and other 1-d parameters get none."""
    beta2: float = 0.999
    """AdamW's decay of the squared gradient; lower follows short runs faster."""
    warmup_epochs: float = 3.0
    """Epochs of linear warm-up, counted in optimizer steps and at most half of the run; then a
    cosine down to 1 % of the peak."""
    gradient_clip_norm: Annotated[float, arg(aliases=["--grad-clip"])] = 10.0
    """Largest global L2 norm of the true (unscaled) gradient; 0 = no clipping."""
    gradient_accumulation: Annotated[int, arg(aliases=["--accumulation-steps"])] = 1
    """Micro-batches (episodes) per optimizer step; their mean is used, and an epoch's last window
    may be shorter."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, which is what is evaluated. 0 = no average."""
    ema_warmup: bool = True
    """Let the decay rise as (1 + n) / (10 + n) after n steps, up to --ema-decay, so that random
    weights do not stay in the average of a short run."""

    def __post_init__(self) -> None:
        need(math.isfinite(self.lr) and self.lr > 0, "--lr", self.lr, "finite and above 0")
        need(self.support_lr_scale >= 0, "--support-lr-scale", self.support_lr_scale, ">= 0")
        need(self.weight_decay >= 0, "--weight-decay", self.weight_decay, ">= 0")
        need(0 < self.beta2 < 1, "--beta2", self.beta2, "between 0 and 1")
        need(self.warmup_epochs >= 0, "--warmup-epochs", self.warmup_epochs, ">= 0")
        clip, count = self.gradient_clip_norm, self.gradient_accumulation
        need(math.isfinite(clip) and clip >= 0, "--gradient-clip-norm", clip, "finite, 0 for off")
        need(count >= 1, "--gradient-accumulation", count, "at least 1")
        need(0 <= self.ema_decay < 1, "--ema-decay", self.ema_decay, "from 0 up to, not with, 1")


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """Where it runs, and how precisely."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1..."""
    mixed_precision: bool = True
    """Half precision in the forward pass where --precision finds it worth having; losses and
    weights stay float32."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on hardware that has it, else fp16 on a GPU and fp32 on a CPU."""
    sync_batchnorm: bool = False
    """Of several processes on GPUs: BatchNorm takes its statistics over all their batches. Else
    each takes those of its own, and the running ones are the first process's."""
    fsdp: bool = False
    """Of several processes: each keeps a part of weights, gradients, moments and average (FSDP2),
    and gathers the rest when it is needed: for networks that do not fit into one GPU."""
    check_precision: bool = True
    """Before the first step, try half precision on the first episode beside fp32, and fall back
    where it is not finite or not near. Two forward and backward passes."""
    batch_size: int = 4
    """Frames decoded and detected at once in validation. In training an episode's n-way x n-query
    frames are the batch."""

    def __post_init__(self) -> None:
        need(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")
        if not self.mixed_precision and self.precision in ("bf16", "fp16"):
            raise ConfigError(
                f"--no-mixed-precision and --precision {self.precision} contradict each other; "
                "leave one out."
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonRunOptions):
    """Length, folder and start of the run."""

    stage: Literal[1, 2, 3] = 2
    """1: base detection, of labelled images (--data) or procedural scenes. 2: episodes with
    references. 3: fine-tuning. Every stage has defaults of its own, which its --help shows, and
    starts from the last one's weights with --checkpoint."""
