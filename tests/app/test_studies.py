"""Studies of a storage, for those who look: what is listed, what is read, what can be begun and gone on with."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

import mira_core as mira
from mira_app.dispatching import Dispatcher
from mira_app.settings import Settings
from mira_app.studies import Studies
from mira_app.study_readings import StudyReadings
from mira_app.workspace import Workspace
from mira_core import jobs
from mira_core.errors import OptionError, TuningError
from mira_core.files import write_json
from mira_core.processes import this_process
from mira_core.tuning import control
from mira_core.tuning.tune_options import TuneOptions
from tests.helpers import make_tuner

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:the best model has")


@pytest.fixture(scope="module")
def cells():
    return mira.data.simulate_expression(150, 40, 4, seed=0)


@pytest.fixture
def studies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Studies(Workspace(Settings(workspace=tmp_path / "workspace", demo=True)))


def tuned(studies, cells, name="lab/rna/1", **more):
    tuner = make_tuner(cells, name, storage=studies.url, **{"max_trials": 3, "min_trials": 3, **more})
    tuner.fit(cells)
    return tuner


def test_a_storage_is_one_of_the_workspace_unless_another_is_named(tmp_path):
    assert Settings(workspace=tmp_path).storage == f"sqlite:///{tmp_path / 'studies.db'}"
    assert Settings(workspace=tmp_path, storage_url="redis://there").storage == "redis://there"


def test_a_model_of_a_study_that_no_tuner_made_needs_its_cells_named(studies, cells, tmp_path):
    model = mira.topics.make_model(*cells.shape, feature_type="expression", num_topics=3, hidden=8, num_epochs=1)
    model.fit(cells, progress=False).save(tmp_path / "model.safetensors")
    other = optuna.create_study(study_name="by hand", storage=studies.url)

    def objective(trial):
        trial.set_user_attr("weights", str(tmp_path / "model.safetensors"))
        return trial.suggest_float("x", 0, 1)

    other.optimize(objective, n_trials=1)
    reading = studies.readings.read("by hand")
    assert reading.plan is None
    with pytest.raises(TuningError, match="does not say where its cells are"):
        studies.topics_on_cells(reading, 0)


def test_studies_begun_elsewhere_are_listed_and_read(studies, cells):
    assert studies.readings.rows() == []
    tuner = tuned(studies, cells)
    other = optuna.create_study(study_name="not ours", storage=studies.url)
    other.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    studies.readings.rows()
    while studies.readings.unread():  # as long as it takes; each look takes half a second at most
        studies.readings.rows()
    rows = {r.name: r for r in studies.readings.rows()}
    ours = rows["lab/rna/1"]
    assert (ours.state, ours.n_trials, ours.best_value) == ("finished", 3, tuner.study.best_value)
    assert ours.best_topics == tuner.study.best_params["num_topics"]
    assert sum(ours.counts.values()) == 3
    assert (rows["not ours"].ours, rows["not ours"].n_trials) == (False, 2)
    assert studies.readings.unread() == []
    other.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    # What was quiet is looked at again, by turns.
    while {r.name: r.n_trials for r in studies.readings.rows()}["not ours"] < 3:
        pass
    optuna.delete_study(study_name="not ours", storage=studies.url)
    assert [r.name for r in studies.readings.rows()] == ["lab/rna/1"]
    with pytest.raises(TuningError, match="there is no study 'not ours'"):
        studies.readings.read("not ours")


def test_models_of_trials_are_the_librarys_and_only_those_that_are_here(studies, cells):
    tuner = tuned(studies, cells)
    reading = studies.readings.read("lab/rna/1")
    model = studies.model(reading, reading.best)
    assert model.num_topics == tuner.fetch_best_weights().num_topics
    told = studies.compare(reading, reading.best, reading.best)
    assert told["topic"].tolist() == told["other"].tolist()
    assert studies.summary(reading).num_topics == tuner.summary().num_topics
    with pytest.raises(TuningError, match="there is none"):
        studies.weights(reading, 99)
    with pytest.raises(TuningError, match="choose their file on the Data page"):
        studies.topics_on_cells(reading, reading.best)  # which were in memory
    studies.weights(reading, reading.best).unlink()
    with pytest.raises(TuningError, match=f"the model of trial {reading.best} is not here"):
        studies.model(reading, reading.best)
    control.hide(tuner.study, [t["number"] for t in reading.trials])
    assert studies.summary(studies.readings.read("lab/rna/1")) is None


def test_what_is_asked_of_a_study_reaches_its_storage(studies, cells):
    tuner = tuned(studies, cells)
    studies.ask("lab/rna/1", control.narrow, {"num_topics": (4, 6)})
    assert tuner.study.user_attrs["narrowed"] == {"num_topics": [4, 6]}
    with pytest.raises(OptionError, match="lies outside|can be narrowed within"):
        studies.ask("lab/rna/1", control.narrow, {"num_topics": (4, 60)})
    with pytest.raises(TuningError, match="there is no study 'nope'"):
        studies.ask("nope", control.stop)
    with pytest.raises(TuningError, match="begun elsewhere, with cells that were in the memory"):
        studies.go_on("lab/rna/1")


def test_a_study_begun_here_is_a_job_that_the_command_line_could_run(studies, monkeypatch):
    monkeypatch.setattr(studies.workspace.dispatcher, "wake", lambda: None)
    asked = {"study": "a/b", "min_topics": 3, "max_topics": 6, "max_trials": 4, "min_trials": 2}
    key = studies.begin("demo:pbmc700", {"feature_type": "expression", "num_epochs": 3}, asked)
    spec = jobs.read_spec(studies.workspace.folder_of(key))
    assert (spec["kind"], spec["name"], spec["tune"]["study"]) == ("tune", "a/b", "a/b")
    assert spec["tune"]["storage"] == studies.url
    assert spec["tune"]["model_dir"].startswith(str(studies.workspace.settings.workspace))
    assert studies.readings.job_of("a/b") == key
    assert studies.readings.job_of("other") is None
    with pytest.raises(OptionError, match="num_topics is set by each trial"):
        studies.begin("demo:pbmc700", {"feature_type": "expression", "num_topics": 5}, {**asked, "study": "c"})
    optuna.create_study(study_name="a/b", storage=studies.url)
    with pytest.raises(TuningError, match="there is a study 'a/b' already"):
        studies.begin("demo:pbmc700", {"feature_type": "expression"}, asked)
    with pytest.raises(TuningError, match="is run already"):  # it waits to be
        studies.go_on("a/b")


def test_importance_is_shares_of_one_or_why_it_is_not_known(studies, cells):
    tuned(studies, cells, max_trials=8, min_trials=8, pruner=optuna.pruners.NopPruner())
    told = studies.importance(studies.readings.read("lab/rna/1"))
    assert set(told.shares) == {"num_topics", "decoder_dropout"}
    assert sum(told.shares.values()) == pytest.approx(1)
    two = optuna.create_study(study_name="two aims", storage=studies.url, directions=["minimize", "minimize"])
    two.optimize(lambda t: (t.suggest_float("x", 0, 1), 1.0), n_trials=9)
    told = studies.importance(studies.readings.read("two aims"))
    assert (told.shares, told.why) == ({}, "of a study with several aims, nothing is the loss")


def test_deleting_a_study_leaves_the_models_of_those_below_it(studies, cells):
    models = studies._models
    for name in ("lab", "lab/rna", "lab/rna/1"):
        tuned(studies, cells, name, model_dir=models, max_trials=1, min_trials=1)
    plan = studies.readings.read("lab/rna").plan
    plan.cells("train").mkdir()
    (plan.cells("train") / "cells.h5ad").write_bytes(b"")
    (models / "lab" / "rna" / ".0.safetensors.abcd.part").write_bytes(b"")

    def left():
        return sorted(str(p.relative_to(models)) for p in models.rglob("*") if p.is_file())

    studies.delete("lab/rna")
    assert left() == ["lab/0.safetensors", "lab/rna/1/0.safetensors"]
    studies.delete("lab/rna/1")
    assert left() == ["lab/0.safetensors"]
    assert not (models / "lab" / "rna").exists()
    studies.delete("lab")
    assert list(models.iterdir()) == []


def test_of_two_studies_with_one_folder_the_last_to_go_takes_its_models(studies, cells, monkeypatch):
    asked = {"min_topics": 3, "max_topics": 6}
    for name in ("a//b", "..", "a/./b", "a/"):
        with pytest.raises(OptionError, match="no part of it empty"):
            studies.begin("demo:pbmc700", {"feature_type": "expression"}, {"study": name, **asked})
    monkeypatch.setattr(TuneOptions, "check", lambda self: None)  # as it was before
    for name in ("a/b", "a//b", "."):
        tuned(studies, cells, name, model_dir=studies._models, max_trials=1, min_trials=1)
    studies.delete(".")
    studies.delete("a//b")
    assert studies.model(studies.readings.read("a/b"), 0)
    studies.delete("a/b")
    assert list(studies._models.iterdir()) == []


ASKED = {"study": "a/b", "min_topics": 3, "max_topics": 6}


@pytest.mark.parametrize("state", ["waiting", "running", "silent"])
def test_a_study_that_a_job_has_yet_to_begin_is_neither_begun_nor_gone_on_with_again(studies, monkeypatch, state):
    monkeypatch.setattr(studies.workspace.dispatcher, "wake", lambda: None)
    key = studies.begin("demo:pbmc700", {"feature_type": "expression"}, ASKED)
    folder = studies.workspace.jobs_folder / key
    if state != "waiting":
        write_json(folder / "status.json", {"state": "running", "heartbeat": 1.0})
        write_json(folder / "process.json", this_process() if state == "running" else {"host": "afar"})
    assert jobs.read_status(folder).state == state
    with pytest.raises(TuningError, match="the study 'a/b' is run already"):
        studies.begin("demo:pbmc700", {"feature_type": "expression"}, ASKED)
    with pytest.raises(TuningError, match="the study 'a/b' is run already"):
        studies.go_on("a/b")
    assert studies.readings.jobs_of("a/b") == [key]


def test_of_two_who_go_on_at_once_at_two_servers_one_does(studies, monkeypatch):
    monkeypatch.setattr(Dispatcher, "wake", lambda self: None)
    key = studies.begin("demo:pbmc700", {"feature_type": "expression"}, ASKED)
    studies.workspace.dispatcher.withdraw(key)
    other, looked = Studies(Workspace(studies.workspace.settings)), StudyReadings.is_run_here
    both = threading.Barrier(2)

    def slowly(self, *asked):
        found = looked(self, *asked)
        time.sleep(0.5)
        return found

    def go_on(which):
        both.wait()
        try:
            return which.go_on("a/b")
        except TuningError as problem:
            return str(problem)

    monkeypatch.setattr(StudyReadings, "is_run_here", slowly)
    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(go_on, (studies, other)))
    assert told[1] == "the study 'a/b' is run already, or waits to be"
    assert studies.readings.jobs_of("a/b") == [told[0], key]
