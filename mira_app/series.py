"""All points of one training, as columns: what figures take their part of.

One thread appends; others may read meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

STEP = ("step", "epoch", "loss", "distortion", "rate", "dependence", "kl_weight", "dependence_weight", "learning_rate",
        "momentum")  # fmt: skip
EPOCH = ("step", "epoch", "loss", "distortion", "rate", "dependence", "held_out_loss", "held_out_distortion",
         "held_out_rate", "seconds", "cells_per_second", "waiting", "device_use")  # fmt: skip
RANGE = ("step", "learning_rate", "loss")


class Table:
    """Numbers in named columns, that grows by rows."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {name: i for i, name in enumerate(names)}
        self._rows = np.empty((64, len(names)))
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def append(self, rows: Sequence[Sequence[float]]) -> None:
        """Add rows; who reads sees all of them or none."""
        n = self._n + len(rows)
        if n > len(self._rows):
            grown = np.empty((max(n, 2 * len(self._rows)), len(self.names)))
            grown[: self._n] = self._rows[: self._n]
            self._rows = grown
        if rows:
            self._rows[self._n : n] = rows
        self._n = n

    def __getitem__(self, name: str) -> np.ndarray:
        return self._rows[: self._n, self.names[name]]


class Series:
    """Grows by records; shared by all sessions that look at the run, so that each point is read and smoothed once.

    Attributes
    ----------
    steps, epochs, rates
        Tables with the columns `STEP`, `EPOCH` and `RANGE`, the last of a learning-rate test.
    """

    def __init__(self) -> None:
        self.steps, self.epochs, self.rates = Table(STEP), Table(EPOCH), Table(RANGE)
        self._smoothed: dict[tuple[str, float], Table] = {}
        self._lock = threading.Lock()

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take records, as dictionaries; what is None or missing becomes NaN."""
        tables = {"epoch": self.epochs, "step": self.steps, "range": self.rates}
        rows: dict[str, list[list[float]]] = {kind: [] for kind in tables}
        for r in records:
            if (kind := r.get("kind", "")) in tables:
                rows[kind].append([np.nan if r.get(c) is None else r[c] for c in tables[kind].names])
        for kind, table in tables.items():
            table.append(rows[kind])

    def smoothed(self, name: str, weight: float) -> np.ndarray:
        """Return a column of steps, each averaged with those before it, whose weights fall by `weight` a step.

        Divided by the sum of the weights, so that the first steps are not drawn to zero. NaNs are passed over.
        """
        raw = self.steps[name]
        if not weight:
            return raw
        with self._lock:
            sums = self._smoothed.setdefault((name, weight), Table(["values", "weights"]))
            if len(sums) < len(raw):
                new = raw[len(sums) :]
                known = np.isfinite(new)
                last = [sums[c][-1] if len(sums) else 0.0 for c in sums.names]
                goes_on = np.vstack([last, np.column_stack([np.where(known, new, 0.0), known])])
                means = pd.DataFrame(goes_on).ewm(alpha=1 - weight, adjust=False).mean().to_numpy()
                sums.append(means[1:].tolist())
            with np.errstate(invalid="ignore", divide="ignore"):
                return (sums["values"] / sums["weights"])[: len(raw)]

    def chosen(self, limit: int, window: tuple[float, float] | None = None) -> np.ndarray:
        """Return which steps to draw: evenly over all, and as many again within a window of steps."""
        n, stride = len(self.steps), 1
        while n / stride > limit:
            stride *= 2  # by halving, so that points stay where they are while the training grows
        coarse = np.arange(stride - 1, n, stride)
        if window is None or stride == 1:
            return coarse
        low, high = np.searchsorted(self.steps["step"], window)
        return np.union1d(coarse, np.arange(low, high, max(1, (high - low) // limit)))
