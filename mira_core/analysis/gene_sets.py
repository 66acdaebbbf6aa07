"""Sets of genes from .gmt files, and how their names meet those of the data."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

GeneSets = Mapping[str, Iterable[str]] | str | Path
MOST_BYTES = 2**27  # of text, unzipped: several times the largest collections
SHOWN = 3  # names in messages


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Read gene sets from a .gmt file.

    A line for each set: its name, a description, and its genes, divided by tabulators. Such files come from MSigDB,
    Enrichr, Reactome and others; nothing is downloaded.

    Parameters
    ----------
    path
        A .gmt file, which may be gzipped.

    Returns
    -------
    dict
        Genes by the name of the set, in the order of the file, each once.

    Raises
    ------
    DataError
        If there is no such file, it is damaged, holds no set, or names one twice with other genes.
    """
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        name, *rest = (field.strip() for field in line.split("\t"))
        genes = list(dict.fromkeys(g.partition(",")[0] if _weighted(g) else g for g in rest[1:] if g))
        if not name or not genes:
            raise DataError(
                f"{Path(path).name}, line {number}: a set must have a name, a description and a gene at least, divided "
                f"by tabulators; got {line[:60].rstrip()!r}"
            )
        if sets.setdefault(name, genes) != genes:
            raise DataError(f"{Path(path).name}, line {number}: there is another set of the name {name[:60]!r}")
    if not sets:
        raise DataError(f"{Path(path).name} holds no gene set; a .gmt file has a line for each")
    return sets


def _weighted(gene: str) -> bool:
    """Tell whether Enrichr's weight follows the name, as in ``CD3D,1.0``."""
    name, comma, weight = gene.partition(",")
    return bool(name and comma) and weight.replace(".", "", 1).isdigit()


def lines_of(path: str | Path, most: int = MOST_BYTES) -> list[str]:
    """Return the lines of a text file, gzipped or not, of `most` bytes of text at most.

    Raises
    ------
    DataError
        If it cannot be read, is no text, or is larger.
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            zipped = f.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as f:
            content = f.read(most + 1)
        if len(content) > most:
            raise DataError(f"{path.name} holds more than {most / 2**20:,.0f} MiB of text; give the part that is meant")
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path.name} must be text (UTF-8), and is not") from None
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path.name} cannot be read: {problem}") from None


def usable_sets(
    gene_sets: GeneSets, features: np.ndarray, labels: np.ndarray, min_size: int, max_size: int
) -> dict[str, np.ndarray]:
    """Return the positions of each set's members among the features, for sets of a useful size.

    Names are compared as they are in the file with symbols and with the data's own names, whatever their case, and
    without the version of an Ensembl identifier (``ENSG00000167286.10``).

    Raises
    ------
    DataError
        If no set has members among the features, or none is of a useful size.
    """
    sets = _named(gene_sets)
    at: dict[str, int] = {}
    for names in (labels, features):
        for i, name in enumerate(names):
            at.setdefault(_plain(name), i)
    found = {name: np.unique([at[g] for g in map(_plain, genes) if g in at]) for name, genes in sets.items()}
    most = max(len(members) for members in found.values())
    if not most:
        theirs = list(dict.fromkeys(g for genes in sets.values() for g in genes))
        raise DataError(
            f"none of the {len(theirs):,} genes of the sets is among the {len(features):,} modelled features; the sets "
            f"name them like {', '.join(theirs[:SHOWN])}, the data like {', '.join(labels[:SHOWN])}. Use sets of the "
            "same species and kind of names, or put the symbols into a column of var named 'gene_symbols'"
        )
    kept = {name: members.astype(int) for name, members in found.items() if min_size <= len(members) <= max_size}
    if not kept:
        sizes = sorted(len(members) for members in found.values())
        raise DataError(
            f"no set has {min_size} to {max_size} members among the modelled features; they have {sizes[0]} to "
            f"{sizes[-1]}. Change min_size or max_size"
        )
    return kept


def _named(gene_sets: Any) -> dict[str, list[str]]:
    if isinstance(gene_sets, str | Path):
        return read_gmt(gene_sets)
    if not isinstance(gene_sets, Mapping):
        raise DataError(
            f"gene_sets must be a dict of names to genes, or the path of a .gmt file; got {gene_sets!r:.60}"
        )
    if not gene_sets:
        raise DataError("gene_sets holds no set")
    if text := next((name for name, genes in gene_sets.items() if isinstance(genes, str)), None):
        raise DataError(f"each set must be a list of genes; that of {text!r} is a text")
    return {str(name): [str(g) for g in genes] for name, genes in gene_sets.items()}


def _plain(name: str) -> str:
    name = str(name).strip().upper()
    return name.partition(".")[0] if name.startswith("ENS") else name
