"""Recommendations: their rules, reasons and precedence."""

from __future__ import annotations

import pytest

from mira_core import options
from mira_core.errors import OptionError
from mira_core.recommend import resolve
from mira_core.topics import make_model, recommend_parameters
from tests.helpers import FAMILIES

SIZES = [1, 2, 63, 64, 700, 1000, 1001, 2399, 2400, 4001, 10_001, 20_000, 20_001, 10**6, 10**8]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", SIZES)
def test_every_recommendation_is_a_valid_value_with_a_reason(n, family):
    given = FAMILIES[family]
    recommended = recommend_parameters(n, 2000, **given)
    for name, r in recommended.items():
        assert options.validate(name, r.value) == r.value
        assert options.applies(name, given)
        assert len(r.reason) > 5
    options.validate_all({**given, **{name: r.value for name, r in recommended.items()}})  # and they go together


@pytest.mark.parametrize(
    ("n", "hidden", "num_layers", "cost_beta"),
    [
        (1000, 64, 2, 1.5), (1001, 128, 2, 1.5), (2000, 128, 2, 1.5), (2001, 128, 2, 1.25), (2400, 128, 3, 1.25),
        (4000, 128, 3, 1.25), (4001, 256, 3, 1.0), (10_000, 256, 3, 1.0), (10_001, 512, 3, 1.0),
    ],
)  # fmt: skip
def test_sizes_follow_the_rules_of_the_reference(n, hidden, num_layers, cost_beta):
    r = recommend_parameters(n, 2000)
    assert (r["hidden"].value, r["num_layers"].value, r["cost_beta"].value) == (hidden, num_layers, cost_beta)


@pytest.mark.parametrize(("n", "topics"), [(1000, 14), (2638, 19), (10_000, 26), (100_000, 45)])
def test_number_of_topics_grows_slowly(n, topics):
    assert recommend_parameters(n, 2000)["num_topics"].value == topics == int((n**0.2 - 1) / 0.2)


@pytest.mark.parametrize(("n", "value"), [(4000, 2.0), (8000, 1.5), (12_000, 1.25), (12_001, 1.0)])
def test_codal_models_take_a_stronger_weight_and_three_layers(n, value):
    r = recommend_parameters(n, 2000, categorical_covariates=["batch"])
    assert r["cost_beta"].value == value
    assert r["num_layers"].value == 3


@pytest.mark.parametrize(("n", "hidden"), [(2000, 128), (2001, 256), (100_000, 256)])
@pytest.mark.parametrize("encoder", ["skipDAN", "DAN", "fast"])
def test_sizes_of_accessibility_follow_the_rules_of_the_reference(n, hidden, encoder):
    r = recommend_parameters(n, 30_000, feature_type="accessibility", atac_encoder=encoder)
    assert r["hidden"].value == hidden
    assert r["num_layers"].value == (3 if n >= 2400 or encoder == "skipDAN" else 2)


def test_a_skip_connection_takes_the_width_of_the_embedding():
    given = {"feature_type": "accessibility", "embedding_size": 77}
    got = resolve(1000, 100, given)["hidden"]
    assert (got.value, got.source) == (77, "recommended")
    assert "embedding_size" in got.reason
    assert resolve(1000, 100, {**given, "atac_encoder": "DAN"})["hidden"].value == 128


@pytest.mark.parametrize("n", SIZES)
def test_a_recommended_training_has_enough_steps_and_no_absurd_length(n):
    r = recommend_parameters(n, 2000)
    epochs, batch = r["num_epochs"].value, r["batch_size"].value
    assert 1 <= epochs <= 200
    assert epochs * max(1, n // batch) >= min(1000, 200 * max(1, n // batch))


@pytest.mark.parametrize("n", [0, -3, 2.0, "7", None, True])
@pytest.mark.parametrize("which", ["n_samples", "n_features"])
def test_sizes_that_are_no_counts_are_refused(n, which):
    size = {"n_samples": 100, "n_features": 100, which: n}
    for make in (recommend_parameters, lambda **k: make_model(feature_type="expression", **k)):
        with pytest.raises(OptionError, match=f"{which} must be an integer of at least 1; got .*adata.shape"):
            make(**size)


def test_explicit_options_win_over_recommended_and_recommended_over_documented():
    got = resolve(1000, 100, {"hidden": 7})
    assert (got["hidden"].value, got["hidden"].source) == (7, "yours")
    assert (got["hidden"].documented, got["hidden"].recommended) == (128, 64)
    assert (got["cost_beta"].value, got["cost_beta"].source, got["cost_beta"].documented) == (
        1.5,
        "recommended",
        1.0,
    )
    assert (got["kl_strategy"].value, got["kl_strategy"].source) == ("cyclic", "documented")
    assert got["kl_strategy"].reason is None
    assert got["cost_beta"].reason


def test_only_options_that_apply_are_resolved():
    got = resolve(1000, 100, {})
    assert "dependence_beta" not in got
    assert "atac_encoder" not in got
    assert list(got) == [n for n in options.names() if options.applies(n, {})]
    for given in FAMILIES.values():
        assert list(resolve(1000, 100, given)) == [n for n in options.names() if options.applies(n, given)]


def test_a_high_end_below_the_recommended_low_end_says_so():
    low = resolve(1000, 100, {"max_learning_rate": 1e-4})["min_learning_rate"]
    assert (low.value, low.source, low.documented, low.reason) == (
        1e-4,
        "recommended",
        1e-6,
        "not above max_learning_rate",
    )
