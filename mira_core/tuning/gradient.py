"""The number of topics by gradients: a model whose prior leaves topics unused that the cells do not need."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.cluster.hierarchy as hierarchy
from scipy.spatial.distance import squareform

from .. import options as opt
from ..data import sources
from ..data.counts import Cells
from ..data.sources import Data
from ..errors import OptionError, TrainingError, TuningError
from ..estimators import interpretation
from ..estimators.topic_model import TopicModel

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
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int | np.integer) or max_attempts < 1:
        raise OptionError(f"max_attempts must be an integer of at least 1; got {max_attempts!r}")
    given = _process_options(model)
    cells = sources.training_cells(data, TopicModel(model.n_samples, model.n_features, **given).get_params())
    num_topics = opt.validate("num_topics", most_topics(len(cells)) if max_topics is None else max_topics)
    problem: TrainingError | None = None
    for attempt in range(max_attempts):
        try:
            return _estimate(model, {**given, "num_topics": num_topics}, cells, attempt)
        except TrainingError as p:
            problem = p
    raise TuningError(
        f"the training diverged in each of {max_attempts} attempts. Try a lower max_learning_rate "
        "(model.get_learning_rate_bounds(data) finds one), leave out cells with extreme total counts, model fewer "
        f"features, or set max_topics lower than {num_topics}. The last attempt: {problem}"
    ) from problem


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


def _estimate(model: TopicModel, given: dict[str, Any], cells: Cells, attempt: int) -> tuple[int, np.ndarray]:
    given = {**given, **_strictness(model, len(cells))}
    given["seed"] = (SEED if model.seed is None else model.seed) + attempt
    process = TopicModel(model.n_samples, model.n_features, **given)
    if attempt:
        process.set_params(
            **{k: max(least, process.get_params()[k]) for k, least in CAREFUL.items() if k in process.get_params()}
        )
    if model._device is not None:
        process.set_device(model._device)
    for _ in process.fit_cells(cells):
        pass
    assert process.network is not None
    contributions = np.sort(merged(interpretation.compositions(process.network, cells)).max(0))[::-1]
    return int((contributions > CONTRIBUTES).sum()), contributions.copy()


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
