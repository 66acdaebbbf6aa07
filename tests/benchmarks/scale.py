"""How the time of a training step grows with cells, features and topics, in memory and read from the disk.

    python -m tests.benchmarks.scale --threads 2

A step should not depend on the number of cells; an epoch grows in proportion to them. In memory and from the disk are
timed in turn, and medians given; so is a whole epoch, all its records included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import mira_core as mira
from mira_core.data import simulate_expression

from .speed import EXPRESSION, steps_of, timed


def measure(
    n_cells: int, n_features: int, num_topics: int, *, batch: int, repeats: int, steps: int, folder: Path
) -> dict[str, Any]:
    """Time steps in memory and from the disk, and one epoch in memory."""
    adata = simulate_expression(n_cells, n_features, 10, depth=2000, seed=0)
    path = folder / f"{n_cells}_{n_features}"
    options = {**EXPRESSION, "num_topics": num_topics, "batch_size": batch, "num_epochs": 1000, "seed": 0}
    models = [mira.topics.make_model(*adata.shape, **options) for _ in range(2)]
    if not path.exists():
        models[0].write_ondisk_dataset(adata, path)
    trainings = [steps_of(m, data) for m, data in zip(models, (adata, str(path)), strict=True)]
    for training in trainings:
        for _ in itertools.islice(training, 5):
            pass
    walls: list[list[float]] = [[], []]
    for _ in range(repeats):
        for training, wall in zip(trainings, walls, strict=True):
            wall.append(timed(lambda t=training: next(t), steps, torch.device("cpu"))[0])  # type: ignore[misc]
    for training in trainings:
        training.close()
    epoch = mira.topics.make_model(*adata.shape, **{**options, "num_epochs": 3})
    began = time.perf_counter()
    seconds = [r.seconds for r in epoch.fit(adata, progress=False).history]
    memory, disk = (statistics.median(w) for w in walls)
    ratio = statistics.median(b / a for a, b in zip(*walls, strict=True))
    return {
        "cells": n_cells, "features": n_features, "topics": num_topics, "batch": batch, "ms": round(memory, 2),
        "ms_from_disk": round(disk, 2), "ratio": round(ratio, 2), "epoch_s": round(statistics.median(seconds), 3),
        "us_per_cell": round(1e6 * statistics.median(seconds) / n_cells, 1),
        "fit_s": round(time.perf_counter() - began, 2),
    }  # fmt: skip


def main() -> None:
    """Measure along each size, the others at their usual, and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="1000,4000,16000")
    parser.add_argument("--features", default="1000,3000,8000")
    parser.add_argument("--topics", default="10,22,50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    sizes = [[int(n) for n in text.split(",")] for text in (a.cells, a.features, a.topics)]
    usual = (4000, 3000, 22)
    cases = dict.fromkeys(
        tuple(n if i == k else u for k, u in enumerate(usual)) for i, along in enumerate(sizes) for n in along
    )
    with tempfile.TemporaryDirectory() as name:
        for case in cases:
            told = measure(*case, batch=a.batch, repeats=a.repeats, steps=a.steps, folder=Path(name))
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
