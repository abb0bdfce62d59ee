"""A server that cheats: what an honest client refuses, by name, and that nothing more is had of it afterwards.

The server of these tests reads and writes any message, plays any client whose identity it has (those that collude), and
shows each honest client what it likes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.identity import Identity
from security.secure_sum import channel
from security.secure_sum import messages_pb2 as pb
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import Attempt, Phase
from security.secure_sum.client import SumClient
from security.secure_sum.messages import (
    Answer,
    Confirmation,
    Confirmations,
    Inbox,
    KeyList,
    Offer,
    Shares,
    State,
    Survivors,
    decode,
    encode,
)
from security.secure_sum.sharing import SHARE_BYTES
from tests.security.secure_sum.rounds import SECRET, Federation, Round, sparse

A, B, C, D, E = range(5)


@pytest.fixture
def federation() -> Federation:
    return Federation(size=5, corrupt=1)


@pytest.fixture
def played(federation: Federation) -> Round:
    return Round(federation=federation, vectors=federation.vectors(0))


def client(played: Round, index: int) -> SumClient:
    return played.clients[played.federation.names[index]]


def attempt(played: Round) -> Attempt:
    return played.server.attempt


def refused(reason: Abort, step: Callable[..., object], *arguments: Any) -> None:
    with pytest.raises(SecureSumError) as caught:
        step(*arguments)
    assert caught.value.reason is reason


def finished(one: SumClient) -> None:
    """It has aborted: whatever is asked, nothing comes of it, and it holds no secret any more."""
    assert one.phase is Phase.ABORTED
    for step in (one.share, one.confirm, one.unmask):
        refused(Abort.ABORTED, step, b"")
    refused(Abort.ABORTED, one.mask, b"", Federation(size=2).vectors(0)["c000"])
    state = decode(one.to_bytes(), State)
    assert state == State(announcement=state.announcement, phase=Phase.ABORTED, held={})


# --- phase keys: which attempt a client takes part in


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"federation": "another"}, Abort.OTHER_ATTEMPT),
        ({"run": "beef"}, Abort.OTHER_ATTEMPT),
        ({"round": 4}, Abort.OTHER_ATTEMPT),
        ({"purpose": "evaluate"}, Abort.OTHER_ATTEMPT),
        ({"context": bytes(32)}, Abort.OTHER_ATTEMPT),
        ({"length": 6}, Abort.OTHER_ATTEMPT),
        ({"bits": 64}, Abort.OTHER_ATTEMPT),
        ({"cohort": ("c001", "c002", "c003")}, Abort.NOT_IN_COHORT),
        ({"cohort": ("c000", "c001", "sybil")}, Abort.UNKNOWN_CLIENT),
        ({"cohort": ("c000", "c001")}, Abort.COHORT_TOO_SMALL),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.value,
)
def test_only_the_expected_attempt_is_begun(federation: Federation, change: dict[str, Any], reason: Abort) -> None:
    other = federation.attempt(**change)
    refused(reason, lambda: federation.begin("c000", encode(other, other), least_cohort=3))


def test_a_cohort_of_which_no_sum_is_safe_is_refused() -> None:
    generous = Federation(size=4)
    strict = Federation(size=4, corrupt=2, honest=3)
    announcement = encode(generous.attempt(), generous.attempt())
    refused(Abort.COHORT_TOO_SMALL, strict.begin, "c000", announcement)


def test_parameters_are_never_the_servers(federation: Federation) -> None:
    """A server that reckons with fewer colluding clients than the plan has another attempt in mind."""
    lax = Federation(size=5, corrupt=0)
    refused(Abort.OTHER_ATTEMPT, federation.begin, "c000", encode(lax.attempt(), lax.attempt()))


def test_two_names_with_one_identity_count_once_at_most(federation: Federation) -> None:
    roster = {**federation.roster, "c004": federation.roster["c003"]}
    announced = federation.attempt()
    refused(Abort.EQUAL_KEYS, lambda: federation.begin("c000", encode(announced, announced), roster=roster))


def test_a_name_that_is_in_the_cohort_twice_is_refused(federation: Federation) -> None:
    announced = federation.attempt()
    doubled = pb.Message.FromString(encode(announced, announced))
    doubled.announcement.cohort[:] = [*federation.names, federation.names[-1]]
    refused(Abort.DAMAGED_MESSAGE, federation.begin, "c000", doubled.SerializeToString(deterministic=True))


def test_what_was_said_before_a_restart_is_of_no_use_after_it(federation: Federation, played: Round) -> None:
    """Even a client that keeps no books and begins one attempt twice has other secrets the second time."""
    key_list = played.keys()
    inboxes = played.shares(key_list)
    again, _ = federation.begin("c000", played.server.announcement())
    refused(Abort.VIEWS_DIFFER, again.share, key_list)
    finished(again)
    again, offer = federation.begin("c000", played.server.announcement())
    again.share(encode(attempt(played), KeyList(offers={**offers_of_server(played), A: decode(offer, Offer)})))
    refused(Abort.DAMAGED_SHARE, again.mask, inboxes["c000"], played.vectors["c000"])
    finished(again)


def test_a_resumed_attempt_under_the_same_number_is_refused(federation: Federation) -> None:
    begun: set[int] = set()

    def used(attempt: Attempt) -> bool:
        return attempt.number in begun

    first = federation.attempt()
    one, _ = federation.begin("c000", encode(first, first), used=used)
    begun.add(one.attempt.number)
    again = federation.attempt(nonce=b"\1" * 32, cohort=federation.names[:4])
    for same in (first, again):
        refused(
            Abort.ATTEMPT_USED,
            lambda same=same: federation.begin("c000", encode(same, same), used=used),
        )
    later = federation.attempt(number=2)
    federation.begin("c000", encode(later, later), used=used)


# --- phase shares: whose keys


def offers_of(played: Round) -> dict[int, Offer]:
    return dict(decode(played.keys(), KeyList).offers)


def corrupt_offer(played: Round, index: int, **keys: bytes) -> Offer:
    """An offer as its client's own identity signs it, with keys of the server's choice."""
    forged = Offer(**{**vars(offers_of_server(played)[index]), **keys, "signature": bytes(64)})
    text = channel.offer_text(attempt(played), index, forged)
    return replace(forged, signature=played.federation.identities[played.federation.names[index]].sign(text))


def offers_of_server(played: Round) -> dict[int, Offer]:
    return played.server._offers


def key_list_refused(played: Round, offers: dict[int, Offer], reason: Abort, victim: int = A) -> None:
    refused(reason, client(played, victim).share, encode(attempt(played), KeyList(offers=offers)))
    finished(client(played, victim))


def fresh_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


@pytest.mark.parametrize("field", ["mask_key", "channel_key", "commitment"])
def test_a_swapped_key_is_refused(played: Round, field: str) -> None:
    offers = offers_of(played)
    offers[B] = replace(offers[B], **{field: fresh_key()})
    key_list_refused(played, offers, Abort.BAD_SIGNATURE)


def test_two_clients_swapped_are_refused(played: Round) -> None:
    offers = offers_of(played)
    offers[B], offers[C] = offers[C], offers[B]
    key_list_refused(played, offers, Abort.BAD_SIGNATURE)


def test_keys_signed_by_another_identity_are_refused(played: Round) -> None:
    """A Sybil under a known name: signed well, by a key that the roster doesn't have for it."""
    offers = offers_of(played)
    sybil = Identity.derive(SECRET, "sybil")
    offers[B] = replace(offers[B], signature=sybil.sign(channel.offer_text(attempt(played), B, offers[B])))
    key_list_refused(played, offers, Abort.BAD_SIGNATURE)


@pytest.mark.parametrize("change", [{"number": 2}, {"nonce": b"\1" * 32}, {"round": 2}, {"run": "beef"}], ids=str)
def test_keys_replayed_from_another_attempt_are_refused(played: Round, change: dict[str, Any]) -> None:
    offers = offers_of(played)
    other = played.federation.attempt(**change)
    round_, run = (other.round, other.run)
    _, replayed = played.federation.begin("c001", encode(other, other), round=round_, run=run)
    offers[B] = decode(replayed, Offer)
    key_list_refused(played, offers, Abort.BAD_SIGNATURE)


def test_a_key_list_of_another_attempt_is_refused(federation: Federation, played: Round) -> None:
    played.keys()
    other = Round(federation=replace(federation, number=2), vectors=played.vectors)
    refused(Abort.OTHER_ATTEMPT, client(played, A).share, other.keys())
    finished(client(played, A))


@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_equal_keys_are_refused(played: Round, field: str) -> None:
    """A colluding client repeats another's public key, or the victim's own, under its own signature."""
    offers = offers_of(played)
    for victim, taken in ((A, offers[B].mask_key), (C, offers[C].channel_key)):
        offers[E] = corrupt_offer(played, E, **{field: taken})
        key_list_refused(played, offers, Abort.EQUAL_KEYS, victim)


def test_one_key_for_both_uses_is_refused(played: Round) -> None:
    offers = offers_of(played)
    key = fresh_key()
    offers[E] = corrupt_offer(played, E, mask_key=key, channel_key=key)
    key_list_refused(played, offers, Abort.EQUAL_KEYS)


def test_the_own_offer_reflected_changed_or_left_out_is_refused(played: Round) -> None:
    offers = offers_of(played)
    reflected = {**offers, A: offers[B]}
    left_out = {index: offer for index, offer in offers.items() if index != B}
    replaced = {**offers, C: replace(offers[C], mask_key=fresh_key())}
    for victim, changed in ((A, reflected), (B, left_out), (C, replaced)):
        key_list_refused(played, changed, Abort.VIEWS_DIFFER, victim)


@pytest.mark.parametrize("weak", [*sorted(channel._WEAK), 2**255 - 19, 2**255 - 18, 2**255 + 9])
def test_weak_keys_and_second_forms_of_a_key_are_refused(played: Round, weak: int) -> None:
    offers = offers_of(played)
    offers[E] = corrupt_offer(played, E, mask_key=weak.to_bytes(32, "little"))
    key_list_refused(played, offers, Abort.WEAK_KEY)
    offers[E] = corrupt_offer(played, E, channel_key=weak.to_bytes(32, "little"))
    key_list_refused(played, offers, Abort.WEAK_KEY, B)


def test_too_few_keys_are_refused(played: Round) -> None:
    least = attempt(played).parameters.least
    offers = offers_of(played)
    key_list_refused(played, {index: offers[index] for index in range(least - 1)}, Abort.TOO_FEW_CLIENTS)
    few = {index: offers[index] for index in range(least)}
    assert client(played, B).share(encode(attempt(played), KeyList(offers=few)))


def test_too_few_to_hold_shares_are_refused() -> None:
    federation = Federation(size=12, given=sparse(12, holders=10, threshold=9))
    played = Round(federation=federation, vectors=federation.vectors(0))
    offers = offers_of(played)
    assert federation.parameters(12).least < 8
    key_list_refused(played, {index: offers[index] for index in range(8)}, Abort.TOO_FEW_HOLDERS)


def test_a_client_beyond_the_cohort_is_refused(played: Round) -> None:
    offers = offers_of(played)
    key_list_refused(played, {**offers, 5: offers[E]}, Abort.NOT_IN_COHORT)


def test_two_clients_shown_different_lists_never_open_each_others_shares(played: Round) -> None:
    offers = offers_of(played)
    other = {**offers, E: corrupt_offer(played, E, commitment=bytes(32))}
    shares = {}
    for index, shown in ((A, offers), (B, other), (C, offers), (D, offers), (E, offers)):
        reply = client(played, index).share(encode(attempt(played), KeyList(offers=shown)))
        shares[index] = decode(reply, Shares).sealed
    inbox = Inbox(sharing=(A, B, C, D, E), sealed={index: shares[index][A] for index in (B, C, D, E)})
    refused(Abort.DAMAGED_SHARE, client(played, A).mask, encode(attempt(played), inbox), played.vectors["c000"])
    finished(client(played, A))


def test_two_requests_at_once_get_one_answer(played: Round) -> None:
    """A server may ask twice at the same time: who comes second waits, and is refused. Else one secret would be shared
    twice, among holders under two views."""
    key_list = played.keys()
    inside, leave = threading.Event(), threading.Event()

    def entropy(size: int) -> bytes:
        inside.set()
        assert leave.wait(60)
        return os.urandom(size)

    state, federation = client(played, A).to_bytes(), played.federation
    one = SumClient.from_bytes(state, federation.expected("c000"), federation.identities["c000"].sign, entropy)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.share, key_list)
        assert inside.wait(60)
        second = pool.submit(one.share, key_list)
        wait([second], timeout=0.2)  # were there no turns, it would be sharing by now
        leave.set()
        assert first.result()
        refused(Abort.ALREADY_ANSWERED, second.result)


# --- phase masked: who shared, and what of it arrives


def inbox_of(played: Round, index: int) -> Inbox:
    inboxes = played.until_masked()
    return decode(inboxes[played.federation.names[index]], Inbox)


def inbox_refused(played: Round, inbox: Inbox, reason: Abort) -> None:
    vector = played.vectors["c000"]
    refused(reason, client(played, A).mask, encode(attempt(played), inbox), vector)
    finished(client(played, A))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_changed_share_is_refused(played: Round, place: int) -> None:
    inbox = inbox_of(played, A)
    place %= len(inbox.sealed[B])
    inbox_refused(
        played, replace(inbox, sealed={**inbox.sealed, B: flipped(inbox.sealed[B], place)}), Abort.DAMAGED_SHARE
    )


def test_shares_of_two_senders_swapped_are_refused(played: Round) -> None:
    inbox = inbox_of(played, A)
    sealed = {**inbox.sealed, B: inbox.sealed[C], C: inbox.sealed[B]}
    inbox_refused(played, replace(inbox, sealed=sealed), Abort.DAMAGED_SHARE)


def test_shares_for_another_holder_are_refused(played: Round) -> None:
    """The victim's holders can't be replaced: what it sealed opens for nobody else."""
    inboxes = {name: decode(inbox, Inbox) for name, inbox in played.until_masked().items()}
    sealed = {**inboxes["c000"].sealed, B: inboxes["c002"].sealed[B]}
    inbox_refused(played, replace(inboxes["c000"], sealed=sealed), Abort.DAMAGED_SHARE)


def test_the_own_shares_reflected_are_refused(played: Round) -> None:
    inboxes = {name: decode(inbox, Inbox) for name, inbox in played.until_masked().items()}
    mine_for_b = inboxes["c001"].sealed[A]
    inbox = inboxes["c000"]
    inbox_refused(played, replace(inbox, sealed={**inbox.sealed, B: mine_for_b}), Abort.DAMAGED_SHARE)


def test_missing_shares_are_refused(played: Round) -> None:
    inbox = inbox_of(played, A)
    few = {index: sealed for index, sealed in inbox.sealed.items() if index != B}
    inbox_refused(played, replace(inbox, sealed=few), Abort.MISSING_SHARE)


@pytest.mark.parametrize(
    ("sharing", "reason"),
    [
        ((A, B, C), Abort.TOO_FEW_CLIENTS),
        ((B, C, D, E), Abort.NOT_IN_COHORT),
        ((A, B, C, D, E, 5), Abort.NOT_IN_COHORT),
    ],
    ids=["too-few", "without-itself", "a-stranger"],
)
def test_who_shared_is_checked(played: Round, sharing: tuple[int, ...], reason: Abort) -> None:
    inbox = inbox_of(played, A)
    sealed = {index: one for index, one in inbox.sealed.items() if index in sharing}
    inbox_refused(played, Inbox(sharing=sharing, sealed=sealed), reason)


def test_a_victim_cut_off_from_its_holders_refuses() -> None:
    """In a sparse graph the server might leave a victim only such neighbours as collude."""
    federation = Federation(size=12, given=sparse(12, holders=5, threshold=4))
    played = Round(federation=federation, vectors=federation.vectors(0))
    inbox = decode(played.until_masked()["c000"], Inbox)
    holders = decode(client(played, A).to_bytes(), State).holders
    gone = holders[:3]  # two of five, with itself three, are fewer than the threshold
    kept = tuple(index for index in inbox.sharing if index not in gone)
    assert len(kept) >= federation.parameters(12).least
    sealed = {index: one for index, one in inbox.sealed.items() if index in kept}
    inbox_refused(played, Inbox(sharing=kept, sealed=sealed), Abort.TOO_FEW_HOLDERS)


@pytest.mark.parametrize("sender", ["left-out", "itself", "a-stranger"])
def test_shares_of_somebody_who_did_not_share_are_refused(sender: str) -> None:
    federation = Federation(size=12, given=sparse(12, holders=10, threshold=7))
    played = Round(federation=federation, vectors=federation.vectors(0))
    inbox = inbox_of(played, A)
    left_out = min(inbox.sealed)  # not one of eleven chose the victim: once in 11^11
    kept = tuple(index for index in inbox.sharing if index != left_out)
    sealed = dict(inbox.sealed)
    if sender != "left-out":
        del sealed[left_out]
        sealed[A if sender == "itself" else 12] = inbox.sealed[left_out]
    inbox_refused(played, Inbox(sharing=kept, sealed=sealed), Abort.NOT_IN_COHORT)


def test_no_second_vector_is_masked_under_one_attempt(played: Round) -> None:
    inboxes = played.until_masked()
    one = client(played, A)
    first = one.mask(inboxes["c000"], played.vectors["c000"])
    for vector in (played.vectors["c000"], played.vectors["c001"]):
        refused(Abort.ALREADY_ANSWERED, one.mask, inboxes["c000"], vector)
    assert one.phase is Phase.SURVIVORS
    assert first.tolist() != played.vectors["c000"].tolist()


# --- phase survivors


def masked(played: Round) -> None:
    played.until_survivors()


def survivors_of(played: Round, *survivors: int) -> bytes:
    return encode(attempt(played), Survivors(survivors=survivors))


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        ((A, B, C), Abort.TOO_FEW_CLIENTS),
        ((), Abort.NOT_IN_COHORT),
        ((B, C, D, E), Abort.NOT_IN_COHORT),
        ((A, B, C, D, E, 5), Abort.NOT_IN_COHORT),
    ],
    ids=["below-the-least", "none", "without-itself", "a-stranger"],
)
def test_survivors_are_checked(played: Round, survivors: tuple[int, ...], reason: Abort) -> None:
    masked(played)
    refused(reason, client(played, A).confirm, survivors_of(played, *survivors))
    finished(client(played, A))


def test_survivors_that_never_shared_are_refused() -> None:
    federation = Federation(size=5, corrupt=0)
    played = Round(federation=federation, vectors=federation.vectors(0), gone={"c004": Phase.SHARES})
    masked(played)
    refused(Abort.NOT_IN_COHORT, client(played, A).confirm, survivors_of(played, A, B, C, D, E))


def test_no_second_set_of_survivors_is_signed(played: Round) -> None:
    survivors = played.until_survivors()
    one = client(played, A)
    one.confirm(survivors)
    for again in (survivors, survivors_of(played, A, B, C, D)):
        refused(Abort.ALREADY_ANSWERED, one.confirm, again)


# --- phase unmask


def confirmations_of(played: Round, *signers: int) -> dict[int, bytes]:
    """Confirmations of everybody's survivors by some, with each client in its turn."""
    survivors = played.until_survivors()
    return {
        index: decode(client(played, index).confirm(survivors), Confirmation).signature
        for index in signers or (A, B, C, D, E)
    }


def unmask_refused(played: Round, signatures: dict[int, bytes], reason: Abort, victim: int = A) -> None:
    said = encode(attempt(played), Confirmations(signatures=signatures))
    refused(reason, client(played, victim).unmask, said)
    finished(client(played, victim))


def test_two_sets_of_survivors_to_two_clients_open_nothing(played: Round) -> None:
    """With one client that colludes and signs both: neither side finds enough who confirmed what it confirmed."""
    masked(played)
    sides = {(A, B, D, E): (A, B), (B, C, D, E): (C, D)}
    said: dict[int, dict[int, bytes]] = {}
    for number, (shown, told) in enumerate(sides.items()):
        text = channel.survivors_text(played.server._view, shown)
        said[number] = {E: played.federation.identities["c004"].sign(text)}
        for index in told:
            confirmed = client(played, index).confirm(survivors_of(played, *shown))
            said[number][index] = decode(confirmed, Confirmation).signature
    unmask_refused(played, said[0], Abort.TOO_FEW_CLIENTS, A)
    unmask_refused(played, said[1], Abort.TOO_FEW_CLIENTS, C)
    # Nor does it help to pass off confirmations of one side as those of the other.
    unmask_refused(played, {**said[0], D: said[1][D]}, Abort.SURVIVORS_DIFFER, B)
    unmask_refused(played, {**said[1], B: said[0][B]}, Abort.SURVIVORS_DIFFER, D)


def test_confirmations_of_other_survivors_are_refused(played: Round) -> None:
    survivors = played.until_survivors()
    said = {}
    for index in (A, B, C, D):
        shown = survivors_of(played, A, B, C, D) if index == D else survivors
        said[index] = decode(client(played, index).confirm(shown), Confirmation).signature
    unmask_refused(played, said, Abort.SURVIVORS_DIFFER)


def test_too_few_confirmations_are_refused(played: Round) -> None:
    unmask_refused(played, confirmations_of(played, A, B, C), Abort.TOO_FEW_CLIENTS)


def test_forged_confirmations_are_refused(played: Round) -> None:
    said = confirmations_of(played)
    unmask_refused(played, {**said, D: said[C]}, Abort.SURVIVORS_DIFFER, A)
    unmask_refused(played, {**said, D: bytes(64)}, Abort.SURVIVORS_DIFFER, B)
    unmask_refused(played, {**said, D: flipped(said[D], 0)}, Abort.SURVIVORS_DIFFER, C)


def test_a_confirmation_by_no_survivor_is_refused() -> None:
    federation = Federation(size=5)
    played = Round(federation=federation, vectors=federation.vectors(0), gone={"c004": Phase.MASKED})
    said = confirmations_of(played, A, B, C, D)
    text = channel.survivors_text(played.server._view, (A, B, C, D))
    unmask_refused(played, {**said, E: federation.identities["c004"].sign(text)}, Abort.NOT_IN_COHORT)


def test_confirmations_of_another_attempt_are_refused(federation: Federation, played: Round) -> None:
    other = Round(federation=replace(federation, number=2), vectors=played.vectors)
    replayed = confirmations_of(other)
    refused_by_header = encode(attempt(other), Confirmations(signatures=replayed))
    own = confirmations_of(played)
    refused(Abort.OTHER_ATTEMPT, client(played, A).unmask, refused_by_header)
    finished(client(played, A))
    unmask_refused(played, {**own, C: replayed[C]}, Abort.SURVIVORS_DIFFER, B)


def test_a_survivor_claimed_dropped_loses_nothing(played: Round) -> None:
    """The server says that a client fell out whose vector it has: it learns its mask key, and never its seed too."""
    masked(played)
    shown = (A, B, C, D)
    said = {
        index: decode(client(played, index).confirm(survivors_of(played, *shown)), Confirmation).signature
        for index in shown
    }
    view = played.server._view
    # E won't hear of survivors without itself, nor of others once the set is signed.
    refused(Abort.NOT_IN_COHORT, client(played, E).confirm, survivors_of(played, *shown))
    states = {index: decode(client(played, index).to_bytes(), State) for index in shown}
    answers = {}
    for index in shown:
        reply = client(played, index).unmask(encode(attempt(played), Confirmations(signatures=said)))
        answers[index] = decode(reply, Answer).shares
    for index, shares in answers.items():
        pair = states[index].held[E]
        assert shares[E] == pair[:SHARE_BYTES]
        assert shares[E] != pair[SHARE_BYTES:]
        # Now that it fell out, the other kind is asked for, with confirmations as good as colluding clients make them.
        everyone = (A, B, C, D, E)
        late = {E: played.federation.identities["c004"].sign(channel.survivors_text(view, everyone))}
        asked = encode(attempt(played), Confirmations(signatures=late))
        refused(Abort.ALREADY_ANSWERED, client(played, index).unmask, asked)
        refused(Abort.ALREADY_ANSWERED, client(played, index).confirm, survivors_of(played, *everyone))


def test_one_unmask_answer_an_attempt(played: Round) -> None:
    said = confirmations_of(played)
    asked = encode(attempt(played), Confirmations(signatures=said))
    one = client(played, A)
    answer = decode(one.unmask(asked), Answer)
    assert answer.shares.keys() == {A, B, C, D, E}
    assert one.phase is Phase.OVER
    refused(Abort.ALREADY_ANSWERED, one.unmask, asked)
    fewer = encode(attempt(played), Confirmations(signatures={index: said[index] for index in (A, B, C, D)}))
    refused(Abort.ALREADY_ANSWERED, one.unmask, fewer)
    state = decode(one.to_bytes(), State)
    assert state == State(announcement=state.announcement, phase=Phase.OVER, held={})


# --- order


def test_phases_come_in_their_order(played: Round) -> None:
    key_list = played.keys()
    one = client(played, A)
    vector = played.vectors["c000"]
    for step in (one.confirm, one.unmask):
        refused(Abort.OUT_OF_ORDER, step, key_list)
    refused(Abort.OUT_OF_ORDER, one.mask, key_list, vector)
    assert one.phase is Phase.SHARES  # asked out of turn: nothing has changed
    assert one.share(key_list)
    refused(Abort.ALREADY_ANSWERED, one.share, key_list)
    assert one.phase is Phase.MASKED


def test_a_message_of_another_phase_is_refused(played: Round) -> None:
    played.keys()
    refused(Abort.OUT_OF_ORDER, client(played, A).share, survivors_of(played, A, B, C, D))
    finished(client(played, A))


def test_secrets_are_gone_once_they_are_of_no_use(played: Round) -> None:
    inboxes = played.until_masked()
    one = client(played, A)
    one.mask(inboxes["c000"], played.vectors["c000"])
    state = decode(one.to_bytes(), State)
    assert (state.mask_secret, state.channel_secret, state.seed, state.holders) == (b"", b"", b"", ())


def test_whatever_breaks_within_a_step_ends_the_attempt(federation: Federation) -> None:
    """A failing signer, say: no half-made step is taken up again with other words."""
    announced = federation.attempt()

    def broken(_: bytes) -> bytes:
        raise OSError("the card is gone")

    played = Round(federation=federation, vectors=federation.vectors(0))
    survivors = played.until_survivors()
    one = SumClient.from_bytes(client(played, A).to_bytes(), federation.expected("c000"), broken)
    assert one.attempt == announced
    with pytest.raises(OSError, match="card"):
        one.confirm(survivors)
    finished(one)


def test_a_wrong_vector_of_the_callers_own_changes_nothing(played: Round) -> None:
    inboxes = played.until_masked()
    one, vector = client(played, A), played.vectors["c000"]
    for wrong in (vector[:-1], vector.astype("uint64"), vector.astype(">u4"), vector.reshape(1, -1)):
        with pytest.raises(ValueError, match="5 numbers"):
            one.mask(inboxes["c000"], wrong)
    assert one.mask(inboxes["c000"], vector).shape == vector.shape
