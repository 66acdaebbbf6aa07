"""Which matrix holds raw counts, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...errors import DataError
from ..recover import TRANSFORMS, transform_of
from ..steps import CountsFromLayer, CountsFromRaw, RecoverCounts, Step, StoreByRow
from ..tally import RAW, Stored, Tally, read_sample
from .finding import Finding, Severity, some

SAMPLE = 512  # cells by which a matrix is judged
CROWDED = 0.6  # share of values above zero from where a matrix is smaller stored dense
LOGGED = 20.0  # values of logged counts do not come near to it
WHY = (
    "The models count molecules or fragments: their likelihood needs whole numbers as they were sequenced, and would "
    "take scaled or logged values for something they are not."
)
TOLD = {"log1p": "logged", "log2": "logged to base 2", "log10": "logged to base 10", "scaled": ""}


@dataclass(frozen=True)
class Judgement:
    """What a matrix holds, by some of its cells.

    Attributes
    ----------
    problem
        Why it holds no counts, after "holds "; empty if it does.
    transform
        How counts can be recovered, see `mira_core.data.recover`; None if they cannot.
    """

    of: Stored
    problem: str
    transform: str | None = None


def judge(of: Stored) -> Judgement:
    """Judge a matrix by a sample of its cells."""
    try:
        cells = read_sample(of, SAMPLE)
    except DataError as problem:
        return Judgement(of, f"what cannot be read as numbers: {problem}")
    v = cells.data[cells.data != 0]
    if not v.size:
        return Judgement(of, "nothing but zeros" if cells.shape[0] else "no cells")
    bad, negative = int((~np.isfinite(v)).sum()), float(np.nanmin(v))
    if bad:
        return Judgement(of, f"missing or infinite values: {bad:,} of {v.size:,} in the cells looked at")
    if negative < 0:
        if v.dtype.kind == "i" and v.dtype.itemsize <= 2:
            return Judgement(of, f"negative values such as {int(negative)}: {v.dtype} was too small for its counts")
        return Judgement(of, f"negative values such as {negative:.3g}: it was scaled or centred")
    fractions = v[v != np.rint(v)]
    if not fractions.size:
        largest = float(v.max())
        return Judgement(of, f"a count of {largest:.4g}, too large to be one" if largest > 2**24 else "")
    return _judge_fractions(of, cells, v, fractions)


def _judge_fractions(of: Stored, cells: sp.csr_array, v: np.ndarray, fractions: np.ndarray) -> Judgement:
    such = f"values such as {fractions[0]:.3g}"
    if transform := transform_of(cells):
        return Judgement(of, f"counts that were scaled within each cell{_and(TOLD[transform])}, {such}", transform)
    for transform in ("log1p", "log2", "log10"):
        if v.max() < LOGGED and (total := _same_total(_undone(cells, transform))):
            told = f"normalised to {total:,.0f} in each cell and {TOLD[transform]}"
            return Judgement(of, f"values that were {told}, {such}")
    if total := _same_total(cells):
        return Judgement(of, f"values that were normalised to {total:,.4g} in each cell, {such}")
    if v.size > 0.9 * np.prod(cells.shape):
        return Judgement(of, f"hardly a zero, {such}: it seems imputed or smoothed")
    if v.max() < LOGGED and fractions.size > 0.9 * v.size:
        return Judgement(of, f"{such} and none above {v.max():.3g}: it seems normalised and logged")
    told = some(fractions.size, v.size, "values")
    return Judgement(
        of, f"fractions, {told} looked at, {such}: ambient RNA may have been removed, or values were imputed"
    )


def _and(text: str) -> str:
    return f" and {text}" if text else ""


def _undone(cells: sp.csr_array, transform: str) -> sp.csr_array:
    out = sp.csr_array(cells, dtype=np.float64, copy=True)
    out.data = TRANSFORMS[transform](out.data)
    return out


def _same_total(cells: sp.csr_array) -> float | None:
    totals = np.asarray(cells.sum(axis=1, dtype=np.float64)).ravel()
    totals = totals[totals > 0]
    if totals.size < 2 or np.ptp(totals) > 0.01 * totals.mean():
        return None
    return float(np.median(totals))


def find_counts(judged: list[Judgement], chosen: str | None, n_cells: int) -> tuple[Stored | None, list[Finding]]:
    """Return the matrix with raw counts, and what is to be said of it.

    `chosen` is the layer that was named; None: the first that has counts.
    """
    if not judged:
        return None, [_nothing("The data holds no matrix at all: no X, no layer, no raw.")]
    first = judged[0]
    if chosen is not None:
        first = next(j for j in judged if j.of.name == chosen)
        judged = [first, *(j for j in judged if j is not first)]
    at = next((j for j in judged if not j.problem), None)
    if at is None:
        return None, [_none(judged, n_cells)]
    if at.of.name == RAW:
        return at.of, [_in_raw(at.of, None if first is at else first)]
    if at is first and chosen == at.of.name:
        return at.of, []
    return at.of, [_in_layer(at.of, None if first is at else first, "warning" if chosen is None else "error")]


def _in_layer(of: Stored, first: Judgement | None, severity: Severity) -> Finding:
    other = f"; {first.of.label} holds {first.problem}" if first is not None else "; there is no X"
    how = f"Name the layer to the model, counts_layer={of.name!r}, or take its counts as X by a recipe."
    return Finding(
        "counts_in_layer", severity, f"Raw counts are in {of.label}", f"{of.label} holds raw counts{other}.", WHY,
        "Leave counts_layer empty, so that X is taken." if of.name is None else how,
        None if of.name is None else CountsFromLayer(of.name),
    )  # fmt: skip


def _in_raw(of: Stored, first: Judgement | None) -> Finding:
    other = f"; {first.of.label} holds {first.problem}" if first is not None else "; there is no X"
    return Finding(
        "counts_in_raw", "error", "Raw counts are in adata.raw, where models do not look",
        f"raw.X holds raw counts of {of.shape[1]:,} features{other}.", WHY,
        "Take counts and features of raw by a recipe.", CountsFromRaw(),
    )  # fmt: skip


def _none(judged: list[Judgement], n_cells: int) -> Finding:
    reasons = ". ".join(f"{_capital(j.of.label)} holds {j.problem}" for j in judged)
    if n_cells > SAMPLE:
        reasons += f". {SAMPLE} cells were looked at"
    able = sorted((j for j in judged if j.transform), key=lambda j: j.of.name == RAW)
    if able:
        best = able[0]
        name = best.of.name
        step: Step = RecoverCounts(
            transform=str(best.transform), layer=None if name == RAW else name, raw=name == RAW
        )  # fmt: skip
        return Finding(
            "counts_recoverable", "error", f"No raw counts, but {best.of.label} can be turned back into them",
            f"{reasons}.", WHY,
            "Best use the file with the counts that the pipeline gave. Else recover them by a recipe: in every cell "
            "looked at, the values are whole multiples of the smallest, which stands for a count of one. Then inspect "
            "the recovered counts, too.", step,
        )  # fmt: skip
    return _nothing(f"{reasons}.")


def _nothing(what: str) -> Finding:
    return Finding(
        "no_counts", "error", "No raw counts are in this file", what, WHY,
        "Open the file with the counts that the pipeline gave, such as Cell Ranger's filtered matrix. Before "
        "normalising, keep them in a layer: adata.layers['counts'] = adata.X.copy().",
    )  # fmt: skip


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text != RAW and not text.startswith("layers") else text


def check_values(of: Stored, t: Tally) -> Iterator[Finding]:
    """Tell what a pass over the whole matrix shows of its values, though its sample looked like counts."""
    if not t.are_counts:
        told = [
            f"{n:,} {what}"
            for n, what in (
                (t.n_bad, "missing or infinite values"), (t.n_negative, "negative values"),
                (t.n_fractions, f"fractions such as {t.fraction:.3g}"),
            )
            if n
        ]  # fmt: skip
        told = told or [f"a count of {t.largest:.4g}"]
        yield Finding(
            "not_all_counts", "error", f"{of.label} holds counts, but not everywhere",
            f"Among {t.n_values:,} values of {of.label}{t.looked_at} there are {', '.join(told)}.", WHY,
            "Look for the cells that came from another file or pipeline than the others, and take their raw counts.",
        )  # fmt: skip
    yield from _check_type(of, t)
    yield from _check_storage(of, t)


def _check_type(of: Stored, t: Tally) -> Iterator[Finding]:
    dtype = np.dtype(of.matrix.dtype)
    most: Any = None
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        most = np.iinfo(dtype).max
    elif dtype == np.float16:
        most = 2048
    if most is None or t.largest < most:
        return
    at = "reach" if dtype.kind in "iu" else "go beyond"
    yield Finding(
        "overflow", "warning", f"Counts may have been cut off: {dtype} is too small for them",
        f"Counts of {of.label} {at} {most:,}, the most that {dtype} holds exactly.",
        "A count above it was cut, rounded or wrapped to a small one when the file was written: highly expressed "
        "genes would look weak in just the cells where they are strongest.",
        "Write the file anew from the pipeline's counts, as int32 or float32.",
    )  # fmt: skip


def _check_storage(of: Stored, t: Tally) -> Iterator[Finding]:
    n, g = len(t.rows), of.shape[1]
    how = ""
    if of.by_column:
        how = "by feature (CSC), and training reads it by cell"
    elif getattr(of.matrix, "format", "dense") == "dense" and 0 < t.n_values < CROWDED * n * g and n * g > 1e5:
        how = f"with all its zeros, which are {100 * (1 - t.n_values / (n * g)):.0f} % of it"
    if how:
        yield Finding(
            "storage", "info", "Stored in a way that costs time and memory", f"{of.label} is stored {how}.",
            "The model will be the same; reading takes longer, and more memory.",
            "Nothing has to be done. Stored by cell without zeros (CSR) the file would be read faster.",
            StoreByRow() if of.name is None else None,
        )  # fmt: skip
