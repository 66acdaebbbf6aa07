"""Where the dashboard finds data and keeps jobs; the same for `mira serve` and `panel serve mira_app`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .serving import configuration
from .serving.accounts import Accounts
from .serving.people import People, Person


@functools.cache
def people() -> People:
    """Return who may come in, as this process's environment says."""
    return Settings.from_environment().people()


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
    personal
        Below it each person has a folder of data of their own, named as they are.
    login
        How people come in, one of `mira_app.serving.configuration.LOGINS`; empty: Panel's own command says.
    users
        File of accounts.
    admins, members, viewers
        Names, or patterns of them, of those whom somebody else than the accounts lets in.
    jobs, jobs_per_person
        How many may run at once, and of one person; 0: as many as fit the machine, and as may at once.
    quota
        Bytes that a person's runs and uploads may take; 0: any.
    dask
        Scheduler of a dask.distributed cluster that runs the jobs; empty: this machine does.
    """

    data: tuple[Path, ...] = ()
    workspace: Path = field(default_factory=lambda: Path("mira-workspace").resolve())
    demo: bool = False
    upload_limit: int = 20 * 10**9
    storage_url: str = ""
    personal: Path | None = None
    login: str = ""
    users: Path | None = None
    admins: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    viewers: tuple[str, ...] = ()
    jobs: int = 0
    jobs_per_person: int = 0
    quota: int = 0
    dask: str = ""

    @property
    def storage(self) -> str:
        """Where studies are kept."""
        return self.storage_url or f"sqlite:///{self.workspace / 'studies.db'}"

    @property
    def uploads(self) -> Path:
        """Where uploaded files are."""
        return self.workspace / "uploads"

    def folders_of(self, person: Person) -> tuple[Path, ...]:
        """Return each folder whose files somebody may open: the data folders, their own, and that of the uploads."""
        person.must_be("viewer")
        own = (self.personal / person.folder,) if self.personal is not None and person.folder else ()
        return (*self.data, *own, self.uploads if person.may("admin") else self.uploads / person.folder)

    def people(self) -> People:
        """Return who may come in."""
        accounts = Accounts(self.users) if self.users is not None and self.login in ("", "password") else None
        return People(accounts, self.admins, self.members, self.viewers, alone=self.login in ("none", "token"))

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Settings:
        """Take what `mira_app.serving.configuration` resolved."""
        return cls(
            told["data"], told["workspace"], told["demo"], int(told["upload_gb"] * 1e9), told["storage"],
            told["personal"], told["login"], told["users"], told["admins"], told["members"], told["viewers"],
            told["jobs"], told["jobs_per_person"], int(told["quota_gb"] * 1e9), told["dask"],
        )  # fmt: skip

    @classmethod
    def from_environment(cls) -> Settings:
        """Read MIRA_DATA (folders, as in PATH), MIRA_WORKSPACE, MIRA_STORAGE and so on, and the file of MIRA_CONFIG."""
        return cls.of(configuration.resolve(None))
