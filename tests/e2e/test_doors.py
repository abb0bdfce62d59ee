"""Every door but the right one is shut: real clients' processes at a real link, each with something wrong.

One federation and one server, which knows who got as far as a handler. A client that is refused says why in one line.
It ends where calling again is of no use, and goes on calling, without a further word, where something may change.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from security.authority import certify_site
from security.certificates import DAY, read_peer, server_name
from security.credentials import server_credentials
from security.frames import ACCEPTED, LARGEST_FRAME, Frame, Goodbye, Offer, Receipt, Taken, Welcome, encode
from security.homes import AuthorityHome, SiteHome
from security.identity import Identity
from security.key_files import load_tls_key
from security.kits import make_kits
from security.private_files import replace_file
from security.revocation import revoke_here
from security.roster import read_roster, sign_roster, write_roster
from server.doors import Doors
from server.limits import Limits
from server.link import LinkServer
from server.mailbox import Mailbox, Payload, Task
from shared_models.flower_messages import message_from_bytes
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS
from simulations.deployment.pilot import Pilot
from simulations.deployment.site_data import SiteFile
from tests.client.conftest import content_of, plan_of
from tests.client.link_client import task_of
from tests.client.real_site import write_rows
from tests.security.small_federation import Leaf, Signer
from tests.server.link_certificates import Credentials
from tests.server.link_client import LinkClient, begin, hello, task_id
from tests.server.link_world import Diary

SECONDS = 120.0  # patience; never waited for when all is well
RUN = "ab12"
SITES = ("good", "outsider", "spare", "bare", "expired", "revoked", "unknown", "misnamed", "plain", "ancient")
CALLING = re.compile(r"site \S+: calling \S+")


class CountedLink(LinkServer):
    """Notes the certificate of everybody who gets as far as a handler."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.callers: list[bytes] = []

    async def serve(self, pem: bytes, read: Any, write: Any) -> None:
        self.callers.append(pem)
        await super().serve(pem, read, write)

    def handled(self, certificate: bytes) -> bool:
        """Whether a handler ran for who showed this certificate."""
        return any(_serial(pem) == _serial(certificate) for pem in self.callers)


def _serial(pem: bytes) -> int:
    return read_peer(pem).serial


@dataclass
class World:
    """A federation with a server in this process, and with sites as processes.

    Attributes:
        pilot: homes and processes.
        impostor: the homes of another authority, which says that it is of the same federation.
        ports: where a site calls that doesn't call the server.
    """

    pilot: Pilot
    impostor: Pilot
    link: CountedLink
    mailbox: Mailbox
    diary: Diary
    plan: Plan
    ports: dict[str, int]

    @property
    def authority(self) -> Any:
        """As `LinkClient` wants it."""
        home = self.pilot.site("good")
        return SimpleNamespace(federation="pilot", certificate=home.authority_certificate.read_bytes())

    @property
    def signer(self) -> Signer:
        """Signs whatever a test wants."""
        return Signer.of(AuthorityHome(self.pilot.folder / "authority"))

    def credentials(self, site: str) -> Credentials:
        home = self.pilot.site(site)
        return Credentials(home.certificate.read_bytes(), home.tls_key.read_bytes(), "")

    def client(self, site: str) -> LinkClient:
        """A stream of a site's own, which says what a test wants."""
        return LinkClient(self.pilot.port, self.authority, self.credentials(site))

    def inside(self, site: str) -> LinkClient:
        client = self.client(site)
        client.send(hello(site, federation="pilot"))
        client.receive(Welcome)
        return client

    def until(self, condition: Callable[[], bool], what: Callable[[], str] = lambda: "") -> None:
        """Wait for something; not all of it is told of by the link."""
        deadline = time.monotonic() + SECONDS
        while not self.link.wait(condition, 0.05):
            assert time.monotonic() < deadline, what()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("doors")
    pilot = Pilot.provision(folder / "pilot", SITES)
    make_kits(_description(folder / "impostor", pilot.port), folder / "impostor", now=time.time())
    (folder / "impostor" / "output").mkdir()
    impostor = Pilot(folder=folder / "impostor", sites=("good",), port=pilot.port)
    plan = plan_of(privacy={"noise": "secret", "noise_multiplier": None, "epsilon": 5.0})
    for home in (pilot, impostor):
        for site in home.sites:
            _settle(home, site, plan)
    mailbox, diary = Mailbox.open(folder / "mailbox.sqlite"), Diary()
    link = CountedLink(
        address=f"127.0.0.1:{pilot.port}",
        credentials=server_credentials(pilot.server),
        mailbox=mailbox,
        doors=Doors.of_home(pilot.server),
        limits=Limits(hello_gap_seconds=0.0, largest_message=1 << 20),
        observer=diary,
    )
    with _plaintext() as plain, _ancient(pilot, folder) as ancient:
        world = World(pilot, impostor, link, mailbox, diary, plan, {"plain": plain, "ancient": ancient})
        for spoil in (_bare, _expired, _revoked, _unknown, _misnamed):
            spoil(world)
        for site, port in world.ports.items():
            _call_elsewhere(world, site, port)
        link.start()
        link.offer(RUN, write_plan(plan), plan.digest())
        try:
            # All at once: most of the time is spent on starting.
            for site in SITES:
                if site not in ("good", "spare"):
                    pilot.start_site(site)
            impostor.start_site("good")
            yield world
        finally:
            pilot.close()
            impostor.close()
            link.stop()
            mailbox.close()


def _description(folder: Path, port: int) -> Path:
    folder.mkdir()
    path = folder / "federation.toml"
    path.write_text(
        f'name = "pilot"\nsites = ["good"]\n[server]\naddress = "127.0.0.1:{port}"\nnames = ["localhost"]\n'
    )
    return path


def _settle(pilot: Pilot, site: str, plan: Plan) -> None:
    """Records, and a budget for the plan."""
    rows = pilot.site(site).path / "rows.csv"
    write_rows(rows, rows=20)
    balance, privacy = plan.balance, plan.privacy
    budget = {"unit": balance.unit, "trust": balance.trust, "epsilon": privacy.epsilon, "delta": privacy.delta}
    changes = {
        "budget": [budget],
        "approval": {"plans": "policy"},
        "schedule": {"on_battery": True, "metered": True},
    }
    pilot.configure_site(site, changes, SiteFile(name=plan.data.name, format="csv", path=rows))


# --- what is wrong with each site


def _bare(world: World) -> None:
    world.pilot.site("bare").certificate.unlink()


def _expired(world: World) -> None:
    home, signer = world.pilot.site("expired"), world.signer
    pem = certify_site(
        signer.pem,
        signer.key,
        federation="pilot",
        site="expired",
        key=load_tls_key(home.tls_key, None).public_key(),
        identity=Identity.load(home.identity_key).public_hex,
        now=signer.now - 400 * DAY,
    )
    replace_file(home.certificate, pem)


def _revoked(world: World) -> None:
    revoke_here(world.pilot.server, "revoked")


def _unknown(world: World) -> None:
    path = world.pilot.server.roster
    roster = read_roster(path)
    sites = {name: identity for name, identity in roster.sites.items() if name != "unknown"}
    write_roster(path, sign_roster(replace(roster, sites=sites), world.signer.key))


def _misnamed(world: World) -> None:
    _change(world.pilot.site("misnamed"), r'(?m)^site = "misnamed"', 'site = "good"')


def _call_elsewhere(world: World, site: str, port: int) -> None:
    _change(world.pilot.site(site), r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}")


def _change(home: SiteHome, old: str, new: str) -> None:
    text, times = re.subn(old, new, home.settings.read_text())
    assert times == 1
    home.settings.write_text(text)


@contextmanager
def _plaintext() -> Iterator[int]:
    """gRPC without TLS."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@contextmanager
def _ancient(pilot: Pilot, folder: Path) -> Iterator[int]:
    """The server's own certificate, shown over TLS 1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.load_cert_chain(pilot.server.certificate, pilot.server.tls_key)
    is_over = threading.Event()

    def serve() -> None:
        while not is_over.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection, context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        is_over.set()
        thread.join()


# --- what a client says


@dataclass(frozen=True)
class Door:
    """What a client with something wrong is to say.

    Attributes:
        words: in its one line.
        code: its exit code; None if it goes on calling.
        handled: whether it gets as far as a handler: TLS can't know what is wrong with it.
    """

    words: str
    code: int | None
    handled: bool = False


DOORS = {
    "bare": Door("site.pem", 2),
    "misnamed": Door("site = 'good', but the certificate was issued to 'misnamed'", 2),
    "expired": Door("expired on", None),
    "impostor": Door("its certificate is of another authority than the one that this site knows", None),
    "plain": Door("speaks no TLS there; is it the right port?", None),
    "ancient": Door("speaks no TLS 1.2 or 1.3", None),
    "revoked": Door("revoked: this site's certificate was revoked", 1, handled=True),
    "unknown": Door("unknown-site: it doesn't know this site", 1, handled=True),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_client_that_is_refused_says_why_in_one_line(world: World, name: str) -> None:
    door = DOORS[name]
    pilot, site = (world.impostor, "good") if name == "impostor" else (world.pilot, name)
    home, process = pilot.site(site), pilot.processes[site]

    def reasons() -> list[str]:
        lines = pilot.output(site).splitlines()
        return [line for line in lines if not CALLING.fullmatch(line) and not line.startswith("ended; peak memory")]

    if door.code is None:
        world.until(lambda: _calls(home) >= 2, lambda: pilot.output(site))
        assert process.poll() is None, "it gave up"
    else:
        assert pilot.wait(site, SECONDS) == door.code
    (reason,) = reasons()
    assert door.words in reason
    assert len(reason) < 300
    if home.certificate.exists():
        assert world.link.handled(home.certificate.read_bytes()) is door.handled, world.link.callers
    assert site not in world.link.connected()
    process.kill()


def _calls(home: SiteHome) -> int:
    """How many calls have failed, as the client's log says."""
    lines = home.log.read_text().splitlines() if home.log.exists() else []
    return sum(json.loads(line)["event"] == "not connected" for line in lines)


# --- what needs no client of Veil's: refused in the handshake, before any handler


def _leaf(leaf: Leaf) -> Credentials:
    return Credentials(leaf.pem, leaf.key_pem, leaf.identity)


STRANGERS: dict[str, Callable[[World], Credentials]] = {
    "of another authority": lambda world: _leaf(Signer("pilot").site("good")),
    "expired": lambda world: _leaf(world.signer.site("good", now=time.time() - 400 * DAY)),
    "not valid yet": lambda world: _leaf(world.signer.site("good", now=time.time() + 2 * DAY)),
    "the server's own": lambda world: _leaf(world.signer.server()),
    "another's key": lambda world: replace(world.credentials("good"), key=_leaf(world.signer.site("good")).key),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_wrong_certificate_ends_the_handshake_and_no_handler_runs(world: World, who: str) -> None:
    credentials = STRANGERS[who](world)
    with LinkClient(world.pilot.port, world.authority, credentials) as client:
        client.send(hello("good", federation="pilot"))
        assert client.until_closed() is grpc.StatusCode.UNAVAILABLE
    assert not world.link.handled(credentials.certificate)


def test_without_a_certificate_or_without_tls_no_handler_runs(world: World) -> None:
    address, name = f"127.0.0.1:{world.pilot.port}", server_name("pilot")
    bare = grpc.ssl_channel_credentials(world.authority.certificate)
    channels = (
        grpc.secure_channel(address, bare, [("grpc.ssl_target_name_override", name)]),
        grpc.insecure_channel(address),
    )
    for channel in channels:
        with channel, pytest.raises(grpc.RpcError) as refused:
            next(channel.stream_stream("/veil.link.Link/Connect")(iter([encode(hello("good"))]), timeout=SECONDS))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert b"" not in world.link.callers


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
def test_old_versions_of_tls_are_not_spoken(world: World, version: ssl.TLSVersion) -> None:
    home = world.pilot.site("good")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(home.authority_certificate)
    context.load_cert_chain(home.certificate, home.tls_key)
    context.set_alpn_protocols(["h2"])

    def shake() -> str | None:
        with (
            socket.create_connection(("127.0.0.1", world.pilot.port), SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=server_name("pilot")) as tls,
        ):
            return tls.version()

    if version is ssl.TLSVersion.TLSv1_2:  # else the others prove nothing
        assert shake() == "TLSv1.2"
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shake()
    assert not world.link.handled(home.certificate.read_bytes())


# --- what is said by who has come in


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (hello("good", federation="pilot"), Goodbye.OTHER_SITE),
        (hello("spare", federation="another"), Goodbye.OTHER_FEDERATION),
        (hello("spare", federation="pilot", protocol=2), Goodbye.PROTOCOL),
        (begin(task_id(1), b""), Goodbye.MALFORMED),
        (b"GET / HTTP/1.1\r\n\r\n", Goodbye.MALFORMED),
        (b"\xff" * 1000, Goodbye.MALFORMED),
    ],
    ids=["another site's name", "another federation", "another protocol", "no Hello", "no frame", "bytes"],
)
def test_a_wrong_first_word_is_answered_with_why(world: World, said: Frame | bytes, why: Goodbye) -> None:
    with world.client("spare") as client:
        client.send_bytes(said if isinstance(said, bytes) else encode(said))
        assert client.farewell() is why


def test_what_is_too_large_is_not_taken(world: World) -> None:
    with world.inside("spare") as client:
        client.send_message(task_id(1), bytes((1 << 20) + 1))
        while not isinstance(frame := client.next_frame(), Receipt):
            pass
        assert frame == Receipt(id=task_id(1), taken=Taken.TOO_LARGE)
    with world.inside("spare") as client:
        client.send_bytes(bytes(LARGEST_FRAME + 1))
        assert client.until_closed() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_site_outside_of_the_cohort_is_sent_nothing_and_its_reply_is_not_taken(world: World) -> None:
    """The task is another's. Its own client has connected, and waits; then it lies."""
    task, *_ = _ask(world, "good", "forged")
    world.until(lambda: world.link.answers().get("outsider") == ACCEPTED, lambda: world.pilot.output("outsider"))
    assert world.pilot.stop("outsider") == 0
    with world.inside("outsider") as client:
        client.send_message(task, b"forged")
        while not isinstance(frame := client.next_frame(), Receipt):
            assert isinstance(frame, Offer)
        assert frame == Receipt(id=task, taken=Taken.UNASKED)
    assert not [entry for entry in world.diary.entries if entry[:2] == ("sent", "outsider")]
    world.link.recall({task: "good"})


# --- after all that


def test_a_good_site_still_gets_in_and_plays(world: World) -> None:
    task, *_ = _ask(world, "good", "honest")
    world.pilot.start_site("good")
    world.until(lambda: world.mailbox.reply(task) is not None, lambda: world.pilot.output("good"))
    stored = world.mailbox.reply(task)
    assert stored is not None
    assert ARRAYS in message_from_bytes(stored.header, stored.payload).content
    assert not [entry for entry in world.diary.entries if entry[0] == "failed"]
    assert world.pilot.stop("good") == 0


def _ask(world: World, site: str, name: str) -> tuple[str, bytes, bytes]:
    """Ask a site for a round of training."""
    content = content_of(world.plan, 1, run=RUN)
    task, header, payload = task_of(world.plan, 1, name=name, content=content)
    asked = Task(id=task, site=site, run=RUN, kind="train", group="1", header=header, payload=Payload.of(payload))
    world.mailbox.post([asked])
    world.link.notify_tasks([site])
    return task, header, payload
