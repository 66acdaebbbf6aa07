"""What people ask of a study while it runs, or later: kept in its storage, so that every worker and page sees it.

The study's user attributes hold it: ``stop`` and ``pause``; ``narrowed``, ranges for the trials to come; and, one for
each trial so that two people can't undo each other's, ``hidden:NUMBER`` where a trial is not to be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from .. import options as opt
from ..errors import OptionError, TuningError
from ..safer import Retry, safer
from .search import NARROWED, narrowed
from .storage import patiently
from .study import Plan, fail, standing, trials_of

HIDDEN = "hidden:"


def stop(study: optuna.Study) -> None:
    """Ask every worker, wherever it runs, to stop at its next step."""
    patiently(lambda: study.set_user_attr("stop", True))


def pause(study: optuna.Study, paused: bool = True) -> None:
    """Ask every worker to begin no further trial, or, with False, to go on."""
    patiently(lambda: study.set_user_attr("pause", paused))


def narrow(study: optuna.Study, ranges: Mapping[str, Sequence[float] | None]) -> dict[str, list[float]]:
    """Narrow what is searched, for the trials to come; return all that is narrowed.

    Parameters
    ----------
    study
        Of a `BayesianTuner`.
    ranges
        Both ends by name, within those that the study began with; None: those again.

    Raises
    ------
    OptionError
        If something is not searched, or an end lies outside.
    """
    space = Plan.of(study).space
    now: dict[str, Any] = dict(patiently(lambda: study.user_attrs).get(NARROWED) or {})
    now.update(ranges)
    now = {name: list(ends) for name, ends in now.items() if ends is not None}
    kept = {n: [r.low, r.high] for n, r in narrowed(space, now).items() if r != space[n]}
    patiently(lambda: study.set_user_attr(NARROWED, kept))
    return kept


def enqueue(study: optuna.Study, params: Mapping[str, Any]) -> None:
    """Queue a trial with chosen values, which the next free worker runs.

    Parameters
    ----------
    study
        Of a `BayesianTuner`.
    params
        By name; the sampler chooses what is left out.

    Raises
    ------
    OptionError
        If something is not searched, or lies outside of what is.
    """
    space = Plan.of(study).space
    if not params:
        raise OptionError(f"name at least one value for the trial, of {', '.join(space)}")
    chosen = {}
    for name, value in params.items():
        if name not in space:
            raise OptionError(f"{name} is not searched in this study; what is: {', '.join(space)}")
        chosen[name] = opt.validate(name, value)
        if not space[name].low <= chosen[name] <= space[name].high:
            raise OptionError(
                f"{name} must lie within what the study searches, {space[name].low:g} to {space[name].high:g}; "
                f"got {value}"
            )
    patiently(lambda: study.enqueue_trial(chosen))


def try_again(study: optuna.Study, plan: Plan, number: int) -> Retry:
    """Queue a trial that failed once more, with safer options; return what was changed.

    The new trial's attributes name the old one (``retry_of``), the ``options`` that differ, and why (``change``).

    Raises
    ------
    TuningError
        If it did not fail, or there is none of this number.
    """
    trial = next((t for t in trials_of(study) if t.number == number), None)
    if trial is None or trial.state != TrialState.FAIL:
        state = "there is none" if trial is None else f"it is {trial.state.name}"
        raise TuningError(f"only trials that FAILED can be tried again; of trial {number}, {state}")
    before = trial.user_attrs.get("options", {})
    given = {**plan.given, **trial.params, **before}
    retry = safer(given, trial.user_attrs.get("failure", {}), plan.n_samples, plan.n_features)
    attributes = {"retry_of": number, "options": {**before, **retry.changes}, "change": retry.why}
    patiently(lambda: study.enqueue_trial(trial.params, user_attrs=attributes))
    return retry


def purge(study: optuna.Study, storage: optuna.storages.BaseStorage, numbers: Iterable[int] | None = None) -> list[int]:
    """Change RUNNING trials to FAILED; return the numbers of those that were still running.

    A worker that lives finds out when it ends its trial, says so in its log, and begins the next one.

    Parameters
    ----------
    study, storage
        As opened by this process.
    numbers
        Which ones; None: all.
    """
    wanted, purged = None if numbers is None else set(numbers), []
    for trial in trials_of(study, [TrialState.RUNNING]):
        if wanted is not None and trial.number not in wanted:
            continue
        why = {"type": "Purged", "message": f"purged while its process was {standing(trial)}"}
        if patiently(lambda t=trial, w=why: fail(study, storage, t, w)):  # type: ignore[misc]
            purged.append(trial.number)
    return purged


def hide(study: optuna.Study, numbers: Iterable[int], hidden: bool = True) -> None:
    """Leave trials out of figures and tables, or, with False, show them again; the trials stay as they are."""
    for number in numbers:
        patiently(lambda n=number: study.set_user_attr(f"{HIDDEN}{n}", hidden))  # type: ignore[misc]


def hidden_of(attributes: Mapping[str, Any]) -> set[int]:
    """Return the numbers of the trials that a study's attributes hide."""
    return {int(key.removeprefix(HIDDEN)) for key, value in attributes.items() if key.startswith(HIDDEN) and value}
