"""Figures as files: PNG and SVG, drawn in the browser as they are seen there."""

from __future__ import annotations

import base64

from bokeh.events import MouseEnter
from bokeh.models import CustomAction, CustomJS, SaveTool
from bokeh.plotting import figure

SVG = """
const view = Bokeh.index.find_one(figure)
view.export("svg").to_blob().then((blob) => {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(blob)
  link.download = `${name}.svg`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10000)
})
"""
# As large as Bokeh's own, in their gray.
_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><text x="12" y="16.5" text-anchor="middle"
font-family="sans-serif" font-size="11" font-weight="bold" fill="#777">SVG</text></svg>"""


def can_be_saved(p: figure, name: str) -> None:
    """Give a figure the tools that save it, as PNG and as SVG.

    Parameters
    ----------
    p
        The figure, with its other tools. Where it shows no toolbar, one for saving appears under the pointer.
    name
        Name of the files, without suffix.
    """
    icon = "data:image/svg+xml;base64," + base64.b64encode(_ICON.encode()).decode()
    code = CustomJS(args={"figure": p, "name": name}, code=SVG)
    if p.toolbar_location is None:
        p.toolbar_inner = True
        p.toolbar.autohide = True
        for tool in p.tools:
            tool.visible = False  # they work without their buttons
        # Made when it is first wanted, as the browser takes long for many.
        p.js_on_event(MouseEnter, CustomJS(args={"figure": p}, code="figure.toolbar_location ??= 'right'"))
    p.toolbar.logo = None
    p.add_tools(
        SaveTool(filename=name, description="Save as PNG"),
        CustomAction(icon=icon, description="Save as SVG", callback=code),
    )
