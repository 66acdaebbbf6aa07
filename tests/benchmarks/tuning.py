"""How long tuning takes to find as good a model, what pruning and the sampler bring, and what a trial costs besides.

    python -m tests.benchmarks.tuning --data cells.h5ad --trials 48 --threads 2

Four tunings of the same data, with the same trials' seeds, one after the other: random search without pruning (the
procedure of MIRA 2.1.1, on this engine), then with pruning, with the sampler, and with both. For each the seconds until
a loss that the first reached at its end was found, exactly and within the noise of one training, and the time per
trial. Then models that one tuning trained are trained again without a tuner, in turn: what is more in the tuning is
its overhead, and how much of that is scoring the held-out cells is told beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import optuna
import torch

import mira_core as mira
from mira_core.tuning import worker
from mira_core.tuning.bayesian import read_cells

PLAIN: dict[str, Any] = {"sampler": optuna.samplers.RandomSampler(0), "pruner": optuna.pruners.NopPruner()}
WAYS = {
    "random, no pruning": PLAIN,
    "random, pruning": {"sampler": PLAIN["sampler"]},
    "sampler, no pruning": {"pruner": PLAIN["pruner"]},
    "sampler, pruning": {},
}


def tuner_of(adata: ad.AnnData, folder: Path, name: str, trials: int, **options: Any) -> mira.topics.BayesianTuner:
    """Return a tuner of so many trials."""
    model = mira.topics.make_model(*adata.shape, feature_type="expression")
    return mira.topics.BayesianTuner(
        model=model, save_name=name, min_topics=3, max_topics=55, max_trials=trials, min_trials=trials,
        stop_condition=trials, storage=f"sqlite:///{folder}/s.db", model_dir=folder, tensorboard_logdir=folder,
        **options,
    )  # fmt: skip


def bests(study: optuna.Study) -> list[tuple[float, float]]:
    """Return, for each trial that was completed, the seconds since the study began and the best loss so far."""
    began, best, out = min(t.datetime_start for t in study.trials if t.datetime_start), np.inf, []
    for trial in sorted(study.trials, key=lambda t: t.number):
        if trial.value is not None and trial.datetime_complete is not None:
            best = min(best, trial.value)
            out.append(((trial.datetime_complete - began).total_seconds(), best))
    return out


def reached(told: list[tuple[float, float]], loss: float) -> str:
    """Say when a loss was reached."""
    return next((f"{seconds:.0f}" for seconds, best in told if best <= loss), "never")


def overhead(adata: ad.AnnData, folder: Path, trials: int) -> tuple[float, float]:
    """Return how much longer a tuning takes than the same trainings alone, and how much of that is scoring; shares."""
    honest, scoring = worker.held_out, [0.0]

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        out = honest(*arguments)
        scoring[0] += time.perf_counter() - began
        return out

    tuner = tuner_of(adata, folder, "overhead", trials, **PLAIN)
    worker.held_out = timed  # type: ignore[assignment]
    began = time.perf_counter()
    tuner.fit(adata)
    wall = time.perf_counter() - began
    worker.held_out = honest
    cells, _ = read_cells(tuner.model, adata, None, tuner._plan)
    began = time.perf_counter()
    for trial in tuner.study.trials:
        model = mira.topics.TopicModel(*adata.shape, **tuner._plan.given, **trial.params, seed=trial.number)
        for _ in model.fit_cells(cells):
            pass
    alone = time.perf_counter() - began
    return wall / alone - 1, scoring[0] / alone


def main() -> None:
    """Compare the ways, then weigh a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="counts; without, simulated cells")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of the measurement of the overhead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    adata = ad.read_h5ad(args.data) if args.data else mira.data.simulate_expression(2000, 1000, 12, depth=2000)
    with tempfile.TemporaryDirectory() as folder:
        told, walls = {}, {}
        for name, options in WAYS.items():
            tuner = tuner_of(adata, Path(folder), name, args.trials, **options)
            began = time.perf_counter()
            tuner.fit(adata)
            walls[name] = time.perf_counter() - began
            told[name] = bests(tuner.study)
            if name == "random, no pruning":
                noise = tuner.summary().noise or 0.0
        goal = told["random, no pruning"][-1][1]
        print(f"goal: {goal:.2f} nats per cell; one training's loss scatters by {noise:.2f}")
        print(f"{'':22}{'to the goal':>12}{'within noise':>14}{'in all':>9}{'best':>10}   (seconds; nats per cell)")
        for name, best in told.items():
            print(
                f"{name:22}{reached(best, goal):>12}{reached(best, goal + noise):>14}{walls[name]:>9.0f}"
                f"{best[-1][1]:>10.2f}"
            )
        shares = [overhead(adata, Path(folder) / str(i), 6) for i in range(args.repeats)]
        total, scoring = (statistics.median(s) for s in zip(*shares, strict=True))
        print(f"overhead of a trial: {total:.1%} of its training, of which scoring the held-out cells {scoring:.1%}")


if __name__ == "__main__":
    main()
