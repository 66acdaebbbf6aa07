"""``mira fit``: a flag for every option, the library's model, and messages without tracebacks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import param
import pytest

import mira_core as mira
from mira_core import cli, jobs, options
from tests.helpers import arrays, make, same, with_columns

SHORT = ["--num-epochs", "1", "--no-embedding"]
FIT = ["--num-topics", "4", "--hidden", "16", "--num-epochs", "3", "--batch-size", "32", "--seed", "0"]


@pytest.fixture
def data(cells, tmp_path) -> Path:
    cells.layers["counts"] = cells.X
    cells.obs["a"], cells.obs["b"] = np.linspace(0, 1, 300), np.linspace(1, 0, 300)
    with_columns(cells).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def refused(capsys, *arguments: object) -> str:
    """Run the command line, which must end with status 2; return what it said."""
    try:
        status = cli.main([str(a) for a in arguments])
    except SystemExit as problem:  # argparse
        status = problem.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("name", options.names())
def test_every_option_has_a_flag_with_its_documentation(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["fit", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert re.search(rf"--{name.replace('_', '-')}\b", told)
    first = re.split(r"[ ,.(]", options.parameter(name).doc)[:3]
    assert re.search(r"\s+".join(map(re.escape, first)), told)


def value_of(name: str) -> tuple[list[str], object]:
    """Words for the command line, and the value that they mean; not the default."""
    p = options.parameter(name)
    flag = f"--{name.replace('_', '-')}"
    if isinstance(p, param.Boolean):
        return [flag.replace("--", "--no-", 1) if p.default else flag], not p.default
    if isinstance(p, options.ColumnNames):
        return [flag, "a", "b"], ["a", "b"]
    if isinstance(p, param.Selector):
        return [flag, p.objects[-1]], p.objects[-1]
    if isinstance(p, param.Integer):
        return [flag, "7"], 7
    if isinstance(p, param.Number):
        return [flag, "0.015"], 0.015
    return [flag, "b"], "b"


# What makes the model to which an option applies, and fits a CPU.
CONTEXT = {
    "codal": ["--continuous-covariates", "a"],
    "accessibility": ["--feature-type", "accessibility", "--atac-encoder", "fast"],
    "dan": ["--feature-type", "accessibility", "--atac-encoder", "DAN"],
}
BESIDES = {
    "min_momentum": ["--max-momentum", "0.99"],
    "feature_type": ["--atac-encoder", "fast"],
    "atac_encoder": ["--feature-type", "accessibility"],
}


@pytest.mark.parametrize("name", options.names())
def test_every_flag_reaches_the_specification(name, data, tmp_path):
    words, value = value_of(name)
    if name == "max_momentum":
        words, value = ["--max-momentum", "0.7"], 0.7
    more = BESIDES.get(name) or CONTEXT.get(options.parameter(name).metadata["applies_to"], [])
    assert cli.main(["fit", str(data), "-o", str(tmp_path / "out"), *SHORT, *more, *words]) in (0, 1)
    assert jobs.read_spec(tmp_path / "out")["model"][name] == value


@pytest.mark.parametrize("name", [n for n in options.names() if not options.applies(n, {})])
def test_a_flag_that_does_not_apply_is_refused(name, data, tmp_path, capsys):
    said = refused(capsys, "fit", data, "-o", tmp_path / "out", *value_of(name)[0])
    assert f"mira: error: {name} applies to models " in said
    assert "leave it out" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--categorical-covariates", "batch", "--continuous-covariates", "a"],
        ["--feature-type", "accessibility", "--atac-encoder", "fast"],
        ["--feature-type", "accessibility", "--atac-encoder", "DAN", "--dan-on-cpu", "--covariates-keys", "b"],
        ["--topic-prior", "dirichlet_process"],
    ],
    ids=" ".join,
)
def test_every_family_of_models_trains_from_the_command_line(words, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["fit", str(data), "-o", str(out), *SHORT, "--num-topics", "3", *words]) == 0
    model = mira.topics.load_model(out / "result" / "model.safetensors")
    assert model.predict(data).obsm["X_topic_compositions"].shape == (300, 3)


def test_fit_gives_the_model_of_the_library_call(data, cells, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["fit", str(data), "-o", str(out), "--counts-layer", "counts", "--no-embedding", *FIT]) == 0
    assert capsys.readouterr().out == f"finished: {out / 'result'}\n"
    loaded = mira.topics.load_model(out / "result" / "model.safetensors")
    wanted = make(cells, counts_layer="counts")
    assert loaded.get_params() == wanted.get_params()
    assert same(arrays(loaded), arrays(wanted.fit(data, progress=False)))


def test_options_that_are_not_given_are_recommended(data, tmp_path):
    assert cli.main(["fit", str(data), "-o", str(tmp_path / "out"), "--no-embedding", "--num-epochs", "1"]) == 0
    assert jobs.read_spec(tmp_path / "out")["model"] == {"num_epochs": 1}
    model = mira.topics.load_model(tmp_path / "out" / "result" / "model.safetensors")
    assert model.options["cost_beta"].source == "recommended"
    assert model.cost_beta == 1.5


def test_demo_data_train_by_name(tmp_path):
    assert cli.main(["fit", "demo:pbmc700", "-o", str(tmp_path / "out"), *SHORT]) == 0
    assert jobs.read_status(tmp_path / "out").n_cells == 700


def test_a_wrong_option_is_refused_in_the_librarys_words(data, tmp_path, capsys):
    out = tmp_path / "out"
    said = refused(capsys, "fit", data, "-o", out, "--num-topics", "1")
    assert said == "mira: error: num_topics must be an integer of at least 2; got 1\n"
    said = refused(capsys, "fit", data, "-o", out, "--min-learning-rate", "0.5")
    assert "min_learning_rate must not exceed max_learning_rate" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-topic", "x"], "invalid int value: 'x'"),
        (["--hidden", "2.5"], "invalid int value"),
        (["--max-learning-rate", "fast"], "invalid float value"),
        (["--kl-strategy", "up"], "invalid choice: 'up'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        ([], "the following arguments are required: -o/--out"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense_are_refused(data, tmp_path, capsys, words, said):
    out = ["-o", tmp_path / "out"] if words else []
    assert said in refused(capsys, "fit", data, *out, *words)
    assert not (tmp_path / "out").exists()


def test_no_command_and_an_unknown_one_are_refused(capsys):
    assert "required: COMMAND" in refused(capsys)
    assert "invalid choice: 'nonsense'" in refused(capsys, "nonsense")


def test_missing_data_and_a_folder_in_use_are_refused(data, tmp_path, capsys):
    said = refused(capsys, "fit", tmp_path / "nothing.h5ad", "-o", tmp_path / "out")
    assert said == f"mira: error: there is no file {tmp_path / 'nothing.h5ad'}\n"
    assert not (tmp_path / "out").exists()
    assert "must not exist or be empty" in refused(capsys, "fit", data, "-o", tmp_path)


def test_data_that_are_no_counts_fail_with_the_reason_and_status_one(cells, tmp_path, capsys):
    cells.X = cells.X * 0.37
    cells.write_h5ad(tmp_path / "normalised.h5ad")
    assert cli.main(["fit", str(tmp_path / "normalised.h5ad"), "-o", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "mira: error: X must hold raw counts, whole numbers; it has fractions such as " in err
    assert jobs.read_status(tmp_path / "out").state == "failed"


def test_the_installed_command_tells_its_version_and_commands():
    mira_command = Path(sys.executable).with_name("mira")
    if not mira_command.is_file():
        pytest.skip("the command is not installed beside this interpreter")
    done = subprocess.run([mira_command, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"mira {mira.__version__}\n"
    done = subprocess.run([mira_command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "fit" in done.stdout
