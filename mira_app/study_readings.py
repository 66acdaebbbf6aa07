"""What is read of the studies of a storage, once for all who look: a list of them, and each while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from mira_core import jobs
from mira_core.data.demo import DEMO
from mira_core.errors import MiraError, TuningError
from mira_core.tuning import storage as storages
from mira_core.tuning.reading import Reading, StudyLine, StudyReader, list_studies

from .hub import Followed, Hub
from .workspace import Workspace, owner_of

SELDOM = 2.0  # seconds between two looks at the list
COUNTED = 40  # studies, the newest, whose trials are read for the list
AT_ONCE = 0.5  # seconds of reading, after which what is known is told
BESIDES = 0.05  # seconds for studies that nothing happened to when they were read last


@dataclass(frozen=True)
class Row:
    """A study, as the list shows it.

    Attributes
    ----------
    owner, person
        Who runs it by its plan, ``user@host``; whose it is here, empty if nobody's.
    job
        Key of the job that began it here.
    """

    name: str
    study_id: int
    ours: bool
    state: str
    n_trials: int
    counts: Mapping[str, int]
    best_value: float | None
    best_topics: int | None
    data: str
    owner: str
    person: str = ""
    job: str | None = None


@dataclass(eq=False)
class _Study(Followed):
    """One study, read again and again."""

    readings: StudyReadings = None  # type: ignore[assignment]
    name: str = ""
    reading: Reading | None = None
    problem: str = ""
    job: jobs.Status | None = None
    key_of_job: str | None = None
    next: float = 0.0

    def read(self) -> bool:
        before = self.reading, self.problem, self.job and (self.job.state, self.job.stage)
        if time.monotonic() > self.next:
            self.key_of_job, self.next = self.readings.job_of(self.name), time.monotonic() + SELDOM
        if self.key_of_job is not None:
            self.job = jobs.read_status(self.readings.workspace.jobs_folder / self.key_of_job)
        try:
            self.reading, self.problem = self.readings.read(self.name), ""
        except MiraError as problem:
            self.problem = str(problem)
        now = self.problem, self.job and (self.job.state, self.job.stage)
        return self.reading is not before[0] or now != before[1:]

    def told(self) -> tuple[Any, ...]:
        return self.reading, self.problem, self.job


@dataclass(eq=False)
class _List(Followed):
    """All studies. What takes long to read comes later."""

    readings: StudyReadings = None  # type: ignore[assignment]
    rows: list[Row] | None = None
    problem: str = ""
    next: float = 0.0
    due: list[str] = field(default_factory=list)  # studies whose trials are yet to be read

    def read(self) -> bool:
        if time.monotonic() < self.next and not self.due:
            return False
        before = self.rows, self.problem
        try:
            self.rows, self.due = self.readings.rows(), self.readings.unread()
            self.problem = ""
        except MiraError as problem:
            self.problem, self.due = str(problem), []
        self.next = time.monotonic() + SELDOM
        return (self.rows, self.problem) != before

    def told(self) -> tuple[Any, ...]:
        return self.rows, self.problem


class StudyReadings:
    """What has been read of the studies of one storage, for all sessions of this process.

    Reading is done by a hub of its own, as a storage may be far away, and must hold up nobody who watches a run.

    Parameters
    ----------
    workspace
        Whose settings name the storage, and where jobs are.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.url = workspace, workspace.settings.storage
        self.hub = Hub()
        self._lock = threading.Lock()
        self._opened: optuna.storages.BaseStorage | None = None
        self._readers: dict[str, StudyReader] = {}
        self._readings: dict[str, Reading] = {}
        self._lines: list[StudyLine] = []
        self._turn = 0  # which of the quiet studies is read next

    # --- reading --------------------------------------------------------------------------------

    @property
    def opened(self) -> optuna.storages.BaseStorage:
        """The storage.

        Raises
        ------
        TuningError
            If it is away.
        """
        with self._lock:
            if self._opened is None:
                self._opened = storages.open_storage(self.url)
            return self._opened

    def follow(self, name: str, document: Any, listener: Callable[..., None]) -> Callable[[], None]:
        """Tell `listener` of a study whenever something is new.

        Of its `Reading`, or None; what is wrong; and the status of the newest job that runs it here, or None.

        Returns
        -------
        callable
            Ends it.
        """
        return self.hub.follow_new(_Study(("study", name), readings=self, name=name), document, listener)

    def read_ahead(self, name: str) -> None:
        """Read a study that somebody is about to follow, while their page is on its way."""
        self.hub.read_new(_Study(("study", name), readings=self, name=name))

    def follow_list(self, document: Any, listener: Callable[..., None]) -> Callable[[], None]:
        """Tell `listener` of all studies, a list of `Row` or None and what is wrong, as they change."""
        return self.hub.follow_new(_List(("studies",), readings=self), document, listener)

    def read(self, name: str) -> Reading:
        """Read a study; of what was read before, only what is new.

        Raises
        ------
        TuningError
            If there is none of this name, or the storage is away.
        """
        if name not in self._readers:
            self._readers[name] = StudyReader(self.opened, name)
        try:
            self._readings[name] = self._readers[name].read()
        except TuningError:
            self._readers.pop(name, None)  # it may come again, as another one
            raise
        return self._readings[name]

    def study_of(self, name: str) -> optuna.Study:
        """Return a study that has been read."""
        return self._readers[name].study

    def known(self, name: str) -> Reading | None:
        """Return what was read last, None if nothing was."""
        return self._readings.get(name)

    def rows(self) -> list[Row]:
        """List the studies; trials are read for a short while at most: of those that are new or live, then others."""
        self._lines = list_studies(self.opened)
        names = [line.name for line in self._lines]
        for gone in self._readers.keys() - set(names):
            self._readers.pop(gone), self._readings.pop(gone, None)
        live = [n for n, r in self._readings.items() if r.running or r.waiting]
        quiet = [n for n in names[:COUNTED] if n in self._readings and n not in live]
        began = time.monotonic()
        for name in [*live, *self.unread(), *quiet[self._turn :], *quiet[: self._turn]]:
            took = time.monotonic() - began
            if took > AT_ONCE or (name in quiet and took > BESIDES):
                break
            self.read(name)
            self._turn += name in quiet
        self._turn %= max(1, len(quiet))
        begun = self.begun()
        return [self._row(line, *begun.get(line.name, ("", None))) for line in self._lines]

    def unread(self) -> list[str]:
        """Return the names of the newest studies that were never read."""
        return [line.name for line in self._lines[:COUNTED] if line.name not in self._readings]

    def _row(self, line: StudyLine, person: str, job: str | None) -> Row:
        known = self._readings.get(line.name)
        if known is None:
            return Row(line.name, line.study_id, line.ours, "…", 0, {}, None, None, "", "", person, job)
        best = known.of(known.best) if known.best is not None else None
        topics = best.get("num_topics") if best else None
        plan = known.plan
        return Row(
            line.name, line.study_id, line.ours, known.state, len(known.trials), dict(known.counts),
            best["value"] if best else None, None if topics is None else int(topics),
            _data_label(plan.data if plan else None), (plan.owner if plan else None) or "", person, job,
        )  # fmt: skip

    def id_of(self, name: str) -> int:
        """Return the number by which optuna-dashboard knows a study."""
        return int(self.opened.get_study_id_from_name(name))

    def begun(self) -> dict[str, tuple[str, str]]:
        """Return whose each study is that was begun here, and the key of the job that began it, by its name."""
        # The oldest is last, and so stays.
        return {spec["tune"].get("study"): (owner_of(spec), key) for key, spec in self.workspace.specs("tune")}

    def job_of(self, name: str) -> str | None:
        """Return the key of the newest job that runs a study here, None if there is none."""
        return next(iter(self.jobs_of(name)), None)

    def jobs_of(self, name: str) -> list[str]:
        """Return the keys of the jobs that run or ran a study here, the newest first."""
        return [key for key, spec in self.workspace.specs("tune") if spec["tune"].get("study") == name]

    def is_run_here(self, name: str, states: Container[str] = ("waiting", "running")) -> bool:
        """Tell whether a job of this server runs a study now, or waits to: is in one of these states."""
        return any(jobs.read_status(self.workspace.folder_of(key)).state in states for key in self.jobs_of(name))


def _data_label(data: str | None) -> str:
    return "" if data is None else data.removeprefix(DEMO) if data.startswith(DEMO) else Path(data).name
