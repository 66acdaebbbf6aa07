"""Steps are the same however they are taken: by which optimiser, from minibatches of the host or of the device."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mira_core.data import loaders
from mira_core.training import engine, schedules
from mira_core.training.clock import Clock
from mira_core.training.engine import DeviceEngine, Engine
from mira_core.training.schedules import Settings
from mira_core.training.step import FusedAdamW, TensorAdamW, all_finite
from tests.helpers import FAMILIES, make, make_network, read_cells, with_columns

CPU = torch.device("cpu")


@pytest.mark.parametrize("ours_is", [FusedAdamW, TensorAdamW])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_equals_torchs(weight_decay, ours_is):
    """With a learning rate and a momentum for each step, and a parameter that lies in memory by columns."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,), ())]
    values.append(torch.randn(6, 2, generator=generator, dtype=torch.float64).T)
    ours, theirs = ([torch.nn.Parameter(v.clone()) for v in values] for _ in range(2))
    one = ours_is(ours, weight_decay)
    other = torch.optim.AdamW(theirs, weight_decay=weight_decay)
    assert all(torch.equal(a, b) for a, b in zip(ours, values, strict=True))
    assert ours[3].stride() == theirs[3].stride()
    for step in range(40):
        settings = Settings(10 ** -(1 + step / 20), 0.85 + 0.1 * np.cos(step), 1.0, 0.0)
        one.zero_grad()
        for a, b in zip(ours, theirs, strict=True):
            b.grad = torch.randn(b.shape, generator=generator, dtype=torch.float64)
            a.grad = b.grad.clone() if a.grad is None else a.grad.add_(b.grad)
        how = settings if ours_is is FusedAdamW else Settings(*torch.tensor(settings, dtype=torch.float64).unbind())
        one.step(how.learning_rate, how.momentum)
        for group in other.param_groups:
            group["lr"], group["betas"] = settings.learning_rate, (settings.momentum, 0.999)
        other.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_adamw_leaves_what_has_no_gradient_as_it_is():
    still, moved = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimiser = FusedAdamW([still, moved], 0.1)
    moved.grad = torch.ones(3)
    optimiser.step(0.1, 0.9)
    assert (still == 1).all()
    assert (moved < 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_minibatches_of_the_device_and_settings_as_tensors_take_the_same_steps(cells, family, monkeypatch):
    """What a GPU runs but for its graph, on the CPU, against what a CPU runs."""
    options = {**FAMILIES[family], "batch_size": 40, "encoder_dropout": 0.1}
    if "feature_type" in options:  # peaks to hide are drawn from those that are open on a host, from all on a device
        options["embedding_dropout"] = 0.0
    adata = with_columns(cells[:130].copy())
    model, read = make(adata, **options), read_cells(adata, **options)
    order = loaders.shuffled(len(read), 40, np.random.default_rng(0))
    settings = [schedules.settings(i, 12, model.get_params()) for i in range(len(order))]
    network = model._begin(read).network
    apart = copy.deepcopy(network)
    host = Engine(network, read, model.get_params(), 0)
    wanted = list(host.epoch(order, settings))
    device = DeviceEngine(apart, read, model.get_params(), 0, graph=False)
    device.stepper.optimiser = TensorAdamW(apart.model_parameters(), model.weight_decay)
    if apart.dependence is not None:
        device.stepper.critic = TensorAdamW(apart.dependence.parameters(), 0.0)
    monkeypatch.setattr(device, "_settings", lambda s: iter(torch.tensor(s, dtype=torch.float64)))
    got = list(device.epoch(order, settings))
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-3)
    assert len(got) == len(order) == 3
    device.close()
    assert not apart.training
    assert all(p.grad is None for p in apart.parameters())


@pytest.mark.parametrize("every", [1, 2, 50])
def test_what_steps_tell_is_read_many_at_once_and_in_order(cells, every, monkeypatch):
    model, read = make(cells), read_cells(cells)
    order = loaders.shuffled(len(read), 32, np.random.default_rng(0))
    settings = [schedules.settings(i, 12, model.get_params()) for i in range(len(order))]
    told, reads = [], []
    for n in (1, every):
        monkeypatch.setattr(engine, "READ_EVERY", n)
        steps = Engine(model._begin(read).network, read, model.get_params(), 0)
        steps.device = torch.device("meta")  # anything but a CPU
        monkeypatch.setattr(steps, "_batches", lambda order: (read.batch(rows) for rows in order))
        monkeypatch.setattr(steps, "_settings", iter)
        honest = engine._read
        monkeypatch.setattr(engine, "_read", lambda t, honest=honest: reads.append(len(t)) or honest(t))
        told.append(list(steps.epoch(order, settings)))
        monkeypatch.setattr(engine, "_read", honest)
    assert told[0] == told[1]
    n = len(order)
    assert reads[n + 1 :] == [every] * (n // every) + [n % every]


def test_the_clock_tells_the_time_and_the_use_of_a_cpu():
    clock = Clock(CPU)
    x = torch.ones(200, 200)
    while clock.passed()[0] < 0.2:
        x = (x @ x).clamp(max=1)
    seconds, use = clock.passed()
    assert 0.2 <= seconds < 5
    assert 0 < use <= 1


def test_a_weight_that_is_not_finite_is_seen_wherever_it_is(tiny):
    network = make_network(read_cells(tiny))
    assert all_finite(network)
    for t in [*network.parameters(), network.decoder.norm.running_var]:
        for value in (torch.nan, torch.inf, -torch.inf):
            with torch.no_grad():
                before = t.view(-1)[0].item() if t.is_contiguous() else t.T.view(-1)[0].item()
                flat = t.view(-1) if t.is_contiguous() else t.T.view(-1)
                flat[0] = value
                assert not all_finite(network)
                flat[0] = before
    assert all_finite(network)
