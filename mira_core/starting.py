"""Processes of ours that begin at once, as they are split off from one that has loaded what they need.

To load torch, anndata, scanpy and UMAP takes ten seconds of a processor, longer than many a training and than any look
at data. A dashboard starts such processes all day; so one process, ``python -m mira_core.starting``, loads all that
once, and forks. What is started runs on its own: it outlives that process, and the server.

Where processes cannot be forked safely (anything but Linux), and until the one that forks is ready, they are started
as Python starts them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple, Protocol

from . import processes

# What looks, estimates, trainings and exports load, the slowest last: what has been loaded when the first is asked for
# is of use to it.
LOADED = ("mira_core.data.look", "mira_core.run", "mira_core.running.fit", "mira_core.estimate", "scanpy")
LONGEST_MESSAGE = 2**16
ANSWER = 5.0  # seconds in which it forks; a job that it starts later than that finds itself begun already


class Done(NamedTuple):
    """How a process ended: its status as `subprocess` tells it, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Process(Protocol):
    """What is known of a process that was started."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Return its status, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its status once it has ended; `subprocess.TimeoutExpired` after so many seconds."""


class Starter:
    """Starts modules of ours as processes: ``python -m MODULE ARGUMENTS``.

    Safe in threads. Nothing is loaded before `prepare`.

    Parameters
    ----------
    name
        Shown in the list of processes behind the command, such as whose server this is.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._lock = threading.Lock()
        self._forks: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False

    def prepare(self) -> None:
        """Begin to load, if it has not begun."""
        with self._lock:
            self._begin()

    def start(
        self, module: str, arguments: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes],
        stderr: int | IO[bytes], environment: Mapping[str, str] | None = None,
    ) -> Process:  # fmt: skip
        """Start a process in a session of its own.

        Parameters
        ----------
        module, arguments
            Of ours, with a function ``main(argv)`` that returns the status; and its command line.
        stdin, stdout, stderr
            Files or descriptors; they may be closed once this has returned.
        environment
            Variables that are set for it besides.
        """
        more = dict(environment or {})
        descriptors = [f if isinstance(f, int) else f.fileno() for f in (stdin, stdout, stderr)]
        with self._lock:
            if self._is_ready():
                with contextlib.suppress(OSError):
                    return self._fork(module, arguments, descriptors, more)
                self._end()  # it was killed, for want of memory perhaps
                self._begin()
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=descriptors[0], stdout=descriptors[1],
            stderr=descriptors[2], start_new_session=True, env={**_environment(), **more},
        )  # fmt: skip

    def run(self, module: str, arguments: Sequence[str], given: str = "", timeout: float | None = None) -> Done:
        """Start a process, give it its standard input, and wait for its end.

        Raises
        ------
        TimeoutError
            If it takes longer than so many seconds; it is killed.
        """
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(given.encode())
            files[0].seek(0)
            process = self.start(module, arguments, files[0], files[1], files[2])
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                process.wait()
                raise TimeoutError(f"{module} took longer than {timeout:.0f} s") from None
            for f in files[1:]:
                f.seek(0)
            return Done(status, *(f.read().decode(errors="replace") for f in files[1:]))

    def close(self) -> None:
        """End the process that forks. What it started runs on."""
        with self._lock:
            self._end()

    # --- the process that forks -------------------------------------------------------------------

    def _begin(self) -> None:
        if self._forks is not None or not sys.platform.startswith("linux"):
            return
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "mira_core.starting", str(there.fileno()), *([self.name] if self.name else [])]
        self._forks = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[there.fileno()], start_new_session=True, env=_environment()
        )
        there.close()
        self._socket = here
        atexit.register(self.close)

    def _is_ready(self) -> bool:
        """Whether all has been loaded: it says so once."""
        if not self._ready and self._socket is not None:
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                self._ready = bool(self._socket.recv(1))
        return self._ready

    def _fork(
        self, module: str, arguments: Sequence[str], descriptors: list[int], environment: Mapping[str, str]
    ) -> Process:
        assert self._socket is not None
        ended, tells = os.pipe()
        try:
            self._socket.settimeout(ANSWER)
            message = json.dumps([module, list(arguments), environment]).encode()
            socket.send_fds(self._socket, [message], [*descriptors, tells])
            told = self._socket.recv(64)
        except OSError:
            os.close(ended)
            raise
        finally:
            os.close(tells)
        if not told:
            os.close(ended)
            raise ConnectionError("the process that forks has ended")
        return _Forked(int(told), ended)

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()  # at which it ends
        if self._forks is not None:
            atexit.unregister(self.close)
            self._forks.kill()
            self._forks.wait()
        self._socket, self._forks, self._ready = None, None, False


class _Forked:
    """A process that was forked for us: it tells its status through a pipe, which closes with it."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self._ended: int | None = ended
        self._status = 0
        self._lock = threading.Lock()
        os.set_blocking(ended, False)

    def poll(self) -> int | None:
        with self._lock:
            if self._ended is None:
                return self._status
            try:
                told = os.read(self._ended, 16)
            except BlockingIOError:
                return None
            # Nothing is told by one that was killed, or died of the system.
            self._status = int(told) if told else -signal.SIGKILL
            os.close(self._ended)
            self._ended = None
            return self._status

    def wait(self, timeout: float | None = None) -> int:
        while (status := self.poll()) is None:
            told = select.poll()
            told.register(self._ended or 0)
            if not told.poll(None if timeout is None else 1000 * timeout) and timeout is not None:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return status


@functools.cache
def shared() -> Starter:
    """Return the one of this process."""
    return Starter(os.environ.get("MIRA_WORKSPACE", ""))


def _environment() -> Mapping[str, str]:
    return {**os.environ, **processes.ENVIRONMENT}


# --- in the process that forks ------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Load what is needed; then start what the socket asks for, until it closes."""
    number = (sys.argv[1:] if argv is None else argv)[0]
    asked = socket.socket(fileno=int(number))
    asked.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, meant for the server
    for name in LOADED:
        importlib.import_module(name)
    from .analysis.embedding import import_umap

    import_umap()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    gc.collect()
    gc.freeze()  # what is shared with those to come is not written to
    try:
        asked.send(b"!")
        while True:
            message, descriptors, _, _ = socket.recv_fds(asked, LONGEST_MESSAGE, 4)
            if not message:
                return 0
            pid = os.fork()
            if not pid:
                asked.close()
                module, arguments, environment = json.loads(message)
                _become(module, arguments, environment, descriptors)
            for d in descriptors:
                os.close(d)
            asked.send(str(pid).encode())
    except (ConnectionError, BrokenPipeError):
        return 0  # the server has gone


def _become(module: str, arguments: list[str], environment: dict[str, str], descriptors: list[int]) -> None:
    """Be the process that was asked for; never returns."""
    status = 1
    try:
        os.setsid()
        os.environ.update(environment)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        os.set_inheritable(descriptors[3], False)
        import numpy as np

        np.random.seed()  # noqa: NPY002 - as in a process of its own, no two draw the same
        sys.argv = [module, *arguments]
        status = importlib.import_module(module).main(arguments)
    except SystemExit as leaves:
        status = leaves.code if isinstance(leaves.code, int) else int(leaves.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(status, descriptors[3])


def _leave(status: int, tells: int) -> Any:
    for ending in (atexit._run_exitfuncs, logging.shutdown, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(Exception):
            ending()
    with contextlib.suppress(OSError):  # the server may have gone
        os.write(tells, str(status).encode())
    os._exit(status)


if __name__ == "__main__":
    raise SystemExit(main())
