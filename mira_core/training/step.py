"""One step of training: the model's optimiser, and for CODAL the critic's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ..data.counts import Batch
from ..nn.network import TopicNetwork
from .objective import REFERENCE_BATCH, draw, loss_terms, play
from .schedules import Settings

BETA2, EPSILON = 0.999, 1e-8


class Told(NamedTuple):
    """What a step tells, in nats per cell, before the weights moved."""

    loss: float
    distortion: float
    rate: float
    dependence: float


class Stepper:
    """Takes steps on a network, drawing all its random numbers from one generator.

    Nothing in a step waits for the device: what it tells stays there until it is asked for.

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
        self.reseed(seed)
        network.train()
        parameters, decay = list(network.model_parameters()), options["weight_decay"]
        on_cpu = network.device.type == "cpu"
        self.optimiser: FusedAdamW | TensorAdamW = (FusedAdamW if on_cpu else TensorAdamW)(parameters, decay)
        self.critic = (
            torch.optim.Adam(
                network.dependence.parameters(), lr=options["dependence_lr"], fused=True, capturable=not on_cpu
            )
            if network.dependence is not None
            else None
        )

    def reseed(self, seed: int) -> None:
        """Draw from a fresh generator from now on."""
        self.generator = torch.Generator(device=self.network.device).manual_seed(seed)
        self.network.use_generator(self.generator)

    def step(self, batch: Batch, settings: Settings) -> torch.Tensor:
        """Take one step on a minibatch that is on the network's device; return the numbers of `Told`, 4.

        On a GPU the settings are tensors there.
        """
        network, per_cell = self.network, 1 / batch.n_cells
        self.optimiser.zero_grad()
        terms, theta_BK = loss_terms(network, batch, draw(network, batch, self.generator))
        if self.critic is not None:
            game = play(network, batch, theta_BK, self.generator)
            terms = terms._replace(dependence=game.dependence)
        loss = terms.loss(settings.kl_weight, settings.dependence_weight)
        (loss * (REFERENCE_BATCH * per_cell)).backward()
        self.optimiser.step(settings)
        if self.critic is not None:
            assert network.dependence is not None
            for p, gradient in zip(network.dependence.parameters(), game.critic, strict=True):
                p.grad = gradient
            self.critic.step()
        return torch.stack([loss, terms.distortion, terms.rate, terms.dependence]).detach() * per_cell

    def close(self) -> None:
        """Leave the network ready for evaluation."""
        self.network.use_generator(None)
        self.network.zero_grad(set_to_none=True)
        self.network.eval()


class FusedAdamW:
    """torch's AdamW in one pass over the parameters, with a learning rate and a momentum for each step."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> None:
        self.inner = torch.optim.AdamW(parameters, lr=1.0, weight_decay=weight_decay, eps=EPSILON, fused=True)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def step(self, settings: Settings) -> None:
        """Move the parameters."""
        for group in self.inner.param_groups:
            group["lr"], group["betas"] = settings.learning_rate, (settings.momentum, BETA2)
        self.inner.step()


class TensorAdamW:
    """AdamW whose learning rate and momentum are tensors, so that a graph of the device can hold a step.

    torch's own takes a momentum as a number, which a graph would keep. Parameters and gradients become views of two
    flat arrays, and a step is a few operations on these. (Loshchilov & Hutter, ICLR 2019.)
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> None:
        parameters = list(parameters)
        like = parameters[0]
        self.flat, self.gradient, self.mean, self.square = (
            torch.zeros(sum(p.numel() for p in parameters), dtype=like.dtype, device=like.device) for _ in range(4)
        )
        self.steps, self.weight_decay = torch.zeros((), dtype=torch.float64, device=like.device), weight_decay
        at = 0
        for p in parameters:
            shape, strides = p.shape, p.stride()
            home = self.flat.as_strided(shape, strides, at)
            home.copy_(p.detach())
            p.data = home
            p.grad = self.gradient.as_strided(shape, strides, at)
            at += p.numel()

    def zero_grad(self) -> None:
        """Set the gradients to zero, in place."""
        self.gradient.zero_()

    @torch.no_grad()
    def step(self, settings: Settings) -> None:
        """Move the parameters."""
        learning_rate, momentum = (torch.as_tensor(x, device=self.flat.device) for x in settings[:2])
        self.steps += 1
        step_size = (learning_rate / (1 - momentum**self.steps)).to(self.flat.dtype)
        correction = (1 - BETA2**self.steps).sqrt().to(self.flat.dtype)
        self.flat.mul_((1 - learning_rate * self.weight_decay).to(self.flat.dtype))
        self.mean.lerp_(self.gradient, (1 - momentum).to(self.flat.dtype))
        self.square.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        self.flat -= step_size * self.mean / (self.square.sqrt().div_(correction).add_(EPSILON))


@torch.no_grad()
def all_finite(network: TopicNetwork) -> bool:
    """Whether no weight, and no running statistic, is NaN or infinite; sums of such are not finite either."""
    return bool(torch.stack([t.sum() for t in network.state_dict().values() if t.is_floating_point()]).isfinite().all())


def copy_state(network: TopicNetwork) -> dict[str, torch.Tensor]:
    """Return a copy of all weights."""
    return {name: t.detach().clone() for name, t in network.state_dict().items()}


def copy_state_into(state: dict[str, torch.Tensor], network: TopicNetwork) -> None:
    """Copy all weights to where earlier ones are."""
    for name, t in network.state_dict().items():
        state[name].copy_(t)
