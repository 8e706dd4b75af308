"""Images of camouflaged objects with their masks: files in any layout, and procedural ones."""

from surefoot.data.camouflage.augment import Augment
from surefoot.data.camouflage.baselines import (
    Predictor,
    centre_gaussian,
    colour_saliency,
    mean_mask,
    nothing,
    otsu,
)
from surefoot.data.camouflage.dataset import CamouflageDataset
from surefoot.data.camouflage.files import read_mask, read_picture
from surefoot.data.camouflage.items import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CamouflageItems,
    EvaluationItems,
    Item,
    collate_evaluation,
    normalise,
)
from surefoot.data.camouflage.pairs import LEAKED, Pair, PairList, find_pairs, find_test_sets
from surefoot.data.camouflage.procedural import ProceduralCamouflage
from surefoot.data.camouflage.report import PairReport
from surefoot.data.camouflage.split import hold_out

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LEAKED",
    "Augment",
    "CamouflageDataset",
    "CamouflageItems",
    "EvaluationItems",
    "Item",
    "Pair",
    "PairList",
    "PairReport",
    "Predictor",
    "ProceduralCamouflage",
    "centre_gaussian",
    "collate_evaluation",
    "colour_saliency",
    "find_pairs",
    "find_test_sets",
    "hold_out",
    "mean_mask",
    "normalise",
    "nothing",
    "otsu",
    "read_mask",
    "read_picture",
]
