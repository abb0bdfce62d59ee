"""Private keys in files: PEM (PKCS #8), optionally under a passphrase, read by their owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from security.errors import UsageError
from security.private_files import read_private, write_private

PASSPHRASE_FILE: Final = "VEIL_PASSPHRASE_FILE"  # noqa: S105 - the name of a variable
_MADE = "make it with `veil site request`, `veil provision init` or `veil provision server`"


def load_private_key(path: Path, passphrase: str | None, *, hint: str = _MADE) -> PrivateKeyTypes:
    """Read a key of any kind.

    Raises:
        UsageError: there is none, others may read it, or it or the passphrase is wrong.
    """
    text = read_private(path, hint=hint)
    # The library's own messages are left out: they are for programmers, and they were given the secret.
    try:
        return load_pem_private_key(text, None if passphrase is None else passphrase.encode())
    except TypeError:
        state = "needs its passphrase" if passphrase is None else "has no passphrase, but one was given"
        raise UsageError(f"{path}: this key {state}") from None
    except (ValueError, UnsupportedAlgorithm):
        what = "is not a private key in PEM" if passphrase is None else "is no key that this passphrase opens"
        raise UsageError(f"{path}: {what}; {hint}") from None


def save_private_key(path: Path, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey, passphrase: str | None) -> None:
    """Write a key to a new file with mode 0600.

    Raises:
        UsageError: if the file exists (a key is never overwritten) or can't be written.
        ValueError: if the passphrase is empty.
    """
    if passphrase == "":
        raise ValueError("an empty passphrase protects nothing: give None, or a passphrase")
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        encryption = BestAvailableEncryption(passphrase.encode())
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A key for certificates (P-256), from the operating system's entropy."""
    return ec.generate_private_key(ec.SECP256R1())


def load_tls_key(path: Path, passphrase: str | None) -> ec.EllipticCurvePrivateKey:
    """Read a key for certificates.

    Raises:
        UsageError: as for `load_private_key`, or it is another kind of key.
    """
    key = load_private_key(path, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"{path}: holds another kind of key; certificates need one on the curve P-256")
    return key


def plain_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key without a passphrase, to be handed on in memory; never written."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half, as `certificates.public_key_of` gives it."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def is_encrypted(path: Path) -> bool:
    """Whether a key's file needs a passphrase. False where there is none: reading it says why."""
    try:
        return b"ENCRYPTED" in read_private(path)
    except UsageError:
        return False


def passphrase_of(path: Path) -> str | None:
    """The passphrase of the file that VEIL_PASSPHRASE_FILE names, for a key that needs one; None if it needs none, or
    nothing is named: then a person is to be asked.

    Raises:
        UsageError: the passphrase's file can't be read, others may read it, or it holds none.
    """
    return passphrase_from_file() if is_encrypted(path) else None


def passphrase_from_file() -> str | None:
    """The passphrase that stands in the file named by VEIL_PASSPHRASE_FILE: its first line. None if none is named.

    Raises:
        UsageError: as for `passphrase_of`.
    """
    named = os.environ.get(PASSPHRASE_FILE)
    if not named:
        return None
    hint = f"{PASSPHRASE_FILE} must name a file whose first line is the passphrase"
    try:
        path = Path(named)
        lines = read_private(path, what="passphrase", hint=hint, group=_is_from_systemd(path)).decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines or not lines[0]:
        raise UsageError(f"{named}: holds no passphrase; {hint}")
    return lines[0]


def _is_from_systemd(path: Path) -> bool:
    """Whether systemd put it there for this service alone. It gives the right by an access control list, which shows as
    a right of the group."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.parent == Path(str(folder))
