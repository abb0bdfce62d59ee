"""One worker of a simulation: runs the ClientApp for one virtual client after another."""

from __future__ import annotations

import copy
import importlib

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp

from shared_models.faults import Fault
from simulations.flower_messages import client_context, error_reply, rebuild

DEFAULT_APP = "client.app:app"


class Worker:
    """Holds the app; the client's state comes with each message and goes back with the reply.

    Args:
        app: where the ClientApp is, as `package.module:name`.
        run_id: of the run.
        plan_text: the resolved plan as TOML.
    """

    def __init__(self, app: str, run_id: int, plan_text: str) -> None:
        module, _, name = app.partition(":")
        found = getattr(importlib.import_module(module), name)
        if not isinstance(found, ClientApp):
            raise TypeError(f"{app} is not a Flower ClientApp")
        self._app = found
        self._run_id = run_id
        self._plan_text = plan_text

    def handle(
        self, metadata: Metadata, content: RecordDict, client: str, state: RecordDict
    ) -> tuple[Message, RecordDict]:
        """Answer one message as one client.

        Returns:
            The reply, and the client's new state: also after a failure, since a charge made before it stays.
        """
        context = client_context(
            run_id=self._run_id,
            node_id=metadata.dst_node_id,
            client=client,
            plan_text=self._plan_text,
            state=copy.deepcopy(state),
        )
        try:
            reply = self._app(rebuild(metadata, content), context)
        except Exception:  # an app that isn't Veil's: its error's text must not travel (rule 5)
            reply = error_reply(metadata, Fault.CLIENT_FAILED)
        return reply, context.state
