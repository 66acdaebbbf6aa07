"""``mira serve``: the dashboard, set up by flags, the environment or a file, with a login beyond this machine."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from mira_core.errors import OptionError

from ..settings import Settings
from . import configuration
from .accounts import Accounts
from .audit import Audit
from .configuration import LOCAL, OPTIONS

if TYPE_CHECKING:
    from .login import Login

EVERYWHERE = ("0.0.0.0", "::", "")  # addresses that mean all of a machine's


def add_command(commands: Any) -> None:
    """Add ``serve`` to the command line of `mira_core.cli`."""
    p = commands.add_parser("serve", help="open the dashboard", description="Serve the dashboard to a browser.")
    configuration.add_arguments(p)
    p.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    told = configuration.resolve(arguments)
    for option in OPTIONS:
        if option.secret:
            os.environ.pop(option.variable, None)  # jobs have no business with them
    for folder in told["data"]:
        if not folder.is_dir():
            raise OptionError(f"--data must name a folder; there is none at {folder}")
    told["login"] = configuration.login(told)
    settings = Settings.of(told)
    configuration.to_environment(told)
    login = _login(told)

    import panel as pn

    from .. import downloads
    from ..optuna_board import routes
    from ..page import app, shared
    from . import logs, metrics

    logs.set_up(told["log_format"], [told[option.key] for option in OPTIONS if option.secret])
    shared()
    files = configuration.certificate(told)
    encrypted = {} if files is None else {"ssl_certfile": str(files[0]), "ssl_keyfile": str(files[1])}
    try:
        pn.serve(
            {"/": app},
            address=told["address"],
            port=told["port"],
            websocket_origin=_origins(told),
            show=told["show"],
            title="mira",
            prefix=told["prefix"],
            extra_patterns=[
                *routes(settings.storage),
                *downloads.routes(settings.workspace),
                *metrics.routes(settings, told["metrics_token"]),
            ],
            verbose=False,
            liveness="health",
            session_token_expiration=3600,
            keep_alive_milliseconds=10_000,
            **_guarded(told, settings, login),
            **encrypted,
        )
    except OSError as problem:
        raise OptionError(
            f"--port {told['port']} of {told['address']} cannot be listened on: {problem}. Choose another"
        ) from problem
    return 0


def _login(told: dict[str, Any]) -> Login | str:
    """Return who lets people in, "" if anybody may come, "oauth" if Panel does; say where the dashboard is."""
    from .login import Login

    local = told["address"] in LOCAL
    how = configuration.login(told)
    audit = Audit(told["workspace"] / "audit.jsonl")
    address = socket.gethostname() if told["address"] in EVERYWHERE else told["address"]
    scheme = "https" if told["tls_certificate"] else "http"
    below = told["prefix"].strip("/")
    url = f"{scheme}://{'localhost' if local else address}:{told['port']}/{below}{'/' if below else ''}"
    where = f"(workspace {told['workspace']}; stop with Ctrl-C)"
    if not local and scheme == "http":
        print("mira: what is sent is not encrypted; give --tls-certificate and --tls-key, or let a proxy do it")
    if how == "oauth":
        if missing := [n for n in ("oauth_provider", "oauth_key", "oauth_secret") if not told[n]]:
            raise OptionError(f"--login oauth needs {', '.join(configuration.BY_KEY[n].variable for n in missing)}")
        if not (told["members"] or told["admins"] or told["viewers"]):
            raise OptionError(
                "--login oauth needs --members, or whoever has an account there comes in; name them, or all of a kind "
                "by a pattern such as *@lab.org, or say * if the provider lets in nobody else"
            )
        print(f"mira: {url}  {where}")
        return how
    if how == "password":
        if told["users"] is None:
            raise OptionError("--login password needs --users FILE; make one with: mira users add NAME --file FILE")
        accounts = Accounts(told["users"])
        if not accounts.all():
            raise OptionError(
                f"nobody could log in: {accounts.path} has no account yet. Do: mira users add NAME --role admin --file "
                f"{accounts.path}"
            )
        print(f"mira: {url}  {where}")
        return Login(accounts, audit=audit, proxied=told["proxied"])
    if how == "token":
        token = told["token"] or secrets.token_urlsafe(32)
        shown = "" if told["token"] else f"login?token={token}"
        print(f"mira: {url}{shown}  {where}")
        if shown:
            print("mira: whoever has this address may come in; give it to nobody else")
        return Login(token=token, audit=audit, proxied=told["proxied"])
    print(f"mira: {url}  {where}")
    if not local:
        print("mira: anybody who reaches this address may come in, and use this machine: --login none was given")
    return ""


def _origins(told: dict[str, Any]) -> list[str]:
    """Return the addresses whose pages may talk to the server."""
    hosts = {"localhost", "127.0.0.1"} if told["address"] in (*LOCAL, *EVERYWHERE) else {told["address"]}
    if told["address"] in EVERYWHERE:
        hosts |= {socket.gethostname(), socket.getfqdn()}
    return [*(f"{host}:{told['port']}" for host in sorted(hosts)), *told["origin"]]


def _guarded(told: dict[str, Any], settings: Settings, login: Login | str) -> dict[str, Any]:
    """Return what `panel.serve` needs for the login."""
    from .login import Login, secret_of

    if not login:
        return {}
    cookie_secret = secret_of(settings.workspace)
    if isinstance(login, Login):
        return {"auth_provider": login, "cookie_secret": cookie_secret}
    return {
        "oauth_provider": told["oauth_provider"], "oauth_key": told["oauth_key"], "oauth_secret": told["oauth_secret"],
        "oauth_redirect_uri": told["oauth_redirect_uri"] or None, "cookie_secret": cookie_secret,
        "oauth_encryption_key": None,
    }  # fmt: skip
