"""Training, as a generator of records. Whoever reads it decides what becomes of them; closing it stops."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import torch

from ..data import loaders
from ..data.counts import Cells
from ..errors import TrainingError
from ..nn.network import TopicNetwork
from ..records import EpochRecord, Record, StepRecord
from . import schedules
from .objective import REFERENCE_BATCH, draw, loss_terms


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
        If the loss is no longer finite.
    """
    device = network.device
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device=device).manual_seed(seed)
    network.use_generator(generator)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=options["weight_decay"], fused=True
    )
    (group,) = optimiser.param_groups
    per_epoch = loaders.steps_per_epoch(len(cells), options["batch_size"])
    total = per_epoch * options["num_epochs"]
    anneal = schedules.ANNEALING[options["kl_strategy"]]
    step = 0
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
                batch = batch.to(device)
                waiting += time.perf_counter() - asked
                lr = schedules.learning_rate(step, total, options["min_learning_rate"], options["max_learning_rate"])
                momentum = schedules.momentum(step, total, options["min_momentum"], options["max_momentum"])
                kl_weight = options["cost_beta"] * anneal(step, total)
                group["lr"], group["betas"] = lr, (momentum, 0.999)

                optimiser.zero_grad(set_to_none=True)
                terms = loss_terms(network, batch, draw(network, batch, generator))
                loss = terms.loss(kl_weight)
                (loss * (REFERENCE_BATCH / batch.n_cells)).backward()
                optimiser.step()

                step += 1
                n_seen += batch.n_cells
                told = torch.stack([loss, terms.distortion, terms.rate]).detach() / batch.n_cells
                value, distortion, rate = told.tolist()
                if not np.isfinite(value):
                    raise TrainingError(_not_finite(step, epoch, lr, options))
                steps.append(StepRecord(step, epoch, value, distortion, rate, kl_weight, lr, momentum))
                yield steps[-1]
            if not all(t.isfinite().all() for t in network.state_dict().values() if t.is_floating_point()):
                raise TrainingError(_not_finite(step, epoch, lr, options))  # by the last step: no later loss tells
            seconds = time.perf_counter() - began
            mean = {k: float(np.mean([getattr(s, k) for s in steps])) for k in ("loss", "distortion", "rate")}
            yield EpochRecord(
                epoch, step, **mean, kl_weight=steps[-1].kl_weight, learning_rate=steps[-1].learning_rate,
                momentum=steps[-1].momentum, seconds=seconds, cells_per_second=n_seen / seconds,
                waiting=waiting / seconds,
            )  # fmt: skip
    finally:
        network.use_generator(None)
        network.eval()


def _not_finite(step: int, epoch: int, lr: float, options: Mapping[str, Any]) -> str:
    return (
        f"the loss is no longer finite at step {step} (epoch {epoch}, learning rate {lr:.2g}). Usually "
        f"max_learning_rate ({options['max_learning_rate']:g}) is too high, or a few cells have extreme counts. "
        "Try a third of the learning rate, and look for cells with outlying total counts"
    )
