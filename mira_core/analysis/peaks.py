"""Which regions of the genome the peaks of topics lie in.

Positions are counted from 0, and ends are not part of an interval, as in .bed files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ..errors import DataError
from .enrichment import members_of, overrepresented, told, top_of
from .gene_sets import lines_of
from .predicted import topics_of

Intervals = dict[str, tuple[np.ndarray, np.ndarray]]  # starts and ends by chromosome, merged and in order
COLUMNS = [("chrom", "start", "end"), ("chr", "start", "end"), ("chromosome", "start", "end"),
           ("seqnames", "start", "end"), ("Chromosome", "Start", "End")]  # fmt: skip
NAME = r"^(?P<chrom>.+?)[:_-](?P<start>\d{1,12})[_-](?P<end>\d{1,12})$"
LONGEST = 2**40  # no chromosome has so many bases


def enrich_peaks(
    adata: ad.AnnData, regions: Mapping[str, str | Path], *, top: int | None = None, min_size: int = 5
) -> pd.DataFrame:
    """Test in which regions the peaks of each topic lie, such as binding sites or another tissue's peaks.

    The `top` most activated peaks of a topic are compared with all modelled peaks: how many of them overlap a region
    by a base at least (hypergeometric, or one-sided Fisher, test). Activations, not shares, say which are its peaks,
    as the largest shares are of peaks that are open in most cells, promoters above all.

    Parameters
    ----------
    adata
        Cells with topics of an accessibility model. Peaks are named like ``chr1:100-200``, ``chr1-100-200`` or
        ``chr1_100_200``, or ``var`` has columns chrom (or chr, chromosome, seqnames), start and end.
    regions
        Names to paths of .bed files, gzipped or not. Columns behind the third are not used. Chromosomes are the same
        with ``chr`` and without; the genome's assembly must be that of the peaks, which cannot be told from them.
    top
        Peaks that stand for a topic. None: 200, or a tenth of the modelled ones if these are fewer than 2,000.
    min_size
        Peaks that must overlap a file's regions; files with fewer are left out.

    Returns
    -------
    pandas.DataFrame
        As of `enrich`: ``gene_set`` is the name of the regions, ``genes`` are the topic's peaks in them.

    Raises
    ------
    DataError
        If peaks have no positions, a file is malformed, or no file's regions overlap enough peaks.
    """
    topics = topics_of(adata)
    chrom, start, end = peak_positions(adata, topics.features)
    if not isinstance(regions, Mapping) or not regions:
        raise DataError(
            f"regions must be a dict of names to paths of .bed files, with one at least; got {regions!r:.60}"
        )
    sets, seen = {}, {}
    for name, path in regions.items():
        intervals = read_bed(path)
        at = overlapping(chrom, start, end, intervals)
        seen[name] = len(at)
        if len(at) >= min_size:
            sets[str(name)] = at
    if not sets:
        most = max(seen, key=lambda name: seen[name])
        example = next(iter(read_bed(regions[most])))
        raise DataError(
            f"no file's regions overlap {min_size} of the {len(chrom):,} modelled peaks ({most}: {seen[most]}). Peaks "
            f"are named like {topics.features[0]}, regions are on {example}: see that both are of the same assembly"
        )
    score = topics.activations
    n = top_of(top, len(topics.features))
    effect, p = overrepresented(score, members_of(sets, len(topics.features)), n)
    return told(topics, sets, score, n, effect, p)


def peak_positions(adata: ad.AnnData, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return chromosome, start and end of some features, by columns of ``var`` or by their names.

    Raises
    ------
    DataError
        If a feature has no position.
    """
    var = adata.var.loc[~adata.var_names.duplicated()].loc[features]
    if (columns := next((c for c in COLUMNS if set(c) <= set(var.columns)), None)) is not None:
        found = var[list(columns)].set_axis(["chrom", "start", "end"], axis=1)
    else:
        found = var.index.to_series().astype(str).str.strip().str.extract(NAME)
    start, end = (pd.to_numeric(found[c], errors="coerce").to_numpy(float, na_value=np.nan) for c in ("start", "end"))
    bad = found["chrom"].isna().to_numpy() | ~(np.isfinite(start) & np.isfinite(end) & (start >= 0) & (start < end))
    if bad.any():
        raise DataError(
            f"each peak must have a position, as chr1:100-200 names one, or columns chrom, start and end of var; "
            f"{int(bad.sum())} of {len(bad)} have none, such as {str(features[bad.argmax()])!r}"
        )
    return found["chrom"].map(_chromosome).to_numpy(str), start.astype(np.int64), end.astype(np.int64)


def read_bed(path: str | Path) -> Intervals:
    """Read the intervals of a .bed file, gzipped or not; those that overlap or touch are merged.

    Raises
    ------
    DataError
        If it cannot be read, a line is no interval, or there is none.
    """
    by_chromosome: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(lines_of(path), 1):
        fields = line.split(maxsplit=3)
        if not fields or fields[0].startswith("#") or fields[0] in ("track", "browser"):
            continue
        if len(fields) < 3 or not (_whole(fields[1]) and _whole(fields[2]) and int(fields[1]) <= int(fields[2])):
            raise DataError(
                f"{Path(path).name}, line {number}: must be a chromosome, a start and an end that is not before it, "
                f"whole numbers; got {line[:60]!r}"
            )
        by_chromosome.setdefault(_chromosome(fields[0]), []).append((int(fields[1]), int(fields[2])))
    if not by_chromosome:
        raise DataError(f"{Path(path).name} holds no interval; a .bed file has a line for each: chromosome, start, end")
    return {chrom: _merged(np.array(pairs, np.int64)) for chrom, pairs in by_chromosome.items()}


def overlapping(chrom: np.ndarray, start: np.ndarray, end: np.ndarray, intervals: Intervals) -> np.ndarray:
    """Return which peaks overlap an interval by a base at least, in order."""
    hit = np.zeros(len(chrom), bool)
    for name, (starts, ends) in intervals.items():
        at = np.flatnonzero(chrom == name)
        first = np.searchsorted(ends, start[at], side="right")  # the first interval that ends behind the start
        known = first < len(ends)
        hit[at[known]] = starts[first[known]] < end[at[known]]
    return np.flatnonzero(hit)


def _merged(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(pairs[:, 1])
    begins = np.append(True, pairs[1:, 0] > reach[:-1])[: len(pairs)]
    last = np.append(np.flatnonzero(begins)[1:] - 1, len(pairs) - 1)[: begins.sum()]
    return pairs[begins, 0], reach[last]


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12 and int(text) < LONGEST


def _chromosome(name: str) -> str:
    name = str(name).strip()
    name = name[3:] if name[:3].lower() == "chr" else name
    return "MT" if name == "M" else name
