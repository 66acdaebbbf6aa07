"""A model's learning rates: found by a range test, trimmed, set, drawn."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from .. import options as opt
from ..data import sources
from ..data.counts import Cells
from ..data.sources import Data
from ..errors import NotFitted
from ..records import RangeRecord
from ..training import range_test
from ..training.range_options import RangeOptions
from ..training.range_test import LearningRateCurve
from .trainable import TrainableModel


class LearningRateModel(TrainableModel):
    """A model whose learning rates can be found.

    Attributes
    ----------
    learning_rate_curve : LearningRateCurve or None
        What `get_learning_rate_bounds` measured.
    """

    learning_rate_curve: LearningRateCurve | None = None

    def get_learning_rate_bounds(
        self,
        data: Data,
        *,
        num_steps: int = 100,
        eval_every: int = 3,
        lower_bound_lr: float = 1e-6,
        upper_bound_lr: float | None = None,
        lower_bound_trim: float = 0.0,
        upper_bound_trim: float = 0.5,
        progress: bool = True,
    ) -> tuple[float, float]:
        """Find the learning rates between which the loss falls, and set the model's to them.

        A fresh network is trained while the rate rises, each of `num_steps` rates for `eval_every` minibatches; a
        fitted model is not touched. The loss against the log of the rate is smoothed by a quintic spline; the bounds
        are the ends of the longest stretch where it falls, moved inwards by the trims.

        Parameters
        ----------
        data
            As for `fit`.
        num_steps, eval_every
            Rates to try, and minibatches at each. With fewer minibatches than that, the test goes round.
        lower_bound_lr, upper_bound_lr
            Range to try; None: up to 5, or 1 with covariates. If the loss runs away the test ends there.
        lower_bound_trim, upper_bound_trim
            How far to move the bounds inwards, in natural-log units; `trim_learning_rate_bounds` changes it.
        progress
            Whether to show a progress bar.

        Returns
        -------
        tuple of float
            ``min_learning_rate`` and ``max_learning_rate``, as they are now set.

        Raises
        ------
        TrainingError
            If the loss ran away too early, or fell nowhere.
        """
        from tqdm.auto import tqdm

        asked = RangeOptions(num_steps, eval_every, lower_bound_lr, upper_bound_lr, lower_bound_trim, upper_bound_trim)
        tested = self.test_learning_rates(data, asked)
        told = list(tqdm(tested, total=num_steps, unit="rate", disable=not progress))
        points = [(r.learning_rate, r.loss) for r in told]
        self.learning_rate_curve = range_test.read_curve(points, num_steps, asked.trim)
        return self.set_learning_rates(*self.learning_rate_curve.bounds)

    def test_learning_rates(self, data: Data, asked: RangeOptions) -> Generator[RangeRecord, None, None]:
        """Try learning rates as `get_learning_rate_bounds` does, yielding a record of each; the model stays as it is.

        Closing the generator ends the test.

        Yields
        ------
        RangeRecord
        """
        self._check_trainable()
        asked = asked.checked(opt.is_codal(self._given))
        return self.test_learning_rates_on(sources.training_cells(data, self.get_params()), asked)

    def test_learning_rates_on(self, cells: Cells, asked: RangeOptions) -> Generator[RangeRecord, None, None]:
        """Try learning rates on cells that were read before; otherwise as `test_learning_rates`."""
        fit = self._begin(cells)
        asked = asked.checked(opt.is_codal(self._given))
        yield from range_test.range_test(fit.network, cells, fit.options, fit.seed, asked)

    def trim_learning_rate_bounds(
        self, lower_bound_trim: float = 0.0, upper_bound_trim: float = 0.5
    ) -> tuple[float, float]:
        """Move the bounds that `get_learning_rate_bounds` found inwards, by natural-log units; set the model's to them.

        Returns
        -------
        tuple of float
            ``min_learning_rate`` and ``max_learning_rate``, as they are now set.
        """
        curve = self._curve()
        self.learning_rate_curve = curve.trimmed(lower_bound_trim, upper_bound_trim)
        return self.set_learning_rates(*self.learning_rate_curve.bounds)

    def set_learning_rates(self, min_learning_rate: float, max_learning_rate: float) -> tuple[float, float]:
        """Set both learning rates of the one-cycle policy, and return them."""
        self.set_params(min_learning_rate=min_learning_rate, max_learning_rate=max_learning_rate)
        return self.min_learning_rate, self.max_learning_rate

    def plot_learning_rate_bounds(
        self, figsize: tuple[float, float] = (10, 7), ax: Any = None, show_spline: bool = True
    ) -> Any:
        """Draw what `get_learning_rate_bounds` measured, with the bounds.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ..plots.learning_rates import plot_learning_rates

        return plot_learning_rates(self._curve(), figsize=figsize, ax=ax, show_spline=show_spline)

    def _curve(self) -> LearningRateCurve:
        if self.learning_rate_curve is None:
            raise NotFitted("no learning rates were tested; call get_learning_rate_bounds(data) first")
        return self.learning_rate_curve
