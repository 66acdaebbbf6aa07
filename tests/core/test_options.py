"""Options: the documented table, validation, and what derives from the declarations."""

from __future__ import annotations

import inspect
import json
import re

import numpy as np
import pandas as pd
import param
import pytest

from mira_core import options
from mira_core.errors import MiraError, OptionError
from mira_core.topics import TopicModel, make_model

# Name: documented default; the tables under make_model in the user's API document.
DOCUMENTED = {
    "highly_variable_key": None,
    "exogenous_key": None,
    "endogenous_key": None,
    "counts_layer": None,
    "categorical_covariates": None,
    "continuous_covariates": None,
    "covariates_keys": None,
    "extra_features_keys": None,
    "cost_beta": 1.0,
    "num_topics": 16,
    "hidden": 128,
    "num_layers": 3,
    "num_epochs": 40,
    "decoder_dropout": 0.2,
    "encoder_dropout": 0.2,
    "use_cuda": True,
    "seed": None,
    "min_learning_rate": 1e-6,
    "max_learning_rate": 1e-1,
    "batch_size": 64,
    "initial_pseudocounts": 50,
    "nb_parameterize_logspace": True,
    "embedding_size": None,
    "kl_strategy": "cyclic",
    "dependence_lr": 1e-4,
    "dependence_hidden": 64,
    "weight_decay": 0.001,
    "min_momentum": 0.85,
    "max_momentum": 0.95,
    "covariates_hidden": 32,
    "covariates_dropout": 0.05,
    "mask_dropout": 0.05,
    "marginal_estimation_size": 256,
    "dependence_beta": 1.0,
    "embedding_dropout": 0.05,
    "atac_encoder": "skipDAN",
}
# Ours, beside the document's.
ADDED = {
    "topic_prior": "dirichlet", "dan_on_cpu": False, "topic_effect_scale": 1.5, "technical_effect_scale": 0.5,
}  # fmt: skip
DEFAULTS = {**DOCUMENTED, **ADDED}
CHOICES = {
    "feature_type": {"expression", "accessibility"},
    "kl_strategy": {"monotonic", "cyclic"},
    "atac_encoder": {"fast", "skipDAN", "DAN"},
    "topic_prior": {"dirichlet", "dirichlet_process"},
}
POSITIVE = [
    "cost_beta",
    "min_learning_rate",
    "max_learning_rate",
    "dependence_lr",
    "min_momentum",
    "max_momentum",
]
POSITIVE_INTEGERS = [
    "num_topics", "hidden", "num_layers", "num_epochs", "batch_size", "initial_pseudocounts", "embedding_size",
    "dependence_hidden", "covariates_hidden", "marginal_estimation_size",
]  # fmt: skip
RATES = ["decoder_dropout", "encoder_dropout", "covariates_dropout", "mask_dropout", "embedding_dropout"]
CODAL = [
    "dependence_lr", "dependence_hidden", "dependence_beta", "covariates_hidden", "covariates_dropout",
    "mask_dropout", "marginal_estimation_size", "technical_effect_scale",
]  # fmt: skip


def test_every_documented_option_exists_and_no_other_but_ours():
    assert set(options.names()) == {"feature_type", *DEFAULTS}
    assert not set(ADDED) & set(DOCUMENTED)


@pytest.mark.parametrize("name", DEFAULTS)
def test_documented_defaults(name):
    assert options.default(name) == DEFAULTS[name]
    assert type(options.default(name)) is type(DEFAULTS[name])


@pytest.mark.parametrize("name", CHOICES)
def test_documented_choices(name):
    assert set(options.parameter(name).objects) == CHOICES[name]


def test_signature_of_make_model_has_every_option_with_its_documented_default():
    parameters = inspect.signature(make_model).parameters
    assert list(parameters)[:2] == ["n_samples", "n_features"]
    assert parameters["feature_type"].default is inspect.Parameter.empty
    for name, value in DEFAULTS.items():
        assert parameters[name].default == value
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert set(parameters) == {"n_samples", "n_features", "feature_type", *DEFAULTS}


@pytest.mark.parametrize("name", ["feature_type", *DEFAULTS])
def test_docstring_of_make_model_has_every_option_with_default_and_text(name):
    line = re.search(rf"^    ?{name} : .*$|^{name} : .*$", make_model.__doc__, re.MULTILINE)
    assert line, make_model.__doc__
    assert line[0].endswith(f"default {options.default(name)!r}")
    assert options.parameter(name).doc.split(".")[0] in make_model.__doc__


@pytest.mark.parametrize("name", ["feature_type", *DEFAULTS])
def test_each_option_is_described_for_forms(name):
    meta = options.parameter(name).metadata
    assert meta["group"] in options.GROUPS
    assert meta["level"] in ("basic", "advanced")
    assert meta["applies_to"] in options.MODELS
    if meta["search"]:
        low, high, scale = meta["search"]
        assert scale in ("linear", "log")
        assert options.validate(name, type(options.default(name))(low)) < options.validate(name, high)


@pytest.mark.parametrize("name", ["feature_type", *DEFAULTS])
def test_documented_default_passes_its_own_check(name):
    assert options.validate(name, options.default(name)) == options.default(name)


def test_unknown_option_suggests_the_near_one():
    with pytest.raises(OptionError, match="no option 'num_topic'.*did you mean num_topics"):
        options.validate_all({"num_topic": 3})
    with pytest.raises(OptionError, match="no option 'zzz'.*Options are: .*num_topics"):
        make_model(10, 10, feature_type="expression", zzz=3)


def test_every_refusal_is_a_value_error_too():
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, MiraError)


@pytest.mark.parametrize("name", POSITIVE_INTEGERS)
@pytest.mark.parametrize("value", [0, -1, 2.5, 16.0, "16", True, np.float64(3), float("nan"), [3], None])
def test_integers_of_the_wrong_kind_or_size_are_refused(name, value):
    if value is None and name == "embedding_size":
        return
    with pytest.raises(OptionError, match=f"{name} must be an integer of at least [12].*; got ") as told:
        options.validate(name, value)
    assert repr(value.item() if isinstance(value, np.generic) else value) in str(told.value)


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize(
    "value", [0, -0.1, float("nan"), float("inf"), 10**400, "0.1", True, None, 1j], ids=lambda v: repr(v)[:9]
)
def test_numbers_out_of_bounds_or_no_numbers_are_refused(name, value):
    with pytest.raises(OptionError, match=rf"{name} must be a number (above 0|from 0 \(excluded\)).*; got "):
        options.validate(name, value)


@pytest.mark.parametrize("name", ["topic_effect_scale", "technical_effect_scale"])
def test_scales_of_effects_are_above_zero_or_none(name):
    assert options.validate(name, 0.1) == 0.1
    assert options.validate(name, None) is None
    for value in (0, -1.0, float("nan"), float("inf"), "1"):
        with pytest.raises(OptionError, match=f"{name} must be a number above 0, or None; got "):
            options.validate(name, value)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [-0.01, 1, 1.0, 2, float("nan"), "half"])
def test_rates_are_from_zero_to_below_one(name, value):
    assert options.validate(name, 0) == 0
    assert options.validate(name, 0.999) == 0.999
    with pytest.raises(OptionError, match=rf"{name} must be a number from 0.0 to 1.0 \(excluded\); got "):
        options.validate(name, value)


@pytest.mark.parametrize("name", ["min_momentum", "max_momentum"])
def test_momentum_is_below_one(name):
    with pytest.raises(OptionError, match=f"{name} must be"):
        options.validate(name, 1.0)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["nonsense", None, 3, ["cyclic"]])
def test_choices_out_of_the_list_are_refused_with_the_list(name, value):
    with pytest.raises(OptionError, match=f"{name} must be one of ") as told:
        options.validate(name, value)
    assert all(repr(c) in str(told.value) for c in CHOICES[name])


@pytest.mark.parametrize("name", ["use_cuda", "nb_parameterize_logspace", "dan_on_cpu"])
@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_switches_take_only_true_and_false(name, value):
    with pytest.raises(OptionError, match=f"{name} must be True or False; got"):
        options.validate(name, value)


@pytest.mark.parametrize("name", ["highly_variable_key", "endogenous_key", "counts_layer", "exogenous_key"])
@pytest.mark.parametrize("value", ["", 3, ["a"], True])
def test_keys_take_one_name(name, value):
    with pytest.raises(OptionError, match=f"{name} must be a name, or None; got"):
        options.validate(name, value)


@pytest.mark.parametrize("value", [3, [3], [""], "", ["a", None], True])
def test_columns_take_names(value):
    with pytest.raises(OptionError, match="extra_features_keys must be a column name or a list of them, or None"):
        options.validate("extra_features_keys", value)


@pytest.mark.parametrize(
    "value", ["a", ["a"], ("a",), np.array(["a"]), np.array(["a"], object), pd.Index(["a"]), (c for c in "a")],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_columns_come_out_as_a_list_however_given(value):
    out = options.validate("extra_features_keys", value)
    assert out == ["a"]
    assert type(out) is list
    assert type(out[0]) is str


def test_no_columns_are_none():
    assert options.validate("extra_features_keys", []) is None
    assert options.validate("extra_features_keys", None) is None


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("num_topics", np.int64(7), 7),
        ("cost_beta", np.float32(0.5), 0.5),
        ("cost_beta", 2, 2),
        ("use_cuda", np.bool_(False), False),
        ("kl_strategy", np.str_("monotonic"), "monotonic"),
        ("seed", np.uint8(3), 3),
    ],
)
def test_numpy_values_come_out_plain(name, value, plain):
    out = options.validate(name, value)
    assert out == plain
    assert not isinstance(out, np.generic)
    assert json.loads(json.dumps(out)) == plain


@pytest.mark.parametrize("value", [-1, 2**63, 10**400, 1.5, "3"], ids=lambda v: repr(v)[:9])
def test_seed_out_of_range_is_refused(value):
    with pytest.raises(OptionError, match="seed must be an integer from 0 to|seed must be an integer of at least 0"):
        options.validate("seed", value)


@pytest.mark.parametrize("encoder", sorted(CHOICES["atac_encoder"]))
def test_models_of_accessibility_can_be_made_with_every_encoder(encoder):
    on_cpu = {} if encoder == "fast" else {"dan_on_cpu": True}
    model = make_model(3000, 20_000, feature_type="accessibility", atac_encoder=encoder, **on_cpu)
    assert (model.feature_type, model.atac_encoder) == ("accessibility", encoder)
    assert "AccessibilityTopicModel" in repr(model)
    assert "nb_parameterize_logspace" not in model.get_params()
    assert model.embedding_dropout == 0.05


def test_the_documented_encoder_of_peaks_asks_for_a_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        OptionError, match="skipDAN encoder needs a GPU to train, and there is none. Set atac_encoder='f"
    ):
        make_model(10, 10, feature_type="accessibility")


@pytest.mark.parametrize("name", options.COVARIATE_OPTIONS)
def test_a_covariate_of_any_kind_makes_a_codal_model(name):
    model = make_model(1000, 100, feature_type="expression", **{name: "batch"})
    assert getattr(model, name) == ["batch"]
    assert "CODAL" in repr(model)
    assert set(CODAL) <= set(model.get_params())
    assert "CODAL" not in repr(make_model(1000, 100, feature_type="expression"))


def test_models_with_a_dirichlet_process_can_be_made():
    model = make_model(1000, 100, feature_type="expression", topic_prior="dirichlet_process")
    assert "initial_pseudocounts" not in model.get_params()


def test_a_covariate_named_twice_is_refused():
    message = "every covariate must be named once; 'a' is in categorical_covariates and in continuous_covariates"
    with pytest.raises(OptionError, match=message):
        options.validate_all({"categorical_covariates": ["b", "a"], "continuous_covariates": ["a"]})
    with pytest.raises(OptionError, match="'a' is in covariates_keys and in covariates_keys"):
        options.validate_all({"covariates_keys": ["a", "a"]})


@pytest.mark.parametrize("name", options.COVARIATE_OPTIONS)
def test_no_covariates_are_no_codal_model(name):
    for none in (None, []):
        assert not options.is_codal(options.validate_all({name: none}))


@pytest.mark.parametrize("name", CODAL)
def test_codal_options_need_covariates(name):
    with pytest.raises(OptionError, match=rf"{name} applies to models with covariates \(CODAL\) only; leave it out"):
        options.validate_all({name: options.default(name)})
    assert not options.applies(name, {})
    assert options.applies(name, {"categorical_covariates": ["batch"]})


@pytest.mark.parametrize("name", ["atac_encoder", "embedding_dropout"])
def test_accessibility_options_need_accessibility(name):
    with pytest.raises(OptionError, match=f"{name} applies to models of accessibility only; leave it out"):
        options.validate_all({name: options.default(name)})
    assert options.applies(name, {"feature_type": "accessibility"})


def test_a_gpu_is_dispensed_with_for_deep_averaging_encoders_only():
    for given in ({}, {"feature_type": "accessibility", "atac_encoder": "fast"}):
        with pytest.raises(OptionError, match="dan_on_cpu applies to models of accessibility with a skipDAN or DAN"):
            options.validate_all({**given, "dan_on_cpu": True})


def test_pseudocounts_apply_to_a_dirichlet_prior_only():
    with pytest.raises(OptionError, match="initial_pseudocounts applies to models with a Dirichlet prior only"):
        options.validate_all({"topic_prior": "dirichlet_process", "initial_pseudocounts": 50})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_layers": 2}, "skipDAN needs num_layers of at least 3; got 2. Or choose DAN"),
        ({"embedding_size": 20, "hidden": 30}, "skipDAN needs embedding_size equal to hidden; got 20 and 30."),
    ],
)
def test_the_skip_connection_needs_layers_that_fit(given, message):
    given = {"feature_type": "accessibility", **given}
    with pytest.raises(OptionError, match=re.escape(message)):
        options.validate_all(given)
    assert options.validate_all({**given, "atac_encoder": "DAN"})
    assert options.validate_all({**given, "atac_encoder": "fast"})
    assert options.validate_all(
        {"feature_type": "expression", **{k: v for k, v in given.items() if k != "feature_type"}}
    )


def test_expression_options_do_not_apply_to_accessibility():
    assert not options.applies("nb_parameterize_logspace", {"feature_type": "accessibility"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_learning_rate": 2, "max_learning_rate": 1}, "must not exceed max_learning_rate; got 2 and 1"),
        ({"min_learning_rate": 0.5}, "min_learning_rate must not exceed max_learning_rate; got 0.5 and 0.1"),
        ({"min_momentum": 0.9, "max_momentum": 0.8}, "min_momentum must not exceed max_momentum; got 0.9 and 0.8"),
        ({"min_momentum": 0.97}, "min_momentum must not exceed max_momentum; got 0.97 and 0.95"),
        ({"highly_variable_key": "a", "exogenous_key": "b"}, "must agree; got 'a' and 'b'. Leave exogenous_key out"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(given, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        options.validate_all(given)


def test_two_names_of_one_option_may_agree():
    assert options.validate_all({"highly_variable_key": "a", "exogenous_key": "a"})


@pytest.mark.parametrize(
    ("high", "value", "low"),
    [("max_learning_rate", 1e-4, "min_learning_rate"), ("max_momentum", 0.5, "min_momentum")],
)
def test_a_low_end_not_given_follows_a_high_end_that_is(high, value, low):
    model = make_model(1000, 100, feature_type="expression", **{high: value})
    assert getattr(model, low) == value
    assert getattr(model, high) == value


def test_declarations_are_not_changed_by_making_models():
    make_model(500, 100, feature_type="expression", num_topics=3, extra_features_keys=["a"])
    assert options.default("num_topics") == 16
    assert options.default("extra_features_keys") is None
    assert isinstance(options.parameter("num_topics"), param.Integer)


def test_models_do_not_share_lists_of_columns():
    columns = ["a"]
    model = make_model(500, 100, feature_type="expression", extra_features_keys=columns)
    columns.append("b")
    assert model.extra_features_keys == ["a"]


def test_an_option_that_is_not_given_is_told_apart_from_one_given_at_its_default():
    model = TopicModel(1000, 100, num_topics=16)
    assert model.options["num_topics"].source == "yours"
    assert model.options["hidden"].source == "recommended"
    assert model.options["initial_pseudocounts"].source == "documented"
