"""Trials as columns for the browser. What has not changed is not computed anew: a study may have thousands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mira_core.plots.trials_info import (
    NOT_TRIED,
    Axis,
    axes_names,
    axis_of,
    front,
    logarithm,
    measures_of,
)

STATES = ("COMPLETE", "PRUNED", "RUNNING", "FAIL")
LOSS = ("value", "elbo")
MOST_LABELS = 80  # numbers beside points, beyond which nobody could read them

Trials = Sequence[Mapping[str, Any]]
Curves = Mapping[int, Mapping[str, Sequence[float]]]
Columns = dict[str, Any]  # arrays of numbers, or lists


class Rows:
    """The trials that are drawn, one row for each.

    Attributes
    ----------
    numbers, states
        Of the trials.
    names
        Attributes of the trials, and whether they are numbers.
    axes
        Of the parallel coordinates.
    """

    def __init__(self) -> None:
        self.measure = "value"
        self.axes: list[Axis] = []
        self._levels: dict[str, list[str]] = {"state": list(STATES)}
        self._forget()

    def _forget(self) -> None:
        self.numbers: list[int] = []
        self.states: list[str] = []
        self.names: dict[str, bool] = {}
        self._trials: list[Mapping[str, Any]] = []
        self._told: list[Mapping[str, Sequence[float]]] = []
        self._tips: list[str] = []
        self._values: dict[str, np.ndarray] = {}
        self._last = np.zeros(0)  # loss that was reported last
        self._lines: list[list[float]] = []
        self._measures = np.zeros((0, 3))
        self._positions = np.zeros((0, 0))
        self._through: list[list[float]] = []  # lines through all axes

    def renew(self, trials: Trials, curves: Curves) -> bool:
        """Take what is new; return whether rows are gone, so that all others have moved."""
        numbers = [t["number"] for t in trials]
        anew = numbers[: len(self.numbers)] != self.numbers
        if anew:
            self._forget()
        n = len(self.numbers)
        told = [curves.get(k, {}) for k in numbers]
        changed = [i for i, t in enumerate(trials) if i >= n or (t is not self._trials[i] and t != self._trials[i])]
        lines = [i for i, c in enumerate(told) if i >= n or (c is not self._told[i] and c != self._told[i])]
        self.numbers, self._trials, self._told = numbers, list(trials), told
        self._grow(len(numbers) - n)
        for i in changed:
            for name, value in trials[i].items():
                self.names[name] = self.names.get(name, True) and (value is None or isinstance(value, int | float))
        for name in self.names:
            known = self._values.get(name, np.zeros(0))
            more = np.full(len(numbers) - len(known), np.nan)
            self._values[name] = np.concatenate([known, more]) if len(more) else known
            for i in changed:
                value = trials[i].get(name)
                self._values[name][i] = value if isinstance(value, int | float) else np.nan
        for i in changed:
            self.states[i], self._tips[i] = trials[i]["state"], _tip(trials[i])
        for i in lines:
            reported = told[i].get("value", ())
            self._last[i] = reported[-1] if len(reported) else np.nan
        self._trace(lines)
        return anew

    def _grow(self, by: int) -> None:
        self.states += [""] * by
        self._tips += [""] * by
        self._lines += [[] for _ in range(by)]
        self._last = np.concatenate([self._last, np.full(by, np.nan)])
        self._measures = np.concatenate([self._measures, np.full((by, 3), np.nan)])

    def show(self, measure: str) -> None:
        """Draw another measure of each epoch."""
        if measure != self.measure:
            self.measure = measure
            self._trace(range(len(self.numbers)))

    def _trace(self, rows: Sequence[int]) -> None:
        for i in rows:
            told = self._told[i]
            if self.measure == "unweighted":
                y = [d + r for d, r in zip(told.get("distortion", ()), told.get("rate", ()), strict=False)]
            else:
                y = list(told.get(self.measure, ()))
            self._measures[i] = measures_of(y)
            self._lines[i] = _short(y)

    # --- columns --------------------------------------------------------------------------------

    @property
    def completed(self) -> np.ndarray:
        """Which are."""
        return np.array([s == "COMPLETE" for s in self.states], dtype=bool)

    def values(self, name: str) -> np.ndarray:
        """Return an attribute, NaN for None and for text."""
        return self._values.get(name, np.full(len(self.numbers), np.nan))

    def shown(self, name: str) -> np.ndarray:
        """Return an attribute as it is drawn: the loss of a trial that has none is what it reported last."""
        values = self.values(name)
        return np.where(np.isfinite(values), values, self._last) if name in LOSS else values

    def measures(self) -> np.ndarray:
        """Return what `measures_of` says of each curve."""
        return self._measures

    def hue(self, name: str, log: bool) -> np.ndarray:
        """Return what an attribute is coloured by: numbers, or the places of text among `levels`."""
        if not self.names.get(name, True):
            at = {level: i for i, level in enumerate(self.levels(name))}
            return np.array([np.nan if (v := t.get(name)) is None else at[str(v)] for t in self._trials], dtype=float)
        return logarithm(self.values(name)) if log else self.values(name)

    def levels(self, name: str) -> list[str]:
        """Return categories in the order in which they came, so that each keeps its colour."""
        known = self._levels.setdefault(name, [])
        met = dict.fromkeys(str(v) for t in self._trials if (v := t.get(name)) is not None)
        known += [v for v in met if v not in known]
        return known

    def line(self, number: int) -> tuple[list[int], list[float]]:
        """Return a trial's curve."""
        y = self._lines[self.numbers.index(number)] if number in self.numbers else []
        return _epochs(len(y)), y

    def columns(self, view: Mapping[str, Any]) -> Columns:
        """Return what is drawn."""
        self.show(view["measure"])
        number, loss, topics = self.values("number"), self.shown("value"), self.values("num_topics")
        on = front(self.values("distortion"), self.values("rate"), self.completed)
        labelled = _spread(np.flatnonzero(on), self.values("distortion"))
        if not view["label_pareto_front"] and len(self.numbers) <= MOST_LABELS:
            labelled = np.arange(len(self.numbers))
        labels = [""] * len(self.numbers)
        for i in labelled:
            labels[i] = str(self.numbers[i])
        self._draw_through()
        hidden = np.array([s == "PRUNED" and not view["include_pruned_trials"] for s in self.states], dtype=bool)
        x, y = (np.where(hidden, np.nan, self.shown(view[axis])) for axis in ("x", "y"))
        return {
            "number": number, "value": self.values("value"), "loss": loss, "state": list(self.states),
            "tip": list(self._tips), "x": x, "y": y,
            "hue": self.hue(view["hue"], view["log_hue"]),
            "curve_hue": self.hue(view["curve_hue"], view["log_curve_hue"]),
            "label": labels, "front": on.astype(float), "xs": [_epochs(len(y)) for y in self._lines],
            "ys": list(self._lines),
            # no number, so that trials of one number of topics don't hide each other; the same for ever
            "jittered": topics + 0.5 * (np.modf(number * 0.618034)[0] - 0.5),
            "px": [_places(len(self.axes))] * len(self.numbers), "py": list(self._through),
            "filled": np.array([0.0 if s == "RUNNING" else 0.9 for s in self.states]),
        }  # fmt: skip

    def _draw_through(self) -> None:
        """Draw the lines through all axes, anew where they changed."""
        self.axes = [_steady(axis_of(n, self.values(n), self.completed)) for n in axes_names(self.names)]
        placed = [a.along(self.values(a.name)) for a in self.axes]
        now = np.round(np.array(placed).reshape(len(self.axes), len(self.numbers)).T, 3)
        before, self._positions = self._positions, now
        n = len(before) if before.shape[1:] == now.shape[1:] and len(before) <= len(now) else 0
        before = before[:n] if n else now[:0]
        same = ((now[:n] == before) | (np.isnan(now[:n]) & np.isnan(before))).all(1)
        self._through = self._through[:n] + [[]] * (len(now) - n)
        for i in [*np.flatnonzero(~same).tolist(), *range(n, len(now))]:
            self._through[i] = now[i].tolist()


@lru_cache(4096)
def _epochs(n: int) -> list[int]:
    """Return epochs 1 to n, the same list for all curves as long."""
    return list(range(1, n + 1))


@lru_cache(64)
def _places(n: int) -> list[int]:
    return list(range(n))


def _tip(trial: Mapping[str, Any]) -> str:
    tried = ((n, v) for n, v in trial.items() if n not in NOT_TRIED and isinstance(v, int | float))
    return ", ".join(f"{n.replace('_', ' ')} {v:.4g}" for n, v in tried)


def _short(y: Sequence[float]) -> list[float]:
    """Return numbers with as many digits as can be seen: as text, lists are shorter than arrays of most curves."""
    values = np.asarray(y, dtype=float)
    known = np.abs(values[np.isfinite(values)])
    largest = known.max() if known.size else 0.0
    return np.round(values, 6 - int(np.ceil(np.log10(largest))) if largest > 0 else 0).tolist()


def _spread(rows: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Return rows, or, of more than can be read, some of them, evenly."""
    if len(rows) <= MOST_LABELS:
        return rows
    return rows[np.argsort(along[rows])][np.linspace(0, len(rows) - 1, MOST_LABELS).round().astype(int)]


def _steady(axis: Axis) -> Axis:
    """Return an axis whose ends are round if it is of an outcome, so that not every trial moves all lines."""
    if axis.name not in NOT_TRIED or axis.log:
        return axis
    low, high = round_ends(axis.low, axis.high)
    return axis._replace(low=low, high=high)


def round_ends(low: float, high: float, parts: int = 40) -> tuple[float, float]:
    """Return round numbers at or beyond both ends, near to them."""
    gap = high - low
    if not gap > 0:
        return low, high
    exponent = np.floor(np.log10(gap / parts))
    step = next(s for s in (1, 2, 5, 10) if s * 10.0**exponent >= gap / parts) * 10.0**exponent
    digits = max(0, int(-exponent) + 1)
    return round(float(np.floor(low / step) * step), digits), round(float(np.ceil(high / step) * step), digits)
