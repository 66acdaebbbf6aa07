"""Tries what can be done to a target, and tells what breaks a rule."""

from __future__ import annotations

from collections import Counter

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from .child import Child, Outcome
from .damage import Damage
from .targets import TARGETS


class Broken(AssertionError):
    """A damaged file was neither read nor refused in words."""


def try_one(child: Child, name: str, damages: list[Damage], tally: Counter[str] | None = None) -> Outcome:
    """Read a damaged file.

    Raises
    ------
    Broken
        If it is neither read nor refused in words; it says how to do that again.
    """
    outcome = child.read(name, damages)
    if tally is not None:
        tally[outcome.kind] += 1
    if outcome.kind == "failed":
        raise Broken(f"{name} {outcome.kind}: {outcome.told}\nagain by try_one(child, {name!r}, {damages!r})")
    return outcome


def explore(child: Child, name: str, examples: int, seed: int | None = None, tally: Counter[str] | None = None) -> None:
    """Try damages of a target: the same ones each time, or others for each seed.

    Raises
    ------
    Broken
        Of the first damage that is found to break a rule. It is not made smaller, which takes long where a file takes
        long: there are three damages at most.
    """

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=seed is None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(TARGETS[name].strategy())
    def holds(damages: list[Damage]) -> None:
        try_one(child, name, damages, tally)

    (holds if seed is None else hypothesis.seed(seed)(holds))()
