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
from tests.helpers import arrays, make, same

# Not the documented nor any recommended value.
UNUSUAL = {
    "highly_variable_key": "chosen", "exogenous_key": "chosen", "endogenous_key": "seen", "counts_layer": "counts",
    "extra_features_keys": ["a", "b"], "num_topics": 5, "cost_beta": 1.3, "initial_pseudocounts": 33, "hidden": 9,
    "num_layers": 4, "embedding_size": 11, "encoder_dropout": 0.07, "decoder_dropout": 0.09,
    "nb_parameterize_logspace": False, "num_epochs": 2, "batch_size": 40, "min_learning_rate": 2e-3,
    "max_learning_rate": 0.07, "kl_strategy": "monotonic", "weight_decay": 0.002, "min_momentum": 0.8,
    "max_momentum": 0.9, "seed": 2**62 + 1, "use_cuda": False, "feature_type": "expression",
}  # fmt: skip


def read_header(path: Path) -> dict:
    with safetensors.safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["mira"])


def rewrite(path: Path, change, tensors=None) -> None:
    """Write the file again with its header changed by `change`."""
    kept = safetensors.torch.load_file(path) if tensors is None else tensors
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


def test_every_option_round_trips(cells, tmp_path):
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X * 0.5
    cells.var["chosen"], cells.var["seen"] = np.arange(120) >= 10, np.arange(120) < 90
    cells.obs["a"], cells.obs["b"] = np.arange(300) / 300, np.arange(300) % 2
    wanted = {n for n in options.names() if options.applies(n, {})} - set(options.COVARIATE_OPTIONS)
    assert set(UNUSUAL) == wanted, "an option is not tested here"
    model = mira.topics.make_model(*cells.shape, **UNUSUAL)
    with pytest.warns(UserWarning, match="not among the modelled"):
        model.fit(cells, progress=False)
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.given == UNUSUAL
    assert {n: loaded.get_params()[n] for n in UNUSUAL} == UNUSUAL
    header = read_header(tmp_path / "m.safetensors")
    assert header["given"] == UNUSUAL
    assert header["resolved"] == model.get_params()
    assert np.array_equal(*(m.predict(cells.copy()).obsm["X_topic_compositions"] for m in (model, loaded)))


def test_a_loaded_model_keeps_the_recommended_values_it_was_trained_with(fitted, saved):
    """As if a later version recommended something else."""
    rewrite(saved, lambda h: h["resolved"].update(cost_beta=3.25, decoder_dropout=0.31))
    loaded = load_model(saved)
    assert (loaded.cost_beta, loaded.decoder_dropout) == (3.25, 0.31)
    assert loaded.options["cost_beta"].source == "recommended"
    assert loaded.options["cost_beta"].reason == "when it was trained"
    assert loaded.network.decoder.dropout.p == 0.31
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


# --- the file -------------------------------------------------------------------------------------


def test_the_file_holds_numbers_and_json_with_a_format(saved):
    header = read_header(saved)
    assert header["format"] == 1
    assert {"given", "resolved", "features", "history", "statistics", "seed_used"} <= set(header)


def test_saving_replaces_in_one_stroke_and_leaves_nothing_beside(fitted, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    fitted.save(path)
    assert os.listdir(tmp_path) == ["m.safetensors"]
    assert load_model(path).num_topics == 4


def test_a_save_that_fails_leaves_what_was_there(saved, fitted):
    before = saved.read_bytes()
    broken = copy.deepcopy(fitted)
    broken.history = [object()]
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


@pytest.mark.parametrize("found", [2, 99, "1", None, 1.5, [1]])
def test_a_newer_or_unknown_format_is_refused_and_says_to_update(saved, found):
    rewrite(saved, lambda h: h.update(format=found))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors has format .*; this version reads up to 1. Update mira"
    ):
        load_model(saved)


WRONG = [None, -1, 10**30, 0.5, "x", [], {}, [None], ["a"], [10**9], {"a": 1}, [[1]], True]


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize(
    "key", ["n_samples", "n_features", "given", "resolved", "features", "endogenous", "history", "statistics"]
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
    [
        "n_samples",
        "n_features",
        "given",
        "resolved",
        "features",
        "endogenous",
        "history",
        "statistics",
        "seed_used",
    ],
)
def test_a_header_that_lacks_something_is_refused(saved, key):
    rewrite(saved, lambda h: h.pop(key) and None)
    with pytest.raises(CheckpointError, match=f"model.safetensors is .*{key}"):
        load_model(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_topics", 0), ("num_topics", "x"), ("num_topics", 10**12), ("nonsense", 1), ("feature_type", "accessibility"),
     ("extra_features_keys", ["a"]), ("hidden", 10**12), ("embedding_size", [])],
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
    tensors = safetensors.torch.load_file(saved)
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
