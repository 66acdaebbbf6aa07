"""Tuning, gradient tuning and prediction as jobs: real processes that are stopped, killed, and gone on with."""

from __future__ import annotations

import inspect
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

import mira_core as mira
from mira_core import cli, jobs
from mira_core.data import Recipe
from mira_core.errors import JobError, OptionError, TrainingError
from mira_core.records import EpochRecord, StepRecord, from_dict
from mira_core.run import run_job
from mira_core.training import loop
from mira_core.tuning import gradient
from mira_core.tuning.study import Plan
from mira_core.tuning.tune_options import TuneOptions
from tests.helpers import arrays, same

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:the best model has")

DEMO = "demo:pbmc700"
SMALL = {"hidden": 16, "num_epochs": 3, "batch_size": 64}
LONG = {**SMALL, "num_epochs": 100_000}
RECIPE = [{"step": "filter_features", "min_cells": 40}]
COMPLETE, FAIL, RUNNING = TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING


def until(true: Callable[[], object], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "job"


@pytest.fixture
def cells(cells, tmp_path) -> ad.AnnData:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return cells


@pytest.fixture
def start() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Start jobs as the dashboard does; they end with the test."""
    started = []

    def popen(folder: Path) -> subprocess.Popen[bytes]:
        with open(folder / "log.txt", "ab") as log:
            command = [sys.executable, "-m", "mira_core.run", str(folder)]
            environment = {**os.environ, "FORCE_COLOR": "1"}  # as some servers have it
            started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment))
        return started[-1]

    yield popen
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tune(folder: Path, data: str = DEMO, model: dict = SMALL, recipe: list | None = None, **asked: object) -> None:
    few = {"min_topics": 3, "max_topics": 9, "max_trials": 3, "min_trials": 3, "seed": 1, "storage": "sqlite:///s.db"}
    jobs.write_spec(
        folder, data=data, model=model, kind="tune", recipe=recipe, tune={"study": "a/study", **few, **asked}
    )


def study() -> optuna.Study:
    return optuna.load_study(study_name="a/study", storage="sqlite:///s.db")


def trials() -> list[FrozenTrial]:
    try:
        return study().get_trials(deepcopy=False)
    except Exception:  # not there yet
        return []


def running() -> list[FrozenTrial]:
    return [t for t in trials() if t.state == RUNNING and "process" in t.user_attrs]


def n_of(state: TrialState) -> int:
    return sum(t.state == state for t in trials())


def summary(folder: Path) -> dict:
    return json.loads((folder / "result" / "summary.json").read_bytes())


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text()


# --- a tuning -------------------------------------------------------------------------------------


def test_a_job_tunes_to_its_end_and_leaves_the_best_model(folder, start):
    tune(folder, n_jobs=2, recipe=RECIPE)
    os.chdir("/")  # it finds its files from anywhere
    assert start(folder).wait(timeout=120) == 0, log(folder)
    os.chdir(folder.parent)
    status = jobs.read_status(folder)
    found = trials()
    assert (status.state, status.kind, status.stage) == ("finished", "tune", "done")
    assert (status.step, status.num_steps) == (len(found), 3)
    assert status.n_cells + status.n_held_out == 700
    best = study().best_trial
    told = summary(folder)
    assert (told["trial"], told["loss"], told["params"]) == (best.number, best.value, best.params)
    assert told["num_topics"] == best.params["num_topics"]
    assert told["why"] == "3 trials have begun"
    assert told["trials"] == dict(Counter(t.state.name for t in found))
    kept = mira.topics.load_model(folder / "result" / "model.safetensors")
    assert same(
        arrays(kept), arrays(mira.topics.load_model(folder.parent / f"models/a/study/{best.number}.safetensors"))
    )
    plan = Plan.of(study())
    assert (plan.data, plan.recipe) == (DEMO, [Recipe(RECIPE).steps[0].to_dict()])
    assert plan.owner.endswith(f"@{os.uname().nodename}")
    assert plan.n_features < 765
    assert (folder.parent / "models/a/study") in Path(plan.train).parents
    lines = log(folder).splitlines()
    assert len(lines) == len(found) + 2  # why it ended, and the state of the job
    assert {" ".join(line.split()[:2]) for line in lines[:-2]} == {f"trial {i}" for i in range(len(found))}
    assert "\x1b" not in log(folder)
    with pytest.raises(JobError, match="has finished before"):
        jobs.resume(folder)


def test_it_is_the_tuning_of_the_library_call(folder, cells):
    tune(folder, data="cells.h5ad", search={"initial_pseudocounts": [10, 200]})
    assert run_job(folder).state == "finished"
    model = mira.topics.TopicModel(*cells.shape, **SMALL)
    tuner = mira.topics.BayesianTuner(
        model=model, save_name="other", min_topics=3, max_topics=9, max_trials=3, min_trials=3, seed=1,
        search={"initial_pseudocounts": (10, 200)},
    )  # fmt: skip
    best = tuner.fit(cells)
    assert [t.params for t in trials()] == [t.params for t in tuner.study.trials]
    assert [t.value for t in trials()] == [t.value for t in tuner.study.trials]
    assert same(arrays(mira.topics.load_model(folder / "result" / "model.safetensors")), arrays(best))
    plan, other = Plan.of(study()), Plan.of(tuner.study)
    assert (plan.data, plan.recipe) == (str(folder.parent / "cells.h5ad"), None)
    assert (other.data, other.recipe, other.owner) == (None, None, plan.owner)
    assert plan.digest == other.digest
    # the library goes on with the study of the job, whose name of the data stays
    options = TuneOptions.of_plan("a/study", plan, "sqlite:///s.db")
    assert options.absolute() == TuneOptions(**{**jobs.read_spec(folder)["tune"], "search": options.search})
    asked = {**options.to_dict(), "max_trials": 4, "min_trials": 4}
    mira.topics.BayesianTuner(model=model, save_name=asked.pop("study"), **asked).fit(cells)
    assert len(trials()) == 4
    assert Plan.of(study()).data == plan.data


@pytest.mark.parametrize(("n_jobs", "how"), [(1, "stop file"), pytest.param(2, "SIGTERM", marks=pytest.mark.slow)])
def test_a_stopped_job_tells_its_trials_and_goes_on_with_the_study(folder, start, how, n_jobs):
    tune(folder, model=LONG, n_jobs=n_jobs)
    process = start(folder)
    until(lambda: len(running()) == n_jobs and all(t.intermediate_values for t in running()), "trials that run")
    pids = [t.user_attrs["process"]["pid"] for t in running()]
    assert jobs.read_status(folder).stage == "tuning"
    if how == "SIGTERM":
        process.terminate()
    else:
        jobs.request_stop(folder)
    assert process.wait(timeout=60) == 0
    status = jobs.read_status(folder)
    assert (status.state, status.step, status.num_steps) == ("stopped", n_jobs, 3)
    assert [t.state for t in trials()] == [FAIL] * n_jobs
    assert {t.user_attrs["failure"]["type"] for t in trials()} == {"Stopped"}
    assert study().user_attrs["stop"]  # others who run the study stop, too
    assert not any(psutil.pid_exists(p) for p in pids)
    told = summary(folder)
    assert (told["why"], told["trial"], told["num_topics"]) == ("it was asked to stop", None, None)
    assert not (folder / "result" / "model.safetensors").exists()
    assert jobs.why_not_resume(folder) == ""

    shorten(folder)
    assert cli.main(["resume", str(folder)]) == 0
    status = jobs.read_status(folder)
    assert (status.state, status.resumed, status.resumed_step) == ("finished", 1, n_jobs)
    assert status.step == len(trials()) >= 3
    assert n_of(COMPLETE) >= 1
    assert summary(folder)["trial"] == study().best_trial.number
    assert (folder / "result" / "model.safetensors").is_file()


def shorten(folder: Path) -> None:
    """Let the trials to come be short, in the job and in its study."""
    spec = json.loads((folder / "job.json").read_bytes())
    (folder / "job.json").write_text(json.dumps({**spec, "model": SMALL}))
    plan = study().user_attrs["plan"]
    study().set_user_attr("plan", {**plan, "given": {**plan["given"], **SMALL}})


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_job_takes_its_workers_along_and_goes_on_with_the_study(folder, start, n_jobs):
    tune(folder, model=LONG, n_jobs=n_jobs)
    process = start(folder)
    until(lambda: len(running()) == n_jobs, "trials that run")
    pids = [t.user_attrs["process"]["pid"] for t in running()]
    assert (process.pid in pids) == (n_jobs == 1)
    process.kill()
    process.wait()
    until(lambda: not any(psutil.pid_exists(p) for p in pids), "end of the workers", 30)
    assert jobs.read_status(folder).state == "died"
    shorten(folder)
    jobs.resume(folder)
    assert jobs.read_status(folder).state == "waiting"
    assert run_job(folder).state == "finished"
    assert n_of(RUNNING) == 0
    assert [t.state for t in trials()[:n_jobs]] == [FAIL] * n_jobs
    assert n_of(COMPLETE) >= 1


def test_workers_whose_tuner_is_killed_before_they_begin_do_not_run_on(folder, start):
    tune(folder, model=LONG, n_jobs=2)
    process = start(folder)
    me = psutil.Process(process.pid)
    until(lambda: len(me.children()) == 2, "workers")
    workers = me.children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert n_of(RUNNING) == 0


def test_a_study_that_is_asked_to_stop_stops_its_jobs(folder, start):
    tune(folder, model=LONG)
    process = start(folder)
    until(running, "a trial that runs")
    study().set_user_attr("stop", True)
    assert process.wait(timeout=60) == 0
    assert jobs.read_status(folder).state == "stopped"
    assert summary(folder)["why"] == "it was asked to stop"


def test_a_tuning_that_failed_says_why_and_can_be_gone_on_with(folder, cells, monkeypatch):
    tune(folder, data="cells.h5ad", max_trials=6, min_trials=6)
    honest = loop.train

    def diverge(*_: object) -> Iterator[None]:
        raise TrainingError("the loss is no longer finite")

    monkeypatch.setattr(loop, "train", diverge)
    status = run_job(folder)
    assert (status.state, status.error["type"]) == ("failed", "TuningError")
    assert "5 trials failed one after the other" in status.error["message"]
    assert not (folder / "result").exists()
    monkeypatch.setattr(loop, "train", honest)
    assert run_job(folder).state == "finished"
    assert [t.state for t in trials()] == [FAIL] * 5 + [COMPLETE]


def test_a_tuning_in_which_no_trial_was_completed_has_failed(folder, cells, monkeypatch):
    tune(folder, data="cells.h5ad", max_trials=2, min_trials=2, model={**SMALL, "max_learning_rate": 1e9})
    status = run_job(folder)
    assert status.state == "failed"
    assert "no trial has been completed: 2 trials have begun" in status.error["message"]


def test_a_study_of_other_data_is_not_gone_on_with(folder, cells):
    tune(folder, data="cells.h5ad")
    run_job(folder)
    other = folder.parent / "other"
    tune(other, data=DEMO)
    status = run_job(other)
    assert (status.state, status.error["type"]) == ("failed", "TuningError")
    assert "was begun otherwise" in status.error["message"]


def test_studies_of_earlier_versions_name_no_data(folder, cells):
    tune(folder, data="cells.h5ad", max_trials=1, min_trials=1)
    run_job(folder)
    values = {k: v for k, v in study().user_attrs["plan"].items() if k not in ("data", "recipe", "owner")}
    study().set_user_attr("plan", values)
    plan = Plan.of(study())
    assert (plan.data, plan.recipe, plan.owner) == (None, None, None)
    tune(folder.parent / "more", data="cells.h5ad", max_trials=2, min_trials=2)
    assert run_job(folder.parent / "more").state == "finished"
    assert len(trials()) == 2
    assert Plan.of(study()).data.endswith("cells.h5ad")


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"n_job": 2}, OptionError, "a tuning has no option 'n_job'; did you mean n_jobs?"),
        ({"pruner": None}, OptionError, "a tuning has no option 'pruner'"),
        ({"n_jobs": 0}, OptionError, "n_jobs must be an integer of at least 1; got 0"),
        ({"n_jobs": 6}, OptionError, "an SQLite storage can handle up to 5 concurrent trials"),
        ({"max_trials": "many"}, OptionError, "max_trials must be an integer of at least 1; got 'many'"),
        ({"min_trials": 4}, OptionError, "min_trials must not exceed max_trials; got 4 and 3"),
        ({"min_topics": 9}, OptionError, "min_topics must be at least 2 and less than max_topics"),
        ({"max_topics": 9.5}, OptionError, "max_topics must be an integer; got 9.5"),
        ({"seed": -1}, OptionError, "seed must be an integer from 0"),
        ({"train_size": 1}, OptionError, "train_size must be between 0 and 1"),
        ({"storage": 3}, OptionError, "storage must be text; got 3"),
        ({"study": ""}, OptionError, "save_name must be a name"),
        ({"log_steps": "yes"}, OptionError, "log_steps must be true or false"),
        ({"search": ["hidden"]}, OptionError, "search must hold ranges by name"),
        ({"search": {"hidden": [1]}}, OptionError, "search of hidden needs two ends"),
        ({"search": {"hiden": None}}, OptionError, "did you mean hidden"),
        ({"search": {"dependence_beta": None}}, OptionError, "does not apply"),
        ({"model": {"num_topics": 5}}, OptionError, "num_topics is set by each trial; leave it out of the model"),
        ({"model": {"seed": 5}}, OptionError, "seed is set by each trial"),
        ({"model": {"hiden": 5}}, OptionError, "did you mean hidden"),
        ({"recipe": [{"step": "nothing"}]}, OptionError, "step 1 of the recipe"),
    ],
)  # fmt: skip
def test_wrong_options_of_a_tuning_are_refused_before_anything_starts(folder, asked, error, message):
    with pytest.raises(error, match=message):
        tune(folder, **asked)
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []


def test_a_tuning_must_be_told_what_to_do(folder):
    with pytest.raises(OptionError, match="a tuning must be told study and min_topics and max_topics"):
        jobs.write_spec(folder, data=DEMO, model={}, kind="tune")
    with pytest.raises(JobError, match="tune goes with jobs of kind 'tune' only"):
        jobs.write_spec(folder, data=DEMO, model={}, tune={"study": "a"})
    assert not folder.exists()


def test_only_the_user_enters_a_folder_that_names_a_password(folder):
    tune(folder, storage="postgresql://me:secret@host/studies")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert jobs.read_spec(folder)["tune"]["storage"] == "postgresql://me:secret@host/studies"


def test_the_defaults_of_a_job_are_the_tuners():
    taken = {p.name: p.default for p in inspect.signature(mira.topics.BayesianTuner).parameters.values()}
    for name, default in TuneOptions("a", 2, 3).to_dict().items():
        if name not in ("study", "min_topics", "max_topics"):
            assert taken[name] == default, name


def test_a_job_is_read_without_torch(folder):
    tune(folder)
    code = f"import sys, pathlib; from mira_core import jobs; jobs.read_spec(pathlib.Path({str(folder)!r})); "
    code += "jobs.read_status(pathlib.Path('.')); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


# --- a gradient tuning ----------------------------------------------------------------------------


@pytest.fixture
def few_steps(monkeypatch) -> None:
    monkeypatch.setattr(gradient, "LEAST_STEPS", 60)


def contributions(folder: Path) -> dict:
    return json.loads((folder / "result" / "contributions.json").read_bytes())


def test_a_gradient_tuning_gives_what_the_library_call_gives(folder, cells, few_steps):
    jobs.write_spec(
        folder, data="cells.h5ad", model={**SMALL, "seed": 3}, kind="gradient_tune", gradient_tune={"max_topics": 12}
    )
    heard = []
    status = run_job(folder, heard.append)
    model = mira.topics.make_model(*cells.shape, feature_type="expression", **SMALL, seed=3)
    n, each = mira.topics.gradient_tune(model, cells, max_topics=12)
    assert contributions(folder) == {"num_topics": n, "contributions": each.tolist(), "threshold": 0.05}
    assert (status.state, status.kind, status.n_cells) == ("finished", "gradient_tune", 300)
    steps = [r for r in heard if isinstance(r, StepRecord)]
    assert (status.step, status.epoch) == (status.num_steps, status.num_epochs) == (len(steps), len(heard) - len(steps))
    assert [from_dict(r) for r in jobs.read_records(folder)[0]] == heard
    assert not (folder / "result" / "model.safetensors").exists()


def test_attempts_of_a_gradient_tuning_are_counted_on(folder, cells, few_steps, monkeypatch):
    jobs.write_spec(folder, data="cells.h5ad", model=SMALL, kind="gradient_tune", gradient_tune={"max_topics": 6})
    honest, begun = loop.train, []

    def train(*given: object) -> Iterator[object]:
        begun.append(given)
        for record in honest(*given):
            yield record
            if len(begun) == 1 and record.step == 7:
                raise TrainingError("the loss is no longer finite")

    monkeypatch.setattr(loop, "train", train)
    status = run_job(folder)
    assert status.state == "finished"
    assert len(begun) == 2
    told = [from_dict(r) for r in jobs.read_records(folder)[0]]
    steps = [r.step for r in told if isinstance(r, StepRecord)]
    assert steps == list(range(1, status.num_steps + 1))
    epochs = [r.epoch for r in told if isinstance(r, EpochRecord)]
    assert epochs == sorted(set(epochs))
    assert status.step == status.num_steps


def test_a_gradient_tuning_is_watched_stopped_and_begun_anew(folder, start):
    jobs.write_spec(folder, data=DEMO, model={"hidden": 16}, kind="gradient_tune")
    process = start(folder)
    until(lambda: jobs.read_status(folder).step > 20, "steps")
    assert jobs.read_status(folder).num_steps >= 3000
    assert any(r["kind"] == "step" for r in jobs.read_records(folder)[0])
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert jobs.read_status(folder).state == "stopped"
    assert not (folder / "result").exists()  # a number from half a training would be wrong
    assert jobs.why_not_resume(folder) == ""
    jobs.resume(folder)
    stopped = run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 3 else None)
    assert (stopped.state, stopped.step) == ("stopped", 3)
    assert [r["step"] for r in jobs.read_records(folder)[0]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "model", "message"),
    [
        ({"max_topic": 3}, {}, "a gradient tuning has no option 'max_topic'; did you mean max_topics"),
        ({"max_attempts": 0}, {}, "max_attempts must be an integer of at least 1"),
        ({"max_topics": 1}, {}, "max_topics is a num_topics: num_topics must be an integer of at least 2"),
        ({}, {"num_topics": 4}, "num_topics is what is sought.*leave it out of the model"),
    ],
)
def test_wrong_options_of_a_gradient_tuning_are_refused(folder, asked, model, message):
    with pytest.raises(OptionError, match=message):
        jobs.write_spec(folder, data=DEMO, model=model, kind="gradient_tune", gradient_tune=asked)
    assert not folder.exists()


def test_the_command_line_tells_the_number_of_topics(folder, cells, few_steps, capsys):
    words = ["gradient-tune", "cells.h5ad", "-o", str(folder), "--max-topics", "8", "--hidden", "16"]
    assert cli.main(words) == 0
    n = contributions(folder)["num_topics"]
    assert f"--num-topics {n}\n" in capsys.readouterr().out
    assert len(contributions(folder)["contributions"]) == 8
    assert (folder / "result" / "contributions.png").read_bytes().startswith(b"\x89PNG")


# --- a prediction ---------------------------------------------------------------------------------


@pytest.fixture
def model_file(fitted, tmp_path) -> Path:
    fitted.save(tmp_path / "trained.safetensors")
    return tmp_path / "trained.safetensors"


def predict(folder: Path, model: Path | str, **more: object) -> None:
    asked = {"model": str(model), "study": "a/study", "trial": 3}
    jobs.write_spec(folder, data="cells.h5ad", model={}, kind="predict", predict=asked, **more)


def test_a_prediction_is_the_models(folder, cells, fitted, model_file):
    predict(folder, "trained.safetensors")
    assert jobs.read_spec(folder)["predict"]["model"] == str(model_file)
    status = run_job(folder)
    assert (status.state, status.kind, status.n_cells) == ("finished", "predict", 300)
    out = ad.read_h5ad(folder / "result" / "cells.h5ad")
    wanted = fitted.predict(cells)
    assert np.array_equal(out.obsm["X_topic_compositions"], wanted.obsm["X_topic_compositions"])
    assert out.obsm["X_umap"].shape == (300, 2)
    assert same(arrays(mira.topics.load_model(folder / "result" / "model.safetensors")), arrays(fitted))
    fit = folder.parent / "fit"  # which leaves the same things
    jobs.write_spec(fit, data="cells.h5ad", model=fitted.given)
    assert run_job(fit).state == "finished"
    other = ad.read_h5ad(fit / "result" / "cells.h5ad")
    assert np.array_equal(out.obsm["X_umap"], other.obsm["X_umap"])
    assert np.array_equal(out.varm["topic_feature_activations"], other.varm["topic_feature_activations"])
    assert (set(out.obs), set(out.uns)) == (set(other.obs), set(other.uns))


def test_a_prediction_does_the_recipe_of_the_study(folder, start):
    recipe = [{"step": "filter_cells", "min_counts": float(np.median(np.asarray(mira.data.load_demo().X.sum(1))))}]
    tune(folder, recipe=recipe, max_trials=1, min_trials=1)
    assert run_job(folder).state == "finished"
    told = summary(folder)
    out = folder.parent / "predicted"
    asked = {"model": study().best_trial.user_attrs["weights"], "study": told["study"], "trial": told["trial"]}
    jobs.write_spec(out, data=DEMO, model={}, kind="predict", predict=asked, recipe=recipe, embedding=False)
    assert start(out).wait(timeout=90) == 0, log(out)
    found = ad.read_h5ad(out / "result" / "cells.h5ad")
    assert 0 < found.n_obs < 700
    assert found.obsm["X_topic_compositions"].shape == (found.n_obs, told["num_topics"])
    assert Recipe.from_dict(json.loads(found.uns["recipe"])) == Recipe(recipe)
    assert "X_umap" not in found.obsm


def test_features_that_the_data_lack_are_told(folder, cells, model_file):
    cells[:, 5:].copy().write_h5ad("cells.h5ad")
    predict(folder, model_file)
    status = run_job(folder)
    assert (status.state, status.error["type"]) == ("failed", "DataError")
    assert "lacks 5 of the model's 120 features" in status.error["message"]
    assert not (folder / "result").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "a prediction must be told model, the path of a saved model"),
        ({"model": "none.safetensors"}, "there is no model .*none.safetensors"),
        ({"model": "a", "trial": "3"}, "trial must be a number; got '3'"),
        ({"model": "a", "study": 3}, "study must be a name; got 3"),
        ({"model": "a", "weights": 3}, "a prediction has no option 'weights'"),
    ],
)
def test_wrong_options_of_a_prediction_are_refused(folder, cells, asked, message):
    with pytest.raises(JobError, match=message):
        jobs.write_spec(folder, data="cells.h5ad", model={}, kind="predict", predict=asked)
    assert not folder.exists()


def test_what_is_no_model_is_told(folder, cells):
    predict(folder, "cells.h5ad")
    status = run_job(folder)
    assert (status.state, status.error["type"]) == ("failed", "CheckpointError")


def test_the_command_line_predicts(folder, cells, model_file, capsys):
    words = ["predict", "cells.h5ad", "--model", str(model_file), "--no-embedding", "-o", str(folder)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"finished: {folder / 'result'}\n"
    assert ad.read_h5ad(folder / "result" / "cells.h5ad").n_obs == 300


def test_the_command_line_tunes_demos_by_recipes_with_further_options(folder, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    few = ["--max-trials", "1", "--min-trials", "1", "--min-topics", "3", "--max-topics", "9", "--num-epochs", "1"]
    words = ["tune", DEMO, "--study", "a/study", "--storage", "sqlite:///s.db", "--recipe", "recipe.json", *few]
    assert cli.main([*words, "--search", "initial-pseudocounts=10:200", "hidden=8:16"]) == 0
    assert 8 <= trials()[0].params["hidden"] <= 16
    plan = Plan.of(study())
    assert (plan.data, len(plan.recipe), plan.train) == (DEMO, 1, None)  # its data are in memory, and have a name
    assert cli.main([*words, "--search", "hiden"]) == 2
    assert "did you mean hidden" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*words, "--search", "hidden=8"])
    assert "must be NAME or NAME=LOW:HIGH; got 'hidden=8'" in capsys.readouterr().err
