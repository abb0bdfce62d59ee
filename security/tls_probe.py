"""Why a site's connection fails, in one line: what can be seen at the site, then a handshake of Python's own.

gRPC says little more than "unavailable". Here the server's certificate is looked at before it is believed, so that the
line can name what is wrong with it. Nothing that the other side says is repeated.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from security.addresses import split_address
from security.certificates import (
    CertificateError,
    check_issued_by,
    expires_in,
    expiry_warning,
    read_peer,
    server_name,
)
from security.errors import UsageError
from security.homes import SiteHome, certificate_in, read_public
from security.identity import Identity
from security.key_pairs import certificate_for

_SECONDS: Final = 10.0
_LARGEST_ANSWER: Final = 1 << 13  # of a proxy
_CLOCK: Final = "or this machine's clock is wrong"

# What the server's TLS says of our certificate, as OpenSSL names it.
_ALERTS: Final = {
    "UNKNOWN_CA": "it trusts another authority: was this site approved by this server's federation?",
    "CERTIFICATE_EXPIRED": "it says that it has expired: compare both machines' clocks, or renew it",
    "CERTIFICATE_REVOKED": "it says that it was revoked: ask the authority",
    "CERTIFICATE_UNKNOWN": "it doesn't accept it: ask the server's operator why",
    "BAD_CERTIFICATE": "it doesn't accept it: ask the server's operator why",
    "ACCESS_DENIED": "it doesn't let this site in: ask the server's operator why",
    "CERTIFICATE_REQUIRED": "it didn't get it: something in between opens TLS; connect without that",
}


def explain(home: SiteHome, address: str, passphrase: str | None = None, *, proxy: str = "") -> str | None:
    """What keeps this site from connecting, and what to do, in one line; None if a connection works now.

    Takes about half a minute at most.

    Args:
        home: of the site.
        address: of the server, host:port.
        passphrase: of the keys; None for none.
        proxy: http://host:port, where connections go through one.
    """
    try:
        wrong = _at_home(home, passphrase)
        if wrong is not None:
            return wrong
        host, port = split_address(address)
    except UsageError as error:
        return str(error)
    except ValueError as error:
        return f"server.address {address!a}: {error}"
    where = f"the server at {address}"
    try:
        connection = _connect(host, port, proxy)
    except socket.gaierror:
        return f"{where}: no machine of that name is found; check the name, and this machine's DNS"
    except TimeoutError:
        return f"{where}: no answer within {_SECONDS:g} s; is a firewall in between, or is the address wrong?"
    except ConnectionRefusedError:
        return f"{where}: nobody listens there; does the server run, and is the port right?"
    except _ProxyError as error:
        return f"{where}: {error}"
    except OSError as error:
        return f"{where}: can't be reached ({error.strerror or 'network error'})"
    with connection, _bounded(connection):
        return _shake_hands(home, connection, where, passphrase)


def _at_home(home: SiteHome, passphrase: str | None) -> str | None:
    """What is wrong already here."""
    home.check_here()
    certificate_for(home.tls_key, home.certificate, passphrase)
    peer = home.peer()
    home.authority()
    with certificate_in(home.certificate):
        check_issued_by(read_public(home.certificate), read_public(home.authority_certificate))
    if peer.role != "site" or Identity.load(home.identity_key, passphrase).public_hex != peer.identity:
        return f"{home.certificate}: is not for the identity in {home.identity_key}; restore the one that belongs to it"
    now = time.time()
    if now < peer.not_before or expires_in(peer, now) <= 0:
        return expiry_warning(peer, now)
    return None


class _ProxyError(Exception):
    """The proxy doesn't lead there."""


def _connect(host: str, port: int, proxy: str) -> socket.socket:
    if not proxy:
        return socket.create_connection((host, port), _SECONDS)
    found = urlsplit(proxy)
    try:
        connection = socket.create_connection((found.hostname or "", found.port or 80), _SECONDS)
    except OSError:
        raise _ProxyError(f"the proxy {proxy!a} can't be reached; see server.proxy in site.toml") from None
    try:
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        answer = b""
        with _bounded(connection):
            connection.sendall(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            while b"\r\n\r\n" not in answer and len(answer) < _LARGEST_ANSWER:
                part = connection.recv(1)  # no byte of what comes after
                if not part:
                    break
                answer += part
        if answer.split(b" ")[1:2] != [b"200"]:
            raise _ProxyError(f"the proxy {proxy!a} refuses to connect there; ask who runs it")
    except OSError:
        connection.close()
        raise _ProxyError(f"the proxy {proxy!a} gave no answer") from None
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _bounded(connection: socket.socket) -> Iterator[None]:
    """Cuts the connection when time is over: the socket's own limit begins anew with every byte."""

    def cut() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_SECONDS, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shake_hands(home: SiteHome, connection: socket.socket, where: str, passphrase: str | None) -> str | None:
    context = _context(home, passphrase)
    try:
        # The handshake alone: with TLS 1.3 the server looks at our certificate only after it.
        tls = context.wrap_socket(connection, server_hostname=server_name(home.peer().federation))
    except ssl.SSLError as error:
        return f"{where}: {_refused(error) or 'speaks no TLS there; is it the right port?'}"
    except TimeoutError:
        return f"{where}: takes connections but says nothing; is it the right port?"
    except OSError:
        return f"{where}: ends the connection before TLS begins; is something in between, or is it the wrong port?"
    with tls:
        wrong = _judge(home, tls.getpeercert(binary_form=True) or b"")
        if wrong is not None:
            return f"{where}: {wrong}"
        try:
            if tls.recv(1):
                return None
            ended: ssl.SSLError | None = None
        except ssl.SSLError as error:
            ended = error
        except TimeoutError:
            return f"{where}: TLS works, but no Veil server answers; is it the right port?"
        except OSError:
            ended = None
        why = None if ended is None else _refused(ended)
        return f"{where}: {why or _UNSAID}"


_UNSAID: Final = (
    "doesn't accept this site's certificate, and doesn't say why: was it issued by the authority that the server has "
    "now, and is the server's clock right?"
)


def _context(home: SiteHome, passphrase: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is judged below, in words; nothing is sent to whom it belongs
    context.set_alpn_protocols(["h2"])
    certificate = certificate_for(home.tls_key, home.certificate, passphrase)
    context.load_cert_chain(certificate, home.tls_key, None if passphrase is None else lambda: passphrase)
    return context


def _judge(home: SiteHome, der: bytes) -> str | None:
    """What is wrong with the server's certificate."""
    own, now = home.peer(), time.time()
    try:
        pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        server = read_peer(pem)
    except (ValueError, CertificateError):
        return (
            "shows a certificate that is none of Veil's: is it the right port, and does nothing in between open TLS "
            "(a proxy, a load balancer)?"
        )
    if server.federation != own.federation:
        return f"is of federation '{server.federation}', this site's is '{own.federation}'"
    try:
        check_issued_by(pem, read_public(home.authority_certificate))
    except CertificateError:
        return (
            "its certificate is of another authority than the one that this site knows; trust it only if you know why"
        )
    if server.role != "server":
        return "shows a site's certificate, not a server's: something else answers there"
    if now < server.not_before:
        return f"its certificate is not valid before {_day(server.not_before)}, {_CLOCK} ({_day(now)})"
    if expires_in(server, now) <= 0:
        return f"its certificate expired on {_day(server.not_after)} (tell its operator), {_CLOCK} ({_day(now)})"
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if server_name(own.federation) not in names.get_values_for_type(x509.DNSName):
        return "its certificate lacks the name that sites look for; it must be made by `veil provision server`"
    return None


def _refused(error: ssl.SSLError) -> str | None:
    """What an alert of the server's says; None if it was none."""
    reason = error.reason or ""
    for alert, words in _ALERTS.items():
        if reason.endswith(f"ALERT_{alert}"):
            return f"doesn't accept this site's certificate: {words}"
    if reason.endswith(("ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL")):
        return "speaks no TLS 1.2 or 1.3, and nothing older will do; update it"
    if "ALERT" in reason:
        return "refuses the TLS connection; is it the right port?"
    return None


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
