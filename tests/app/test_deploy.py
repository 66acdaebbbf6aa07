"""The examples of deployment are read by what they are for."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import requests
import yaml

from mira_app.serving import configuration
from mira_app.serving.accounts import Accounts

from ..benchmarks.tabs import Log, Tab, labelled
from ..browser.conftest import MIRA, Server
from ..servers import free_port, to_its_end, wait_until

DEPLOY = Path(__file__).parents[2] / "assets" / "deploy"
TOML, UNIT, COMPOSE = DEPLOY / "mira.toml", DEPLOY / "mira.service", DEPLOY / "compose.yaml"
DOCKERFILE, NGINX = DEPLOY / "Dockerfile", DEPLOY / "nginx.conf"
PEOPLE = 12  # of whom all come to the same of two servers once in 2,048 times


def parse(command: list[str]) -> argparse.Namespace:
    """Parse what follows `mira`, as it does."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for point in entry_points(group="mira.commands"):
        point.load()(commands)
    return parser.parse_args(command)


def unit() -> dict[str, list[str]]:
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    out: dict[str, list[str]] = {}
    for key, _, value in lines:
        out.setdefault(key, []).append(value)
    return out


def dockerfile(word: str) -> str:
    return next(line for line in DOCKERFILE.read_text().splitlines() if line.startswith(f"{word} "))


def test_all_in_the_file_of_options_is_known_also_what_is_commented_out():
    told = configuration.resolve(None, {"MIRA_CONFIG": str(TOML)})
    assert told["data"] == (Path("/srv/mira/data"),)
    assert configuration.login(told) == "password"
    commented = re.sub(r"^# (?=[a-z-]+ = )", "", TOML.read_text(), flags=re.MULTILINE)
    names = tomllib.loads(commented)
    assert len(names) > len(tomllib.loads(TOML.read_text()))
    assert names.keys() <= {option.name for option in configuration.OPTIONS if not option.secret}


@pytest.mark.parametrize("path", [TOML, UNIT, COMPOSE], ids=lambda path: path.name)
def test_the_commands_that_are_shown_are_commands(path):
    shown = re.findall(r"\bmira ((?:users|doctor|serve) .*)", path.read_text())
    assert shown
    for command in shown:
        parse(shlex.split(command))


def test_the_unit_serves_what_its_file_says_and_lets_jobs_live():
    (started,) = unit()["ExecStart"]
    program, *command = shlex.split(started)
    told = parse(command)
    assert Path(program).name == "mira"
    assert told.config == Path("/etc/mira/mira.toml")
    assert unit()["KillMode"] == ["process"]
    # Under a strict system only this can be written to.
    (state,) = unit()["StateDirectory"]
    workspace = tomllib.loads(TOML.read_text())["workspace"]
    assert Path(workspace).is_relative_to(Path("/var/lib") / state.split()[0])


def test_systemd_takes_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = UNIT.read_text().replace("/opt/mira/bin/mira", "/bin/true")  # it looks for the program
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / UNIT.name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_starts_what_can_be_set_up_so():
    told = yaml.safe_load(COMPOSE.read_text())
    services = told["services"]
    assert told["volumes"].keys() == {"workspace", "studies"}
    for service in services.values():
        assert set(service["networks"]) <= told["networks"].keys()
        assert set(service.get("depends_on", ())) <= services.keys()
    mira = services["mira"]
    image = dict(part.split("=") for part in dockerfile("ENV MIRA_ADDRESS=0.0.0.0").split()[1:])
    environment = {**image, **{key: str(value) for key, value in mira["environment"].items()}}
    assert environment.keys() <= {option.variable for option in configuration.OPTIONS if not option.secret}
    options = configuration.resolve(parse(json.loads(dockerfile("CMD").removeprefix("CMD "))), environment)
    assert configuration.login(options) == "password"
    assert options["storage"].removeprefix("redis://") in services
    assert "healthcheck" in services["redis"]
    assert mira["depends_on"]["redis"]["condition"] == "service_healthy"
    mounted = {volume.removesuffix(":ro").rpartition(":")[2] for volume in mira["volumes"]}
    assert {str(options["workspace"]), *map(str, options["data"])} == mounted
    assert mira["ports"] == [f"127.0.0.1:{options['port']}:{options['port']}"]
    assert (DEPLOY / mira["build"]["context"] / mira["build"]["dockerfile"]).resolve() == DOCKERFILE


def test_the_container_is_healthy_while_the_server_answers_below_its_prefix():
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/lab/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    program, *arguments = json.loads("[" + DOCKERFILE.read_text().partition("CMD [")[2].partition("\n")[0])
    assert program == "python"
    server = http.server.HTTPServer(("127.0.0.1", free_port()), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for prefix, healthy in (("/lab", True), ("/other", False)):
        environment = {**os.environ, "MIRA_PORT": str(server.server_port), "MIRA_PREFIX": prefix}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=60)
        assert (done.returncode == 0) == healthy, done.stderr
    server.shutdown()
    server.server_close()


def test_the_proxy_shows_what_the_file_of_options_serves():
    text = NGINX.read_text()
    told = tomllib.loads(TOML.read_text())
    assert text.count("{") == text.count("}")
    assert f"location {told['prefix']}/ {{" in text
    assert f"location = {told['prefix']}/metrics {{" in text
    assert "proxy_pass http://mira;" in text
    assert f"server {told['address']}:{told['port']};" in text
    assert f"server_name {told['origin'][0]};" in text


class BelowPrefix(Server):
    """A server that answers below its prefix only."""

    def start(self) -> None:
        self.path = "/lab"
        super().start()

    def answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(self.url("/health"), timeout=5).ok
        return False


async def open_page(url: str, cookies: dict[str, str], log: Log) -> None:
    tab = Tab(url, log, cookies)
    async with tab.answered("open", labelled("num_topics")):
        await tab.open("?page=model&data=demo:pbmc700")
    await tab.close()


def site_of(port: int, folder: Path, servers: list[Server]) -> str:
    """The site as it is shipped, without encryption, in front of other servers."""
    site = re.sub(r"\n    ssl_certificate.*", "", NGINX.read_text())
    for old, new in {
        "listen 443 ssl;": f"listen 127.0.0.1:{port};",
        "/var/log/nginx/mira.log": str(folder / "access.log"),
        "log_format mira '": "log_format mira '$upstream_addr $cookie_user ",
        "    server 127.0.0.1:5006;": "\n".join(f"    server 127.0.0.1:{s.port};" for s in servers),
    }.items():
        assert old in site
        site = site.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    written = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    head = f"daemon off;\npid {folder / 'pid'};\nerror_log {folder / 'error.log'};\nevents {{}}\n"
    return f"{head}http {{\n{written}{site}}}\n"


def test_behind_the_proxy_each_person_stays_with_one_of_several_servers(tmp_path):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    port, people, log = free_port(), {f"person{i}": "" for i in range(PEOPLE)}, Log()
    accounts = Accounts(tmp_path / "users.json")
    for name in people:
        accounts.set(name, "a good password", "user")
    workspace, origin = tmp_path / "workspace", f"localhost:{port}"
    flags = ["--workspace", str(workspace), "--users", str(accounts.path), "--demo"]
    flags += ["--prefix", "/lab", "--origin", origin, "--proxied"]
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []
        for _ in range(2):
            servers.append(BelowPrefix(workspace, lambda at: [*MIRA, "serve", *flags, "--port", str(at)], {}))
            stack.callback(servers[-1].stop)
        (tmp_path / "nginx.conf").write_text(site_of(port, tmp_path, servers))
        proxy = subprocess.Popen([nginx, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"])
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)
        url = f"http://{origin}/lab/"
        wait_until((tmp_path / "pid").exists, 30, "the proxy has begun")
        for name in people:
            with requests.Session() as person:
                told = {"username": name, "password": "a good password"}
                answer = person.post(f"{url}login", told, headers={"Origin": f"http://{origin}"}, timeout=60)
                answer.raise_for_status()
                people[name] = person.cookies["user"].strip('"')
                assert person.get(f"{url}health", timeout=60).ok
                if name in ("person0", "person1"):
                    to_its_end(open_page(url, dict(person.cookies), log))
    lines = [line.replace(r"\x22", "").split() for line in (tmp_path / "access.log").read_text().splitlines()]
    reached = [{upstream for upstream, cookie, *_ in lines if cookie == kept} for kept in people.values()]
    assert [len(servers) for servers in reached] == [1] * len(people)
    assert len(set().union(*reached)) == 2
    assert log.errors == {}
