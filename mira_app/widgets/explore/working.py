"""Something that takes long, done in a thread, with a line that shows how far it is."""

from __future__ import annotations

import asyncio
import functools
import logging
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import panel as pn
import panel_material_ui as pmui

from mira_core.errors import MiraError

from ...pages import parts

T = TypeVar("T")
Progress = Callable[[float], None]
EVERY = 0.3  # seconds between two looks at how far it is
logger = logging.getLogger(__name__)


class Superseded(Exception):
    """Somebody has asked for something else meanwhile."""


class Working:
    """One thing at a time: what is asked later takes the place of what was asked before.

    Attributes
    ----------
    view
        The line, which takes no room while nothing is done; and what went wrong.
    """

    def __init__(self) -> None:
        self.bar = pmui.LinearProgress(variant="indeterminate", sizing_mode="stretch_width", margin=(2, 12))
        self.text = parts.markup("note", margin=(0, 12, 4, 12))
        self.view = pn.Column(sizing_mode="stretch_width", margin=0)
        self._asked = 0

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return bool(self.view.objects) and self.view.objects[0] is self.bar

    def stop(self) -> None:
        """Take no interest any more in what is being done, or went wrong."""
        self._asked += 1
        self.view.objects = []

    def run(self, what: str, work: Callable[[Progress], T], done: Callable[[T], None]) -> None:
        """Do something in a thread, then tell of it in this session's turn.

        Parameters
        ----------
        what
            In words, for people.
        work
            Gets a function to tell the share that is done; that raises once something else was asked.
        done
            Given what came of it.
        """
        self._asked += 1
        asked, share = self._asked, [-1.0]

        def progress(now: float) -> None:
            if self._asked != asked:
                raise Superseded
            share[0] = now

        def show() -> None:
            if self._asked != asked:
                return
            known = share[0] > 0
            self.text.object = parts.escape(what) + (f" {share[0]:.0%}" if known else " …")
            if known:
                self.bar.param.update(variant="determinate", value=round(100 * share[0]))
            elif self.bar.variant != "indeterminate":
                self.bar.variant = "indeterminate"
            if not self.busy:
                self.view.objects = [self.bar, self.text]

        def finish(then: Callable[[], None]) -> None:
            if self._asked == asked:
                self.view.objects = []
                then()

        def fail(text: str, details: str) -> None:
            if self._asked == asked:
                self.view.objects = [parts.problem(text, details)]

        async def go() -> None:
            task = asyncio.create_task(asyncio.to_thread(work, progress))
            waited = 0
            while not task.done():
                await asyncio.wait({task}, timeout=EVERY)
                waited += 1
                if not task.done() and self._asked == asked:
                    parts.in_turn(show)
            try:
                got = task.result()
            except Superseded:
                return
            except MiraError as wrong:
                parts.in_turn(functools.partial(fail, str(wrong), ""))
            except Exception as wrong:
                logger.exception("something was asked that could not be done")
                told = f"this could not be done: {wrong}"
                parts.in_turn(functools.partial(fail, told, traceback.format_exc()))
            else:
                parts.in_turn(functools.partial(finish, functools.partial(done, got)))

        pn.state.execute(go)


class Place:
    """Where a figure goes once it has something to show: what changes in it while it is being sent can be lost."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.view = pn.Column(sizing_mode="stretch_width", margin=0)

    def show(self) -> None:
        """Put it there, if it is not."""
        if not self.view.objects:
            self.view.objects = [pn.pane.Bokeh(self.root, sizing_mode="stretch_width")]

    def clear(self) -> None:
        """Take it away."""
        self.view.objects = []


def csv(name: str, frame: Callable[[], Any], label: str = "CSV") -> Any:
    """Return a button that downloads a table as it is then."""
    import io

    def text() -> io.StringIO:
        held = frame()
        return io.StringIO("" if held is None else held.to_csv(index=False))

    return pmui.FileDownload(
        callback=text, filename=name, label=label, icon="download", variant="text", size="small",
    )  # fmt: skip
