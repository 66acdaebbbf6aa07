"""Files that are whole or absent, and JSON that may be anybody's."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

MOST_JSON = 2**26  # bytes of a file


def replace_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Put `data` at `path` in one stroke: written beside, flushed to the disk, renamed; `mode` says who may read it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(beside, "wb", opener=None if mode is None else lambda name, flags: os.open(name, flags, mode)) as f:
            f.write(data)
        move_into_place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def move_into_place(beside: Path, path: Path) -> None:
    """Rename a file or folder that was written beside, in place of what is there; it is there after a power cut too.

    A folder takes the place of an empty one only.
    """
    for written in beside.rglob("*") if beside.is_dir() else ():
        _flush(written)
    _flush(beside)
    os.replace(beside, path)
    _flush(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, that are there after a power cut too."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _flush(made.parent)


def _flush(path: Path) -> None:
    """Have the disk keep a file, or which files a folder has."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():  # some file systems know of none for folders
            raise
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds.

    Raises
    ------
    ValueError
        If it is none, or is nested so deeply that Python cannot follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    OSError
    ValueError
        As `parse_json` does, or if the file is very large.
    """
    with open(path, "rb") as f:
        data = f.read(MOST_JSON + 1)
    if len(data) > MOST_JSON:
        raise ValueError(f"it holds more than {MOST_JSON / 2**20:.0f} MiB")
    return parse_json(data)


def end_of(path: Path, size: int = 20_000) -> str:
    """Return the last `size` bytes of a text file, such as a log that may be large.

    Raises
    ------
    OSError
    """
    with open(path, "rb") as f:
        f.seek(max(0, os.fstat(f.fileno()).st_size - size))
        return f.read().decode(errors="replace")


def write_json(path: Path, values: Any, mode: int | None = None) -> None:
    """Replace a JSON file in one stroke; `mode` says who may read it."""
    replace_file(path, json.dumps(values, indent=1, allow_nan=False).encode(), mode)
