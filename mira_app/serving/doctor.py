"""``mira doctor``: whether this installation works, and a server set up like this would; what to do where not."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from mira_core import environment
from mira_core.errors import MiraError

from ..settings import Settings
from . import configuration, upgrading
from .accounts import Accounts
from .configuration import LOCAL

OK, WARNING, WRONG = "ok", "warning", "wrong"
# File systems of a network, on which SQLite's locks are not to be trusted.
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "beegfs", "ceph", "fuse.sshfs", "glusterfs", "lustre"}
LITTLE_DISK, LITTLE_MEMORY = 5e9, 2e9  # bytes


class Check(NamedTuple):
    """What was found out about one thing, and what to do if it is not as it should be."""

    about: str
    state: str
    found: str
    to_do: str = ""

    def __str__(self) -> str:
        """As a line or two."""
        return f"{self.state:8} {self.about}: {self.found}" + (f"\n{'':9}-> {self.to_do}" if self.to_do else "")


def add_command(commands: Any) -> None:
    """Add ``doctor`` to the command line of `mira_core.cli`."""
    p = commands.add_parser(
        "doctor", help="check the installation, and what a server needs",
        description="Check the installation, and what mira serve with the same flags would need. Changes nothing; the "
        "exit status is 1 if something is wrong.",
    )  # fmt: skip
    configuration.add_arguments(p)
    p.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    states = []
    for check in examine(configuration.resolve(arguments)):
        print(check, flush=True)
        states.append(check.state)
    wrong = states.count(WRONG)
    print(f"{wrong} of {len(states)} are wrong" if wrong else f"nothing of {len(states)} is wrong")
    return int(wrong > 0)


def examine(told: dict[str, Any]) -> Iterator[Check]:
    """Check one thing after the other.

    Parameters
    ----------
    told
        As `mira_app.serving.configuration.resolve` returns it.
    """
    settings = Settings.of(told)
    checks: list[Callable[[], Iterator[Check]]] = [
        _versions, _devices, _training, _memory, _in_browsers, lambda: _data(settings), lambda: _workspace(settings),
        lambda: _storage(settings), lambda: _doors(told),
    ]  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except Exception as problem:
            about = getattr(check, "__name__", "").strip("_").replace("<lambda>", "a check")
            yield Check(
                about, WRONG, f"{type(problem).__name__}: {problem}", "please report this, with all lines above"
            )


def _versions() -> Iterator[Check]:
    there = environment.versions()
    yield Check("versions", OK, ", ".join(f"{name} {version}" for name, version in there.items()))
    for name, what in {"scanpy": "no variable features and no UMAP", "umap-learn": "no UMAP"}.items():
        if name not in there:
            yield Check(name, WRONG, f"it is not installed: {what}", f"pip install {name}")


def _devices() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            told = torch.cuda.get_device_properties(i)
            yield Check(
                f"GPU {i}", OK, f"{told.name}, {told.total_memory / 1e9:.0f} GB, torch for CUDA {torch.version.cuda}"
            )
    elif environment.may_have_gpu():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield Check(
            "GPU", WRONG, f"there seems to be one, and torch {torch.__version__}, built {built}, cannot use it",
            "install a torch for it (pytorch.org says which), or a newer driver; nvidia-smi must work",
        )  # fmt: skip
    else:
        yield Check("GPU", OK, f"none; models train on {torch.get_num_threads()} threads")


def _training() -> Iterator[Check]:
    import mira_core as mira

    cells = mira.data.simulate_expression(200, 100, 3, seed=0)
    model = mira.topics.make_model(*cells.shape, feature_type="expression", num_topics=3, num_epochs=4, seed=0)
    began = time.monotonic()
    model.fit(cells, progress=False)
    steps, seconds = model.history[-1].step, time.monotonic() - began
    yield Check("a small training", OK, f"{steps} steps in {seconds:.1f} s on {model._training_device()}")


def _memory() -> Iterator[Check]:
    free, whole = psutil.virtual_memory().available, psutil.virtual_memory().total
    little = free < LITTLE_MEMORY
    yield Check("memory", WARNING if little else OK, f"{free / 1e9:.1f} GB of {whole / 1e9:.1f} are free",
                "a training of a few thousand cells takes 1 GB; end other programs" if little else "")  # fmt: skip


def _in_browsers() -> Iterator[Check]:
    """Look for what browsers load from here: of Bokeh, Panel, Panel's Material UI, and ours."""
    import bokeh
    import panel
    import panel_material_ui

    from ..page import SCRIPTS, asset

    sizes = []
    for package, inside in (
        (bokeh, "server/static/js/bokeh.min.js"), (panel, "dist/panel.min.js"),
        (panel_material_ui, "dist/panel-material-ui.bundle.js"),
    ):  # fmt: skip
        path = Path(package.__file__ or "").parent / inside
        if not path.is_file():
            version = importlib.metadata.version(package.__name__.replace("_", "-"))
            yield Check("the browser's part", WRONG, f"{path} of {package.__name__} {version} is missing",
                        f"pip install --force-reinstall --no-deps {package.__name__.replace('_', '-')}")  # fmt: skip
            return
        sizes.append(path.stat().st_size)
    sizes += [asset(name).stat().st_size for name in SCRIPTS]
    yield Check("the browser's part", OK, f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, served from here")


def _data(settings: Settings) -> Iterator[Check]:
    if not settings.data:
        yield Check("data", OK, "no folder is named; demonstrations and uploads can be opened")
    for folder in settings.data:
        if not folder.is_dir():
            yield Check("data", WRONG, f"there is no folder {folder}", "name one that is there: --data DIR")
        elif not os.access(folder, os.R_OK | os.X_OK):
            yield Check("data", WRONG, f"{folder} cannot be read by this user", "give the right to read and enter it")
        else:
            yield Check("data", OK, f"{folder}, {sum(1 for _ in os.scandir(folder)):,} entries")


def _workspace(settings: Settings) -> Iterator[Check]:
    folder = settings.workspace
    nearest = next(p for p in (folder, *folder.parents) if p.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".mira-doctor-", dir=nearest) as inside:
            written = Path(inside) / "a"
            written.write_bytes(b"written")
            written.replace(written.with_name("b"))
    except OSError as problem:
        yield Check("workspace", WRONG, f"{nearest} cannot be written to: {problem.strerror}",
                    "choose another by --workspace DIR, or give the right to write")  # fmt: skip
        return
    free = shutil.disk_usage(nearest).free
    new = "" if nearest == folder else ", which is made at the start"
    little = free < LITTLE_DISK
    yield Check("workspace", WARNING if little else OK, f"{folder}{new}; {free / 1e9:.1f} GB are free",
                "mira clean lists what can go; remove runs, or choose another disk" if little else "")  # fmt: skip
    if nearest == folder:
        try:
            found = upgrading.format_of(folder)
        except MiraError as problem:
            yield Check("format", WRONG, str(problem), "")
            return
        if found > upgrading.FORMAT:
            yield Check("format", WRONG, f"format {found} of the workspace is newer than this mira, which knows up to "
                        f"{upgrading.FORMAT}", "upgrade mira, or choose another --workspace")  # fmt: skip
        elif found < upgrading.FORMAT:
            yield Check("format", WARNING, f"the workspace is of format {found}, and will be brought to "
                        f"{upgrading.FORMAT}", "nothing; what it was like is kept in its folder backups")  # fmt: skip


def _storage(settings: Settings) -> Iterator[Check]:
    from mira_core.tuning import storage

    url = settings.storage
    shown = storage.without_password(url)
    path = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    if path is not None:
        kind = file_system(path)
        if kind in REMOTE:
            yield Check("storage", WARNING, f"{shown} is on a network drive ({kind}), where SQLite may lose what two "
                        "processes write", "give --storage postgresql://... or journal:///FILE")  # fmt: skip
        if not path.is_file():
            yield Check("storage", OK, f"{shown}, which is made at the start")
            return
    began = time.monotonic()
    try:
        studies = storage.open_storage(url).get_all_studies()
    except MiraError as problem:
        yield Check(
            "storage", WRONG, str(problem), "start the server, or correct --storage; its driver must be installed"
        )
        return
    yield Check("storage", OK, f"{shown}, {len(studies):,} studies, read in {time.monotonic() - began:.2f} s")


def file_system(path: Path) -> str:
    """Return the kind of file system that a path is on, as the system calls it."""
    best = ("", "")
    for part in psutil.disk_partitions(all=True):
        if path.is_relative_to(part.mountpoint) and len(part.mountpoint) >= len(best[0]):
            best = (part.mountpoint, part.fstype)
    return best[1]


def _doors(told: dict[str, Any]) -> Iterator[Check]:
    """Who can reach the server, and who may come in."""
    address, port = told["address"], told["port"]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((address, port))
            yield Check("address", OK, f"port {port} of {address} can be listened on")
        except OSError as problem:
            yield Check("address", WARNING, f"port {port} of {address} cannot be listened on: {problem.strerror}",
                        "if no mira runs there, choose another by --port")  # fmt: skip
    local = address in LOCAL
    try:
        files = configuration.certificate(told)
        if files is not None:
            yield Check("encryption", OK, f"by {files[0]}")
        elif not local:
            yield Check("encryption", WARNING, "none: what is sent can be read on its way",
                        "give --tls-certificate and --tls-key, or let a proxy do it")  # fmt: skip
    except MiraError as problem:
        yield Check("encryption", WRONG, str(problem), "ask whoever made them for such files")
    how = configuration.login(told)
    if how == "password":
        yield _accounts(told["users"])
    elif how == "none":
        yield Check("login", OK if local else WARNING, "none: whoever reaches the address may come in",
                    "" if local else "give --users FILE, or --login token")  # fmt: skip
    else:
        yield Check("login", OK, f"by {how}")


def _accounts(path: Path | None) -> Check:
    if path is None:
        return Check("login", WRONG, "by password, and no file of accounts is named", "--users FILE")
    try:
        n = len(Accounts(path).all())
    except MiraError as problem:
        return Check("login", WRONG, str(problem), "see mira users --help")
    if not n:
        return Check(
            "login", WRONG, "by password, and nobody has an account", f"mira users add NAME --role admin --file {path}"
        )
    return Check("login", OK, f"by password, {n} accounts")
