"""Training as a generator of records: steps, reproducibility, independence, stopping, divergence."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import random
import sys

import numpy as np
import pytest
import torch

import mira_core as mira
from mira_core.errors import OptionError, TrainingError
from mira_core.records import EpochRecord, StepRecord, from_dict
from mira_core.training import schedules, step
from mira_core.training.writers import TensorBoardWriter, as_writer
from tests.helpers import FAMILIES, arrays, global_states, make, make_cells, read_cells, same, with_columns


def steps(records) -> list[StepRecord]:
    return [r for r in records if isinstance(r, StepRecord)]


def epochs(records) -> list[EpochRecord]:
    return [r for r in records if isinstance(r, EpochRecord)]


def shake_globals() -> None:
    """Use the global generators."""
    torch.rand(7)
    np.random.rand(5)  # noqa: NPY002
    random.random()


# --- what is told ---------------------------------------------------------------------------------


def test_every_step_and_epoch_is_told_in_order(cells):
    model = make(cells, num_epochs=4, batch_size=50)
    records = list(model.fit_records(cells))
    assert [r.step for r in steps(records)] == list(range(1, 25))
    assert [r.epoch for r in epochs(records)] == [1, 2, 3, 4]
    assert [r.step for r in epochs(records)] == [6, 12, 18, 24]
    assert [type(r) for r in records] == ([StepRecord] * 6 + [EpochRecord]) * 4
    assert model.history == epochs(records)
    assert model.training_loss == [r.loss for r in epochs(records)]


def test_records_tell_the_schedules(cells):
    model = make(cells, num_epochs=4, batch_size=50, cost_beta=1.5, kl_strategy="monotonic", max_learning_rate=0.05)
    records = list(model.fit_records(cells))
    for t, r in enumerate(steps(records)):
        assert r.learning_rate == schedules.learning_rate(t, 24, 1e-3, 0.05)
        assert r.momentum == schedules.momentum(t, 24, 0.85, 0.95)
        assert r.kl_weight == 1.5 * schedules.monotonic(t, 24)
    for e in epochs(records):
        of_epoch = [r for r in steps(records) if r.epoch == e.epoch]
        for name in ("loss", "distortion", "rate"):
            assert getattr(e, name) == pytest.approx(np.mean([getattr(r, name) for r in of_epoch]))
        assert (e.kl_weight, e.learning_rate) == (of_epoch[-1].kl_weight, of_epoch[-1].learning_rate)
        assert e.seconds > 0
        assert e.cells_per_second == pytest.approx(300 / e.seconds)
        assert 0 <= e.waiting <= 1


def test_the_loss_falls(cells):
    losses = make(cells, num_epochs=10).fit(cells, progress=False).training_loss
    assert losses[-1] < losses[0]
    assert losses[-1] == min(losses[-3:]) or losses[-1] < np.mean(losses)


def test_writer_and_history_see_the_same_records(cells):
    writer = mira.topics.Writer()
    model = make(cells).fit(cells, writer=writer, progress=False)
    assert epochs(writer.records) == model.history
    assert len(steps(writer.records)) == 3 * (300 // 32)


def test_progress_is_shown_only_if_wanted(cells, capfd):
    make(cells).fit(cells, progress=False)
    assert capfd.readouterr() == ("", "")
    make(cells).fit(cells)
    out, err = capfd.readouterr()
    assert out == ""
    assert "nats/cell" in err


@pytest.mark.parametrize("kind", [StepRecord, EpochRecord])
def test_records_survive_json_and_pickle(cells, kind):
    record = next(r for r in make(cells, num_epochs=1).fit_records(cells) if type(r) is kind)
    assert from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record
    assert pickle.loads(pickle.dumps(record)) == record
    assert record.to_dict()["kind"] == kind.kind


def test_a_number_that_json_cannot_hold_becomes_null_and_comes_back_as_nan():
    told = StepRecord(1, 1, math.nan, math.inf, 0.0, 1.0, 0.1, 0.9).to_dict()
    assert told["loss"] is None
    assert told["distortion"] is None
    back = from_dict(json.loads(json.dumps(told, allow_nan=False)))
    assert math.isnan(back.loss)
    assert back.rate == 0


# --- writers --------------------------------------------------------------------------------------


class Summary:
    """As much of TensorBoard's SummaryWriter as is asked for."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def close(self) -> None:
        self.closed = True


NUMBERS = {
    "loss", "distortion", "rate", "kl_weight", "learning_rate", "momentum", "dependence", "dependence_weight"
}  # fmt: skip
OF_EPOCHS = NUMBERS | {"seconds", "cells_per_second", "waiting", "device_use"}


def told_twice(cells, log_every: int) -> tuple[list, list[tuple[str, float, int]]]:
    """The records of a training, and the scalars that should come of them."""
    records = list(make(cells).fit_records(cells))
    scalars = []
    for r in records:
        if isinstance(r, EpochRecord):
            scalars += [(f"epoch/{name}", getattr(r, name), r.epoch) for name in OF_EPOCHS]
        elif r.step % log_every == 0:
            scalars += [(f"step/{name}", getattr(r, name), r.step) for name in NUMBERS]
    return records, scalars


@pytest.mark.parametrize("log_every", [1, 4, 10])
def test_tensorboard_is_written_every_epoch_and_some_steps(cells, log_every):
    records, wanted = told_twice(cells, log_every)
    summary = Summary()
    writer = TensorBoardWriter(summary, log_every)
    for record in records:
        writer.write(record)
    assert sorted(summary.scalars) == sorted(wanted)
    writer.close()
    assert summary.closed


def test_a_summary_writer_can_be_given_as_it_is(cells):
    summary = Summary()
    model = make(cells).fit(cells, writer=summary, progress=False)
    losses = [value for tag, value, _ in summary.scalars if tag == "epoch/loss"]
    assert losses == model.training_loss
    assert [s for tag, _, s in summary.scalars if tag == "step/loss"] == [10, 20]
    assert not summary.closed  # who opened it closes it


def test_real_tensorboard_files_are_read_back(cells, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    records, wanted = told_twice(cells, 3)
    writer = mira.topics.TensorBoardWriter(tmp_path / "run", log_every=3)
    for record in records:
        writer.write(record)
    writer.close()
    read = accumulator.EventAccumulator(str(tmp_path / "run"))
    read.Reload()
    found = {(tag, e.step): e.value for tag in read.Tags()["scalars"] for e in read.Scalars(tag)}
    assert found == pytest.approx({(tag, s): value for tag, value, s in wanted}, rel=1e-6)


def test_without_the_package_tensorboard_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(OptionError, match="needs the package tensorboard; install it with pip"):
        TensorBoardWriter(tmp_path)


def test_anything_that_writes_records_is_a_writer():
    assert as_writer(None) is None
    writer = mira.topics.Writer()
    assert as_writer(writer) is writer
    assert isinstance(as_writer(Summary()), TensorBoardWriter)


@pytest.mark.parametrize("wrong", [3, "runs/1", print], ids=["number", "path", "function"])
def test_what_cannot_write_is_refused_before_training(cells, wrong):
    model = make(cells)
    message = r"writer must have write\(record\), such as mira.topics.Writer, or add_scalar, .*; got "
    with pytest.raises(OptionError, match=message + type(wrong).__name__):
        model.fit(cells, writer=wrong, progress=False)
    assert model.network is None


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch", "per_epoch"), [(20, 64, 1), (2, 64, 1), (3, 2, 1), (65, 64, 1), (64, 32, 2)])
def test_any_number_of_cells_from_two_trains_and_predicts(n, batch, per_epoch):
    adata = make_cells(n, 9)
    model = make(adata, batch_size=batch, num_epochs=2, num_topics=2).fit(adata, progress=False)
    assert [r.step for r in model.history] == [per_epoch, 2 * per_epoch]
    assert all(math.isfinite(r.loss) for r in model.history)
    theta = model.predict(adata).obsm["X_topic_compositions"]
    assert theta.shape == (n, 2)
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-5)


def test_recommended_options_train_on_two_cells():
    adata = make_cells(2, 5)
    model = mira.topics.make_model(*adata.shape, feature_type="expression", num_epochs=1, seed=0)
    assert math.isfinite(model.fit(adata, progress=False).score(adata))


def test_fewer_features_than_topics_train():
    adata = make_cells(40, 3)
    assert math.isfinite(make(adata, num_topics=7).fit(adata, progress=False).score(adata))


# --- reproducibility ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_model_whatever_else_the_process_did(cells):
    one = make(cells).fit(cells, progress=False)
    shake_globals()
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    two = make(cells)
    for _ in two.fit_records(cells):
        shake_globals()
    assert same(arrays(one), arrays(two))
    assert [r.loss for r in one.history] == [r.loss for r in two.history]


def test_two_models_trained_step_by_step_in_turns_do_not_disturb_each_other(cells):
    other = make_cells(90, 30, seed=4)
    options = {
        "a": {"seed": 1, "decoder_dropout": 0.2},
        "b": {"seed": 2, "encoder_dropout": 0.3, "num_topics": 3},
    }
    data = {"a": cells, "b": other}
    alone = {k: make(data[k], **options[k]).fit(data[k], progress=False) for k in data}
    turns = {k: make(data[k], **options[k]) for k in data}
    running = {k: turns[k].fit_records(data[k]) for k in data}
    while running:
        for k in list(running):
            if next(running[k], None) is None:
                del running[k]
    for k in data:
        assert same(arrays(alone[k]), arrays(turns[k]))


def test_fitting_predicting_and_scoring_leave_the_global_generators_alone(cells):
    before = global_states()
    model = make(cells).fit(cells, progress=False)
    model.predict(cells)
    model.score(cells)
    assert global_states() == before


def test_fitting_does_not_change_torchs_global_settings(cells):
    def settings():
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

    before = settings()
    make(cells).fit(cells, progress=False).predict(cells)
    assert settings() == before


def test_another_seed_gives_another_model(cells):
    assert not same(
        arrays(make(cells).fit(cells, progress=False)), arrays(make(cells, seed=1).fit(cells, progress=False))
    )


def test_a_seed_that_is_not_given_is_drawn_and_told_and_repeats_the_model(cells):
    one, two = (make(cells, seed=None).fit(cells, progress=False) for _ in range(2))
    assert one.seed is None
    assert one.seed_used != two.seed_used
    assert same(arrays(one), arrays(make(cells, seed=one.seed_used).fit(cells, progress=False)))


def test_fitting_again_starts_afresh(cells):
    model = make(cells).fit(cells, progress=False)
    first = arrays(model)
    model.fit(cells, progress=False)
    assert same(first, arrays(model))
    assert len(model.history) == 3


def test_evaluating_between_steps_changes_neither_the_training_nor_the_evaluation(cells):
    """What is scored or predicted in the middle of the training is what a closed training would give."""
    quiet = make(cells, encoder_dropout=0.3).fit(cells, progress=False)
    model = make(cells, encoder_dropout=0.3)
    for record in model.fit_records(cells):
        if (isinstance(record, EpochRecord) and record.epoch == 2) or record.step == 3:
            score = model.score(cells)
            theta = model.predict(cells.copy()).obsm["X_topic_compositions"]
            inside = model._fit
            model._fit = dataclasses.replace(inside, network=copy.deepcopy(inside.network).eval())
            assert score == model.score(cells)
            assert np.array_equal(theta, model.predict(cells.copy()).obsm["X_topic_compositions"])
            model._fit = inside
    assert same(arrays(quiet), arrays(model))


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 5, 12])
def test_closing_the_records_early_leaves_a_usable_model(cells, after, tmp_path):
    model = make(cells)
    training = model.fit_records(cells)
    for _ in range(after):
        next(training)
    training.close()
    assert not model.network.training
    assert len(model.history) == after // 10
    first = model.predict(cells.copy()).obsm["X_topic_compositions"]
    assert np.array_equal(first, model.predict(cells.copy()).obsm["X_topic_compositions"])
    assert math.isfinite(model.score(cells))
    model.save(tmp_path / "m.safetensors")
    loaded = mira.topics.load_model(tmp_path / "m.safetensors")
    assert np.array_equal(first, loaded.predict(cells.copy()).obsm["X_topic_compositions"])
    assert loaded.history == model.history


def test_closing_before_the_first_record_leaves_the_model_as_it_was(cells):
    model = make(cells)
    model.fit_records(cells).close()
    assert model.network is None
    model.fit(cells, progress=False)
    before = arrays(model)
    model.fit_records(cells).close()
    assert same(before, arrays(model))


def test_wrong_data_leave_an_earlier_model_as_it_was(cells):
    model = make(cells).fit(cells, progress=False)
    before, score = arrays(model), model.score(cells)
    with pytest.raises(mira.data.anndata_io.DataError):
        model.fit(cells[:1].copy(), progress=False)
    assert same(before, arrays(model))
    assert model.score(cells) == score


def test_an_error_of_the_writer_ends_the_training_and_leaves_a_usable_model(cells):
    class Full:
        def write(self, record) -> None:
            raise OSError("disk full")

    model = make(cells)
    with pytest.raises(OSError, match="disk full"):
        model.fit(cells, writer=Full(), progress=False)
    assert not model.network.training
    assert math.isfinite(model.score(cells))


# --- divergence -----------------------------------------------------------------------------------


def diverge(adata, **options) -> tuple[mira.topics.TopicModel, str, list]:
    """Train until it fails; return the model, what was said, and the records till then."""
    model, writer = make(adata, **options), mira.topics.Writer()
    with pytest.raises(TrainingError) as told:
        model.fit(adata, writer=writer, progress=False)
    return model, str(told.value), writer.records


def test_a_loss_that_is_not_finite_stops_with_causes_and_remedies(cells):
    model, text, records = diverge(cells, max_learning_rate=1e9, num_epochs=5)
    for part in (
        f"no longer finite at step {steps(records)[-1].step + 1} (epoch ",
        "a learning rate that is too high: max_learning_rate is 1e+09; try a third of it, or find bounds by",
        f"The model is as it was after epoch {len(model.history)}",
    ):
        assert part in text
    assert "extreme total counts" not in text
    assert "too many features" not in text
    assert all(math.isfinite(r.loss) for r in records)


def test_outlier_cells_are_the_first_cause_named_where_there_are_any(cells):
    x = cells.X.toarray()
    x[7, 0] = 2**20
    cells.X = x
    _, text, _ = diverge(cells, max_learning_rate=1e9, num_epochs=5)
    assert "outlier cells: the deepest cell has 1,04" in text  # 2 ** 20 and its other counts
    assert "times the median; leave out cells with extreme total counts" in text
    assert text.index("outlier cells") < text.index("max_learning_rate is 1e+09")


def test_too_many_features_are_the_last_cause_named():
    adata = make_cells(20, 20_001)
    _, text, _ = diverge(adata, max_learning_rate=1e20, num_epochs=5, hidden=4)
    assert text.index("max_learning_rate is 1e+20") < text.index("too many features: 20,001 genes; model the few thous")
    peaks = {"feature_type": "accessibility", "atac_encoder": "DAN", "dan_on_cpu": True}
    assert "too many features" not in diverge(adata, max_learning_rate=1e20, num_epochs=5, hidden=4, **peaks)[1]


@pytest.mark.parametrize("family", ["expression", "CODAL", "process", "fast", "skipDAN"])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_after_a_divergence_the_model_is_as_after_the_last_epoch_that_ended_well(cells, family, good, monkeypatch):
    """The same training, closed at the end of that epoch, has the same weights."""
    options = {**FAMILIES[family], "num_epochs": 4, "batch_size": 100, "encoder_dropout": 0.1}
    adata = with_columns(cells)
    closed = make(adata, **options)
    for record in closed.fit_records(adata) if good else ():
        if isinstance(record, EpochRecord) and record.epoch == good:
            break
    fresh = make(adata, **options)
    fresh._fit = fresh._begin(read_cells(adata, **options))
    wanted = closed if good else fresh

    honest = step.Stepper.step
    taken = []

    def explode(self, *args, **kwargs):
        """In the middle of the next epoch every weight is lost."""
        taken.append(1)
        if len(taken) == 3 * good + 2:
            with torch.no_grad():
                for p in self.network.parameters():
                    p.fill_(math.nan)
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(step.Stepper, "step", explode)
    model, text, _ = diverge(adata, **options)
    assert f"at step {3 * good + 2} (epoch {good + 1}," in text
    assert text.endswith(f"The model is as it was after epoch {good}")
    assert same(arrays(model), arrays(wanted))
    assert [r.epoch for r in model.history] == list(range(1, good + 1))
    assert not model.network.training
    theta = model.predict(adata).obsm["X_topic_compositions"]
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-5)
    assert math.isfinite(model.score(adata))


def test_a_model_that_diverged_can_be_fitted_again_at_a_lower_rate(cells):
    model, _, _ = diverge(cells, max_learning_rate=1e9, num_epochs=5)
    model.set_params(max_learning_rate=0.1).fit(cells, progress=False)
    assert same(arrays(model), arrays(make(cells, max_learning_rate=0.1, num_epochs=5).fit(cells, progress=False)))


def test_parameters_that_are_not_finite_after_the_last_step_stop_too(cells):
    """One step in all, at a learning rate that overflows: no later loss could tell."""
    model = make(cells[:20].copy(), num_epochs=1, min_learning_rate=1e45, max_learning_rate=1e45)
    with pytest.raises(TrainingError, match="no longer finite"):
        model.fit(cells[:20].copy(), progress=False)


def test_an_extreme_cell_does_not_break_the_training(cells):
    x = cells.X.toarray()
    x[0, 0] = 2**24
    cells.X = x
    assert math.isfinite(make(cells).fit(cells, progress=False).score(cells))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_predicts_and_repeats_itself(cells, family, tmp_path):
    adata = with_columns(cells)
    model = make(adata, num_epochs=8, **FAMILIES[family]).fit(adata, progress=False)
    assert model.training_loss[-1] < model.training_loss[0]
    told = model.history[-1]
    assert all(math.isfinite(x) for x in (told.loss, told.distortion, told.rate, told.dependence))
    assert (told.dependence_weight > 0) == ("CODAL" in family)
    assert math.isfinite(model.score(adata))
    theta = model.predict(adata).obsm["X_topic_compositions"]
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-5)
    again = make(adata, num_epochs=8, **FAMILIES[family])
    for _ in again.fit_records(adata):
        shake_globals()
    assert same(arrays(model), arrays(again))


@pytest.mark.parametrize("nb_parameterize_logspace", [True, False])
@pytest.mark.parametrize("kl_strategy", ["cyclic", "monotonic"])
@pytest.mark.parametrize("num_layers", [2, 3, 4])
def test_every_choice_of_options_trains(cells, nb_parameterize_logspace, kl_strategy, num_layers):
    model = make(
        cells, nb_parameterize_logspace=nb_parameterize_logspace, kl_strategy=kl_strategy, num_layers=num_layers,
        embedding_size=9, encoder_dropout=0.1, decoder_dropout=0.1, use_cuda=False,
    )  # fmt: skip
    assert math.isfinite(model.fit(cells, progress=False).score(cells))


def test_options_reach_the_network(cells):
    cells.var["seen"] = np.arange(120) < 50
    cells.obs["a"] = np.linspace(0, 1, 300)
    model = make(
        cells, num_topics=6, hidden=7, embedding_size=11, num_layers=3, initial_pseudocounts=30, endogenous_key="seen",
        encoder_dropout=0.25, decoder_dropout=0.15, extra_features_keys="a", num_epochs=1,
    ).fit(cells, progress=False)  # fmt: skip
    layers = model.network.encoder.layers
    assert layers[0][0].weight.shape == (11, 50 + 1 + 1)
    assert layers[1][0].weight.shape == (7, 11)
    assert layers[2].weight.shape == (14, 7)
    assert layers[0][3].p == 0.25
    assert model.network.theta_dropout.p == 0.15
    assert model.network.prior.rate == pytest.approx(2 * 6 / 30)
    assert read_cells(cells, endogenous_key="seen").endogenous.sum() == 50
