"""The queue of jobs: which waits, which begins next, and on what.

Each job that a server was asked to run has a file in ``WORKSPACE/queue`` until it has ended, so that a restart forgets
none. One server of a workspace looks after the queue at a time, whoever holds its lock; others put jobs into it.

A job begins when there are fewer running than may at once, its person has fewer running than they may, and there is
memory for it. Those with a higher priority come first, then those whose people have the fewest running, then those
that have waited longest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from mira_core import jobs, processes
from mira_core.data import formats
from mira_core.data.demo import DEMO
from mira_core.errors import DataError, JobError, MiraError
from mira_core.files import end_of, read_json, write_json

from .engines import Engine, LocalEngine
from .settings import Settings

logger = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between two looks
BEGINS_WITHIN = 60.0  # seconds until a process that was started has claimed its job
HELD = 10.0  # seconds for which another server may hold up this one
LEAVES_WITHIN = 60.0  # seconds until a process has gone that has said how its job ended
COPIES = 3  # times the size of its counts' file that a job may need in memory
LEAST = 2**29  # bytes that it needs at least, most of it libraries


@dataclass(frozen=True)
class Entry:
    """A job that waits for its turn, or runs.

    Attributes
    ----------
    key, person
        Of the job, and whose it is.
    since
        When it was put into the queue.
    priority
        Higher comes first; admins give it.
    memory
        Bytes that it is taken to need.
    started
        When it was started; None: it waits.
    n_jobs
        Trials that it runs at once, each on a GPU if there are as many; 1 of all but studies.
    devices
        Numbers of the GPUs that it was given; none: there are none, or it sees all.
    machine
        Of what was running when it was started, to tell a restart of the machine.
    """

    key: str
    person: str = ""
    since: float = 0.0
    priority: int = 0
    memory: int = LEAST
    n_jobs: int = 1
    started: float | None = None
    devices: tuple[int, ...] = ()
    machine: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what its file holds."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """How much may run.

    Attributes
    ----------
    at_once
        Jobs.
    per_person
        Jobs of one person; 0: as many as at once.
    on_devices
        Whether it is GPUs that are shared out, of which a study takes several.
    memory_share
        Of the machine's memory that is left to all else.
    """

    at_once: int
    per_person: int = 0
    on_devices: bool = False
    memory_share: float = 0.1

    @classmethod
    def of(cls, settings: Settings, n_devices: int) -> Limits:
        """Take what the settings say; what they leave open fits the machine."""
        fits = n_devices or max(2, (os.cpu_count() or 2) // 2)
        return cls(settings.jobs or fits, settings.jobs_per_person, n_devices > 0)

    def takes(self, entry: Entry) -> int:
        """Return how many of those that may run at once a job counts for."""
        return min(entry.n_jobs, self.at_once) if self.on_devices else 1


def next_of(
    entries: Sequence[Entry], limits: Limits, free_memory: int | None = None
) -> tuple[Entry | None, dict[str, str]]:
    """Choose which job begins next, and say why the others wait.

    Parameters
    ----------
    entries
        All that wait or run.
    limits
        How much may run.
    free_memory
        Bytes; None: it is not looked at. The only job there is begins whatever it needs, as no other could make room.

    Returns
    -------
    next
        None: none may begin.
    reasons
        Of those that wait, by key.
    """
    running = [e for e in entries if e.started is not None]
    taken = sum(map(limits.takes, running))
    of = Counter(e.person for e in running)
    waiting = sorted(
        (e for e in entries if e.started is None), key=lambda e: (-e.priority, of[e.person], e.since, e.key)
    )
    following, reasons, full = None, {}, False
    for place, e in enumerate(waiting):
        theirs = of[e.person]
        if limits.per_person and theirs >= limits.per_person and e.person:
            reasons[e.key] = f"{e.person} has {theirs} running, as many as one may"
        elif full or (taken and taken + limits.takes(e) > limits.at_once):
            full = True  # for those that come later too, or one that takes several would never begin
            reasons[e.key] = f"{len(running)} run, as many as may at once; {_ordinal(place + 1)} in the queue"
        elif free_memory is not None and running and e.memory > free_memory:
            reasons[e.key] = f"it may need {e.memory / 1e9:.1f} GB of memory, of which {free_memory / 1e9:.1f} are free"
        elif following is None:
            following = e
        else:
            reasons[e.key] = f"{_ordinal(place + 1)} in the queue"
    return following, reasons


class Dispatcher:
    """Keeps the queue of a workspace, and starts what is next.

    Parameters
    ----------
    settings
        Where the workspace is, and how much may run.
    engine
        What runs jobs; by default processes of this machine.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.jobs_folder = settings.workspace / "jobs"
        self.folder = settings.workspace / "queue"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.engine = engine or LocalEngine()
        self._settings = settings
        self._limits: Limits | None = None
        # Held while a file of the queue changes. Who holds it for long hangs, and is not waited for by a whole server.
        self._changes = FileLock(self.folder / ".changes.lock", timeout=HELD)
        self._office = FileLock(self.folder / ".dispatcher.lock")  # held by the server that looks after it
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()

    @property
    def limits(self) -> Limits:
        """How much may run."""
        if self._limits is None:
            self._limits = Limits.of(self._settings, self.engine.n_devices())
        return self._limits

    # --- asked by sessions ------------------------------------------------------------------------

    @contextlib.contextmanager
    def put(self, key: str, data: str, person: str = "", n_jobs: int = 1) -> Iterator[None]:
        """Put a job into the queue that is made ready within; it begins at once after that, if it may.

        Parameters
        ----------
        key, data, person, n_jobs
            Of the job; what it reads, as its specification names it; whose it is; and the trials that it runs at once.
        """
        with self._changes:
            before = self._read(key)  # of one that waits or runs already, which is refused within
            # First, so that no job is forgotten if the server ends now.
            self._write(Entry(key, person, time.time(), memory=memory_of(data), n_jobs=n_jobs))
            try:
                yield
            except BaseException:
                if before is None:
                    self._path(key).unlink(missing_ok=True)
                else:
                    self._write(before)
                raise
        self.wake()

    def withdraw(self, key: str) -> bool:
        """Take a job out of the queue that has not begun, as stopped; tell whether it was there."""
        with self._changes:
            entry = self._read(key)
            if entry is None or entry.started is not None:
                return False
            told = asdict(jobs.read_status(self.jobs_folder / key)) | {"state": "stopped", "ended": time.time()}
            write_json(self.jobs_folder / key / "status.json", told)
            self._path(key).unlink(missing_ok=True)
        return True

    def prefer(self, key: str, priority: int) -> None:
        """Change the priority of a job that waits.

        Raises
        ------
        JobError
            If it does not wait.
        """
        with self._changes:
            entry = self._read(key)
            if entry is None or entry.started is not None:
                raise JobError(f"the job {key!r} does not wait in the queue")
            self._write(replace(entry, priority=priority))
        self.wake()

    def entries(self) -> list[Entry]:
        """Return all that wait or run, the oldest first."""
        found = (self._read(path.stem) for path in self.folder.glob("*.json"))
        return sorted((e for e in found if e is not None), key=lambda e: (e.since, e.key))

    def wake(self) -> None:
        """Look at the queue at once, and until all in it have ended."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True, name="mira-queue")
                self._thread.start()
            self._wake.set()

    # --- the one that looks after it --------------------------------------------------------------

    def _run(self) -> None:
        _ = self.limits  # to count GPUs takes a while, in which nobody must wait
        holds = False
        while True:
            self._wake.clear()
            try:
                holds = holds or self._take_office()
                left = self._turn() if holds else bool(self.entries())
            except Exception:  # a full disk, a share that is away: it may come back
                logger.exception("the queue could not be looked after; it is tried again")
                left = True
            with self._lock:
                if not left and not self._wake.is_set():
                    if holds:
                        self._office.release()
                    self._thread = None
                    return
            self._wake.wait(PERIOD)

    def _take_office(self) -> bool:
        try:
            self._office.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _turn(self) -> bool:
        """Look once; return whether anything waits or runs."""
        with self._changes:
            entries = [kept for e in self.entries() if (kept := self._looked_at(e)) is not None]
            while True:
                free = free_memory(self.limits.memory_share) if self.engine.is_local else None
                following, reasons = next_of(entries, self.limits, free)
                if following is None:
                    for key, why in reasons.items():
                        self._tell(self.jobs_folder / key, why)
                    return bool(entries)
                begun = self._start(following, entries)
                entries = [e for e in entries if e.key != following.key] + ([begun] if begun else [])

    def _looked_at(self, entry: Entry) -> Entry | None:
        """Return what became of a job since; None: it has ended, or is no more."""
        folder = self.jobs_folder / entry.key
        if not (folder / "job.json").is_file():
            return self._done(entry)
        if entry.started is None:
            return entry
        status, ended = jobs.read_status(folder), self.engine.ended(entry.key)
        if entry.machine != processes.this_machine() and (
            status.state == "died"
            # A machine that is shut down in order stops its jobs. People leave a file, or of a study a word in it.
            or (status.state == "stopped" and status.kind != "tune" and not (folder / "stop").exists())
        ):
            return self._begin_again(entry)
        if status.ended_already:
            # Its memory, and its GPU's, are free once its process has gone.
            leaving = self.engine.knows(entry.key) and time.time() - (status.ended or 0) < LEAVES_WITHIN
            return entry if leaving else self._done(entry)
        if status.state == "waiting" and not (folder / "process.json").exists():
            if ended is not None:
                self._fail(folder, f"the process ended with status {ended} before it began")
                return self._done(entry)
            if entry.machine != processes.this_machine() or (
                not self.engine.knows(entry.key) and time.time() - entry.started > BEGINS_WITHIN
            ):
                return self._written(replace(entry, started=None, devices=()))  # its server ended before it began
        return entry

    def _begin_again(self, entry: Entry) -> Entry | None:
        """Put a job into the queue again that ended with the machine; it goes on from its last checkpoint."""
        try:
            jobs.resume(self.jobs_folder / entry.key)
        except MiraError as problem:
            logger.warning("%s", problem)
            return self._done(entry)
        logger.info("the job %s ended with the machine, and goes on", entry.key)
        return self._written(replace(entry, started=None, devices=()))

    def _start(self, entry: Entry, entries: Sequence[Entry]) -> Entry | None:
        taken = Counter(d for e in entries if e.started is not None for d in e.devices)
        free = sorted(range(self.engine.n_devices()), key=lambda i: (taken[i], i))
        devices = tuple(sorted(free[: self.limits.takes(entry)]))
        begun = replace(entry, started=time.time(), devices=devices, machine=processes.this_machine())
        self._write(begun)  # before it is: a job that is taken to run is looked after, one that is not would run twice
        try:
            # Who has the server to themselves waits for the training rather than for the page.
            self.engine.start(entry.key, self.jobs_folder / entry.key, devices, gives_way=bool(entry.person))
        except (OSError, MiraError) as problem:
            self._fail(self.jobs_folder / entry.key, f"its process could not be started: {problem}")
            return self._done(entry)
        return begun

    def _tell(self, folder: Path, why: str) -> None:
        """Say why a job waits, where everybody reads how it stands."""
        status = jobs.read_status(folder)
        if status.state == "waiting" and status.stage != why:
            write_json(folder / "status.json", asdict(replace(status, stage=why)))

    def _fail(self, folder: Path, message: str) -> None:
        """Say why a job did not begin; what it knows of before is kept, and it may be gone on with."""
        log = ""
        with contextlib.suppress(OSError):  # there is none before a process was started
            log = end_of(folder / "log.txt")
        # Of the machine, as jobs.why_not_resume has it: it may not come again.
        error = {"type": "ChildProcessError", "message": message, "traceback": log}
        failed = replace(jobs.read_status(folder), state="failed", stage="", ended=time.time(), error=error)
        write_json(folder / "status.json", asdict(failed))

    # --- files ------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _read(self, key: str) -> Entry | None:
        try:
            told = read_json(self._path(key))
            started = told["started"]
            return Entry(
                key, str(told["person"]), float(told["since"]), int(told["priority"]), int(told["memory"]),
                int(told["n_jobs"]), None if started is None else float(started), tuple(map(int, told["devices"])),
                str(told["machine"]),
            )  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _write(self, entry: Entry) -> None:
        write_json(self._path(entry.key), entry.to_dict())

    def _written(self, entry: Entry) -> Entry:
        self._write(entry)
        return entry

    def _done(self, entry: Entry) -> None:
        self._path(entry.key).unlink(missing_ok=True)


def memory_of(data: str) -> int:
    """Return the bytes of memory that a job of these data is taken to need: what its counts take, some times."""
    size = 0
    if not data.startswith(DEMO):
        with contextlib.suppress(OSError, DataError):
            size = formats.stamp(formats.split_part(data)[0])[1]
    return LEAST + COPIES * size


def free_memory(kept: float) -> int:
    """Return the bytes of memory that are free, less a share of the machine's that is kept so."""
    told = psutil.virtual_memory()
    return int(told.available - kept * told.total)


def _ordinal(n: int) -> str:
    return (
        "next"
        if n == 1
        else f"{n}th"
        if n % 100 in (11, 12, 13)
        else f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th') }"
    )
