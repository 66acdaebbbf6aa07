"""What is on disk: data sets that may be opened, jobs and their results. Knows no widgets."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad

from mira_core import jobs, processes
from mira_core.data import anndata_io, describe
from mira_core.data.demo import DEMOS, load_demo
from mira_core.errors import DataError, JobError, MiraError
from mira_core.files import write_json
from mira_core.jobs import STATES

from .settings import Settings


@dataclass(frozen=True)
class Source:
    """A data set that can be opened.

    Attributes
    ----------
    key
        ``demo:NAME``, or ``FOLDER/path/below/it.h5ad`` with the folder's number; what the URL holds.
    """

    key: str
    label: str
    bytes: int | None = None
    modified: float | None = None


@dataclass(frozen=True)
class Job:
    """A job's folder, as lists show it."""

    key: str
    spec: Mapping[str, Any]
    status: jobs.Status

    @property
    def label(self) -> str:
        """Name and time, for people."""
        when = time.strftime("%d %b %H:%M:%S", time.localtime(self.spec["created"]))
        return f"{self.spec['name']} · {when}"


class Workspace:
    """Data folders and the folder of jobs.

    Parameters
    ----------
    settings
        Where they are.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.jobs_folder = settings.workspace / "jobs"
        self.jobs_folder.mkdir(parents=True, exist_ok=True)
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    # --- data -----------------------------------------------------------------------------------

    def sources(self) -> list[Source]:
        """List demos, then .h5ad files below the data folders."""
        out = [Source(f"demo:{name}", text) for name, text in DEMOS.items()]
        for number, root in enumerate(self.settings.data):
            for path in sorted(root.rglob("*.h5ad")):
                key = f"{number}/{path.relative_to(root).as_posix()}"
                try:
                    info = self.path_of(key).stat()
                except (DataError, OSError):
                    continue  # a link that leaves the folder, or a file that has just gone
                out.append(Source(key, path.relative_to(root).as_posix(), info.st_size, info.st_mtime))
        return out

    def path_of(self, key: str) -> Path:
        """Return the file behind a key.

        Raises
        ------
        DataError
            If it is not a file below one of the data folders, links resolved.
        """
        number, _, relative = key.partition("/")
        try:
            root = self.settings.data[int(number)].resolve(strict=True)
            path = (root / relative).resolve(strict=True)
        except (ValueError, IndexError, OSError, RuntimeError):
            raise DataError(f"there is no data set {key!r} in the data folders") from None
        if not path.is_relative_to(root) or not path.is_file() or path.suffix != ".h5ad" or number.startswith("-"):
            raise DataError(f"there is no data set {key!r} in the data folders")
        return path

    def data_of(self, key: str) -> str:
        """Return what a job calls this data set: ``demo:NAME`` or a path."""
        return key if key.startswith("demo:") else str(self.path_of(key))

    def describe(self, key: str) -> describe.Description:
        """Describe a data set; the answer is kept until its file changes."""
        if key.startswith("demo:"):
            return _describe(key, 0.0)
        path = self.path_of(key)
        return _describe(str(path), path.stat().st_mtime)

    # --- jobs -----------------------------------------------------------------------------------

    def folder_of(self, key: str) -> Path:
        """Return a job's folder.

        Raises
        ------
        JobError
            If there is none of this name.
        """
        if not re.fullmatch(r"[\w-]+", key) or not (self.jobs_folder / key / "job.json").is_file():
            raise JobError(f"there is no job {key!r}")
        return self.jobs_folder / key

    def submit(self, source: str, model: Mapping[str, Any], name: str | None = None) -> str:
        """Write a job and start it as a process of its own, which outlives this server.

        Returns
        -------
        str
            The job's key.
        """
        name = name or source.removeprefix("demo:").rsplit("/", 1)[-1].removesuffix(".h5ad")
        slug = re.sub(r"[^\w]+", "-", name).strip("-")[:40] or "job"
        key = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{secrets.token_hex(2)}"
        folder = self.jobs_folder / key
        jobs.write_spec(folder, data=self.data_of(source), model=model, name=name)
        with open(folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mira_core.run", str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **processes.ENVIRONMENT},
            )  # fmt: skip
        self._started[key] = process
        return key

    def _reap(self) -> None:
        """Collect the processes that have ended; one that could not even begin is told as a failure."""
        for key, process in list(self._started.items()):
            if process.poll() is None:
                continue
            del self._started[key]
            folder = self.jobs_folder / key
            if process.returncode and jobs.read_status(folder).state == "waiting":
                error = {
                    "type": "JobError",
                    "message": f"the process ended with status {process.returncode} before it began",
                    "traceback": self.log(key),
                }
                failed = jobs.Status(state="failed", ended=time.time(), error=error)
                write_json(folder / "status.json", dataclasses.asdict(failed))

    def stop(self, key: str) -> None:
        """Ask a job to stop."""
        jobs.request_stop(self.folder_of(key))

    def jobs(self) -> list[Job]:
        """List all jobs, the newest first; folders that are no jobs are passed over."""
        self._reap()
        out = []
        for folder in self.jobs_folder.iterdir():
            try:
                out.append(Job(folder.name, jobs.read_spec(folder), jobs.read_status(folder)))
            except MiraError:
                continue
        return sorted(out, key=lambda j: -j.spec["created"])

    def labels(self, only: Container[str] = STATES) -> dict[str, str]:
        """Return label -> key of the jobs in these states, the newest first."""
        out: dict[str, str] = {}
        for job in self.jobs():
            if job.status.state in only:
                out[job.label if job.label not in out else f"{job.label} · {job.key[-4:]}"] = job.key
        return out

    def log(self, key: str, last: int = 20_000) -> str:
        """Return the end of a job's log."""
        try:
            return (self.folder_of(key) / "log.txt").read_bytes()[-last:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def cells(self, key: str) -> ad.AnnData:
        """Return a job's cells with their topics.

        Raises
        ------
        JobError
            If there is no such job or it has no result yet.
        """
        path = self.folder_of(key) / "result" / "cells.h5ad"
        if not path.is_file():
            raise JobError(f"the job {key!r} has no topics yet")
        return _cells(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _describe(data: str, modified: float) -> describe.Description:
    if data.startswith("demo:"):
        return describe.describe(load_demo(data.removeprefix("demo:")))
    return describe.describe(anndata_io.open_data(data, backed=True))


@functools.lru_cache(maxsize=4)
def _cells(path: Path, modified: int) -> ad.AnnData:
    return ad.read_h5ad(path)
