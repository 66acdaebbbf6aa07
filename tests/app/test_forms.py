"""The form says what `make_model` would say, and what it makes is the model that was asked for."""

from __future__ import annotations

import pytest

import mira_core as mira
from mira_app import forms
from mira_app.forms import ModelForm
from mira_core import notation, options
from mira_core.data.describe import describe
from mira_core.data.simulate import simulate_expression
from mira_core.recommend import resolve

NEW = {
    "highly_variable_key": "highly_variable", "exogenous_key": "highly_variable", "endogenous_key": "highly_variable",
    "counts_layer": "counts", "extra_features_keys": ["score"], "num_topics": 7, "cost_beta": 1.7,
    "initial_pseudocounts": 60, "hidden": 33, "num_layers": 4, "embedding_size": 21, "encoder_dropout": 0.03,
    "decoder_dropout": 0.07, "nb_parameterize_logspace": False, "num_epochs": 3, "batch_size": 50,
    "min_learning_rate": 2e-3, "max_learning_rate": 0.07, "kl_strategy": "monotonic", "weight_decay": 0.002,
    "min_momentum": 0.8, "max_momentum": 0.9, "seed": 5, "use_cuda": False, "topic_effect_scale": 1.2,
}  # fmt: skip


@pytest.fixture
def adata():
    adata = simulate_expression(200, 40, 3, seed=2)
    adata.obs["score"] = range(200)
    adata.layers["counts"] = adata.X.copy()
    return adata


@pytest.fixture
def form(adata):
    return ModelForm(describe(adata))


def enter(form: ModelForm, name: str, value: object) -> None:
    """Do to the widget what a browser does."""
    widget = form.fields[name].widget
    widget.value = str(value) if hasattr(widget, "max_length") else value


def test_an_untouched_form_gives_the_recommended_model(form, adata):
    assert form.given == {"feature_type": "expression"}
    assert form.problem == ""
    shown = {n for n, f in form.fields.items() if f.view.visible}
    assert {"num_topics", "counts_layer", "seed"} <= shown
    assert not shown & {n for n in options.names() if not options.applies(n, form.given)}
    assert form.fields["num_topics"].widget.placeholder == str(resolve(200, 40, {})["num_topics"].value)


@pytest.mark.parametrize("name", sorted(NEW))
def test_every_option_that_applies_reaches_the_model(form, name):
    enter(form, name, NEW[name])
    assert form.problem == ""
    assert form.given == {"feature_type": "expression", name: NEW[name]}


def test_every_option_is_tried_above():
    apply = {n for n in options.names() if options.applies(n, {"feature_type": "expression"})}
    assert apply - set(NEW) == {"feature_type", "topic_prior", *options.COVARIATE_OPTIONS}


def test_another_prior_takes_the_options_of_the_first_away(form):
    enter(form, "topic_prior", "dirichlet_process")
    assert form.problem == ""
    assert form.given == {"feature_type": "expression", "topic_prior": "dirichlet_process"}
    form.advanced = True
    assert not form.fields["initial_pseudocounts"].view.visible


def test_the_python_shown_makes_the_same_model(form, adata, tmp_path):
    for name, value in NEW.items():
        enter(form, name, value)
    path = tmp_path / "with 'quotes'.h5ad"
    adata.write_h5ad(path)
    scope: dict = {}
    exec(notation.to_python(str(path), form.given), scope)
    assert scope["model"].given == {"feature_type": "expression", **NEW}
    assert "X_topic_compositions" in scope["adata"].obsm


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("num_topics", "1", "num_topics must be an integer of at least 2; got 1"),
        ("num_topics", "many", "num_topics must be an integer of at least 2; got 'many'"),
        ("num_topics", "2.5", "got 2.5"),
        ("decoder_dropout", "1", "decoder_dropout must be a number from 0.0 to 1.0"),
        ("min_learning_rate", "0.5", "min_learning_rate must not exceed max_learning_rate"),
        ("seed", "-1", "seed must be"),
        ("cost_beta", "nan", "cost_beta must be a number above 0"),
    ],
)
def test_a_wrong_value_is_told_beside_its_field(form, name, text, message):
    enter(form, name, text)
    field = form.fields[name]
    assert message in form.problem
    assert field.widget.error_state
    assert field.view.visible  # also where only basic options are shown
    assert message.split(";")[0] in field.hint.object.replace("&#x27;", "'").replace("&quot;", '"')
    enter(form, name, "")
    assert form.problem == ""
    assert not field.widget.error_state


def test_covariates_bring_the_options_of_codal(form):
    assert not form.fields["dependence_beta"].view.visible
    enter(form, "categorical_covariates", ["batch"])
    assert form.problem == ""
    assert form.given["categorical_covariates"] == ["batch"]
    assert form.fields["dependence_beta"].view.visible
    enter(form, "categorical_covariates", [])
    assert not form.fields["dependence_beta"].view.visible


@pytest.mark.parametrize("gpu", [False, True])
def test_an_encoder_that_needs_a_gpu_is_told_beside_its_field(form, monkeypatch, gpu):
    monkeypatch.setattr(forms, "_gpu", lambda: gpu)
    enter(form, "feature_type", "accessibility")
    assert form.fields["atac_encoder"].view.visible
    assert not form.fields["nb_parameterize_logspace"].view.visible
    assert ("atac_encoder='fast'" in form.problem) == (not gpu)
    assert form.fields["atac_encoder"].widget.error_state == (not gpu)
    enter(form, "atac_encoder", "fast")
    assert form.problem == ""
    enter(form, "atac_encoder", "DAN")
    assert bool(form.problem) == (not gpu)
    enter(form, "dan_on_cpu", True)
    assert form.problem == ""


def test_data_without_raw_counts_cannot_be_trained(adata):
    del adata.layers["counts"]
    adata.X = adata.X / 3
    form = ModelForm(describe(adata))
    assert "X must hold raw counts" in form.problem
    assert form.fields["counts_layer"].widget.error_state


def test_whole_numbers_may_be_written_in_any_way(form):
    for text in ("13", "13.0", "1.3e1", "+13"):
        enter(form, "num_topics", text)
        assert form.given["num_topics"] == 13
        assert isinstance(form.given["num_topics"], int)


def test_the_layer_with_counts_is_chosen_where_x_has_none(adata):
    adata.X = adata.X / 3
    form = ModelForm(describe(adata))
    assert form.given["counts_layer"] == "counts"
    assert any("no raw counts" in label for label in form.fields["counts_layer"].widget.options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("topic_effect_scale", None),  # no prior, which is not the default
        ("min_learning_rate", 0.0012345678901),
        ("seed", 2**63 - 1),
        ("categorical_covariates", ["donor"]),  # text
        ("continuous_covariates", ["doublet", "year"]),  # flags, and numbers that were made categories
        ("highly_variable_key", "chosen"),  # 0 and 1
        ("counts_layer", "X"),  # a layer of that name is not X itself
    ],
)
def test_what_make_model_takes_the_form_takes_and_keeps(adata, tmp_path, name, value):
    adata.obs["donor"] = ["Ann", "Bob"] * 100
    adata.obs["doublet"] = [True, False] * 100
    adata.obs["year"] = ["2021", "2022"] * 100
    adata.obs["year"] = adata.obs["year"].astype("category")
    adata.var["chosen"] = [1, 0] * 20
    adata.layers["X"] = adata.X.copy()
    form = ModelForm(describe(adata))
    enter(form, name, value)
    wanted = {"feature_type": "expression", name: value}
    assert (form.given, form.problem) == (wanted, "")
    form.load(dict(form.given))  # such as after another recipe
    assert (form.given, form.problem) == (wanted, "")
    assert notation.read(notation.to_python("x.h5ad", form.given)).given == wanted
    assert "yours" in form.fields[name].hint.object
    model = mira.topics.make_model(*adata.shape, **form.given, **({} if name == "seed" else {"seed": 0}))
    assert model.get_params()[name] == value
    model.set_params(num_epochs=1).fit(adata)


@pytest.mark.parametrize("column", ["missing", "words"])
def test_columns_that_hold_no_numbers_are_not_offered_as_numbers(adata, column):
    adata.obs["missing"] = [float("nan"), 1.0] * 100
    adata.obs["words"] = ["some", "more"] * 100
    fields = ModelForm(describe(adata)).fields
    for name in ("continuous_covariates", "covariates_keys", "extra_features_keys"):
        assert column not in fields[name].choices


@pytest.mark.parametrize(
    ("name", "value"),
    [("highly_variable_key", "nope"), ("categorical_covariates", ["batch", "nope"]), ("counts_layer", "nope")],
)
@pytest.mark.parametrize("drawn", [False, True])
def test_what_the_data_do_not_have_is_told_beside_the_field(form, name, value, drawn):
    if drawn:
        form.fields[name].view.get_root()
    form.load({"feature_type": "expression", name: value})
    assert f"{name} names 'nope', which these data cannot give it" in form.problem
    widget = form.fields[name].widget
    form.fields[name].view.get_root()
    assert widget.error_state
    assert widget.value == value  # where it can be taken out
    widget.value = [] if isinstance(value, list) else next(iter(form.fields[name].choices.values()))
    assert form.problem == ""
    form.load({"feature_type": "expression"})
    assert form.problem == ""


def test_data_without_x_say_so(adata):
    del adata.X
    form = ModelForm(describe(adata))
    assert form.given["counts_layer"] == "counts"
    form.load({})
    assert form.problem == "the data has no X; choose a layer"


def test_a_number_of_thousands_of_digits_is_told(form):
    enter(form, "num_topics", "1" * 5000)
    assert "num_topics must be an integer of at least 2" in form.problem


def test_what_was_not_chosen_is_not_called_yours(form):
    for field in form.fields.values():
        assert "yours" not in field.hint.object
    assert "default all features" in form.fields["highly_variable_key"].hint.object


def test_names_from_data_are_never_markup(adata):
    adata.obs["<img src=x onerror=alert(1)>"] = 1.0
    form = ModelForm(describe(adata))
    enter(form, "num_topics", "<b>x</b>")
    assert "<b>x" not in form.fields["num_topics"].hint.object
