"""What the runs of a workspace have to show, shared by all sessions."""

from __future__ import annotations

import functools
from pathlib import Path

from mira_core.errors import JobError

from .cells import Cells
from .values import Values

KEPT = 4  # runs; the topics of a million cells take 80 MB


def values_of(folder: Path) -> Values:
    """Return cells of a job, and what they can be coloured by.

    Raises
    ------
    JobError
        If the job has no topics yet.
    """
    path = folder / "result" / "cells.h5ad"
    if not path.is_file():
        raise JobError(f"the job {folder.name!r} has no topics yet")
    return _values(folder, path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=KEPT)
def _values(folder: Path, path: Path, modified: int) -> Values:
    return Values.of_run(folder, Cells(path))


def ready(folder: Path) -> Values:
    """Return the same with all that is drawn first, which may take long."""
    values = values_of(folder)
    cells = values.cells
    _ = cells.xy, cells.main, cells.categorical, cells.labels
    return values
