"""What the runners of all kinds of jobs share: the job at hand, its records, its cells, and what it leaves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import anndata as ad

from .. import environment
from ..analysis.embedding import embed
from ..data import sources
from ..data.digest import digest
from ..estimators.topic_model import TopicModel
from ..files import move_into_place, read_json, write_json
from ..records import EpochRecord, RangeRecord, Record
from ..reporting import Reporter, Requests

PROVENANCE = "provenance.json"
FLUSH = 0.1  # seconds after which records must be readable by others
Listener = Callable[[Record | RangeRecord], None]


@dataclass(frozen=True)
class Task:
    """A job that runs: its folder and specification, where it tells how it stands, and who asks and listens."""

    folder: Path
    spec: Mapping[str, Any]
    report: Reporter
    requests: Requests
    listen: Listener | None = None

    @property
    def result(self) -> Path:
        """The folder of results, made if it is not there."""
        folder = self.folder / "result"
        folder.mkdir(exist_ok=True)
        return folder

    def records(self) -> Records:
        """Return where records go."""
        return Records(self.folder, self.listen)

    def note_process(self, device: str, epoch: int = 0) -> None:
        """Note what this process computes with, after those that computed the epochs before."""
        told = read_provenance(self.folder) if epoch else {}
        here = {"epoch": epoch, "began": time.time(), **environment.describe(device)}
        write_json(self.folder / PROVENANCE, {"format": 1, "processes": [*told.get("processes", []), here]})

    def note_data(self, told: str) -> None:
        """Note the digest of the cells, as the model reads them."""
        write_json(self.folder / PROVENANCE, {**read_provenance(self.folder), "digest": told})

    def end(self, stopped: bool) -> None:
        """Tell that it is done, or that it was stopped."""
        self.report.update(stage="stopped" if stopped else "done")


class Records:
    """Appends records to the job's file, readable by others soon."""

    def __init__(self, folder: Path, listen: Listener | None) -> None:
        self.path, self.listen = folder / "records.jsonl", listen
        self.flushed = 0.0
        self.file: TextIO

    def __enter__(self) -> Records:
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: Record | RangeRecord) -> None:
        """Append one, and tell who listens."""
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


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return what a job has noted of its processes and data; empty if nothing, as of older versions."""
    try:
        told = read_json(folder / PROVENANCE)
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def data_digest(model: TopicModel, data: ad.AnnData | sources.OnDiskDataset) -> str:
    """Return the digest of cells as a fitted model reads them: its features, in its order."""
    names = (data.table() if isinstance(data, sources.OnDiskDataset) else data).obs_names
    return digest(model._cells(data).counts, names, model.features)


def explain(task: Task, model: TopicModel, data: ad.AnnData | sources.OnDiskDataset, stopped: bool = False) -> None:
    """Write ``result/cells.h5ad``: topics of cells and features, and a UMAP if it is wanted and there is time."""
    task.report.update(stage="predicting")
    task.note_data(data_digest(model, data))
    cells = predict_cells(model, data)
    if "recipe" in task.spec:
        cells.uns["recipe"] = json.dumps(task.spec["recipe"])
    write_cells(task.result, cells)
    if task.spec.get("embedding", True) and not stopped:
        task.report.update(stage="embedding")
        cells.obsm["X_umap"] = embed(cells.obsm["X_umap_features"])
        write_cells(task.result, cells)


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


def write_cells(result: Path, cells: ad.AnnData) -> None:
    """Write cells.h5ad, beside and renamed."""
    path = result / "cells.h5ad"
    beside = path.with_suffix(".part")
    cells.write_h5ad(beside)
    move_into_place(beside, path)
