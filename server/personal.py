"""The end of a run with personal models: each client is sent the last shared model, to make of it what is its own.

Nobody answers anything but that it heard. What a client makes of the model, and whether it could, is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.replies import ClientFault, said
from server.rounds.playing import request_config
from server.run_state import RunState
from server.streams import answers
from shared_models.faults import fault_of
from shared_models.parameters import Layout, Parameters, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFIG, PERSONALISE, ROUND


def hand_out(
    grid: Grid,
    plan: Plan,
    layout: Layout,
    parameters: Parameters,
    nodes: Mapping[str, int],
    state: RunState,
    *,
    timeout: float | None,
) -> list[ClientFault]:
    """Send everybody the last model; who has not heard of it, or refused.

    Args:
        grid: how clients are reached.
        plan: resolved.
        layout: of what is shared.
        parameters: the model.
        nodes: node of each client.
        state: the run's books; the bytes are added there.
        timeout: seconds to wait; None for as long as the grid does.
    """
    arrays = to_arrays(parameters, layout)
    config = ConfigRecord({**request_config(plan, layout, state), ROUND: max(1, state.round)})
    content = RecordDict({ARRAYS: arrays, CONFIG: config})
    messages = [Message(content, node, PERSONALISE, group_id="personalise") for node in nodes.values()]
    state.bytes_down += wire_bytes(arrays) * len(messages)

    def read(reply: Message, client: str) -> ClientFault | str:
        return said(client, fault_of(reply.error.code)) if reply.has_error() else client

    clients = {node: client for client, node in nodes.items()}
    found = answers(grid, messages, clients, read, timeout=timeout)
    return sorted((one for one in found if isinstance(one, ClientFault)), key=lambda fault: fault.client)
