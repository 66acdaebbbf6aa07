"""One step of training: the model's optimiser, and for CODAL the critic's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ..data.counts import Batch
from ..errors import CheckpointError
from ..nn.network import TopicNetwork
from .objective import REFERENCE_BATCH, draw, loss_terms, play
from .schedules import Settings

BETA2, EPSILON, CRITIC_MOMENTUM = 0.999, 1e-8, 0.9


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
        adamw = FusedAdamW if network.device.type == "cpu" else TensorAdamW
        self.optimiser: FusedAdamW | TensorAdamW = adamw(parameters, decay)
        self.critic: FusedAdamW | TensorAdamW | None = None
        if network.dependence is not None:
            self.critic = adamw(network.dependence.parameters(), 0.0)
            self.critic_rate = options["dependence_lr"]

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
        self.optimiser.step(settings.learning_rate, settings.momentum)
        if self.critic is not None:
            assert network.dependence is not None
            self.critic.zero_grad()
            for p, gradient in zip(network.dependence.parameters(), game.critic, strict=True):
                p.grad = gradient if p.grad is None else p.grad.copy_(gradient)
            self.critic.step(self.critic_rate, CRITIC_MOMENTUM)
        return torch.stack([loss, terms.distortion, terms.rate, terms.dependence]).detach() * per_cell

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next step depends on besides the weights; not copied, but for the generator's state."""
        optimisers = {"optimiser": self.optimiser, "critic": self.critic}
        tensors = {f"{who}.{k}": t for who, o in optimisers.items() if o is not None for k, t in o.state().items()}
        return tensors | {"generator": self.generator.get_state()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy in what `state` returned, of a stepper of the same network.

        Raises
        ------
        CheckpointError
            If it is something else, as a damaged file tells it.
        """
        for name, t in self.state().items():
            if name not in state or state[name].shape != t.shape or state[name].dtype != t.dtype:
                raise CheckpointError(f"the checkpoint has no {name} of {tuple(t.shape)} {t.dtype}. Train anew")
            if name == "generator":
                try:
                    self.generator.set_state(state[name].cpu())
                except RuntimeError as problem:
                    raise CheckpointError(f"the checkpoint's random generator is damaged: {problem}") from problem
            else:
                t.copy_(state[name])

    def close(self) -> None:
        """Leave the network ready for evaluation."""
        self.network.use_generator(None)
        self.network.zero_grad(set_to_none=True)
        self.network.eval()


class FusedAdamW:
    """AdamW in one pass over the parameters, with a learning rate and a momentum for each step.

    The operation behind torch's own; around it that spends as long on lists as on the parameters. It is given every
    array as one row, in the order of the memory: of others it makes copies.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> None:
        self.parameters, self.weight_decay = list(parameters), weight_decay
        self.rows = [_row(p.detach()) for p in self.parameters]
        self.means, self.squares = ([torch.zeros_like(row) for row in self.rows] for _ in range(2))
        self.steps = torch.zeros(())

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next step depends on: the tensors themselves, by name."""
        moments = {"mean": self.means, "square": self.squares}
        return {f"{k}.{i}": t for k, rows in moments.items() for i, t in enumerate(rows)} | {"steps": self.steps}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float, momentum: float) -> None:
        """Move the parameters that have gradients."""
        self.steps += 1
        all_of_them = zip(self.parameters, self.rows, self.means, self.squares, strict=True)
        moved = [(row, _row_like(p, p.grad), m, v) for p, row, m, v in all_of_them if p.grad is not None]
        rows, gradients, means, squares = (list(x) for x in zip(*moved, strict=True))
        torch._fused_adamw_(
            rows, gradients, means, squares, [], [self.steps] * len(moved), lr=learning_rate, beta1=momentum,
            beta2=BETA2, weight_decay=self.weight_decay, eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip


def _row(t: torch.Tensor) -> torch.Tensor:
    return t if t.is_contiguous() else t.as_strided((t.numel(),), (1,))


def _row_like(p: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return _row(gradient if gradient.stride() == p.stride() else torch.empty_like(p).copy_(gradient))


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

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next step depends on: the tensors themselves, by name."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def zero_grad(self) -> None:
        """Set the gradients to zero, in place."""
        self.gradient.zero_()

    @torch.no_grad()
    def step(self, learning_rate: Any, momentum: Any) -> None:
        """Move the parameters; what is no tensor yet is a constant."""
        learning_rate, momentum = (self._constant(x) for x in (learning_rate, momentum))
        self.steps += 1
        step_size = (learning_rate / (1 - momentum**self.steps)).to(self.flat.dtype)
        correction = (1 - BETA2**self.steps).sqrt().to(self.flat.dtype)
        self.flat.mul_((1 - learning_rate * self.weight_decay).to(self.flat.dtype))
        self.mean.lerp_(self.gradient, (1 - momentum).to(self.flat.dtype))
        self.square.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        self.flat -= step_size * self.mean / (self.square.sqrt().div_(correction).add_(EPSILON))

    def _constant(self, x: Any) -> torch.Tensor:
        # filled on the device: a copy from the host would make it wait
        return x if isinstance(x, torch.Tensor) else torch.full((), x, dtype=torch.float64, device=self.flat.device)


@torch.no_grad()
def all_finite(network: TopicNetwork) -> bool:
    """Whether no weight, and no running statistic, is NaN or infinite; sums of such are not finite either."""
    return bool(torch.stack([t.sum() for t in network.state_dict().values() if t.is_floating_point()]).isfinite().all())


def copy_into(copies: dict[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors to where earlier ones are, if there are any."""
    for name, t in tensors.items():
        if name in copies:
            copies[name].copy_(t)
        else:
            copies[name] = t.detach().clone()
