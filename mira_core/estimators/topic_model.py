"""The topic model as a user holds it: made with options, trained, asked, saved."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from .. import options as opt
from ..data import anndata_io, on_disk, sources
from ..data.anndata_io import Selection
from ..data.counts import Cells
from ..data.on_disk import OnDiskDataset
from ..data.sources import Data
from ..errors import CheckpointError, DataError, NotFitted
from ..recommend import ResolvedOption
from ..records import EpochRecord, Record, tables
from ..training import loop
from ..training.range_test import LearningRateCurve
from ..training.writers import as_writer
from . import checkpoint
from .estimating import Estimate, estimate
from .fitted import FittedModel
from .learning_rates import LearningRateModel


class TopicModel(LearningRateModel):
    """A topic model of single-cell counts; made by `make_model`.

    Every option can be read as an attribute (``model.num_topics``); `set_params` changes them.

    Attributes
    ----------
    n_samples, n_features
        Size of the data for which options were recommended.
    learning_rate_curve : LearningRateCurve or None
        What `get_learning_rate_bounds` measured.
    enrichments : dict
        Tables that `mira_core.analysis.keep_enrichment` keeps with the topics, lists by name of the column; saved with
        the model, and gone once it is trained anew.
    """

    enrichments: dict[str, dict[str, list[Any]]]

    def __init__(self, n_samples: int, n_features: int, **given: Any) -> None:
        super().__init__(n_samples, n_features, given)
        self._state: loop.State | None = None  # what a training goes on from
        self.enrichments = {}
        self._check_trainable()

    def __repr__(self) -> str:
        kind = {"expression": "ExpressionTopicModel", "accessibility": "AccessibilityTopicModel"}[self.feature_type]
        codal = ", CODAL" if opt.is_codal(self._given) else ""
        state = f"{len(self.history)} epochs trained" if self._fit is not None else "not fitted"
        return f"<{kind}: {len(self.topic_cols)} topics{codal}, {state}>"

    # --- training -------------------------------------------------------------------------------

    def fit(self, data: Data, *, test: Data | None = None, writer: Any = None, progress: bool = True) -> TopicModel:
        """Train on a data set, from the start.

        Parameters
        ----------
        data
            AnnData, the path of a file with counts, or of a folder that `write_ondisk_dataset` wrote.
        test
            Cells to score after each epoch, as ``held_out_loss`` and the like of the epoch's record, such as those that
            `train_test_split` holds out. The training is the same with them and without.
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
        return self._listen(self.fit_records(data, test), writer, progress)

    def fit_records(self, data: Data, test: Data | None = None) -> Generator[Record, None, None]:
        """Train as `fit` does, yielding a record after each step and each epoch.

        Closing the generator stops training at the next step and leaves a usable model of what was reached.

        Yields
        ------
        StepRecord or EpochRecord
        """
        self._check_trainable()
        cells = sources.training_cells(data, self.get_params())
        return self.fit_cells(cells, None if test is None else self.cells_to_test(cells, test))

    def fit_cells(
        self, cells: Cells, test: Cells | None = None, *, resumable: bool = False
    ) -> Generator[Record, None, None]:
        """Train on cells that were read before; otherwise as `fit_records`.

        With `resumable`, `save_checkpoint` can be called between two records; it takes memory for two more copies of
        the weights.
        """
        self._fit, self._state = self._begin(cells), loop.State() if resumable else None
        self.enrichments = {}
        yield from self._train(cells, test)

    def _train(self, cells: Cells, test: Cells | None) -> Generator[Record, None, None]:
        fit = self._fitted()
        more = () if test is None and self._state is None else (test, self._state)
        for record in loop.train(fit.network, cells, fit.options, fit.seed, *more):
            if isinstance(record, EpochRecord):
                fit.history.append(record)
            yield record

    def cells_to_test(self, cells: Cells, test: Data) -> Cells:
        """Read cells to be scored by a model that is trained on others."""
        source = sources.open_source(test)
        return sources.cells_of_model(source, self.get_params(), cells.features, cells.endogenous, cells.coding)

    def _listen(self, records: Generator[Record, None, None], writer: Any, progress: bool) -> TopicModel:
        from tqdm.auto import tqdm

        listener = as_writer(writer)
        with tqdm(total=self.num_epochs, initial=len(self.history), unit="epoch", disable=not progress) as bar:
            for record in records:
                if listener is not None:
                    listener.write(record)
                if isinstance(record, EpochRecord):
                    bar.update()
                    bar.set_postfix_str(record.progress(str(self.device)))
        return self

    # --- going on -------------------------------------------------------------------------------

    def save_checkpoint(self, path: str | Path) -> None:
        """Save where a resumable training was after its last whole epoch, for `load_model` and `resume`.

        The file is written beside and renamed. It is a saved model, too.

        Raises
        ------
        NotFitted
            If no such training has ended an epoch.
        """
        if self._state is None or not self._state.epoch:
            raise NotFitted("there is nothing to go on from before a resumable training has ended an epoch")
        checkpoint.write(Path(path), self._fitted(), self._header(), self._state)

    @property
    def resumable(self) -> int:
        """The epoch after which `resume` goes on; 0 if there is nothing to go on from."""
        return self._state.epoch if self._state is not None else 0

    def resume(self, data: Data, *, test: Data | None = None, writer: Any = None, progress: bool = True) -> TopicModel:
        """Go on with the training of a checkpoint that `load_model` read, on the same data.

        On the same machine's CPU it gives, bit for bit, the model of a training that was never interrupted.

        Parameters
        ----------
        data, test, writer, progress
            As for `fit`.

        Returns
        -------
        TopicModel
            This model.

        Raises
        ------
        NotFitted
            If the model holds no training to go on with.
        DataError
            If these are not the cells and features that it was begun on.
        """
        cells = sources.training_cells(data, self.get_params())
        records = self.resume_cells(cells, None if test is None else self.cells_to_test(cells, test))
        return self._listen(records, writer, progress)

    def resume_cells(self, cells: Cells, test: Cells | None = None) -> Generator[Record, None, None]:
        """Go on as `resume` does, on cells that were read before, yielding records."""
        if not self.resumable:
            raise NotFitted("the model holds no training to go on with; load a checkpoint, or call fit(data)")
        self._check_trainable()
        fit = self._fitted()
        same = np.array_equal(cells.features, fit.features) and np.array_equal(cells.endogenous, fit.endogenous)
        if not same or len(cells) != fit.statistics.n_cells:
            raise DataError(
                f"the training was begun on {fit.statistics.n_cells} cells and {len(fit.features)} features, which "
                f"must be the same to go on; got {len(cells)} and {len(cells.features)}. Train anew on these data"
            )
        fit.network.to(self._training_device())
        return self._train(cells, test)

    def estimate(self, data: Data | tuple[int, int], *, test_size: float | None = None) -> Estimate:
        """Estimate what `fit` would take, by a few steps on some of the cells; the model stays as it is.

        Parameters
        ----------
        data
            As for `fit`, or the numbers of cells and of features that will be modelled.
        test_size
            Share of the cells that will be held out and scored.

        Returns
        -------
        Estimate
            ``seconds``, ``memory`` (bytes, of this process at its peak), ``device_memory`` (bytes, on a GPU), ...

        Raises
        ------
        DataError, OptionError
            As for `fit`.
        """
        self._check_trainable()
        return estimate(self, data, test_size)

    # --- data sets ------------------------------------------------------------------------------

    def write_ondisk_dataset(self, data: ad.AnnData | str | Path, dirname: str | Path) -> None:
        """Write a data set that training reads from the disk, so that memory does not grow with the cells.

        Its folder stands for the AnnData in `fit`, `predict` and every other method. Of a fitted model it has the
        model's features, else those that the options select. The cells are read in one pass, a few thousand at a
        time; counts that a file holds by feature (CSC) take two passes.

        Parameters
        ----------
        data
            AnnData, in memory or backed, or the path of a file.
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
        checkpoint.write(Path(path), self._fitted(), self._header())

    def _header(self) -> dict[str, Any]:
        curve = self.learning_rate_curve
        told = {"n_samples": self.n_samples, "n_features": self.n_features, "curve": curve and curve.to_dict()}
        return {**told, "enrichments": self.enrichments} if self.enrichments else told

    @classmethod
    def _load(cls, path: str | Path) -> TopicModel:
        fit, header, state = checkpoint.read(Path(path))
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
            model.enrichments = tables(header.get("enrichments", {}))
        except Exception as problem:  # whatever a hostile or damaged file provokes
            raise CheckpointError(f"{Path(path).name} is damaged: {problem}") from problem
        model._fit, model._state = fit, state
        return model


def load_model(path: str | Path) -> TopicModel:
    """Load a model that `TopicModel.save` wrote, onto the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not a saved model, or of a newer format.
    """
    return TopicModel._load(path)
