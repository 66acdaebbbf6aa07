"""What people ask of a study: ranges, chosen values, another try, hiding; and what a reader sees of it all."""

from __future__ import annotations

import math
import time

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from mira_core.errors import OptionError, TrainingError, TuningError
from mira_core.processes import this_process
from mira_core.training import loop
from mira_core.tuning import control, storage
from mira_core.tuning.reading import StudyReader, list_studies
from mira_core.tuning.sampler import RungSampler
from tests.helpers import make_tuner

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:the best model has")


# --- ranges ---------------------------------------------------------------------------------------


def test_a_narrowed_range_holds_for_the_trials_to_come(folder, cells):
    tuner = make_tuner(cells, max_trials=3, min_trials=3)
    tuner.fit(cells)
    assert control.narrow(tuner.study, {"num_topics": (4, 6)}) == {"num_topics": [4, 6]}
    tuner = make_tuner(cells, max_trials=9, min_trials=9)
    tuner.fit(cells)
    assert all(4 <= t.params["num_topics"] <= 6 for t in tuner.study.trials[3:])
    assert control.narrow(tuner.study, {"num_topics": None}) == {}
    for wrong, message in {
        (1, 6): "can be narrowed within 2 to 12",
        (6, 4): "the lower end first; got 6 to 4",
        (4.5, 6): "takes whole numbers",
    }.items():
        with pytest.raises(OptionError, match=message):
            control.narrow(tuner.study, {"num_topics": wrong})
    with pytest.raises(OptionError, match="hidden is not searched in this study; what is: num_topics"):
        control.narrow(tuner.study, {"hidden": (64, 128)})


def test_the_sampler_learns_from_trials_beyond_a_narrowed_range():
    """What was tried at 20 and more tells that 15 is best of 5 to 15; a sampler that forgot it would spread evenly."""
    sampler = RungSampler([4, 8], seed=1)
    s = optuna.create_study(sampler=sampler, pruner=optuna.pruners.NopPruner())
    rng = np.random.default_rng(0)

    def run(low, high, n):
        for _ in range(n):
            t = s.ask()
            k = t.suggest_int("k", low, high)
            for e in (4, 8):
                t.report(value := 500 + 10 * math.exp(-e / 4) + 0.1 * (k - 22) ** 2 + rng.normal(0, 0.3), e)
            s.tell(t, value)
            yield k

    assert len(set(run(3, 60, 12))) > 4
    s.set_user_attr("narrowed", {"k": [5, 15]})
    later = list(run(5, 15, 12))
    assert all(5 <= k <= 15 for k in later)
    assert np.mean([k >= 14 for k in later]) > 0.7
    s.set_user_attr("narrowed", {})
    wide = list(run(3, 60, 8))
    assert np.mean([18 <= k <= 26 for k in wide]) > 0.7


# --- chosen values --------------------------------------------------------------------------------


def test_a_trial_with_chosen_values_is_run_next(folder, cells):
    tuner = make_tuner(cells, max_trials=2, min_trials=2)
    tuner.fit(cells)
    control.enqueue(tuner.study, {"num_topics": 7})
    make_tuner(cells, max_trials=3, min_trials=3).fit(cells)
    assert tuner.study.trials[2].params["num_topics"] == 7
    assert 0.05 <= tuner.study.trials[2].params["decoder_dropout"] <= 0.065  # chosen by the sampler
    for wrong, message in [
        ({"num_topics": 30}, "must lie within what the study searches, 2 to 12; got 30"),
        ({"num_topics": 2.5}, "num_topics must be an integer"),
        ({"seed": 3}, "seed is not searched in this study"),
        ({}, "name at least one value"),
    ]:
        with pytest.raises(OptionError, match=message):
            control.enqueue(tuner.study, wrong)
    assert len(tuner.study.trials) == 3


# --- another try ----------------------------------------------------------------------------------


def test_a_trial_that_diverged_is_tried_again_with_a_lower_rate_and_tells_its_parent(folder, cells, monkeypatch):
    honest, seen = loop.train, []

    def train(network, read, options, seed):
        seen.append(options["max_learning_rate"])
        if len(seen) == 1:
            raise TrainingError("the loss is nan")
        yield from honest(network, read, options, seed)

    monkeypatch.setattr(loop, "train", train)
    tuner = make_tuner(cells, max_trials=2, min_trials=2)
    tuner.fit(cells)
    plan = StudyReader(tuner._opened, tuner.save_name).read().plan
    retry = control.try_again(tuner.study, plan, 0)
    assert "a third of the learning rate" in retry.why
    make_tuner(cells, max_trials=3, min_trials=3).fit(cells)
    again = tuner.study.trials[2]
    assert again.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert again.user_attrs["retry_of"] == 0
    assert "a third" in again.user_attrs["change"]
    assert again.params == tuner.study.trials[0].params
    assert seen[2] == pytest.approx(seen[0] / 3)
    for number, message in [(1, "it is (COMPLETE|PRUNED)"), (9, "there is none")]:
        with pytest.raises(TuningError, match=message):
            control.try_again(tuner.study, plan, number)


# --- a reader -------------------------------------------------------------------------------------


def begun(study, number_of_epochs=3, **process):
    """A RUNNING trial, as a worker keeps it."""
    trial = study.ask()
    trial.suggest_int("num_topics", 2, 12)
    for e in range(1, number_of_epochs + 1):
        trial.report(500.0 - e, e)
    trial.set_user_attr("process", {**this_process(), **process})
    trial.set_user_attr("progress", {"time": time.time(), "epoch": number_of_epochs, "seconds_per_epoch": 0.5})
    return trial


def test_a_reader_tells_what_changed_and_only_that(folder, cells):
    tuner = make_tuner(cells, max_trials=4, min_trials=4)
    tuner.fit(cells)
    reader = StudyReader(storage.open_storage(tuner.storage), tuner.save_name)
    first = reader.read()
    assert [t["number"] for t in first.trials] == [0, 1, 2, 3]
    assert [{**t} for t in first.trials] == [{**t} for t in tuner.trial_attrs]
    assert (first.state, first.why) == ("finished", "4 trials have begun")
    assert first.best == min((t for t in first.trials if t["state"] == "COMPLETE"), key=lambda t: t["value"])["number"]
    for t in tuner.study.trials:
        assert first.curves[t.number]["value"] == [t.intermediate_values[e] for e in sorted(t.intermediate_values)]
        assert len(first.curves[t.number]["rate"]) == len(t.intermediate_values)
    again = reader.read()
    assert again is first  # nothing is new
    control.hide(tuner.study, [1, 2])
    hidden = reader.read()
    assert hidden.hidden == {1, 2}
    assert all(a is b for a, b in zip(hidden.trials, first.trials, strict=True))
    control.hide(tuner.study, [1], hidden=False)
    assert reader.read().hidden == {2}
    trial = begun(tuner.study)
    running = reader.read()
    assert running.trials[4]["state"] == "RUNNING"
    assert running.curves[4]["value"] == [499.0, 498.0, 497.0]
    assert [(r.number, r.standing, r.epoch) for r in running.running] == [(4, "alive", 3)]
    assert all(a is b for a, b in zip(running.trials, first.trials, strict=False))
    trial.report(490.0, 4)
    assert reader.read().curves[4]["value"][-1] == 490.0


def test_states_of_a_study(folder, cells):
    tuner = make_tuner(cells, max_trials=40, min_trials=4)
    study = tuner.study
    reader = StudyReader(tuner._opened, tuner.save_name)
    study.set_user_attr("plan", tuner._plan.to_dict())
    assert reader.read().state == "new"
    begun(study, pid=2**22 + 1)  # which no process has
    told = reader.read()
    assert (told.state, [r.standing for r in told.running]) == ("interrupted", ["dead"])
    begun(study, host="elsewhere")
    assert reader.read().state == "running"
    control.pause(study)
    assert reader.read().state == "pausing"
    control.stop(study)
    assert reader.read().state == "stopping"
    assert control.purge(study, tuner._opened, [0]) == [0]
    assert control.purge(study, tuner._opened) == [1]
    told = reader.read()
    assert (told.state, told.counts["FAIL"]) == ("stopped", 2)
    assert told.story(0)["failure"]["message"] == "purged while its process was dead"
    control.enqueue(study, {"num_topics": 3})
    assert reader.read().waiting == [{"num_topics": 3}]


def test_studies_of_a_storage_are_listed_with_those_of_others(folder, cells):
    tuner = make_tuner(cells, "lab/rna/1", max_trials=3, min_trials=3)
    tuner.fit(cells)
    other = optuna.create_study(study_name="not ours", storage=tuner.storage)
    other.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    two = optuna.create_study(study_name="two aims", storage=tuner.storage, directions=["minimize", "maximize"])
    two.optimize(lambda t: (t.suggest_float("x", 0, 1), 1.0), n_trials=1)
    lines = {line.name: line for line in list_studies(storage.open_storage(tuner.storage))}
    assert set(lines) == {"lab/rna/1", "not ours", "two aims"}
    ours = lines["lab/rna/1"]
    assert ours.ours
    assert ours.attributes["plan"]["max_trials"] == 3
    assert not lines["not ours"].ours
    read = StudyReader(storage.open_storage(tuner.storage), "not ours").read()
    assert (read.plan, read.state, len(read.trials)) == (None, "idle", 2)
    assert read.best == other.best_trial.number
    read = StudyReader(storage.open_storage(tuner.storage), "two aims").read()
    assert read.best is None
