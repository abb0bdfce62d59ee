"""Why a connection fails: one line that names the cause, for each cause that can be told from here."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from security import tls_probe
from security.authority import certify_site
from security.certificates import DAY
from security.credentials import server_credentials
from security.identity import Identity
from security.key_files import load_tls_key, save_private_key
from security.private_files import replace_file
from security.tls_probe import explain
from tests.security.small_federation import FEDERATION, Homes, Leaf, Signer
from tests.security.test_certificates import build

Talk = Callable[[socket.socket], None]


@contextmanager
def grpc_server(credentials: grpc.ServerCredentials | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    port = (
        server.add_insecure_port("127.0.0.1:0")
        if credentials is None
        else server.add_secure_port("127.0.0.1:0", credentials)
    )
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def listener(talk: Talk) -> Iterator[str]:
    """A server of one connection, which does what a test wants with it."""

    def serve() -> None:
        with suppress(OSError):
            connection, _ = found.accept()
            with connection, suppress(OSError):
                talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as found:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{found.getsockname()[1]}"
        with suppress(OSError):  # wakes a thread that nobody has called
            socket.create_connection(found.getsockname(), 1).close()
        thread.join()


def python_tls(leaf: Leaf, folder: Path, *, trusts: bytes | None, version: ssl.TLSVersion) -> Talk:
    """A TLS server of Python's own, which says in an alert what it thinks of a client's certificate."""
    pair = folder / "pair.pem"
    pair.write_bytes(leaf.key_pem + leaf.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    context.minimum_version = context.maximum_version = version
    if trusts is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=trusts.decode())

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(b"hello")
            tls.recv(1)

    return talk


def one_line(text: str | None) -> str:
    assert text is not None
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_a_connection_that_works_has_nothing_wrong(made: Homes) -> None:
    with grpc_server(server_credentials(made.server)) as address:
        assert explain(made.site, address) is None


def test_keys_under_a_passphrase(homes: Homes) -> None:
    signer, home = Signer.of(homes.authority), homes.site
    identity = Identity.load(home.identity_key)
    home.tls_key.unlink()
    home.identity_key.unlink()
    leaf = signer.site("north")
    save_private_key(home.tls_key, leaf.key, "correct horse")
    identity.save(home.identity_key, "correct horse")
    pem = certify_site(
        signer.pem,
        signer.key,
        federation=FEDERATION,
        site="north",
        key=leaf.key.public_key(),
        identity=identity.public_hex,
        now=time.time(),
    )
    replace_file(home.certificate, pem)
    with grpc_server(server_credentials(homes.server)) as address:
        assert explain(home, address, "correct horse") is None
        assert "needs its passphrase" in one_line(explain(home, address))


# --- what is wrong at the site


def test_nothing_is_asked_of_the_network_while_the_home_is_wrong(
    homes: Homes, other_signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> socket.socket:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(tls_probe, "_connect", nobody)
    home, peer = homes.site, homes.site.peer()
    for seconds, words in ((peer.not_after + DAY, "expired on"), (peer.not_before - DAY, "check this machine's clock")):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=seconds: now)
            assert words in one_line(explain(home, "127.0.0.1:1"))
    assert "must be host:port" in one_line(explain(home, "nowhere"))
    own = home.identity_key.read_bytes()
    home.identity_key.write_bytes(homes.other_site.identity_key.read_bytes())
    assert "is not for the identity in" in one_line(explain(home, "127.0.0.1:1"))
    home.identity_key.write_bytes(own)
    authority = home.authority_certificate.read_bytes()
    home.authority_certificate.write_bytes(other_signer.pem)
    assert "was not issued by this authority" in one_line(explain(home, "127.0.0.1:1"))
    home.authority_certificate.write_bytes(authority)
    home.tls_key.write_bytes(homes.other_site.tls_key.read_bytes())
    assert "is not for the key in" in one_line(explain(home, "127.0.0.1:1"))
    home.tls_key.unlink()
    assert "tls.key: no such file" in one_line(explain(home, "127.0.0.1:1"))
    home.moved.write_text("{}")
    assert "to move elsewhere" in one_line(explain(home, "127.0.0.1:1"))


# --- what is wrong on the way


def test_nobody_listens(made: Homes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"127.0.0.1:{found.getsockname()[1]}"
    assert "nobody listens there" in one_line(explain(made.site, address))


def test_no_such_name(made: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> socket.socket:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    assert "no machine of that name" in one_line(explain(made.site, "nobody.invalid:1"))


def test_no_answer_at_all(made: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    assert "no answer within 10 s" in one_line(explain(made.site, "192.0.2.1:1"))


def test_a_plaintext_port(made: Homes) -> None:
    with grpc_server(None) as address:
        assert "speaks no TLS there" in one_line(explain(made.site, address))

    def web(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listener(web) as address:
        assert "speaks no TLS there" in one_line(explain(made.site, address))


def test_a_port_that_takes_connections_and_says_nothing(made: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_probe, "_SECONDS", 0.2)
    done = threading.Event()
    with listener(lambda _: bool(done.wait(10)) and None) as address:
        assert "takes connections but says nothing" in one_line(explain(made.site, address))
        done.set()


def test_a_server_that_drips_is_not_waited_for(made: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at a time, each within the socket's own limit, of a record that never ends."""
    monkeypatch.setattr(tls_probe, "_SECONDS", 0.3)
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"\x16\x03\x03\x3f\xff")
        while not done.wait(0.05):
            connection.sendall(b"\x00")

    with listener(drip) as address:
        begun = time.monotonic()
        one_line(explain(made.site, address))
        assert time.monotonic() - begun < 5
        done.set()


def test_a_port_that_hangs_up(made: Homes) -> None:
    with listener(lambda connection: connection.recv(1) and None) as address:
        assert "127.0.0.1" in one_line(explain(made.site, address))


# --- whose server it is


def test_whose_server_answers(made: Homes, other_signer: Signer, stranger: Signer, tmp_path: Path) -> None:
    own = Signer.of(made.authority)
    cases = {
        "of another authority than the one that this site knows": other_signer.server(),
        "is of federation 'lung-study', this site's is 'heart-study'": stranger.server(),
        "expired on": own.server(now=own.now - 400 * DAY),
        "or this machine's clock is wrong": own.server(now=own.now + 2 * DAY),
        "shows a site's certificate": own.site(),
    }
    for words, leaf in cases.items():
        credentials = grpc.ssl_server_credentials([(leaf.key_pem, leaf.pem)], own.pem, require_client_auth=True)
        with grpc_server(credentials) as address:
            assert words in one_line(explain(made.site, address))


def test_something_in_between_that_opens_tls(made: Homes, tmp_path: Path) -> None:
    own = Signer()
    leaf = Leaf(build(uris=("https://proxy.example.org",), key=own.key), own.key)
    with listener(python_tls(leaf, tmp_path, trusts=None, version=ssl.TLSVersion.TLSv1_3)) as address:
        assert "none of Veil's" in one_line(explain(made.site, address))


# --- what the server thinks of us


def test_a_server_that_trusts_another_authority_says_nothing(homes: Homes, other_signer: Signer) -> None:
    """gRPC hangs up without an alert."""
    signer = Signer.of(homes.authority)
    leaf = signer.server()
    credentials = grpc.ssl_server_credentials([(leaf.key_pem, leaf.pem)], other_signer.pem, require_client_auth=True)
    with grpc_server(credentials) as address:
        assert "doesn't accept this site's certificate, and doesn't say why" in one_line(explain(homes.site, address))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_says_why(made: Homes, other_signer: Signer, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """With TLS 1.3 the alert comes after the handshake, on the first read."""
    own = Signer.of(made.authority)
    with listener(python_tls(own.server(), tmp_path, trusts=other_signer.pem, version=version)) as address:
        assert "it trusts another authority" in one_line(explain(made.site, address))


def test_an_alert_over_our_time(homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our clock says that our certificate is good, the server's that it has expired."""
    signer, home = Signer.of(homes.authority), homes.site
    old = certify_site(
        signer.pem,
        signer.key,
        federation=FEDERATION,
        site="north",
        key=load_tls_key(home.tls_key, None).public_key(),
        identity=Identity.load(home.identity_key).public_hex,
        now=signer.now - 400 * DAY,
    )
    replace_file(home.certificate, old)
    leaf = signer.server(now=signer.now - 300 * DAY)
    monkeypatch.setattr(time, "time", lambda: signer.now - 200 * DAY)
    with listener(python_tls(leaf, tmp_path, trusts=signer.pem, version=ssl.TLSVersion.TLSv1_3)) as address:
        assert "it says that it has expired: compare both machines' clocks" in one_line(explain(home, address))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "it was revoked"),
        ("TLSV1_ALERT_ACCESS_DENIED", "ask the server's operator"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "something in between opens TLS"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "nothing older will do"),
        ("TLSV1_ALERT_INTERNAL_ERROR", "refuses the TLS connection"),
    ],
)
def test_other_alerts(made: Homes, monkeypatch: pytest.MonkeyPatch, reason: str, words: str) -> None:
    def alert(*_: object, **__: object) -> ssl.SSLSocket:
        error = ssl.SSLError(1, "what a stranger says")
        error.reason = reason
        raise error

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", alert)
    with listener(lambda connection: connection.recv(1) and None) as address:
        line = one_line(explain(made.site, address))
    assert words in line
    assert "stranger" not in line


# --- through a proxy


def test_through_a_proxy(made: Homes) -> None:
    seen = []

    with grpc_server(server_credentials(made.server)) as address:

        def tunnel(connection: socket.socket) -> None:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(1)
            seen.append(request)
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), 10) as inner:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                for source, target in ((connection, inner), (inner, connection)):
                    threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()
                connection_done.wait(10)

        connection_done = threading.Event()
        with listener(tunnel) as proxy:
            assert explain(made.site, address, proxy=f"http://{proxy}") is None
            connection_done.set()
    assert seen[0].startswith(f"CONNECT {address} HTTP/1.1\r\n".encode())


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"", b"x" * 20_000])
def test_a_proxy_that_refuses(made: Homes, answer: bytes) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(answer)

    with listener(refuse) as proxy:
        line = one_line(explain(made.site, "192.0.2.1:1", proxy=f"http://{proxy}"))
    assert "the proxy" in line
    assert "Forbidden" not in line


def test_a_proxy_that_is_not_there(made: Homes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        proxy = f"http://127.0.0.1:{found.getsockname()[1]}"
    assert "can't be reached; see server.proxy" in one_line(explain(made.site, "192.0.2.1:1", proxy=proxy))
