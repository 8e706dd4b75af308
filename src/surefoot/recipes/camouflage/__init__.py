"""The camouflage trainer: settings, program, masks and scores."""

from surefoot.recipes.camouflage.config import CamouflageConfig

__all__ = ["CamouflageConfig"]
