"""The Gaussian process over rungs, on made-up losses."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from mira_core.tuning.pruner import Halving
from mira_core.tuning.sampler import RungSampler, _from_unit, _to_unit

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = {
    "k": optuna.distributions.IntDistribution(3, 60),
    "log_k": optuna.distributions.IntDistribution(8, 512, log=True),
    "x": optuna.distributions.FloatDistribution(-1.0, 2.0),
    "log_x": optuna.distributions.FloatDistribution(0.05, 0.065, log=True),
}


@pytest.mark.parametrize("name", SPACE)
def test_parameters_go_to_the_unit_interval_and_back(name):
    d = SPACE[name]
    for u in np.linspace(0, 1, 31):
        value = _from_unit(u, d)
        assert d.low <= value <= d.high
        assert type(value) is (int if "k" in name else float)
        assert _from_unit(_to_unit(value, d), d) == pytest.approx(value)
    assert (_from_unit(0.0, d), _from_unit(1.0, d)) == (pytest.approx(d.low), pytest.approx(d.high))


def surface(k: int, epoch: int, rng: np.random.Generator) -> float:
    """Losses as trainings have: falling over the epochs, best at 22, noisy."""
    return 500 + 40 * math.exp(-epoch / 4) + 0.05 * (k - 22) ** 2 + rng.normal(0, 0.5)


def run_study(sampler, n, seed, epochs=12):
    s = optuna.create_study(sampler=sampler, pruner=Halving(epochs))
    rng = np.random.default_rng(seed)

    def objective(trial):
        k = trial.suggest_int("k", 3, 60)
        for epoch in range(1, epochs + 1):
            trial.report(value := surface(k, epoch, rng), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    s.optimize(objective, n_trials=n)
    return s


def test_the_sampler_finds_the_best_number_of_topics_though_half_of_all_trials_are_pruned():
    found = []
    for seed in range(3):
        s = run_study(RungSampler([4, 8, 12], seed=seed), 40, seed)
        assert sum(t.state == TrialState.PRUNED for t in s.trials) > 10
        later = [t.params["k"] for t in s.trials[20:]]
        found.append(np.median(np.abs(np.array(later) - 22)))
    assert np.median(found) <= 5  # at random it is 15


def test_the_sampler_is_reproducible_and_does_not_depend_on_its_past():
    one = run_study(RungSampler([4, 8, 12], seed=3), 22, 0)
    other = run_study(RungSampler([4, 8, 12], seed=3), 22, 0)
    assert [t.params for t in one.trials] == [t.params for t in other.trials]
    assert [t.params for t in one.trials] != [
        t.params for t in run_study(RungSampler([4, 8, 12], seed=4), 22, 0).trials
    ]
    fresh = RungSampler([4, 8, 12], seed=3)  # as after a restart
    one.sampler = fresh
    trial = one.ask()
    assert trial.suggest_int("k", 3, 60) == _asked_next(other)


def _asked_next(s):
    return s.ask().suggest_int("k", 3, 60)


def test_concurrent_trials_are_not_given_the_same_parameters():
    s = run_study(RungSampler([4, 8, 12], seed=0), 30, 0)
    asked = [s.ask().suggest_float("k2", 0, 1) for _ in range(3)]
    assert len(set(asked)) == 3
