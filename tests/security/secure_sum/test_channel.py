"""What two clients share: both derive the same, everybody else something else, and weak keys are none."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from security.secure_sum import channel
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.messages import SEALED_BYTES, Offer
from tests.security.secure_sum.rounds import Federation

ATTEMPT = Federation(size=3).attempt()
OTHER = Federation(size=3, number=2).attempt()
VIEW, OTHER_VIEW = bytes(32), b"\1" * 32
SECRETS = [random.Random(number).randbytes(32) for number in range(3)]
PRIVATE = [channel.private_key(secret) for secret in SECRETS]
PUBLIC = [channel.public_key(secret) for secret in SECRETS]


def test_two_clients_derive_one_mask_key_and_no_other_pair_or_attempt_does() -> None:
    keys = {
        (attempt.number, *sorted((own, peer))): {
            channel.mask_key(attempt, PRIVATE[own], own, PUBLIC[peer], peer),
            channel.mask_key(attempt, PRIVATE[peer], peer, PUBLIC[own], own),
        }
        for attempt in (ATTEMPT, OTHER)
        for own in range(3)
        for peer in range(own)
    }
    assert all(len(both) == 1 for both in keys.values())
    assert len(set.union(*keys.values())) == len(keys) == 6


def test_one_seed_has_another_mask_and_commitment_in_every_attempt() -> None:
    seed = SECRETS[0]
    assert channel.self_mask_key(ATTEMPT, seed) != channel.self_mask_key(OTHER, seed)
    committed = {channel.commitment(attempt, index, seed) for attempt in (ATTEMPT, OTHER) for index in range(3)}
    assert len(committed) == 6
    offer = Offer(mask_key=b"", channel_key=b"", commitment=channel.commitment(ATTEMPT, 0, seed), signature=b"")
    assert channel.is_committed(ATTEMPT, 0, offer, seed)
    assert not channel.is_committed(ATTEMPT, 1, offer, seed)
    assert not channel.is_committed(ATTEMPT, 0, offer, SECRETS[1])


def test_shares_open_for_their_holder_from_their_sender_under_one_view() -> None:
    plain = random.Random(0).randbytes(66)
    sealed = channel.seal(ATTEMPT, VIEW, PRIVATE[0], 0, PUBLIC[1], 1, plain)
    assert len(sealed) == SEALED_BYTES
    assert channel.open_sealed(ATTEMPT, VIEW, PRIVATE[1], 1, PUBLIC[0], 0, sealed) == plain
    wrong = [
        (ATTEMPT, OTHER_VIEW, PRIVATE[1], 1, PUBLIC[0], 0),
        (ATTEMPT, VIEW, PRIVATE[0], 0, PUBLIC[1], 1),  # back to its sender
        (ATTEMPT, VIEW, PRIVATE[2], 2, PUBLIC[0], 0),
        (ATTEMPT, VIEW, PRIVATE[1], 1, PUBLIC[2], 2),
        (ATTEMPT, VIEW, PRIVATE[1], 2, PUBLIC[0], 0),
    ]
    for attempt, view, private, own, public, peer in wrong:
        with pytest.raises(SecureSumError, match="damaged-share"):
            channel.open_sealed(attempt, view, private, own, public, peer, sealed)


def test_a_view_is_of_all_keys_and_whose_they_are() -> None:
    offers = {
        index: Offer(mask_key=bytes([index]) * 32, channel_key=b"c" * 32, commitment=b"b" * 32, signature=b"")
        for index in range(3)
    }
    view = channel.view_of(ATTEMPT, offers)
    others = [
        channel.view_of(OTHER, offers),
        channel.view_of(ATTEMPT, {0: offers[0], 1: offers[1]}),
        channel.view_of(ATTEMPT, {**offers, 1: offers[2], 2: offers[1]}),
        channel.view_of(
            ATTEMPT,
            {**offers, 1: Offer(mask_key=b"c" * 32, channel_key=b"\1" * 32, commitment=b"b" * 32, signature=b"")},
        ),
    ]
    assert view == channel.view_of(ATTEMPT, dict(reversed(offers.items())))
    assert len({view, *others}) == 5


@pytest.mark.parametrize("weak", sorted(channel._WEAK))
def test_weak_keys_agree_on_nothing_with_anybody(weak: int) -> None:
    """The library refuses just these; in their other forms too, which aren't a key's one form."""
    prime = 2**255 - 19
    reduced = [weak] if weak >= 19 else [weak, weak + prime]
    for form in [*reduced, *(one + 2**255 for one in reduced)]:
        public = form.to_bytes(32, "little")
        assert not channel.is_strong(public)
        with pytest.raises(ValueError, match="shared key"):
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
        with pytest.raises(SecureSumError) as refused:
            channel.agree(PRIVATE[0], public, b"")
        assert refused.value.reason is Abort.WEAK_KEY


def test_honest_keys_are_strong() -> None:
    assert all(channel.is_strong(channel.public_key(random.Random(number).randbytes(32))) for number in range(300))


def test_a_key_has_one_form() -> None:
    """With its highest bit set it agrees on the same secret, so it would pass for a second key."""
    public = PUBLIC[1]
    twin = public[:31] + bytes([public[31] | 0x80])
    assert channel.agree(PRIVATE[0], twin, b"") == channel.agree(PRIVATE[0], public, b"")
    assert channel.is_strong(public)
    assert not channel.is_strong(twin)
