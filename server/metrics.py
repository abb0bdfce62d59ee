"""Figures of a running server for Prometheus, and its health, over HTTP on 127.0.0.1 alone.

Labels are fixed codes: no site is named, and nothing that a stranger sent becomes a label. What a figure says can be
known to whoever has an account on this machine. So while a run with secret cohorts is played nothing is told that
grows with who takes part in a round: replies and bytes are not counted up to the next run, which begins to count bytes
at zero.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import psutil

from security.errors import UsageError
from security.frames import ACCEPTED, PENDING, Goodbye
from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from server.watchers import Watcher
from shared_models.faults import fault_of
from shared_models.plan import Plan

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOCAL: Final = "127.0.0.1"
_ROUND_SECONDS: Final = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 10800)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is counted when it is asked for.

    Attributes:
        sites: that are connected.
        members: that take part in the current run.
        waiting: plans in the queue that are not over.
        bytes_in, bytes_out: on the link since the server began.
        epsilon_max: largest epsilon a site has spent in the current run; None without privacy.
        mailbox_bytes: size of the mailbox on the disk.
        certificate_seconds: until the server's certificate expires.
    """

    sites: int
    members: int
    waiting: int
    bytes_in: int
    bytes_out: int
    epsilon_max: float | None
    mailbox_bytes: int
    certificate_seconds: float


class Metrics(Watcher):
    """Counts what happens; served by `MetricsServer`.

    Raises:
        UsageError: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram
        except ImportError:
            raise UsageError(
                "server.toml: metrics.port: needs the package prometheus-client; install it with "
                "'pip install veil-fl[server]', or remove metrics.port"
            ) from None
        self.registry = CollectorRegistry(auto_describe=False)
        self._rounds = Counter("veil_rounds", "Rounds played.", registry=self.registry)
        self._seconds = Histogram(
            "veil_round_seconds", "Wall time of a round.", buckets=_ROUND_SECONDS, registry=self.registry
        )
        self._replies = Counter("veil_replies", "Replies of sites that were stored.", registry=self.registry)
        self._faults = Counter(
            "veil_faults",
            "Sites missing from a round, or refusing a plan, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._refusals = Counter(
            "veil_refused_connections", "Connections refused or ended, by reason.", ("reason",), registry=self.registry
        )
        self._runs = Counter("veil_runs", "Runs that ended, by state.", ("state",), registry=self.registry)

        self._now: _Now | None = None
        self._secret = False

    def measure(self, snapshot: Callable[[], Snapshot]) -> None:
        """Tell this too, as it is when it is asked for."""
        self._now = _Now(snapshot)
        self.registry.register(self._now)

    def begins(self, entry: Entry, plan: Plan, folder: RunFolder) -> None:
        self._secret = plan.has_secret_cohorts  # up to the next run: of the last round it may be told late
        if self._now is not None:
            self._now.keep_traffic(self._secret)

    def round_done(self, record: RoundRecord) -> None:
        self._rounds.inc()
        if record.seconds is not None:
            self._seconds.observe(record.seconds)
        for fault in record.faults:
            self._faults.labels(fault["reason"]).inc()

    def reply_stored(self, site: str, task: str, size: int) -> None:
        if not self._secret:
            self._replies.inc()

    def refused(self, site: str | None, why: Goodbye) -> None:
        self._refusals.labels(why.reason).inc()

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        if why not in (None, Goodbye.DONE, Goodbye.SHUTDOWN):
            self._refusals.labels(why.reason).inc()

    def answered(self, site: str, code: int) -> None:
        if code not in (ACCEPTED, PENDING):
            self._faults.labels(fault_of(code).reason).inc()

    def ends(self, entry: Entry, folder: RunFolder) -> None:
        self._runs.labels(entry.state).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _Now:
    """What is measured when it is asked for."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._process = psutil.Process()
        self._kept = False
        self._from = (0, 0)

    def keep_traffic(self, keep: bool) -> None:
        """Tell of bytes no more; or again, from now on."""
        if self._kept and not keep:
            now = self._snapshot()
            self._from = (now.bytes_in, now.bytes_out)
        self._kept = keep

    def collect(self) -> Iterator[Metric]:
        """All of it, for the library."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = self._snapshot()
        gauges = {
            "veil_sites_connected": ("Sites that are connected.", now.sites),
            "veil_run_members": ("Sites that take part in the current run.", now.members),
            "veil_plans_waiting": ("Plans in the queue that are not over.", now.waiting),
            "veil_certificate_seconds": ("Until the server's certificate expires.", now.certificate_seconds),
            "veil_process_memory_bytes": ("Resident memory of the server.", self._process.memory_info().rss),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value=value)
        if now.epsilon_max is not None:
            meaning = "Largest epsilon a site has spent in the current run."
            yield GaugeMetricFamily("veil_epsilon_max", meaning, value=now.epsilon_max)
        if self._kept:
            return
        yield GaugeMetricFamily("veil_mailbox_bytes", "Size of the mailbox on the disk.", value=now.mailbox_bytes)
        sent = CounterMetricFamily("veil_link_bytes", "Bytes on the link.", labels=("direction",))
        sent.add_metric(("in",), now.bytes_in - self._from[0])
        sent.add_metric(("out",), now.bytes_out - self._from[1])
        yield sent


class MetricsServer:
    """`/metrics` and `/health` on 127.0.0.1.

    Args:
        port: of 127.0.0.1; 0 for any that is free.
        metrics: what is told.
        healthy: whether the link serves and the queue is being played.

    Raises:
        UsageError: the port is taken.
    """

    def __init__(self, port: int, metrics: Metrics, healthy: Callable[[], bool]) -> None:
        handler = type("Handler", (_Handler,), {"metrics": metrics, "healthy": staticmethod(healthy)})
        try:
            self._server = _Server((LOCAL, port), handler)
        except OSError as error:
            raise UsageError(
                f"server.toml: metrics.port = {port}: can't be listened at ({error.strerror}); choose another port"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="veil-metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone; the library would print a trace."""


class _Handler(BaseHTTPRequestHandler):
    metrics: Metrics
    healthy: Callable[[], bool]
    timeout = 10
    server_version = "veil"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == "/metrics":
            self._say(HTTPStatus.OK, self.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
        elif self.path == "/health":
            well = self.healthy()
            status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
            self._say(status, b"healthy\n" if well else b"not healthy\n", "text/plain; charset=utf-8")
        else:
            self._say(HTTPStatus.NOT_FOUND, b"/metrics or /health\n", "text/plain; charset=utf-8")

    def _say(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""
