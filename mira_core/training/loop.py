"""Training, as a generator of records. Whoever reads it decides what becomes of them; closing it stops."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from ..data import loaders
from ..data.counts import Cells
from ..errors import TrainingError
from ..nn.network import TopicNetwork
from ..records import EpochRecord, Record, StepRecord
from . import schedules
from .clock import Clock
from .engine import make_engine
from .step import all_finite, copy_state, copy_state_into

MEANS = ("loss", "distortion", "rate", "dependence")


def train(network: TopicNetwork, cells: Cells, options: Mapping[str, Any], seed: int) -> Generator[Record, None, None]:
    """Train in place; yield a record after every step and every epoch.

    Parameters
    ----------
    network
        Initialised, on the device where it is to be trained.
    cells
        Training cells.
    options
        Resolved options of the model.
    seed
        Of the shuffling, the draws and the dropouts.

    Yields
    ------
    StepRecord or EpochRecord

    Raises
    ------
    TrainingError
        If the loss or a weight is no longer finite. The network is then as it was after the last epoch that ended
        well.
    """
    rng = np.random.default_rng(seed)
    engine = make_engine(network, cells, options, seed)
    per_epoch = loaders.steps_per_epoch(len(cells), options["batch_size"])
    total = per_epoch * options["num_epochs"]
    step = 0
    good = copy_state(network)
    try:
        for epoch in range(1, options["num_epochs"] + 1):
            network.train()
            began, waited = Clock(network.device), engine.waiting
            steps: list[StepRecord] = []
            order = loaders.shuffled(len(cells), options["batch_size"], rng)
            settings = [schedules.settings(i, total, options) for i in range(step, step + per_epoch)]
            for setting, told in zip(settings, engine.epoch(order, settings), strict=True):
                step += 1
                if not math.isfinite(told.loss):
                    raise _diverged(network, cells, options, step, epoch, setting.learning_rate)
                steps.append(
                    StepRecord(
                        step, epoch, *told[:3], setting.kl_weight, setting.learning_rate, setting.momentum,
                        dependence=told.dependence, dependence_weight=setting.dependence_weight,
                    )
                )  # fmt: skip
                yield steps[-1]
            last = steps[-1]
            if not all_finite(network):  # by the last step: no later loss tells
                raise _diverged(network, cells, options, step, epoch, last.learning_rate)
            copy_state_into(good, network)
            seconds, use = began.passed()
            yield EpochRecord(
                epoch, step, **{k: float(np.mean([getattr(s, k) for s in steps])) for k in MEANS},
                kl_weight=last.kl_weight, learning_rate=last.learning_rate, momentum=last.momentum,
                dependence_weight=last.dependence_weight, seconds=seconds, cells_per_second=order.size / seconds,
                waiting=min(1.0, (engine.waiting - waited) / seconds), device_use=use,
            )  # fmt: skip
    except TrainingError:
        network.load_state_dict(good)
        raise
    finally:
        engine.close()


def _diverged(
    network: TopicNetwork, cells: Cells, options: Mapping[str, Any], step: int, epoch: int, lr: float
) -> TrainingError:
    """Name what is likely to have made the loss infinite, the likeliest first."""
    depths = cells.counts.depths()
    extreme, median = depths.max(), float(np.median(depths))
    causes = []
    if extreme > 50 * median:
        causes.append(
            f"outlier cells: the deepest cell has {extreme:,.0f} counts, {extreme / median:,.0f} times the median; "
            "leave out cells with extreme total counts"
        )
    causes.append(
        f"a learning rate that is too high: max_learning_rate is {options['max_learning_rate']:g}; try a third of it, "
        "or find bounds by get_learning_rate_bounds"
    )
    if network.n_features > 20_000 and options["feature_type"] == "expression":
        causes.append(f"too many features: {network.n_features:,} genes; model the few thousand most variable ones")
    return TrainingError(
        f"the loss is no longer finite at step {step} (epoch {epoch}, learning rate {lr:.2g}). Likely causes: "
        + "; or ".join(causes)
        + f". The model is as it was after epoch {epoch - 1}"
    )
