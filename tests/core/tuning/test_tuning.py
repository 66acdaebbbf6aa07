"""The tuner with one job, on small models: search, trials, stopping, resuming, weights, figures."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import mira_core as mira
from mira_core import jobs
from mira_core.data import sources
from mira_core.errors import OptionError, TuningError
from mira_core.processes import this_process
from mira_core.training import evaluation, loop
from mira_core.tuning import pruner, search, storage, study, worker, workers
from mira_core.tuning.sampler import RungSampler
from mira_core.tuning.tune_options import TuneOptions
from tests.helpers import make, make_cells, make_tuner, same, with_columns

mpl.use("Agg")
optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:the best model has")


def states(tuner):
    return [t.state for t in tuner.study.get_trials(deepcopy=False)]


# --- the example of the API document --------------------------------------------------------------


def test_tuning_leaves_a_study_models_and_logs(folder, cells):
    tuner = make_tuner(cells, "tuning/rna/0")
    best = tuner.fit(cells)
    trials = tuner.study.get_trials()
    assert 4 <= len(trials) <= 6
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    completed = [t for t in trials if t.state == TrialState.COMPLETE]
    assert best.num_topics == min(completed, key=lambda t: t.value).params["num_topics"]
    assert (folder / "mira-tuning.db").is_file()
    for t in trials:
        assert list((folder / "runs/tuning/rna/0" / str(t.number)).glob("events*"))
        model = folder / f"models/tuning/rna/0/{t.number}.safetensors"
        assert model.is_file() == (t.state == TrialState.COMPLETE)
        assert t.user_attrs["process"]["pid"] == os.getpid()
        assert t.user_attrs["device"] == "cpu"
        assert t.user_attrs["epochs_trained"] == len(t.intermediate_values) == t.last_step
        assert len(t.user_attrs["held_out"]["score"]) == t.last_step
    told = tuner.trial_attrs
    assert [a["number"] for a in told] == list(range(len(trials)))
    assert all(2 <= a["num_topics"] <= 12 and 0.05 <= a["decoder_dropout"] <= 0.065 for a in told)
    assert all(a["elbo"] == a["value"] for a in told)
    assert told[0]["value"] == pytest.approx(told[0]["distortion"] + told[0]["rate"], rel=1e-6)


def test_a_trial_is_the_model_that_its_parameters_and_seed_give(folder, cells):
    tuner = make_tuner(cells, max_trials=1, min_trials=1)
    best = tuner.fit(cells)
    params = tuner.study.trials[0].params
    train, _ = sources.split(cells, best.get_params(), 0.8, 1)
    alone = make(cells[train].copy(), num_epochs=6, seed=1, **params)
    alone = mira.topics.make_model(*cells.shape, **{**alone.given, "seed": 1}).fit(cells[train].copy(), progress=False)
    assert same(best.network.state_dict(), alone.network.state_dict())


def test_the_same_seed_gives_the_same_study_bit_for_bit(folder, cells):
    one, other = (make_tuner(cells, name, max_trials=5, min_trials=5) for name in ("one", "other"))
    for tuner in (one, other):
        tuner.sampler = RungSampler([2, 4, 6], seed=1, n_startup=2)
        tuner.fit(cells)
    told = [[(t.params, t.state, t.intermediate_values) for t in tuner.study.trials] for tuner in (one, other)]
    assert told[0] == told[1]


def test_fit_goes_on_with_a_study_and_refuses_another_one(folder, cells):
    make_tuner(cells, max_trials=2, min_trials=2).fit(cells)
    tuner = make_tuner(cells, max_trials=4, min_trials=4)
    tuner.fit(cells)
    whole = make_tuner(cells, "whole", max_trials=4, min_trials=4)
    whole.fit(cells)
    assert [t.params for t in tuner.study.trials] == [t.params for t in whole.study.trials]
    assert [t.value for t in tuner.study.trials] == [t.value for t in whole.study.trials]
    with pytest.raises(TuningError, match="begun otherwise: space was"):
        make_tuner(cells, max_topics=13).fit(cells)
    with pytest.raises(TuningError, match="digest"):
        make_tuner(cells).fit(cells[:140].copy())
    with pytest.raises(TuningError, match="given"):
        make_tuner(cells, model={"hidden": 8}).fit(cells)


def test_optuna_does_not_talk_in_between(folder, cells, capfd):
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        make_tuner(cells, max_trials=1, min_trials=1).fit(cells)
        make_tuner(cells, max_trials=2, min_trials=2).fit(cells)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(told)
    assert "study created" not in (said := capfd.readouterr().err)
    assert "existing study" not in said


def test_held_out_cells_can_be_given(folder, cells):
    tuner = make_tuner(cells, max_trials=1, min_trials=1)
    tuner.fit(cells[:100].copy(), cells[100:].copy())
    read = sources.training_cells(cells[:100].copy(), tuner.model.get_params())
    assert tuner.fetch_best_weights()._fitted().statistics.n_cells == len(read) == 100


def test_models_with_covariates_pay_for_dependence(folder):
    adata = with_columns(make_cells(120, 30))
    tuner = make_tuner(adata, model={"categorical_covariates": "batch", "hidden": 8}, max_trials=2, min_trials=2)
    tuner.fit(adata)
    told = tuner.study.trials[0].user_attrs["held_out"]
    assert all(math.isfinite(x) for x in told["dependence"])
    assert any(told["dependence"])


def test_a_tuner_is_loaded_from_its_storage(folder, cells):
    tuner = make_tuner(cells, "a/b", max_trials=2, min_trials=2)
    best = tuner.fit(cells)
    again = mira.topics.BayesianTuner.load(model=tuner.model, save_name="a/b")
    assert same(again.fetch_best_weights().network.state_dict(), best.network.state_dict())
    assert [a["value"] for a in again.trial_attrs] == [a["value"] for a in tuner.trial_attrs]
    with pytest.raises(TuningError, match="no study 'c'"):
        mira.topics.BayesianTuner.load(model=tuner.model, save_name="c")


def test_weights_of_trials_that_are_not_there(folder, cells):
    tuner = make_tuner(cells)
    with pytest.raises(ValueError, match="no trial has been completed"):
        tuner.fetch_best_weights()
    with pytest.raises(ValueError, match="there is no trial 3"):
        tuner.fetch_weights(3)
    trial = tuner.study.ask()
    with pytest.raises(KeyError, match="did not finish"):
        tuner.fetch_weights(trial.number)


# --- stories --------------------------------------------------------------------------------------


def test_a_failed_trial_tells_why_and_the_study_goes_on(folder, cells, monkeypatch):
    honest = loop.train

    def train(network, *rest):
        for i, record in enumerate(honest(network, *rest)):
            if network.num_topics > 7 and i == 3:
                raise RuntimeError("the roof is on fire")
            yield record

    monkeypatch.setattr(loop, "train", train)
    tuner = make_tuner(cells, max_trials=6, min_trials=6)
    tuner.fit(cells)
    failed = [t for t in tuner.study.trials if t.state == TrialState.FAIL]
    assert failed
    assert len(failed) < 6
    for t in failed:
        assert t.params["num_topics"] > 7
        why = t.user_attrs["failure"]
        assert why["type"] == "RuntimeError"
        assert why["message"] == "the roof is on fire"
        assert "in train" in why["traceback"]
        assert math.isfinite(why["last_loss"])
        assert why["learning_rate"] > 0


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_study_whose_trials_all_fail_ends_with_the_reason_and_goes_on_once_it_is_mended(folder, cells, n_jobs):
    (folder / "runs").write_text("a file where a folder of logs should be")
    tuner = make_tuner(cells, max_trials=50, min_trials=50, n_jobs=n_jobs)
    with pytest.raises(TuningError, match="5 trials failed one after the other, the last with .*Error: .*runs"):
        tuner.fit(cells)
    assert 5 <= len(states(tuner)) <= 5 * n_jobs  # in a row of one worker
    (folder / "runs").unlink()
    again = make_tuner(cells, max_trials=len(states(tuner)) + 1, min_trials=1, n_jobs=n_jobs)
    again.fit(cells)
    assert TrialState.COMPLETE in states(again)


def test_a_trial_that_reached_its_last_epoch_is_not_pruned(folder, cells):
    class Always(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step >= 6

    tuner = make_tuner(cells, pruner=Always(), max_trials=2, min_trials=2)
    tuner.fit(cells)
    assert states(tuner) == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(24, (8, 16, 24)), (12, (4, 8, 12)), (5, (1, 2, 4, 5)), (4, (1, 2, 4)), (1, (1,))]
)
def test_the_sampler_knows_every_epoch_at_which_trials_are_pruned(epochs, rungs):
    opened = workers.open_study(optuna.storages.InMemoryStorage(), "s", epochs, 0, 1, None, None)
    assert opened.sampler.rungs == rungs


def test_a_study_whose_best_trials_were_stopped_still_gets_a_model():
    """Those may not be repeated, and all others may be worse: the first of them goes on for all that."""
    s = optuna.create_study(pruner=pruner.Halving(8))
    stopped = [s.ask() for _ in range(2)]

    def goes_on(trial, epoch, value):
        trial.report(value, epoch)
        return not trial.should_prune()

    for trial in stopped:
        assert all(goes_on(trial, epoch, 1.0) for epoch in range(1, 6))
        s.tell(trial, state=TrialState.FAIL)
    others = [s.ask() for _ in range(2)]
    for epoch in range(1, 9):
        assert goes_on(others[0], epoch, 2.0)
    assert not all(goes_on(others[1], epoch, 3.0) for epoch in range(1, 9))  # there is one before it
    assert not goes_on(s.ask(), 2, math.nan)
    s.tell(others[0], 2.0)
    s.tell(others[1], state=TrialState.PRUNED)
    assert not all(goes_on(s.ask(), epoch, 4.0) for epoch in range(1, 9))


def test_nothing_is_pruned_for_a_trial_that_has_died():
    """Between the death of its process and the moment in which it is told to have failed, it looks as if it ran."""
    s = optuna.create_study(pruner=pruner.Halving(8))
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        pass
    for process, pruned in ((this_process() | {"pid": gone.pid}, False), (this_process(), True)):
        hope, other = s.ask(), s.ask()
        hope.set_user_attr("process", process)
        hope.report(1.0, 2)
        assert not hope.should_prune()
        other.report(2.0, 2)
        assert other.should_prune() == pruned
        for trial in (hope, other):
            s.tell(trial, state=TrialState.FAIL)


def test_further_trials_begin_where_what_others_were_pruned_for_has_failed(folder, cells):
    tuner = make_tuner(cells, max_trials=3, min_trials=3)
    hope, *others = (tuner.study.ask() for _ in range(3))
    for trial in others:
        tuner.study.tell(trial, state=TrialState.PRUNED)
    assert study.why_to_end(tuner.study, tuner._plan) == "3 trials have begun"  # it may still be completed
    tuner.study.tell(hope, state=TrialState.FAIL)
    assert study.why_to_end(tuner.study, tuner._plan) == ""
    tuner.fit(cells)
    assert [t.state for t in tuner.study.trials[3:]] == [TrialState.COMPLETE]
    assert tuner.fetch_best_weights().num_topics


def test_further_trials_that_fail_end_a_study_too(folder, cells):
    tuner = make_tuner(cells, max_trials=2, min_trials=2)
    told_trials(tuner, [None])
    for _ in range(1 + study.SPARE):
        assert not study.why_to_end(tuner.study, tuner._plan)
        tuner.study.tell(tuner.study.ask(), state=TrialState.FAIL)
    assert study.why_to_end(tuner.study, tuner._plan) == "5 trials have begun"


def test_a_trial_without_memory_is_tried_once_more_with_less(folder, cells, monkeypatch):
    honest, seen = loop.train, []

    def train(network, read, options, seed):
        seen.append(options["batch_size"])
        if len(seen) == 1:
            raise MemoryError("out of it")
        yield from honest(network, read, options, seed)

    monkeypatch.setattr(loop, "train", train)
    tuner = make_tuner(cells, max_trials=2, min_trials=2)
    tuner.fit(cells)
    first, again = tuner.study.trials
    assert (first.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == first.params
    assert again.user_attrs["retry_of"] == 0
    assert seen == [32, 16]


def test_where_memory_runs_out_beside_other_trials_fewer_run_at_a_time(folder, cells, monkeypatch):
    honest, lock, at_once, seen = loop.train, threading.Lock(), [], []

    def train(*arguments):
        with lock:
            seen.append(1)
            number = len(seen)
        at_once.append(len([t for t in tuner.study.trials if t.state == TrialState.RUNNING]))
        records = honest(*arguments)
        yield next(records)
        if number == 1:
            while len(seen) < 2:  # until the other worker has begun
                time.sleep(0.01)
            raise MemoryError("out of it")
        while number == 2 and not any(t.state == TrialState.FAIL for t in tuner.study.trials):
            time.sleep(0.01)
        yield from records

    monkeypatch.setattr(loop, "train", train)
    tuner = make_tuner(cells, max_trials=8, min_trials=8, stop_condition=8, n_jobs=2)
    with ThreadPoolExecutor(2) as executor:
        tuner.fit(cells, executor=executor)
    assert max(at_once) == 2
    assert set(at_once[3:]) == {1}
    assert [t.state for t in tuner.study.trials].count(TrialState.FAIL) == 1
    assert len(tuner.study.trials) == 8


def test_ctrl_c_ends_the_trial_and_fit_goes_on_later(folder, cells, monkeypatch):
    honest = loop.train

    def train(*arguments):
        for i, record in enumerate(honest(*arguments)):
            if i == 5:
                raise KeyboardInterrupt
            yield record

    tuner = make_tuner(cells, max_trials=3, min_trials=3)
    with monkeypatch.context() as m:
        m.setattr(loop, "train", train)
        with pytest.raises(KeyboardInterrupt):
            tuner.fit(cells)
    assert states(tuner) == [TrialState.FAIL]
    assert tuner.study.trials[0].user_attrs["failure"]["type"] == "Stopped"
    tuner.fit(cells)
    assert len(states(tuner)) == 3


def test_a_study_that_is_asked_to_stop_does_and_keeps_what_it_has(folder, cells, monkeypatch):
    monkeypatch.setattr(worker, "LOOK", 0.0)
    honest = worker.TrialRun._measure
    tuner = make_tuner(cells, max_trials=6, min_trials=6)

    def measure(run, *arguments):
        honest(run, *arguments)
        if run.trial.number == 1:
            tuner.stop()

    monkeypatch.setattr(worker.TrialRun, "_measure", measure)
    tuner.fit(cells)
    assert states(tuner) == [TrialState.COMPLETE, TrialState.FAIL]
    assert tuner.study.trials[1].user_attrs["failure"]["message"] == "it was stopped before it ended"


def dead() -> dict[str, object]:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    return {**this_process(), "pid": child.pid}


def test_purge_fails_running_trials_and_with_care_only_the_dead(folder, cells):
    tuner = make_tuner(cells)
    processes = [this_process(), dead(), {**this_process(), "host": "elsewhere"}]
    for process in processes:
        tuner.study.ask().set_user_attr("process", process)
    assert tuner.purge(dead_only=True) == [1]
    assert states(tuner) == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]
    assert "is gone" in tuner.study.trials[1].user_attrs["failure"]["message"]
    assert tuner.purge() == [0, 2]
    assert set(states(tuner)) == {TrialState.FAIL}
    assert tuner.purge() == []


def test_how_a_running_trial_stands(folder, cells):
    tuner = make_tuner(cells)
    elsewhere = {**this_process(), "host": "elsewhere"}
    for process, beat in ((this_process(), 0), (dead(), time.time()), (elsewhere, time.time()), (elsewhere, 0)):
        trial = tuner.study.ask()
        trial.set_user_attr("process", process)
        trial.set_user_attr("progress", {"time": beat})
    told = []
    for trial in tuner.study.get_trials():
        if trial.number == 3:
            trial.datetime_start = trial.datetime_start.replace(year=2020)
        told.append(study.standing(trial))
    assert told == ["alive", "dead", "alive", "silent"]


def test_trials_of_a_killed_tuning_are_recognised_by_the_next_fit(folder, cells):
    tuner = make_tuner(cells, max_trials=3, min_trials=3)
    tuner.study.ask().set_user_attr("process", dead())
    tuner.fit(cells)
    assert states(tuner)[0] == TrialState.FAIL
    assert all(s.is_finished() for s in states(tuner))


def test_a_trial_failed_by_somebody_else_does_not_end_its_worker(folder, cells, monkeypatch):
    honest = worker.TrialRun._measure
    tuner = make_tuner(cells, max_trials=2, min_trials=2)

    def measure(run, model, record, window):
        honest(run, model, record, window)
        if run.trial.number == 0 and record.epoch == 5:
            tuner.purge()

    monkeypatch.setattr(worker.TrialRun, "_measure", measure)
    tuner.fit(cells)
    assert states(tuner)[0] == TrialState.FAIL
    assert states(tuner)[1].is_finished()


# --- when to end ----------------------------------------------------------------------------------


def told_trials(tuner, values):
    for value in values:
        trial = tuner.study.ask()
        if value is None:
            tuner.study.tell(trial, state=TrialState.PRUNED)
        else:
            tuner.study.tell(trial, value)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([5.0], False),
        ([5.0, 6.0, 6.0], False),  # min_trials is 4
        ([5.0, 6.0, None, 6.0], True),  # three without a better one
        ([5.0, 6.0, 6.0, 4.0, 7.0, 7.0], False),
        ([5.0, 6.0, 6.0, 4.0, 7.0, None, 7.0], True),
        ([None] * 6, False),  # nothing completed
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], False),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], True),  # max_trials is 10
    ],
)
def test_a_study_ends_by_the_documented_rule(folder, cells, values, ends):
    tuner = make_tuner(cells, max_trials=10, sampler=optuna.samplers.RandomSampler())
    told_trials(tuner, values)
    assert bool(study.why_to_end(tuner.study, tuner._plan)) == ends


@pytest.mark.parametrize(
    ("topics", "said"), [(3, "lower min_topics than 2|$^"), (11, "higher max_topics than 12"), (7, None)]
)
def test_the_best_near_an_end_of_the_range_warns(folder, cells, topics, said, recwarn):
    tuner = make_tuner(cells, min_topics=2 if topics != 3 else 3)
    trial = tuner.study.ask()
    trial.suggest_int("num_topics", topics, topics)
    tuner.study.tell(trial, 1.0)
    if topics == 3:
        said = "lower min_topics than 3"
    tuner._warn_of_ends()
    messages = [str(w.message) for w in recwarn.list if "tune anew" in str(w.message)]
    assert len(messages) == (said is not None)
    if said:
        assert said in messages[0]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_jobs": 6}, "up to 5 concurrent trials, and n_jobs is 6.*Redis.*PostgreSQL"),
        ({"n_jobs": 0}, "n_jobs must be an integer of at least 1"),
        ({"min_topics": 12}, "less than max_topics"),
        ({"min_topics": 1}, "min_topics must be at least 2"),
        ({"min_trials": 7}, "min_trials must not exceed max_trials"),
        ({"train_size": 1.0}, "train_size must be between 0 and 1"),
        ({"save_name": "/"}, "save_name must be a name"),
        *(({"save_name": n}, f"no part of it empty, .*; got {n!r}") for n in ("a//b", "/a", "a/", ".", "a/../b", "")),
        ({"search": {"hiden": None}}, "did you mean hidden"),
        ({"search": {"use_cuda": None}}, "use_cuda cannot be searched; what can is"),
        ({"search": {"dependence_beta": None}}, "does not apply"),
        ({"search": {"hidden": (64, 32)}}, "the lower first"),
        ({"search": {"encoder_dropout": (0.1, 1.5)}}, "encoder_dropout must be"),
        ({"search": {"num_topics": (3, 4)}}, "min_topics to max_topics"),
        ({"storage": optuna.storages.InMemoryStorage(), "n_jobs": 2}, "give its URL"),
    ],
)
def test_wrong_options_say_what_must_hold(folder, cells, options, said):
    with pytest.raises(OptionError, match=said):
        make_tuner(cells, **options)


def test_any_option_with_a_range_can_be_searched(folder, cells):
    tuner = make_tuner(cells, search={"initial_pseudocounts": (10, 200), "hidden": (4, 9)}, max_trials=3, min_trials=3)
    tuner.fit(cells)
    for trial in tuner.study.trials:
        assert set(trial.params) == {"num_topics", "decoder_dropout", "initial_pseudocounts", "hidden"}
        assert isinstance(trial.params["hidden"], int)
    best = tuner.fetch_best_weights()
    assert best.hidden == tuner.study.best_trial.params["hidden"]


def test_a_study_that_has_had_its_name_since_any_would_do_is_read_and_stays_below_its_folders(folder, cells):
    with pytest.MonkeyPatch.context() as then:
        then.setattr(TuneOptions, "check", lambda self: None)
        tuner = make_tuner(cells, "../../etc/x", model_dir="m", tensorboard_logdir="t")
    assert tuner._plan.model_dir == str(folder / "m/etc/x")
    tuner.fit(cells)
    again = mira.topics.BayesianTuner.load(model=tuner.model, save_name="../../etc/x")
    assert again.trial_attrs == tuner.trial_attrs
    asked = {"study": "../../etc/x", "min_topics": 2, "max_topics": 12}
    jobs.write_spec(folder / "job", data="demo:pbmc700", model={"feature_type": "expression"}, kind="tune", tune=asked)
    assert jobs.read_spec(folder / "job")["tune"]["study"] == "../../etc/x"


def test_every_searchable_option_gives_a_model(cells):
    model = make(with_columns(make_cells(50, 20)), categorical_covariates="batch")
    options = model.get_params()
    wanted = {n: None for n in mira.topics.options.names() if mira.topics.options.parameter(n).metadata["search"]}
    for name in ("num_topics", "decoder_dropout"):
        wanted.pop(name)
    space = search.search_space(options, 3, 9, {n: None for n in wanted if n in options})
    fixed = optuna.trial.FixedTrial({n: r.low for n, r in space.items()})
    assert mira.topics.TopicModel(50, 20, **{**model.given, **search.suggest(fixed, space)})


# --- storages -------------------------------------------------------------------------------------


def test_a_storage_that_cannot_be_opened_says_which(tmp_path):
    with pytest.raises(TuningError, match=r"redis://localhost:1 cannot be opened"):
        storage.open_storage(mira.topics.Redis("redis://user:secret@localhost:1"))
    with pytest.raises(TuningError, match=r"nosuchdb://host"):
        storage.open_storage("nosuchdb://me:secret@host/db")


def test_the_sqlite_file_lets_readers_and_a_writer_not_wait_for_each_other(tmp_path):
    import sqlite3

    storage.open_storage(f"sqlite:///{tmp_path}/deep/er/a.db")
    assert sqlite3.connect(tmp_path / "deep/er/a.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_journal_file_is_a_storage(folder, cells):
    tuner = make_tuner(cells, storage="journal:///" + str(folder / "j/s.journal"), max_trials=2, min_trials=2)
    tuner.fit(cells)
    assert (folder / "j/s.journal").is_file()
    assert (
        len(mira.topics.BayesianTuner.load(model=tuner.model, save_name="a/study", storage=tuner.storage).trial_attrs)
        == 2
    )


def test_patience_waits_for_a_storage_and_then_says_that_it_is_gone(monkeypatch):
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    calls = []

    def away_twice():
        calls.append(1)
        if len(calls) < 3:
            raise optuna.exceptions.StorageInternalError("gone")
        return "here"

    assert storage.patiently(away_twice) == "here"

    def away():
        raise ConnectionRefusedError("gone")

    with pytest.raises(TuningError, match="has not answered for 0 seconds"):
        storage.patiently(away, patience=0.0)
    with pytest.raises(KeyError):  # not the storage's fault
        storage.patiently(lambda: {}["a"])


# --- the held-out loss ----------------------------------------------------------------------------


def test_the_held_out_loss_is_that_of_many_draws(cells):
    model = make(cells, num_epochs=30).fit(cells, progress=False)
    read = sources.training_cells(cells, model.get_params())
    many = evaluation.mean_loss(model.network, read, n_draws=64)
    told = [evaluation.held_out(model.network, read, seed) for seed in range(12)]
    distortions = np.array([t.distortion for t in told])
    assert distortions.mean() == pytest.approx(many["distortion"], abs=4 * distortions.std() / math.sqrt(12) + 1e-3)
    assert told[0].rate == pytest.approx(many["rate"], rel=0.05)
    assert evaluation.held_out(model.network, read, 3) == told[3]
