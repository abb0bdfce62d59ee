"""A server at work: everything that `veil server start` brings up in a home, and takes down again.

The link, the mailbox, the queue's daemon in a thread of its own, the operator's line, figures, log. What is wrong with
home, settings, plans or port is found out before a site is let in.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

from security.certificates import WARNING_DAYS, Peer
from security.credentials import server_credentials
from security.errors import RunError, UsageError
from security.frames import Goodbye
from security.home_lock import holding
from security.homes import ServerHome
from security.key_pairs import certificate_for
from security.revocation import Revocations
from server.aside import Aside
from server.daemon import Daemon, LoadTest
from server.doors import Doors, RosterFile
from server.gathering import answer_text
from server.limits import Limits
from server.link import LinkServer
from server.link_grid import LinkGrid
from server.logs import EventLog, LogWatcher
from server.mailbox import Mailbox
from server.metrics import Metrics, MetricsServer, Snapshot
from server.operator import OperatorSocket
from server.queue import Queue
from server.settings import ServerSettings, read_settings
from server.status import Status, certificate_status, queue_status, site_status
from server.tracking import TrackingWatcher, parse_trackers
from server.watchers import Watcher, Watchers
from shared_models import own
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan

_LOOK_SECONDS: Final = 60.0  # between two looks at certificate, roster and revocations
_DAY: Final = 86400.0

Signals = Callable[[Callable[[], None]], AbstractContextManager[Any]]
"""Has a signal to the process call a function, inside."""


def start(
    home: ServerHome,
    plans: Sequence[Plan],
    *,
    load_test: LoadTest,
    watcher: Watcher,
    signals: Signals,
    stay: bool = False,
    passphrase: str | None = None,
) -> int:
    """Put plans into the queue and serve until all are played; with `stay`, until the operator stops it.

    Returns:
        The exit code: 0 done or stopped, 1 if a run failed, 3 if one ended for want of budget.

    Raises:
        UsageError: home, settings, plans or port won't do, a server runs here already, or a run here is not over.
        RunError: a run could not go on.
    """
    with holding(home.lock, "a running server"), ExitStack() as stack:
        service = _Service.open(home, stack, load_test=load_test, watcher=watcher, passphrase=passphrase)
        cut_off = [entry for entry in service.queue.entries if entry.state in ("running", "stopped", "failed")]
        if cut_off:
            raise UsageError(
                f"{home.path}: the run {cut_off[0].run} ({cut_off[0].name}) is not over; go on with: veil server "
                f"resume {home.path}; or give it up with: veil server drop {home.path} {cut_off[0].run}"
            )
        service.daemon.submit_all(plans)
        if service.queue.next is None and not stay:
            raise UsageError(f"{home.path}: give a PLAN, or --stay to wait for some; nothing is queued")
        return service.serve(stack, signals, stay=stay)


def resume(
    home: ServerHome,
    *,
    load_test: LoadTest,
    watcher: Watcher,
    signals: Signals,
    stay: bool = False,
    passphrase: str | None = None,
) -> int | None:
    """Go on with the queue where a server stopped, failed or was killed.

    Returns:
        The exit code as for `start`; None if there was nothing to go on with.

    Raises:
        UsageError, RunError: as for `start`.
    """
    with holding(home.lock, "a running server"), ExitStack() as stack:
        service = _Service.open(home, stack, load_test=load_test, watcher=watcher, passphrase=passphrase)
        if service.queue.next is None and not stay:
            return None
        return service.serve(stack, signals, stay=stay)


def drop(home: ServerHome, run: str) -> None:
    """Take a run out of the queue of a server that is down, with what sites have said in it. Its folder stays.

    Raises:
        UsageError: there is no such run that is not over, or a server runs.
    """
    with holding(home.lock, "a running server"):
        queue = Queue.read(home.path, home.queue)
        known = [entry.run for entry in queue.entries if not entry.is_over]
        if run not in known:
            raise UsageError(f"{run}: no such run in the queue; known: {', '.join(known) or 'none'}")
        queue.remove(run)
        mailbox = Mailbox.open(home.mailbox)
        try:
            mailbox.forget(run)
        finally:
            mailbox.close()


@dataclass(kw_only=True)
class _Service:
    """What belongs together while a server runs."""

    home: ServerHome
    settings: ServerSettings
    queue: Queue
    doors: Doors
    roster: RosterFile
    revocations: Revocations
    mailbox: Mailbox
    link: LinkServer
    daemon: Daemon
    watcher: Watchers
    metrics: Metrics | None
    passphrase: str | None = field(repr=False)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    port: int = 0
    thread: threading.Thread | None = None
    warned: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(
        cls, home: ServerHome, stack: ExitStack, *, load_test: LoadTest, watcher: Watcher, passphrase: str | None
    ) -> _Service:
        """Everything but what others can see: nothing listens yet."""
        settings = read_settings(home.settings)
        own.bind(settings.models)
        roster, revocations = RosterFile(home), Revocations.of_home(home)
        if settings.federation != roster.federation:
            raise UsageError(
                f"{home.settings}: federation = '{settings.federation}', but this home belongs to '{roster.federation}'"
            )
        _check_certificate(home.peer(), home)
        credentials = server_credentials(home, passphrase)
        queue = Queue.read(home.path, home.queue)
        metrics = Metrics() if settings.metrics.port else None
        log = EventLog(home.log)
        stack.callback(log.close)
        told: list[Watcher] = [watcher, LogWatcher(log), *([] if metrics is None else [metrics])]
        if settings.tracking.asked:
            trackers = parse_trackers(settings.tracking.asked, home.settings.parent)
            told.append(TrackingWatcher(trackers, Watchers(told[:2])))
        watchers = Watchers(told)
        aside = Aside(watchers)
        stack.callback(aside.close)
        mailbox = Mailbox.open(home.mailbox)
        stack.callback(mailbox.close)
        played = {entry.run for entry in queue.entries if not entry.is_over}
        for run in sorted({*mailbox.runs()} - played):  # over or dropped, but its server was killed before it forgot
            mailbox.forget(run)
        doors = Doors(federation=roster.federation, sites=roster.sites, is_revoked=revocations.is_revoked)
        link = LinkServer(
            address=settings.address,
            credentials=credentials,
            mailbox=mailbox,
            doors=doors,
            limits=Limits(largest_message=settings.largest_message << 20, most_sites=settings.most_sites),
            beat_seconds=settings.beat_seconds,
            observer=aside,
        )

        def grid(run: str, members: Sequence[str]) -> LinkGrid:
            return LinkGrid(link, mailbox, run=run, members=members, deadline=settings.deadline_seconds)

        daemon = Daemon(
            queue=queue,
            settings=settings,
            link=link,
            grid=grid,
            forget=mailbox.forget,
            sites=lambda: _let_in(link),
            load_test=load_test,
            watcher=watchers,
        )
        service = cls(
            home=home,
            settings=settings,
            queue=queue,
            doors=doors,
            roster=roster,
            revocations=revocations,
            mailbox=mailbox,
            link=link,
            daemon=daemon,
            watcher=watchers,
            metrics=metrics,
            passphrase=passphrase,
        )
        if metrics is not None:
            metrics.measure(service.snapshot)
        return service

    def serve(self, stack: ExitStack, signals: Signals, *, stay: bool) -> int:
        """Listen, play the queue, and take everything down again."""
        codes: list[int] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                codes.append(self.daemon.run(stay=stay))
            except BaseException as error:  # whatever it is, the main thread is to say it
                errors.append(error)

        self.thread = threading.Thread(target=run, name="veil-run", daemon=True)
        operator = OperatorSocket(self.home.socket, self._answer)
        stack.callback(operator.close)
        if self.metrics is not None:
            figures = MetricsServer(self.settings.metrics.port, self.metrics, self.is_healthy)
            stack.callback(figures.close)
        self.port = self.link.start()
        stack.callback(lambda: self.link.stop(why=self._farewell(codes)))
        closing = threading.Event()
        caretaker = threading.Thread(target=self._take_care, args=(closing,), name="veil-caretaker", daemon=True)
        caretaker.start()
        stack.callback(caretaker.join)
        stack.callback(closing.set)
        operator.start()
        self.watcher.serving(self.port)
        with signals(self.daemon.stop):
            self.thread.start()
            self.thread.join()
        if errors:
            raise errors[0]
        return codes[0]

    def _farewell(self, codes: list[int]) -> Goodbye:
        """What sites are told: only when everything is played they need not call again."""
        over = self.queue.next is None and bool(codes) and not self.daemon.is_stopping
        return Goodbye.DONE if over else Goodbye.SHUTDOWN

    # --- what is asked while it runs

    def is_healthy(self) -> bool:
        """Whether the link serves and the queue is being played."""
        return self.link.is_serving and self.thread is not None and self.thread.is_alive()

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        match request.get("ask"):
            case "status":
                return {"status": self.status()}
            case "health":
                return {"healthy": self.is_healthy()}
            case "stop":
                self.daemon.stop()
                return {}
            case "revoke":
                site = str(request.get("site"))
                connected = site in self.link.connected()
                self.link.close_site(site, Goodbye.REVOKED)
                return {"connected": connected}
            case "submit":
                text = request.get("plan")
                if not isinstance(text, str):
                    raise UsageError("submit: the plan is missing")
                entry = self.daemon.submit(parse_plan(text, where="plan"))
                return {"run": entry.run, "name": entry.name, "folder": str(self.queue.folder(entry))}
        raise UsageError("the server doesn't know this request; is it another version of Veil?")

    def status(self) -> Status:
        """Everything, as plain JSON values."""
        now = self.daemon.progress.now
        answers, there = self.link.answers(), self.link.connected()
        sites = []
        for site in sorted({*self.doors.sites(), *there}):
            found = there.get(site)
            known: dict[str, Any] = {
                "connected": found is not None,
                "plan": answer_text(answers.get(site)) if now is not None else "none",
                "tasks": 0 if now is None else len(self.mailbox.open_tasks(site, now.run)),
            }
            if found is not None:
                known |= {
                    "since": datetime.fromtimestamp(found.since, UTC).isoformat(timespec="seconds"),
                    "heard": round(found.silent, 1),
                    "bytes_in": found.received,
                    "bytes_out": found.sent,
                    "expires": found.peer.not_after,
                    "software": found.software,
                }
            bars = self.link.barred(site)
            sites.append(site_status(site, revoked=bars is Goodbye.REVOKED, **known))
        return {
            "server": {
                "up": True,
                "healthy": self.is_healthy(),
                "stopping": self.daemon.is_stopping,
                "federation": self.settings.federation,
                "address": self.settings.address,
                "port": self.port,
                "pid": os.getpid(),
                "since": self.since,
                "software": version("veil-fl"),
                "certificate": certificate_status(self.home),
                "warnings": list(self.problems().values()),
            },
            "queue": queue_status(self.queue, now),
            "sites": sites,
        }

    def snapshot(self) -> Snapshot:
        """For the figures."""
        now, entries = self.daemon.progress.now, self.queue.entries
        certificate = certificate_status(self.home)
        received, sent = self.link.traffic()
        return Snapshot(
            sites=len(self.link.connected()),
            members=0 if now is None else sum(len(entry.members) for entry in entries if entry.run == now.run),
            waiting=sum(not entry.is_over for entry in entries),
            bytes_in=received,
            bytes_out=sent,
            epsilon_max=None if now is None else now.epsilon,
            mailbox_bytes=_size(self.home),
            certificate_seconds=0.0 if certificate is None else certificate["expires"] - time.time(),
        )

    # --- what the operator should do something about

    def problems(self) -> dict[str, str]:
        """One line each, by a fixed code."""
        found = {}
        certificate = certificate_status(self.home)
        if certificate is None:
            found["certificate-unreadable"] = f"{self.home.certificate}: can't be read; put it back"
        elif certificate["days"] < WARNING_DAYS:
            what = (
                "has expired: no site can connect"
                if certificate["days"] <= 0
                else (f"expires in {certificate['days']:.0f} days")
            )
            found["certificate-expires"] = (
                f"the server's certificate {what}; renew it (veil provision server --renew at the authority)"
            )
        if certificate is not None:
            try:
                certificate_for(self.home.tls_key, self.home.certificate, self.passphrase)
            except UsageError as error:  # a renewal half done: what the files say is not what sites are shown
                found["certificate-not-taken"] = f"{error}; until then the certificate of before is used"
        if self.revocations.problem is not None:
            found["revocations"] = self.revocations.problem
        if self.roster.problem is not None:
            found["roster"] = self.roster.problem
        return found

    def _take_care(self, closing: threading.Event) -> None:
        """Warn of problems when they come, and once a day while they stay."""
        while True:
            for code, text in self.problems().items():
                if time.monotonic() - self.warned.get(code, -_DAY) >= _DAY:
                    self.warned[code] = time.monotonic()
                    self.watcher.warns(code, text)
            if closing.wait(_LOOK_SECONDS):
                return


def _check_certificate(peer: Peer, home: ServerHome) -> None:
    now = time.time()
    if peer.role != "server":
        raise UsageError(f"{home.certificate}: is a site's certificate; put the server's there")
    if now > peer.not_after:
        raise UsageError(f"{home.certificate}: has expired; renew it (veil provision server --renew at the authority)")
    if now < peer.not_before:
        raise UsageError(f"{home.certificate}: is not valid yet; set this machine's clock right")


def _let_in(link: LinkServer) -> dict[str, str]:
    """The sites of the roster that are not revoked, as far as is known, each with the key of its identity."""
    return {site: key for site, key in sorted(link.doors.sites().items()) if link.barred(site) is None}


def _size(home: ServerHome) -> int:
    """Bytes of the mailbox on the disk, with SQLite's log."""
    total = 0
    for path in (home.mailbox, home.mailbox.with_name(home.mailbox.name + "-wal")):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def in_a_servers_words(error: RunError, home: ServerHome) -> RunError:
    """The same error with what to do about it here."""
    go_on = f"go on with: veil server resume {home.path}"
    text = str(error)
    return RunError(text.replace("go on with --resume", go_on) if "--resume" in text else f"{text}; {go_on}")
