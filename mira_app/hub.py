"""One reader for all pages: follows the jobs that somebody looks at and tells each session what is new.

A thread of its own, so that slow disks never hold up the server; sessions are told through their document's next
tick. The prototype was an asyncio task, which inherited the document of the session that started it.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mira_core import jobs

from .series import Series

logger = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two looks

Listener = Callable[[Series, jobs.Status], None]


@dataclass
class _Followed:
    """A job that somebody looks at, and what has been read of it."""

    folder: Path
    series: Series = field(default_factory=Series)
    offset: int = 0
    status: jobs.Status | None = None
    listeners: dict[int, tuple[Any, Listener]] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)  # listeners that have been told nothing yet

    def read(self) -> bool:
        """Read what is new; return whether there is anything."""
        # Status first: a job that has ended writes no record after it.
        status = jobs.read_status(self.folder)
        if self.status is not None and status.resumed != self.status.resumed:  # it goes on from before where it was
            self.series, self.offset = Series(), 0
        new, self.offset = jobs.read_records(self.folder, self.offset)
        self.series.append(new)
        changed, self.status = bool(new) or status != self.status, status
        return changed


class Hub:
    """Follows jobs for sessions."""

    def __init__(self, period: float = PERIOD) -> None:
        self.period = period
        self._followed: dict[Path, _Followed] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def follow(self, folder: Path, document: Any, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of a job as soon as it is read, and from then on whenever something is new.

        Reading is done elsewhere: a long training takes a second, in which nobody else must wait. `listener` is called
        in `document`'s turn.

        Returns
        -------
        callable
            Ends it.
        """
        with self._lock:
            followed = self._followed.setdefault(folder, _Followed(folder))
            number = self._next = self._next + 1
            followed.listeners[number] = (document, listener)
            followed.waiting.add(number)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True, name="mira-hub")
                self._thread.start()
        self._wake.set()

        def leave() -> None:
            with self._lock:
                followed.listeners.pop(number, None)
                if not followed.listeners:
                    self._followed.pop(folder, None)

        return leave

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._followed:
                    self._thread = None
                    return
                followed = list(self._followed.values())
            for f in followed:
                try:
                    changed = f.read()
                except (OSError, ValueError) as problem:
                    logger.warning("a job cannot be read: %s", problem)
                    continue
                self._tell(f, changed)
            self._wake.wait(self.period)
            self._wake.clear()

    def _tell(self, followed: _Followed, changed: bool) -> None:
        with self._lock:
            told = dict(followed.listeners) if changed else {n: followed.listeners[n] for n in followed.waiting
                                                             if n in followed.listeners}  # fmt: skip
            followed.waiting.clear()
        for number, (document, listener) in told.items():
            try:
                document.add_next_tick_callback(functools.partial(listener, followed.series, followed.status))
            except Exception:  # the session has gone
                logger.debug("a session has gone", exc_info=True)
                with self._lock:
                    followed.listeners.pop(number, None)
                    if not followed.listeners:
                        self._followed.pop(followed.folder, None)
