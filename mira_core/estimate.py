"""Estimate what a job would take, in a process of its own: ``python -m mira_core.estimate FOLDER``.

In place of a job's folder, the path of a file with its specification, or ``-`` for standard input. Prints one JSON
object: `Estimate`, or ``error`` with ``type`` and ``message``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .data.demo import DEMO
from .data.recipe import open_cells
from .data.sources import open_named
from .errors import JobError, MiraError
from .estimators.estimating import COPIES_OF_A_JOB, Estimate, estimate, open_lightly
from .estimators.topic_model import TopicModel
from .files import parse_json, read_json


def estimate_job(spec: Mapping[str, Any]) -> Estimate:
    """Estimate what a fit job takes, as far as training goes.

    Parameters
    ----------
    spec
        ``data``, ``model``, and optionally ``test_size`` and ``recipe``, as in `mira_core.jobs.write_spec`.

    Raises
    ------
    JobError, DataError, OptionError
    """
    try:
        data, given = spec["data"], dict(spec["model"])
    except (KeyError, TypeError, ValueError):
        raise JobError("a specification must be an object with data and model") from None
    if spec.get("recipe") is not None:
        source = open_cells(spec)
    else:
        source = open_named(data) if data.startswith(DEMO) else open_lightly(data)
    model = TopicModel(*source.shape, **given)
    return estimate(model, source, spec.get("test_size"), COPIES_OF_A_JOB)


def main(argv: list[str] | None = None) -> int:
    """Print the estimate of the job that is named on the command line."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m mira_core.estimate FOLDER|SPEC.json|-", file=sys.stderr)
        return 2
    try:
        told = estimate_job(_read(arguments[0])).to_dict()
    except MiraError as problem:
        print(json.dumps({"error": {"type": type(problem).__name__, "message": str(problem)}}))
        return 2
    print(json.dumps(told))
    return 0


def _read(where: str) -> Any:
    path = Path(where)
    try:
        if where == "-":
            return parse_json(sys.stdin.read())
        return read_json(path / "job.json" if path.is_dir() else path)
    except (OSError, ValueError) as problem:
        raise JobError(f"no specification can be read from {where}: {problem}") from None


if __name__ == "__main__":
    raise SystemExit(main())
