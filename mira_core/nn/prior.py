"""Priors of the topics, and how far a cell's posterior is from them.

Both priors work on a cell's normal variable z, of which the encoder tells mean and scale; they differ in how z
becomes the composition theta.

Shapes: B cells, K topics.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F
from torch import nn

from .gradients import with_gradients


class DirichletPrior(nn.Module):
    """A Dirichlet with learned pseudocounts, in the softmax basis: theta = softmax(z).

    a_k ~ Gamma(2, 2 K / I) with I the initial pseudocounts, so that E[a_k] = I / K; the posterior is log-normal
    and starts at the prior's mean and variance.
    """

    SHAPE = 2.0

    def __init__(self, num_topics: int, initial_pseudocounts: float) -> None:
        super().__init__()
        mean = initial_pseudocounts / num_topics
        self.rate = self.SHAPE / mean
        variance_ratio = 1 / self.SHAPE  # variance over squared mean, of this Gamma
        s2 = math.log1p(variance_ratio)
        self.loc_K = nn.Parameter(torch.full((num_topics,), math.log(mean) - s2 / 2))
        self.log_scale_K = nn.Parameter(torch.full((num_topics,), 0.5 * math.log(s2)))

    @property
    def scale_K(self) -> torch.Tensor:
        """Scale of the log-normal posterior."""
        return self.log_scale_K.exp()

    def noise(self, generator: torch.Generator | None) -> torch.Tensor:
        """Draw what a divergence of the topics needs, K."""
        return torch.empty_like(self.loc_K).normal_(generator=generator)

    def fixed_noise(self, n: int) -> torch.Tensor:
        """Return noise for `n` draws that stand for the posterior, always the same, n x K."""
        return quasi_normal(n, len(self.loc_K)).to(self.loc_K)

    def divergence(self) -> torch.Tensor:
        """KL divergence of the pseudocounts' posterior from their prior.

        With E[log a] = m and E[a] = exp(m + s^2 / 2), by topic
        -log s - (1 + log 2 pi) / 2 - alpha m - alpha log beta + lgamma(alpha) + beta E[a].
        """
        with torch.no_grad():
            s2_K = (2 * self.log_scale_K).exp_()
            expected_K = (self.loc_K + s2_K / 2).exp_().mul_(self.rate)  # beta E[a]
            constant = math.lgamma(self.SHAPE) - self.SHAPE * math.log(self.rate) - 0.5 * (1 + math.log(2 * math.pi))
            total = (expected_K - self.log_scale_K).sub_(self.loc_K, alpha=self.SHAPE).add_(constant).sum()
            by_log_scale_K = s2_K.mul_(expected_K).sub_(1)
        return with_gradients(total, (self.loc_K, expected_K - self.SHAPE), (self.log_scale_K, by_log_scale_K))

    def topics_divergence(self, loc_BK: torch.Tensor, scale_BK: torch.Tensor, noise_K: torch.Tensor) -> torch.Tensor:
        """KL divergence of the cells' posteriors from the prior that the pseudocounts of a draw give, summed."""
        with torch.no_grad():
            K, spread_K = len(noise_K), self.scale_K * noise_K
            a_K = (self.loc_K + spread_K).exp()
            mu_K, sigma_K = laplace_approximation(a_K)
            total, by_loc, by_scale, by_mu_K, by_sigma_K = _normal_divergence(loc_BK, scale_BK, mu_K, sigma_K)
            # the variance is linear in 1 / a, and a = exp(m + s noise)
            by_variance_K = by_sigma_K / (2 * sigma_K)
            by_inverse_K = by_variance_K * (1 - 2 / K) + by_variance_K.sum() / K**2
            by_log_a_K = by_mu_K - by_mu_K.mean() - by_inverse_K / a_K
        own = (self.loc_K, by_log_a_K), (self.log_scale_K, by_log_a_K * spread_K)
        return with_gradients(total, (loc_BK, by_loc), (scale_BK, by_scale), *own)

    @torch.no_grad()
    def mean_topics_divergence(
        self, loc_BK: torch.Tensor, scale_BK: torch.Tensor, noise_SK: torch.Tensor
    ) -> torch.Tensor:
        """Mean of `topics_divergence` over several draws, without gradients.

        The cells enter by their sums of m, m^2 + s^2 and log s, which all draws share.
        """
        n, loc_BK, scale_BK = len(loc_BK), loc_BK.double(), scale_BK.double()
        mu_SK, sigma_SK = laplace_approximation((self.loc_K + self.scale_K * noise_SK).double().exp())
        off_SK = n * mu_SK.square() - 2 * mu_SK * loc_BK.sum(0) + (loc_BK.square() + scale_BK.square()).sum(0)
        by_topic_SK = off_SK / (2 * sigma_SK.square()) + n * (sigma_SK.log() - 0.5)
        return (by_topic_SK.sum(1).mean() - scale_BK.log().sum()).to(self.loc_K)

    def theta(self, z_BK: torch.Tensor) -> torch.Tensor:
        """Compositions, B x K."""
        return z_BK.softmax(-1)


class DirichletProcessPrior(nn.Module):
    """A Dirichlet process, truncated at K topics: theta by breaking a stick at v = sigmoid(z).

    alpha ~ Gamma(2, 0.5) with a Gamma posterior that starts there; v_ik ~ Beta(1, alpha). The stick is broken
    K - 1 times, and the last topic takes what is left.
    """

    SHAPE, RATE = 2.0, 0.5
    NODES = 32  # of the quadrature; exact to 1e-6 for scales up to 2.5, to 1e-5 up to 3

    nodes: torch.Tensor
    weights: torch.Tensor

    def __init__(self, num_topics: int) -> None:
        super().__init__()
        self.n_sticks = num_topics - 1
        self.log_shape = nn.Parameter(torch.tensor(math.log(self.SHAPE)))
        self.log_rate = nn.Parameter(torch.tensor(math.log(self.RATE)))
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.NODES)
        self.register_buffer("nodes", torch.from_numpy(nodes).float(), persistent=False)
        self.register_buffer("weights", torch.from_numpy(weights / weights.sum()).float(), persistent=False)

    def noise(self, generator: torch.Generator | None) -> torch.Tensor:
        """Draw what a divergence of the topics needs: a standard Gamma variable of the posterior's shape."""
        return torch._standard_gamma(self.log_shape.detach().exp(), generator=generator)

    def even_sticks(self) -> torch.Tensor:
        """Return the logits at which all topics have the same share, K - 1: 1 / K, 1 / (K - 1), ..., 1 / 2."""
        return -torch.arange(self.n_sticks, 0, -1).to(self.log_shape).log()

    def fixed_noise(self, n: int) -> torch.Tensor:
        """Return noise for `n` draws that stand for the posterior, always the same, n: quantiles."""
        shape = float(self.log_shape.detach().exp())
        return torch.from_numpy(scipy.special.gammaincinv(shape, (np.arange(n) + 0.5) / n)).to(self.log_shape)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the concentration alpha of a draw, with gradients by implicit reparameterisation."""
        shape = self.log_shape.exp()
        slope = torch._standard_gamma_grad(shape.detach().expand_as(noise), noise)
        return (noise + slope * (shape - shape.detach())) / self.log_rate.exp()

    def divergence(self) -> torch.Tensor:
        """KL divergence of the concentration's posterior from its prior."""
        shape, rate = self.log_shape.exp(), self.log_rate.exp()
        # unchecked, so that a training that diverges is told by its loss
        q = torch.distributions.Gamma(shape, rate, validate_args=False)
        hyper = torch.full_like(shape, self.SHAPE), torch.full_like(rate, self.RATE)
        p = torch.distributions.Gamma(*hyper, validate_args=False)
        return torch.distributions.kl_divergence(q, p)

    def topics_divergence(self, loc_BK: torch.Tensor, scale_BK: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """KL divergence of the cells' posteriors from the prior that the concentration of a draw gives, summed."""
        loc, scale = loc_BK[:, : self.n_sticks], scale_BK[:, : self.n_sticks]
        return logit_normal_beta_divergence(loc, scale, self.sample(noise), self.nodes, self.weights).sum()

    @torch.no_grad()
    def mean_topics_divergence(
        self, loc_BK: torch.Tensor, scale_BK: torch.Tensor, noise_S: torch.Tensor
    ) -> torch.Tensor:
        """Mean of `topics_divergence` over several draws, without gradients; linear in alpha and its logarithm."""
        alpha_S = self.sample(noise_S)
        mean = alpha_S.mean()
        loc, scale = loc_BK[:, : self.n_sticks], scale_BK[:, : self.n_sticks]
        at_mean = logit_normal_beta_divergence(loc, scale, mean, self.nodes, self.weights).sum()
        return at_mean + loc.numel() * (mean.log() - alpha_S.log().mean())

    def theta(self, z_BK: torch.Tensor) -> torch.Tensor:
        """Compositions, B x K."""
        z = z_BK[..., : self.n_sticks]
        log_left = F.logsigmoid(-z).cumsum(-1)
        first = torch.cat([torch.zeros_like(z[..., :1]), log_left], dim=-1)
        broken = torch.cat([F.logsigmoid(z), torch.zeros_like(z[..., :1])], dim=-1)
        return (first + broken).exp()


Prior = DirichletPrior | DirichletProcessPrior


def quasi_normal(n: int, dimension: int) -> torch.Tensor:
    """Quasi-random standard normal points, n x dimension, float64, always the same ones (scrambled Sobol)."""
    sobol = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
    return torch.special.ndtri(sobol.draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))


def laplace_approximation(a_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the softmax-basis normal that stands for Dirichlet(a).

    mu_k = log a_k - mean_j log a_j;  sigma_k^2 = (1 / a_k)(1 - 2 / K) + (1 / K^2) sum_j 1 / a_j
    (Srivastava & Sutton, ICLR 2017).
    """
    K = a_K.shape[-1]
    log_a, inverse = a_K.log(), 1 / a_K
    mu = log_a - log_a.mean(-1, keepdim=True)
    variance = inverse * (1 - 2 / K) + inverse.sum(-1, keepdim=True) / K**2
    return mu, variance.sqrt()


def depth_divergence(loc_B: torch.Tensor, scale_B: torch.Tensor, log_depth_B: torch.Tensor) -> torch.Tensor:
    """KL divergence of LogNormal(loc, scale) from LogNormal(log depth, 1), summed; it is that of their logs."""
    with torch.no_grad():
        total, by_loc_B, by_scale_B, _, _ = _normal_divergence(
            loc_B, scale_B, log_depth_B, torch.ones_like(log_depth_B)
        )
    return with_gradients(total, (loc_B, by_loc_B), (scale_B, by_scale_B))


def _normal_divergence(
    loc_q: torch.Tensor, scale_q: torch.Tensor, loc_p: torch.Tensor, scale_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """KL divergence between normals summed over B cells, and its gradients for the four; those of p summed too.

    With r = s_q / s_p and d = (m_q - m_p) / s_p: (r^2 + d^2 - 1) / 2 - log r.
    """
    r, d = scale_q / scale_p, (loc_q - loc_p).div_(scale_p)
    twice = (r * r).addcmul_(d, d).sub_(1)
    total = twice.sum().mul_(0.5).sub_(r.log().sum())
    by_loc_q, by_scale_q = d.div_(scale_p), r.div_(scale_p).sub_(1 / scale_q)
    return total, by_loc_q, by_scale_q, -by_loc_q.sum(0), -twice.sum(0) / scale_p


def logit_normal_beta_divergence(
    loc: torch.Tensor, scale: torch.Tensor, alpha: torch.Tensor, nodes: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """KL divergence of sigmoid(Normal(loc, scale)) from Beta(1, alpha), elementwise.

    -H(Normal) - E[log v] - alpha E[log(1 - v)] - log alpha, with -E[log(1 - v)] = E[softplus(z)] = e by
    Gauss-Hermite quadrature, and -E[log v] = e - loc.
    """
    at_nodes = F.softplus(loc + scale * nodes.view(-1, *[1] * loc.ndim))
    e = torch.tensordot(weights, at_nodes, dims=1)
    entropy = scale.log() + 0.5 * (1 + math.log(2 * math.pi))
    return -entropy + (e - loc) + alpha * e - alpha.log()
