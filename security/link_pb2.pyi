from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "welcome", "offer", "answer", "begin", "chunk", "receipt", "recall", "beat", "farewell")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    welcome: Welcome
    offer: Offer
    answer: Answer
    begin: Begin
    chunk: Chunk
    receipt: Receipt
    recall: Recall
    beat: Beat
    farewell: Farewell
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "software", "federation", "site", "compression", "holding", "largest")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    federation: str
    site: str
    compression: _containers.RepeatedScalarFieldContainer[str]
    holding: _containers.RepeatedScalarFieldContainer[str]
    largest: int
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., federation: _Optional[str] = ..., site: _Optional[str] = ..., compression: _Optional[_Iterable[str]] = ..., holding: _Optional[_Iterable[str]] = ..., largest: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "software", "compression", "beat_seconds", "largest", "clock")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    BEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    compression: str
    beat_seconds: float
    largest: int
    clock: float
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., compression: _Optional[str] = ..., beat_seconds: _Optional[float] = ..., largest: _Optional[int] = ..., clock: _Optional[float] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("run", "plan", "digest")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    run: str
    plan: str
    digest: str
    def __init__(self, run: _Optional[str] = ..., plan: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("run", "digest", "code")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    run: str
    digest: str
    code: int
    def __init__(self, run: _Optional[str] = ..., digest: _Optional[str] = ..., code: _Optional[int] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("id", "header", "size", "digest", "seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    header: bytes
    size: int
    digest: bytes
    seconds: float
    def __init__(self, id: _Optional[str] = ..., header: _Optional[bytes] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ..., seconds: _Optional[float] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("id", "offset", "data", "raw")
    ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    id: str
    offset: int
    data: bytes
    raw: int
    def __init__(self, id: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., raw: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("id", "code")
    ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    id: str
    code: int
    def __init__(self, id: _Optional[str] = ..., code: _Optional[int] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Farewell(_message.Message):
    __slots__ = ("code",)
    CODE_FIELD_NUMBER: _ClassVar[int]
    code: int
    def __init__(self, code: _Optional[int] = ...) -> None: ...
