"""Steps that choose cells and features; they look at counts in ``X``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np

from ...errors import DataError, OptionError
from ..anndata_io import _known
from ..qc import MITOCHONDRIAL, mitochondrial, mitochondrial_names
from .base import Step, option


@dataclass(frozen=True)
class MakeNamesUnique(Step):
    """Append -1, -2, ... to names of cells and features that repeat."""

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        adata.obs_names_make_unique()
        adata.var_names_make_unique()
        return adata

    def _code(self) -> list[str]:
        return ["adata.obs_names_make_unique()", "adata.var_names_make_unique()"]


@dataclass(frozen=True)
class KeepFeatures(Step):
    """Keep features by a column of ``var``, such as the peaks of a file with genes and peaks."""

    of_a_column = True
    column: str = option(doc="column of var")
    values: tuple[str, ...] = option(doc="its values of the features to keep")

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        column = adata.var[_known(self.column, adata.var.columns, "column of var")]
        return adata[:, column.astype(str).isin(self.values).to_numpy()].copy()

    def _code(self) -> list[str]:
        of = f"adata.var[{self.column!r}].astype(str).isin({list(self.values)!r})"
        return [f"adata = adata[:, {of}.to_numpy()].copy()"]


@dataclass(frozen=True)
class DropMissing(Step):
    """Drop cells for which a column of ``obs`` has no value."""

    of_a_column = True
    column: str = option(doc="column of obs")

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        column = adata.obs[_known(self.column, adata.obs.columns, "column of obs")]
        return adata[column.notna().to_numpy()].copy()

    def _code(self) -> list[str]:
        return [f"adata = adata[adata.obs[{self.column!r}].notna().to_numpy()].copy()"]


@dataclass(frozen=True)
class FilterCells(Step):
    """Keep cells by thresholds, which are themselves kept."""

    needs_counts = True
    min_counts: float | None = option(None, doc="least total counts", low=0)
    max_counts: float | None = option(None, doc="most total counts", low=0)
    min_genes: int | None = option(None, doc="least features seen", low=0)
    max_genes: int | None = option(None, doc="most features seen", low=0)
    max_pct_mt: float | None = option(None, doc="most mitochondrial counts, in % of a cell's", low=0)
    symbols: str | None = option(None, doc="column of var with gene symbols; None: var_names")

    def after(self, before: Step) -> Step:
        """Return a step with the limits of both; of one limit, that of this one."""
        return FilterCells(**{**before.given(), **self.given()})

    def _check(self) -> None:
        limits = (self.min_counts, self.max_counts, self.min_genes, self.max_genes, self.max_pct_mt)
        _some_limit(self.name, limits)
        _ordered(self.name, "counts", self.min_counts, self.max_counts)
        _ordered(self.name, "genes", self.min_genes, self.max_genes)

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        counts, genes = _row_sums(adata.X), _row_sums(adata.X > 0)
        keep = _within(counts, self.min_counts, self.max_counts) & _within(genes, self.min_genes, self.max_genes)
        if self.max_pct_mt is not None:
            if self.symbols is not None:
                _known(self.symbols, adata.var.columns, "column of var")
            mt = mitochondrial_names(adata.var, self.symbols)
            if not mt.any():
                other = mitochondrial(adata.var)
                where = f"var[{self.symbols!r}]" if self.symbols else "var_names"
                hint = f"; var[{other[1]!r}] has, name it by symbols" if other else "; leave max_pct_mt out"
                raise DataError(f"no name of {where} begins with MT-{hint}")
            keep &= 100 * _row_sums(adata.X[:, np.flatnonzero(mt)]) <= self.max_pct_mt * counts
        return adata[keep].copy()

    def _code(self) -> list[str]:
        lines = ["counts = np.asarray(adata.X.sum(axis=1, dtype=float)).ravel()"]
        if self.min_genes is not None or self.max_genes is not None:
            lines.append("genes = np.asarray((adata.X > 0).sum(axis=1)).ravel()")
        if self.max_pct_mt is not None:
            names = "adata.var_names" if self.symbols is None else f"adata.var[{self.symbols!r}].astype(str)"
            lines += [
                f"mt = np.flatnonzero({names}.str.contains({MITOCHONDRIAL!r}))",
                "counts_mt = np.asarray(adata.X[:, mt].sum(axis=1, dtype=float)).ravel()",
            ]
        limits = [
            (self.min_counts, "(counts >= {!r})"), (self.max_counts, "(counts <= {!r})"),
            (self.min_genes, "(genes >= {!r})"), (self.max_genes, "(genes <= {!r})"),
            (self.max_pct_mt, "(100 * counts_mt <= {!r} * counts)"),
        ]  # fmt: skip
        keep = " & ".join(told.format(limit) for limit, told in limits if limit is not None)
        return [*lines, f"adata = adata[{keep}].copy()"]


@dataclass(frozen=True)
class FilterFeatures(Step):
    """Keep features by the cells that have them: their number, or their share of all cells."""

    needs_counts = True
    min_cells: int | None = option(None, doc="least cells", low=0)
    max_cells: int | None = option(None, doc="most cells", low=0)
    min_share: float | None = option(None, doc="least share of cells, 0 to 1", low=0)
    max_share: float | None = option(None, doc="largest share of cells, 0 to 1", low=0)

    def after(self, before: Step) -> Step:
        """Return a step with the limits of both; of one limit, that of this one."""
        return FilterFeatures(**{**before.given(), **self.given()})

    def _check(self) -> None:
        _some_limit(self.name, (self.min_cells, self.max_cells, self.min_share, self.max_share))
        _ordered(self.name, "cells", self.min_cells, self.max_cells)
        _ordered(self.name, "share", self.min_share, self.max_share)
        for which in ("min_share", "max_share"):
            if (getattr(self, which) or 0) > 1:
                raise OptionError(f"{which} of the step {self.name} must be at most 1; got {getattr(self, which)!r}")

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        cells = _column_sums(adata.X > 0)
        keep = _within(cells, self.min_cells, self.max_cells)
        keep &= _within(cells / adata.n_obs, self.min_share, self.max_share)
        return adata[:, keep].copy()

    def _code(self) -> list[str]:
        limits = [
            (self.min_cells, "(cells >= {!r})"), (self.max_cells, "(cells <= {!r})"),
            (self.min_share, "(cells / adata.n_obs >= {!r})"), (self.max_share, "(cells / adata.n_obs <= {!r})"),
        ]  # fmt: skip
        keep = " & ".join(told.format(limit) for limit, told in limits if limit is not None)
        return ["cells = np.asarray((adata.X > 0).sum(axis=0)).ravel()", f"adata = adata[:, {keep}].copy()"]


@dataclass(frozen=True)
class DropEmptyFeatures(Step):
    """Drop features without counts in any cell."""

    needs_counts = True

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        return adata[:, _column_sums(adata.X) > 0].copy()

    def _code(self) -> list[str]:
        return ["adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()"]


@dataclass(frozen=True)
class DropRareCategories(Step):
    """Drop cells of those categories of a column of ``obs`` that have few cells."""

    of_a_column = True
    column: str = option(doc="column of obs")
    min_cells: int = option(10, doc="least cells of a category that is kept", low=1)

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        column = adata.obs[_known(self.column, adata.obs.columns, "column of obs")]
        n = column.value_counts()
        return adata[~column.isin(n.index[n < self.min_cells]).to_numpy()].copy()

    def _code(self) -> list[str]:
        return [
            f"cells = adata.obs[{self.column!r}].value_counts()",
            f"rare = adata.obs[{self.column!r}].isin(cells.index[cells < {self.min_cells}])",
            "adata = adata[~rare.to_numpy()].copy()",
        ]


@dataclass(frozen=True)
class HighlyVariable(Step):
    """Mark highly variable features (scanpy) in columns of ``var``.

    `column` marks those to model, for `highly_variable_key`; ``endogenous`` the fewer ones that the encoder sees, for
    `endogenous_key`, if `n_endogenous` is given.
    """

    needs_counts = True
    n_top: int = option(4000, doc="features to mark", low=2)
    n_endogenous: int | None = option(None, doc="features to mark as endogenous, fewer; None: no such column", low=2)
    batch_key: str | None = option(None, doc="column of obs; features are chosen within its categories, and combined")
    flavor: str = option("seurat_v3", doc="scanpy's way to choose", choices=("seurat_v3", "pearson_residuals"))
    column: str = option("highly_variable", doc="column of var to write")

    def _check(self) -> None:
        _ordered(self.name, "n_endogenous, n_top", self.n_endogenous, self.n_top)
        if self.n_endogenous is not None and self.column == "endogenous":
            raise OptionError("column of the step highly_variable must differ from 'endogenous', which it writes, too")

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        if self.n_top > adata.n_vars:
            raise DataError(
                f"{self.n_top:,} features cannot be chosen of {adata.n_vars:,}; lower n_top or leave the step out"
            )
        if not adata.var_names.is_unique:
            raise DataError("names of features repeat; begin with make_names_unique")
        if self.batch_key is not None:
            batches = adata.obs[_known(self.batch_key, adata.obs.columns, "column of obs")]
            if k := int(batches.isna().sum()):
                raise DataError(f"obs[{self.batch_key!r}] has no value in {k:,} cells; drop them first by drop_missing")
        for column, n in self._columns():
            adata.var[column] = self._chosen(adata, n)
        return adata

    def _columns(self) -> list[tuple[str, int]]:
        extra = [] if self.n_endogenous is None else [("endogenous", self.n_endogenous)]
        return [(self.column, self.n_top), *extra]

    def _chosen(self, adata: ad.AnnData, n: int) -> np.ndarray:
        import scanpy as sc

        choose = sc.experimental.pp if self.flavor == "pearson_residuals" else sc.pp
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = choose.highly_variable_genes(
                    adata, n_top_genes=n, flavor=self.flavor, batch_key=self.batch_key, inplace=False
                )
        except (ValueError, RuntimeError) as problem:  # of the local regression, where there is too little to fit
            told = str(problem.args[0] if problem.args else problem)
            raise DataError(
                f"highly variable features cannot be chosen with flavor {self.flavor!r}: {told}. Drop rare features "
                "and cells first, leave batch_key out, or choose flavor 'pearson_residuals'"
            ) from problem
        return found["highly_variable"].reindex(adata.var_names).to_numpy(bool)

    def _code(self) -> list[str]:
        where = "sc.experimental.pp" if self.flavor == "pearson_residuals" else "sc.pp"
        lines = []
        for column, n in self._columns():
            lines += [
                f"chosen = {where}.highly_variable_genes(",
                f"    adata, n_top_genes={n}, flavor={self.flavor!r}, batch_key={self.batch_key!r}, inplace=False",
                ")",
                f'adata.var[{column!r}] = chosen["highly_variable"].reindex(adata.var_names).to_numpy(bool)',
            ]
        return lines


@dataclass(frozen=True)
class DropEmptyCells(Step):
    """Drop cells without counts, or without any in the features that are modelled."""

    needs_counts = True
    highly_variable_key: str | None = option(None, doc="column of var that marks the modelled features; None: all")

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        x = adata.X
        if self.highly_variable_key is not None:
            column = adata.var[_known(self.highly_variable_key, adata.var.columns, "column of var")]
            x = x[:, np.flatnonzero(column.to_numpy(bool))]
        return adata[_row_sums(x) > 0].copy()

    def _code(self) -> list[str]:
        key = self.highly_variable_key
        x = "adata.X" if key is None else f"adata.X[:, np.flatnonzero(adata.var[{key!r}].to_numpy(bool))]"
        return [f"adata = adata[np.asarray({x}.sum(axis=1)).ravel() > 0].copy()"]


def _row_sums(x: Any) -> np.ndarray:
    return np.asarray(x.sum(axis=1, dtype=float)).ravel()


def _column_sums(x: Any) -> np.ndarray:
    return np.asarray(x.sum(axis=0, dtype=float)).ravel()


def _within(x: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    return (x >= (-np.inf if low is None else low)) & (x <= (np.inf if high is None else high))


def _some_limit(name: str, limits: tuple[Any, ...]) -> None:
    if all(limit is None for limit in limits):
        raise OptionError(f"the step {name} needs at least one threshold")


def _ordered(name: str, what: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low > high:
        raise OptionError(f"of the step {name}, limits of {what} must rise; got {low!r} and {high!r}")
