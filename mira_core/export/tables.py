"""Tables of a run, as data frames and as CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .. import options as opt
from ..analysis.description import describe_topics, saying, topics_by
from ..analysis.predicted import Topics, topics_of
from ..estimators.topic_model import TopicModel
from .run import FinishedRun

TOP = 50  # features of each topic in the table of top features
TABLES = {
    "topics.csv": "each topic: mean share, cells where it is the largest, top features, redundant, dead",
    "compositions.csv": "topics of each cell; rows sum to 1",
    "feature_activations.csv": "how far each topic moves each feature, in standard deviations",
    "feature_compositions.csv": "each topic's distribution over the features; columns sum to 1",
    "top_features.csv": f"the {TOP} features that say most about each topic, and how much, in nats",
    "topics_by_column.csv": "mean topics of the cells in each category of a column",
    "training.csv": "losses and speed of each epoch; losses in nats per cell",
    "options.csv": "options of the model: the value, whose it is, the documented and the recommended one, and why",
}


def write_tables(run: FinishedRun, folder: Path) -> list[str]:
    """Write the tables into a folder; return the names of those that there are."""
    folder.mkdir(parents=True, exist_ok=True)
    topics = topics_of(run.cells)
    _with_index(run.theta, run.cells.obs_names, "cell", topics.names).to_csv(folder / "compositions.csv")
    _with_index(topics.activations.T, topics.features, "feature", topics.names).to_csv(
        folder / "feature_activations.csv"
    )
    _with_index(topics.compositions.T, topics.features, "feature", topics.names).to_csv(
        folder / "feature_compositions.csv"
    )
    describe_topics(run.cells).to_csv(folder / "topics.csv", index=False)
    top_features(topics).to_csv(folder / "top_features.csv", index=False)
    training(run).to_csv(folder / "training.csv", index=False)
    options(run.model).to_csv(folder / "options.csv", index=False)
    if run.column is not None:
        topics_by(run.cells, run.column).to_csv(folder / "topics_by_column.csv")
    return [name for name in TABLES if (folder / name).is_file()]


def _with_index(values: np.ndarray, names: np.ndarray | pd.Index, of: str, columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(values, index=pd.Index(names, name=of), columns=columns)


def top_features(topics: Topics, top: int = TOP) -> pd.DataFrame:
    """Return a row for each of the features that say most about each topic, the most telling first."""
    said = saying(topics)
    parts = []
    for k, name in enumerate(topics.names):
        at = np.argsort(-said[k], kind="stable")[:top]
        parts.append(
            pd.DataFrame(
                {
                    "topic": name,
                    "rank": np.arange(1, len(at) + 1),
                    "feature": topics.features[at],
                    "name": topics.labels[at],
                    "says": said[k, at],
                    "composition": topics.compositions[k, at],
                    "activation": topics.activations[k, at],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def training(run: FinishedRun) -> pd.DataFrame:
    """Return a row for each epoch."""
    return pd.DataFrame([{k: v for k, v in r.to_dict().items() if k != "kind"} for r in run.history])


def options(model: TopicModel) -> pd.DataFrame:
    """Return a row for each option that applies: its value, and the three that it could have had."""
    rows = []
    for name, o in model.options.items():
        declared = opt.parameter(name)
        rows.append(
            {
                "option": name,
                "value": told(o.value),
                "whose": "given" if o.source == "yours" else o.source,
                "documented": told(o.documented),
                "recommended": told(o.recommended) if o.reason else "",
                "why": o.reason or "",
                "group": declared.metadata["group"],
                "meaning": " ".join((declared.doc or "").split()),
            }
        )
    return pd.DataFrame(rows)


def told(value: object) -> str:
    """Return a value of an option as text."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
