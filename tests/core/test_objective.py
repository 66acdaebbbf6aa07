"""The loss in closed form is the negative ELBO that the generative story defines."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch.distributions import Gamma, Independent, LogNormal, Multinomial, Normal, kl_divergence

from mira_core import options as opt
from mira_core.models import generative
from mira_core.models.generative import StickPosterior
from mira_core.nn.blocks import SpectralLinear
from mira_core.nn.decoder import Linear
from mira_core.nn.dependence import mismatched_pairs
from mira_core.nn.network import TopicNetwork
from mira_core.nn.prior import DirichletProcessPrior, depth_divergence
from mira_core.training.objective import Draws, LossTerms, draw, loss_terms, play
from mira_core.training.schedules import Settings
from mira_core.training.step import Stepper
from tests.helpers import FAMILIES, make_cells, make_network, read_cells, with_columns

CPU, FLOAT64 = torch.device("cpu"), torch.float64
CODAL = [name for name in FAMILIES if "CODAL" in name]
QUANTILES = (np.arange(20_000) + 0.5) / 20_000
# Constants that every batch normalisation after them takes away again while training.
CANCELLED = {"technical.out.bias", "encoder.norm.bias"}


class GivenDraws(Messenger):
    """Let latent sites take their values from standard draws given by name."""

    def __init__(self, draws: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.draws = draws

    def _pyro_sample(self, site) -> None:
        if site["name"] not in self.draws:
            return
        noise = self.draws[site["name"]]
        fn = site["fn"].base_dist if isinstance(site["fn"], Independent) else site["fn"]
        if isinstance(fn, Gamma):  # implicit reparameterisation: the draw moves with the shape along its quantile
            shape = fn.concentration
            slope = torch._standard_gamma_grad(shape.detach(), noise)
            site["value"] = (noise + slope * (shape - shape.detach())) / fn.rate
            return
        value = fn.loc + fn.scale * noise
        site["value"] = value.exp() if isinstance(fn, LogNormal) else value
        if isinstance(fn, StickPosterior):
            site["value"] = value.sigmoid()


def given_draws(network: TopicNetwork, draws: Draws) -> Messenger:
    sticks = draws.theta_BK[:, : network.num_topics - 1].T
    return GivenDraws({
        "pseudocounts": draws.prior, "concentration": draws.prior, "z": draws.theta_BK, "sticks_broken": sticks,
        "read_depth": draws.depth_B,
    })  # fmt: skip


def pyro_loss(
    network: TopicNetwork, batch, draws: Draws, kl_weight: float, dependence_weight: float = 0.0, seed: int = 0
) -> torch.Tensor:
    """Negative ELBO by Pyro, for these draws; with covariates, and the penalty of CODAL for the topics drawn."""
    model, guide = partial(generative.model, network), given_draws(network, draws)(partial(generative.guide, network))
    dependence = None
    if network.dependence is not None:
        sites = pyro.poutine.trace(guide).get_trace(batch).nodes
        if "z" in sites:
            theta_BK = sites["z"]["value"].softmax(1)
        else:
            v = sites["sticks_broken"]["value"].T
            left = torch.cat([torch.ones_like(v[:, :1]), (1 - v).cumprod(1)], dim=1)
            theta_BK = torch.cat([v, torch.ones_like(v[:, :1])], dim=1) * left
        game = play(network, batch, theta_BK, torch.Generator().manual_seed(seed))
        dependence = dependence_weight * game.dependence
    return TraceMeanField_ELBO().differentiable_loss(model, guide, batch, kl_weight, dependence=dependence)


def our_terms(network: TopicNetwork, batch, draws: Draws, seed: int = 0) -> LossTerms:
    """The terms as training puts them together."""
    terms, theta_BK = loss_terms(network, batch, draws)
    if network.dependence is not None:
        game = play(network, batch, theta_BK, torch.Generator().manual_seed(seed))
        terms = terms._replace(dependence=game.dependence)
    return terms


def gradients(network: TopicNetwork, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every parameter but the critic's, which must have none."""
    named = dict(network.named_parameters())
    found = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
    critic = [name for name in found if name.startswith("dependence.")]
    assert all(found.pop(name) is None for name in critic)
    return found


def case(family: str = "expression", n: int = 20, g: int = 11, seed: int = 0, extra: bool = False):
    adata = with_columns(make_cells(n, g, seed))
    options = {**FAMILIES[family], **({"extra_features_keys": ["extra"]} if extra else {})}
    adata.var["seen"] = np.arange(g) % 4 != 0
    cells = read_cells(adata, endogenous_key="seen", **options)
    network = make_network(cells, seed=seed, **options)
    batch = cells.batch(np.arange(n)[::-2].copy()).to(CPU, FLOAT64)  # half of the training cells
    return network, batch, draw(network, batch, torch.Generator().manual_seed(seed))


def assert_gradients_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], training: bool, rtol: float) -> None:
    whole = max(g.abs().max().item() for g in b.values())
    for name in a:
        scale = b[name].abs().max().item()
        if name in CANCELLED and training:
            ours = 0.0 if a[name] is None else a[name].abs().max().item()
            assert max(scale, ours) < rtol * whole
            continue
        assert scale > 0, f"{name} does not enter the loss"
        torch.testing.assert_close(
            a[name], b[name], rtol=rtol, atol=rtol * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kl_weight", [1.0, 0.37, 2.5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_equal_pyros_elbo(family, kl_weight, training, seed):
    network, batch, draws = case(family, seed=seed, extra=seed == 1)
    network.train(training)
    apart = copy.deepcopy(network)  # asking a critic in training takes it a step further
    ours = our_terms(network, batch, draws, seed).loss(kl_weight, 0.6)
    theirs = pyro_loss(apart, batch, draws, kl_weight, 0.6, seed)
    assert ours.dtype == FLOAT64
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    a, b = gradients(network, ours), gradients(apart, theirs)
    assert a.keys() == {n for n, _ in network.named_parameters() if not n.startswith("dependence.")}
    assert_gradients_equal(a, b, training, 1e-9)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("family", CODAL)
def test_the_penalty_of_codal_enters_the_loss_by_its_weight(family):
    """So that the equality with Pyro says something of it."""
    network, batch, draws = case(family, seed=1)
    network.eval()
    terms = our_terms(network, batch, draws)
    penalty = terms.dependence.item()
    assert abs(penalty) > 1e-5
    assert (terms.loss(0.5, 2.0) - terms.loss(0.5, 0.0)).item() == pytest.approx(2 * penalty)
    without = pyro_loss(network, batch, draws, 0.5, 0.0)
    assert (pyro_loss(network, batch, draws, 0.5, 2.0) - without).item() == pytest.approx(2 * penalty)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_single_precision_equals_pyros_elbo(family, training):
    network, batch, draws = case(family)
    network.train(training)
    double = our_terms(copy.deepcopy(network), batch, draws).loss(0.7, 0.6).item()
    network.float()
    batch, draws = batch.to(CPU), Draws(*(t.float() for t in draws))
    apart = copy.deepcopy(network)
    ours, theirs = our_terms(network, batch, draws).loss(0.7, 0.6), pyro_loss(apart, batch, draws, 0.7, 0.6)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    assert ours.item() == pytest.approx(double, rel=1e-4)
    assert_gradients_equal(gradients(network, ours), gradients(apart, theirs), training, 1e-4)


def test_each_term_equals_its_definition():
    network, batch, draws = case()
    network.eval()
    terms, theta_BK = loss_terms(network, batch, draws)
    q = network.encoder(batch)
    a = LogNormal(network.prior.loc_K, network.prior.scale_K)
    value = (network.prior.loc_K + network.prior.scale_K * draws.prior).exp()
    mu = value.log() - value.log().mean()
    K = 3
    sigma = ((1 / value) * (1 - 2 / K) + (1 / value).sum() / K**2).sqrt()
    topics = kl_divergence(Normal(q.theta_loc_BK, q.theta_scale_BK), Normal(mu, sigma)).sum()
    depth = kl_divergence(LogNormal(q.depth_loc_B, q.depth_scale_B), LogNormal(batch.depth_B.log(), 1.0)).sum()
    torch.testing.assert_close(terms.topics_kl, topics, rtol=1e-9, atol=0)
    torch.testing.assert_close(terms.depth_kl, depth, rtol=1e-9, atol=0)
    # E_q[log q(a) - log p(a)] over quantiles of q, shared over the cells of the training
    normal = torch.from_numpy(scipy.stats.norm.ppf(QUANTILES))[:, None]
    sample = (network.prior.loc_K + network.prior.scale_K * normal).exp()
    p = Gamma(torch.tensor(2.0, dtype=FLOAT64), 2 * K / 10)
    divergence = (a.log_prob(sample) - p.log_prob(sample)).mean(0).sum()
    assert terms.prior_kl.item() == pytest.approx(divergence.item() * 10 / 20, rel=5e-3)
    theta = (q.theta_loc_BK + q.theta_scale_BK * draws.theta_BK).softmax(1)
    torch.testing.assert_close(theta_BK, theta)
    rho = network.decoder(theta).exp()
    d = (q.depth_loc_B + q.depth_scale_B * draws.depth_B).exp()
    mean, r = d[:, None] * rho, network.log_dispersion_G.exp()
    counts = torch.distributions.NegativeBinomial(r, probs=mean / (mean + r))
    torch.testing.assert_close(terms.reconstruction, -counts.log_prob(batch.counts_BG).sum(), rtol=1e-9, atol=0)
    assert terms.dependence == 0
    # the effects' normal prior, its share of these cells
    effects = network.decoder.effects()
    prior = Normal(0.0, opt.default("topic_effect_scale"))
    density = prior.log_prob(effects) - prior.log_prob(torch.zeros_like(effects))
    torch.testing.assert_close(terms.effects, -density.sum() * 10 / 20, rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", ["skipDAN", "process+fast", "CODAL+DAN"])
def test_each_term_of_accessibility_equals_its_definition(family):
    network, batch, draws = case(family)
    network.eval()
    terms, theta_BK = loss_terms(network, batch, draws)
    rho_BG = network.log_frequencies(theta_BK, batch.covariates_BC).exp()
    open_BG = batch.counts_BG
    assert set(open_BG.unique().tolist()) == {0.0, 1.0}
    wanted = sum(
        Multinomial(int(x.sum()), probs=rho).log_prob(x) for x, rho in zip(open_BG, rho_BG.detach(), strict=True)
    )
    torch.testing.assert_close(terms.reconstruction, -wanted, rtol=1e-9, atol=0)
    assert terms.depth_kl == 0


@pytest.mark.parametrize("family", ["process", "process+DAN"])
def test_each_term_of_the_dirichlet_process_equals_its_definition(family):
    """Both divergences by many draws, and the compositions by breaking a stick."""
    network, batch, draws = case(family)
    network.eval()
    terms, theta_BK = loss_terms(network, batch, draws)
    q, prior = network.encoder(batch), network.prior
    alpha = (draws.prior / prior.log_rate.exp()).item()
    generator = torch.Generator().manual_seed(0)
    loc, scale = q.theta_loc_BK[:, :2].detach(), q.theta_scale_BK[:, :2].detach()
    total = 0.0
    z = loc + scale * torch.randn(20_000, *loc.shape, dtype=FLOAT64, generator=generator)
    log_v, log_rest = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    log_q = Normal(loc, scale).log_prob(z) - log_v - log_rest  # density of v = sigmoid(z)
    log_p = np.log(alpha) + (alpha - 1) * log_rest  # of Beta(1, alpha)
    total = (log_q - log_p).mean(0).sum().item()
    assert terms.topics_kl.item() == pytest.approx(total, rel=0.02)
    shape, rate = prior.log_shape.detach().exp(), prior.log_rate.detach().exp()
    sample = torch.from_numpy(scipy.stats.gamma.ppf(QUANTILES, shape.item(), scale=1 / rate.item()))
    p = Gamma(torch.tensor(2.0, dtype=FLOAT64), torch.tensor(0.5, dtype=FLOAT64))
    divergence = (Gamma(shape, rate).log_prob(sample) - p.log_prob(sample)).mean().item()
    assert terms.prior_kl.item() == pytest.approx(divergence * 10 / 20, rel=0.01)
    v = (loc + scale * draws.theta_BK[:, :2]).sigmoid()
    wanted = torch.stack([v[:, 0], v[:, 1] * (1 - v[:, 0]), (1 - v[:, 0]) * (1 - v[:, 1])], 1)
    torch.testing.assert_close(theta_BK, wanted)


def test_loss_weighs_the_divergences_of_cells_and_splits_into_distortion_and_rate():
    network, batch, draws = case("CODAL")
    t = our_terms(network, batch, draws)
    assert t.dependence != 0
    assert t.effects > 0
    assert t.loss(0.3, 0.4).item() == pytest.approx(
        (t.reconstruction + 0.3 * (t.topics_kl + t.depth_kl) + t.prior_kl + t.effects + 0.4 * t.dependence).item()
    )
    assert t.loss(1.0).item() == pytest.approx((t.distortion + t.rate + t.effects).item())
    assert t.rate is t.topics_kl


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_leaves_nothing_behind_in_evaluation(family):
    network, batch, draws = case(family)
    network.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    first, second = (our_terms(network, batch, draws).loss(1.0, 1.0) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("family", ["expression", "probabilities", "skipDAN", "fast", "CODAL", "CODAL+DAN", "process"])
def test_gradients_equal_finite_differences(family):
    network, batch, draws = case(family, n=8, g=5)
    network.eval()  # the running statistics stay, so that the loss is one function
    moved = {
        name: p
        for name, p in network.named_parameters()
        # the critic has a loss of its own, and a draw is no function of the shape that it was made with
        if not name.startswith("dependence.") and name != "prior.log_shape"
    }

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        given = {f"network.{n}": p for n, p in zip(moved, parameters, strict=True)}
        return torch.func.functional_call(LossOf(network), given, (batch, draws))

    values = [v.detach().clone().requires_grad_() for v in moved.values()]
    assert torch.autograd.gradcheck(loss, values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [0.3, 1.0, 2.0, 11.0])
def test_the_gradient_of_a_drawn_concentration_is_that_of_its_quantile(shape):
    """The draw moves with shape and rate as the point does below which the same share of the draws lies."""
    prior = DirichletProcessPrior(4).double()
    share = np.array([0.01, 0.2, 0.5, 0.9, 0.999])
    rate, h = 0.7, 1e-5 * shape
    with torch.no_grad():
        prior.log_shape.fill_(np.log(shape))
        prior.log_rate.fill_(np.log(rate))
    for u in share:
        noise = torch.tensor(scipy.special.gammaincinv(shape, u), dtype=FLOAT64)
        alpha = prior.sample(noise)
        assert alpha.item() == pytest.approx(scipy.stats.gamma.ppf(u, shape, scale=1 / rate), rel=1e-9)
        of_shape, of_rate = torch.autograd.grad(alpha, [prior.log_shape, prior.log_rate])
        above, below = (scipy.stats.gamma.ppf(u, s, scale=1 / rate) for s in (shape + h, shape - h))
        assert of_shape.item() == pytest.approx(shape * (above - below) / (2 * h), rel=1e-3)  # d / d log shape
        assert of_rate.item() == pytest.approx(-alpha.item(), rel=1e-9)


def test_the_gradient_of_the_mean_concentration_is_that_of_the_formula():
    """Over many draws, d E[alpha] / d log shape = shape / rate, and the bound of the loss follows."""
    prior = DirichletProcessPrior(4).double()
    generator = torch.Generator().manual_seed(0)
    alpha = torch.stack([prior.sample(prior.noise(generator)) for _ in range(20_000)])
    assert alpha.mean().item() == pytest.approx(4.0, rel=0.03)
    assert alpha.var().item() == pytest.approx(8.0, rel=0.06)
    of_shape, of_rate = torch.autograd.grad(alpha.mean(), [prior.log_shape, prior.log_rate])
    assert of_shape.item() == pytest.approx(4.0, rel=0.03)
    assert of_rate.item() == pytest.approx(-4.0, rel=0.03)


class LossOf(torch.nn.Module):
    """The loss as a module, whose parameters can be replaced."""

    def __init__(self, network: TopicNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch, draws: Draws) -> torch.Tensor:
        return our_terms(self.network, batch, draws).loss(0.8, 0.6)


def test_the_divergence_of_depths_equals_torchs():
    rng = torch.Generator().manual_seed(0)
    loc, depth = (torch.randn(50, dtype=FLOAT64, generator=rng) for _ in range(2))
    scale = torch.rand(50, dtype=FLOAT64, generator=rng) + 0.01
    wanted = kl_divergence(Normal(loc, scale), Normal(depth, torch.ones_like(depth)))
    torch.testing.assert_close(depth_divergence(loc, scale, depth), wanted.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["expression", "CODAL"])
def test_gradients_written_beside_their_values_are_those_of_finite_differences(family):
    network, batch, draws = case(family)
    q = network.encoder(batch)
    loc, scale = (t.detach().requires_grad_() for t in (q.theta_loc_BK, q.theta_scale_BK))
    own = [p for p in network.prior.parameters()]

    def divergences(loc, scale, *_):
        return network.prior.topics_divergence(loc, scale, draws.prior), network.prior.divergence()

    assert torch.autograd.gradcheck(divergences, (loc, scale, *own))
    decoder = network.decoder
    assert torch.autograd.gradcheck(lambda *_: decoder.squared_effects(), (decoder.beta.weight, decoder.norm.weight))
    depths = [t.detach().requires_grad_() for t in (q.depth_loc_B, q.depth_scale_B)]
    assert torch.autograd.gradcheck(lambda *t: depth_divergence(*t, batch.depth_B.log()), depths)


@pytest.mark.parametrize(("family", "prior"), [("expression", (3,)), ("process", ())])
def test_draws_are_standard_normal_of_the_right_shape_and_follow_their_generator(family, prior):
    network, batch, _ = case(family)
    a, b = (draw(network, batch, torch.Generator().manual_seed(4)) for _ in range(2))
    assert [tuple(t.shape) for t in a] == [prior, (10, 3), (10,)]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    many = torch.cat([draw(network, batch, torch.Generator().manual_seed(i)).theta_BK for i in range(300)])
    assert many.mean().item() == pytest.approx(0, abs=0.04)
    assert many.std().item() == pytest.approx(1, abs=0.03)


def test_the_draw_of_a_concentration_is_a_standard_gamma_of_the_posteriors_shape():
    prior = DirichletProcessPrior(4).double()
    with torch.no_grad():
        prior.log_shape.fill_(np.log(3.5))
    generator = torch.Generator().manual_seed(0)
    noise = np.array([prior.noise(generator).item() for _ in range(4000)])
    assert scipy.stats.kstest(noise, scipy.stats.gamma(3.5).cdf).pvalue > 0.01
    fixed = prior.fixed_noise(400).numpy()
    np.testing.assert_allclose(scipy.stats.gamma(3.5).cdf(fixed), (np.arange(400) + 0.5) / 400, rtol=1e-6)


@pytest.mark.parametrize("families", [("expression", "expression"), ("CODAL", "process+DAN")])
def test_the_stories_of_two_networks_do_not_meet(families):
    """Both are traced in turn; neither changes the other's loss, and Pyro's store stays empty."""
    one, batch, draws = case(families[0], seed=0)
    two, other, other_draws = case(families[1], seed=1)
    one.eval(), two.eval()
    before = pyro_loss(one, batch, draws, 1.0).item()
    pyro_loss(two, other, other_draws, 1.0)
    assert pyro_loss(one, batch, draws, 1.0).item() == before
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("family", ["expression", "CODAL", "process"])
def test_the_story_generates_counts(family):
    """Without observing anything the model runs forward and its counts have their cells' depth."""
    network, batch, _ = case(family)
    network.eval()
    pyro.set_rng_seed(0)
    with torch.no_grad():
        unseen = pyro.poutine.uncondition(partial(generative.model, network))
        x = torch.stack([pyro.poutine.trace(unseen).get_trace(batch).nodes["counts"]["value"] for _ in range(400)])
    # E[d_i] = n_i exp(1 / 2) for the log-normal depth, and frequencies sum to one
    ratio = (x.sum(2).mean(0) / (batch.depth_B * np.exp(0.5))).mean().item()
    assert ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_both_sides_of_the_game_have_the_gradients_of_the_one_estimate(training):
    """The model's of the estimate, the critic's of minus the estimate, as plain backward passes give them."""
    network, batch, draws = case("CODAL")
    network.train(training)
    apart = copy.deepcopy(network)
    _, theta_BK = loss_terms(network, batch, draws)
    game = play(network, batch, theta_BK, torch.Generator().manual_seed(0))
    named = dict(network.named_parameters())
    found = torch.autograd.grad(3 * game.dependence, list(named.values()), allow_unused=True, materialize_grads=True)
    _, theta_BK = loss_terms(apart, batch, draws)
    pairs = mismatched_pairs(10, apart.n_pairs, torch.Generator().manual_seed(0), CPU)
    estimate = apart.dependence(*apart.signals(theta_BK, batch.covariates_BC), *pairs)
    wanted = torch.autograd.grad(estimate, list(apart.parameters()), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(game.dependence, 10 * estimate, rtol=1e-12, atol=0)
    critic = iter(game.critic)
    for name, got, plain in zip(named, found, wanted, strict=True):
        if name.startswith("dependence."):
            assert got.abs().max() == 0  # the model's loss must not move the critic
            torch.testing.assert_close(next(critic), -plain, rtol=1e-9, atol=1e-14, msg=name)
        else:
            torch.testing.assert_close(got, 30 * plain, rtol=1e-9, atol=1e-14, msg=name)
    assert any(g.abs().max() > 0 for g in found)
    assert all(p.requires_grad for p in network.parameters())  # as it was


@pytest.mark.parametrize("seed", range(3))
def test_steps_of_the_critic_raise_the_estimate(seed):
    network, batch, draws = case("CODAL", n=60, seed=seed)
    network.train()
    _, theta_BK = loss_terms(network, batch, draws)
    optimiser = torch.optim.Adam(network.dependence.parameters(), lr=1e-2)
    told = []
    for _ in range(40):
        game = play(network, batch, theta_BK, torch.Generator().manual_seed(0))  # the same pairs at each step
        told.append(game.dependence.item() / batch.n_cells)
        for p, gradient in zip(network.dependence.parameters(), game.critic, strict=True):
            p.grad = gradient
        optimiser.step()
    assert told[1] > told[0]
    assert told[-1] > told[0] + 0.02


def test_a_step_of_training_moves_the_critic_up_and_the_model_down():
    """The Stepper's own optimisers: the estimate on the same cells rises with the critic alone."""
    network, batch, _ = case("CODAL", n=60)
    network.float()
    options = {"weight_decay": 0.0, "dependence_lr": 1e-2}
    stepper = Stepper(network, options, 0)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(3):
        stepper.step(batch.to(CPU), Settings(1e-30, 0.9, 1.0, 1.0))
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, weights[name])}
    assert moved == {name for name in weights if name.startswith("dependence.")}
    stepper.critic_rate = 0.0
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    stepper.step(batch.to(CPU), Settings(1e-3, 0.9, 1.0, 1.0))
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, weights[name])}
    assert moved == {name for name in weights if not name.startswith("dependence.")} - {"technical.out.bias"}
    stepper.close()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_dependence_equals_a_plain_loop_over_the_pairs(training, seed):
    network, batch, draws = case("CODAL", seed=seed)
    network.train(training)
    _, theta_BK = loss_terms(network, batch, draws)
    apart = copy.deepcopy(network)
    game = play(network, batch, theta_BK, torch.Generator().manual_seed(seed))
    biological, technical = (x.dense() for x in apart.signals(theta_BK, batch.covariates_BC))
    one, other = mismatched_pairs(10, network.n_pairs, torch.Generator().manual_seed(seed), CPU)
    matrices = []
    for layer in apart.dependence.critic:
        if isinstance(layer, SpectralLinear):
            v, u = layer.v, layer.u
            for _ in range(1 if training else 0):
                v = layer.weight.T @ u / (layer.weight.T @ u).norm()
                u = layer.weight @ v / (layer.weight @ v).norm()
            matrices.append((layer.weight / (u @ layer.weight @ v), layer.bias))

    def critic(i: int, j: int) -> float:
        h = torch.cat([biological[i], technical[j]])
        for k, (weight, bias) in enumerate(matrices):
            h = weight @ h + bias
            h = h.clamp(min=0) if k < 2 else h
        return h.item()

    matched = np.mean([critic(i, i) for i in range(10)])
    mismatched = np.mean([np.exp(critic(i, j)) for i, j in zip(one.tolist(), other.tolist(), strict=True)])
    assert game.dependence.item() == pytest.approx(10 * (matched - np.log(mismatched)), rel=1e-7, abs=1e-12)


def test_many_drawn_pairs_estimate_as_all_pairs_do():
    network, batch, draws = case("CODAL", n=24)
    network.eval()
    _, theta_BK = loss_terms(network, batch, draws)
    biological, technical = (10 * x.dense().detach() for x in network.signals(theta_BK, batch.covariates_BC))
    as_linear = [Linear(x, torch.eye(11, dtype=FLOAT64), x.new_zeros(11)) for x in (biological, technical)]
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    one, other = map(torch.tensor, zip(*pairs, strict=True))
    every = network.dependence(*as_linear, one, other)
    drawn = mismatched_pairs(12, 100_000, torch.Generator().manual_seed(0), CPU)
    t = network.dependence.critic(torch.cat([biological[one], technical[other]], dim=1)).exp()
    error = (t.std() / t.mean() / 100_000**0.5).item()
    assert network.dependence(*as_linear, *drawn).item() == pytest.approx(every.item(), abs=5 * error)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_mismatched_pairs_are_of_different_cells_and_evenly_spread(n):
    one, other = mismatched_pairs(n, 40_000, torch.Generator().manual_seed(0), CPU)
    assert (one != other).all()
    pairs = torch.bincount(one * n + other, minlength=n * n).reshape(n, n).double() / 40_000
    wanted = (1 - torch.eye(n, dtype=FLOAT64)) / (n * (n - 1))
    assert (pairs - wanted).abs().max().item() < 6 * np.sqrt(1 / (n * (n - 1)) / 40_000)
    again, _ = mismatched_pairs(n, 40_000, torch.Generator().manual_seed(0), CPU)
    assert torch.equal(one, again)
