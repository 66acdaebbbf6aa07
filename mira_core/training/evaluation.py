"""The loss of cells that a model is not trained on, without a trace in the training.

Shapes: N cells, K topics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ..data import loaders
from ..data.counts import Cells
from ..nn.network import TopicNetwork
from ..nn.prior import quasi_normal
from .objective import Draws, draw, loss_terms, play


@contextmanager
def evaluating(network: TopicNetwork) -> Iterator[None]:
    """Evaluate without gradients or dropout; a training that goes on meanwhile does not notice."""
    before = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(before)


def mean_loss(network: TopicNetwork, cells: Cells, n_draws: int = 8, batch_size: int = 512) -> dict[str, float]:
    """Return loss, distortion and rate in nats per cell, at full weight, over fixed draws shared by all cells."""
    K, device = network.num_topics, network.device
    points = quasi_normal(n_draws, K + 1).to(device, torch.float32)
    prior_draws = network.prior.fixed_noise(n_draws)
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in loaders.in_order(cells, batch_size):
        batch = batch.to(device)
        for p, prior_draw in zip(points, prior_draws, strict=True):
            draws = Draws(prior_draw, p[:K].expand(batch.n_cells, K), p[K].expand(batch.n_cells))
            with evaluating(network):
                terms, _ = loss_terms(network, batch, draws)
            sums += torch.stack([terms.distortion + terms.rate, terms.distortion, terms.rate]).double().cpu()
    loss, distortion, rate = (sums / (n_draws * len(cells))).tolist()
    return {"loss": loss, "distortion": distortion, "rate": rate}


PRIOR_DRAWS = 16  # all cells share the prior's parameters: one draw would be a matter of luck


class HeldOut(NamedTuple):
    """What held-out cells cost, in nats per cell.

    Attributes
    ----------
    distortion, rate, dependence
        As in `StepRecord`.
    """

    distortion: float
    rate: float
    dependence: float


def held_out(network: TopicNetwork, cells: Cells, seed: int = 0) -> HeldOut:
    """Return the loss of cells over one draw for each of them, and many of the prior.

    The draws are the same in every call, so that the epochs of a training, and trainings, can be compared.
    """
    generator = torch.Generator(device=network.device).manual_seed(seed)
    sums = torch.zeros(3, dtype=torch.float64, device=network.device)
    prior_draws = network.prior.fixed_noise(PRIOR_DRAWS)
    with evaluating(network):
        for batch in loaders.in_order(cells):
            batch = batch.to(network.device)
            terms, theta_BK = loss_terms(network, batch, draw(network, batch, generator), prior_draws)
            if network.dependence is not None and batch.n_cells > 1:
                terms = terms._replace(dependence=play(network, batch, theta_BK, generator).dependence)
            sums += torch.stack([terms.distortion, terms.rate, terms.dependence]).double()
    return HeldOut(*(sums / len(cells)).tolist())
