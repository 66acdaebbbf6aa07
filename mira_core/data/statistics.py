"""What is learned from the training cells before any training, and saved with the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .counts import Cells
from .lsi import LSI, learn_lsi


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
    lsi
        Projection of the peaks, for the encoder that needs one.
    """

    n_cells: int
    mean_profile: np.ndarray
    endogenous_share: np.ndarray
    endogenous_depth: float
    lsi: LSI | None = None


def learn(cells: Cells, lsi_components: int = 0, seed: int = 0) -> Statistics:
    """Learn the statistics of training cells, with an LSI of so many components if any."""
    totals = cells.counts.feature_totals()
    endogenous = totals[cells.endogenous]
    profile = totals + 0.5
    return Statistics(
        n_cells=len(cells),
        mean_profile=profile / profile.sum(),
        endogenous_share=endogenous / endogenous.sum(),
        endogenous_depth=float(endogenous.sum() / len(cells)),
        lsi=learn_lsi(cells.counts, cells.endogenous, lsi_components, seed) if lsi_components else None,
    )
