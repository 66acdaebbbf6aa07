"""What figures of trials show, as numbers: from attributes and scores to what is drawn, here and in the dashboard."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import OptionError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Trials = Sequence[Mapping[str, Any]]  # each trial's attributes
Scores = Mapping[int, Mapping[int, float]]  # by number, what was reported of each epoch

LOSSES = ("value", "elbo", "distortion")  # whose worst trials lie far from all others
NOT_TRIED = ("number", "state", "value", "elbo", "distortion", "rate", "epochs_trained", "seconds", "device", "weights",
             "retry_of", "change")  # fmt: skip
ENOUGH = 8  # completed trials, before anything is said of what matters
MOST = 100  # of them that are weighed, as it takes the square of their number
TREES = 32


class HueInfo(NamedTuple):
    """What trials are coloured by: numbers (NaN for none), and what they stand for if they are categories."""

    values: np.ndarray
    categories: list[str] | None


class CurvesInfo(NamedTuple):
    """Epochs and scores of each trial with any, and what it is coloured by."""

    numbers: list[int]
    curves: list[tuple[np.ndarray, np.ndarray]]
    hue: HueInfo


class ParetoInfo(NamedTuple):
    """Points, what they are coloured by, and which are on the front of distortion and rate."""

    numbers: np.ndarray
    x: np.ndarray
    y: np.ndarray
    hue: HueInfo
    on_front: np.ndarray


class HistoryInfo(NamedTuple):
    """Loss of each trial, the last one reported where it has none; and the best so far, where it became better."""

    numbers: np.ndarray
    values: np.ndarray
    states: list[str]
    best_numbers: np.ndarray
    best_values: np.ndarray


class TopicsInfo(NamedTuple):
    """Loss of each trial beside its number of topics; and, by number, the completed trials and their median."""

    numbers: np.ndarray
    topics: np.ndarray
    values: np.ndarray
    states: list[str]
    by_topics: np.ndarray
    trials: np.ndarray
    medians: np.ndarray


class Axis(NamedTuple):
    """An axis from its lowest to its highest value; beyond it may lie trials that are far from all others."""

    name: str
    low: float
    high: float
    log: bool
    beyond: int

    def along(self, values: np.ndarray) -> np.ndarray:
        """Return where on the axis values are, from 0 to 1; what lies beyond is at its end."""
        ends = np.array([self.low, self.high], dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            (low, high), at = (np.log(ends), np.log(values)) if self.log else (ends, values)
        return np.clip((at - low) / (high - low), 0, 1) if high > low else np.where(np.isfinite(at), 0.5, np.nan)


class ParallelInfo(NamedTuple):
    """One axis for each parameter and outcome, and where each trial lies on each, T x A; NaN where it has none."""

    numbers: np.ndarray
    axes: list[Axis]
    positions: np.ndarray
    hue: HueInfo


class ImportanceInfo(NamedTuple):
    """Share of each parameter in the variance of the loss, the greatest first; empty, and why, if that is not known."""

    shares: dict[str, float]
    trials: int
    why: str


# --- attributes -----------------------------------------------------------------------------------


def column(trials: Trials, name: str) -> list[Any]:
    """Return one attribute of each trial, None where it has none.

    Raises
    ------
    OptionError
        If no trial has it.
    """
    known = {k for t in trials for k in t}
    if trials and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
        raise OptionError(f"trials have no attribute {name!r}; {hint}")
    return [t.get(name) for t in trials]


def numbers_of(values: Sequence[Any]) -> np.ndarray:
    """Return values as numbers, NaN for None."""
    return np.array([np.nan if v is None else float(v) for v in values], dtype=float)


def losses(trials: Trials, scores: Scores | None = None) -> np.ndarray:
    """Return the loss of each trial; of those without one the last that was reported."""
    last = {}
    for number, told in (scores or {}).items():
        if told:
            last[number] = told[max(told)]
    return numbers_of([last.get(t["number"]) if t.get("value") is None else t["value"] for t in trials])


def hue_info(trials: Trials, name: str, log: bool = False) -> HueInfo:
    """Return what trials are coloured by."""
    values = column(trials, name)
    if any(isinstance(v, str) for v in values):
        categories = sorted({str(v) for v in values if v is not None})
        return HueInfo(numbers_of([None if v is None else categories.index(str(v)) for v in values]), categories)
    numbers = numbers_of(values)
    return HueInfo(logarithm(numbers) if log else numbers, None)


def logarithm(values: np.ndarray) -> np.ndarray:
    """Return logarithms, NaN of what has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.nan)


def completed(trials: Trials) -> np.ndarray:
    """Return which trials are completed."""
    return np.array([t["state"] == "COMPLETE" for t in trials], dtype=bool)


# --- what is drawn --------------------------------------------------------------------------------


def curves_info(trials: Trials, intermediate: Scores, hue: str = "value", log_hue: bool = False) -> CurvesInfo:
    """Compute what `plot_intermediate_values` draws."""
    begun = [t for t in trials if intermediate.get(t["number"])]
    curves = []
    for t in begun:
        epochs = sorted(intermediate[t["number"]])
        curves.append((np.array(epochs), np.array([intermediate[t["number"]][e] for e in epochs], dtype=float)))
    return CurvesInfo([t["number"] for t in begun], curves, hue_info(begun, hue, log_hue))


def pareto_info(
    trials: Trials, x: str = "num_topics", y: str = "elbo", hue: str = "number", include_pruned_trials: bool = True
) -> ParetoInfo:
    """Compute what `plot_pareto_front` draws."""
    states = {"COMPLETE", "PRUNED"} if include_pruned_trials else {"COMPLETE"}
    shown = [t for t in trials if t["state"] in states]
    return ParetoInfo(
        np.array([t["number"] for t in shown], dtype=int),
        numbers_of(column(shown, x)), numbers_of(column(shown, y)), hue_info(shown, hue), on_front(shown),
    )  # fmt: skip


def history_info(trials: Trials, intermediate: Scores | None = None) -> HistoryInfo:
    """Compute what `plot_history` draws."""
    numbers, values = np.array([t["number"] for t in trials], dtype=int), losses(trials, intermediate)
    return HistoryInfo(numbers, values, [t["state"] for t in trials], *best_so_far(numbers, values, completed(trials)))


def topics_info(trials: Trials, intermediate: Scores | None = None) -> TopicsInfo:
    """Compute what `plot_topic_counts` draws."""
    numbers, values = np.array([t["number"] for t in trials], dtype=int), losses(trials, intermediate)
    topics = numbers_of([t.get("num_topics") for t in trials])
    return TopicsInfo(numbers, topics, values, [t["state"] for t in trials],
                      *medians(topics, values, completed(trials)))  # fmt: skip


def parallel_info(
    trials: Trials, names: Sequence[str] | None = None, hue: str = "value", log_hue: bool = False
) -> ParallelInfo:
    """Compute what `plot_parallel_coordinates` draws."""
    if names is None:
        names = axes_names({k: not isinstance(v, str) for t in trials for k, v in t.items() if v is not None})
    values = {n: numbers_of(column(trials, n)) for n in names}
    axes = [axis_of(n, v, completed(trials)) for n, v in values.items()]
    positions = np.array([a.along(values[a.name]) for a in axes]).reshape(len(axes), len(trials)).T
    return ParallelInfo(np.array([t["number"] for t in trials], dtype=int), axes, positions,
                        hue_info(trials, hue, log_hue))  # fmt: skip


def importance_info(trials: Sequence[FrozenTrial]) -> ImportanceInfo:
    """Compute what `plot_importance` draws: the share of each parameter in the variance of the loss.

    By functional analysis of variance of a random forest (fANOVA: Hutter, Hoos and Leyton-Brown, ICML 2014). Of
    simulated studies with 8 to 20 completed trials it found the parameter that mattered most in all of them, where
    PED-ANOVA, which looks at the best tenth, found it in at most two of three. Only completed trials tell: the loss of
    one that was pruned is that of a shorter training. The worst tenth counts as if it were the tenth worst, lest one
    training that went astray explain everything.

    Parameters
    ----------
    trials
        Of a study, in any state.
    """
    import optuna

    if any(len(t.values or ()) > 1 for t in trials):
        return ImportanceInfo({}, 0, "of a study with several aims, nothing is the loss")
    able = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE and np.isfinite(t.value or 0.0)]
    if len(able) < ENOUGH:
        return ImportanceInfo({}, len(able), f"{ENOUGH} completed trials tell what matters; there are {len(able)}")
    kept = [able[i] for i in np.unique(np.linspace(0, len(able) - 1, MOST).round().astype(int))]
    value = np.array([t.value for t in kept], dtype=float)
    value = np.minimum(value, np.quantile(value, 0.9))
    ranges = optuna.distributions.IntDistribution, optuna.distributions.FloatDistribution
    names = [n for n in able[0].params if all(isinstance(t.distributions.get(n), ranges) for t in kept)]
    names = [n for n in names if len({t.params[n] for t in kept}) > 1]
    if not names or np.ptp(value) <= 0:
        alike = "losses are all the same" if names else "all trials have the same parameters"
        return ImportanceInfo({}, len(able), f"nobody can tell what matters: {alike}")
    study = optuna.create_study()  # of one space: ranges may have been narrowed meanwhile
    space = {n: _space([t.distributions[n] for t in kept]) for n in names}
    study.add_trials([
        optuna.create_trial(params={n: t.params[n] for n in names}, distributions=space, value=float(v))
        for t, v in zip(kept, value, strict=True)
    ])  # fmt: skip
    try:
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
        )
    except RuntimeError:  # no tree found anything to split by
        return ImportanceInfo({}, len(able), "nobody can tell what matters: no parameter goes with the loss")
    return ImportanceInfo({k: float(v) for k, v in shares.items()}, len(able), "")


def _space(found: list[Any]) -> Any:
    """Return the range that holds all ranges of a parameter."""
    low, high = min(d.low for d in found), max(d.high for d in found)
    return type(found[0])(low, high, log=found[0].log)


# --- numbers that the dashboard, which knows them as columns, computes the same way -----------------


def on_front(trials: Trials) -> np.ndarray:
    """Return which completed trials no other completed trial beats in both distortion and rate."""
    distortion, rate = (numbers_of([t.get(n) for t in trials]) for n in ("distortion", "rate"))
    return front(distortion, rate, completed(trials))


def front(distortion: np.ndarray, rate: np.ndarray, able: np.ndarray) -> np.ndarray:
    """Return which of those that are able no other one beats in both; in the time that sorting takes."""
    at = np.flatnonzero(able & np.isfinite(distortion) & np.isfinite(rate))
    out = np.zeros(len(able), bool)
    if not at.size:
        return out
    at = at[np.lexsort((rate[at], distortion[at]))]
    new = np.diff(distortion[at], prepend=-np.inf) > 0
    first = np.flatnonzero(new)[np.cumsum(new) - 1]  # the least rate of the same distortion
    least = np.concatenate([[np.inf], np.minimum.accumulate(rate[at])])  # of all before
    out[at] = (rate[at] == rate[at][first]) & (rate[at] < least[first])
    return out


def best_so_far(numbers: np.ndarray, values: np.ndarray, able: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the least loss became less, and that loss; and where the last one is."""
    at = np.flatnonzero(able & np.isfinite(values))
    least = np.minimum.accumulate(values[at])
    turns = np.flatnonzero(np.diff(least, prepend=np.inf) < 0)
    turns = np.union1d(turns, [len(at) - 1]) if at.size else turns
    return numbers[at][turns], least[turns]


def medians(topics: np.ndarray, values: np.ndarray, able: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers of topics, how many of those that are able have each, and the median of their losses."""
    ok = able & np.isfinite(topics) & np.isfinite(values)
    order = np.lexsort((values[ok], topics[ok]))
    ks, starts, counts = np.unique(topics[ok][order], return_index=True, return_counts=True)
    ordered = values[ok][order]
    return ks, counts, (ordered[starts + (counts - 1) // 2] + ordered[starts + counts // 2]) / 2


def axes_names(kinds: Mapping[str, bool]) -> list[str]:
    """Return what has an axis of its own beside others: numbers that were tried, then what came of them."""
    tried = [n for n, is_number in kinds.items() if is_number and n not in NOT_TRIED]
    return [*tried, *(n for n in ("distortion", "rate", "value") if kinds.get(n))]


def axis_of(name: str, values: np.ndarray, able: np.ndarray | None = None) -> Axis:
    """Return an axis for values; logarithmic where they span two orders of magnitude. For `able` see `extent`."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Axis(name, 0.0, 1.0, False, 0)
    low, high = extent(values, able) if name in LOSSES else (float(known.min()), float(known.max()))
    log = name not in LOSSES and low > 0 and high / low >= 100
    return Axis(name, low, high, log, int((known > high).sum()))


def extent(values: np.ndarray, able: np.ndarray | None = None, far: float = 4.0) -> tuple[float, float]:
    """Return the least and the greatest loss, without those that would flatten the rest.

    These are above the upper quartile by more than `far` times the distance of the quartiles: of those that are able,
    where these are not too few, as the loss of a training that was stopped early says little.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    judged = known if able is None else values[able & np.isfinite(values)]
    judged = judged if judged.size >= ENOUGH else known
    lower, upper = np.quantile(judged, [0.25, 0.75])
    return float(known.min()), float(judged[judged <= upper + far * (upper - lower)].max())


def extent_of_curves(curves: Sequence[Sequence[float] | np.ndarray]) -> tuple[float, float]:
    """Return the least and the greatest score to show: how trainings begin would flatten the rest."""
    return extent_of_measures(np.array([measures_of(y) for y in curves]).reshape(-1, 3))


def measures_of(curve: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return a curve's end, its least value, and where it is after a third; NaN if it ends nowhere."""
    y = np.asarray(curve, dtype=float)
    if not y.size or not np.isfinite(y[-1]):
        return np.nan, np.nan, np.nan
    y = y[np.isfinite(y)]
    return float(y[-1]), float(y.min()), float(y[len(y) // 3])


def extent_of_measures(measures: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest score to show, from what `measures_of` says of each curve."""
    ends, lows, thirds = measures[np.isfinite(measures[:, 0])].T
    if not ends.size:
        return 0.0, 1.0
    return float(lows.min()), float(max(np.percentile(ends, 90), np.median(thirds)))
