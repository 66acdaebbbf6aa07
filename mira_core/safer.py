"""What to change before a training that failed is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from . import recommend


class Retry(NamedTuple):
    """Options to change, and why, in words."""

    changes: dict[str, Any]
    why: str


def safer(given: Mapping[str, Any], error: Mapping[str, str], n_cells: int, n_features: int) -> Retry:
    """Return options with which a training that failed is less likely to fail again.

    Parameters
    ----------
    given
        Options of the run that failed.
    error
        ``type`` and ``message``, as in the status of a job.
    n_cells, n_features
        Of its data.
    """
    options = {name: option.value for name, option in recommend.resolve(n_cells, n_features, given).items()}
    kind, message = error.get("type", ""), error.get("message", "")
    if kind in ("OutOfMemoryError", "MemoryError") or "out of memory" in message.lower():
        batch = max(2, options["batch_size"] // 2)
        return Retry({"batch_size": batch}, f"half the cells in a minibatch ({batch}), as memory ran out")
    if kind == "TrainingError":
        highest = options["max_learning_rate"] / 3
        changes: dict[str, Any] = {"max_learning_rate": highest}
        if options["min_learning_rate"] >= highest:
            changes["min_learning_rate"] = highest / 10
        return Retry(changes, f"a third of the learning rate ({highest:.2g}), as the loss did not stay finite")
    return Retry({}, "the same options: nothing in them is known to have caused this")
