"""What changes from step to step: learning rate, momentum, weight of the KL terms. Steps count from 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

RISING = 0.3  # share of the training in which the learning rate rises
FINAL = 1e-4  # the learning rate ends at this share of where it began


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _one_cycle(step: int, total: int, start: float, peak: float, end: float) -> float:
    top = RISING * total - 1
    if step <= top:
        return _cosine(start, peak, step / top if top > 0 else 1.0)
    return _cosine(peak, end, min(1.0, (step - top) / max(total - 1 - top, 1e-9)))


def learning_rate(step: int, total: int, low: float, high: float) -> float:
    """One-cycle policy: from `low` up to `high`, then down to a ten-thousandth of `low`, by cosines."""
    return _one_cycle(step, total, low, high, low * FINAL)


def momentum(step: int, total: int, low: float, high: float) -> float:
    """From `high` down to `low` at the peak of the learning rate, and back."""
    return _one_cycle(step, total, high, low, high)


def monotonic(step: int, total: int) -> float:
    """Rise linearly over half of the training, then stay at 1."""
    return min(1.0, (step + 1) / (total / 2 + 1))


def cyclic(step: int, total: int, cycles: int = 3, last: float = 0.05) -> float:
    """Rise from zero in each of three cycles, a step higher each time.

    Cycle c rises linearly over its first half to c / `cycles` and stays there; the `last` share of the training
    is at 1. (Cyclic annealing: Fu et al., NAACL 2019.)
    """
    if step >= total * (1 - last):
        return 1.0
    length = total / cycles
    cycle = min(int(step // length), cycles - 1)
    within = (step + 1 - cycle * length) / length
    return (cycle + 1) / cycles * min(1.0, 2 * within)


ANNEALING = {"monotonic": monotonic, "cyclic": cyclic}


def dependence(step: int, total: int, cycles: int = 3) -> float:
    """Rise linearly from zero to 1 over the first half of each of three equal cycles, and stay there."""
    length = total / cycles
    cycle = min(int(step // length), cycles - 1)
    return min(1.0, 2 * (step + 1 - cycle * length) / length)


class Settings(NamedTuple):
    """What one step is taken with; on a GPU tensors that lie there.

    Attributes
    ----------
    learning_rate, momentum
        Of the optimiser.
    kl_weight, dependence_weight
        Multipliers of the KL terms and of the dependence.
    """

    learning_rate: Any
    momentum: Any
    kl_weight: Any
    dependence_weight: Any


def settings(step: int, total: int, options: Mapping[str, Any]) -> Settings:
    """Return what step number `step` of `total` is taken with, as a model's options say."""
    beta = options["cost_beta"]
    return Settings(
        learning_rate(step, total, options["min_learning_rate"], options["max_learning_rate"]),
        momentum(step, total, options["min_momentum"], options["max_momentum"]),
        beta * ANNEALING[options["kl_strategy"]](step, total),
        beta * options.get("dependence_beta", 0.0) * dependence(step, total),
    )
