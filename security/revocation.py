"""Who must not come in any more: the authority's list (X.509 CRL), and the server operator's own, which acts at once.

Both files are read again when they change. Revocations are never forgotten by mistake: a list that is missing, damaged,
older than the one before it, or another of the same number, leaves that one in force, and says so in `problem`.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from security.certificates import Peer, is_name, load_certificate
from security.errors import UsageError
from security.homes import ServerHome, certificate_in, read_public
from security.private_files import replace_file
from security.strict_json import parse_record, pretty

_HERE: Final = "veil revocations 1"

_Seen = tuple[int, int, int] | None  # what a file looked like when it was read


@dataclass(frozen=True, kw_only=True)
class RevocationList:
    """An authority's list.

    Attributes:
        number: a higher one is newer.
        revoked: serial numbers of certificates, and when each was revoked, in seconds since 1970.
    """

    number: int
    revoked: Mapping[int, float]


class Revocations:
    """What the server knows of revocations. Safe to ask from several threads."""

    def __init__(self, home: ServerHome) -> None:
        """As `of_home`."""
        self._home = home
        self._lock = threading.Lock()
        self._problem: str | None = None
        with certificate_in(home.authority_certificate):
            self._authority = read_public(home.authority_certificate)
            load_certificate(self._authority)
        self._seen = _look(home.revoked), _look(home.revoked_here)
        self._list = _read_list(home.revoked, self._authority)
        self._here = revoked_here(home)

    @classmethod
    def of_home(cls, home: ServerHome) -> Revocations:
        """Read both lists.

        Raises:
            UsageError: one can't be read, or the authority's was not signed by the authority. The operator's own may
                be missing: it is empty until something is revoked.
        """
        return cls(home)

    def is_revoked(self, peer: Peer) -> bool:
        """Whether a certificate was revoked, by its serial number, or its site by name."""
        with self._lock:
            self._reload()
            return peer.serial in self._list.revoked or (peer.role == "site" and peer.name in self._here)

    @property
    def problem(self) -> str | None:
        """Why the newest files are not in force, in one line; None if they are."""
        with self._lock:
            self._reload()
            return self._problem

    def _reload(self) -> None:
        seen = _look(self._home.revoked), _look(self._home.revoked_here)
        if seen == self._seen:
            return
        problems = []
        try:
            found = _read_list(self._home.revoked, self._authority)
            if found.number < self._list.number:
                raise UsageError(f"{self._home.revoked}: is older than the list in force; copy the authority's newest")
            if found.number == self._list.number and found.revoked != self._list.revoked:
                raise UsageError(
                    f"{self._home.revoked}: has the number of the list in force, and says something else; was the "
                    "authority restored from a backup? revoke there again what the list in force holds"
                )
            self._list = found
        except UsageError as error:
            problems.append(str(error))
        try:
            if seen[1] is None and self._here:
                raise UsageError(f"{self._home.revoked_here}: is missing; what it said stays in force")
            self._here = revoked_here(self._home)
        except UsageError as error:
            problems.append(str(error))
        self._seen, self._problem = seen, "; ".join(problems) or None


def read_revocation_list(data: bytes, authority_pem: bytes) -> RevocationList:
    """An authority's list.

    Raises:
        ValueError: it is none, or of another authority; the text names no file.
    """
    authority = load_certificate(authority_pem)
    try:
        found = x509.load_pem_x509_crl(data)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        is_own = found.issuer == authority.subject and found.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
        revoked = {item.serial_number: item.revocation_date_utc.timestamp() for item in found}
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension, UnsupportedAlgorithm):
        raise ValueError("is not a list of revoked certificates in PEM") from None
    except InvalidSignature:
        is_own = False
    if not is_own:
        raise ValueError("was not signed by this federation's authority")
    return RevocationList(number=number, revoked=revoked)


def revoked_here(home: ServerHome) -> Mapping[str, str]:
    """Sites that the operator keeps out, each with when that was said.

    Raises:
        UsageError: the file is there but can't be read.
    """
    if _look(home.revoked_here) is None:
        return {}
    try:
        found: dict[str, str] = parse_record(read_public(home.revoked_here), _HERE, sites=dict)["sites"]
        if not all(is_name(name) and type(when) is str for name, when in found.items()):
            raise ValueError("sites must hold names and times")
    except ValueError as error:
        raise UsageError(f"{home.revoked_here}: {error}; restore it, or revoke each site again") from None
    return found


def revoke_here(home: ServerHome, site: str) -> None:
    """Keep a site out of this server from now on, whatever certificate it has.

    Raises:
        UsageError: that is no name, or the list can't be read or written.
    """
    if not is_name(site):
        raise UsageError(f"{site!a} can't be the name of a site")
    with _one_at_a_time(home):
        sites = {site: datetime.now(UTC).isoformat(timespec="seconds"), **revoked_here(home)}
        replace_file(home.revoked_here, pretty({"kind": _HERE, "sites": sites}))


@contextmanager
def _one_at_a_time(home: ServerHome) -> Iterator[None]:
    """Two commands that revoke at once would each write the list without the other's site."""
    try:
        folder = os.open(home.path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{home.path}: can't be read ({error.strerror})") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _read_list(path: Path, authority_pem: bytes) -> RevocationList:
    try:
        return read_revocation_list(read_public(path), authority_pem)
    except ValueError as error:
        raise UsageError(f"{path}: {error}; copy revoked.pem of the authority's home here") from None


def _look(path: Path) -> _Seen:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
