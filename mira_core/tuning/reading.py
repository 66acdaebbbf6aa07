"""A study as those see it who look at it while it runs: read again and again, for the price of what is new."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..errors import TuningError
from .control import hidden_of
from .search import NARROWED
from .storage import patiently
from .study import MEASURES, Plan, attributes, best_of, spent, standing

PATIENCE = 5.0  # seconds for which a page waits for a storage that is away, before it says so


@dataclass(frozen=True)
class Running:
    """A RUNNING trial: who runs it, and whether that process lives.

    Attributes
    ----------
    number
        Of the trial.
    standing
        ``alive``, ``silent`` (nobody knows), or ``dead`` (its process is proven gone).
    host, pid, device
        Who, and where.
    heartbeat
        When it was last heard of, as `time.time` tells it.
    epoch, seconds_per_epoch, peak_memory_mb
        How far it is and what it takes.
    """

    number: int
    standing: str
    host: str
    pid: int | None
    device: str
    heartbeat: float
    epoch: int
    seconds_per_epoch: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Reading:
    """What a study was when it was read. It does not change; parts of two readings that are the same are one.

    Attributes
    ----------
    name
        Of the study.
    plan
        What its workers are told; None: no `BayesianTuner` made it.
    state
        ``new``, ``running``, ``pausing``, ``paused``, ``stopping``, ``stopped``, ``interrupted`` (all processes are
        dead), ``silent``, ``finished``, or ``idle`` (nobody runs it, and nothing says why).
    why
        Why it is finished.
    trials
        Attributes of each trial that has begun, in order of their numbers.
    curves
        By number, one value for each epoch: ``value``, as reported; and, unweighted, ``distortion``, ``rate``,
        ``dependence``, ``score``.
    running
        RUNNING trials.
    waiting
        Parameters of the trials that are queued.
    counts
        Trials by state.
    best
        Number of the best trial, None if none is completed.
    hidden
        Numbers of the trials that are not to be drawn.
    narrowed
        Ends of what is searched now, by name, where they differ from the plan's.
    attributes
        Of the study.
    """

    name: str
    plan: Plan | None
    state: str
    why: str
    trials: list[dict[str, Any]]
    curves: dict[int, dict[str, list[float]]]
    running: list[Running]
    waiting: list[dict[str, Any]]
    counts: Mapping[str, int]
    best: int | None
    hidden: set[int]
    narrowed: dict[str, list[float]]
    attributes: dict[str, Any]
    stories: dict[int, FrozenTrial]

    def story(self, number: int) -> dict[str, Any]:
        """Return a trial's attributes as its worker kept them: process, progress, failure, weights."""
        return self.stories[number].user_attrs

    def of(self, number: int) -> dict[str, Any] | None:
        """Return a trial's attributes, None if there is none of this number."""
        return next((t for t in self.trials if t["number"] == number), None)


class StudyReader:
    """Reads a study again and again.

    Parameters
    ----------
    storage
        As opened by this process.
    name
        Of the study.

    Raises
    ------
    TuningError
        If there is none of this name, or the storage is away.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, name: str) -> None:
        try:
            self.study = patiently(lambda: optuna.load_study(study_name=name, storage=storage), PATIENCE)
        except KeyError:
            raise TuningError(f"there is no study {name!r} in the storage; it may have been deleted") from None
        self._begin()

    @classmethod
    def of(cls, study: optuna.Study) -> StudyReader:
        """Return one that reads a study that is open already."""
        reader = cls.__new__(cls)
        reader.study = study
        reader._begin()
        return reader

    def _begin(self) -> None:
        self.name = self.study.study_name
        self._attributes: dict[str, Any] = {}
        self._plan: Plan | None = None
        self._ended: dict[int, tuple[dict[str, Any], dict[str, list[float]]]] = {}
        self._last: Reading | None = None

    def read(self) -> Reading:
        """Return what the study is now: the same object as before if nothing has changed.

        Raises
        ------
        TuningError
            If the storage is away, or the study was deleted.
        """
        try:
            found = patiently(lambda: self.study.get_trials(deepcopy=False), PATIENCE)
            attributes_now = dict(patiently(lambda: self.study.user_attrs, PATIENCE))
        except KeyError:
            raise TuningError(f"the study {self.name!r} was deleted") from None
        if attributes_now != self._attributes:
            self._attributes = attributes_now
            self._plan = Plan.of(self.study) if attributes_now.get("plan") else None
        reading = self._reading(found)
        if self._last is None or not _same(self._last, reading):
            self._last = reading
        return self._last

    def _reading(self, found: list[FrozenTrial]) -> Reading:
        trials, curves, running = [], {}, []
        before = {} if self._last is None else {t["number"]: t for t in self._last.trials}
        for t in found:
            if t.state == TrialState.WAITING:
                continue
            if t.number not in self._ended:
                told = attributes(t)
                if told == before.get(t.number):
                    told = before[t.number]  # so that who draws it sees at once that it is the same
                drawn = curves_of(t)
                if t.state.is_finished():
                    self._ended[t.number] = told, drawn
            else:
                told, drawn = self._ended[t.number]
            trials.append(told)
            curves[t.number] = drawn
            if t.state == TrialState.RUNNING:
                running.append(_running(t))
        best = best_of(found) if self._plan is not None or len(self.study.directions) == 1 else None
        flags = self._attributes
        begun = [t for t in found if t.state != TrialState.WAITING]
        why = spent(begun, self._plan) if self._plan is not None else ""
        state = self._state(running, len(begun), bool(why))
        return Reading(
            self.name, self._plan, state, why if state == "finished" else "", trials, curves, running,
            [dict(t.system_attrs.get("fixed_params", t.params)) for t in found if t.state == TrialState.WAITING],
            Counter(t["state"] for t in trials), None if best is None else best.number, hidden_of(flags),
            dict(flags.get(NARROWED) or {}), flags, {t.number: t for t in found},
        )  # fmt: skip

    def _state(self, running: list[Running], n_trials: int, is_spent: bool) -> str:
        flags, how = self._attributes, {r.standing for r in running}
        if "alive" in how:
            return "stopping" if flags.get("stop") else "pausing" if flags.get("pause") else "running"
        if how:
            return "silent" if "silent" in how else "interrupted"
        if flags.get("stop"):
            return "stopped"
        if is_spent:
            return "finished"
        if flags.get("pause"):
            return "paused"
        return "idle" if n_trials else "new"


def curves_of(trial: FrozenTrial) -> dict[str, list[float]]:
    """Return a trial's values, one for each epoch, by what they are."""
    held_out = trial.user_attrs.get("held_out") or {}
    values = trial.intermediate_values
    return {"value": [values[e] for e in sorted(values)], **{k: list(held_out[k]) for k in MEASURES if k in held_out}}


def _running(trial: FrozenTrial) -> Running:
    process = trial.user_attrs.get("process") or {}
    progress = trial.user_attrs.get("progress") or {}
    began = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
    return Running(
        trial.number, standing(trial), process.get("host", "?"), process.get("pid"),
        trial.user_attrs.get("device", ""), max(progress.get("time", began), began), len(trial.intermediate_values),
        progress.get("seconds_per_epoch"), progress.get("peak_memory_mb"),
    )  # fmt: skip


def _same(a: Reading, b: Reading) -> bool:
    return (
        (a.state, a.why, a.running, a.waiting, a.attributes) == (b.state, b.why, b.running, b.waiting, b.attributes)
        and a.trials == b.trials
        and a.curves == b.curves
    )


@dataclass(frozen=True)
class StudyLine:
    """A study, as a list of them knows it.

    Attributes
    ----------
    ours
        Whether a `BayesianTuner` made it.
    """

    name: str
    study_id: int
    ours: bool
    attributes: dict[str, Any]


def list_studies(storage: optuna.storages.BaseStorage) -> list[StudyLine]:
    """List the studies of a storage, the newest first; none of their trials is read, which may take long.

    Raises
    ------
    TuningError
        If the storage is away.
    """
    found = patiently(storage.get_all_studies, PATIENCE)
    lines = [StudyLine(s.study_name, s._study_id, bool(s.user_attrs.get("plan")), dict(s.user_attrs)) for s in found]
    return sorted(lines, key=lambda line: -line.study_id)
