"""Evaluation where the data is: the cohort says how many held-out examples the new model got right.

Under privacy both numbers carry noise and are charged; what the server makes of them costs nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.class_counts import ClassCounts
from server.evaluation import Metrics
from server.noisy_counts import Counts, accuracy
from server.replies import ClientFault, CountsReply, read_counts
from server.streams import answers
from shared_models.parameters import Layout, Parameters, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFIG, ROUND


@dataclass
class ClientEvaluation:
    """What came of asking a cohort.

    Attributes:
        metrics: accuracy and the ends of its 95 % interval; empty where too little is known.
        by_class: what the clients released by class, added up, where the plan asks for it.
        replies: good ones.
        faults: of those that are missing.
        sent: bytes of parameters on the wire.
    """

    metrics: Metrics = field(default_factory=dict)
    by_class: ClassCounts | None = None
    replies: list[CountsReply] = field(default_factory=list)
    faults: list[ClientFault] = field(default_factory=list)
    sent: int = 0


def evaluate_at_clients(
    grid: Grid,
    plan: Plan,
    layout: Layout,
    parameters: Parameters,
    nodes: Mapping[str, int],
    *,
    round_number: int,
    config: Mapping[str, str],
) -> ClientEvaluation:
    """Ask each client of a cohort to judge a model.

    Args:
        grid: how clients are reached.
        plan: the resolved plan.
        layout: of the model.
        parameters: the model.
        nodes: node of each client.
        round_number: after which it is judged.
        config: what every request says of run and plan.
    """
    arrays = to_arrays(parameters, layout)
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({**config, ROUND: round_number})})
    group = f"{round_number} evaluate"
    messages = [Message(content, node, MessageType.EVALUATE, group_id=group) for node in nodes.values()]
    clients = {node: client for client, node in nodes.items()}
    found = ClientEvaluation(sent=wire_bytes(arrays) * len(messages))
    for answer in answers(
        grid,
        messages,
        clients,
        lambda reply, client: read_counts(reply, client, plan),
        timeout=plan.federation.round_timeout,
    ):
        if isinstance(answer, ClientFault):
            found.faults.append(answer)
        else:
            found.replies.append(answer)
    noise = plan.evaluation.count_noise if plan.is_private else 0.0
    if plan.evaluation.per_class:
        tables = [reply.table for reply in found.replies if reply.table is not None]
        found.by_class = ClassCounts.of(tables, round_number=round_number, noise=noise)
        found.metrics = {} if found.by_class is None else found.by_class.metrics()
        return found
    estimate = accuracy([Counts(correct=reply.correct, total=reply.total) for reply in found.replies], noise=noise)
    if estimate.value is not None:
        found.metrics = {"accuracy": estimate.value, "accuracy_low": estimate.low, "accuracy_high": estimate.high}
    return found
