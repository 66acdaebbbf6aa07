"""One reader for all sessions."""

from __future__ import annotations

import json
import time

from mira_app.hub import Hub
from mira_core import jobs


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


def test_each_session_gets_every_record_once_whenever_it_comes(tmp_path):
    folder, hub = folder_with(tmp_path, 3), Hub(period=0.02)
    early: list[int] = []
    late: list[int] = []
    leave = hub.follow(folder, Document(), lambda new, _: early.extend(r["step"] for r in new))
    assert early == [1, 2, 3]  # at once
    append(folder, 4, 6)
    assert until(lambda: early == [1, 2, 3, 4, 5, 6])
    leave_late = hub.follow(folder, Document(), lambda new, _: late.extend(r["step"] for r in new))
    append(folder, 7, 8)
    assert until(lambda: late == list(range(1, 9)) and early == late)
    leave()
    append(folder, 9, 9)
    assert until(lambda: late[-1] == 9)
    assert early[-1] == 8
    leave_late()
    assert until(lambda: hub._thread is None)  # nobody looks: nobody reads


def test_a_session_that_has_gone_is_forgotten_and_the_others_go_on(tmp_path):
    folder, hub = folder_with(tmp_path, 1), Hub(period=0.02)
    gone, seen = Document(), []
    hub.follow(folder, gone, lambda new, _: None)
    leave = hub.follow(folder, Document(), lambda new, _: seen.extend(r["step"] for r in new))
    gone.gone = True
    append(folder, 2, 2)
    assert until(lambda: seen == [1, 2])
    assert len(hub._followed[folder].listeners) == 1
    leave()


def test_a_change_of_status_is_told_without_records(tmp_path):
    folder, hub = folder_with(tmp_path, 0), Hub(period=0.02)
    states: list[str] = []
    leave = hub.follow(folder, Document(), lambda _, status: states.append(status.state))
    assert states == ["waiting"]
    (folder / "status.json").write_text(json.dumps({"state": "failed", "error": {"message": "no"}}))
    assert until(lambda: states[-1] == "failed")
    leave()
