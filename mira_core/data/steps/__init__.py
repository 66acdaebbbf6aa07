"""The steps of a recipe; `STEPS` holds them by name, in the order in which they make sense."""

from .base import STEPS, Step, make_step
from .counts import Binarise, CountsFromLayer, CountsFromRaw, ReadsToFragments, RecoverCounts, StoreByRow
from .selecting import (
    DropEmptyCells,
    DropEmptyFeatures,
    DropMissing,
    DropRareCategories,
    FilterCells,
    FilterFeatures,
    HighlyVariable,
    KeepFeatures,
    MakeNamesUnique,
)  # fmt: skip

__all__ = [
    "STEPS", "Binarise", "CountsFromLayer", "CountsFromRaw", "DropEmptyCells", "DropEmptyFeatures", "DropMissing",
    "DropRareCategories", "FilterCells", "FilterFeatures", "HighlyVariable", "KeepFeatures", "MakeNamesUnique",
    "ReadsToFragments", "RecoverCounts", "Step", "StoreByRow", "make_step",
]  # fmt: skip
