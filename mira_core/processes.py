"""Processes that train: how to name one, and to tell whether it lives."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

SILENT_AFTER = 60.0  # seconds without a heartbeat, for processes whose life cannot be checked from here
# For the environment of a process that trains, before it loads torch. OpenMP's threads otherwise spin for long while
# they wait for each other; with as many busy processes as cores that made a step 4 to 20 times slower. Not to spin at
# all made a single training half as fast; a short spin costs either a third at most.
ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}


def this_process() -> dict[str, Any]:
    """Name this process so that it cannot be mistaken for a later one with the same pid."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
    }


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process of this host still runs: same pid and same start."""
    try:
        p = psutil.Process(int(process["pid"]))
        same = abs(p.create_time() - float(process["process_started"])) < 1.0
        return same and p.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


def this_user() -> str:
    """Name who runs this process, as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        user = str(os.getuid()) if hasattr(os, "getuid") else "?"
    return f"{user}@{socket.gethostname()}"
