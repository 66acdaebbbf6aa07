"""How much a cell's technical signal tells of its biological one: the penalty of CODAL.

Shapes: B cells, G modelled features, P mismatched pairs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .blocks import SpectralLinear
from .decoder import Linear


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
        self, biological: Linear, technical: Linear, one_P: torch.Tensor, other_P: torch.Tensor
    ) -> torch.Tensor:
        """Estimate the dependence from matched pairs, and mismatched pairs (`one_P`, `other_P`) of rows."""
        first, *others = self.critic
        assert isinstance(first, SpectralLinear)
        # The first layer is linear in both signals, which are linear themselves: no pair is ever put together.
        by_biological_HG, by_technical_HG = first.weight.view(len(first.weight), 2, -1).unbind(1)
        one_BH, other_BH = _through(biological, by_biological_HG), _through(technical, by_technical_HG)
        summed = torch.cat([one_BH + other_BH, one_BH[one_P] + other_BH[other_P]])
        h = summed / first.largest() + first.bias
        for layer in others:
            h = layer(h)
        t, n = h[:, 0], len(one_BH)
        return t[:n].mean() - (t[n:].logsumexp(0) - math.log(len(one_P)))


def _through(signal: Linear, weight_HG: torch.Tensor) -> torch.Tensor:
    """Return signal times weight, B x H, the small factors first."""
    by_feature_GH = weight_HG.T
    return torch.addmm(signal.bias_G @ by_feature_GH, signal.x_BJ, signal.weight_JG @ by_feature_GH)


def mismatched_pairs(
    n_cells: int, n_pairs: int, generator: torch.Generator | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pairs of different rows, P and P."""
    one = torch.randint(n_cells, (n_pairs,), generator=generator, device=device)
    step = torch.randint(1, n_cells, (n_pairs,), generator=generator, device=device)
    return one, (one + step) % n_cells
