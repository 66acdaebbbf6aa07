"""Where the dashboard finds data and keeps jobs; the same for `mira serve` and `panel serve mira_app`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Folders of the dashboard.

    Attributes
    ----------
    data
        Folders whose files may be opened, and nothing outside them.
    workspace
        Where jobs and their results are kept.
    demo
        Whether to open the demonstration data at the start.
    """

    data: tuple[Path, ...] = ()
    workspace: Path = field(default_factory=lambda: Path("mira-workspace").resolve())
    demo: bool = False

    @classmethod
    def from_environment(cls) -> Settings:
        """Read MIRA_DATA (folders, separated as in PATH), MIRA_WORKSPACE and MIRA_DEMO."""
        folders = [Path(p).resolve() for p in os.environ.get("MIRA_DATA", "").split(os.pathsep) if p]
        workspace = Path(os.environ.get("MIRA_WORKSPACE", "mira-workspace")).resolve()
        return cls(tuple(folders), workspace, os.environ.get("MIRA_DEMO", "") == "1")

    def to_environment(self) -> None:
        """Set the variables that `from_environment` reads."""
        os.environ["MIRA_DATA"] = os.pathsep.join(map(str, self.data))
        os.environ["MIRA_WORKSPACE"] = str(self.workspace)
        os.environ["MIRA_DEMO"] = "1" if self.demo else ""
