"""What two clients of an attempt share: keys, sealed shares, the keys of masks, and the words that are signed.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869) and ChaCha20-Poly1305 (RFC 8439), each under a label of its own. All
private keys and seeds are made for one attempt and used in no other.
"""

from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import Attempt, canonical, number
from security.secure_sum.messages import Offer

SECRET_BYTES: Final = 32

_NONCE: Final = bytes(12)  # every key seals one message, ever
_PRIME: Final = 2**255 - 19
# The points of low order on the curve and its twist, by their u coordinates: they agree on 0 with every private key.
_WEAK: Final = frozenset(
    (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _PRIME - 1,
    )
)


def private_key(secret: bytes) -> X25519PrivateKey:
    """The private key that 32 uniform bytes are."""
    return X25519PrivateKey.from_private_bytes(secret)


def public_key(secret: bytes) -> bytes:
    """The public key of 32 bytes of secret."""
    return private_key(secret).public_key().public_bytes_raw()


def is_strong(public: bytes) -> bool:
    """Whether this is a key that hides what is agreed on with it, in the one form that it is written in.

    X25519 takes a coordinate modulo 2^255 − 19 and ignores the highest bit, so without the second condition one key
    could pass for several.
    """
    coordinate = int.from_bytes(public, "little")
    return coordinate < _PRIME and coordinate not in _WEAK


def check_keys(offers: Mapping[int, Offer]) -> None:
    """Whether all public keys are strong, and no two are equal.

    Raises:
        SecureSumError: they aren't.
    """
    keys = [key for offer in offers.values() for key in (offer.mask_key, offer.channel_key)]
    if len(set(keys)) < len(keys):
        raise SecureSumError(Abort.EQUAL_KEYS)
    if not all(map(is_strong, keys)):
        raise SecureSumError(Abort.WEAK_KEY)


def agree(private: X25519PrivateKey, public: bytes, info: bytes) -> bytes:
    """32 bytes that only the two know, for one use that `info` names.

    Raises:
        SecureSumError: the public key is weak.
    """
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SecureSumError(Abort.WEAK_KEY) from None
    return _expand(shared, info)


def mask_key(attempt: Attempt, private: X25519PrivateKey, own: int, public: bytes, peer: int) -> bytes:
    """The key of the mask between two clients: the same for both, another for every attempt and pair.

    Raises:
        SecureSumError: the peer's public key is weak.
    """
    low, high = (attempt.cohort[index].encode() for index in sorted((own, peer)))
    return agree(private, public, canonical("veil secure sum 1 pair mask", attempt.digest, low, high))


def self_mask_key(attempt: Attempt, seed: bytes) -> bytes:
    """The key of the mask that a client puts on its vector for itself."""
    return _expand(seed, canonical("veil secure sum 1 self mask", attempt.digest))


def commitment(attempt: Attempt, index: int, seed: bytes) -> bytes:
    """What binds a client to the seed of its self mask; it hides the seed, which is 32 uniform bytes."""
    name = attempt.cohort[index].encode()
    return sha256(canonical("veil secure sum 1 commitment", attempt.digest, name, seed)).digest()


def offer_text(attempt: Attempt, index: int, offer: Offer) -> bytes:
    """What a client signs about its keys."""
    name = attempt.cohort[index].encode()
    parts = (offer.mask_key, offer.channel_key, offer.commitment)
    return canonical("veil secure sum 1 offer", attempt.digest, name, *parts)


def view_of(attempt: Attempt, offers: Mapping[int, Offer]) -> bytes:
    """SHA-256 of whose keys a client saw in an attempt, and which: what both ends of every share must agree on."""
    listed = b"".join(
        number(index) + offer.mask_key + offer.channel_key + offer.commitment for index, offer in sorted(offers.items())
    )
    return sha256(canonical("veil secure sum 1 view", attempt.digest, listed)).digest()


def survivors_text(view: bytes, survivors: tuple[int, ...]) -> bytes:
    """What a client signs about the survivors. The view holds the attempt's digest."""
    return canonical("veil secure sum 1 survivors", view, b"".join(map(number, survivors)))


def seal(
    attempt: Attempt, view: bytes, key: X25519PrivateKey, own: int, public: bytes, peer: int, plain: bytes
) -> bytes:
    """Seal a client's shares for their holder; once for each pair in an attempt.

    Raises:
        SecureSumError: the holder's public key is weak.
    """
    return ChaCha20Poly1305(_channel(attempt, view, key, public, own, peer)).encrypt(_NONCE, plain, None)


def open_sealed(
    attempt: Attempt, view: bytes, key: X25519PrivateKey, own: int, public: bytes, peer: int, sealed: bytes
) -> bytes:
    """What a peer sealed for this client.

    Raises:
        SecureSumError: its public key is weak, or this isn't what it sealed for this client under the same view.
    """
    try:
        return ChaCha20Poly1305(_channel(attempt, view, key, public, peer, own)).decrypt(_NONCE, sealed, None)
    except InvalidTag:
        raise SecureSumError(Abort.DAMAGED_SHARE) from None


def is_committed(attempt: Attempt, index: int, offer: Offer, seed: bytes) -> bool:
    """Whether this is the seed that the client committed to."""
    return compare_digest(commitment(attempt, index, seed), offer.commitment)


def _channel(attempt: Attempt, view: bytes, key: X25519PrivateKey, public: bytes, sender: int, receiver: int) -> bytes:
    names = (attempt.cohort[sender].encode(), attempt.cohort[receiver].encode())
    return agree(key, public, canonical("veil secure sum 1 shares", view, *names))


def _expand(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(secret)
