"""Browsing folders; comparing jobs, going on with them and trying them again."""

from __future__ import annotations

import json
import time

import pytest

from mira_app.settings import Settings
from mira_app.workspace import WITH_TOPICS, Workspace
from mira_core import files, jobs
from mira_core.data import Recipe
from mira_core.data.simulate import simulate_expression
from mira_core.errors import DataError, JobError

from ..servers import wait_until
from .test_workspace import ended

SMALL = {"feature_type": "expression", "num_topics": 3, "hidden": 8, "num_epochs": 2, "seed": 0}


@pytest.fixture
def workspace(tmp_path):
    data = tmp_path / "data"
    (data / "deep" / "er").mkdir(parents=True)
    simulate_expression(60, 30, 3, seed=1).write_h5ad(data / "deep" / "cells.h5ad")
    (data / "notes.txt").write_text("no data")
    return Workspace(Settings((data,), tmp_path / "workspace"))


def labels(listing) -> tuple[list[str], list[str]]:
    return [s.label for s in listing.folders], [s.label for s in listing.sources]


# --- folders --------------------------------------------------------------------------------------


def test_folders_are_shown_one_at_a_time(workspace):
    folders, demos = labels(workspace.data.browse())
    assert folders == ["data"]
    assert len(demos) == 2
    assert labels(workspace.data.browse("0")) == (["deep"], [])
    assert labels(workspace.data.browse("0/deep")) == (["er"], ["cells.h5ad"])
    (found,) = workspace.data.browse("0/deep").sources
    assert found.key == "0/deep/cells.h5ad"
    assert workspace.data.describe(found.key).n_cells == 60


def test_uploads_are_a_folder_as_soon_as_there_are_any(workspace):
    workspace.settings.uploads.mkdir(parents=True)
    simulate_expression(50, 30, 3, seed=1).write_h5ad(workspace.settings.uploads / "mine.h5ad")
    assert labels(workspace.data.browse())[0] == ["data", "Uploads"]
    (found,) = workspace.data.browse("1").sources
    assert workspace.data.describe(found.key).n_cells == 50


def test_no_folder_outside_can_be_looked_into(workspace, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    simulate_expression(50, 30, 3, seed=1).write_h5ad(outside / "secret.h5ad")
    (workspace.settings.data[0] / "way").symlink_to(outside)
    (workspace.settings.data[0] / "secret.h5ad").symlink_to(outside / "secret.h5ad")
    assert labels(workspace.data.browse("0")) == (["deep"], [])
    for place in ("0/way", "0/..", "0/../outside", "0//etc", "1/etc", "-1", "x", "7", "0/deep/cells.h5ad", "0/\0"):
        with pytest.raises(DataError, match="there is no folder"):
            workspace.data.browse(place)


# --- jobs -----------------------------------------------------------------------------------------


def job(workspace: Workspace, name: str, state: str = "finished", error: dict | None = None, **model) -> str:
    """A job that is on the disk and has not run."""
    folder = workspace.jobs_folder / name
    jobs.write_spec(folder, data="demo:simulated", model={**SMALL, **model}, name=name, test_size=0.2)
    (folder / "status.json").write_text(json.dumps({"state": state, "error": error or {}, "ended": time.time()}))
    return name


def test_what_differs_between_jobs_is_told_and_nothing_else(workspace):
    a, b, c = job(workspace, "a"), job(workspace, "b", num_topics=9), job(workspace, "c", cost_beta=2.0)
    frame = workspace.differences([a, b, c]).set_index("option")
    assert list(frame.index) == ["num_topics", "cost_beta"]
    assert frame.loc["num_topics"].tolist() == ["3", "9", "3"]
    assert frame.loc["cost_beta"].tolist() == ["not given", "not given", "2.0"]
    assert not len(workspace.differences([a, a]))


def test_a_job_that_diverged_is_tried_again_with_safer_options(workspace):
    error = {"type": "TrainingError", "message": "the loss is no longer finite"}
    failed = job(workspace, "failed", "failed", error, max_learning_rate=0.3)
    assert "a third of the learning rate (0.1)" in workspace.retry(failed).why
    again = workspace.rerun(failed)
    spec = jobs.read_spec(workspace.folder_of(again))
    assert spec["model"] == {**SMALL, "max_learning_rate": pytest.approx(0.1)}
    assert (spec["data"], spec["name"], spec["test_size"]) == ("demo:simulated", "failed", 0.2)
    assert ended(workspace, again).state == "finished"


def test_a_stopped_job_goes_on_where_it_was(workspace):
    key = workspace.submit("demo:simulated", {**SMALL, "num_epochs": 100}, "long")
    wait_until(lambda: jobs.read_status(workspace.folder_of(key)).epoch >= 3, 60, "it trains")
    workspace.stop(key)
    stopped = ended(workspace, key)
    assert (stopped.state, stopped.epoch < 100) == ("stopped", True)
    workspace.resume(key)
    assert ended(workspace, key).state == "finished"
    records, _ = jobs.read_records(workspace.folder_of(key))
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == list(range(1, 101))
    with pytest.raises(JobError, match="finished"):
        workspace.resume(key)


def test_what_has_ended_is_read_once_and_again_when_it_changes(workspace, monkeypatch):
    folder = workspace.folder_of(key := job(workspace, "one"))
    read: list[str] = []
    read_spec = jobs.read_spec
    monkeypatch.setattr(jobs, "read_spec", lambda folder: read.append(folder.name) or read_spec(folder))
    for _ in range(3):
        assert list(workspace.labels(["finished"]).values()) == [key]
    assert read == [key]
    (status := json.loads((folder / "status.json").read_text()))["state"] = "failed"
    files.write_json(folder / "status.json", status)
    assert workspace.labels(["finished"]) == {}
    (spec := json.loads((folder / "job.json").read_text()))["name"] = "other"
    files.write_json(folder / "job.json", spec)
    assert [label.split(" · ")[0] for label in workspace.labels(["failed"])] == ["other"]
    assert workspace.log(key) == ""
    (folder / "log.txt").write_text("beginning" + "." * 30_000 + "end")
    assert workspace.log(key) == "." * 19_997 + "end"
    workspace.delete(key)
    assert workspace.labels() == {}


# --- before a job ---------------------------------------------------------------------------------


def test_learning_rates_are_tested_in_a_process_and_the_curve_is_read(workspace):
    key = workspace.test_learning_rates("demo:simulated", {**SMALL, "max_learning_rate": 0.2})
    assert workspace.curve(key) is None
    assert ended(workspace, key).state == "finished"
    curve = workspace.curve(key)
    assert len(curve["rates"]) > 20
    assert curve["bounds"][0] < curve["bounds"][1]
    assert workspace.is_of(key, "demo:simulated")
    assert not workspace.is_of(key, "demo:pbmc700")
    assert key not in workspace.labels().values()  # it is no run


def test_time_and_memory_are_estimated(workspace):
    told = workspace.estimate("demo:simulated", {**SMALL, "num_epochs": 100}, 0.1)
    assert "steps" in told
    assert "GB</b> of memory" in told
    with pytest.raises(JobError, match="num_topics"):
        workspace.estimate("demo:simulated", {**SMALL, "num_topics": 1})


# --- recipes --------------------------------------------------------------------------------------

CELLS = "0/deep/cells.h5ad"
RECIPE = Recipe(
    [{"step": "filter_cells", "min_counts": 1100}, {"step": "highly_variable", "n_top": 20, "column": "chosen"}]
)


def test_a_recipe_is_kept_under_a_name_of_its_own(workspace):
    looks = workspace.looks
    key = looks.keep(RECIPE, "<b>cells</b>")
    assert looks.keep(RECIPE, "other cells") == key
    assert looks.keep(Recipe(), "cells") == ""
    other = looks.keep(Recipe([{"step": "binarise"}]), "peaks")
    assert looks.recipe(key) == RECIPE
    assert looks.recipe("") == Recipe()
    assert list(looks.recipes().values()) == [other, key]
    assert next(iter(looks.recipes())).startswith("peaks · ")
    (looks.folder / "aaaaaaaaaaaa.json").write_text("{")
    assert list(looks.recipes().values()) == [other, key]


@pytest.mark.parametrize("key", ["../job", "0123456789ab", "/etc/passwd", "a" * 12])
def test_a_recipe_that_is_none_is_refused(workspace, key):
    with pytest.raises(DataError, match="there is no recipe"):
        workspace.looks.recipe(key)


def test_data_are_described_as_the_recipe_leaves_them(workspace):
    seen = workspace.data.look(CELLS, RECIPE)
    assert 0 < seen.description.n_cells < seen.opened[0] == 60
    assert workspace.data.prepared(CELLS, RECIPE) == seen.description
    assert workspace.data.look(CELLS, RECIPE) is seen  # not looked at again
    assert workspace.data.prepared(CELLS, Recipe()).n_cells == 60
    with pytest.raises(DataError, match="no cells of 60 are left.*Change the recipe on the Data page"):
        workspace.data.prepared(CELLS, Recipe([{"step": "filter_cells", "min_counts": 1e9}]))


def test_a_file_that_changes_is_looked_at_again(workspace):
    path = workspace.data.path_of(CELLS)
    assert workspace.data.look(CELLS, Recipe()).opened == (60, 30)
    simulate_expression(70, 30, 3, seed=2).write_h5ad(path)
    assert workspace.data.look(CELLS, Recipe()).opened == (70, 30)


def test_what_cannot_be_looked_at_says_why_and_is_tried_again(workspace):
    path = workspace.data.path_of(CELLS)
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(DataError, match="cells.h5ad"):
        workspace.data.look(CELLS, Recipe())
    path.write_bytes(whole)
    assert workspace.data.look(CELLS, Recipe()).opened == (60, 30)


def test_a_job_does_the_recipe_and_so_do_test_estimate_and_rerun(workspace):
    n = workspace.data.look(CELLS, RECIPE).description.n_cells
    key = workspace.submit(CELLS, {**SMALL, "highly_variable_key": "chosen"}, recipe=RECIPE)
    assert ended(workspace, key).state == "finished", workspace.log(key)
    assert workspace.cells(key).n_obs == n
    assert workspace.cells(key).var["chosen"].sum() == 20
    again = workspace.rerun(key)
    workspace.stop(again)
    assert workspace.is_of(again, CELLS, RECIPE)
    assert not workspace.is_of(again, CELLS)
    told = workspace.differences([key, workspace.submit(CELLS, SMALL)]).set_index("option")
    assert list(told.loc["recipe"]) == [str(RECIPE), "none"]
    assert "steps" in workspace.estimate(CELLS, {**SMALL, "highly_variable_key": "chosen"}, None, RECIPE)
    with pytest.raises(JobError, match="chosen"):
        workspace.estimate(CELLS, {**SMALL, "highly_variable_key": "chosen"})


def test_covariates_are_checked_as_the_recipe_leaves_them(workspace):
    path = workspace.data.path_of(CELLS)
    adata = simulate_expression(60, 30, 3, n_batches=2, seed=1)
    adata.obs["gaps"] = adata.obs["batch"].where(adata.obs["batch"].index != adata.obs_names[3])
    adata.write_h5ad(path)
    found = workspace.data.check_covariates(CELLS, Recipe(), ["gaps"], [])
    assert (found[0].code, found[0].severity) == ("missing_values", "error")
    recipe = Recipe([{"step": "drop_missing", "column": "gaps"}])
    assert "missing_values" not in {f.code for f in workspace.data.check_covariates(CELLS, recipe, ["gaps"], [])}
    assert workspace.data.check_covariates("demo:simulated", Recipe(), ["no such column"], []) == []


# --- jobs that are no trainings -------------------------------------------------------------------


def test_predictions_are_explored_and_no_trainings_and_tunings_are_neither(workspace):
    key = workspace.submit("demo:simulated", SMALL, embedding=False)
    assert ended(workspace, key).state == "finished", workspace.log(key)
    model = workspace.folder_of(key) / "result" / "model.safetensors"
    told = workspace.submit("demo:simulated", {}, "told", kind="predict", predict={"model": str(model)})
    few = {"study": "a", "storage": f"sqlite:///{workspace.settings.workspace}/s.db", "min_topics": 2, "max_topics": 9}
    options = {k: v for k, v in SMALL.items() if k not in ("num_topics", "seed")}
    tuning = workspace.submit("demo:simulated", options, kind="tune", tune={**few, "max_trials": 1, "min_trials": 1})
    workspace.stop(tuning)
    assert ended(workspace, told).state == "finished", workspace.log(told)
    ended(workspace, tuning)
    assert list(workspace.labels().values()) == [key]
    assert list(workspace.labels(("finished", "stopped"), WITH_TOPICS).values()) == [told, key]
    assert workspace.cells(told).n_obs == 1500
    with pytest.raises(JobError, match="the study .* is gone on with on the Tune page"):
        workspace.rerun(tuning)
