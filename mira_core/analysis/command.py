"""``mira enrich``: which gene sets or regions the topics of a finished run are made of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from ..data.anndata_io import open_data
from ..errors import DataError, OptionError
from ..files import move_into_place

CELLS = ("cells.h5ad", "result/cells.h5ad")  # what a run leaves, from its results' folder or its own


def add_command(commands: Any) -> None:
    """Add ``mira enrich``."""
    p = commands.add_parser(
        "enrich",
        help="tell which gene sets or regions topics are enriched in",
        description="Test gene sets of .gmt files, or regions of .bed files, for enrichment in the topics of a run, "
        "against all modelled features; nothing is downloaded.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run or of its results, or an .h5ad file")
    p.add_argument("--gmt", type=Path, metavar="FILE", help="gene sets, .gmt or .gmt.gz")
    p.add_argument("--bed", type=Path, nargs="+", metavar="FILE", help="regions, .bed or .bed.gz, a set for each file")
    p.add_argument("--method", choices=("overrepresentation", "rank", "gsea"), default="overrepresentation",
                   help="test of gene sets, see mira_core.analysis.enrich")  # fmt: skip
    p.add_argument("--top", type=int, default=None, metavar="N",
                   help="features that stand for a topic; if not given, 200 or a tenth of all")  # fmt: skip
    p.add_argument("--min-size", type=int, default=5, metavar="N", help="members that a set must have in the model")
    p.add_argument("--max-size", type=int, default=500, metavar="N", help="members of a gene set at most")
    p.add_argument("-o", "--out", type=Path, default=None, metavar="FILE", help="CSV to write; else it is printed")
    p.add_argument("--keep", default=None, metavar="NAME",
                   help="keep the table in the cells' file too, under this name")  # fmt: skip
    p.set_defaults(run=_enrich)


def _enrich(arguments: argparse.Namespace) -> int:
    if (arguments.gmt is None) == (arguments.bed is None):
        raise OptionError("either --gmt or --bed must be given, with what to test")
    from .enrichment import enrich, keep_enrichment
    from .peaks import enrich_peaks

    path = _cells(arguments.run_folder)
    cells = open_data(path)
    if arguments.gmt is not None:
        found = enrich(cells, arguments.gmt, arguments.method, top=arguments.top, min_size=arguments.min_size,
                       max_size=arguments.max_size)  # fmt: skip
    else:
        found = enrich_peaks(cells, _regions(arguments.bed), top=arguments.top, min_size=arguments.min_size)
    if arguments.keep is not None:
        keep_enrichment(cells, arguments.keep, found)
        _write(cells, path)
    if arguments.out is None:
        print(found.to_csv(index=False), end="")
        return 0
    try:
        found.to_csv(arguments.out, index=False)
    except OSError as problem:
        raise OptionError(f"{arguments.out} cannot be written: {problem}") from None
    print(f"{arguments.out}: {_best(found)}")
    return 0


def _cells(path: Path) -> Path:
    if not path.is_dir() or path.suffix == ".zarr":
        return path
    found = next((path / name for name in CELLS if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"{path} must be a run that has ended, with result/cells.h5ad, or a file of cells with topics")
    return found


def _regions(paths: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        name = path.name.removesuffix(".gz").removesuffix(".bed")
        if name in named:
            raise OptionError(f"files of regions must have different names; {name!r} is there twice")
        named[name] = path
    return named


def _write(cells: ad.AnnData, path: Path) -> None:
    if path.suffix != ".h5ad":
        raise OptionError(f"a table can be kept in an .h5ad file; got {path.name}")
    beside = path.with_suffix(".part")
    cells.write_h5ad(beside)
    move_into_place(beside, path)


def _best(found: pd.DataFrame) -> str:
    sure = found[found["q_value"] < 0.05]
    return f"{len(sure):,} of {len(found):,} pairs of topic and set with q < 0.05, in {sure['topic'].nunique()} topics"
