"""The evidence for a number of topics, and the table that is shown meanwhile."""

from __future__ import annotations

import io
import math
from datetime import datetime

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

import mira_core as mira
from mira_core.tuning import summary, table
from mira_core.tuning.gaussian_process import GaussianProcess
from tests.helpers import make, make_tuner

pytestmark = pytest.mark.filterwarnings("ignore:the best model has")


def completed(k: int, loss: float | None, number: int = 0, state=TrialState.COMPLETE, **attrs):
    return optuna.trial.FrozenTrial(
        number=number, state=state, value=loss, datetime_start=datetime.now(),
        datetime_complete=datetime.now() if state.is_finished() else None, params={"num_topics": k},
        distributions={"num_topics": optuna.distributions.IntDistribution(2, 60)}, user_attrs=attrs, system_attrs={},
        intermediate_values={1: 9.0, 2: loss or 8.0}, trial_id=number,
    )  # fmt: skip


# --- the process ----------------------------------------------------------------------------------


def test_the_process_finds_curve_and_noise():
    rng = np.random.default_rng(0)
    x = rng.random(300)
    truth = lambda t: 40 + 5 * np.sin(4 * t)  # noqa: E731
    gp = GaussianProcess(x[:, None], truth(x) + rng.normal(0, 0.5, 300))
    at = np.linspace(0.05, 0.95, 20)
    mean, covariance = gp.curve(at[:, None])
    assert gp.noise == pytest.approx(0.5, rel=0.15)
    assert np.abs(mean - truth(at)).max() < 0.4
    error = np.sqrt(covariance.diagonal())
    assert (np.abs(mean - truth(at)) < 4 * error).all()
    again, deviation = gp.observations(at[:, None])
    np.testing.assert_allclose(again, mean)
    np.testing.assert_allclose(deviation**2, error**2 + gp.noise**2, rtol=1e-6)


def test_what_is_expected_changes_no_mean_but_makes_sure():
    rng = np.random.default_rng(1)
    gp = GaussianProcess(np.array([[0.1], [0.3], [0.8], [0.9]]), rng.normal(size=4))
    more = gp.with_expected(np.array([[0.5]]))
    (mean, deviation), (mean_more, deviation_more) = (g.observations(np.array([[0.5]])) for g in (gp, more))
    assert mean_more == pytest.approx(mean, abs=0.05)
    assert deviation_more < deviation


# --- numbers of topics ----------------------------------------------------------------------------


def losses(noise: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    ks = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 22, 25, 28, 30, 10, 11, 12, 13, 9, 8, 14]
    return [completed(k, 500 + 20 * math.log(k / 11) ** 2 + rng.normal(0, noise), i) for i, k in enumerate(ks)]


def test_numbers_that_cannot_be_told_from_the_best():
    """They hold the true one in most studies, and are the more the higher the noise."""
    held, sizes = [], []
    for seed in range(10):
        low, high = (summary.summarise("s", losses(noise, seed), {}, (2, 60)) for noise in (0.1, 1.0))
        held += [11 in low.alike, 11 in high.alike]
        sizes.append((len(low.alike), len(high.alike)))
        assert low.noise == pytest.approx(0.1, rel=0.8)
    assert sum(held) >= 17
    assert np.mean(sizes, axis=0)[0] < 3 < np.mean(sizes, axis=0)[1]


def test_the_table_of_losses():
    told = summary.summarise("s", losses(0.1), {}, (2, 60)).losses
    assert told.loc[10, "trials"] == 2
    both = [t.value for t in losses(0.1) if t.params["num_topics"] == 10]
    assert told.loc[10, "best"] == min(both)
    assert told.loc[10, "median"] == pytest.approx(np.mean(both))
    assert told.loc[10, "sd"] == pytest.approx(np.std(both, ddof=1))
    assert (told["expected"] - 500 - 20 * np.log(told.index / 11) ** 2).abs().max() < 0.5


def test_few_trials_say_that_they_are_few():
    told = summary.summarise("s", [completed(5, 9.0), completed(6, 8.0, 1)], {}, (2, 60))
    assert (told.num_topics, told.loss, told.alike, told.noise) == (6, 8.0, [], None)
    assert "only 2 trials with 2 numbers of topics have completed" in told.warnings[0]
    assert "the model of trial 1 cannot be read" in told.warnings[1]


def test_the_ends_of_the_range_warn():
    assert "lower min_topics than 4" in summary.end_warning(completed(6, 1.0), (4, 60))
    assert "higher max_topics than 60" in summary.end_warning(completed(58, 1.0), (4, 60))
    assert summary.end_warning(completed(30, 1.0), (4, 60)) is None
    assert summary.end_warning(completed(3, 1.0), (2, 60)) is None  # fewer than 2 there are not


@pytest.mark.parametrize(("numbers", "said"), [([3], "3"), ([3, 4, 5, 8, 10, 11], "3 to 5, 8, 10 to 11")])
def test_ranges(numbers, said):
    assert summary._ranges(numbers) == said


# --- topics ---------------------------------------------------------------------------------------


class Known:
    """A model whose topics are told."""

    def __init__(self, activations: np.ndarray, profile: np.ndarray):
        self.activations, self.profile = activations, profile
        self.topic_cols = [f"topic_{i}" for i in range(len(activations))]

    def topic_feature_activations(self):
        return self.activations

    def topic_feature_compositions(self):
        return np.tile(self.profile, (len(self.activations), 1))


def test_topics_are_matched_whatever_their_order():
    rng = np.random.default_rng(0)
    a, profile = rng.normal(size=(4, 500)), rng.dirichlet(np.ones(500))
    noisy = 3 * a[[2, 0, 3, 1]] + rng.normal(0, 0.3, (4, 500)) + 7  # scale and shift do not matter
    told = summary.match(Known(a, profile), [Known(noisy, profile), Known(a[::-1], profile)])
    assert (told["stability"] > 0.98).all()
    assert (told["redundancy"] < 0.3).all()


def test_a_topic_that_does_not_come_again_and_one_that_is_there_twice():
    rng = np.random.default_rng(0)
    a, profile = rng.normal(size=(4, 500)), rng.dirichlet(np.ones(500))
    a[3] = a[1] + rng.normal(0, 0.1, 500)
    others = [Known(np.vstack([a[:2], a[3], rng.normal(size=500)]), profile), Known(a[[0, 1, 3]], profile)]
    told = summary.match(Known(a, profile), others)
    assert told["stability"]["topic_2"] < 0.2
    assert told["stability"].drop("topic_2").min() > 0.98
    assert told["redundancy"]["topic_1"] > 0.98
    assert (told["nearest"]["topic_1"], told["nearest"]["topic_3"]) == ("topic_3", "topic_1")
    said = summary._of_topics(told, [1, 2])
    assert said[0].startswith("topic_2 did not come again")
    assert said[1].startswith("topic_1, topic_3 resemble another topic")


def test_the_correlation_is_weighted_by_how_abundant_features_are():
    rng = np.random.default_rng(0)
    a, b, w = rng.normal(size=(2, 60)), rng.normal(size=(3, 60)), rng.integers(1, 5, 60)
    spread = [np.repeat(x, w, axis=1) for x in (a, b)]
    expected = np.corrcoef(*spread)[:2, 2:]
    np.testing.assert_allclose(summary.correlations(a, b, w / w.sum()), expected)


def test_the_summary_of_a_study(folder, cells):
    tuner = make_tuner(cells, max_trials=8, min_trials=8, stop_condition=8, pruner=optuna.pruners.NopPruner())
    with pytest.raises(ValueError, match="nothing to sum up"):
        tuner.summary()
    tuner.fit(cells)
    told = tuner.summary()
    best = tuner.fetch_best_weights()
    assert told.num_topics == best.num_topics
    assert told.loss == tuner.study.best_value
    assert told.losses["trials"].sum() == 8
    assert list(told.topics.index) == best.topic_cols
    assert len(told.compared) == 4
    assert told.num_topics in told.alike
    assert f"a/study: {told.num_topics} topics, {told.loss:.2f} nats per cell" in repr(told)
    for trial in tuner.study.trials:  # without the files
        (folder / trial.user_attrs["weights"]).unlink()
    assert "cannot be read" in tuner.summary().warnings[-1]


# --- the table ------------------------------------------------------------------------------------


@pytest.fixture
def shown(folder, cells):
    return table.Table(make_tuner(cells).study, make_tuner(cells)._plan, 6)


def text(grid) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(grid)
    return console.file.getvalue()


def test_the_table_shows_the_best_what_runs_and_what_failed(shown):
    trials = [
        completed(5, 9.25, 0), completed(6, 8.5, 1), completed(7, None, 2, TrialState.PRUNED),
        completed(8, None, 3, TrialState.FAIL, failure={"type": "MemoryError", "message": "[out of it]"}),
        completed(9, None, 4, TrialState.RUNNING, device="cuda:1", progress={"seconds_per_epoch": 0.5}),
    ]  # fmt: skip
    lines = text(shown.render(trials)).splitlines()
    assert "a/study  4 of 6 trials: 2 completed, 1 pruned, 1 failed" in lines[0]
    body = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert body == [
        ["1", "6", "2/6", "8.50", "best"],
        ["0", "5", "2/6", "9.25"],
        ["4", "9", "2/6", "8.00", "0.50", "runs", "on", "cuda:1"],
    ]
    assert any("trial 3 failed: MemoryError: [out of it]" in line for line in lines)


def test_a_log_gets_a_line_for_each_trial(folder, cells, capsys):
    tuner = make_tuner(cells, max_trials=3, min_trials=3)
    tuner.fit(cells)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].split(" after")[0] for line in lines[:3]] == [
        f"trial {t.number} {'completed' if t.state == TrialState.COMPLETE else 'pruned'}" for t in tuner.study.trials
    ]
    assert lines[3] == "a/study: ended, as 3 trials have begun"
    assert len(lines) == 4
    make_tuner(cells, max_trials=4, min_trials=4).fit(cells)  # what was told is not told again
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_storage_that_is_away_does_not_end_the_table(shown, monkeypatch):
    def away():
        raise OSError("no route")

    monkeypatch.setattr(shown, "_trials", away)
    shown._draw()


NOTEBOOK = """
import mira_core as mira
cells = mira.data.simulate_expression(150, 40, 4, seed=0)
model = mira.topics.make_model(*cells.shape, feature_type="expression", hidden=16, num_epochs=6, batch_size=32)
tuner = mira.topics.BayesianTuner(
    model=model, save_name="a/study", min_topics=2, max_topics=12, max_trials=4, min_trials=4
)
tuner.fit(cells)
"""


@pytest.mark.slow
def test_a_notebook_shows_one_table_that_changes(folder):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = notebook.cells[0].outputs
    tables = [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert len(tables) == 1
    assert "4 of 4 trials" in tables[0]
    assert ">best<" in tables[0].replace(" ", "")
    assert not [o for o in outputs if "trial 0" in o.get("text", "")]
    assert [o["text"] for o in outputs if "ended, as" in o.get("text", "")]


# --- two models -----------------------------------------------------------------------------------


def test_topics_of_two_models_are_matched_in_any_order_of_features():
    adata = mira.data.simulate_expression(300, 60, 4, seed=2)
    model = make(adata, num_topics=4, num_epochs=20, seed=0).fit(adata)
    same = summary.compare(model, model)
    assert same["topic"].tolist() == same["other"].tolist()
    np.testing.assert_allclose(same["correlation"], 1, rtol=1e-5)
    assert same["gained"].map(len).sum() == same["lost"].map(len).sum() == 0

    turned = adata[:, ::-1].copy()
    fewer = make(turned, num_topics=3, num_epochs=20, seed=0).fit(turned)
    told = summary.compare(model, fewer, top=10)
    assert len(told) == 4
    assert told["other"].notna().sum() == 3
    assert sorted(told["topic"]) == model.topic_cols
    assert told["correlation"].iloc[:3].is_monotonic_decreasing
    for row in told.iloc[:3].itertuples():
        mine = model.get_top_genes(int(row.topic.removeprefix("topic_")), 10)
        theirs = fewer.get_top_genes(int(row.other.removeprefix("topic_")), 10)
        assert row.share == len(set(mine) & set(theirs))
        assert set(row.lost) == set(mine) - set(theirs)
        assert set(row.gained) == set(theirs) - set(mine)
    alone = told.iloc[3]
    assert alone["other"] is None
    assert len(alone["lost"]) == 10
    few = adata[:, :20].copy()
    part = adata[:, 15:40].copy()
    one, other = (make(a, num_topics=3, num_epochs=2).fit(a) for a in (part, few))
    with pytest.raises(mira.errors.TuningError, match="these share 5 of 25 and 20"):
        summary.compare(one, other)


def test_one_sentence_states_the_range():
    told = summary.summarise("s", losses(noise=0.5), {}, (4, 30))
    few, many = told.alike[0], told.alike[-1]
    assert f"Take {few} to {many} topics" in told.sentence
    assert "cannot be told apart" in told.sentence
    alone = summary.summarise("s", losses(noise=0.5)[:2], {}, (4, 30))
    assert "too few trials" in alone.sentence
