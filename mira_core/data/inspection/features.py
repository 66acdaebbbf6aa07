"""Features: genes or peaks, named once, seen in some cells, not too many."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from ..steps import DropEmptyFeatures, FilterFeatures, HighlyVariable, KeepFeatures, MakeNamesUnique, ReadsToFragments
from ..tally import HISTOGRAM, Tally
from .finding import Finding, percent, some

PEAK = re.compile(r"^(?:[\w.]+[:_-]\d+[-_:]\d+|peak[_-]?\d+)$", re.IGNORECASE)
NAMES = 2000  # looked at to tell peaks from genes
MANY_GENES, N_TOP = 10_000, 4_000
RARE_PEAK, MOST_RARE_CELLS = 0.005, 20  # peaks open in a smaller share of cells, and in fewer than so many, say little
OPEN_EVERYWHERE = 0.9
WORTH = 0.005  # share of the peaks from where a few of them are worth a word
TYPES = ("feature_types", "feature_type", "modality")  # columns of var in which files name what a feature is


def guess_type(var: pd.DataFrame, binary: bool = False) -> str:
    """Tell peaks from genes by their names; by counts of nothing but one, where names say nothing."""
    for column in (c for c in TYPES if c in var):
        kinds = set(var[column].astype(str).str.lower())
        if len(kinds) == 1:
            return "accessibility" if kinds <= {"peaks", "atac", "peak"} else "expression"
    names = var.index[:: max(1, len(var) // NAMES)].astype(str)
    return "accessibility" if binary or _peaks(names) > 0.5 else "expression"


def _peaks(names: pd.Index) -> float:
    return float(np.mean([bool(PEAK.match(n)) for n in names])) if len(names) else 0.0


def check_names(var: pd.DataFrame, feature_type: str | None) -> Iterator[Finding]:
    """Look for names that repeat, kinds that are mixed, and another kind than was said."""
    names = var.index.astype(str)
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        yield Finding(
            "duplicate_features", "error", "Names of features repeat",
            f"{len(twice):,} names stand for several of {len(names):,} features, such as {twice[0]!r}.",
            "A model keeps its features by name, and finds them by name in other data; training refuses names that "
            "repeat.",
            "Make the names unique, or use gene identifiers as names.", MakeNamesUnique(),
        )  # fmt: skip
    for column in (c for c in TYPES if c in var):
        n = var[column].astype(str).value_counts()
        if len(n) > 1:
            wanted = "Peaks" if feature_type == "accessibility" and "Peaks" in n else "Gene Expression"
            kept = wanted if wanted in n else str(n.index[0])
            told = ", ".join(f"{k:,} {name}" for name, k in n.items())
            yield Finding(
                "mixed_features", "error", "Genes and other features are in one matrix",
                f"var[{column!r}] tells {told}.",
                "A model is of one kind of features: RNA and peaks follow different distributions.",
                f"Keep one kind for each model; the step keeps {kept!r}.", KeepFeatures(column, (kept,)), column,
            )  # fmt: skip
            return
    share = _peaks(names[:: max(1, len(names) // NAMES)])
    if feature_type == "expression" and share > 0.5:
        yield Finding(
            "feature_type", "warning", "These look like peaks, not genes",
            f"{100 * share:.0f} % of the names are places in the genome, such as {names[0]!r}.",
            "A model of expression takes counts for RNA molecules; peaks are open or closed.",
            "Choose feature_type='accessibility'.",
        )  # fmt: skip


def check_empty(t: Tally) -> Iterator[Finding]:
    """Look for features without counts."""
    k, g = int((t.feature_totals == 0).sum()), len(t.feature_totals)
    if k:
        yield Finding(
            "empty_features", "info", "Some features have no counts in any cell",
            f"Zero in all cells{t.looked_at}: {some(k, g, 'features')}.",
            "Nothing can be learned of them, and each takes memory and time.", "Drop them.", DropEmptyFeatures(),
        )  # fmt: skip


def check_number_of_genes(var: pd.DataFrame, key: str | None) -> Iterator[Finding]:
    """Say if all genes would be modelled though they are many."""
    g = len(var)
    if key is not None or g <= MANY_GENES:
        return
    marked = [c for c in var.columns if "variable" in str(c).lower() and pd.api.types.is_bool_dtype(var[c])]
    marked = [c for c in marked if 2 <= var[c].sum() < g]
    if marked:
        yield Finding(
            "many_features", "warning", "All genes would be modelled, though variable ones are marked",
            f"{g:,} genes; var[{marked[0]!r}] marks {int(var[marked[0]].sum()):,}.",
            "Genes that hardly vary among cells say nothing of topics, slow training down and take memory.",
            f"Name the column to the model: highly_variable_key={marked[0]!r}.", None, str(marked[0]),
        )  # fmt: skip
        return
    yield Finding(
        "many_features", "warning", "All genes would be modelled; variable ones are not chosen", f"{g:,} genes.",
        "Genes that hardly vary among cells say nothing of topics, slow training down and take memory.",
        f"Choose highly variable genes, about {N_TOP:,}, and name their column to the model: "
        "highly_variable_key='highly_variable'.",
        HighlyVariable(n_top=N_TOP),
    )  # fmt: skip


def even_share(histogram: np.ndarray) -> float:
    """Return the share of even values among those from 1 to `HISTOGRAM` - 1."""
    seen = histogram[1:HISTOGRAM]
    return float(seen[1::2].sum() / max(1, seen.sum()))


def check_peaks(t: Tally) -> Iterator[Finding]:
    """Look at counts of peaks: reads or fragments, and peaks that are open in hardly any or nearly all cells.

    A fragment of a paired-end library has two ends, and counting reads or insertions counts both where they lie in
    one peak: twos are then more frequent than ones, and even values than odd ones. Fragments are recovered as
    ceil(x / 2), after Martens et al., Nature Methods 2024, https://doi.org/10.1038/s41592-023-02112-6.
    """
    n, g = len(t.rows), len(t.feature_totals)
    if t.n_values and t.histogram[2] > t.histogram[1] and even_share(t.histogram) > 0.5:
        yield Finding(
            "read_counts", "info", "These are counts of reads, not of fragments",
            f"{100 * even_share(t.histogram):.0f} % of the values are even; {t.histogram[1]:,} are 1 and "
            f"{t.histogram[2]:,} are 2{t.looked_at}.",
            "Each fragment was counted by both of its ends. Topics do not change by it, as the model asks only whether "
            "a peak is open; a cell's depth does, and other programs that count fragments.",
            "Nothing has to be done for these models; for others halve the counts, rounded up.", ReadsToFragments(),
        )  # fmt: skip
    elif t.largest > 1 and t.n_values:
        above = t.n_values - int(t.histogram[1])
        yield Finding(
            "not_binary", "info", "Counts of peaks are taken as open or closed",
            f"{some(above, t.n_values, 'values')} are above 1, the largest {t.largest:,.0f}{t.looked_at}.",
            "In one cell a peak is on two chromosomes at most; the model asks only whether it is open.",
            "Nothing has to be done.",
        )  # fmt: skip
    least = min(MOST_RARE_CELLS, int(np.ceil(RARE_PEAK * n)))
    rare = (t.cells_seen > 0) & (t.cells_seen < least)
    if (k := int(rare.sum())) > WORTH * g:
        yield Finding(
            "rare_peaks", "warning" if k > 0.1 * g else "info", "Some peaks are open in hardly any cell",
            f"Open in fewer than {least} of {n:,} cells{t.looked_at}: {some(k, g, 'peaks')}.",
            "So few cells do not tell with which other peaks one opens; it adds noise, time and memory.",
            f"Drop peaks open in fewer than {least} cells.",
            FilterFeatures(min_cells=least) if t.whole else FilterFeatures(min_share=least / n),
        )  # fmt: skip
    if (k := int((t.cells_seen > OPEN_EVERYWHERE * n).sum())) > WORTH * g:
        yield Finding(
            "ubiquitous_peaks", "info", "Some peaks are open in nearly all cells",
            f"Open in more than {percent(OPEN_EVERYWHERE, 1)} of cells{t.looked_at}: {some(k, g, 'peaks')}.",
            "A peak that is open everywhere tells no types apart.", "Drop them if they are many; a few do no harm.",
            FilterFeatures(max_share=OPEN_EVERYWHERE),
        )  # fmt: skip
