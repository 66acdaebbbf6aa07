"""One trial in words, tables and a picture, as HTML; text that comes from data is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mira_core.tuning.reading import Reading
from mira_core.tuning.study import Plan

from ..figures.colours import LINE, SECOND, categories
from ..pages import parts

MOST_FEATURES = 8  # that a topic gained or lost, in a table
MEASURED = ("value", "distortion", "rate", "epochs_trained", "seconds")


def head_html(reading: Reading, number: int) -> str:
    """Say which trial it is, and what came of it."""
    trial = reading.of(number) or {}
    best = " · the best one" if number == reading.best else ""
    value = f" · {trial['value']:,.2f} nats per cell" if trial["value"] is not None else ""
    return f"<b>Trial {number}</b> · {trial['state'].lower()}{value}{best}"


def story_html(reading: Reading, number: int, log: str = "") -> str:
    """Tell all that is known of a trial, in the look "trial"."""
    trial, story = reading.of(number) or {}, reading.story(number)
    shown = [failure_html(story["failure"])] if "failure" in story else []
    if "retry_of" in story:
        shown.append(f"<p>Trial {story['retry_of']} once more: {parts.escape(story.get('change', ''))}.</p>")
    shown += [
        parts.table_html("Parameters", params_of(trial, reading.plan)),
        curve_html(reading.curves[number]),
        parts.table_html("How it went", how_it_went(trial, story, reading)),
    ]
    if log:
        shown.append(f"<details><summary>Log</summary><pre>{parts.escape(log)}</pre></details>")
    return "".join(shown)


def failure_html(failure: Mapping[str, Any]) -> str:
    """Say why a trial failed."""
    text = f"{failure.get('type', '')}: {failure.get('message', '')}"
    if "last_loss" in failure:
        text += (
            f" Last finite loss {failure['last_loss']:.4g}, at step {failure['step']} and learning rate "
            f"{failure['learning_rate']:.2g}."
        )
    return parts.problem_html(text, failure.get("traceback", ""))


def curve_html(curves: Mapping[str, Sequence[float]]) -> str:
    """Draw a trial's own losses by epoch, as reported and unweighted; a picture, as every selection changes it."""
    told = {"as reported": list(curves.get("value", []))}
    told["distortion + rate"] = [
        d + r for d, r in zip(curves.get("distortion", []), curves.get("rate", []), strict=False)
    ]
    # How a training begins would flatten the rest.
    late = [y for values in told.values() for y in values[len(values) // 5 :] if math.isfinite(y)]
    if len(late) < 2:
        return "<p>No epoch has ended yet.</p>"
    low, high = min(late), max(late)
    lines = []
    for (name, values), colour in zip(told.items(), (LINE, SECOND), strict=True):
        if len(values) > 1:
            at = " ".join(
                f"{100 * i / (len(values) - 1):.2f},{40 * (high - min(y, high)) / max(high - low, 1e-9):.2f}"
                for i, y in enumerate(values)
            )
            lines.append(f'<polyline points="{at}" stroke="{colour}"><title>{name}</title></polyline>')
    key = "".join(f'<span><i style="background:{c}"></i>{n}</span>' for n, c in zip(told, (LINE, SECOND), strict=True))
    shape = 'viewBox="0 -1 100 42" preserveAspectRatio="none" role="img" aria-label="losses by epoch"'
    return (
        f"<svg {shape}>{''.join(lines)}</svg><p>{key}</p>"
        f"<p>{low:,.2f} to {high:,.2f} nats per cell, epochs 1 to {len(told['as reported'])}</p>"
    )


def params_of(trial: Mapping[str, Any], plan: Plan | None) -> pd.DataFrame:
    """Return what was tried, beside where it was searched."""
    names = list(plan.space) if plan is not None else []
    rows = [(n, _short(trial.get(n)), f"{plan.space[n].low:g} to {plan.space[n].high:g}") for n in names if n in trial]  # type: ignore[union-attr]
    return pd.DataFrame(rows, columns=["parameter", "value", "searched"])


def how_it_went(trial: Mapping[str, Any], story: Mapping[str, Any], reading: Reading) -> pd.DataFrame:
    """Return what is known of a trial: losses, times, process."""
    frozen, process, progress = (
        reading.stories[trial["number"]],
        story.get("process") or {},
        story.get("progress") or {},
    )
    rows = [(name.replace("_", " "), trial[name]) for name in MEASURED if trial.get(name) is not None]
    rows += [(n, t.strftime("%d %b %H:%M:%S")) for n, t in
             (("began", frozen.datetime_start), ("ended", frozen.datetime_complete)) if t]  # fmt: skip
    rows += [("device", story.get("device")), ("host", process.get("host")), ("pid", process.get("pid"))]
    rows += [("peak memory, MB", progress.get("peak_memory_mb")),
             ("seconds per epoch", progress.get("seconds_per_epoch"))]  # fmt: skip
    rows += [(k.replace("_", " "), v) for k, v in story.get("options", {}).items()]
    return pd.DataFrame([(n, _short(v)) for n, v in rows if v is not None], columns=["what", ""])


def differences(reading: Reading, pinned: int, other: int) -> pd.DataFrame:
    """Return parameters and losses of two trials, and how the second differs."""
    a, b = reading.of(pinned) or {}, reading.of(other) or {}
    names = [*(reading.plan.space if reading.plan else []), *MEASURED]
    rows = []
    for name in names:
        x, y = a.get(name), b.get(name)
        if x is None and y is None:
            continue
        gap = f"{y - x:+.4g}" if x is not None and y is not None else ""
        rows.append((name.replace("_", " ") if name in MEASURED else name, _short(x), _short(y), gap))
    return pd.DataFrame(rows, columns=["", f"trial {pinned}", f"trial {other}", "difference"])


def matched_html(frame: pd.DataFrame, pinned: int, other: int, names: tuple[str, str] | None = None) -> str:
    """Show pairs of topics, in the colour of the pinned one, with what was gained and lost.

    `names` are those of the models, if they are not trials.
    """
    of = names or (f"trial {pinned}", f"trial {other}")
    n = max([int(t.removeprefix("topic_")) for t in frame["topic"].dropna()], default=-1) + 1
    colours = categories(n)
    rows = []
    for row in frame.itertuples(index=False):
        of_pinned = int(row.topic.removeprefix("topic_")) if row.topic else None
        dot = f'<i style="background:{colours[of_pinned] if of_pinned is not None else "gray"}"></i>'
        alike = f"{row.correlation:.2f}" if row.correlation == row.correlation else "–"
        cells = (row.topic or "–", row.other or "–", alike, _named(row.gained), _named(row.lost))
        rows.append(f"<tr><td>{dot}{parts.escape(cells[0])}</td>" +
                    "".join(f"<td>{parts.escape(c)}</td>" for c in cells[1:]) + "</tr>")  # fmt: skip
    heads = "".join(f"<th>{h}</th>" for h in (*of, "alike", "gained", "lost"))
    return (
        f"<h2>Topics, matched</h2><div class='scroll'><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _named(features: list[str]) -> str:
    more = len(features) - MOST_FEATURES
    return ", ".join(features[:MOST_FEATURES]) + (f" and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)
