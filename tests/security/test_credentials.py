"""Real connections on loopback: who belongs to the federation gets in, nobody else reaches a handler."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from security.certificates import DAY, read_peer, server_name
from security.credentials import SUITES, channel_credentials, channel_options, server_credentials
from security.errors import UsageError
from security.homes import ServerHome, SiteHome
from security.key_files import new_tls_key, save_private_key
from security.key_pairs import switch
from security.private_files import replace_file
from security.provision import at_work
from tests.security.small_federation import FEDERATION, Homes, Leaf, Signer

SECONDS = 10.0


class Server:
    """A gRPC server that counts who got as far as to be asked what he wants."""

    def __init__(self, credentials: grpc.ServerCredentials) -> None:
        self.peers: list[dict[str, list[bytes]]] = []
        self.looked_up = 0
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def service(self, _: object) -> Any:
        self.looked_up += 1
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.peers.append(dict(context.auth_context()))  # type: ignore[arg-type]
        return request

    def close(self) -> None:
        self._server.stop(None).wait()


@contextmanager
def serving(credentials: grpc.ServerCredentials) -> Iterator[Server]:
    server = Server(credentials)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(made: Homes) -> Iterator[Server]:
    with serving(server_credentials(made.server)) as running:
        yield running


def call(server: Server, credentials: grpc.ChannelCredentials | None, federation: str = FEDERATION) -> bytes:
    """One call; `grpc.RpcError` if it doesn't get through."""
    options = [*channel_options(federation), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channel = (
        grpc.insecure_channel(server.address, options)
        if credentials is None
        else grpc.secure_channel(server.address, credentials, options)
    )
    with channel:
        answer: bytes = channel.unary_unary("/veil.Test/Echo")(b"hello", timeout=SECONDS)
        return answer


def refused(server: Server, credentials: grpc.ChannelCredentials | None, federation: str = FEDERATION) -> bool:
    """Whether a call ends before any handler is looked for."""
    before = server.looked_up
    with pytest.raises(grpc.RpcError) as error:
        call(server, credentials, federation)
    return error.value.code() == grpc.StatusCode.UNAVAILABLE and server.looked_up == before  # type: ignore[attr-defined]


def of(leaf: Leaf | None, authority: bytes) -> grpc.ChannelCredentials:
    if leaf is None:
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(authority, leaf.key_pem, leaf.pem)


# --- the server's side


def test_a_site_gets_in_and_is_known_by_its_certificate(server: Server, made: Homes) -> None:
    assert call(server, channel_credentials(made.site)) == b"hello"
    peer = server.peers[-1]
    assert peer["peer_uri"] == [b"veil://heart-study/site/north"]
    assert peer["x509_subject_alternative_name"] == [b"veil://heart-study/site/north"]
    assert peer["ssl_tls_version"] == [b"TLSv1.3"]
    assert read_peer(peer["x509_pem_cert"][0]) == made.site.peer()


def test_without_a_certificate_nobody_gets_in(server: Server, made: Homes) -> None:
    assert refused(server, of(None, made.authority.authority_certificate.read_bytes()))


def test_another_authority_s_site_does_not_get_in(server: Server, made: Homes, other_signer: Signer) -> None:
    assert refused(server, of(other_signer.site(), made.authority.authority_certificate.read_bytes()))


@pytest.mark.parametrize("days", [-400, 2])
def test_a_certificate_out_of_its_time_does_not_get_in(server: Server, made: Homes, days: float) -> None:
    signer = Signer.of(made.authority)
    leaf = signer.site(now=signer.now + days * DAY)
    assert refused(server, of(leaf, signer.pem))


def test_a_site_s_certificate_without_its_key_does_not_get_in(server: Server, made: Homes) -> None:
    stolen = Leaf(made.site.certificate.read_bytes(), new_tls_key())
    assert refused(server, of(stolen, made.authority.authority_certificate.read_bytes()))


def test_a_certificate_that_a_site_issued_does_not_get_in(server: Server, made: Homes) -> None:
    signer = Signer.of(made.authority)
    site = signer.site()
    forger = Signer.__new__(Signer)
    forger.federation, forger.now, forger.key, forger.pem = FEDERATION, time.time(), site.key, site.pem
    leaf = forger.site("south")
    assert refused(server, of(Leaf(leaf.pem + site.pem, leaf.key), signer.pem))


def test_the_server_s_own_certificate_opens_no_door(server: Server, made: Homes) -> None:
    signer = Signer.of(made.authority)
    assert refused(server, of(signer.server(), signer.pem))


def test_plaintext_does_not_get_in(server: Server) -> None:
    assert refused(server, None)


def test_garbage_leaves_the_server_alive(server: Server, made: Homes) -> None:
    before = server.looked_up
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(1000), os.urandom(5000)):
        with socket.create_connection(("127.0.0.1", server.port), SECONDS) as connection, suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):  # until the server ends it
                pass
    assert server.looked_up == before
    assert call(server, channel_credentials(made.site)) == b"hello"


# --- versions and suites, as another TLS implementation sees them


def shake(server: Server, home: SiteHome, change: Callable[[ssl.SSLContext], None]) -> tuple[str, str]:
    """Version and suite that Python's TLS and the server agree on; `ssl.SSLError` or `OSError` if on none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.authority_certificate)
    context.load_cert_chain(home.certificate, home.tls_key)
    context.set_alpn_protocols(["h2"])
    change(context)
    with (
        socket.create_connection(("127.0.0.1", server.port), SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=server_name(FEDERATION)) as tls,
    ):
        cipher = tls.cipher()
        assert cipher is not None
        return str(tls.version()), cipher[0]


def only(version: ssl.TLSVersion, suites: str = "ALL:@SECLEVEL=0") -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.set_ciphers(suites)
        context.minimum_version = context.maximum_version = version

    return change


def test_tls_1_3_is_spoken(server: Server, made: Homes) -> None:
    version, suite = shake(server, made.site, lambda context: None)
    assert version == "TLSv1.3"
    assert suite in ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_older_versions_are_not_spoken(server: Server, made: Homes, version: ssl.TLSVersion) -> None:
    before = server.looked_up
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    only(version)(context)
    offer = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), offer, server_hostname="any").do_handshake()
    assert offer.pending > 0  # this machine's own TLS would speak it
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(server, made.site, only(version))
    assert server.looked_up == before


def all_suites() -> list[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    return [str(suite["name"]) for suite in context.get_ciphers() if suite["protocol"] != "TLSv1.3"]


def test_a_scan_finds_no_suite_but_ephemeral_and_authenticated_ones(server: Server, made: Homes) -> None:
    offered = all_suites()
    assert len(offered) > 100
    assert {"ECDHE-ECDSA-AES128-SHA", "AES128-SHA", "ECDHE-ECDSA-AES128-CCM"} <= set(offered)
    taken = []
    for suite in offered:
        try:
            version, agreed = shake(server, made.site, only(ssl.TLSVersion.TLSv1_2, f"{suite}:@SECLEVEL=0"))
        except OSError:
            continue
        assert (version, agreed) == ("TLSv1.2", suite)
        taken.append(suite)
    assert sorted(taken) == sorted(SUITES)


def test_an_environment_that_weakens_tls_is_refused(made: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_SSL_CIPHER_SUITES", f"{SUITES[0]}:ECDHE-ECDSA-AES128-SHA")
    for make in (lambda: channel_credentials(made.site), lambda: server_credentials(made.server)):
        with pytest.raises(UsageError, match="GRPC_SSL_CIPHER_SUITES: allows other suites"):
            make()
    monkeypatch.setenv("GRPC_SSL_CIPHER_SUITES", SUITES[0])
    channel_credentials(made.site)


# --- the site's side


def test_a_site_talks_to_its_federation_s_server_alone(made: Homes, other_signer: Signer, tmp_path: Path) -> None:
    """Whoever answers at the server's address: the site says nothing to anybody else."""
    own = Signer.of(made.authority)
    impostors = {
        "another authority's server": other_signer.server(),
        "an expired one": own.server(now=own.now - 400 * DAY),
        "one that is not valid yet": own.server(now=own.now + 2 * DAY),
        "a site": own.site(),
    }
    for who, leaf in impostors.items():
        pair = [(leaf.key_pem, leaf.pem)]
        with serving(grpc.ssl_server_credentials(pair, own.pem, require_client_auth=True)) as elsewhere:
            assert refused(elsewhere, channel_credentials(made.site)), who


def test_a_server_of_another_federation_under_the_same_authority_is_another(made: Homes) -> None:
    own = Signer.of(made.authority)
    own.federation = "lung-study"
    leaf = own.server(names=("127.0.0.1", "localhost"))
    with serving(grpc.ssl_server_credentials([(leaf.key_pem, leaf.pem)], own.pem, require_client_auth=True)) as other:
        assert refused(other, channel_credentials(made.site))
        assert call(other, channel_credentials(made.site), "lung-study") == b"hello"


def test_a_site_that_has_moved_does_not_connect(homes: Homes) -> None:
    homes.site.moved.write_text('{"file": "x", "when": "now"}')
    with pytest.raises(UsageError, match="to move elsewhere"):
        channel_credentials(homes.site)


def test_keys_under_a_passphrase(homes: Homes) -> None:
    with at_work(homes.authority, None) as office:
        home = ServerHome(homes.folder / "second")
        office.equip_server(home, passphrase="correct horse", now=time.time())
    with pytest.raises(UsageError, match="needs its passphrase"):
        server_credentials(home)
    with pytest.raises(UsageError, match="no key that this passphrase opens"):
        server_credentials(home, "battery staple")
    with serving(server_credentials(home, "correct horse")) as running:
        assert call(running, channel_credentials(homes.site)) == b"hello"


def test_a_key_that_others_may_read_is_not_used(homes: Homes) -> None:
    homes.site.tls_key.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        channel_credentials(homes.site)


# --- renewal without a stop


def serial_shown(server: Server, home: SiteHome) -> int:
    """Of the certificate that the server shows now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.authority_certificate)
    context.load_cert_chain(home.certificate, home.tls_key)
    with (
        socket.create_connection(("127.0.0.1", server.port), SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=server_name(FEDERATION)) as tls,
    ):
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        return read_peer(ssl.DER_cert_to_PEM_cert(der).encode()).serial


def test_a_running_server_takes_its_renewed_certificate(homes: Homes) -> None:
    before = homes.server.peer().serial
    with serving(server_credentials(homes.server)) as running:
        assert serial_shown(running, homes.site) == before
        with at_work(homes.authority, None) as office:
            renewed = office.renew_server(homes.server, passphrase=None, now=time.time())
        assert serial_shown(running, homes.site) == renewed.serial != before
        assert call(running, channel_credentials(homes.site)) == b"hello"


def test_a_renewal_that_went_wrong_leaves_the_server_as_it_was(homes: Homes) -> None:
    before = homes.server.peer().serial
    with serving(server_credentials(homes.server)) as running:
        for spoil in (
            lambda: replace_file(homes.server.certificate, homes.site.certificate.read_bytes()),
            lambda: replace_file(homes.server.certificate, b"damaged"),
            homes.server.certificate.unlink,
        ):
            spoil()
            assert serial_shown(running, homes.site) == before


def test_a_site_s_renewed_certificate_is_used_for_its_next_connection(homes: Homes) -> None:
    signer = Signer.of(homes.authority)
    leaf = signer.site("north")
    with serving(server_credentials(homes.server)) as running:
        call(running, channel_credentials(homes.site))
        save_private_key(homes.site.next_tls_key, leaf.key, None)
        switch(homes.site.next_tls_key, homes.site.tls_key, leaf.pem, homes.site.certificate)
        call(running, channel_credentials(homes.site))
        serials = [read_peer(peer["x509_pem_cert"][0]).serial for peer in running.peers]
    assert serials[1] == read_peer(leaf.pem).serial != serials[0]


def test_provisioning_needs_no_grpc() -> None:
    """An authority's machine, offline, need not have it."""
    code = "import sys, security.kits, security.moving, security.tls_probe; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
