"""The learning-rate test: run, seen live, bounds dragged, taken over; beside the form, and by itself."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui
import param

from mira_core import options
from mira_core.errors import OptionError
from mira_core.training.range_options import RangeOptions

from ..figures.rates import RangeCurve, moved_to
from ..pages import parts
from ..series import Series
from .notebook import Alone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mira_core.records import RangeRecord
    from mira_core.topics import TopicModel


class RatesView:
    """A range test's curve and bounds, and its buttons.

    Parameters
    ----------
    start, stop
        What begins a test, and what ends it.
    use
        Given the bounds, rounded, when somebody takes them.

    Attributes
    ----------
    view
        What is shown.
    curve
        What the last test told (`mira_core.training.range_test.describe`), with the bounds as they were dragged; None
        before.
    moved
        Called when somebody has dragged the bounds.
    """

    def __init__(
        self, start: Callable[[], None], stop: Callable[[], None], use: Callable[[float, float], None]
    ) -> None:
        self.use = use
        self.curve: dict[str, Any] | None = None
        self.moved: Callable[[], None] = lambda: None
        self.figure = RangeCurve()
        self.figure.moved = self._dragged
        self.button = pmui.Button(label="Test learning rates", icon="speed", variant="outlined", size="small")
        self.stop = pmui.Button(label="Stop", icon="stop", variant="text", color="error", size="small", visible=False)
        self.take = pmui.Button(label="Use these", icon="check", size="small", visible=False)
        self.line = parts.markup("status", margin=(2, 12))
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.box = pn.Column(self.figure.root, sizing_mode="stretch_width", margin=0, visible=False)
        self.view = parts.card(
            parts.note("Trains for seconds at rising learning rates. Good ones lie where the loss falls."),
            pn.FlexBox(self.button, self.stop, self.take, sizing_mode="stretch_width"),
            self.line, self.box, self.message, heading="Learning rates",
        )  # fmt: skip
        parts.on_click(self.button, start)
        parts.on_click(self.stop, stop)
        parts.on_click(self.take, self._take)

    def clear(self, begun: bool = False) -> None:
        """Forget a test; another one may have begun."""
        self.curve = None
        self.figure.clear()
        self.message.objects, self.line.object = [], ""
        self.take.visible = self.stop.visible = self.button.loading = False
        self.box.visible = begun

    def runs(self, series: Series, step: int, num_steps: int) -> None:
        """Show how far a test is; 0 steps as long as it is yet to begin."""
        self.stop.visible = self.button.loading = True
        self.figure.update(series)
        n = f", {step} of {num_steps}" if num_steps else ""
        self.line.object = f"<b>{'Testing' if num_steps else 'Starting'}</b>{n}"

    def ended(self, curve: dict[str, Any] | None) -> None:
        """Show what a test told, None if nothing."""
        self.stop.visible = self.button.loading = False
        self.message.objects = [parts.problem(w) for w in (curve or {}).get("warnings", [])]
        if curve is None or not curve["rates"]:
            self.line.object = "<b>The test was stopped before it told anything.</b>"
            return
        self.curve = curve
        self.figure.show(curve)
        self._say()

    def failed(self, words: str, details: str = "") -> None:
        """Say why there is no test."""
        self.stop.visible = self.button.loading = False
        self.line.object = ""
        self.message.objects = [parts.problem(words, details)]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where the handles stand, rounded; None if there are none."""
        bounds = self.curve and self.curve.get("bounds")
        return (_round(bounds[0]), _round(bounds[1])) if bounds else None

    def place(self, low: float, high: float) -> None:
        """Put the handles elsewhere."""
        if self.curve is not None and self.curve.get("falling"):
            self.curve = moved_to(self.curve, low, high)
            self.figure.place(low, high)
            self._say()

    def curve_for(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the curve, to be kept with a model, if its bounds are what the model is given."""
        same = (given.get("min_learning_rate"), given.get("max_learning_rate")) == self.bounds
        return self.curve if same else None

    def _say(self) -> None:
        bounds = self.curve and self.curve.get("bounds")
        self.take.visible = bool(bounds)
        if bounds:
            low, high = bounds
            self.line.object = f"<b>{low:.2g}</b> to <b>{high:.2g}</b> · drag the ends to move them"
        else:
            self.line.object = "<b>No bounds were found.</b>"

    def _dragged(self) -> None:
        if self.curve is not None and self.curve.get("falling") and self.figure.bounds:
            self.curve = moved_to(self.curve, *self.figure.bounds)
            self._say()
            self.moved()

    def _take(self) -> None:
        if self.bounds is not None:
            self.use(*self.bounds)


class LearningRateTest(Alone):
    """A learning-rate range test of a model: run, seen live, its bounds dragged, and set on the model.

    Parameters
    ----------
    model
        Made by `mira.topics.make_model`, or `ModelForm.model`. A test trains a network of its own: what the model has
        learned stays. If the model was tested before, that is shown.
    data
        As for ``model.fit``.
    every
        Seconds after which what is new is drawn; None: when `refresh` is called.
    **asked
        ``num_steps``, ``eval_every``, ``lower_bound_lr``, ``upper_bound_lr``, ``lower_bound_trim`` and
        ``upper_bound_trim``, as of ``model.get_learning_rate_bounds``.

    Attributes
    ----------
    bounds
        Learning rates between which the loss falls, as the handles stand; None as long as there are none. Can be set.

    Examples
    --------
    >>> rates = LearningRateTest(model, adata)
    >>> rates  # in a cell of a notebook: press Test learning rates, drag the ends, press Use these
    >>> rates.run().wait().apply()  # the same without hands
    (0.0012, 0.083)
    """

    bounds: tuple[float, float] | None = param.NumericTuple(  # type: ignore[assignment]
        default=None, length=2, allow_None=True, doc="Learning rates between which the loss falls."
    )

    def __init__(self, model: TopicModel, data: Any, *, every: float | None = 0.5, **asked: Any) -> None:
        super().__init__()
        self.model, self.data, self._every = model, data, every
        self._asked = RangeOptions(**asked).checked(options.is_codal(model.given))
        self._test: _Test | None = None
        self._timer: Any = None
        self._quiet = False
        self._rates = RatesView(self.run, self.stop, self._use)
        self._rates.moved = self._follow
        if model.learning_rate_curve is not None:
            from mira_core.training import range_test

            curve = model.learning_rate_curve
            points = list(zip(curve.rates, curve.losses, strict=True))
            told = range_test.describe(points, len(points), curve.trim)
            self._rates.box.visible = True
            self._rates.ended({**told, **curve.to_dict(), "bounds": list(curve.bounds)})
            self._follow()

    def __panel__(self) -> pn.viewable.Viewable:
        """Return what is shown."""
        return self._rates.view

    @property
    def live(self) -> bool:
        """Whether a test is running."""
        return self._test is not None

    def run(self) -> LearningRateTest:
        """Begin a test, in a thread."""
        if self._test is not None:
            return self
        self._test = _Test(self.model, self.data, self._asked)
        with self.changing():
            self._rates.clear(begun=True)
            self._follow()
            self._rates.runs(self._test.series, 0, 0)
        if self._every:
            self._timer = pn.state.add_periodic_callback(self.refresh, round(1000 * self._every))
        return self

    def stop(self) -> None:
        """End the test at its next learning rate; what is known by then is told."""
        if self._test is not None:
            self._test.asked.set()

    def wait(self) -> LearningRateTest:
        """Wait until the test has ended, and show meanwhile what comes."""
        while self._test is not None:
            self._test.done.wait(self._every or 0.5)
            self.refresh()
        return self

    def refresh(self) -> None:
        """Draw what is new."""
        test = self._test
        if test is None:
            return
        with self.changing():
            if not test.done.is_set():
                self._rates.runs(test.series, len(test.series.rates), self._asked.num_steps)
                return
            self._test = None
            if test.problem:
                self._rates.failed(*test.problem)
            else:
                self._rates.ended(test.told())
            self._follow()
        if self._timer is not None:
            self._timer.stop()

    def apply(self) -> tuple[float, float]:
        """Set the model's learning rates to the bounds, keep the curve with it, and return them.

        Raises
        ------
        OptionError
            If there are no bounds yet.
        """
        if self.bounds is None:
            raise OptionError("there are no bounds yet; press Test learning rates, or call run and wait for its end")
        self._use(*self.bounds)
        return self.bounds

    def _use(self, low: float, high: float) -> None:
        from mira_core.training.range_test import LearningRateCurve

        self.model.set_learning_rates(low, high)
        if self._rates.curve is not None:
            self.model.learning_rate_curve = LearningRateCurve.from_dict(self._rates.curve)
        with self.changing():
            self._rates.line.object = f"<b>{low:.2g}</b> to <b>{high:.2g}</b> · set on the model"

    def _follow(self) -> None:
        """Take over where the handles stand."""
        self._quiet = True
        self.bounds = self._rates.bounds
        self._quiet = False

    @param.depends("bounds", watch=True)
    def _place(self) -> None:
        if self._quiet:
            return
        asked = self.bounds
        if asked is None or self._rates.bounds is None or not 0 < asked[0] < asked[1]:
            self._follow()
            raise OptionError(
                f"bounds must be two learning rates, the lower one first, once a test has told some; got {asked}"
            )
        with self.changing():
            self._rates.place(*asked)
            self._follow()

    def pictures(self) -> list[Figure]:
        """Return loss against learning rate, drawn with matplotlib."""
        curve = self._rates.curve
        if curve is None or not curve.get("falling"):
            return []
        from matplotlib.figure import Figure

        from mira_core.plots.learning_rates import plot_learning_rates
        from mira_core.training.range_test import LearningRateCurve

        figure = Figure(figsize=(7, 3.5), layout="constrained")
        plot_learning_rates(LearningRateCurve.from_dict(curve), ax=figure.add_subplot())
        return [figure]

    def words(self) -> str:
        """Say what the bounds are."""
        if self.bounds is None:
            return "<p>No learning rates have been tested.</p>"
        return f"<p>Learning rates from <b>{self.bounds[0]:.3g}</b> to <b>{self.bounds[1]:.3g}</b></p>"


class _Test:
    """A range test in a thread."""

    def __init__(self, model: TopicModel, data: Any, asked: RangeOptions) -> None:
        self.series, self.num_steps, self.trim = Series(), asked.num_steps, asked.trim
        self.asked, self.done = threading.Event(), threading.Event()
        self.problem: tuple[str, str] | None = None
        self._stopped = False
        threading.Thread(target=self._run, args=(model, data, asked), daemon=True, name="mira-rates").start()

    def _run(self, model: TopicModel, data: Any, asked: RangeOptions) -> None:
        try:
            records: Generator[RangeRecord, None, None] = model.test_learning_rates(data, asked)
            for record in records:
                self.series.append([record.to_dict()])
                if self.asked.is_set():
                    self._stopped = True
                    records.close()
        except Exception as problem:  # told where it is looked at
            self.problem = str(problem), traceback.format_exc()
        self.done.set()

    def told(self) -> dict[str, Any]:
        """Return what it told."""
        from mira_core.training import range_test

        rates = self.series.rates
        points = list(zip(rates["learning_rate"].tolist(), rates["loss"].tolist(), strict=True))
        return range_test.describe(points, self.num_steps, self.trim, self._stopped)


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")
