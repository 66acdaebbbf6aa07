"""How long something took, and how busy the device was meanwhile."""

from __future__ import annotations

import math
import time

import torch


class Clock:
    """Starts when it is made.

    Parameters
    ----------
    device
        Whose use is told.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def passed(self) -> tuple[float, float]:
        """Return the seconds since the start, and the share of the device that was used, NaN if nobody knows.

        Of a CPU: processor time over the time of its threads. Of a GPU: what its driver says of the last moments.
        """
        seconds = time.perf_counter() - self.wall
        if self.device.type == "cpu":
            return seconds, min(1.0, (time.process_time() - self.processor) / (seconds * torch.get_num_threads()))
        try:
            return seconds, torch.cuda.utilization(self.device) / 100
        except Exception:  # no driver library, or a device that is shared out and does not tell
            return seconds, math.nan
