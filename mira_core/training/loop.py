"""Training, as a generator of records. Whoever reads it decides what becomes of them; closing it stops."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..data import loaders
from ..data.counts import Cells
from ..errors import CheckpointError, TrainingError
from ..nn.network import TopicNetwork
from ..records import EpochRecord, Record, StepRecord
from . import schedules
from .clock import Clock
from .engine import Engine, make_engine
from .evaluation import held_out
from .step import all_finite, copy_into

MEANS = ("loss", "distortion", "rate", "dependence")


@dataclass
class State:
    """A training after one of its epochs: all that the later ones depend on, besides cells and options.

    Made empty, it is filled by `train` after every epoch; one that is filled is where `train` goes on.

    Attributes
    ----------
    epoch, step
        Done so far; of an empty one 0.
    weights
        Of the network.
    stepper
        As of `Stepper.state`.
    order
        Of the generator that shuffles the cells, as JSON can hold it.
    """

    epoch: int = 0
    step: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    stepper: dict[str, torch.Tensor] = field(default_factory=dict)
    order: dict[str, Any] = field(default_factory=dict)

    def keep(self, epoch: int, step: int, network: TopicNetwork, engine: Engine, rng: np.random.Generator) -> None:
        """Copy what is there after an epoch."""
        self.epoch, self.step, self.order = epoch, step, dict(rng.bit_generator.state)
        copy_into(self.weights, network.state_dict())
        copy_into(self.stepper, engine.stepper.state())


def train(
    network: TopicNetwork,
    cells: Cells,
    options: Mapping[str, Any],
    seed: int,
    test: Cells | None = None,
    state: State | None = None,
) -> Generator[Record, None, None]:
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
    test
        Cells to score after each epoch, which changes nothing in the training.
    state
        Where to keep what a training can go on from, after each epoch. A filled one is gone on from: on the same
        machine's CPU, to the same weights as if there had been no interruption.

    Yields
    ------
    StepRecord or EpochRecord

    Raises
    ------
    CheckpointError
        If `state` is not of such a network and so many cells.
    TrainingError
        If the loss or a weight is no longer finite. The network is then as it was after the last epoch that ended
        well.
    """
    rng = np.random.default_rng(seed)
    per_epoch = loaders.steps_per_epoch(len(cells), options["batch_size"])
    if state is not None and state.epoch:
        if state.step != per_epoch * state.epoch:
            raise CheckpointError(
                f"the checkpoint is of {state.step} steps in {state.epoch} epochs; these cells give {per_epoch} in "
                "each. Train anew"
            )
        network.load_state_dict(state.weights)
        rng.bit_generator.state = state.order
    engine = make_engine(network, cells, options, seed)
    total = per_epoch * options["num_epochs"]
    first = step = 0
    good: dict[str, torch.Tensor] = {}
    if state is not None:
        if state.epoch:
            engine.stepper.load_state(state.stepper)
        first, step = state.epoch, state.step
        state.weights, state.stepper = good, {}  # from now on where the network is
        state.keep(first, step, network, engine, rng)
    copy_into(good, network.state_dict())
    try:
        for epoch in range(first + 1, options["num_epochs"] + 1):
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
            if state is None:
                copy_into(good, network.state_dict())
            else:
                state.keep(epoch, step, network, engine, rng)
            seconds, use = began.passed()
            yield EpochRecord(
                epoch, step, **{k: float(np.mean([getattr(s, k) for s in steps])) for k in MEANS},
                kl_weight=last.kl_weight, learning_rate=last.learning_rate, momentum=last.momentum,
                dependence_weight=last.dependence_weight, seconds=seconds, cells_per_second=order.size / seconds,
                waiting=min(1.0, (engine.waiting - waited) / seconds), device_use=use,
                **_scored(network, test),
            )  # fmt: skip
    except TrainingError:
        network.load_state_dict(good)
        raise
    finally:
        engine.close()


def _scored(network: TopicNetwork, test: Cells | None) -> dict[str, float]:
    if test is None:
        return {}
    told = held_out(network, test)
    return {
        "held_out_loss": told.distortion + told.rate,
        "held_out_distortion": told.distortion,
        "held_out_rate": told.rate,
    }


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
