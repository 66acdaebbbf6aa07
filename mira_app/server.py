"""``mira serve``: the dashboard, with its folders given by flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mira_core.errors import OptionError

from .settings import Settings


def add_command(commands: Any) -> None:
    """Add ``serve`` to the command line of `mira_core.cli`."""
    p = commands.add_parser("serve", help="open the dashboard", description="Serve the dashboard to a browser.")
    p.add_argument("--demo", action="store_true", help="open with demonstration data")
    p.add_argument(
        "--data", action="append", default=[], type=Path, metavar="DIR",
        help="folder with data that may be opened; may be repeated",
    )  # fmt: skip
    p.add_argument(
        "--workspace",
        type=Path,
        default=Path("mira-workspace"),
        metavar="DIR",
        help="folder for runs and results",
    )
    p.add_argument(
        "--storage", default="", metavar="URL",
        help="where studies are kept: sqlite:///FILE, redis://HOST, postgresql://...; by default in the workspace",
    )  # fmt: skip
    p.add_argument("--port", type=int, default=5006)
    p.add_argument("--prefix", default="", help="path under which a proxy shows the dashboard, such as /lab")
    p.add_argument(
        "--origin", action="append", default=[], metavar="HOST[:PORT]",
        help="address at which a proxy shows the dashboard; may be repeated",
    )  # fmt: skip
    p.add_argument("--show", action="store_true", help="open a browser window")
    p.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    for folder in arguments.data:
        if not folder.is_dir():
            raise OptionError(f"--data must name a folder; there is none at {folder}")
    settings = Settings(
        tuple(p.resolve() for p in arguments.data), arguments.workspace.resolve(), arguments.demo,
        storage_url=arguments.storage,
    )  # fmt: skip
    settings.to_environment()

    import panel as pn

    from . import downloads
    from .optuna_board import routes
    from .page import app, shared

    workspace, *_ = shared()
    below = arguments.prefix.strip("/")
    print(
        f"mira: http://localhost:{arguments.port}/{below}{'/' if below else ''}  "
        f"(workspace {workspace.settings.workspace}; stop with Ctrl-C)"
    )
    hosts = ("localhost", "127.0.0.1")
    try:
        pn.serve(
            {"/": app},
            address=hosts[1],  # this machine only, until there is a login
            port=arguments.port,
            websocket_origin=[*(f"{host}:{arguments.port}" for host in hosts), *arguments.origin],
            show=arguments.show,
            title="mira",
            prefix=arguments.prefix,
            extra_patterns=[*routes(settings.storage), *downloads.routes(settings.workspace)],
            verbose=False,
            session_token_expiration=3600,
            keep_alive_milliseconds=10_000,
        )
    except OSError as problem:
        raise OptionError(f"--port {arguments.port} cannot be listened on: {problem}. Choose another") from problem
    return 0
