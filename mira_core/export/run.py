"""A finished run, as exports read it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from .. import environment, jobs
from ..analysis.description import obs_column
from ..data import sources
from ..data.demo import DEMO
from ..data.recipe import Recipe, open_cells
from ..errors import DataError, JobError
from ..estimators.estimating import open_lightly
from ..estimators.topic_model import TopicModel, load_model
from ..records import EpochRecord
from ..running import parts
from ..running.fit import held_out_rows

KINDS = ("fit", "predict")
NEEDED = ("model.safetensors", "cells.h5ad")


class FinishedRun:
    """A job that trained or predicted, and what it left.

    Parameters
    ----------
    folder
        Of the job.
    column
        Of ``obs``, by whose categories topics are shown; None: one that is likely to name types of cells, if any is.

    Attributes
    ----------
    folder, spec, status
        Where it is, what it was told, how it ended.

    Raises
    ------
    JobError
        If it is no fit or prediction, or has left no topics yet.
    """

    def __init__(self, folder: str | Path, column: str | None = None) -> None:
        self.folder, self._column = Path(folder), column
        self.spec = jobs.read_spec(self.folder)
        self.status = jobs.read_status(self.folder)
        if self.spec["kind"] not in KINDS:
            raise JobError(f"what can be exported are runs that train or predict; {folder} is a {self.spec['kind']}")
        missing = [name for name in NEEDED if not (self.folder / "result" / name).is_file()]
        if missing or not self.status.ended_already:
            raise JobError(
                f"a run can be exported once it has topics; {folder} is {self.status.state}"
                + (f" and has no {missing[0]}" if missing else "")
            )

    # --- what it left ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What it is called."""
        return str(self.spec["name"])

    @property
    def is_fit(self) -> bool:
        """Whether the model was trained in this run."""
        return bool(self.spec["kind"] == "fit")

    @property
    def created(self) -> str:
        """When it was asked for, in local time."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.spec["created"]))

    @property
    def recipe(self) -> Recipe:
        """What was done to the cells of the file first."""
        return Recipe.from_dict(self.spec.get("recipe") or [])

    @property
    def data_name(self) -> str:
        """Name of the data, without the folder they are in."""
        data = str(self.spec["data"])
        return data if data.startswith(DEMO) else Path(data).name

    @functools.cached_property
    def model(self) -> TopicModel:
        """The model, on the CPU."""
        return load_model(self.folder / "result" / "model.safetensors")

    @functools.cached_property
    def cells(self) -> ad.AnnData:
        """Topics of cells and features, without counts."""
        return ad.read_h5ad(self.folder / "result" / "cells.h5ad")

    @property
    def theta(self) -> np.ndarray:
        """Compositions of the cells, N x K."""
        return np.asarray(self.cells.obsm["X_topic_compositions"])

    @functools.cached_property
    def xy(self) -> np.ndarray:
        """Two axes for the cells, N x 2: the UMAP, or the first two principal axes if there is none."""
        if "X_umap" in self.cells.obsm:
            return np.asarray(self.cells.obsm["X_umap"], float)
        z = np.asarray(self.cells.obsm["X_umap_features"], float)
        z = np.column_stack([z - z.mean(0), np.zeros(len(z))])
        _, axes = np.linalg.eigh(z.T @ z)
        return np.asarray(z @ axes[:, ::-1][:, :2])

    @property
    def axes(self) -> str:
        """What the two axes are."""
        return "UMAP of the topics" if "X_umap" in self.cells.obsm else "first two principal axes of the topics"

    @property
    def history(self) -> list[EpochRecord]:
        """One record for each epoch trained."""
        return self.model.history

    @functools.cached_property
    def column(self) -> str | None:
        """The column of ``obs`` by whose categories topics are shown, None if there is none.

        Raises
        ------
        DataError
            If one was asked for that the cells have not.
        """
        if self._column is not None:
            obs_column(self.cells, self._column)
        return self._column or _types_of_cells(self.cells.obs)

    # --- how it came about ----------------------------------------------------------------------

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What it noted of its processes and cells; empty for runs of older versions."""
        return parts.read_provenance(self.folder)

    @property
    def processes(self) -> list[dict[str, Any]]:
        """Descriptions of the processes that computed it, as of `mira_core.environment.describe`."""
        return list(self.provenance.get("processes", []))

    @property
    def computed_with(self) -> dict[str, Any]:
        """Description of the last of them; of this one, if it noted none."""
        return self.processes[-1] if self.processes else environment.describe()

    @property
    def changed_on_the_way(self) -> list[str]:
        """In which respects those that went on with it differed from the first."""
        first, *others = self.processes or [{}]
        return list(dict.fromkeys(line for other in others for line in environment.differences(first, other)))

    # --- the cells ------------------------------------------------------------------------------

    def open_cells(self) -> ad.AnnData | sources.OnDiskDataset:
        """Open the data as they were trained on: the recipe is done, counts are there.

        Raises
        ------
        DataError
            If they are gone, or are not the cells that this run has topics of.
        """
        return self._opened(lambda: open_cells(self.spec))

    def open_cells_lightly(self) -> ad.AnnData | sources.OnDiskDataset:
        """Open them with counts left on the disk, where there is no recipe and the format allows it."""
        if self.is_prepared:
            return self.open_cells()
        return self._opened(lambda: open_lightly(self.spec["data"]))

    @property
    def is_prepared(self) -> bool:
        """Whether the cells are made in memory when they are opened: by a recipe, or as a demonstration."""
        return bool(self.recipe.steps) or str(self.spec["data"]).startswith(DEMO)

    def _opened(self, open_: Callable[[], ad.AnnData | sources.OnDiskDataset]) -> ad.AnnData | sources.OnDiskDataset:
        try:
            data = open_()
        except DataError as problem:
            raise DataError(f"the data of this run cannot be opened any more: {problem}") from problem
        names = (data.table() if isinstance(data, sources.OnDiskDataset) else data).obs_names
        if not np.array_equal(names.to_numpy(str), self.cells.obs_names.to_numpy(str)):
            raise DataError(
                f"the data of this run, {self.data_name}, have other cells now than when it ran; export from the file "
                "that it was trained on"
            )
        return data

    def check_digest(self, found: str) -> None:
        """Raise if the counts are not those of the run, as far as it noted them."""
        noted = self.provenance.get("digest")
        if noted is not None and noted != found:
            raise DataError(
                f"the counts in {self.data_name} have changed since this run (digest {found[:12]}… now, {noted[:12]}… "
                "then); export from the file that it was trained on"
            )

    def rows(self, data: ad.AnnData | sources.OnDiskDataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that were trained on, in the order of the training, and those that were held out."""
        share = self.spec.get("test_size")
        if share is None:
            return np.arange(len(data)), np.zeros(0, int)
        return held_out_rows(data, self.model, share)


def _types_of_cells(obs: pd.DataFrame) -> str | None:
    words = ("cell_type", "celltype", "cell type", "annotation", "cell_label", "label", "cluster", "louvain", "leiden")
    able = [c for c in obs.columns if _is_categorical(obs[c])]
    for word in words:
        for c in able:
            if word in str(c).lower():
                return str(c)
    return str(able[0]) if able else None


def _is_categorical(values: pd.Series) -> bool:
    if pd.api.types.is_float_dtype(values):
        return False
    return 2 <= values.nunique() <= 60
