"""One worker of a simulation: runs the ClientApp for one virtual client after another."""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp

from shared_models.faults import Fault
from shared_models.flower_messages import client_context, error_reply, rebuild

DEFAULT_APP = "client.app:app"

_log = logging.getLogger("veil.client")  # ClientApps say here where they failed: kind and place, never a text (rule 5)


class Worker:
    """Holds the app; the client's state comes with each message and goes back with the reply.

    Args:
        app: where the ClientApp is, as `package.module:name`.
        run_id: of the run.
        config: what the app is told of the run: the resolved `plan` as TOML, and where the `ledger` is.
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

    def handle(
        self, metadata: Metadata, content: RecordDict, client: str, state: RecordDict
    ) -> tuple[Message, RecordDict]:
        """Answer one message as one client.

        Returns:
            The reply, and the client's new state.
        """
        context = client_context(
            run_id=self._run_id,
            node_id=metadata.dst_node_id,
            client=client,
            config=self._config,
            state=copy.deepcopy(state),
        )
        with _logging_to(self._log, f"round {metadata.group_id or '-'}  client {client}"):
            try:
                reply = self._app(rebuild(metadata, content), context)
            except Exception as error:  # an app that isn't Veil's: its error's text must not travel (rule 5)
                place = traceback.extract_tb(error.__traceback__)[-1]
                _log.warning("the app failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
                reply = error_reply(metadata, Fault.CLIENT_FAILED)
        return reply, context.state


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
