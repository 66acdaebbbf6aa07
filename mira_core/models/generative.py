"""The topic models as a story, and their guide, in Pyro.

This is the definition. Training computes the same loss in closed form (``training.objective``), and a test
holds the two equal. No parameter enters Pyro's global store: they live in the network, so models of one process
do not meet.

MIRA: Lynch et al., Nature Methods 2022; CODAL: Lynch et al., Nature Communications 2023. The softmax basis of the
Dirichlet: Srivastava & Sutton, ICLR 2017.

Shapes: B cells in the minibatch, G features, K topics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions.kl import register_kl

from ..data.counts import Batch
from ..nn import prior
from ..nn.network import TopicNetwork
from ..nn.prior import DirichletPrior, DirichletProcessPrior


class PseudocountPosterior(dist.LogNormal):
    """A log-normal with a name of its own, so that its divergence from a Gamma can be registered."""


@register_kl(PseudocountPosterior, dist.Gamma)
def _pseudocounts_divergence(q: PseudocountPosterior, p: dist.Gamma) -> torch.Tensor:
    return log_normal_gamma_divergence(q.loc, q.scale, p.concentration, p.rate)


def log_normal_gamma_divergence(
    m: torch.Tensor, s: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """KL divergence of LogNormal(m, s) from Gamma(alpha, beta), in closed form, elementwise.

    With E[log a] = m and E[a] = exp(m + s^2 / 2):
    -log s - (1 + log 2 pi) / 2 - m - [alpha log beta - lgamma(alpha) + (alpha - 1) m - beta E[a]].
    """
    entropy = s.log() + 0.5 * (1 + math.log(2 * math.pi)) + m
    expected = alpha * beta.log() - torch.lgamma(alpha) + (alpha - 1) * m - beta * (m + s**2 / 2).exp()
    return -entropy - expected


class StickPosterior(dist.TransformedDistribution):
    """sigmoid(Normal(loc, scale)), whose divergence from a Beta(1, alpha) is known by quadrature."""

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, nodes: torch.Tensor, weights: torch.Tensor) -> None:
        super().__init__(dist.Normal(loc, scale), [dist.transforms.SigmoidTransform()])
        self.loc, self.scale, self.nodes, self.weights = loc, scale, nodes, weights

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> StickPosterior:
        """Repeat to a shape, as plates ask."""
        return StickPosterior(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.nodes, self.weights)


class StickPrior(dist.Beta):
    """Beta(1, alpha)."""

    def __init__(self, alpha: torch.Tensor) -> None:
        super().__init__(torch.ones_like(alpha), alpha)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> StickPrior:
        """Repeat to a shape, as plates ask."""
        return StickPrior(self.concentration0.expand(batch_shape))


@register_kl(StickPosterior, StickPrior)
def _sticks_divergence(q: StickPosterior, p: StickPrior) -> torch.Tensor:
    return prior.logit_normal_beta_divergence(q.loc, q.scale, p.concentration0, q.nodes, q.weights)


def model(network: TopicNetwork, batch: Batch, kl_weight: float = 1.0, dependence: torch.Tensor | None = None) -> None:
    """How counts come about: the prior's parameters, a cell's topics and depth, then its counts.

    `dependence`, already weighted, is the penalty of CODAL; it is not part of the story but of the loss.
    """
    cells = pyro.plate("cells", batch.n_cells)
    draw_topics = _dirichlet if isinstance(network.prior, DirichletPrior) else _stick_breaking
    theta_BK = draw_topics(network, batch, cells, kl_weight)
    log_rho_BG = network.log_frequencies(theta_BK, batch.covariates_BC)
    # The decoder's effects are parameters, not variables: their prior weighs on the loss as a density.
    pyro.factor("effects", -network.effects_penalty() * (batch.n_cells / network.n_cells))
    with cells:
        if network.log_dispersion_G is None:
            counts = OpenPeaks(logits=log_rho_BG, validate_args=False)
        else:
            with poutine.scale(scale=kl_weight):
                prior_depth = dist.LogNormal(batch.depth_B.log(), torch.ones_like(batch.depth_B))
                d_B = pyro.sample("read_depth", prior_depth)
            counts = _negative_binomial(network, d_B.log()[:, None] + log_rho_BG)
        pyro.sample("counts", counts, obs=batch.counts_BG)
    if dependence is not None:
        pyro.factor("dependence", -dependence)


def _dirichlet(network: TopicNetwork, batch: Batch, cells: pyro.plate, kl_weight: float) -> torch.Tensor:
    like, K = batch.depth_B, network.num_topics
    assert isinstance(network.prior, DirichletPrior)
    with poutine.scale(scale=batch.n_cells / network.n_cells), pyro.plate("topics", K):
        shape = like.new_full((K,), network.prior.SHAPE)
        a_K = pyro.sample("pseudocounts", dist.Gamma(shape, like.new_full(shape.shape, network.prior.rate)))
    mu_K, sigma_K = prior.laplace_approximation(a_K)
    with cells, poutine.scale(scale=kl_weight):
        z_BK = pyro.sample("z", dist.Normal(mu_K, sigma_K).expand([batch.n_cells, K]).to_event(1))
    return z_BK.softmax(-1)


def _stick_breaking(network: TopicNetwork, batch: Batch, cells: pyro.plate, kl_weight: float) -> torch.Tensor:
    like = batch.depth_B
    assert isinstance(network.prior, DirichletProcessPrior)
    with poutine.scale(scale=batch.n_cells / network.n_cells):
        hyper = dist.Gamma(like.new_tensor(network.prior.SHAPE), like.new_tensor(network.prior.RATE))
        alpha = pyro.sample("concentration", hyper)
    n_sticks = network.num_topics - 1
    with cells, pyro.plate("sticks", n_sticks), poutine.scale(scale=kl_weight):
        v_SB = pyro.sample("sticks_broken", StickPrior(alpha.expand(n_sticks, batch.n_cells)))
    left_SB = (1 - v_SB).cumprod(0)
    one = torch.ones_like(v_SB[:1])
    return (torch.cat([v_SB, one]) * torch.cat([one, left_SB])).T


def guide(network: TopicNetwork, batch: Batch, kl_weight: float = 1.0, dependence: torch.Tensor | None = None) -> None:
    """Say what the encoder believes of each cell, and the posterior of the prior's parameters."""
    posterior = network.encoder(batch)
    p = network.prior
    with poutine.scale(scale=batch.n_cells / network.n_cells):
        if isinstance(p, DirichletPrior):
            with pyro.plate("topics", network.num_topics):
                pyro.sample("pseudocounts", PseudocountPosterior(p.loc_K, p.scale_K))
        else:
            pyro.sample("concentration", dist.Gamma(p.log_shape.exp(), p.log_rate.exp()))
    with pyro.plate("cells", batch.n_cells), poutine.scale(scale=kl_weight):
        loc, scale = posterior.theta_loc_BK, posterior.theta_scale_BK
        if isinstance(p, DirichletPrior):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        else:
            with pyro.plate("sticks", p.n_sticks):
                q = StickPosterior(loc[:, : p.n_sticks].T, scale[:, : p.n_sticks].T, p.nodes, p.weights)
                pyro.sample("sticks_broken", q)
        if posterior.depth_loc_B is not None:
            pyro.sample("read_depth", dist.LogNormal(posterior.depth_loc_B, posterior.depth_scale_B))


class OpenPeaks(dist.Multinomial):
    """Which peaks are open, as a multinomial of as many draws as peaks are open; every cell has its own number.

    Whatever the number of draws, log p(x) = lgamma(sum x + 1) - sum lgamma(x + 1) + sum x log rho.
    """


def _negative_binomial(network: TopicNetwork, log_mean_BG: torch.Tensor) -> dist.TorchDistribution:
    """Negative binomial of the counts, by logits or by probabilities."""
    assert network.log_dispersion_G is not None
    r_G = network.log_dispersion_G.exp()
    if network.nb_logspace:
        return dist.NegativeBinomial(r_G, logits=log_mean_BG - network.log_dispersion_G).to_event(1)
    mean_BG = log_mean_BG.exp()
    return dist.NegativeBinomial(r_G, probs=mean_BG / (mean_BG + r_G)).to_event(1)
