"""Clients of this process with records of the study's own, asked by real messages, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from client.app import app
from client.books import create_simulated
from client.datasets.records import Records
from client.workplace import Provided, provide_records, workplace
from security.errors import RunError
from shared_models.flower_messages import act_as_server, client_context, rebuild
from shared_models.parameters import get_parameters, to_arrays
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CONFIG, LAYOUT_DIGEST, PLAN_DIGEST, ROUND, RUN


class Clients:
    """Virtual clients of a plan.

    Args:
        plan: resolved.
        records: what each trains on, and holds out, by its id.
        folder: for their ledger; empty.
    """

    def __init__(self, plan: Plan, records: Mapping[str, Records], folder: Path) -> None:
        ledger = folder / "ledger.sqlite"
        create_simulated(ledger)
        act_as_server(1)
        self.plan = plan
        self._text = write_plan(plan)
        self._config = {"plan": self._text, "ledger": str(ledger)}
        self._rounds = {client: count(1) for client in records}
        provide_records(plan.digest(), Provided(train=records, held_out=records))
        place = workplace(self._text)
        self._layout, self._model = place.layout, to_arrays(get_parameters(place.model), place.layout)

    def ask(self, client: str, kind: str = "train", **changes: str) -> Message:
        """The reply to a question, whatever it is: for the client's next round, or a wrong one.

        Args:
            client: its id.
            kind: of message.
            changes: of what the question says; with any it is for round 1.
        """
        config = {PLAN_DIGEST: self.plan.digest(), LAYOUT_DIGEST: self._layout.digest, RUN: "r", **changes}
        number = 1 if changes else next(self._rounds[client])  # what is refused ends no round
        content = RecordDict({ARRAYS: self._model, CONFIG: ConfigRecord({**config, ROUND: number})})
        message = Message(content, 1, kind, group_id="1")
        context = client_context(run_id=1, node_id=1, client=client, config=self._config, state=RecordDict())
        return app(rebuild(message.metadata, message.content), context)

    def granted(self, client: str, kind: str = "train") -> Message:
        """As `ask`, of a question that is answered.

        Raises:
            RunError: it isn't.
        """
        reply = self.ask(client, kind)
        if reply.has_error():
            raise RunError(f"client {client} did not answer: code {reply.error.code}")
        return reply
