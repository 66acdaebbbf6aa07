"""What is learned from the training cells before any training, and saved with the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .counts import Cells


@dataclass(frozen=True)
class Statistics:
    """Frequencies and depths of the training cells.

    Attributes
    ----------
    n_cells
        Training cells, N.
    mean_profile
        Share of each modelled feature in the pooled counts, half a count added to each; sums to 1; G.
    endogenous_share
        Share of each encoder feature in the pooled counts of encoder features, E.
    endogenous_depth
        Mean counts of a cell over the encoder features.
    """

    n_cells: int
    mean_profile: np.ndarray
    endogenous_share: np.ndarray
    endogenous_depth: float


def learn(cells: Cells) -> Statistics:
    """Learn the statistics of training cells."""
    totals = cells.counts.feature_totals()
    endogenous = totals[cells.endogenous]
    profile = totals + 0.5
    return Statistics(
        n_cells=len(cells),
        mean_profile=profile / profile.sum(),
        endogenous_share=endogenous / endogenous.sum(),
        endogenous_depth=float(endogenous.sum() / len(cells)),
    )
