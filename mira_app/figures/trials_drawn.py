"""How each figure of trials is drawn: what is on which axis, in which marks, with which tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    ColorBar,
    CustomJS,
    GlyphRenderer,
    HoverTool,
    Label,
    LassoSelectTool,
    LinearColorMapper,
    Range1d,
    TapTool,
)
from bokeh.plotting import figure
from bokeh.transform import factor_mark

from .colours import LINE, SECOND
from .saving import can_be_saved
from .trials_rows import STATES

if TYPE_CHECKING:
    from .trials import TrialFigures

MARKERS = ("circle", "triangle", "circle", "x")  # a circle that is not filled: running
STATE_KEY = "● complete  ▲ pruned  ○ running  × failed"
KEYS = {"pareto": f"{STATE_KEY}  ☆ best", "history": f"{STATE_KEY}  — best", "topics": f"{STATE_KEY}  — median"}
UNIT = "nats per cell"
LABELS = {
    "number": "trial", "value": f"held-out loss ({UNIT})", "elbo": f"held-out loss ({UNIT})",
    "distortion": f"distortion ({UNIT})", "rate": f"rate ({UNIT})", "seconds": "time (s)", "num_topics": "topics",
    "epochs_trained": "epochs trained", "initial_pseudocounts": "initial pseudocounts",
}  # fmt: skip
TIPS = [("trial", "@number, @state"), ("loss", f"@loss{{0.00}} {UNIT}"), ("tried", "@tip")]
MOVES = "pan,box_zoom,wheel_zoom,reset"

# Bokeh's own tools that select by area pass over lines. What is in the box is selected here, without the server.
THROUGH_BOX = """
if (!cb_obj.final || cb_obj.geometry.type !== "rect") return
const {x0, x1, y0, y1} = cb_obj.geometry, lines_x = source.data[xs], lines_y = source.data[ys], at = []
for (let i = 0; i < lines_x.length; i++) {
  const x = lines_x[i], y = lines_y[i]
  let inside = 0, beside = 0
  for (let j = 0; j < x.length; j++)
    if (x[j] >= x0 && x[j] <= x1) (y[j] >= y0 && y[j] <= y1) ? inside++ : beside++
  if (inside && !(every && beside)) at.push(i)
}
source.selected.indices = at
"""


def label_of(name: str, log: bool = False) -> str:
    """Return what an axis of an attribute is called, with its unit."""
    return LABELS.get(name, name.replace("_", " ")) + (", log" if log else "")


def pareto(f: TrialFigures, ranges: dict[str, Range1d]) -> figure:
    """Draw any attribute against any other."""
    v = f.view
    p = _figure("Trials", 440, ranges, x_axis_type="log" if v["log_x"] else "linear",
                y_axis_type="log" if v["log_y"] else "linear")  # fmt: skip
    p.add_layout(f.notes["pareto"], "above")
    p.line("x", "y", source=f.front, color=SECOND, line_dash="dashed", line_width=1.5)
    _points(p, f, "x", "y", fill_color={"field": "hue", "transform": f.mapper}, line_color="gray",
            fill_alpha="filled", nonselection_fill_alpha=0.12, nonselection_line_alpha=0.2)  # fmt: skip
    p.text("x", "y", text="label", source=f.source, text_font_size="9px", text_color="gray", x_offset=7,
           y_offset=-3, nonselection_text_alpha=0.15)  # fmt: skip
    p.scatter("x", "y", source=f.marks, marker="marker", size=19, fill_alpha=0, line_color="colour", line_width=2)
    f.bars_of["hue"] = _bar(p, f.mapper)
    f.tips = p.select_one(HoverTool)
    can_be_saved(p, "trials")
    return p


def curves(f: TrialFigures, ranges: dict[str, Range1d]) -> figure:
    """Draw the score of each trial at each epoch."""
    p = _figure("Held-out loss after each epoch", 400, ranges, x_axis_label="epoch", y_axis_label=UNIT)
    lines = _lines(p, f, "xs", "ys", every=False)
    p.line("x", "y", source=f.pinned_curve, color=SECOND, line_width=2.5, line_dash="dashed")
    f.lines = lines
    f.bars_of["curve_hue"] = _bar(p, f.curve_mapper)
    can_be_saved(p, "intermediate-values")
    return p


def history(f: TrialFigures, ranges: dict[str, Range1d]) -> figure:
    """Draw the loss of each trial in the order in which they began, and the best so far."""
    p = _figure("Loss by trial", 280, ranges, x_axis_label="trial", y_axis_label=UNIT)
    p.add_layout(f.notes["history"], "above")
    _points(p, f, "number", "loss", color=LINE, fill_alpha="filled", nonselection_alpha=0.12)
    p.step("number", "value", source=f.best, color=SECOND, line_width=2, mode="after")
    can_be_saved(p, "history")
    return p


def topics(f: TrialFigures, ranges: dict[str, Range1d]) -> figure:
    """Draw the loss of each trial by its number of topics, and the medians of the completed ones."""
    p = _figure("Loss by number of topics", 280, ranges, x_axis_label="topics", y_axis_label=UNIT)
    p.add_layout(f.notes["topics"], "above")
    _points(p, f, "jittered", "loss", color=LINE, fill_alpha="filled", nonselection_alpha=0.12)
    medians = p.line("k", "value", source=f.medians, color=SECOND, line_width=2)
    told = [("topics", "@k"), ("completed trials", "@trials"), ("median loss", f"@value{{0.00}} {UNIT}")]
    p.add_tools(HoverTool(renderers=[medians], tooltips=told, visible=False))
    can_be_saved(p, "topics")
    return p


def parallel(f: TrialFigures, ranges: dict[str, Range1d]) -> figure:
    """Draw each trial as a line through one axis for each parameter and outcome."""
    p = _figure("What was tried, and what came of it", 300, ranges, tools="reset")
    _lines(p, f, "px", "py", every=True)
    p.segment("x", 0, "x", 1, source=f.axes, line_color="gray")
    for end, at, baseline in (("low", -0.02, "top"), ("high", 1.02, "bottom")):
        p.text("x", at, text=end, source=f.axes, text_align="center", text_baseline=baseline, text_font_size="10px",
               text_color="gray")  # fmt: skip
    p.yaxis.visible = False
    p.xaxis.major_label_orientation = 0.4  # on a phone, axes are narrow
    p.xaxis.axis_line_color = p.xaxis.major_tick_line_color = None
    p.grid.visible = False
    f.bars_of["parallel"] = _bar(p, f.curve_mapper)
    can_be_saved(p, "parallel-coordinates")
    return p


def importance(f: TrialFigures, _: dict[str, Range1d]) -> figure:
    """Draw how much each parameter matters."""
    p = figure(height=260, sizing_mode="stretch_width", min_width=240, title="What matters for the loss", y_range=[],
               tools="", toolbar_location="above", x_axis_label="share", x_range=Range1d(0, 1))  # fmt: skip
    p.add_layout(f.notes["importance"], "above")
    bars = p.hbar(y="name", right="value", source=f.bars, height=0.6, color=LINE)
    p.text("value", "name", text="share", source=f.bars, x_offset=4, text_baseline="middle", text_font_size="11px",
           text_color="gray")  # fmt: skip
    p.add_tools(HoverTool(renderers=[bars], tooltips=[("@name", "@value{0.0%}")], visible=False))
    _plain(p)
    p.ygrid.visible = False
    can_be_saved(p, "importance")
    return p


MAKERS = {"pareto": pareto, "curves": curves, "history": history, "topics": topics, "parallel": parallel,
          "importance": importance}  # fmt: skip


def _figure(title: str, height: int, ranges: dict[str, Range1d], tools: str = MOVES, **options: Any) -> figure:
    p = figure(title=title, height=height, sizing_mode="stretch_width", min_width=240, tools=tools,
               toolbar_location="above", active_drag=None, x_range=ranges["x"], y_range=ranges["y"],
               **options)  # fmt: skip
    _plain(p)
    return p


def _points(p: figure, f: TrialFigures, x: str, y: str, **looks: Any) -> None:
    """Draw a mark for each trial, which can be selected; what else is drawn cannot."""
    points = p.scatter(x, y, source=f.source, size=f.size, marker=factor_mark("state", MARKERS, STATES),
                       selection_line_width=2.5, **looks)  # fmt: skip
    f.points.append(points)
    p.add_tools(
        HoverTool(renderers=[points], tooltips=TIPS, visible=False), TapTool(renderers=[points], mode="replace"),
        BoxSelectTool(renderers=[points]), LassoSelectTool(renderers=[points], continuous=False),
    )  # fmt: skip


def _lines(p: figure, f: TrialFigures, xs: str, ys: str, every: bool) -> GlyphRenderer:
    """Draw a line for each trial; a box selects those with any point in it, or all of those between its sides."""
    lines = p.multi_line(
        xs, ys, source=f.source, line_width=1.3, line_color={"field": "curve_hue", "transform": f.curve_mapper},
        line_alpha=0.8, nonselection_line_alpha=0.08, selection_line_width=2.5, selection_line_alpha=1,
    )  # fmt: skip
    p.add_tools(HoverTool(renderers=[lines], tooltips=TIPS, line_policy="nearest", visible=False),
                TapTool(renderers=[lines], mode="replace"), BoxSelectTool(renderers=[]))  # fmt: skip
    args = {"source": f.source, "xs": xs, "ys": ys, "every": every}
    p.js_on_event("selectiongeometry", CustomJS(args=args, code=THROUGH_BOX))
    return lines


def _bar(p: figure, mapper: LinearColorMapper) -> ColorBar:
    bar = ColorBar(color_mapper=mapper, title="", width=10, padding=4, title_text_font_size="11px",
                   title_text_font_style="normal", background_fill_alpha=0, ticker=BasicTicker())  # fmt: skip
    p.add_layout(bar, "right")
    return bar


def note(text: str) -> Label:
    """Return small text to stand above a figure. Titles would be as large as the page's theme has them."""
    return Label(text=text, x=0, y=2, x_units="screen", y_units="screen", text_font_size="11px", text_color="gray")


def _plain(p: figure) -> None:
    p.grid.grid_line_alpha = 0.4
    p.outline_line_color = None
    p.toolbar.logo = None
