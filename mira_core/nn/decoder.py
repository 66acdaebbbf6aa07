"""From a cell's topics, and its technical covariates, to its relative frequencies of features.

`signal` is the plain way, cell by feature. `linear` gives the same as a linear map of a few numbers per cell: a batch
normalisation of x W is linear in x, its variances are quadratic forms of W, and so neither needs a B x G array.

Shapes: B cells, C covariate columns, G modelled features, K topics, J inputs of a linear map.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..data.statistics import Statistics
from .blocks import block, by_input, linear
from .gradients import with_gradients


class Linear(NamedTuple):
    """A number for each cell and feature, x W + b, or that and `rest`.

    Attributes
    ----------
    x_BJ, weight_JG, bias_G
        The linear map, and what it is applied to.
    rest_BG
        What is added and is not linear; None: nothing.
    """

    x_BJ: torch.Tensor
    weight_JG: torch.Tensor
    bias_G: torch.Tensor
    rest_BG: torch.Tensor | None = None

    def dense(self) -> torch.Tensor:
        """Return all the numbers, B x G."""
        out_BG = torch.addmm(self.bias_G, self.x_BJ, self.weight_JG)
        return out_BG if self.rest_BG is None else out_BG + self.rest_BG


class Decoder(nn.Module):
    """The biological signal: log rho = log softmax(base + BatchNorm(beta^T theta)).

    `base_G`, the centred log of the training cells' mean profile, is where the decoder starts; what the
    BatchNorm's bias learns comes on top, so that weight decay pulls towards the mean profile and not to a flat one.
    """

    base_G: torch.Tensor

    def __init__(self, num_topics: int, statistics: Statistics) -> None:
        super().__init__()
        base = torch.from_numpy(statistics.mean_profile).log()
        self.register_buffer("base_G", (base - base.mean()).float())
        self.beta = by_input(linear(num_topics, len(base)))
        self.norm = nn.BatchNorm1d(len(base))

    def signal(self, theta_BK: torch.Tensor) -> torch.Tensor:
        """Return BatchNorm(beta^T theta), B x G."""
        return self.norm(self.beta(theta_BK))

    def linear(self, theta_BK: torch.Tensor, *, aside: bool = False) -> Linear:
        """Return the signal as a linear map; `aside` leaves the running statistics as they are."""
        return normalised(theta_BK, self.beta, self.norm, aside=aside)

    def forward(self, theta_BK: torch.Tensor) -> torch.Tensor:
        """Return log rho without technical effects, B x G."""
        return F.log_softmax(self.base_G + self.signal(theta_BK), dim=1)

    def effects(self) -> torch.Tensor:
        """Return how far a cell of one topic alone is moved from the average cell, in natural-log units, K x G."""
        return self.norm.weight * self._standardised()

    def squared_effects(self) -> torch.Tensor:
        """Return the sum of the squared effects."""
        with torch.no_grad():
            standardised_KG, weight_G = self._standardised(), self.norm.weight
            squares_G = standardised_KG.square().sum(0)
            by_weight_G = 2 * weight_G * squares_G
            total = 0.5 * torch.dot(weight_G, by_weight_G)
            by_beta_KG = standardised_KG.mul_(2 * weight_G.square() * self._inverse_deviations())
        return with_gradients(total, (self.beta.weight, by_beta_KG.T), (weight_G, by_weight_G))

    def _inverse_deviations(self) -> torch.Tensor:
        return (self.norm.get_buffer("running_var") + self.norm.eps).rsqrt_()

    def _standardised(self) -> torch.Tensor:
        return (self.beta.weight.T - self.norm.get_buffer("running_mean")) * self._inverse_deviations()

    @torch.no_grad()
    def activations(self) -> torch.Tensor:
        """Topic-feature activations, K x G: how far each topic moves each feature, in standard deviations.

        sign(weight) * (beta - running_mean) / sqrt(running_var + eps), after MIRA (Lynch et al. 2022).
        """
        return torch.sign(self.norm.weight) * self._standardised()

    @torch.no_grad()
    def topic_distributions(self) -> torch.Tensor:
        """Return each topic's distribution over features, K x G, rows sum to 1."""
        return F.softmax(self.effects() + self.norm.bias + self.base_G, dim=1)


class TechnicalDecoder(nn.Module):
    """The technical signal of CODAL: gamma * BatchNorm(W h([theta, c]) + b), added to the biological one.

    `h` is one block; the BatchNorm has no weights of its own, and gamma starts at zero, so that training starts
    without technical effects. (Lynch et al., Nature Communications 2023.)

    log cosh(gamma) is taken off, so that over two batches of equal size a feature's effect averages to 1 rather than
    its logarithm to 0; otherwise frequencies without technical effects come out too low where effects are strong.
    """

    def __init__(self, num_topics: int, n_covariates: int, n_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = block(num_topics + n_covariates, hidden, dropout)
        self.out = by_input(linear(hidden, n_features, bias=True))
        self.norm = nn.BatchNorm1d(n_features, affine=False)
        self.gamma_G = nn.Parameter(torch.zeros(n_features))

    def signal(self, theta_BK: torch.Tensor, covariates_BC: torch.Tensor) -> torch.Tensor:
        """Return the technical effects, B x G."""
        h = self.hidden(torch.cat([theta_BK, covariates_BC], dim=1))
        return self.gamma_G * self.norm(self.out(h)) - log_cosh(self.gamma_G)

    def linear(self, theta_BK: torch.Tensor, covariates_BC: torch.Tensor, *, aside: bool = False) -> Linear:
        """Return the technical effects as a linear map; `aside` leaves the running statistics as they are."""
        x = torch.cat([theta_BK, covariates_BC], dim=1)
        if aside:
            first, norm, *others = self.hidden
            assert isinstance(norm, nn.BatchNorm1d)
            h = normalise_aside(first(x), norm)
            for layer in others:
                h = layer(h)
        else:
            h = self.hidden(x)
        plain = normalised(h, self.out, self.norm, aside=aside)
        return Linear(h, plain.weight_JG * self.gamma_G, plain.bias_G * self.gamma_G - log_cosh(self.gamma_G))


def normalised(x_BJ: torch.Tensor, layer: nn.Linear, norm: nn.BatchNorm1d, *, aside: bool = False) -> Linear:
    """Return norm(layer(x)) as a linear map of x; `aside` leaves the running statistics as they are."""
    weight_JG: torch.Tensor = layer.weight.T
    if norm.training:  # a bias of the layer moves its mean alike, and is taken off again
        weight_JG, shift_G, mean_G, variance_G = _Standardised.apply(x_BJ, weight_JG, norm.eps)
        if not aside:
            _follow(norm, mean_G if layer.bias is None else mean_G + layer.bias, variance_G, len(x_BJ))
    else:
        inverse_G = (norm.get_buffer("running_var") + norm.eps).rsqrt()
        shift_G = -norm.get_buffer("running_mean")
        if layer.bias is not None:
            shift_G = shift_G + layer.bias
        weight_JG, shift_G = weight_JG * inverse_G, shift_G * inverse_G
    if not norm.affine:
        return Linear(x_BJ, weight_JG, shift_G)
    return Linear(x_BJ, weight_JG * norm.weight, shift_G * norm.weight + norm.bias)


class _Standardised(torch.autograd.Function):
    """W / s and -m / s with the means m and standard deviations s of the columns of x W over the cells.

    The variance is the mean square of the columns of c W, with c = x - mean(x). With c = Q R it is that of R W, which
    has J rows in place of B. As a quadratic form of c'c it would be cheaper still, but lose half of the digits where
    topics hardly differ. Means and variances are given too, without gradients.
    """

    @staticmethod
    def forward(ctx: Any, x_BJ: torch.Tensor, weight_JG: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        n, J = x_BJ.shape
        mean_J = x_BJ.mean(0)
        centred = (x_BJ - mean_J).mul_(n**-0.5)
        q, r = torch.linalg.qr(centred) if n > J and centred.device.type == "cpu" else (None, centred)
        rw = r @ weight_JG
        variance_G, mean_G = rw.square().sum(0), mean_J @ weight_JG
        inverse_G = (variance_G + eps).rsqrt_()
        scaled_JG, shift_G = weight_JG * inverse_G, -mean_G * inverse_G
        ctx.save_for_backward(weight_JG, scaled_JG, shift_G, inverse_G, rw, r, q, mean_J)
        ctx.mark_non_differentiable(mean_G, variance_G)
        ctx.n = n
        return scaled_JG, shift_G, mean_G, variance_G

    @staticmethod
    def backward(
        ctx: Any, by_scaled_JG: torch.Tensor, by_shift_G: torch.Tensor, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        weight_JG, scaled_JG, shift_G, inverse_G, rw, r, q, mean_J = ctx.saved_tensors
        # d s^-1 / d variance = -s^-3 / 2
        through_G = (by_scaled_JG * scaled_JG).sum(0).addcmul_(by_shift_G, shift_G).mul_(inverse_G.square())
        by_rw = rw.mul(-through_G)
        by_r = by_rw @ weight_JG.T
        by_mean_G = by_shift_G * -inverse_G
        by_mean_J = weight_JG @ by_mean_G
        by_weight_JG = torch.mul(by_scaled_JG, inverse_G).addmm_(r.T, by_rw)
        by_weight_JG.addr_(mean_J, by_mean_G)
        by_x_BJ = (by_r if q is None else q @ by_r).mul_(ctx.n**-0.5)
        by_x_BJ += (by_mean_J / ctx.n) - by_x_BJ.mean(0)
        return by_x_BJ, by_weight_JG, None


@torch.no_grad()
def _follow(norm: nn.BatchNorm1d, mean_G: torch.Tensor, variance_G: torch.Tensor, n: int) -> None:
    """Move the running statistics as the batch normalisation itself does."""
    assert norm.momentum is not None
    norm.get_buffer("running_mean").lerp_(mean_G, norm.momentum)
    norm.get_buffer("running_var").lerp_(variance_G * (n / max(n - 1, 1)), norm.momentum)
    norm.get_buffer("num_batches_tracked").add_(1)


def log_cosh(x: torch.Tensor) -> torch.Tensor:
    """Return log cosh(x) without overflow."""
    return x + F.softplus(-2 * x) - math.log(2)


def normalise_aside(x: torch.Tensor, norm: nn.BatchNorm1d) -> torch.Tensor:
    """Apply a batch normalisation without a trace in its running statistics."""
    if not norm.training:
        return norm(x)
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
