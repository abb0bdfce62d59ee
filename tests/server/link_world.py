"""A running link with a federation around it, whose rules a test may change at any time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from security.frames import Goodbye, Taken
from server.doors import Doors
from server.limits import Limits
from server.link import LinkServer
from server.mailbox import Mailbox, Payload, Task
from tests.server.link_certificates import FEDERATION, Credentials, TestAuthority, server_credentials
from tests.server.link_client import SECONDS, LinkClient, Site, Work

RUN, PLAN, DIGEST = "ab12", "name = 'digits'\n", "d" * 64
AUTHORITY = TestAuthority()
_known: dict[str, Credentials] = {}


def credentials_of(site: str) -> Credentials:
    """A site's certificate; made once, since keys take time."""
    if site not in _known:
        _known[site] = AUTHORITY.site(site)
    return _known[site]


class Diary:
    """Writes down what happens on the link, and lets a test wait for it."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()

    def _note(self, *entry: Any) -> None:
        with self._changed:
            self.entries.append(entry)
            self._changed.notify_all()

    def wait_for(self, *beginning: Any) -> tuple[Any, ...]:
        """The first entry that begins so."""

        def found() -> tuple[Any, ...] | None:
            return next((entry for entry in self.entries if entry[: len(beginning)] == beginning), None)

        with self._changed:
            assert self._changed.wait_for(found, SECONDS), (beginning, self.entries)
        entry = found()
        assert entry is not None
        return entry

    def connected(self, site: str, software: str) -> None:
        self._note("connected", site, software)

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        self._note("disconnected", site, why, seconds)

    def refused(self, site: str | None, why: Goodbye) -> None:
        self._note("refused", site, why)

    def answered(self, site: str, code: int) -> None:
        self._note("answered", site, code)

    def task_sent(self, site: str, task: str, size: int) -> None:
        self._note("sent", site, task, size)

    def reply_stored(self, site: str, task: str, size: int) -> None:
        self._note("stored", site, task, size)

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        self._note("not taken", site, task, taken)

    def failed(self, site: str | None, where: str) -> None:
        self._note("failed", site, where)


class World:
    """A federation of these sites, and its server.

    Args:
        path: of the mailbox.
        sites: names on the roster.
        limits: of the link; a site may call again at once unless they say otherwise.
        beat_seconds: of the link.
    """

    def __init__(
        self,
        path: Path,
        sites: Sequence[str] = ("north", "south", "east", "west"),
        *,
        limits: Limits | None = None,
        beat_seconds: float = 10.0,
    ) -> None:
        self.sites = {site: credentials_of(site).identity for site in sites}
        self.revoked: set[str] = set()
        self.clock_error = 0.0  # seconds by which the server's clock is wrong
        self.diary = Diary()
        self.mailbox = Mailbox.open(path)
        self.link = LinkServer(
            address="127.0.0.1:0",
            credentials=server_credentials(AUTHORITY),
            mailbox=self.mailbox,
            doors=Doors(
                federation=FEDERATION, sites=lambda: self.sites, is_revoked=lambda peer: peer.name in self.revoked
            ),
            limits=limits or Limits(hello_gap_seconds=0.0),
            beat_seconds=beat_seconds,
            observer=self.diary,
            clock=lambda: time.time() + self.clock_error,
        )
        self.port = 0
        self._open: list[LinkClient | Site] = []

    def start(self) -> World:
        """Listen."""
        self.port = self.link.start()
        return self

    def close(self) -> None:
        """Stop everything."""
        for client in self._open:
            client.close()
        self.link.stop()
        self.mailbox.close()

    # --- sites

    def client(self, site: str = "north", **settings: Any) -> LinkClient:
        """A stream that has said nothing yet."""
        client = LinkClient(self.port, AUTHORITY, credentials_of(site), **settings)
        self._open.append(client)
        return client

    def inside(self, site: str = "north", **hello: Any) -> LinkClient:
        """A stream that has come in."""
        client = self.client(site)
        client.hello(site, **hello)
        return client

    def member(self, site: str = "north", **hello: Any) -> LinkClient:
        """A stream that has accepted the offer."""
        client = self.inside(site, **hello)
        client.accept()
        return client

    def site(self, name: str, work: Work, *, holding: tuple[str, ...] = ()) -> Site:
        """An honest site."""
        site = Site(name, work, self.port, AUTHORITY, credentials_of(name), holding=holding)
        self._open.append(site)
        return site

    # --- the server

    def offer(self) -> None:
        """Offer the plan."""
        self.link.offer(RUN, PLAN, DIGEST)

    def post(self, task: str, site: str = "north", payload: bytes = b"model", **changes: Any) -> None:
        """Ask a site for something."""
        fields: dict[str, Any] = {"run": RUN, "kind": "train", "group": "1", "header": b"head", **changes}
        self.mailbox.post([Task(id=task, site=site, payload=Payload.of(payload), **fields)])
        self.link.notify_tasks([site])

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something; not all of it is told of by the link."""
        deadline = time.monotonic() + SECONDS
        while not self.link.wait(condition, 0.02):
            assert time.monotonic() < deadline

    def replied(self, task: str) -> bytes | None:
        """A task's reply, if it has one."""
        found = self.mailbox.reply(task)
        return None if found is None else bytes(found.payload)
