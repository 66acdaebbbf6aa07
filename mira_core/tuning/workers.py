"""Workers in other processes: how they are started, watched and replaced, here or by an executor."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch

from ..errors import OptionError, TuningError
from ..estimators.topic_model import TopicModel
from ..processes import ENVIRONMENT, this_process
from . import storage as storages
from .pruner import Halving, rungs_of
from .sampler import RungSampler
from .storage import Storage, patiently
from .study import ASKED, Plan, fail_dead, why_to_end
from .worker import Worker, read_cells

STARTUP = 8  # trials spread over the ranges before the sampler is asked
WATCH = 0.5  # seconds between two looks at the workers
GAVE_UP = 3  # exit status of a worker that ended with an error of its own
MANY_DEATHS = 10  # of workers, besides one for each, after which something must be wrong


def load_study(opened: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """Load a study.

    Raises
    ------
    TuningError
        If there is none of that name.
    """
    try:
        return patiently(lambda: optuna.load_study(study_name=name, storage=opened))
    except KeyError:
        have = sorted(s.study_name for s in optuna.get_all_study_summaries(opened, include_best_trial=False))
        raise TuningError(f"there is no study {name!r} in the storage; there are {have[:20]}") from None


def open_study(
    opened: optuna.storages.BaseStorage,
    name: str,
    num_epochs: int,
    seed: int,
    n_jobs: int,
    sampler: optuna.samplers.BaseSampler | None,
    pruner: optuna.pruners.BasePruner | None,
) -> optuna.Study:
    """Open a study, made if there is none of that name, with the usual sampler and pruner if none are given."""
    pruner = pruner or Halving(num_epochs)
    sampler = sampler or RungSampler(rungs_of(num_epochs), seed, max(STARTUP, n_jobs))
    with _quiet_optuna():
        return patiently(
            lambda: optuna.create_study(
                storage=opened, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True
            )
        )


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna from talking between the lines of a progress bar."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def run_worker(payload: dict[str, Any], device: str | None = None) -> str:
    """Run trials of a study in this process until none is wanted; return why.

    Parameters
    ----------
    payload
        ``storage`` and ``study``; perhaps ``sampler``, ``pruner`` and ``n_jobs``.
    device
        Where to train; None: as the model's options say.

    Raises
    ------
    TuningError
    """
    opened = storages.open_storage(payload["storage"])
    plan = Plan.of(load_study(opened, payload["study"]))
    if plan.train is None:
        raise TuningError(
            "the data of this study are in the memory of the process that began it; call fit there with n_jobs above "
            "1, which puts them on the disk"
        )
    model = TopicModel(plan.n_samples, plan.n_features, **plan.given)
    study = open_study(
        opened, payload["study"], model.num_epochs, plan.seed, payload.get("n_jobs", 1), payload.get("sampler"),
        payload.get("pruner"),
    )  # fmt: skip
    worker = Worker(study, opened, *read_cells(model, plan.train, plan.test, plan), device)
    with _StopOnSignals(worker):
        return worker.run()


class _StopOnSignals:
    """SIGTERM and SIGINT end the trial and the worker, where this is the main thread."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self.before[s] = signal.signal(s, lambda *_: self.worker.quit.set())

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)


class Team:
    """The workers of one tuning, as many as concurrent trials."""

    def __init__(
        self,
        study: optuna.Study,
        opened: optuna.storages.BaseStorage,
        plan: Plan,
        storage: Storage,
        n_jobs: int,
        sampler: optuna.samplers.BaseSampler | None,
        pruner: optuna.pruners.BasePruner | None,
    ) -> None:
        self.study, self.opened, self.plan, self.n_jobs = study, opened, plan, n_jobs
        self.payload = {"storage": storages.url_of(storage), "study": study.study_name, "sampler": sampler,
                        "pruner": pruner, "n_jobs": n_jobs}  # fmt: skip
        self.deaths = 0

    def _goes_on_after(self, death: object) -> bool:
        """Take note that a worker died; return whether another is wanted in its place."""
        fail_dead(self.study, self.opened)
        self.deaths += 1
        if self.deaths > MANY_DEATHS + self.n_jobs:
            raise TuningError(f"{self.deaths} workers died, the last with {death}; see what they printed")
        return not why_to_end(self.study, self.plan)

    def run_in(self, executor: Executor) -> str:
        """Submit the workers to an executor, others in place of those that die, and wait."""
        futures = {executor.submit(run_worker, self.payload) for _ in range(self.n_jobs)}
        try:
            while futures or not why_to_end(self.study, self.plan):
                if not futures:  # all stood down at once, each for the others
                    futures = {executor.submit(run_worker, self.payload)}
                ended, futures = wait(futures, timeout=WATCH, return_when=FIRST_COMPLETED)
                for future in ended:
                    problem = future.exception()
                    if isinstance(problem, TuningError):
                        raise problem
                    if problem is not None and self._goes_on_after(problem):
                        futures.add(executor.submit(run_worker, self.payload))
        except BaseException:
            patiently(lambda: self.study.set_user_attr("stop", True))
            raise
        return why_to_end(self.study, self.plan)

    def run_processes(self, quit: threading.Event | None = None) -> str:
        """Start the workers as processes of this machine, others in place of those that die, and wait.

        Once `quit` is set they are ended, and their trials told as stopped.
        """
        with tempfile.TemporaryDirectory(prefix="mira-tuning-") as folder:
            payload = Path(folder) / "worker.pickle"
            try:
                payload.write_bytes(pickle.dumps({**self.payload, "tuner": this_process()}))
            except Exception as problem:
                raise OptionError(f"sampler and pruner must be picklable for n_jobs above 1: {problem}") from problem
            running = {i: self._start(payload, i) for i in range(self.n_jobs)}
            try:
                while running or not why_to_end(self.study, self.plan):
                    if not running:  # all stood down at once, each for the others
                        running = {0: self._start(payload, 0)}
                    time.sleep(WATCH)
                    if quit is not None and quit.is_set():
                        return ASKED
                    for i, process in list(running.items()):
                        if process.poll() is None:
                            continue
                        del running[i]
                        if process.returncode == GAVE_UP:
                            raise TuningError(f"a worker gave up: {(Path(folder) / f'{i}.error').read_text()}")
                        if process.returncode and self._goes_on_after(f"status {process.returncode}"):
                            running[i] = self._start(payload, i)
            finally:
                for process in running.values():
                    process.terminate()  # their trials end as stopped
                for process in running.values():
                    process.wait()
        return why_to_end(self.study, self.plan)

    def _start(self, payload: Path, i: int) -> subprocess.Popen[bytes]:
        threads = max(1, (os.cpu_count() or 1) // self.n_jobs)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **ENVIRONMENT}
        error = payload.with_name(f"{i}.error")
        command = [sys.executable, "-m", "mira_core.tuning.process", str(payload), str(error), self._device(i) or ""]
        return subprocess.Popen(command, env=environment)

    def _device(self, i: int) -> str | None:
        """Spread the workers over the GPUs that can be seen."""
        wanted = self.plan.given.get("use_cuda", True) and torch.cuda.is_available()
        return f"cuda:{i % torch.cuda.device_count()}" if wanted else None
