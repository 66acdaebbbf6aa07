"""What data a study is of: for people a name, for the tuner a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.counts import Cells
from ..data.formats import join_part, split_part
from ..data.on_disk import OnDiskDataset
from ..data.sources import Data


class Origin(NamedTuple):
    """What people call the data: a path or ``demo:NAME``, and the steps of the recipe that was done to it."""

    data: str | None
    recipe: list[dict[str, Any]] | None = None


def origin_of(data: Data) -> Origin | None:
    """Return the path of data, None if they are in memory."""
    if isinstance(data, OnDiskDataset):
        return Origin(str(data.path.resolve()))
    if isinstance(data, str | Path):
        path, part = split_part(data)
        return Origin(join_part(path.resolve(), part))
    return None


def digest(*parts: Cells) -> str:
    """Return a name for these cells that does not depend on how they are stored."""
    made = hashlib.sha256()
    for cells in parts:
        made.update(repr((cells.counts.shape, cells.features.tolist())).encode())
        for array in (cells.counts.depths(), cells.counts.feature_totals(), cells.endogenous):
            made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()
