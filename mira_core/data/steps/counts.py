"""Steps that take counts from where they are, or turn them into others."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import scipy.sparse as sp

from ...errors import DataError, OptionError
from ..anndata_io import _known
from ..recover import TRANSFORMS, recover_counts
from .base import Step, option


@dataclass(frozen=True)
class CountsFromLayer(Step):
    """Take the counts of a layer."""

    layer: str = option(doc="layer with raw counts")

    family = "counts"

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        adata.X = adata.layers[_known(self.layer, adata.layers.keys(), "layer")].copy()
        return adata

    def _code(self) -> list[str]:
        return [f"adata.X = adata.layers[{self.layer!r}].copy()"]


@dataclass(frozen=True)
class CountsFromRaw(Step):
    """Take counts and features of ``raw``; columns of booleans of ``var`` are kept."""

    family = "counts"

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        if adata.raw is None:
            raise DataError("the data has no raw")
        out = adata.raw.to_adata()
        for name in adata.var.select_dtypes(bool).columns.difference(out.var.columns):
            out.var[name] = out.var_names.isin(adata.var_names[adata.var[name]])
        return out

    def _code(self) -> list[str]:
        return [
            "before, adata = adata, adata.raw.to_adata()",
            "for name in before.var.select_dtypes(bool).columns.difference(adata.var.columns):",
            "    adata.var[name] = adata.var_names.isin(before.var_names[before.var[name]])",
        ]


@dataclass(frozen=True)
class RecoverCounts(Step):
    """Recover counts from values that were scaled within each cell and logged; see `recover_counts`."""

    transform: str = option("log1p", doc="what was done to the counts after scaling them", choices=tuple(TRANSFORMS))
    layer: str | None = option(None, doc="layer with the values; None: X")
    raw: bool = option(False, doc="take values and features of raw, as counts_from_raw does")

    family = "counts"

    def _check(self) -> None:
        if self.raw and self.layer is not None:
            raise OptionError("the step recover_counts takes its values from a layer or from raw; give one of them")

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        if self.raw:
            adata = CountsFromRaw()._apply(adata)
        values = adata.X if self.layer is None else adata.layers[_known(self.layer, adata.layers.keys(), "layer")]
        if values is None:
            raise DataError("the data has no X; name a layer, or say raw")
        adata.X = recover_counts(values, self.transform)
        return adata

    def _code(self) -> list[str]:
        values = "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"
        return [
            "from mira_core.data.recover import recover_counts",
            *(CountsFromRaw()._code() if self.raw else []),
            f"adata.X = recover_counts({values}, {self.transform!r})",
        ]


@dataclass(frozen=True)
class ReadsToFragments(Step):
    """Turn counts of reads into counts of fragments: half of them, rounded up."""

    needs_counts = True

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        x = sp.csr_matrix(adata.X)
        x.data = (x.data + 1) // 2
        adata.X = x
        return adata

    def _code(self) -> list[str]:
        return ["adata.X = sp.csr_matrix(adata.X)", "adata.X.data = (adata.X.data + 1) // 2"]


@dataclass(frozen=True)
class Binarise(Step):
    """Keep only whether a feature is there: all counts become one."""

    needs_counts = True

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        adata.X = sp.csr_matrix(adata.X > 0).astype(np.int32)
        return adata

    def _code(self) -> list[str]:
        return ["adata.X = sp.csr_matrix(adata.X > 0).astype(np.int32)"]


@dataclass(frozen=True)
class StoreByRow(Step):
    """Store X as a sparse matrix by row (CSR), as training reads it."""

    def _apply(self, adata: ad.AnnData) -> ad.AnnData:
        adata.X = sp.csr_matrix(adata.X)
        return adata

    def _code(self) -> list[str]:
        return ["adata.X = sp.csr_matrix(adata.X)"]
