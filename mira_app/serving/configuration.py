"""How a server is set up: flags, then the environment, then one TOML file, then what is usual."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mira_core.errors import OptionError

LOGINS = ("none", "token", "password", "oauth")
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Option:
    """One way to set up a server: ``--data-folder``, ``MIRA_DATA_FOLDER``, and ``data-folder`` in the file.

    Attributes
    ----------
    name
        As the flag has it, without its dashes.
    kind
        ``text``, ``path``, ``number``, ``switch``, or ``texts`` and ``paths``, of which there may be several.
    usual
        What it is if nobody says.
    help
        For ``mira serve --help``.
    shown
        What stands for the value in the help.
    choices
        What it may be; empty: anything.
    secret
        Whether it must not be a flag, since everyone on the machine sees those.
    """

    name: str
    kind: str
    usual: Any
    help: str
    shown: str = ""
    choices: tuple[str, ...] = ()
    secret: bool = False

    @property
    def key(self) -> str:
        """As Python has it."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """As the environment has it."""
        return f"MIRA_{self.key.upper()}"

    def read(self, value: Any, where: str) -> Any:
        """Return a value that a file, the environment or a flag gave.

        Raises
        ------
        OptionError
            If it is of another kind.
        """
        listed = self.kind in ("texts", "paths")
        if listed and isinstance(value, str):
            value = [part for part in value.split(os.pathsep if self.kind == "paths" else ",") if part]
        values = value if listed else [value]
        if not isinstance(values, list | tuple):
            raise OptionError(f"{where} must be a list; got {value!r}")
        out = [self._one(each, where) for each in values]
        return tuple(out) if listed else out[0]

    def _one(self, value: Any, where: str) -> Any:
        if self.kind == "switch":
            text = str(value).lower()
            if text not in ("true", "false", "1", "0", ""):
                raise OptionError(f"{where} must be true or false; got {value!r}")
            return text in ("true", "1")
        if self.kind == "number":
            try:
                if isinstance(value, bool):
                    raise ValueError
                read = float(value) if isinstance(self.usual, float) else int(value)
                if not math.isfinite(read):
                    raise ValueError
                return read
            except (TypeError, ValueError, OverflowError):
                raise OptionError(f"{where} must be a number; got {value!r}") from None
        if not isinstance(value, str | Path):
            raise OptionError(f"{where} must be text; got {value!r}")
        if self.choices and value not in self.choices:
            raise OptionError(f"{where} must be one of {', '.join(self.choices)}; got {value!r}")
        if self.kind not in ("path", "paths") or not str(value):
            return str(value)
        try:
            return Path(value).expanduser().resolve()
        except (ValueError, RuntimeError, OSError) as problem:
            raise OptionError(f"{where} must be a path; got {value!r}: {problem}") from None


OPTIONS = (
    Option("data", "paths", (), "folder with data that may be opened; may be repeated", "DIR"),
    Option("personal", "path", None, "folder in which each person has a folder of data of their own, named as they are",
           "DIR"),
    Option("workspace", "path", Path("mira-workspace"), "folder for runs and results", "DIR"),
    Option("demo", "switch", False, "open with demonstration data"),
    Option("storage", "text", "", "where studies are kept: sqlite:///FILE, redis://HOST, postgresql://...; by default "
           "in the workspace", "URL"),
    Option("upload-gb", "number", 20.0, "greatest size of a file that is uploaded, in GB; 0: none may be", "N"),
    Option("quota-gb", "number", 0.0, "what a person's runs and uploads may take of the disk, in GB; 0: any", "N"),
    Option("jobs", "number", 0, "jobs that run at once, others wait for their turn; 0: one on each GPU, without any as "
           "many as half the cores, and two at least", "N"),
    Option("jobs-per-person", "number", 0, "jobs of one person that run at once; 0: as many as there may be", "N"),
    Option("dask", "text", "", "run jobs on a dask.distributed cluster, whose workers see workspace and data by the "
           "same paths: address of its scheduler, or the file that it wrote", "ADDRESS"),
    Option("address", "text", LOCAL[0], "address to listen on; 0.0.0.0: all of this machine's", "HOST"),
    Option("port", "number", 5006, "port to listen on", "N"),
    Option("prefix", "text", "", "path under which a proxy shows the dashboard, such as /lab", "PATH"),
    Option("origin", "texts", (), "address at which browsers see the dashboard, where it is another than the one "
           "listened on; may be repeated", "HOST[:PORT]"),
    Option("proxied", "switch", False, "all requests come through a proxy on this machine or before it, which says in "
           "X-Forwarded-For and X-Forwarded-Proto who asks and how"),
    Option("login", "text", "", "who may come in: anybody (none), who has the token that is printed at the start, who "
           "has an account, or by OAuth; by default anybody on this machine, a token beyond it", "HOW", LOGINS),
    Option("users", "path", None, "file of accounts, which mira users makes; --login password needs it", "FILE"),
    Option("token", "text", "", "the token, in place of one that is made at each start", secret=True),
    Option("tls-certificate", "path", None, "certificate, PEM: the dashboard is then shown by https", "FILE"),
    Option("tls-key", "path", None, "its key, PEM", "FILE"),
    Option("oauth-provider", "text", "", "Panel's name of who logs people in: github, gitlab, google, azurev2, okta, "
           "generic, ...", "NAME"),
    Option("oauth-key", "text", "", "client's id", secret=True),
    Option("oauth-secret", "text", "", "client's secret", secret=True),
    Option("oauth-redirect-uri", "text", "", "address that the provider sends people back to", "URL"),
    Option("admins", "texts", (), "who manages, of those whom OAuth lets in; may be repeated, and * means any "
           "letters, as in *@lab.org", "NAME"),
    Option("members", "texts", (), "who runs jobs, of those; nobody else comes in. --login oauth needs some, or * for "
           "all", "NAME"),
    Option("viewers", "texts", (), "who only looks, of those", "NAME"),
    Option("metrics-token", "text", "", "what scrapers of other machines send for /metrics", secret=True),
    Option("log-format", "text", "text", "how what is logged is written: a line of text, or of JSON", "HOW",
           ("text", "json")),
    Option("show", "switch", False, "open a browser window"),
)  # fmt: skip
BY_KEY = {option.key: option for option in OPTIONS}


def add_arguments(parser: Any) -> None:
    """Add the flags, and ``--config``, the file."""
    for option in OPTIONS:
        if option.secret:
            continue
        told = f"{option.help} ({option.variable})"
        if option.kind == "switch":
            parser.add_argument(f"--{option.name}", action="store_const", const="true", default=None, help=told)
        else:
            several = {"action": "append"} if option.kind in ("texts", "paths") else {}
            parser.add_argument(f"--{option.name}", default=None, metavar=option.shown, help=told, **several)
    secret = ", ".join(option.variable for option in OPTIONS if option.secret)
    parser.add_argument(
        "--config", type=Path, default=None, metavar="FILE",
        help=f"TOML file that has any of these by name; flags and the environment win. Secrets are no flags: {secret}",
    )  # fmt: skip


def resolve(arguments: argparse.Namespace | None, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the value of every option, by its key; the environment is this process's unless another is given.

    Raises
    ------
    OptionError
        If something is unknown or of the wrong kind, or the file cannot be read.
    """
    environment = os.environ if environment is None else environment
    path = getattr(arguments, "config", None) or environment.get("MIRA_CONFIG")
    filed = _read(Path(path)) if path else {}
    out = {}
    for option in OPTIONS:
        flag = getattr(arguments, option.key, None)
        told = environment.get(option.variable)
        if flag is not None:
            out[option.key] = option.read(flag, f"--{option.name}")
        elif told is not None:
            out[option.key] = option.read(told, option.variable)
        elif option.key in filed:
            out[option.key] = option.read(filed[option.key], f"{option.name} in {path}")
        else:
            out[option.key] = option.usual.resolve() if isinstance(option.usual, Path) else option.usual
    return out


def to_environment(told: Mapping[str, Any]) -> None:
    """Tell this process's environment, from which `resolve` gets the same; no secrets."""
    for option in OPTIONS:
        value = told[option.key]
        if option.secret or value in (None, ""):
            os.environ.pop(option.variable, None)
        elif option.kind in ("texts", "paths"):
            os.environ[option.variable] = (os.pathsep if option.kind == "paths" else ",").join(map(str, value))
        else:
            os.environ[option.variable] = str(value)


def login(told: Mapping[str, Any]) -> str:
    """Return how people come in, one of `LOGINS`: as was said, or as is usual for what was said."""
    usual = "password" if told["users"] else "none" if told["address"] in LOCAL else "token"
    return told["login"] or usual


def certificate(told: Mapping[str, Any]) -> tuple[Path, Path] | None:
    """Return certificate and key; None: what is sent is not encrypted.

    Raises
    ------
    OptionError
        If they cannot be used.
    """
    files = told["tls_certificate"], told["tls_key"]
    if files == (None, None):
        return None
    if None in files:
        raise OptionError("--tls-certificate and --tls-key go together; one is missing")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*files)
    except (OSError, ssl.SSLError) as problem:
        raise OptionError(
            f"--tls-certificate {files[0]} and --tls-key {files[1]} cannot be used: {problem}. They must be PEM, "
            "belong together, and have no password"
        ) from None
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as f:
            told = tomllib.load(f)
    except OSError as problem:
        raise OptionError(f"--config {path} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise OptionError(f"--config {path} is no TOML: {problem}") from None
    out = {}
    for name, value in told.items():
        key = name.replace("-", "_")
        if key not in BY_KEY:
            near = difflib.get_close_matches(key, BY_KEY, 1)
            hint = f"; did you mean {BY_KEY[near[0]].name}?" if near else f"; there are {', '.join(BY_KEY)}"
            raise OptionError(f"{path} has {name!r}, which is unknown{hint}")
        out[key] = value
    return out
