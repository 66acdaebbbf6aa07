"""A prediction: the topics of cells by a model that somebody else trained, such as a trial of a study."""

from __future__ import annotations

from pathlib import Path

from ..data.recipe import open_cells
from ..estimators.topic_model import load_model
from ..files import replace_file
from .parts import Task, explain


def run(task: Task) -> None:
    """Predict, and keep the model beside the topics."""
    spec, report = task.spec, task.report
    report.update(stage="reading")
    path = Path(spec["predict"]["model"])
    model = load_model(path)
    data = open_cells(spec)
    model.set_device(model._training_device())
    report.update(n_cells=len(data), device=str(model.device))
    task.note_process(str(model.device))
    stopped = task.requests.stop()
    if not stopped:
        explain(task, model, data)
        replace_file(task.result / "model.safetensors", path.read_bytes())
    task.end(stopped)
