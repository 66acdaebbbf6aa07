"""Real servers that tests start, and waiting for what other processes do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 3  # how many times slower than usual a machine may be, when it is shared


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that takes less than so many seconds, on a machine that is not slow."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.1)


def need(found: str | None, name: str) -> str:
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have {name}")
        pytest.skip(f"{name} is not installed")
    return found


def to_its_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread of its own: in that of the tests Playwright's loop runs, once a browser was used."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@contextlib.contextmanager
def bokeh_server(**told: Any) -> Iterator[Any]:
    """Run a Bokeh server of this process in a thread with a loop of its own."""
    from bokeh.server.server import Server  # which tests of the core do without

    begun, servers = threading.Event(), []

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        servers.append(server := Server(**{"applications": {}, "port": 0, **told}))
        server.start()
        server.io_loop.add_callback(begun.set)
        server.io_loop.start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert begun.wait(30)
    yield servers[0]
    servers[0].io_loop.add_callback(servers[0].io_loop.stop)
    thread.join(10)


class RedisServer:
    """A Redis that keeps what it was told, also when it is killed."""

    def __init__(self, folder: Path) -> None:
        self.program = need(shutil.which("redis-server"), "redis-server")
        self.folder, self.port = folder, free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"redis://localhost:{self.port}"

    def start(self) -> None:
        keep = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            [self.program, "--port", str(self.port), *keep], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self.answers, 20, "answer of Redis")

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", self.port), timeout=1) as s:
            s.sendall(b"PING\r\n")
            return s.recv(7) == b"+PONG\r\n"
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """Start a PostgreSQL of its own; give the URL of an empty database."""
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    programs = Path(need(found, "PostgreSQL")).resolve().parent
    port = free_port()
    run_as: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to be run by root
        user = pwd.getpwnam("postgres")
        for path in (folder, *list(folder.parents)[:3]):
            if path.owner() == "root" and path.stat().st_mode & 0o077 == 0:
                path.chmod(0o711)
        os.chown(folder, user.pw_uid, user.pw_gid)
        run_as = {"user": "postgres", "cwd": folder}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    data = folder / "data"
    subprocess.run([programs / "initdb", "-D", data, "-U", "mira", "-A", "trust"], check=True, **quiet, **run_as)
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "localhost"], **quiet, **run_as
    )
    ready = [programs / "pg_isready", "-h", "localhost", "-p", str(port)]
    wait_until(lambda: subprocess.run(ready, **quiet).returncode == 0, 30, "answer of PostgreSQL")
    yield f"postgresql+psycopg://mira@localhost:{port}/postgres"
    server.send_signal(signal.SIGINT)  # it does not wait for its clients
    server.wait(timeout=30)
