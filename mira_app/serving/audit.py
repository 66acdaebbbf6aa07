"""Who did what, a line of JSON for each action that changes something, done or refused."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mira_core.errors import MiraError

from .people import AccessError, Person

logger = logging.getLogger(__name__)

LARGEST = 64 * 2**20  # bytes, after which a new file is begun
LONGEST = 500  # letters of a reason


class Audit:
    """Appends to a file, which nobody but its owner can read.

    Parameters
    ----------
    path
        Such as ``WORKSPACE/audit.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def tell(self, person: str, action: str, what: str = "", outcome: str = "done", why: str = "") -> None:
        """Append a line. That it cannot be written is logged, and stops nobody's work.

        Parameters
        ----------
        person, action, what
            Name, empty if there are none; such as ``stop`` and the job's key.
        outcome, why
            ``done``, ``refused`` or ``failed``; and the reason.
        """
        line = {"time": round(time.time(), 3), "person": person, "action": action, "what": what, "outcome": outcome}
        if why:
            line["why"] = why[:LONGEST]
        try:
            self._append(json.dumps(line).encode() + b"\n")
        except OSError as problem:
            logger.error("%s cannot be written (%s); this was not noted: %s", self.path, problem.strerror, line)

    @contextlib.contextmanager
    def of(self, person: Person, action: str, what: str = "") -> Iterator[None]:
        """Tell how what is done within went."""
        try:
            yield
        except AccessError as no:
            self.tell(person.name, action, what, "refused", str(no))
            raise
        except (MiraError, OSError) as wrong:
            self.tell(person.name, action, what, "failed", str(wrong))
            raise
        self.tell(person.name, action, what)

    def _append(self, line: bytes) -> None:
        # One write to a file that is opened to append: lines of several servers do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
            full = os.fstat(descriptor).st_size > LARGEST
        finally:
            os.close(descriptor)
        if full:
            os.replace(self.path, self.path.with_name(time.strftime(f"{self.path.stem}-%Y%m%d-%H%M%S.jsonl")))
