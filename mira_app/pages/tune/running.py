"""RUNNING trials: who runs them, whether that process lives, and a way to be rid of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core.tuning import control
from mira_core.tuning.reading import Reading, Running

from ...widgets.live_table import LiveTable
from .. import parts

if TYPE_CHECKING:
    from .page import TunePage

MEANS = {
    "alive": "alive",
    "silent": "silent: it runs on another machine and has not been heard of for a minute",
    "dead": "dead: its process is gone",
}
WHAT_HAPPENS = {
    "alive": "A worker that lives loses the trial: it notices when the trial ends, and begins the next one.",
    "silent": "A silent worker may only be cut off; if it lives, it loses the trial and goes on with the next one.",
}


class RunningTrials:
    """A table of running trials, and what to do about those that never end."""

    def __init__(self, page: TunePage) -> None:
        self.page = page
        self._running: list[Running] = []
        self._sure: list[int] | None = None
        self.dead = pmui.Button(label="Purge the dead", icon="delete_sweep", variant="outlined", visible=False)
        self.some = pmui.Button(label="Purge the selected", icon="delete", variant="outlined", disabled=True)
        self.every = pmui.Button(label="Purge all", icon="delete_forever", variant="text", color="error")
        self.sure = pmui.Button(label="Yes, purge", color="error", visible=False)
        self.no = pmui.Button(label="No", variant="outlined", visible=False)
        self.warning = pn.Column(sizing_mode="stretch_width", margin=0)
        self.table = LiveTable(on_select=lambda _: self._count(), selectable="checkbox")
        self.place = self.table.view
        self.nothing = parts.empty("No trial runs", "Trials that run, anywhere, are listed here with their processes.")
        self.buttons = pn.FlexBox(self.dead, self.some, self.every, sizing_mode="stretch_width")
        self.view = pn.Column(
            self.nothing, self.buttons, self.warning, pn.FlexBox(self.sure, self.no), self.place,
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        parts.on_click(self.dead, lambda: self._purge([r.number for r in self._running if r.standing == "dead"]))
        parts.on_click(self.some, lambda: self._ask(self._selected()))
        parts.on_click(self.every, lambda: self._ask([r.number for r in self._running]))
        parts.on_click(self.sure, self._confirmed)
        parts.on_click(self.no, self._forget)

    def close(self) -> None:
        """Nothing is held."""

    def update(self, reading: Reading) -> None:
        """Show who runs what now."""
        self._running = reading.running
        here = bool(reading.running)
        self.nothing.visible, self.buttons.visible, self.place.visible = not here, here, here
        if here:
            self.table.show(lambda: _frame(self._running))
        dead = sum(r.standing == "dead" for r in reading.running)
        self.dead.visible = dead > 0
        self.dead.label = f"Purge the dead ({dead})"
        self._count()
        if self._sure is not None and not {r.number for r in reading.running} & set(self._sure):
            self._forget()  # they have ended meanwhile

    def _selected(self) -> list[int]:
        return [r.number for r in self._running if r.number in self.table.selected]

    def _count(self) -> None:
        n = len(self._selected())
        self.some.disabled = not n
        self.some.label = f"Purge the selected ({n})" if n else "Purge the selected"

    def _ask(self, numbers: list[int]) -> None:
        """Purge what is dead at once; of others say first what it means."""
        chosen = [r for r in self._running if r.number in numbers]
        risky = {r.standing for r in chosen} - {"dead"}
        if not risky:
            self._purge(numbers)
            return
        self._sure = numbers
        told = [f"Trials {', '.join(str(r.number) for r in chosen)} become FAILED, which cannot be undone."]
        told += [WHAT_HAPPENS[how] for how in ("alive", "silent") if how in risky]
        self.warning.objects = [parts.problem(" ".join(told))]
        self.sure.visible = self.no.visible = True

    def _confirmed(self) -> None:
        numbers = self._sure or []
        self._forget()
        self._purge(numbers)

    def _forget(self) -> None:
        self._sure = None
        self.warning.objects = []
        self.sure.visible = self.no.visible = False

    def _purge(self, numbers: list[int]) -> None:
        opened = self.page.studies.readings.opened

        def done(purged: Any) -> None:
            gone = sorted(set(numbers) - set(purged))
            text = f"Purged: {', '.join(map(str, purged)) or 'none'}."
            self.warning.objects = [
                parts.good(text + (f" Ended meanwhile: {', '.join(map(str, gone))}." if gone else ""))
            ]

        self.page.act(control.purge, opened, numbers, done=done)


def _frame(running: list[Running]) -> pd.DataFrame:
    now = time.time()
    return pd.DataFrame(
        [
            (r.number, MEANS[r.standing], r.host, r.pid, r.device, f"{max(0, now - r.heartbeat):.0f} s ago", r.epoch,
             r.seconds_per_epoch, r.peak_memory_mb)
            for r in running
        ],
        columns=["trial", "its process is", "host", "pid", "device", "last heartbeat", "epoch", "s per epoch",
                 "memory, MB"],
    )  # fmt: skip
