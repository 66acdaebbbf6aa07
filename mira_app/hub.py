"""One reader for all pages: follows what somebody looks at, and tells each session what is new.

A thread of its own, so that slow disks never hold up the server; sessions are told through their document's next
tick. The prototype was an asyncio task, which inherited the document of the session that started it.
"""

from __future__ import annotations

import abc
import functools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mira_core import jobs
from mira_core.errors import MiraError

from .ordered import together
from .series import Series

logger = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two looks
KEPT = 4  # jobs whose points stay in memory when nobody looks at them any more
SELDOM = 2.0  # and at the list of all jobs

Listener = Callable[..., None]


@dataclass(eq=False)
class Followed(abc.ABC):
    """Something that somebody looks at, by a key of its own, and what has been read of it."""

    key: Hashable
    listeners: dict[int, tuple[Any, Listener]] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)  # listeners to be told, though nothing is new since
    telling: set[int] = field(default_factory=set)  # listeners that have not had their turn since they were told last

    @abc.abstractmethod
    def read(self) -> bool:
        """Read what is new; return whether there is anything."""

    @abc.abstractmethod
    def told(self) -> tuple[Any, ...]:
        """Return what listeners are told."""


@dataclass(eq=False)
class FollowedJob(Followed):
    """A job's points and its status; its key is its folder."""

    series: Series = field(default_factory=Series)
    offset: int = 0
    status: jobs.Status | None = None

    def read(self) -> bool:
        """Read its status, and the records that are new."""
        # Status first: a job that has ended writes no record after it.
        status = jobs.read_status(self.key)
        if self.status is not None and status.resumed != self.status.resumed:  # it goes on from before where it was
            self.series, self.offset = Series(), 0
        new, self.offset = jobs.read_records(self.key, self.offset)
        self.series.append(new)
        changed, self.status = bool(new) or status != self.status, status
        return changed

    def told(self) -> tuple[Any, ...]:
        """Return its points, and its status."""
        return self.series, self.status


@dataclass(frozen=True)
class Running:
    """A job that waits or runs, as a line can tell it."""

    key: str
    name: str
    kind: str
    percent: int | None
    seconds_left: float | None
    device: str | None
    owner: str = ""


@dataclass(eq=False)
class _Jobs(Followed):
    """All jobs that run. Those that have ended are not read again, unless their status changes."""

    running: list[Running] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)  # key -> when its status was written
    next: float = 0.0

    def read(self) -> bool:
        if time.monotonic() < self.next:
            return False
        found = []
        for folder in self.key.iterdir():
            if folder.name.startswith("."):
                continue  # on its way to be deleted
            try:
                written = (folder / "status.json").stat().st_mtime_ns
            except OSError:
                written = 0  # it waits
            if written and self.ended.get(folder.name) == written:
                continue
            try:
                spec, status = jobs.read_spec(folder), jobs.read_status(folder)
            except MiraError:
                continue  # not there yet, or no job
            if status.state in ("waiting", "running"):
                found.append((spec["created"], _running(folder.name, spec, status)))
            elif written:
                self.ended[folder.name] = written
        running = [line for _, line in sorted(found, key=lambda each: -each[0])]
        changed, self.running = running != self.running, running
        self.next = time.monotonic() + SELDOM
        return changed

    def told(self) -> tuple[Any, ...]:
        return (self.running,)


def _running(key: str, spec: Mapping[str, Any], s: jobs.Status) -> Running:
    left = s.seconds_left()
    # In steps that a person reads, so that sessions are not told of every second.
    coarse = None if left is None else round(left / 10) * 10 if left < 120 else round(left / 60) * 60
    percent = round(100 * s.step / s.num_steps) if s.num_steps else None
    return Running(key, spec["name"], spec["kind"], percent, coarse, s.device or None, str(spec.get("owner") or ""))


class Hub:
    """Follows things for sessions; jobs, and whatever else is `Followed`."""

    def __init__(self, period: float = PERIOD) -> None:
        self.period = period
        self._followed: dict[Hashable, Followed] = {}
        self._kept: OrderedDict[Hashable, Followed] = OrderedDict()  # that somebody looked at before, or is about to
        self._unread: list[Followed] = []
        self._lock = threading.Lock()
        self._next = 0
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def follow(self, folder: Path, document: Any, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of a job, its series and its status, as soon as it is read and whenever something is new.

        Reading is done elsewhere: a long training takes a second, in which nobody else must wait. `listener` is called
        in `document`'s turn.

        Returns
        -------
        callable
            Ends it.
        """
        return self.follow_new(FollowedJob(folder), document, listener)

    def follow_all(self, folder: Path, document: Any, listener: Listener) -> Callable[[], None]:
        """Tell `listener` which jobs of a folder wait or run (a list of `Running`, the newest first), as they change.

        Returns
        -------
        callable
            Ends it.
        """
        return self.follow_new(_Jobs(folder), document, listener)

    def read_ahead(self, folder: Path) -> None:
        """Read a job that somebody is about to follow, while their page is on its way."""
        self.read_new(FollowedJob(folder))

    def read_new(self, new: Followed) -> None:
        """Read anything that somebody is about to follow; not again what is known already."""
        with self._lock:
            if new.key in self._followed or new.key in self._kept:
                return
            self._kept[new.key] = new
            self._unread.append(new)
            self._start()

    def known(self, folder: Path) -> tuple[Series, jobs.Status] | None:
        """Return what has been read of a job; None if nothing has yet."""
        with self._lock:
            found = self._followed.get(folder) or self._kept.get(folder)
        return found.told() if isinstance(found, FollowedJob) and found.status is not None else None  # type: ignore[return-value]

    def follow_new(self, new: Followed, document: Any, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of anything, as `follow` does; of what is followed already, `new` is not needed."""
        with self._lock:
            if new.key not in self._followed:
                self._followed[new.key] = self._kept.pop(new.key, new)
            followed = self._followed[new.key]
            number = self._next = self._next + 1
            followed.listeners[number] = (document, listener)
            followed.waiting.add(number)
            self._start()

        def leave() -> None:
            with self._lock:
                self._forget(followed, number)

        return leave

    def _start(self) -> None:
        """Let the thread look at once."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, daemon=True, name="mira-hub")
            self._thread.start()
        self._wake.set()

    def _forget(self, followed: Followed, number: int) -> None:
        followed.listeners.pop(number, None)
        followed.waiting.discard(number)
        followed.telling.discard(number)
        if not followed.listeners and self._followed.pop(followed.key, None) is not None:
            self._kept[followed.key] = followed
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._followed and not self._unread:
                    self._thread = None
                    return
                followed = [*self._unread, *(f for f in self._followed.values() if f not in self._unread)]
                self._unread.clear()
            for f in followed:
                try:
                    changed = f.read()
                except (OSError, ValueError) as problem:
                    logger.warning("a job cannot be read: %s", problem)
                    continue
                self._tell(f, changed)
            self._wake.wait(self.period)
            self._wake.clear()

    def _tell(self, followed: Followed, changed: bool) -> None:
        """Tell listeners; one whose turn has not come since the last time is told later, and then of all at once.

        Else a server with more to draw than it has time for would work off what is long past, and answer nobody.
        """
        with self._lock:
            wanted = set(followed.listeners) if changed else set(followed.waiting)
            ready = wanted - followed.telling
            followed.waiting = wanted - ready
            followed.telling |= ready
            told = {n: followed.listeners[n] for n in ready}
        for number, (document, listener) in told.items():
            turn = functools.partial(self._take_turn, followed, number, document, listener, followed.told())
            try:
                document.add_next_tick_callback(turn)
            except Exception:  # the session has gone
                logger.debug("a session has gone", exc_info=True)
                with self._lock:
                    self._forget(followed, number)

    def _take_turn(
        self, followed: Followed, number: int, document: Any, listener: Listener, told: tuple[Any, ...]
    ) -> None:
        with self._lock:
            followed.telling.discard(number)
        with together(document):
            listener(*told)
