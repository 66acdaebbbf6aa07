"""On a CUDA device: the same formulas, the same seeds, models that move. ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mira_core as mira
from mira_core.training.objective import draw, loss_terms

from .. import helpers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_model_trained_on_a_gpu_predicts_alike_on_the_cpu(cells, tmp_path):
    model = helpers.make(cells).fit(cells, progress=False)
    assert model.device.type == "cuda"
    model.save(tmp_path / "m.safetensors")
    loaded = mira.topics.load_model(tmp_path / "m.safetensors")
    a, b = (m.predict(cells.copy()).obsm["X_topic_compositions"] for m in (model, loaded))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert model.score(cells) == pytest.approx(loaded.score(cells), rel=1e-4)


def test_loss_and_gradients_equal_those_of_the_cpu(cells, fitted):
    told = {}
    batch_cells = fitted._cells(cells)
    cpu_batch = batch_cells.batch(np.arange(64))
    draws = draw(fitted.network, cpu_batch, torch.Generator().manual_seed(0))
    for device in ("cpu", "cuda"):
        network = fitted.network.to(device)
        network.zero_grad()
        batch = cpu_batch.to(torch.device(device))
        loss = loss_terms(network, batch, type(draws)(*(d.to(device) for d in draws))).loss(0.7)
        loss.backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in network.parameters()])
        told[device] = (loss.item(), gradients)
        network.zero_grad()
    fitted.network.to("cpu")
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
