"""Where studies are kept: Optuna's storages, by URL.

====================================  ============================================================================
``sqlite:///FILE``                    one file; up to 5 processes of one machine
``postgresql://...``, ``mysql://...``  a database server; many processes and machines
``redis://HOST:PORT``, `Redis`        a Redis server; many processes and machines. Its data are unpickled, so the
                                      server must be trusted
``journal:///FILE``                   a file to which everything is appended; a few processes, also over a network
                                      drive
====================================  ============================================================================
"""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import journal

from ..errors import OptionError, TuningError

SQLITE_JOBS = 5
PATIENCE = 60.0  # seconds for which a storage may be away
T = TypeVar("T")


@dataclass(frozen=True)
class Redis:
    """A Redis server as the storage of a study, for many concurrent trials.

    Its snapshots are unpickled by Optuna: use a server that you trust.

    Parameters
    ----------
    url
        Of the server.
    """

    url: str = "redis://localhost:6379"

    def __str__(self) -> str:
        return self.url


Storage = str | Redis | optuna.storages.BaseStorage


def url_of(storage: Storage) -> str | None:
    """Return the URL by which another process opens the storage; None if only this one can."""
    return None if isinstance(storage, optuna.storages.BaseStorage) else str(storage)


def check_jobs(storage: Storage, n_jobs: int) -> None:
    """Raise if a storage is not for so many concurrent trials.

    Raises
    ------
    OptionError
    """
    url = url_of(storage)
    if url is None and n_jobs > 1:
        raise OptionError(
            f"n_jobs={n_jobs} needs a storage that other processes can open: give its URL, such as "
            "'sqlite:///mira-tuning.db', or mira.topics.Redis()"
        )
    if url is not None and url.startswith("sqlite") and n_jobs > SQLITE_JOBS:
        raise OptionError(
            f"an SQLite storage can handle up to {SQLITE_JOBS} concurrent trials, and n_jobs is {n_jobs}. For more, "
            "start a Redis server and give storage=mira.topics.Redis(), or give the URL of a PostgreSQL or MySQL "
            "database"
        )


def open_storage(storage: Storage) -> optuna.storages.BaseStorage:
    """Open a storage.

    Raises
    ------
    TuningError
        If there is none, or its driver is not installed.
    """
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    url = str(storage)
    try:
        if url.startswith(("redis://", "rediss://", "unix://")):
            with warnings.catch_warnings():  # Optuna calls it experimental; the document of this library asks for it
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                opened = optuna.storages.JournalStorage(journal.JournalRedisBackend(url))
            opened.get_all_studies()
            return opened
        if url.startswith("journal:///"):
            path = Path(url.removeprefix("journal:///"))
            path.parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
        if url.startswith("sqlite:///"):
            _prepare_sqlite(Path(url.removeprefix("sqlite:///")))
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": PATIENCE}})
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except Exception as problem:
        raise TuningError(f"the storage {without_password(url)} cannot be opened: {problem}") from problem


def _prepare_sqlite(path: Path) -> None:
    """Let readers and a writer not wait for each other; the file remembers it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path, timeout=PATIENCE) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def without_password(url: str) -> str:
    """Return a storage's URL as people may see it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def patiently(action: Callable[[], T], patience: float = PATIENCE) -> T:
    """Do something with a storage, and again while it is away.

    Raises
    ------
    TuningError
        If it stays away.
    """
    began, pause = time.monotonic(), 0.1
    while True:
        try:
            return action()
        except Exception as problem:
            if not _is_away(problem):
                raise
            if time.monotonic() - began > patience:
                raise TuningError(
                    f"the storage of the study has not answered for {patience:.0f} seconds ({problem}). What was "
                    "completed is kept there; call fit again when it is back"
                ) from problem
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def _is_away(problem: BaseException) -> bool:
    """Whether this is what drivers raise where a server is gone or a file is locked."""
    kinds: list[Any] = [optuna.exceptions.StorageInternalError, ConnectionError, TimeoutError]
    chain: BaseException | None = problem
    while chain is not None:
        names = {c.__name__ for c in type(chain).__mro__}
        if isinstance(chain, tuple(kinds)) or names & {"OperationalError", "InterfaceError", "RedisError"}:
            return True
        chain = chain.__cause__
    return False
