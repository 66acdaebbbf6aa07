"""The number of topics by gradients: a model whose prior leaves topics unused that the cells do not need."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.cluster.hierarchy as hierarchy
from scipy.spatial.distance import squareform

from .. import options as opt
from ..data import sources
from ..data.loaders import steps_per_epoch
from ..data.sources import Data
from ..errors import TrainingError, TuningError
from ..estimators import interpretation
from ..estimators.topic_model import TopicModel
from ..records import Record
from .tune_options import GradientOptions

CONTRIBUTES = 0.05  # share of a cell that a topic must reach in some cell to be counted
SAME = 0.6  # correlation over the cells from which topics are one
MAX_LEARNING_RATE = 0.1
# Topics begin with even shares, and it takes a strong prior and time until those that cells can do without are empty:
# of simulated cells with 5, 10 and 20 topics a weight of 1.5 and 1,000 steps left 15, 21 and 30. What few cells say
# of a topic's features is soon learned by heart, so that the fewer they are, the more the prior must weigh.
COST_BETA = 4.0
ENOUGH_CELLS = 2000
LEAST_STEPS = 3000
SEED = 2556
# A second attempt has at least these.
CAREFUL = {"encoder_dropout": 0.05, "decoder_dropout": 0.1, "embedding_dropout": 0.1}


def gradient_tune(
    model: TopicModel, data: Data, max_attempts: int = 3, max_topics: int | None = None
) -> tuple[int, np.ndarray]:
    """Estimate the number of topics from one training of a Dirichlet-process model.

    Very fast, though less thorough than `BayesianTuner`; for large data (more than 40,000 cells).

    Parameters
    ----------
    model
        Topic model to tune, with the columns of features set and the learning rates configured by
        `get_learning_rate_bounds`. It is left as it is.
    data
        AnnData, a path as `mira_core.data.open_data` takes it, or of a folder that `write_ondisk_dataset` wrote.
    max_attempts
        If the training diverges, it is begun anew with another seed and more dropout, so many times in all.
    max_topics
        Topics that the model may use; None: max(50, (N^0.3 - 1) / 0.3) for N cells.

    Returns
    -------
    int
        Number of topics that make up more than 5 % of some cell.
    numpy.ndarray, max_topics
        The greatest contribution of each topic to any cell, in falling order. Topics that rise and fall together
        over the cells count as one, and the others of them as nothing.

    Raises
    ------
    OptionError
    TuningError
        If every attempt diverges.
    """
    tuning = GradientTuning(model, data, max_attempts, max_topics)
    for _ in tuning.records():
        pass
    return tuning.num_topics, tuning.contributions


class GradientTuning:
    """The training behind `gradient_tune`, whose records can be watched.

    Parameters
    ----------
    model, data, max_attempts, max_topics
        As of `gradient_tune`.

    Attributes
    ----------
    cells : Cells
        That it is trained on.
    process : TopicModel or None
        The model of the attempt that runs, or ran last.
    num_steps, num_epochs : int
        Of this attempt, and those before it.
    num_topics : int
    contributions : numpy.ndarray
        What was found, once the records have ended.
    """

    def __init__(self, model: TopicModel, data: Data, max_attempts: int = 3, max_topics: int | None = None) -> None:
        GradientOptions(max_attempts, max_topics).check()
        self.model, self.max_attempts = model, max_attempts
        given = _process_options(model)
        self.cells = sources.training_cells(data, TopicModel(model.n_samples, model.n_features, **given).get_params())
        wanted = most_topics(len(self.cells)) if max_topics is None else max_topics
        self.given = {**given, "num_topics": opt.validate("num_topics", wanted)}
        self.process: TopicModel | None = None
        self.num_steps = self.num_epochs = self.num_topics = 0
        self._done = 0, 0  # steps and epochs
        self.contributions = np.zeros(0)

    def records(self) -> Generator[Record, None, None]:
        """Train, attempt after attempt; their steps and epochs are counted on.

        Raises
        ------
        TuningError
            If every attempt diverges.
        """
        problem: TrainingError | None = None
        for attempt in range(self.max_attempts):
            try:
                yield from self._attempt(attempt)
            except TrainingError as p:
                problem = p
            else:
                self._find()
                return
        raise TuningError(
            f"the training diverged in each of {self.max_attempts} attempts. Try a lower max_learning_rate "
            "(model.get_learning_rate_bounds(data) finds one), leave out cells with extreme total counts, model fewer "
            f"features, or set max_topics lower than {self.given['num_topics']}. The last attempt: {problem}"
        ) from problem

    def _attempt(self, attempt: int) -> Generator[Record, None, None]:
        self.process = process = _process_of(self.model, self.given, len(self.cells), attempt)
        steps_before, epochs_before = self._done
        self.num_epochs = epochs_before + process.num_epochs
        self.num_steps = steps_before + process.num_epochs * steps_per_epoch(len(self.cells), process.batch_size)
        for record in process.fit_cells(self.cells):
            self._done = steps_before + record.step, epochs_before + record.epoch
            yield record if not attempt else replace(record, step=self._done[0], epoch=self._done[1])

    def _find(self) -> None:
        assert self.process is not None
        assert self.process.network is not None
        theta_NK = merged(interpretation.compositions(self.process.network, self.cells))
        self.contributions = np.sort(theta_NK.max(0))[::-1].copy()
        self.num_topics = int((self.contributions > CONTRIBUTES).sum())


def most_topics(n_cells: int) -> int:
    """Return a generous number of topics for so many cells: a Box-Cox transform of their number, at least 50."""
    return max(50, int((n_cells**0.3 - 1) / 0.3))


def _process_options(model: TopicModel) -> dict[str, Any]:
    """Return the model's options for one with a Dirichlet process."""
    given = {**model.given, "topic_prior": "dirichlet_process"}
    highest = min(MAX_LEARNING_RATE, given.get("max_learning_rate", MAX_LEARNING_RATE))
    lowest = min(model.min_learning_rate, highest)
    given |= {"max_learning_rate": highest, "min_learning_rate": lowest}
    return {k: v for k, v in given.items() if opt.applies(k, given)}


def _strictness(model: TopicModel, n_cells: int) -> dict[str, Any]:
    """Return options by which topics that the cells can do without become empty."""
    cost_beta = max(COST_BETA * max(1.0, ENOUGH_CELLS / n_cells), model.cost_beta)
    steps = max(1, n_cells // model.batch_size)
    out = {"cost_beta": cost_beta, "num_epochs": max(model.num_epochs, math.ceil(LEAST_STEPS / steps))}
    options = model.get_params()
    if "dependence_beta" in options:  # the penalty of dependence stays as it is
        out["dependence_beta"] = options["dependence_beta"] * model.cost_beta / cost_beta
    return out


def _process_of(model: TopicModel, given: dict[str, Any], n_cells: int, attempt: int) -> TopicModel:
    """Return the model of an attempt."""
    given = {**given, **_strictness(model, n_cells)}
    given["seed"] = (SEED if model.seed is None else model.seed) + attempt
    process = TopicModel(model.n_samples, model.n_features, **given)
    if attempt:
        process.set_params(
            **{k: max(least, process.get_params()[k]) for k, least in CAREFUL.items() if k in process.get_params()}
        )
    if model._device is not None:
        process.set_device(model._device)
    return process


def merged(theta_NK: np.ndarray) -> np.ndarray:
    """Return compositions in which topics that rise and fall together are one, N x K.

    Topics are put together by their mean correlation over the cells; the first of those that are one has the sum of
    all, the others have nothing.
    """
    used = np.flatnonzero((theta_NK.max(0) > CONTRIBUTES) & (theta_NK.std(0) > 0))
    if len(used) < 2:
        return theta_NK
    far = 1 - np.corrcoef(theta_NK[:, used].T)
    tree = hierarchy.linkage(squareform(far, checks=False), "average")
    groups = hierarchy.fcluster(tree, 1 - SAME, "distance")
    out = theta_NK.copy()
    out[:, used] = 0
    for group in np.unique(groups):
        members = used[groups == group]
        out[:, members[0]] = theta_NK[:, members].sum(1)
    return out
