"""What cells can be coloured by: topics, columns, features as counted and as modelled.

Shapes: N cells.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from mira_core import analysis, jobs
from mira_core.data.on_disk import OnDiskDataset
from mira_core.data.recipe import open_cells
from mira_core.data.sources import is_ondisk, open_backed
from mira_core.errors import DataError

from . import counts
from .cells import Cells

if TYPE_CHECKING:
    from mira_core.estimators.fitted import FittedModel

Progress = Callable[[float], None]
HOW = {"log": "log-normalised counts", "raw": "counts", "imputed": "imputed"}
TITLES = {
    "log": "log(1 + counts per 10,000)",
    "raw": "counts",
    "imputed": "imputed by the model, per 10,000 counts",
}
KEPT = 12  # features whose values are kept


class Values:
    """Numbers by cell of features: those that were counted, and those that the model says.

    One for each run, whoever looks at it; safe in threads.

    Parameters
    ----------
    cells
        With topics.
    model
        Fitted model, or what loads it once it is wanted; None: there is none.
    layer
        Layer of raw counts; None: X.
    spec, folder
        Of a job: where its data are, and where counts by feature are kept.
    """

    def __init__(
        self, cells: Cells, model: FittedModel | Path | None = None, layer: str | None = None,
        spec: Mapping[str, Any] | None = None, folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.path = model if isinstance(model, Path) else None
        self.cells, self._model, self.layer, self.spec, self.folder = cells, model, layer, spec, folder
        self._counts: counts.FeatureCounts | None = None
        self._normalisers: np.ndarray | None = None
        self._kept: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._one, self._two = threading.Lock(), threading.Lock()
        self._of_model = threading.RLock()

    @classmethod
    def of_run(cls, folder: Path, cells: Cells) -> Values:
        """Make them of the folder of a job."""
        spec = jobs.read_spec(folder)
        path = folder / "result" / "model.safetensors"
        return cls(
            cells, path if path.is_file() else None, spec["model"].get("counts_layer"), spec, folder / "by_feature"
        )

    @property
    def model(self) -> FittedModel | None:
        """The fitted model; loading it may take a moment."""
        with self._of_model:
            if isinstance(self._model, Path):
                from mira_core import topics  # with torch: once a model is asked

                self._model = topics.load_model(self._model)
            return self._model

    @property
    def corrected(self) -> bool:
        """Whether there is a model with covariates; told without loading it if a job says so."""
        if self.spec is not None and self._model is not None and "model" in self.spec:
            return bool(self.spec["model"].get("categorical_covariates")) or self._loaded_has_technical()
        return self._loaded_has_technical()

    def _loaded_has_technical(self) -> bool:
        model = self._model
        if model is None or isinstance(model, Path) or model.network is None:
            return False
        return model.network.technical is not None

    def ways(self) -> list[str]:
        """Return how a feature can be shown: by its counts if there are any, by the model if there is one."""
        counted = self.spec is not None or (self.cells.adata is not None and _has_counts(self.cells.adata, self.layer))
        return (["log", "raw"] if counted else []) + (["imputed"] if self._model is not None else [])

    def known(self, feature: str, how: str) -> bool:
        """Whether the values are at hand."""
        return (feature, how) in self._kept

    def of(self, feature: str, how: str, progress: Progress) -> np.ndarray:
        """Return the values of a feature, N; may take long the first time.

        Parameters
        ----------
        feature
            Name as the data has it.
        how
            ``"log"``: log(1 + counts per 10,000 of the cell); ``"raw"``: counts; ``"imputed"``: what the topics say,
            per 10,000 counts.
        progress
            Called with the share that is done.

        Raises
        ------
        DataError
            If there is no such feature, or no counts or model.
        """
        key = (feature, how)
        if key not in self._kept:
            if how not in self.ways():
                raise DataError(f"{TITLES.get(how, how)} cannot be shown: there is nothing to take them from")
            if how == "imputed":
                values = self._imputed(feature, progress)
            else:
                held = self._counted(progress)
                values = held.column(feature) if how == "raw" else held.log_normalised(feature)
            self._kept[key] = values
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def position(self, feature: str) -> int:
        """Return where a feature is among the modelled ones.

        Raises
        ------
        DataError
            If it is not.
        """
        at = self.cells.features.get_indexer_for([feature])[0]
        if at < 0:
            raise DataError(f"{feature!r} is not among the {len(self.cells.features):,} modelled features")
        return int(at)

    def _counted(self, progress: Progress) -> counts.FeatureCounts:
        with self._one:
            if self._counts is None:
                if self.spec is not None and self.folder is not None:
                    held = counts.of_job(self.spec, self.folder, progress)
                else:
                    held = counts.of_data(self._in_memory(), self.layer, progress)
                if held.n_cells != self.cells.n:
                    raise DataError(
                        f"the data have {held.n_cells:,} cells and the run {self.cells.n:,}; was the file changed? "
                        "Train anew"
                    )
                self._counts = held
            return self._counts

    def rows(self, at: np.ndarray) -> tuple[sp.csr_matrix, list[str]]:
        """Return the counts of some cells, in ascending order, and the names of their features.

        Raises
        ------
        DataError
            If they cannot be read.
        """
        held: ad.AnnData | OnDiskDataset
        if self.spec is None:
            held = self._in_memory()
        elif self.spec.get("recipe") is not None or is_ondisk(self.spec["data"]):
            held = open_cells(self.spec)
        else:
            held = open_backed(self.spec["data"])
        if len(held) != self.cells.n:
            raise DataError(f"the data have {len(held):,} cells and the run {self.cells.n:,}; was the file changed?")
        if isinstance(held, OnDiskDataset):
            return sp.csr_matrix(held.counts().rows(at)), held.table().var_names.tolist()
        return _rows(held, self.layer, at)

    def _in_memory(self) -> ad.AnnData:
        if self.cells.adata is None:
            raise DataError(f"the counts of {self.cells.path} are not known: it holds topics, and belongs to no job")
        return self.cells.adata

    def keep_enrichment(self, name: str, frame: pd.DataFrame) -> None:
        """Keep a table of enrichment with the model, and with the cells if they are in memory."""
        if self.cells.adata is not None:
            analysis.keep_enrichment(self.cells.adata, name, frame)
        with self._of_model:
            model = self.model
            if model is not None:
                analysis.keep_enrichment(model, name, frame)
                if self.path is not None:
                    model.save(self.path)  # type: ignore[attr-defined]

    def kept_enrichments(self) -> dict[str, pd.DataFrame]:
        """Return the tables that were kept, by name."""
        adata, model = self.cells.adata, self.model
        return {
            **(analysis.kept_enrichments(adata) if adata is not None else {}),
            **(analysis.kept_enrichments(model) if model is not None else {}),
        }

    def _imputed(self, feature: str, progress: Progress) -> np.ndarray:
        model = self.model
        if model is None or model.network is None:
            raise DataError("imputed values need the fitted model of these cells, and there is none; colour by counts")
        from mira_core.estimators import one_feature

        at = _in_model(model, feature)
        with self._two:
            if self._normalisers is None:
                self._normalisers = one_feature.log_normalisers(model.network, self.cells.theta, progress)
        return counts.PER * one_feature.frequency(model.network, self.cells.theta, self._normalisers, at)

    def batch_effect(self, feature: str, progress: Progress) -> np.ndarray:
        """Return the technical effect on a feature, N, in natural-log units.

        Raises
        ------
        DataError
            If there is no CODAL model, or it does not model the feature.
        """
        model = self.model
        if model is None or model.network is None or model.network.technical is None:
            raise DataError("the model has no covariates, and so no batch effect")
        from mira_core.estimators import one_feature

        coding = model._fitted().coding
        covariates = coding.covariates(lambda name: self.cells.column(name))
        at = _in_model(model, feature)
        return one_feature.technical_effect(model.network, self.cells.theta, covariates, at, progress)


def _in_model(model: FittedModel, feature: str) -> int:
    at = np.flatnonzero(model.features == feature)
    if not at.size:
        raise DataError(f"{feature!r} is not among the {len(model.features):,} features of the model")
    return int(at[0])


def matrix_of(adata: ad.AnnData, layer: str | None) -> Any:
    """Return a matrix of counts.

    Raises
    ------
    DataError
        If there is none.
    """
    try:
        matrix = adata.X if layer is None else adata.layers[layer]
    except KeyError:
        matrix = None
    if matrix is None:
        raise DataError("the data has no X" if layer is None else f"the data has no layer {layer!r}")
    return matrix


def _has_counts(adata: ad.AnnData, layer: str | None) -> bool:
    try:
        matrix_of(adata, layer)
    except DataError:
        return False
    return True


def _rows(adata: ad.AnnData, layer: str | None, at: np.ndarray) -> tuple[sp.csr_matrix, list[str]]:
    return sp.csr_matrix(matrix_of(adata, layer)[at], dtype=np.float32), adata.var_names.astype(str).tolist()
