"""Layers whose randomness comes from a generator of their own.

No layer draws from torch's global generator, so models in one process cannot disturb each other, and a seed
gives the same model whatever ran before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Dropout(nn.Module):
    """Zero entries with probability `p` while training, and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to any shape."""
        return self._drop(x, 1 / (1 - self.p))

    def hide(self, x: torch.Tensor) -> torch.Tensor:
        """Zero entries without scaling the others."""
        return self._drop(x, 1.0)

    def hide_among(self, x: torch.Tensor, places: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Zero entries of an array without gradients, whose non-zeros stand at the given places."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return self.hide(x)
        out = x.clone()
        at = places()
        out.view(-1).index_fill_(0, at[self._hidden_places(len(at))], 0)
        return out

    def _drop(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type == "cpu" and self.p < 0.5:
            return _Zeroed.apply(x, self._hidden_places(x.numel()), scale)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator).mul_(scale)

    def _hidden_places(self, n: int) -> torch.Tensor:
        """Draw which of n numbers are hidden, by the gaps between them: far fewer draws than one for each."""
        expected = n * self.p
        size = int(expected + 6 * math.sqrt(expected)) + 8
        places = self._gaps(size).cumsum_(0)
        while (count := int(torch.searchsorted(places, n, right=True))) == len(places):
            places = torch.cat([places, self._gaps(size).cumsum_(0).add_(places[-1])])
        return places[:count].sub_(1)

    def _gaps(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int64).geometric_(self.p, generator=self.generator)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"p={self.p}"


class _Zeroed(torch.autograd.Function):
    """x times a scale, with zeros at some places."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.scale = scale
        return _zeroed(x, places, scale)

    @staticmethod
    def backward(ctx: Any, by_out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _zeroed(by_out, ctx.saved_tensors[0], ctx.scale), None, None


def _zeroed(x: torch.Tensor, places: torch.Tensor, scale: float) -> torch.Tensor:
    out = x.contiguous() * scale
    out.view(-1).index_fill_(0, places, 0)
    return out


class Linear(nn.Linear):
    """A linear layer with weights not yet drawn; `initialise` draws them.

    As `torch.nn.utils.skip_init` makes it, which loads sympy for that: a second.
    """

    def reset_parameters(self) -> None:
        """Draw nothing."""


def linear(n_in: int, n_out: int, bias: bool = False) -> nn.Linear:
    """Return a linear layer with weights not yet drawn; `initialise` draws them."""
    return Linear(n_in, n_out, bias=bias)


def by_input(layer: nn.Linear) -> nn.Linear:
    """Let the weights lie in memory by input and not by output; sums along the outputs are then fast."""
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    return layer


class PeakEmbedding(nn.Module):
    """A table of one vector per peak, E x embedding_size; a cell has the mean of its open peaks."""

    def __init__(self, n_peaks: int, embedding_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_peaks, embedding_size))

    def forward(self, open_BE: torch.Tensor, n_open_B: torch.Tensor) -> torch.Tensor:
        """Average, B x embedding_size; a cell without open peaks has zeros."""
        return open_BE @ self.weight / n_open_B.clamp(min=1)[:, None]


class SpectralLinear(nn.Linear):
    """A linear layer whose weight is divided by its largest singular value, so that it stretches nothing.

    The singular value is followed by one power iteration per training step (Miyato et al., ICLR 2018).
    """

    u: torch.Tensor
    v: torch.Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, device="meta")
        self.to_empty(device="cpu")
        self.register_buffer("u", torch.empty(n_out))
        self.register_buffer("v", torch.empty(n_in))

    @torch.no_grad()
    def _iterate(self) -> tuple[torch.Tensor, torch.Tensor]:
        v = torch.mv(self.weight.T, self.u)
        v /= v.norm()
        u = torch.mv(self.weight, v)
        u /= u.norm()
        self.v.copy_(v)
        self.u.copy_(u)
        return u, v

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the vectors of the power iteration, and bring them near the singular vectors."""
        with torch.no_grad():
            self.u.copy_(F.normalize(self.u.normal_(generator=generator), dim=0))
        for _ in range(15):
            self._iterate()

    def largest(self) -> torch.Tensor:
        """Return the largest singular value, after one more iteration while training."""
        u, v = self._iterate() if self.training else (self.u, self.v)
        return u @ (self.weight @ v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the scaled weight."""
        return F.linear(x, self.weight) / self.largest() + self.bias


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all layers inside, as torch does by default."""
    for layer in module.modules():
        if isinstance(layer, PeakEmbedding):
            with torch.no_grad():
                layer.weight.normal_(generator=generator)
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
            if isinstance(layer, SpectralLinear):
                layer.initialise(generator)


def use_generator(module: nn.Module, generator: torch.Generator | None) -> None:
    """Let every dropout inside draw from `generator`."""
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.generator = generator


def block(n_in: int, n_out: int, dropout: float) -> nn.Sequential:
    """Linear without bias, batch normalisation, ReLU, dropout."""
    return nn.Sequential(by_input(linear(n_in, n_out)), nn.BatchNorm1d(n_out), nn.ReLU(), Dropout(dropout))


def encoder_stack(
    n_in: int, embedding_size: int, hidden: int, n_out: int, num_layers: int, dropout: float
) -> nn.Sequential:
    """Blocks of widths embedding_size, hidden, ..., then linear and batch normalisation; `num_layers` in all."""
    widths = [n_in, embedding_size, *[hidden] * (num_layers - 2)]
    blocks = [block(a, b, dropout) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*blocks, linear(widths[-1], n_out), nn.BatchNorm1d(n_out))
