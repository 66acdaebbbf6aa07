"""Learning rate and momentum against torch's own one-cycle policy; the annealings by definition and properties."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mira_core.training import schedules


@pytest.mark.parametrize("total", [2, 3, 4, 5, 7, 10, 20, 33, 100, 1005])
@pytest.mark.parametrize(("low", "high"), [(1e-6, 0.1), (1e-3, 0.1), (0.05, 0.05)])
def test_learning_rate_and_momentum_equal_torchs_one_cycle_policy(total, low, high):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.999))
    policy = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=high, total_steps=total, pct_start=0.3, anneal_strategy="cos", cycle_momentum=True,
        base_momentum=0.85, max_momentum=0.95, div_factor=high / low, final_div_factor=1e4, three_phase=False,
    )  # fmt: skip
    for step in range(total):
        (group,) = optimiser.param_groups
        assert schedules.learning_rate(step, total, low, high) == pytest.approx(group["lr"], rel=1e-9)
        assert schedules.momentum(step, total, 0.85, 0.95) == pytest.approx(group["betas"][0], rel=1e-9)
        optimiser.step()
        if step < total - 1:
            policy.step()


def test_one_step_in_all_is_defined():
    assert 0 < schedules.learning_rate(0, 1, 1e-3, 0.1) <= 0.1
    assert 0.85 <= schedules.momentum(0, 1, 0.85, 0.95) <= 0.95
    assert all(0 < anneal(0, 1) <= 1 for anneal in schedules.ANNEALING.values())


@pytest.mark.parametrize("total", [1, 2, 3, 5, 9, 10, 30, 100, 1005])
@pytest.mark.parametrize("name", schedules.ANNEALING)
def test_annealing_stays_above_zero_and_at_most_one_and_ends_at_one(name, total):
    weights = [schedules.ANNEALING[name](t, total) for t in range(total)]
    assert all(0 < w <= 1 for w in weights)
    if total > 2:
        assert weights[-1] == 1


def test_monotonic_annealing_is_the_formula():
    assert [schedules.monotonic(t, 100) for t in range(100)] == [min(1, (t + 1) / 51) for t in range(100)]


@pytest.mark.parametrize("total", [60, 300, 1005])
def test_cyclic_annealing_has_three_cycles_each_a_step_higher(total):
    weights = [schedules.cyclic(t, total) for t in range(total)]
    falls = [t for t in range(1, total) if weights[t] < weights[t - 1]]
    assert len(falls) == 2
    for c in range(3):
        start, end = (c * total + 2) // 3, ((c + 1) * total + 2) // 3
        cycle = weights[start:end]
        half = (end - start) // 2
        height = (c + 1) / 3
        assert max(cycle) == pytest.approx(1 if c == 2 else height)
        assert cycle[0] <= height * 2 * 2 / (total / 3)  # starts near zero
        rises = [b - a for a, b in zip(cycle[: half - 1], cycle[1:half], strict=True)]
        assert all(r == pytest.approx(height * 2 / (total / 3)) for r in rises)  # linear
        flat = cycle[half + 1 : -1]
        if c < 2:
            assert all(w == pytest.approx(height) for w in flat)
    assert weights[int(0.95 * total) + 1 :] == [1.0] * (total - int(0.95 * total) - 1)


@pytest.mark.parametrize("name", schedules.ANNEALING)
def test_annealing_does_not_depend_on_the_length_in_steps(name):
    """The same share of the training has the same weight, whatever the number of steps."""
    a, b = ([schedules.ANNEALING[name](int(s * n), n) for s in (0.1, 0.3, 0.42, 0.6, 0.9)] for n in (10_000, 40_000))
    assert a == pytest.approx(b, abs=2e-3)


# --- weight of the dependence ---------------------------------------------------------------------


def plain_dependence(total: int) -> list[float]:
    """Three equal cycles; within each a linear rise over the first half, then 1."""
    weights = []
    for t in range(total):
        for cycle in range(3):
            begin, end = cycle * total / 3, (cycle + 1) * total / 3
            if begin <= t < end:
                share_done = (t + 1 - begin) / (end - begin)
                weights.append(2 * share_done if share_done < 0.5 else 1.0)
    return weights


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 6, 7, 10, 29, 30, 60, 100, 101, 300, 1005])
def test_the_weight_of_the_dependence_equals_its_definition(total):
    got = [schedules.dependence(t, total) for t in range(total)]
    assert got == pytest.approx(plain_dependence(total))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 30, 301, 1005])
def test_the_weight_of_the_dependence_is_above_zero_and_at_most_one_and_ends_at_one(total):
    weights = [schedules.dependence(t, total) for t in range(total)]
    assert all(0 < w <= 1 for w in weights)
    assert weights[-1] == 1
    if total >= 30:
        assert sum(b < a for a, b in pairwise(weights)) == 2  # two falls: three cycles
        falls = [t for t in range(1, total) if weights[t] < weights[t - 1]]
        assert [round(3 * t / total) for t in falls] == [1, 2]
        assert all(weights[t - 1] == 1 and weights[t] <= 2 * 3 / total * 2 for t in falls)  # from the top to near zero
        assert sum(weights) / total == pytest.approx(0.75, abs=3 / total)  # half a cycle at a half, half at one


def test_the_weight_of_the_dependence_does_not_depend_on_the_length_in_steps():
    a, b = ([schedules.dependence(int(s * n), n) for s in (0.1, 0.3, 0.42, 0.6, 0.9)] for n in (10_000, 40_000))
    assert a == pytest.approx(b, abs=2e-3)
