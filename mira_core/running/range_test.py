"""A range test: finds learning rates, and leaves the curve."""

from __future__ import annotations

import time

from .. import jobs
from ..data import sources
from ..data.recipe import open_cells
from ..estimators.topic_model import TopicModel
from ..files import write_json
from ..training import range_test
from ..training.range_options import RangeOptions
from .parts import Task


def run(task: Task) -> None:
    """Test, and describe the curve."""
    spec, report = task.spec, task.report
    report.update(stage="reading")
    data = open_cells(spec)
    model = TopicModel(*data.shape, **spec["model"])
    asked = RangeOptions.from_dict(spec.get("range_test", {}))
    cells = sources.training_cells(data, model.get_params())
    report.update(stage="testing", n_cells=len(cells), num_steps=asked.num_steps, step=0)
    jobs.cut_records(task.folder, 0)
    points: list[tuple[float, float]] = []
    stopped = False
    test = model.test_learning_rates_on(cells, asked)
    with task.records() as records:
        for record in test:
            if not report.status.training_started:
                report.update(training_started=time.time(), device=str(model._training_device()))
            records.write(record)
            points.append((record.learning_rate, record.loss))
            report.progress(record.step)
            if task.requests.stop() and len(points) < asked.num_steps:
                stopped = True
                test.close()
    told = range_test.describe(points, asked.num_steps, asked.trim, stopped)
    write_json(task.result / "curve.json", {**told, **asked.to_dict()})
    task.end(stopped)
