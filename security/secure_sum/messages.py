"""The messages of a secure sum: the only reader and writer of `messages.proto`, which bounds and checks every field.

Whoever is at the other end may be hostile. A message is taken only in the very bytes in which it would be written
again: so there are no unknown fields, no field twice, no number in two forms.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from security.secure_sum import messages_pb2 as pb
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import DIGEST_BYTES, MOST_CLIENTS, Announcement, Attempt, Phase
from security.secure_sum.sharing import SHARE_BYTES

PROTOCOL: Final = 1

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
PAIR_BYTES: Final = 2 * SHARE_BYTES  # of a mask key's share and a seed's share
SEALED_BYTES: Final = PAIR_BYTES + 16
LARGEST_MESSAGE: Final = 1 << 22  # bytes
_LARGEST_STATE: Final = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A client's public keys for an attempt, its commitment to the seed of its self mask, and its signature."""

    mask_key: bytes
    channel_key: bytes
    commitment: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class KeyList:
    """The offers of all who made one, by index."""

    offers: dict[int, Offer]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """A client's shares, sealed for their holders, by holder."""

    sealed: dict[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """Who shared, and what of it is for one client, by sender."""

    sharing: tuple[int, ...]
    sealed: dict[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """Whose masked vector arrived."""

    survivors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A client's signature over the survivors."""

    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Confirmations:
    """The signatures over the survivors, by signer."""

    signatures: dict[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Shares for unmasking, by whose they are: of the seed of a survivor, of the mask key of who fell out."""

    shares: dict[int, bytes]


@dataclass(frozen=True, kw_only=True, repr=False)
class State:
    """A simulated client between two phases. It holds secrets."""

    announcement: Announcement
    phase: Phase
    mask_secret: bytes = b""
    channel_secret: bytes = b""
    seed: bytes = b""
    offer_signature: bytes = b""
    key_list: KeyList = KeyList(offers={})
    holders: tuple[int, ...] = ()
    view: bytes = b""
    sharing: tuple[int, ...] = ()
    held: Mapping[int, bytes]
    survivors: tuple[int, ...] = ()


Message = Announcement | Offer | KeyList | Shares | Inbox | Survivors | Confirmation | Confirmations | Answer | State
Kind = TypeVar("Kind", bound=Message)
Kept = TypeVar("Kept")


def encode(attempt: Attempt, message: Message) -> bytes:
    """A message of an attempt on the wire.

    Raises:
        SecureSumError: a field is out of bounds: nobody would take it.
    """
    name, write, check = _KINDS[type(message)][0], _KINDS[type(message)][2], _KINDS[type(message)][3]
    check(message)
    return _bytes(pb.Message(**{"attempt": attempt.digest, name: write(message)}))


def decode(data: bytes, kind: type[Kind], attempt: Attempt | None = None) -> Kind:
    """The message that these bytes are.

    Args:
        data: what was sent.
        kind: of message that is due.
        attempt: that it must be of; only with an announcement can it not be known yet.

    Raises:
        SecureSumError: it is no message, of another attempt, of another kind, or a field is out of bounds.
    """
    found = _parsed(data, _LARGEST_STATE if kind is State else LARGEST_MESSAGE)
    if attempt is not None and found.attempt != attempt.digest:
        raise SecureSumError(Abort.OTHER_ATTEMPT)
    name, read, _, check = _KINDS[kind]
    if found.WhichOneof("kind") != name:
        raise SecureSumError(Abort.OUT_OF_ORDER)
    try:
        message = read(getattr(found, name))
    except ValueError:
        raise SecureSumError(Abort.DAMAGED_MESSAGE) from None
    check(message)
    assert isinstance(message, kind)
    return message


def _parsed(data: bytes, largest: int) -> pb.Message:
    if len(data) > largest:
        raise SecureSumError(Abort.DAMAGED_MESSAGE)
    try:
        found = pb.Message.FromString(data)
    except DecodeError:
        raise SecureSumError(Abort.DAMAGED_MESSAGE) from None
    found.DiscardUnknownFields()
    if _bytes(found) != data or len(found.attempt) != DIGEST_BYTES or found.WhichOneof("kind") is None:
        raise SecureSumError(Abort.DAMAGED_MESSAGE)
    return found


def _bytes(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


# --- each kind of message: how it is read, written and checked


def _announcement(found: Any) -> Announcement:
    if found.protocol != PROTOCOL:
        raise ValueError("another protocol")
    return Announcement(
        federation=found.federation,
        run=found.run,
        round=found.round,
        purpose=found.purpose,
        number=found.number,
        nonce=found.nonce,
        cohort=tuple(_bounded(found.cohort)),
        context=found.context,
        length=found.length,
        bits=found.bits,
    )


def _write_announcement(said: Announcement) -> Any:
    return pb.Announcement(
        protocol=PROTOCOL,
        federation=said.federation,
        run=said.run,
        round=said.round,
        purpose=said.purpose,
        number=said.number,
        nonce=said.nonce,
        cohort=said.cohort,
        context=said.context,
        length=said.length,
        bits=said.bits,
    )


def _offer(found: Any) -> Offer:
    return Offer(
        mask_key=found.mask_key,
        channel_key=found.channel_key,
        commitment=found.commitment,
        signature=found.signature,
    )


def _write_offer(offer: Offer) -> Any:
    return pb.Offer(**vars(offer))


def _key_list(found: Any) -> KeyList:
    listed = _bounded(found.offers)
    _check_ascending(one.index for one in listed)
    return KeyList(offers={one.index: _offer(one.offer) for one in listed})


def _write_key_list(said: KeyList) -> Any:
    offers = sorted(said.offers.items())
    return pb.KeyList(offers=[pb.IndexedOffer(index=index, offer=_write_offer(one)) for index, one in offers])


def _entries(found: Sequence[Any]) -> dict[int, bytes]:
    listed = _bounded(found)
    _check_ascending(one.index for one in listed)
    return {one.index: one.value for one in listed}


def _write_entries(said: Mapping[int, bytes]) -> list[Any]:
    return [pb.Entry(index=index, value=value) for index, value in sorted(said.items())]


def _indices(found: Sequence[int]) -> tuple[int, ...]:
    listed = tuple(_bounded(found))
    _check_ascending(listed)
    return listed


def _state(found: Any) -> State:
    return State(
        announcement=_announcement(found.announcement),
        phase=Phase(found.phase),
        mask_secret=found.mask_secret,
        channel_secret=found.channel_secret,
        seed=found.seed,
        offer_signature=found.offer_signature,
        key_list=_key_list(found.key_list),
        holders=_indices(found.holders),
        view=found.view,
        sharing=_indices(found.sharing),
        held=_entries(found.held),
        survivors=_indices(found.survivors),
    )


def _write_state(state: State) -> Any:
    changed: dict[str, Any] = {
        "announcement": _write_announcement(state.announcement),
        "key_list": _write_key_list(state.key_list),
        "held": _write_entries(state.held),
    }
    return pb.State(**{**vars(state), **changed})


def _bounded(found: Sequence[Kept]) -> list[Kept]:
    # Counted first: as Python's objects the parts of a message take a hundred times its bytes.
    if len(found) > MOST_CLIENTS:
        raise ValueError("more than there are clients")
    return list(found)


def _check_ascending(indices: Iterable[int]) -> None:
    if any(one >= next_ for one, next_ in pairwise(indices)):
        raise ValueError("not strictly ascending")


def _check_offer(offer: Offer) -> None:
    _sized((offer.mask_key, offer.channel_key, offer.commitment), KEY_BYTES)
    _sized((offer.signature,), SIGNATURE_BYTES)


def _check_key_list(said: KeyList) -> None:
    for offer in said.offers.values():
        _check_offer(offer)


def _sized(values: Iterable[bytes], size: int) -> None:
    if any(len(value) != size for value in values):
        raise SecureSumError(Abort.DAMAGED_MESSAGE)


def _unchecked(_: Any) -> None:
    """All of it was checked in reading."""


_KINDS: Final[Mapping[type, tuple[str, Callable[[Any], Message], Callable[[Any], Any], Callable[[Any], None]]]] = {
    Announcement: ("announcement", _announcement, _write_announcement, _unchecked),
    Attempt: ("announcement", _announcement, _write_announcement, _unchecked),
    Offer: ("offer", _offer, _write_offer, _check_offer),
    KeyList: ("key_list", _key_list, _write_key_list, _check_key_list),
    Shares: (
        "shares",
        lambda found: Shares(sealed=_entries(found.sealed)),
        lambda said: pb.Shares(sealed=_write_entries(said.sealed)),
        lambda said: _sized(said.sealed.values(), SEALED_BYTES),
    ),
    Inbox: (
        "inbox",
        lambda found: Inbox(sharing=_indices(found.sharing), sealed=_entries(found.sealed)),
        lambda said: pb.Inbox(sharing=said.sharing, sealed=_write_entries(said.sealed)),
        lambda said: _sized(said.sealed.values(), SEALED_BYTES),
    ),
    Survivors: (
        "survivors",
        lambda found: Survivors(survivors=_indices(found.survivors)),
        lambda said: pb.Survivors(survivors=said.survivors),
        _unchecked,
    ),
    Confirmation: (
        "confirmation",
        lambda found: Confirmation(signature=found.signature),
        lambda said: pb.Confirmation(signature=said.signature),
        lambda said: _sized((said.signature,), SIGNATURE_BYTES),
    ),
    Confirmations: (
        "confirmations",
        lambda found: Confirmations(signatures=_entries(found.signatures)),
        lambda said: pb.Confirmations(signatures=_write_entries(said.signatures)),
        lambda said: _sized(said.signatures.values(), SIGNATURE_BYTES),
    ),
    Answer: (
        "answer",
        lambda found: Answer(shares=_entries(found.shares)),
        lambda said: pb.Answer(shares=_write_entries(said.shares)),
        lambda said: _sized(said.shares.values(), SHARE_BYTES),
    ),
    State: ("state", _state, _write_state, _unchecked),
}
