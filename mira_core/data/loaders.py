"""The order in which cells are seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .counts import Batch, Cells


def steps_per_epoch(n_cells: int, batch_size: int) -> int:
    """Return the number of full minibatches; with fewer cells than one, all of them make one."""
    return max(1, n_cells // batch_size)


def shuffled(cells: Cells, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """One epoch: cells in random order, in full minibatches; the incomplete last one is dropped."""
    order = rng.permutation(len(cells))
    size = min(batch_size, len(cells))
    for i in range(steps_per_epoch(len(cells), batch_size)):
        yield cells.batch(order[i * size : (i + 1) * size])


def in_order(cells: Cells, batch_size: int = 512) -> Iterator[Batch]:
    """Every cell once, in the order of the data."""
    for start in range(0, len(cells), batch_size):
        yield cells.batch(np.arange(start, min(start + batch_size, len(cells))))
