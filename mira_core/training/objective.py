"""The loss of a minibatch, in closed form: the negative ELBO that ``models.generative`` defines.

Training, evaluation and tuning all call `loss_terms`; they differ only in the draws they pass.

Shapes: B cells, K topics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..data.counts import Batch
from ..models.generative import pseudocount_divergence
from ..models.likelihoods import negative_binomial
from ..nn.network import TopicNetwork
from ..nn.prior import laplace_approximation

REFERENCE_BATCH = 64  # the loss of a minibatch is scaled as if it had this many cells


class Draws(NamedTuple):
    """Standard normal draws behind one evaluation of the loss: pseudocounts K, topics B x K, depth B."""

    pseudocounts_K: torch.Tensor
    theta_BK: torch.Tensor
    depth_B: torch.Tensor


class LossTerms(NamedTuple):
    """Sums over the cells of a minibatch, in nats.

    Attributes
    ----------
    reconstruction
        Negative log likelihood of the counts.
    topics_kl
        KL(q(z) || p(z)), the rate.
    depth_kl
        KL(q(d) || p(d)).
    pseudocounts_kl
        KL(q(a) || p(a)), the share of these cells: B / N of it.
    """

    reconstruction: torch.Tensor
    topics_kl: torch.Tensor
    depth_kl: torch.Tensor
    pseudocounts_kl: torch.Tensor

    def loss(self, kl_weight: float | torch.Tensor) -> torch.Tensor:
        """Sum of the terms with the annealed weight on the divergences of the cells."""
        return self.reconstruction + kl_weight * (self.topics_kl + self.depth_kl) + self.pseudocounts_kl

    @property
    def distortion(self) -> torch.Tensor:
        """Negative ELBO less the topics' divergence."""
        return self.reconstruction + self.depth_kl + self.pseudocounts_kl

    @property
    def rate(self) -> torch.Tensor:
        """Divergence of the topics."""
        return self.topics_kl


def draw(network: TopicNetwork, batch: Batch, generator: torch.Generator | None) -> Draws:
    """Draw what the loss of one minibatch needs."""
    like, K = batch.depth_B, network.num_topics
    return Draws(
        *(
            torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)
            for shape in ((K,), (batch.n_cells, K), (batch.n_cells,))
        )
    )


def loss_terms(network: TopicNetwork, batch: Batch, draws: Draws) -> LossTerms:
    """Compute the terms of the negative ELBO for one draw of the latent variables."""
    prior = network.prior
    a_K = (prior.loc_K + prior.scale_K * draws.pseudocounts_K).exp()
    mu_K, sigma_K = laplace_approximation(a_K)
    q = network.encoder(batch)
    z_BK = q.theta_loc_BK + q.theta_scale_BK * draws.theta_BK
    log_d_B = q.depth_loc_B + q.depth_scale_B * draws.depth_B
    log_rho_BG = network.decoder(z_BK.softmax(-1))
    log_likelihood_B = negative_binomial(
        batch, log_d_B[:, None] + log_rho_BG, network.log_dispersion_G, network.nb_logspace
    )
    shape = torch.full_like(prior.loc_K, prior.SHAPE)
    a_divergence_K = pseudocount_divergence(prior.loc_K, prior.scale_K, shape, torch.full_like(shape, prior.rate))
    return LossTerms(
        reconstruction=-log_likelihood_B.sum(),
        topics_kl=normal_divergence(q.theta_loc_BK, q.theta_scale_BK, mu_K, sigma_K).sum(),
        # between log-normals the divergence is that of their logs
        depth_kl=normal_divergence(
            q.depth_loc_B, q.depth_scale_B, batch.depth_B.log(), torch.ones_like(batch.depth_B)
        ).sum(),
        pseudocounts_kl=a_divergence_K.sum() * (batch.n_cells / network.n_cells),
    )


def normal_divergence(
    loc_q: torch.Tensor, scale_q: torch.Tensor, loc_p: torch.Tensor, scale_p: torch.Tensor
) -> torch.Tensor:
    """KL divergence between normals, elementwise."""
    ratio = (scale_q / scale_p) ** 2
    return 0.5 * (ratio + ((loc_q - loc_p) / scale_p) ** 2 - 1 - ratio.log())
