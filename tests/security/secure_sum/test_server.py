"""The server: liars fall out and the sum goes on; what is too late, twice or out of turn changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.secure_sum import channel
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import Phase
from security.secure_sum.messages import (
    SEALED_BYTES,
    Answer,
    Confirmation,
    Inbox,
    Offer,
    Shares,
    decode,
    encode,
)
from security.secure_sum.server import SumServer
from tests.security.secure_sum.rounds import STEPS, Federation, Round, sparse

LIAR = "c004"


def fresh_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def played(change: Callable[[Round, Any], Any], phase: Phase, **settings: Any) -> Round:
    """A round in which one client's reply of a phase is another."""
    federation = Federation(size=5, **settings)

    def reply(name: str, sent: Any) -> Any:
        return change(one, sent) if name == LIAR and one.server.phase is phase else sent

    one = Round(federation=federation, vectors=federation.vectors(0), reply=reply, patient=True)
    return one


def check_goes_on_without(one: Round, phase: Phase, reason: Abort) -> None:
    total = one.play()
    assert one.refused == {LIAR: reason}
    assert dict(one.server.dropped) == {LIAR: phase}
    survivors = [name for name in one.federation.names if name != LIAR or phase in (Phase.SURVIVORS, Phase.UNMASK)]
    assert total.tolist() == one.federation.plain_sum(one.vectors, survivors).tolist()


def offer_with(one: Round, sent: bytes, **fields: bytes) -> bytes:
    attempt = one.server.attempt
    offer = replace(decode(sent, Offer), **fields)
    signed = one.federation.identities[LIAR].sign(channel.offer_text(attempt, 4, offer))
    return encode(attempt, replace(offer, signature=fields.get("signature", signed)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one, sent: offer_with(one, sent, signature=bytes(64)), Abort.BAD_SIGNATURE),
        (lambda one, sent: offer_with(one, sent, mask_key=one.server._offers[1].mask_key), Abort.EQUAL_KEYS),
        (lambda one, sent: offer_with(one, sent, mask_key=decode(sent, Offer).channel_key), Abort.EQUAL_KEYS),
        (lambda one, sent: offer_with(one, sent, channel_key=bytes(32)), Abort.WEAK_KEY),
        (lambda one, sent: sent[:-1], Abort.DAMAGED_MESSAGE),
        (lambda one, sent: encode(replace(one.server.attempt, number=2), decode(sent, Offer)), Abort.OTHER_ATTEMPT),
    ],
    ids=["unsigned", "another's-key", "one-key-twice", "weak", "damaged", "another-attempt"],
)
def test_a_liar_about_keys_falls_out(change: Callable[[Round, Any], Any], reason: Abort) -> None:
    check_goes_on_without(played(change, Phase.KEYS), Phase.KEYS, reason)


def shares_with(one: Round, sent: bytes, sealed: Callable[[dict[int, bytes]], dict[int, bytes]]) -> bytes:
    return encode(one.server.attempt, Shares(sealed=sealed(decode(sent, Shares).sealed)))


@pytest.mark.parametrize(
    ("sealed", "reason"),
    [
        (lambda found: {index: found[index] for index in (0, 1, 2)}, Abort.MISSING_SHARE),
        (lambda found: {**found, 4: found[0]}, Abort.NOT_IN_COHORT),
        (lambda found: {**found, 5: found[0]}, Abort.NOT_IN_COHORT),
        (lambda found: {}, Abort.MISSING_SHARE),
    ],
    ids=["too-few", "for-itself", "for-a-stranger", "none"],
)
def test_who_shares_with_the_wrong_ones_falls_out(sealed: Callable[[Any], Any], reason: Abort) -> None:
    check_goes_on_without(played(lambda one, sent: shares_with(one, sent, sealed), Phase.SHARES), Phase.SHARES, reason)


def test_who_shared_with_those_who_fell_out_falls_out_as_well() -> None:
    """And who shared with these, and so on: of everybody who is left the masks can be taken away."""
    federation = Federation(size=12, given=sparse(12, holders=5, threshold=6))
    one = Round(federation=federation, vectors=federation.vectors(0))
    one.keys()
    holders = {index: [other for other in range(6) if other != index][:5] for index in range(9)}
    holders |= {9: [0, 1, 2, 3, 10], 10: [0, 1, 2, 3, 11]}
    for index, chosen in holders.items():
        shares = Shares(sealed=dict.fromkeys(chosen, bytes(SEALED_BYTES)))
        one.server.take_shares(federation.names[index], encode(one.server.attempt, shares))
    inboxes = one.server.inboxes()
    assert tuple(inboxes) == one.server.waiting_for == federation.names[:9]
    assert dict(one.server.dropped) == dict.fromkeys(federation.names[9:], Phase.SHARES)
    assert all(decode(inbox, Inbox).sharing == tuple(range(9)) for inbox in inboxes.values())


@pytest.mark.parametrize(
    "change", [lambda y: y[:-1], lambda y: y.astype("uint64"), lambda y: y.reshape(1, -1), lambda y: y.astype(">u4")]
)
def test_a_vector_of_another_form_is_not_added(change: Callable[[Any], Any]) -> None:
    check_goes_on_without(played(lambda one, sent: change(sent), Phase.MASKED), Phase.MASKED, Abort.WRONG_VECTOR)


def test_who_confirms_something_else_falls_out() -> None:
    def other(one: Round, _: bytes) -> bytes:
        text = channel.survivors_text(one.server._view, (0, 1, 2, 4))
        return encode(one.server.attempt, Confirmation(signature=one.federation.identities[LIAR].sign(text)))

    check_goes_on_without(played(other, Phase.SURVIVORS), Phase.SURVIVORS, Abort.SURVIVORS_DIFFER)


@pytest.mark.parametrize("keep", [(0, 1, 2, 3), ()])
def test_who_withholds_shares_falls_out(keep: tuple[int, ...]) -> None:
    def fewer(one: Round, sent: bytes) -> bytes:
        shares = decode(sent, Answer).shares
        return encode(one.server.attempt, Answer(shares={index: shares[index] for index in keep}))

    check_goes_on_without(played(fewer, Phase.UNMASK), Phase.UNMASK, Abort.MISSING_SHARE)


# --- wrong shares


def wrong(one: Round, sent: bytes, *owners: int) -> bytes:
    shares = dict(decode(sent, Answer).shares)
    for owner in owners:
        shares[owner] = bytes([0, *(byte ^ 0x5A for byte in shares[owner][1:])])
    return encode(one.server.attempt, Answer(shares=shares))


@pytest.mark.parametrize("owners", [(0,), (3,), (0, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("size", [5, 7])
def test_a_holder_of_wrong_shares_is_found_and_named(owners: tuple[int, ...], size: int) -> None:
    """Shares of seeds and, where someone fell out, of a mask key: the sum is right, and the liar is known."""
    federation = Federation(size=size)
    gone = {"c003": Phase.MASKED} if size == 7 else {}

    def reply(name: str, sent: Any) -> Any:
        return wrong(one, sent, *owners) if name == LIAR and one.server.phase is Phase.UNMASK else sent

    one = Round(federation=federation, vectors=federation.vectors(0), gone=gone, reply=reply)
    total = one.play()
    survivors = [name for name in federation.names if name not in gone]
    assert total.tolist() == federation.plain_sum(one.vectors, survivors).tolist()
    assert one.server.wrong_shares == {(federation.names[owner], LIAR) for owner in owners}


def test_shares_that_are_no_elements_of_the_field_are_found_too() -> None:
    def malformed(one: Round, sent: bytes) -> bytes:
        return encode(one.server.attempt, Answer(shares={**decode(sent, Answer).shares, 0: b"\xff" * 33}))

    one = played(malformed, Phase.UNMASK)
    total = one.play()
    assert total.tolist() == one.federation.plain_sum(one.vectors, one.federation.names).tolist()
    assert one.server.wrong_shares == {("c000", LIAR)}


def test_too_many_wrong_shares_are_an_abort_and_no_wrong_sum() -> None:
    federation = Federation(size=5)

    def reply(name: str, sent: Any) -> Any:
        lies = name in ("c002", "c003", "c004") and one.server.phase is Phase.UNMASK
        return wrong(one, sent, 0) if lies else sent

    one = Round(federation=federation, vectors=federation.vectors(0), reply=reply)
    with pytest.raises(SecureSumError) as refused:
        one.play()
    assert refused.value.reason is Abort.WRONG_SHARE
    assert one.server.phase is Phase.ABORTED


# --- turns


def test_what_comes_late_or_twice_changes_nothing() -> None:
    federation = Federation(size=5)
    one = Round(federation=federation, vectors=federation.vectors(0))
    offers: dict[str, bytes] = {}
    one.reply = lambda name, sent: offers.setdefault(name, sent) if one.server.phase is Phase.KEYS else sent
    one.gone = {"c004": Phase.KEYS}
    late = federation.begin("c004", one.server.announcement())[1]
    key_list = one.keys()
    for name, offer in [("c004", late), ("c000", offers["c000"])]:
        with pytest.raises(SecureSumError, match="out-of-order"):
            one.server.take_offer(name, offer)
    inboxes = one.shares(key_list)
    masked = one.clients["c000"].mask(inboxes["c000"], one.vectors["c000"])
    one.server.take_masked("c000", masked)
    with pytest.raises(SecureSumError, match="already-answered"):
        one.server.take_masked("c000", masked)
    with pytest.raises(SecureSumError, match="out-of-order"):
        one.server.take_masked("c004", masked)
    with pytest.raises(SecureSumError, match="not-in-cohort"):
        one.server.take_masked("stranger", masked)
    assert one.server.answered == ("c000",)
    total = one.unmask(one.survivors(one.masked(inboxes)))
    assert total.tolist() == federation.plain_sum(one.vectors, federation.names[:4]).tolist()


def test_it_says_whom_it_waits_for() -> None:
    federation = Federation(size=5, corrupt=1)  # four must be there, and four shares rebuild a secret
    one = Round(federation=federation, vectors=federation.vectors(0))
    server, asked = one.server, federation.names

    def told(name: str) -> None:
        nonlocal asked
        assert name in server.waiting_for
        asked = (*asked, name)

    one.reply = lambda name, sent: (told(name), sent)[1]
    confirmations = one.until_unmask()
    assert server.phase is Phase.UNMASK
    for name in federation.names[:4]:
        server.take_answer(name, one.clients[name].unmask(confirmations))
    assert server.waiting_for == ("c004",)
    server.drop("c004")
    server.drop("c000")  # has answered: nothing changes
    assert server.waiting_for == ()
    assert server.result().tolist() == federation.plain_sum(one.vectors, federation.names).tolist()
    assert dict(server.dropped) == {"c004": Phase.UNMASK}
    assert server.phase is Phase.OVER


def test_a_phase_is_closed_once_and_in_its_turn() -> None:
    federation = Federation(size=3)
    one = Round(federation=federation, vectors=federation.vectors(0))
    closers = ("key_list", "inboxes", "survivors", "confirmations", "result")
    for phase, closer in zip(STEPS, closers, strict=True):
        assert one.server.phase is phase
        for other in closers:
            if other != closer:
                with pytest.raises(ValueError, match="can't be closed"):
                    getattr(one.server, other)()
        match phase:
            case Phase.KEYS:
                key_list = one.keys()
            case Phase.SHARES:
                inboxes = one.shares(key_list)
            case Phase.MASKED:
                survivors = one.masked(inboxes)
            case Phase.SURVIVORS:
                confirmations = one.survivors(survivors)
            case _:
                one.unmask(confirmations)
    with pytest.raises(ValueError, match="can't be closed"):
        one.server.result()


def test_it_stops_before_anybody_signs_what_could_not_be_opened() -> None:
    """In a sparse graph enough clients may be there, and yet one of them have too few holders left."""
    federation = Federation(size=12, given=sparse(12, holders=5, threshold=5))
    one = Round(federation=federation, vectors=federation.vectors(0))
    inboxes = one.until_masked()
    least = federation.parameters(12).least
    holders = one.server._holders[0]
    silent = set(sorted(holders - {0})[:2])
    there = [name for index, name in enumerate(federation.names) if index not in silent]
    assert len(there) >= least
    for name in there:
        one.server.take_masked(name, one.clients[name].mask(inboxes[name], one.vectors[name]))
    with pytest.raises(SecureSumError) as refused:
        one.server.survivors()
    assert refused.value.reason is Abort.TOO_FEW_SHARES


def test_too_few_to_hold_shares_are_an_abort() -> None:
    """So few keys that a client couldn't share with as many as the threshold asks for."""
    federation = Federation(size=12, given=sparse(12, holders=10, threshold=9))
    gone = dict.fromkeys(federation.names[8:], Phase.KEYS)
    one = Round(federation=federation, vectors=federation.vectors(0), gone=gone)
    with pytest.raises(SecureSumError) as refused:
        one.keys()
    assert refused.value.reason is Abort.TOO_FEW_HOLDERS


def test_a_roster_must_know_the_cohort() -> None:
    federation = Federation(size=3)
    with pytest.raises(ValueError, match="roster"):
        SumServer(federation.attempt(), {name: federation.roster[name] for name in federation.names[:2]})


def test_without_a_roster_the_clients_find_out_who_signs_wrongly() -> None:
    one = played(lambda one, sent: offer_with(one, sent, signature=bytes(64)), Phase.KEYS)
    one.server = SumServer(one.server.attempt)
    with pytest.raises(SecureSumError) as refused:
        one.play()
    assert refused.value.reason is Abort.TOO_FEW_CLIENTS
    # The liar itself has sent another signature than the one it is shown.
    assert one.refusals == {**dict.fromkeys(one.federation.names, Abort.BAD_SIGNATURE), LIAR: Abort.VIEWS_DIFFER}
