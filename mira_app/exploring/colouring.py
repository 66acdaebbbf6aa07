"""What the cells are coloured by, as one text that a link can hold.

``main topic``, ``topic_3``, ``selection``, the name of a column, or a feature and how it is shown: ``log:CD3D``,
``raw:CD3D``, ``imputed:CD3D``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mira_core.errors import DataError

from ..figures.colours import categories
from ..figures.embedding import paint_of, scale_of
from ..figures.raster import Paint
from .cells import TOPIC, Cells
from .values import HOW, TITLES, Progress, Values

MAIN, SELECTION = "main topic", "selection"
SELECTED_COLOURS = ("#d55e00", "#9a9a9a")


def of_feature(key: str, cells: Cells) -> tuple[str, str] | None:
    """Return how and which feature a colouring shows; None if it shows none."""
    how, _, feature = key.partition(":")
    return (how, feature) if how in HOW and feature and key not in cells.columns else None


def is_known(key: str, cells: Cells, columns: Mapping[str, pd.Series]) -> bool:
    """Tell whether cells can be coloured by this."""
    shown = of_feature(key, cells)
    if shown is not None:
        return shown[1] in cells.features
    return key in (MAIN, SELECTION) or key in cells.topics or key in columns or key in cells.columns


def paint(
    key: str, cells: Cells, values: Values, columns: Mapping[str, pd.Series], selected: np.ndarray | None,
    progress: Progress,
) -> Paint:  # fmt: skip
    """Return the colours of the cells.

    Parameters
    ----------
    key
        By what.
    cells, values
        Of the run.
    columns
        Further columns, such as selections that were kept.
    selected
        Which cells are selected, N booleans; None: none.
    progress
        Called with the share that is done, where it takes long.

    Raises
    ------
    DataError
        If there is no such thing.
    """
    if key == MAIN:
        levels = tuple(f"topic {k}" for k in range(cells.K))
        return Paint("Topic with the largest share", codes=cells.main, levels=levels, colours=topic_colours(cells.K))
    if key in columns:
        return paint_of(key, columns[key])
    if key == SELECTION and key not in cells.columns:
        mask = np.zeros(cells.n, bool) if selected is None else selected
        return Paint(f"{mask.sum():,} selected cells", codes=np.where(mask, 0, 1).astype(np.int8),
                     levels=("selected", "others"), colours=SELECTED_COLOURS)  # fmt: skip
    if TOPIC.fullmatch(key) and key in cells.topics:
        v = np.ascontiguousarray(cells.theta[:, int(key.removeprefix("topic_"))])
        low, high = scale_of(v)
        return Paint(key.replace("topic_", "Topic ") + ", share of the cell", numbers=v, low=low, high=high)
    shown = of_feature(key, cells)
    if shown is not None:
        how, feature = shown
        v = values.of(feature, how, progress)
        low, high = scale_of(v)
        label = cells.labels[values.position(feature)]
        return Paint(f"{label}, {TITLES[how]}", numbers=v, low=min(low, 0.0), high=high)
    if key in cells.columns:
        return paint_of(key, cells.column(key))
    raise DataError(f"cells cannot be coloured by {key!r}: there is no such topic, column or feature")


def topic_colours(n: int) -> tuple[str, ...]:
    """Return the colours of topics, the same on every page."""
    return tuple(categories(n))
