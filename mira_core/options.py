"""Every option of a topic model, declared once.

`make_model`'s signature, documentation and checks, the JSON of a saved model and of a job, the flags of
``mira fit`` and the form of the dashboard are all read from `ModelOptions`; nothing repeats a default.

Each option carries ``metadata``:

group
    Where it stands in a form: data, topics, encoder, decoder, training, CODAL, accessibility.
level
    ``"basic"`` or ``"advanced"``.
applies_to
    One of `MODELS`: which models have the option.
search
    ``(low, high, scale)`` where a tuner may search it, else None.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import param

from .errors import OptionError

GROUPS = ("data", "topics", "encoder", "decoder", "training", "CODAL", "accessibility")

# Which models an option belongs to, in words.
MODELS = {
    "all": "all models",
    "expression": "models of expression",
    "accessibility": "models of accessibility",
    "dan": "models of accessibility with a skipDAN or DAN encoder",
    "codal": "models with covariates (CODAL)",
    "dirichlet": "models with a Dirichlet prior",
}
# A low end that is not given follows a high end that is.
PAIRS = (("min_learning_rate", "max_learning_rate"), ("min_momentum", "max_momentum"))
COVARIATE_OPTIONS = ("categorical_covariates", "continuous_covariates", "covariates_keys")


class ColumnNames(param.Parameter):
    """Names of columns: None, one name, or several; kept as a list."""

    def __init__(self, default: Any = None, **kw: Any) -> None:
        super().__init__(default=default, allow_None=True, **kw)

    def _validate(self, val: Any) -> None:
        super()._validate(val)
        names = _as_list(val)
        if not all(isinstance(n, str) and n for n in names):
            raise ValueError("needs column names")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [v.item() if isinstance(v, np.generic) else v for v in value]


def _meta(
    group: str,
    level: str = "advanced",
    applies_to: str = "all",
    search: tuple[float, float, str] | None = None,
) -> dict[str, Any]:
    return {"group": group, "level": level, "applies_to": applies_to, "search": search}


_OPEN = (False, True)  # the lower bound itself is not allowed
_DROPOUT: dict[str, Any] = {"bounds": (0.0, 1.0), "inclusive_bounds": (True, False)}


class ModelOptions(param.Parameterized):
    """The options of `make_model`, with their documented defaults."""

    # --- data -----------------------------------------------------------------------------------
    feature_type: Any = param.Selector(
        objects=["expression", "accessibility"], default="expression", metadata=_meta("data", "basic"),
        doc="Modality of the data being modeled: counts of RNA molecules, or accessible peaks.",
    )  # fmt: skip
    highly_variable_key = param.String(
        default=None, allow_None=True, metadata=_meta("data", "basic"),
        doc="Column of ``var`` that marks the features to model. For expression, highly variable genes "
        "(about 4,000 work well); for accessibility, all called peaks. None models every feature.",
    )  # fmt: skip
    exogenous_key = param.String(
        default=None, allow_None=True, metadata=_meta("data"),
        doc="Same as `highly_variable_key`, kept for older scripts.",
    )  # fmt: skip
    endogenous_key = param.String(
        default=None, allow_None=True, metadata=_meta("data", "basic"),
        doc="Column of ``var`` that marks the features the encoder sees; they should tell populations apart. "
        "None: all modeled features.",
    )  # fmt: skip
    counts_layer = param.String(
        default=None, allow_None=True, metadata=_meta("data", "basic"),
        doc="Layer that holds the raw counts. None: ``X``.",
    )  # fmt: skip
    categorical_covariates = ColumnNames(
        metadata=_meta("data", "basic"),
        doc="Columns of ``obs`` with categorical covariates to correct for: batch, donor, chemistry, machine. "
        "Any covariate makes the model a CODAL model.",
    )
    continuous_covariates = ColumnNames(
        metadata=_meta("data"),
        doc="Columns of ``obs`` with continuous covariates to correct for: FRIP, percent of mitochondrial "
        "reads, or other measures of quality. Standardised over the cells.",
    )
    covariates_keys = ColumnNames(
        metadata=_meta("data"),
        doc="Columns of ``obs`` with covariates that are used as they are, neither encoded nor standardised.",
    )
    extra_features_keys = ColumnNames(
        metadata=_meta("data"),
        doc="Columns of ``obs`` with extra features for the encoder network.",
    )

    # --- topics ---------------------------------------------------------------------------------
    num_topics = param.Integer(
        default=16, bounds=(2, None), metadata=_meta("topics", "basic", search=(5, 55, "linear")),
        doc="Number of topics to learn from the data.",
    )  # fmt: skip
    cost_beta = param.Number(
        default=1.0, bounds=(0, None), inclusive_bounds=_OPEN,
        metadata=_meta("topics", "basic", search=(0.5, 2, "log")),
        doc="Multiplier of the regularising losses (KL divergence, and for CODAL the dependence) against the "
        "reconstruction. Under 10,000 cells 1.25 to 2 can help; above, 1 works well.",
    )  # fmt: skip
    initial_pseudocounts = param.Integer(
        default=50, bounds=(1, None), metadata=_meta("topics", applies_to="dirichlet", search=(10, 200, "log")),
        doc="Pseudocounts given to the hierarchical Dirichlet prior at the start. More make cells' topics "
        "smoother, fewer make them sparser.",
    )  # fmt: skip

    topic_prior: Any = param.Selector(
        objects=["dirichlet", "dirichlet_process"], default="dirichlet", metadata=_meta("topics"),
        doc="Prior of the topics. A Dirichlet process leaves topics empty that the data do not need, which tells "
        "how many there are; the Dirichlet gives the better topics once their number is known.",
    )  # fmt: skip

    # --- encoder --------------------------------------------------------------------------------
    hidden = param.Integer(
        default=128, bounds=(1, None), metadata=_meta("encoder", search=(32, 512, "log")),
        doc="Nodes in each hidden layer of the encoder.",
    )  # fmt: skip
    num_layers = param.Integer(
        default=3, bounds=(2, None), metadata=_meta("encoder", search=(2, 4, "linear")),
        doc="Layers of the encoder, the output layer included.",
    )  # fmt: skip
    embedding_size = param.Integer(
        default=None, allow_None=True, bounds=(1, None), metadata=_meta("encoder"),
        doc="Nodes in the first layer of the encoder. None: as many as `hidden`.",
    )  # fmt: skip
    encoder_dropout = param.Number(
        default=0.2, **_DROPOUT, metadata=_meta("encoder", search=(0.001, 0.3, "log")),
        doc="Dropout rate of the encoder. Prevents overfitting.",
    )  # fmt: skip

    # --- decoder --------------------------------------------------------------------------------
    decoder_dropout = param.Number(
        default=0.2, **_DROPOUT, metadata=_meta("decoder", search=(0.05, 0.065, "log")),
        doc="Dropout rate of the decoder: the rate at which a topic is hidden from it. Prevents node collapse.",
    )  # fmt: skip
    topic_effect_scale = param.Number(
        default=1.5, allow_None=True, bounds=(0, None), inclusive_bounds=_OPEN,
        metadata=_meta("decoder", search=(0.5, 5, "log")),
        doc="Standard deviation of the normal prior of topics' effects on features, in natural-log units: how far a "
        "cell of one topic alone may be from the average cell. None: no prior, and rare features head the topics.",
    )  # fmt: skip
    nb_parameterize_logspace = param.Boolean(
        default=True, metadata=_meta("decoder", applies_to="expression"),
        doc="Parameterise the negative binomial by logits rather than probabilities, which is more stable.",
    )  # fmt: skip

    # --- training -------------------------------------------------------------------------------
    num_epochs = param.Integer(
        default=40, bounds=(1, None), metadata=_meta("training", "basic"),
        doc="Passes over the cells. The one-cycle policy needs the length beforehand.",
    )  # fmt: skip
    batch_size = param.Integer(
        default=64, bounds=(2, None), metadata=_meta("training", "basic", search=(32, 512, "log")),
        doc="Cells in a minibatch. Larger ones train faster, but may give less optimal models. "
        "With fewer cells than this, each step sees all of them.",
    )  # fmt: skip
    min_learning_rate = param.Number(
        default=1e-6, bounds=(0, None), inclusive_bounds=_OPEN, metadata=_meta("training", "basic"),
        doc="Learning rate at the start of the one-cycle policy.",
    )  # fmt: skip
    max_learning_rate = param.Number(
        default=1e-1, bounds=(0, None), inclusive_bounds=_OPEN,
        metadata=_meta("training", "basic", search=(0.01, 0.5, "log")),
        doc="Learning rate at the peak of the one-cycle policy.",
    )  # fmt: skip
    kl_strategy: Any = param.Selector(
        objects=["cyclic", "monotonic"], default="cyclic", metadata=_meta("training"),
        doc="How the weight of the KL terms rises: in three cycles, or once. Cyclic may give slightly better models.",
    )  # fmt: skip
    weight_decay = param.Number(
        default=0.001, bounds=(0, None), metadata=_meta("training", search=(1e-5, 0.1, "log")),
        doc="Weight decay of the optimiser of the topic model's weights.",
    )  # fmt: skip
    min_momentum = param.Number(
        default=0.85, bounds=(0, 1), inclusive_bounds=(False, False), metadata=_meta("training"),
        doc="Momentum at the peak of the learning rate, in the one-cycle policy.",
    )  # fmt: skip
    max_momentum = param.Number(
        default=0.95, bounds=(0, 1), inclusive_bounds=(False, False), metadata=_meta("training"),
        doc="Momentum at the start and end of the one-cycle policy.",
    )  # fmt: skip
    seed = param.Integer(
        default=None, allow_None=True, bounds=(0, 2**63 - 1), metadata=_meta("training", "basic"),
        doc="Seed of the weights, the shuffling and the sampling. The same seed and data on the same machine "
        "give the same model. None draws one, which the model then reports.",
    )  # fmt: skip
    use_cuda = param.Boolean(
        default=True, metadata=_meta("training", "basic"),
        doc="Train on a CUDA device if there is one.",
    )  # fmt: skip

    # --- CODAL ----------------------------------------------------------------------------------
    dependence_lr = param.Number(
        default=1e-4, bounds=(0, None), inclusive_bounds=_OPEN, metadata=_meta("CODAL", applies_to="codal"),
        doc="Learning rate of the estimator of mutual information.",
    )  # fmt: skip
    dependence_hidden = param.Integer(
        default=64, bounds=(1, None), metadata=_meta("CODAL", applies_to="codal"),
        doc="Hidden size of the estimator of mutual information.",
    )  # fmt: skip
    dependence_beta = param.Number(
        default=1.0, bounds=(0, None), metadata=_meta("CODAL", "basic", applies_to="codal", search=(0.25, 4, "log")),
        doc="Weight of mutual information against the KL divergence: its weight in the loss is "
        "`cost_beta` times this.",
    )  # fmt: skip
    marginal_estimation_size = param.Integer(
        default=256, bounds=(1, None), metadata=_meta("CODAL", applies_to="codal"),
        doc="Mismatched pairs of cells used to estimate mutual information at each step.",
    )  # fmt: skip
    covariates_hidden = param.Integer(
        default=32, bounds=(1, None), metadata=_meta("CODAL", applies_to="codal"),
        doc="Nodes in the single layer of the network of technical effects.",
    )  # fmt: skip
    covariates_dropout = param.Number(
        default=0.05, **_DROPOUT, metadata=_meta("CODAL", applies_to="codal"),
        doc="Dropout rate of the network of technical effects.",
    )  # fmt: skip
    technical_effect_scale = param.Number(
        default=0.5, allow_None=True, bounds=(0, None), inclusive_bounds=_OPEN,
        metadata=_meta("CODAL", applies_to="codal", search=(0.1, 2, "log")),
        doc="Standard deviation of the normal prior of technical effects on features, in natural-log units. "
        "None: no prior.",
    )  # fmt: skip
    mask_dropout = param.Number(
        default=0.05, **_DROPOUT, metadata=_meta("CODAL", applies_to="codal"),
        doc="Rate at which predictions of technical effects are hidden during training.",
    )  # fmt: skip

    # --- accessibility --------------------------------------------------------------------------
    atac_encoder: Any = param.Selector(
        objects=["skipDAN", "DAN", "fast"], default="skipDAN",
        metadata=_meta("accessibility", "basic", "accessibility"),
        doc="Encoder of peaks. skipDAN is best and needs a GPU to train; fast replaces the embedding of peaks "
        "by a first-pass LSI projection.",
    )  # fmt: skip
    dan_on_cpu = param.Boolean(
        default=False, metadata=_meta("accessibility", applies_to="dan"),
        doc="Allow the skipDAN and DAN encoders without a GPU. Training is slow: with 30,000 peaks, think of "
        "some ten to twenty minibatches a second.",
    )  # fmt: skip
    embedding_dropout = param.Number(
        default=0.05, **_DROPOUT, metadata=_meta("accessibility", applies_to="accessibility"),
        doc="Rate at which open peaks are hidden from the encoder during training.",
    )  # fmt: skip


def names() -> list[str]:
    """Names of all options, in the order of declaration."""
    return [n for n in ModelOptions.param if n != "name"]


def parameter(name: str) -> param.Parameter:
    """Return the declaration of one option; an unknown name gets a suggestion."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f". Options are: {', '.join(known)}"
        raise OptionError(f"there is no option {name!r}{hint}")
    return ModelOptions.param[name]


def default(name: str) -> Any:
    """Return the documented default."""
    return parameter(name).default


def is_codal(given: Mapping[str, Any]) -> bool:
    """Whether these options make a CODAL model: any covariate is named."""
    return any(_as_list(given.get(k)) for k in COVARIATE_OPTIONS)


def applies(name: str, given: Mapping[str, Any]) -> bool:
    """Whether an option has a meaning for the model that the other options describe."""

    def chosen(option: str) -> Any:
        return given.get(option, default(option))

    to = parameter(name).metadata["applies_to"]
    if to == "codal":
        return is_codal(given)
    if to == "dan":
        return chosen("feature_type") == "accessibility" and chosen("atac_encoder") != "fast"
    if to == "dirichlet":
        return chosen("topic_prior") == "dirichlet"
    return to == "all" or to == chosen("feature_type")


def device_problem(values: Mapping[str, Any], gpu: bool) -> str:
    """Say why a model with these options cannot be trained, on a GPU or not; empty if it can."""

    def chosen(option: str) -> Any:
        return values.get(option, default(option))

    if gpu or not applies("dan_on_cpu", values) or chosen("dan_on_cpu"):
        return ""
    encoder, why = chosen("atac_encoder"), "there is none" if chosen("use_cuda") else "use_cuda is off"
    return (
        f"the {encoder} encoder needs a GPU to train, and {why}. Set atac_encoder='fast', which suits a CPU; or set "
        f"dan_on_cpu=True to train {encoder} on the CPU all the same, which is slow"
    )


def kind_of_value(name: str) -> str:
    """Say in words what an option takes, for messages and documentation: 'an integer of at least 2, or None'."""
    p = parameter(name)
    if isinstance(p, param.Selector):
        text = "one of " + ", ".join(repr(o) for o in p.objects)
    elif isinstance(p, ColumnNames):
        text = "a column name or a list of them"
    elif isinstance(p, param.Boolean):
        text = "True or False"
    elif isinstance(p, param.String):
        text = "a name"
    else:
        text = ("an integer" if isinstance(p, param.Integer) else "a number") + _bounds_in_words(p)
    return text + (", or None" if p.allow_None and not isinstance(p, param.Selector) else "")


def _bounds_in_words(p: Any) -> str:
    low, high = p.bounds or (None, None)
    low_in, high_in = p.inclusive_bounds
    if high is None or high > 1e9:
        return "" if low is None else f" of at least {low}" if low_in else f" above {low}"
    return f" from {low}{'' if low_in else ' (excluded)'} to {high}{'' if high_in else ' (excluded)'}"


def validate(name: str, value: Any) -> Any:
    """Check one value and return it in plain Python types.

    Raises
    ------
    OptionError
        If the option is unknown or the value is not of its kind or out of bounds.
    """
    p = parameter(name)
    if isinstance(value, np.generic):
        value = value.item()
    try:
        if isinstance(p, ColumnNames):
            listed = _as_list(value)
            p._validate(listed)
            return listed or None
        if isinstance(p, param.Number) and value is not None:
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError("not a number")
            if not math.isfinite(value):
                raise ValueError("not finite")
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        if isinstance(p, param.String) and value == "":
            raise ValueError("empty")
        p._validate(value)
    except (ValueError, TypeError, OverflowError):
        raise OptionError(f"{name} must be {kind_of_value(name)}; got {value!r}") from None
    return value


def validate_all(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a whole set of options against each other, and return what was given in plain types.

    Raises
    ------
    OptionError
        If a value is wrong, does not apply, or contradicts another.
    """
    checked = {name: validate(name, value) for name, value in given.items()}
    for name in checked:
        if not applies(name, checked):
            raise OptionError(f"{name} applies to {MODELS[parameter(name).metadata['applies_to']]} only; leave it out")
    named: dict[str, str] = {}
    for option in COVARIATE_OPTIONS:
        for column in checked.get(option) or []:
            if column in named:
                raise OptionError(
                    f"every covariate must be named once; {column!r} is in {named[column]} and in {option}"
                )
            named[column] = option
    for low, high in PAIRS:
        ceiling = checked.get(high, default(high))
        if low in checked and checked[low] > ceiling:
            raise OptionError(f"{low} must not exceed {high}; got {checked[low]} and {ceiling}")
    both = {k: checked.get(k) for k in ("highly_variable_key", "exogenous_key")}
    if None not in both.values() and len(set(both.values())) > 1:
        raise OptionError(
            "highly_variable_key and exogenous_key are two names of one option and must agree; got "
            f"{both['highly_variable_key']!r} and {both['exogenous_key']!r}. Leave exogenous_key out"
        )
    if checked.get("feature_type") == "accessibility" and checked.get("atac_encoder", "skipDAN") == "skipDAN":
        # its skip connection adds the embedding to the last hidden layer
        if checked.get("num_layers", 3) < 3:
            raise OptionError(f"skipDAN needs num_layers of at least 3; got {checked['num_layers']}. Or choose DAN")
        size = checked.get("embedding_size")
        if size is not None and size != checked.get("hidden", size):
            raise OptionError(
                f"skipDAN needs embedding_size equal to hidden; got {size} and {checked['hidden']}. "
                "Leave embedding_size out, or choose DAN"
            )
    return checked


def documentation(which: Iterable[str] | None = None) -> str:
    """Numpydoc text of the options, for docstrings."""
    lines = []
    for name in which or names():
        p = parameter(name)
        lines += [f"{name} : {kind_of_value(name)}, default {p.default!r}", f"    {p.doc}"]
    return "\n".join(lines)
