"""Layers, residuals, prior and decoder against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.sparse as sp
import scipy.stats
import torch
from pyro.distributions import Gamma, LogNormal

from mira_core.data.statistics import Statistics, learn
from mira_core.models.generative import PseudocountPosterior, pseudocount_divergence
from mira_core.nn import blocks
from mira_core.nn.encoders import DevianceResiduals, ExpressionEncoder
from mira_core.nn.prior import DirichletPrior, laplace_approximation
from tests.helpers import make_cells, make_network, read_cells

CPU, FLOAT64 = torch.device("cpu"), torch.float64


# --- deviance residuals ---------------------------------------------------------------------------


def xlogy_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a log(a / b) with 0 log 0 = 0."""
    with np.errstate(all="ignore"):
        return np.where(a == 0, 0.0, a * np.log(a / b))


def plain_residuals(y: np.ndarray, share: np.ndarray, mean_depth: float) -> np.ndarray:
    """The formula of the issue, dense: N x E."""
    m = y.sum(1, keepdims=True)
    mu = m * share
    with np.errstate(all="ignore"):
        inside = 2 * (xlogy_ratio(y, mu) + xlogy_ratio(m - y, m - mu))
        r = np.sign(y - mu) * np.sqrt(np.maximum(inside, 0)) * np.sqrt(1000 / mean_depth)
    return np.clip(np.where(np.isnan(r), 0, r), -10, 10)


def residuals_of(adata, endogenous=None, dtype=FLOAT64, cells_of=None):
    if endogenous is not None:
        adata.var["seen"] = endogenous
    options = {} if endogenous is None else {"endogenous_key": "seen"}
    train = read_cells(adata, **options)
    s = learn(train)
    shown = train if cells_of is None else read_cells(cells_of)
    batch = shown.batch(np.arange(len(shown))).to(CPU, dtype)
    return DevianceResiduals(train.endogenous, s)(batch), s


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subset", [False, True])
def test_residuals_equal_the_plain_formula(seed, subset):
    adata = make_cells(30, 12, seed)
    seen = np.arange(12) % 3 != 0 if subset else np.ones(12, bool)
    got, _ = residuals_of(adata, seen)
    y = adata.X.toarray().astype(float)[:, seen]
    wanted = plain_residuals(y, y.sum(0) / y.sum(), y.sum(1).mean())
    assert (wanted < 0).any()
    assert (wanted > 0).any()
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_residuals_in_single_precision_are_near():
    adata = make_cells(60, 40, 5)
    adata.X = sp.csr_matrix(adata.X.multiply(30).tocsr())
    got, _ = residuals_of(adata, dtype=torch.float32)
    y = adata.X.toarray().astype(float)
    np.testing.assert_allclose(got.numpy(), plain_residuals(y, y.sum(0) / y.sum(), y.sum(1).mean()), atol=2e-3)
    assert got.dtype == torch.float32


def test_residuals_are_clipped_at_ten():
    adata = make_cells(40, 6)
    x = adata.X.toarray()
    x[0] = [3000, 0, 0, 0, 0, 1]
    adata.X = sp.csr_matrix(x)
    got, _ = residuals_of(adata)
    y = x.astype(float)
    np.testing.assert_allclose(
        got.numpy(), plain_residuals(y, y.sum(0) / y.sum(), y.sum(1).mean()), rtol=1e-9, atol=1e-9
    )
    assert got.abs().max() == 10


def test_residuals_use_the_training_cells_and_know_features_they_never_saw():
    train, new = make_cells(30, 8, 1), make_cells(10, 8, 2)
    x = train.X.toarray()
    x[:, 3] = 0
    train.X = sp.csr_matrix(x)
    got, s = residuals_of(train, cells_of=new)
    y = new.X.toarray().astype(float)
    np.testing.assert_allclose(
        got.numpy(), plain_residuals(y, s.endogenous_share, s.endogenous_depth), rtol=1e-9, atol=1e-9
    )
    assert (got[:, 3][torch.from_numpy(y[:, 3] > 0)] == 10).all()


def test_a_cell_that_holds_one_feature_only_and_one_without_encoder_features():
    adata = make_cells(20, 6)
    x = adata.X.toarray()
    x[4] = [9, 0, 0, 0, 0, 0]
    x[7] = [0, 0, 0, 0, 0, 4]
    adata.X = sp.csr_matrix(x)
    seen = np.arange(6) < 5
    got, _ = residuals_of(adata, seen)
    y = x[:, :5].astype(float)
    np.testing.assert_allclose(
        got.numpy(), plain_residuals(y, y.sum(0) / y.sum(), y.sum(1).mean()), rtol=1e-9, atol=1e-9
    )
    assert (got[7] == 0).all()


def test_a_single_encoder_feature_gives_zeros():
    got, _ = residuals_of(make_cells(10, 5), np.arange(5) == 2)
    assert got.shape == (10, 1)
    assert (got == 0).all()


# --- prior ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 3, 17])
def test_laplace_approximation_equals_a_plain_loop(K):
    a = np.random.default_rng(K).gamma(2, 2, K)
    mu, sigma = laplace_approximation(torch.from_numpy(a))
    for k in range(K):
        mean_log = sum(math.log(x) for x in a) / K
        variance = (1 / a[k]) * (1 - 2 / K) + sum(1 / x for x in a) / K**2
        assert mu[k].item() == pytest.approx(math.log(a[k]) - mean_log, rel=1e-12, abs=1e-12)
        assert sigma[k].item() == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_laplace_approximation_of_a_large_dirichlet_has_its_moments():
    """Contrasts of log theta under Dirichlet(a): mean digamma(a_j) - digamma(a_k), known to 1 / a."""
    a = np.array([40.0, 80.0, 120.0, 60.0])
    draws = np.log(np.random.default_rng(0).dirichlet(a, 200_000))
    draws -= draws.mean(1, keepdims=True)
    mu, sigma = laplace_approximation(torch.from_numpy(a))
    np.testing.assert_allclose(draws.mean(0), mu, atol=0.01)
    np.testing.assert_allclose(draws.std(0), sigma, rtol=0.03)


@pytest.mark.parametrize(
    ("m", "s", "alpha", "beta"), [(0.3, 0.5, 2.0, 1.5), (-2.0, 1.2, 2.0, 0.08), (3.0, 0.1, 0.7, 4.0)]
)
def test_divergence_of_pseudocounts_equals_numerical_integration(m, s, alpha, beta):
    q, p = scipy.stats.lognorm(s, scale=math.exp(m)), scipy.stats.gamma(alpha, scale=1 / beta)

    def integrand(u: float) -> float:  # over u = log a
        a = math.exp(u)
        return scipy.stats.norm.pdf(u, m, s) * (q.logpdf(a) - p.logpdf(a))

    wanted, _ = scipy.integrate.quad(integrand, m - 12 * s, m + 12 * s, epsabs=1e-12, epsrel=1e-12, limit=500)
    t = [torch.tensor(v, dtype=FLOAT64) for v in (m, s, alpha, beta)]
    got = pseudocount_divergence(*t)
    assert got.dtype == FLOAT64
    assert got.item() == pytest.approx(wanted, rel=1e-9)
    registered = torch.distributions.kl_divergence(PseudocountPosterior(*t[:2]), Gamma(*t[2:]))
    assert registered.item() == got.item()


def test_divergence_is_registered_for_our_own_class_only():
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(LogNormal(0.0, 1.0), Gamma(2.0, 1.0))


@pytest.mark.parametrize(("K", "pseudocounts"), [(4, 50), (20, 7)])
def test_the_guide_of_pseudocounts_starts_at_the_moments_of_the_prior(K, pseudocounts):
    prior = DirichletPrior(K, pseudocounts).double()
    q = LogNormal(prior.loc_K, prior.scale_K)
    p = Gamma(torch.tensor(2.0, dtype=FLOAT64), torch.tensor(2 * K / pseudocounts, dtype=FLOAT64))
    assert prior.rate == pytest.approx(2 * K / pseudocounts)
    torch.testing.assert_close(q.mean, p.mean.expand(K), rtol=1e-6, atol=0)
    torch.testing.assert_close(q.variance, p.variance.expand(K), rtol=1e-6, atol=0)
    assert p.mean.item() == pytest.approx(pseudocounts / K)
    assert p.variance.item() == pytest.approx((pseudocounts / K) ** 2 / 2)


# --- layers ---------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_zeroes_at_its_rate():
    layer = blocks.Dropout(0.25)
    layer.generator = torch.Generator().manual_seed(0)
    out = layer(torch.ones(200_000))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == 0).double().mean().item() == pytest.approx(0.25, abs=0.005)


def test_dropout_draws_from_its_own_generator():
    layer = blocks.Dropout(0.5)
    before = torch.get_rng_state()
    out = []
    for _ in range(2):
        layer.generator = torch.Generator().manual_seed(1)
        out.append(layer(torch.ones(100)))
    assert torch.equal(*out)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_does_nothing_at_rate_zero_or_in_evaluation():
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert blocks.Dropout(0.0)(x) is x
    assert blocks.Dropout(0.9).eval()(x) is x


def test_weights_are_drawn_from_the_generator_given_within_torchs_bounds():
    drawn = []
    for seed in (0, 0, 1):
        layers = blocks.encoder_stack(30, 8, 6, 4, 3, 0.1)
        blocks.initialise(layers, torch.Generator().manual_seed(seed))
        drawn.append([m.weight for m in layers.modules() if isinstance(m, torch.nn.Linear)])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert drawn[0][0].abs().max() <= 1 / math.sqrt(30)
    assert drawn[0][0].std().item() == pytest.approx(1 / math.sqrt(90), rel=0.2)


@pytest.mark.parametrize(
    ("num_layers", "embedding", "shapes"),
    [(2, None, [(6, 20), (8, 6)]), (3, None, [(6, 20), (6, 6), (8, 6)]), (4, 9, [(9, 20), (6, 9), (6, 6), (8, 6)]),
     (2, 9, [(9, 20), (8, 9)])],
)  # fmt: skip
def test_widths_of_the_encoder(num_layers, embedding, shapes):
    layers = blocks.encoder_stack(20, embedding or 6, 6, 8, num_layers, 0.1)
    linear = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == shapes
    assert all(m.bias is None for m in linear)
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in layers.modules()) == num_layers
    assert sum(isinstance(m, torch.nn.ReLU) for m in layers.modules()) == num_layers - 1
    assert isinstance(layers[-1], torch.nn.BatchNorm1d)


# --- encoder and decoder --------------------------------------------------------------------------


def test_the_encoder_shows_residuals_log_depth_and_extra_features(tiny):
    tiny.obs["a"] = np.arange(12.0)
    cells = read_cells(tiny, extra_features_keys="a")
    network = make_network(cells)
    batch = cells.batch(np.arange(12)).to(CPU, FLOAT64)
    shown = torch.cat(
        [
            network.encoder.residuals(batch),
            batch.depth_B.log()[:, None],
            torch.arange(12.0, dtype=FLOAT64)[:, None],
        ],
        1,
    )
    q, out = network.encoder(batch), network.encoder.layers(shown)
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(q.theta_loc_BK, out[:, :3])
    torch.testing.assert_close(q.theta_scale_BK, softplus(out[:, 3:6]))
    torch.testing.assert_close(q.depth_loc_B, batch.depth_B.log() + 0.1 * out[:, 6])
    torch.testing.assert_close(q.depth_scale_B, 0.1 * softplus(out[:, 7]))


def test_embedding_size_is_the_width_of_the_first_layer(tiny):
    cells = read_cells(tiny)
    residuals = DevianceResiduals(cells.endogenous, learn(cells))
    encoder = ExpressionEncoder(residuals, 3, 5, 3, 11, 0.0)
    assert encoder.layers[0][0].weight.shape == (11, 8)
    assert encoder.layers[1][0].weight.shape == (5, 11)


def test_a_new_decoder_of_no_topic_effect_gives_the_mean_profile(tiny):
    cells = read_cells(tiny)
    network = make_network(cells)
    with torch.no_grad():
        network.decoder.norm.bias.zero_()
        network.decoder.beta.weight.zero_()
        rho = network.eval().decoder(torch.full((2, 3), 1 / 3, dtype=FLOAT64)).exp()
    np.testing.assert_allclose(rho[0], learn(cells).mean_profile, rtol=1e-5)


def test_topic_distributions_are_what_the_decoder_gives_for_a_pure_topic(tiny):
    cells = read_cells(tiny)
    network = make_network(cells)
    decoder = network.decoder
    with torch.no_grad():
        for _ in range(5):  # running statistics that are not those of the start
            decoder(torch.rand(16, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(1)).softmax(1))
        decoder.norm.weight[::2] *= -1  # the sign of a scale must not matter
        decoder.norm.weight[1] = 0
        pure = network.eval().decoder(torch.eye(3, dtype=FLOAT64)).exp()
    topics = decoder.topic_distributions()
    torch.testing.assert_close(topics, pure, rtol=1e-9, atol=0)
    torch.testing.assert_close(topics.sum(1), torch.ones(3, dtype=FLOAT64))


def test_activations_equal_the_formula(tiny):
    decoder = make_network(read_cells(tiny)).decoder
    n = decoder.norm
    beta, mean, var = decoder.beta.weight.detach().numpy(), n.running_mean.numpy(), n.running_var.numpy()
    sign = np.sign(n.weight.detach().numpy())
    wanted = np.array(
        [[sign[g] * (beta[g, k] - mean[g]) / math.sqrt(var[g] + n.eps) for g in range(7)] for k in range(3)]
    )
    np.testing.assert_allclose(decoder.activations().numpy(), wanted, rtol=1e-9)


def test_frequencies_sum_to_one(tiny):
    decoder = make_network(read_cells(tiny)).eval().decoder
    with torch.no_grad():
        rho = decoder(torch.rand(9, 3, dtype=FLOAT64)).exp()
    torch.testing.assert_close(rho.sum(1), torch.ones(9, dtype=FLOAT64))


def test_statistics_cannot_be_reassigned():
    s = Statistics(1, np.ones(2), np.ones(2), 1.0)
    with pytest.raises(AttributeError):
        s.n_cells = 3
