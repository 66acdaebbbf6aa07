"""From columns of ``obs`` to the numbers that a model is told of each cell: covariates C, extra features F.

The coding is learned from the training cells and kept with the model, so that other cells are coded alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError

CLIP = 10.0  # standardised covariates and extra features stay within this

GetColumn = Callable[[str], pd.Series]


@dataclass(frozen=True)
class Coding:
    """How the columns become numbers.

    Attributes
    ----------
    categories
        The values of each categorical covariate, as text; one column of C each.
    scales
        Mean and standard deviation over the training cells, of each continuous covariate; one column of C each.
    as_they_are
        Covariates that are used as they are; one column of C each.
    extra
        Extra features for the encoder; one column of F each.
    """

    categories: Mapping[str, tuple[str, ...]]
    scales: Mapping[str, tuple[float, float]]
    as_they_are: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of the C columns, such as ``batch=a``."""
        one_hot = [f"{key}={value}" for key, values in self.categories.items() for value in values]
        return [*one_hot, *self.scales, *self.as_they_are]

    def covariates(self, column: GetColumn) -> np.ndarray:
        """Code the covariates of some cells, N x C, float32.

        Raises
        ------
        DataError
            If a cell has a category that the training cells had not, or a value that is missing or no number.
        """
        parts = [_one_hot(column(key), key, values) for key, values in self.categories.items()]
        for key, (mean, deviation) in self.scales.items():
            x = (numbers(column(key), key, "a continuous covariate") - mean) / (deviation or 1.0)
            parts.append(np.clip(x, -CLIP, CLIP)[:, None])
        parts += [numbers(column(key), key, "a covariate")[:, None] for key in self.as_they_are]
        return np.concatenate(parts, axis=1, dtype=np.float32) if parts else np.zeros((0, 0), np.float32)

    def extra_features(self, column: GetColumn) -> np.ndarray:
        """Return the extra features of some cells, N x F, float32."""
        parts = [numbers(column(key), key, "an extra feature")[:, None] for key in self.extra]
        return np.concatenate(parts, axis=1, dtype=np.float32) if parts else np.zeros((0, 0), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "categories": {key: list(values) for key, values in self.categories.items()},
            "scales": {key: list(values) for key, values in self.scales.items()},
            "as_they_are": list(self.as_they_are),
            "extra": list(self.extra),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coding:
        """Read what `to_dict` returned."""
        return cls(
            {str(key): tuple(map(str, v)) for key, v in values["categories"].items()},
            {str(key): (float(mean), float(deviation)) for key, (mean, deviation) in values["scales"].items()},
            tuple(map(str, values["as_they_are"])),
            tuple(map(str, values["extra"])),
        )


def learn_coding(column: GetColumn, options: Mapping[str, Any]) -> Coding:
    """Learn the coding of the columns that the options name.

    Warns
    -----
    UserWarning
        If a covariate has one value only, which can explain nothing.
    """
    categories, scales = {}, {}
    for key in options["categorical_covariates"] or []:
        text = _text(column(key), key)
        categories[key] = tuple(sorted(set(text)))
        _warn_if_constant(key, len(categories[key]))
        if len(categories[key]) > max(2, len(text) // 2):
            raise DataError(
                f"obs[{key!r}] has {len(categories[key]):,} different values in {len(text):,} cells, too many for a "
                "categorical covariate; if it holds measurements, name it in continuous_covariates"
            )
    for key in options["continuous_covariates"] or []:
        x = numbers(column(key), key, "a continuous covariate")
        deviation = float(x.std())
        if deviation <= 1e-12 * max(1.0, float(np.abs(x).max())):  # rounding is no variation
            deviation = 0.0
        scales[key] = (float(x.mean()), deviation)
        _warn_if_constant(key, 2 if deviation else 1)
    for key in options["covariates_keys"] or []:
        _warn_if_constant(key, len(np.unique(numbers(column(key), key, "a covariate"))))
    return Coding(
        categories, scales, tuple(options["covariates_keys"] or ()), tuple(options["extra_features_keys"] or ())
    )


def strata(column: GetColumn, options: Mapping[str, Any], n_cells: int) -> np.ndarray:
    """Label each cell by its covariates, continuous ones binned by rounded z-score within 3; N integers."""
    table = pd.DataFrame(index=range(n_cells))
    for key in options["categorical_covariates"] or []:
        table[key] = _text(column(key), key)
    for key in [*(options["continuous_covariates"] or []), *(options["covariates_keys"] or [])]:
        x = numbers(column(key), key, "a covariate")
        table[key] = np.clip(np.rint((x - x.mean()) / (x.std() or 1.0)), -3, 3)
    if not table.shape[1]:
        return np.zeros(n_cells, int)
    return table.groupby(list(table.columns), sort=True).ngroup().to_numpy()


def _warn_if_constant(key: str, n_values: int) -> None:
    if n_values < 2:
        warnings.warn(f"covariate {key!r} has the same value in all cells and explains nothing", stacklevel=4)


def _text(values: pd.Series, key: str) -> np.ndarray:
    if (missing := int(values.isna().sum())) > 0:
        raise DataError(
            f"obs[{key!r}] must have a value in every cell to be a covariate; {missing:,} have none. "
            "Fill them or leave these cells out"
        )
    codes, different = pd.factorize(values)
    return np.array([_name(v) for v in different], dtype=object)[codes]


def _name(value: Any) -> str:
    # batches 1 and 2 of one file may have become 1.0 and 2.0 in another
    return str(int(value)) if isinstance(value, float | np.floating) and value == np.rint(value) else str(value)


def _one_hot(values: pd.Series, key: str, categories: tuple[str, ...]) -> np.ndarray:
    text = _text(values, key)
    at = pd.Index(categories).get_indexer(pd.Index(text))
    if (at < 0).any():
        unseen = sorted(set(text[at < 0]))
        raise DataError(
            f"obs[{key!r}] has values that the model was not trained on: {', '.join(unseen[:5])} "
            f"({int((at < 0).sum()):,} cells). It knows {', '.join(categories[:10])}. "
            "Leave these cells out, or train with them"
        )
    return (at[:, None] == np.arange(len(categories))).astype(np.float32)


def numbers(values: pd.Series, key: str, role: str) -> np.ndarray:
    """Return the values of a column, N, float64.

    Raises
    ------
    DataError
        If one is missing, infinite or no number.
    """
    plain = values.astype(object) if values.dtype.name == "category" else values
    x = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    largest = np.finfo(np.float32).max  # what is beyond becomes infinite
    if values.isna().any() or not (np.abs(x) <= largest).all():
        raise DataError(f"obs[{key!r}] must hold finite numbers to be {role}")
    return x
