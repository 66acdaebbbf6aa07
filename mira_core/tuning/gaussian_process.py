"""A Gaussian process with noise: what losses are to be expected between those that were seen.

Shapes: T observations, D inputs, M points.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np


class GaussianProcess:
    """A Matern kernel with a length for each input, and noise, fitted by marginal likelihood.

    Parameters
    ----------
    x_TD, y_T
        Observations; inputs between 0 and 1.
    seed
        Of the fit.
    like
        A process whose lengths and noise are taken as they are.

    Attributes
    ----------
    noise
        Standard deviation of an observation.
    """

    def __init__(self, x_TD: np.ndarray, y_T: np.ndarray, seed: int = 0, like: GaussianProcess | None = None) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self.x_TD, self.y_T = x_TD, y_T
        self.centre, self.spread = float(y_T.mean()), float(y_T.std()) or 1.0
        kernel: Any = (
            ConstantKernel(1.0, (0.05, 20.0)) * Matern(np.full(x_TD.shape[1], 0.5), (0.05, 10.0), nu=2.5)
            + WhiteKernel(0.1, (1e-5, 1.0))
        )  # fmt: skip
        fitted = like._process.kernel_ if like is not None else kernel
        how = {"optimizer": None} if like is not None else {}
        self._process: Any = GaussianProcessRegressor(fitted, random_state=seed, **how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is an answer
            self._process.fit(x_TD, (y_T - self.centre) / self.spread)
        self.noise = self.spread * float(self._process.kernel_.k2.noise_level) ** 0.5

    def with_expected(self, x_MD: np.ndarray) -> GaussianProcess:
        """Return the process as if what it expects at some points had been seen there."""
        y_M = self.observations(x_MD)[0]
        return GaussianProcess(np.vstack([self.x_TD, x_MD]), np.append(self.y_T, y_M), like=self)

    def observations(self, x_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of new observations, noise included, each M."""
        mean, deviation = self._process.predict(x_MD, return_std=True)
        return self.centre + self.spread * mean, np.maximum(self.spread * deviation, 1e-9)

    def curve(self, x_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and covariance of what lies below the noise, M and M x M."""
        mean, covariance = self._process.predict(x_MD, return_cov=True)
        return self.centre + self.spread * mean, covariance * self.spread**2 - self.noise**2 * np.eye(len(x_MD))
