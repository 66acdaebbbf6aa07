"""Which sampler finds the best number of topics with the fewest epochs, on recorded trainings.

    python -m tests.benchmarks.samplers --data cells.h5ad --curves curves.npz

Real models with many numbers of topics are trained once, several times each, and the held-out loss of each epoch is
kept in `--curves`. Then every sampler tunes many times, with the same pruner, against these curves: between recorded
numbers of topics their mean is interpolated, and each trial gets the deviations of one recorded training. So hundreds
of studies take minutes, and the loss of every choice is known without noise.

Told for each sampler and budget (in whole trainings): the regret, which is how much worse the choice is than the
best one, in nats per cell; mean and 90th percentile over the seeds; and how long it thinks per trial.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import optuna
import torch

import mira_core as mira
from mira_core.tuning.pruner import Halving, rungs_of
from mira_core.tuning.sampler import RungSampler

TOPICS = (3, 4, 5, 6, 8, 10, 12, 14, 17, 20, 24, 29, 35, 42, 50)
BUDGETS = (8, 16, 32, 48)


def record(adata: ad.AnnData, path: Path, repeats: int, **options: Any) -> None:
    """Train models with every number of topics, and keep what they would report, K x repeats x epochs."""
    model = mira.topics.make_model(*adata.shape, **{"feature_type": "expression", **options})
    n = len(TOPICS) * repeats
    with tempfile.TemporaryDirectory() as folder:
        tuner = mira.topics.BayesianTuner(
            model=model, save_name="curves", min_topics=TOPICS[0], max_topics=TOPICS[-1], max_trials=n, min_trials=n,
            stop_condition=n, storage=f"sqlite:///{folder}/s.db", model_dir=folder, tensorboard_logdir=folder,
            pruner=optuna.pruners.NopPruner(), sampler=optuna.samplers.RandomSampler(0),
        )  # fmt: skip
        for k in np.repeat(TOPICS, repeats):
            tuner.study.enqueue_trial({"num_topics": int(k)})
        tuner.fit(adata)
        curves = [list(t.intermediate_values.values()) for t in tuner.study.trials]
    np.savez(path, curves=np.array(curves).reshape(len(TOPICS), repeats, -1), topics=TOPICS)


class Surface:
    """Losses of trainings, by number of topics and epoch, as recorded."""

    def __init__(self, path: Path) -> None:
        stored = np.load(path)
        self.topics, curves = stored["topics"], stored["curves"]
        self.mean = curves.mean(1)
        self.residuals = (curves - self.mean[:, None]) * (curves.shape[1] / (curves.shape[1] - 1)) ** 0.5
        self.epochs = curves.shape[2]
        self.ends = np.array([self.expected(k)[-1] for k in range(self.topics[0], self.topics[-1] + 1)])

    def expected(self, k: int) -> np.ndarray:
        """Return the mean curve of a number of topics, by epoch."""
        return np.array([np.interp(np.log(k), np.log(self.topics), self.mean[:, e]) for e in range(self.epochs)])

    def training(self, k: int, rng: np.random.Generator) -> np.ndarray:
        """Return the curve of one training, by epoch."""
        near = int(np.abs(np.log(self.topics) - np.log(k)).argmin())
        return self.expected(k) + self.residuals[near, rng.integers(self.residuals.shape[1])]

    def regret(self, k: int) -> float:
        """Return how much worse a number of topics is than the best."""
        return float(self.ends[k - self.topics[0]] - self.ends.min())


def tune(surface: Surface, sampler: optuna.samplers.BaseSampler, seed: int) -> tuple[list[float], float]:
    """Tune until the greatest budget is spent; return the regret at each, and the seconds of thought per trial."""
    study = optuna.create_study(sampler=sampler, pruner=Halving(surface.epochs))
    rng, spent, thought, best, told = np.random.default_rng(seed), 0, 0.0, (np.inf, 0), []
    for budget in BUDGETS:
        while spent < budget * surface.epochs:
            began = time.perf_counter()
            trial = study.ask()
            k = trial.suggest_int("num_topics", int(surface.topics[0]), int(surface.topics[-1]))
            trial.suggest_float("decoder_dropout", 0.05, 0.065, log=True)
            thought += time.perf_counter() - began
            values, state = surface.training(k, rng), optuna.trial.TrialState.COMPLETE
            for epoch, value in enumerate(values, 1):
                spent += 1
                trial.report(value, epoch)
                if epoch < surface.epochs and trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
            study.tell(trial, values[-1] if state == optuna.trial.TrialState.COMPLETE else None, state=state)
            if state == optuna.trial.TrialState.COMPLETE:
                best = min(best, (float(values[-1]), k))
        told.append(surface.regret(best[1]))
    return told, thought / len(study.trials)


def main() -> None:
    """Record where there is nothing recorded, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="counts to record from; without, simulated cells")
    parser.add_argument("--batch-key", help="covariate, for a CODAL model")
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not args.curves.exists():
        adata = ad.read_h5ad(args.data) if args.data else mira.data.simulate_expression(2000, 1000, 12, depth=2000)
        record(adata, args.curves, args.repeats, categorical_covariates=args.batch_key)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    surface = Surface(args.curves)
    samplers: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
        "random": lambda s: optuna.samplers.RandomSampler(s),
        "TPE": lambda s: optuna.samplers.TPESampler(seed=s),
        "GP": lambda s: optuna.samplers.GPSampler(seed=s),
        "rungs": lambda s: RungSampler(rungs_of(surface.epochs), s),
    }
    noise = statistics.median(surface.residuals[..., -1].std(1))
    best = surface.topics[0] + int(surface.ends.argmin())
    print(f"{args.curves}: best with {best} topics; one training's loss scatters by {noise:.2f} nats per cell")
    print(f"{'sampler':10}" + "".join(f"{b:>5} trainings" for b in BUDGETS) + "   ms of thought per trial")
    for name, make in samplers.items():
        runs = [tune(surface, make(seed), seed) for seed in range(args.seeds)]
        regrets = np.array([r for r, _ in runs])
        cells = (f"{r.mean():8.2f} {np.percentile(r, 90):6.2f}" for r in regrets.T)
        print(f"{name:<10}" + "".join(cells) + f"{1000 * statistics.mean(t for _, t in runs):10.1f}", flush=True)


if __name__ == "__main__":
    main()
