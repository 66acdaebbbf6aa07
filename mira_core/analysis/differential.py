"""Which topics some cells have more of than others: a test for compositions.

Shapes: N cells, n of them compared, K topics, S samples.
"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..errors import DataError, OptionError
from .description import obs_column, sums_by
from .predicted import compositions_of, topic_names

FLOOR = 1e-3  # shares below this count as this: logarithms would make much of differences between next to nothing
CHUNK = 4096  # cells


def differential_topics(
    adata: ad.AnnData, selected: Any, against: Any = None, *, sample: str | None = None, floor: float = FLOOR
) -> pd.DataFrame:
    """Compare the topics of selected cells with those of others.

    Shares sum to one, so that where one topic gains, all others lose. What is tested is therefore the centred
    log-ratio (Aitchison, J. R. Stat. Soc. B 1982): the logarithm of a topic's share over the geometric mean of all,
    which one topic's gain moves by 1/K only. It is, up to a constant, the isometric log-ratio of the topic against all
    others, so that the choice between these does not matter. Cells are compared by the Wilcoxon rank-sum test (normal
    approximation, corrected for ties and continuity), since log-ratios have long tails that a t-test would follow,
    and since its statistic is the AUC: how often a selected cell has more of the topic than another.

    What remains of it is real, and with many cells significant: where one topic gains much, the log-ratios of all
    others fall by 1/K of that. Go by `log_ratio` and `auc`; p-values only say what is not chance.

    Cells of one sample are no independent replicates: they share the donor and the preparation, and with thousands of
    them the least difference between two samples has a p-value of next to 0. Read these p-values as a description of
    these very cells; where you mean to speak of donors or conditions, name the column with the `sample`.

    Parameters
    ----------
    adata
        Cells with topics.
    selected
        Truth values, N, or positions of cells.
    against
        Likewise. None: all cells that are not selected.
    sample
        Column of ``obs``, such as the donor. Then means of the log-ratio over each sample's cells are compared, by a
        t-test: paired where at least 3 samples have cells on both sides (others are then left out), else Welch's,
        which takes 2 samples on each side.
    floor
        Shares below this count as this.

    Returns
    -------
    pandas.DataFrame
        A row for each topic, the greatest statistic first: ``topic``, ``mean_selected`` and ``mean_others`` (mean
        shares of cells; with `sample` the mean over samples of these), ``log_ratio`` (difference of the mean centred
        log-ratios, in natural-log units), ``statistic`` (z of the ranks, or t of the samples; positive: the selected
        have more), ``p_value``, ``q_value`` (Benjamini-Hochberg over the topics), ``auc`` (of cells, 0.5: no
        difference). ``attrs['test']`` says in words what was compared.

    Raises
    ------
    DataError
        If the cells have no topics, or samples are missing or too few.
    OptionError
        If a selection is empty, holds something else than cells, or both hold the same cells.
    """
    theta = compositions_of(adata)
    if theta.shape[1] < 2:
        raise DataError("topics can be compared if there are at least 2; the cells have 1")
    if not 0 < floor < 1 / theta.shape[1]:
        raise OptionError(f"floor must be above 0 and below an even share, {1 / theta.shape[1]:.3g}; got {floor}")
    one = _mask(selected, len(theta), "selected")
    two = ~one if against is None else _mask(against, len(theta), "against")
    if not one.any() or not two.any():
        raise OptionError(
            f"there must be cells on both sides; {int(one.sum())} are selected, {int(two.sum())} are compared with them"
        )
    if both := int((one & two).sum()):
        raise OptionError(f"a cell can be on one side only; {both} are among the selected and those against")
    used = one | two
    if not used.all():
        theta, one = theta[used], one[used]
    z_Kn = log_ratios(theta, floor)
    ranks = [rank_sum(z, one) for z in z_Kn]
    auc = np.array([r[0] for r in ranks])
    if sample is None:
        weight = np.stack([one / one.sum(), ~one / (~one).sum()]).astype(np.float32)
        means, effect = weight @ theta, z_Kn @ (weight[0] - weight[1])
        statistic, p = (np.array([r[i] for r in ranks]) for i in (1, 2))
        test = f"rank-sum test of {int(one.sum()):,} cells against {int((~one).sum()):,}"
    else:
        column = obs_column(adata, sample)[used]
        means, effect, statistic, p, test = _by_sample(theta, z_Kn, one, column, sample)
    told = pd.DataFrame(
        {
            "topic": topic_names(theta.shape[1]),
            "mean_selected": means[0],
            "mean_others": means[1],
            "log_ratio": effect,
            "statistic": statistic,
            "p_value": p,
            "q_value": adjusted(p),
            "auc": auc,
        }
    )
    told = told.sort_values("statistic", ascending=False, kind="stable", ignore_index=True)
    told.attrs["test"] = test
    return told


def log_ratios(theta: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """Return centred log-ratios of the shares, K x N (float32), in natural-log units."""
    z_KN = np.empty(theta.shape[::-1], np.float32)
    for start in range(0, len(theta), CHUNK):  # what stays in the processor's cache is turned several times as fast
        z = np.log(np.maximum(theta[start : start + CHUNK].T, np.float32(floor)))
        z_KN[:, start : start + CHUNK] = z - z.mean(0)
    return z_KN


def rank_sum(values: np.ndarray, selected: np.ndarray) -> tuple[float, float, float]:
    """Compare selected values with the others by the Wilcoxon rank-sum test.

    Returns
    -------
    tuple of float
        AUC, z (positive: the selected are greater), and the two-sided p-value, as ``scipy.stats.mannwhitneyu`` has it
        with ``method="asymptotic"``; a column is sorted once, so that millions of cells take a fraction of a second.
    """
    from scipy.stats import norm

    ordered = np.sort(values)
    smaller = selected if 2 * selected.sum() <= len(values) else ~selected
    ours = np.sort(values[smaller])
    n, m = len(values), len(ours)
    below = np.searchsorted(ordered, ours, side="left")
    changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    tied = 0.0
    if len(changes) < n - 1:
        upto = np.searchsorted(ordered, ours, side="right")
        t = np.diff(changes, prepend=0, append=n).astype(float)
        tied = float((t * (t * t - 1)).sum())
    else:
        upto = below + 1
    u = (below.sum(dtype=float) + upto.sum(dtype=float) + m) / 2 - m * (m + 1) / 2
    if smaller is not selected:
        u = m * (n - m) - u
    pairs = float(m * (n - m))
    variance = pairs / 12 * (n + 1 - tied / (n * (n - 1)))
    if variance <= 0:  # all values are the same
        return 0.5, 0.0, 1.0
    apart = u - pairs / 2
    z = np.sign(apart) * max(abs(apart) - 0.5, 0) / np.sqrt(variance)
    return u / pairs, float(z), float(min(2 * norm.sf(abs(z)), 1))


def adjusted(p: np.ndarray) -> np.ndarray:
    """Return p-values adjusted by Benjamini and Hochberg; NaN stays NaN and counts for nothing."""
    from scipy.stats import false_discovery_control

    out = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        out[known] = false_discovery_control(p[known])
    return out


def _mask(selection: Any, n: int, name: str) -> np.ndarray:
    values = np.asarray(selection)
    if values.dtype == bool or (values.dtype == object and all(isinstance(v, bool | np.bool_) for v in values.flat)):
        if values.shape != (n,):
            raise OptionError(f"{name} must have a truth value for each of the {n} cells; got shape {values.shape}")
        return values.astype(bool)
    if values.size == 0:
        return np.zeros(n, bool)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise OptionError(
            f"{name} must be truth values or positions of cells; got {values.dtype} of {values.ndim} axes"
        )
    if values.min() < 0 or values.max() >= n:
        raise OptionError(f"{name} must be positions from 0 to {n - 1}; got {values.min()} to {values.max()}")
    mask = np.zeros(n, bool)
    mask[values] = True
    return mask


def _by_sample(
    theta: np.ndarray, z_Kn: np.ndarray, one: np.ndarray, column: pd.Series, name: str
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray, np.ndarray, str]:
    """Return mean shares on both sides, differences of log-ratios, t, p, and what was done."""
    from scipy import stats

    codes, samples = pd.factorize(column.to_numpy())
    if (codes < 0).any():
        raise DataError(f"obs[{name!r}] must name the sample of each cell; {int((codes < 0).sum())} have none")
    S = len(samples)
    sides = []
    for side in (one, ~one):
        code = np.where(side, codes, -1)
        (z, n), (share, _) = sums_by(z_Kn.T, code, S), sums_by(theta, code, S)
        with np.errstate(invalid="ignore"):
            sides.append((z / n[:, None], share / n[:, None], n > 0))
    (z1, share1, has1), (z2, share2, has2) = sides
    paired = has1 & has2
    if paired.sum() >= 3:
        has1 = has2 = paired
        with np.errstate(all="ignore"):
            test = stats.ttest_rel(z1[paired], z2[paired])
        said = f"paired t-test of {int(paired.sum())} samples that have cells on both sides"
        if left := S - int(paired.sum()):
            said += f"; {left} with cells on one side only are left out"
    elif has1.sum() >= 2 and has2.sum() >= 2:
        with np.errstate(all="ignore"):
            test = stats.ttest_ind(z1[has1], z2[has2], equal_var=False)
        said = f"Welch's t-test of {int(has1.sum())} samples against {int(has2.sum())}"
    else:
        raise DataError(
            f"samples can be compared if at least 2 are on each side, or 3 on both; obs[{name!r}] has "
            f"{int(has1.sum())} among the selected and {int(has2.sum())} among the others. Without sample= cells are "
            "compared, which describes these cells only"
        )
    means = share1[has1].mean(0), share2[has2].mean(0)
    return means, z1[has1].mean(0) - z2[has2].mean(0), np.asarray(test.statistic), np.asarray(test.pvalue), said
