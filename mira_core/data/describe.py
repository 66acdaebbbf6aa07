"""What a data set holds, for whoever has to choose layers and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError
from .anndata_io import check_counts, from_disk
from .covariates import numbers
from .inspection.features import guess_type

SAMPLE = 500  # cells looked at to say whether a layer holds counts


@dataclass(frozen=True)
class Column:
    """A column of ``obs`` or ``var``: its name, kind, number of different values, and an example.

    `numbers`: whether every value is a finite number, or text of one. `marks`: whether each is True or False, 1 or 0;
    `n_marked`: how many are True or 1 then.
    """

    name: str
    kind: str
    n_unique: int
    example: str
    numbers: bool = False
    marks: bool = False
    n_marked: int = 0


@dataclass(frozen=True)
class Layer:
    """A layer (None: ``X``) and why it does not hold raw counts; empty if it does, as far as looked at."""

    name: str | None
    problem: str


@dataclass(frozen=True)
class Description:
    """Sizes, layers and columns of a data set."""

    n_cells: int
    n_features: int
    layers: tuple[Layer, ...]
    obs: tuple[Column, ...]
    var: tuple[Column, ...]
    source: str
    feature_type: str = "expression"  # by the names of the features

    def counts_layer(self) -> Layer | None:
        """Return the first layer that may hold raw counts."""
        return next((x for x in self.layers if not x.problem), None)

    def flags(self) -> list[str]:
        """Names of columns of ``var`` that can mark features."""
        return [c.name for c in self.var if c.marks]


def describe(adata: ad.AnnData) -> Description:
    """Describe a data set without reading all of its counts."""
    x = _x(adata)
    layers = [_layer(None, x)] if x is not None else []
    layers += [_layer(name, adata.layers[name]) for name in adata.layers]
    return Description(
        adata.n_obs,
        adata.n_vars,
        tuple(layers),
        tuple(_column(n, adata.obs[n]) for n in adata.obs.columns),
        tuple(_column(n, adata.var[n]) for n in adata.var.columns),
        str(adata.uns.get("source", "")),
        guess_type(adata.var),
    )


def _x(adata: ad.AnnData) -> Any:
    try:
        return adata.X
    except KeyError:  # how a file that is read from the disk says that it has none
        return None


def _layer(name: str | None, matrix: object) -> Layer:
    where = f"layer {name!r}" if name else "X"
    try:
        with from_disk():
            some = matrix[:SAMPLE]  # type: ignore[index]
        check_counts(some.data if sp.issparse(some) else np.asarray(some), where)
    except DataError as problem:
        return Layer(name, str(problem))
    return Layer(name, "")


def _column(name: str, values: pd.Series) -> Column:
    if pd.api.types.is_bool_dtype(values):
        kind = "boolean"
    elif pd.api.types.is_numeric_dtype(values):
        kind = "numeric"
    elif isinstance(values.dtype, pd.CategoricalDtype):
        kind = "categorical"
    else:
        kind = "text"
    example = values.iloc[0] if len(values) else ""
    example = f"{example:.4g}" if isinstance(example, float) else str(example)
    different = pd.Series(values.unique())
    marks = all(v in {True, False} for v in different.head(3))
    n_marked = int(values.astype(bool).sum()) if marks else 0
    return Column(str(name), kind, int(values.nunique()), example, _numbers(different), marks, n_marked)


def _numbers(values: pd.Series) -> bool:
    plain = values.astype(object) if isinstance(values.dtype, pd.CategoricalDtype) else values
    try:
        numbers(plain, "", "")
    except DataError:
        return False
    return True
