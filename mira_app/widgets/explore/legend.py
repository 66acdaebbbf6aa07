"""A legend whose entries can be clicked."""

from __future__ import annotations

from typing import Any

import param
from panel.custom import JSComponent

from ...styles import LINE, MUTED


class Key(JSComponent):
    """Names and colours of categories; a click on one names it, another click takes it back.

    It is not called a legend, as panel-material-ui takes models of that name for Bokeh's.
    """

    entries = param.List(default=[], doc="[name, colour, number of cells in words] of each category.")
    chosen = param.String(default="", doc="The name that was clicked; empty: none.")

    _esm = """
    export function render({ model, el }) {
      const box = document.createElement('div')
      box.setAttribute('role', 'group')
      box.setAttribute('aria-label', 'Legend')
      el.appendChild(box)
      const draw = () => {
        box.replaceChildren(...model.entries.map(([name, colour, many]) => {
          const button = document.createElement('button')
          const [dot, text, n] = ['i', 'span', 'small'].map((tag) => document.createElement(tag))
          dot.style.background = colour
          text.textContent = name
          n.textContent = many
          button.append(dot, text, n)
          button.type = 'button'
          const on = model.chosen === name
          button.setAttribute('aria-pressed', on)
          if (model.chosen && !on) button.classList.add('off')
          button.title = on ? 'Show all alike' : 'Highlight these cells'
          button.onclick = () => { model.chosen = on ? '' : name }
          return button
        }))
      }
      model.on('entries', draw)
      model.on('chosen', draw)
      draw()
    }
    """
    _stylesheets = [  # noqa: RUF012
        f"""
        div {{ display: flex; flex-wrap: wrap; gap: 1px 4px; max-height: 172px; overflow-y: auto; }}
        button {{ font: inherit; font-size: 12px; color: var(--panel-on-background-color, #222); background: none;
            border: 1px solid transparent; border-radius: 4px; padding: 1px 6px; cursor: pointer;
            display: inline-flex; align-items: center; max-width: 100%; }}
        button:hover, button:focus-visible {{ border-color: {LINE}; }}
        button[aria-pressed=true] {{ border-color: var(--panel-primary-color); }}
        button.off span, button.off i {{ opacity: 0.6; }}
        i {{ width: 9px; height: 9px; border-radius: 50%; margin-right: 5px; flex: none; }}
        span {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
        small {{ color: {MUTED}; margin-left: 5px; font-variant-numeric: tabular-nums; font-size: 11px; }}
        """
    ]

    def __init__(self, **params: Any) -> None:
        super().__init__(
            **{"css_classes": ["mira-legend"], "sizing_mode": "stretch_width", "margin": (2, 12), **params}
        )
