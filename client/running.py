"""The Flower ClientApp at work on one task of the link: bytes in, bytes out.

It computes in whatever thread it is called in, so that the link goes on meanwhile. What fails in here becomes a fixed
code without text (rule 5).
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the app brings torch with it, which an agent without a plan doesn't need
    from flwr.app import Message, RecordDict
    from flwr.app.metadata import Metadata
    from flwr.clientapp import ClientApp

from shared_models.faults import Fault, fault_of

DEFAULT_APP: Final = "client.app:app"

_log = logging.getLogger("veil.client")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply as it goes into the outbox, and what may be told of it.

    Attributes:
        header: Flower's metadata.
        payload: the rest of the reply.
        state: what the app remembers now.
        kind: "train", "evaluate", or a query's name.
        round: of the run; None for a query.
        epsilon: spent on this run so far, where the reply says so.
        fault: why it is no good reply, if it is none.
        fields: what it holds, as `record.field`; of arrays the record alone.
        seconds: that it took.
    """

    header: bytes
    payload: bytes
    state: bytes
    kind: str
    round: int | None = None
    epsilon: float | None = None
    fault: Fault | None = None
    fields: tuple[str, ...] = ()
    seconds: float = 0.0


class Runner:
    """Runs the site's app.

    Args:
        site: its name, which is the client's stable id.
        app: where the ClientApp is, as `package.module:name`.
        config: what the app is told of the run beside the plan and the site's name.
    """

    def __init__(self, site: str, *, app: str = DEFAULT_APP, config: Mapping[str, str] | None = None) -> None:
        self._site = site
        self._where = app
        self._config = dict(config or {})
        self._app: ClientApp | None = None

    def answer(self, *, header: bytes, payload: bytes | bytearray, plan: str, state: bytes) -> Answer:
        """Answer a task.

        Args:
            header: the task's head.
            payload: the rest of it.
            plan: the resolved plan, as TOML, that the site has accepted.
            state: what the app remembers of the run.

        Raises:
            ValueError: the head is none of Flower's: there is nobody to answer to.
        """
        from shared_models.even_length import even_payload
        from shared_models.flower_messages import (
            error_reply,
            header_from_bytes,
            header_to_bytes,
            mark_received,
            message_from_bytes,
            state_from_bytes,
            state_to_bytes,
            timeless,
        )

        begun = time.monotonic()
        metadata = header_from_bytes(header)
        mark_received(metadata)
        number, memory = None, state
        try:
            message = message_from_bytes(header, payload)
            del payload  # the message has its own copy
            mark_received(message.metadata)
            number = _round(message)
            reply, after = self._reply(message, plan, state_from_bytes(state))
            memory, sent = state_to_bytes(after), even_payload(reply)
        except Exception as error:  # what is no message, or larger than the memory
            _log.warning("a task could not be worked on: %s", place_of(error))
            reply = error_reply(metadata, Fault.CLIENT_FAILED)
            sent = even_payload(reply)
        return Answer(
            header=header_to_bytes(timeless(reply.metadata)),
            payload=sent,
            state=memory,
            kind=metadata.message_type,
            round=number,
            epsilon=_epsilon(reply),
            fault=fault_of(reply.error.code) if reply.has_error() else None,
            fields=_fields(reply),
            seconds=time.monotonic() - begun,
        )

    def refusal(self, *, header: bytes, fault: Fault) -> Answer:
        """The reply to a task that will not be looked at.

        Raises:
            ValueError: the head is none of Flower's.
        """
        from shared_models.flower_messages import (
            error_reply,
            header_from_bytes,
            header_to_bytes,
            mark_received,
            payload_to_bytes,
            timeless,
        )

        metadata = header_from_bytes(header)
        mark_received(metadata)
        reply = error_reply(metadata, fault)
        return Answer(
            header=header_to_bytes(timeless(reply.metadata)),
            payload=payload_to_bytes(reply),
            state=b"",
            kind=metadata.message_type,
            fault=fault,
        )

    def _reply(self, message: Message, plan: str, state: RecordDict) -> tuple[Message, RecordDict]:
        from shared_models.flower_messages import client_context, error_reply

        metadata: Metadata = message.metadata
        context = client_context(
            run_id=metadata.run_id,
            node_id=metadata.dst_node_id,
            client=self._site,
            config={**self._config, "plan": plan, "site": self._site},
            state=state,
        )
        try:
            return self._loaded()(message, context), context.state
        except Exception as error:  # an app that isn't Veil's, or a kind of message that it has no function for
            _log.warning("the app failed: %s", place_of(error))
            return error_reply(metadata, Fault.CLIENT_FAILED), context.state

    def _loaded(self) -> ClientApp:
        if self._app is None:
            module, _, name = self._where.partition(":")
            self._app = getattr(importlib.import_module(module), name)
        return self._app


def is_query(header: bytes) -> bool:
    """Whether a task asks for words alone: no data is touched for it, so it need not wait for the owner's hours.

    To take part in a secure sum is a promise to work: who may not work now makes none. Once it is made, others wait.
    And of the last model a site may make its own.
    """
    from shared_models.flower_messages import header_from_bytes
    from shared_models.protocol import PERSONALISE, SECURE_KEYS

    try:
        kind = header_from_bytes(header).message_type
    except ValueError:
        return False
    return kind.startswith("query.") and kind not in (SECURE_KEYS, PERSONALISE)


def _round(message: Message) -> int | None:
    from shared_models.protocol import CONFIG, ROUND

    record = message.content.config_records.get(CONFIG) if message.has_content() else None
    found = None if record is None else record.get(ROUND)
    return found if type(found) is int else None


def _epsilon(reply: Message) -> float | None:
    from shared_models.protocol import EPSILON, METRICS

    record = reply.content.metric_records.get(METRICS) if reply.has_content() else None
    found = None if record is None else record.get(EPSILON)
    return float(found) if isinstance(found, (int, float)) else None


def _fields(reply: Message) -> tuple[str, ...]:
    from flwr.app import ArrayRecord

    records = reply.content.items() if reply.has_content() else ()
    return tuple(
        field
        for name, record in records
        for field in ([name] if isinstance(record, ArrayRecord) else [f"{name}.{key}" for key in record])
    )


def place_of(error: BaseException) -> str:
    """Kind and place of an error, never its text, which may hold a record."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return type(error).__name__ + place
