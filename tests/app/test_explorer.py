"""The explorer without a browser: what it knows of cells, how it draws many, and what its parts tell."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.neighbors import NearestNeighbors

from mira_app.exploring import batches, counts
from mira_app.exploring.cells import Cells, InFile
from mira_app.exploring.values import Values
from mira_app.figures.embedding import Embedding
from mira_app.figures.raster import Paint, Raster, Window, inside, rgb
from mira_app.widgets.explore import modalities
from mira_app.widgets.explore.features import FeatureInput, complete, named
from mira_app.widgets.explore.selection import composition
from mira_app.widgets.explorer import TopicExplorer
from mira_core import analysis
from mira_core.data import Recipe
from mira_core.errors import DataError, OptionError
from tests.helpers import make, make_cells, with_columns


def quiet(_: float) -> None:
    pass


@pytest.fixture(scope="module")
def corrected(_simulated):
    """A CODAL model, and cells with its topics."""
    adata = with_columns(_simulated.copy())
    adata.obs["kind"] = pd.Categorical.from_codes(np.arange(adata.n_obs) // 100, ["x", "y", "z"])
    model = make(adata, categorical_covariates=["batch"]).fit(adata, progress=False)
    model.predict(adata)
    return model, adata


@pytest.fixture
def predicted(fitted, cells):
    cells.obs["kind"] = pd.Categorical.from_codes(np.arange(cells.n_obs) % 3, ["x", "<b>y</b>", "z"])
    cells.obs["whole"] = np.arange(cells.n_obs)
    fitted.predict(cells)
    cells.obsm["X_umap"] = np.random.default_rng(0).normal(size=(cells.n_obs, 2)).astype(np.float32)
    return cells


@pytest.fixture
def explorer(fitted, predicted):
    return TopicExplorer(fitted, predicted)


# --- cells, counts, what the model says -----------------------------------------------------------


def test_cells_in_a_file_are_those_in_memory(predicted, tmp_path):
    path = tmp_path / "cells.h5ad"
    stored = predicted.copy()
    stored.X = None
    stored.write_h5ad(path)
    one, two = Cells(predicted), Cells(path)
    assert (one.n, one.K, one.columns) == (two.n, two.K, two.columns)
    for name in one.columns:
        assert one.column(name).tolist() == two.column(name).tolist()
    for name in ("theta", "xy", "main", "names", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.categorical == two.categorical
    pd.testing.assert_frame_equal(
        analysis.topics_by(two.with_columns({"kind": two.column("kind")}), "kind"),
        analysis.topics_by(predicted, "kind"),
    )


def test_cells_without_topics_are_refused_and_those_without_umap_have_axes(cells, fitted):
    with pytest.raises(DataError, match="call model.predict"):
        TopicExplorer(None, cells)
    explorer = TopicExplorer(fitted, cells)  # which predicts
    assert "X_topic_compositions" in cells.obsm
    z = cells.obsm["X_umap_features"] - cells.obsm["X_umap_features"].mean(0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    for k in range(2):
        assert abs(np.corrcoef(explorer.cells.xy[:, k], u[:, k] * s[k])[0, 1]) > 0.999
    other = make(cells, num_topics=3).fit(cells, progress=False)
    with pytest.raises(DataError, match="3 topics"):
        TopicExplorer(other, cells)


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, lambda m: m.toarray()])
def test_counts_by_feature_are_the_columns_of_the_counts(form, tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "PIECE", 50)  # so that there are several
    adata = make_cells(40, 9)
    dense = adata.X.toarray()
    adata.X = form(adata.X)
    shares = []
    held = counts.of_data(adata, None, shares.append)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    spec = {"data": str(tmp_path / "cells.h5ad"), "model": {}}
    written = counts.of_job(spec, tmp_path / "by_feature", shares.append)
    again = counts.of_job({"data": "nothing", "model": {}}, tmp_path / "by_feature", shares.append)  # is there already
    for found in (held, written, again):
        for j, name in enumerate(adata.var_names):
            np.testing.assert_array_equal(found.column(name), dense[:, j])
        np.testing.assert_array_equal(found.depths, dense.sum(1))
    wanted = np.log1p(dense[:, 4] * 1e4 / dense.sum(1))
    np.testing.assert_allclose(written.log_normalised("gene4"), wanted, rtol=1e-5)
    assert max(shares) == 1
    with pytest.raises(DataError, match="no feature 'absent'"):
        held.column("absent")


def test_counts_of_a_run_are_those_its_recipe_leaves(tmp_path):
    adata = make_cells(30, 8)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    least = int(np.median(np.asarray(adata.X.sum(1))))
    recipe = Recipe().plus("filter_cells", min_counts=least)
    spec = {"data": str(tmp_path / "cells.h5ad"), "model": {}, "recipe": recipe.to_dict()}
    kept = recipe.apply(adata)
    assert kept.n_obs < adata.n_obs
    found = counts.of_job(spec, tmp_path / "by_feature", quiet)
    np.testing.assert_array_equal(found.column("gene3"), kept.X.toarray()[:, 3])


def test_one_feature_of_the_model_is_that_of_all(corrected):
    model, adata = corrected
    values = Values(Cells(adata), model)
    whole = adata.copy()
    imputed, effects = model.impute(whole), model.get_batch_effect(whole)
    for j in (0, 60, 119):
        name = adata.var_names[j]
        np.testing.assert_allclose(values.of(name, "imputed", quiet) / 1e4, imputed[:, j], rtol=1e-4)
        np.testing.assert_allclose(values.batch_effect(name, quiet), effects[:, j], atol=1e-5)
    told = batches.effect_by_batch(values, adata.var_names[60], adata.obs["batch"].reset_index(drop=True), quiet)
    for row in told.itertuples():
        assert row.effect == pytest.approx(effects[adata.obs["batch"] == row.batch, 60].mean(), abs=1e-5)


def test_kinds_of_cells_in_one_batch_only_are_named():
    labels = pd.Series(["T", "T", "B", "B", "NK"])
    found = batches.alone(labels, pd.Series(["one", "two", "one", "one", "two"]))
    assert found.to_dict("records") == [
        {"label": "B", "batch": "one", "cells": 2}, {"label": "NK", "batch": "two", "cells": 1},
    ]  # fmt: skip
    assert not len(batches.alone(labels, pd.Series(["one"] * 5)))


# --- many cells as an image -----------------------------------------------------------------------


def test_pixels_have_the_category_of_most_cells_and_the_mean_of_numbers():
    rng = np.random.default_rng(1)
    n = 4000
    xy = rng.normal(size=(n, 2)).round(1)  # so that many cells share a pixel
    raster = Raster(xy)
    codes, numbers = rng.integers(-1, 5, n), rng.random(n).astype(np.float32)
    numbers[::50] = np.nan
    colours = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9")
    palette = rgb(["#000000", "#ffffff"])
    by_kind = raster.draw(Paint("kind", codes=codes, levels=tuple("abcde"), colours=colours), raster.whole, palette)
    by_number = raster.draw(Paint("number", numbers=numbers), raster.whole, palette)
    assert by_kind.cells.sum() == by_number.cells.sum() == n
    w, (h, across) = raster.whole, by_kind.cells.shape
    column = ((xy[:, 0] - w.x0) / (w.x1 - w.x0) * across).astype(int)
    row = ((xy[:, 1] - w.y0) / (w.y1 - w.y0) * h).astype(int)
    frame = pd.DataFrame({"row": row, "column": column, "code": codes, "number": numbers})
    wrong = 0
    for (r, c), cells in frame.groupby(["row", "column"]):
        if by_kind.cells[r, c] != len(cells):
            wrong += 1  # on the edge of a pixel, in another precision
            continue
        counted = cells.loc[cells["code"] >= 0, "code"].value_counts()
        if len(counted):
            assert counted[by_kind.value[r, c]] == counted.max()
            assert (
                by_kind.rgba[r, c : c + 1].view(np.uint8)[:3].tolist()
                == rgb(colours)[int(by_kind.value[r, c])].tolist()
            )
        assert by_number.value[r, c] == pytest.approx(cells["number"].mean(), abs=1e-5, nan_ok=True)
    assert wrong < 0.05 * (by_kind.cells > 0).sum()
    meant = codes == 2
    faded = raster.draw(Paint("k", codes=codes, levels=tuple("abcde"), colours=colours), raster.whole, palette, meant)
    assert set(np.unique(faded.value[np.isfinite(faded.value)])) == {2.0}
    assert ((faded.rgba != 0) == (faded.cells > 0)).all()  # the others are still seen


def test_an_image_does_not_grow_with_cells_and_gives_way_to_points():
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(60_000, 2)).astype(np.float32)
    figure = Embedding(xy, lambda: np.arange(len(xy)).astype(str))
    figure.update("number", pd.Series(rng.random(len(xy))))
    assert figure.as_image
    assert len(figure.source.data["x"]) == 0
    assert figure.picture.data["image"][0].size < 600**2
    figure._see(Window(-2.5, 2.5, -2.5, 2.5))
    assert figure.picture.data["x"] == [-2.5]
    figure._see(Window(1.0, 2.0, 1.0, 2.0))
    shown = ((xy >= 1) & (xy < 2)).all(1)
    assert figure.picture.data["image"] == []
    assert figure.source.data["name"].tolist() == np.flatnonzero(shown).astype(str).tolist()
    figure._see(figure.raster.whole)
    assert len(figure.picture.data["image"]) == 1
    assert len(figure.source.data["x"]) == 0


def test_what_lies_in_a_drawn_shape_is_found():
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 5000))
    at = np.linspace(0, 2 * np.pi, 400)
    circle = {"type": "poly", "x": np.cos(at).tolist(), "y": np.sin(at).tolist()}
    clear = abs(np.hypot(x, y) - 1) > 0.01
    assert (inside(np.array([x, y]), circle) == (np.hypot(x, y) < 1))[clear].all()
    box = {"type": "rect", "x0": 1, "x1": -1, "y0": 0.5, "y1": 1}
    assert (inside(np.array([x, y]), box) == ((abs(x) <= 1) & (y >= 0.5) & (y <= 1))).all()
    assert not inside(np.array([x, y]), {"type": "poly", "x": [0, 1], "y": [0, 1]}).any()


# --- features -------------------------------------------------------------------------------------


def test_names_are_completed_on_the_server():
    names = np.array(["CD3D", "CD3E", "ACD30", "cd3", "IL7R", "CD3D"])
    assert complete("cd3", names) == ["cd3", "CD3D", "CD3E", "ACD30"]
    assert complete("", names) == complete("zzz", names) == []
    many = np.array([f"gene{i}" for i in range(30_000)])
    field = FeatureInput(names=many)
    assert field._filter_options("GENE299")[:2] == ["gene299", "gene2990"]
    assert len(field._filter_options("gene")) == 30
    assert len(field.options) == 0  # none of them goes to the browser by itself


def test_a_feature_is_known_by_its_identifier_and_its_symbol():
    adata = make_cells(20, 5)
    adata.var_names = [f"ENSG0000000000{j}" for j in range(5)]
    adata.var["symbol"] = ["CD3D", "CD3E", "LYZ", "NKG7", "MS4A1"]
    model = make(adata, num_topics=2, num_epochs=1).fit(adata, progress=False)
    model.predict(adata)
    cells = Cells(adata)
    assert named("lyz", cells) == named("ENSG00000000002", cells) == "ENSG00000000002"
    assert named("CD4", cells) is None


def test_of_two_features_with_one_symbol_that_is_shown_which_was_asked_for():
    adata = make_cells(20, 5)
    adata.var_names = [f"ENSG{j}" for j in range(5)]
    adata.var["symbol"] = ["CD3D", "TWICE", "TWICE", "NKG7", "MS4A1"]
    adata.obs["batch"] = np.where(np.arange(20) % 2, "a", "b")
    model = make(adata, num_topics=2, num_epochs=1, categorical_covariates=["batch"]).fit(adata, progress=False)
    model.predict(adata)
    explorer = TopicExplorer(model, adata)
    for part in ("features", "batches"):
        explorer.part = part
    explorer.feature = "ENSG2"
    card = explorer._made["features"]
    assert explorer.feature == "ENSG2"
    assert set(card.frame["feature"]) == {"ENSG2"}
    assert [explorer._made[part].search.value for part in ("features", "batches")] == ["ENSG2"] * 2


@pytest.mark.parametrize("name", ["percent/mt", "kind/of/cell", "plain"])
def test_columns_are_read_from_a_file_whatever_they_are_called(tmp_path, name):
    adata = make_cells(20, 5)
    adata.obs[name] = pd.Categorical(np.where(np.arange(20) % 2, "a", "b"))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    held = InFile(tmp_path / "cells.h5ad")
    assert name in held.columns()
    assert held.column(name).tolist() == adata.obs[name].tolist()


# --- the widget -----------------------------------------------------------------------------------


def test_cells_take_every_colour(explorer, predicted):
    feature = predicted.var_names[7]
    counted = predicted.X.toarray()[:, 7]
    assert [name for name, _ in explorer.embedding.legend] == [f"topic {k}" for k in range(4)]
    explorer.paint_by("topic_2")
    np.testing.assert_allclose(explorer.embedding.paint.numbers, predicted.obs["topic_2"])
    explorer.colour = f"raw:{feature}"
    np.testing.assert_array_equal(explorer.embedding.paint.numbers, counted)
    explorer.colour = f"imputed:{feature}"
    assert "imputed" in explorer.embedding.root.title.text
    assert explorer.feature == feature
    assert f"log:{feature}" in explorer.colours.options.values()
    explorer.colour = "kind"
    assert explorer.legend.entries[1] == ["<b>y</b>", explorer.embedding.legend[1][1], "100"]
    explorer.legend.chosen = "z"
    colours = np.array(explorer.embedding.source.data["colour"])
    faded = {c for c in colours[predicted.obs["kind"] != "z"]}
    assert len(faded) == 1
    assert faded.isdisjoint(colours[predicted.obs["kind"] == "z"])
    explorer.colour = "nonsense"
    assert "nonsense" in explorer.working.view.objects[0].object


def test_topics_are_described_and_averaged_and_clicked(explorer, predicted):
    pd.testing.assert_frame_equal(explorer.topics.frame, analysis.describe_topics(predicted), check_exact=False)
    explorer.part = "columns"
    explorer.column = "kind"
    heatmap = explorer._made["columns"]
    pd.testing.assert_frame_equal(heatmap.frame, analysis.topics_by(predicted, "kind"))
    assert heatmap.figure.source.data["row"][0] == "x (100)"
    heatmap.figure.on_click("x (100)", "topic_3")
    assert explorer.colour == "topic_3"
    explorer.column = "whole"  # numbers, in quantiles
    assert len(heatmap.frame) == 5


def test_a_feature_tells_its_topics(explorer, predicted, fitted):
    explorer.part = "features"
    card = explorer._made["features"]
    card.search.value = predicted.var_names[3].upper()
    ranked = fitted.rank_modules(predicted.var_names[3])
    assert [int(t.removeprefix("topic_")) for t in card.frame["topic"]] == [k for k, _ in ranked]
    card.search.value = "gene_nobody_knows"
    assert "is not among" in card.message.objects[0].object
    assert explorer.feature == predicted.var_names[3]


def test_a_selection_is_compared_kept_and_named(explorer, predicted):
    mask = np.arange(predicted.n_obs) < 60
    explorer.embedding.on_select(mask)
    assert explorer.part == "selection"
    assert explorer.colour == "selection"
    card = explorer._made["selection"]
    wanted = analysis.differential_topics(predicted, mask)
    pd.testing.assert_frame_equal(card.tested, wanted)
    assert card.composed["selected"].sum() == 60
    assert card._cells()["cell"].tolist() == predicted.obs_names[:60].tolist()
    card.name.value = "kind"
    card._keep()
    assert "needs a name" in card.message.objects[0].object
    card.name.value = "mine"
    card._keep()
    assert (predicted.obs["mine"] == np.where(mask, "selected", "others")).all()
    assert "mine" in explorer.colours.options.values()
    assert "mine" in card.by.options.values()
    explorer.select(None)
    assert explorer.colour == "main topic"
    assert explorer.selected is None
    with pytest.raises(OptionError, match="no cells are selected"):
        explorer.keep_selection("again")
    card.by.value = "kind"
    card.category.value = "<b>y</b>"
    assert explorer.selected.sum() == 100
    with pytest.raises(OptionError, match="truth value for each"):
        explorer.select(np.array([True]))


def test_composition_counts_cells_without_a_value_too():
    values = pd.Series(pd.Categorical(["a", "b", None, "a"]))
    found = composition(values, np.array([True, False, True, False]), "kind").set_index("kind")
    assert found.loc["a", ["selected", "others"]].tolist() == [1, 1]
    assert found.loc["no value", "of selected"] == "50.0%"


def test_two_models_have_matched_colours(fitted, predicted):
    other = make(predicted, num_topics=5, num_epochs=6, seed=3).fit(predicted.copy(), progress=False)
    theirs = predicted.copy()
    other.predict(theirs)
    explorer = TopicExplorer(fitted, predicted, other=theirs)
    explorer.part = "compare"
    card = explorer._made["compare"]
    pd.testing.assert_frame_equal(card.frame, analysis.match_topics(predicted, theirs))
    one, two = (figure.paint for figure in card.figures)
    for row in card.frame.itertuples():
        if row.topic and row.other:
            mine = one.colours[int(row.topic.removeprefix("topic_"))]
            assert two.colours[int(row.other.removeprefix("topic_"))] == mine
    assert two.colours.count("#9a9a9a") == 1  # five topics, four matched
    explorer = TopicExplorer(fitted, predicted, other=theirs[:50].copy())
    explorer.part = "compare"
    assert "other cells" in explorer._made["compare"].working.view.objects[0].object


def test_batches_have_effects_and_mix(corrected):
    model, adata = corrected
    explorer = TopicExplorer(model, adata)
    explorer.part = "batches"
    card = explorer._made["batches"]
    assert card.batch.value == "batch"
    explorer.feature = adata.var_names[9]
    assert card.effect["cells"].sum() == adata.n_obs
    card.labels.value = "kind"
    card._measure()
    wanted = analysis.batch_mixing(adata, "batch", "kind")
    assert card.mixing.mixing == pytest.approx(wanted.mixing)
    assert card.mixing.before["mixing"] == pytest.approx(wanted.before["mixing"], rel=0.02)
    assert "batches" not in TopicExplorer(None, adata)._makers  # which only a model tells


def test_a_mixing_is_not_shown_once_another_column_is_chosen(corrected, monkeypatch):
    explorer = TopicExplorer(*corrected)
    explorer.part = "batches"
    card = explorer._made["batches"]
    card.labels.value, measure = "kind", batches.mixing

    def meanwhile(*asked):
        card.labels.value = "batch"
        return measure(*asked)

    monkeypatch.setattr(batches, "mixing", meanwhile)
    card._measure()
    assert card.measured.objects == card.measuring.view.objects == []
    monkeypatch.undo()
    card._measure()
    assert card.measured.objects


def test_gene_sets_are_tested_and_kept(fitted, explorer, predicted):
    explorer.part = "sets"
    card = explorer._made["sets"]
    top = analysis.top_features(predicted, 12)[1]
    lines = ["\t".join(["of topic 1", "x", *top]), "\t".join(["some", "x", *predicted.var_names[:20]])]
    card.file.param.update(value="\n".join(lines).encode(), filename="../sets.gmt")
    assert not card.go.disabled
    card._test()
    assert card.working.view.objects == []
    frame = card.tables["sets.gmt · overrepresentation"]
    assert frame[frame["topic"] == "topic_1"].iloc[0]["gene_set"] == "of topic 1"
    assert "Effect: odds ratio." in card.body.objects[0].object
    card.file.param.update(filename="ranked.gmt")
    card._test()
    assert "Effect: odds ratio." in card.body.objects[0].object
    card.method.value = "rank"
    card._test()
    assert "Effect: AUC" in card.body.objects[0].object
    again = TopicExplorer(fitted, predicted)
    again.part = "sets"
    assert "sets.gmt · overrepresentation" in again._made["sets"].tables
    card.file.param.update(value=b"no set", filename="broken.gmt")
    card._test()
    assert "broken.gmt, line 1" in card.working.view.objects[0].object
    fitted.enrichments.clear()  # it is shared


def test_a_comparison_is_not_shown_once_none_is_chosen(fitted, predicted):
    def fetch(_: str) -> Cells:
        if card.choice.value:
            card.choice.value = ""
        return Cells(predicted)

    explorer = TopicExplorer(fitted, predicted, others=(lambda: {"a run": "a run"}, fetch))
    explorer.part = "compare"
    card = explorer._made["compare"]
    card.choice.value = "a run"
    assert (explorer.beside, card.body.objects, card.working.view.objects) == ("", [], [])


def test_a_comparison_with_one_run_is_not_shown_for_another(fitted, predicted):
    runs = {"same cells": Cells(predicted), "other cells": Cells(predicted[:100].copy())}
    explorer = TopicExplorer(fitted, predicted, others=(lambda: {key: key for key in runs}, runs.__getitem__))
    explorer.part = "compare"
    card = explorer._made["compare"]
    card.choice.value = "same cells"
    assert card.body.objects
    assert len(card.frame)
    card.choice.value = "other cells"
    assert card.working.view.objects  # why not
    assert (card.body.objects, card.frame) == ([], None)


def test_a_map_with_one_run_is_not_shown_once_another_is_chosen(fitted, predicted, monkeypatch):
    fewer = ad.AnnData(obs=predicted.obs, obsm={"X_topic_compositions": np.full((predicted.n_obs, 2), 0.5)})
    runs = {"of all": predicted, "of two": fewer}
    cells = {key: Cells(adata) for key, adata in runs.items()}
    explorer = TopicExplorer(fitted, predicted, others=(lambda: {key: key for key in runs}, cells.__getitem__))
    explorer.part = "modalities"
    card = explorer._made["modalities"]
    card.choice.value = "of all"
    card._embed()
    assert len(card.maps_at.objects) == len(card.maps) == 2
    shown = card.maps

    def meanwhile(x, progress):
        card.choice.value = "of two"
        return np.zeros((len(x), 2), np.float32)

    monkeypatch.setattr(modalities, "embed", meanwhile)
    card._embed()
    assert card.other.K == 2
    assert card.maps is shown  # no other was made
    assert card.maps_at.objects == card.mapping.view.objects == []
    assert card.place.view.objects
    assert card.embed.visible
    card.choice.value = ""
    assert card.place.view.objects == []
    assert card.note.object.startswith("Choose the run")
    assert not card.embed.visible
    assert card._table() is None


def test_of_a_run_that_cannot_be_had_nothing_of_the_one_before_is_shown(fitted, predicted):
    def fetch(key: str) -> Cells:
        if key == "broken":
            raise DataError("its cells have gone")
        return Cells(predicted)

    explorer = TopicExplorer(fitted, predicted, others=(lambda: {k: k for k in ("whole", "broken")}, fetch))
    explorer.part = "modalities"
    card = explorer._made["modalities"]
    card.choice.value = "whole"
    assert card.place.view.objects
    card.choice.value = "broken"
    assert card.working.view.objects  # why
    assert (card.place.view.objects, card.other, card._table(), card.embed.visible) == ([], None, None, False)


def test_topics_of_two_modalities_are_correlated(fitted, predicted):
    theirs = predicted[::-1].copy()  # the same cells in another order
    explorer = TopicExplorer(fitted, predicted, modality=theirs)
    explorer.part = "modalities"
    card = explorer._made["modalities"]
    np.testing.assert_allclose(np.diag(card.frame), 1, atol=1e-5)
    card._embed()
    here, there = card.maps
    assert here._names().tolist() == there._names().tolist() == predicted.obs_names.tolist()
    assert here._names().tolist() == there._names().tolist() == predicted.obs_names.tolist()
    np.testing.assert_array_equal(here.paint.codes, explorer.cells.main)  # each cell's own, whatever the other's order
    np.testing.assert_array_equal(there.paint.codes, explorer.cells.main)
    nearest = NearestNeighbors(n_neighbors=2).fit(here.raster.xy.T).kneighbors(return_distance=False)[:, 1]
    assert np.mean(explorer.cells.main == explorer.cells.main[nearest]) > 0.8
    other = ad.AnnData(obs=pd.DataFrame(index=["p", "q"]), obsm={"X_topic_compositions": np.full((2, 2), 0.5)})
    explorer = TopicExplorer(fitted, predicted, modality=other)
    explorer.part = "modalities"
    assert explorer._made["modalities"].working.view.objects


def test_many_cells_are_an_image_in_the_widget_too(fitted, predicted):
    explorer = TopicExplorer(fitted, predicted, many=100)
    assert explorer.embedding.as_image
    explorer.colour = "kind"
    assert explorer.embedding.picture.data["cells"][0].sum() == predicted.n_obs
    explorer.embedding.on_select(np.arange(predicted.n_obs) < 10)
    assert explorer.selected.sum() == 10


def test_batches_of_peaks_are_told_before_by_lsi(tmp_path):
    """Counts come with the names of their features, by which peaks are known."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sp.csr_matrix((rng.random((120, 80)) < 0.2).astype(np.float32)))
    adata.var_names = [f"chr1:{i}00-{i}50" for i in range(80)]
    adata.obs["batch"] = np.where(np.arange(120) % 2, "a", "b")
    theta = rng.dirichlet(np.ones(3), 120).astype(np.float32)
    adata.obsm["X_topic_compositions"] = theta
    adata.obsm["X_umap_features"] = np.log(theta[:, :2] / theta[:, 2:])
    adata.varm["topic_feature_compositions"] = rng.dirichlet(np.ones(80), 3).T
    adata.varm["topic_feature_activations"] = rng.normal(size=(80, 3))
    values = TopicExplorer(adata=adata).values
    told = batches.mixing(values, adata.obs["batch"], None)
    assert told.representation == "LSI"
    assert told.before is not None
