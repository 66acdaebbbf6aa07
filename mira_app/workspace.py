"""The jobs of a workspace and their results, as one person sees and may change them. Knows no widgets."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
import secrets
import shutil
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from mira_core import jobs, starting
from mira_core.data import Recipe
from mira_core.data.demo import DEMO
from mira_core.errors import JobError, MiraError
from mira_core.files import end_of, read_json, write_json
from mira_core.jobs import STATES
from mira_core.safer import Retry, safer

from . import engines
from .datasets import DataSets, described
from .disk import DELETED, Disk
from .dispatching import Dispatcher
from .looks import Looks
from .serving.audit import Audit
from .serving.people import ALONE, Person, Who
from .settings import Settings

NOTHING = Recipe()
KEPT = ("kind", "embedding", *jobs.EXTRAS)  # parts of a specification that a rerun has too
RUNS, WITH_TOPICS = ("fit",), ("fit", "predict")  # kinds of jobs
SHARED = "shared.json"  # of a job's folder: with whom


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
    """The jobs that one person sees; whatever they ask for is checked against their role here.

    Parameters
    ----------
    settings
        Where all is kept.
    who
        Tells who asks, at each time; by default somebody who may do all.

    Attributes
    ----------
    data
        What may be opened.
    dispatcher
        The queue.
    audit
        Where it is noted who did what.
    """

    def __init__(self, settings: Settings, who: Who = lambda: ALONE) -> None:
        self.settings, self.who = settings, who
        self.jobs_folder = settings.workspace / "jobs"
        self.jobs_folder.mkdir(parents=True, exist_ok=True)
        self.looks = Looks(settings.workspace / "recipes")
        self.data = DataSets(settings, self.looks, who)
        self.dispatcher = Dispatcher(settings, engines.of(settings.dask))
        self.disk = Disk(settings)
        self.people = settings.people()
        self.audit = Audit(settings.workspace / "audit.jsonl")
        self._ended: dict[str, tuple[list[Any], Job]] = {}  # as read once, with what was read

    def seen_by(self, who: Who) -> Workspace:
        """Return the same workspace, as somebody sees it."""
        other = copy.copy(self)
        other.who, other.data = who, DataSets(self.settings, self.looks, who)
        return other

    # --- whose a job is -------------------------------------------------------------------------

    @property
    def person(self) -> Person:
        """Who asks."""
        return self.who()

    def sees(self, key: str, owner: str) -> bool:
        """Tell whether this person may see a job of an owner."""
        return may_see(self.person, self.jobs_folder / key, owner)

    def shared_with(self, key: str) -> tuple[str, ...]:
        """Return the names of those with whom a job is shared, `mira_app.serving.people.EVERYONE` for all."""
        return _shared_with(self.jobs_folder / key)

    def share(self, key: str, names: Sequence[str]) -> None:
        """Let others see a job, and no others any more.

        Raises
        ------
        JobError, AccessError
            If there is no such job, or it is somebody else's.
        """
        folder = self.folder_of(key)
        with self._changing("share", key):
            write_json(folder / SHARED, {"with": sorted(set(names))})

    def may_change(self, key: str) -> bool:
        """Tell whether a job that this person sees is theirs to change."""
        return self.person.may("admin") or self.person.owns(owner_of(jobs.read_spec(self.folder_of(key))))

    @contextlib.contextmanager
    def _changing(self, action: str, key: str) -> Iterator[None]:
        """Do something to a job, if it is this person's to change."""
        with self.audit.of(self.person, action, key):
            self.person.must_own(owner_of(jobs.read_spec(self.folder_of(key))))
            yield

    # --- jobs -----------------------------------------------------------------------------------
    def folder_of(self, key: str) -> Path:
        """Return a job's folder.

        Raises
        ------
        JobError
            If there is none of this name.
        """
        folder = self.jobs_folder / key
        if not re.fullmatch(r"[\w-]+", key) or not (folder / "job.json").is_file():
            raise JobError(f"there is no job {key!r}")
        # Who sees all need not be asked of each, which would read each file.
        if not self.person.may("admin") and not self.sees(key, owner_of(jobs.read_spec(folder))):
            raise JobError(f"there is no job {key!r}, or it is not shared with you")
        return folder

    def submit(self, source: str, model: Mapping[str, Any], name: str | None = None, **more: Any) -> str:
        """Write a job and start it as a process of its own, which outlives this server.

        Parameters
        ----------
        source, model, name
            Key of the data, options, and what to call it.
        **more
            Further parts of the specification, see `mira_core.jobs.write_spec`.

        Returns
        -------
        str
            The job's key.
        """
        name = name or source.removeprefix(DEMO).rsplit("/", 1)[-1].removesuffix(".h5ad")
        return self._submit(self.data.data_of(source), model, name, **more)

    def _submit(self, data: str, model: Mapping[str, Any], name: str, **more: Any) -> str:
        slug = re.sub(r"[^\w]+", "-", name).strip("-")[:40] or "job"
        key = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{secrets.token_hex(2)}"
        with self.audit.of(self.person, f"begin {more.get('kind', 'fit')}", key):
            self.person.must_be("user")
            self.check_quota()
            with self.dispatcher.put(key, data, self.person.name, _jobs_of(more)):
                jobs.write_spec(
                    self.jobs_folder / key, data=data, model=model, name=name, owner=self.person.name or None, **more
                )
        return key

    def resume(self, key: str) -> None:
        """Go on with a job that was stopped or died, from its last checkpoint."""
        folder = self.folder_of(key)
        with self._changing("resume", key):
            self.check_quota()
            spec = jobs.read_spec(folder)
            with self.dispatcher.put(key, spec["data"], owner_of(spec), _jobs_of(spec)):
                jobs.resume(folder)

    def retry(self, key: str) -> Retry:
        """Return what to change before a job that failed is tried again."""
        spec, status = jobs.read_spec(self.folder_of(key)), jobs.read_status(self.folder_of(key))
        data = spec["data"]
        told = described(data)
        return safer(spec["model"], status.error, told.n_cells, told.n_features)

    def rerun(self, key: str) -> str:
        """Start a job anew: one that failed with safer options, any other as it was. Return the new key.

        Raises
        ------
        JobError
            If it is a tuning, which would go on with its study, whosever that is.
        """
        folder = self.folder_of(key)
        spec = jobs.read_spec(folder)
        if spec["kind"] == "tune":
            raise JobError(f"the study {spec['name']!r} is gone on with on the Tune page, or another one begun there")
        changes = self.retry(key).changes if jobs.read_status(folder).state == "failed" else {}
        more = {k: spec[k] for k in KEPT if k in spec}
        return self._submit(spec["data"], {**spec["model"], **changes}, spec["name"], **more)

    # --- before a job ---------------------------------------------------------------------------

    def test_learning_rates(self, source: str, model: Mapping[str, Any], recipe: Recipe = NOTHING) -> str:
        """Start a range test; return its key."""
        without = {k: v for k, v in model.items() if k not in ("min_learning_rate", "max_learning_rate")}
        done = recipe if recipe.steps else None
        return self._submit(self.data.data_of(source), without, "learning rates", kind="range_test", recipe=done)

    def is_of(self, key: str, source: str, recipe: Recipe = NOTHING) -> bool:
        """Tell whether a job is of this data set, done to as the recipe says."""
        spec = jobs.read_spec(self.folder_of(key))
        return spec["data"] == self.data.data_of(source) and Recipe.from_dict(spec.get("recipe") or []) == recipe

    def curve(self, key: str) -> dict[str, Any] | None:
        """Return what a range test told, None if it told nothing."""
        return self.result(key, "curve.json")

    def estimate_topics(self, data: str, model: Mapping[str, Any], recipe: Any = None) -> str:
        """Start an estimate of the number of topics; return its key. `data` is as a job names it."""
        without = {k: v for k, v in model.items() if k != "num_topics"}
        return self._submit(data, without, "number of topics", kind="gradient_tune", recipe=recipe)

    def result(self, key: str, name: str) -> dict[str, Any] | None:
        """Return what a job left in a JSON file of its results, None if there is none."""
        try:
            values = read_json(self.folder_of(key) / "result" / name)
        except (FileNotFoundError, ValueError):
            return None
        return values if isinstance(values, dict) else None

    def estimate(
        self, source: str, model: Mapping[str, Any], test_size: float | None = None, recipe: Recipe = NOTHING
    ) -> str:
        """Say how long a training would take and how much memory, after a few steps in a process of its own.

        Raises
        ------
        JobError
            If it cannot be told.
        """
        with self.audit.of(self.person, "estimate", source):
            self.person.must_be("user")
        spec = {"data": self.data.data_of(source), "model": dict(model), "test_size": test_size}
        if recipe.steps:
            spec["recipe"] = recipe.to_dict()
        try:
            told = json.loads(starting.shared().run("mira_core.estimate", ["-"], json.dumps(spec), timeout=300).stdout)
        except (ValueError, TimeoutError) as problem:
            raise JobError(f"a few steps could not be taken: {problem}") from problem
        if "error" in told:
            raise JobError(told["error"]["message"])
        minutes = told["seconds"] / 60
        length = f"{told['seconds']:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
        if minutes > 120:
            length = f"{minutes / 60:.1f} hours"
        device = f" and {told['device_memory'] / 1e9:.1f} GB on the GPU" if told.get("device_memory") else ""
        return (
            f"About <b>{length}</b> on {told['device']}, {told['num_steps']:,} steps, "
            f"<b>{told['memory'] / 1e9:.1f} GB</b> of memory{device}. Reading the data and the embedding come on top."
        )

    def differences(self, keys: Sequence[str]) -> pd.DataFrame:
        """Return the options in which jobs differ, one row each; what was not given is left to recommendation."""
        specs = [jobs.read_spec(self.folder_of(key)) for key in keys]
        rows = {"data": [Path(s["data"]).name for s in specs]}
        rows["recipe"] = [str(Recipe.from_dict(s["recipe"])) if s.get("recipe") else "none" for s in specs]
        names = dict.fromkeys(name for s in specs for name in s["model"])
        rows |= {name: [_told(s["model"].get(name)) for s in specs] for name in names}
        labels = [s["name"] + time.strftime(" %H:%M:%S", time.localtime(s["created"])) for s in specs]
        differ = {name: values for name, values in rows.items() if len(set(values)) > 1}
        return pd.DataFrame([[name, *values] for name, values in differ.items()], columns=["option", *labels])

    def stop(self, key: str) -> None:
        """Ask a job to stop; one that waits in the queue is not begun."""
        folder = self.folder_of(key)
        with self._changing("stop", key):
            if not self.dispatcher.withdraw(key):
                jobs.request_stop(folder)

    def prefer(self, key: str, priority: int) -> None:
        """Let a job that waits begin before those with a lower priority, or after those with a higher one.

        Raises
        ------
        JobError, AccessError
            If it does not wait, or this is no admin.
        """
        self.folder_of(key)
        with self.audit.of(self.person, f"priority {priority}", key):
            self.person.must_be("admin")
            self.dispatcher.prefer(key, priority)

    def delete(self, key: str) -> None:
        """Delete a job that has ended, and its results.

        Raises
        ------
        JobError, AccessError
            If it runs or waits, others need what it made, or it is somebody else's.
        """
        folder = self.folder_of(key)
        with self._changing("delete", key):
            status = jobs.read_status(folder)
            if not status.ended_already and status.state != "silent":
                raise JobError(f"the job {key!r} is {status.state}; stop it before it is deleted")
            if jobs.read_spec(folder)["kind"] == "tune":
                raise JobError(f"the job {key!r} goes with its study, which says whose it is; delete that")
            if needed := self.needed_by(key):
                raise JobError(f"the job {key!r} cannot be deleted, as its model is needed by {', '.join(needed)}")
            self.discard(key)

    def discard(self, key: str) -> None:
        """Remove a job's folder, whatever it is; see `delete`."""
        gone = self.jobs_folder / f"{DELETED}{key}"
        (self.jobs_folder / key).rename(gone)  # at once, whatever happens while its files go
        shutil.rmtree(gone, ignore_errors=True)

    def needed_by(self, key: str) -> list[str]:
        """Return the names of the jobs that use what this one made."""
        folder = self.jobs_folder / key
        out = []
        for other in self._all():
            uses = [str(other.spec.get("predict", {}).get("model", "")), str(other.spec["data"])]
            if other.key != key and any(Path(path).is_relative_to(folder) for path in uses):
                out.append(other.spec["name"])
        return out

    def check_quota(self, more: int = 0) -> None:
        """Do nothing if this person may fill more of the disk, by so many bytes.

        Raises
        ------
        JobError
            If not.
        """
        self.disk.check(self.person, self._theirs(), more)

    def _theirs(self) -> Iterator[Path]:
        """Yield the folders that this person's jobs and uploads are in; of who has no name, all."""
        name = self.person.name
        yield from (self.jobs_folder / job.key for job in self._all() if not name or owner_of(job.spec) == name)
        yield self.data.uploads

    def keep_recipe(self, recipe: Recipe, label: str) -> str:
        """Keep a recipe; return its key, empty if it has no steps.

        Raises
        ------
        AccessError
            If this person only looks.
        """
        self.person.must_be("user")
        return self.looks.keep(recipe, label, self.person.name)

    def recipes(self) -> dict[str, str]:
        """Return label -> key of the recipes of this person, the newest first; an admin's are all."""
        return self.looks.recipes(None if self.person.may("admin") else self.person.name)

    def folder_for_upload(self, name: str, size: int) -> Path:
        """Return where a file of this name and of so many bytes may go that this person uploads.

        Raises
        ------
        JobError, AccessError
            If there is no room for it, or they only look.
        """
        with self.audit.of(self.person, f"upload of {size} bytes", name):
            self.person.must_be("user")
            self.check_quota(size)
        return self.data.uploads

    def names(self) -> list[str]:
        """Return the names of those with whom something may be shared, as far as they are known here."""
        known = {owner_of(job.spec) for job in self.jobs()}
        if self.people.accounts is not None:
            known |= {account.name for account in self.people.accounts.all()}
        return sorted(known - {"", self.person.name})

    def room(self) -> str:
        """Say how much of the disk this person uses and may, and how much is free."""
        return self.disk.room(self.person, self._theirs())

    def jobs(self) -> list[Job]:
        """List the jobs that this person sees, the newest first; folders that are no jobs are passed over."""
        return [job for job in self._all() if self.sees(job.key, owner_of(job.spec))]

    def _folders(self) -> Iterator[Path]:
        return (folder for folder in self.jobs_folder.iterdir() if not folder.name.startswith("."))

    def _all(self) -> list[Job]:
        found = []
        for folder in self._folders():
            with contextlib.suppress(MiraError):
                found.append(self._job(folder))
        for gone in self._ended.keys() - {job.key for job in found}:
            self._ended.pop(gone, None)
        return sorted(found, key=lambda job: -job.spec["created"])

    def _job(self, folder: Path) -> Job:
        """Read a job, which may be one of thousands: what has ended is read again only where a file was replaced."""
        files = [_version(folder / name) for name in ("job.json", "status.json")]
        if (known := self._ended.get(folder.name)) and known[0] == files:
            return known[1]
        job = Job(folder.name, jobs.read_spec(folder), jobs.read_status(folder))
        if job.status.state in ("finished", "stopped", "failed"):  # of which no process need be looked for
            self._ended[folder.name] = files, job
        return job

    def specs(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Return key and specification of each job of a kind, the newest first."""
        return ((job.key, job.spec) for job in self.jobs() if job.spec["kind"] == kind)

    def labels(self, only: Container[str] = STATES, kinds: Container[str] = RUNS) -> dict[str, str]:
        """Return label -> key of the jobs in these states and of these kinds, the newest first."""
        out: dict[str, str] = {}
        for job in self.jobs():
            if job.status.state in only and job.spec.get("kind", "fit") in kinds:
                owner = owner_of(job.spec)
                label = job.label if owner in ("", self.person.name) else f"{job.label} · {owner}"
                out[label if label not in out else f"{label} · {job.key[-4:]}"] = job.key
        return out

    def log(self, key: str) -> str:
        """Return the end of a job's log."""
        try:
            return end_of(self.folder_of(key) / "log.txt")
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


def may_see(person: Person, folder: Path, owner: str) -> bool:
    """Tell whether somebody may see a job of an owner, whose folder this is."""
    return person.sees(owner) or person.sees(owner, _shared_with(folder))


def _version(path: Path) -> tuple[int, int, int] | None:
    """Tell a file from the one that takes its place."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def _shared_with(folder: Path) -> tuple[str, ...]:
    try:
        told = read_json(folder / SHARED)
        return tuple(str(name) for name in told["with"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def owner_of(spec: Mapping[str, Any]) -> str:
    """Return whose a job is; empty if it is nobody's, as it was begun where there are no accounts."""
    return str(spec.get("owner") or "")


def _jobs_of(spec: Mapping[str, Any]) -> int:
    """Return how many trials a job runs at once."""
    return int((spec.get("tune") or {}).get("n_jobs") or 1)


def _told(value: Any) -> str:
    return "not given" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@functools.lru_cache(maxsize=4)
def _cells(path: Path, modified: int) -> ad.AnnData:
    return ad.read_h5ad(path)
