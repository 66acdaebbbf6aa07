"""The public names: models of topics and what belongs to them."""

from __future__ import annotations

import inspect
from typing import Any

from . import options
from .estimators.topic_model import TopicModel, load_model
from .plots.contributions import plot_topic_contributions
from .recommend import Recommendation, recommend_parameters
from .training.writers import TensorBoardWriter, Writer
from .tuning.bayesian import BayesianTuner
from .tuning.gradient import gradient_tune
from .tuning.storage import Redis

__all__ = [
    "BayesianTuner",
    "Recommendation",
    "Redis",
    "TensorBoardWriter",
    "TopicModel",
    "Writer",
    "gradient_tune",
    "load_model",
    "make_model",
    "plot_topic_contributions",
    "recommend_parameters",
]


def make_model(n_samples: int, n_features: int, *, feature_type: str, **model_parameters: Any) -> TopicModel:
    """Make a topic model with options that suit the size of the data.

    What is not given is recommended from the size of the data where a recommendation exists
    (`recommend_parameters`), else it is the documented default.

    Parameters
    ----------
    n_samples : int
        Number of cells, used to choose options.
    n_features : int
        Number of features, used to choose options.
    {options}

    Returns
    -------
    TopicModel
        A MIRA topic model, or a CODAL model if any covariate is named.

    Raises
    ------
    OptionError
        If an option is unknown, wrong, does not apply, or contradicts another; or if the encoder of peaks needs a
        GPU and there is none.
    """
    return TopicModel(n_samples, n_features, feature_type=feature_type, **model_parameters)


def _document_options() -> None:
    """Write the options into `make_model`'s documentation and signature."""
    make_model.__doc__ = inspect.cleandoc(make_model.__doc__ or "").replace("{options}", options.documentation())
    keyword = inspect.Parameter.KEYWORD_ONLY
    size = list(inspect.signature(make_model).parameters.values())[:2]
    by_name = [
        inspect.Parameter(n, keyword, **({} if n == "feature_type" else {"default": options.default(n)}))
        for n in options.names()
    ]
    make_model.__signature__ = inspect.Signature(size + by_name, return_annotation=TopicModel)  # type: ignore[attr-defined]


_document_options()
