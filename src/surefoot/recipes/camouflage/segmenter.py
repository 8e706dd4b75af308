"""A trained segmenter, from a run folder, a checkpoint or an ONNX file.

from surefoot import Segmenter

segmenter = Segmenter.load("runs/camouflage-20260102-030405")
mask = segmenter.mask(image)  # H W 3 bytes in, H W probabilities out
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.recipes.camouflage.build import build_model
from surefoot.recipes.camouflage.config import CamouflageConfig
from surefoot.recipes.camouflage.validate import Masks, enlarged
from surefoot.recipes.hardware import Amp
from surefoot.recipes.onnx_file import onnx_session
from surefoot.recipes.run_folder import CONFIG, run_folder_of
from surefoot.recipes.session import find_checkpoint

__all__ = ["Segmenter"]

Picture = NDArray[np.uint8]
Chances = NDArray[np.float32]


class Segmenter:
    """Gives masks of pictures.

    Args:
        logits: B 3 S S in [0, 1] -> B 1 S S.
        size: S, in pixels.
        source: what it was loaded from, for messages.
        masks: the network, where it is one of torch.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        size: int,
        source: str,
        masks: Masks | None = None,
    ) -> None:
        self._logits, self.size, self.source, self.masks = logits, size, source, masks

    @classmethod
    def load(
        cls, path: Path | str, *, device: str = "cpu", amp: Amp = None, weights: str | None = None
    ) -> Self:
        """From a run folder (its best checkpoint), one of its checkpoints, or an ``.onnx`` file.

        Args:
            path: of one of these.
            device: where to compute; an ONNX file is run on the CPU.
            amp: half precision.
            weights: ``model`` or ``ema``; those that the checkpoint's score was measured on where
                it is not given.

        Raises:
            ConfigError: no run's checkpoint and no ONNX file.
            CheckpointError: nothing whole is there, or it has no such weights.
        """
        path = Path(path)
        if path.suffix == ".onnx":
            return cls._of_onnx(path)
        config = CamouflageConfig.load(run_folder_of(path, flag="--checkpoint") / CONFIG)
        found, _ = find_checkpoint(path, best=True)
        name = weights or found.measured_on or ("ema" if "ema" in found.weights else "model")
        if name not in found.weights:
            raise CheckpointError(
                f"{found.path}: has no weights {name!r}; it has {sorted(found.weights)}.",
                path=found.path,
            )
        model = build_model(config.model, weights=False)
        model.load_state_dict(found.load_weights(name))
        place = torch.device(device)
        masks = Masks(model.eval().to(place), place, amp)
        return cls(masks.logits, config.data.img_size, f"{found.path} ({name} weights)", masks)

    @classmethod
    def _of_onnx(cls, path: Path) -> Self:
        session = onnx_session(path)
        shape = session.get_inputs()[0].shape
        if len(shape) != 4 or shape[1] != 3 or not isinstance(shape[-1], int):
            raise ConfigError(
                f"{path}: its input is {shape}; expected B 3 S S, as surefoot export camouflage "
                "writes it."
            )

        def logits(images: Tensor) -> Tensor:
            (found,) = session.run(None, {"images": images.cpu().numpy()})
            return torch.from_numpy(found)

        return cls(logits, shape[-1], str(path))

    def mask(self, picture: Picture) -> Chances:
        """The probability of "object" for every pixel.

        Args:
            picture: H W 3, RGB bytes.

        Returns:
            H W, float32, 0 to 1.

        Raises:
            UsageError: no H W 3 bytes.
        """
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise UsageError(
                f"segmenting: a picture of shape {picture.shape} and {picture.dtype}; expected "
                "H W 3, RGB bytes."
            )
        planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, -1, 0)))
        small = F.resize(planes, [self.size, self.size], antialias=True)
        logits = self._logits(small[None].float() / 255)
        return enlarged(logits, picture.shape[:2])
