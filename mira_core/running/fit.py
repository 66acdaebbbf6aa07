"""A fit: trains a model, and keeps it with the topics of the cells."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import jobs
from ..data import loaders, sources
from ..data.anndata_io import obs_column
from ..data.recipe import open_cells
from ..errors import CheckpointError, OptionError
from ..estimators.topic_model import TopicModel, load_model
from ..records import EpochRecord
from ..training.range_test import LearningRateCurve
from .parts import Records, Task, explain

logger = logging.getLogger(__name__)

KEEP_EVERY = 5.0  # seconds between two checkpoints, at least
KEEP_SHARE = 0.01  # of the time that checkpoints may take


def run(task: Task) -> None:
    """Train, and predict."""
    folder, spec, report = task.folder, task.spec, task.report
    report.update(stage="reading")
    data = open_cells(spec)
    model, begun = _model(folder, spec, data.shape)
    train, test = held_out(data, model, spec.get("test_size"))
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
    task.note_process(str(model._training_device()), begun)
    stopped = False
    if begun:
        logger.info("going on after epoch %d", begun)
        training = model.resume_cells(cells, test_cells)
    else:
        training = model.fit_cells(cells, test_cells, resumable=True)
    with task.records() as records:
        checkpoints = _Checkpoints(folder, model, records)
        for record in training:
            if not report.status.training_started:
                report.update(training_started=time.time(), device=str(model.device))
            records.write(record)
            report.progress(record.step, record.epoch)
            if isinstance(record, EpochRecord):
                checkpoints.offer()
            if task.requests.stop():
                stopped = True
                training.close()
        if stopped:
            checkpoints.keep()
    model.save(task.result / "model.safetensors")
    explain(task, model, data, stopped)
    task.end(stopped)


def _model(folder: Path, spec: Mapping[str, Any], shape: tuple[int, int]) -> tuple[TopicModel, int]:
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


def held_out(data: Any, model: TopicModel, test_size: float | None) -> tuple[Any, Any]:
    """Divide the cells into those to train on and those that are held out, None if there are none."""
    if test_size is None:
        return data, None
    train, test = held_out_rows(data, model, test_size)
    on_disk = isinstance(data, sources.OnDiskDataset)
    return (data.take(train), data.take(test)) if on_disk else (data[train], data[test])


def held_out_rows(data: Any, model: TopicModel, test_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on, in the order of the training, and those that are held out.

    Those of a category that would not be trained on are not held out.
    """
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
    return train, test


class _Checkpoints:
    """Keeps where a training is, now and then, so that it takes a small share of its time."""

    def __init__(self, folder: Path, model: TopicModel, records: Records) -> None:
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
