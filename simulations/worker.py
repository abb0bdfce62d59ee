"""One worker of a simulation: runs the ClientApp for one virtual client after another."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp

from client.books import books
from client.company_trainer import in_company
from privacy.ledger import Ledger, LedgerError
from shared_models import own
from shared_models.faults import Fault
from shared_models.flower_messages import client_context, copied, error_reply, rebuild

DEFAULT_APP = "client.app:app"
MODELS = "models"
"""Key of the configuration: the user's own networks, as JSON (`shared_models.own`)."""

Asked = tuple[Metadata, RecordDict, str, RecordDict, tuple[str, ...]]
"""A message to one client: its head, its content, the client's id, its state, and who keeps it company."""

Answered = tuple[Message, RecordDict]
"""A client's reply and new state."""

_TOGETHER = 0.1
"""Seconds of work whose ledger entries are written at once; replies wait for them."""

_log = logging.getLogger("veil.client")  # ClientApps say here where they failed: kind and place, never a text (rule 5)


class Worker:
    """Holds the app; the client's state comes with each message and goes back with the reply.

    Args:
        app: where the ClientApp is, as `package.module:name`.
        run_id: of the run.
        config: what the app is told of the run: the resolved `plan` as TOML, where the `ledger` is, and `models` of
            the user's own.
        log: file for what clients say of their failures; None for the process' own log.
    """

    def __init__(self, app: str, run_id: int, config: Mapping[str, str], log: Path | None = None) -> None:
        module, _, name = app.partition(":")
        found = getattr(importlib.import_module(module), name)
        if not isinstance(found, ClientApp):
            raise TypeError(f"{app} is not a Flower ClientApp")
        self._app = found
        self._run_id = run_id
        self._config = dict(config)
        self._log = log
        own.bind(json.loads(config.get(MODELS, "{}")))

    def answer(self, messages: Iterable[Asked], *, deadline: float | None = None) -> Iterator[list[Answered]]:
        """Answer messages one after the other; the answers in lists, in order.

        Args:
            messages: each is looked at when it is its turn.
            deadline: of the monotonic clock, after which no message is begun.

        What the clients of a list owe is in the ledger when the list is given. Where it can't be written, they all
        have failed, and nothing of them leaves.
        """
        waiting = iter(messages)
        while True:
            begun, together, answers = time.monotonic(), list[Asked](), list[Answered]()
            try:
                with self._entries_together():
                    while not together or time.monotonic() - begun < _TOGETHER:
                        asked = None if _is_past(deadline) else next(waiting, None)
                        if asked is None:
                            break
                        together.append(asked)
                        answers.append(self.handle(*asked))
            except LedgerError as error:
                with _logging_to(self._log, f"{len(together)} clients"):
                    _log.warning("their entries can't be written: %s", error)
                answers = [(error_reply(head, Fault.CLIENT_FAILED), state) for head, _, _, state, _ in together]
            if not answers:
                return
            yield answers

    @contextmanager
    def _entries_together(self) -> Iterator[None]:
        """Ledger entries made inside are written at the end, where the ledger's file is here."""
        found = None
        if "ledger" in self._config:  # else the app isn't Veil's
            with suppress(LedgerError):  # the app will say so itself, and refuse
                found = books(self._config["ledger"])
        with found.deferred() if found is not None and isinstance(found.ledger, Ledger) else nullcontext():
            yield

    def handle(
        self,
        metadata: Metadata,
        content: RecordDict,
        client: str,
        state: RecordDict,
        company: tuple[str, ...] = (),
    ) -> Answered:
        """Answer one message as one client; its entries are in the ledger's file at once, but inside of `answer`.

        Args:
            metadata, content, client, state: what is asked of whom.
            company: clients that it may train together with (`client.company_trainer`).

        Returns:
            The reply, and the client's new state.
        """
        context = client_context(
            run_id=self._run_id,
            node_id=metadata.dst_node_id,
            client=client,
            config=self._config,
            state=copied(state),
        )
        with _logging_to(self._log, f"round {metadata.group_id or '-'}  client {client}"), in_company(company):
            try:
                reply = self._app(rebuild(metadata, content), context)
            except Exception as error:  # an app that isn't Veil's: its error's text must not travel (rule 5)
                place = traceback.extract_tb(error.__traceback__)[-1]
                _log.warning("the app failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
                reply = error_reply(metadata, Fault.CLIENT_FAILED)
        return reply, context.state


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


@contextmanager
def _logging_to(path: Path | None, who: str) -> Iterator[None]:
    """While a client is at work, what it logs goes to the run's folder, and not on the screen as well."""
    if path is None:
        yield
        return
    handler, before = _FailureLog(path, who), _log.propagate
    _log.addHandler(handler)
    _log.propagate = False
    try:
        yield
    finally:
        _log.propagate = before
        _log.removeHandler(handler)


class _FailureLog(logging.Handler):
    """Appends a line a failure to a file that every worker of the run may share.

    On another machine of a Ray cluster the run's folder may not be there; the line then goes to the worker's stderr.
    """

    def __init__(self, path: Path, who: str) -> None:
        super().__init__(logging.WARNING)
        self._path = path
        self._who = who

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self._who}: {record.getMessage()}\n"  # never the exception itself, whose text may hold a record
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            sys.stderr.write(line)
