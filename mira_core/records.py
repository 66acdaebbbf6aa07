"""What training tells whoever listens: plain, picklable, and one JSON object each."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar


class _Record:
    """Shared ways of the records: to and from one JSON object."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields with ``kind``; numbers that JSON cannot hold become None."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = None
        return {"kind": self.kind, **values}


@dataclasses.dataclass(frozen=True)
class StepRecord(_Record):
    """One step of training. Losses are in nats per cell of this minibatch.

    Attributes
    ----------
    step, epoch
        Counted from 1.
    loss
        What the optimiser saw (KL terms weighted by `kl_weight`), per cell.
    distortion
        Negative expected log likelihood, with the divergences that are not the topics'.
    rate
        KL divergence of the topics, unweighted.
    kl_weight
        The annealed multiplier of the KL terms.
    learning_rate, momentum
        Of the optimiser at this step.
    dependence, dependence_weight
        CODAL's estimate of the dependence of technical on biological signals, and its multiplier; 0 in models
        without covariates.
    """

    kind: ClassVar[str] = "step"
    step: int
    epoch: int
    loss: float
    distortion: float
    rate: float
    kl_weight: float
    learning_rate: float
    momentum: float
    dependence: float = 0.0
    dependence_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class EpochRecord(_Record):
    """One pass over the cells: means of its steps, and how fast it went.

    Attributes
    ----------
    epoch, step
        Epochs and steps done so far.
    loss, distortion, rate, kl_weight, learning_rate, momentum, dependence, dependence_weight
        As in `StepRecord`; means over the epoch, the last value for the schedules.
    seconds
        Wall time of this epoch.
    cells_per_second
        Cells seen over wall time.
    waiting
        Share of the epoch's time in which the model waited for minibatches.
    device_use
        Share of the device that was used: of a CPU the time of its threads, of a GPU what its driver tells; NaN if
        nobody knows.
    held_out_loss, held_out_distortion, held_out_rate
        Of cells that the model is not trained on, after this epoch: distortion, rate, and their sum, the negative
        ELBO; None if there are none.
    """

    kind: ClassVar[str] = "epoch"
    epoch: int
    step: int
    loss: float
    distortion: float
    rate: float
    kl_weight: float
    learning_rate: float
    momentum: float
    seconds: float
    cells_per_second: float
    waiting: float
    dependence: float = 0.0
    dependence_weight: float = 0.0
    device_use: float = math.nan
    held_out_loss: float | None = None
    held_out_distortion: float | None = None
    held_out_rate: float | None = None

    def progress(self, device: str) -> str:
        """Say in a line how it goes: the loss, how fast, how much of the time went into waiting, and for what."""
        use = "" if math.isnan(self.device_use) else f" {self.device_use:.0%} used"
        held_out = "" if self.held_out_loss is None else f"held out {self.held_out_loss:.1f}, "
        return (
            f"loss {self.loss:.1f} nats/cell, {held_out}{self.cells_per_second:,.0f} cells/s, "
            f"{self.waiting:.0%} waiting for data, {device}{use}"
        )


@dataclasses.dataclass(frozen=True)
class RangeRecord(_Record):
    """One learning rate of a range test.

    Attributes
    ----------
    step
        Which of the rates, counted from 1.
    learning_rate
        What was tried.
    loss
        Mean of its minibatches, in nats per cell and feature.
    """

    kind: ClassVar[str] = "range"
    step: int
    learning_rate: float
    loss: float


Record = StepRecord | EpochRecord

_KINDS: dict[str, type[_Record]] = {c.kind: c for c in (StepRecord, EpochRecord, RangeRecord)}


def from_dict(values: dict[str, Any]) -> Record | RangeRecord:
    """Build the record that `to_dict` wrote; None becomes NaN, except where there may be no number at all."""
    fields = dict(values)
    cls = _KINDS[fields.pop("kind")]
    return cls(**{k: math.nan if v is None and getattr(cls, k, 0) is not None else v for k, v in fields.items()})  # type: ignore[return-value]


def tables(found: Any) -> dict[str, dict[str, list[Any]]]:
    """Return tables that JSON held, columns as lists by name.

    Raises
    ------
    ValueError
        If they are something else, or a table's columns differ in length.
    """
    whole = isinstance(found, dict) and all(
        isinstance(table, dict)
        and all(isinstance(column, list) for column in table.values())
        and len({len(column) for column in table.values()}) <= 1
        for table in found.values()
    )
    if not whole:
        raise ValueError("its tables must be columns of one length, by name")
    return found
