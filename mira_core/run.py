"""Run one job from its folder: ``python -m mira_core.run FOLDER``.

SIGTERM, SIGINT or a file named ``stop`` in the folder stop it at the next step; the model trained so far is kept.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import anndata as ad
import numpy as np

from . import jobs
from .data import loaders, sources
from .data.demo import load_demo
from .errors import JobError, MiraError
from .estimators.topic_model import TopicModel
from .files import write_json
from .records import EpochRecord, Record

logger = logging.getLogger(__name__)

HEARTBEAT = 2.0  # seconds between two beats
FLUSH = 0.1  # seconds after which records must be readable by others


class Stopped(Exception):
    """Somebody asked the job to stop."""


class _Reporter:
    """Keeps status.json true and the heart beating, from a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = jobs.Status(state="running", started=time.time())
        self._lock = threading.Lock()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> _Reporter:
        self.update()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._quit.wait(HEARTBEAT):
            try:
                self.update()
            except OSError as problem:  # a full disk must not end the training
                logger.warning("the status cannot be written: %s", problem)

    def update(self, **changes: Any) -> None:
        """Change fields and write them."""
        with self._lock:
            self.status = dataclasses.replace(self.status, heartbeat=time.time(), **changes)
            write_json(self.folder / "status.json", dataclasses.asdict(self.status))

    def progress(self, step: int, epoch: int) -> None:
        """Note progress; the next beat writes it."""
        with self._lock:
            self.status = dataclasses.replace(self.status, step=step, epoch=epoch)


def run_job(folder: Path, listen: Callable[[Record], None] | None = None) -> jobs.Status:
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
    jobs.claim(folder)
    asked = threading.Event()
    with _Reporter(folder) as report, _signals(asked):

        def stopping() -> bool:
            return asked.is_set() or (folder / "stop").exists()

        try:
            spec = jobs.read_spec(folder)
            _fit(folder, spec, report, stopping, listen)
            report.update(state="stopped" if stopping() and report.status.stage == "stopped" else "finished")
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
    return report.status


def _fit(
    folder: Path,
    spec: dict[str, Any],
    report: _Reporter,
    stopping: Callable[[], bool],
    listen: Callable[[Record], None] | None,
) -> None:
    report.update(stage="reading")
    adata = open_source(spec["data"])
    model = TopicModel(*adata.shape, **spec["model"])
    cells = sources.training_cells(adata, model.get_params())
    per_epoch = loaders.steps_per_epoch(len(cells), model.batch_size)
    report.update(
        stage="training",
        n_cells=len(cells),
        num_epochs=model.num_epochs,
        num_steps=per_epoch * model.num_epochs,
    )
    stopped = False
    training = model.fit_cells(cells)
    with open(folder / "records.jsonl", "w", encoding="utf-8") as f:
        flushed = 0.0
        for record in training:
            if not report.status.training_started:
                report.update(training_started=time.time(), device=str(model.device))
            f.write(json.dumps(record.to_dict()) + "\n")
            report.progress(record.step, record.epoch)
            if listen is not None:
                listen(record)
            if isinstance(record, EpochRecord) or time.monotonic() - flushed > FLUSH:
                f.flush()
                flushed = time.monotonic()
            if stopping():
                stopped = True
                training.close()
    (folder / "result").mkdir(exist_ok=True)
    model.save(folder / "result" / "model.safetensors")
    report.update(stage="predicting")
    cells_out = predict_cells(model, adata)
    write_cells(folder, cells_out)
    if spec.get("embedding", True) and not stopped:
        report.update(stage="embedding")
        embed(cells_out)
        write_cells(folder, cells_out)
    report.update(stage="stopped" if stopped else "done")


def open_source(data: str) -> ad.AnnData | sources.OnDiskDataset:
    """Open what a job names as its data: a path as `fit` takes it, or ``demo:NAME``."""
    if data.startswith("demo:"):
        return load_demo(data.removeprefix("demo:"))
    return sources.open_source(data)


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


class _signals:
    """Turn SIGTERM and SIGINT into a request, while inside; only the main thread can."""

    def __init__(self, asked: threading.Event) -> None:
        self.asked = asked
        self.before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked.set()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self.before[s] = signal.signal(s, self._handle)

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)


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
