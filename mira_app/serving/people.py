"""Who somebody is, and what they may do. Asked anew for every action, so that a change of role holds at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mira_core.errors import MiraError

from .accounts import NAME, ROLES, Accounts

EVERYONE = "*"


class AccessError(MiraError):
    """Somebody asked for what their role, or the owner of something, does not let them do."""


@dataclass(frozen=True)
class Person:
    """Somebody who uses the dashboard.

    Attributes
    ----------
    name
        Empty: whoever has the server to themselves, without accounts.
    role
        One of `mira_app.serving.accounts.ROLES`; empty: somebody who may not come in.
    """

    name: str = ""
    role: str = "admin"

    def may(self, role: str) -> bool:
        """Tell whether they may do what somebody of this role may."""
        return self.role in ROLES[ROLES.index(role) :]

    def owns(self, owner: str) -> bool:
        """Tell whether what belongs to `owner` is theirs to change; an admin may change all."""
        return self.may("admin") or (self.may("user") and bool(self.name) and self.name == owner)

    def sees(self, owner: str, shared_with: Collection[str] = ()) -> bool:
        """Tell whether they see what belongs to `owner`, who has shared it with these."""
        if not self.may("viewer"):
            return False
        mine = bool(self.name) and self.name == owner
        return mine or self.may("admin") or EVERYONE in shared_with or self.name in shared_with

    def must_be(self, role: str) -> None:
        """Do nothing if they may do what somebody of this role may.

        Raises
        ------
        AccessError
            If not.
        """
        if not self.may(role):
            can = {"viewer": "look but change nothing", "user": "run jobs but not manage the server"}
            told = f"your role is {self.role}, which can {can[self.role]}" if self.role else "you may not come in"
            raise AccessError(f"{told}. Who keeps this server can change that: this needs the role {role}")

    def must_own(self, owner: str) -> None:
        """Do nothing if what belongs to `owner` is theirs to change.

        Raises
        ------
        AccessError
            If not.
        """
        self.must_be("user")
        if not self.owns(owner):
            raise AccessError(f"this belongs to {owner or 'nobody'}, who alone can change it, as admins can")

    @property
    def folder(self) -> str:
        """What a folder of theirs is called; empty for who has no name."""
        if not self.name or NAME.fullmatch(self.name):
            return self.name
        return "_" + hashlib.sha256(self.name.encode()).hexdigest()[:16]  # names that OAuth tells may hold anything


ALONE = Person()
Who = Callable[[], Person]


class People:
    """Who may come in, and as what.

    Parameters
    ----------
    accounts
        Where names have roles; None: by the lists that follow.
    admins, members, viewers
        Of those whom somebody else has let in (OAuth, or the login of ``panel serve``). A pattern such as
        ``*@lab.org`` means many. Without members everyone who has been let in is a user.
    alone
        Whether whoever comes in is one and the same, as with a token or without a login: names count for nothing.
    """

    def __init__(
        self, accounts: Accounts | None = None, admins: Iterable[str] = (), members: Iterable[str] = (),
        viewers: Iterable[str] = (), *, alone: bool = False,
    ) -> None:  # fmt: skip
        self.accounts, self.alone = accounts, alone
        self.listed = any((admins, members, viewers))
        self.lists = {"admin": tuple(admins), "viewer": tuple(viewers), "user": tuple(members) or (EVERYONE,)}

    def person(self, name: str | None) -> Person:
        """Return who has this name; None: nothing proves one. Where nothing tells people apart it is `ALONE`."""
        if self.alone:
            return ALONE
        if self.accounts is not None:
            account = self.accounts.get(name or "")
            return Person(account.name, account.role) if account else Person(name or "", "")
        if not name:
            return Person("", "") if self.listed else ALONE
        for named in (True, False):  # who is named counts before who is meant by a pattern
            for role, patterns in self.lists.items():
                if any(name == p if named else fnmatchcase(name, p) for p in patterns):
                    return Person(name, role)
        return Person(name, "")

    def who(self, name: str | None) -> Who:
        """Return who has this name, to be asked at each action."""
        return lambda: self.person(name)
