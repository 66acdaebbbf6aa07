"""Time of a training step, by family of models, and its ratio to the floor of the same machine in the same minutes.

    python -m tests.benchmarks.speed --threads 2 --repeats 5

The floor is what no implementation with these layers can leave out: the matrix products of the linear layers with
those of their gradients, one softmax over cells by features with its gradient, and one fused AdamW over all
parameters; each timed alone, on arrays of the same shapes. Steps and floor are timed in turn, and medians given.
A step is one of `fit_records`: it holds the making of the minibatch, the schedules and the records.

On a GPU (``--device cuda --steps 200``) the share of the time in which it is idle is told too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import numpy as np
import torch

import mira_core as mira
from mira_core.data import simulate_expression, sources
from mira_core.nn.blocks import PeakEmbedding
from mira_core.nn.network import TopicNetwork
from mira_core.records import StepRecord

EXPRESSION = {"feature_type": "expression", "num_topics": 22, "hidden": 256, "num_layers": 3}
CODAL = {**EXPRESSION, "categorical_covariates": ["batch"], "hidden": 128}
PEAKS = {"feature_type": "accessibility", "num_topics": 14, "hidden": 128, "num_layers": 3}
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {  # options, and features where none are given
    "expression": (EXPRESSION, 3000),
    "codal": (CODAL, 3000),
    "skipDAN": ({**PEAKS, "dan_on_cpu": True}, 30_000),
    "fast": ({**PEAKS, "atac_encoder": "fast"}, 30_000),
}
CASES = "expression:64,expression:128,expression:512,codal:64,skipDAN:64,fast:128"


def simulate(family: str, n_cells: int, n_features: int) -> ad.AnnData:
    """Counts of about the density of real data; of peaks the models see only whether they are open."""
    depth = 0.1 * n_features if family in ("skipDAN", "fast") else 2000
    return simulate_expression(n_cells, n_features, 10, n_batches=2, depth=depth, seed=0)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to end what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def floor_of(network: TopicNetwork, batch_size: int) -> Callable[[], None]:
    """Return what must be done at each step, on made-up arrays."""
    device, K, G = network.device, network.num_topics, network.n_features
    new = {"device": device, "dtype": torch.float32}
    shapes = [
        m.weight.shape if isinstance(m, PeakEmbedding) else m.weight.shape[::-1]
        for m in network.encoder.modules()
        if isinstance(m, PeakEmbedding | torch.nn.Linear)
    ]
    fixed = getattr(network.encoder, "by_peak_ER", None)  # a product without gradients
    # the first layer needs no gradient for its input
    products = [
        (torch.randn(batch_size, n_in, **new), torch.randn(n_in, n_out, **new), i > 0)
        for i, (n_in, n_out) in enumerate([*shapes, (K, G)])
    ]
    open_BE = None if fixed is None else torch.randn(batch_size, len(fixed), **new)
    # contiguous: of others the optimiser makes copies
    parameters = [
        torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in network.model_parameters()
    ]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True, capturable=device.type == "cuda")
    logits = torch.randn(batch_size, G, **new)
    gradients = [torch.randn(batch_size, w.shape[1], **new) for _, w, _ in products]

    def step() -> None:
        for (x, w, with_input), g in zip(products, gradients, strict=True):
            _ = x @ w
            _ = x.T @ g
            if with_input:
                _ = g @ w.T
        if open_BE is not None:
            _ = open_BE @ fixed
        rho = logits.softmax(1)
        torch.ops.aten._softmax_backward_data(gradients[-1], rho, 1, torch.float32)
        optimiser.step()

    return step if device.type == "cpu" else captured(step)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return the step as a graph of the GPU, so that a floor is not the time it takes to launch its operations."""
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    beside.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(step: Callable[[], Any], n: int, device: torch.device) -> tuple[float, float]:
    """Return wall and processor milliseconds of one of `n`."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(n):
        step()
    synchronise(device)
    return 1e3 * (time.perf_counter() - wall) / n, 1e3 * (time.process_time() - cpu) / n


def steps_of(model: mira.topics.TopicModel, data: Any) -> Iterator[StepRecord]:
    """Train on and on, a step at a time."""
    return (r for r in model.fit_records(data) if isinstance(r, StepRecord))


def idle_share(step: Callable[[], Any], n: int) -> float:
    """Return the share of the time in which a GPU runs nothing, over `n` steps, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        began = time.perf_counter()
        for _ in range(n):
            step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    return 1 - min(1.0, sum(e.self_device_time_total for e in profile.key_averages()) / 1e6 / wall)


def measure(
    family: str, batch_size: int, *, n_cells: int, n_features: int | None, repeats: int, steps: int, device: str
) -> dict[str, Any]:
    """Measure one case."""
    options, usual = FAMILIES[family]
    adata = simulate(family, n_cells, n_features or usual)
    model = mira.topics.make_model(*adata.shape, **options, batch_size=batch_size, num_epochs=1000, seed=0)
    model.set_device(device)
    training = steps_of(model, adata)
    for _ in itertools.islice(training, 10):
        pass
    network = model.network
    assert network is not None
    floor = floor_of(network, batch_size)
    timed(floor, 3, model.device)
    walls, cpus, floors = [], [], []
    for _ in range(repeats):
        wall, cpu = timed(lambda: next(training), steps, model.device)
        walls.append(wall)
        cpus.append(cpu)
        floors.append(timed(floor, steps, model.device)[0])
    idle = idle_share(lambda: next(training), 100) if model.device.type == "cuda" else None
    training.close()
    ratios = [a / b for a, b in zip(walls, floors, strict=True)]
    nnz = sources.training_cells(adata, model.get_params()).counts.lengths.mean()
    median = statistics.median
    return {
        "family": family, "cells": n_cells, "features": adata.n_vars, "batch": batch_size, "hidden": model.hidden,
        "topics": model.num_topics, "threads": torch.get_num_threads(), "device": device,
        "nonzeros_per_cell": round(float(nnz)), "ms": round(median(walls), 2), "ms_lowest": round(min(walls), 2),
        "ms_highest": round(max(walls), 2), "cpu_ms": round(median(cpus), 2), "floor_ms": round(median(floors), 2),
        "ratio": round(median(ratios), 2), "cells_per_s": round(1e3 * batch_size / median(walls)),
        **({} if idle is None else {"idle": round(idle, 2)}),
    }  # fmt: skip


def main() -> None:
    """Measure the cases asked for and print each, as one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=CASES, help="family:batch, separated by commas")
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--features", type=int, help="default: 3,000 genes, 30,000 peaks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    np.seterr(all="raise", under="ignore")
    for case in a.cases.split(","):
        family, batch = case.split(":")
        told = measure(
            family, int(batch), n_cells=a.cells, n_features=a.features, repeats=a.repeats, steps=a.steps,
            device=a.device,
        )  # fmt: skip
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
