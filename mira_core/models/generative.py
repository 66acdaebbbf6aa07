"""The expression topic model as a story, and its guide, in Pyro.

This is the definition. Training computes the same loss in closed form (``training.objective``), and a test
holds the two equal. No parameter enters Pyro's global store: they live in the network, so models of one process
do not meet.

MIRA: Lynch et al., Nature Methods 2022. The softmax basis of the Dirichlet: Srivastava & Sutton, ICLR 2017.

Shapes: B cells in the minibatch, G features, K topics.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions.kl import register_kl

from ..data.counts import Batch
from ..nn.network import TopicNetwork
from ..nn.prior import laplace_approximation


class PseudocountPosterior(dist.LogNormal):
    """A log-normal with a name of its own, so that its divergence from a Gamma can be registered."""


@register_kl(PseudocountPosterior, dist.Gamma)
def _divergence(q: PseudocountPosterior, p: dist.Gamma) -> torch.Tensor:
    return pseudocount_divergence(q.loc, q.scale, p.concentration, p.rate)


def pseudocount_divergence(m: torch.Tensor, s: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """KL divergence of LogNormal(m, s) from Gamma(alpha, beta), in closed form.

    With E[log a] = m and E[a] = exp(m + s^2 / 2):
    -log s - (1 + log 2 pi) / 2 - m - [alpha log beta - lgamma(alpha) + (alpha - 1) m - beta E[a]].
    """
    entropy = s.log() + 0.5 * (1 + math.log(2 * math.pi)) + m
    expected = alpha * beta.log() - torch.lgamma(alpha) + (alpha - 1) * m - beta * (m + s**2 / 2).exp()
    return -entropy - expected


def model(network: TopicNetwork, batch: Batch, kl_weight: float = 1.0) -> None:
    """How counts come about: pseudocounts, a cell's topics and depth, then its counts."""
    like = batch.depth_B
    share = batch.n_cells / network.n_cells
    with poutine.scale(scale=share), pyro.plate("topics", network.num_topics):
        shape = like.new_full((network.num_topics,), network.prior.SHAPE)
        a_K = pyro.sample("pseudocounts", dist.Gamma(shape, like.new_full(shape.shape, network.prior.rate)))
    mu_K, sigma_K = laplace_approximation(a_K)
    with pyro.plate("cells", batch.n_cells):
        with poutine.scale(scale=kl_weight):
            z_BK = pyro.sample("z", dist.Normal(mu_K, sigma_K).expand([batch.n_cells, len(mu_K)]).to_event(1))
            d_B = pyro.sample("read_depth", dist.LogNormal(batch.depth_B.log(), torch.ones_like(like)))
        log_rho_BG = network.decoder(z_BK.softmax(-1))
        log_mean_BG = d_B.log()[:, None] + log_rho_BG
        pyro.sample("counts", counts_distribution(network, log_mean_BG), obs=batch.dense(log_rho_BG.shape[1]))


def guide(network: TopicNetwork, batch: Batch, kl_weight: float = 1.0) -> None:
    """Say what the encoder believes of each cell, and the posterior of the pseudocounts."""
    share = batch.n_cells / network.n_cells
    with poutine.scale(scale=share), pyro.plate("topics", network.num_topics):
        pyro.sample("pseudocounts", PseudocountPosterior(network.prior.loc_K, network.prior.scale_K))
    posterior = network.encoder(batch)
    with pyro.plate("cells", batch.n_cells), poutine.scale(scale=kl_weight):
        pyro.sample("z", dist.Normal(posterior.theta_loc_BK, posterior.theta_scale_BK).to_event(1))
        pyro.sample("read_depth", dist.LogNormal(posterior.depth_loc_B, posterior.depth_scale_B))


def counts_distribution(network: TopicNetwork, log_mean_BG: torch.Tensor) -> dist.TorchDistribution:
    """Negative binomial of the counts, by logits or by probabilities."""
    r_G = network.log_dispersion_G.exp()
    if network.nb_logspace:
        return dist.NegativeBinomial(r_G, logits=log_mean_BG - network.log_dispersion_G).to_event(1)
    mean_BG = log_mean_BG.exp()
    return dist.NegativeBinomial(r_G, probs=mean_BG / (mean_BG + r_G)).to_event(1)
