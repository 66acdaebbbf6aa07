"""Who may come in: names, roles and passwords, kept as hashes in a file that only its owner can read."""

from __future__ import annotations

import argparse
import base64
import getpass
import hashlib
import hmac
import re
import secrets
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mira_core.errors import MiraError, OptionError
from mira_core.files import read_json, write_json

FORMAT = 1
ROLES = ("viewer", "user", "admin")
NAME = re.compile(r"[A-Za-z0-9][\w.@+-]{0,63}")
SHORTEST = 8  # letters of a password
# RFC 7914; 16 MB and some 50 ms for each password that is tried.
COST = {"n": 2**14, "r": 8, "p": 1}
NOBODY = "scrypt$" + base64.b64encode(bytes(16)).decode() + "$" + base64.b64encode(bytes(32)).decode()


class AccountError(MiraError, ValueError):
    """The file of accounts is missing, damaged, open to others, or is asked for what it has not."""


@dataclass(frozen=True)
class Account:
    """Somebody who may come in.

    Attributes
    ----------
    name, role
        The role is one of `ROLES`: a viewer looks, a user runs jobs, an admin sees all and manages.
    """

    name: str
    role: str


class Accounts:
    """The accounts of a file, read again whenever it has changed.

    Parameters
    ----------
    path
        The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, dict[str, str]] = {}

    def all(self) -> list[Account]:
        """List the accounts by name.

        Raises
        ------
        AccountError
            If the file is damaged, or others can read it.
        """
        return [Account(name, told["role"]) for name, told in sorted(self._read().items())]

    def get(self, name: str) -> Account | None:
        """Return an account, None if there is none of this name."""
        told = self._read().get(name)
        return Account(name, told["role"]) if told else None

    def check(self, name: str, password: str) -> bool:
        """Tell whether this is somebody's password; it takes as long for a name that there is not."""
        kept = self._read().get(name, {}).get("password", NOBODY)
        _, salt, wanted = kept.split("$")
        same = hmac.compare_digest(_scrypt(password, base64.b64decode(salt)), base64.b64decode(wanted))
        return same and kept != NOBODY

    def set(self, name: str, password: str | None = None, role: str | None = None) -> Account:
        """Make an account, or change its password or role.

        Raises
        ------
        AccountError
            If the name, the password or the role will not do, or a new account has no password.
        """
        if not NAME.fullmatch(name):
            raise AccountError(
                f"a name must begin with a letter or digit and have at most 64 letters, digits and . _ @ + -; got "
                f"{name!r}"
            )
        if role is not None and role not in ROLES:
            raise AccountError(f"a role must be one of {', '.join(ROLES)}; got {role!r}")
        if password is not None and len(password) < SHORTEST:
            raise AccountError(f"a password must have at least {SHORTEST} letters; got {len(password)}")
        known = dict(self._read())
        if name not in known and password is None:
            raise AccountError(f"there is no account {name!r} yet; a new one needs a password")
        told = dict(known.get(name, {"role": "user"}))
        if role is not None:
            told["role"] = role
        if password is not None:
            salt = secrets.token_bytes(16)
            parts = (base64.b64encode(part).decode() for part in (salt, _scrypt(password, salt)))
            told["password"] = "$".join(("scrypt", *parts))
        self._write({**known, name: told})
        return Account(name, told["role"])

    def remove(self, name: str) -> None:
        """Remove an account; whoever is logged in with it is out at the next request.

        Raises
        ------
        AccountError
            If there is none of this name.
        """
        known = dict(self._read())
        if known.pop(name, None) is None:
            raise AccountError(f"there is no account {name!r} in {self.path}")
        self._write(known)

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            about = self.path.stat()
        except FileNotFoundError:
            self._stamp, self._known = None, {}
            return self._known
        stamp = about.st_mtime_ns, about.st_size
        if stamp == self._stamp:
            return self._known
        if stat.S_IMODE(about.st_mode) & 0o077:
            raise AccountError(
                f"{self.path} must be readable by its owner only, as it holds passwords' hashes; do: chmod 600 "
                f"{self.path}"
            )
        try:
            told = read_json(self.path)
            if told["format"] > FORMAT:
                raise AccountError(f"{self.path} was written by a newer version of mira; upgrade this one")
            known = {str(name): {"role": each["role"], "password": each["password"]}
                     for name, each in told["accounts"].items()}  # fmt: skip
            if any(each["role"] not in ROLES or each["password"].count("$") != 2 for each in known.values()):
                raise ValueError("a role or a hash is none")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise AccountError(f"{self.path} is no file of accounts: {problem!r}; restore it from a backup") from None
        self._stamp, self._known = stamp, known
        return known

    def _write(self, known: dict[str, dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600, exist_ok=True)
        write_json(self.path, {"format": FORMAT, "accounts": known}, mode=0o600)
        self._stamp = None


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, **COST, dklen=32)


# --- command line -----------------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Add ``users`` to the command line of `mira_core.cli`."""
    p = commands.add_parser(
        "users",
        help="manage who may log in to the dashboard",
        description="Manage the accounts of mira serve --users FILE. Passwords are asked for, and kept as hashes.",
    )
    p.add_argument("action", choices=("list", "add", "remove"), help="add also changes a password or a role")
    p.add_argument("name", nargs="?", default=None)
    p.add_argument("--file", required=True, type=Path, metavar="FILE", help="the file of accounts")
    p.add_argument("--role", choices=ROLES, default=None, help="of who is added; by default user")
    p.add_argument("--keep-password", action="store_true", help="change the role only")
    p.set_defaults(run=_users)


def _users(arguments: argparse.Namespace) -> int:
    accounts = Accounts(arguments.file)
    if arguments.action == "list":
        for account in accounts.all():
            print(f"{account.name}\t{account.role}")
        return 0
    if arguments.name is None:
        raise OptionError(f"mira users {arguments.action} must be given a name")
    if arguments.action == "remove":
        accounts.remove(arguments.name)
        return 0
    password = None if arguments.keep_password else _ask(arguments.name)
    account = accounts.set(arguments.name, password, arguments.role)
    print(f"{account.name} may log in as {account.role}")
    return 0


def _ask(name: str) -> str:
    if not sys.stdin.isatty():  # from a script
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass(f"Password of {name}: ")
    if getpass.getpass("Once more: ") != password:
        raise AccountError("the two passwords are not the same; nothing was changed")
    return password
