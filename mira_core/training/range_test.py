"""The learning-rate range test: which rates the loss falls at (Smith, WACV 2017)."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import interpolate

from ..data import loaders
from ..data.counts import Cells
from ..errors import TrainingError
from ..nn.network import TopicNetwork
from ..records import RangeRecord
from .engine import make_engine
from .range_options import DEGREE, FEWEST, RangeOptions
from .schedules import Settings

SMOOTHING = 5.0
DIVERGED = 4.0  # the test ends where the loss has climbed this many times as far as it had fallen
GRID = 200  # learning rates at which the spline is told


@dataclass(frozen=True)
class LearningRateCurve:
    """Loss against learning rate, and the bounds that were read off it.

    Attributes
    ----------
    rates, losses
        Learning rates in geometric progression, and the mean loss at each, in nats per cell and feature.
    falling
        Ends of the stretch where the smoothed loss falls: the bounds before trimming.
    trim
        How far the bounds are moved inwards, lower and upper, in natural-log units.
    diverged
        Whether the test ended early because the loss ran away.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    falling: tuple[float, float]
    trim: tuple[float, float] = (0.0, 0.5)
    diverged: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds after trimming; where trimming crosses them, both are its middle."""
        low = math.log(self.falling[0]) + self.trim[0]
        high = math.log(self.falling[1]) - self.trim[1]
        if low > high:
            low = high = (low + high) / 2
        return math.exp(low), math.exp(high)

    def trimmed(self, lower: float, upper: float) -> LearningRateCurve:
        """Return the curve with other trims."""
        return replace(self, trim=(lower, upper))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LearningRateCurve:
        """Read what `to_dict` returned.

        Raises
        ------
        KeyError, TypeError, ValueError, OverflowError
            If it is something else.
        """
        (low, high), (below, above) = values["falling"], values["trim"]
        curve = cls(
            tuple(map(float, values["rates"])), tuple(map(float, values["losses"])),
            (float(low), float(high)), (float(below), float(above)), bool(values["diverged"]),
        )  # fmt: skip
        rates = (*curve.rates, *curve.falling)
        if len(curve.rates) != len(curve.losses) or not all(map(math.isfinite, (*rates, *curve.losses, *curve.trim))):
            raise ValueError("rates, losses, and both bounds and trims must be finite numbers, a loss for each rate")
        if min(rates) <= 0:
            raise ValueError(f"learning rates must be above 0; got {min(rates):g}")
        return curve

    def smoothed(self, rates: np.ndarray) -> np.ndarray:
        """Return the smoothing spline at learning rates within the range of the test."""
        spline, mean, deviation = _spline(*_before_divergence(np.array(self.rates), np.array(self.losses)))
        return mean + deviation * spline(np.log(rates))


def range_test(
    network: TopicNetwork, cells: Cells, options: Mapping[str, Any], seed: int, asked: RangeOptions
) -> Generator[RangeRecord, None, None]:
    """Train while the learning rate rises; yield each rate with the mean loss of its minibatches.

    With fewer minibatches than the test takes, it goes round. It ends early where the loss is no longer finite, or
    has climbed far above where it began.
    """
    assert asked.upper_bound_lr is not None  # as `RangeOptions.checked` leaves it
    engine = make_engine(network, cells, options, seed)
    order = _round_and_round(len(cells), options["batch_size"], np.random.default_rng(seed))
    momentum, weight = options["max_momentum"], options["cost_beta"]
    rates = np.geomspace(asked.lower_bound_lr, asked.upper_bound_lr, asked.num_steps).tolist()
    means: list[float] = []
    try:
        for step, rate in enumerate(rates, 1):
            setting = Settings(rate, momentum, weight, weight * options.get("dependence_beta", 0.0))
            rows = np.stack([next(order) for _ in range(asked.eval_every)])
            told = [t.loss for t in engine.epoch(rows, [setting] * asked.eval_every)]
            mean = float(np.mean(told)) / network.n_features
            if not math.isfinite(mean):
                return
            means.append(mean)
            yield RangeRecord(step, rate, mean)
            if mean > _ceiling(means):
                return
    finally:
        engine.close()


def read_curve(
    points: Sequence[tuple[float, float]], num_steps: int, trim: tuple[float, float], stopped: bool = False
) -> LearningRateCurve:
    """Find where the loss falls.

    Parameters
    ----------
    points
        Learning rates with their losses.
    num_steps
        Rates that were to be tried. If there are fewer, and the test was not `stopped`, the loss ran away.
    trim
        As of `LearningRateCurve`.

    Raises
    ------
    TrainingError
        If the test ended too early, or the loss nowhere falls.
    """
    if len(points) < FEWEST and stopped:
        raise TrainingError(
            f"the test was stopped after {len(points)} of {num_steps} learning rates; {FEWEST} are needed to tell "
            "where the loss falls"
        )
    if len(points) < FEWEST:
        raise TrainingError(
            f"the loss ran away after {len(points)} of {num_steps} learning rates. "
            "Start lower by lower_bound_lr, and look for cells with outlying total counts"
        )
    rates, losses = np.array(points).T
    before, losses_before = _before_divergence(rates, losses)
    spline, _, _ = _spline(before, losses_before)
    slope = spline.derivative()(np.log(before))
    ends = np.flatnonzero(np.diff(np.append(np.append(False, slope < 0), False).astype(int)))
    stretches = ends.reshape(-1, 2)
    if not len(stretches):
        raise TrainingError(
            "the loss falls at none of the learning rates tried. Widen the range by lower_bound_lr and upper_bound_lr"
        )
    first, after = stretches[np.argmax(stretches[:, 1] - stretches[:, 0])]
    falling = (float(rates[first]), float(rates[after - 1]))
    diverged = len(points) < num_steps and not stopped
    return LearningRateCurve(tuple(rates.tolist()), tuple(losses.tolist()), falling, trim, diverged)


def describe(
    points: Sequence[tuple[float, float]], num_steps: int, trim: tuple[float, float], stopped: bool = False
) -> dict[str, Any]:
    """Say what a test showed, as JSON can hold it, whether or not it found bounds.

    Parameters
    ----------
    points, num_steps, trim, stopped
        As of `read_curve`.

    Returns
    -------
    dict
        The keys of `LearningRateCurve.to_dict`, and ``stopped``; ``bounds`` after trimming; ``spline``, its ``rates``
        and ``losses`` on a grid over the rates before the loss ran away; ``warnings``, sentences. ``falling``,
        ``bounds`` and ``spline`` are None where there are none.
    """
    rates, losses = ([p[i] for p in points] for i in range(2))
    told: dict[str, Any] = {
        "rates": rates, "losses": losses, "falling": None, "trim": list(trim), "bounds": None,
        "diverged": len(points) < num_steps and not stopped, "stopped": stopped, "spline": None, "warnings": [],
    }  # fmt: skip
    warnings = told["warnings"]
    if len(points) >= FEWEST:
        before, losses_before = _before_divergence(np.array(rates), np.array(losses))
        spline, mean, deviation = _spline(before, losses_before)
        grid = np.geomspace(before[0], before[-1], GRID)
        told["spline"] = {"rates": grid.tolist(), "losses": (mean + deviation * spline(np.log(grid))).tolist()}
    try:
        curve = read_curve(points, num_steps, trim, stopped)
    except TrainingError as problem:
        warnings.append(_sentence(str(problem)))
    else:
        told |= {"falling": list(curve.falling), "bounds": list(curve.bounds)}
        if curve.bounds[0] == curve.bounds[1]:
            warnings.append("The trims leave nothing between the bounds; trim less.")
    if told["diverged"] and len(points) >= FEWEST:
        warnings.append(f"The loss ran away above a learning rate of {rates[-1]:.2g}; the test ended there.")
    if stopped and len(points) >= FEWEST:
        warnings.append(f"The test was stopped after {len(points)} of {num_steps} learning rates.")
    if told["falling"] is not None and not told["diverged"] and told["falling"][1] >= rates[-1]:
        warnings.append("The loss still falls at the highest learning rate tried; try higher ones.")
    return told


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _ceiling(losses: Sequence[float] | np.ndarray) -> float:
    """Return the loss above which it has run away."""
    return losses[0] + DIVERGED * (losses[0] - min(losses)) + abs(losses[0])


def _before_divergence(rates: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out the end where the loss ran away, beside which all that came before would look flat."""
    n = max(int(np.flatnonzero(losses <= _ceiling(losses))[-1]) + 1, FEWEST)
    return rates[:n], losses[:n]


def _spline(rates: np.ndarray, losses: np.ndarray) -> tuple[interpolate.UnivariateSpline, float, float]:
    """Quintic smoothing spline of the standardised loss over the log of the rate; constant beyond its ends."""
    mean, deviation = float(losses.mean()), float(losses.std()) or 1.0
    smoothing = SMOOTHING * len(losses) / 100
    y = (losses - mean) / deviation
    return interpolate.UnivariateSpline(np.log(rates), y, k=DEGREE, s=smoothing, ext="const"), mean, deviation


def _round_and_round(n_cells: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        yield from loaders.shuffled(n_cells, batch_size, rng)
