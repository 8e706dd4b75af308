"""Predictions that took no training: a model that does not beat them has learned nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from surefoot.data.camouflage.augment import resize_pair
from surefoot.data.camouflage.items import CamouflageItems
from surefoot.errors import ConfigError

__all__ = ["Predictor", "centre_gaussian", "colour_saliency", "mean_mask", "nothing", "otsu"]

Picture = NDArray[np.uint8]
Chances = NDArray[np.float32]
Predictor = Callable[[Picture], Chances]
"""Of an image, H W 3 RGB bytes, says where the object is: H W, float32, 0 to 1."""


def nothing(image: Picture) -> Chances:
    """No object anywhere.

    >>> nothing(np.zeros((2, 3, 3), dtype=np.uint8)).shape
    (2, 3)
    """
    return np.zeros(image.shape[:2], dtype=np.float32)


def centre_gaussian(image: Picture, *, sigma: float = 0.2) -> Chances:
    """Something in the middle: a Gaussian of ``sigma`` sides, 1 at its top.

    >>> centre_gaussian(np.zeros((3, 3, 3), dtype=np.uint8)).argmax()
    np.int64(4)
    """
    height, width = image.shape[:2]
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    return np.exp(-(y[:, None] ** 2 + x**2) / (2 * sigma**2)).astype(np.float32)


def otsu(image: Picture) -> Chances:
    """The smaller of the two classes that Otsu's threshold (1979) parts the brightness in.

    >>> picture = np.zeros((4, 4, 3), dtype=np.uint8)
    >>> picture[1, 1:3] = 200
    >>> otsu(picture)[1].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    grey = np.array(Image.fromarray(image).convert("L"))
    counts = np.bincount(grey.ravel(), minlength=256) / grey.size
    below = np.cumsum(counts)
    part = np.cumsum(counts * np.arange(256))
    room = below * (1 - below)
    between = np.divide((part[-1] * below - part) ** 2, room, out=np.zeros(256), where=room > 1e-12)
    bright = grey > int(between.argmax())
    return (bright if bright.mean() <= 0.5 else ~bright).astype(np.float32)


def colour_saliency(image: Picture) -> Chances:
    """How far each colour is from the mean colour, 1 at the farthest (after Achanta et al. 2009).

    >>> float(colour_saliency(np.full((2, 2, 3), 7, dtype=np.uint8)).max())
    0.0
    """
    colours = image.astype(np.float32)
    distance = np.linalg.norm(colours - colours.mean(axis=(0, 1)), axis=-1)
    return (distance / max(float(distance.max()), 1e-6)).astype(np.float32)


def mean_mask(training: CamouflageItems, *, size: int = 96) -> Predictor:
    """Where the objects of the training masks are on average, whatever the image shows.

    Args:
        training: whose masks; never augmented.
        size: side of the mean in pixels, before it is brought to an image's size.

    Raises:
        ConfigError: there are no masks.
    """
    if not len(training):
        raise ConfigError("mean_mask: the data set has no items; there is no mask to average.")
    total = np.zeros((size, size))
    for index in range(len(training)):
        image, mask = training.original(index)
        planes = torch.from_numpy(np.moveaxis(image, -1, 0)[:, :1, :1].copy())
        total += resize_pair(planes, torch.from_numpy(mask.copy()), size)[1].numpy()
    mean = Image.fromarray((total / len(training)).astype(np.float32))

    def predict(image: Picture) -> Chances:
        height, width = image.shape[:2]
        return np.asarray(mean.resize((width, height), Image.Resampling.BILINEAR))

    return predict
