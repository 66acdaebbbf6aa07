"""A model as Python, as a command and as JSON: each says the same, and can be read again."""

from __future__ import annotations

import shlex
import subprocess
import sys

import param
import pytest

import mira_core as mira
from mira_core import notation, options
from mira_core.errors import OptionError
from mira_core.safer import safer

WRITE = [notation.to_python, notation.to_command, notation.to_json]
CODAL = {"feature_type": "expression", "categorical_covariates": ["batch", "a donor's"]}
PEAKS = {"feature_type": "accessibility", "atac_encoder": "fast"}


def some_value(name: str):
    """A value of an option that is not its default."""
    declared = options.parameter(name)
    if isinstance(declared, options.ColumnNames):
        return ["one", 'it\'s "two"']
    if isinstance(declared, param.Boolean):
        return not declared.default
    if isinstance(declared, param.Selector):
        return declared.objects[-1]
    if isinstance(declared, param.Integer):
        return 37
    if isinstance(declared, param.Number):
        return 0.0321
    return "some column"


def where_it_applies(name: str) -> dict:
    for base in (CODAL, PEAKS, {**PEAKS, "atac_encoder": "DAN"}, {"feature_type": "expression"}):
        given = {**base, name: some_value(name)}
        if options.applies(name, given):
            return given
    raise AssertionError(name)


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("name", options.names())
def test_every_option_is_read_as_it_was_written(write, name):
    given = where_it_applies(name)
    read = notation.read(write("/some where/it's.h5ad", given))
    assert read.data == "/some where/it's.h5ad"
    assert read.given == options.validate_all(given)


@pytest.mark.parametrize("write", WRITE)
def test_a_demo_is_named_too(write):
    assert notation.read(write("demo:simulated", PEAKS))[:2] == ("demo:simulated", options.validate_all(PEAKS))


@pytest.mark.parametrize("write", WRITE)
def test_held_out_cells_and_recipe_are_read_as_they_were_written(write):
    recipe = mira.data.Recipe([{"step": "filter_cells", "min_counts": 5}, {"step": "keep_features", "column": "it's",
                                                                           "values": ["a", 'b"']}])  # fmt: skip
    assert notation.read(write("x.h5ad", PEAKS, test_size=0.1)).test_size == 0.1
    if write is notation.to_command:
        assert "--recipe 'my recipe.json'" in write("x.h5ad", PEAKS, recipe="my recipe.json")
    else:
        assert notation.read(write("x.h5ad", PEAKS, recipe=recipe)).recipe == recipe


def test_the_python_runs(tmp_path):
    given = {"feature_type": "expression", "num_topics": 3, "num_epochs": 2, "hidden": 8}
    path = tmp_path / "cells.h5ad"
    mira.data.simulate_expression(80, 30, 3, seed=0).write_h5ad(path)
    recipe = mira.data.Recipe().then("filter_cells", min_counts=1)
    code = (
        notation.to_python(str(path), given, test_size=0.1, recipe=recipe)
        + "print(model.num_topics, adata.obsm['X_topic_compositions'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "3 (80, 3)"


def test_the_command_runs(tmp_path):
    words = notation.to_command("demo:simulated", {**CODAL, "categorical_covariates": ["batch"], "num_epochs": 1},
                                str(tmp_path / "run 1"))  # fmt: skip
    subprocess.run([sys.executable, "-m", "mira_core.cli", *shlex.split(words)[1:], "--no-embedding"], check=True)
    assert (tmp_path / "run 1" / "result" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "this is no JSON"),
        ('{"model": 3}', "model must be an object"),
        ('{"num_topicz": 3, "feature_type": "expression"}', "did you mean num_topics"),
        ("mira fit", "the command cannot be read: the following arguments are required"),
        ("mira tune x --study y", "must begin with mira fit; got mira tune"),
        ("mira fit 'x", "the command cannot be read"),
        ("mira fit x -o y --recipe z.json", "names a recipe, z.json"),
        ('{"data": "x", "model": {}, "test_size": 2}', "test_size must be a share"),
        ("Recipe([f()])\nmake_model(3, 4, feature_type='expression')", "the recipe must be written out"),
        ("make a model", "neither JSON, nor a mira fit command, nor Python"),
        ("x = 1", "one call of make_model; it holds 0"),
        ("make_model(3, 4, feature_type='expression', num_topics=open('/etc/passwd').read())", "must be written out"),
        ("make_model(3, 4, feature_type='expression', num_topics=1)", "num_topics must be an integer of at least 2"),
    ],
)
def test_what_cannot_be_read_says_why(text, said):
    with pytest.raises(OptionError, match=said):
        notation.read(text)


def test_reading_runs_nothing(tmp_path):
    text = f"open({str(tmp_path / 'made')!r}, 'w')\nmake_model(1, 2, feature_type='expression')"
    assert notation.read(text).given == {"feature_type": "expression"}
    assert not list(tmp_path.iterdir())


# --- trying again ---------------------------------------------------------------------------------


def test_a_training_that_diverged_is_tried_again_with_a_third_of_the_rate():
    given = {"feature_type": "expression", "max_learning_rate": 0.3, "min_learning_rate": 0.2}
    retry = safer(given, {"type": "TrainingError", "message": "the loss is no longer finite"}, 5000, 2000)
    assert retry.changes == {"max_learning_rate": pytest.approx(0.1), "min_learning_rate": pytest.approx(0.01)}
    assert "a third of the learning rate (0.1)" in retry.why
    options.validate_all({**given, **retry.changes})


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "MemoryError"])
def test_one_that_ran_out_of_memory_with_half_the_batch(kind):
    retry = safer({"feature_type": "expression"}, {"type": kind, "message": "CUDA"}, 5000, 2000)
    assert retry.changes == {"batch_size": 32}


def test_any_other_as_it_was():
    assert safer({"feature_type": "expression"}, {"type": "OSError", "message": "disk full"}, 50, 20).changes == {}
