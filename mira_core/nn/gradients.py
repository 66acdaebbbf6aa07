"""Values whose gradients are worked out together with them.

Where the two share most of their work, or where arrays are so small that keeping the books of a differentiation
costs more than its arithmetic, a formula's derivatives are written beside it.
"""

from __future__ import annotations

from typing import Any

import torch


def with_gradients(value: torch.Tensor, *gradients: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return a number that was computed without gradients, with its gradient for each of some inputs."""
    return _Given.apply(value, [g for _, g in gradients], *(x for x, _ in gradients))


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradients: list[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, by_value: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *(by_value * g for g in ctx.saved_tensors)
