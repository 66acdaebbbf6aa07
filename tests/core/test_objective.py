"""The loss in closed form is the negative ELBO that the generative story defines."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent, LogNormal, Normal, kl_divergence

from mira_core.models import generative
from mira_core.nn.network import TopicNetwork
from mira_core.training.objective import Draws, draw, loss_terms, normal_divergence
from tests.helpers import make_cells, make_network, read_cells

CPU, FLOAT64 = torch.device("cpu"), torch.float64


class GivenDraws(Messenger):
    """Let latent sites take their values from standard normal draws given by name."""

    def __init__(self, draws: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.draws = draws

    def _pyro_sample(self, site) -> None:
        if site["name"] in self.draws:
            fn = site["fn"].base_dist if isinstance(site["fn"], Independent) else site["fn"]
            value = fn.loc + fn.scale * self.draws[site["name"]]
            site["value"] = value.exp() if isinstance(fn, LogNormal) else value


def pyro_loss(network: TopicNetwork, batch, draws: Draws, kl_weight: float) -> torch.Tensor:
    """Negative ELBO by Pyro, for these draws."""
    given = {"pseudocounts": draws.pseudocounts_K, "z": draws.theta_BK, "read_depth": draws.depth_B}
    guide = GivenDraws(given)(partial(generative.guide, network))
    return TraceMeanField_ELBO().differentiable_loss(partial(generative.model, network), guide, batch, kl_weight)


def gradients(network: TopicNetwork, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def case(logspace: bool = True, n: int = 20, g: int = 11, seed: int = 0, extra: bool = False):
    adata = make_cells(n, g, seed)
    options = {}
    if extra:
        adata.obs["a"] = np.linspace(-1, 1, n)
        options["extra_features_keys"] = ["a"]
    adata.var["seen"] = np.arange(g) % 4 != 0
    cells = read_cells(adata, endogenous_key="seen", **options)
    network = make_network(cells, logspace=logspace, seed=seed)
    batch = cells.batch(np.arange(n)[::-2].copy()).to(CPU, FLOAT64)  # half of the training cells
    return network, batch, draw(network, batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("logspace", [True, False])
@pytest.mark.parametrize("kl_weight", [1.0, 0.37, 2.5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_equal_pyros_elbo(logspace, kl_weight, training, seed):
    network, batch, draws = case(logspace, seed=seed, extra=seed == 1)
    network.train(training)
    ours, theirs = (
        loss_terms(network, batch, draws).loss(kl_weight),
        pyro_loss(network, batch, draws, kl_weight),
    )
    assert ours.dtype == FLOAT64
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    a, b = gradients(network, ours), gradients(network, theirs)
    assert a.keys() == {n for n, _ in network.named_parameters()}
    for name in a:
        scale = b[name].abs().max().item()
        assert scale > 0, f"{name} does not enter the loss"
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-9, atol=1e-9 * scale, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("logspace", [True, False])
def test_single_precision_equals_pyros_elbo(logspace):
    network, batch, draws = case(logspace)
    double = loss_terms(network, batch, draws).loss(0.7).item()
    network.float()
    batch, draws = batch.to(CPU), Draws(*(t.float() for t in draws))
    ours, theirs = loss_terms(network, batch, draws).loss(0.7), pyro_loss(network, batch, draws, 0.7)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    assert ours.item() == pytest.approx(double, rel=1e-4)


def test_each_term_equals_its_definition():
    network, batch, draws = case()
    network.eval()
    terms = loss_terms(network, batch, draws)
    q = network.encoder(batch)
    a = LogNormal(network.prior.loc_K, network.prior.scale_K)
    value = (network.prior.loc_K + network.prior.scale_K * draws.pseudocounts_K).exp()
    mu = value.log() - value.log().mean()
    K = 3
    sigma = ((1 / value) * (1 - 2 / K) + (1 / value).sum() / K**2).sqrt()
    topics = kl_divergence(Normal(q.theta_loc_BK, q.theta_scale_BK), Normal(mu, sigma)).sum()
    depth = kl_divergence(LogNormal(q.depth_loc_B, q.depth_scale_B), LogNormal(batch.depth_B.log(), 1.0)).sum()
    torch.testing.assert_close(terms.topics_kl, topics, rtol=1e-9, atol=0)
    torch.testing.assert_close(terms.depth_kl, depth, rtol=1e-9, atol=0)
    # E_q[log q(a) - log p(a)] by many draws, shared over the cells of the training
    sample = a.sample((200_000,))
    p = torch.distributions.Gamma(torch.tensor(2.0, dtype=FLOAT64), 2 * K / 10)
    divergence = (a.log_prob(sample) - p.log_prob(sample)).mean(0).sum()
    assert terms.pseudocounts_kl.item() == pytest.approx(divergence.item() * 10 / 20, rel=0.02)
    theta = (q.theta_loc_BK + q.theta_scale_BK * draws.theta_BK).softmax(1)
    rho = network.decoder(theta).exp()
    d = (q.depth_loc_B + q.depth_scale_B * draws.depth_B).exp()
    mean, r = d[:, None] * rho, network.log_dispersion_G.exp()
    counts = torch.distributions.NegativeBinomial(r, probs=mean / (mean + r))
    torch.testing.assert_close(terms.reconstruction, -counts.log_prob(batch.dense(11)).sum(), rtol=1e-9, atol=0)


def test_loss_weighs_the_divergences_of_cells_and_splits_into_distortion_and_rate():
    network, batch, draws = case()
    t = loss_terms(network, batch, draws)
    assert t.loss(0.3).item() == pytest.approx(
        (t.reconstruction + 0.3 * (t.topics_kl + t.depth_kl) + t.pseudocounts_kl).item()
    )
    assert t.loss(1.0).item() == pytest.approx((t.distortion + t.rate).item())
    assert t.rate is t.topics_kl


def test_a_forward_pass_leaves_nothing_behind_in_evaluation():
    network, batch, draws = case()
    network.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    first, second = (loss_terms(network, batch, draws).loss(1.0) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("logspace", [True, False])
def test_gradients_equal_finite_differences(logspace):
    network, batch, draws = case(logspace, n=8, g=5)
    network.eval()  # the running statistics stay, so that the loss is one function
    names, values = zip(*network.named_parameters(), strict=True)

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(
            LossOf(network), {f"network.{n}": p for n, p in given.items()}, (batch, draws)
        )

    assert torch.autograd.gradcheck(loss, [v.detach().clone().requires_grad_() for v in values], rtol=1e-4, atol=1e-6)


class LossOf(torch.nn.Module):
    """The loss as a module, whose parameters can be replaced."""

    def __init__(self, network: TopicNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch, draws: Draws) -> torch.Tensor:
        return loss_terms(self.network, batch, draws).loss(0.8)


def test_divergence_of_normals_equals_torchs():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, dtype=FLOAT64, generator=rng) for _ in range(2))
    s, t = (torch.rand(50, dtype=FLOAT64, generator=rng) + 0.01 for _ in range(2))
    torch.testing.assert_close(
        normal_divergence(a, s, b, t), kl_divergence(Normal(a, s), Normal(b, t)), rtol=1e-9, atol=1e-12
    )


def test_draws_are_standard_normal_of_the_right_shape_and_follow_their_generator():
    network, batch, _ = case()
    a, b = (draw(network, batch, torch.Generator().manual_seed(4)) for _ in range(2))
    assert [tuple(t.shape) for t in a] == [(3,), (10, 3), (10,)]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    many = torch.cat([draw(network, batch, torch.Generator().manual_seed(i)).theta_BK for i in range(300)])
    assert many.mean().item() == pytest.approx(0, abs=0.04)
    assert many.std().item() == pytest.approx(1, abs=0.03)


def test_the_stories_of_two_networks_do_not_meet():
    """Both are traced in turn; neither changes the other's loss, and Pyro's store stays empty."""
    one, batch, draws = case(seed=0)
    two, other, other_draws = case(seed=1)
    one.eval(), two.eval()
    before = pyro_loss(one, batch, draws, 1.0).item()
    pyro_loss(two, other, other_draws, 1.0)
    assert pyro_loss(one, batch, draws, 1.0).item() == before
    assert len(pyro.get_param_store()) == 0


def test_the_story_generates_counts():
    """Without observing anything the model runs forward and its counts have their cells' depth."""
    network, batch, _ = case()
    network.eval()
    pyro.set_rng_seed(0)
    with torch.no_grad():
        unseen = pyro.poutine.uncondition(partial(generative.model, network))
        x = torch.stack([pyro.poutine.trace(unseen).get_trace(batch).nodes["counts"]["value"] for _ in range(400)])
    # E[d_i] = n_i exp(1 / 2) for the log-normal depth, and frequencies sum to one
    ratio = (x.sum(2).mean(0) / (batch.depth_B * np.exp(0.5))).mean().item()
    assert ratio == pytest.approx(1, abs=0.1)
