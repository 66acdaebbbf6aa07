"""How much a cell's technical signal tells of its biological one: the penalty of CODAL.

Shapes: B cells, G modelled features, P mismatched pairs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .blocks import SpectralLinear


class Dependence(nn.Module):
    """A critic T of pairs of signals, and the estimate of their dependence that it gives.

    D = mean_i T(bio_i, tech_i) - log mean_p exp T(bio_p, tech_p') over random pairs of different cells, a lower
    bound of their mutual information (Donsker & Varadhan); T is spectrally normalised, which bounds its slope, as
    in a Wasserstein dual. (Lynch et al., Nature Communications 2023.)
    """

    def __init__(self, n_features: int, hidden: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            SpectralLinear(2 * n_features, hidden), nn.ReLU(),
            SpectralLinear(hidden, hidden), nn.ReLU(),
            SpectralLinear(hidden, 1),
        )  # fmt: skip

    def forward(
        self, biological_BG: torch.Tensor, technical_BG: torch.Tensor, one_P: torch.Tensor, other_P: torch.Tensor
    ) -> torch.Tensor:
        """Estimate the dependence from matched pairs, and mismatched pairs (`one_P`, `other_P`) of rows."""
        matched = torch.cat([biological_BG, technical_BG], dim=1)
        mismatched = torch.cat([biological_BG[one_P], technical_BG[other_P]], dim=1)
        t = self.critic(torch.cat([matched, mismatched]))[:, 0]
        n = len(biological_BG)
        return t[:n].mean() - (t[n:].logsumexp(0) - math.log(len(one_P)))


def mismatched_pairs(
    n_cells: int, n_pairs: int, generator: torch.Generator | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pairs of different rows, P and P."""
    one = torch.randint(n_cells, (n_pairs,), generator=generator, device=device)
    step = torch.randint(1, n_cells, (n_pairs,), generator=generator, device=device)
    return one, (one + step) % n_cells
