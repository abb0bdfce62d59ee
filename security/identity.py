"""Who signs: an Ed25519 key (RFC 8032) that a data owner makes once and keeps.

The private key lies in a PEM file (PKCS #8, optionally under a passphrase) that only its owner may read. The public
key is its 32 bytes in hexadecimal; people compare fingerprints.
"""

from hashlib import sha256
from pathlib import Path
from typing import NoReturn, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.errors import UsageError
from security.key_files import load_private_key, save_private_key

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
        key = load_private_key(path, passphrase, hint="name the file that the identity was saved to")
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{path}: holds another kind of key; an identity is an Ed25519 key")
        return cls(key)

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Write the key to a new file with mode 0600.

        Raises:
            UsageError: if the file exists (a key is never overwritten) or can't be written.
            ValueError: if the passphrase is empty.
        """
        save_private_key(path, self._key, passphrase)

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
