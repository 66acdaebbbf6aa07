"""The command line: ``mira inspect``, ``fit``, ``resume``, ``predict``, ``lr-test``, ``tune``, and more."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import param

from . import __version__, jobs, options, processes
from .analysis import command as enrich_command
from .errors import MiraError, OptionError
from .export import command as export_command
from .files import write_json
from .records import EpochRecord, RangeRecord, Record

DATA = (
    "cells with raw counts: .h5ad, .h5mu, .loom, 10x .h5, .zarr, .zarr.zip, a 10x matrix folder, or a folder of "
    "write_ondisk_dataset; FILE#PART names a modality, genome or type of features; demo:pbmc700, demo:simulated"
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="mira", description="Topic models of single-cell counts.")
    parser.add_argument("--version", action="version", version=f"mira {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect(commands)
    _add_fit(commands)
    _add_resume(commands)
    _add_predict(commands)
    _add_estimate(commands)
    _add_range_test(commands)
    _add_gradient_tune(commands)
    _add_tune(commands)
    _add_worker(commands)
    export_command.add_command(commands)
    enrich_command.add_command(commands)
    for point in sorted(entry_points(group="mira.commands"), key=lambda p: p.name):
        point.load()(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except MiraError as problem:
        print(f"mira: error: {problem}", file=sys.stderr)
        return 2


def _add_inspect(commands: Any) -> None:
    p = commands.add_parser(
        "inspect",
        help="tell what is wrong with data",
        description="Look for what would harm a model of these cells, and tell what to do. Ends with 1 if there are "
        "errors.",
    )
    p.add_argument("data", metavar="DATA", help=DATA)
    p.add_argument("--json", action="store_true", help="print a JSON list of the findings")
    p.add_argument("--write-recipe", type=Path, default=None, metavar="FILE",
                   help="write the steps that mend what was found, to be edited and given to fit")  # fmt: skip
    _add_recipe(p)
    asked = ("feature_type", "counts_layer", "highly_variable_key", "categorical_covariates", "continuous_covariates")
    for name in asked:
        p.add_argument(_flag(name), dest=name, **_argument(name, options.parameter(name)))
    p.set_defaults(run=_inspect)


def _add_recipe(p: argparse.ArgumentParser) -> None:
    p.add_argument("--recipe", type=Path, default=None, metavar="FILE",
                   help="JSON with steps to do to the cells first, see mira_core.data.Recipe")  # fmt: skip


def _recipe(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if arguments.recipe is None:
        return None
    from .data import Recipe

    try:
        text = arguments.recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise OptionError(f"no recipe can be read from {arguments.recipe}: {problem}") from None
    return Recipe.from_json(text).to_dict()


def _inspect(arguments: argparse.Namespace) -> int:
    from . import data
    from .data.recipe import prepare
    from .data.sources import open_backed

    cells = open_backed(arguments.data)
    if (recipe := _recipe(arguments)) is not None:
        cells = prepare(cells, data.Recipe.from_dict(recipe))
    found = data.inspect(cells, **_given(arguments))
    if arguments.write_recipe is not None:
        write_json(arguments.write_recipe, data.Recipe.of(found).to_dict())
    if arguments.json:
        print(json.dumps([f.to_dict() for f in found], indent=1))
    else:
        print("\n".join(map(str, found)) or "nothing was found that would harm a model")
    return int(any(f.severity == "error" for f in found))


def _add_fit(commands: Any) -> None:
    p = commands.add_parser(
        "fit",
        help="train a topic model",
        description="Train a topic model; the model, the topics and the records of training go to a new folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_fit_arguments(p)
    p.set_defaults(run=_fit)


def add_fit_arguments(p: argparse.ArgumentParser) -> None:
    """Add what `mira fit` takes."""
    p.add_argument("data", metavar="DATA", help=DATA)
    p.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="new folder for the results")
    p.add_argument("--no-embedding", action="store_true", help="do not compute a UMAP at the end")
    p.add_argument("--test-size", type=float, default=None, metavar="SHARE",
                   help="hold out this share of the cells, and score them after each epoch")  # fmt: skip
    _add_recipe(p)
    _add_options(p)


def _add_options(p: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    groups: dict[str, Any] = {}
    for name in options.names():
        if name in without:
            continue
        declared = options.parameter(name)
        group = declared.metadata["group"]
        if group not in groups:
            groups[group] = p.add_argument_group(f"options: {group}")
        groups[group].add_argument(_flag(name), dest=name, **_argument(name, declared))


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {n: getattr(arguments, n) for n in options.names() if hasattr(arguments, n)}


def _add_resume(commands: Any) -> None:
    p = commands.add_parser(
        "resume",
        help="go on with a run that was stopped or died",
        description="Go on with a run after the last epoch that its folder keeps, or from the start if there is none; "
        "with a tuning where its study is.",
    )
    p.add_argument("out", type=Path, metavar="FOLDER", help="of the run")
    p.set_defaults(run=lambda arguments: _run(arguments.out))


def _add_predict(commands: Any) -> None:
    p = commands.add_parser(
        "predict",
        help="tell the topics of cells by a model that is trained",
        description="Tell the topics of cells by a saved model; they go to a new folder, with the model.",
    )
    p.add_argument("data", metavar="DATA", help=DATA)
    p.add_argument("--model", required=True, metavar="FILE", help="that fit or tune saved: .safetensors")
    p.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="new folder for the results")
    p.add_argument("--no-embedding", action="store_true", help="do not compute a UMAP at the end")
    _add_recipe(p)
    p.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    jobs.write_spec(
        arguments.out, data=arguments.data, model={}, embedding=not arguments.no_embedding, kind="predict",
        predict={"model": arguments.model}, recipe=_recipe(arguments),
    )  # fmt: skip
    return _run(arguments.out)


def _add_estimate(commands: Any) -> None:
    p = commands.add_parser(
        "estimate",
        help="tell what a training would take",
        description="Take a few steps on some of the cells, and tell the time and memory that a training would take.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("data", metavar="DATA", help=DATA)
    p.add_argument("--test-size", type=float, default=None, metavar="SHARE", help="as of fit")
    _add_options(p)
    p.set_defaults(run=_estimate)


def _estimate(arguments: argparse.Namespace) -> int:
    os.environ.update(processes.ENVIRONMENT)

    from .estimate import estimate_job

    print(estimate_job({"data": arguments.data, "model": _given(arguments), "test_size": arguments.test_size}))
    return 0


def _add_range_test(commands: Any) -> None:
    from .training.range_options import RangeOptions

    p = commands.add_parser(
        "lr-test",
        help="find the learning rates at which the loss falls",
        description="Train a fresh model while the learning rate rises; the losses and the bounds go to a new folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("data", metavar="DATA", help=DATA)
    p.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="new folder for the results")
    for name, value in RangeOptions().to_dict().items():
        p.add_argument(_flag(name), type=int if isinstance(value, int) else float, default=value, metavar="N",
                       help="see get_learning_rate_bounds")  # fmt: skip
    _add_options(p)
    p.set_defaults(run=_test_range)


def _test_range(arguments: argparse.Namespace) -> int:
    from .training.range_options import RangeOptions

    asked = {name: getattr(arguments, name) for name in RangeOptions().to_dict()}
    given = _given(arguments)
    jobs.write_spec(arguments.out, data=arguments.data, model=given, kind="range_test", range_test=asked)
    if code := _run(arguments.out):
        return code
    told = json.loads((arguments.out / "result" / "curve.json").read_bytes())
    for warning in told["warnings"]:
        print(f"mira: {warning}", file=sys.stderr)
    if told["bounds"] is None:
        return 1
    print("--min-learning-rate {:.3g} --max-learning-rate {:.3g}".format(*told["bounds"]))
    return 0


def _add_gradient_tune(commands: Any) -> None:
    p = commands.add_parser(
        "gradient-tune",
        help="estimate the number of topics from one training",
        description="Train a model whose prior leaves topics unused that the cells do not need, and tell how many are "
        "used; what each contributes goes to a new folder, with a figure.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("data", metavar="DATA", help=DATA)
    p.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="new folder for the results")
    p.add_argument("--max-attempts", type=int, default=3, metavar="N", help="trainings, if they diverge")
    p.add_argument("--max-topics", type=int, default=None, metavar="N",
                   help="topics that the model may use; if not given, by the number of cells")  # fmt: skip
    _add_recipe(p)
    _add_options(p, without=("num_topics",))
    p.set_defaults(run=_gradient_tune)


def _gradient_tune(arguments: argparse.Namespace) -> int:
    asked = {"max_attempts": arguments.max_attempts, "max_topics": arguments.max_topics}
    jobs.write_spec(
        arguments.out, data=arguments.data, model=_given(arguments), kind="gradient_tune", gradient_tune=asked,
        recipe=_recipe(arguments),
    )  # fmt: skip
    if code := _run(arguments.out):
        return code
    result = arguments.out / "result"
    if not (result / "contributions.json").is_file():
        return 1  # it was stopped

    import numpy as np
    from matplotlib.figure import Figure

    from .plots.contributions import plot_topic_contributions

    told = json.loads((result / "contributions.json").read_bytes())
    figure = Figure(figsize=(7, 4), layout="constrained")
    plot_topic_contributions(np.array(told["contributions"]), told["num_topics"], ax=figure.add_subplot())
    figure.savefig(result / "contributions.png", dpi=150)
    print(f"--num-topics {told['num_topics']}")
    return 0


def _add_tune(commands: Any) -> None:
    from .tuning.tune_options import BY_TRIAL, TuneOptions

    p = commands.add_parser(
        "tune",
        help="choose the number of topics by many trials",
        description="Tune a topic model. Interrupted, the same command goes on where it was.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("data", metavar="DATA", help=DATA)
    p.add_argument("--study", required=True, metavar="NAME", help="such as dataset/modality/model/run")
    p.add_argument("--min-topics", required=True, type=int, metavar="N")
    p.add_argument("--max-topics", required=True, type=int, metavar="N")
    p.add_argument("--test", metavar="DATA", default=None, help="cells to score by; else part of DATA is held out")
    p.add_argument("--storage", default=TuneOptions.storage, metavar="URL",
                   help="sqlite:///FILE, redis://HOST, postgresql://..., journal:///FILE")  # fmt: skip
    p.add_argument("--n-jobs", type=int, default=TuneOptions.n_jobs, metavar="N", help="concurrent trials")
    p.add_argument("--max-trials", type=int, default=TuneOptions.max_trials, metavar="N")
    p.add_argument("--min-trials", type=int, default=TuneOptions.min_trials, metavar="N")
    p.add_argument("--stop-condition", type=int, default=TuneOptions.stop_condition, metavar="N",
                   help="trials without a better one")  # fmt: skip
    p.add_argument("--tuner-seed", type=int, default=TuneOptions.seed, metavar="N")
    p.add_argument("--train-size", type=float, default=TuneOptions.train_size, metavar="SHARE")
    p.add_argument("--search", nargs="+", type=_range, default=None, metavar="NAME[=LOW:HIGH]",
                   help="further options to tune, such as hidden=64:256; without ends, in the usual range")  # fmt: skip
    p.add_argument("--model-dir", default=TuneOptions.model_dir, metavar="FOLDER")
    p.add_argument("--tensorboard-logdir", default=TuneOptions.tensorboard_logdir, metavar="FOLDER")
    p.add_argument("-o", "--out", type=Path, default=None, metavar="FILE", help="where to save the best model")
    _add_recipe(p)
    _add_options(p, without=BY_TRIAL)
    p.set_defaults(run=_tune)


def _range(text: str) -> tuple[str, list[float] | None]:
    """Read NAME or NAME=LOW:HIGH."""
    name, equals, ends = text.partition("=")
    if not equals:
        return name.replace("-", "_"), None
    try:
        low, high = (int(end) if end.lstrip("+-").isdigit() else float(end) for end in ends.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be NAME or NAME=LOW:HIGH; got {text!r}") from None
    return name.replace("-", "_"), [low, high]


def _tune(arguments: argparse.Namespace) -> int:
    os.environ.update(processes.ENVIRONMENT)

    from .running.tune import open_tuner
    from .tuning.tune_options import TuneOptions

    taken = ("study", "min_topics", "max_topics", "storage", "n_jobs", "max_trials", "min_trials", "stop_condition",
             "train_size", "model_dir", "tensorboard_logdir")  # fmt: skip
    asked = {**{name: getattr(arguments, name) for name in taken}, "seed": arguments.tuner_seed,
             "search": dict(arguments.search) if arguments.search else None}  # fmt: skip
    given = _given(arguments)
    TuneOptions.from_dict(asked, given)
    tuner, data = open_tuner({"data": arguments.data, "model": given, "tune": asked, "recipe": _recipe(arguments)})
    best = tuner.fit(data, arguments.test)
    if arguments.out is not None:
        best.save(arguments.out)
    print(tuner.summary())
    print(f"\nthe best model is in {arguments.out or tuner.study.best_trial.user_attrs['weights']}")
    return 0


def _add_worker(commands: Any) -> None:
    p = commands.add_parser(
        "worker",
        help="run trials of a study that somebody else began",
        description="Run trials of a study until no further one is wanted. The study's data and model folder must be "
        "at the same paths as where it was begun.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--study", required=True, metavar="NAME")
    p.add_argument("--storage", required=True, metavar="URL")
    p.add_argument("--device", default=None, metavar="DEVICE", help="such as cuda:1; else as the model's options say")
    p.set_defaults(run=_worker)


def _worker(arguments: argparse.Namespace) -> int:
    os.environ.update(processes.ENVIRONMENT)

    from .tuning.workers import run_worker

    why = run_worker({"storage": arguments.storage, "study": arguments.study}, arguments.device)
    print(f"ended, as {why}")
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _argument(name: str, declared: param.Parameter) -> dict[str, Any]:
    # Not given stays absent, so that the model recommends a value.
    shared: dict[str, Any] = {"default": argparse.SUPPRESS, "help": (declared.doc or "").replace("%", "%%")}
    if isinstance(declared, param.Boolean):
        return {**shared, "action": argparse.BooleanOptionalAction}
    if isinstance(declared, options.ColumnNames):
        return {**shared, "nargs": "+", "metavar": "COLUMN"}
    if isinstance(declared, param.Selector):
        return {**shared, "choices": declared.objects}
    if isinstance(declared, param.Number):
        return {**shared, "type": int if isinstance(declared, param.Integer) else float, "metavar": "N"}
    return {**shared, "metavar": "NAME"}


def _fit(arguments: argparse.Namespace) -> int:
    jobs.write_spec(
        arguments.out, data=arguments.data, model=_given(arguments), embedding=not arguments.no_embedding,
        test_size=arguments.test_size, recipe=_recipe(arguments),
    )  # fmt: skip
    return _run(arguments.out)


def _run(folder: Path) -> int:
    """Run a job with a progress bar; return the exit status."""
    from tqdm.auto import tqdm

    os.environ.update(processes.ENVIRONMENT)

    from .run import run_job

    with contextlib.ExitStack() as stack:
        bar: Any = None  # a tuning shows a table of its own

        def show(record: Record | RangeRecord) -> None:
            nonlocal bar
            if not sys.stderr.isatty() or not isinstance(record, EpochRecord | RangeRecord):
                return
            status = jobs.read_status(folder)
            is_epoch = isinstance(record, EpochRecord)
            if bar is None:
                unit = "epoch" if is_epoch else "rate"
                bar = stack.enter_context(tqdm(unit=unit, initial=status.resumed_epoch))
            bar.total = status.num_epochs if is_epoch else status.num_steps
            bar.update()
            if isinstance(record, EpochRecord):
                bar.set_postfix_str(record.progress(status.device or ""))

        status = run_job(folder, show)
    if status.state == "failed":
        print(f"mira: error: {status.error['message']}", file=sys.stderr)
        return 1
    print(f"{status.state}: {folder / 'result'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
