from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Message(_message.Message):
    __slots__ = ("attempt", "announcement", "offer", "key_list", "shares", "inbox", "survivors", "confirmation", "confirmations", "answer", "state")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    KEY_LIST_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    INBOX_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATIONS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    attempt: bytes
    announcement: Announcement
    offer: Offer
    key_list: KeyList
    shares: Shares
    inbox: Inbox
    survivors: Survivors
    confirmation: Confirmation
    confirmations: Confirmations
    answer: Answer
    state: State
    def __init__(self, attempt: _Optional[bytes] = ..., announcement: _Optional[_Union[Announcement, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., key_list: _Optional[_Union[KeyList, _Mapping]] = ..., shares: _Optional[_Union[Shares, _Mapping]] = ..., inbox: _Optional[_Union[Inbox, _Mapping]] = ..., survivors: _Optional[_Union[Survivors, _Mapping]] = ..., confirmation: _Optional[_Union[Confirmation, _Mapping]] = ..., confirmations: _Optional[_Union[Confirmations, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., state: _Optional[_Union[State, _Mapping]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("index", "value")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    index: int
    value: bytes
    def __init__(self, index: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("protocol", "federation", "run", "round", "purpose", "number", "nonce", "cohort", "context", "length", "bits")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    federation: str
    run: str
    round: int
    purpose: str
    number: int
    nonce: bytes
    cohort: _containers.RepeatedScalarFieldContainer[str]
    context: bytes
    length: int
    bits: int
    def __init__(self, protocol: _Optional[int] = ..., federation: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., purpose: _Optional[str] = ..., number: _Optional[int] = ..., nonce: _Optional[bytes] = ..., cohort: _Optional[_Iterable[str]] = ..., context: _Optional[bytes] = ..., length: _Optional[int] = ..., bits: _Optional[int] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("mask_key", "channel_key", "commitment", "signature")
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_KEY_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    mask_key: bytes
    channel_key: bytes
    commitment: bytes
    signature: bytes
    def __init__(self, mask_key: _Optional[bytes] = ..., channel_key: _Optional[bytes] = ..., commitment: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class IndexedOffer(_message.Message):
    __slots__ = ("index", "offer")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    index: int
    offer: Offer
    def __init__(self, index: _Optional[int] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ...) -> None: ...

class KeyList(_message.Message):
    __slots__ = ("offers",)
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    offers: _containers.RepeatedCompositeFieldContainer[IndexedOffer]
    def __init__(self, offers: _Optional[_Iterable[_Union[IndexedOffer, _Mapping]]] = ...) -> None: ...

class Shares(_message.Message):
    __slots__ = ("sealed",)
    SEALED_FIELD_NUMBER: _ClassVar[int]
    sealed: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, sealed: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Inbox(_message.Message):
    __slots__ = ("sharing", "sealed")
    SHARING_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    sharing: _containers.RepeatedScalarFieldContainer[int]
    sealed: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, sharing: _Optional[_Iterable[int]] = ..., sealed: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Survivors(_message.Message):
    __slots__ = ("survivors",)
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    survivors: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, survivors: _Optional[_Iterable[int]] = ...) -> None: ...

class Confirmation(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: bytes
    def __init__(self, signature: _Optional[bytes] = ...) -> None: ...

class Confirmations(_message.Message):
    __slots__ = ("signatures",)
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    signatures: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, signatures: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("shares",)
    SHARES_FIELD_NUMBER: _ClassVar[int]
    shares: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, shares: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("announcement", "phase", "mask_secret", "channel_secret", "seed", "offer_signature", "key_list", "holders", "view", "sharing", "held", "survivors")
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MASK_SECRET_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_SECRET_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFER_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    KEY_LIST_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    SHARING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    announcement: Announcement
    phase: str
    mask_secret: bytes
    channel_secret: bytes
    seed: bytes
    offer_signature: bytes
    key_list: KeyList
    holders: _containers.RepeatedScalarFieldContainer[int]
    view: bytes
    sharing: _containers.RepeatedScalarFieldContainer[int]
    held: _containers.RepeatedCompositeFieldContainer[Entry]
    survivors: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, announcement: _Optional[_Union[Announcement, _Mapping]] = ..., phase: _Optional[str] = ..., mask_secret: _Optional[bytes] = ..., channel_secret: _Optional[bytes] = ..., seed: _Optional[bytes] = ..., offer_signature: _Optional[bytes] = ..., key_list: _Optional[_Union[KeyList, _Mapping]] = ..., holders: _Optional[_Iterable[int]] = ..., view: _Optional[bytes] = ..., sharing: _Optional[_Iterable[int]] = ..., held: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., survivors: _Optional[_Iterable[int]] = ...) -> None: ...
