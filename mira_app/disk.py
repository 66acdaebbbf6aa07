"""How much of the disk people use, and what can go without anybody missing it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mira_core import jobs
from mira_core.errors import JobError, MiraError

from .serving.people import Person
from .settings import Settings

FRESH = 30.0  # seconds for which a folder's size is believed
OLD = 7 * 86400.0  # seconds after which what can be made again may go
LEAST_FREE = 2**28  # bytes of the disk with which no further job begins
DELETED = ".deleted-"  # how what is on its way to be is called


@dataclass(frozen=True)
class Unneeded:
    """A file or folder that may go.

    Attributes
    ----------
    path, bytes, why
        What it is, how large, and why nothing needs it.
    """

    path: Path
    bytes: int
    why: str


class Disk:
    """The disk that a workspace lies on.

    Parameters
    ----------
    settings
        Where the workspace is, and how much of it one person may fill.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._sizes: dict[Path, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def size(self, folder: Path) -> int:
        """Return the bytes of a folder, as they were half a minute ago at most."""
        with self._lock:
            when, size = self._sizes.get(folder, (-FRESH, 0))
        if time.monotonic() - when > FRESH:
            size = size_of(folder)
            with self._lock:
                self._sizes[folder] = time.monotonic(), size
                if len(self._sizes) > 10_000:
                    self._sizes.clear()
        return size

    def check(self, person: Person, theirs: Iterable[Path], more: int = 0) -> None:
        """Do nothing if there is room for `more` bytes and something of a person, whose folders these are.

        Raises
        ------
        JobError
            If not.
        """
        free = shutil.disk_usage(self.settings.workspace).free
        if free < LEAST_FREE:
            raise JobError(
                f"the disk of the workspace is full ({free / 1e9:.2f} GB are free), so that nothing could be kept. "
                "Delete runs on the Jobs page, or ask who keeps this server"
            )
        quota = self.settings.quota
        if not quota or not person.name or person.may("admin"):
            return
        used = sum(self.size(folder) for folder in theirs)
        if used + more >= quota:
            raise JobError(
                f"your runs and uploads take {used / 1e9:.1f} GB, and {quota / 1e9:.1f} GB are yours. Delete runs that "
                "you no longer need on the Jobs page"
            )

    def room(self, person: Person, theirs: Iterable[Path]) -> str:
        """Say how much a person uses and may, and how much is free."""
        used = sum(self.size(folder) for folder in theirs)
        free = shutil.disk_usage(self.settings.workspace).free
        bound = self.settings.quota if person.name and not person.may("admin") else 0
        of = f" of {bound / 1e9:.0f}" if bound else ""
        return f"{used / 1e9:.1f}{of} GB used, {free / 1e9:.0f} GB of the disk free"


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all in a folder; what goes meanwhile counts nothing."""
    total = 0
    with contextlib.suppress(OSError):
        if not path.is_dir():
            return path.stat().st_size
        with os.scandir(path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    inner = entry.is_dir(follow_symlinks=False)
                    total += size_of(Path(entry)) if inner else entry.stat(follow_symlinks=False).st_size
    return total


def unneeded(settings: Settings, now: float | None = None) -> list[Unneeded]:
    """List what can go: what can be made again and nobody has asked for in a week, and what was left half done.

    No result, no study's model and no file that somebody uploaded is among it. Models of trials go with their study
    alone, as a model whose study is not in this storage may be of a study in another.

    Parameters
    ----------
    settings
        Where the workspace is.
    now
        Time; by default it is.
    """
    now = time.time() if now is None else now
    found = [*_of_jobs(settings.workspace / "jobs", now), *_half_done(settings.uploads, now)]
    return [Unneeded(path, size_of(path), why) for path, why in found]


def remove(found: Iterable[Unneeded]) -> int:
    """Remove what `unneeded` listed; return how many bytes went."""
    gone = 0
    for each in found:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(each.path) if each.path.is_dir() else each.path.unlink()
            gone += each.bytes
    return gone


def _of_jobs(folder: Path, now: float) -> Iterator[tuple[Path, str]]:
    for job in sorted(folder.iterdir()) if folder.is_dir() else []:
        if job.name.startswith(DELETED):
            yield job, "it was deleted, and the server ended meanwhile"
            continue
        try:
            status = jobs.read_status(job)
            jobs.read_spec(job)
        except MiraError:
            continue  # not a job, or one of a newer version
        exports = job / "exports"
        if exports.is_dir():
            for path in exports.iterdir():
                if _older(path, now, OLD):
                    yield path, "an export that can be made again"
        checkpoint = job / "checkpoint.safetensors"
        if status.state == "finished" and checkpoint.is_file():
            yield checkpoint, "the training has finished, and goes on no more"


def _half_done(uploads: Path, now: float) -> Iterator[tuple[Path, str]]:
    for path in sorted(uploads.rglob(".*.part")) if uploads.is_dir() else []:
        if _older(path, now, 86400.0):
            yield path, "an upload that did not end"


def _older(path: Path, now: float, seconds: float) -> bool:
    try:
        return now - path.stat().st_mtime > seconds
    except OSError:
        return False
