"""Readers of a training's records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from ..errors import OptionError
from ..records import EpochRecord, Record


class RecordWriter(Protocol):
    """What `fit` accepts as a writer."""

    def write(self, record: Record) -> None:
        """Take one record."""


class Writer:
    """Keeps every record in memory.

    Attributes
    ----------
    records
        All records, in order.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        """Append one record."""
        self.records.append(record)


class TensorBoardWriter:
    """Writes records for TensorBoard: ``step/loss``, ..., and ``epoch/loss``, ...

    Parameters
    ----------
    log_dir
        Folder of the run, for ``tensorboard --logdir``; or anything with ``add_scalar``, such as a
        ``torch.utils.tensorboard.SummaryWriter`` that is open already.
    log_every
        Steps between two that are written. Epochs are all written.
    """

    def __init__(self, log_dir: str | Path | Any, log_every: int = 10) -> None:
        self.log_every = log_every
        self.summary: Any = log_dir
        if hasattr(log_dir, "add_scalar"):
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise OptionError("writing for TensorBoard needs the package tensorboard; install it with pip") from None
        self.summary = SummaryWriter(str(log_dir))

    def write(self, record: Record) -> None:
        """Write the numbers of one record."""
        is_epoch = isinstance(record, EpochRecord)
        if not is_epoch and record.step % self.log_every:
            return
        prefix = "epoch" if is_epoch else "step"
        for name, value in dataclasses.asdict(record).items():
            if name not in ("epoch", "step") and value is not None:
                self.summary.add_scalar(f"{prefix}/{name}", value, record.epoch if is_epoch else record.step)

    def close(self) -> None:
        """Flush and close."""
        self.summary.close()


def as_writer(writer: Any) -> RecordWriter | None:
    """Take a writer of records, something with ``add_scalar``, or None."""
    if writer is None or hasattr(writer, "write"):
        return writer
    if hasattr(writer, "add_scalar"):
        return TensorBoardWriter(writer)
    raise OptionError(
        f"writer must have write(record), such as mira.topics.Writer, or add_scalar, such as TensorBoard's "
        f"SummaryWriter; got {type(writer).__name__}"
    )
