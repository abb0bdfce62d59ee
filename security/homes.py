"""Where the files of an authority, a site and a server lie. Each has a folder, its home."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from security.certificates import Authority, CertificateError, Peer, read_authority, read_peer
from security.errors import UsageError


@dataclass(frozen=True)
class AuthorityHome:
    """Of whoever says who belongs to the federation. Kept apart from the server, and offline where possible."""

    path: Path

    @property
    def authority_key(self) -> Path:
        """Private: who has it decides who belongs to the federation."""
        return self.path / "keys" / "authority.key"

    @property
    def authority_certificate(self) -> Path:
        """What everybody compares certificates with."""
        return self.path / "certificates" / "authority.pem"

    @property
    def federation_file(self) -> Path:
        """Name of the federation, address of the server, names of its sites."""
        return self.path / "federation.toml"

    @property
    def issued(self) -> Path:
        """Every certificate that was ever issued, one file each."""
        return self.path / "issued"

    @property
    def revoked(self) -> Path:
        """The list of revoked certificates (X.509 CRL), for the server."""
        return self.path / "revoked.pem"

    @property
    def lock(self) -> Path:
        """Held by whoever changes something here."""
        return self.path / ".lock"

    def authority(self) -> Authority:
        """Read the authority's certificate."""
        with certificate_in(self.authority_certificate):
            return read_authority(read_public(self.authority_certificate))


@dataclass(frozen=True)
class SiteHome:
    """Of a data owner's client. It moves with `veil site pack`, never by copying: two ledgers would spend twice."""

    path: Path

    @property
    def settings(self) -> Path:
        """The owner's policy, and how the client works."""
        return self.path / "site.toml"

    @property
    def tls_key(self) -> Path:
        """Private: for connections."""
        return self.path / "keys" / "tls.key"

    @property
    def next_tls_key(self) -> Path:
        """Private: made for a renewal, until its certificate is installed."""
        return self.path / "keys" / "tls.next.key"

    @property
    def identity_key(self) -> Path:
        """Private: signs statements and approvals."""
        return self.path / "keys" / "identity.key"

    @property
    def split_key(self) -> Path:
        """Private: 32 random bytes that say which records are held out."""
        return self.path / "keys" / "split.key"

    @property
    def certificate(self) -> Path:
        """The site's own."""
        return self.path / "certificates" / "site.pem"

    @property
    def authority_certificate(self) -> Path:
        """The pinned authority's."""
        return self.path / "certificates" / "authority.pem"

    @property
    def roster(self) -> Path:
        """The federation's sites."""
        return self.path / "roster.json"

    @property
    def approval(self) -> Path:
        """That this site has approved the roster."""
        return self.path / "roster.approval.json"

    @property
    def ledger(self) -> Path:
        """What was spent; its anchor lies beside it."""
        return self.path / "ledger" / "ledger.sqlite"

    @property
    def ledger_note(self) -> Path:
        """That a ledger was begun here, outside of its folder: whoever lost it doesn't begin another."""
        return self.path / "ledger-begun.json"

    @property
    def outbox(self) -> Path:
        """Replies that the server doesn't have yet."""
        return self.path / "outbox.sqlite"

    @property
    def approvals(self) -> Path:
        """Plans that the owner has approved."""
        return self.path / "approved-plans.json"

    @property
    def pending(self) -> Path:
        """Plans that wait for the owner."""
        return self.path / "pending-plans"

    @property
    def log(self) -> Path:
        """What the client did."""
        return self.path / "client.log"

    @property
    def status(self) -> Path:
        """What the client does now."""
        return self.path / "status.json"

    @property
    def personal(self) -> Path:
        """The site's own models, which never leave it; entered by the owner alone."""
        return self.path / "personal"

    @property
    def moved(self) -> Path:
        """There if the site has moved to another place: nothing here may be used any more."""
        return self.path / "moved.json"

    @property
    def lock(self) -> Path:
        """Held by whoever works with this home."""
        return self.path / ".lock"

    def check_here(self) -> None:
        """Check that the site is still at home here. Whoever opens the home for work calls this first.

        Raises:
            UsageError: it was packed to move elsewhere.
        """
        if not (self.moved.exists() or self.moved.is_symlink()):
            return
        try:
            data = json.loads(self.moved.read_bytes())
            where = f"was packed into {str(data['file'])!a} at {str(data['when'])!a}"
        except (OSError, ValueError, LookupError, TypeError):
            where = "was packed"
        raise UsageError(
            f"{self.path}: this site {where} to move elsewhere; use it where it was unpacked: with two copies of its "
            f"ledger it would spend its budget twice"
        )

    def peer(self) -> Peer:
        """Read the site's own certificate."""
        with certificate_in(self.certificate):
            return read_peer(read_public(self.certificate))

    def authority(self) -> Authority:
        """Read the pinned authority's certificate."""
        with certificate_in(self.authority_certificate):
            return read_authority(read_public(self.authority_certificate))


@dataclass(frozen=True)
class ServerHome:
    """Of the federation's server."""

    path: Path

    @property
    def settings(self) -> Path:
        """How the server works."""
        return self.path / "server.toml"

    @property
    def tls_key(self) -> Path:
        """Private: for connections."""
        return self.path / "keys" / "tls.key"

    @property
    def certificate(self) -> Path:
        """The server's own."""
        return self.path / "certificates" / "server.pem"

    @property
    def authority_certificate(self) -> Path:
        """What the sites' certificates are compared with."""
        return self.path / "certificates" / "authority.pem"

    @property
    def roster(self) -> Path:
        """Whom the server lets in."""
        return self.path / "roster.json"

    @property
    def revoked(self) -> Path:
        """Certificates that the authority has revoked."""
        return self.path / "revoked.pem"

    @property
    def revoked_here(self) -> Path:
        """Sites that the server's operator keeps out, at once."""
        return self.path / "revoked-here.json"

    @property
    def mailbox(self) -> Path:
        """Messages to sites and from them."""
        return self.path / "mailbox.sqlite"

    @property
    def queue(self) -> Path:
        """Plans to be played."""
        return self.path / "queue.json"

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.path / "runs"

    @property
    def socket(self) -> Path:
        """Where the operator's commands are heard."""
        return self.path / "operator.sock"

    @property
    def log(self) -> Path:
        """What the server did."""
        return self.path / "server.log"

    @property
    def lock(self) -> Path:
        """Held by whoever works with this home."""
        return self.path / ".lock"

    def peer(self) -> Peer:
        """Read the server's own certificate."""
        with certificate_in(self.certificate):
            return read_peer(read_public(self.certificate))

    def authority(self) -> Authority:
        """Read the authority's certificate."""
        with certificate_in(self.authority_certificate):
            return read_authority(read_public(self.authority_certificate))


def read_public(path: Path, largest: int = 1 << 24) -> bytes:
    """A file that isn't secret, such as a certificate or a roster.

    Raises:
        UsageError: it can't be read, or is larger than `largest` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    if len(data) > largest:
        raise UsageError(f"{path}: is larger than any such file")
    return data


@contextmanager
def certificate_in(path: Path) -> Iterator[None]:
    """Puts the file's name before errors over the certificate that it holds."""
    try:
        yield
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from None
