"""Cells: enough of them, none empty, few unlike the rest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ..qc import LEAST_PCT_MT, QC
from ..steps import DropEmptyCells, FilterCells, MakeNamesUnique
from ..tally import Tally
from .finding import Finding, some

FEW_CELLS = 500
HARDLY_ANY = 50
OUTLIERS = 0.002  # share of cells from where outliers are worth a word
MANY_OUTLIERS = 0.05
HIGH_PCT_MT = 20.0


def check_names(names: pd.Index) -> Iterator[Finding]:
    """Look for names of cells that repeat."""
    if names.is_unique:
        return
    twice = names[names.duplicated()]
    yield Finding(
        "duplicate_cells", "warning", "Names of cells repeat",
        f"The name of a cell before it: {some(len(twice), len(names), 'cells')}, such as {twice[0]!r}.",
        "Cells of several samples may share a barcode; results can then be joined with other tables only by position.",
        "Make the names unique, best by appending the sample's name; a recipe appends -1, -2 and so on. If these are "
        "the same cells twice, remove them.",
        MakeNamesUnique(),
    )  # fmt: skip


def check_number(n: int) -> Iterator[Finding]:
    """Say if there are too few cells to learn from."""
    if n < 2:
        yield Finding(
            "few_cells", "error", "There are no cells to learn from", f"The data holds {n} cells.",
            "Topics are what many cells share.", "Open a file with more cells.",
        )  # fmt: skip
    elif n < HARDLY_ANY:
        yield Finding(
            "few_cells", "warning", "There are too few cells for topics that mean anything",
            f"The data holds {n:,} cells.",
            f"Topics are what many cells share. A model can be trained on fewer than {HARDLY_ANY}, to try things out, "
            "but what it learns is chance.",
            "Open a file with more cells.",
        )  # fmt: skip
    elif n < FEW_CELLS:
        yield Finding(
            "few_cells", "warning", "There are few cells", f"The data holds {n:,} cells.",
            f"Topics are what many cells share; from fewer than {FEW_CELLS} only a few coarse ones can be learned, and "
            "they vary from training to training.",
            "Ask for few topics, train with several seeds, and keep what comes again. Add cells if you can.",
        )  # fmt: skip


def check_empty(t: Tally, key: str | None) -> Iterator[Finding]:
    """Look for cells without counts, at all and in the modelled features."""
    n = len(t.rows)
    empty = t.totals == 0
    if k := int(empty.sum()):
        yield Finding(
            "empty_cells", "error", "Some cells have no counts at all",
            f"No counts in {some(k, n, 'cells')}{t.looked_at}.",
            "Nothing can be learned from them, and training refuses them.", "Drop them.", DropEmptyCells(),
        )  # fmt: skip
    if key is not None and (k := int(((t.marked["modelled"] == 0) & ~empty).sum())):
        yield Finding(
            "cells_without_modelled_features", "error", "Some cells have no counts in the features to model",
            f"Counts, but none in the features of var[{key!r}]: {some(k, n, 'cells')}{t.looked_at}.",
            "Nothing can be learned from them, and training refuses them.",
            "Drop them, or model more features.", DropEmptyCells(highly_variable_key=key), key,
        )  # fmt: skip


def check_outliers(t: Tally, qc: QC, feature: str) -> Iterator[Finding]:
    """Look for cells far shallower or deeper than the others; `feature` is gene or peak."""
    n = len(t.rows)
    limits = qc.thresholds
    if "total_counts" not in limits.index or n < 50:
        return
    filled = t.totals > 0
    depth, seen = limits.loc["total_counts"], limits.loc["n_genes_by_counts"]
    few = filled & (t.features_seen < seen.lower)
    shallow, deep = filled & (t.totals < depth.lower), t.totals > depth.upper
    k = int((shallow | few | deep).sum())
    if k <= max(2, OUTLIERS * n):
        return
    told = [
        f"{sum(which):,} with {limit}"
        for which, limit in (
            (shallow, f"fewer than {np.ceil(depth.lower):,.0f} counts"),
            (few, f"fewer than {np.ceil(seen.lower):,.0f} {feature}s"),
            (deep, f"more than {np.floor(depth.upper):,.0f} counts"),
        )
        if which.any()
    ]  # fmt: skip
    step = FilterCells(
        min_counts=float(np.ceil(depth.lower)) if shallow.any() else None,
        max_counts=float(np.floor(depth.upper)) if deep.any() else None,
        min_genes=int(np.ceil(seen.lower)) if few.any() else None,
    )
    yield Finding(
        "outlier_cells", "warning" if k > MANY_OUTLIERS * n else "info",
        "Some cells are far shallower or deeper than most",
        f"{some(k, n, 'cells')}{t.looked_at}: {', '.join(told)}. The median is {depth['median']:,.0f} counts and "
        f"{seen['median']:,.0f} {feature}s; the limits are {depth.n_mads:g} median absolute deviations away, in logs.",
        "Shallow ones may be debris or droplets without a cell, deep ones two cells in one droplet, and the model may "
        "spend a topic on them. Types of cells differ in depth as well.",
        "Look at which cells they are before you drop them; keep them if they are a type of their own.", step,
    )  # fmt: skip


def check_mitochondrial(t: Tally, qc: QC, symbols: str | None) -> Iterator[Finding]:
    """Look for cells with much mitochondrial RNA; `symbols` is the column of var with gene names."""
    if "pct_counts_mt" not in qc.thresholds.index:
        return
    limit = qc.thresholds.loc["pct_counts_mt"]
    n, k = len(t.rows), int((qc.cells["pct_counts_mt"] > limit.upper).sum())
    if k <= max(2, OUTLIERS * n) and limit["median"] < HIGH_PCT_MT:
        return
    upper = float(np.ceil(limit.upper * 10) / 10)
    yield Finding(
        "mitochondrial", "warning" if k > 0.05 * n or limit["median"] >= HIGH_PCT_MT else "info",
        "Some cells have much mitochondrial RNA",
        f"More than {limit.upper:.1f} % of the counts in {some(k, n, 'cells')}{t.looked_at}. The median is "
        f"{limit['median']:.1f} %; the limit is {limit.n_mads:g} median absolute deviations above it, at least "
        f"{LEAST_PCT_MT:g} %.",
        "Broken cells lose the RNA of their cytoplasm first, and would share a topic of mitochondrial genes. Muscle, "
        "liver and kidney have much of it in healthy cells.",
        "Drop the cells above a limit that suits the tissue, or give the share as a continuous covariate.",
        FilterCells(max_pct_mt=upper, symbols=symbols),
    )  # fmt: skip
