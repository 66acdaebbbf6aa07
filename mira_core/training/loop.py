"""Training, as a generator of records. Whoever reads it decides what becomes of them; closing it stops."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from ..data import loaders
from ..data.counts import Cells
from ..errors import TrainingError
from ..nn.network import TopicNetwork
from ..records import EpochRecord, Record, StepRecord
from . import schedules
from .step import Stepper, all_finite, copy_state

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
    stepper = Stepper(network, options, seed)
    per_epoch = loaders.steps_per_epoch(len(cells), options["batch_size"])
    total = per_epoch * options["num_epochs"]
    anneal = schedules.ANNEALING[options["kl_strategy"]]
    dependence_beta = options.get("dependence_beta", 0.0)
    step = 0
    good = copy_state(network)
    try:
        for epoch in range(1, options["num_epochs"] + 1):
            network.train()
            began, waiting, n_seen = time.perf_counter(), 0.0, 0
            steps: list[StepRecord] = []
            batches = loaders.shuffled(cells, options["batch_size"], rng)
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                batch = batch.to(network.device)
                waiting += time.perf_counter() - asked
                lr = schedules.learning_rate(step, total, options["min_learning_rate"], options["max_learning_rate"])
                momentum = schedules.momentum(step, total, options["min_momentum"], options["max_momentum"])
                kl_weight = options["cost_beta"] * anneal(step, total)
                dependence_weight = options["cost_beta"] * dependence_beta * schedules.dependence(step, total)

                told = stepper.step(
                    batch, lr=lr, momentum=momentum, kl_weight=kl_weight, dependence_weight=dependence_weight
                )
                step += 1
                n_seen += batch.n_cells
                if not math.isfinite(told.loss):
                    raise _diverged(network, cells, options, step, epoch, lr)
                steps.append(
                    StepRecord(
                        step, epoch, *told[:3], kl_weight, lr, momentum,
                        dependence=told.dependence, dependence_weight=dependence_weight,
                    )
                )  # fmt: skip
                yield steps[-1]
            if not all_finite(network):  # by the last step: no later loss tells
                raise _diverged(network, cells, options, step, epoch, lr)
            good = copy_state(network)
            seconds = time.perf_counter() - began
            last = steps[-1]
            yield EpochRecord(
                epoch, step, **{k: float(np.mean([getattr(s, k) for s in steps])) for k in MEANS},
                kl_weight=last.kl_weight, learning_rate=last.learning_rate, momentum=last.momentum,
                dependence_weight=last.dependence_weight, seconds=seconds, cells_per_second=n_seen / seconds,
                waiting=waiting / seconds,
            )  # fmt: skip
    except TrainingError:
        network.load_state_dict(good)
        raise
    finally:
        stepper.close()


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
