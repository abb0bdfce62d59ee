"""Messages: what is written is read, and whatever else is sent is refused by name and by nothing else."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from security.secure_sum import messages_pb2 as pb
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import Announcement, Attempt, Phase
from security.secure_sum.client import SumClient
from security.secure_sum.messages import (
    LARGEST_MESSAGE,
    SEALED_BYTES,
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
from tests.security.secure_sum.rounds import Federation, Round, outcome

FEDERATION = Federation(size=4)
ATTEMPT = FEDERATION.attempt()
OFFER = Offer(mask_key=b"m" * 32, channel_key=b"c" * 32, commitment=b"b" * 32, signature=b"s" * 64)
SAID: list[Any] = [
    OFFER,
    KeyList(offers={0: OFFER, 3: OFFER}),
    Shares(sealed={1: b"x" * SEALED_BYTES, 2: b"y" * SEALED_BYTES}),
    Inbox(sharing=(0, 1, 3), sealed={1: b"x" * SEALED_BYTES}),
    Survivors(survivors=(0, 1, 300)),
    Confirmation(signature=b"s" * 64),
    Confirmations(signatures={0: b"s" * 64, 2: b"t" * 64}),
    Answer(shares={0: b"x" * SHARE_BYTES, 1: b"y" * SHARE_BYTES}),
    State(
        announcement=Announcement(**{k: v for k, v in vars(ATTEMPT).items() if k != "parameters"}),
        phase=Phase.OVER,
        held={},
    ),
]


def kind_name(message: object) -> str:
    return type(message).__name__


def damaged(data: bytes, kind: type[Any], reason: Abort = Abort.DAMAGED_MESSAGE) -> None:
    with pytest.raises(SecureSumError) as refused:
        decode(data, kind, ATTEMPT)
    assert refused.value.reason is reason


@pytest.mark.parametrize("message", SAID, ids=kind_name)
def test_what_is_written_is_read(message: Any) -> None:
    assert decode(encode(ATTEMPT, message), type(message), ATTEMPT) == message


def test_an_announcement_says_all_but_the_parameters() -> None:
    said = decode(encode(ATTEMPT, ATTEMPT), Announcement, ATTEMPT)
    assert Attempt(**vars(said), parameters=ATTEMPT.parameters) == ATTEMPT


@pytest.mark.parametrize("message", SAID, ids=kind_name)
def test_a_message_of_another_kind_is_out_of_order(message: Any) -> None:
    other = Confirmation if not isinstance(message, Confirmation) else Offer
    damaged(encode(ATTEMPT, message), other, Abort.OUT_OF_ORDER)


@pytest.mark.parametrize("message", SAID, ids=kind_name)
def test_a_message_of_another_attempt_is_refused(message: Any) -> None:
    damaged(encode(FEDERATION.attempt(number=2), message), type(message), Abort.OTHER_ATTEMPT)


@pytest.mark.parametrize("message", SAID, ids=kind_name)
def test_a_message_has_one_form(message: Any) -> None:
    data = encode(ATTEMPT, message)
    unknown = b"\x78\x01"  # field 15
    again = b"\x0a\x20" + ATTEMPT.digest  # the digest a second time: protobuf would take the last
    for other in (
        data + unknown,
        unknown + data,
        again + data,
        data + again,
        data + b"\0",
        data[:-1],
        b"",
        data + data,
    ):
        damaged(other, type(message))


def test_there_is_one_form_of_what_is_inside_too() -> None:
    data = encode(ATTEMPT, Confirmation(signature=b"s" * 64))
    head, inner = data[: -len(b"\x0a\x40") - 64 - 2], data[-66:]
    assert head + b"\x42\x42" + inner == data
    damaged(head + b"\x42\x44" + inner + b"\x78\x01", Confirmation)  # a field that is not known
    damaged(head + b"\x42\xc2\x00" + inner, Confirmation)  # a length in more bytes than it needs
    damaged(head + b"\x42\x84\x01" + inner + inner, Confirmation)  # the signature twice


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (pb.Message(shares=pb.Shares(sealed=[pb.Entry(index=1, value=b"x")])), Shares),
        (pb.Message(shares=pb.Shares(sealed=[pb.Entry(index=i, value=b"x" * SEALED_BYTES) for i in (2, 1)])), Shares),
        (pb.Message(shares=pb.Shares(sealed=[pb.Entry(index=1, value=b"x" * SEALED_BYTES)] * 2)), Shares),
        (pb.Message(survivors=pb.Survivors(survivors=[1, 1])), Survivors),
        (pb.Message(survivors=pb.Survivors(survivors=[2, 1])), Survivors),
        (pb.Message(survivors=pb.Survivors(survivors=range((1 << 14) + 1))), Survivors),
        (pb.Message(confirmation=pb.Confirmation(signature=bytes(63))), Confirmation),
        (pb.Message(offer=pb.Offer(mask_key=bytes(32))), Offer),
        (pb.Message(key_list=pb.KeyList(offers=[pb.IndexedOffer(index=0)])), KeyList),
        (pb.Message(announcement=pb.Announcement(protocol=2)), Announcement),
        (pb.Message(announcement=pb.Announcement(protocol=1)), Announcement),
        (pb.Message(), Offer),
    ],
    ids=[
        "short-entry",
        "descending",
        "twice",
        "equal-indices",
        "descending-indices",
        "too-many",
        "short-signature",
        "lacking-keys",
        "empty-offer",
        "another-protocol",
        "empty-announcement",
        "no-kind",
    ],
)
def test_fields_out_of_bounds_are_refused(message: Any, kind: type[Any]) -> None:
    message.attempt = ATTEMPT.digest
    damaged(message.SerializeToString(deterministic=True), kind)


def test_a_message_larger_than_any_is_refused_unread() -> None:
    damaged(bytes(LARGEST_MESSAGE + 1), Offer)


@pytest.mark.parametrize(
    "message",
    [
        pb.Message(attempt=ATTEMPT.digest, inbox=pb.Inbox(sealed=[pb.Entry()] * 200_000)),
        pb.Message(attempt=ATTEMPT.digest, key_list=pb.KeyList(offers=[pb.IndexedOffer()] * 200_000)),
        pb.Message(attempt=ATTEMPT.digest, survivors=pb.Survivors(survivors=range(200_000))),
        pb.Message(attempt=ATTEMPT.digest, announcement=pb.Announcement(cohort=["a"] * 200_000)),
    ],
    ids=lambda message: str(message.WhichOneof("kind")),
)
def test_a_list_longer_than_any_cohort_is_refused_before_it_is_unpacked(message: Any) -> None:
    # As Python's objects the entries of 4 MB took half a gigabyte and seven seconds.
    data = message.SerializeToString(deterministic=True)
    kind = {"inbox": Inbox, "key_list": KeyList, "survivors": Survivors, "announcement": Announcement}[
        message.WhichOneof("kind")
    ]
    tracemalloc.start()
    try:
        damaged(data, kind)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + (1 << 20)


def test_nothing_that_nobody_would_take_is_written() -> None:
    with pytest.raises(SecureSumError, match="damaged-message"):
        encode(ATTEMPT, replace(OFFER, mask_key=b""))


def test_errors_have_one_line_and_nothing_that_was_sent() -> None:
    texts = {str(SecureSumError(reason)) for reason in Abort}
    assert len(texts) == len(Abort)
    assert all("\n" not in text and text.startswith("secure sum: ") for text in texts)


def test_a_state_does_not_show_its_secrets() -> None:
    state = State(announcement=SAID[-1].announcement, phase=Phase.SHARES, seed=b"seed" * 8, held={})
    assert "seed" not in repr(state)


def mutations(data: bytes, seed: int, count: int) -> list[bytes]:
    """Every truncation of a short message or some of a long one, flipped bits, and bytes put in, out and elsewhere."""
    drawn = random.Random(seed)
    changed = [data[:end] for end in drawn.sample(range(len(data)), min(len(data), count))]
    for _ in range(count):
        one = bytearray(data)
        kinds = 1 if drawn.random() < 0.5 else 4
        for _ in range(drawn.randint(1, 3)):
            place = drawn.randrange(len(one))
            match drawn.randrange(kinds):
                case 0:
                    one[place] ^= 1 << drawn.randrange(8)
                case 1:
                    one.insert(place, drawn.randrange(256))
                case 2 if len(one) > 1:
                    del one[place]
                case _:
                    one[place:] = one[drawn.randrange(len(one)) :]
                    one = one or bytearray(1)
        changed.append(bytes(one))
    changed += [drawn.randbytes(drawn.randrange(200)) for _ in range(count // 4)]
    return [one for one in changed if one != data]


def test_damaged_requests_are_refused_at_the_client_and_by_nothing_else() -> None:
    """In every phase; a client that has refused is through with the attempt."""
    federation = Federation(size=4, length=3)
    vectors = federation.vectors(0)
    name, tried = "c000", 0

    def attacked(state: bytes, step: str, request: bytes, *more: Any) -> None:
        nonlocal tried
        for changed in mutations(request, len(request), 150):
            client = SumClient.from_bytes(state, federation.expected(name), federation.identities[name].sign)
            with pytest.raises(SecureSumError):
                getattr(client, step)(changed, *more)
            assert client.phase is Phase.ABORTED
            tried += 1

    played = Round(federation=federation, vectors=vectors)
    announcement = played.server.announcement()
    for changed in mutations(announcement, 0, 300):
        with pytest.raises(SecureSumError):
            federation.begin(name, changed)
    key_list = played.keys()
    attacked(played.clients[name].to_bytes(), "share", key_list)
    inboxes = played.shares(key_list)
    attacked(played.clients[name].to_bytes(), "mask", inboxes[name], vectors[name])
    survivors = played.masked(inboxes)
    attacked(played.clients[name].to_bytes(), "confirm", survivors)
    confirmations = played.survivors(survivors)
    attacked(played.clients[name].to_bytes(), "unmask", confirmations)
    assert played.unmask(confirmations).tolist() == federation.plain_sum(vectors, federation.names).tolist()
    assert tried > 500


@pytest.mark.parametrize("phase", [Phase.KEYS, Phase.SHARES, Phase.SURVIVORS, Phase.UNMASK])
def test_damaged_replies_are_refused_at_the_server_and_cost_the_sender_its_place(phase: Phase) -> None:
    """What only a holder can tell, a changed share, is found by the holder, or when shares are put together."""
    federation = Federation(size=4, length=3)
    vectors = federation.vectors(0)
    found_later = 0
    for number in range(40):
        played = Round(federation=federation, vectors=vectors, patient=True)
        played.reply = partial(damage, played, phase, number)
        total, aborted = outcome(played)
        assert set(played.refusals.values()) <= {Abort.DAMAGED_SHARE}
        found_later += len(played.refusals) + len(played.server.wrong_shares)
        if total is None:
            # Two of its holders found what it sent them damaged.
            assert (phase, aborted) == (Phase.SHARES, Abort.TOO_FEW_CLIENTS)
            assert len(played.refusals) > 1
            continue
        assert total.tolist() == federation.plain_sum(vectors, played.server.survivor_names).tolist()
        assert played.refused.keys() == played.server.dropped.keys() - played.refusals.keys()
        if not played.server.dropped:
            assert phase is Phase.UNMASK
            assert {holder for _, holder in played.server.wrong_shares} == {"c003"}
    assert (found_later > 0) == (phase in (Phase.SHARES, Phase.UNMASK))


def damage(played: Round, phase: Phase, number: int, name: str, reply: Any) -> Any:
    if name == "c003" and played.server.phase is phase:
        return random.Random(number).choice(mutations(reply, number, 20))
    return reply
