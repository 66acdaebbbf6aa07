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

logger = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two looks

Records = list[dict[str, Any]]
Listener = Callable[[Records, jobs.Status], None]


@dataclass
class _Followed:
    """A job that somebody looks at, and what has been read of it."""

    folder: Path
    records: Records = field(default_factory=list)
    offset: int = 0
    status: jobs.Status = field(default_factory=jobs.Status)
    listeners: dict[int, tuple[Any, Listener]] = field(default_factory=dict)

    def read(self) -> tuple[Records, bool]:
        """Return new records and whether the status changed."""
        # Status first: a job that has ended writes no record after it.
        status = jobs.read_status(self.folder)
        new, self.offset = jobs.read_records(self.folder, self.offset)
        self.records += new
        changed, self.status = status != self.status, status
        return new, changed


class Hub:
    """Follows jobs for sessions."""

    def __init__(self, period: float = PERIOD) -> None:
        self.period = period
        self._followed: dict[Path, _Followed] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._thread: threading.Thread | None = None

    def follow(self, folder: Path, document: Any, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of all records so far, now, and from then on of new ones, in `document`'s turn.

        Returns
        -------
        callable
            Ends it.
        """
        with self._lock:
            followed = self._followed.setdefault(folder, _Followed(folder))
            new, changed = followed.read()
            if new or changed:
                self._tell(followed, new)
            number = self._next = self._next + 1
            so_far = list(followed.records)
            followed.listeners[number] = (document, listener)
            status = followed.status
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True, name="mira-hub")
                self._thread.start()
        listener(so_far, status)

        def leave() -> None:
            with self._lock:
                followed.listeners.pop(number, None)
                if not followed.listeners:
                    self._followed.pop(folder, None)

        return leave

    def _run(self) -> None:
        wait = threading.Event()
        while True:
            wait.wait(self.period)
            with self._lock:
                if not self._followed:
                    self._thread = None
                    return
                for followed in list(self._followed.values()):
                    try:
                        new, changed = followed.read()
                    except OSError as problem:
                        logger.warning("a job cannot be read: %s", problem)
                        continue
                    if new or changed:
                        self._tell(followed, new)

    def _tell(self, followed: _Followed, new: Records) -> None:
        for number, (document, listener) in list(followed.listeners.items()):
            try:
                document.add_next_tick_callback(functools.partial(listener, new, followed.status))
            except Exception:  # the session has gone
                logger.debug("a session has gone", exc_info=True)
                followed.listeners.pop(number, None)
