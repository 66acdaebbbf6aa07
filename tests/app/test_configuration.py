"""How a server is set up: flags win over the environment, that over the file, that over what is usual."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from mira_app.serving import configuration
from mira_app.settings import Settings
from mira_core.errors import OptionError


def resolve(*flags: str, environment: dict[str, str] | None = None):
    parser = argparse.ArgumentParser()
    configuration.add_arguments(parser)
    return configuration.resolve(parser.parse_args(flags), environment or {})


def test_flags_environment_file_and_what_is_usual_in_this_order(tmp_path):
    file = tmp_path / "mira.toml"
    file.write_text(f'port = 7000\naddress = "0.0.0.0"\ndata = ["{tmp_path}"]\nupload-gb = 1\norigin = ["a.org"]\n')
    told = resolve(
        "--config", str(file), "--port", "9000", environment={"MIRA_PORT": "8000", "MIRA_ORIGIN": "b.org,c.org"}
    )
    assert told["port"] == 9000
    assert told["origin"] == ("b.org", "c.org")
    assert told["address"] == "0.0.0.0"
    assert told["data"] == (tmp_path,)
    assert told["upload_gb"] == 1.0
    assert told["login"] == ""
    assert told["workspace"] == Path("mira-workspace").resolve()
    assert resolve(environment={"MIRA_CONFIG": str(file)})["port"] == 7000
    assert resolve("--origin", "x", "--origin", "y")["origin"] == ("x", "y")
    assert resolve("--demo")["demo"] is True


def test_settings_survive_the_environment(monkeypatch, tmp_path):
    flags = [
        "--data",
        str(tmp_path),
        "--data",
        str(tmp_path / "a,b"),
        "--demo",
        "--upload-gb",
        "1.5",
        "--members",
        "*@a.org",
        "--admins",
        "x",
        "--admins",
        "y",
        "--users",
        str(tmp_path / "u.json"),
        "--jobs",
        "3",
    ]
    monkeypatch.setattr("os.environ", {})
    told = resolve(*flags, environment={"MIRA_TOKEN": "secret"})
    configuration.to_environment(told)
    assert Settings.from_environment() == Settings.of(told)
    assert Settings.of(told).data == (tmp_path, tmp_path / "a,b")
    assert "MIRA_TOKEN" not in os.environ


@pytest.mark.parametrize(("text", "told"), [
    ("prot = 1", "'prot', which is unknown; did you mean port?"),
    ("port = [1]", "port in .* must be a number; got"),
    ('port = "x"', "must be a number; got 'x'"),
    ("data = 3", "data in .* must be a list; got 3"),
    ("address = 3", "must be text; got 3"),
    ('login = "all"', "must be one of none, token, password, oauth; got 'all'"),
    ('demo = "perhaps"', "must be true or false"),
    ("port = ", "is no TOML"),
    ("port = inf", "must be a number; got inf"),
    ("port = true", "must be a number; got True"),
    ('upload-gb = "1e999999"', "must be a number|inf"),
    ('workspace = "a\\u0000b"', "must be a path"),
    ('workspace = "~nobody-of-this-name/x"', "must be a path"),
    ("a = " + "[" * 5000, "is no TOML"),
    ("port = " + "1" * 5000, "is no TOML"),
])  # fmt: skip
def test_what_a_file_has_wrong_is_told(tmp_path, text, told):
    file = tmp_path / "mira.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=told):
        resolve("--config", str(file))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        resolve("--config", str(tmp_path / "none.toml"))


def test_secrets_are_no_flags():
    with pytest.raises(SystemExit):
        resolve("--token", "x")
    assert resolve(environment={"MIRA_TOKEN": "x"})["token"] == "x"
