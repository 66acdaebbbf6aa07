"""Runs trials of a study, one after the other, until none is wanted."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import torch
from optuna.trial import TrialState

from ..data import sources
from ..data.counts import Cells
from ..data.sources import Data
from ..errors import TrainingError, TuningError
from ..estimators.topic_model import TopicModel
from ..processes import this_process
from ..records import EpochRecord, StepRecord
from ..training.evaluation import held_out
from ..training.writers import TensorBoardWriter
from .control import try_again
from .search import NARROWED, narrowed, suggest
from .storage import patiently
from .study import ASKED, MEASURES, Plan, fail_dead, trials_of, why_to_end

logger = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two heartbeats
HOPELESS = 5  # trials that fail in a row before a worker gives up
LOOK = 2.0  # seconds after which a worker looks whether it is asked to stop


class Stopped(Exception):
    """Somebody asked the study to stop in mid-trial."""


class _Pruned(Exception):
    """The pruner wants no more of this trial."""


def read_cells(model: TopicModel, train: Data, test: Data | None, plan: Plan) -> tuple[Cells, Cells]:
    """Read training and held-out cells; without `test`, part of `train` is held out."""
    options = model.get_params()
    source = sources.open_source(train)
    if test is None:
        rows, others = sources.split(source, options, plan.train_size, plan.seed)
        if isinstance(source, sources.OnDiskDataset):
            source, other = source.take(rows), source.take(others)
        else:
            other, source = source[others], source[rows]
    else:
        other = sources.open_source(test)
    cells = sources.training_cells(source, options)
    return cells, sources.cells_of_model(other, options, cells.features, cells.endogenous, cells.coding)


class Worker:
    """Runs trials in this process.

    Parameters
    ----------
    study, storage
        As opened by this process.
    train, test
        Cells.
    device
        Where to train; None: as the model's options say.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        train: Cells,
        test: Cells,
        device: str | None = None,
    ) -> None:
        self.study, self.storage, self.plan = study, storage, Plan.of(study)
        self.train, self.test, self.device = train, test, device
        self.quit = threading.Event()
        self.failures: list[Exception] = []  # since a trial last went well
        self.crowded = False  # memory ran out while other trials ran

    def run(self) -> str:
        """Run trials until none is wanted; return why.

        Raises
        ------
        TuningError
            If trial after trial fails.
        """
        while not self.quit.is_set():
            fail_dead(self.study, self.storage)
            self._wait_while_paused()
            if why := why_to_end(self.study, self.plan):
                return why
            trial = patiently(self.study.ask)
            try:
                self._run(trial)
            except Stopped:
                return ASKED
            if len(self.failures) >= HOPELESS:
                last = self.failures[-1]
                raise TuningError(
                    f"{HOPELESS} trials failed one after the other, the last with {type(last).__name__}: {last}. Mend "
                    "the cause, and call fit again"
                )
            if self.crowded:
                return "memory ran out while other trials ran, so that this worker leaves it to them"
        return ASKED

    def _wait_while_paused(self) -> None:
        while not self.quit.is_set():
            flags = patiently(lambda: self.study.user_attrs)
            if not flags.get("pause") or flags.get("stop"):
                return
            self.quit.wait(LOOK)

    # --- one trial ------------------------------------------------------------------------------

    def _run(self, trial: optuna.Trial) -> None:
        try:
            self._run_to_its_end(trial)
        except optuna.exceptions.UpdateFinishedTrialError:
            logger.warning("trial %d was ended by somebody else while it ran here", trial.number)

    def _run_to_its_end(self, trial: optuna.Trial) -> None:
        run = TrialRun(self, trial)
        try:
            run.train()
        except _Pruned:
            run.tell(state=TrialState.PRUNED)
        except (Stopped, KeyboardInterrupt) as stop:
            run.fail(stop, "Stopped", "it was stopped before it ended")
            raise
        except (TuningError, optuna.exceptions.UpdateFinishedTrialError):
            raise  # there is nobody to tell
        except Exception as problem:
            logger.warning("trial %d failed: %s", trial.number, problem)
            self.failures.append(problem)
            run.fail(problem, type(problem).__name__, str(problem))
            self._again_with_less(trial, problem)
            return
        else:
            run.tell(run.value)
        self.failures = []

    def _again_with_less(self, trial: optuna.Trial, problem: Exception) -> None:
        """Queue a trial that ran out of memory once more, with half the batch, and have fewer run at a time."""
        if not isinstance(problem, MemoryError | torch.cuda.OutOfMemoryError):
            return
        self.crowded = bool(trials_of(self.study, [TrialState.RUNNING]))
        if "retry_of" in trial.user_attrs:
            return
        patiently(lambda: try_again(self.study, self.plan, trial.number))


class TrialRun:
    """One trial in the making, and what is told of it."""

    def __init__(self, worker: Worker, trial: optuna.Trial) -> None:
        self.worker, self.trial, self.plan = worker, trial, worker.plan
        self.measured: dict[str, list[float]] = {k: [] for k in MEASURES}
        self.epoch, self.seconds, self.value = 0, 0.0, float("nan")
        self.last: StepRecord | None = None
        self.peak_mb = 0.0
        self._looked = 0.0

    def train(self) -> None:
        """Train a model with the trial's parameters, and keep it if it is not pruned."""
        trial, plan, worker = self.trial, self.plan, self.worker
        self._note("process", this_process())
        with _Heart(self._beat):
            ends = patiently(lambda: worker.study.user_attrs).get(NARROWED) or {}
            params = patiently(lambda: suggest(trial, narrowed(plan.space, ends)))
            model = self._model(params)
            self._note("device", str(model._training_device()))
            window = max(1, model.num_epochs // 6)
            writer = TensorBoardWriter(Path(plan.tensorboard_logdir) / str(trial.number), plan.log_every)
            try:
                for record in model.fit_cells(worker.train):
                    if plan.log_steps or isinstance(record, EpochRecord):
                        writer.write(record)
                    if isinstance(record, StepRecord):
                        self.last = record
                        self._look()
                        continue
                    self._measure(model, record, window)
                    # one that has ended is not worth less for it
                    if record.epoch < model.num_epochs and patiently(trial.should_prune):
                        raise _Pruned
            finally:
                writer.summary.add_hparams(params, {"score": self.value}, run_name=".")
                writer.close()
            if not np.isfinite(self.value):
                raise TrainingError(f"the loss of the held-out cells is {self.value}")
            path = plan.weights(trial.number)
            path.parent.mkdir(parents=True, exist_ok=True)
            model.save(path)
            self._note("weights", str(path))

    def _model(self, params: dict[str, Any]) -> TopicModel:
        plan, trial = self.plan, self.trial
        given = {**plan.given, **params, "seed": plan.seed + trial.number}
        model = TopicModel(plan.n_samples, plan.n_features, **given)
        model.set_params(**trial.user_attrs.get("options", {}))  # of a trial that is tried again
        if self.worker.device is not None:
            model.set_device(self.worker.device)
        return model

    def _measure(self, model: TopicModel, record: EpochRecord, window: int) -> None:
        """Score the held-out cells, and report the least score of the last epochs."""
        network = model.network
        assert network is not None
        told = held_out(network, self.worker.test)
        rate = told.rate + model.get_params().get("dependence_beta", 0.0) * told.dependence
        # by the annealing alone: a trial's own cost_beta must not make it look better
        score = told.distortion + rate * min(1.0, record.kl_weight / model.cost_beta)
        for name, value in zip(MEASURES, (told.distortion, rate, told.dependence, score), strict=True):
            self.measured[name].append(value)
        self.epoch, self.seconds = record.epoch, record.seconds
        self.value = min(self.measured["score"][-window:])
        patiently(lambda: self.trial.report(self.value, record.epoch))

    def _look(self) -> None:
        """Stop if asked to, by this process or by the study."""
        if self.worker.quit.is_set():
            raise Stopped
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        if patiently(lambda: self.worker.study.user_attrs).get("stop"):
            raise Stopped

    def _beat(self) -> None:
        in_use = psutil.Process().memory_info().rss
        if torch.cuda.is_available():
            in_use = max(in_use, torch.cuda.max_memory_allocated())
        self.peak_mb = max(self.peak_mb, in_use / 2**20)
        progress = {"time": time.time(), "epoch": self.epoch, "seconds_per_epoch": round(self.seconds, 4),
                    "peak_memory_mb": round(self.peak_mb)}  # fmt: skip
        self.trial.set_user_attr("progress", progress)
        if self.epoch:
            self.trial.set_user_attr("held_out", {k: [round(x, 4) for x in v] for k, v in self.measured.items()})

    def _note(self, name: str, value: Any) -> None:
        patiently(lambda: self.trial.set_user_attr(name, value))

    def tell(self, value: float | None = None, state: TrialState | None = None) -> None:
        """End the trial with its whole story."""
        patiently(self._beat)
        self._note("epochs_trained", self.epoch)
        if np.isfinite(self.value):
            at = self.measured["score"].index(self.value)
            self._note("distortion", self.measured["distortion"][at])
            self._note("rate", self.measured["rate"][at])
        patiently(lambda: self.worker.study.tell(self.trial, value, state))

    def fail(self, problem: BaseException, kind: str, message: str) -> None:
        """End the trial with the reason for its failure."""
        why: dict[str, Any] = {"type": kind, "message": message}
        if not isinstance(problem, Stopped | KeyboardInterrupt):
            why["traceback"] = "".join(traceback.format_exception(problem))[-4000:]
        if self.last is not None:
            why |= {"last_loss": self.last.loss, "learning_rate": self.last.learning_rate, "step": self.last.step}
        self._note("failure", why)
        self.tell(state=TrialState.FAIL)


class _Heart:
    """Beats from a thread of its own, so that a long epoch does not look like death."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def _run(self) -> None:
        while not self._quit.wait(BEAT):
            try:
                self.beat()
            except Exception as problem:  # a storage that is away must not end the training
                logger.warning("no heartbeat: %s", problem)

    def __enter__(self) -> _Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()
