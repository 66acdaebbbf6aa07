"""What the axes of the figures of trials span: what matters; and what somebody zoomed stays."""

from __future__ import annotations

import numpy as np
from bokeh.models import Range1d

from .trials_rows import round_ends


class Ranges:
    """Both axes of each figure. They know what they were set to, so that they can tell when somebody else did."""

    def __init__(self) -> None:
        self._shown: dict[str, dict[str, Range1d]] = {}
        self._ours: dict[tuple[str, str], tuple[float, float]] = {}

    def of(self, name: str) -> dict[str, Range1d]:
        """Return the ranges of a figure, ``x`` and ``y``."""
        if name not in self._shown:
            self._shown[name] = {"x": Range1d(0, 1), "y": Range1d(0, 1)}
        return self._shown[name]

    def renew(self, name: str, axis: str, scale: bool = False) -> None:
        """Forget what was zoomed, as the axis shows something else; on another scale it needs another range."""
        self._ours.pop((name, axis), None)
        if scale:
            self.of(name)[axis] = Range1d(1, 10)

    def zoomed(self, name: str) -> bool:
        """Whether somebody changed what a figure shows."""
        return any(self._ours.get((name, axis)) != (r.start, r.end) for axis, r in self.of(name).items())

    def set(self, name: str, axis: str, low: float, high: float) -> None:
        """Show values between two ends, unless somebody zoomed; they come back to them by the reset tool."""
        shown, wanted = self.of(name)[axis], (float(low), float(high))
        now, before = (shown.start, shown.end), self._ours.get((name, axis))
        self._ours[name, axis] = wanted
        if before is None or now == before:
            if now != wanted:
                shown.update(start=wanted[0], end=wanted[1], reset_start=wanted[0], reset_end=wanted[1])
        elif (shown.reset_start, shown.reset_end) != wanted:
            shown.update(reset_start=wanted[0], reset_end=wanted[1])


def around(low: float, high: float, log: bool = False) -> tuple[float, float]:
    """Return ends around values, with some room; round, so that not every trial moves all points."""
    if log:
        low, high = np.log10(low), np.log10(high)
    gap = high - low if high > low else max(abs(low) * 0.02, 0.1)
    low, high = round_ends(low - 0.04 * gap, high + 0.06 * gap)
    return (float(f"{10**low:.6g}"), float(f"{10**high:.6g}")) if log else (low, high)
