"""Columns of ``obs`` to correct for: what they hold, and which say the same."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from ..steps import DropMissing, DropRareCategories
from .finding import Finding, Severity, some

TECHNICAL = re.compile(
    r"(^|[_. ])(batch|donor|sample|patient|library|lane|plate|chemistry|tech|technology|protocol|assay|run|replicate|"
    r"individual|subject|mouse|orig\.ident|dataset|study|site|machine|sequencer)([_. ]|id|s|\d|$)",
    re.IGNORECASE,
)
BIOLOGY = re.compile(
    r"cell.?type|celltype|annotation|cluster|leiden|louvain|label|class|condition|disease|treatment|stimul|stage|"
    r"time|genotype|phenotype|tissue|organ|region|subpop|lineage",
    re.IGNORECASE,
)
FEW = 10  # cells of a category
CONFOUNDED = 0.5  # Cramer's V, or correlation ratio as a share of variance, from where two columns say much the same
CORRELATED = 0.9
MOST_CATEGORIES = 200  # of a column that was not named and is looked at
WHY_TWICE = (
    "The model cannot tell their effects apart: it shares them out by chance, and either may take what the other "
    "causes."
)
WHY_LABEL = (
    "What differs between types in one batch only can be taken for a technical effect and be removed, or the reverse."
)


def check_covariates(
    obs: pd.DataFrame, categorical: Sequence[str] | None, continuous: Sequence[str] | None
) -> Iterator[Finding]:
    """Look at covariates; at columns that may be some, by their names, if none is named."""
    named = categorical is not None or continuous is not None
    if named:
        categories, numbers = list(categorical or ()), list(continuous or ())
    else:
        categories, numbers = [c for c in map(str, obs.columns) if _may_be_covariate(c, obs[c])], []
    usable: list[str] = []
    for column in categories:
        found = list(_check_category(column, obs[column], named))
        yield from found
        if not any(f.code in ("constant_covariate", "identifier_covariate") for f in found):
            usable.append(column)
    measured: list[str] = []
    for column in numbers:
        found = list(_check_measurement(column, obs[column]))
        yield from found
        if not found or all(f.code == "missing_values" for f in found):
            measured.append(column)
    if not named and usable:
        yield _may_be_batches(obs, usable)
    severity: Severity = "warning" if named else "info"
    yield from _check_pairs(obs, usable, measured, severity)
    labels = [
        c for c in map(str, obs.columns)
        if c not in (*categories, *numbers) and BIOLOGY.search(c) and _may_be_category(obs[c])
    ]  # fmt: skip
    yield from _check_labels(obs, usable, measured, labels)


def _may_be_batches(obs: pd.DataFrame, columns: list[str]) -> Finding:
    told = ", ".join(f"obs[{c!r}] has {obs[c].nunique():,} values" for c in columns)
    one = len(columns) == 1
    return Finding(
        "may_be_batches", "info", f"Cells may come from several batches: {', '.join(columns)}",
        f"{told}.",
        "Cells that were handled apart differ by more than their biology, and without a correction part of the topics "
        "tells batches.",
        f"If {'it is' if one else 'they are'} technical, name {'it' if one else 'them'} as categorical_covariates: the "
        "model then is a CODAL model, whose topics are free of them.", None, columns[0],
    )  # fmt: skip


def _may_be_category(values: pd.Series) -> bool:
    if pd.api.types.is_float_dtype(values):
        return False
    return 2 <= values.nunique() <= min(MOST_CATEGORIES, len(values) // 2)


def _may_be_covariate(name: str, values: pd.Series) -> bool:
    return bool(TECHNICAL.search(name)) and not BIOLOGY.search(name) and _may_be_category(values)


# --- one column -----------------------------------------------------------------------------------


def _check_category(column: str, values: pd.Series, named: bool) -> Iterator[Finding]:
    n = len(values)
    counts = values.value_counts()
    counts = counts[counts > 0]
    yield from _missing(column, values, "error" if named else "info")
    if len(counts) <= 1:
        yield _constant(column, counts.index[0] if len(counts) else "nothing")
        return
    if len(counts) > max(2, n // 2):
        yield Finding(
            "identifier_covariate", "error", f"{column} differs from cell to cell",
            f"obs[{column!r}] has {len(counts):,} values in {n:,} cells.",
            "A category must be shared by many cells for its effect to be told from theirs; training refuses this.",
            "Leave it out, or name it in continuous_covariates if it is a measurement.", None, column,
        )  # fmt: skip
        return
    rare = counts[counts < FEW]
    if len(rare):
        names = ", ".join(f"{name} ({k})" for name, k in rare.tail(5).items()) + (", ..." if len(rare) > 5 else "")
        yield Finding(
            "rare_category", "warning" if named else "info", f"{column} has categories of very few cells",
            f"Fewer than {FEW} cells in {len(rare):,} of {len(counts):,} categories of obs[{column!r}]: {names}.",
            "The effect of a category is learned from its cells alone; of so few it is mostly chance, and what makes "
            "them special is taken for technical.",
            f"Drop these {int(rare.sum()):,} cells, or join the categories with others.",
            DropRareCategories(column, FEW), column,
        )  # fmt: skip


def _check_measurement(column: str, values: pd.Series) -> Iterator[Finding]:
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        yield Finding(
            "covariate_not_numeric", "error", f"{column} holds no measurements",
            f"obs[{column!r}] holds {values.dtype} values such as {str(values.iloc[0]) if len(values) else ''!r}.",
            "A continuous covariate is a number; training refuses others.",
            f"Name it in categorical_covariates, or turn it into numbers: pd.to_numeric(adata.obs[{column!r}]).",
            None, column,
        )  # fmt: skip
        return
    x = values.to_numpy(float, na_value=np.nan)
    yield from _missing(column, pd.Series(np.where(np.isfinite(x), x, np.nan)), "error")
    x = x[np.isfinite(x)]
    if not x.size or x.std() <= 1e-12 * max(1.0, np.abs(x).max()):
        yield _constant(column, x[0] if x.size else "nothing")


def _missing(column: str, values: pd.Series, severity: Severity) -> Iterator[Finding]:
    if k := int(values.isna().sum()):
        yield Finding(
            "missing_values", severity, f"{column} is missing in some cells",
            f"obs[{column!r}] has no value in {some(k, len(values), 'cells')}.",
            "The model must know the covariates of every cell; training refuses cells without.",
            "Fill the values in, give these cells a category of their own, or drop them.", DropMissing(column), column,
        )  # fmt: skip


def _constant(column: str, value: object) -> Finding:
    return Finding(
        "constant_covariate", "warning", f"{column} is the same in all cells",
        f"obs[{column!r}] is {value} throughout.",
        "What does not vary explains nothing; the model only grows by it.", "Leave it out.", None, column,
    )  # fmt: skip


# --- two columns ----------------------------------------------------------------------------------


def cramers_v(a: pd.Series, b: pd.Series) -> float:
    """Return Cramer's V of two columns of categories, 0 to 1, corrected for chance.

    After Bergsma, Journal of the Korean Statistical Society 2013, https://doi.org/10.1016/j.jkss.2012.10.002. Cells
    without a value in either are left out.
    """
    table = _table(a, b)
    n = table.sum()
    rows, columns = table.shape
    if n < 2 or min(rows, columns) < 2:
        return 0.0
    expected = np.outer(table.sum(1), table.sum(0)) / n
    phi2 = float(((table - expected) ** 2 / expected).sum() / n)
    excess = (rows - 1) * (columns - 1) / (n - 1)
    rows_, columns_ = rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)
    least = min(rows_, columns_) - 1
    return float(np.sqrt(min(1.0, max(0.0, phi2 - excess) / least))) if least > 0 else 0.0


def correlation_ratio(categories: pd.Series, x: pd.Series) -> float:
    """Return the share of the variance of `x` that lies between categories, 0 to 1, corrected for chance.

    The correlation ratio as epsilon squared: Kelley, PNAS 1935, https://doi.org/10.1073/pnas.21.9.554.
    """
    kept = categories.notna().to_numpy() & np.isfinite(x.to_numpy(float, na_value=np.nan))
    codes, values = pd.factorize(categories[kept])[0], x[kept].to_numpy(float)
    n, k = len(values), len(np.unique(codes))
    whole = float(((values - values.mean()) ** 2).sum()) if n else 0.0
    if k < 2 or n <= k or whole == 0:
        return 0.0
    means = np.bincount(codes, values) / np.bincount(codes)
    within = float(((values - means[codes]) ** 2).sum())
    return max(0.0, 1 - (within / (n - k)) / (whole / (n - 1)))


def _table(a: pd.Series, b: pd.Series) -> np.ndarray:
    kept = (a.notna() & b.notna()).to_numpy()
    x, y = pd.factorize(a[kept])[0], pd.factorize(b[kept])[0]
    if not len(x):
        return np.zeros((0, 0))
    columns = int(y.max()) + 1
    return np.bincount(x * columns + y, minlength=(int(x.max()) + 1) * columns).reshape(-1, columns).astype(float)


def _check_pairs(
    obs: pd.DataFrame, categories: list[str], measured: list[str], severity: Severity
) -> Iterator[Finding]:
    for a, b in itertools.combinations(categories, 2):
        table = _table(obs[a], obs[b])
        if not table.size:
            continue
        one_b, one_a = bool(((table > 0).sum(1) == 1).all()), bool(((table > 0).sum(0) == 1).all())
        if one_a and one_b:
            yield _confounded(a, b, severity, "the same cells, under other names", 1.0, "Leave one of them out.")
        elif one_a or one_b:
            fine, coarse = (a, b) if one_b else (b, a)
            yield Finding(
                "nested_covariates", severity, f"Each {fine} is in one {coarse} only",
                f"Each of {obs[fine].nunique():,} values of obs[{fine!r}] goes with a single one of "
                f"{obs[coarse].nunique():,} of obs[{coarse!r}].",
                f"{_first_capital(fine)} tells {coarse}, so the model would share one effect out between the two.",
                f"Name {fine} alone: it holds the differences of {coarse}, too.", None, coarse,
            )  # fmt: skip
        elif (v := cramers_v(obs[a], obs[b])) >= CONFOUNDED:
            yield _confounded(a, b, severity, "much the same cells", v, "Leave out the one that matters less.")
    for a, x in itertools.product(categories, measured):
        if (share := correlation_ratio(obs[a], obs[x])) >= CONFOUNDED:
            yield Finding(
                "confounded_covariates", severity, f"{x} differs mostly by {a}",
                f"{100 * share:.0f} % of the variance of obs[{x!r}] lies between values of obs[{a!r}] (correlation "
                "ratio).",
                WHY_TWICE, f"Leave {x} out: {a} covers most of it.", None, x,
            )  # fmt: skip
    for x, y in itertools.combinations(measured, 2):
        r = float(obs[x].astype(float).corr(obs[y].astype(float), method="spearman"))
        if abs(r) >= CORRELATED:
            yield Finding(
                "confounded_covariates", severity, f"{x} and {y} rise and fall together",
                f"Their rank correlation is {r:.2f}.", WHY_TWICE, "Leave one of them out.", None, y,
            )  # fmt: skip


def _confounded(a: str, b: str, severity: Severity, how: str, v: float, fix: str) -> Finding:
    return Finding(
        "confounded_covariates", severity, f"{a} and {b} go together",
        f"obs[{a!r}] and obs[{b!r}] group {how}: Cramer's V is {v:.2f}, where 0 is unrelated and 1 the same.",
        WHY_TWICE, fix, None, b,
    )  # fmt: skip


def _check_labels(
    obs: pd.DataFrame, categories: list[str], measured: list[str], labels: list[str]
) -> Iterator[Finding]:
    for a, label in itertools.product(categories, labels):
        if (v := cramers_v(obs[a], obs[label])) >= CONFOUNDED:
            yield Finding(
                "confounded_with_label", "info", f"{a} and {label} go together",
                f"Cramer's V of obs[{a!r}] and obs[{label!r}] is {v:.2f}, where 0 is unrelated and 1 the same.",
                WHY_LABEL,
                f"Correct for {a} only if {label} occurs in several values of {a}; judge the topics by types that do.",
                None, a,
            )  # fmt: skip
    for x, label in itertools.product(measured, labels):
        if (share := correlation_ratio(obs[label], obs[x])) >= CONFOUNDED:
            yield Finding(
                "confounded_with_label", "info", f"{x} differs mostly by {label}",
                f"{100 * share:.0f} % of the variance of obs[{x!r}] lies between values of obs[{label!r}] (correlation "
                "ratio).",
                "Correcting for it removes part of what tells them apart.",
                f"Leave {x} out unless you know that it is technical.", None, x,
            )  # fmt: skip


def _first_capital(text: str) -> str:
    return text[:1].upper() + text[1:]
