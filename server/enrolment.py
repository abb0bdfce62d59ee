"""Having every client pay for a whole run before its first round, where cohorts are secret (rule 3).

Whoever is drawn in some round must not show in who has paid, or the budgets that are left would tell. So everybody
pays at once, before anybody is drawn. Who refuses does so by plan, policy and ledger alone, and is left out from the
start; who doesn't answer belongs to the population all the same, and pays when it is first asked to train.

When a run is resumed everybody is asked again, and told from which round it goes on. A client that has played a later
one says so: the run's folder is a copy from before, and whatever it released again would be paid for by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from server.replies import ClientFault, Head, head_of, said
from server.streams import answers
from shared_models.faults import Fault, fault_of
from shared_models.plan import Plan
from shared_models.protocol import CONFIG, ENROL, EPSILON, LEDGER, METRICS, ROUND

WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Enrolled:
    """A client that has paid.

    Attributes:
        client: stable id.
        head: newest entry of its ledger that it tells of.
    """

    client: str
    head: Head


def enrol(
    grid: Grid, plan: Plan, nodes: Mapping[str, int], config: Mapping[str, str], *, following: int
) -> tuple[list[Enrolled], list[ClientFault]]:
    """Have the clients pay, and hear who did.

    Args:
        grid: how clients are reached.
        plan: the resolved plan.
        nodes: node of each client.
        config: what every request says of run, plan and layout.
        following: the first round that is still to be played: who has played it, or a later one, refuses.

    Returns:
        Who has paid, and who refused or said nothing, each in the order of ids.
    """
    said_to_all: dict[str, str | int] = {**config, ROUND: min(following, plan.federation.rounds)}
    messages = [
        Message(RecordDict({CONFIG: ConfigRecord({**said_to_all})}), node, ENROL, group_id="enrol")
        for node in nodes.values()
    ]
    clients = {node: client for client, node in nodes.items()}
    timeout = plan.federation.round_timeout or WAIT_SECONDS
    paid: list[Enrolled] = []
    faults: list[ClientFault] = []
    for answer in answers(grid, messages, clients, _read, timeout=timeout):
        if isinstance(answer, Enrolled):
            paid.append(answer)
        else:
            faults.append(answer)
    return sorted(paid, key=lambda one: one.client), sorted(faults, key=lambda one: one.client)


def _read(reply: Message, client: str) -> Enrolled | ClientFault:
    if reply.has_error():
        return said(client, fault_of(reply.error.code))
    content = reply.content if reply.has_content() else RecordDict()
    metrics, head = content.get(METRICS), head_of(content)
    good = set(content.keys()) == {METRICS, LEDGER} and isinstance(metrics, MetricRecord) and set(metrics) == {EPSILON}
    return Enrolled(client, head) if good and head is not None else ClientFault(client, Fault.MALFORMED_REPLY)
