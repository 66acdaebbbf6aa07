"""The format of a workspace: told by a file, brought up to date when a server starts, never opened if it is newer."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from mira_core import __version__, jobs, processes
from mira_core.errors import MiraError
from mira_core.files import move_into_place, read_json, write_json

from ..dispatching import Entry, memory_of

FILE = "format.json"
BACKUPS = "backups"
# What is small and cannot be made again; counts and models no upgrade touches.
KEPT = ("format.json", "recipes/*.json", "queue/*.json", "jobs/*/*.json")


class WorkspaceError(MiraError):
    """A workspace is of a format that this version cannot open."""


def _with_queue(workspace: Path) -> None:
    """1 -> 2: jobs that wait or run are in the queue."""
    folder = workspace / "queue"
    folder.mkdir(exist_ok=True)
    for job in (workspace / "jobs").glob("*/job.json"):
        try:
            spec, status = jobs.read_spec(job.parent), jobs.read_status(job.parent)
        except MiraError:
            continue
        if status.state in ("waiting", "running") and not (folder / f"{job.parent.name}.json").exists():
            owner = str(spec.get("owner") or "")
            entry = Entry(job.parent.name, owner, spec["created"], memory=memory_of(spec["data"]))
            if status.state == "running":
                entry = replace(entry, started=status.started or spec["created"], machine=processes.this_machine())
            write_json(folder / f"{entry.key}.json", entry.to_dict())


STEPS: dict[int, Callable[[Path], None]] = {1: _with_queue}
FORMAT = 1 + len(STEPS)


def prepare(workspace: Path) -> str:
    """Make a workspace one of this version's format; return what was done, in words, empty if nothing had to be.

    Raises
    ------
    WorkspaceError
        If it is of a newer format, or its file of the format is damaged.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    with FileLock(workspace / ".format.lock"):
        found = format_of(workspace)
        if found > FORMAT:
            raise WorkspaceError(
                f"the workspace {workspace} was written by a newer version of mira (format {found}; {__version__} "
                f"knows up to {FORMAT}). Upgrade mira, or choose another --workspace; nothing was changed"
            )
        if found == FORMAT and (workspace / FILE).is_file():
            return ""
        told = ""
        if found < FORMAT:
            backup = _back_up(workspace, found)
            for step in range(found, FORMAT):
                STEPS[step](workspace)
            told = f"the workspace was brought from format {found} to {FORMAT}; what it was like is in {backup}"
        write_json(workspace / FILE, {"format": FORMAT, "version": __version__})
        return told


def format_of(workspace: Path) -> int:
    """Return a workspace's format; that of one in which nothing is, is this version's.

    Raises
    ------
    WorkspaceError
        If the file that tells it is damaged.
    """
    try:
        told = read_json(workspace / FILE)["format"]
        if not isinstance(told, int) or told < 1:
            raise ValueError(f"format is {told!r}")
    except FileNotFoundError:
        return 1 if any((workspace / "jobs").glob("*/job.json")) or (workspace / "recipes").is_dir() else FORMAT
    except (ValueError, KeyError, TypeError) as problem:
        raise WorkspaceError(
            f"{workspace / FILE} is damaged: {problem}. Restore it from a backup, or write "
            f'{{"format": {FORMAT}}} into it if this version wrote the workspace last'
        ) from None
    return told


def _back_up(workspace: Path, found: int) -> Path:
    """Keep what an upgrade may change; whole, or not at all."""
    folder = workspace / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"format-{found}-{time.strftime('%Y%m%d-%H%M%S')}.zip"
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as out:
        for pattern in KEPT:
            for file in sorted(workspace.glob(pattern)):
                out.write(file, file.relative_to(workspace).as_posix())
    move_into_place(part, path)
    return path
