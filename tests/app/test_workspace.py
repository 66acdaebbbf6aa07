"""What may be opened, and the life of a job that the dashboard starts."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from mira_app.settings import Settings
from mira_app.workspace import Workspace
from mira_core import jobs
from mira_core.data.simulate import simulate_expression
from mira_core.errors import DataError, JobError, OptionError


@pytest.fixture
def workspace(tmp_path):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    simulate_expression(60, 30, 3, seed=1).write_h5ad(data / "deep" / "cells.h5ad")
    return Workspace(Settings((data,), tmp_path / "workspace"))


def ended(workspace: Workspace, key: str, seconds: float = 90) -> jobs.Status:
    deadline = time.monotonic() + seconds
    while True:
        status = next(j.status for j in workspace.jobs() if j.key == key)
        if status.ended_already or time.monotonic() > deadline:
            return status
        time.sleep(0.1)


def test_demos_and_files_below_the_data_folders_are_listed(workspace):
    keys = [s.key for s in workspace.sources()]
    assert keys == ["demo:pbmc700", "demo:simulated", "0/deep/cells.h5ad"]
    described = workspace.describe("0/deep/cells.h5ad")
    assert (described.n_cells, described.n_features) == (60, 30)
    assert described.counts_layer().name is None
    assert described.flags() == ["highly_variable"]
    assert {c.name: c.kind for c in described.obs} == {"cell_type": "categorical", "batch": "categorical"}


def test_a_file_without_x_is_described(workspace):
    path = workspace.path_of("0/deep/cells.h5ad")
    cells = simulate_expression(60, 30, 3, seed=1)
    cells.layers["counts"], cells.X = cells.X, None
    cells.write_h5ad(path)
    os.utime(path, (2, 2))
    described = workspace.describe("0/deep/cells.h5ad")
    assert [x.name for x in described.layers] == ["counts"]
    assert described.counts_layer().name == "counts"


def test_a_changed_file_is_described_anew(workspace):
    path = workspace.path_of("0/deep/cells.h5ad")
    assert workspace.describe("0/deep/cells.h5ad").n_cells == 60
    simulate_expression(61, 30, 3, seed=1).write_h5ad(path)
    os.utime(path, (1, 1))
    assert workspace.describe("0/deep/cells.h5ad").n_cells == 61


def test_nothing_outside_the_data_folders_can_be_opened(workspace, tmp_path):
    data = workspace.settings.data[0]
    beside = tmp_path / "data-of-others"
    beside.mkdir()
    secret = beside / "secret.h5ad"
    secret.write_bytes(b"x")
    (data / "link.h5ad").symlink_to(secret)
    (data / "folder").symlink_to(beside)
    for key in (
        "0/../data-of-others/secret.h5ad",
        f"0/{secret}",
        f"0//{secret}",
        "0/link.h5ad",
        "0/folder/secret.h5ad",
        "1/deep/cells.h5ad",
        "-1/deep/cells.h5ad",
        "0/deep",
        "0/",
        "",
        "deep/cells.h5ad",
        "0/deep/cells.h5ad\0",
    ):
        with pytest.raises(DataError, match="there is no data set"):
            workspace.path_of(key)
    assert all("link" not in s.key and "secret" not in s.key for s in workspace.sources())


@pytest.mark.parametrize("key", ["..", "../..", "a/b", "", ".", "none", "/etc"])
def test_jobs_are_found_in_the_workspace_only(workspace, key):
    with pytest.raises(JobError, match="there is no job"):
        workspace.folder_of(key)


@pytest.mark.slow
def test_a_submitted_job_runs_on_its_own_and_gives_topics(workspace):
    key = workspace.submit("0/deep/cells.h5ad", {"feature_type": "expression", "num_topics": 3, "num_epochs": 3})
    (job,) = workspace.jobs()
    assert job.key == key
    assert job.spec["name"] == "cells"
    with pytest.raises(JobError, match="no topics yet"):
        workspace.cells(key)
    status = ended(workspace, key)
    assert status.state == "finished", workspace.log(key)
    cells = workspace.cells(key)
    assert cells.obsm["X_topic_compositions"].shape == (60, 3)
    assert cells.obsm["X_umap"].shape == (60, 2)
    assert cells.X is None  # the counts stay where they are
    assert workspace.cells(key) is cells  # read once


def test_a_job_is_stopped_on_request(workspace):
    key = workspace.submit("0/deep/cells.h5ad", {"feature_type": "expression", "num_topics": 3, "num_epochs": 100_000})
    deadline = time.monotonic() + 60
    while not jobs.read_records(workspace.folder_of(key))[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    workspace.stop(key)
    assert ended(workspace, key).state == "stopped"
    assert workspace.cells(key).n_obs == 60


def test_a_job_killed_from_outside_is_told_as_died(workspace):
    key = workspace.submit("0/deep/cells.h5ad", {"feature_type": "expression", "num_epochs": 100_000})
    folder = workspace.folder_of(key)
    deadline = time.monotonic() + 60
    while not jobs.read_records(folder)[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(json.loads((folder / "process.json").read_text())["pid"], signal.SIGKILL)
    assert ended(workspace, key, 20).state == "died"


def test_a_process_that_cannot_begin_is_told_with_its_log(workspace, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    key = workspace.submit("demo:simulated", {"feature_type": "expression"})
    status = ended(workspace, key, 20)
    assert status.state == "failed"
    assert "before it began" in status.error["message"]


def test_wrong_options_start_nothing(workspace):
    with pytest.raises(OptionError, match="num_topics"):
        workspace.submit("demo:simulated", {"feature_type": "expression", "num_topics": 1})
    assert workspace.jobs() == []


def test_names_of_runs_make_safe_folders(workspace, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/true")
    key = workspace.submit("demo:simulated", {"feature_type": "expression"}, name="../<b>Ünï / run</b>")
    assert (workspace.jobs_folder / key).parent == workspace.jobs_folder
    assert workspace.folder_of(key).is_dir()
    assert workspace.jobs()[0].spec["name"] == "../<b>Ünï / run</b>"
    workspace.submit("demo:simulated", {"feature_type": "expression"}, name="../<b>Ünï / run</b>")
    assert len(workspace.labels()) == 2  # also with one name in one second
