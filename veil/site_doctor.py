"""`veil doctor --site`: whatever could keep a site from taking part, each in one line that says what to do."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from client.approvals import Approvals, PendingPlans
from client.conditions import Conditions
from client.datasets.registry import load_file
from client.membership import check_certificate
from client.offers import OfferError, check_site, least_memory
from client.resources import LEAST_MEMORY_MB
from client.site_books import read_split_key
from client.site_settings import SiteSettings, read_settings
from client.trainer import choose_device
from privacy.ledger import Ledger, LedgerError, default_anchors
from privacy.ledger.check import audit
from security import tls_probe
from security.certificates import expiry_warning
from security.enrolment import approved_roster, check_roster
from security.errors import UsageError
from security.homes import SiteHome
from security.identity import Identity
from shared_models import own
from shared_models.cards import KNOWN
from shared_models.plan import Plan
from shared_models.plan_data import DataPlan
from shared_models.registry import build_for
from veil.commands.doctor import Finding, run_checks

_LEAST_DISK = 2e9
_CLOCK_SLACK = 300.0  # seconds that two clocks may differ
_CONNECT_SECONDS = 10.0


def examine_site(home: SiteHome, passphrase: str | None = None) -> list[Finding]:
    """Every check of a site, in order. Nothing is changed; its client may be running.

    Args:
        home: of the site.
        passphrase: of its keys.
    """
    doctor = _Doctor(home, passphrase)
    checks: tuple[tuple[str, Callable[[], Finding | list[Finding]]], ...] = (
        ("home", doctor.home),
        ("settings", doctor.settings),
        ("certificate", doctor.certificate),
        ("roster", doctor.roster),
        ("clock", doctor.clock),
        ("address", doctor.address),
        ("connection", doctor.connection),
        ("ledger", doctor.ledger),
        ("data", doctor.data),
        ("plans", doctor.plans),
        ("device", doctor.device),
        ("memory", doctor.memory),
        ("disk", doctor.disk),
        ("schedule", doctor.schedule),
    )
    said: set[str] = set()
    found = []
    for finding in run_checks((name, _said(name, check)) for name, check in checks):
        if (
            finding.good or not finding.needed or finding.text not in said
        ):  # what is missing is missed by several checks, and named once
            found.append(finding)
            said.add(finding.text)
    return found


class _Doctor:
    def __init__(self, home: SiteHome, passphrase: str | None) -> None:
        self._home = home
        self._passphrase = passphrase
        self._answers = False

    @cached_property
    def _settings(self) -> SiteSettings:
        settings = read_settings(self._home.settings)
        own.bind(settings.models)
        return settings

    def home(self) -> Finding:
        self._home.check_here()
        if not self._home.path.is_dir():
            raise UsageError(f"{self._home.path}: is not a folder; name the site's home")
        return _good("home", str(self._home.path))

    def settings(self) -> list[Finding]:
        settings = self._settings
        budgets = [
            f"{own.unit} x {own.trust}: epsilon {own.epsilon:g} at delta {own.delta:g}" for own in settings.budget
        ]
        found = [_good("policy", f"{settings.digest()[:16]}; {'; '.join(budgets) or 'no budget'}")]
        if not settings.budget and not settings.release.entrust:
            found.append(
                _note("budget", f"{self._home.settings}: no [[budget]], so every private plan is refused; add one")
            )
        return found

    def certificate(self) -> Finding:
        identity = Identity.load(self._home.identity_key, self._passphrase)
        peer = check_certificate(self._home, site=self._settings.site, identity=identity.public_hex)
        read_split_key(self._home)
        now = time.time()
        warning = expiry_warning(peer, now)
        if warning is not None:
            return Finding("certificate", False, not peer.not_before <= now < peer.not_after, warning)
        until = datetime.fromtimestamp(peer.not_after, UTC).date().isoformat()
        return _good("certificate", f"site '{peer.name}' of '{peer.federation}', until {until}")

    def roster(self) -> Finding:
        roster = approved_roster(self._home)
        check_roster(self._home, roster)
        return _good("roster", f"{len(roster.sites)} sites, approved by this one")

    def clock(self) -> Finding:
        now, newest = time.time(), self._home.peer().not_before
        with suppress(LedgerError):  # which is told elsewhere
            newest = max(newest, _newest_entry(self._home.ledger))
        shown, late = (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (now, newest))
        if now + _CLOCK_SLACK < newest:
            return _bad("clock", f"shows {shown}, but something was written here at {late}; set the clock")
        return _good("clock", shown)

    def address(self) -> Finding:
        host, port = self._settings.server_address()
        proxy = self._settings.server.proxy
        if proxy:
            found = urlsplit(proxy)
            host, port = found.hostname or "", found.port or 80
        where = f"{host}:{port}" + (" (the proxy)" if proxy else "")
        began = time.monotonic()
        try:
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
        except socket.gaierror:
            return _bad("address", f"{where}: no machine of that name is found; check the name, and this machine's DNS")
        except TimeoutError:
            return _bad("address", f"{where}: no answer within {_CONNECT_SECONDS:g} s; is a firewall in between?")
        except OSError as error:
            reason = (error.strerror or "network error").lower()
            return _bad("address", f"{where}: can't be reached ({reason}); does the server run, and is the port right?")
        self._answers = True
        return _good("address", f"{where} answers within {1000 * (time.monotonic() - began):.0f} ms")

    def connection(self) -> Finding:
        if not self._answers:
            return _note("connection", "not tried, for there is nothing to connect to")
        server = self._settings.server
        wrong = tls_probe.explain(self._home, server.address, self._passphrase, proxy=server.proxy)
        if wrong is not None:
            return _bad("connection", wrong)
        return _good("connection", "TLS works, and both certificates are accepted")

    def ledger(self) -> Finding:
        path = self._home.ledger
        if not path.exists():
            if self._home.ledger_note.exists() or default_anchors(path).exists():
                raise LedgerError(f"{path}: is gone; put back the newest copy, and run `veil ledger recover`")
            return _good("ledger", "not begun yet: the first run makes it")
        problems = audit(path).problems
        if problems:
            more = f" (and {len(problems) - 1} more: veil ledger verify {path})" if len(problems) > 1 else ""
            return _bad("ledger", f"{problems[0]}{more}")
        with Ledger.open(path, read_only=True, anchors=default_anchors(path)) as ledger:
            places = [f"{scope}: {ledger.head(scope).position + 1} entries" for scope in ledger.scopes()]
        return _good("ledger", f"verified, {'; '.join(places) or 'no entries yet'}")

    def data(self) -> list[Finding]:
        if not self._settings.data:
            return [_note("data", f"{self._home.settings}: no [[data]], so every plan is refused; name your files")]
        key = read_split_key(self._home)
        found = []
        for file in self._settings.data:
            path = Path(file.path).expanduser()
            described = {
                plan.model_dump_json(exclude={"path", "partition"}): plan for plan in self._described(file.name)
            }
            if not described:
                state = (
                    "is there; no plan is known yet that describes it"
                    if path.exists()
                    else "is not there; mend the path"
                )
                found.append(Finding(f"data {file.name}", path.exists(), True, f"{path}: {state}"))
            for data in described.values():
                try:
                    records = load_file(data, kind=file.format, path=path, split_key=key)
                except UsageError as error:
                    found.append(_bad(f"data {file.name}", f"{error} (veil data check lists all)"))
                else:
                    found.append(_good(f"data {file.name}", f"{path}: {len(records)} records, as the card says"))
        return found

    def plans(self) -> list[Finding]:
        """Those that wait or are approved: would they run, and can their networks be built?"""
        found = []
        for plan in self._known_plans:
            name = f"plan {plan.name} ({plan.digest()[:8]})"
            try:
                check_site(plan, self._settings, federation=self._home.peer().federation)
                build_for(plan)
            except (OfferError, UsageError) as error:
                found.append(Finding(name, False, False, f"would be refused: {error}"))
            else:
                found.append(
                    _good(name, f"would run; its network takes {max(1, least_memory(plan) >> 20)} MB at least")
                )
        return found

    def device(self) -> Finding:
        wanted = self._settings.resources.device
        try:
            return _good("device", f"{choose_device(wanted)} (resources.device = '{wanted}')")
        except UsageError:
            return _bad(
                "device", f"resources.device = '{wanted}': this machine has none; mend it, or install the driver"
            )

    def memory(self) -> Finding:
        free, given = psutil.virtual_memory().available / 2**20, self._settings.resources.memory_mb
        if 0 < given < LEAST_MEMORY_MB:
            return _bad(
                "memory", f"resources.memory_mb = {given}: a client needs {LEAST_MEMORY_MB}; raise it, or set 0"
            )
        if free < max(given, LEAST_MEMORY_MB):
            return _note("memory", f"{free:.0f} MB free, less than the client may need; free some")
        return _good("memory", f"{free:.0f} MB free")

    def disk(self) -> Finding:
        free = shutil.disk_usage(self._home.path).free
        text = f"{free / 1e9:.1f} GB free in {self._home.path}"
        return (
            _good("disk", text)
            if free >= _LEAST_DISK
            else _note("disk", f"{text}; ledger and replies need room: free some")
        )

    def schedule(self) -> Finding:
        reason = Conditions(self._settings.schedule).may_work()
        return _good("schedule", "work may begin now") if reason is None else _note("schedule", f"work waits: {reason}")

    @cached_property
    def _known_plans(self) -> list[Plan]:
        pending = PendingPlans(self._home.pending)
        waiting = [pending.read(digest) for digest in pending.digests()]
        return [*waiting, *Approvals(self._home.approvals).plans().values()]

    def _described(self, name: str) -> Iterator[DataPlan]:
        """What is known of data of that name: a card that comes with Veil, and the cards of plans."""
        if name in KNOWN:
            yield DataPlan(name=name)
        for plan in self._known_plans:
            if plan.data.name == name:
                yield plan.data


def _newest_entry(path: Path) -> float:
    """When the newest entry of a ledger was written, in seconds since 1970; 0 without any."""
    with Ledger.open(path, read_only=True) as ledger:
        entries = [entry for scope in ledger.scopes() for entry in ledger.entries(scope)]
    return max((datetime.fromisoformat(entry.time).timestamp() for entry in entries), default=0.0)


def _said(name: str, check: Callable[[], Finding | list[Finding]]) -> Callable[[], Finding | list[Finding]]:
    """The check, with an error of ours as its finding."""

    def checked() -> Finding | list[Finding]:
        try:
            return check()
        except (UsageError, LedgerError) as error:
            return _bad(name, "; ".join(str(error).splitlines()))

    return checked


def _good(name: str, text: str) -> Finding:
    return Finding(name, True, True, text)


def _bad(name: str, text: str) -> Finding:
    return Finding(name, False, True, text)


def _note(name: str, text: str) -> Finding:
    return Finding(name, False, False, text)
