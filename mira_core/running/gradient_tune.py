"""A gradient tuning: the number of topics from one training."""

from __future__ import annotations

import time

from .. import jobs
from ..data.recipe import open_cells
from ..estimators.topic_model import TopicModel
from ..files import write_json
from ..tuning.gradient import CONTRIBUTES, GradientTuning
from .parts import Task


def run(task: Task) -> None:
    """Train, and write what each topic contributes; a training that is stopped tells nothing."""
    spec, report = task.spec, task.report
    report.update(stage="reading")
    data = open_cells(spec)
    model = TopicModel(*data.shape, **spec["model"])
    tuning = GradientTuning(model, data, **spec.get("gradient_tune", {}))
    report.update(stage="training", n_cells=len(tuning.cells), step=0, epoch=0)
    jobs.cut_records(task.folder, 0)
    stopped = False
    training = tuning.records()
    with task.records() as records:
        for record in training:
            if report.status.num_steps != tuning.num_steps:  # an attempt begins
                assert tuning.process is not None
                report.update(
                    num_steps=tuning.num_steps,
                    num_epochs=tuning.num_epochs,
                    device=str(tuning.process.device),
                    training_started=report.status.training_started or time.time(),
                )
            records.write(record)
            report.progress(record.step, record.epoch)
            if task.requests.stop():
                stopped = True
                training.close()
    if not stopped:
        told = {
            "num_topics": tuning.num_topics,
            "contributions": tuning.contributions.tolist(),
            "threshold": CONTRIBUTES,
        }
        write_json(task.result / "contributions.json", told)
    task.end(stopped)
