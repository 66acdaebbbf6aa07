"""Readers of a training's records."""

from __future__ import annotations

from typing import Protocol

from ..records import Record


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
