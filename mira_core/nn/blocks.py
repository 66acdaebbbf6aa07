"""Layers whose randomness comes from a generator of their own.

No layer draws from torch's global generator, so models in one process cannot disturb each other, and a seed
gives the same model whatever ran before.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn


class Dropout(nn.Module):
    """Zero entries with probability `p` while training, and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to any shape."""
        if not self.training or self.p == 0:
            return x
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * keep.div_(1 - self.p)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"p={self.p}"


def linear(n_in: int, n_out: int, bias: bool = False) -> nn.Linear:
    """Return a linear layer with weights not yet drawn; `initialise` draws them."""
    return nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all linear layers inside, as torch does by default."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)


def use_generator(module: nn.Module, generator: torch.Generator | None) -> None:
    """Let every dropout inside draw from `generator`."""
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.generator = generator


def block(n_in: int, n_out: int, dropout: float) -> nn.Sequential:
    """Linear without bias, batch normalisation, ReLU, dropout."""
    return nn.Sequential(linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU(), Dropout(dropout))


def encoder_stack(
    n_in: int, embedding_size: int, hidden: int, n_out: int, num_layers: int, dropout: float
) -> nn.Sequential:
    """Blocks of widths embedding_size, hidden, ..., then linear and batch normalisation; `num_layers` in all."""
    widths = [n_in, embedding_size, *[hidden] * (num_layers - 2)]
    blocks = [block(a, b, dropout) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*blocks, linear(widths[-1], n_out), nn.BatchNorm1d(n_out))
