"""The whole network of one topic model: encoder, prior, decoder, dispersions."""

from __future__ import annotations

import torch
from torch import nn

from ..data.statistics import Statistics
from . import blocks
from .decoder import Decoder
from .encoders import ExpressionEncoder
from .prior import DirichletPrior


class TopicNetwork(nn.Module):
    """All parameters of a topic model; which distributions they enter is told in ``models.generative``.

    Attributes
    ----------
    encoder, prior, decoder
        Parts.
    log_dispersion_G
        Log of the negative binomial's inverse dispersion, starting at log 5.
    n_cells
        Training cells; the prior's divergence is spread over them.
    """

    def __init__(
        self,
        encoder: ExpressionEncoder,
        statistics: Statistics,
        *,
        num_topics: int,
        initial_pseudocounts: float,
        decoder_dropout: float,
        nb_logspace: bool,
    ) -> None:
        super().__init__()
        self.n_cells = statistics.n_cells
        self.num_topics = num_topics
        self.nb_logspace = nb_logspace
        self.encoder = encoder
        self.prior = DirichletPrior(num_topics, initial_pseudocounts)
        self.decoder = Decoder(num_topics, statistics, decoder_dropout)
        n_features = len(statistics.mean_profile)
        self.log_dispersion_G = nn.Parameter(torch.full((n_features,), 5.0).log())

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights."""
        blocks.initialise(self, generator)

    def use_generator(self, generator: torch.Generator | None) -> None:
        """Let the dropouts draw from `generator`."""
        blocks.use_generator(self, generator)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_dispersion_G.device
