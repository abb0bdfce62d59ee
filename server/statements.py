"""What clients say, and sign, that they spent; and reminding them of what the server has seen of their ledgers.

A server keeps the newest entry of each ledger that it was told of. A ledger that lacks it later was rolled back, and
its owner refuses to go on with it (rule 4, the anchors of the design).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from privacy.accountant import epsilon
from privacy.statement import Statement, understated, verify_statement
from security.errors import UsageError
from server.replies import ClientFault, said
from server.run_state import ClientTally
from server.streams import answers
from shared_models.faults import Fault, fault_of
from shared_models.plan import Plan
from shared_models.protocol import CONFIG, HEAD_HASH, HEAD_POSITION, PLAN_DIGEST, STATEMENT, STATEMENT_TEXT

WAIT_SECONDS = 120.0
_LONGEST = 1 << 24  # characters: it is kept as it was said, whatever it says
_MOST_KINDS = 32
_MOST_RECORDS = 1000


@dataclass(frozen=True)
class Stated:
    """A client's statement.

    Attributes:
        client: stable id.
        text: as it was signed.
        statement: what it says, or None if it doesn't hold.
        problem: why it doesn't hold.
    """

    client: str
    text: str
    statement: Statement | None
    problem: str | None = None


def ask_for_statements(
    grid: Grid,
    plan: Plan,
    nodes: Mapping[str, int],
    tallies: Mapping[str, ClientTally],
    *,
    owners: Mapping[str, str] | None = None,
    timeout: float | None = WAIT_SECONDS,
) -> tuple[list[Stated], list[ClientFault]]:
    """Ask each client what was spent, reminding it of the newest entry the server has seen.

    Args:
        grid: how clients are reached.
        plan: the resolved plan.
        nodes: node of each client to ask.
        tallies: the server's own books, by client.
        owners: of each client, the public key that must have signed; None for any key, as in a simulation.
        timeout: seconds to wait; None for as long as the grid does.

    Returns:
        What was said, and who said nothing: a client whose ledger lacks the entry refuses (`ledger-closed`).
    """
    messages = []
    for client, node in nodes.items():
        known = tallies.get(client, ClientTally()).head
        config = ConfigRecord({PLAN_DIGEST: plan.digest()})
        if known is not None:
            config[HEAD_POSITION], config[HEAD_HASH] = known.position, known.hash
        content = RecordDict({CONFIG: config})
        messages.append(Message(content, node, STATEMENT, group_id="statement"))
    clients = {node: client for client, node in nodes.items()}
    stated: list[Stated] = []
    faults: list[ClientFault] = []
    for answer in answers(
        grid,
        messages,
        clients,
        lambda reply, client: _read(reply, client, plan, tallies.get(client, ClientTally()), owners),
        timeout=timeout,
    ):
        if isinstance(answer, ClientFault):
            faults.append(answer)
        else:
            stated.append(answer)
    return sorted(stated, key=lambda item: item.client), faults


def spent_in(plan: Plan, statement: Statement) -> float:
    """What a statement's charges of this plan alone cost, at the plan's delta; 0 where it doesn't list them.

    More than the server's own books say, if the client was asked in a round that was cut off, and then in other words.
    """
    accounts = [item.account for item in statement.balances if item.account is not None]
    charged = [dict(own.charged) for account in accounts for own in account.plans if own.plan == plan.digest()]
    return max((epsilon(releases, plan.privacy.delta).epsilon for releases in charged), default=0.0)


def _read(
    reply: Message, client: str, plan: Plan, tally: ClientTally, owners: Mapping[str, str] | None = None
) -> Stated | ClientFault:
    if reply.has_error():
        return said(client, fault_of(reply.error.code))
    config = reply.content.get(CONFIG) if reply.has_content() else None
    text = config.get(STATEMENT_TEXT) if isinstance(config, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > _LONGEST:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if owners is not None and client not in owners:
        return Stated(client, text, None, "no key of its owner is known here")
    try:
        statement = verify_statement(text, owner=None if owners is None else owners[client])
    except UsageError as error:
        return Stated(client, text, None, str(error))
    problem = _problem(statement, plan, tally)
    return Stated(client, text, statement if problem is None else None, problem)


def _problem(statement: Statement, plan: Plan, tally: ClientTally) -> str | None:
    """What in a statement whose signature is good contradicts what the server knows."""
    known = tally.head
    if known is not None:
        if statement.anchor.position < known.position:
            return "the ledger is shorter than the server has seen it"
        told = {anchor.position: anchor.hash for anchor in (statement.anchor, *(statement.past or ()))}
        if told.get(known.position, known.hash) != known.hash:
            return "the ledger is another than the one that the server has seen"
    accounts = [item.account for item in statement.balances if item.account is not None]
    if not accounts:  # it says less than what could be held against it
        return None
    listed = [
        (own.plan, release, count) for account in accounts for own in account.plans for release, count in own.charged
    ]
    trained = sum(
        count for digest, release, count in listed if (digest, release) == (plan.digest(), plan.train_release())
    )
    if plan.is_private and trained < tally.rounds:
        return "it lists fewer rounds of this run than the server got updates"
    envelopes = {(own.envelope, own.delta) for account in accounts for own in account.plans if own.envelope is not None}
    kinds = {release for _, release, _ in listed} | {release for own, _ in envelopes for release, _ in own}
    is_much = max(len(kinds), len(envelopes)) > _MOST_KINDS  # each envelope is priced by itself
    if is_much or any(getattr(release, "records_per_unit", 1) > _MOST_RECORDS for release in kinds):
        return "it lists more than is checked here"  # a hostile one could keep the accountant busy for days
    try:
        return "the epsilon is smaller than the charges that it lists cost" if understated(statement) else None
    except ValueError:
        return "the charges that it lists don't add"
