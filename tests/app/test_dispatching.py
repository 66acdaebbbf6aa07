"""The queue: who begins next, and that neither a restart nor a second server loses a job or runs it twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mira_app.dispatching import BEGINS_WITHIN, Entry, Limits, next_of
from mira_app.engines import Engine
from mira_app.serving.people import Person
from mira_app.settings import Settings
from mira_app.workspace import Workspace
from mira_core import jobs, processes
from mira_core.errors import JobError
from mira_core.files import write_json

from ..servers import wait_until

MODEL = {"feature_type": "expression", "num_topics": 3, "num_epochs": 2}
LONG = {**MODEL, "num_epochs": 5000}


def waiting(key: str, person: str = "", since: float = 0, **more) -> Entry:
    return Entry(key, person, since, **more)


def running(key: str, person: str = "", **more) -> Entry:
    return Entry(key, person, started=1.0, **more)


# --- who is next ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "limits", "free", "key"),
    [
        ([waiting("b", since=2), waiting("a", since=1)], Limits(1), None, "a"),
        ([waiting("b", since=2, priority=1), waiting("a", since=1)], Limits(1), None, "b"),
        ([running("x"), waiting("a")], Limits(1), None, None),
        ([running("x"), waiting("a")], Limits(2), None, "a"),
        # Ann has one running; Bob, who came later, has none.
        ([running("x", "ann"), waiting("a", "ann", 1), waiting("b", "bob", 2)], Limits(2), None, "b"),
        ([running("x", "ann"), waiting("a", "ann", 1)], Limits(2), None, "a"),
        ([running("x", "ann"), waiting("a", "ann", 1)], Limits(3, per_person=1), None, None),
        ([running("x", "ann"), waiting("a", "ann", 1), waiting("b", "bob", 2)], Limits(3, per_person=1), None, "b"),
        # Who has no name has no limit of their own.
        ([running("x"), waiting("a")], Limits(3, per_person=1), None, "a"),
        # A study on two GPUs waits until they are free, and nobody who comes later takes one of them meanwhile.
        (
            [running("x"), waiting("a", since=1, n_jobs=2), waiting("b", since=2)],
            Limits(2, on_devices=True),
            None,
            None,
        ),
        ([waiting("a", since=1, n_jobs=9), waiting("b", since=2)], Limits(2, on_devices=True), None, "a"),
        ([running("x"), waiting("a", since=1, n_jobs=9)], Limits(2), None, "a"),
        # One that needs more memory than there is lets those pass that need less, unless nothing else runs.
        ([running("x"), waiting("a", memory=10, since=1), waiting("b", memory=3, since=2)], Limits(3), 5, "b"),
        ([waiting("a", memory=10, since=1), waiting("b", memory=3, since=2)], Limits(3), 5, "a"),
        ([], Limits(1), None, None),
    ],
)
def test_who_begins_next(entries, limits, free, key):
    following, reasons = next_of(entries, limits, free)
    assert (following and following.key) == key
    assert set(reasons) == {e.key for e in entries if e.started is None} - {key}


def test_everybody_gets_as_much_whoever_asks_more():
    entries = [waiting(f"ann{i}", "ann", i) for i in range(10)] + [
        waiting(f"bob{i}", "bob", 100 + i) for i in range(10)
    ]
    begun = []
    for _ in range(4):
        following, _ = next_of(entries, Limits(4))
        begun.append(following.person)
        entries = [replace(e, started=1.0) if e == following else e for e in entries]
    assert sorted(begun) == ["ann", "ann", "bob", "bob"]


def test_why_one_waits_is_said():
    entries = [running("x", "ann"), *(waiting(f"w{i}", "bob", i) for i in range(3))]
    reasons = next_of(entries, Limits(1))[1]
    assert reasons["w0"] == "1 run, as many as may at once; next in the queue"
    assert reasons["w2"] == "1 run, as many as may at once; 3rd in the queue"


# --- what happens to them ---------------------------------------------------------------------------------------------


class Noting(Engine):
    """Starts nothing, and says whatever it is told to."""

    is_local = True

    def __init__(self, n: int = 0) -> None:
        self.n, self.begun, self.over = n, [], {}

    def n_devices(self) -> int:
        return self.n

    def start(self, key: str, folder: Path, devices: tuple[int, ...], gives_way: bool) -> None:
        self.begun.append((key, devices))

    def ended(self, key: str) -> int | None:
        return self.over.pop(key, None)

    def knows(self, key: str) -> bool:
        return False


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    """End the jobs of a test that has failed."""
    yield
    subprocess.run(["pkill", "-KILL", "-f", f"mira_core.run {tmp_path}"], check=False)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(Settings((), tmp_path / "workspace", jobs=2))


@pytest.fixture
def noting(tmp_path, monkeypatch):
    """A workspace whose queue is looked after by hand, on a machine of two GPUs."""
    made = Workspace(Settings((), tmp_path / "workspace"))
    made.dispatcher.engine = Noting(2)
    monkeypatch.setattr(made.dispatcher, "wake", lambda: None)
    return made


def say(workspace: Workspace, key: str, state: str, process: dict | None = None) -> None:
    folder = workspace.jobs_folder / key
    write_json(folder / "status.json", {"state": state, "heartbeat": time.time()})
    if process is not None:
        write_json(folder / "process.json", process)


def test_each_gpu_gets_one_job_and_who_ends_makes_room(noting):
    keys = [noting.submit("demo:pbmc700", MODEL) for _ in range(3)]
    assert noting.dispatcher._turn()
    assert noting.dispatcher.engine.begun == [(keys[0], (0,)), (keys[1], (1,))]
    say(noting, keys[0], "finished")
    assert noting.dispatcher._turn()
    assert noting.dispatcher.engine.begun[2:] == [(keys[2], (0,))], "on the GPU that is free"
    for key in keys[1:]:
        say(noting, key, "failed")
    assert not noting.dispatcher._turn(), "nothing is left"
    assert noting.dispatcher.entries() == []


def test_a_study_gets_as_many_gpus_as_it_runs_trials_at_once(noting):
    tune = {"study": "a", "min_topics": 3, "max_topics": 5, "n_jobs": 5, "storage": "redis://somewhere"}
    first = noting.submit("demo:pbmc700", MODEL)
    study = noting._submit("demo:pbmc700", {"feature_type": "expression"}, "a", kind="tune", tune=tune)
    noting.dispatcher._turn()
    assert noting.dispatcher.engine.begun == [(first, (0,))]
    assert jobs.read_status(noting.jobs_folder / study).stage == "1 run, as many as may at once; next in the queue"
    say(noting, first, "finished")
    noting.dispatcher._turn()
    assert noting.dispatcher.engine.begun[1:] == [(study, (0, 1))]


def test_one_that_waits_is_withdrawn_and_told_as_stopped(noting):
    keys = [noting.submit("demo:pbmc700", MODEL) for _ in range(3)]
    noting.dispatcher._turn()
    noting.stop(keys[2])
    assert jobs.read_status(noting.jobs_folder / keys[2]).state == "stopped"
    noting.stop(keys[0])
    assert (noting.jobs_folder / keys[0] / "stop").exists(), "one that runs is asked to"
    assert [e.key for e in noting.dispatcher.entries()] == keys[:2]
    with pytest.raises(JobError, match="does not wait"):
        noting.prefer(keys[0], 3)


def test_a_process_that_ends_before_it_begins_is_told_as_a_failure(noting):
    key = noting.submit("demo:pbmc700", MODEL)
    noting.dispatcher._turn()
    (noting.jobs_folder / key / "log.txt").write_text("no module named torch")
    noting.dispatcher.engine.over[key] = 1
    assert not noting.dispatcher._turn()
    status = jobs.read_status(noting.jobs_folder / key)
    assert status.state == "failed"
    assert "before it began" in status.error["message"]
    assert "no module named torch" in status.error["traceback"]


@pytest.mark.parametrize("log", [None, "Traceback"])
def test_one_that_cannot_be_started_says_so_and_may_be_gone_on_with(noting, monkeypatch, log):
    key = noting.submit("demo:pbmc700", MODEL)
    folder = noting.jobs_folder / key
    kept = {"kind": "fit", "step": 900, "epoch": 9, "resumed": 2}
    write_json(folder / "status.json", kept | {"state": "waiting", "stage": "next in the queue"})
    if log is not None:
        (folder / "log.txt").write_text(log)

    def away(*_, **__) -> None:
        raise JobError("the dask scheduler does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(noting.dispatcher.engine, "start", away)
        assert not noting.dispatcher._turn()
    status = jobs.read_status(folder)
    assert (status.state, status.stage, status.error["traceback"]) == ("failed", "", log or "")
    assert "the dask scheduler does not answer" in status.error["message"]
    assert kept.items() <= vars(status).items()
    noting.resume(key)
    noting.dispatcher._turn()
    assert noting.dispatcher.engine.begun == [(key, (0,))]


def test_a_failure_that_cannot_be_written_leaves_the_job_in_the_queue(noting, monkeypatch):
    key = noting.submit("demo:pbmc700", MODEL)
    noting.dispatcher._turn()
    noting.dispatcher.engine.over[key] = 1

    def full(*_) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mira_app.dispatching.write_json", full)
        with pytest.raises(OSError, match="no space"):
            noting.dispatcher._turn()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 2 * BEGINS_WITHIN)
    assert noting.dispatcher._turn()
    assert [k for k, _ in noting.dispatcher.engine.begun] == [key, key], "it is tried again"


def test_after_a_restart_of_the_machine_what_ran_goes_on_and_what_was_killed_does_not(noting, monkeypatch):
    lost, killed = (noting.submit("demo:pbmc700", MODEL) for _ in range(2))
    noting.dispatcher._turn()
    dead = {**processes.this_process(), "pid": 2**22 + 1}
    for key in (lost, killed):
        say(noting, key, "running", dead)
    path = noting.dispatcher._path(lost)
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "before the power went"}))
    noting.dispatcher._turn()
    assert [key for key, _ in noting.dispatcher.engine.begun] == [lost, killed, lost]
    assert jobs.read_status(noting.jobs_folder / lost).resumed == 1
    assert jobs.read_status(noting.jobs_folder / killed).state == "died"
    assert [e.key for e in noting.dispatcher.entries()] == [lost]


def test_one_that_was_never_made_ready_is_forgotten(noting):
    with pytest.raises(RuntimeError), noting.dispatcher.put("20260101-000000-x-0000", "demo:pbmc700"):
        raise RuntimeError("the disk is full")
    assert noting.dispatcher.entries() == []
    noting.dispatcher._write(Entry("20260101-000000-y-0000"))  # as if the server had been killed there
    assert not noting.dispatcher._turn()


@pytest.mark.parametrize(
    ("kind", "asked", "machine", "goes_on"),
    [
        ("fit", False, "before it was shut down", True),
        ("fit", True, "before it was shut down", False),
        ("fit", False, processes.this_machine(), False),
        ("tune", False, "before it was shut down", False),
        ("range_test", False, "before it was shut down", False),
    ],
)
def test_what_a_shutdown_stopped_goes_on_and_what_somebody_stopped_does_not(noting, kind, asked, machine, goes_on):
    key = noting.submit("demo:pbmc700", MODEL)
    noting.dispatcher._turn()
    noting.dispatcher._write(replace(noting.dispatcher._read(key), machine=machine))
    folder = noting.jobs_folder / key
    write_json(folder / "status.json", {"state": "stopped", "kind": kind, "ended": time.time()})
    if asked:
        jobs.request_stop(folder)
    assert noting.dispatcher._turn() == goes_on
    assert [k for k, _ in noting.dispatcher.engine.begun] == [key] * (1 + goes_on)
    assert jobs.read_status(folder).state == ("waiting" if goes_on else "stopped")


def test_to_go_on_twice_takes_no_job_out_of_the_queue(noting):
    waits, runs = (noting.submit("demo:pbmc700", MODEL) for _ in range(2))
    say(noting, waits, "stopped")
    noting.dispatcher._path(waits).unlink()
    noting.resume(waits)
    noting.prefer(waits, 3)
    noting.dispatcher._write(replace(noting.dispatcher._read(runs), started=1.0, devices=(1,)))
    before = noting.dispatcher.entries()
    for key in (waits, runs):
        with pytest.raises(JobError, match="nothing to go on with"):
            noting.resume(key)
    assert noting.dispatcher.entries() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1, "nonsense": 2}', "null", '{"person": "ann"}'])
def test_a_damaged_file_of_the_queue_holds_up_nobody(noting, content):
    (noting.dispatcher.folder / "bad.json").write_text(content)
    key = noting.submit("demo:pbmc700", MODEL)
    noting.dispatcher._turn()
    assert noting.dispatcher.engine.begun == [(key, (0,))]


def test_the_clock_may_be_set_while_jobs_run(noting, monkeypatch):
    key = noting.submit("demo:pbmc700", MODEL)
    noting.dispatcher._turn()
    say(noting, key, "running", processes.this_process())
    now = time.time
    for jump in (-86400, 86400):
        monkeypatch.setattr("time.time", lambda jump=jump: now() + jump)
        assert noting.dispatcher._turn()
        assert jobs.read_status(noting.jobs_folder / key).state == "running"
    # What psutil tells of a process's start changes with the clock; what the kernel counts does not.
    told = {**processes.this_process(), "process_started": now() - 10**6}
    assert processes.is_alive(told)
    assert not processes.is_alive({**told, "ticks": told["ticks"] - 1})


@pytest.mark.slow
def test_jobs_wait_for_their_turn_and_all_are_run(workspace):
    people = [workspace.seen_by(lambda name=name: Person(name, "user")) for name in ("ann", "bob")]
    keys = [person.submit("demo:pbmc700", MODEL, embedding=False) for person in people for _ in range(2)]
    most = 0

    def over() -> bool:
        nonlocal most
        states = [jobs.read_status(workspace.jobs_folder / key).state for key in keys]
        most = max(most, states.count("running"))
        return all(state == "finished" for state in states)

    wait_until(over, 200, "the end of four jobs")
    assert most <= 2
    wait_until(lambda: not workspace.dispatcher.entries(), 10, "an empty queue")


SERVER = """
import sys, time
from pathlib import Path
from mira_app.settings import Settings
from mira_app.workspace import Workspace
w = Workspace(Settings((), Path(sys.argv[1]), jobs=1))
w.dispatcher.wake()
for _ in range(int(sys.argv[2])):
    print(w.submit("demo:pbmc700", {"feature_type": "expression", "num_topics": 3, "num_epochs": int(sys.argv[3])},
                   embedding=False),
          flush=True)
time.sleep(1000)
"""


def server(folder: Path, n: int, epochs: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SERVER, str(folder), str(n), str(epochs)], stdout=subprocess.PIPE,
                            text=True)  # fmt: skip


@pytest.mark.slow
def test_a_killed_server_loses_no_job_and_two_run_none_twice(tmp_path):
    folder = tmp_path / "workspace"
    first, second = server(folder, 2, 4), server(folder, 2, 4)
    try:
        keys = [server.stdout.readline().strip() for server in (first, second) for _ in range(2)]
        assert all(keys)
        for server_ in (first, second):
            server_.kill()  # SIGKILL, as soon as it has said that the jobs are kept
            server_.wait()
        third = server(folder, 0, 0)
        wait_until(
            lambda: all(jobs.read_status(folder / "jobs" / k).state == "finished" for k in keys), 300, "all four jobs"
        )
    finally:
        for each in (first, second, third):
            each.kill()
            each.wait()
    for key in keys:
        log = (folder / "jobs" / key / "log.txt").read_text()
        assert log.count("finished after") == 1, log


@pytest.mark.slow
def test_a_job_outlives_the_server_that_started_it_and_is_still_counted(tmp_path):
    folder = tmp_path / "workspace"
    first = server(folder, 2, 100_000)
    try:
        keys = [first.stdout.readline().strip() for _ in range(2)]
        wait_until(lambda: jobs.read_status(folder / "jobs" / keys[0]).step > 0, 60, "its first step")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    workspace = Workspace(Settings((), folder, jobs=1))
    workspace.dispatcher.wake()
    wait_until(
        lambda: "as many as may at once" in jobs.read_status(folder / "jobs" / keys[1]).stage,
        20,
        "it says why it waits",
    )
    states = [jobs.read_status(folder / "jobs" / key).state for key in keys]
    assert states == ["running", "waiting"]
    workspace.stop(keys[0])
    wait_until(lambda: jobs.read_status(folder / "jobs" / keys[1]).step > 0, 60, "the turn of the second")
    os.kill(json.loads((folder / "jobs" / keys[1] / "process.json").read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: not workspace.dispatcher.entries(), 20, "an empty queue")
    assert jobs.read_status(folder / "jobs" / keys[1]).state == "died"
