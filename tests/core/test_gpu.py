"""On a CUDA device: the same formulas, the same seeds, models that move. ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mira_core as mira
from mira_core.data import loaders
from mira_core.errors import OptionError
from mira_core.nn.dependence import mismatched_pairs
from mira_core.training import engine as engine_module
from mira_core.training import schedules
from mira_core.training.engine import DeviceEngine
from mira_core.training.objective import draw, loss_terms

from .. import helpers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_a_model_trained_on_a_gpu_predicts_alike_on_the_cpu(cells, tmp_path, family):
    adata = helpers.with_columns(cells)
    model = helpers.make(adata, **helpers.FAMILIES[family]).fit(adata, progress=False)
    assert model.device.type == "cuda"
    model.save(tmp_path / "m.safetensors")
    loaded = mira.topics.load_model(tmp_path / "m.safetensors")
    a, b = (m.predict(adata.copy()).obsm["X_topic_compositions"] for m in (model, loaded))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert model.score(adata) == pytest.approx(loaded.score(adata), rel=1e-4)


@pytest.mark.parametrize("family", ["expression", "CODAL", "process", "skipDAN", "fast"])
def test_a_seed_repeats_a_model_on_a_gpu(cells, family):
    adata = helpers.with_columns(cells)
    one, two = (helpers.make(adata, **helpers.FAMILIES[family]).fit(adata, progress=False) for _ in range(2))
    np.testing.assert_allclose(one.training_loss, two.training_loss, rtol=1e-4)  # sums may run in another order


@pytest.mark.parametrize("encoder", ["skipDAN", "DAN"])
def test_deep_averaging_encoders_ask_for_no_leave_on_a_gpu(cells, encoder):
    model = mira.topics.make_model(*cells.shape, feature_type="accessibility", atac_encoder=encoder, num_epochs=1)
    assert model.fit(cells, progress=False).device.type == "cuda"
    with pytest.raises(OptionError, match=f"the {encoder} encoder needs a GPU to train, and use_cuda is off"):
        model.set_params(use_cuda=False).fit(cells, progress=False)


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_loss_and_gradients_equal_those_of_the_cpu(cells, family):
    told = {}
    adata = helpers.with_columns(cells)
    model = helpers.make(adata, use_cuda=False, **helpers.FAMILIES[family])
    model.fit(adata, progress=False)
    network = model.network
    cpu_batch = model._cells(adata).batch(np.arange(64))
    draws = draw(network, cpu_batch, torch.Generator().manual_seed(0))
    pairs = mismatched_pairs(64, 50, torch.Generator().manual_seed(0), torch.device("cpu"))
    for device in ("cpu", "cuda"):
        network.to(device)
        network.zero_grad()
        batch = cpu_batch.to(torch.device(device))
        terms, theta_BK = loss_terms(network, batch, type(draws)(*(d.to(device) for d in draws)))
        if network.dependence is not None:
            signals = network.signals(theta_BK, batch.covariates_BC)
            terms = terms._replace(dependence=network.dependence(*signals, *(p.to(device) for p in pairs)))
        loss = terms.loss(0.7, 0.6)
        loss.backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])
        told[device] = (loss.item(), gradients)
        network.zero_grad()
    assert told["cuda"][0] == pytest.approx(told["cpu"][0], rel=1e-5)
    scale = told["cpu"][1].abs().max()
    assert (told["cuda"][1] - told["cpu"][1]).abs().max() < 1e-3 * scale


def test_without_use_cuda_it_stays_on_the_cpu(cells):
    assert helpers.make(cells, use_cuda=False).fit(cells, progress=False).device.type == "cpu"


def test_topics_are_recovered_on_a_gpu():
    from scipy.optimize import linear_sum_assignment

    adata = mira.data.simulate_expression(800, 400, 5, seed=0)
    helpers.make(adata, num_topics=5, num_epochs=60, seed=0).fit(adata, progress=False).predict(adata)
    c = np.corrcoef(adata.obsm["true_topics"].T, adata.obsm["X_topic_compositions"].T)[:5, 5:]
    assert c[linear_sum_assignment(-c)].mean() > 0.8


def engines(cells, family: str, **kw: object):
    """A fresh network and its engine on the device, with what it is to be trained with."""
    adata = helpers.with_columns(cells)
    options = {**helpers.FAMILIES[family], "batch_size": 32, "num_epochs": 20}
    model, read = helpers.make(adata, **options), helpers.read_cells(adata, **options)
    network = model._begin(read).network
    assert network.device.type == "cuda"
    return DeviceEngine(network, read, model.get_params(), 0, **kw), read, model.get_params()


def losses(engine, read, options, epochs: int = 12) -> list[float]:
    rng, told = np.random.default_rng(0), []
    per_epoch = loaders.steps_per_epoch(len(read), 32)
    for epoch in range(epochs):
        settings = [schedules.settings(epoch * per_epoch + i, 20 * per_epoch, options) for i in range(per_epoch)]
        told += [t.loss for t in engine.epoch(loaders.shuffled(len(read), 32, rng), settings)]
    return told


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_a_captured_graph_trains_as_single_operations_do(cells, family):
    with_graph = engines(cells, family)
    without = engines(cells, family, graph=False)
    a, b = losses(*with_graph), losses(*without)
    assert with_graph[0].graph is not None, "the step could not be captured"
    assert without[0].graph is None
    np.testing.assert_allclose(a[:3], b[:3], rtol=1e-4)  # before it is captured
    np.testing.assert_allclose(np.mean(a[-20:]), np.mean(b[-20:]), rtol=0.02)
    with_graph[0].close()
    assert with_graph[0].network.decoder.beta.weight.isfinite().all()


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_no_step_waits_for_the_device(cells, family):
    engine, read, _ = engines(cells, family, graph=False)
    rows = torch.arange(32, device="cuda")
    setting = torch.tensor([1e-3, 0.9, 1.0, 1.0], device="cuda")
    for _ in range(2):
        engine._step(rows, setting)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine._step(rows, setting)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(read) > 32


def test_counts_that_do_not_fit_are_sent_minibatch_by_minibatch(cells, monkeypatch):
    one = helpers.make(cells, num_epochs=6).fit(cells, progress=False)
    monkeypatch.setattr(engine_module, "SHARE_OF_MEMORY", 0.0)
    other = helpers.make(cells, num_epochs=6)
    assert type(engine_module.make_engine(other._begin(other_cells := helpers.read_cells(cells)).network, other_cells,
                                          other.get_params(), 0)) is engine_module.Engine  # fmt: skip
    other.fit(cells, progress=False)
    np.testing.assert_allclose(one.training_loss, other.training_loss, rtol=0.03)
