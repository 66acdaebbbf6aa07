"""A worker as a process, as the tuner starts it: ``python -m mira_core.tuning.process PAYLOAD ERROR DEVICE``."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..processes import is_alive

ORPHAN = 1.0  # seconds after which a worker notices that its tuner is gone


def _watch(tuner: Mapping[str, Any]) -> None:
    """End as if asked to, once the tuner is gone: whoever killed it wants an end of the tuning."""
    while is_alive(tuner):
        time.sleep(ORPHAN)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Run trials until none is wanted."""
    from ..errors import MiraError
    from .workers import GAVE_UP, run_worker

    # written by the tuner that started this process, in a folder that only its user can enter
    payload = pickle.loads(Path(sys.argv[1]).read_bytes())
    threading.Thread(target=_watch, args=(payload.pop("tuner"),), daemon=True).start()
    try:
        run_worker(payload, sys.argv[3] or None)
    except MiraError as problem:  # the tuner tells it
        Path(sys.argv[2]).write_text(str(problem))
        return GAVE_UP
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
