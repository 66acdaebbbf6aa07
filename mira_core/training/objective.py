"""The loss of a minibatch, in closed form: the negative ELBO that ``models.generative`` defines.

Training, evaluation and tuning all call `loss_terms`; they differ only in the draws they pass.

Shapes: B cells, K topics, P mismatched pairs of cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..data.counts import Batch
from ..models.likelihoods import multinomial, negative_binomial
from ..nn.decoder import Linear
from ..nn.dependence import mismatched_pairs
from ..nn.gradients import with_gradients
from ..nn.network import TopicNetwork
from ..nn.prior import depth_divergence

REFERENCE_BATCH = 64  # the loss of a minibatch is scaled as if it had this many cells


class Draws(NamedTuple):
    """Random numbers behind one evaluation of the loss.

    Attributes
    ----------
    prior
        Of the prior's own parameters, see its `noise`.
    theta_BK, depth_B
        Standard normal.
    """

    prior: torch.Tensor
    theta_BK: torch.Tensor
    depth_B: torch.Tensor


class LossTerms(NamedTuple):
    """Sums over the cells of a minibatch, in nats.

    Attributes
    ----------
    reconstruction
        Negative log likelihood of the counts.
    topics_kl
        KL(q(z) || p(z)).
    depth_kl
        KL(q(d) || p(d)); zero for accessibility.
    prior_kl
        Divergence of the prior's own parameters, the share of these cells: B / N of it.
    effects
        Minus the log density of the decoder's effects under their prior, the share of these cells.
    dependence
        B times the dependence of technical on biological signals; zero without covariates.
    """

    reconstruction: torch.Tensor
    topics_kl: torch.Tensor
    depth_kl: torch.Tensor
    prior_kl: torch.Tensor
    effects: torch.Tensor
    dependence: torch.Tensor

    def loss(self, kl_weight: float | torch.Tensor, dependence_weight: float | torch.Tensor = 0.0) -> torch.Tensor:
        """Sum of the terms with the annealed weights."""
        elbo = self.reconstruction + kl_weight * (self.topics_kl + self.depth_kl) + self.prior_kl
        return elbo + self.effects + dependence_weight * self.dependence

    @property
    def distortion(self) -> torch.Tensor:
        """Negative ELBO less the topics' divergence."""
        return self.reconstruction + self.depth_kl + self.prior_kl

    @property
    def rate(self) -> torch.Tensor:
        """Divergence of the topics."""
        return self.topics_kl


def draw(network: TopicNetwork, batch: Batch, generator: torch.Generator | None) -> Draws:
    """Draw what the loss of one minibatch needs."""
    like, K = batch.depth_B, network.num_topics
    prior = network.prior.noise(generator)
    theta_BK, depth_B = (
        torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)
        for shape in ((batch.n_cells, K), (batch.n_cells,))
    )
    return Draws(prior, theta_BK, depth_B)


def loss_terms(
    network: TopicNetwork, batch: Batch, draws: Draws, prior_draws: torch.Tensor | None = None
) -> tuple[LossTerms, torch.Tensor]:
    """Compute the terms of the negative ELBO for one draw of the latent variables, dependence left at zero.

    Parameters
    ----------
    network, batch, draws
        What it is computed of.
    prior_draws
        Draws of the prior's parameters over which the topics' divergence is averaged, where only its value is
        wanted; None: that of `draws`.

    Returns
    -------
    LossTerms, torch.Tensor
        The terms, and the compositions theta of the draw, B x K.
    """
    prior = network.prior
    q = network.encoder(batch)
    theta_BK = prior.theta(q.theta_loc_BK + q.theta_scale_BK * draws.theta_BK)
    profile = network.profile(theta_BK, batch.covariates_BC)
    share = batch.n_cells / network.n_cells
    zero = batch.depth_B.new_zeros(())
    depth_kl = zero
    if network.log_dispersion_G is None:
        log_likelihood = multinomial(batch, profile)
    else:
        assert q.depth_loc_B is not None
        assert q.depth_scale_B is not None
        log_d_B = q.depth_loc_B + q.depth_scale_B * draws.depth_B
        log_likelihood = negative_binomial(batch, profile, log_d_B, network.log_dispersion_G, network.nb_logspace)
        depth_kl = depth_divergence(q.depth_loc_B, q.depth_scale_B, batch.depth_B.log())
    topics_kl = (
        prior.topics_divergence(q.theta_loc_BK, q.theta_scale_BK, draws.prior)
        if prior_draws is None
        else prior.mean_topics_divergence(q.theta_loc_BK, q.theta_scale_BK, prior_draws)
    )
    terms = LossTerms(
        reconstruction=-log_likelihood,
        topics_kl=topics_kl,
        depth_kl=depth_kl,
        prior_kl=prior.divergence() * share,
        effects=network.effects_penalty() * share,
        dependence=zero,
    )
    return terms, theta_BK


class Game(NamedTuple):
    """The two sides of CODAL's game in one step.

    Attributes
    ----------
    dependence
        B times the estimate, with gradients for the model.
    critic
        Gradients of minus the estimate for the critic's parameters, in their order.
    """

    dependence: torch.Tensor
    critic: tuple[torch.Tensor, ...]


def play(network: TopicNetwork, batch: Batch, theta_BK: torch.Tensor, generator: torch.Generator | None) -> Game:
    """Estimate the dependence between the signals of these cells, once for the model and the critic.

    The model is moved down and the critic up the same estimate, so its gradients are taken here, and handed to the
    model where it goes on.
    """
    assert network.dependence is not None
    signals = network.signals(theta_BK, batch.covariates_BC)
    one, other = mismatched_pairs(batch.n_cells, network.n_pairs, generator, theta_BK.device)
    parts = [t for signal in signals for t in signal[:3]]
    leaves = [t.detach().requires_grad_() for t in parts]
    critic = list(network.dependence.parameters())
    with torch.enable_grad():
        estimate = network.dependence(Linear(*leaves[:3]), Linear(*leaves[3:]), one, other)
        found = torch.autograd.grad(estimate, [*leaves, *critic])
    estimated = with_gradients(estimate.detach(), *zip(parts, found, strict=False))
    return Game(batch.n_cells * estimated, tuple(-g for g in found[len(leaves) :]))
