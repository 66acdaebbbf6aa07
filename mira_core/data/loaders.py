"""The order in which cells are seen, and how minibatches come to the device.

Shapes: B cells in a minibatch, S steps of an epoch, L non-zeros of the cell that has most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from .counts import Batch, Cells

if TYPE_CHECKING:
    import torch

DENSE = 2**24  # numbers of a minibatch that is only read, at most
AHEAD = 2  # minibatches made while the model computes
T = TypeVar("T")
U = TypeVar("U")


def steps_per_epoch(n_cells: int, batch_size: int) -> int:
    """Return the number of full minibatches; with fewer cells than one, all of them make one."""
    return max(1, n_cells // batch_size)


def shuffled(n_cells: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the cells of each step of one epoch, S x B: in random order, the incomplete last minibatch dropped."""
    steps, size = steps_per_epoch(n_cells, batch_size), min(batch_size, n_cells)
    return rng.permutation(n_cells)[: steps * size].reshape(steps, size)


def in_order(cells: Cells, batch_size: int = 512) -> Iterator[Batch]:
    """Every cell once, in the order of the data; fewer at once where there are many features."""
    size = max(1, min(batch_size, DENSE // cells.counts.shape[1]))
    for start in range(0, len(cells), size):
        yield cells.batch(np.arange(start, min(start + size, len(cells))))


def ahead(make: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Make one thing of each item, in order, in a thread that is a few of them ahead."""
    with ThreadPoolExecutor(1, "minibatches") as pool:
        pending: list[Future[U]] = []
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > AHEAD:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()


class DeviceCells:
    """Cells whose counts lie on a device, sparse, and whose minibatches are assembled there.

    Every array has the same shape in every minibatch of B cells: each cell is read as if it had as many non-zeros as
    the one that has most, and what is beyond its own adds zeros. So a graph of the device can hold it.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        import torch

        m = cells.counts.to_csr()
        self.starts = torch.from_numpy(m.indptr.astype(np.int64)).to(device)
        self.indices, self.values = (torch.from_numpy(a).to(device) for a in (m.indices.astype(np.int32), m.data))
        self.covariates, self.extra = (torch.from_numpy(a).to(device) for a in (cells.covariates, cells.extra))
        self.offsets_L = torch.arange(int(np.diff(m.indptr).max()), device=device)
        self.n_features = m.shape[1]

    @staticmethod
    def size(cells: Cells) -> int:
        """Return the bytes that it would take on the device."""
        return 8 * int(cells.counts.lengths.sum()) + 8 * len(cells) + cells.covariates.nbytes + cells.extra.nbytes

    def batch(self, rows_B: torch.Tensor) -> Batch:
        """Assemble the minibatch of these cells (row numbers, int64, on the device)."""
        starts_B = self.starts[rows_B]
        at_BL = starts_B[:, None] + self.offsets_L
        beyond_BL = at_BL >= self.starts[rows_B + 1][:, None]
        at_BL = at_BL.clamp_(max=len(self.values) - 1)
        counts_BL = self.values[at_BL].masked_fill_(beyond_BL, 0.0)
        counts_BG = counts_BL.new_zeros(len(rows_B), self.n_features)
        counts_BG.scatter_add_(1, self.indices[at_BL].long(), counts_BL)
        return Batch.of_counts(counts_BG, self.covariates[rows_B], self.extra[rows_B])
