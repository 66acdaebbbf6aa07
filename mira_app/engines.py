"""What runs jobs: processes of this machine, or a dask.distributed cluster."""

from __future__ import annotations

import abc
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mira_core import processes, starting
from mira_core.environment import may_have_gpu
from mira_core.errors import JobError

# How much trainings give way to the server. At 10, seven of them took 1.4 of two cores while people waited for it.
NICE = "15"


class Engine(abc.ABC):
    """Runs ``python -m mira_core.run FOLDER`` somewhere that sees the workspace."""

    is_local: bool

    @abc.abstractmethod
    def n_devices(self) -> int:
        """Return how many GPUs there are for jobs, 0 if none, or if it is not ours to share them out."""

    @abc.abstractmethod
    def start(self, key: str, folder: Path, devices: tuple[int, ...], gives_way: bool) -> None:
        """Start a job, which must outlive this server.

        Parameters
        ----------
        key, folder
            Of the job.
        devices
            Numbers of the GPUs that are its own; none: all that there are.
        gives_way
            Whether the server comes first, where they share a processor.

        Raises
        ------
        JobError, OSError
            If it cannot be.
        """

    @abc.abstractmethod
    def ended(self, key: str) -> int | None:
        """Return the status of a job's process that this server started and that has ended; else None."""

    @abc.abstractmethod
    def knows(self, key: str) -> bool:
        """Tell whether this server started the job."""


class LocalEngine(Engine):
    """Processes of this machine."""

    is_local = True

    def __init__(self) -> None:
        self._started: dict[str, starting.Process] = {}
        self._n: int | None = None

    def n_devices(self) -> int:
        """Count the GPUs that torch can use, in a process of its own, as that takes torch and memory of each."""
        if self._n is None:
            self._n = _count() if may_have_gpu() else 0
        return self._n

    def start(self, key: str, folder: Path, devices: tuple[int, ...], gives_way: bool) -> None:
        """Start a process, in a session of its own."""
        environment = {"MIRA_NICE": NICE} if gives_way else {}
        if devices:
            visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[d] if visible else str(d) for d in devices)
        starting.shared().prepare()
        with open(folder / "log.txt", "ab") as log, open(os.devnull, "rb") as nothing:
            self._started[key] = starting.shared().start("mira_core.run", [str(folder)], nothing, log, log, environment)

    def ended(self, key: str) -> int | None:
        """Collect a process that has ended."""
        process = self._started.get(key)
        status = None if process is None else process.poll()
        if status is not None:
            self._started.pop(key, None)
        return status

    def knows(self, key: str) -> bool:
        """Tell whether it was started, and not collected yet."""
        return key in self._started


class DaskEngine(Engine):
    """Workers of a dask.distributed cluster, which see the workspace and the data by the same paths.

    Parameters
    ----------
    address
        Of the scheduler, such as ``tcp://HOST:8786``, or the file that it wrote (``dask scheduler --scheduler-file``).
    """

    is_local = False

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Any = None
        self._started: dict[str, Any] = {}

    def n_devices(self) -> int:
        """Return 0: each worker has its own."""
        return 0

    def start(self, key: str, folder: Path, devices: tuple[int, ...], gives_way: bool) -> None:
        """Submit a job; it stays submitted when this server ends."""
        from distributed import fire_and_forget

        future = self._connected().submit(
            run_on_worker, str(folder), key=f"mira-{key}-{os.urandom(4).hex()}", pure=False
        )
        fire_and_forget(future)
        self._started[key] = future

    def ended(self, key: str) -> int | None:
        """Return its status; that of one that was lost with its worker, too often for dask to try again, is 1."""
        future = self._started.get(key)
        if future is None or not future.done():
            return None
        self._started.pop(key)
        with contextlib.suppress(Exception):
            return int(future.result(timeout=10))
        return 1

    def knows(self, key: str) -> bool:
        """Tell whether it was submitted, and not collected yet."""
        return key in self._started

    def _connected(self) -> Any:
        try:
            from distributed import Client
        except ImportError:
            raise JobError("--dask needs dask.distributed: pip install distributed") from None
        if self._client is None or self._client.status != "running":
            file = Path(self.address)
            how = {"scheduler_file": str(file)} if file.is_file() else {"address": self.address}
            try:
                self._client = Client(**how, timeout="10s", set_as_default=False, name="mira")
            except (OSError, ValueError) as problem:
                raise JobError(f"the dask scheduler at {self.address} does not answer: {problem}") from None
        return self._client


def run_on_worker(folder: str) -> int:
    """Run a job as a process of a worker's machine; called there."""
    environment = {**os.environ, **processes.ENVIRONMENT}
    with open(Path(folder) / "log.txt", "ab") as log:
        return subprocess.run(
            [sys.executable, "-m", "mira_core.run", folder], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment, start_new_session=True, check=False,
        ).returncode  # fmt: skip


def of(dask: str) -> Engine:
    """Return the engine that a server's setting asks for."""
    return DaskEngine(dask) if dask else LocalEngine()


def _count() -> int:
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0
