"""The command line: ``mira fit``, and whatever installed packages add (``mira serve``)."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import param

from . import __version__, jobs, options
from .errors import MiraError
from .records import EpochRecord, Record


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="mira", description="Topic models of single-cell counts.")
    parser.add_argument("--version", action="version", version=f"mira {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_fit(commands)
    for point in sorted(entry_points(group="mira.commands"), key=lambda p: p.name):
        point.load()(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except MiraError as problem:
        print(f"mira: error: {problem}", file=sys.stderr)
        return 2


def _add_fit(commands: Any) -> None:
    p = commands.add_parser(
        "fit",
        help="train a topic model on an .h5ad file",
        description="Train a topic model; the model, the topics and the records of training go to a new folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("data", metavar="DATA.h5ad", help="cells with raw counts, or demo:pbmc700, demo:simulated")
    p.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="new folder for the results")
    p.add_argument("--no-embedding", action="store_true", help="do not compute a UMAP at the end")
    groups: dict[str, Any] = {}
    for name in options.names():
        declared = options.parameter(name)
        group = declared.metadata["group"]
        if group not in groups:
            groups[group] = p.add_argument_group(f"options: {group}")
        groups[group].add_argument(_flag(name), dest=name, **_argument(name, declared))
    p.set_defaults(run=_fit)


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
    from tqdm.auto import tqdm

    os.environ.update(jobs.ENVIRONMENT)

    from .run import run_job

    given = {n: getattr(arguments, n) for n in options.names() if hasattr(arguments, n)}
    jobs.write_spec(arguments.out, data=arguments.data, model=given, embedding=not arguments.no_embedding)
    with tqdm(unit="epoch", disable=not sys.stderr.isatty()) as bar:

        def show(record: Record) -> None:
            if isinstance(record, EpochRecord):
                status = jobs.read_status(arguments.out)
                bar.total = bar.total or status.num_epochs
                bar.update()
                bar.set_postfix_str(record.progress(status.device or ""))

        status = run_job(arguments.out, show)
    if status.state == "failed":
        print(f"mira: error: {status.error['message']}", file=sys.stderr)
        return 1
    print(f"{status.state}: {arguments.out / 'result'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
