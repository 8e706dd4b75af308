"""Camouflaged-object segmentation: a pretrained pyramid, a gated decoder, and a mask at the end."""

from surefoot.models.camouflage.encoder import TimmEncoder, TinyEncoder
from surefoot.models.camouflage.experts import Experts
from surefoot.models.camouflage.net import CamouflageNet
from surefoot.models.camouflage.output import CamouflageOutput
from surefoot.models.camouflage.stages import (
    freeze_backbone,
    parameter_groups,
    unfreeze_backbone,
)

__all__ = [
    "CamouflageNet",
    "CamouflageOutput",
    "Experts",
    "TimmEncoder",
    "TinyEncoder",
    "freeze_backbone",
    "parameter_groups",
    "unfreeze_backbone",
]
