"""``/metrics``: how the server does, as Prometheus reads it; of people, jobs and data it tells numbers, and no names.

Scrapers have no login. They are answered on this machine, and elsewhere if they send ``MIRA_METRICS_TOKEN``. Requests
and the lateness of the event loop are measured from the first scrape on, so that a server that nobody watches measures
nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from tornado.ioloop import PeriodicCallback
from tornado.web import Application, RequestHandler

from mira_core import __version__, jobs
from mira_core.kinds import KINDS

from ..settings import Settings

logger = logging.getLogger(__name__)

AT = "/metrics"
SELDOM = 10.0  # seconds between two looks at the disk
BEAT = 0.25  # seconds between two looks at whether the event loop is late
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")  # a client could invent more
LATE = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
HERE = ("localhost", "127.0.0.1", "[::1]")
PASSED_ON = ("X-Forwarded-For", "X-Real-Ip", "Forwarded", "Via")  # what proxies add


class Metrics:
    """All that is measured of one server.

    Parameters
    ----------
    settings
        Where its jobs and uploads are.
    """

    def __init__(self, settings: Settings) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("mira", "Version of the server", registry=registry).info({"version": __version__})
        self.sessions = Gauge("mira_sessions", "Sessions in memory, by whether a browser is there", ["browser"],
                              registry=registry)  # fmt: skip
        Gauge("mira_python_blocks", "Blocks of memory in use; resident memory is as much as there ever were",
              registry=registry).set_function(sys.getallocatedblocks)  # fmt: skip
        self.requests = Counter("mira_requests", "Requests answered, since the first scrape",
                                ["handler", "method", "status"], registry=registry)  # fmt: skip
        self.seconds = Histogram("mira_request_seconds", "Time until a request was answered, since the first scrape",
                                 ["handler"], buckets=SECONDS, registry=registry)  # fmt: skip
        self.late = Histogram("mira_event_loop_late_seconds", f"How late what was due each {BEAT} s came",
                              buckets=LATE, registry=registry)  # fmt: skip
        registry.register(OnDisk(settings))
        self._last = 0.0
        self._heart: PeriodicCallback | None = None

    def watch(self, application: Application) -> None:
        """Begin to count requests and to measure lateness, if that has not begun; in the server's event loop."""
        if self._heart is not None:
            return
        usual: Callable[[RequestHandler], None] = application.log_request

        def counted(handler: RequestHandler) -> None:
            self._count(handler)
            usual(handler)

        application.log_request = counted  # type: ignore[method-assign]
        self._last = time.perf_counter()
        self._heart = PeriodicCallback(self._beat, 1000 * BEAT)
        self._heart.start()

    def text(self, accepts: str) -> tuple[bytes, str]:
        """Return what a scraper reads and its type; looks at the disk."""
        encode, kind = choose_encoder(accepts)
        return encode(self.registry), kind

    def count_sessions(self, application: Any) -> None:
        """Count those of all applications of a Bokeh server; in its event loop, as they come and go there."""
        there = [session.connection_count > 0 for path in application.app_paths
                 for session in application.get_sessions(path)]  # fmt: skip
        self.sessions.labels("connected").set(sum(there))
        self.sessions.labels("away").set(len(there) - sum(there))

    def _count(self, handler: RequestHandler) -> None:
        name, method = type(handler).__name__, handler.request.method
        self.requests.labels(name, method if method in METHODS else "other", handler.get_status()).inc()
        self.seconds.labels(name).observe(handler.request.request_time())

    def _beat(self) -> None:
        now = time.perf_counter()
        self.late.observe(max(0.0, now - self._last - BEAT))
        self._last = now


class OnDisk(Collector):
    """Jobs, uploads and free space, looked at seldom; what cannot be read is left out.

    Parameters
    ----------
    settings
        Where they are.
    """

    def __init__(self, settings: Settings) -> None:
        self.workspace, self.uploads = settings.workspace, settings.uploads
        self.jobs = JobCounts(settings.workspace / "jobs")
        self._found: list[Metric] = []
        self._next = 0.0
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges."""
        with self._lock:
            if time.monotonic() >= self._next:
                self._found = []
                for look in (self._jobs, self._uploads, self._space):
                    try:
                        self._found += look()
                    except OSError as problem:
                        logger.warning("metrics: %s", problem)
                self._next = time.monotonic() + SELDOM
            return self._found

    def _jobs(self) -> Iterator[Metric]:
        counted = self.jobs.count()
        gauge = GaugeMetricFamily("mira_jobs", "Jobs in the workspace", labels=["kind", "state"])
        for kind in KINDS:
            for state in jobs.STATES:
                gauge.add_metric([kind, state], counted[kind, state])
        yield gauge

    def _uploads(self) -> Iterator[Metric]:
        sizes, coming = [], 0
        for path in self.uploads.rglob("*") if self.uploads.is_dir() else ():  # each person has a folder in it
            coming += path.suffix == ".part"
            if not path.name.startswith(".") and path.is_file():
                sizes.append(path.stat().st_size)
        yield GaugeMetricFamily("mira_uploads", "Files that were uploaded and are kept", len(sizes))
        yield GaugeMetricFamily("mira_uploads_bytes", "Their size", sum(sizes))
        yield GaugeMetricFamily("mira_uploads_unfinished", "Files that are coming, or were broken off", coming)

    def _space(self) -> Iterator[Metric]:
        disk = shutil.disk_usage(self.workspace)
        yield GaugeMetricFamily("mira_workspace_free_bytes", "Free space of the disk of the workspace", disk.free)
        yield GaugeMetricFamily("mira_workspace_size_bytes", "Size of the disk of the workspace", disk.total)


class JobCounts:
    """Counts jobs by kind and state; those that have ended are read once, unless their status is written again.

    Parameters
    ----------
    folder
        Of the jobs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: dict[str, tuple[int, str, str]] = {}  # key -> when its status was written, kind, state

    def count(self) -> Tally[tuple[str, str]]:
        """Return (kind, state) -> number of jobs; folders that are no jobs are passed over."""
        found: Tally[tuple[str, str]] = Tally()
        ended: dict[str, tuple[int, str, str]] = {}
        for folder in self.folder.iterdir():
            if folder.name.startswith("."):
                continue  # on its way to be deleted
            written = _written(folder / "status.json")
            known = self._ended.get(folder.name)
            if known is None or known[0] != written:
                try:
                    kind = json.loads((folder / "job.json").read_bytes())["kind"]
                    known = (written, kind, jobs.read_status(folder).state)
                except (OSError, ValueError, KeyError, TypeError):
                    continue
            if written and known[2] in jobs.ENDED:
                ended[folder.name] = known
            found[known[1:]] += 1
        self._ended = ended
        return found


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


class Scraped(RequestHandler):
    """Answers scrapers of this machine, and those who have the token."""

    def initialize(self, metrics: Metrics, token: str) -> None:
        """Take what is measured; without a token only this machine is answered."""
        self.metrics, self.token = metrics, token

    async def get(self) -> None:
        """Answer, or say how one is answered."""
        self.set_header("Cache-Control", "no-store")
        if not (self._is_here() or self._has_token()):
            self._refuse()
            return
        self.metrics.watch(self.application)
        self.metrics.count_sessions(self.application)
        text, kind = await asyncio.to_thread(self.metrics.text, self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", kind)
        self.finish(text)

    def _is_here(self) -> bool:
        """Tell whether this machine asks, and not a proxy on it for somebody else."""
        try:
            local = ipaddress.ip_address(self.request.remote_ip or "").is_loopback
        except ValueError:
            return False
        # A proxy that adds no header passes on the name that a browser asked for.
        passed_on = any(name in self.request.headers for name in PASSED_ON) or self.request.host_name not in HERE
        return local and not passed_on

    def _has_token(self) -> bool:
        way, _, given = self.request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode())
        return bool(self.token) and way.lower() == "bearer" and same

    def _refuse(self) -> None:
        self.set_status(401 if self.token else 403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if self.token:
            self.set_header("WWW-Authenticate", "Bearer")
            self.finish("send the token of MIRA_METRICS_TOKEN: Authorization: Bearer TOKEN\n")
        else:
            self.finish("only this machine is answered; to ask from another, start mira with MIRA_METRICS_TOKEN\n")


def routes(settings: Settings, token: str = "") -> list[tuple[str, type[Scraped], dict[str, Any]]]:
    """Return what a Tornado server needs to answer scrapers."""
    return [(AT, Scraped, {"metrics": Metrics(settings), "token": token})]


def __getattr__(name: str) -> Any:
    if name == "ROUTES":  # what `panel serve --plugins` asks for
        return routes(Settings.from_environment(), os.environ.get("MIRA_METRICS_TOKEN", ""))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
