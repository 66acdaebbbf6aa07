"""Jobs on a dask.distributed cluster: a real scheduler and workers, as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from mira_app.engines import DaskEngine, LocalEngine, of
from mira_app.settings import Settings
from mira_app.workspace import Workspace
from mira_core import jobs
from mira_core.errors import JobError

from ..servers import free_port, wait_until

DASK = [
    sys.executable,
    "-c",
    "import runpy, sys; runpy.run_module('distributed.cli.' + sys.argv.pop(1), None, '__main__')",
]
MODEL = {"feature_type": "expression", "num_topics": 3, "num_epochs": 3}


def test_the_setting_says_what_runs_jobs():
    assert isinstance(of(""), LocalEngine)
    assert isinstance(of("tcp://somewhere:8786"), DaskEngine)


def test_a_scheduler_that_is_away_is_said(tmp_path):
    with pytest.raises(JobError, match="does not answer"):
        DaskEngine(f"tcp://127.0.0.1:{free_port()}").start("a", tmp_path, (), False)


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and a worker that runs one job at a time; yields the scheduler's file and the processes."""
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [
            *DASK,
            "dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            str(free_port()),
            "--no-dashboard",
            "--scheduler-file",
            str(file),
        ],
        **quiet,
    )
    wait_until(file.exists, 30, "the scheduler's file")
    begun = []

    def worker() -> subprocess.Popen[bytes]:
        command = [*DASK, "dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard",
                   "--local-directory", str(tmp_path / "dask")]  # fmt: skip
        begun.append(subprocess.Popen(command, **quiet, start_new_session=True))
        return begun[-1]

    yield file, worker
    for process in begun:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    scheduler.kill()
    scheduler.wait()
    subprocess.run(["pkill", "-KILL", "-f", f"mira_core.run {tmp_path}"], check=False)


@pytest.mark.slow
def test_jobs_run_on_a_cluster_and_stop_there(tmp_path, cluster):
    file, worker = cluster
    worker()
    workspace = Workspace(Settings((), tmp_path / "workspace", dask=str(file), jobs=2))
    keys = [workspace.submit("demo:pbmc700", MODEL), workspace.submit("demo:pbmc700", {**MODEL, "num_epochs": 100_000})]

    def state(key: str) -> str:
        return jobs.read_status(workspace.jobs_folder / key).state

    wait_until(lambda: state(keys[0]) == "finished", 120, "a job on the cluster")
    wait_until(lambda: jobs.read_status(workspace.jobs_folder / keys[1]).step > 0, 60, "the second one")
    ran_by = json.loads((workspace.jobs_folder / keys[1] / "process.json").read_text())["pid"]
    workspace.stop(keys[1])
    wait_until(lambda: state(keys[1]) == "stopped", 60, "the end of the second")
    wait_until(lambda: not workspace.dispatcher.entries(), 20, "an empty queue")
    assert not any(map(workspace.dispatcher.engine.knows, keys))
    assert ran_by != os.getpid()
    assert "finished after" in (workspace.jobs_folder / keys[0] / "log.txt").read_text()


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_goes_on_on_another(tmp_path, cluster):
    file, worker = cluster
    first = worker()
    workspace = Workspace(Settings((), tmp_path / "workspace", dask=str(file)))
    key = workspace.submit("demo:pbmc700", {**MODEL, "num_epochs": 400})
    folder = workspace.jobs_folder / key
    wait_until((folder / "checkpoint.safetensors").exists, 120, "its first checkpoint")
    os.kill(json.loads((folder / "process.json").read_text())["pid"], signal.SIGKILL)  # as a node that goes down
    os.killpg(first.pid, signal.SIGKILL)
    worker()
    wait_until(
        lambda: jobs.read_status(folder).resumed > 0 and jobs.read_status(folder).state == "running", 120, "it goes on"
    )
    workspace.stop(key)
    wait_until(lambda: jobs.read_status(folder).state == "stopped", 60, "its end")
