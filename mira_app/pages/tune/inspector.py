"""One trial: what it was, how it went, why it failed; its model; beside a pinned one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from mira_core.errors import MiraError
from mira_core.tuning import control
from mira_core.tuning.reading import Reading

from ...widgets.trial import differences, head_html, matched_html, story_html
from .. import parts

if TYPE_CHECKING:
    from .page import TunePage


class Inspector:
    """What is known of the selected trial."""

    def __init__(self, page: TunePage) -> None:
        self.page, self.session = page, page.session
        self.reading: Reading | None = None
        self.number: int | None = None
        self._told: Any = None
        self.head = parts.markup("status", margin=(6, 12))
        self.explore = pmui.Button(label="Topics on the cells", end_icon="arrow_forward", size="small", visible=False)
        self.pin = pmui.Button(label="Pin to compare", icon="push_pin", variant="outlined", size="small", visible=False)
        self.again = pmui.Button(label="Try again", icon="replay", variant="outlined", size="small", visible=False)
        self.weights = pmui.FileDownload(
            callback=self._weights, label="Model", icon="download", variant="outlined", size="small", visible=False,
        )  # fmt: skip
        self.said = pn.Column(sizing_mode="stretch_width", margin=0)
        self.story = parts.markup("trial", margin=(4, 10))
        self.comparison = parts.markup("trial", margin=(4, 10))
        parts.on_click(self.explore, self._explore)
        parts.on_click(self.pin, self._pin)
        parts.on_click(self.again, self._again)
        self.view = parts.card(
            self.head,
            pn.FlexBox(self.explore, self.pin, self.again, self.weights, sizing_mode="stretch_width"),
            self.said,
            self.story,
            self.comparison,
            heading="Trial",
        )
        self.show([], None)

    def show(self, numbers: list[int], reading: Reading | None) -> None:
        """Show one trial; of several, say which."""
        self.said.objects = []
        self.number, self._told = (numbers[-1] if len(numbers) == 1 else None), None
        if self.number is None:
            many = len(numbers)
            self.head.object = (
                f"<b>{many:,} trials are selected</b>" if many else "Select a trial, in a figure or in the table."
            )
            self.explore.visible = self.pin.visible = self.again.visible = self.weights.visible = False
            self.story.object = self.comparison.object = ""
            return
        if reading is not None:
            self.update(reading)
            self._compare(reading)

    def update(self, reading: Reading) -> None:
        """Show what is new of the selected trial."""
        self.reading = reading
        trial = reading.of(self.number) if self.number is not None else None
        if trial is None:
            return
        now = trial, reading.curves.get(trial["number"])
        if now == self._told:
            return
        self._told = now
        number = trial["number"]
        self.head.object = head_html(reading, number)
        complete = trial["state"] == "COMPLETE"
        self.explore.visible = self.weights.visible = complete
        self.pin.visible = True
        self.pin.label = "Remove the pin" if self.session.pinned == number else "Pin to compare"
        self.again.visible = trial["state"] == "FAIL" and reading.plan is not None
        self.weights.filename = f"trial-{number}.safetensors"
        self.story.object = story_html(reading, number, self.page.studies.log(reading.name, number))

    # --- what can be done with it ---------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self.said.objects = [parts.problem(text)]

    def _weights(self) -> Any:
        reading = self.reading
        if reading is None or self.number is None:
            return None
        try:
            return self.page.studies.weights(reading, self.number)
        except MiraError as problem:
            text = str(problem)
            parts.in_turn(lambda: self._say(text))
            return None

    def _again(self) -> None:
        reading, number = self.reading, self.number
        if reading is None or number is None or reading.plan is None:
            return

        def done(retry: Any) -> None:
            where = "" if reading.state == "running" else " It runs when the study goes on."
            self.said.objects = [parts.good(f"Queued once more, with {retry.why}.{where}")]

        self.page.act(control.try_again, reading.plan, number, done=done)

    def _explore(self) -> None:
        reading, number, source = self.reading, self.number, self.session.data
        if reading is None or number is None:
            return
        parts.in_thread(
            lambda: self.page.studies.topics_on_cells(reading, number, source),
            lambda key: self.session.param.update(job=key, page="explore"),
            self._say,
            self.explore,
        )

    def _pin(self) -> None:
        self.session.pin = "" if self.session.pinned == self.number else str(self.number)

    # --- beside the pinned one ------------------------------------------------------------------------

    def _compare(self, reading: Reading) -> None:
        pinned, number = self.session.pinned, self.number
        if pinned is None or number is None or pinned == number or reading.of(pinned) is None:
            self.comparison.object = ""
            return
        told = parts.table_html(f"Trial {pinned} (pinned) and trial {number}", differences(reading, pinned, number))
        self.comparison.object = f"{told}<p>Topics are being matched …</p>"

        def say(more: str) -> None:
            if self.number == number and self.session.pinned == pinned:
                self.comparison.object = told + more

        parts.in_thread(
            lambda: self.page.studies.compare(reading, pinned, number),
            lambda frame: say(matched_html(frame, pinned, number)),
            lambda text: say(f"<p>{parts.escape(f'Topics are not compared: {text}')}</p>"),
        )
