"""Layers, residuals, prior and decoder against plain formulas."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.sparse as sp
import scipy.special
import scipy.stats
import torch
from pyro.distributions import Beta, Gamma, LogNormal
from torch import nn

from mira_core import options as opt
from mira_core.data.counts import Batch
from mira_core.data.statistics import Statistics, learn
from mira_core.models.generative import (
    PseudocountPosterior,
    StickPosterior,
    StickPrior,
    log_normal_gamma_divergence,
)
from mira_core.nn import blocks
from mira_core.nn.decoder import TechnicalDecoder, log_cosh, normalise_aside, normalised
from mira_core.nn.dependence import Dependence
from mira_core.nn.encoders import DevianceResiduals, ExpressionEncoder
from mira_core.nn.prior import (
    DirichletPrior,
    DirichletProcessPrior,
    laplace_approximation,
    logit_normal_beta_divergence,
)
from tests.helpers import FAMILIES, make_cells, make_network, read_cells, with_columns

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
    residuals = DevianceResiduals(train.endogenous, s)
    r = residuals(batch)
    dense = residuals(Batch.of_counts(batch.counts_BG, batch.covariates_BC, batch.extra_BF))
    torch.testing.assert_close(dense, r, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-6)
    return r, s


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
    got = log_normal_gamma_divergence(*t)
    assert got.dtype == FLOAT64
    assert got.item() == pytest.approx(wanted, rel=1e-9)
    registered = torch.distributions.kl_divergence(PseudocountPosterior(*t[:2]), Gamma(*t[2:]))
    assert registered.item() == got.item()


def test_divergences_are_registered_for_our_own_classes_only():
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(LogNormal(0.0, 1.0), Gamma(2.0, 1.0))
    sticks = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(0.0, 1.0), [torch.distributions.SigmoidTransform()]
    )
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(sticks, Beta(1.0, 1.0))


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


STICKS = [(0.0, 1.0, 1.0), (-1.5, 0.3, 4.0), (2.5, 0.7, 0.6), (-3.0, 2.0, 9.0), (1.0, 3.0, 2.0), (0.2, 0.01, 1.3)]


def by_quadrature(*parameters: float) -> torch.Tensor:
    prior = DirichletProcessPrior(2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(prior.NODES)
    tensors = [torch.as_tensor(x, dtype=FLOAT64) for x in parameters]
    return logit_normal_beta_divergence(*tensors, torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum()))


@pytest.mark.parametrize(("loc", "scale", "alpha"), STICKS)
def test_divergence_of_sticks_equals_numerical_integration_over_the_stick(loc, scale, alpha):
    q_z, p = scipy.stats.norm(loc, scale), scipy.stats.beta(1, alpha)

    def integrand(v: float) -> float:
        log_q = q_z.logpdf(scipy.special.logit(v)) - math.log(v) - math.log1p(-v)
        return math.exp(log_q) * (log_q - p.logpdf(v)) if log_q > -700 else 0.0

    # where the mass lies, as far as a double can tell a stick from a whole one
    ends = np.clip(scipy.special.expit([loc + t * scale for t in (-12, -6, -3, 0, 3, 6, 12)]), 1e-300, 1 - 1e-15)
    parts = [scipy.integrate.quad(integrand, a, b, epsabs=1e-11, limit=400)[0] for a, b in itertools.pairwise(ends)]
    error = 2e-6 if scale <= 2 else 1e-5 * (1 + alpha)  # of the quadrature, which enters 1 + alpha times
    assert by_quadrature(loc, scale, alpha).item() == pytest.approx(sum(parts), rel=0, abs=error)


@pytest.mark.parametrize(("loc", "scale", "alpha"), STICKS)
def test_divergence_of_sticks_equals_many_draws(loc, scale, alpha):
    z = np.random.default_rng(0).normal(loc, scale, 400_000)
    log_v, log_rest = -np.logaddexp(0, -z), -np.logaddexp(0, z)
    log_q = scipy.stats.norm(loc, scale).logpdf(z) - log_v - log_rest
    log_p = math.log(alpha) + (alpha - 1) * log_rest  # of Beta(1, alpha)
    draws = log_q - log_p
    got = by_quadrature(loc, scale, alpha).item()
    assert got == pytest.approx(draws.mean(), abs=5 * draws.std() / math.sqrt(len(draws)))


def test_divergence_of_sticks_in_the_network_is_that_of_the_story():
    """The nodes of a network are single precision; the registered divergence is the same function."""
    prior = DirichletProcessPrior(4).double()
    loc, scale = torch.randn(2, 3, 5, dtype=FLOAT64, generator=torch.Generator().manual_seed(0)).unbind()
    scale, alpha = scale.exp(), torch.tensor(1.7, dtype=FLOAT64)
    q = StickPosterior(loc, scale, prior.nodes, prior.weights)
    wanted = [by_quadrature(m, s, 1.7) for m, s in zip(loc.flatten(), scale.flatten(), strict=True)]
    got = torch.distributions.kl_divergence(q, StickPrior(alpha.expand(3, 5)))
    np.testing.assert_allclose(got.flatten(), wanted, rtol=1e-6)


def test_the_divergence_of_a_stick_is_least_where_the_posterior_is_nearest_the_prior():
    prior = DirichletProcessPrior(2)
    noise = prior.log_rate.exp()  # for alpha = 1
    z = torch.zeros(1, 2)  # sigmoid(Normal(0, 1.8)) is nearly uniform, as Beta(1, 1) is
    spread = torch.tensor([0.3, 1.0, 1.7, 2.6, 4.0])
    told = [prior.topics_divergence(z, torch.full_like(z, s), noise).item() for s in spread]
    assert min(told) == told[2] > 0
    assert told[2] < 0.05


@pytest.mark.parametrize("K", [2, 3, 9, 40])
def test_stick_breaking_equals_a_plain_loop_and_sums_to_one(K):
    z = 2 * torch.randn(7, K, dtype=FLOAT64, generator=torch.Generator().manual_seed(K))
    theta = DirichletProcessPrior(K).double().theta(z)
    for i in range(7):
        v = [1 / (1 + math.exp(-x)) for x in z[i, : K - 1].tolist()] + [1.0]
        for k in range(K):
            wanted = v[k]
            for j in range(k):
                wanted *= 1 - v[j]
            assert theta[i, k].item() == pytest.approx(wanted, rel=1e-9, abs=1e-300)
    torch.testing.assert_close(theta.sum(1), torch.ones(7, dtype=FLOAT64))


def test_stick_breaking_of_extreme_sticks_is_finite_with_finite_gradients():
    z = torch.tensor([[-90.0, 90.0, 0.0], [90.0, -90.0, 0.0], [200.0, 200.0, 0.0]]).requires_grad_()
    prior = DirichletProcessPrior(3)
    theta = prior.theta(z)
    torch.testing.assert_close(theta[:2].detach(), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    divergence = prior.topics_divergence(z, torch.ones_like(z), prior.log_rate.detach().exp())
    (theta.sum() + divergence.sum()).backward()
    assert torch.isfinite(divergence).all()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("make", [lambda: DirichletPrior(7, 50), lambda: DirichletProcessPrior(7)])
def test_the_mean_divergence_over_draws_is_that_of_each(make):
    prior, generator = make(), torch.Generator().manual_seed(0)
    loc, scale = torch.randn(40, 7, generator=generator), torch.rand(40, 7, generator=generator) + 0.1
    draws = prior.fixed_noise(9)
    each = torch.stack([prior.topics_divergence(loc, scale, noise) for noise in draws])
    assert prior.mean_topics_divergence(loc, scale, draws).item() == pytest.approx(each.mean().item(), rel=1e-5)


@pytest.mark.parametrize(("shape", "rate"), [(2.0, 0.5), (5.0, 1.0), (0.7, 2.5), (40.0, 9.0)])
def test_divergence_of_the_concentration_equals_numerical_integration(shape, rate):
    prior = DirichletProcessPrior(5).double()
    with torch.no_grad():
        prior.log_shape.fill_(math.log(shape))
        prior.log_rate.fill_(math.log(rate))
    q, p = scipy.stats.gamma(shape, scale=1 / rate), scipy.stats.gamma(2.0, scale=2.0)

    def integrand(u: float) -> float:  # over u = log alpha
        return math.exp(u) * q.pdf(math.exp(u)) * (q.logpdf(math.exp(u)) - p.logpdf(math.exp(u)))

    low, high = math.log(q.ppf(1e-14)) - 5, math.log(q.isf(1e-14)) + 1
    wanted, _ = scipy.integrate.quad(integrand, low, high, epsabs=1e-12, epsrel=1e-12, limit=500)
    assert prior.divergence().item() == pytest.approx(wanted, rel=1e-7, abs=1e-9)


def test_the_guide_of_the_concentration_starts_at_the_prior():
    prior = DirichletProcessPrior(5).double()
    assert prior.divergence().item() == pytest.approx(0, abs=1e-12)
    assert (prior.SHAPE, prior.RATE) == (2.0, 0.5)


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


def test_hiding_zeroes_at_its_rate_and_leaves_the_others_as_they_are():
    layer = blocks.Dropout(0.25)
    layer.generator = torch.Generator().manual_seed(0)
    x = torch.arange(1.0, 200_001)
    out = layer.hide(x)
    assert ((out == 0) | (out == x)).all()
    assert (out == 0).double().mean().item() == pytest.approx(0.25, abs=0.005)
    assert layer.eval().hide(x) is x
    assert blocks.Dropout(0.0).hide(x) is x


def effective(layer: blocks.SpectralLinear) -> np.ndarray:
    """The matrix that a layer applies."""
    training = layer.training
    layer.eval()
    with torch.no_grad():
        matrix = (layer(torch.eye(layer.in_features)) - layer.bias).T.double().numpy()
    layer.train(training)
    return matrix


@pytest.mark.parametrize(("n_in", "n_out"), [(40, 8), (8, 8), (8, 1), (3, 30)])
def test_a_spectral_layer_stretches_by_one_at_most(n_in, n_out):
    layer = blocks.SpectralLinear(n_in, n_out)
    blocks.initialise(layer, torch.Generator().manual_seed(0))
    assert np.linalg.svd(effective(layer), compute_uv=False)[0] == pytest.approx(1, abs=0.1)  # near, from the start
    layer.train()
    for _ in range(300):
        layer(torch.zeros(1, n_in))
    singular = np.linalg.svd(effective(layer), compute_uv=False)
    assert singular[0] == pytest.approx(1, abs=1e-5)
    raw = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular, raw / raw[0], rtol=1e-4)


def test_a_spectral_layer_follows_its_weight_by_one_iteration_a_step():
    layer = blocks.SpectralLinear(30, 12)
    blocks.initialise(layer, torch.Generator().manual_seed(0))
    layer.train()
    optimiser = torch.optim.Adam(layer.parameters(), lr=opt.default("dependence_lr"))
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        optimiser.zero_grad()
        layer(torch.randn(20, 30, generator=generator)).square().mean().neg().backward()  # grows, but cannot stretch
        optimiser.step()
        assert np.linalg.svd(effective(layer), compute_uv=False)[0] < 1.1
    before = layer.u.clone()
    layer.eval()(torch.zeros(1, 30))
    assert torch.equal(before, layer.u)


@pytest.mark.parametrize("n_features", [5, 200])
def test_the_critic_is_one_lipschitz(n_features):
    critic = Dependence(n_features, 16).critic
    blocks.initialise(critic, torch.Generator().manual_seed(0))
    for _ in range(100):
        critic.train()(torch.zeros(1, 2 * n_features))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        x = torch.randn(3000, 2 * n_features, generator=generator)
        step = torch.randn(3000, 2 * n_features, generator=generator) * torch.logspace(-3, 1, 3000)[:, None]
        slopes = (critic.eval()(x + step) - critic(x))[:, 0].abs() / step.norm(dim=1)
    assert slopes.max() <= 1 + 1e-3
    assert slopes.max() > 0


def test_normalising_aside_is_the_batch_normalisation_without_a_trace():
    norm = torch.nn.BatchNorm1d(6).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    for norm_of in (norm, torch.nn.BatchNorm1d(6, affine=False).double()):
        norm_of(torch.randn(9, 6, dtype=FLOAT64, generator=generator))
        x = 3 + 2 * torch.randn(9, 6, dtype=FLOAT64, generator=generator)
        for training in (True, False):
            norm_of.train(training)
            before = {k: v.clone() for k, v in norm_of.state_dict().items()}
            got = normalise_aside(x, norm_of)
            assert all(torch.equal(before[k], v) for k, v in norm_of.state_dict().items())
            assert torch.equal(got, norm_of(x))
            assert torch.equal(before["running_mean"], norm_of.running_mean) != training


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


def test_effects_are_how_far_a_pure_topic_moves_a_cell(tiny):
    network = make_network(read_cells(tiny)).eval()
    decoder = network.decoder
    with torch.no_grad():
        decoder.norm.weight[::2] *= -1
        pure = decoder.signal(torch.eye(3, dtype=FLOAT64)) - decoder.norm.bias
        torch.testing.assert_close(decoder.effects(), pure)
        torch.testing.assert_close(decoder.norm.weight.abs() * decoder.activations(), decoder.effects())


@pytest.mark.parametrize(("topics", "technical"), [(1.5, 0.5), (0.3, None), (None, 2.0), (None, None)])
def test_the_penalty_of_effects_is_minus_their_normal_log_density(topics, technical):
    cells = read_cells(with_columns(make_cells(12, 7)), **FAMILIES["CODAL"])
    scales = {"topic_effect_scale": topics, "technical_effect_scale": technical}
    network = make_network(cells, **FAMILIES["CODAL"], **scales)
    wanted = 0.0
    for k, j in np.ndindex(3, 7):
        if topics is not None:
            wanted += 0.5 * (network.decoder.effects()[k, j].item() / topics) ** 2
    for _, j in np.ndindex(3, 7):  # two batches and a continuous covariate
        if technical is not None:
            wanted += 0.5 * (network.technical.gamma_G[j].item() / technical) ** 2
    assert network.effects_penalty().item() == pytest.approx(wanted, rel=1e-9)


def test_frequencies_sum_to_one(tiny):
    decoder = make_network(read_cells(tiny)).eval().decoder
    with torch.no_grad():
        rho = decoder(torch.rand(9, 3, dtype=FLOAT64)).exp()
    torch.testing.assert_close(rho.sum(1), torch.ones(9, dtype=FLOAT64))


# --- encoders of peaks ----------------------------------------------------------------------------


def peaks_case(family: str, n: int = 14, g: int = 9, **options: object):
    """A network of accessibility with batch normalisations off their start, and its minibatch; one cell is blind."""
    adata = with_columns(make_cells(n, g))
    x = adata.X.toarray()
    x[:, 8] = np.arange(n) % 2
    x[4] = np.arange(g) % 4 == 0  # no peak that the encoder sees
    adata.X = sp.csr_matrix(x)
    adata.var["seen"] = np.arange(g) % 4 != 0
    options = {**FAMILIES[family], "extra_features_keys": ["extra"], **options}
    cells = read_cells(adata, endogenous_key="seen", **options)
    network = make_network(cells, **options)
    batch = cells.batch(np.arange(n)).to(CPU, FLOAT64)
    with torch.no_grad():
        for _ in range(3):
            network.encoder(batch)
    seen = (x != 0)[:, adata.var["seen"]]
    assert not seen[4].any()
    assert seen.any(1).sum() == n - 1
    return network, batch, seen


def plain_norm(x: np.ndarray, norm: torch.nn.Module) -> np.ndarray:
    """Batch normalisation by its formula."""
    if isinstance(norm, torch.nn.Identity):
        return x
    mean, var = (x.mean(0), x.var(0)) if norm.training else (norm.running_mean.numpy(), norm.running_var.numpy())
    out = (x - mean) / np.sqrt(var + norm.eps)
    return out * norm.weight.detach().numpy() + norm.bias.detach().numpy() if norm.affine else out


def plain_layers(x: np.ndarray, layers: torch.nn.Module) -> np.ndarray:
    """Linear layers, batch normalisations and ReLU in turn."""
    for layer in layers:
        if isinstance(layer, torch.nn.Sequential):
            x = plain_layers(x, layer)
        elif isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.detach().numpy().T
        elif isinstance(layer, torch.nn.BatchNorm1d):
            x = plain_norm(x, layer)
        elif isinstance(layer, torch.nn.ReLU):
            x = np.maximum(x, 0)
        else:
            assert isinstance(layer, blocks.Dropout)
            assert layer.p == 0
    return x


def plain_told(open_BE: np.ndarray, batch) -> list[np.ndarray]:
    n_open = np.maximum(open_BE.sum(1, keepdims=True), 1)
    return [np.log(n_open), batch.covariates_BC.numpy(), batch.extra_BF.numpy()]


def plain_posterior(network, open_BE: np.ndarray, batch) -> np.ndarray:
    """What an encoder gives, from the matrix of open peaks, one peak after another."""
    encoder = network.encoder
    if hasattr(encoder, "embedding"):
        table = encoder.embedding.weight.detach().numpy()
        mean = np.zeros((len(open_BE), table.shape[1]))
        for i, row in enumerate(open_BE):
            opened = [j for j, o in enumerate(row) if o]
            for j in opened:
                mean[i] += table[j] / len(opened)
        mean = plain_norm(mean, encoder.norm)
        h = plain_layers(np.concatenate([mean, *plain_told(open_BE, batch)], 1), encoder.blocks)
        return plain_layers(h + mean if encoder.skip else h, encoder.out)
    by_peak = encoder.by_peak_ER.numpy()
    idf = np.sqrt(by_peak[:, -2])
    projection = by_peak[:, :-2] / idf[:, None]
    x = np.zeros((len(open_BE), projection.shape[1]))
    for i, row in enumerate(open_BE):
        tf_idf = row / max(row.sum(), 1) * idf
        if row.any():
            x[i] = tf_idf / np.linalg.norm(tf_idf) @ projection
    return plain_layers(np.concatenate([x, *plain_told(open_BE, batch)], 1), encoder.layers)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", ["skipDAN", "DAN", "fast", "CODAL+skipDAN", "CODAL+fast"])
@pytest.mark.parametrize("num_layers", [3, 4])
def test_encoders_of_peaks_equal_a_plain_loop_over_the_open_peaks(family, training, num_layers):
    network, batch, seen = peaks_case(family, num_layers=num_layers)
    network.train(training)
    assert isinstance(getattr(network.encoder, "norm", None), torch.nn.BatchNorm1d) == ("skipDAN" in family)
    out = plain_posterior(network, seen.astype(float), batch)
    q = network.encoder(batch)
    np.testing.assert_allclose(q.theta_loc_BK.detach(), out[:, :3], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(q.theta_scale_BK.detach(), np.logaddexp(0, out[:, 3:]), rtol=1e-8, atol=1e-9)
    assert (q.depth_loc_B, q.depth_scale_B) == (None, None)
    assert torch.isfinite(q.theta_loc_BK[4]).all()  # of the cell without any peak that the encoder sees


@pytest.mark.parametrize("family", ["skipDAN", "DAN", "fast"])
def test_while_training_peaks_are_hidden_and_counted_after_that(family):
    network, batch, seen = peaks_case(family, n=60, embedding_dropout=0.3)
    network.use_generator(torch.Generator().manual_seed(3))
    hidden = network.encoder.peaks(batch).numpy()
    assert set(np.unique(hidden)) == {0.0, 1.0}  # not scaled
    assert (hidden <= seen).all()
    assert hidden.sum() / seen.sum() == pytest.approx(0.7, abs=0.07)
    network.use_generator(torch.Generator().manual_seed(3))
    out = network.encoder(batch).theta_loc_BK.detach()
    np.testing.assert_allclose(out, plain_posterior(network, hidden, batch)[:, :3], rtol=1e-7, atol=1e-8)
    network.eval()
    assert np.array_equal(network.encoder.peaks(batch).numpy(), seen)


def test_the_mean_embedding_of_a_cell_without_open_peaks_is_zero():
    table = blocks.PeakEmbedding(5, 3)
    blocks.initialise(table, torch.Generator().manual_seed(0))
    open_BE = torch.tensor([[0.0] * 5, [0, 1, 0, 0, 0], [1, 1, 0, 0, 1]])
    got = table(open_BE, open_BE.sum(1))
    assert (got[0] == 0).all()
    assert torch.equal(got[1], table.weight[1])
    torch.testing.assert_close(got[2], table.weight[[0, 1, 4]].mean(0))
    got.sum().backward()
    assert torch.isfinite(table.weight.grad).all()


def test_embeddings_are_drawn_standard_normal_from_the_generator_given():
    tables = []
    for seed in (0, 0, 1):
        table = blocks.PeakEmbedding(3000, 4)
        blocks.initialise(torch.nn.Sequential(table), torch.Generator().manual_seed(seed))
        tables.append(table.weight.detach())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert scipy.stats.kstest(tables[0].flatten().numpy(), "norm").pvalue > 0.001


# --- technical effects ----------------------------------------------------------------------------


def technical_case(seed: int = 0) -> tuple[TechnicalDecoder, torch.Tensor, torch.Tensor]:
    decoder = TechnicalDecoder(3, 2, 7, 5, 0.0).double()
    generator = torch.Generator().manual_seed(seed)
    blocks.initialise(decoder, generator)
    theta = torch.randn(11, 3, dtype=FLOAT64, generator=generator).softmax(1)
    return decoder, theta, torch.randn(11, 2, dtype=FLOAT64, generator=generator)


def test_technical_effects_start_at_zero():
    decoder, theta, covariates = technical_case()
    assert (decoder.signal(theta, covariates) == 0).all()
    assert (decoder.linear(theta, covariates, aside=True).dense() == 0).all()
    assert (decoder.eval().signal(theta, covariates) == 0).all()


def test_a_new_codal_network_gives_the_frequencies_of_its_topics():
    cells = read_cells(with_columns(make_cells(12, 7)), **FAMILIES["CODAL"])
    network = make_network(cells, **FAMILIES["CODAL"]).eval()
    theta = torch.rand(12, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(0)).softmax(1)
    covariates = cells.batch(np.arange(12)).to(CPU, FLOAT64).covariates_BC
    with torch.no_grad():
        assert not torch.allclose(network.log_frequencies(theta, covariates), network.decoder(theta))
        network.technical.gamma_G.zero_()
        torch.testing.assert_close(network.log_frequencies(theta, covariates), network.decoder(theta))


@pytest.mark.parametrize("training", [True, False])
def test_technical_effects_equal_the_formula(training):
    decoder, theta, covariates = technical_case()
    with torch.no_grad():
        decoder.gamma_G.copy_(torch.linspace(-1, 2, 7))
        for _ in range(3):
            decoder.signal(theta, covariates)
    decoder.train(training)
    h = plain_layers(torch.cat([theta, covariates], 1).numpy(), decoder.hidden)
    out = h @ decoder.out.weight.detach().numpy().T + decoder.out.bias.detach().numpy()
    gamma = np.linspace(-1, 2, 7)
    wanted = gamma * plain_norm(out, decoder.norm) - np.log(np.cosh(gamma))
    for aside in (True, False):
        got = decoder.linear(theta, covariates, aside=aside).dense().detach()
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-9)


def test_over_two_batches_of_equal_size_a_features_technical_effects_average_to_one():
    decoder = TechnicalDecoder(2, 2, 7, 5, 0.0).double()
    blocks.initialise(decoder, torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoder.gamma_G.copy_(torch.linspace(-2, 2, 7))
        decoder.out.weight.mul_(1000)  # so that the normalisation's epsilon does not show
    theta = torch.full((20, 2), 0.5, dtype=FLOAT64)
    batch = torch.eye(2, dtype=FLOAT64)[torch.arange(20) % 2]
    effects = decoder.signal(theta, batch).detach().exp()
    assert effects[0, 0] != pytest.approx(1, abs=0.1)
    torch.testing.assert_close(effects.mean(0), torch.ones(7, dtype=FLOAT64), rtol=1e-3, atol=0)


def test_log_cosh_equals_numpys_and_does_not_overflow():
    x = torch.linspace(-20, 20, 401, dtype=FLOAT64)
    np.testing.assert_allclose(log_cosh(x), np.log(np.cosh(x.numpy())), atol=1e-12)
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    log_cosh(far).sum().backward()
    torch.testing.assert_close(log_cosh(far).detach(), torch.full((2,), 1e4 - math.log(2)))
    assert far.grad.tolist() == [-1.0, 1.0]


def test_signals_for_the_penalty_leave_no_trace_in_the_network():
    cells = read_cells(with_columns(make_cells(12, 7)), **FAMILIES["CODAL"])
    network = make_network(cells, **FAMILIES["CODAL"]).train()
    theta = torch.rand(12, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(0)).softmax(1)
    covariates = cells.batch(np.arange(12)).to(CPU, FLOAT64).covariates_BC
    before = {k: v.clone() for k, v in network.state_dict().items()}
    biological, technical = network.signals(theta, covariates)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    torch.testing.assert_close(biological.dense(), network.decoder.signal(theta))
    torch.testing.assert_close(technical.dense(), network.technical.signal(theta, covariates))


def test_masked_technical_effects_are_zero_and_the_others_as_they_were():
    cells = read_cells(with_columns(make_cells(40, 7)), **FAMILIES["CODAL"])
    network = make_network(cells, mask_dropout=0.4, **FAMILIES["CODAL"]).train()
    theta = torch.rand(40, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(0)).softmax(1)
    covariates = cells.batch(np.arange(40)).to(CPU, FLOAT64).covariates_BC
    network.use_generator(torch.Generator().manual_seed(1))
    got = network.profile(theta, covariates).dense()
    technical = network.technical.signal(theta, covariates)
    shown = got - network.decoder.base_G - network.decoder.signal(theta)
    kept = shown.abs() > 1e-12
    assert kept.double().mean().item() == pytest.approx(0.6, abs=0.1)
    torch.testing.assert_close(shown, kept * technical)
    network.use_generator(torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.log_frequencies(theta, covariates), got.log_softmax(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", ["expression", "CODAL"])
def test_the_fast_profile_and_its_running_statistics_are_those_of_the_plain_way(family, training):
    cells = read_cells(with_columns(make_cells(12, 7)), **FAMILIES[family])
    network = make_network(cells, **FAMILIES[family]).train(training)
    theta = torch.rand(12, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(0)).softmax(1)
    covariates = cells.batch(np.arange(12)).to(CPU, FLOAT64).covariates_BC
    apart = copy.deepcopy(network)
    got, wanted = network.profile(theta, covariates), apart.log_frequencies(theta, covariates)
    torch.testing.assert_close(got.dense().log_softmax(1), wanted)
    assert got.rest_BG is None
    assert got.x_BJ.shape[1] == (3 if family == "expression" else 7)
    after = apart.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, after[name], msg=name)


def test_variances_hold_where_topics_hardly_differ():
    """In single precision, as well as a batch normalisation holds them."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(64, 5, generator=generator, dtype=FLOAT64).softmax(1)
    weight = 3 + 1e-2 * torch.randn(5, 20, generator=generator, dtype=FLOAT64)
    layer, norm = nn.Linear(5, 20, bias=False), nn.BatchNorm1d(20, eps=1e-12)
    layer.weight = nn.Parameter(weight.T.float())
    wanted = torch.nn.functional.batch_norm(theta @ weight, None, None, training=True, eps=1e-12)
    plain = norm(layer(theta.float()))
    got = normalised(theta.float(), layer, norm).dense()
    assert (got - wanted).abs().max() < 2 * (plain - wanted).abs().max() + 1e-6


def test_statistics_cannot_be_reassigned():
    s = Statistics(1, np.ones(2), np.ones(2), 1.0)
    with pytest.raises(AttributeError):
        s.n_cells = 3
