"""What may be opened: data sets below the folders that somebody may look into. Knows no widgets."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mira_core.data import Finding, Recipe, describe, formats, on_disk
from mira_core.data.demo import DEMO, DEMOS
from mira_core.data.inspection.covariates import check_covariates
from mira_core.data.look import Look
from mira_core.data.sources import open_backed
from mira_core.errors import DataError

from .looks import Asked, Looks
from .serving.people import Who
from .settings import Settings

REFUSED = ("empty_cells", "duplicate_features")  # findings with which no training begins
PAPERS = (".md", ".txt", ".pdf", ".html", ".log", ".json", ".py", ".r")  # nobody looks for them in a list of data
CHOOSE = ". Choose one of the list on the Data page; its file may have been moved"
SETS, MOST_SETS = ("*.gmt", "*.gmt.gz", "*.bed", "*.bed.gz"), 500  # files of gene sets and of regions


@dataclass(frozen=True)
class Source:
    """A data set that can be opened.

    Attributes
    ----------
    key
        ``demo:NAME``, or ``FOLDER/path/below/it.h5ad`` with the folder's number, and ``#`` and the part of a file
        of several data sets; what the URL holds.
    """

    key: str
    label: str
    bytes: int | None = None
    modified: float | None = None


class Listing(NamedTuple):
    """What is in a folder: further folders, and data sets."""

    folders: list[Source]
    sources: list[Source]
    n_others: int = 0  # files that cannot be opened


class DataSets:
    """The data that one person may open.

    Parameters
    ----------
    settings
        Where the folders are.
    looks
        What has been looked at, of all people.
    who
        Tells whose they are.
    """

    def __init__(self, settings: Settings, looks: Looks, who: Who) -> None:
        self.settings, self.looks, self.who = settings, looks, who

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder whose files may be opened; its place is its number in keys."""
        return self.settings.folders_of(self.who())

    @property
    def uploads(self) -> Path:
        """Where this person's uploads go."""
        return self.settings.uploads / self.who().folder

    def key_of(self, path: Path) -> str | None:
        """Return the key of a file below the folders, None if it is below none."""
        for number, root in enumerate(self.folders):
            if path.is_relative_to(root):
                return f"{number}/{path.relative_to(root).as_posix()}"
        return None

    def sources(self) -> list[Source]:
        """List demos, then what can be opened below the data folders: an entry for each data set of a file."""
        out = self._demos()
        for number, root in enumerate(self.folders):
            if not root.is_dir():
                continue  # it was there when the server started
            for path in _data_below(root):
                out += self._sources_of(number, path.relative_to(root).as_posix())
        return out

    def _demos(self) -> list[Source]:
        return [Source(f"{DEMO}{name}", text) for name, text in DEMOS.items()]

    def _sources_of(self, number: int, relative: str) -> list[Source]:
        """Return an entry for each data set of one file or folder; none if it holds none."""
        try:
            resolved, _ = self._locate(f"{number}/{relative}")
            modified, size = formats.stamp(resolved)
            parts = _parts(resolved, modified, size)
        except (DataError, OSError):
            return []  # a link that leaves the folder, a file that has just gone, HDF5 that is no data
        shown = None if formats.is_zarr(resolved) and resolved.is_dir() else size  # of its chunks: too slow
        names = [formats.join_part(relative, part) for part in parts]
        return [Source(f"{number}/{name}", name, shown, modified / 1e9) for name in names]

    def browse(self, place: str = "") -> Listing:
        """List one folder: ``""`` the data folders and the demos, else ``NUMBER/path/below/it``.

        Raises
        ------
        DataError
            If it is not one of the data folders, or below one, links resolved.
        """
        if not place:
            return Listing([Source(str(i), self._name_of(i)) for i in range(len(self.folders)) if self._is_there(i)],
                           self._demos())  # fmt: skip
        number, _, relative = place.partition("/")
        try:
            root = self.folders[int(number)].resolve(strict=True)
            folder = (root / relative).resolve(strict=True)
            entries = sorted(folder.iterdir())
        except (ValueError, IndexError, OSError, RuntimeError):
            raise DataError(f"there is no folder {place!r} in the data folders") from None
        if not folder.is_relative_to(root) or number.startswith("-"):
            raise DataError(f"there is no folder {place!r} in the data folders")
        folders, sources, n_others = [], [], 0
        for path in entries:
            if path.name.startswith(".") or not _is_inside(path, root) or folder.is_relative_to(path.resolve()):
                continue  # not ours, or a way back to where we are
            name = f"{relative}/{path.name}" if relative else path.name
            if formats.is_data(path) or _is_ondisk(path):
                found = self._sources_of(int(number), name)
                sources += [dataclasses.replace(s, label=s.label.removeprefix(f"{relative}/")) for s in found]
            elif path.is_dir():
                folders.append(Source(f"{number}/{name}", path.name))
            elif path.suffix.lower() not in PAPERS:
                n_others += 1
        return Listing(folders, sources, n_others)

    def _name_of(self, number: int) -> str:
        n = len(self.settings.data)
        if number < n:
            names = [root.name or str(root) for root in self.folders[:n]]
            which = names[: number + 1].count(names[number])
            return f"{names[number]} ({which})" if names.count(names[number]) > 1 else names[number]
        return "Uploads" if number == len(self.folders) - 1 else "My data"

    def _is_there(self, number: int) -> bool:
        return number < len(self.settings.data) or self.folders[number].is_dir()

    def feature_sets(self) -> dict[str, Path]:
        """Return label -> path of the .gmt and .bed files below the data folders, links resolved."""
        found: dict[str, Path] = {}
        for number, root in enumerate(self.folders):
            for kind in SETS:
                for path in sorted(root.rglob(kind) if root.is_dir() else []):
                    if len(found) < MOST_SETS and path.is_file() and _is_inside(path, root.resolve()):
                        found[f"{self._name_of(number)}/{path.relative_to(root).as_posix()}"] = path
        return found

    def path_of(self, key: str) -> Path:
        """Return the file or folder behind a key, without the part that the key may name.

        Raises
        ------
        DataError
            If it is not one below the data folders, links resolved, or it links to what is not.
        """
        path, _ = self._locate(key)
        root = self.folders[int(key.partition("/")[0])].resolve()
        if path.is_dir() and not all(inner.resolve().is_relative_to(root) for inner in _links(path)):
            raise DataError(
                f"there is no data set {key!r} in the data folders: it links to what is not in them. Copy it here whole"
            )
        return path

    def _locate(self, key: str) -> tuple[Path, str | None]:
        number, _, relative = key.partition("/")
        try:
            root = self.folders[int(number)].resolve(strict=True)
            path, part = formats.split_part(root / relative)
            path = path.resolve(strict=True)
        except (ValueError, IndexError, OSError, RuntimeError):
            raise DataError(f"there is no data set {key!r} in the data folders{CHOOSE}") from None
        inside = path.is_relative_to(root) and not number.startswith("-")
        if not inside or not (formats.is_data(path) or _is_ondisk(path)):
            raise DataError(f"there is no data set {key!r} in the data folders{CHOOSE}")
        return path, part

    def data_of(self, key: str) -> str:
        """Return what a job calls this data set: ``demo:NAME``, or a path, after which it may name a part."""
        if key.startswith(DEMO):
            return key
        return formats.join_part(self.path_of(key), self._locate(key)[1])

    def describe(self, key: str) -> describe.Description:
        """Describe a data set; the answer is kept until its file changes."""
        return described(self.data_of(key))

    def can_be_prepared(self, key: str) -> bool:
        """Tell whether a recipe can be applied: not to what was written for training from the disk."""
        return key.startswith(DEMO) or not _is_ondisk(self.path_of(key))

    def look(self, key: str, recipe: Recipe) -> Look:
        """Look at a data set as a recipe leaves it, in a process of its own."""
        data = self.data_of(key)
        return self.looks.look(Asked(data, _stamp(data), recipe))

    def prepared(self, key: str, recipe: Recipe) -> describe.Description:
        """Describe a data set as a recipe leaves it.

        Raises
        ------
        DataError
            If it cannot be opened, or the recipe cannot be done.
        """
        if not recipe.steps:
            return self.describe(key)
        seen = self.look(key, recipe)
        if seen.problem:
            raise DataError(f"{seen.problem}. Change the recipe on the Data page")
        return seen.description

    def refused(self, key: str, recipe: Recipe) -> list[Finding]:
        """Return what is wrong with cells and features that training would refuse, as the recipe leaves them."""
        if not self.can_be_prepared(key):
            return []  # they were checked when it was written
        return [f for f in self.look(key, recipe).findings if f.code in REFUSED]

    def check_covariates(
        self, key: str, recipe: Recipe, categorical: Sequence[str], continuous: Sequence[str]
    ) -> list[Finding]:
        """Say what is wrong with columns of cells as covariates, as the recipe leaves them."""
        data = self.data_of(key)
        if not self.can_be_prepared(key):
            return []  # they were checked when it was written
        obs = open_backed(data).obs
        if recipe.steps:
            obs = obs.iloc[self.look(key, recipe).rows]
        known = [c for c in (*categorical, *continuous) if c in obs]
        return list(
            check_covariates(obs, [c for c in categorical if c in known], [c for c in continuous if c in known])
        )


def label_of(key: str) -> str:
    """Return a data set's name for people."""
    return key.removeprefix(DEMO) if key.startswith(DEMO) else key.partition("/")[2]


def _stamp(data: str) -> tuple[int, int]:
    return (0, 0) if data.startswith(DEMO) else formats.stamp(formats.split_part(data)[0])


def described(data: str) -> describe.Description:
    """Describe data as a job names them; the answer is kept until their file changes."""
    return _describe(data, _stamp(data))


@functools.lru_cache(maxsize=32)
def _describe(data: str, stamp: tuple[int, int]) -> describe.Description:
    if data.startswith(DEMO) or not _is_ondisk(Path(data)):
        return describe.describe(open_backed(data))
    dataset = on_disk.OnDiskDataset(data)
    written = dataset.manifest["options"]
    told = ", ".join(f"{key}={value!r}" for key, value in written.items() if value is not None)
    return dataclasses.replace(
        describe.describe(dataset.table()),
        layers=(describe.Layer(written["counts_layer"], ""),),  # its counts were checked when it was written
        source=f"Written for training from the disk, for a model of {told}",
    )


@functools.lru_cache(maxsize=1024)
def _parts(path: Path, modified: int, size: int) -> tuple[str | None, ...]:
    """Name the data sets of a file; one that is damaged is listed too, and says so when it is opened."""
    if path.suffix == ".h5ad" or _is_ondisk(path):
        return (None,)
    try:
        return tuple(formats.contents(path).names()) or (None,)
    except DataError:
        if path.suffix in (".h5", ".hdf5"):  # as many other things are
            raise
        return (None,)


def _data_below(root: Path) -> Iterator[Path]:
    """Yield files and folders that may be data, in order; links to folders are not followed."""
    if not root.is_dir():
        return
    if formats.is_data(root) or _is_ondisk(root):
        yield root
        return
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.is_symlink():
                with contextlib.suppress(OSError):  # not ours to read
                    yield from _data_below(path)
        elif formats.is_data(path):
            yield path


def _is_ondisk(path: Path) -> bool:
    return (path / on_disk.MANIFEST).is_file()


def _is_inside(path: Path, root: Path) -> bool:
    """Tell whether something lies below a folder, links resolved; those that lead in a circle lie nowhere."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        return False


def _links(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:  # which tells links without asking for each
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(Path(entry.path))
