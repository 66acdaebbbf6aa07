"""`mira doctor`: what is as it should be, and what to do about what is not."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from mira_app.serving import doctor
from mira_app.serving.accounts import Accounts
from mira_app.serving.configuration import OPTIONS
from mira_core import environment

USUAL = {option.key: option.usual for option in OPTIONS}


@pytest.fixture
def told(tmp_path):
    """What `mira serve` is told, with folders that are there."""
    (tmp_path / "data").mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return {**USUAL, "data": (tmp_path / "data",), "workspace": tmp_path / "workspace", "port": port}


def found(told: dict, about: str) -> list[doctor.Check]:
    return [c for c in doctor.examine(told) if c.about == about]


def test_nothing_is_wrong_with_this_installation(told):
    checks = list(doctor.examine(told))
    assert {c.state for c in checks} == {doctor.OK}, "\n".join(map(str, checks))
    assert not any(c.to_do for c in checks)
    assert not told["workspace"].exists()  # it changes nothing
    assert {"versions", "a small training", "the browser's part", "data", "storage", "login"} <= {
        c.about for c in checks
    }


def no_data(told, tmp_path):
    told["data"] = (tmp_path / "gone",)
    return "data", doctor.WRONG, "there is no folder"


def no_place(told, tmp_path):
    told["workspace"] = Path("/proc/mira")
    return "workspace", doctor.WRONG, "/proc cannot be written to"


def no_storage(told, tmp_path):
    told["storage"] = "redis://anna:secret@127.0.0.1:1"
    return "storage", doctor.WRONG, "the storage redis://127.0.0.1:1 cannot be opened"


def open_to_all(told, tmp_path):
    told |= {"address": "0.0.0.0", "login": "none"}
    return "login", doctor.WARNING, "whoever reaches the address may come in"


def in_clear(told, tmp_path):
    told["address"] = "0.0.0.0"
    return "encryption", doctor.WARNING, "can be read on its way"


def no_certificate(told, tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    told |= {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "cert.pem"}
    return "encryption", doctor.WRONG, "cannot be used"


def nobody(told, tmp_path):
    told["users"] = tmp_path / "users.json"
    return "login", doctor.WRONG, "nobody has an account"


def seen_by_others(told, tmp_path):
    accounts = Accounts(tmp_path / "users.json")
    accounts.set("anna", "long enough", "admin")
    accounts.path.chmod(0o644)
    told["users"] = accounts.path
    return "login", doctor.WRONG, "must be readable by its owner only"


@pytest.mark.parametrize("broken", [no_data, no_place, no_storage, open_to_all, in_clear, no_certificate, nobody,
                                    seen_by_others])  # fmt: skip
def test_what_is_not_as_it_should_be_is_told_with_what_to_do(told, tmp_path, broken):
    about, state, text = broken(told, tmp_path)
    (check,) = found(told, about)
    assert check.state == state
    assert text in check.found
    assert check.to_do
    assert "secret" not in str(check)


def test_a_port_in_use_a_network_drive_and_a_gpu_that_torch_does_not_see_are_told(told, monkeypatch):
    Part = namedtuple("Part", ["mountpoint", "fstype"])
    monkeypatch.setattr(
        psutil, "disk_partitions", lambda all: [Part("/", "ext4"), Part(str(told["workspace"]), "nfs4")]
    )
    monkeypatch.setattr(environment, "may_have_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", told["port"]))
        taken.listen()
        checks = {c.about: c for c in doctor.examine(told) if c.state != doctor.OK}
    assert checks.keys() == {"GPU", "storage", "address"}
    assert "cannot use it" in checks["GPU"].found
    assert "network drive (nfs4)" in checks["storage"].found
    assert "cannot be listened on" in checks["address"].found


def test_its_status_says_whether_something_is_wrong(told, tmp_path):
    command = [sys.executable, "-m", "mira_core.cli", "doctor", "--workspace", str(tmp_path / "w"), "--port",
               str(told["port"])]  # fmt: skip
    done = subprocess.run([*command, "--data", str(tmp_path / "gone")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "wrong    data: there is no folder" in done.stdout
    assert "-> name one that is there" in done.stdout
    assert "1 of 10 are wrong" in done.stdout
    assert done.stderr == ""
