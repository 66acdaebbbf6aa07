"""Workspaces of other versions; and what nothing needs in one."""

from __future__ import annotations

import json
import os
import time
import zipfile

import pytest

from mira_app.disk import remove, unneeded
from mira_app.serving import doctor, upgrading
from mira_app.serving.upgrading import FORMAT, WorkspaceError, prepare
from mira_app.settings import Settings
from mira_app.workspace import Workspace
from mira_core import cli, jobs, processes
from mira_core.files import write_json

MODEL = {"feature_type": "expression", "num_topics": 3}


@pytest.fixture
def old(tmp_path):
    """A workspace as it was before there was a queue: a job that runs, one that waits, one that has ended."""
    for name in ("running", "waiting", "finished"):
        folder = tmp_path / "jobs" / name
        jobs.write_spec(folder, data="demo:pbmc700", model=MODEL)
        if name != "waiting":
            write_json(folder / "status.json", {"state": name, "started": time.time(), "heartbeat": time.time()})
    write_json(tmp_path / "jobs" / "running" / "process.json", processes.this_process())
    (tmp_path / "recipes").mkdir()
    write_json(tmp_path / "recipes" / "0123456789ab.json", {"steps": [], "label": "cells", "created": 1.0})
    return tmp_path


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def test_a_new_workspace_is_of_this_format_and_needs_nothing_again(tmp_path):
    assert prepare(tmp_path / "new") == ""
    before = content(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "format.json").read_text())["format"] == FORMAT
    assert prepare(tmp_path / "new") == ""
    assert content(tmp_path / "new") == before


def test_an_old_one_is_brought_up_to_date_and_kept_as_it_was(old):
    before = content(old)
    assert "from format 1 to 2" in prepare(old)
    (backup,) = (old / "backups").iterdir()
    assert backup.stat().st_mode & 0o077 == 0
    with zipfile.ZipFile(backup) as kept:
        assert {name: kept.read(name) for name in kept.namelist()} == {str(k): v for k, v in before.items()}
    workspace = Workspace(Settings(workspace=old))
    entries = {e.key: e for e in workspace.dispatcher.entries()}
    assert entries.keys() == {"running", "waiting"}
    assert entries["waiting"].started is None
    assert entries["running"].started is not None
    assert workspace.recipes()
    assert prepare(old) == ""


def test_an_upgrade_that_breaks_off_is_done_again(old, monkeypatch):
    def breaks(_):
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setitem(upgrading.STEPS, 1, breaks)
        with pytest.raises(OSError, match="full"):
            prepare(old)
    assert "from format 1 to 2" in prepare(old)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 3}', "newer version of mira"),
        ("{", "is damaged"),
        ('{"format": "x"}', "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_a_newer_or_damaged_one_is_refused_and_left_alone(old, text, message):
    (old / "format.json").write_text(text)
    before = content(old)
    with pytest.raises(WorkspaceError, match=message):
        prepare(old)
    assert content(old) == before
    told = [c for c in doctor._workspace(Settings(workspace=old)) if c.about == "format"]
    assert [c.state for c in told] == [doctor.WRONG]


def test_the_doctor_says_that_an_old_one_will_be_changed(old):
    (told,) = (c for c in doctor._workspace(Settings(workspace=old)) if c.about == "format")
    assert told.state == doctor.WARNING
    assert not (old / "format.json").exists()


# --- what can go ------------------------------------------------------------------------------------------------------


def test_only_what_nothing_needs_can_go(old, capsys):
    long_ago = time.time() - 30 * 86400
    files = {
        "jobs/finished/exports/finished-report.html": True, "jobs/finished/checkpoint.safetensors": True,
        "jobs/.deleted-x/result/model.safetensors": True, "uploads/ann/.0123.part": True,
        "jobs/finished/result/model.safetensors": False, "jobs/finished/result/cells.h5ad": False,
        "jobs/running/checkpoint.safetensors": False, "jobs/waiting/checkpoint.safetensors": False,
        "uploads/ann/cells.h5ad": False, "studies/models/a/1.safetensors": False, "studies.db": False,
    }  # fmt: skip
    for name in files:
        path = old / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (long_ago, long_ago))
    fresh = old / "jobs" / "finished" / "exports" / "finished-data.h5ad"
    fresh.write_bytes(bytes(1000))
    assert cli.main(["clean", "--workspace", str(old)]) == 0
    assert "mira clean --remove" in capsys.readouterr().out
    assert all((old / name).exists() for name in files), "they were only listed"
    settings = Settings(workspace=old)
    assert remove(unneeded(settings)) == 4000
    assert {name: not (old / name).exists() for name in files} == files
    assert fresh.exists()
    assert unneeded(settings) == []
