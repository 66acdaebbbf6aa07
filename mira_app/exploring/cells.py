"""Cells with topics, in memory or in a file, each part read when it is first asked for.

Shapes: N cells, K topics.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from mira_core.analysis import readable
from mira_core.errors import DataError

THETA, UMAP, FEATURES = "X_topic_compositions", "X_umap", "X_umap_features"
TOPIC = re.compile(r"topic_\d+")


class Stored(Protocol):
    """Where the parts come from."""

    n: int

    def columns(self) -> list[str]: ...  # noqa: D102
    def column(self, name: str) -> pd.Series: ...  # noqa: D102
    def names(self) -> np.ndarray: ...  # noqa: D102
    def array(self, name: str) -> np.ndarray | None: ...  # noqa: D102
    def var(self) -> pd.DataFrame: ...  # noqa: D102
    def varm(self) -> dict[str, np.ndarray]: ...  # noqa: D102
    def uns(self, name: str) -> Any: ...  # noqa: D102


class InMemory:
    """Parts of an AnnData."""

    def __init__(self, adata: ad.AnnData) -> None:
        self.adata, self.n = adata, adata.n_obs

    def columns(self) -> list[str]:
        """Return names of columns."""
        return [str(c) for c in self.adata.obs.columns]

    def column(self, name: str) -> pd.Series:
        """Return one column."""
        return self.adata.obs[name].reset_index(drop=True)

    def names(self) -> np.ndarray:
        """Return names of cells."""
        return self.adata.obs_names.to_numpy(str)

    def array(self, name: str) -> np.ndarray | None:
        """Return an entry of obsm; None if there is none."""
        return np.asarray(self.adata.obsm[name]) if name in self.adata.obsm else None

    def var(self) -> pd.DataFrame:
        """Return the features' table."""
        return self.adata.var

    def varm(self) -> dict[str, np.ndarray]:
        """Return what topics are made of."""
        return {k: np.asarray(v) for k, v in self.adata.varm.items()}

    def uns(self, name: str) -> Any:
        """Return an entry of uns; None if there is none."""
        return self.adata.uns.get(name)


class InFile:
    """Parts of an .h5ad file that a job wrote; a million names of cells are read only if somebody wants them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with h5py.File(path) as f:
            index = f["obs"].attrs["_index"]
            self.n = int(f["obs"][index].shape[0])
            self._columns = [str(c) for c in f["obs"].attrs["column-order"]]

    def columns(self) -> list[str]:
        """Return names of columns."""
        return self._columns

    def column(self, name: str) -> pd.Series:
        """Return one column."""
        return pd.Series(self._read(f"obs/{name}"))

    def names(self) -> np.ndarray:
        """Return names of cells."""
        with h5py.File(self.path) as f:
            return np.asarray(ad.io.read_elem(f["obs"][f["obs"].attrs["_index"]]), dtype=str)

    def array(self, name: str) -> np.ndarray | None:
        """Return an entry of obsm; None if there is none."""
        with h5py.File(self.path) as f:
            return np.asarray(ad.io.read_elem(f["obsm"][name])) if name in f["obsm"] else None

    def var(self) -> pd.DataFrame:
        """Return the features' table."""
        return self._read("var")

    def varm(self) -> dict[str, np.ndarray]:
        """Return what topics are made of."""
        return {k: np.asarray(v) for k, v in self._read("varm").items()}

    def uns(self, name: str) -> Any:
        """Return an entry of uns; None if there is none."""
        with h5py.File(self.path) as f:
            return ad.io.read_elem(f["uns"][name]) if name in f.get("uns", {}) else None

    def _read(self, name: str) -> Any:
        with h5py.File(self.path) as f:
            return ad.io.read_elem(f[name])


class Cells:
    """Cells with topics.

    Parameters
    ----------
    stored
        Cells as `TopicModel.predict` leaves them, or the .h5ad file of a run.

    Attributes
    ----------
    n, K
        Numbers of cells and topics.
    columns
        Names of the columns of cells that are no topics.

    Raises
    ------
    DataError
        If the cells have no topics.
    """

    def __init__(self, stored: ad.AnnData | Path) -> None:
        self._stored: Stored = InMemory(stored) if isinstance(stored, ad.AnnData) else InFile(stored)
        self._lock = threading.RLock()
        self._kept: dict[str, pd.Series] = {}
        self.n = self._stored.n
        theta = self._stored.array(THETA)
        if theta is None or theta.ndim != 2 or not theta.size:
            raise DataError(f"obsm[{THETA!r}] is missing: the cells have no topics. Call model.predict(adata) first")
        self.theta = theta
        self.K = theta.shape[1]

    @functools.cached_property
    def columns(self) -> list[str]:
        """Names of the columns of cells that are no topics."""
        return [c for c in self._stored.columns() if not TOPIC.fullmatch(c)]

    @property
    def topics(self) -> list[str]:
        """Names of the topics."""
        return [f"topic_{k}" for k in range(self.K)]

    def column(self, name: str) -> pd.Series:
        """Return a column of cells; text as categories.

        Raises
        ------
        DataError
            If there is none.
        """
        with self._lock:
            if name not in self._kept:
                if name not in self.columns:
                    raise DataError(f"there is no column {name!r} of cells")
                values = self._stored.column(name)
                if not (pd.api.types.is_numeric_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype)):
                    values = values.astype("category")
                self._kept[name] = values
            return self._kept[name]

    @functools.cached_property
    def categorical(self) -> list[str]:
        """Names of the columns that hold categories."""
        return [c for c in self.columns if isinstance(self.column(c).dtype, pd.CategoricalDtype)
                or pd.api.types.is_bool_dtype(self.column(c))]  # fmt: skip

    @functools.cached_property
    def names(self) -> np.ndarray:
        """Names of the cells."""
        return self._stored.names()

    @functools.cached_property
    def embedded(self) -> bool:
        """Whether there is a UMAP."""
        return self._stored.array(UMAP) is not None

    @functools.cached_property
    def xy(self) -> np.ndarray:
        """Coordinates to draw the cells at, N x 2: the UMAP, or else the topics' principal axes."""
        xy = self._stored.array(UMAP)
        return np.asarray(xy, np.float32)[:, :2] if xy is not None else self._two_axes()

    @functools.cached_property
    def main(self) -> np.ndarray:
        """The topic with the largest share of each cell."""
        return self.theta.argmax(1).astype(np.int16)

    @functools.cached_property
    def var(self) -> pd.DataFrame:
        """Table of all features of the data."""
        return self._stored.var()

    @functools.cached_property
    def varm(self) -> Mapping[str, np.ndarray]:
        """What topics are made of, features by topics."""
        return self._stored.varm()

    @functools.cached_property
    def modelled(self) -> np.ndarray:
        """Positions of the modelled features among all."""
        return np.flatnonzero(np.isfinite(self.varm["topic_feature_compositions"]).all(1))

    @functools.cached_property
    def features(self) -> pd.Index:
        """Names of the modelled features, as the data has them."""
        return pd.Index(self.var.index[self.modelled].astype(str))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Names of the modelled features for people."""
        return readable(self.described)[self.modelled]

    @functools.cached_property
    def described(self) -> ad.AnnData:
        """The features alone, as an AnnData without cells."""
        return ad.AnnData(obs=pd.DataFrame(index=[]), var=self.var)

    @functools.cached_property
    def topics_only(self) -> ad.AnnData:
        """Cells with topics, numbered, and without columns, as `mira.analysis` takes them."""
        return self._with(pd.DataFrame(index=pd.RangeIndex(self.n).astype(str)))

    @functools.cached_property
    def named(self) -> ad.AnnData:
        """The same with the cells' names."""
        return self._with(pd.DataFrame(index=self.names))

    def with_columns(self, columns: Mapping[str, pd.Series]) -> ad.AnnData:
        """Return cells with topics and these columns."""
        index = self.topics_only.obs_names
        return self._with(pd.DataFrame({k: v.array for k, v in columns.items()}, index=index))

    def _with(self, obs: pd.DataFrame) -> ad.AnnData:
        out = ad.AnnData(obs=obs, var=self.var)
        out.obsm[THETA] = self.theta
        if self._coordinates is not None:
            out.obsm[FEATURES] = self._coordinates
        for name, values in self.varm.items():
            out.varm[name] = values
        return out

    @functools.cached_property
    def _coordinates(self) -> np.ndarray | None:
        return self._stored.array(FEATURES)

    def uns(self, name: str) -> Any:
        """Return an entry of uns; None if there is none."""
        return self._stored.uns(name)

    @property
    def adata(self) -> ad.AnnData | None:
        """The AnnData behind it, if it is in memory."""
        return self._stored.adata if isinstance(self._stored, InMemory) else None

    @property
    def path(self) -> Path | None:
        """The file behind it, if there is one."""
        return self._stored.path if isinstance(self._stored, InFile) else None

    def _two_axes(self) -> np.ndarray:
        z = self._coordinates
        z = np.asarray(self.theta if z is None else z, float)
        z = np.column_stack([z - z.mean(0), np.zeros((len(z), 2))])
        # of the covariance, which is small however many cells there are
        _, vectors = np.linalg.eigh(z.T @ z)
        return (z @ vectors[:, ::-1][:, :2]).astype(np.float32)
