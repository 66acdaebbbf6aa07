"""One step of training: the model's optimiser, and for CODAL the critic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..data.counts import Batch
from ..nn.network import TopicNetwork
from .objective import REFERENCE_BATCH, draw, loss_terms, play


class Told(NamedTuple):
    """What a step tells, in nats per cell, before the weights moved."""

    loss: float
    distortion: float
    rate: float
    dependence: float


class Stepper:
    """Takes steps on a network, drawing all its random numbers from one generator.

    Parameters
    ----------
    network
        On the device where it is trained.
    options
        ``weight_decay``, and for CODAL ``dependence_lr``.
    seed
        Of the draws and the dropouts.
    """

    def __init__(self, network: TopicNetwork, options: Mapping[str, Any], seed: int) -> None:
        self.network = network
        self.generator = torch.Generator(device=network.device).manual_seed(seed)
        network.use_generator(self.generator)
        network.train()
        self.optimiser = torch.optim.AdamW(
            network.model_parameters(), lr=1.0, weight_decay=options["weight_decay"], fused=True
        )
        self.critic = (
            torch.optim.Adam(network.dependence.parameters(), lr=options["dependence_lr"], fused=True)
            if network.dependence is not None
            else None
        )

    def step(self, batch: Batch, *, lr: float, momentum: float, kl_weight: float, dependence_weight: float) -> Told:
        """Take one step on a minibatch that is on the network's device."""
        network, per_cell = self.network, 1 / batch.n_cells
        for group in self.optimiser.param_groups:
            group["lr"], group["betas"] = lr, (momentum, 0.999)
        self.optimiser.zero_grad(set_to_none=True)
        terms, theta_BK = loss_terms(network, batch, draw(network, batch, self.generator))
        if self.critic is not None:
            game = play(network, batch, theta_BK, self.generator)
            terms = terms._replace(dependence=game.dependence)
        loss = terms.loss(kl_weight, dependence_weight)
        (loss * (REFERENCE_BATCH * per_cell)).backward()
        self.optimiser.step()
        if self.critic is not None:
            self.critic.zero_grad(set_to_none=True)
            game.critic_loss.backward()
            self.critic.step()
        told = torch.stack([loss, terms.distortion, terms.rate, terms.dependence]).detach() * per_cell
        return Told(*told.tolist())

    def close(self) -> None:
        """Leave the network ready for evaluation."""
        self.network.use_generator(None)
        self.network.eval()


def all_finite(network: TopicNetwork) -> bool:
    """Whether no weight, and no running statistic, is NaN or infinite."""
    return all(bool(t.isfinite().all()) for t in network.state_dict().values() if t.is_floating_point())


def copy_state(network: TopicNetwork) -> dict[str, torch.Tensor]:
    """Return a copy of all weights."""
    return {name: t.detach().clone() for name, t in network.state_dict().items()}
