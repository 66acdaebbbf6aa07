"""The whole network of one topic model: encoder, prior, decoders, dispersions, critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.statistics import Statistics
from . import blocks
from .blocks import Dropout
from .decoder import Decoder, Linear, TechnicalDecoder
from .dependence import Dependence
from .encoders import DevianceResiduals, ExpressionEncoder
from .peak_encoders import DANEncoder, LSIEncoder, OpenPeaks
from .prior import DirichletPrior, DirichletProcessPrior


class TopicNetwork(nn.Module):
    """All parameters of a topic model; which distributions they enter is told in ``models.generative``.

    Parameters
    ----------
    options
        Resolved options of the model.
    endogenous
        Which of the G features the encoder sees.
    statistics
        Of the training cells.
    n_covariates, n_extra
        Columns of covariates and of extra features.

    Attributes
    ----------
    encoder, prior, decoder
        Parts.
    technical, dependence
        Parts of a CODAL model; else None.
    log_dispersion_G
        Log of the negative binomial's inverse dispersion, starting at log 5; None for accessibility.
    n_cells
        Training cells; the divergence of the prior's own parameters is spread over them.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        endogenous: np.ndarray,
        statistics: Statistics,
        n_covariates: int,
        n_extra: int,
    ) -> None:
        super().__init__()
        K, G = options["num_topics"], len(statistics.mean_profile)
        self.n_cells, self.num_topics, self.n_features = statistics.n_cells, K, G
        self.encoder = _encoder(options, endogenous, statistics, n_covariates + n_extra)
        self.prior: DirichletPrior | DirichletProcessPrior = (
            DirichletPrior(K, options["initial_pseudocounts"])
            if options["topic_prior"] == "dirichlet"
            else DirichletProcessPrior(K)
        )
        self.effect_scale = options["topic_effect_scale"]
        self.theta_dropout = Dropout(options["decoder_dropout"])
        self.decoder = Decoder(K, statistics)
        self.nb_logspace = options.get("nb_parameterize_logspace", True)
        expression = options["feature_type"] == "expression"
        self.log_dispersion_G = nn.Parameter(torch.full((G,), 5.0).log()) if expression else None
        self.technical: TechnicalDecoder | None = None
        self.dependence: Dependence | None = None
        if n_covariates:
            self.technical_scale, self.n_covariates = options["technical_effect_scale"], n_covariates
            self.technical = TechnicalDecoder(
                K, n_covariates, G, options["covariates_hidden"], options["covariates_dropout"]
            )
            self.technical_mask = Dropout(options["mask_dropout"])
            self.dependence = Dependence(G, options["dependence_hidden"])
            self.dependence_dropout = Dropout(options["covariates_dropout"])
            self.n_pairs = options["marginal_estimation_size"]

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the critic's, which has an optimiser of its own."""
        return (p for name, p in self.named_parameters() if not name.startswith("dependence."))

    def log_frequencies(self, theta_BK: torch.Tensor, covariates_BC: torch.Tensor) -> torch.Tensor:
        """Return log rho of the cells, B x G, technical effects included: the plain way."""
        theta_BK = self.theta_dropout(theta_BK)
        if self.technical is None:
            return self.decoder(theta_BK)
        technical_BG = self.technical_mask.hide(self.technical.signal(theta_BK, covariates_BC))
        return (self.decoder.base_G + self.decoder.signal(theta_BK) + technical_BG).log_softmax(1)

    def profile(self, theta_BK: torch.Tensor, covariates_BC: torch.Tensor) -> Linear:
        """Return log rho of the cells up to a constant of each, as a linear map: the fast way."""
        theta_BK = self.theta_dropout(theta_BK)
        x, weight, bias, _ = self.decoder.linear(theta_BK)
        bias = bias + self.decoder.base_G
        if self.technical is None:
            return Linear(x, weight, bias)
        technical = self.technical.linear(theta_BK, covariates_BC)
        if self.technical_mask.training and self.technical_mask.p:
            return Linear(x, weight, bias, self.technical_mask.hide(technical.dense()))
        return Linear(
            torch.cat([x, technical.x_BJ], dim=1), torch.cat([weight, technical.weight_JG]), bias + technical.bias_G
        )

    def signals(self, theta_BK: torch.Tensor, covariates_BC: torch.Tensor) -> tuple[Linear, Linear]:
        """Return the biological and the technical signal whose dependence is penalised."""
        assert self.technical is not None
        theta_BK = self.dependence_dropout(theta_BK)
        return self.decoder.linear(theta_BK, aside=True), self.technical.linear(theta_BK, covariates_BC, aside=True)

    def effects_penalty(self) -> torch.Tensor:
        """Return minus the log density of the effects under their normal priors, up to a constant.

        Every feature has an effect for each topic, and a technical one for each covariate column. Without a prior
        rare features, which the likelihood hardly holds, get the largest effects.
        """
        penalty = self.decoder.beta.weight.new_zeros(())
        if self.effect_scale is not None:
            penalty = self.decoder.squared_effects() * (0.5 / self.effect_scale**2)
        if self.technical is not None and self.technical_scale is not None:
            squares = self.technical.gamma_G.square().sum()
            penalty = penalty + squares * (0.5 * self.n_covariates / self.technical_scale**2)
        return penalty

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights."""
        blocks.initialise(self, generator)
        if isinstance(self.prior, DirichletProcessPrior):
            # From halved sticks the twelfth topic would begin with 1 / 4096 of a cell, and never be found.
            *_, last = (layer for layer in self.encoder.modules() if isinstance(layer, nn.BatchNorm1d))
            with torch.no_grad():
                last.bias[: self.prior.n_sticks] = self.prior.even_sticks()

    def use_generator(self, generator: torch.Generator | None) -> None:
        """Let the dropouts draw from `generator`."""
        blocks.use_generator(self, generator)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.decoder.base_G.device


def _encoder(
    options: Mapping[str, Any], endogenous: np.ndarray, statistics: Statistics, n_told: int
) -> ExpressionEncoder | DANEncoder | LSIEncoder:
    shape = (options["num_topics"], options["hidden"], options["num_layers"], options["embedding_size"])
    dropout = options["encoder_dropout"]
    if options["feature_type"] == "expression":
        return ExpressionEncoder(DevianceResiduals(endogenous, statistics), *shape, dropout, n_told)
    peaks = OpenPeaks(endogenous, options["embedding_dropout"])
    if options["atac_encoder"] == "fast":
        assert statistics.lsi is not None
        return LSIEncoder(peaks, statistics.lsi, *shape, dropout, n_told)
    return DANEncoder(peaks, *shape, dropout, n_told, skip=options["atac_encoder"] == "skipDAN")
