"""What may be opened, and the life of a job that the dashboard starts."""

from __future__ import annotations

import json
import os
import signal

import anndata as ad
import h5py
import pytest
from scipy.io import mmwrite

from mira_app.settings import Settings
from mira_app.workspace import Workspace
from mira_core import jobs, starting
from mira_core.data.formats import split_part
from mira_core.data.simulate import simulate_expression
from mira_core.errors import DataError, JobError, OptionError

from ..helpers import make
from ..servers import wait_until


@pytest.fixture
def workspace(tmp_path):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    simulate_expression(60, 30, 3, seed=1).write_h5ad(data / "deep" / "cells.h5ad")
    return Workspace(Settings((data,), tmp_path / "workspace"))


def ended(workspace: Workspace, key: str, seconds: float = 100) -> jobs.Status:
    """Return how a job ended, waiting for it."""
    status = jobs.Status()

    def has_ended() -> bool:
        nonlocal status
        status = next(j.status for j in workspace.jobs() if j.key == key)
        return status.ended_already

    wait_until(has_ended, seconds, f"the end of {key}")
    return status


def test_demos_and_files_below_the_data_folders_are_listed(workspace):
    keys = [s.key for s in workspace.data.sources()]
    assert keys == ["demo:pbmc700", "demo:simulated", "0/deep/cells.h5ad"]
    described = workspace.data.describe("0/deep/cells.h5ad")
    assert (described.n_cells, described.n_features) == (60, 30)
    assert described.counts_layer().name is None
    assert described.flags() == ["highly_variable"]
    assert {c.name: c.kind for c in described.obs} == {"cell_type": "categorical", "batch": "categorical"}


def test_data_folders_with_one_name_are_told_apart(tmp_path):
    folders = tuple(tmp_path / place / "h5ad" for place in ("a", "b"))
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "sets.gmt").write_text(f"of {folder.parent.name}\tx\tgene\n")
    workspace = Workspace(Settings(folders, tmp_path / "workspace"))
    assert [(s.label, s.key) for s in workspace.data.browse("").folders] == [("h5ad (1)", "0"), ("h5ad (2)", "1")]
    found = workspace.data.feature_sets()
    assert {label: path.parent for label, path in found.items()} == {
        "h5ad (1)/sets.gmt": folders[0], "h5ad (2)/sets.gmt": folders[1],
    }  # fmt: skip


def test_a_file_without_x_is_described(workspace):
    path = workspace.data.path_of("0/deep/cells.h5ad")
    cells = simulate_expression(60, 30, 3, seed=1)
    cells.layers["counts"], cells.X = cells.X, None
    cells.write_h5ad(path)
    os.utime(path, (2, 2))
    described = workspace.data.describe("0/deep/cells.h5ad")
    assert [x.name for x in described.layers] == ["counts"]
    assert described.counts_layer().name == "counts"


def test_a_changed_file_is_described_anew(workspace):
    path = workspace.data.path_of("0/deep/cells.h5ad")
    assert workspace.data.describe("0/deep/cells.h5ad").n_cells == 60
    simulate_expression(61, 30, 3, seed=1).write_h5ad(path)
    os.utime(path, (1, 1))
    assert workspace.data.describe("0/deep/cells.h5ad").n_cells == 61


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
            workspace.data.path_of(key)
    assert all("link" not in s.key and "secret" not in s.key for s in workspace.data.sources())


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
    wait_until(lambda: jobs.read_records(workspace.folder_of(key))[0], 60, "it trains")
    workspace.stop(key)
    assert ended(workspace, key).state == "stopped"
    assert workspace.cells(key).n_obs == 60


def test_a_job_killed_from_outside_is_told_as_died(workspace):
    key = workspace.submit("0/deep/cells.h5ad", {"feature_type": "expression", "num_epochs": 100_000})
    folder = workspace.folder_of(key)
    wait_until(lambda: jobs.read_records(folder)[0], 60, "it trains")
    os.kill(json.loads((folder / "process.json").read_text())["pid"], signal.SIGKILL)
    assert ended(workspace, key).state == "died"


def run_instead(monkeypatch, program: str) -> None:
    """Let every process that is started be this program."""
    monkeypatch.setattr("sys.executable", program)
    starter = starting.Starter()
    monkeypatch.setattr(starting, "shared", lambda: starter)


def test_a_process_that_cannot_begin_is_told_with_its_log(workspace, monkeypatch):
    run_instead(monkeypatch, "/bin/false")
    key = workspace.submit("demo:simulated", {"feature_type": "expression"})
    status = ended(workspace, key)
    assert status.state == "failed"
    assert "before it began" in status.error["message"]


def test_wrong_options_start_nothing(workspace):
    with pytest.raises(OptionError, match="num_topics"):
        workspace.submit("demo:simulated", {"feature_type": "expression", "num_topics": 1})
    assert workspace.jobs() == []


def test_names_of_runs_make_safe_folders(workspace, monkeypatch):
    run_instead(monkeypatch, "/bin/true")
    key = workspace.submit("demo:simulated", {"feature_type": "expression"}, name="../<b>Ünï / run</b>")
    assert (workspace.jobs_folder / key).parent == workspace.jobs_folder
    assert workspace.folder_of(key).is_dir()
    assert workspace.jobs()[0].spec["name"] == "../<b>Ünï / run</b>"
    workspace.submit("demo:simulated", {"feature_type": "expression"}, name="../<b>Ünï / run</b>")
    assert len(workspace.labels()) == 2  # also with one name in one second


# --- every format ---------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path) -> Workspace:
    """Data sets in many formats, and files that are none."""
    data = tmp_path / "data"
    data.mkdir()
    cells = simulate_expression(60, 30, 3, seed=1)
    with h5py.File(data / "two.h5mu", "w") as f:
        ad.io.write_elem(f, "mod/rna", cells)
        ad.io.write_elem(f, "mod/<b>atac", cells[:, :20].copy())
        ad.io.write_elem(f, "obs", cells.obs[[]])
    with h5py.File(data / "molecule_info.h5", "w") as f:
        f["count"] = [1]
    cells.copy().write_zarr(data / "cells.zarr")
    folder = data / "sample 1" / "filtered_feature_bc_matrix"
    folder.mkdir(parents=True)
    mmwrite(folder / "matrix.mtx", cells.X.T)
    (folder / "barcodes.tsv").write_text("\n".join(cells.obs_names))
    (folder / "genes.tsv").write_text("\n".join(f"{n}\t{n}" for n in cells.var_names))
    make(cells, num_topics=3).write_ondisk_dataset(cells, data / "ondisk")
    (data / "notes.txt").write_text("x")
    (data / "cut.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n")
    (data / ".hidden").mkdir()
    cells.write_h5ad(data / ".hidden" / "cells.h5ad")
    return Workspace(Settings((data,), tmp_path / "workspace"))


KEYS = ["0/cells.zarr", "0/ondisk", "0/sample 1/filtered_feature_bc_matrix", "0/two.h5mu#<b>atac", "0/two.h5mu#rna"]


def test_each_data_set_of_any_format_is_one_entry(many):
    listed = {s.key: s for s in many.data.sources() if not s.key.startswith("demo:")}
    assert sorted(listed) == sorted([*KEYS, "0/cut.h5ad"])
    assert listed["0/two.h5mu#rna"].label == "two.h5mu#rna"
    assert [k for k, s in listed.items() if not s.bytes] == ["0/cells.zarr"]
    with pytest.raises(DataError, match="cut.h5ad cannot be read"):
        many.data.describe("0/cut.h5ad")


@pytest.mark.parametrize("key", KEYS)
def test_every_entry_is_described_and_named_for_a_job(many, key):
    described = many.data.describe(key)
    assert (described.n_cells, described.n_features) == (60, 20 if "atac" in key else 30)
    assert described.counts_layer() is not None
    path, part = split_part(many.data.data_of(key))
    assert path == many.data.path_of(key)
    assert part == (key.partition("#")[2] or None)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["0/ondisk", "0/two.h5mu#<b>atac"])
def test_a_job_of_any_entry_runs(many, key):
    name = many.submit(key, {"feature_type": "expression", "num_topics": 3, "num_epochs": 2})
    assert ended(many, name).state == "finished", many.log(name)
    assert many.cells(name).n_obs == 60


def test_a_folder_that_is_itself_the_data_is_an_entry(many, tmp_path):
    here = Workspace(Settings((many.data.path_of("0/cells.zarr"),), tmp_path / "workspace"))
    assert [s.key for s in here.data.sources()][2:] == ["0/."]
    assert here.data.describe("0/.").n_cells == 60


def test_no_part_and_no_link_leads_out_of_the_data_folders(many, tmp_path):
    data = many.settings.data[0]
    beside = tmp_path / "data-of-others"
    folder = many.data.path_of("0/sample 1/filtered_feature_bc_matrix")
    folder.rename(beside)
    (data / "linked").symlink_to(beside)
    partly = data / "partly"
    partly.mkdir()
    for name in ("matrix.mtx", "barcodes.tsv"):
        (partly / name).write_bytes((beside / name).read_bytes())
    (partly / "genes.tsv").symlink_to(beside / "genes.tsv")
    chunk = next(p for p in (data / "cells.zarr" / "X").rglob("0*") if p.is_file())
    chunk.rename(tmp_path / "chunk")
    chunk.symlink_to(tmp_path / "chunk")
    for key in (
        "0/linked",
        "0/partly",
        "0/cells.zarr",
        "0/../data-of-others",
        "0/../data-of-others#x",
        "0/two.h5mu#x/../../../data-of-others",
        "0/sample 1",
        "0/notes.txt",
        "0/two.h5mu/x",
        "0/#rna",
    ):
        with pytest.raises(DataError):
            many.data.describe(key)
        if "two.h5mu#" not in key:
            with pytest.raises(DataError, match="there is no data set"):
                many.data.path_of(key)
    assert "0/linked" not in [s.key for s in many.data.sources()]


def test_links_within_the_data_folders_are_followed(many):
    data = many.settings.data[0]
    (data / "again.h5mu").symlink_to(data / "two.h5mu")
    assert "0/again.h5mu#rna" in [s.key for s in many.data.sources()]
    assert many.data.describe("0/again.h5mu#rna").n_features == 30
