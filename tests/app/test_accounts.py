"""Accounts: kept as hashes, in a file for its owner alone, managed by the command line."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from mira_app.serving.accounts import Account, AccountError, Accounts


@pytest.fixture
def accounts(tmp_path):
    made = Accounts(tmp_path / "users.json")
    made.set("anna", "a long password", "admin")
    made.set("ben", "another password")
    return made


def test_passwords_are_known_by_their_hash_only(accounts):
    assert accounts.all() == [Account("anna", "admin"), Account("ben", "user")]
    assert accounts.check("anna", "a long password")
    for name, password in [("anna", "another password"), ("ben", "a long password"), ("nobody", ""), ("anna", "")]:
        assert not accounts.check(name, password), name
    text = accounts.path.read_text()
    assert "password" in text
    assert "a long password" not in text
    assert stat.S_IMODE(accounts.path.stat().st_mode) == 0o600
    hashes = [each["password"] for each in json.loads(text)["accounts"].values()]
    accounts.set("ben", "a long password")
    again = [each["password"] for each in json.loads(accounts.path.read_text())["accounts"].values()]
    assert hashes[0] == again[0]
    assert again[0] != again[1]  # the same password, another salt


def test_what_another_process_changes_is_seen(accounts):
    other = Accounts(accounts.path)
    other.set("cleo", "a third password", "viewer")
    assert accounts.get("cleo") == Account("cleo", "viewer")
    other.remove("anna")
    assert accounts.get("anna") is None
    assert not accounts.check("anna", "a long password")
    other.set("ben", role="admin")
    assert accounts.get("ben") == Account("ben", "admin")
    assert accounts.check("ben", "another password")


@pytest.mark.parametrize(("name", "password", "role", "told"), [
    ("", "long enough", None, "a name must begin"),
    ("../x", "long enough", None, "a name must begin"),
    ("a b", "long enough", None, "a name must begin"),
    ("<b>", "long enough", None, "a name must begin"),
    ("dora", "short", None, "at least 8 letters; got 5"),
    ("dora", None, None, "needs a password"),
    ("dora", "long enough", "root", "one of viewer, user, admin; got 'root'"),
])  # fmt: skip
def test_what_will_not_do_is_told_and_changes_nothing(accounts, name, password, role, told):
    before = accounts.path.read_bytes()
    with pytest.raises(AccountError, match=told):
        accounts.set(name, password, role)
    assert accounts.path.read_bytes() == before


def test_a_file_that_others_can_read_or_that_is_damaged_is_refused(accounts):
    whole = accounts.path.read_bytes()
    os.chmod(accounts.path, 0o640)
    with pytest.raises(AccountError, match="chmod 600"):
        Accounts(accounts.path).all()
    os.chmod(accounts.path, 0o600)
    for text, told in [
        (whole[:40], "no file of accounts"),
        (b"[]", "no file of accounts"),
        (b'{"format": 1, "accounts": {"eve": {"role": "admin"}}}', "no file of accounts"),
        (b'{"format": 1, "accounts": {"eve": {"role": "admin", "password": ""}}}', "no file of accounts"),
        (b'{"format": 9, "accounts": {}}', "newer version"),
    ]:
        accounts.path.write_bytes(text)
        with pytest.raises(AccountError, match=told):
            Accounts(accounts.path).all()


def test_the_command_adds_lists_and_removes(tmp_path):
    path = tmp_path / "users.json"

    def users(*arguments: str, told: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mira_core.cli", "users", *arguments, "--file", str(path)]
        return subprocess.run(command, input=told, capture_output=True, text=True, timeout=120)

    done = users("add", "anna", "--role", "admin", told="a long password\n")
    assert (done.returncode, done.stdout) == (0, "anna may log in as admin\n")
    assert Accounts(path).check("anna", "a long password")
    done = users("add", "anna", "--role", "viewer", "--keep-password")
    assert done.stdout == "anna may log in as viewer\n"
    assert users("list").stdout == "anna\tviewer\n"
    done = users("add", "ben", told="short\n")
    assert done.returncode == 2
    assert "at least 8 letters" in done.stderr
    assert users("remove", "anna").returncode == 0
    assert Accounts(path).all() == []
    assert "there is no account 'anna'" in users("remove", "anna").stderr
