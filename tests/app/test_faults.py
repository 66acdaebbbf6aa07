"""What a power cut, a full disk, a folder that cannot be written to or is away, or a storage that dies, may take.

The power is cut before each change that an action makes to the disk, one after the other. What the action had reported
as kept must be there after it, and whatever else is there must be whole.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mira_app.serving.accounts import Accounts
from mira_app.serving.people import Person
from mira_app.serving.upgrading import prepare
from mira_app.settings import Settings
from mira_app.workspace import Workspace
from mira_core import files, jobs
from mira_core.data import Recipe
from mira_core.errors import JobError, MiraError
from mira_core.files import write_json

MODEL = {"feature_type": "expression", "num_topics": 3, "num_epochs": 1}
CUT = 99  # status of a process whose power was cut
# What changes a disk, as `sys.addaudithook` hears of it.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")


def cut_at(number: int, action: Callable[[], object]) -> int:
    """Do something in a process that ends before its change of the disk with this number; return its status."""

    def work() -> None:
        made, own = 0, os.getpid()

        def hear(event: str, arguments: tuple) -> None:
            nonlocal made
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in CHANGES) and os.getpid() == own:
                made += 1
                if made > number:
                    os._exit(CUT)

        sys.addaudithook(hear)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def quiet(folder: Path) -> Workspace:
    """Return a workspace in which nothing begins by itself."""
    workspace = Workspace(Settings((), folder)).seen_by(lambda: Person("ann", "user"))
    workspace.dispatcher.wake = lambda: None
    return workspace


def end(workspace: Workspace, key: str, state: str) -> None:
    with workspace.dispatcher._changes:
        workspace.dispatcher._path(key).unlink(missing_ok=True)
    write_json(workspace.jobs_folder / key / "status.json", {"state": state, "ended": 1.0})


def is_whole(folder: Path) -> None:
    """Check that every file of JSON can be read, and every job that is listed too."""
    for path in folder.rglob("*.json"):
        if not path.name.startswith("."):
            json.loads(path.read_bytes())
    workspace = quiet(folder)
    for entry in workspace.dispatcher.entries():
        assert entry.person == "ann"
    for job in workspace.jobs():
        assert job.spec["owner"] == "ann"


ACTIONS = ("submit", "resume", "stop", "share", "delete", "prefer", "keep_recipe", "set_account", "upgrade", "rerun")


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_a_power_cut_at_any_write_loses_nothing_that_was_kept(tmp_path, action):
    start = tmp_path / "start"
    workspace = quiet(start)
    kept = workspace.submit("demo:pbmc700", MODEL, "kept")
    ended = workspace.submit("demo:pbmc700", MODEL, "ended")
    end(workspace, ended, "stopped")
    recipe = Recipe().plus("filter_cells", min_counts=5)
    Accounts(start / "users.json").set("ann", "a long password")

    def do(folder: Path) -> None:
        w = quiet(folder)
        {
            "submit": lambda: w.submit("demo:pbmc700", MODEL, "new"),
            "resume": lambda: w.resume(ended),
            "rerun": lambda: w.rerun(ended),
            "stop": lambda: w.stop(kept),
            "share": lambda: w.share(kept, ["bob"]),
            "delete": lambda: w.delete(ended),
            "prefer": lambda: w.dispatcher.prefer(kept, 5),
            "keep_recipe": lambda: w.keep_recipe(recipe, "cells"),
            "set_account": lambda: Accounts(folder / "users.json").set("bob", "another password"),
            "upgrade": lambda: prepare(folder),
        }[action]()

    cuts = 0
    while True:
        folder = tmp_path / "cut"
        shutil.copytree(start, folder)
        status = cut_at(cuts, lambda folder=folder: do(folder))
        is_whole(folder)
        after = quiet(folder)
        states = {j.spec["name"]: j.status.state for j in after.jobs()}
        queued = {e.key for e in after.dispatcher.entries()}
        assert Accounts(folder / "users.json").check("ann", "a long password")
        # What was there before is there, in the state before the action or that after it.
        assert states["kept"] in ("waiting", "stopped") if action == "stop" else states["kept"] == "waiting"
        assert kept in queued or states["kept"] == "stopped", "one that waits is in the queue, or it would for ever"
        if action != "delete":
            assert "ended" in states
        for job in after.jobs():
            if job.status.state == "waiting":
                assert job.key in queued
        # Whatever was left half done does not hinder doing it again.
        if status == CUT and action not in ("delete", "stop", "resume"):
            do(folder)
            is_whole(folder)
        shutil.rmtree(folder)
        if status != CUT:
            assert status == 0
            break
        cuts += 1
    assert cuts >= 2, "it was cut at nothing"


def test_what_is_moved_into_place_was_flushed_and_so_is_its_folder(tmp_path, monkeypatch):
    told = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (told.append(("flush", os.readlink(f"/proc/self/fd/{d}"))), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append(("move", str(b))), replace(a, b)))
    files.write_json(tmp_path / "a.json", {})
    assert [what for what, _ in told] == ["flush", "move", "flush"]
    assert told[-1][1] == str(tmp_path)


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def little(tmp_path):
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_a_full_disk_is_said_and_leaves_nothing_half_written(little, monkeypatch):
    monkeypatch.setattr("mira_app.disk.LEAST_FREE", 0)
    workspace = quiet(little / "workspace")
    kept = workspace.submit("demo:pbmc700", MODEL, "kept")
    fill(little)
    before = {p for p in little.rglob("*") if p.is_file()}
    for ask in (
        lambda: workspace.submit("demo:pbmc700", MODEL, "new"), lambda: workspace.share(kept, ["bob"]),
        lambda: workspace.keep_recipe(Recipe().plus("filter_cells", min_counts=5), "cells"),
    ):  # fmt: skip
        with pytest.raises((MiraError, OSError), match="No space left"):
            ask()
    assert {p for p in little.rglob("*") if p.is_file()} - before <= {workspace.audit.path}
    assert [j.spec["name"] for j in workspace.jobs()] == ["kept"]
    (little / "filler").unlink()
    workspace.submit("demo:pbmc700", MODEL, "new")
    assert {j.spec["name"] for j in workspace.jobs()} == {"kept", "new"}
    monkeypatch.setattr("mira_app.disk.LEAST_FREE", 2**28)
    with pytest.raises(JobError, match="disk of the workspace is full"):
        workspace.submit("demo:pbmc700", MODEL, "another")


def test_a_training_that_finds_the_disk_full_says_so_and_goes_on_when_there_is_room(little):
    folder = little / "job"
    jobs.write_spec(folder, data="demo:pbmc700", model={**MODEL, "num_epochs": 3}, embedding=False)
    fill(little)
    with open(little / "filler", "r+b") as filler:
        filler.truncate(os.path.getsize(little / "filler") - 65536)  # enough to begin
    ran = [sys.executable, "-m", "mira_core.run", str(folder)]
    first = subprocess.run(ran, capture_output=True, text=True, timeout=300)
    assert first.returncode
    assert "No space left" in first.stderr + str(jobs.read_status(folder).error)
    assert not (folder / "result" / "model.safetensors").exists()
    (little / "filler").unlink()
    assert jobs.why_not_resume(folder) == ""
    second = subprocess.run(ran, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert jobs.read_status(folder).state == "finished"


def test_a_folder_that_is_away_or_closed_is_said(tmp_path):
    data = tmp_path / "share"
    data.mkdir()
    workspace = Workspace(Settings((data,), tmp_path / "workspace"))
    assert workspace.data.browse("0").sources == []
    data.rmdir()
    with pytest.raises(MiraError, match="there is no folder '0'"):
        workspace.data.browse("0")
    assert [s.key for s in workspace.data.sources()] == ["demo:pbmc700", "demo:simulated"]
    with pytest.raises(MiraError, match="there is no data set"):
        workspace.submit("0/cells.h5ad", MODEL)
