"""All exports of a run in one folder, with an index."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import JobError, OptionError
from ..files import move_into_place
from . import data, figures, html_report, methods_text, repeating, tables
from .run import FinishedRun
from .what import FORMATS, WHAT

INDEX = "index.txt"
Told = Callable[[str, float], None]


def export_all(
    run: FinishedRun | str | Path,
    folder: str | Path,
    what: Iterable[str] = tuple(WHAT),
    *,
    form: str = "h5ad",
    told: Told = lambda _, __: None,
) -> Path:
    """Export a finished run into a new folder, with an index of what is there.

    Parameters
    ----------
    run
        A run, or its folder.
    folder
        Must not exist, or be empty. It is written beside and renamed.
    what
        Some of `WHAT`.
    form
        Of the cells: ``"h5ad"`` or ``"zarr"``.
    told
        Called with what is being made, and the share of the work that is done.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    OptionError
        If there is no such export or format.
    JobError
        If the run has no topics yet, or the folder is in use.
    DataError
        If cells are asked for, and the data are gone or have changed since.
    """
    wanted = list(dict.fromkeys(what))
    for name in wanted:
        if name not in WHAT:
            raise OptionError(f"there is no export {name!r}; choose of {', '.join(WHAT)}")
    if not wanted:
        raise OptionError(f"something must be exported; choose of {', '.join(WHAT)}")
    if form not in FORMATS:
        raise OptionError(f"cells are exported as {' or '.join(FORMATS)}; got {form!r}")
    run = run if isinstance(run, FinishedRun) else FinishedRun(run)
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"{folder} must not exist or be empty; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    beside.mkdir()
    try:
        lines = []
        for i, name in enumerate(wanted):
            told(name, i / len(wanted))
            lines += _MAKERS[name](run, beside, form)
        (beside / INDEX).write_text(_index(run, beside, lines), encoding="utf-8")
        move_into_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    told("", 1.0)
    return folder


def _data(run: FinishedRun, folder: Path, form: str) -> list[tuple[str, str]]:
    data.export_data(run, folder / f"cells.{form}")
    return [(f"cells.{form}", WHAT["data"])]


def _tables(run: FinishedRun, folder: Path, form: str) -> list[tuple[str, str]]:
    return [(f"tables/{name}", tables.TABLES[name]) for name in tables.write_tables(run, folder / "tables")]


def _figures(run: FinishedRun, folder: Path, form: str) -> list[tuple[str, str]]:
    names = figures.write_figures(run, folder / "figures")
    return [(f"figures/{name}", figures.FIGURES[name.partition(".")[0]]) for name in names]


def _report(run: FinishedRun, folder: Path, form: str) -> list[tuple[str, str]]:
    html_report.write_report(run, folder / "report.html")
    return [("report.html", WHAT["report"])]


def _methods(run: FinishedRun, folder: Path, form: str) -> list[tuple[str, str]]:
    (folder / "methods.txt").write_text(methods_text.methods(run) + "\n", encoding="utf-8")
    return [("methods.txt", WHAT["methods"])]


def _script(run: FinishedRun, folder: Path, form: str) -> list[tuple[str, str]]:
    repeating.write_repeat(run, folder / "repeat")
    return [("repeat/repeat.py", WHAT["script"]), ("repeat/data.h5ad", "what the training reads"),
            ("repeat/requirements.txt", "versions that the script needs"),
            ("repeat/expected.json", "digests that the script compares with")]  # fmt: skip


_MAKERS = {"data": _data, "tables": _tables, "figures": _figures, "report": _report, "methods": _methods,
           "script": _script}  # fmt: skip


def _index(run: FinishedRun, folder: Path, lines: list[tuple[str, str]]) -> str:
    head = f"Run {plain(run.name)} of {run.created}, data {plain(run.data_name)}"
    width = max(len(name) for name, _ in lines)
    body = [f"{name:<{width}}  {_size(folder / name):>9}  {text}" for name, text in lines]
    return "\n".join([head, "", *body, ""])


def plain(text: str) -> str:
    """Return text from people in one line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _size(path: Path) -> str:
    n = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"
