"""Trainings that are looked at, wherever their records are: in a run's folder, in memory, or still to come.

Each has `series` and `status`, which `read` renews, and may be asked to `stop`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mira_core import jobs
from mira_core.errors import OptionError

from .hub import FollowedJob
from .series import Series


class RunFolder:
    """A run's folder."""

    can_stop, growing = True, False

    def __init__(self, folder: Path) -> None:
        jobs.read_spec(folder)  # or say that it is none
        self.folder, self._job, self._pause = folder, FollowedJob(folder), threading.Event()

    @property
    def series(self) -> Series:
        """Points so far."""
        return self._job.series

    @property
    def status(self) -> jobs.Status | None:
        """How it stands; None before the first reading."""
        return self._job.status

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return (self.folder / "stop").exists()

    def read(self) -> bool:
        """Read what is new; return whether there is anything."""
        return self._job.read()

    def stop(self) -> None:
        """Ask it to end at its next step."""
        jobs.request_stop(self.folder)

    def wait(self, seconds: float) -> None:
        """Wait for that long, or until it has ended."""
        self._pause.wait(seconds)


class Kept:
    """Records that are in memory; `growing`: perhaps more and more of them."""

    can_stop = stopping = False

    def __init__(self, records: Sequence[Any], growing: bool) -> None:
        self.records, self.growing, self.series, self._n = records, growing, Series(), 0
        self.status = jobs.Status(state="waiting")

    def read(self) -> bool:
        """Read what is new; return whether there is anything."""
        new = list(self.records[self._n :])
        self.series.append(_told(r) for r in new)
        self._n += len(new)
        first, self.status = self.status.state == "waiting", _reached(self.series, "recorded", None)
        return bool(new) or first

    def stop(self) -> None:
        """Do nothing: who writes the records is not known."""

    def wait(self, seconds: float) -> None:
        """Return at once: what there is has been read."""


class Consumed:
    """Records that come, taken by a thread."""

    can_stop, growing = True, False

    def __init__(self, records: Iterator[Any], num_epochs: int | None) -> None:
        self.records, self.num_epochs, self.series = records, num_epochs, Series()
        self.status = jobs.Status(state="running", stage="training", started=time.time(), training_started=time.time())
        self._ended: dict[str, Any] = {}
        self._asked, self._done = threading.Event(), threading.Event()
        self._seen = (-1, -1, "")
        self._thread = threading.Thread(target=self._consume, daemon=True, name="mira-training")
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._asked.is_set()

    def _consume(self) -> None:
        state, error = "finished", {}
        try:
            for record in self.records:
                self.series.append([_told(record)])
                if self._asked.is_set():
                    state = "stopped"
                    break
            close: Callable[[], None] = getattr(self.records, "close", lambda: None)
            close()
        except Exception as problem:  # told where it is looked at
            state = "failed"
            error = {"type": type(problem).__name__, "message": str(problem), "traceback": traceback.format_exc()}
        self._ended = {"state": state, "error": error, "ended": time.time()}
        self._done.set()

    def read(self) -> bool:
        """Read what is new; return whether there is anything."""
        ended = self._done.is_set()  # first: no record comes after it
        status = _reached(self.series, "running", self.num_epochs, self.status)
        self.status = dataclasses.replace(status, heartbeat=time.time(), **(self._ended if ended else {}))
        now = (len(self.series.steps), len(self.series.epochs), self.status.state)
        changed, self._seen = now != self._seen, now
        return changed

    def stop(self) -> None:
        """Ask it to end at its next step."""
        self._asked.set()

    def wait(self, seconds: float) -> None:
        """Wait for that long, or until it has ended."""
        self._done.wait(seconds)


def run_of(run: Any, num_epochs: int | None = None) -> RunFolder | Kept | Consumed:
    """Take whatever a `mira_app.widgets.TrainingMonitor` is given.

    Raises
    ------
    JobError
        If a folder is no run.
    OptionError
        If it is nothing of the kind.
    """
    if isinstance(run, str | Path):
        return RunFolder(Path(run))
    if hasattr(run, "records") and hasattr(run, "write"):
        return Kept(run.records, growing=True)
    if isinstance(run, Sequence):
        return Kept(run, growing=False)
    if hasattr(run, "__next__"):
        return Consumed(run, num_epochs)
    raise OptionError(
        "run must be the folder of a run, records such as those of model.fit_records(adata), a mira.topics.Writer, "
        f"or a list such as model.history; got {type(run).__name__}"
    )


def _told(record: Any) -> Mapping[str, Any]:
    return record if isinstance(record, Mapping) else record.to_dict()


def _reached(series: Series, state: str, num_epochs: int | None, before: jobs.Status | None = None) -> jobs.Status:
    """Tell from the points how far a training is."""
    status = dataclasses.replace(before or jobs.Status(), state=state, stage="training")
    table = series.steps if len(series.steps) else series.epochs
    if len(table):
        status = dataclasses.replace(status, step=int(table["step"][-1]), epoch=int(table["epoch"][-1]))
    if num_epochs and len(series.epochs):
        per_epoch = int(series.epochs["step"][0] // max(series.epochs["epoch"][0], 1))
        status = dataclasses.replace(status, num_epochs=num_epochs, num_steps=num_epochs * per_epoch)
    return status
