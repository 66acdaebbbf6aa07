"""The topic model as a user holds it: made with options, trained, asked, saved."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anndata as ad
import torch

from .. import options as opt
from ..data import anndata_io, on_disk, sources, statistics
from ..data.anndata_io import Selection
from ..data.counts import Cells
from ..data.on_disk import OnDiskDataset
from ..data.sources import Data
from ..errors import CheckpointError, NotFitted, OptionError
from ..nn.network import TopicNetwork
from ..recommend import ResolvedOption
from ..records import EpochRecord, Record
from ..training import loop, range_test
from ..training.range_test import LearningRateCurve
from ..training.writers import as_writer
from . import checkpoint
from .fitted import Fitted, FittedModel

LOWEST_RATE, HIGHEST_RATE, HIGHEST_RATE_CODAL = 1e-6, 5.0, 1.0  # of the learning-rate range test


class TopicModel(FittedModel):
    """A topic model of single-cell counts; made by `make_model`.

    Every option can be read as an attribute (``model.num_topics``); `set_params` changes them.

    Attributes
    ----------
    n_samples, n_features
        Size of the data for which options were recommended.
    learning_rate_curve : LearningRateCurve or None
        What `get_learning_rate_bounds` measured.
    """

    def __init__(self, n_samples: int, n_features: int, **given: Any) -> None:
        super().__init__(n_samples, n_features, given)
        self.learning_rate_curve: LearningRateCurve | None = None
        self._device: torch.device | None = None
        self._check_trainable()

    def __repr__(self) -> str:
        kind = {"expression": "ExpressionTopicModel", "accessibility": "AccessibilityTopicModel"}[self.feature_type]
        codal = ", CODAL" if opt.is_codal(self._given) else ""
        state = f"{len(self.history)} epochs trained" if self._fit is not None else "not fitted"
        return f"<{kind}: {len(self.topic_cols)} topics{codal}, {state}>"

    # --- training -------------------------------------------------------------------------------

    def fit(self, data: Data, *, writer: Any = None, progress: bool = True) -> TopicModel:
        """Train on a data set, from the start.

        Parameters
        ----------
        data
            AnnData, the path of an .h5ad file, or of a folder that `write_ondisk_dataset` wrote.
        writer
            Something with ``write(record)``, such as `mira_core.topics.Writer`, which is given every record; or
            something with ``add_scalar``, such as TensorBoard's ``SummaryWriter``.
        progress
            Whether to show a progress bar.

        Returns
        -------
        TopicModel
            This model.

        Raises
        ------
        DataError
            If the data are not counts, lack a column, or have nothing to learn from.
        OptionError
            If the model's encoder needs a GPU and there is none.
        TrainingError
            If the loss stops being finite. The model is then as it was after the last epoch that ended well.
        """
        from tqdm.auto import tqdm

        listener = as_writer(writer)
        with tqdm(total=self.num_epochs, unit="epoch", disable=not progress) as bar:
            for record in self.fit_records(data):
                if listener is not None:
                    listener.write(record)
                if isinstance(record, EpochRecord):
                    bar.update()
                    bar.set_postfix_str(record.progress(str(self.device)))
        return self

    def fit_records(self, data: Data) -> Generator[Record, None, None]:
        """Train as `fit` does, yielding a record after each step and each epoch.

        Closing the generator stops training at the next step and leaves a usable model of what was reached.

        Yields
        ------
        StepRecord or EpochRecord
        """
        self._check_trainable()
        return self.fit_cells(sources.training_cells(data, self.get_params()))

    def fit_cells(self, cells: Cells) -> Generator[Record, None, None]:
        """Train on cells that were read before; otherwise as `fit_records`."""
        self._fit = fit = self._begin(cells)
        for record in loop.train(fit.network, cells, fit.options, fit.seed):
            if isinstance(record, EpochRecord):
                fit.history.append(record)
            yield record

    def _begin(self, cells: Cells) -> Fitted:
        """Learn the statistics of the cells, and draw the network on the device where it is to be trained."""
        options = self.get_params()
        seed = self.seed if self.seed is not None else secrets.randbits(32)
        learned = statistics.learn(cells, _lsi_components(options), seed)
        network = TopicNetwork(options, cells.endogenous, learned, cells.covariates.shape[1], cells.extra.shape[1])
        network.initialise(torch.Generator().manual_seed(seed))
        network.to(self._training_device())
        return Fitted(
            network, cells.features, cells.endogenous, cells.coding, learned, dict(self._given), options, seed
        )

    def _check_trainable(self) -> None:
        """Raise where the documented encoder of peaks would be trained without a GPU."""
        if problem := opt.device_problem(self.get_params(), self._training_device().type != "cpu"):
            raise OptionError(problem)

    # --- devices --------------------------------------------------------------------------------

    def _training_device(self) -> torch.device:
        if self._device is not None:
            return self._device
        return torch.device("cuda" if self.use_cuda and torch.cuda.is_available() else "cpu")

    def set_device(self, device: str | torch.device) -> TopicModel:
        """Move the model to a device, such as ``"cpu"`` or ``"cuda:1"``, and train there from now on.

        Raises
        ------
        OptionError
            If there is no such device.
        """
        try:
            wanted = torch.device(device)
            torch.empty(1, device=wanted).cpu()
        except (RuntimeError, AssertionError, TypeError) as problem:
            n = torch.cuda.device_count()
            raise OptionError(
                f"there is no device {str(device)!r}; there are the cpu and {n} CUDA device{'' if n == 1 else 's'}"
            ) from problem
        self._device = wanted
        if self._fit is not None:
            self._fit.network.to(wanted)
        return self

    def to_gpu(self) -> TopicModel:
        """Move the model to the first CUDA device, and train there from now on."""
        return self.set_device("cuda")

    def to_cpu(self) -> TopicModel:
        """Move the model to the CPU, and train there from now on."""
        return self.set_device("cpu")

    # --- learning rates -------------------------------------------------------------------------

    def get_learning_rate_bounds(
        self,
        data: Data,
        *,
        num_steps: int = 100,
        eval_every: int = 3,
        lower_bound_lr: float = LOWEST_RATE,
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

        self._check_trainable()
        high = upper_bound_lr
        if high is None:
            high = HIGHEST_RATE_CODAL if opt.is_codal(self._given) else HIGHEST_RATE
        if not 0 < lower_bound_lr < high:
            raise OptionError(f"lower_bound_lr must be above 0 and below {high:g}; got {lower_bound_lr}")
        if num_steps < range_test.FEWEST or eval_every < 1:
            raise OptionError(
                f"num_steps must be at least {range_test.FEWEST} and eval_every 1; got {num_steps}, {eval_every}"
            )
        cells = sources.training_cells(data, self.get_params())
        fit = self._begin(cells)
        tested = range_test.range_test(
            fit.network, cells, fit.options, fit.seed,
            lower=lower_bound_lr, upper=high, num_steps=num_steps, eval_every=eval_every,
        )  # fmt: skip
        points = list(tqdm(tested, total=num_steps, unit="rate", disable=not progress))
        trim = (lower_bound_trim, upper_bound_trim)
        self.learning_rate_curve = range_test.read_curve(points, num_steps, trim)
        return self.set_learning_rates(*self.learning_rate_curve.bounds)

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

    # --- data sets ------------------------------------------------------------------------------

    def write_ondisk_dataset(self, data: ad.AnnData | str | Path, dirname: str | Path) -> None:
        """Write a data set that training reads from the disk, so that memory does not grow with the cells.

        Its folder stands for the AnnData in `fit`, `predict` and every other method. Of a fitted model it has the
        model's features, else those that the options select. The cells are read in one pass, a few thousand at a
        time; counts that a file holds by feature (CSC) take two passes.

        Parameters
        ----------
        data
            AnnData, in memory or backed, or the path of an .h5ad file.
        dirname
            Folder to write. A whole data set of that name is replaced; anything else is refused.

        Raises
        ------
        DataError
        """

        def choose(table: ad.AnnData) -> Selection:
            if self._fit is not None:
                return anndata_io.find(table, self._fit.features, self._fit.endogenous)
            return anndata_io.select(table, self.get_params())

        options, coding = (self._fit.options, self._fit.coding) if self._fit else (self.get_params(), None)
        on_disk.write(data, dirname, options, choose, coding)

    def train_test_split(self, data: Data, *, train_size: float = 0.8, seed: int = 0) -> tuple[Any, Any]:
        """Divide cells at random, each combination of covariates in the same proportion.

        Continuous covariates are binned by their z-scores, rounded and within 3.

        Parameters
        ----------
        data
            As for `fit`.
        train_size
            Share of the cells for training.
        seed
            The same seed and data give the same split.

        Returns
        -------
        tuple of anndata.AnnData, or of OnDiskDataset
            Training and test cells. Of a folder they are views, which every method takes in its place.

        Raises
        ------
        OptionError, DataError
        """
        source = sources.open_source(data)
        train, test = sources.split(source, self.get_params(), train_size, seed)
        if isinstance(source, OnDiskDataset):
            return source.take(train), source.take(test)
        if source.isbacked:
            source = source.to_memory()
        return source[train].copy(), source[test].copy()

    # --- files ----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Save to one file that holds only numbers and text (safetensors); `load_model` reads it.

        The file is written beside and renamed, so that a broken write leaves what was there.
        """
        curve = self.learning_rate_curve
        header = {"n_samples": self.n_samples, "n_features": self.n_features, "curve": curve and curve.to_dict()}
        checkpoint.write(Path(path), self._fitted(), header)

    @classmethod
    def _load(cls, path: str | Path) -> TopicModel:
        fit, header = checkpoint.read(Path(path))
        try:
            model = cls.__new__(cls)  # no GPU is asked for: predicting on a CPU is fine
            FittedModel.__init__(model, header["n_samples"], header["n_features"], fit.given)
            # What was recommended when it was trained stays, even if a later version recommends otherwise.
            for name, value in fit.options.items():
                now = model._resolved[name]
                if now.value != value:
                    model._resolved[name] = ResolvedOption(
                        name, value, now.source, now.documented, value, "when it was trained"
                    )
            curve = header.get("curve")
            model.learning_rate_curve = LearningRateCurve.from_dict(curve) if curve else None
        except Exception as problem:  # whatever a hostile or damaged file provokes
            raise CheckpointError(f"{Path(path).name} is damaged: {problem}") from problem
        model._device, model._fit = None, fit
        return model


def _lsi_components(options: dict[str, Any]) -> int:
    if options["feature_type"] != "accessibility" or options["atac_encoder"] != "fast":
        return 0
    return max(128, 3 * options["num_topics"])


def load_model(path: str | Path) -> TopicModel:
    """Load a model that `TopicModel.save` wrote, onto the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not a saved model, or of a newer format.
    """
    return TopicModel._load(path)
