"""What clients sign of their spending, held against what the server has seen of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import statement as statements_module
from privacy.accountant import epsilon
from privacy.canonical_json import canonical
from privacy.ledger import Anchor, Ledger, Task
from privacy.lifetime import Limit, multiset
from privacy.mechanisms import ClientLevel
from privacy.statement import Detail, Statement, make_statement, verify_statement
from security.identity import Identity
from server.replies import ClientFault, Head
from server.run_state import ClientTally
from server.statements import Stated, _read, ask_for_statements, spent_in
from shared_models.faults import Fault
from shared_models.protocol import CONFIG, HEAD_HASH, HEAD_POSITION, STATEMENT, STATEMENT_TEXT
from tests.server.conftest import PRIVATE, FakeGrid, StreamingFakeGrid, error, learns, make_plan, request

PLAN = make_plan(PRIVATE, {"privacy": {"epsilon": 50.0}, "federation": {"rounds": 10}})
LIMIT = Limit(epsilon=50.0, delta=PLAN.privacy.delta)


class Owner:
    """A client's ledger and its key.

    Args:
        path: of the ledger's file.
        rounds: so many were charged.
    """

    def __init__(self, path: Path, rounds: int = 3) -> None:
        self.identity = Identity.create()
        self.ledger = Ledger.create(path, durable=False)
        self.ledger.open_scope("people", owner=self.identity.public_hex)
        self.heads = [self.train(number) for number in range(1, rounds + 1)]

    def train(self, number: int) -> Anchor:
        release = PLAN.train_release()
        assert release is not None
        found = self.ledger.reserve(
            "people",
            Task(federation="digits", run="r", round=number, phase="train", client="a", request=f"{number:064x}"),
            balance=PLAN.balance,
            terms=PLAN.terms(),
            releases=multiset([release]),
            limit=LIMIT,
        )
        return found.anchor

    def says(self, detail: Detail = "full") -> str:
        return make_statement(self.ledger, "people", self.identity, {PLAN.balance: LIMIT}, detail=detail).text

    def tally(self, rounds: int | None = None) -> ClientTally:
        """The server's books of an honest client."""
        last = self.heads[-1]
        count = len(self.heads) if rounds is None else rounds
        return ClientTally(rounds=count, head=Head(last.position, last.hash))


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path / "ledger.sqlite")


def heard(text: object, tally: ClientTally) -> Stated | ClientFault:
    content = RecordDict({CONFIG: ConfigRecord({STATEMENT_TEXT: text})})  # type: ignore[dict-item]
    return _read(Message(content, reply_to=request()), "a", PLAN, tally)


def problem(text: str, tally: ClientTally) -> str | None:
    found = heard(text, tally)
    assert isinstance(found, Stated)
    assert (found.statement is None) == (found.problem is not None)
    assert found.text == text
    return found.problem


def forged(owner: Owner, change: Callable[[dict[str, Any]], None], detail: Detail = "full") -> str:
    """A statement that the owner itself changed before it signed."""
    data = json.loads(owner.says(detail))
    del data["signature"]
    change(data)
    signature = owner.identity.sign(statements_module._PREFIX + canonical(data).encode())
    return canonical({**data, "signature": signature.hex()})


# --- asking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid_type", [FakeGrid, StreamingFakeGrid])
def test_each_client_is_reminded_of_its_own_newest_entry_and_answers_once(
    owner: Owner, grid_type: type[FakeGrid]
) -> None:
    grid = grid_type(["a", "b", "c"], learns)
    grid.statements = {"a": owner.says(), "b": Fault.LEDGER_CLOSED}
    found, faults = ask_for_statements(grid, PLAN, grid.nodes, {"a": owner.tally(), "b": owner.tally()})
    assert [(item.client, item.problem is None) for item in found] == [("a", True), ("c", False)]
    assert faults == [ClientFault("b", Fault.LEDGER_CLOSED, refused=True)]
    configs = [message.content.config_records[CONFIG] for message in grid.sent]
    assert {message.metadata.message_type for message in grid.sent} == {STATEMENT}
    assert [config.get(HEAD_POSITION) for config in configs] == [3, 3, None]
    assert configs[0][HEAD_HASH] == owner.heads[-1].hash


def test_rule_8_where_owners_are_known_nobody_else_can_sign(owner: Owner) -> None:
    grid = FakeGrid(["a", "b"], learns)
    grid.statements = {"a": owner.says(), "b": owner.says()}
    for key, wrong in ((owner.identity.public_hex, None), (Identity.create().public_hex, "signed by another key")):
        (first, second), faults = ask_for_statements(
            grid, PLAN, grid.nodes, {"a": owner.tally(), "b": owner.tally()}, owners={"a": key}
        )
        assert faults == []
        assert (first.problem is None) is (wrong is None)
        assert wrong is None or wrong in str(first.problem)
        assert (second.statement, second.problem) == (None, "no key of its owner is known here")


def test_who_says_nothing_is_named(owner: Owner) -> None:
    class Deaf(FakeGrid):
        def replies(self, messages: Any, timeout: float | None) -> list[Message]:
            return []

    found, faults = ask_for_statements(Deaf(["a"], learns), PLAN, {"a": 1}, {})
    assert (found, faults) == ([], [ClientFault("a", Fault.TIMED_OUT)])


# --- what holds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["epsilon", "totals", "full"])
def test_an_honest_statement_holds_at_every_level_of_detail(owner: Owner, detail: Detail) -> None:
    found = heard(owner.says(detail), owner.tally())
    assert isinstance(found, Stated)
    assert isinstance(found.statement, Statement)
    assert found.statement.anchor.position == 3


def test_a_ledger_may_have_grown_since_the_server_saw_it(owner: Owner) -> None:
    seen = owner.tally()
    for number in range(4, 10):
        owner.train(number)
    assert problem(owner.says(), seen) is None


def test_it_may_list_more_than_the_server_counted(owner: Owner) -> None:
    """A late update was charged, and went into no model."""
    assert problem(owner.says(), owner.tally(rounds=1)) is None


# --- what does not ------------------------------------------------------------------------------------------------


def test_a_changed_byte_anywhere_is_found(owner: Owner) -> None:
    text = owner.says()
    for place in range(0, len(text), 37):
        other = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        assert problem(other, owner.tally()), place


def test_another_ones_statement_does_not_hold(owner: Owner, tmp_path: Path) -> None:
    """Its signature is good; its chain is not the one that the client told of."""
    other = Owner(tmp_path / "other.sqlite", rounds=5)
    assert problem(other.says(), owner.tally()) == "the ledger is another than the one that the server has seen"


def test_an_older_statement_does_not_hold(owner: Owner) -> None:
    old = owner.says()
    owner.heads.append(owner.train(4))
    assert problem(old, owner.tally()) == "the ledger is shorter than the server has seen it"


def test_a_ledger_written_anew_does_not_hold(owner: Owner, tmp_path: Path) -> None:
    """As long as the old one, or longer: the entry that the server saw is not in it."""
    for rounds in (3, 4, 9):
        new = Owner(tmp_path / f"{rounds}.sqlite", rounds=rounds)
        assert problem(new.says(), owner.tally()) == "the ledger is another than the one that the server has seen"


def test_fewer_charges_than_the_server_got_updates_do_not_hold(owner: Owner) -> None:
    """An owner can sign what it likes; what the server has in its hands it can't deny."""
    assert problem(owner.says(), owner.tally(rounds=4)) == (
        "it lists fewer rounds of this run than the server got updates"
    )


def test_an_epsilon_below_what_its_charges_cost_does_not_hold(owner: Owner) -> None:
    def less(data: dict[str, Any]) -> None:
        data["balances"][0]["spent"]["epsilon"] = 0.01

    assert problem(forged(owner, less), owner.tally()) == ("the epsilon is smaller than the charges that it lists cost")


def test_charges_that_would_keep_the_accountant_busy_for_days_are_not_priced(owner: Owner) -> None:
    """A hostile client must not hold up the end of a run."""

    def many(data: dict[str, Any]) -> None:
        plans = data["balances"][0]["plans"]
        (release, count) = plans[0]["charged"][0]
        kinds = [{**release, "noise_multiplier": 1.0 + i / 1000} for i in range(500)]
        more = [[kind, 20] for kind in kinds]
        plans.append({**plans[0], "plan": "f" * 64, "charged": sorted(more, key=lambda item: canonical(item[0]))})
        data["balances"][0]["totals"]["dp-sgd"] += 20 * len(more)
        assert count == 3

    begin = time.monotonic()
    assert problem(forged(owner, many), owner.tally()) == "it lists more than is checked here"
    assert time.monotonic() - begin < 20  # it would be minutes


@pytest.mark.parametrize("filter", ["sum", "rdp"])
def test_envelopes_that_would_keep_the_accountant_busy_are_not_priced(owner: Owner, filter: str) -> None:
    """What was never charged is priced as well, if a plan has the balance to itself."""

    def many(data: dict[str, Any]) -> None:
        plans = data["balances"][0]["plans"]
        data["balances"][0]["budget"]["filter"] = filter
        (release, _) = plans[0]["charged"][0]
        for i in range(200):
            envelope = [[{**release, "noise_multiplier": 1.0 + (i % 2) / 1000}, 50 + i]]
            plans.append({**plans[0], "plan": f"{i:064x}", "proof": "plan", "envelope": envelope})
            data["balances"][0]["totals"]["dp-sgd"] += 3

    begin = time.monotonic()
    assert problem(forged(owner, many), owner.tally()) == "it lists more than is checked here"
    assert time.monotonic() - begin < 10


def test_charges_about_unlike_neighbours_end_no_run(owner: Owner) -> None:
    """Nobody can price them together, so nothing in them is believed."""
    other = ClientLevel(noise_multiplier=2.0, cohort="fixed", size=2, of=5)

    def unlike(data: dict[str, Any]) -> None:
        plans = data["balances"][0]["plans"]
        plans.append({**plans[0], "plan": "f" * 64, "charged": [[other.to_json(), 1]]})
        data["balances"][0]["totals"][other.to_json()["mechanism"]] = 1

    assert problem(forged(owner, unlike), owner.tally()) == "the charges that it lists don't add"


@pytest.mark.parametrize("text", [5, "", "{}", "[" * 100_000, "null", b"{}", [1], '{"version":1e999}'])
def test_what_is_no_statement_is_kept_and_named_or_malformed(owner: Owner, text: Any) -> None:
    found = heard(text, owner.tally())
    if isinstance(text, str):
        assert isinstance(found, Stated)
        assert found.problem is not None
        assert "\n" not in found.problem
    else:
        assert found == ClientFault("a", Fault.MALFORMED_REPLY)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({CONFIG: ConfigRecord()}),
        RecordDict({CONFIG: MetricRecord({"x": 1})}),
        RecordDict({"other": ConfigRecord({STATEMENT_TEXT: "x"})}),
    ],
)
def test_a_reply_without_a_text_is_malformed(owner: Owner, content: RecordDict) -> None:
    found = _read(Message(content, reply_to=request()), "a", PLAN, owner.tally())
    assert found == ClientFault("a", Fault.MALFORMED_REPLY)


def test_a_text_of_no_end_is_not_kept(owner: Owner) -> None:
    assert heard("x" * ((1 << 24) + 1), owner.tally()) == ClientFault("a", Fault.MALFORMED_REPLY)


# --- what it adds to the server's books ---------------------------------------------------------------------------


@pytest.mark.parametrize(("detail", "listed"), [("full", True), ("totals", False), ("epsilon", False)])
def test_what_it_lists_of_this_plan_is_priced_at_the_plans_delta(owner: Owner, detail: Detail, listed: bool) -> None:
    """No other plan's charges: the summary is of one run."""
    release = PLAN.train_release()
    assert release is not None
    statement = verify_statement(owner.says(detail))
    three = epsilon({release: 3}, PLAN.privacy.delta).epsilon
    assert spent_in(PLAN, statement) == (three if listed else 0.0)
    assert spent_in(make_plan(PRIVATE, {"seed": 8}), statement) == 0.0


def test_a_fault_is_that_fault(owner: Owner) -> None:
    found = _read(error(request(), Fault.CLIENT_FAILED), "a", PLAN, owner.tally())
    assert found == ClientFault("a", Fault.CLIENT_FAILED)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Owner:
    return Owner(tmp_path_factory.mktemp("signer") / "ledger.sqlite")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_statement_raises_an_error_whoever_signs_it(signer: Owner, data: st.DataObject) -> None:
    """The owner may be the attacker: any value put anywhere, under its own good signature."""

    def spoil(value: Any) -> None:
        node = value
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
                node = node[key]
                continue
            node[key] = data.draw(json_values)
            return

    try:
        text = forged(signer, spoil)
    except ValueError:  # NaN and infinity are no JSON
        return
    assert isinstance(heard(text, signer.tally()), Stated)
