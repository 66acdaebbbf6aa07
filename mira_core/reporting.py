"""How a running job tells where it stands, and hears that it is to stop."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from . import jobs
from .files import write_json

logger = logging.getLogger(__name__)

HEARTBEAT = 2.0  # seconds between two beats


class Reporter:
    """Keeps status.json true and the heart beating, from a thread of its own.

    Parameters
    ----------
    folder
        Of the job.
    status
        What is known of it already.
    """

    def __init__(self, folder: Path, status: jobs.Status) -> None:
        self.folder = folder
        self.status = dataclasses.replace(status, state="running", started=time.time())
        self._lock = threading.Lock()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> Reporter:
        self.update()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._quit.wait(HEARTBEAT):
            try:
                self.update()
            except OSError as problem:  # a full disk must not end the training
                logger.warning("the status cannot be written: %s", problem)

    def update(self, **changes: Any) -> None:
        """Change fields and write them."""
        with self._lock:
            status = dataclasses.replace(self.status, **changes)
            memory = psutil.Process().memory_info().rss
            self.status = dataclasses.replace(
                status, heartbeat=time.time(), memory=memory, device_memory=_reserved(status.device)
            )
            write_json(self.folder / "status.json", dataclasses.asdict(self.status))

    def progress(self, step: int, epoch: int = 0) -> None:
        """Note progress; the next beat writes it."""
        with self._lock:
            self.status = dataclasses.replace(self.status, step=step, epoch=epoch)


def _reserved(device: str) -> int:
    """Return the most bytes that were reserved on a GPU."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return int(torch.cuda.max_memory_reserved(device))


class Requests:
    """Hears that a job is to stop, while inside: by SIGTERM, SIGINT, or the file ``stop``.

    Signals are heard in the main thread only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked = threading.Event()
        self._before: dict[int, Any] = {}

    def stop(self) -> bool:
        """Whether somebody asked the job to stop."""
        return self._asked.is_set() or (self.folder / "stop").exists()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()

    def __enter__(self) -> Requests:
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self._before[s] = signal.signal(s, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
