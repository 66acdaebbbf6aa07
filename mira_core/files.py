"""Files that are whole or absent."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def replace_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Put `data` at `path` in one stroke: written beside, flushed to the disk, renamed; `mode` says who may read it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(beside, "wb", opener=None if mode is None else lambda name, flags: os.open(name, flags, mode)) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, values: Any, mode: int | None = None) -> None:
    """Replace a JSON file in one stroke; `mode` says who may read it."""
    replace_file(path, json.dumps(values, indent=1, allow_nan=False).encode(), mode)
