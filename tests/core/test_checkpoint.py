"""Saved models: bit for bit the same, whole or absent, and nothing runs on opening."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import mira_core as mira
from mira_core import options
from mira_core.errors import CheckpointError, NotFitted
from mira_core.topics import load_model
from mira_core.training.range_test import LearningRateCurve
from tests.helpers import FAMILIES, arrays, make, make_cells, same, with_columns

# Not the documented nor any recommended value, where an option has more than the one that makes others apply.
COMMON = {
    "highly_variable_key": "chosen", "exogenous_key": "chosen", "endogenous_key": "seen", "counts_layer": "counts",
    "extra_features_keys": ["a", "b"], "num_topics": 5, "cost_beta": 1.3, "hidden": 9,
    "num_layers": 4, "embedding_size": 11, "encoder_dropout": 0.07, "decoder_dropout": 0.09,
    "num_epochs": 2, "batch_size": 40, "min_learning_rate": 2e-3,
    "max_learning_rate": 0.07, "kl_strategy": "monotonic", "weight_decay": 0.002, "min_momentum": 0.8,
    "max_momentum": 0.9, "seed": 2**62 + 1, "use_cuda": False, "topic_effect_scale": 0.8,
}  # fmt: skip
DIRICHLET = {"topic_prior": "dirichlet", "initial_pseudocounts": 33}
COVARIATES = {
    "categorical_covariates": ["kind"], "continuous_covariates": ["a", "quality"], "covariates_keys": ["b"],
    "dependence_lr": 2e-4, "dependence_hidden": 13, "dependence_beta": 0.7, "marginal_estimation_size": 60,
    "covariates_hidden": 8, "covariates_dropout": 0.06, "mask_dropout": 0.04, "technical_effect_scale": None,
}  # fmt: skip
EXPRESSION = {"feature_type": "expression", "nb_parameterize_logspace": False}
ACCESSIBILITY = {"feature_type": "accessibility", "embedding_dropout": 0.11}
UNUSUAL = {
    "expression": {**COMMON, **EXPRESSION, **DIRICHLET},
    "CODAL": {**COMMON, **EXPRESSION, **COVARIATES, "topic_prior": "dirichlet_process"},
    "DAN": {**COMMON, **ACCESSIBILITY, **DIRICHLET, "atac_encoder": "DAN", "dan_on_cpu": True},
    "fast": {**COMMON, **ACCESSIBILITY, **COVARIATES, **DIRICHLET, "atac_encoder": "fast"},
}


FILES = Path(__file__).parent / "files"


def read_header(path: Path) -> dict:
    with safetensors.safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["mira"])


def rewrite(path: Path, change, tensors=None) -> None:
    """Write the file again with its header changed by `change`."""
    kept = safetensors.torch.load(path.read_bytes()) if tensors is None else tensors
    header = read_header(path)
    header = change(header) or header
    path.write_bytes(safetensors.torch.save(kept, {"mira": json.dumps(header)}))


@pytest.fixture
def saved(fitted, tmp_path) -> Path:
    fitted.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


# --- the same model -------------------------------------------------------------------------------


def test_a_loaded_model_predicts_and_scores_bit_for_bit_the_same(fitted, saved, cells):
    loaded = load_model(saved)
    assert same(arrays(fitted), arrays(loaded))
    assert loaded.score(cells) == fitted.score(cells)
    a, b = fitted.predict(cells.copy()), loaded.predict(cells.copy())
    for name in ("X_topic_compositions", "X_umap_features"):
        assert np.array_equal(a.obsm[name], b.obsm[name])
    for name in ("topic_feature_compositions", "topic_feature_activations"):
        assert np.array_equal(a.varm[name], b.varm[name])
    assert np.array_equal(a.uns["topic_dendogram"], b.uns["topic_dendogram"])
    assert np.array_equal(fitted.impute(a), loaded.impute(b))


def test_a_loaded_model_is_the_same_in_everything_that_it_tells(fitted, saved):
    loaded = load_model(str(saved))
    assert loaded.get_params() == fitted.get_params()
    assert loaded.given == fitted.given
    assert loaded.options == fitted.options
    assert loaded.history == fitted.history
    assert loaded.seed_used == fitted.seed_used
    assert (loaded.n_samples, loaded.n_features) == (fitted.n_samples, fitted.n_features)
    assert loaded.features.tolist() == fitted.features.tolist()
    assert repr(loaded) == repr(fitted)
    assert not loaded.network.training


def test_saving_a_loaded_model_gives_the_same_file(saved, tmp_path):
    load_model(saved).save(tmp_path / "again.safetensors")
    a, b = (safetensors.torch.load_file(p) for p in (saved, tmp_path / "again.safetensors"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert read_header(saved) == read_header(tmp_path / "again.safetensors")


def test_a_loaded_model_can_be_fitted_again(saved, fitted, cells):
    again = load_model(saved).fit(cells, progress=False)
    assert same(arrays(again), arrays(fitted))


def test_every_option_is_among_those_that_round_trip_below():
    for chosen in UNUSUAL.values():
        wanted = {n for n in options.names() if options.applies(n, chosen)}
        if not options.is_codal(chosen):
            wanted -= set(options.COVARIATE_OPTIONS)
        assert set(chosen) == wanted, "an option is not tested here"
    assert set().union(*UNUSUAL.values()) == set(options.names())


@pytest.mark.parametrize("chosen", UNUSUAL.values(), ids=UNUSUAL)
def test_every_option_round_trips(cells, tmp_path, chosen):
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X * 0.5
    cells.var["chosen"], cells.var["seen"] = np.arange(120) >= 10, np.arange(120) < 90
    cells.obs["a"], cells.obs["b"] = np.arange(300) / 300, np.arange(300) % 2
    cells.obs["kind"], cells.obs["quality"] = [f"kind {i % 3}" for i in range(300)], np.arange(300) % 7
    model = mira.topics.make_model(*cells.shape, **chosen)
    with pytest.warns(UserWarning, match="not among the modelled"):
        model.fit(cells, progress=False)
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.given == chosen
    assert {n: loaded.get_params()[n] for n in chosen} == chosen
    header = read_header(tmp_path / "m.safetensors")
    assert header["given"] == chosen
    assert header["resolved"] == model.get_params()
    assert np.array_equal(*(m.predict(cells.copy()).obsm["X_topic_compositions"] for m in (model, loaded)))


def test_a_loaded_model_keeps_the_recommended_values_it_was_trained_with(fitted, saved):
    """As if a later version recommended something else."""
    rewrite(saved, lambda h: h["resolved"].update(cost_beta=3.25, decoder_dropout=0.31))
    loaded = load_model(saved)
    assert (loaded.cost_beta, loaded.decoder_dropout) == (3.25, 0.31)
    assert loaded.options["cost_beta"].source == "recommended"
    assert loaded.options["cost_beta"].reason == "when it was trained"
    assert loaded.network.theta_dropout.p == 0.31
    assert loaded.cost_beta != fitted.cost_beta


def test_options_set_after_the_fit_wait_for_the_next_fit(cells, tmp_path):
    """The fitted network stays what it is: it predicts, ranks and saves as before."""
    model = make(cells).fit(cells, progress=False)
    theta = model.predict(cells.copy()).obsm["X_topic_compositions"]
    model.set_params(num_topics=7, hidden=5, num_layers=4)
    assert model.num_topics == 7
    assert np.array_equal(model.predict(cells.copy()).obsm["X_topic_compositions"], theta)
    assert model.impute(model.predict(cells.copy())).shape == cells.shape
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.num_topics == 4
    assert np.array_equal(loaded.predict(cells.copy()).obsm["X_topic_compositions"], theta)
    assert model.fit(cells, progress=False).predict(cells).obsm["X_topic_compositions"].shape == (300, 7)


def test_names_of_any_letters_round_trip(cells, tmp_path):
    cells.var_names = [f'Gène-{i} 基因 "{i}"' for i in range(120)]
    model = make(cells, num_epochs=1).fit(cells, progress=False)
    model.save(tmp_path / "modèle.safetensors")
    assert load_model(tmp_path / "modèle.safetensors").features.tolist() == cells.var_names.tolist()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_loaded_model_of_every_family_is_the_same_in_all_that_it_says(tmp_path, family):
    adata = with_columns(make_cells(45, 30))
    model = make(adata, **family, extra_features_keys="extra", num_epochs=2).fit(adata, progress=False)
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert same(arrays(model), arrays(loaded))
    assert (loaded.get_params(), loaded.given, loaded.options) == (model.get_params(), model.given, model.options)
    assert (loaded.history, repr(loaded)) == (model.history, repr(model))
    assert loaded.score(adata) == model.score(adata)
    a, b = model.predict(adata.copy()), loaded.predict(adata.copy())
    assert np.array_equal(a.obsm["X_topic_compositions"], b.obsm["X_topic_compositions"])
    for call in ("impute", "get_hierarchical_umap_features", *(["get_batch_effect"] if "CODAL" in repr(model) else [])):
        assert np.array_equal(getattr(model, call)(a), getattr(loaded, call)(b)), call
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert same(arrays(loaded.fit(adata, progress=False)), arrays(model))


def test_the_tested_learning_rates_round_trip(fitted, tmp_path):
    model = copy.deepcopy(fitted)
    losses = np.cos(np.linspace(0, 4, 20)).tolist()
    model.learning_rate_curve = LearningRateCurve(tuple(np.geomspace(1e-6, 1, 20).tolist()), tuple(losses), (1e-5, 0.3))
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.learning_rate_curve == model.learning_rate_curve
    assert loaded.trim_learning_rate_bounds(0.1, 0.7) == model.trim_learning_rate_bounds(0.1, 0.7)
    assert loaded.max_learning_rate == pytest.approx(0.3 * np.exp(-0.7))


# --- files of earlier versions ---------------------------------------------------------------------


def test_a_file_of_format_1_predicts_what_it_did(tmp_path):
    """Written by the version before covariates, accessibility and the Dirichlet process."""
    adata = mira.data.simulate_expression(120, 40, 3, n_types=3, seed=1)
    adata.obs["score"] = np.linspace(-1, 1, 120)
    model = load_model(FILES / "format1.safetensors")
    theta = model.predict(adata).obsm["X_topic_compositions"]
    # the residuals of then were less exact: double precision is within 2e-7 of what is predicted now
    np.testing.assert_allclose(theta, np.load(FILES / "format1_compositions.npy"), atol=2e-5)
    given = {"feature_type": "expression", "num_topics": 3, "hidden": 8, "num_epochs": 4, "seed": 5, "batch_size": 32,
             "extra_features_keys": ["score"], "kl_strategy": "monotonic"}  # fmt: skip
    assert model.given == given
    assert model.get_params().keys() == mira.topics.make_model(120, 40, **given).get_params().keys()
    assert (model.topic_prior, model.learning_rate_curve, len(model.history)) == ("dirichlet", None, 4)
    assert np.isfinite(model.score(adata))
    model.save(tmp_path / "m.safetensors")
    assert read_header(tmp_path / "m.safetensors")["format"] == 3
    assert np.array_equal(load_model(tmp_path / "m.safetensors").predict(adata).obsm["X_topic_compositions"], theta)
    assert len(model.fit(adata, progress=False).history) == 4


def test_a_file_of_format_2_predicts_what_it_did(tmp_path):
    """Written by the version that saved where each feature stands among the encoder's."""
    adata = mira.data.simulate_expression(120, 40, 3, n_types=3, n_batches=2, seed=1)
    model = load_model(FILES / "format2.safetensors")
    theta = model.predict(adata).obsm["X_topic_compositions"]
    np.testing.assert_allclose(theta, np.load(FILES / "format2_compositions.npy"), atol=1e-5)
    assert (model.atac_encoder, model.categorical_covariates, len(model.history)) == ("fast", ["batch"], 4)
    model.save(tmp_path / "m.safetensors")
    assert read_header(tmp_path / "m.safetensors")["format"] == 3
    assert np.array_equal(load_model(tmp_path / "m.safetensors").predict(adata).obsm["X_topic_compositions"], theta)


# --- the file -------------------------------------------------------------------------------------


def test_the_file_holds_numbers_and_json_with_a_format(saved):
    header = read_header(saved)
    assert header["format"] == 3
    assert {"given", "resolved", "features", "history", "statistics", "seed_used", "coding", "curve"} <= set(header)


def test_saving_replaces_in_one_stroke_and_leaves_nothing_beside(fitted, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    fitted.save(path)
    assert os.listdir(tmp_path) == ["m.safetensors"]
    assert load_model(path).num_topics == 4


def test_a_save_that_fails_leaves_what_was_there(saved, fitted):
    before = saved.read_bytes()
    broken = copy.deepcopy(fitted)
    broken._fit.history = [object()]
    with pytest.raises(AttributeError):
        broken.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_model_that_is_not_fitted_cannot_be_saved(cells, tmp_path):
    with pytest.raises(NotFitted, match="not fitted; call fit"):
        make(cells).save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


# --- bad files ------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=f"there is no file .*{path.name}"):
            load_model(path)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\0" * 100, struct.pack("<Q", 2**60) + b"{}", b"PK\x03\x04" + b"x" * 50]
)
def test_a_file_of_something_else_is_refused(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="x.safetensors is not a saved topic model: ."):
        load_model(tmp_path / "x.safetensors")


def test_a_truncated_file_is_refused_wherever_it_is_cut(saved):
    whole = saved.read_bytes()
    for share in (0.001, 0.05, 0.3, 0.7, 0.99):
        saved.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match="is not a saved topic model"):
            load_model(saved)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_under_our_name_is_refused_and_does_not_run(tmp_path):
    mark, path = tmp_path / "it ran", tmp_path / "m.safetensors"
    for data in (pickle.dumps(Harmful(mark)), pickle.dumps(Harmful(mark), protocol=0)):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is not a saved topic model"):
            load_model(path)
    torch.save({"x": Harmful(mark)}, path)
    with pytest.raises(CheckpointError, match="is not a saved topic model"):
        load_model(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Harmful(mark)))  # the same bytes do run where pickles are trusted
    assert mark.exists()


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    for metadata in (
        None,
        {"mira": "not json"},
        {"mira": "[]"},
        {"mira": "3"},
        {"other": "{}"},
        {"mira": "{}"},
    ):
        path.write_bytes(safetensors.torch.save({"w": torch.ones(2)}, metadata))
        with pytest.raises(CheckpointError, match="is not a saved topic model"):
            load_model(path)


@pytest.mark.parametrize("found", [4, 99, "1", None, 1.5, [1], 0, -1])
def test_a_newer_or_unknown_format_is_refused_and_says_to_update(saved, found):
    rewrite(saved, lambda h: h.update(format=found))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors has format .*; this version reads up to 3. Update mira"
    ):
        load_model(saved)


HEADER = ["n_samples", "n_features", "given", "resolved", "features", "endogenous", "history", "statistics", "coding"]
WRONG = [None, -1, 10**30, 0.5, "x", [], {}, [None], ["a"], [10**9], {"a": 1}, [[1]], True]


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize(
    "key",
    [*HEADER, "curve"],
)
def test_a_header_of_wrong_content_is_a_checkpoint_error_or_still_a_model(saved, key, value):
    rewrite(saved, lambda h: h.update({key: value}))
    try:
        loaded = load_model(saved)
    except CheckpointError as problem:
        assert "model.safetensors is" in str(problem)  # noqa: PT017
    else:
        assert loaded.topic_feature_compositions().shape[0] == loaded.num_topics


@pytest.mark.parametrize(
    "key",
    [*HEADER, "seed_used"],
)
def test_a_header_that_lacks_something_is_refused(saved, key):
    rewrite(saved, lambda h: h.pop(key) and None)
    with pytest.raises(CheckpointError, match=f"model.safetensors is .*{key}"):
        load_model(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_topics", 0), ("num_topics", "x"), ("num_topics", 10**12), ("nonsense", 1), ("feature_type", "accessibility"),
     ("extra_features_keys", ["a"]), ("hidden", 10**12), ("embedding_size", []),
     ("categorical_covariates", ["a"]), ("covariates_keys", ["a"])],
)  # fmt: skip
@pytest.mark.parametrize("where", ["given", "resolved"])
def test_wrong_options_in_a_file_are_refused(saved, where, name, value):
    def change(header: dict) -> None:
        header["resolved"][name] = value
        if where == "given":
            header["given"][name] = value

    rewrite(saved, change)
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        load_model(saved)


def test_missing_or_misshapen_tensors_are_refused(saved):
    tensors = safetensors.torch.load(saved.read_bytes())  # not mapped: the file is written over
    for name in ("network.decoder.beta.weight", "statistics.mean_profile", "statistics.endogenous_share"):
        for changed in (None, torch.zeros(3, 3, 3)):
            given = {k: v for k, v in tensors.items() if k != name}
            if changed is not None:
                given[name] = changed
            rewrite(saved, lambda h: None, given)
            with pytest.raises(CheckpointError, match="model.safetensors is"):
                load_model(saved)


def test_loading_ignores_tensors_of_no_known_room_but_refuses_unknown_weights(saved):
    tensors = safetensors.torch.load_file(saved)
    rewrite(saved, lambda h: None, {**tensors, "notes": torch.ones(2)})
    assert load_model(saved).num_topics == 4
    rewrite(saved, lambda h: None, {**tensors, "network.notes": torch.ones(2)})
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(saved)


def test_a_coding_that_does_not_fit_the_model_is_refused(tmp_path):
    adata = with_columns(make_cells(40, 12))
    model = make(adata, **FAMILIES["CODAL"], num_epochs=1).fit(adata, progress=False)
    for change in (
        lambda c: c["categories"].update(batch=["a", "b", "c"]),
        lambda c: c["categories"].update(other=[]),
        lambda c: c["scales"].pop("quality"),
        lambda c: c["as_they_are"].append("extra"),
        lambda c: c.update(extra=["extra"]),
    ):
        model.save(tmp_path / "m.safetensors")
        rewrite(tmp_path / "m.safetensors", lambda h, change=change: change(h["coding"]) and None)
        with pytest.raises(CheckpointError, match="m.safetensors is damaged"):
            load_model(tmp_path / "m.safetensors")
