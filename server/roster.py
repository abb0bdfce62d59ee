"""Which client stands behind which node of a grid.

Seeds, cohorts, order and books use a stable client id (partition or site name); a grid may number its nodes anew at
every start. Veil's grids know the ids; on Flower's engine each client is asked once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from security.errors import RunError
from shared_models.plan import Plan
from shared_models.protocol import CLIENT_ID, CONFIG, IDENTIFY, PLAN_DIGEST

_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.2
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # ids name files
_SETTLED_POLLS = 10  # as long as nobody joins or leaves between so many, all are there


@runtime_checkable
class GridWithClients(Protocol):
    """A grid that knows its clients' stable ids."""

    @property
    def client_nodes(self) -> Mapping[str, int]:
        """Node number of each client id."""
        ...


def roster(grid: Grid, plan: Plan) -> dict[str, int]:
    """Node number of each client, in the order of client ids.

    Raises:
        RunError: too few clients joined, two of them have the same id, or an id can't name a file.
    """
    found = dict(grid.client_nodes) if isinstance(grid, GridWithClients) else _ask(grid, plan)
    for client in found:
        if not _ID.fullmatch(client):
            raise RunError(
                f"client id {client[:100]!r}: can't name a file; give at most 100 letters, digits, '.', '_' and '-', "
                "the first a letter or digit"
            )
    if len(found) < plan.federation.min_clients:
        raise RunError(f"{len(found)} clients joined, the plan needs {plan.federation.min_clients}")
    return dict(sorted(found.items()))


def _ask(grid: Grid, plan: Plan) -> dict[str, int]:
    """Each node's client id, as it says itself; a node that doesn't say is left out."""
    nodes = _wait_for_nodes(grid, plan)
    question = RecordDict({CONFIG: ConfigRecord({PLAN_DIGEST: plan.digest()})})
    messages = [Message(question, node, IDENTIFY) for node in nodes]
    found: dict[str, int] = {}
    for reply in grid.send_and_receive(messages, timeout=_WAIT_SECONDS):
        client, node = _client_id(reply), reply.metadata.src_node_id
        if client is None or node not in nodes:
            continue
        if found.setdefault(client, node) != node:
            raise RunError(f"two nodes say that they are client '{client}'; give each site a name of its own")
    return found


def _client_id(reply: Message) -> str | None:
    if not reply.has_content():
        return None
    answer = reply.content.get(CONFIG)
    client = answer.get(CLIENT_ID) if isinstance(answer, ConfigRecord) else None
    return client if isinstance(client, str) and _ID.fullmatch(client) else None


def _wait_for_nodes(grid: Grid, plan: Plan) -> list[int]:
    """Flower's grids can't tell when a node joins, so they are asked again until all are there.

    How many clients a natural partition has is in the data, which a server doesn't see: there the least that the plan
    needs are waited for, and then until nobody has joined for a moment. Whoever joins after that is not of the run.
    """
    known = plan.data.clients
    expected, settled = (plan.federation.min_clients, _SETTLED_POLLS) if known is None else (known, 0)
    deadline = time.monotonic() + _WAIT_SECONDS
    nodes, unchanged = sorted(grid.get_node_ids()), 0
    while len(nodes) < expected or unchanged < settled:
        if time.monotonic() > deadline:
            if len(nodes) >= expected:  # they go on joining
                break
            raise RunError(f"{len(nodes)} of {expected} clients joined within {_WAIT_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
        before, nodes = nodes, sorted(grid.get_node_ids())
        unchanged = unchanged + 1 if nodes == before else 0
    return nodes
