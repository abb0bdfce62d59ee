"""Who signs: an Ed25519 key (RFC 8032) that a data owner makes once and keeps.

The private key lies in a PEM file (PKCS #8, optionally under a passphrase) that only its owner may read. The public
key is its 32 bytes in hexadecimal; people compare fingerprints.
"""

import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import NoReturn, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from security.errors import UsageError

_LARGEST_FILE = 1 << 16
_LEAST_SECRET = 16  # bytes


class Identity:
    """A private key. It is never printed, copied or pickled; `save` is the only way out."""

    __slots__ = ("_key", "public_hex")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_hex: str = key.public_key().public_bytes_raw().hex()

    @classmethod
    def create(cls) -> Self:
        """A new key from the operating system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def derive(cls, secret: bytes, name: str) -> Self:
        """The key of `name` under `secret` (HKDF with SHA-256, RFC 5869): the virtual clients of a simulation.

        Raises:
            ValueError: if the secret is shorter than 16 bytes.
        """
        if len(secret) < _LEAST_SECRET:
            raise ValueError(f"the secret of derived identities needs at least {_LEAST_SECRET} bytes")
        seed = HKDF(SHA256(), 32, salt=None, info=b"veil identity 1\n" + name.encode()).derive(secret)
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> Self:
        """Read a key from its file.

        Raises:
            UsageError: if there is none, others may read it, or it or the passphrase is wrong.
        """
        text = _read_secret(path)
        # The library's own messages are left out: they are for programmers, and they were given the secret.
        try:
            key = load_pem_private_key(text, None if passphrase is None else passphrase.encode())
        except TypeError:
            state = "needs its passphrase" if passphrase is None else "has no passphrase, but one was given"
            raise UsageError(f"{path}: this key {state}") from None
        except (ValueError, UnsupportedAlgorithm):
            what = "is not a private key in PEM" if passphrase is None else "is no key that this passphrase opens"
            raise UsageError(f"{path}: {what}; name the file that the identity was saved to") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{path}: holds another kind of key; an identity is an Ed25519 key")
        return cls(key)

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Write the key to a new file with mode 0600.

        Raises:
            UsageError: if the file exists (a key is never overwritten) or can't be written.
            ValueError: if the passphrase is empty.
        """
        if passphrase == "":
            raise ValueError("an empty passphrase protects nothing: give None, or a passphrase")
        encryption: KeySerializationEncryption = NoEncryption()
        if passphrase is not None:
            encryption = BestAvailableEncryption(passphrase.encode())
        text = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise UsageError(f"{path}: exists already, and a key is never overwritten; name another file") from None
        except OSError as error:
            raise UsageError(f"{path}: can't write the key ({error.strerror}); name another file") from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UsageError(f"{path}: can't write the key ({error.strerror}); name another file") from error

    @property
    def fingerprint(self) -> str:
        """The public key's fingerprint, as people compare it."""
        return fingerprint(self.public_hex)

    def sign(self, message: bytes) -> bytes:
        """64 bytes. The message should begin with what kind of thing it is, so that no signature serves twice."""
        return self._key.sign(message)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity can't be copied or pickled: derive or load it where it is needed")

    def __repr__(self) -> str:
        return f"Identity({self.public_hex})"


def verify(public_hex: str, signature: bytes, message: bytes) -> bool:
    """Whether the holder of the public key signed `message`; False too for what is no key or no signature."""
    try:
        Ed25519PublicKey.from_public_bytes(_public_bytes(public_hex)).verify(signature, message)
    except (ValueError, InvalidSignature):
        return False
    return True


def fingerprint(public_hex: str) -> str:
    """SHA-256 of the raw public key: 16 groups of 4 hexadecimal digits.

    Raises:
        ValueError: if that is no public key.
    """
    digest = sha256(_public_bytes(public_hex)).hexdigest()
    return " ".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def is_public_key(public_hex: str) -> bool:
    """Whether the text is a public key as Veil writes it: 64 lower-case hexadecimal digits."""
    return len(public_hex) == 64 and set(public_hex) <= set("0123456789abcdef")


def _public_bytes(public_hex: str) -> bytes:
    # One key has one text, or a list of trusted keys could be got round by writing a key otherwise.
    if not is_public_key(public_hex):
        raise ValueError("a public key is 64 lower-case hexadecimal digits")
    return bytes.fromhex(public_hex)


def _read_secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # Of the opened file, not of the name: the name may point elsewhere by the time it is read.
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UsageError(f"{path}: is not a file; name the file that the identity was saved to")
            if mode & 0o077:
                raise UsageError(f"{path}: others on this machine may read this private key; run chmod 600 {path}")
            return file.read(_LARGEST_FILE)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; name the file that the identity was saved to") from None
    except OSError as error:
        raise UsageError(f"{path}: can't read the key ({error.strerror})") from error
