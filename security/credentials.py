"""Both ends' credentials for gRPC: mutual TLS, 1.2 or 1.3, with certificates of one federation's authority.

gRPC checks the chain and the time of both certificates, and that the server's has the name that every server of the
federation has (`server_name`). Whose certificate it is, and whether it was revoked, the server checks itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc

from security.certificates import server_name
from security.errors import UsageError
from security.homes import ServerHome, SiteHome, read_public
from security.key_pairs import key_and_certificate

__all__ = ["SUITES", "channel_credentials", "channel_options", "server_credentials", "server_name"]

# For TLS 1.2: an ephemeral key exchange and authenticated encryption. TLS 1.3 has no other suites.
SUITES: Final = ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256")
_VARIABLE: Final = "GRPC_SSL_CIPHER_SUITES"


def channel_credentials(home: SiteHome, passphrase: str | None = None) -> grpc.ChannelCredentials:
    """A site's credentials. The channel also needs `channel_options`.

    Raises:
        UsageError: a file is missing or not what it should be, the site has moved elsewhere, or the environment weakens
            TLS.
    """
    home.check_here()
    _check_suites()
    key, certificate = key_and_certificate(home.tls_key, home.certificate, passphrase)
    return grpc.ssl_channel_credentials(
        root_certificates=_authority(home), private_key=key, certificate_chain=certificate
    )


def channel_options(federation: str) -> list[tuple[str, str]]:
    """What a channel needs so that it looks for the federation's server, at whatever address.

    Args:
        federation: of the site's certificate.
    """
    name = server_name(federation)
    return [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]


def server_credentials(home: ServerHome, passphrase: str | None = None) -> grpc.ServerCredentials:
    """The server's credentials: who has no certificate of the authority's gets no further than the handshake.

    Key and certificate are read again for new connections once their files have changed; while they can't be read, or
    don't belong together, those before are used.

    Raises:
        UsageError: a file is missing, or not what it should be.
    """
    _check_suites()
    renewal = _Renewal(home, passphrase)
    return grpc.dynamic_ssl_server_credentials(
        renewal.first,
        renewal.newer,  # type: ignore[arg-type]  # None means unchanged
        require_client_authentication=True,
    )


def _check_suites() -> None:
    """gRPC read the variable when it was imported; what it takes without it is only these (`tests/security`)."""
    named = os.environ.get(_VARIABLE)
    if named is not None and not set(named.split(":")) <= set(SUITES):
        raise UsageError(f"{_VARIABLE}: allows other suites than {', '.join(SUITES)}; unset it")


class _Renewal:
    """Gives gRPC the server's key and certificate, again when they were renewed."""

    def __init__(self, home: ServerHome, passphrase: str | None) -> None:
        self._home = home
        self._passphrase = passphrase
        self._seen = self._look()
        self.first = self._read()

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at every handshake."""
        seen = self._look()
        if seen == self._seen:
            return None
        try:
            found = self._read()
        except Exception:  # whatever it is: the connections to come are worth more than a renewal half done
            return None
        self._seen = seen
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair = key_and_certificate(self._home.tls_key, self._home.certificate, self._passphrase)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=_authority(self._home))

    def _look(self) -> Sequence[tuple[int, int] | None]:
        return [_look(path) for path in (self._home.tls_key, self._home.certificate, self._home.authority_certificate)]


def _authority(home: SiteHome | ServerHome) -> bytes:
    home.authority()
    return read_public(home.authority_certificate)


def _look(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
