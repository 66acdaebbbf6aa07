"""A tuning: trials of a study, and the best of their models."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import sources
from ..data.demo import DEMO
from ..data.recipe import Recipe, open_cells
from ..errors import TuningError
from ..estimators.topic_model import TopicModel
from ..files import replace_file, write_json
from ..tuning.bayesian import BayesianTuner
from ..tuning.origin import Origin, origin_of
from ..tuning.study import ASKED, best_of, spent, trials_of
from ..tuning.summary import end_warning
from .parts import Task

logger = logging.getLogger(__name__)

LOOK = 0.5  # seconds between two looks whether the job is to stop
COUNT = 2.0  # seconds between two counts of trials


def open_tuner(spec: Mapping[str, Any]) -> tuple[BayesianTuner, sources.Data]:
    """Return the tuner of a job that is yet to begin, and what to give to its ``fit``.

    Data are given as a path where they can be; the tuner knows what to call them.
    """
    data = open_cells(spec)
    model = TopicModel(*data.shape, **spec["model"])
    asked = dict(spec["tune"])
    tuner = BayesianTuner(model=model, save_name=asked.pop("study"), **asked)
    demo = spec["data"].startswith(DEMO)
    origin = None if demo else origin_of(spec["data"])
    tuner._origin = Origin(spec["data"]) if origin is None else origin
    if (recipe := spec.get("recipe")) is not None:
        tuner._origin = tuner._origin._replace(recipe=[step.to_dict() for step in Recipe.from_dict(recipe)])
    return tuner, (data if demo or recipe is not None else spec["data"])


def run(task: Task) -> None:
    """Begin a study or go on with it, and keep the best model."""
    report = task.report
    report.update(stage="reading")
    tuner, data = open_tuner(task.spec)
    cells, held_out = tuner._begin(data)
    study, plan = tuner.study, tuner._plan
    done = sum(t.state.is_finished() for t in trials_of(study))
    report.update(
        stage="tuning", n_cells=len(cells), n_held_out=len(held_out), num_steps=plan.max_trials, step=done,
        resumed_step=done, training_started=time.time(), device=str(tuner.model._training_device()),
    )  # fmt: skip
    with _Watch(task, tuner) as watch:
        why = tuner._run(cells, held_out, quit=watch.quit)
    watch.count()
    stopped = why == ASKED or not spent(trials_of(study), plan)
    _keep_best(task, tuner, why, stopped)
    task.end(stopped)


class _Watch:
    """Looks, from a thread of its own, whether the job is to stop, and how many trials have ended."""

    def __init__(self, task: Task, tuner: BayesianTuner) -> None:
        self.task, self.study = task, tuner.study
        self.quit = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tuning")

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        counted = 0.0
        while not self._over.wait(LOOK):
            if self.task.requests.stop():
                self.quit.set()
            if time.monotonic() - counted > COUNT:
                try:
                    self.count()
                except Exception as problem:  # workers wait for a storage that is away
                    logger.debug("trials are not counted: %s", problem)
                counted = time.monotonic()

    def count(self) -> None:
        """Tell how many trials have ended."""
        self.task.report.progress(sum(t.state.is_finished() for t in self.study.get_trials(deepcopy=False)))


def _keep_best(task: Task, tuner: BayesianTuner, why: str, stopped: bool) -> None:
    """Write the best model, and what there is to say of it."""
    trials = trials_of(tuner.study)
    best = best_of(trials)
    if best is None and not stopped:
        raise TuningError(
            f"no trial has been completed: {why}, and all failed or were pruned. See why in the study, and begin "
            "another one with what would mend it"
        )
    told: dict[str, Any] = {
        "study": tuner.save_name,
        "why": why,
        "trials": dict(Counter(t.state.name for t in trials)),
        "trial": None,
        "num_topics": None,
        "loss": None,
        "params": {},
        "warning": None,
    }
    if best is not None:
        told |= {"trial": best.number, "loss": best.value, "params": best.params}
        told |= {"num_topics": best.params["num_topics"]}
        told |= {"warning": end_warning(best, (tuner.min_topics, tuner.max_topics)) or None}
        replace_file(task.result / "model.safetensors", Path(best.user_attrs["weights"]).read_bytes())
    write_json(task.result / "summary.json", told)
