"""Looks at data, each in a process of its own, and the recipes that people made: shared by all sessions."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mira_core import starting
from mira_core.data import Recipe
from mira_core.data.look import Look
from mira_core.errors import DataError, MiraError
from mira_core.files import read_json, write_json

KEPT = 16  # looks; each has a few numbers by cell
AT_ONCE = 2
LONGEST = 1800  # seconds


class Asked(NamedTuple):
    """Data as a job names them, what tells that their file has changed, and a recipe."""

    data: str
    stamp: tuple[int, int]
    recipe: Recipe


class Kept(NamedTuple):
    """A recipe, what it was called, when it was first kept, and by whom it was."""

    recipe: Recipe
    label: str
    created: float
    owners: tuple[str, ...]


class Looks:
    """Looks at data on request, and remembers the last ones; keeps recipes in a folder.

    Parameters
    ----------
    folder
        Where recipes are kept, each under a name that its content gives, so that a link to one stays true.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(AT_ONCE, "look")
        self._done: OrderedDict[Asked, Future[Look]] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, asked: Asked) -> Look:
        """Look; those who ask for the same wait for one look.

        Raises
        ------
        DataError
            If the data cannot be opened.
        """
        with self._lock:
            future = self._done.get(asked)
            if future is None or (future.done() and future.exception() is not None):
                future = self._done[asked] = self._pool.submit(_look, asked)
            self._done.move_to_end(asked)
            while len(self._done) > KEPT:
                self._done.popitem(last=False)
        return future.result()

    # --- recipes --------------------------------------------------------------------------------

    def keep(self, recipe: Recipe, label: str, owner: str = "") -> str:
        """Keep a recipe of somebody; return its key, empty if it has no steps."""
        if not recipe.steps:
            return ""
        key = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / f"{key}.json"
        try:
            kept = _read(path)
        except DataError:
            kept = Kept(recipe, label, time.time(), ())
        if owner not in kept.owners:
            self.folder.mkdir(parents=True, exist_ok=True)
            told = {"label": kept.label, "created": kept.created, "owners": [*kept.owners, owner]}
            write_json(path, {**recipe.to_dict(), **told})
        return key

    def recipe(self, key: str) -> Recipe:
        """Return a recipe by its key.

        Raises
        ------
        DataError
            If there is none.
        """
        return _read(self._path(key)).recipe if key else Recipe()

    def recipes(self, owner: str | None = None) -> dict[str, str]:
        """Return label -> key of the recipes that somebody kept, or anybody, the newest first."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                kept = _read(path)
            except MiraError:
                continue
            if owner is not None and owner not in kept.owners:
                continue
            steps = ", ".join(s.name.replace("_", " ") for s in kept.recipe)
            when = time.strftime("%d %b %H:%M:%S", time.localtime(kept.created))
            found.append((kept.created, f"{kept.label} · {when} · {steps}", path.stem))
        return {label: key for _, label, key in sorted(found, reverse=True)}

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{12}", key):
            raise DataError(f"there is no recipe {key!r}")
        return self.folder / f"{key}.json"


def _read(path: Path) -> Kept:
    try:
        told = read_json(path)
        owners = tuple(map(str, told.get("owners", [""])))
        return Kept(Recipe.from_dict({"steps": told["steps"]}), str(told["label"]), float(told["created"]), owners)
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"there is no recipe {path.stem!r}") from None


def _look(asked: Asked) -> Look:
    spec = json.dumps({"data": asked.data, "recipe": asked.recipe.to_dict()})
    with tempfile.TemporaryDirectory(prefix="mira-look-") as folder:
        try:
            starting.shared().prepare()  # who looks at data trains next, which begins at once then
            done = starting.shared().run("mira_core.data.look", [folder], spec, LONGEST)
        except TimeoutError:
            raise DataError(f"{asked.data} could not be looked at within {LONGEST // 60} minutes") from None
        if done.returncode == 0:
            return Look.read(Path(folder))
    try:
        told = json.loads(done.stdout)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise DataError(f"{asked.data} cannot be read: looking at it ended with {ended} ({last[0]})") from None
    raise DataError(told)
