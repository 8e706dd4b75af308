"""A DINO vision transformer of timm as the encoder of reference photos, and where its weights
come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.models.tensor_file import first_line, read_tensors

__all__ = ["WRAPPERS", "DinoSupport", "DinoSupportConfig"]

WRAPPERS = ("model", "state_dict", "teacher")
"""Below which of them published files of backbones keep their tensors."""


@dataclass(frozen=True, kw_only=True)
class DinoSupportConfig:
    """A vision transformer of timm encodes the photos."""

    model: str = "vit_small_patch16_dinov3.lvd1689m"
    """timm name."""
    frozen_blocks: int = 6
    """First blocks that keep their weights, the patch embedding with them; 0 trains everything."""
    pretrained: bool = False
    """Load the published weights from the hub, or from its local cache."""
    weights: Path | None = None
    """Load the weights from this file instead: .safetensors, or a torch file of tensors only."""

    def __post_init__(self) -> None:
        if self.frozen_blocks < 0:
            raise ConfigError(
                f"DinoSupportConfig: frozen_blocks {self.frozen_blocks}; 0 or more is expected."
            )


class DinoSupport(nn.Module):
    """Dense patch tokens and the class token of a DINO (or any other timm) vision transformer.

    Photos are RGB in [0, 1]; the network's own mean and standard deviation are applied here, so
    that training and use cannot differ in it. Frozen blocks run without a graph; weights are random
    unless the configuration says where to take them from.

    Raises:
        ConfigError: timm does not know the model, or it is no vision transformer, or fewer blocks
            exist than are to be frozen.
        CheckpointError: the weights cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DinoSupportConfig | None = None) -> None:
        super().__init__()
        self.config = config or DinoSupportConfig()
        self.encoder = _load_timm(self.config)
        self.patch = self.cell = int(self.encoder.patch_embed.patch_size[0])
        self.channels = int(self.encoder.num_features)
        stated: Mapping[str, Any] = self.encoder.pretrained_cfg or {}
        for name, fallback in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            value = torch.tensor(stated.get(name, fallback)).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.freeze_blocks()

    def freeze_blocks(self) -> None:
        """Takes the gradient off what the configuration freezes."""
        blocks, frozen = self.encoder.blocks, self.config.frozen_blocks
        if frozen > len(blocks):
            raise ConfigError(
                f"DinoSupport: {frozen} blocks are to be frozen, but {self.config.model} has "
                f"{len(blocks)}."
            )
        if frozen == 0:
            return
        self.encoder.requires_grad_(False)
        if frozen < len(blocks):
            for part in (*blocks[frozen:], self.encoder.norm):
                part.requires_grad_(True)

    def forward(self, photos: Tensor) -> Tensor:
        """P 3 h w -> P T C: the class token, then the patches row by row.

        Raises:
            UsageError: h or w is no multiple of the patch size.
        """
        if photos.shape[-2] % self.patch or photos.shape[-1] % self.patch:
            raise UsageError(
                f"encoding reference photos with {self.config.model}: they are "
                f"{photos.shape[-2]}x{photos.shape[-1]} pixels; both sides have to be multiples of "
                f"its patch size, {self.patch}."
            )
        tokens = self.encoder.forward_features((photos - self.mean) / self.std)
        prefix = int(
            self.encoder.num_prefix_tokens
        )  # class token, then registers: not image places
        return torch.cat((tokens[:, : min(prefix, 1)], tokens[:, prefix:]), dim=1)


def _load_timm(config: DinoSupportConfig) -> Any:
    import timm

    if not timm.is_model(config.model.split(".")[0]):
        raise ConfigError(
            f"DinoSupport: timm {timm.__version__} knows no model {config.model!r}; "
            'timm.list_models("*dino*") lists what it knows.'
        )
    from_hub = config.pretrained and config.weights is None
    try:  # A dynamic size: position embeddings then fit photos of any size.
        encoder = timm.create_model(
            config.model, pretrained=from_hub, num_classes=0, dynamic_img_size=True
        )
    except TypeError as error:
        raise ConfigError(
            f"DinoSupport: {config.model} is no vision transformer of timm ({error}); a model with "
            "patch tokens is needed, such as vit_small_patch16_dinov3."
        ) from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"loading weights of {config.model} from the hub failed: {first_line(error)}\n"
            "Give a local file of them (.safetensors or .pth), run once where the hub can be "
            "reached, or start from random weights (no --pretrained)."
        ) from error
    if config.weights is not None:
        _load_file(encoder, config.model, config.weights)
    return encoder


def _load_file(encoder: Any, model: str, path: Path) -> None:
    """Strictly: timm's own loading passes over tensors that the file does not have."""
    state: Mapping[str, Tensor] = read_tensors(
        path, doing=f"loading weights of {model} from {path}", wrappers=WRAPPERS
    )
    renaming = import_module(type(encoder).__module__)  # from the publisher's names to timm's
    if hasattr(renaming, "checkpoint_filter_fn"):
        state = renaming.checkpoint_filter_fn(state, encoder)
    own = encoder.state_dict()
    missing = [name for name in own if name not in state]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    for names, what in ((missing, "has no"), (wrong, "has another shape of")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"loading weights of {model} from {path}: the file {what} "
                f"{', '.join(names[:3])}{more}; it is of another network.",
                path=path,
            )
    encoder.load_state_dict({name: state[name] for name in own})
