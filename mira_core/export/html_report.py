"""One HTML file that tells of a run: it opens without a network, on any screen, and prints.

Nothing in it is a script or is loaded from elsewhere, and a policy in its head forbids both; text from data is escaped.
"""

from __future__ import annotations

import base64
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from .. import options as opt
from ..analysis.description import categories_of, describe_topics, topics_by
from ..colours import categories
from ..plots import topics as plots
from . import figures, methods_text, tables
from .run import FinishedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("html_report.jinja")
SIZE, SMALL = 640, 240  # pixels of the images of cells
MOST_IMAGES = 60  # topics that are drawn on the cells
TOP = 12  # features of each topic
INK = "#102030"  # in figures; becomes the colour of the text around them


class Row(NamedTuple):
    """A topic as the report's table has it."""

    name: str
    colour: str
    mean_share: float
    largest_in: float
    features: str
    note: str


def write_report(run: FinishedRun, path: Path) -> None:
    """Write the report."""
    path.write_text(report(run), encoding="utf-8")


def report(run: FinishedRun) -> str:
    """Return the report as HTML."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(**contents(run))


def contents(run: FinishedRun) -> dict[str, Any]:
    """Return what the report says."""
    model, described = run.model, describe_topics(run.cells, TOP)
    colours = categories(len(described))
    with figures.style(**{key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color",
                                               "ytick.color")}):  # fmt: skip
        drawn = _drawn(run, colours)
    codal, accessibility = opt.is_codal(model.given), model.feature_type == "accessibility"
    return {
        "title": run.name,
        "kind": f"{'CODAL' if codal else 'MIRA'} topic model of {'accessibility' if accessibility else 'expression'}",
        "created": run.created,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "facts": _facts(run),
        "steps": [str(step) for step in run.recipe],
        "source": str(run.cells.uns.get("source", "")),
        "warnings": warnings(run, described),
        "rows": [
            Row(r["topic"], colours[i], r["mean_share"], r["largest_in"], r["top_features"], _note(r))
            for i, r in enumerate(described.to_dict("records"))
        ],
        "column": run.column,
        "axes": run.axes,
        **drawn,
        "options": tables.options(model).to_dict("records"),
        "methods": methods_text.paragraph(run),
        "references": methods_text.references(run).splitlines(),
        "versions": run.computed_with["versions"],
    }


def warnings(run: FinishedRun, described: pd.DataFrame) -> list[str]:
    """Say what whoever reads the report should know of the model."""
    out, rows = [], described.to_dict("records")
    if dead := [str(r["topic"]) for r in rows if r["dead"]]:
        out.append(f"In hardly any cell: {_and(dead)}. Fewer topics may do.")
    pairs = {frozenset((str(r["topic"]), str(r["redundant_with"]))): None for r in rows if _other(r)}
    for a, b in map(sorted, pairs):
        out.append(f"{a} and {b} move the same features; they may be one topic.")
    if run.status.state == "stopped":
        out.append(
            f"The training was stopped after step {run.status.step:,} of {run.status.num_steps:,}: its schedules did "
            "not come to their end."
        )
    for line in run.changed_on_the_way:
        out.append(f"The training went on under other conditions than it began: {line}.")
    held = plots.training_info(run.history).held_out
    held = held[np.isfinite(held)]
    if len(held) > 5 and held[-1] > held.min() + 0.01 * abs(held.min()):
        out.append("The loss of the held-out cells rises at the end: the model learns the training cells by heart.")
    return out


def _facts(run: FinishedRun) -> list[tuple[str, str]]:
    model, cells = run.model, run.cells
    n_held = run.status.n_held_out if run.is_fit else 0
    facts = [
        ("data", run.data_name),
        ("cells", f"{cells.n_obs:,}" + (f" ({n_held:,} held out)" if n_held else "")),
        ("features", f"{len(model.features):,}"
         + (f" of {cells.n_vars:,}" if cells.n_vars > len(model.features) else "")),
        ("topics", str(len(model.topic_cols))),
        ("epochs", str(len(run.history))),
        ("seed", str(model.seed_used)),
    ]  # fmt: skip
    if run.history:
        last = run.history[-1]
        facts.append(("loss, nats per cell", f"{last.distortion + last.rate:.1f}"))
        if last.held_out_loss is not None and math.isfinite(last.held_out_loss):
            facts.append(("held-out loss", f"{last.held_out_loss:.1f}"))
    return facts


def _other(row: Any) -> bool:
    return isinstance(row["redundant_with"], str)


def _note(row: Any) -> str:
    if row["dead"]:
        return "in hardly any cell"
    return f"much like {row['redundant_with']}" if _other(row) else ""


def _drawn(run: FinishedRun, colours: list[str]) -> dict[str, Any]:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    info = plots.cells_info(run.xy)
    small = info._replace(size=info.size / 6)

    def picture(pixels: int) -> tuple[Figure, Any]:
        figure = Figure(figsize=(pixels / 100, pixels / 100), dpi=100)
        return figure, figure.add_axes((0, 0, 1, 1))

    def image(figure: Figure) -> str:
        return "data:image/png;base64," + base64.b64encode(figures.to_bytes(figure, "png", dpi=100)).decode()

    def drawing(figure: Figure, name: str, width: str) -> Markup:
        return Markup(inline(figures.to_bytes(figure, "svg").decode(), name, width))

    figure, ax = picture(SIZE)
    plots.plot_main_topics(run.theta, info, ax=ax, legend=False)
    out: dict[str, Any] = {"main": image(figure), "by_column": None, "heatmap": None, "training": None, "legend": []}
    out["main_legend"] = [(f"topic {k}", c) for k, c in enumerate(colours)]
    shares = []
    for k in range(min(run.theta.shape[1], MOST_IMAGES)):
        figure, ax = picture(SMALL)
        top = plots.plot_share(run.theta[:, k], small, ax=ax)
        shares.append((f"topic {k}", f"up to {top:.2g}", image(figure)))
    out["shares"], out["n_undrawn"] = shares, run.theta.shape[1] - len(shares)
    if run.history:
        out["training"] = drawing(plots.plot_training(run.history), "training", "900px")
    if run.column is not None:
        codes, levels = categories_of(run.cells.obs[run.column], run.column)
        names = [plots.shortened(v) for v in levels]
        figure, ax = picture(SIZE)
        plots.plot_categories(codes, names, info, ax=ax, legend=False)
        out["by_column"], out["legend"] = image(figure), list(zip(names, categories(len(names)), strict=True))
        table = topics_by(run.cells, run.column)
        out["heatmap"] = drawing(figures.heatmap(run), "heatmap", f"{2.6 + 0.34 * (table.shape[1] - 1):.1f}in")
    return out


def inline(svg: str, name: str, width: str) -> str:
    """Return an SVG as it can stand in a page: its ink that of the text, its ids its own, as wide as there is room."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace(INK, "currentColor")
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'(<svg[^>]*?) height="[^"]+"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="[^"]+"', r"\1", body, count=1)
    return body.replace("<svg ", f'<svg class="drawing" role="img" aria-label="{name}" style="width: {width}" ', 1)


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
