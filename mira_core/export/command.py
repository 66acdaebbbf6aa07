"""``mira export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .what import FORMATS, WHAT


def add_command(commands: Any) -> None:
    """Add ``export`` to the command line of `mira_core.cli`."""
    p = commands.add_parser(
        "export",
        help="take data, tables, figures, a report and a script from a run",
        description="Export what a finished run found into a new folder: the cells with all results, tables, figures, "
        "an HTML report, a methods section, and a script that repeats the run and checks that the topics are the same.",
    )
    p.add_argument("folder", type=Path, metavar="RUN", help="folder of a run that trained or predicted")
    p.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="new folder for the exports")
    p.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), metavar="WHAT",
                   help=f"some of {', '.join(WHAT)}; by default all")  # fmt: skip
    p.add_argument("--column", default=None, metavar="NAME",
                   help="column of obs by which topics are shown; by default one of types of cells")  # fmt: skip
    p.add_argument("--format", choices=FORMATS, default="h5ad", help="of the cells; by default h5ad")
    p.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from .everything import INDEX, export_all
    from .run import FinishedRun

    def told(name: str, done: float) -> None:
        if name and sys.stderr.isatty():
            print(f"{done:4.0%} {name}", file=sys.stderr)

    folder = export_all(
        FinishedRun(arguments.folder, arguments.column), arguments.out, arguments.what, form=arguments.format, told=told
    )
    print((folder / INDEX).read_text(encoding="utf-8"), end="")
    return 0
