"""Whoever holds the key signs; nobody else does, and the key leaves its file by no other way."""

import copy
import hmac
import os
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from security.errors import UsageError
from security.identity import Identity, fingerprint, is_public_key, verify

MESSAGE = b"veil test 1\nhello"

# RFC 8032, section 7.1, test 3.
RFC_SEED = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
RFC_PUBLIC = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
RFC_SIGNATURE = bytes.fromhex(
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


@pytest.fixture
def identity() -> Identity:
    return Identity.create()


def test_signatures_are_those_of_the_standard() -> None:
    identity = Identity(ed25519.Ed25519PrivateKey.from_private_bytes(RFC_SEED))
    assert identity.public_hex == RFC_PUBLIC
    assert identity.sign(bytes.fromhex("af82")) == RFC_SIGNATURE
    assert verify(RFC_PUBLIC, RFC_SIGNATURE, bytes.fromhex("af82"))


def test_a_signature_is_of_one_message_by_one_key(identity: Identity) -> None:
    signature = identity.sign(MESSAGE)
    assert verify(identity.public_hex, signature, MESSAGE)
    assert not verify(identity.public_hex, signature, MESSAGE + b"!")
    assert not verify(Identity.create().public_hex, signature, MESSAGE)
    for index in range(64):
        changed = bytearray(signature)
        changed[index] ^= 1
        assert not verify(identity.public_hex, bytes(changed), MESSAGE)


@pytest.mark.parametrize("signature", [b"", b"short", bytes(64), bytes(65)])
def test_what_is_no_signature_is_just_wrong(identity: Identity, signature: bytes) -> None:
    assert not verify(identity.public_hex, signature, MESSAGE)


@pytest.mark.parametrize("change", [str.upper, lambda text: " " + text[1:], lambda text: text[:-2], lambda _: ""])
def test_a_key_has_one_text_only(change: object) -> None:
    identity = Identity.derive(b"sixteen bytes ..", "a")
    other = change(identity.public_hex)  # type: ignore[operator]
    assert not is_public_key(other)
    assert not verify(other, identity.sign(MESSAGE), MESSAGE)
    with pytest.raises(ValueError, match="64 lower-case"):
        fingerprint(other)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_saved_and_loaded(identity: Identity, tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "key.pem"
    identity.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path, passphrase).public_hex == identity.public_hex
    assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)


def test_the_mode_does_not_depend_on_the_umask(identity: Identity, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        identity.save(tmp_path / "key.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(identity: Identity, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    identity.save(path)
    with pytest.raises(UsageError, match="never overwritten"):
        Identity.create().save(path)
    assert Identity.load(path).public_hex == identity.public_hex


def test_a_key_is_not_saved_through_a_dangling_link(identity: Identity, tmp_path: Path) -> None:
    (tmp_path / "key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="never overwritten"):
        identity.save(tmp_path / "key.pem")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_read_is_refused(identity: Identity, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    identity.save(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        Identity.load(path)


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        ("right", None, "needs its passphrase"),
        ("right", "battery staple", "this passphrase opens"),
        (None, "any", "has no passphrase"),
    ],
)
def test_a_wrong_passphrase_is_named_but_never_printed(
    identity: Identity, tmp_path: Path, saved: str | None, given: str | None, message: str
) -> None:
    path = tmp_path / "key.pem"
    identity.save(path, saved)
    with pytest.raises(UsageError, match=message) as caught:
        Identity.load(path, given)
    assert str(given) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_passphrase_is_no_passphrase(identity: Identity, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        identity.save(tmp_path / "key.pem", "")


def test_what_is_no_identity_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(UsageError, match="no such file"):
        Identity.load(path)
    path.mkdir()
    with pytest.raises(UsageError, match="can't read"):
        Identity.load(path)
    path.rmdir()
    for content in (b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", bytes(100_000)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(UsageError, match="not a private key"):
            Identity.load(path)
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UsageError, match="another kind of key"):
        Identity.load(path)


def test_a_folder_that_is_not_there_is_named(identity: Identity, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't write"):
        identity.save(tmp_path / "missing" / "key.pem")


def test_derived_keys_depend_on_secret_and_name_alone() -> None:
    secret = bytes(range(32))
    one = Identity.derive(secret, "client-1").public_hex
    assert Identity.derive(secret, "client-1").public_hex == one
    assert Identity.derive(secret, "client-2").public_hex != one
    assert Identity.derive(secret[::-1], "client-1").public_hex != one
    # RFC 5869 by hand. It never changes: runs that were resumed go on signing with the keys they had.
    extracted = hmac.digest(bytes(32), secret, "sha256")
    seed = hmac.digest(extracted, b"veil identity 1\nclient-1\x01", "sha256")
    assert one == Identity(ed25519.Ed25519PrivateKey.from_private_bytes(seed)).public_hex


def test_a_secret_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Identity.derive(b"seed 7", "client-1")


def test_people_compare_groups_of_four(identity: Identity) -> None:
    groups = identity.fingerprint.split(" ")
    assert len(groups) == 16
    assert all(len(group) == 4 for group in groups)
    assert fingerprint(identity.public_hex) == identity.fingerprint


def test_a_key_is_not_copied_pickled_or_printed(identity: Identity) -> None:
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="can't be copied"):
            copying(identity)
    secret = identity._key.private_bytes_raw().hex()
    assert secret not in repr(identity) + str(identity)
