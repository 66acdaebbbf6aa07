"""A study in its storage: the plan that every worker reads, the flags that it obeys, and the story of each trial.

What is kept where: Optuna keeps parameters, states, values and the score of every epoch. The study's user attribute
``plan`` holds what a worker must know, ``stop`` and ``pause`` what it is asked. Of a trial's user attributes
``process`` names who runs it, ``progress`` holds its heartbeat and how fast it goes, ``held_out`` the unweighted
losses of its epochs, and ``failure`` why it failed.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..errors import TuningError
from ..processes import SILENT_AFTER, is_alive
from .search import Range
from .storage import patiently

FORMAT = 1
MEASURES = ("distortion", "rate", "dependence", "score")
# What fit may change when it goes on with a study.
BUDGET = ("max_trials", "min_trials", "stop_condition")
# Trials beyond `max_trials` that may begin where those before it were pruned and what they were pruned for has failed.
SPARE = 3
# What people are told, and nothing depends on.
TOLD = ("data", "recipe", "owner")
ASKED = "it was asked to stop"


@dataclass(frozen=True)
class Plan:
    """What a worker must know of a study.

    Attributes
    ----------
    n_samples, n_features, given
        Of the model, before any trial's parameters.
    space
        What is searched.
    min_trials, max_trials, stop_condition
        A study ends once `min_trials` have ended and `stop_condition` have passed without a better one, or once
        `max_trials` have begun; or up to `SPARE` more, as long as all were pruned or failed.
    seed
        A trial's is this and its number.
    train_size
        Share of the cells for training, where no others are given for testing.
    train, test
        Paths of the data, for workers that are other processes; None: it is in the memory of the one.
    digest
        Tells whether data are the same.
    model_dir, tensorboard_logdir
        Folders of this study, absolute.
    log_steps, log_every
        Whether steps are logged, and which.
    data, recipe
        What people call the data: a path or ``demo:NAME``, and the steps of the recipe that was done to it; None: an
        AnnData in memory, or no recipe.
    owner
        Who began the study, as user@host.
    """

    n_samples: int
    n_features: int
    given: dict[str, Any]
    space: dict[str, Range]
    min_trials: int
    max_trials: int
    stop_condition: int
    seed: int
    train_size: float
    digest: str
    model_dir: str
    tensorboard_logdir: str
    log_steps: bool
    log_every: int
    train: str | None = None
    test: str | None = None
    data: str | None = None
    recipe: list[dict[str, Any]] | None = None
    owner: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"format": FORMAT, **dataclasses.asdict(self), "space": {k: list(r) for k, r in self.space.items()}}

    @classmethod
    def of(cls, study: optuna.Study) -> Plan:
        """Read the plan of a study.

        Raises
        ------
        TuningError
            If it has none, or one of a newer version.
        """
        values = dict(patiently(lambda: study.user_attrs).get("plan") or {})
        if not values:
            raise TuningError(f"the study {study.study_name!r} was not made by a BayesianTuner; choose another name")
        if (found := values.pop("format")) > FORMAT:
            raise TuningError(f"the study {study.study_name!r} has format {found}; this version reads up to {FORMAT}")
        known = {f.name for f in dataclasses.fields(cls)}
        space = {k: Range(*r) for k, r in values["space"].items()}
        return cls(**{**{k: v for k, v in values.items() if k in known}, "space": space})

    def weights(self, number: int) -> Path:
        """Return where the model of a completed trial is."""
        return Path(self.model_dir) / f"{number}.safetensors"

    def cells(self, part: str) -> Path:
        """Return where cells are, ``train`` or ``test``, that were written for workers."""
        return Path(self.model_dir) / f"{part}-{self.digest[:16]}"


def trials_of(study: optuna.Study, states: Iterable[TrialState] | None = None) -> list[FrozenTrial]:
    """Return the trials that have begun, in order of their numbers."""
    wanted = set(TrialState) - {TrialState.WAITING} if states is None else set(states)
    return [t for t in patiently(lambda: study.get_trials(deepcopy=False)) if t.state in wanted]


def best_of(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the completed trial of the least score."""
    completed = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return min(completed, key=lambda t: (t.value, t.number), default=None)


def why_to_end(study: optuna.Study, plan: Plan) -> str:
    """Say why no further trial is to begin; empty if one is."""
    trials = trials_of(study)
    if patiently(lambda: study.user_attrs).get("stop"):
        return ASKED
    return spent(trials, plan)


def spent(trials: Sequence[FrozenTrial], plan: Plan) -> str:
    """Say why the trials that have begun are enough; empty if they are not."""
    ended = [t for t in trials if t.state.is_finished()]
    best = best_of(ended)
    states = {t.state for t in trials}
    without_model = best is None and TrialState.PRUNED in states and TrialState.RUNNING not in states
    if len(trials) >= plan.max_trials + (SPARE if without_model else 0):
        return f"{len(trials)} trials have begun"
    since = sum(t.number > best.number for t in ended) if best else 0
    if len(ended) >= plan.min_trials and best is not None and since >= plan.stop_condition:
        return f"{since} trials have passed since the best one"
    return ""


def standing(trial: FrozenTrial) -> str:
    """Say how a RUNNING trial stands: alive, silent (nobody knows), or dead (its process is gone)."""
    process = trial.user_attrs.get("process") or {}
    if process.get("host") == socket.gethostname():
        return "alive" if is_alive(process) else "dead"
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    beat = (trial.user_attrs.get("progress") or {}).get("time", began)
    return "alive" if time.time() - max(beat, began) < SILENT_AFTER else "silent"


def fail(study: optuna.Study, storage: optuna.storages.BaseStorage, trial: FrozenTrial, why: Mapping[str, Any]) -> bool:
    """Turn a RUNNING trial into a FAILED one that tells why; return whether it was still running."""
    try:
        study_id = storage.get_study_id_from_name(study.study_name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        storage.set_trial_user_attr(trial_id, "failure", dict(why))
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # it ended by itself meanwhile
        return False
    return True


def fail_dead(study: optuna.Study, storage: optuna.storages.BaseStorage) -> list[int]:
    """Fail the RUNNING trials that are dead, or silent for long; return their numbers."""
    failed = []
    for trial in trials_of(study, [TrialState.RUNNING]):
        how = standing(trial)
        if how == "alive":
            continue
        process = trial.user_attrs.get("process") or {}
        message = f"process {process.get('pid')} on {process.get('host')} is {'gone' if how == 'dead' else 'silent'}"
        if patiently(lambda t=trial, m=message: fail(study, storage, t, {"type": "Died", "message": m})):  # type: ignore[misc]
            failed.append(trial.number)
    return failed


def attributes(trial: FrozenTrial) -> dict[str, Any]:
    """Return what a trial can be plotted by: its number, state, score, parameters and attributes."""
    story = trial.user_attrs
    held_out = story.get("held_out") or {}
    last = {k: v[-1] for k, v in held_out.items() if v}
    seconds = trial.duration.total_seconds() if trial.duration else None
    score = trial.value if len(trial.values or ()) < 2 else None  # of several aims, none is the loss
    values = {
        "number": trial.number,
        "state": trial.state.name,
        "value": score,
        "elbo": score,
        **trial.params,
        "distortion": story.get("distortion", last.get("distortion")),
        "rate": story.get("rate", last.get("rate")),
        "epochs_trained": story.get("epochs_trained", len(trial.intermediate_values)),
        "seconds": seconds,
    }
    plain = (int, float, str, bool)
    return values | {k: v for k, v in story.items() if isinstance(v, plain) and k not in values}
