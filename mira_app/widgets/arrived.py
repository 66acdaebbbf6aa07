"""Tells when a browser has got something that was added to its page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import param
from panel.custom import JSComponent

PATIENCE = 5000  # milliseconds after which it is taken to be there


class Arrived(JSComponent):
    """Asks the browser for a Bokeh model until it has it.

    Panel sends what is added to a page when it gets round to it, while a change of a figure's data goes out at once. A
    change of what has not arrived is lost, and all that follows; so whoever draws live asks here before they begin.
    """

    ask = param.String(default="", doc="The model's id, and a number so that each question is a new one.")
    told = param.String(default="", doc="The question that was answered.")

    _esm = """
    export function render({ model }) {
      model.on('ask', () => {
        const asked = model.ask, id = asked.split(' ')[0]
        const look = () => {
          if (model.ask !== asked) return
          const there = (window.Bokeh?.documents ?? []).some((d) => d.get_model_by_id(id))
          if (there) model.told = asked
          else setTimeout(look, 50)
        }
        look()
      })
    }
    """

    def __init__(self, **params: Any) -> None:
        super().__init__(**{"width": 0, "height": 0, "margin": 0, **params})
        self._then: Callable[[], None] | None = None
        self._number = 0
        self.param.watch(lambda _: self._answered(self.told), "told")

    def when(self, model: Any, then: Callable[[], None]) -> None:
        """Call `then` once the browser has `model`; a later question takes the place of one that is not answered."""
        self._number += 1
        self._then, question = then, f"{model.id} {self._number}"
        self.ask = question
        # a page that is asked before it is there may not hear it
        pn.state.curdoc.add_timeout_callback(lambda: self._answered(question), PATIENCE)

    def _answered(self, question: str) -> None:
        if question == self.ask and self._then is not None:
            then, self._then = self._then, None
            then()
