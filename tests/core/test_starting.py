"""Processes that are split off from one that has loaded what they need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from mira_core import jobs
from mira_core.starting import Starter

from ..servers import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only"),
]


@pytest.fixture(scope="module")
def ready() -> Iterator[Starter]:
    """One that forks."""
    starter = Starter("of a test")
    starter.prepare()
    wait_until(lambda: is_ready(starter), 60, "all has been loaded")
    yield starter
    starter.close()


def is_ready(starter: Starter) -> bool:
    with starter._lock:
        return starter._is_ready()


def a_job(folder: Path, **model) -> Path:
    given = {"feature_type": "expression", "num_topics": 4, "hidden": 16, "seed": 3, "num_epochs": 2, **model}
    jobs.write_spec(folder, data="demo:pbmc700", model=given, name="a job", embedding=False)
    return folder


def start(starter: Starter, folder: Path):
    with open(folder / "log.txt", "ab") as log, open(os.devnull) as nothing:
        return starter.start("mira_core.run", [str(folder)], nothing, log, log)


@pytest.mark.parametrize("how", ["forked", "its own"])
def test_it_reads_prints_and_ends_as_a_process_of_its_own(ready, how):
    starter = ready if how == "forked" else Starter()
    done = starter.run("mira_core.estimate", ["-"], json.dumps({"data": "demo:no"}))
    assert done.returncode == 2
    assert "data and model" in json.loads(done.stdout)["error"]["message"]
    assert done.stderr == ""
    done = starter.run("mira_core.estimate", [])
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m mira_core.estimate" in done.stderr
    done = starter.run("mira_core.cli", ["fit"])  # argparse leaves by SystemExit
    assert done.returncode == 2
    assert "the following arguments are required" in done.stderr


def test_it_is_told_when_a_process_takes_too_long(ready):
    with pytest.raises(TimeoutError, match="longer than 0 s"):
        ready.run("mira_core.estimate", ["-"], json.dumps({"data": "demo:pbmc700", "model": {}}), timeout=0.01)


def test_a_forked_training_gives_the_same_bits(ready, tmp_path):
    folders = [a_job(tmp_path / how) for how in ("forked", "again", "own")]
    running = [start(s, f) for s, f in zip((ready, ready, Starter()), folders, strict=True)]
    for process in running:
        wait_until(lambda p=process: p.poll() is not None, 60, "its end")
        assert process.poll() == 0
    models = [load_file(f / "result" / "model.safetensors") for f in folders]
    for other in models[1:]:
        assert other.keys() == models[0].keys()
        assert all(np.array_equal(other[name], models[0][name]) for name in other)
    assert "finished after" in (folders[0] / "log.txt").read_text()
    processors = [json.loads((f / "provenance.json").read_bytes())["processes"][0] for f in folders]
    for told in processors:
        del told["began"]
    assert processors[0] == processors[2]  # threads and all


def test_a_training_outlives_what_it_was_forked_from_and_is_seen_to_be_killed(tmp_path):
    starter = Starter()
    starter.prepare()
    wait_until(lambda: is_ready(starter), 60, "all has been loaded")
    folders = [a_job(tmp_path / name, num_epochs=20_000) for name in ("stopped", "killed")]
    running = [start(starter, f) for f in folders]
    for folder in folders:
        wait_until(lambda f=folder: jobs.read_status(f).step > 0, 60, "it trains")
    forks = starter._forks
    forks.send_signal(signal.SIGKILL)
    forks.wait()
    # It is noticed at the next start, which is as Python starts them.
    done = starter.run("mira_core.estimate", [])
    assert (done.returncode, starter._forks.pid != forks.pid) == (2, True)
    starter.close()
    assert [p.poll() for p in running] == [None, None]
    assert all(psutil.Process(p.pid).is_running() for p in running)
    jobs.request_stop(folders[0])
    os.kill(running[1].pid, signal.SIGKILL)
    for process, status in zip(running, (0, -signal.SIGKILL), strict=True):
        wait_until(lambda p=process: p.poll() is not None, 30, "its end")
        assert process.poll() == status
    assert [jobs.read_status(f).state for f in folders] == ["stopped", "died"]


def test_one_that_hangs_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr("mira_core.starting.ANSWER", 0.5)
    starter = Starter()
    starter.prepare()
    wait_until(lambda: is_ready(starter), 60, "all has been loaded")
    hung = psutil.Process(starter._forks.pid)
    hung.suspend()
    folder = a_job(tmp_path / "job")
    process = start(starter, folder)
    assert process.pid != hung.pid
    wait_until(lambda: process.poll() is not None, 60, "its end")
    assert jobs.read_status(folder).state == "finished"
    assert not hung.is_running()
    starter.close()


def test_it_ends_with_the_one_that_uses_it(tmp_path):
    code = (
        "import time; from mira_core.starting import Starter; s = Starter(); s.prepare(); "
        "print(s._forks.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as user:
        forks = psutil.Process(int(user.stdout.readline()))
        user.kill()
    wait_until(lambda: not forks.is_running() or forks.status() == psutil.STATUS_ZOMBIE, 60, "it ends")
