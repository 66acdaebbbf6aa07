"""What an inspection says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..steps import Step

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """Something about the data that whoever models it should know.

    Attributes
    ----------
    code
        What it is, in one word for programs, such as ``"empty_cells"``.
    severity
        ``"error"``: training would refuse the data, or fit something else than was meant. ``"warning"``: likely to
        harm. ``"info"``: good to know.
    title
        The finding in one line.
    what
        The same with its numbers.
    why
        Why it matters for topic models.
    fix
        What to do.
    remedy
        A step of a recipe that mends it, or None.
    column
        The column of ``obs`` or ``var`` it is about, or None.
    """

    code: str
    severity: Severity
    title: str
    what: str
    why: str
    fix: str
    remedy: Step | None = None
    column: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "remedy": self.remedy.to_dict() if self.remedy is not None else None}

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.title}", f"  {self.what}", f"  Why: {self.why}", f"  Do: {self.fix}"]
        if self.remedy is not None:
            lines.append(f"  Step: {self.remedy}")
        return "\n".join(lines)


def percent(n: float, of: float) -> str:
    """Say a share, such as ``4.5 %``."""
    share = 100 * n / max(1, of)
    if share and share < 0.1:
        return "under 0.1 %"
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %"


def some(n: int, of: int, what: str) -> str:
    """Say how many of how many, such as ``12 of 700 cells (1.7 %)``."""
    return f"{n:,} of {of:,} {what} ({percent(n, of)})"
