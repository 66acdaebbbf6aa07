"""Run one job from its folder: ``python -m mira_core.run FOLDER``.

SIGTERM, SIGINT or a file named ``stop`` in the folder stop it at the next step; the model trained so far is kept. A
training that was stopped or died goes on after the last epoch of its checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import anndata as ad
import numpy as np

from . import jobs
from .data import loaders, sources
from .data.anndata_io import obs_column
from .data.demo import load_demo
from .data.recipe import Recipe, prepare
from .errors import CheckpointError, JobError, MiraError, OptionError
from .estimators.topic_model import TopicModel, load_model
from .files import write_json
from .records import EpochRecord, RangeRecord, Record
from .reporting import Reporter, Requests
from .training import range_test
from .training.range_options import RangeOptions
from .training.range_test import LearningRateCurve

logger = logging.getLogger(__name__)

FLUSH = 0.1  # seconds after which records must be readable by others
KEEP_EVERY = 5.0  # seconds between two checkpoints, at least
KEEP_SHARE = 0.01  # of the time that checkpoints may take
Listener = Callable[[Record | RangeRecord], None]


def run_job(folder: Path, listen: Listener | None = None) -> jobs.Status:
    """Run a job to its end, in this process.

    Parameters
    ----------
    folder
        A job's folder, see `mira_core.jobs`.
    listen
        Called with every record.

    Returns
    -------
    jobs.Status
        ``finished``, ``stopped`` or ``failed``; a failure is told there and not raised.

    Raises
    ------
    JobError
        If the folder is no job, or the job is running or has ended.
    """
    if not (folder / "job.json").is_file():
        raise JobError(f"{folder} is not a job: it has no job.json")
    status = jobs.claim(folder)
    with Reporter(folder, status) as report, Requests(folder) as requests:
        try:
            spec = jobs.read_spec(folder)
            report.update(kind=spec["kind"])
            {"fit": _fit, "range_test": _test_range}[spec["kind"]](folder, spec, report, requests, listen)
            report.update(state="stopped" if report.status.stage == "stopped" else "finished")
        except Exception as problem:
            told = isinstance(problem, MiraError)
            logger.error("%s", problem, exc_info=not told)
            error = {
                "type": type(problem).__name__,
                "message": str(problem),
                "traceback": "".join(traceback.format_exception(problem)),
            }
            report.update(state="failed", error=error)
        finally:
            report.update(ended=time.time())
    if jobs.why_not_resume(folder):
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return report.status


def _fit(folder: Path, spec: dict[str, Any], report: Reporter, requests: Requests, listen: Listener | None) -> None:
    report.update(stage="reading")
    data = open_cells(spec)
    model, begun = _model(folder, spec, data.shape)
    train, test = _held_out(data, model, spec.get("test_size"))
    cells = sources.training_cells(train, model.get_params())
    test_cells = None if test is None else model.cells_to_test(cells, test)
    per_epoch = loaders.steps_per_epoch(len(cells), model.batch_size)
    report.update(
        stage="training",
        n_cells=len(cells),
        n_held_out=0 if test_cells is None else len(test_cells),
        num_epochs=model.num_epochs,
        num_steps=per_epoch * model.num_epochs,
        epoch=begun,
        step=per_epoch * begun,
        resumed_epoch=begun,
        resumed_step=per_epoch * begun,
    )
    jobs.cut_records(folder, begun)
    stopped = False
    if begun:
        logger.info("going on after epoch %d", begun)
        training = model.resume_cells(cells, test_cells)
    else:
        training = model.fit_cells(cells, test_cells, resumable=True)
    with _Records(folder, listen) as records:
        checkpoints = _Checkpoints(folder, model, records)
        for record in training:
            if not report.status.training_started:
                report.update(training_started=time.time(), device=str(model.device))
            records.write(record)
            report.progress(record.step, record.epoch)
            if isinstance(record, EpochRecord):
                checkpoints.offer()
            if requests.stop():
                stopped = True
                training.close()
        if stopped:
            checkpoints.keep()
    (folder / "result").mkdir(exist_ok=True)
    model.save(folder / "result" / "model.safetensors")
    report.update(stage="predicting")
    cells_out = predict_cells(model, data)
    if "recipe" in spec:
        cells_out.uns["recipe"] = json.dumps(spec["recipe"])
    write_cells(folder, cells_out)
    if spec.get("embedding", True) and not stopped:
        report.update(stage="embedding")
        embed(cells_out)
        write_cells(folder, cells_out)
    report.update(stage="stopped" if stopped else "done")


def _test_range(
    folder: Path, spec: dict[str, Any], report: Reporter, requests: Requests, listen: Listener | None
) -> None:
    report.update(stage="reading")
    data = open_cells(spec)
    model = TopicModel(*data.shape, **spec["model"])
    asked = RangeOptions.from_dict(spec.get("range_test", {}))
    cells = sources.training_cells(data, model.get_params())
    report.update(stage="testing", n_cells=len(cells), num_steps=asked.num_steps, step=0)
    jobs.cut_records(folder, 0)
    points: list[tuple[float, float]] = []
    stopped = False
    test = model.test_learning_rates_on(cells, asked)
    with _Records(folder, listen) as records:
        for record in test:
            if not report.status.training_started:
                report.update(training_started=time.time(), device=str(model._training_device()))
            records.write(record)
            points.append((record.learning_rate, record.loss))
            report.progress(record.step)
            if requests.stop() and len(points) < asked.num_steps:
                stopped = True
                test.close()
    told = range_test.describe(points, asked.num_steps, asked.trim, stopped)
    (folder / "result").mkdir(exist_ok=True)
    write_json(folder / "result" / "curve.json", {**told, **asked.to_dict()})
    report.update(stage="stopped" if stopped else "done")


def _model(folder: Path, spec: dict[str, Any], shape: tuple[int, int]) -> tuple[TopicModel, int]:
    """Return the model of a job, and the epoch of its checkpoint after which it goes on; 0: from the start."""
    fresh = TopicModel(*shape, **spec["model"])
    if (curve := spec.get("learning_rate_curve")) is not None:
        fresh.learning_rate_curve = LearningRateCurve.from_dict(curve)
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return fresh, 0
    try:
        kept = load_model(path)
    except CheckpointError as problem:
        logger.warning("the training begins anew: %s", problem)
        return fresh, 0
    if kept.given != fresh.given or (kept.n_samples, kept.n_features) != shape:
        logger.warning("the training begins anew: its checkpoint is of other options or data")
        return fresh, 0
    kept.learning_rate_curve = fresh.learning_rate_curve
    return kept, kept.resumable


def _held_out(data: Any, model: TopicModel, test_size: float | None) -> tuple[Any, Any]:
    """Divide the cells; those of a category that would not be trained on are not held out."""
    if test_size is None:
        return data, None
    options = model.get_params()
    on_disk = isinstance(data, sources.OnDiskDataset)
    try:
        train, test = sources.split(data, options, 1 - test_size, model.seed or 0)
    except OptionError:
        raise OptionError(f"test_size must leave cells on both sides; got {test_size} of {len(data)} cells") from None
    column = data.column if on_disk else obs_column(data.obs)
    unseen = np.zeros(len(test), bool)
    for key in options["categorical_covariates"] or []:
        values = column(key).to_numpy()
        unseen |= ~np.isin(values[test].astype(str), values[train].astype(str))
    train, test = np.append(train, test[unseen]), test[~unseen]
    if not len(test):
        raise OptionError(f"test_size must leave cells on both sides; got {test_size} of {len(data)} cells")
    return (data.take(train), data.take(test)) if on_disk else (data[train], data[test])


class _Records:
    """Appends records to the job's file, readable by others soon."""

    def __init__(self, folder: Path, listen: Listener | None) -> None:
        self.path, self.listen = folder / "records.jsonl", listen
        self.flushed = 0.0
        self.file: TextIO

    def __enter__(self) -> _Records:
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: Record | RangeRecord) -> None:
        self.file.write(json.dumps(record.to_dict()) + "\n")
        if self.listen is not None:
            self.listen(record)
        if not (isinstance(record, EpochRecord | RangeRecord) or time.monotonic() - self.flushed > FLUSH):
            return
        self.file.flush()
        self.flushed = time.monotonic()

    def to_disk(self) -> None:
        """Wait until all records are on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())


class _Checkpoints:
    """Keeps where a training is, now and then, so that it takes a small share of its time."""

    def __init__(self, folder: Path, model: TopicModel, records: _Records) -> None:
        self.path, self.model, self.records = folder / "checkpoint.safetensors", model, records
        self.due = time.monotonic() + KEEP_EVERY

    def offer(self) -> None:
        """Keep the training if it is time."""
        if time.monotonic() >= self.due:
            self.keep()

    def keep(self) -> None:
        """Keep the training as it was after its last whole epoch, if there is one."""
        if not self.model.resumable:
            return
        began = time.monotonic()
        try:
            self.records.to_disk()  # first, so that a checkpoint never knows more than they tell
            self.model.save_checkpoint(self.path)
        except OSError as problem:  # a full disk must not end the training
            logger.warning("no checkpoint can be written: %s", problem)
        now = time.monotonic()
        self.due = now + max(KEEP_EVERY, (now - began) / KEEP_SHARE)


def open_source(data: str) -> ad.AnnData | sources.OnDiskDataset:
    """Open what a job names as its data: a path as `fit` takes it, or ``demo:NAME``."""
    if data.startswith("demo:"):
        return load_demo(data.removeprefix("demo:"))
    return sources.open_source(data)


def open_cells(spec: Mapping[str, Any]) -> ad.AnnData | sources.OnDiskDataset:
    """Open the data of a job, and do to it what its recipe says."""
    data = spec["data"]
    if spec.get("recipe") is None:
        return open_source(data)
    return prepare(open_source(data) if data.startswith("demo:") else data, Recipe.from_dict(spec["recipe"]))


def predict_cells(model: TopicModel, data: sources.Data) -> ad.AnnData:
    """Return a copy without counts, with topics of cells and features."""
    adata = model.predict(data)
    out = ad.AnnData(obs=adata.obs, var=adata.var)
    for name in ("X_topic_compositions", "X_umap_features"):
        out.obsm[name] = adata.obsm[name]
    for name in ("topic_feature_compositions", "topic_feature_activations"):
        out.varm[name] = adata.varm[name]
    out.uns["topic_dendogram"] = adata.uns["topic_dendogram"]
    return out


def embed(cells: ad.AnnData) -> None:
    """Write obsm['X_umap'], a UMAP of the topics (scanpy; neighbours with the manhattan metric)."""
    import scanpy as sc

    n = cells.n_obs
    if n < 4:
        cells.obsm["X_umap"] = np.zeros((n, 2), np.float32)
        return
    topics = ad.AnnData(obsm={"X_umap_features": cells.obsm["X_umap_features"]})
    sc.pp.neighbors(topics, n_neighbors=min(15, n - 1), use_rep="X_umap_features", metric="manhattan", random_state=0)
    sc.tl.umap(topics, random_state=0)
    cells.obsm["X_umap"] = topics.obsm["X_umap"]


def write_cells(folder: Path, cells: ad.AnnData) -> None:
    """Write result/cells.h5ad, beside and renamed."""
    path = folder / "result" / "cells.h5ad"
    beside = path.with_suffix(".part")
    cells.write_h5ad(beside)
    beside.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Run the job whose folder is named on the command line."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m mira_core.run FOLDER", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = Path(arguments[0])
    try:
        status = run_job(folder)
    except MiraError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    logger.info("%s after %d steps", status.state, status.step)
    return {"finished": 0, "stopped": 0}.get(status.state, 1)


if __name__ == "__main__":
    raise SystemExit(main())
