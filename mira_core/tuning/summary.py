"""The evidence for a number of topics: losses with their noise, and whether topics come again.

Shapes: T completed trials, K topics, G features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial

from ..analysis.matching import REDUNDANT, best_pairs, correlations, match_topics, nearest
from ..errors import DataError, TuningError
from .gaussian_process import GaussianProcess
from .study import best_of

if TYPE_CHECKING:
    from ..estimators.fitted import FittedModel

NEAR = 3  # topics from the end of the range, where the best number calls for a wider one
ENOUGH = 6  # completed trials, before anything is said of numbers that cannot be told from the best
SURE = 1.645  # standard errors of a difference: one-sided 95 %
COMPARED = 5  # models whose topics are matched
UNSTABLE = 0.5  # correlation


@dataclass(frozen=True)
class Summary:
    """The evidence for a number of topics.

    Attributes
    ----------
    study
        Name.
    num_topics, loss
        Of the best trial; nats per cell.
    losses
        For each number of topics: completed trials, their best, median and standard deviation, and what a smooth
        curve through all of them expects, with its standard error.
    noise
        Standard deviation of the loss of trainings with the same number of topics; None if too few have completed.
    alike
        Numbers of topics, between the least and the greatest tried, whose expected loss cannot be told from the least
        one (one-sided, 95 %). Where there are several, the fewest topics are the simplest reading.
    topics
        For each topic of the best model: its ``stability``, the mean correlation of its activations, weighted by how
        abundant features are, with those of the topic that it is matched with in each of the next best models
        (Hungarian method; nothing to match with counts as 0); and its ``redundancy``, the greatest correlation with
        another topic of its own model, ``nearest``. Empty if no model can be read.
    compared
        Numbers of the trials whose topics were matched with the best one's.
    warnings
        What to mend before trusting this.
    """

    study: str
    num_topics: int
    loss: float
    losses: pd.DataFrame
    noise: float | None
    alike: list[int]
    topics: pd.DataFrame
    compared: list[int]
    warnings: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """State the range of numbers of topics that the trials speak for, and why."""
        best = f"trial with the least loss has {self.num_topics} topics ({self.loss:.2f} nats per cell)"
        if not self.alike:
            return f"The {best}; there are too few trials to say which other numbers would do as well."
        few, many = self.alike[0], self.alike[-1]
        if few == many:
            return f"Take {few} topics: the expected loss is least there, and higher at every other number."
        fewest = f"Take {few} to {many} topics, rather {few} where fewer are easier to read: the {best}, and"
        noise = f", as trainings with the same number scatter by {self.noise:.2f}" if self.noise is not None else ""
        return f"{fewest} the expected losses from {_ranges(self.alike)} cannot be told apart{noise}."

    def __repr__(self) -> str:
        """Tell all of it."""
        lines = [f"{self.study}: {self.num_topics} topics, {self.loss:.2f} nats per cell"]
        if self.alike:
            lines.append(
                f"cannot be told from the best: {_ranges(self.alike)} topics (trainings with the same number scatter "
                f"by {self.noise:.2f} nats per cell)"
            )
        lines += ["", self.losses.to_string(float_format="{:.2f}".format, na_rep="")]
        if len(self.topics):
            said = f"matched with {len(self.compared)} further models" if self.compared else "nothing to match with"
            lines += ["", f"topics of the best model, {said}:",
                      self.topics.to_string(float_format="{:.2f}".format, na_rep="")]  # fmt: skip
        return "\n".join([*lines, *(f"\nwarning: {w}" for w in self.warnings)])


def summarise(
    study: str, trials: Sequence[FrozenTrial], models: Mapping[int, FittedModel], ends: tuple[int, int]
) -> Summary:
    """Sum up completed trials.

    Parameters
    ----------
    study
        Name.
    trials
        Completed ones, at least one.
    models
        Of the best of them, by trial number, as far as they can be read.
    ends
        Least and greatest number of topics that was searched.
    """
    best = best_of(trials)
    assert best is not None
    assert best.value is not None
    k_T = np.array([t.params["num_topics"] for t in trials])
    loss_T = np.array([t.value for t in trials], dtype=float)
    by_topics = pd.DataFrame({"num_topics": k_T, "loss": loss_T}).groupby("num_topics")["loss"]
    losses = pd.DataFrame(
        {"trials": by_topics.size(), "best": by_topics.min(), "median": by_topics.median(), "sd": by_topics.std()}
    )
    said = [warning] if (warning := end_warning(best, ends)) else []
    noise, alike = None, []
    if len(k_T) >= ENOUGH and len(losses) >= 3:
        grid, mean, covariance, noise = _expected(k_T, loss_T)
        at = np.searchsorted(grid, losses.index)
        losses["expected"], losses["error"] = mean[at], np.sqrt(covariance.diagonal()[at])
        least = int(mean.argmin())
        difference = covariance.diagonal() + covariance[least, least] - 2 * covariance[least]
        alike = grid[mean - mean[least] <= SURE * np.sqrt(np.maximum(difference, 0))].tolist()
    else:
        few = "one trial has" if len(k_T) == 1 else f"{len(k_T)} trials with {_numbers(len(losses))} of topics have"
        said.append(f"only {few} completed; the best may be luck")
    topics, compared = pd.DataFrame(), []
    if best.number in models:
        compared = [n for n in models if n != best.number]
        topics = match(models[best.number], [models[n] for n in compared])
        said += _of_topics(topics, compared)
    else:
        said.append(f"the model of trial {best.number} cannot be read; topics are not compared")
    return Summary(study, int(best.params["num_topics"]), best.value, losses, noise, alike, topics, compared, said)


def end_warning(best: FrozenTrial, ends: tuple[int, int]) -> str | None:
    """Return what to say if the best number of topics is near an end of the range."""
    topics = best.params["num_topics"]
    for end, name, where, other in (
        (ends[0], "min_topics", "lower", "lowest"), (ends[1], "max_topics", "higher", "highest"),
    ):  # fmt: skip
        if abs(topics - end) <= NEAR and not (name == "min_topics" and end == 2):
            return (
                f"the best model has {topics} topics, near the {other} number tried; tune anew with a {where} {name} "
                f"than {end}"
            )
    return None


def _expected(k_T: np.ndarray, loss_T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return whole numbers of topics, their expected losses, the covariance of these, and the noise of one training."""
    grid = np.arange(k_T.min(), k_T.max() + 1)
    centre, spread = np.median(loss_T), max(np.subtract(*np.percentile(loss_T, [75, 25])) / 1.35, 1e-9)
    z = np.clip((loss_T - centre) / spread, -5, 5)  # numbers far from the best must not set the scale
    process = GaussianProcess(_unit(k_T, grid), z)
    mean, covariance = process.curve(_unit(grid, grid))
    return grid, centre + spread * mean, covariance * spread**2, spread * process.noise


def _unit(k: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return numbers of topics between 0 and 1, evenly by their logarithm, T x 1."""
    return (np.log(k / grid[0]) / np.log(grid[-1] / grid[0]))[:, None]


def match(model: FittedModel, others: Sequence[FittedModel]) -> pd.DataFrame:
    """Match the topics of a model with those of others, one to one.

    Returns
    -------
    pandas.DataFrame
        ``stability``, ``redundancy`` and ``nearest`` for each topic.
    """
    weight = model.topic_feature_compositions().mean(0)
    own = model.topic_feature_activations()
    found = np.zeros((len(others), len(own)))
    for row, other in zip(found, others, strict=True):
        alike = correlations(own, other.topic_feature_activations(), weight)
        at, to = best_pairs(alike)
        row[at] = alike[at, to]
    near, redundancy = nearest(own, weight)
    names = model.topic_cols
    return pd.DataFrame(
        {
            "stability": found.mean(0) if others else np.nan,
            "redundancy": redundancy,
            "nearest": [names[i] for i in near],
        },
        index=names,
    )


def compare(model: FittedModel, other: FittedModel, top: int = 20) -> pd.DataFrame:
    """Match the topics of two models one to one, as `mira_core.analysis.match_topics` does.

    Raises
    ------
    TuningError
        If the models have less than half of their features in common.
    """
    try:
        return match_topics(model, other, top)
    except DataError as problem:
        raise TuningError(str(problem)) from None


def _of_topics(topics: pd.DataFrame, compared: Sequence[int]) -> list[str]:
    said = []
    unstable = topics.index[topics["stability"] < UNSTABLE]
    if compared and len(unstable):
        said.append(f"{', '.join(unstable)} did not come again in the next best models: read with care")
    redundant = topics.index[topics["redundancy"] > REDUNDANT]
    if len(redundant):
        said.append(f"{', '.join(redundant)} resemble another topic: fewer topics may do")
    return said


def _ranges(numbers: Sequence[int]) -> str:
    """Write 3, 4, 5, 8 as '3 to 5, 8'."""
    groups: list[list[int]] = []
    for n in numbers:
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]} to {g[-1]}" for g in groups)


def _numbers(n: int) -> str:
    return "one number" if n == 1 else f"{n} numbers"
