"""Values that suit a data set better than the documented defaults, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import options
from .errors import OptionError

Source = Literal["documented", "recommended", "yours"]


@dataclass(frozen=True)
class Recommendation:
    """A recommended value and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class ResolvedOption:
    """One option as a model will use it, with the three values it could have had.

    Attributes
    ----------
    value
        What the model uses.
    source
        Whose value that is: ``"documented"``, ``"recommended"`` or ``"yours"``.
    documented, recommended, reason
        The documented default; the recommendation and its reason, None where there is none.
    """

    name: str
    value: Any
    source: Source
    documented: Any
    recommended: Any
    reason: str | None


def recommend_parameters(n_samples: int, n_features: int, **given: Any) -> dict[str, Recommendation]:
    """Recommend options for a data set.

    Parameters
    ----------
    n_samples, n_features
        Cells and features of the data set.
    **given
        Options that are already chosen, as for `make_model`; they decide which model it is.

    Returns
    -------
    dict of str to Recommendation
        Only options for which something better than the documented default is known.
    """
    n = check_count("n_samples", n_samples)
    check_count("n_features", n_features)
    expression = given.get("feature_type", "expression") == "expression"
    codal = options.is_codal(given)
    skip = not expression and given.get("atac_encoder", options.default("atac_encoder")) == "skipDAN"
    cells = f"{n:,} cells"

    batch, why = _batch_size(n, codal)
    out = {
        "batch_size": Recommendation(batch, why),
        "num_topics": Recommendation(
            max(2, int((n**0.2 - 1) / 0.2)), f"grows slowly with the number of cells, here {cells}"
        ),
        "cost_beta": Recommendation(*_cost_beta(n, codal)),
        "hidden": Recommendation(_hidden(n, expression), f"a wider encoder pays with more data, here {cells}"),
        "num_layers": Recommendation(
            2 if n < 2400 and not codal and not skip else 3, f"{cells}; CODAL and skipDAN always take 3"
        ),
        "min_learning_rate": Recommendation(1e-3, "a start at 1e-6 spends the first steps idle"),
        "decoder_dropout": Recommendation(0.055, "held-out likelihood is better than at 0.2 on every set tried"),
        "encoder_dropout": Recommendation(0.01, "held-out likelihood is better than at 0.2 on every set tried"),
    }
    if not expression:
        out["topic_effect_scale"] = Recommendation(2.5, "held-out likelihood of peaks is better than at 1.5")
    if codal:
        short = "with the 1e-4 and 1 of longer trainings the estimator lags behind, and batches mix less"
        out["dependence_lr"] = Recommendation(1e-3, short)
        out["dependence_beta"] = Recommendation(4.0, short)
    out["num_epochs"] = Recommendation(*_num_epochs(n, batch))
    return {k: r for k, r in out.items() if options.applies(k, given)}


def check_count(name: str, value: Any) -> int:
    """Check a number of cells or features."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise OptionError(f"{name} must be an integer of at least 1; got {value!r}. Pass *adata.shape")
    return int(value)


def resolve(n_samples: int, n_features: int, given: Mapping[str, Any]) -> dict[str, ResolvedOption]:
    """Decide every option that applies: yours, else recommended, else documented."""
    recommended = recommend_parameters(n_samples, n_features, **given)
    out = {}
    for name in options.names():
        if not options.applies(name, given):
            continue
        documented, rec = options.default(name), recommended.get(name)
        value: Any = documented
        source: Source = "documented"
        if name in given:
            value, source = given[name], "yours"
        elif rec is not None:
            value, source = rec.value, "recommended"
        out[name] = ResolvedOption(
            name, value, source, documented, rec.value if rec else None, rec.reason if rec else None
        )
    if out.get("atac_encoder") and out["atac_encoder"].value == "skipDAN" and "hidden" not in given:
        size = out["embedding_size"].value
        if size is not None:
            out["hidden"] = replace(
                out["hidden"], value=size, source="recommended", reason="skipDAN: as embedding_size"
            )
    for low, high in options.PAIRS:
        a, b = out[low], out[high]
        if a.source != "yours" and a.value > b.value:
            out[low] = ResolvedOption(low, b.value, "recommended", a.documented, b.value, f"not above {high}")
    return out


def _batch_size(n: int, codal: bool) -> tuple[int, str]:
    if n > 20_000:
        return 128, f"{n:,} cells: above 20,000"
    # The dependence is estimated from each minibatch. With fewer cells, 128 would leave too few steps; with more,
    # batches mix as well at 64, in half the time.
    if codal and TARGET_STEPS / MAX_EPOCHS * 128 <= n <= 2000:
        return 128, f"{n:,} cells with covariates: the dependence needs more cells at once"
    return 64, f"{n:,} cells: up to 20,000"


def _cost_beta(n: int, codal: bool) -> tuple[float, str]:
    steps = ((4000, 2.0), (8000, 1.5), (12000, 1.25)) if codal else ((2000, 1.5), (4000, 1.25))
    for limit, value in steps:
        if n <= limit:
            return value, f"up to {limit:,} cells{' with covariates' if codal else ''}"
    return 1.0, f"above {steps[-1][0]:,} cells{' with covariates' if codal else ''}"


def _hidden(n: int, expression: bool) -> int:
    steps = ((1000, 64), (4000, 128), (10_000, 256)) if expression else ((2000, 128),)
    for limit, value in steps:
        if n <= limit:
            return value
    return 512 if expression else 256


# Schedules are thought of in steps: on every set tried, quality had stopped growing by this many, whatever the size.
TARGET_STEPS = 1000
MAX_EPOCHS = 200


def _num_epochs(n: int, batch: int) -> tuple[int, str]:
    per_epoch = max(1, n // batch)
    reference = max(1, min(round(200_000 / n * 24), 24))  # of MIRA 2.1.1, never less
    epochs = max(reference, min(math.ceil(TARGET_STEPS / per_epoch), MAX_EPOCHS))
    return epochs, f"{epochs * per_epoch:,} steps of {batch} cells; quality needs steps rather than epochs"
