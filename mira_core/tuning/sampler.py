"""Which parameters to try next: a Gaussian process over parameters and rungs.

Successive halving stops half of all trials before they end. A process over completed trials alone would learn from
the other half only; here every rung that a trial reached is an observation, and what the process says of the last
rung is what counts. The acquisition is the expected improvement there, times the probability of not being pruned
before. (Expected improvement: Jones, Schonlau & Welch, J. Global Optimization 1998.)

Shapes: T observations, D parameters, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm, qmc

from .gaussian_process import GaussianProcess
from .search import NARROWED

CANDIDATES = 512
REFINED = 64  # further candidates near the best trials


class RungSampler(optuna.samplers.BaseSampler):
    """Suggests parameters by a Gaussian process that pruned trials inform too.

    Parameters
    ----------
    rungs
        Epochs at which trials are pruned, and the last one, in order.
    seed
        With the same seed and the same trials before it, a trial gets the same parameters.
    n_startup
        Trials that are spread over the ranges before the process is asked.
    reduction_factor
        Of the pruner: one in so many survives a rung.
    """

    def __init__(self, rungs: Sequence[int], seed: int = 0, n_startup: int = 8, reduction_factor: float = 2.0) -> None:
        self.rungs, self.seed, self.n_startup = tuple(rungs), seed, n_startup
        self.reduction_factor = reduction_factor

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the numbers that all completed trials have, each over all that its range has been.

        Somebody may narrow a range on the way. What was tried beyond it still tells of what is left.
        """
        space: dict[str, BaseDistribution] | None = None
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            have = {n: d for n, d in t.distributions.items() if not isinstance(d, CategoricalDistribution)}
            space = have if space is None else {n: _both(d, have[n]) for n, d in space.items() if n in have}
        return {n: d for n, d in sorted((space or {}).items()) if not d.single()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter, so that every block of first trials covers its range evenly (Latin hypercube)."""
        block, place = divmod(trial.number, self.n_startup)
        rng = self._rng(block, param_name)
        u = (rng.permutation(self.n_startup) + rng.random(self.n_startup))[place] / self.n_startup
        if isinstance(param_distribution, CategoricalDistribution):
            return param_distribution.choices[int(u * len(param_distribution.choices))]
        return _from_unit(u, param_distribution)

    def _rng(self, number: int, name: str = "") -> np.random.Generator:
        # one for each trial or block of trials, so that a study that was interrupted goes on as if it had not been
        return np.random.default_rng([self.seed, number, *name.encode()])

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest all parameters; nothing during the first trials."""
        if not search_space:
            return {}
        others = [
            t
            for t in study.get_trials(deepcopy=False)
            if t.number != trial.number and search_space.keys() <= t.params.keys()
        ]
        seen = [t for t in others if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and self._at_rungs(t)]
        whole = any(t.state == TrialState.COMPLETE and len(self._rungs_of(t)) == len(self.rungs) for t in seen)
        if len(seen) < self.n_startup or not whole:
            return {}
        running = [t for t in others if t.state == TrialState.RUNNING]
        box = _box(search_space, study.user_attrs.get(NARROWED) or {})
        x_D = self._suggest(seen, running, search_space, box, self._rng(trial.number))
        return {name: _from_unit(u, d) for u, (name, d) in zip(x_D, search_space.items(), strict=True)}

    def _rungs_of(self, trial: FrozenTrial) -> list[int]:
        return [r for r in self.rungs if np.isfinite(trial.intermediate_values.get(r, np.nan))]

    def _at_rungs(self, trial: FrozenTrial) -> dict[int, float]:
        """Return the score at every rung reached, by the rung's position."""
        return {self.rungs.index(r): trial.intermediate_values[r] for r in self._rungs_of(trial)}

    def _inputs(self, x_TD: np.ndarray, rung: np.ndarray | int) -> np.ndarray:
        """Return parameters and rungs, all between 0 and 1, T x (D + 1)."""
        last = max(len(self.rungs) - 1, 1)
        return np.column_stack([x_TD, np.broadcast_to(np.asarray(rung) / last, len(x_TD))])

    def _suggest(
        self,
        seen: list[FrozenTrial],
        running: list[FrozenTrial],
        space: Mapping[str, BaseDistribution],
        box: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        last = len(self.rungs) - 1
        points = [(_unit(t, space), r, y) for t in seen for r, y in self._at_rungs(t).items()]
        rung, y = np.array([p[1] for p in points]), np.array([p[2] for p in points])
        x = self._inputs(np.array([p[0] for p in points]), rung)
        # The weight of the rate grows from rung to rung: scores are compared within one.
        centre, spread = np.zeros(last + 1), np.ones(last + 1)
        for r in range(last + 1):
            at = y[rung == r]
            if len(at):
                centre[r] = np.median(at)
                spread[r] = max(np.subtract(*np.percentile(at, [75, 25])) / 1.35, 1e-6 * max(1.0, abs(centre[r])))
        z = np.clip((y - centre[rung]) / spread[rung], -5, 5)  # a trial that went astray must not flatten the rest
        gp = GaussianProcess(x, z, int(rng.integers(2**31)))
        if running:  # as if they had ended as expected
            gp = gp.with_expected(self._inputs(np.array([_unit(t, space) for t in running]), last))
        candidates = self._candidates(seen, space, box, rng)
        log_acquisition = self._improvement(gp, candidates) + self._survival(gp, candidates, z, rung)
        return candidates[int(np.argmax(log_acquisition))]

    def _candidates(
        self,
        seen: list[FrozenTrial],
        space: Mapping[str, BaseDistribution],
        box: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Return points over all that is searched now, and some near the best trials, M x D."""
        low, high = box
        everywhere = low + qmc.Sobol(len(space), rng=rng).random(CANDIDATES) * (high - low)
        best = sorted((t for t in seen if t.state == TrialState.COMPLETE), key=lambda t: t.value or 0.0)[:4]
        near = np.array([_unit(t, space) for t in best])[rng.integers(len(best), size=REFINED)]
        near = np.clip(near + rng.normal(0, 0.05, near.shape), low, high)
        return np.vstack([everywhere, near])

    def _improvement(self, gp: GaussianProcess, candidates: np.ndarray) -> np.ndarray:
        """Return the log of the expected improvement at the last rung, M; of what lies below the noise of a training.

        What counts is the best that is expected, not the luckiest that was seen.
        """
        last = len(self.rungs) - 1
        mean, deviation = gp.observations(self._inputs(candidates, last))
        deviation = np.sqrt(np.maximum(deviation**2 - gp.noise**2, 1e-12))
        tried = gp.x_TD.copy()
        tried[:, -1] = 1.0
        gain = gp.observations(tried)[0].min() - mean
        improvement = gain * norm.cdf(gain / deviation) + deviation * norm.pdf(gain / deviation)
        return np.log(np.maximum(improvement, 1e-300))

    def _survival(self, gp: GaussianProcess, candidates: np.ndarray, z: np.ndarray, rung: np.ndarray) -> np.ndarray:
        last = len(self.rungs) - 1
        total = np.zeros(len(candidates))
        for r in range(last):
            threshold = np.quantile(z[rung == r], 1 / self.reduction_factor)
            mean, deviation = gp.observations(self._inputs(candidates, r))
            total += norm.logcdf((threshold - mean) / deviation)
        return total


def _unit(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> np.ndarray:
    """Return a trial's parameters between 0 and 1, D."""
    return np.array([_to_unit(trial.params[name], d) for name, d in space.items()])


def _both(one: Any, other: Any) -> Any:
    """Return a range that holds two."""
    if one == other:
        return one
    return type(one)(min(one.low, other.low), max(one.high, other.high), log=one.log)


def _box(space: Mapping[str, BaseDistribution], narrowed: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return the ends of what is searched now, between 0 and 1, 2 x D."""
    ends = np.array([[0.0] * len(space), [1.0] * len(space)])
    for i, (name, distribution) in enumerate(space.items()):
        if name in narrowed:
            low, high = narrowed[name]
            half = 0.5 if isinstance(distribution, optuna.distributions.IntDistribution) else 0.0
            ends[:, i] = _to_unit(low - half, distribution), _to_unit(high + half, distribution)
    return np.clip(ends, 0.0, 1.0)


def _by_ratio(distribution: Any) -> bool:
    """Tell whether values differ by ratio: 6 topics are to 5 what 60 are to 50."""
    whole = isinstance(distribution, optuna.distributions.IntDistribution)
    return bool(distribution.log or (whole and distribution.low >= 1 and distribution.high > 4 * distribution.low))


def _ends(distribution: Any) -> tuple[float, float]:
    """Return the ends in the units that are searched evenly; of whole numbers, half a step beyond."""
    half = 0.5 if isinstance(distribution, optuna.distributions.IntDistribution) else 0.0
    low, high = distribution.low - half, distribution.high + half
    return (np.log(low), np.log(high)) if _by_ratio(distribution) else (low, high)


def _to_unit(value: float, distribution: Any) -> float:
    low, high = _ends(distribution)
    return float(((np.log(value) if _by_ratio(distribution) else value) - low) / (high - low))


def _from_unit(u: float, distribution: Any) -> Any:
    low, high = _ends(distribution)
    value = low + u * (high - low)
    value = float(np.exp(value)) if _by_ratio(distribution) else float(value)
    if isinstance(distribution, optuna.distributions.IntDistribution):
        value = distribution.low + distribution.step * round((value - distribution.low) / distribution.step)
        return int(min(max(value, distribution.low), distribution.high))
    return min(max(value, distribution.low), distribution.high)
