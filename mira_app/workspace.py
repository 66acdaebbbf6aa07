"""What is on disk: data sets that may be opened, jobs and their results. Knows no widgets."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import secrets
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import pandas as pd

from mira_core import jobs, starting
from mira_core.data import Finding, Recipe, describe, formats, on_disk
from mira_core.data.demo import DEMO, DEMOS
from mira_core.data.inspection.covariates import check_covariates
from mira_core.data.look import Look
from mira_core.data.sources import open_backed
from mira_core.errors import DataError, JobError, MiraError
from mira_core.files import write_json
from mira_core.jobs import STATES
from mira_core.safer import Retry, safer

from .looks import Asked, Looks
from .settings import Settings

NOTHING = Recipe()
REFUSED = ("empty_cells", "duplicate_features")  # findings with which no training begins
PAPERS = (".md", ".txt", ".pdf", ".html", ".log", ".json", ".py", ".r")  # nobody looks for them in a list of data
CHOOSE = ". Choose one of the list on the Data page; its file may have been moved"
KEPT = ("kind", "embedding", *jobs.EXTRAS)  # parts of a specification that a rerun has too
SETS, MOST_SETS = ("*.gmt", "*.gmt.gz", "*.bed", "*.bed.gz"), 500  # files of gene sets and of regions
RUNS, WITH_TOPICS = ("fit",), ("fit", "predict")  # kinds of jobs


@dataclass(frozen=True)
class Source:
    """A data set that can be opened.

    Attributes
    ----------
    key
        ``demo:NAME``, or ``FOLDER/path/below/it.h5ad`` with the folder's number, and ``#`` and the part of a file
        of several data sets; what the URL holds.
    """

    key: str
    label: str
    bytes: int | None = None
    modified: float | None = None


class Listing(NamedTuple):
    """What is in a folder: further folders, and data sets."""

    folders: list[Source]
    sources: list[Source]
    n_others: int = 0  # files that cannot be opened


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
        self.looks = Looks(settings.workspace / "recipes")
        self._started: dict[str, starting.Process] = {}

    # --- data -----------------------------------------------------------------------------------

    def sources(self) -> list[Source]:
        """List demos, then what can be opened below the data folders: an entry for each data set of a file."""
        out = self._demos()
        for number, root in enumerate(self.settings.folders):
            if not root.is_dir():
                continue  # it was there when the server started
            for path in _data_below(root):
                out += self._sources_of(number, path.relative_to(root).as_posix())
        return out

    def _demos(self) -> list[Source]:
        return [Source(f"{DEMO}{name}", text) for name, text in DEMOS.items()]

    def _sources_of(self, number: int, relative: str) -> list[Source]:
        """Return an entry for each data set of one file or folder; none if it holds none."""
        try:
            resolved, _ = self._locate(f"{number}/{relative}")
            modified, size = formats.stamp(resolved)
            parts = _parts(resolved, modified, size)
        except (DataError, OSError):
            return []  # a link that leaves the folder, a file that has just gone, HDF5 that is no data
        shown = None if formats.is_zarr(resolved) and resolved.is_dir() else size  # of its chunks: too slow
        names = [formats.join_part(relative, part) for part in parts]
        return [Source(f"{number}/{name}", name, shown, modified / 1e9) for name in names]

    def browse(self, place: str = "") -> Listing:
        """List one folder: ``""`` the data folders and the demos, else ``NUMBER/path/below/it``.

        Raises
        ------
        DataError
            If it is not one of the data folders, or below one, links resolved.
        """
        if not place:
            folders = [Source(str(i), root.name or str(root)) for i, root in enumerate(self.settings.data)]
            if self.settings.uploads.is_dir():
                folders.append(Source(str(len(folders)), "Uploads"))
            return Listing(folders, self._demos())
        number, _, relative = place.partition("/")
        try:
            root = self.settings.folders[int(number)].resolve(strict=True)
            folder = (root / relative).resolve(strict=True)
            entries = sorted(folder.iterdir())
        except (ValueError, IndexError, OSError, RuntimeError):
            raise DataError(f"there is no folder {place!r} in the data folders") from None
        if not folder.is_relative_to(root) or number.startswith("-"):
            raise DataError(f"there is no folder {place!r} in the data folders")
        folders, sources, n_others = [], [], 0
        for path in entries:
            if path.name.startswith(".") or not _is_inside(path, root) or folder.is_relative_to(path.resolve()):
                continue  # not ours, or a way back to where we are
            name = f"{relative}/{path.name}" if relative else path.name
            if formats.is_data(path) or _is_ondisk(path):
                found = self._sources_of(int(number), name)
                sources += [dataclasses.replace(s, label=s.label.removeprefix(f"{relative}/")) for s in found]
            elif path.is_dir():
                folders.append(Source(f"{number}/{name}", path.name))
            elif path.suffix.lower() not in PAPERS:
                n_others += 1
        return Listing(folders, sources, n_others)

    def feature_sets(self) -> dict[str, Path]:
        """Return label -> path of the .gmt and .bed files below the data folders, links resolved."""
        found: dict[str, Path] = {}
        for root in self.settings.folders:
            for kind in SETS:
                for path in sorted(root.rglob(kind) if root.is_dir() else []):
                    if len(found) < MOST_SETS and path.is_file() and _is_inside(path, root.resolve()):
                        found[f"{root.name}/{path.relative_to(root).as_posix()}"] = path
        return found

    def path_of(self, key: str) -> Path:
        """Return the file or folder behind a key, without the part that the key may name.

        Raises
        ------
        DataError
            If it is not one below the data folders, links resolved, or it links to what is not.
        """
        path, _ = self._locate(key)
        root = self.settings.folders[int(key.partition("/")[0])].resolve()
        if path.is_dir() and not all(inner.resolve().is_relative_to(root) for inner in _links(path)):
            raise DataError(
                f"there is no data set {key!r} in the data folders: it links to what is not in them. Copy it here whole"
            )
        return path

    def _locate(self, key: str) -> tuple[Path, str | None]:
        number, _, relative = key.partition("/")
        try:
            root = self.settings.folders[int(number)].resolve(strict=True)
            path, part = formats.split_part(root / relative)
            path = path.resolve(strict=True)
        except (ValueError, IndexError, OSError, RuntimeError):
            raise DataError(f"there is no data set {key!r} in the data folders{CHOOSE}") from None
        inside = path.is_relative_to(root) and not number.startswith("-")
        if not inside or not (formats.is_data(path) or _is_ondisk(path)):
            raise DataError(f"there is no data set {key!r} in the data folders{CHOOSE}")
        return path, part

    def data_of(self, key: str) -> str:
        """Return what a job calls this data set: ``demo:NAME``, or a path, after which it may name a part."""
        if key.startswith(DEMO):
            return key
        return formats.join_part(self.path_of(key), self._locate(key)[1])

    def describe(self, key: str) -> describe.Description:
        """Describe a data set; the answer is kept until its file changes."""
        return _described(self.data_of(key))

    def can_be_prepared(self, key: str) -> bool:
        """Tell whether a recipe can be applied: not to what was written for training from the disk."""
        return key.startswith(DEMO) or not _is_ondisk(self.path_of(key))

    def look(self, key: str, recipe: Recipe) -> Look:
        """Look at a data set as a recipe leaves it, in a process of its own."""
        data = self.data_of(key)
        return self.looks.look(Asked(data, _stamp(data), recipe))

    def prepared(self, key: str, recipe: Recipe) -> describe.Description:
        """Describe a data set as a recipe leaves it.

        Raises
        ------
        DataError
            If it cannot be opened, or the recipe cannot be done.
        """
        if not recipe.steps:
            return self.describe(key)
        seen = self.look(key, recipe)
        if seen.problem:
            raise DataError(f"{seen.problem}. Change the recipe on the Data page")
        return seen.description

    def refused(self, key: str, recipe: Recipe) -> list[Finding]:
        """Return what is wrong with cells and features that training would refuse, as the recipe leaves them."""
        if not self.can_be_prepared(key):
            return []  # they were checked when it was written
        return [f for f in self.look(key, recipe).findings if f.code in REFUSED]

    def check_covariates(
        self, key: str, recipe: Recipe, categorical: Sequence[str], continuous: Sequence[str]
    ) -> list[Finding]:
        """Say what is wrong with columns of cells as covariates, as the recipe leaves them."""
        data = self.data_of(key)
        if not self.can_be_prepared(key):
            return []  # they were checked when it was written
        obs = open_backed(data).obs
        if recipe.steps:
            obs = obs.iloc[self.look(key, recipe).rows]
        known = [c for c in (*categorical, *continuous) if c in obs]
        return list(
            check_covariates(obs, [c for c in categorical if c in known], [c for c in continuous if c in known])
        )

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
        return self._submit(self.data_of(source), model, name, **more)

    def _submit(self, data: str, model: Mapping[str, Any], name: str, **more: Any) -> str:
        slug = re.sub(r"[^\w]+", "-", name).strip("-")[:40] or "job"
        key = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{secrets.token_hex(2)}"
        folder = self.jobs_folder / key
        jobs.write_spec(folder, data=data, model=model, name=name, **more)
        self._start(key, folder)
        return key

    def _start(self, key: str, folder: Path) -> None:
        starting.shared().prepare()
        with open(folder / "log.txt", "ab") as log, open(os.devnull) as nothing:
            self._started[key] = starting.shared().start("mira_core.run", [str(folder)], nothing, log, log)

    def resume(self, key: str) -> None:
        """Go on with a job that was stopped or died, from its last checkpoint."""
        folder = self.folder_of(key)
        jobs.resume(folder)
        self._start(key, folder)

    def retry(self, key: str) -> Retry:
        """Return what to change before a job that failed is tried again."""
        spec, status = jobs.read_spec(self.folder_of(key)), jobs.read_status(self.folder_of(key))
        data = spec["data"]
        described = _described(data)
        return safer(spec["model"], status.error, described.n_cells, described.n_features)

    def rerun(self, key: str) -> str:
        """Start a job anew: one that failed with safer options, any other as it was. Return the new key."""
        folder = self.folder_of(key)
        spec = jobs.read_spec(folder)
        changes = self.retry(key).changes if jobs.read_status(folder).state == "failed" else {}
        more = {k: spec[k] for k in KEPT if k in spec}
        return self._submit(spec["data"], {**spec["model"], **changes}, spec["name"], **more)

    # --- before a job ---------------------------------------------------------------------------

    def test_learning_rates(self, source: str, model: Mapping[str, Any], recipe: Recipe = NOTHING) -> str:
        """Start a range test; return its key."""
        without = {k: v for k, v in model.items() if k not in ("min_learning_rate", "max_learning_rate")}
        return self._submit(
            self.data_of(source), without, "learning rates", kind="range_test", recipe=recipe if recipe.steps else None
        )

    def is_of(self, key: str, source: str, recipe: Recipe = NOTHING) -> bool:
        """Tell whether a job is of this data set, done to as the recipe says."""
        spec = jobs.read_spec(self.folder_of(key))
        return spec["data"] == self.data_of(source) and Recipe.from_dict(spec.get("recipe") or []) == recipe

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
            values = json.loads((self.folder_of(key) / "result" / name).read_bytes())
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
        spec = {"data": self.data_of(source), "model": dict(model), "test_size": test_size}
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

    def _reap(self) -> None:
        """Collect the processes that have ended; one that could not even begin is told as a failure."""
        for key, process in list(self._started.items()):
            ended = process.poll()
            if ended is None:
                continue
            del self._started[key]
            folder = self.jobs_folder / key
            if ended and jobs.read_status(folder).state == "waiting":
                error = {
                    "type": "JobError",
                    "message": f"the process ended with status {ended} before it began",
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

    def specs(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return key and specification of each job of a kind, the newest first."""
        found = []
        for folder in self.jobs_folder.iterdir():
            try:
                spec = jobs.read_spec(folder)
            except MiraError:
                continue
            if spec["kind"] == kind:
                found.append((folder.name, spec))
        yield from sorted(found, key=lambda each: -each[1]["created"])

    def labels(self, only: Container[str] = STATES, kinds: Container[str] = RUNS) -> dict[str, str]:
        """Return label -> key of the jobs in these states and of these kinds, the newest first."""
        out: dict[str, str] = {}
        for job in self.jobs():
            if job.status.state in only and job.spec.get("kind", "fit") in kinds:
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


def label_of(key: str) -> str:
    """Return a data set's name for people."""
    return key.removeprefix(DEMO) if key.startswith(DEMO) else key.partition("/")[2]


def _told(value: Any) -> str:
    return "not given" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _stamp(data: str) -> tuple[int, int]:
    return (0, 0) if data.startswith(DEMO) else formats.stamp(formats.split_part(data)[0])


def _described(data: str) -> describe.Description:
    return _describe(data, _stamp(data))


@functools.lru_cache(maxsize=32)
def _describe(data: str, stamp: tuple[int, int]) -> describe.Description:
    if data.startswith(DEMO) or not _is_ondisk(Path(data)):
        return describe.describe(open_backed(data))
    dataset = on_disk.OnDiskDataset(data)
    written = dataset.manifest["options"]
    told = ", ".join(f"{key}={value!r}" for key, value in written.items() if value is not None)
    return dataclasses.replace(
        describe.describe(dataset.table()),
        layers=(describe.Layer(written["counts_layer"], ""),),  # its counts were checked when it was written
        source=f"Written for training from the disk, for a model of {told}",
    )


@functools.lru_cache(maxsize=1024)
def _parts(path: Path, modified: int, size: int) -> tuple[str | None, ...]:
    """Name the data sets of a file; one that is damaged is listed too, and says so when it is opened."""
    if path.suffix == ".h5ad" or _is_ondisk(path):
        return (None,)
    try:
        return tuple(formats.contents(path).names()) or (None,)
    except DataError:
        if path.suffix in (".h5", ".hdf5"):  # as many other things are
            raise
        return (None,)


def _data_below(root: Path) -> Iterator[Path]:
    """Yield files and folders that may be data, in order; links to folders are not followed."""
    if not root.is_dir():
        return
    if formats.is_data(root) or _is_ondisk(root):
        yield root
        return
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.is_symlink():
                with contextlib.suppress(OSError):  # not ours to read
                    yield from _data_below(path)
        elif formats.is_data(path):
            yield path


def _is_ondisk(path: Path) -> bool:
    return (path / on_disk.MANIFEST).is_file()


def _is_inside(path: Path, root: Path) -> bool:
    """Tell whether something lies below a folder, links resolved; those that lead in a circle lie nowhere."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        return False


def _links(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:  # which tells links without asking for each
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(Path(entry.path))


@functools.lru_cache(maxsize=4)
def _cells(path: Path, modified: int) -> ad.AnnData:
    return ad.read_h5ad(path)
