"""Where the dashboard finds data and keeps jobs; the same for `mira serve` and `panel serve mira_app`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import configuration


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
    upload_limit
        Greatest size of a file that is uploaded, in bytes; 0: nothing may be uploaded.
    storage_url
        Where studies are kept, as `mira_core.tuning.storage` opens it; empty: a file of the workspace.
    """

    data: tuple[Path, ...] = ()
    workspace: Path = field(default_factory=lambda: Path("mira-workspace").resolve())
    demo: bool = False
    upload_limit: int = 20 * 10**9
    storage_url: str = ""

    @property
    def storage(self) -> str:
        """Where studies are kept."""
        return self.storage_url or f"sqlite:///{self.workspace / 'studies.db'}"

    @property
    def uploads(self) -> Path:
        """Where uploaded files are."""
        return self.workspace / "uploads"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder whose files may be opened: the data folders, then that of the uploads."""
        return (*self.data, self.uploads)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Settings:
        """Take what `mira_app.configuration` resolved."""
        return cls(told["data"], told["workspace"], told["demo"], int(told["upload_gb"] * 1e9), told["storage"])

    @classmethod
    def from_environment(cls) -> Settings:
        """Read MIRA_DATA (folders, as in PATH), MIRA_WORKSPACE, MIRA_STORAGE and so on, and the file of MIRA_CONFIG."""
        return cls.of(configuration.resolve(None))

    def to_environment(self) -> None:
        """Set the variables that `from_environment` reads."""
        os.environ["MIRA_DATA"] = os.pathsep.join(map(str, self.data))
        os.environ["MIRA_WORKSPACE"] = str(self.workspace)
        os.environ["MIRA_DEMO"] = "1" if self.demo else ""
        os.environ["MIRA_STORAGE"] = self.storage_url
        os.environ["MIRA_UPLOAD_GB"] = str(self.upload_limit / 1e9)
