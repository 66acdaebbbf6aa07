"""Every option does what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mira_core import options as opt
from mira_core.errors import OptionError
from mira_core.nn.blocks import Dropout
from mira_core.nn.network import TopicNetwork
from mira_core.nn.peak_encoders import DANEncoder, LSIEncoder
from mira_core.records import EpochRecord, StepRecord
from mira_core.training import objective, schedules
from tests.helpers import FAMILIES, arrays, make, make_cells, make_network, read_cells, same, with_columns

CODAL = FAMILIES["CODAL"]
FAST = FAMILIES["fast"]
TOLD_CASES: set[str] = set()


def of(*names: str) -> Callable:
    """Say which options a test is about."""
    TOLD_CASES.update(names)
    return lambda test: test


@pytest.fixture
def few():
    """40 x 12 counts with covariates and an extra feature."""
    adata = with_columns(make_cells(40, 12))
    adata.var["chosen"] = np.arange(12) < 9
    adata.var["seen"] = np.arange(12) % 2 == 0
    return adata


def fit(adata, **options):
    return make(adata, **{"batch_size": 20, "num_epochs": 2, "num_topics": 3, "hidden": 6, **options}).fit(
        adata, progress=False
    )


def steps(adata, **options) -> list[StepRecord]:
    model = make(adata, **{"batch_size": 20, "num_epochs": 5, "hidden": 6, **options})
    return [r for r in model.fit_records(adata) if isinstance(r, StepRecord)]


def start(adata, **options) -> dict[str, torch.Tensor]:
    """Everything in the network before the first step."""
    model = make(adata, **{"num_layers": 3, **options})
    return model._begin(read_cells(adata, **options)).network.state_dict()


def shapes_changed(adata, family: dict, **options) -> set[str]:
    """Tensors that one option gives another shape, or adds, or takes away."""
    a, b = (start(adata, **given) for given in (family, {**family, **options}))
    return {name for name in a.keys() | b.keys() if name not in a or name not in b or a[name].shape != b[name].shape}


def weights(names: Iterable[str]) -> set[str]:
    """Those of linear layers and embeddings; a batch normalisation follows its layer, and has a running mean."""
    return {n for n in names if n.endswith("weight") and n.replace("weight", "running_mean") not in names}


def test_every_option_has_a_test_here():
    assert set(opt.names()) == TOLD_CASES


# --- data -----------------------------------------------------------------------------------------


@of("feature_type")
def test_feature_type_chooses_counts_or_presence(few):
    more = few.copy()
    more.X = sp.csr_matrix(few.X.multiply(3).tocsr())
    one, other = (fit(a, **FAST) for a in (few, more))
    assert same(arrays(one), arrays(other))  # only presence counts
    one, other = fit(few), fit(more)
    assert not same(arrays(one), arrays(other))
    gone = set(arrays(one)) - set(arrays(fit(few, **FAST)))
    assert "log_dispersion_G" in gone
    assert any("residuals" in name for name in gone)


@of("highly_variable_key", "exogenous_key")
def test_keys_of_modelled_features_choose_them(few):
    model = fit(few, highly_variable_key="chosen")
    assert list(model.features) == [f"gene{j}" for j in range(9)]
    assert same(arrays(model), arrays(fit(few[:, :9].copy())))
    assert same(arrays(model), arrays(fit(few, exogenous_key="chosen")))
    model.predict(few)
    assert np.isnan(model.impute(few)).all(0).tolist() == [False] * 9 + [True] * 3
    assert len(fit(few).features) == 12


@of("endogenous_key")
def test_the_endogenous_key_chooses_what_the_encoder_sees(few):
    changed = shapes_changed(few, {}, endogenous_key="seen")
    assert changed == {"encoder.layers.0.0.weight", "encoder.residuals.share_E"}
    model = fit(few, endogenous_key="seen")
    assert len(model.features) == 12
    # counts moved between features that the encoder does not see change no cell's topics
    model.predict(few)
    moved = few.copy()
    x = few.X.toarray()
    x[:, [1, 3]] = x[:, [3, 1]]
    moved.X = sp.csr_matrix(x)
    assert np.array_equal(model.predict(moved).obsm["X_topic_compositions"], few.obsm["X_topic_compositions"])
    assert shapes_changed(few, FAST, endogenous_key="seen") <= {"encoder.layers.0.0.weight"}  # LSI of fewer peaks


@of("counts_layer")
def test_the_counts_layer_holds_the_counts(few):
    layered = few.copy()
    layered.layers["raw"] = few.X.copy()
    layered.X = sp.csr_matrix(few.X.multiply(0.37).tocsr())
    assert same(arrays(fit(layered, counts_layer="raw")), arrays(fit(few)))


@of("categorical_covariates", "continuous_covariates", "covariates_keys")
def test_covariates_are_coded_by_their_kind_and_told_to_encoder_and_decoder(few):
    few.obs["scaled"] = 100 * few.obs["quality"] - 7
    few.obs["renamed"] = few.obs["batch"].map({"a": "x", "b": "y"})
    told = {"categorical_covariates": ["batch"], "continuous_covariates": ["quality"], "covariates_keys": ["quality"]}
    models = {kind: fit(few, **{kind: columns}) for kind, columns in told.items()}
    n = {k: m.network.technical.hidden[0].weight.shape[1] - m.network.num_topics for k, m in models.items()}
    assert n == {"categorical_covariates": 2, "continuous_covariates": 1, "covariates_keys": 1}
    plain = fit(few).network.encoder.layers[0][0].weight.shape[1]
    assert {k: m.network.encoder.layers[0][0].weight.shape[1] - plain for k, m in models.items()} == n
    same_again = {
        "categorical_covariates": (["renamed"], True),  # names do not matter
        "continuous_covariates": (["scaled"], True),  # nor units, of what is standardised
        "covariates_keys": (["scaled"], False),
    }
    for kind, (columns, equal) in same_again.items():
        a, b = arrays(models[kind]), arrays(fit(few, **{kind: columns}))
        assert all(np.allclose(a[k], b[k], rtol=1e-3, atol=1e-4) for k in a) == equal, kind
    codal = models["categorical_covariates"]
    codal.predict(few)
    one = codal.get_batch_effect(few)
    few.obs["batch"] = np.where(few.obs["batch"] == "a", "b", "a")
    assert not np.allclose(codal.get_batch_effect(few), one)  # the same topics, the other batch


@of("extra_features_keys")
def test_extra_features_are_told_to_the_encoder_only(few):
    for family, first in (
        ({}, "layers.0.0"), (FAST, "layers.0.0"), (FAMILIES["skipDAN"], "blocks.0.0"), (CODAL, "layers.0.0")
    ):  # fmt: skip
        assert shapes_changed(few, family, extra_features_keys=["extra"]) == {f"encoder.{first}.weight"}
    model = fit(few, extra_features_keys=["extra"])
    one = model.predict(few).obsm["X_topic_compositions"].copy()
    few.obs["extra"] += 5
    assert not np.allclose(model.predict(few).obsm["X_topic_compositions"], one, atol=1e-3)


# --- topics ---------------------------------------------------------------------------------------


@of("num_topics")
def test_the_number_of_topics_is_that_of_the_columns(few):
    model = fit(few, num_topics=7)
    assert model.predict(few).obsm["X_topic_compositions"].shape == (40, 7)
    assert model.topic_cols == [f"topic_{k}" for k in range(7)]
    changed = shapes_changed(few, CODAL, num_topics=7)
    assert weights(changed) == {"encoder.layers.2.weight", "decoder.beta.weight", "technical.hidden.0.weight"}
    assert {"prior.loc_K", "prior.log_scale_K"} < changed


@of("cost_beta", "dependence_beta")
def test_weights_of_the_regularising_terms_multiply(few):
    # without the divergence of a read depth and the prior of effects, the records tell all terms
    family = {**FAMILIES["CODAL+fast"], "topic_effect_scale": None, "technical_effect_scale": None}
    ones = {"cost_beta": 1.0, "dependence_beta": 1.0}
    plain = steps(few, **family, **ones)
    for given, kl, dependence in (({"cost_beta": 1.7}, 1.7, 1.7), ({"dependence_beta": 2.5}, 1.0, 2.5)):
        other = steps(few, **family, **{**ones, **given})
        for a, b in zip(plain, other, strict=True):
            assert b.kl_weight == pytest.approx(kl * a.kl_weight)
            assert b.dependence_weight == pytest.approx(dependence * a.dependence_weight)
            assert (b.learning_rate, b.momentum) == (a.learning_rate, a.momentum)
            assert b.loss == pytest.approx(
                b.distortion + b.kl_weight * b.rate + b.dependence_weight * b.dependence, rel=1e-5
            )
        first, second = plain[0], other[0]  # before anything moved, only the weights differ
        assert (first.distortion, first.rate, first.dependence) == (second.distortion, second.rate, second.dependence)
        assert plain[-1].distortion != other[-1].distortion
    assert [r.dependence_weight for r in plain] == [schedules.dependence(t, 10) for t in range(10)]
    assert {r.dependence_weight for r in steps(few, **family, dependence_beta=0)} == {0.0}


@of("initial_pseudocounts")
def test_initial_pseudocounts_are_the_priors_mean_and_the_posteriors_start(few):
    few_counts, many = (start(few, initial_pseudocounts=n) for n in (8, 80))
    differ = {name for name in many if not torch.equal(many[name], few_counts[name])}
    assert differ == {"prior.loc_K"}  # its spread is a share of its mean
    model = fit(few, initial_pseudocounts=8, num_topics=4)
    assert 2.0 / model.network.prior.rate == pytest.approx(8 / 4)
    spread = few_counts["prior.log_scale_K"].exp()
    torch.testing.assert_close((few_counts["prior.loc_K"] + spread**2 / 2).exp(), torch.full((4,), 2.0))


@of("topic_prior")
def test_the_topic_prior_changes_the_prior_alone_and_leaves_topics_empty_that_are_not_needed(cells):
    changed = shapes_changed(cells, {}, topic_prior="dirichlet_process")
    assert changed == {"prior.loc_K", "prior.log_scale_K", "prior.log_shape", "prior.log_rate"}
    used = {}
    for prior in ("dirichlet", "dirichlet_process"):  # of data with four topics
        model = make(cells, topic_prior=prior, num_topics=16, num_epochs=40).fit(cells, progress=False)
        theta = model.predict(cells).obsm["X_topic_compositions"]
        used[prior] = int((theta.mean(0) > 0.01).sum())
    assert used["dirichlet_process"] < used["dirichlet"]


# --- encoder --------------------------------------------------------------------------------------


@of("hidden")
def test_hidden_is_the_width_of_the_encoder(few):
    for family, wanted in (
        ({}, {"encoder.layers.0.0.weight", "encoder.layers.1.0.weight", "encoder.layers.2.weight"}),
        (FAST, {"encoder.layers.0.0.weight", "encoder.layers.1.0.weight", "encoder.layers.2.weight"}),
        (FAMILIES["skipDAN"], {"encoder.embedding.weight", "encoder.blocks.0.0.weight", "encoder.out.0.weight"}),
    ):
        assert weights(shapes_changed(few, family, hidden=9)) == wanted
    assert fit(few, hidden=9).network.encoder.layers[-2].weight.shape[1] == 9


@of("num_layers")
def test_num_layers_counts_the_layers_of_the_encoder_with_the_last(few):
    for family, first in (({}, 2), (FAST, 2), (FAMILIES["DAN"], 2), (FAMILIES["skipDAN"], 3)):
        for n in range(first, 6):
            state = start(few, **family, num_layers=n)
            inner = {name for name in state if name.startswith("encoder.")}
            assert len(weights(inner)) == n  # of a deep averaging network, the table of embeddings is the first
    changed = shapes_changed(few, {}, num_layers=4)
    assert all(name.startswith("encoder.") for name in changed)


@of("embedding_size")
def test_embedding_size_is_the_width_of_the_first_layer(few):
    assert weights(shapes_changed(few, {}, embedding_size=7)) == {
        "encoder.layers.0.0.weight", "encoder.layers.1.0.weight"
    }  # fmt: skip
    assert start(few, embedding_size=7)["encoder.layers.0.0.weight"].shape[0] == 7
    assert start(few, **FAMILIES["DAN"], embedding_size=7)["encoder.embedding.weight"].shape == (12, 7)
    assert weights(shapes_changed(few, FAMILIES["DAN"], embedding_size=7)) == {
        "encoder.embedding.weight", "encoder.blocks.0.0.weight"
    }  # fmt: skip
    assert not shapes_changed(few, {}, embedding_size=None)


DROPOUTS = {
    "encoder_dropout": ("expression", {"encoder.layers.0.3", "encoder.layers.1.3"}),
    "decoder_dropout": ("expression", {"theta_dropout"}),
    "embedding_dropout": ("skipDAN", {"encoder.peaks.dropout"}),
    "covariates_dropout": ("CODAL", {"technical.hidden.3", "dependence_dropout"}),
    "mask_dropout": ("CODAL", {"technical_mask"}),
}


def training_and_evaluation(few, family: str, name: str, rate: float) -> tuple[float, float]:
    """The loss of the same weights and draws, dependence included, while training and while not."""
    given = {**FAMILIES[family], name: rate}
    cells = read_cells(few, **FAMILIES[family])
    batch = cells.batch(np.arange(40)).to(torch.device("cpu"), torch.float64)
    network = make_network(cells, **{"num_layers": 3, **given})
    out = []
    for training in (True, False):
        generator = torch.Generator().manual_seed(0)
        network.train(training).use_generator(generator)
        terms, theta_BK = objective.loss_terms(network, batch, objective.draw(network, batch, generator))
        if network.dependence is not None:
            game = objective.play(network, batch, theta_BK, torch.Generator().manual_seed(1))
            terms = terms._replace(dependence=game.dependence)
        out.append(terms.loss(1.0, 1.0).item())
        network.eval()
    return tuple(out)


@of(*DROPOUTS)
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_rates_reach_their_layers_and_change_training_only(few, name):
    family, places = DROPOUTS[name]
    cells = read_cells(few, **FAMILIES[family])
    network = make_network(cells, **{"num_layers": 3, **FAMILIES[family], name: 0.4})
    assert {n for n, layer in network.named_modules() if isinstance(layer, Dropout) and layer.p == 0.4} == places
    without, with_dropout = (training_and_evaluation(few, family, name, rate) for rate in (0.0, 0.4))
    assert with_dropout[0] != pytest.approx(without[0], rel=1e-6)
    losses = {rate: [r.loss for r in steps(few, **FAMILIES[family], **{name: rate})] for rate in (0.0, 0.4)}
    assert losses[0.0][1:] != losses[0.4][1:]


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_rates_do_not_matter_once_trained(few, name):
    """The same weights and running statistics score alike, whatever the rate they were trained with."""
    family, _ = DROPOUTS[name]
    one, other = (fit(few, **FAMILIES[family], **{name: rate}) for rate in (0.0, 0.4))
    assert one.score(few) != other.score(few)
    other.network.load_state_dict(one.network.state_dict())
    assert one.score(few) == other.score(few)
    a, b = (m.predict(few.copy()).obsm["X_topic_compositions"] for m in (one, other))
    assert np.array_equal(a, b)


# --- decoder --------------------------------------------------------------------------------------


@of("nb_parameterize_logspace")
def test_the_parameterisation_changes_the_path_and_not_the_value(few, monkeypatch):
    paths = []
    honest = objective.negative_binomial

    def watch(batch, profile, log_depth_B, log_dispersion_G, logspace=True):
        paths.append(logspace)
        return honest(batch, profile, log_depth_B, log_dispersion_G, logspace)

    monkeypatch.setattr(objective, "negative_binomial", watch)
    told = {}
    for logspace in (True, False):
        paths.clear()
        model = fit(few, nb_parameterize_logspace=logspace)
        assert set(paths) == {logspace}
        told[logspace] = [*model.training_loss, model.score(few)]
    np.testing.assert_allclose(told[True], told[False], rtol=1e-4)
    assert told[True] != told[False]  # to the last digit


@of("topic_effect_scale", "technical_effect_scale")
def test_scales_of_effects_keep_them_small(few):
    for name, effects in (
        ("topic_effect_scale", lambda network: network.decoder.effects()),
        ("technical_effect_scale", lambda network: network.technical.gamma_G),
    ):
        spread = {
            scale: effects(fit(few, **CODAL, num_epochs=30, **{name: scale}).network).square().mean().sqrt().item()
            for scale in (0.02, 0.2, None)
        }
        assert spread[0.02] < 0.5 * spread[0.2] < 0.5 * spread[None], name
    strong, none = (steps(few, **CODAL, topic_effect_scale=scale)[0] for scale in (0.5, None))
    told = ("distortion", "rate", "dependence", "kl_weight", "dependence_weight")
    assert [getattr(strong, n) for n in told] == [getattr(none, n) for n in told]  # before the first step
    assert strong.loss > none.loss


# --- training -------------------------------------------------------------------------------------


@of("num_epochs", "batch_size")
def test_epochs_and_sizes_of_minibatches_are_as_told(few, monkeypatch):
    sizes = []
    honest = objective.draw
    monkeypatch.setattr("mira_core.training.step.draw", lambda n, b, g: sizes.append(b.n_cells) or honest(n, b, g))
    model = make(few, num_epochs=4, batch_size=12)
    records = list(model.fit_records(few))
    assert sizes == [12] * (4 * 3)  # 40 cells; the four left over wait for another shuffle
    assert [r.epoch for r in records if isinstance(r, EpochRecord)] == [1, 2, 3, 4]


@of("min_learning_rate", "max_learning_rate", "min_momentum", "max_momentum")
def test_learning_rate_and_momentum_go_their_cycle(few):
    given = {"min_learning_rate": 0.003, "max_learning_rate": 0.07, "min_momentum": 0.6, "max_momentum": 0.9}
    told = steps(few, num_epochs=10, **given)  # 20 steps, of which 6 rise
    rates, momenta = [r.learning_rate for r in told], [r.momentum for r in told]
    assert rates[0] == pytest.approx(0.003)
    assert rates[5] == max(rates) == pytest.approx(0.07)
    assert rates[-1] == pytest.approx(0.003e-4)
    assert momenta[0] == momenta[-1] == pytest.approx(0.9)
    assert momenta[5] == min(momenta) == pytest.approx(0.6)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)


@of("min_learning_rate", "max_learning_rate", "min_momentum", "max_momentum")
def test_learning_rate_and_momentum_reach_the_optimiser(few, monkeypatch):
    seen = []
    honest = torch._fused_adamw_

    def watch(*args, lr, beta1, beta2, **kwargs):
        seen.append((lr, (beta1, beta2)))
        return honest(*args, lr=lr, beta1=beta1, beta2=beta2, **kwargs)

    monkeypatch.setattr(torch, "_fused_adamw_", watch)
    told = steps(few, max_learning_rate=0.07, max_momentum=0.9)
    assert seen == [(r.learning_rate, (r.momentum, 0.999)) for r in told]
    a, b = (fit(few, min_learning_rate=1e-9, max_learning_rate=rate) for rate in (1e-9, 1e-1))
    first = start(few, hidden=6, num_topics=3, num_layers=2)
    still, moved = ((m.network.decoder.beta.weight - first["decoder.beta.weight"]).abs().max() for m in (a, b))
    assert still < 1e-7 < 1e-2 < moved


@of("kl_strategy")
def test_the_kl_strategy_is_the_curve_of_the_weight(few):
    for name in ("cyclic", "monotonic"):
        told = steps(few, kl_strategy=name, num_epochs=15, cost_beta=1.0)
        assert [r.kl_weight for r in told] == [schedules.ANNEALING[name](t, 30) for t in range(30)]
    a, b = (steps(few, kl_strategy=name, cost_beta=1.0) for name in ("cyclic", "monotonic"))
    assert (a[0].distortion, a[0].rate) == (b[0].distortion, b[0].rate)


@of("weight_decay")
def test_weight_decay_shrinks_the_weights_of_the_model_and_not_those_of_the_critic(few):
    given = {**CODAL, "num_epochs": 20, "dependence_lr": 1e-30}
    free, decayed = (fit(few, weight_decay=d, **given).network for d in (0.0, 5.0))
    for name in ("decoder.beta.weight", "encoder.layers.0.0.weight", "technical.out.weight"):
        assert decayed.get_parameter(name).norm() < 0.5 * free.get_parameter(name).norm()
    for one, other in zip(free.dependence.parameters(), decayed.dependence.parameters(), strict=True):
        assert torch.equal(one, other)


@of("seed")
def test_the_seed_decides_weights_shuffling_and_draws(few):
    assert same(arrays(fit(few, seed=5)), arrays(fit(few, seed=5)))
    assert not same(arrays(fit(few, seed=5)), arrays(fit(few, seed=6)))
    a, b = start(few, seed=5), start(few, seed=6)
    assert not torch.equal(a["decoder.beta.weight"], b["decoder.beta.weight"])
    assert torch.equal(a["decoder.base_G"], b["decoder.base_G"])
    unseeded = fit(few, seed=None)
    assert unseeded.seed is None
    assert same(arrays(unseeded), arrays(fit(few, seed=unseeded.seed_used)))


@of("use_cuda")
@pytest.mark.parametrize("there_is_one", [True, False])
def test_a_gpu_is_used_if_there_is_one_and_it_is_wanted(few, monkeypatch, there_is_one):
    devices = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: there_is_one)
    monkeypatch.setattr(TopicNetwork, "to", lambda self, device: devices.append(str(device)))
    fit(few)
    fit(few, use_cuda=True)
    fit(few, use_cuda=False)
    assert devices == (["cuda", "cuda", "cpu"] if there_is_one else ["cpu"] * 3)


# --- CODAL ----------------------------------------------------------------------------------------


@of("dependence_lr")
def test_the_critics_learning_rate_moves_the_critic_alone(few):
    after_one = {}
    for lr in (1e-30, 1e-4, 1e-2):
        model = make(few, hidden=6, dependence_lr=lr, **CODAL)
        training = model.fit_records(few)
        next(training)
        after_one[lr] = arrays(model)
        training.close()
    first = start(few, hidden=6, num_layers=3, **CODAL)
    critic = {name for name in first if name.startswith("dependence.") and name.endswith(("weight", "bias"))}
    for lr, state in after_one.items():
        moved = max(np.abs(state[name] - first[name].numpy()).max() for name in critic)
        assert moved == pytest.approx(lr if lr > 1e-9 else 0.0, rel=0.01)  # Adam's first step
        rest = state.keys() - critic
        assert all(np.array_equal(state[name], after_one[1e-30][name]) for name in rest)


@of("dependence_hidden", "covariates_hidden")
def test_hidden_sizes_of_codal_are_those_of_their_networks(few):
    assert weights(shapes_changed(few, CODAL, dependence_hidden=9)) == {
        f"dependence.critic.{i}.weight" for i in (0, 2, 4)
    }
    assert start(few, **CODAL, dependence_hidden=9)["dependence.critic.2.weight"].shape == (9, 9)
    assert weights(shapes_changed(few, CODAL, covariates_hidden=9)) == {
        "technical.hidden.0.weight", "technical.out.weight"
    }  # fmt: skip
    assert start(few, **CODAL, covariates_hidden=9)["technical.out.weight"].shape == (12, 9)


@of("marginal_estimation_size")
def test_as_many_mismatched_pairs_are_drawn_as_told(few, monkeypatch):
    drawn = []
    honest = objective.mismatched_pairs

    def watch(n_cells, n_pairs, generator, device):
        drawn.append((n_cells, n_pairs))
        pairs = honest(n_cells, n_pairs, generator, device)
        assert len(pairs[0]) == n_pairs
        return pairs

    monkeypatch.setattr(objective, "mismatched_pairs", watch)
    for n in (1, 37):
        drawn.clear()
        told = steps(few, **CODAL, marginal_estimation_size=n)
        assert drawn == [(20, n)] * len(told)  # once a step


# --- accessibility --------------------------------------------------------------------------------


@of("atac_encoder")
def test_the_encoder_of_peaks_is_the_one_named(few):
    encoders = {name: fit(few, **FAMILIES[name]).network.encoder for name in ("skipDAN", "DAN", "fast")}
    assert {name: type(e) for name, e in encoders.items()} == {
        "skipDAN": DANEncoder, "DAN": DANEncoder, "fast": LSIEncoder
    }  # fmt: skip
    assert (encoders["skipDAN"].skip, encoders["DAN"].skip) == (True, False)
    changed = shapes_changed(few, FAMILIES["DAN"], atac_encoder="skipDAN")
    assert changed
    assert all(name.startswith("encoder.norm.") for name in changed)
    changed = shapes_changed(few, FAMILIES["DAN"], atac_encoder="fast")
    assert all(name.startswith("encoder.") for name in changed)


@of("dan_on_cpu")
@pytest.mark.parametrize("encoder", ["skipDAN", "DAN"])
def test_deep_averaging_needs_leave_to_train_without_a_gpu(few, monkeypatch, encoder):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = {**FAMILIES[encoder]}
    with pytest.raises(OptionError, match=f"the {encoder} encoder needs a GPU to train, and there is none"):
        make(few, **given, dan_on_cpu=False)
    with pytest.raises(OptionError, match="and use_cuda is off"):
        make(few, **given, dan_on_cpu=False, use_cuda=False)
    model = fit(few, **given, dan_on_cpu=True)
    with pytest.raises(OptionError, match="needs a GPU to train"):
        model.set_params(dan_on_cpu=False).fit(few, progress=False)
    assert model.predict(few).obsm["X_topic_compositions"].shape == (40, 3)  # predicting needs none
    assert make(few, **FAST)
