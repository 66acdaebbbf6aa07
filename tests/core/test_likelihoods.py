"""The negative binomial and the multinomial from their non-zeros equal the dense ones of torch and Pyro."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch

from mira_core.data.counts import Batch
from mira_core.models import likelihoods
from mira_core.models.generative import OpenPeaks, _negative_binomial
from mira_core.nn.decoder import Linear
from tests.helpers import make_network, read_cells

FLOAT64 = torch.float64


def batch_of(x: np.ndarray, dtype: torch.dtype = FLOAT64) -> Batch:
    """The minibatch of dense counts, made by hand."""
    m = sp.csr_array(x)
    none = torch.zeros(len(x), 0, dtype=dtype)
    return Batch(
        torch.from_numpy(m.indptr.astype(np.int64)), torch.from_numpy(m.indices), torch.tensor(m.data, dtype=dtype),
        none, none, x.shape[1],
    )  # fmt: skip


def cells_of(batch: Batch) -> list[Batch]:
    """Each cell of a minibatch as a minibatch of its own."""
    return [batch_of(row[None], batch.count_M.dtype) for row in batch.counts_BG.numpy()]


def as_linear(logits_BG: torch.Tensor) -> Linear:
    """The same numbers as a linear map of themselves."""
    G = logits_BG.shape[1]
    return Linear(logits_BG, torch.eye(G, dtype=logits_BG.dtype), logits_BG.new_zeros(G))


def negative_binomial(
    batch: Batch, log_mean_BG: torch.Tensor, log_r_G: torch.Tensor, logspace: bool = True
) -> torch.Tensor:
    """Log likelihood of each cell for any log mean: its log sum is the depth, and the rest log rho."""
    return torch.stack([
        likelihoods.negative_binomial(cell, as_linear(log_mean[None]), log_mean.logsumexp(0)[None], log_r_G, logspace)
        for cell, log_mean in zip(cells_of(batch), log_mean_BG, strict=True)
    ])  # fmt: skip


def multinomial(batch: Batch, log_rho_BG: torch.Tensor) -> torch.Tensor:
    """Log likelihood of each cell."""
    cells = zip(cells_of(batch), log_rho_BG, strict=True)
    return torch.stack([likelihoods.multinomial(cell, as_linear(log_rho[None])) for cell, log_rho in cells])


def problem(seed: int = 0, B: int = 6, G: int = 9) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Counts from 0 to hundreds, log means from e^-8 to e^6, dispersions from 0.05 to 50."""
    rng = np.random.default_rng(seed)
    log_mean = torch.from_numpy(rng.uniform(-8, 6, (B, G)))
    log_dispersion = torch.from_numpy(rng.uniform(-3, 4, G))
    x = rng.poisson(rng.gamma(0.5, 2 * np.exp(log_mean.numpy())))
    x[0] = 0
    x[1, 0] = 12_345
    return x, log_mean, log_dispersion


@pytest.mark.parametrize("logspace", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_torch_by_logits_and_by_probabilities(logspace, seed):
    x, log_mean, log_r = problem(seed)
    r, mean = log_r.exp(), log_mean.exp()
    by = {"logits": log_mean - log_r} if logspace else {"probs": mean / (mean + r)}
    wanted = torch.distributions.NegativeBinomial(r, **by).log_prob(torch.from_numpy(x).double()).sum(1)
    got = negative_binomial(batch_of(x), log_mean, log_r, logspace)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("logspace", [True, False])
def test_equals_pyros_gamma_poisson(logspace):
    x, log_mean, log_r = problem()
    r = log_r.exp()
    wanted = dist.GammaPoisson(r, r / log_mean.exp()).log_prob(torch.from_numpy(x).double()).sum(1)
    torch.testing.assert_close(negative_binomial(batch_of(x), log_mean, log_r, logspace), wanted, rtol=1e-9, atol=0)


def test_tends_to_the_poisson_as_the_dispersion_vanishes():
    x, log_mean, _ = problem()
    x = np.minimum(x, 30)
    log_mean = log_mean.clamp(-4, 3)
    log_r = torch.full((x.shape[1],), 16.0, dtype=FLOAT64)
    wanted = torch.distributions.Poisson(log_mean.exp()).log_prob(torch.from_numpy(x).double()).sum(1)
    torch.testing.assert_close(negative_binomial(batch_of(x), log_mean, log_r), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("logspace", [True, False])
def test_single_precision_is_near_double_precision(logspace):
    x, log_mean, log_r = problem()
    wanted = negative_binomial(batch_of(x), log_mean, log_r, logspace)
    got = negative_binomial(batch_of(x, torch.float32), log_mean.float(), log_r.float(), logspace)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("logspace", [True, False])
@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_extreme_means_stay_finite_with_finite_gradients(logspace, shift):
    x, log_mean, log_r = problem()
    log_mean = (log_mean.float() + shift).requires_grad_()
    log_r = log_r.float().requires_grad_()
    out = negative_binomial(batch_of(x, torch.float32), log_mean, log_r, logspace)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(log_mean.grad).all()
    assert torch.isfinite(log_r.grad).all()


@pytest.mark.parametrize("logspace", [True, False])
def test_gradients_equal_finite_differences(logspace):
    x, log_mean, log_r = problem(B=3, G=4)
    x[1, 0] = 7
    log_mean, log_r = log_mean.clamp(-4, 3), log_r.clamp(-1, 2)
    batch = batch_of(np.minimum(x, 20))
    assert torch.autograd.gradcheck(
        lambda m, r: negative_binomial(batch, m, r, logspace),
        (log_mean.requires_grad_(), log_r.requires_grad_()),
        rtol=1e-5, atol=1e-7,
    )  # fmt: skip


@pytest.mark.parametrize("logspace", [True, False])
def test_equals_the_distribution_of_the_generative_story(tiny, logspace):
    cells = read_cells(tiny)
    network = make_network(cells, nb_parameterize_logspace=logspace)
    batch = cells.batch(np.arange(12)).to(torch.device("cpu"), FLOAT64)
    log_mean = torch.randn(12, 7, dtype=FLOAT64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = _negative_binomial(network, log_mean).log_prob(batch.counts_BG)
        got = negative_binomial(batch, log_mean, network.log_dispersion_G, logspace)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=0)


def values_and_gradients(kind: str, x: np.ndarray, seed: int = 0) -> list[torch.Tensor]:
    """Of a minibatch with two topics, something added that is not linear, and any depths."""
    B, G = x.shape
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(shape, generator=generator, dtype=FLOAT64) for shape in ((B, 2), (2, G), (G,), (B, G))]
    more = [torch.randn(n, generator=generator, dtype=FLOAT64) + 2 for n in (B, G)] if kind != "multinomial" else []
    inputs = [t.requires_grad_() for t in given + more]
    function = likelihoods.multinomial if kind == "multinomial" else likelihoods.negative_binomial
    options = [kind == "logits"] if more else []
    total = function(batch_of(x), Linear(*inputs[:4]), *inputs[4:], *options)
    with torch.no_grad():
        again = function(batch_of(x), Linear(*inputs[:4]), *inputs[4:], *options)
    assert torch.equal(total, again)
    assert not again.requires_grad
    return [total, *torch.autograd.grad(3 * total, inputs)]


KINDS = ["logits", "probabilities", "multinomial"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_cells_at_a_time_give_what_all_at_once_give(kind, monkeypatch):
    x = problem(B=7, G=9)[0]
    x[3] = 0  # a chunk that begins with no counts
    whole = values_and_gradients(kind, x)
    for size in (1, 2, 3, 6):
        monkeypatch.setattr(likelihoods, "CHUNK", 9 * size)
        for a, b in zip(whole, values_and_gradients(kind, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_all_cells_sum_to_each_of_them(kind):
    x, log_mean, log_r = problem()
    profile = as_linear(log_mean)
    if kind == "multinomial":
        got, each = likelihoods.multinomial(batch_of(x), profile), multinomial(batch_of(x), log_mean)
    else:
        depth = log_mean.logsumexp(1)
        got = likelihoods.negative_binomial(batch_of(x), profile, depth, log_r, kind == "logits")
        each = negative_binomial(batch_of(x), log_mean, log_r, kind == "logits")
    torch.testing.assert_close(got, each.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_has_its_gradient(kind):
    x = np.minimum(problem(B=3, G=4)[0], 20)
    _, *gradients = values_and_gradients(kind, x)
    B, G = x.shape
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=FLOAT64) for shape in ((B, 2), (2, G), (G,), (B, G))]
    inputs += [torch.randn(n, generator=generator, dtype=FLOAT64) + 2 for n in (B, G)][: len(gradients) - 4]

    def plain(*inputs: torch.Tensor) -> torch.Tensor:
        log_rho = (inputs[0] @ inputs[1] + inputs[2] + inputs[3]).log_softmax(1)
        counts = torch.from_numpy(x).double()
        if kind == "multinomial":
            return (counts * log_rho).sum()
        logits = inputs[4][:, None] + log_rho - inputs[5]
        return torch.distributions.NegativeBinomial(inputs[5].exp(), logits=logits).log_prob(counts).sum()

    inputs = [t.requires_grad_() for t in inputs]
    wanted = torch.autograd.grad(3 * plain(*inputs), inputs)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("small", [1, 2, 8, 50])
def test_log_gammas_by_counting_equal_log_gammas(small, monkeypatch):
    monkeypatch.setattr(likelihoods, "SMALL_COUNTS", small)
    x, _, log_r = problem(B=20, G=9)
    batch, log_r = batch_of(x), log_r.requires_grad_()
    r, count = log_r.exp()[batch.feature_M], batch.count_M
    wanted = (torch.lgamma(count + r) - torch.lgamma(r) - torch.lgamma(count + 1)).sum()
    total, slope = likelihoods._count_terms(batch, log_r.detach(), True)
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted, log_r)[0], rtol=1e-10, atol=1e-12)


def test_cells_are_independent():
    x, log_mean, log_r = problem()
    whole = negative_binomial(batch_of(x), log_mean, log_r)
    for i in range(len(x)):
        alone = negative_binomial(batch_of(x[i : i + 1]), log_mean[i : i + 1], log_r)
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-12, atol=0)


# --- open peaks -----------------------------------------------------------------------------------


def peaks(seed: int = 0, B: int = 7, G: int = 11) -> tuple[np.ndarray, torch.Tensor]:
    """Open peaks, a cell with none and one with all of them, and log frequencies from e^-30 to 1."""
    rng = np.random.default_rng(seed)
    x = rng.random((B, G)) < 0.3
    x[0], x[1] = False, True
    return x.astype(int), torch.from_numpy(rng.uniform(-30, 0, (B, G))).log_softmax(1)


@pytest.mark.parametrize("seed", range(5))
def test_multinomial_equals_torchs_cell_by_cell(seed):
    x, log_rho = peaks(seed)
    got = multinomial(batch_of(x), log_rho)
    for row, logits, one in zip(x, log_rho, got, strict=True):
        distribution = torch.distributions.Multinomial(int(row.sum()), logits=logits)
        torch.testing.assert_close(one, distribution.log_prob(torch.tensor(row, dtype=FLOAT64)), rtol=1e-9, atol=1e-12)


def test_multinomial_of_counts_above_one_but_for_their_coefficients():
    """Peaks are binary, where the factorials of the counts are all one; of others they are left out."""
    x, log_rho = peaks()
    x = 3 * x
    coefficients = torch.lgamma(torch.tensor(x, dtype=FLOAT64) + 1).sum(1)
    got = multinomial(batch_of(x), log_rho) - coefficients
    for row, logits, one in zip(x, log_rho, got, strict=True):
        distribution = torch.distributions.Multinomial(int(row.sum()), logits=logits)
        torch.testing.assert_close(one, distribution.log_prob(torch.tensor(row, dtype=FLOAT64)), rtol=1e-9, atol=1e-12)


def test_multinomial_equals_the_distribution_of_the_generative_story():
    x, log_rho = peaks()
    wanted = OpenPeaks(logits=log_rho, validate_args=False).log_prob(torch.tensor(x, dtype=FLOAT64))
    torch.testing.assert_close(multinomial(batch_of(x), log_rho), wanted, rtol=1e-9, atol=1e-12)


def test_multinomial_sums_to_one_over_all_ways_to_draw_a_peak():
    log_rho = peaks(G=6)[1][:1].expand(6, 6)
    got = multinomial(batch_of(np.eye(6, dtype=int)), log_rho).exp().sum()
    torch.testing.assert_close(got, torch.tensor(1.0, dtype=FLOAT64))


def test_multinomial_in_single_precision_is_near_double_precision():
    x, log_rho = peaks()
    got = multinomial(batch_of(x, torch.float32), log_rho.float())
    torch.testing.assert_close(got.double(), multinomial(batch_of(x), log_rho), rtol=1e-5, atol=1e-5)


def test_gradients_of_the_multinomial_equal_finite_differences():
    x, log_rho = peaks(B=3, G=4)
    batch = batch_of(x)
    assert torch.autograd.gradcheck(lambda r: multinomial(batch, r), (log_rho.requires_grad_(),))
