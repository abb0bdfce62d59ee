"""Figures and health, for programs on this machine alone."""

from __future__ import annotations

import builtins
import http.client
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from security.errors import UsageError
from security.frames import ACCEPTED, PENDING, Goodbye
from server.metrics import LOCAL, Metrics, MetricsServer, Snapshot
from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from shared_models.faults import Fault
from tests.server.fake_link import secret_plan, small_plan

NOW = Snapshot(
    sites=2,
    members=3,
    waiting=1,
    bytes_in=10,
    bytes_out=20,
    epsilon_max=0.5,
    mailbox_bytes=4096,
    certificate_seconds=86400.0,
)
RECORD = RoundRecord(
    round=1,
    seconds=2.5,
    cohort=2,
    updates=1,
    faults=[{"client": "clinic-b", "reason": "timed-out"}],
    train_loss=None,
    epsilon_max=0.5,
    bytes_up=1,
    bytes_down=2,
    evaluation=None,
)
ENTRY = Entry(run="ab", name="digits", digest="0", plan="p", folder="f", added="now", state="done")


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    made.measure(lambda: NOW)
    return made


@pytest.fixture
def healthy() -> list[bool]:
    return [True]


@pytest.fixture
def server(metrics: Metrics, healthy: list[bool]) -> Iterator[MetricsServer]:
    made = MetricsServer(0, metrics, lambda: healthy[0])
    yield made
    made.close()


def get(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, str]:
    line = http.client.HTTPConnection(LOCAL, server.port, timeout=30)
    try:
        line.request(method, path)
        answer = line.getresponse()
        return answer.status, answer.read().decode()
    finally:
        line.close()


def figures(text: str) -> dict[tuple[str, ...], float]:
    """Each figure by its name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_happened_is_counted(metrics: Metrics, server: MetricsServer) -> None:
    metrics.round_done(RECORD)
    metrics.reply_stored("clinic-a", "0" * 64, 10)
    metrics.refused("clinic-c", Goodbye.REVOKED)
    metrics.refused(None, Goodbye.UNKNOWN_SITE)
    metrics.disconnected("clinic-a", Goodbye.SILENT, 3.0)
    metrics.disconnected("clinic-a", None, 3.0)
    metrics.answered("clinic-a", ACCEPTED)
    metrics.answered("clinic-a", PENDING)
    metrics.answered("clinic-b", int(Fault.POLICY_UNIT))
    metrics.ends(ENTRY, RunFolder.__new__(RunFolder))
    status, text = get(server, "/metrics")
    found = figures(text)
    assert status == 200
    assert found["veil_rounds_total",] == 1
    assert found["veil_round_seconds_sum",] == 2.5
    assert found["veil_replies_total",] == 1
    assert found["veil_faults_total", "timed-out"] == 1
    assert found["veil_faults_total", "policy-unit"] == 1
    assert sum(value for name, value in found.items() if name[0] == "veil_faults_total") == 2
    assert found["veil_refused_connections_total", "revoked"] == 1
    assert found["veil_refused_connections_total", "unknown-site"] == 1
    assert found["veil_refused_connections_total", "silent"] == 1
    assert found["veil_runs_total", "done"] == 1
    assert found["veil_sites_connected",] == 2
    assert found["veil_run_members",] == 3
    assert found["veil_plans_waiting",] == 1
    assert found["veil_link_bytes_total", "in"] == 10
    assert found["veil_link_bytes_total", "out"] == 20
    assert found["veil_epsilon_max",] == 0.5
    assert found["veil_mailbox_bytes",] == 4096
    assert found["veil_certificate_seconds",] == 86400
    assert found["veil_process_memory_bytes",] > 1e6
    assert "clinic" not in text


def test_figures_do_not_grow_with_a_secret_cohort() -> None:
    metrics, now = Metrics(), [NOW]
    metrics.measure(lambda: now[0])
    folder = RunFolder.__new__(RunFolder)
    before = figures(metrics.text().decode())
    metrics.begins(ENTRY, secret_plan(), folder)
    metrics.reply_stored("clinic-a", "0" * 64, 10)
    now[0] = replace(NOW, bytes_in=1000, bytes_out=2000, mailbox_bytes=1 << 20)
    metrics.ends(ENTRY, folder)
    during = figures(metrics.text().decode())
    missing = {name[0] for name in before} - {name[0] for name in during}
    assert missing == {"veil_link_bytes_total", "veil_mailbox_bytes"}
    assert during["veil_replies_total",] == 0
    metrics.begins(ENTRY, small_plan(), folder)
    metrics.reply_stored("clinic-a", "0" * 64, 10)
    now[0] = replace(now[0], bytes_in=1007, bytes_out=2009)
    after = figures(metrics.text().decode())
    assert (after["veil_link_bytes_total", "in"], after["veil_link_bytes_total", "out"]) == (7, 9)
    assert after["veil_replies_total",] == 1


def test_health_is_200_only_when_all_is_well(server: MetricsServer, healthy: list[bool]) -> None:
    assert get(server, "/health") == (200, "healthy\n")
    healthy[0] = False
    assert get(server, "/health") == (503, "not healthy\n")


def test_there_is_nothing_else(server: MetricsServer) -> None:
    assert get(server, "/")[0] == 404
    assert get(server, "/metrics", "POST")[0] == 501


def test_nobody_outside_this_machine_can_ask(server: MetricsServer) -> None:
    assert server._server.server_address[0] == "127.0.0.1"


def test_nonsense_does_no_harm(server: MetricsServer) -> None:
    with socket.create_connection((LOCAL, server.port), timeout=30) as line:
        line.sendall(b"\xff\x00nonsense\r\n\r\n")
        line.recv(1 << 16)
    assert get(server, "/health")[0] == 200


def test_a_port_that_is_taken_is_one_line(metrics: Metrics, server: MetricsServer) -> None:
    with pytest.raises(UsageError, match=rf"^server\.toml: metrics\.port = {server.port}: [^\n]*choose another port$"):
        MetricsServer(server.port, metrics, lambda: True)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"^[^\n]*metrics\.port[^\n]*pip install veil-fl\[server\][^\n]*$"):
        Metrics()
