"""One reader for all sessions."""

from __future__ import annotations

import dataclasses
import json
import time

from mira_app import hub as hub_module
from mira_app.hub import Hub, Running
from mira_core import jobs, processes


class Document:
    """Stands for a session's document: runs what it is given at its next tick; may be gone."""

    def __init__(self) -> None:
        self.gone = False

    def add_next_tick_callback(self, callback):
        if self.gone:
            raise RuntimeError("session is gone")
        callback()


def folder_with(tmp_path, n: int):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data="demo:simulated", model={"feature_type": "expression"})
    append(folder, 1, n)
    return folder


def append(folder, first: int, last: int) -> None:
    with open(folder / "records.jsonl", "a") as f:
        f.writelines(json.dumps({"kind": "step", "step": s}) + "\n" for s in range(first, last + 1))


def until(condition, seconds=5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_each_session_sees_every_point_once_whenever_it_comes(tmp_path):
    folder, hub = folder_with(tmp_path, 3), Hub(period=0.02)
    seen: dict[str, list[float]] = {"early": [], "late": []}

    def listener(name):
        return lambda series, _: seen.update({name: series.steps["step"].tolist()})

    leave = hub.follow(folder, Document(), listener("early"))
    assert until(lambda: seen["early"] == [1, 2, 3])
    append(folder, 4, 6)
    assert until(lambda: seen["early"] == [1, 2, 3, 4, 5, 6])
    leave_late = hub.follow(folder, Document(), listener("late"))
    assert until(lambda: seen["late"] == [1, 2, 3, 4, 5, 6])  # though nothing is new
    append(folder, 7, 8)
    assert until(lambda: seen["late"] == list(range(1, 9)) == seen["early"])
    leave()
    append(folder, 9, 9)
    assert until(lambda: seen["late"][-1] == 9)
    assert seen["early"][-1] == 8
    leave_late()
    assert until(lambda: hub._thread is None)  # nobody looks: nobody reads


def test_a_session_that_has_gone_is_forgotten_and_the_others_go_on(tmp_path):
    folder, hub = folder_with(tmp_path, 1), Hub(period=0.02)
    gone, seen = Document(), []
    hub.follow(folder, gone, lambda series, _: None)
    leave = hub.follow(folder, Document(), lambda series, _: seen.append(len(series.steps)))
    assert until(lambda: seen == [1])
    gone.gone = True
    append(folder, 2, 2)
    assert until(lambda: seen == [1, 2])
    assert until(lambda: len(hub._followed[folder].listeners) == 1)
    leave()


def test_a_session_that_has_no_time_is_told_once_of_all_that_came_meanwhile(tmp_path):
    folder, hub = folder_with(tmp_path, 3), Hub(period=0.02)
    queue, seen, others = [], [], []
    busy = Document()
    busy.add_next_tick_callback = queue.append
    leave = hub.follow(folder, busy, lambda series, _: seen.append(len(series.steps)))
    leave_other = hub.follow(folder, Document(), lambda series, _: others.append(len(series.steps)))
    for last in range(4, 14):
        append(folder, last, last)
        assert until(lambda: others[-1:] == [last])  # noqa: B023 - within the round
    assert len(queue) == 1
    queue.pop()()
    assert until(lambda: len(queue) == 1), "and of what is new since, though nothing more comes"
    queue.pop()()
    assert seen[-1] == 13
    time.sleep(0.1)
    assert queue == []
    leave()
    leave_other()


def test_a_change_of_status_is_told_without_records(tmp_path):
    folder, hub = folder_with(tmp_path, 0), Hub(period=0.02)
    states: list[str] = []
    leave = hub.follow(folder, Document(), lambda _, status: states.append(status.state))
    assert until(lambda: states == ["waiting"])
    (folder / "status.json").write_text(json.dumps({"state": "failed", "error": {"message": "no"}}))
    assert until(lambda: states[-1] == "failed")
    leave()


def test_a_run_that_is_gone_on_with_is_read_anew(tmp_path):
    folder, hub = folder_with(tmp_path, 5), Hub(period=0.02)
    (folder / "status.json").write_text(json.dumps({"state": "stopped"}))
    seen: list[list[float]] = []
    leave = hub.follow(folder, Document(), lambda series, _: seen.append(series.steps["step"].tolist()))
    assert until(lambda: seen[-1:] == [[1, 2, 3, 4, 5]])
    (folder / "records.jsonl").unlink()
    append(folder, 1, 6)
    (folder / "status.json").write_text(json.dumps({"state": "running", "resumed": 1}))
    assert until(lambda: seen[-1] == [1, 2, 3, 4, 5, 6])
    leave()


# --- all that runs --------------------------------------------------------------------------------


def test_only_what_waits_or_runs_is_told_and_ended_jobs_are_read_once(tmp_path, monkeypatch):
    def job(name: str, created: float, **status) -> None:
        folder = tmp_path / name
        jobs.write_spec(folder, data="demo:simulated", model={"feature_type": "expression"}, name=name)
        spec = json.loads((folder / "job.json").read_text())
        (folder / "job.json").write_text(json.dumps({**spec, "created": created}))
        if status:
            (folder / "status.json").write_text(json.dumps(dataclasses.asdict(jobs.Status(**status))))

    job("ended", 1.0, state="finished")
    job("waits", 2.0)
    job("runs", 3.0, state="running", stage="training", step=50, num_steps=200, training_started=100.0,
        heartbeat=160.0, device="cpu")  # fmt: skip
    (tmp_path / "runs" / "process.json").write_text(json.dumps(processes.this_process()))
    (tmp_path / "no job").mkdir()
    read = []
    monkeypatch.setattr(jobs, "read_status", lambda f, real=jobs.read_status: (read.append(f.name), real(f))[1])
    monkeypatch.setattr(hub_module, "SELDOM", 0.0)
    told = []
    hub = Hub(period=0.02)
    leave = hub.follow_all(tmp_path, Document(), told.append)
    assert until(lambda: told)
    # 50 of 200 steps took a minute
    assert told[0] == [
        Running("runs", "runs", "fit", 25, 180, "cpu"), Running("waits", "waits", "fit", None, None, None),
    ]  # fmt: skip
    assert until(lambda: read.count("runs") > 5)
    assert read.count("ended") == 1
    job_status = json.loads((tmp_path / "runs" / "status.json").read_text())
    (tmp_path / "runs" / "status.json").write_text(json.dumps({**job_status, "state": "stopped"}))
    assert until(lambda: [r.key for r in told[-1]] == ["waits"])
    leave()


def test_what_was_read_ahead_or_looked_at_before_is_known_at_once(tmp_path):
    folder, hub = folder_with(tmp_path, 3), Hub(period=0.02)
    assert hub.known(folder) is None
    hub.read_ahead(folder)
    assert until(lambda: hub.known(folder) is not None)
    series, status = hub.known(folder)
    assert (series.steps["step"].tolist(), status.state) == ([1, 2, 3], "waiting")
    seen: list[list[float]] = []
    leave = hub.follow(folder, Document(), lambda series, _: seen.append(series.steps["step"].tolist()))
    append(folder, 4, 5)
    assert until(lambda: seen and seen[-1] == [1, 2, 3, 4, 5])
    leave()
    assert hub.known(folder)[0] is series
    assert until(lambda: hub._thread is None)  # nobody looks, nothing is read
    append(folder, 6, 6)
    leave = hub.follow(folder, Document(), lambda series, _: seen.append(series.steps["step"].tolist()))
    assert until(lambda: seen[-1] == [1, 2, 3, 4, 5, 6])
    leave()


def test_few_are_kept_when_nobody_looks_any_more(tmp_path):
    hub = Hub(period=0.02)
    folders = []
    for i in range(hub_module.KEPT + 3):
        (tmp_path / str(i)).mkdir()
        folders.append(folder_with(tmp_path / str(i), 2))
        seen: list[int] = []
        leave = hub.follow(folders[-1], Document(), lambda *_, seen=seen: seen.append(1))
        assert until(lambda seen=seen: seen)
        leave()
    assert [hub.known(f) is not None for f in folders] == [False] * 3 + [True] * hub_module.KEPT
