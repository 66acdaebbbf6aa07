"""A process that reads damaged files with little memory and little time, and tells what came of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from .damage import MARKER, Damage, do
from .targets import TARGETS, copy

MEMORY = 2**28  # bytes that readers are told to be free
MOST_TAKEN = 3 * MEMORY  # bytes that reading one small file may take at its peak
MOST_ADDRESSED = 2**33  # bytes of addresses besides those at the start
MOST_WORK = 10.0  # seconds of a processor that one file may take
PATIENCE = 120.0  # seconds, whoever else is busy


class Outcome(NamedTuple):
    """What came of a damaged file: ``opened``, ``refused``, ``lost`` or ``failed``, and what was said.

    ``lost``: libhdf5 crashed, or did not return, as it does on some damaged files
    (https://github.com/HDFGroup/hdf5/issues/1707). Nothing in its process can help that; this is why a dashboard looks
    at data in another one.
    """

    kind: str
    told: str = ""


class Child:
    """Reads one file after the other in a process of its own, and in another one if that is lost.

    Parameters
    ----------
    folder
        For whole files, and the copies that are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.n = folder, 0
        self._process: Any = None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._pipe.close()  # upon which it ends, unless it does not come to that
            self._process.join(5)
            self._process.kill()
            self._process.join()
            self._process = None

    def read(self, name: str, damages: list[Damage]) -> Outcome:
        """Damage a copy of a target's file and read it."""
        whole = self.folder / "whole" / name
        if not whole.exists():
            whole.parent.mkdir(exist_ok=True)
            TARGETS[name].write(whole)
        self.n += 1
        room = self.folder / str(self.n)  # a new one each time: HDF5 knows files by their place
        room.mkdir()
        try:
            copy(whole, room / name)
            do(damages[0], room / name)
            with contextlib.suppress(Exception):  # what is damaged may be too broken to be damaged again
                for damage in damages[1:]:
                    do(damage, room / name)
            outcome = self._ask(name, room / name)
            harmed = (room / MARKER).exists()
            return Outcome("failed", "a pickle was run") if harmed else outcome
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def _ask(self, name: str, path: Path) -> Outcome:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.folder / "trace"), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.recv()
        self._pipe.send((name, path))
        process, began = psutil.Process(self._process.pid), time.monotonic()
        before = sum(process.cpu_times()[:2])
        try:
            while not self._pipe.poll(0.5):
                if sum(process.cpu_times()[:2]) - before > MOST_WORK or time.monotonic() - began > PATIENCE:
                    os.kill(self._process.pid, signal.SIGABRT)  # it then tells where it is
                    break
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self.close()
        trace = (self.folder / "trace").read_text()
        innermost = next((line for line in trace.splitlines() if line.startswith("  File ")), "")
        kind = "lost" if "/h5py/" in innermost else "failed"
        return Outcome(kind, f"the process ended with {code}, or was ended after {MOST_WORK:.0f} s\n{trace[:3000]}")


def _serve(pipe: Connection, trace: Path) -> None:
    import faulthandler
    import logging
    import warnings

    from mira_core.data.formats import limits, zarr_files

    faulthandler.enable(open(trace, "w"), all_threads=False)  # noqa: SIM115 - open as long as the process lives
    warnings.simplefilter("ignore")
    logging.disable()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.fsync = lambda _: None  # what is written here need not last
    limits.available = zarr_files.available = lambda: MEMORY  # as of a small machine
    addressed = _status("VmSize") + MOST_ADDRESSED
    resource.setrlimit(resource.RLIMIT_AS, (addressed, addressed))
    pipe.send(None)
    while True:
        try:
            name, path = pipe.recv()
        except EOFError:
            return
        pipe.send(_read(name, path))


def _read(name: str, path: Path) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    before = _status("VmRSS")
    outcomes: list[Outcome] = []

    def read() -> None:
        outcomes.extend(map(_try, TARGETS[name].read(path)))

    outcomes.append(_try(read))  # what a reader itself does is to hold, too
    if failed := next((o for o in outcomes if o.kind == "failed"), None):
        return failed
    taken = _status("VmHWM") - before
    if taken > MOST_TAKEN:
        return Outcome("failed", f"it took {taken / 1e6:,.0f} MB")
    return outcomes[0]


def _try(attempt: Any) -> Outcome:
    from mira_core.errors import MiraError

    try:
        attempt()
    except MiraError as problem:
        cause: BaseException | None = problem
        while cause is not None:
            if isinstance(cause, MemoryError):
                return Outcome("failed", "".join(traceback.format_exception(problem)[-12:]))
            cause = cause.__cause__
        return Outcome("refused", str(problem))
    except BaseException as problem:
        return Outcome("failed", "".join(traceback.format_exception(problem)[-12:]))
    return Outcome("opened")


def _status(key: str) -> int:
    """Bytes, of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key + ":")))
