"""Rounds as secure sums, on a grid in memory: what is summed, what is charged, what is tried again, what is resumed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from security.errors import RunError
from server.checkpoint import load_checkpoint
from server.federation import Federation
from server.rounds import secure
from server.rounds.secure_attempt import liars
from server.run_state import ClientTally
from server.strategies import ServerStrategy
from shared_models.faults import Fault
from shared_models.parameters import Parameters, from_arrays, to_arrays
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFIG, SECURE_MESSAGE
from shared_models.secure_context import model_digest
from tests.server.conftest import (
    LAYOUT,
    START,
    Diary,
    FakeGrid,
    Played,
    Player,
    StopAfter,
    StoppedOnPurposeError,
    StreamingFakeGrid,
    same_bits,
)
from tests.server.secure_sites import (
    NAMES,
    PHASES,
    Act,
    Sites,
    masked,
    mean_of,
    names,
    noise,
    says,
    secure_plan,
    silent,
)

SIX = names(6)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.supercore.logger.FLOWER_LOGGER.disabled", True)


@pytest.fixture
def player(tmp_path: Path) -> Player:
    return Player(tmp_path)


def one_round(**secure: Any) -> Plan:
    return rounds(1, **secure)


def rounds(number: int, **secure: Any) -> Plan:
    return secure_plan(federation={"rounds": number}, secure_sum=secure)


def play(
    player: Player,
    plan: Plan,
    sites: Sites,
    grid: FakeGrid | None = None,
    *,
    left_out: Iterable[str] = (),
    **given: Any,
) -> Played:
    grid = grid or StreamingFakeGrid(sites.clients, sites)
    federation = player.federation(plan, grid, **given)
    federation.identities = {site: key for site, key in sites.identities.items() if site not in left_out}
    outcome = federation.run()
    assert isinstance(federation.observer, Diary)
    return Played(outcome, federation.folder, federation.observer, grid)


def after(plan: Plan, *rounds: list[str], start: Parameters = START) -> Parameters:
    """The model after rounds in which these sites' updates were summed; nobody's where the round was given up."""
    for number, clients in enumerate(rounds, start=1):
        if clients:
            delta = mean_of(plan, clients, number)
            start = {name: np.asarray(value + delta[name], np.float32) for name, value in start.items()}
    return start


def trained(played: Played) -> dict[str, int]:
    """How often each site was charged, by the server's own books."""
    return {client: played.outcome.state.client(client).trainings for client in SIX}


def line(played: Played, number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = played.folder.read_metrics()[number - 1]
    return found


def each(numbers: list[int]) -> dict[str, list[int]]:
    """The same for every site."""
    return {site: list(numbers) for site in SIX}


NOBODY: dict[str, list[str]] = {phase: [] for phase in PHASES}


# --- a sum that goes well -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [FakeGrid, StreamingFakeGrid])
def test_the_model_moves_by_the_mean_of_the_updates_exactly(player: Player, grid: type[FakeGrid]) -> None:
    plan = rounds(2)
    sites = Sites(plan, SIX)
    played = play(player, plan, sites, grid(SIX, sites))
    assert played.outcome.stopped is None
    assert same_bits(played.outcome.parameters, after(plan, SIX, SIX))
    assert trained(played) == dict.fromkeys(SIX, 2)
    assert [tally.rounds for tally in played.outcome.state.clients.values()] == [2] * 6
    assert line(played)["secure_sum"] == {"attempts": 1, "charged": 1, "survivors": 6, "dropped": NOBODY}
    assert (line(played)["updates"], line(played)["train_loss"], line(played)["faults"]) == (6, None, [])
    assert sites.asked == each([1, 2])


def test_sixty_four_bits_do_too(player: Player) -> None:
    plan = secure_plan(federation={"rounds": 1}, privacy={"noise_multiplier": 4.0, "clipping_norm": 1.0})
    wide = plan.secure.model_copy(update={"bits": 64})
    plan = plan.model_copy(update={"secure_sum": wide})
    sites = Sites(plan, SIX)
    assert same_bits(play(player, plan, sites).outcome.parameters, after(plan, SIX))


def test_the_order_in_which_replies_arrive_does_not_matter(player: Player) -> None:
    plan = rounds(2)
    sites = Sites(plan, SIX)
    grid = FakeGrid(SIX, sites, order=lambda replies: replies[::-1])
    assert same_bits(play(player, plan, sites, grid).outcome.parameters, after(plan, SIX, SIX))


def test_a_phase_goes_to_who_is_left_under_a_group_of_its_own(player: Player) -> None:
    plan = secure_plan(federation={"rounds": 1, "round_timeout": 99.0})
    sites = Sites(plan, SIX).on("site-3", "shares", silent)
    grid = StreamingFakeGrid(SIX, sites)
    play(player, plan, sites, grid)
    sent: dict[str, list[str]] = {}
    for message in grid.sent:
        phase = NAMES.get(message.metadata.message_type)
        if phase is not None:
            sent.setdefault(phase, []).append(message.metadata.group_id)
    assert {phase: (len(groups), *set(groups)) for phase, groups in sent.items()} == {
        "keys": (6, "1 attempt 1 keys"),
        "shares": (6, "1 attempt 1 shares"),
        "masked": (5, "1 attempt 1 masked"),
        "survivors": (5, "1 attempt 1 survivors"),
        "unmask": (5, "1 attempt 1 unmask"),
    }
    assert grid.timeouts[:5] == [7.0, 7.0, 99.0, 7.0, 7.0]


def test_the_model_goes_out_once_and_with_the_masked_phase_alone(player: Player) -> None:
    """A grid that shares what is the same needs the same object; keys and shares need no model."""
    plan = one_round()
    sites = Sites(plan, SIX)
    grid = StreamingFakeGrid(SIX, sites)
    played = play(player, plan, sites, grid)
    records = [message.content[ARRAYS] for message in grid.sent if ARRAYS in message.content]
    assert len(records) == 6
    assert len({id(record) for record in records}) == 1
    assert same_bits(from_arrays(records[0], LAYOUT), START)  # type: ignore[arg-type]
    words = [message.content.config_records[CONFIG].get(SECURE_MESSAGE, b"") for message in grid.sent]
    model = sum(len(array.data) for array in records[0].values())  # type: ignore[union-attr]
    assert line(played)["bytes_down"] == 6 * model + sum(map(len, words))  # type: ignore[arg-type]
    assert line(played)["bytes_up"] > 6 * 4 * LAYOUT.size


def test_masked_vectors_are_folded_in_as_they_arrive(player: Player) -> None:
    """The server holds one reply of the masked phase at most, however many come."""
    plan, alive, most = one_round(), weakref.WeakSet[Message](), []

    class Lazy(StreamingFakeGrid):
        def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
            for message in messages:
                (reply,) = self.replies([message], timeout)
                alive.add(reply)
                gc.collect()
                most.append(sum(1 for one in alive if one.metadata.message_type == "train"))
                yield reply
                del reply

    sites = Sites(plan, SIX)
    play(player, plan, sites, Lazy(SIX, sites))
    assert max(most) == 1


# --- who falls out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (silent, "timed-out"),
        (says(Fault.CLIENT_FAILED), "client-failed"),
        (says(Fault.SECURE_SUM_LOST), "secure-sum-lost"),
    ],
    ids=["silent", "failed", "lost"],
)
def test_who_falls_out_in_a_phase_costs_nobody_the_sum(player: Player, phase: str, act: Act, reason: str) -> None:
    plan = one_round()
    played = play(player, plan, Sites(plan, SIX).on("site-2", phase, act))
    in_sum = phase in ("survivors", "unmask")  # its vector had arrived
    assert same_bits(played.outcome.parameters, after(plan, SIX if in_sum else [s for s in SIX if s != "site-2"]))
    assert line(played)["secure_sum"]["dropped"] == {**NOBODY, phase: ["site-2"]}
    assert line(played)["secure_sum"]["survivors"] == line(played)["updates"] == (6 if in_sum else 5)
    assert line(played)["faults"] == ([] if in_sum else [{"client": "site-2", "reason": reason}])
    assert played.outcome.state.faults == [{"round": 1, "client": "site-2", "reason": reason}]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("act", "withdraws"),
    [(silent, False), (says(Fault.CLIENT_FAILED), True), (says(Fault.SECURE_SUM_LOST), False), (noise, True)],
    ids=["silent", "failed", "lost", "broken"],
)
def test_who_was_asked_for_a_vector_is_charged_and_a_failure_from_then_on_withdraws_its_claim(
    player: Player, phase: str, act: Act, withdraws: bool
) -> None:
    """Rule 5: what fails once data was touched may tell of it. A deadline is timing, lost secrets are a restart."""
    plan = one_round()
    played = play(player, plan, Sites(plan, SIX).on("site-2", phase, act))
    asked = phase not in ("keys", "shares")
    assert trained(played) == {**dict.fromkeys(SIX, 1), "site-2": int(asked)}
    assert played.outcome.state.client("site-2").withdrawn == ([1] if asked and withdraws else [])


def test_bytes_that_are_no_message_are_their_senders_fault(player: Player) -> None:
    plan = one_round()
    played = play(player, plan, Sites(plan, SIX).on("site-4", "keys", noise))
    assert line(played)["faults"] == [{"client": "site-4", "reason": "secure-sum-broken"}]
    assert line(played)["updates"] == 5


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.zeros(LAYOUT.size, np.float32), "model-mismatch"),
        (np.zeros(LAYOUT.size, np.uint64), "model-mismatch"),
        (np.zeros(LAYOUT.size - 1, np.uint32), "model-mismatch"),
    ],
    ids=["floats", "wide", "short"],
)
def test_a_vector_of_another_form_is_left_out(player: Player, vector: Any, reason: str) -> None:
    plan = one_round()
    sites = Sites(plan, SIX).on("site-1", "masked", lambda message, _: [masked(message, vector)])
    played = play(player, plan, sites)
    assert line(played)["faults"] == [{"client": "site-1", "reason": reason}]
    assert same_bits(played.outcome.parameters, after(plan, [site for site in SIX if site != "site-1"]))


def test_a_word_of_an_earlier_phase_or_attempt_is_nobodys(player: Player) -> None:
    """Every reply there was comes again with each later phase; nothing changes."""
    plan = rounds(2)
    sites = Sites(plan, SIX)
    old: list[Message] = []

    class Echo(FakeGrid):
        def replies(self, messages: Iterable[Message], timeout: float | None) -> list[Message]:
            found = super().replies(messages, timeout)
            old.extend(found)
            return old + found

    played = play(player, plan, sites, Echo(SIX, sites))
    assert same_bits(played.outcome.parameters, after(plan, SIX, SIX))
    assert played.outcome.state.faults == []


def test_who_is_not_on_the_roster_is_not_asked(player: Player) -> None:
    plan = one_round()
    sites = Sites(plan, SIX)
    for site in ("site-5",):
        del sites.owners[site]
    played = play(player, plan, sites)
    assert "site-5" not in {client for client, *_ in sites.seen}
    assert same_bits(played.outcome.parameters, after(plan, SIX[:5]))


def test_more_clients_than_the_plan_was_made_for_are_an_error_at_once(player: Player) -> None:
    """Its noise and its ring are for six."""
    plan = secure_plan(federation={"rounds": 1}, secure_sum={"clients": 5, "honest": 0.6})
    sites = Sites(plan, SIX)
    with pytest.raises(
        RunError, match=r"^round 1: 6 clients are more than the 5 of a cohort .* secure_sum.clients = 6"
    ):
        play(player, plan, sites)
    assert sites.seen == []


def test_virtual_clients_take_turns_and_their_short_phases_have_no_deadline(player: Player) -> None:
    plan = secure_plan(federation={"rounds": 1, "round_timeout": 99.0})
    sites = Sites(plan, SIX)
    federation = player.federation(plan, StreamingFakeGrid(SIX, sites))
    federation.identities, federation.simulated = sites.identities, True
    federation.run()
    assert isinstance(federation.grid, FakeGrid)
    assert federation.grid.timeouts[:5] == [None, None, 99.0, None, None]


def test_fewer_than_the_plans_minimum_are_not_opened(player: Player) -> None:
    plan = secure_plan(federation={"rounds": 1, "min_clients": 6})
    sites = Sites(plan, SIX).on("site-0", "masked", silent)
    played = play(player, plan, sites)
    assert {phase for _, phase, _ in sites.seen} == {"keys", "shares", "masked"}
    assert line(played)["updates"] == 0


# --- what is charged, and tried again -----------------------------------------------------------------------------


def test_an_attempt_that_ends_before_anybody_was_asked_for_a_vector_is_free_and_tried_again(player: Player) -> None:
    plan = one_round()
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, "shares", silent, attempt=1).on(site, "keys", silent, attempt=2)
    played = play(player, plan, sites)
    assert sites.asked == each([3])
    assert trained(played) == dict.fromkeys(SIX, 1)
    assert same_bits(played.outcome.parameters, after(plan, SIX))
    assert line(played)["secure_sum"] == {"attempts": 3, "charged": 1, "survivors": 6, "dropped": NOBODY}
    assert [text.split(";")[-1] for text in played.diary.notes] == [" it cost nothing"] * 2


def test_it_is_tried_thrice_and_then_given_up(player: Player) -> None:
    plan = rounds(2)
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        for attempt in (1, 2, 3):
            sites.on(site, "keys", silent, attempt=attempt)
    played = play(player, plan, sites)
    assert line(played, 1)["secure_sum"]["attempts"] == 3
    assert (line(played, 1)["updates"], line(played, 2)["updates"]) == (0, 6)
    assert same_bits(played.outcome.parameters, after(plan, [], SIX))
    assert trained(played) == dict.fromkeys(SIX, 1)


def test_after_a_masked_vector_was_asked_for_the_charge_stays_and_the_round_is_given_up(player: Player) -> None:
    """Rule 2: too few survivors, so the sum stays unopened."""
    plan = rounds(2)
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, "masked", silent, attempt=1)
    played = play(player, plan, sites)
    assert played.outcome.stopped is None
    assert line(played)["secure_sum"] == {
        "attempts": 1,
        "charged": 1,
        "survivors": 0,
        "dropped": {**NOBODY, "masked": SIX[:4]},
    }
    assert line(played)["updates"] == 0
    assert [fault["reason"] for fault in line(played)["faults"]] == ["timed-out"] * 4
    assert trained(played) == dict.fromkeys(SIX, 2)
    assert ("site-5", "survivors", 1) not in sites.seen
    assert same_bits(played.outcome.parameters, after(plan, [], SIX))
    assert [tally.rounds for tally in played.outcome.state.clients.values()] == [1] * 6


@pytest.mark.parametrize("phase", ["masked", "survivors", "unmask"])
def test_a_spare_round_pays_for_another_attempt(player: Player, phase: str) -> None:
    plan = rounds(2, spare_rounds=1)
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, phase, silent, attempt=1).on(site, phase, silent, attempt=3)
    played = play(player, plan, sites)
    assert sites.asked == each([1, 2, 3])
    assert trained(played) == dict.fromkeys(SIX, 3)  # the second round has no spare left
    assert played.outcome.state.client("site-0").charged == [1, 2]
    assert played.outcome.state.client("site-0").again == [1]
    assert played.outcome.state.repeated == 1
    assert same_bits(played.outcome.parameters, after(plan, SIX, []))


def test_two_rounds_given_up_one_after_the_other_end_the_run(player: Player) -> None:
    plan = rounds(5)
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, "masked", says(Fault.CLIENT_FAILED))
    played = play(player, plan, sites)
    assert played.outcome.stopped == "failed"
    assert played.outcome.reason == (
        "round 2: 0 good updates of 6 clients, the plan needs 4 (client-failed); it is the second round without a sum, "
        "one after the other; resume when more clients are there, or plan secure_sum.spare_rounds"
    )
    assert [record.updates for record in played.diary.rounds] == [0, 0]
    assert played.outcome.state.round == 2
    assert same_bits(played.outcome.parameters, START)


def test_one_that_succeeds_in_between_lets_it_go_on(player: Player) -> None:
    plan = rounds(4)
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, "masked", silent, attempt=1).on(site, "masked", silent, attempt=3)
    played = play(player, plan, sites)
    assert played.outcome.stopped is None
    assert [record.updates for record in played.diary.rounds] == [0, 6, 0, 6]


def test_who_can_not_pay_says_so_before_it_hurts_the_others_and_is_not_charged(player: Player) -> None:
    plan = one_round()
    sites = Sites(plan, SIX).on("site-0", "keys", says(Fault.BUDGET_EXHAUSTED))
    played = play(player, plan, sites)
    assert trained(played) == {**dict.fromkeys(SIX, 1), "site-0": 0}
    assert played.outcome.state.client("site-0").refused == [1]
    assert played.outcome.state.client("site-0").withdrawn == []


def test_a_refusal_when_it_is_to_pay_takes_the_charge_back(player: Player) -> None:
    plan = one_round()
    played = play(player, plan, Sites(plan, SIX).on("site-0", "masked", says(Fault.BUDGET_EXHAUSTED)))
    assert trained(played) == {**dict.fromkeys(SIX, 1), "site-0": 0}
    assert played.outcome.state.client("site-0").refused == [1]


def test_a_refusal_by_the_protocol_does_not(player: Player) -> None:
    """It may come after the reservation, which is never taken back."""
    plan = one_round()
    played = play(player, plan, Sites(plan, SIX).on("site-0", "masked", says(Fault.SECURE_SUM_REFUSED)))
    assert trained(played) == dict.fromkeys(SIX, 1)
    assert played.outcome.state.client("site-0").withdrawn == []


def test_who_refuses_is_not_asked_again_in_the_round_and_the_rest_may_be_enough(player: Player) -> None:
    plan = one_round()
    sites = Sites(plan, SIX).on("site-0", "keys", says(Fault.POLICY_PLAN))
    for site in SIX[1:4]:
        sites.on(site, "keys", silent, attempt=1)
    played = play(player, plan, sites)
    assert [place for client, phase, place in sites.seen if (client, phase) == ("site-0", "keys")] == [1]
    assert same_bits(played.outcome.parameters, after(plan, SIX[1:]))


def test_budgets_that_are_used_up_end_a_run_as_such(player: Player) -> None:
    plan = rounds(3)
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, "keys", says(Fault.BUDGET_EXHAUSTED), attempt=2)
    played = play(player, plan, sites)
    assert played.outcome.stopped == "budget"
    assert played.outcome.reason == (
        "round 2: 4 of 6 clients have no privacy budget left; 0 good updates are too few, the plan needs 4"
    )
    assert trained(played) == dict.fromkeys(SIX, 1)


def test_a_strategy_that_tells_clients_apart_is_refused(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over different models could tell of one client (arXiv 2111.07380)."""
    plan = one_round()
    sites = Sites(plan, SIX)
    honest = ServerStrategy.configure

    def sly(self: ServerStrategy, *given: Any) -> list[Message]:
        first, *others = honest(self, *given)
        other_model = to_arrays({name: value + 1 for name, value in START.items()}, LAYOUT)
        content = RecordDict({ARRAYS: other_model, CONFIG: first.content[CONFIG]})
        return [Message(content, first.metadata.dst_node_id, "train"), *others]

    monkeypatch.setattr(ServerStrategy, "configure", sly)
    with pytest.raises(RunError, match="doesn't send every client the same model"):
        play(player, plan, sites)
    assert sites.seen == []


# --- crash and resume ---------------------------------------------------------------------------------------------


class KilledInPhase(StreamingFakeGrid):
    """The server dies when it has sent the messages of a phase."""

    def __init__(self, clients: list[str], sites: Sites, phase: str) -> None:
        super().__init__(clients, sites)
        self.phase = phase

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        found = self.replies(messages, timeout)
        if NAMES.get(self.sent[-1].metadata.message_type) == self.phase:
            raise StoppedOnPurposeError
        yield from found


def killed(player: Player, plan: Plan, phase: str) -> tuple[Federation, Sites]:
    sites = Sites(plan, SIX)
    federation = player.federation(plan, KilledInPhase(SIX, sites, phase))
    federation.identities = sites.identities
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    return federation, sites


def resumed(player: Player, plan: Plan, federation: Federation, sites: Sites) -> Played:
    found = load_checkpoint(federation.folder.checkpoints, plan.digest())
    assert found is not None
    return play(player, plan, sites, StreamingFakeGrid(SIX, sites), folder=federation.folder, resume=found)


def test_an_attempt_and_its_charges_are_on_disk_before_anybody_is_asked_for_a_masked_vector(player: Player) -> None:
    plan = one_round()
    federation, sites = killed(player, plan, "masked")
    found = load_checkpoint(federation.folder.checkpoints, plan.digest())
    assert found is not None
    assert (found.state.round, found.state.attempt, found.state.begun) == (0, 1, [1])
    assert {client: tally.charged for client, tally in found.state.clients.items()} == each([1])
    assert sites.asked == each([1])


@pytest.mark.parametrize("phase", ["keys", "shares"])
def test_a_server_that_died_earlier_has_charged_nobody_and_begins_a_new_attempt(player: Player, phase: str) -> None:
    plan = one_round()
    federation, sites = killed(player, plan, phase)
    played = resumed(player, plan, federation, sites)
    assert trained(played) == dict.fromkeys(SIX, 1)
    assert [numbers[0] > 1 for numbers in sites.asked.values()] == [True] * 6  # clients had heard of number 1
    assert same_bits(played.outcome.parameters, after(plan, SIX))


@pytest.mark.parametrize("phase", ["masked", "survivors", "unmask"])
def test_a_begun_attempt_counts_as_aborted_and_is_never_asked_for_again(player: Player, phase: str) -> None:
    """Rule 8: no client masks two vectors under one attempt, resumed or not."""
    plan = rounds(2, spare_rounds=1)
    federation, sites = killed(player, plan, phase)
    played = resumed(player, plan, federation, sites)
    for numbers in sites.asked.values():
        assert len(numbers) == len(set(numbers)) == 3
        assert numbers == sorted(numbers)
    assert trained(played) == dict.fromkeys(SIX, 3)
    assert same_bits(played.outcome.parameters, after(plan, SIX, SIX))
    assert len(sites.runs) == 1


def test_without_a_spare_round_what_was_cut_off_is_given_up(player: Player) -> None:
    plan = rounds(2)
    federation, sites = killed(player, plan, "masked")
    played = resumed(player, plan, federation, sites)
    assert [record.updates for record in played.diary.rounds] == [0, 6]
    assert played.diary.notes == [
        "round 1: its attempt at the secure sum was cut off when the server ended; the charge stays, and no spare "
        "round is left"
    ]
    # The attempt that was cut off is this round's, in every book.
    assert line(played)["secure_sum"] == {"attempts": 1, "charged": 1, "survivors": 0, "dropped": NOBODY}
    assert trained(played) == dict.fromkeys(SIX, 2)
    assert same_bits(played.outcome.parameters, after(plan, [], SIX))


def test_rounds_that_were_cut_off_are_said_to_be(player: Player) -> None:
    plan = rounds(3)
    federation, sites = killed(player, plan, "masked")
    found = load_checkpoint(federation.folder.checkpoints, plan.digest())
    assert found is not None
    grid = KilledInPhase(SIX, sites, "masked")
    with pytest.raises(StoppedOnPurposeError):
        play(player, plan, sites, grid, folder=federation.folder, resume=found)
    played = resumed(player, plan, federation, sites)
    assert played.outcome.stopped == "failed"
    assert played.outcome.reason is not None
    assert "(cut off when the server ended)" in played.outcome.reason


def test_no_number_is_announced_twice_however_often_the_server_dies(player: Player) -> None:
    plan = one_round()
    federation, sites = killed(player, plan, "keys")
    heard = [sites.newest("site-0")]
    for _ in range(2):
        found = load_checkpoint(federation.folder.checkpoints, plan.digest())
        assert found is not None
        grid = KilledInPhase(SIX, sites, "keys")
        with pytest.raises(StoppedOnPurposeError):
            play(player, plan, sites, grid, folder=federation.folder, resume=found)
        heard.append(sites.newest("site-0"))
    assert len(set(heard)) == 3
    assert heard == sorted(heard)


def test_only_attempts_that_were_made_are_counted(player: Player) -> None:
    """Too few are left of those who don't refuse: nobody is asked any more."""
    plan = one_round()
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, "keys", says(Fault.POLICY_PLAN))
    played = play(player, plan, sites)
    assert sites.attempts == 1
    assert line(played)["secure_sum"]["attempts"] == 1


def test_a_model_that_all_are_sent_is_hashed_once(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = one_round()
    hashed: list[str] = []

    def counting(arrays: ArrayRecord, norm: float | None = None) -> str:
        hashed.append(model_digest(arrays, norm))
        return hashed[-1]

    monkeypatch.setattr(secure, "model_digest", counting)
    play(player, plan, Sites(plan, SIX))
    assert len(hashed) == 1


def test_a_run_resumed_between_rounds_ends_with_the_same_model(player: Player) -> None:
    plan = secure_plan(federation={"rounds": 3, "strategy": "fedadam", "strategy_options": {"eta": 0.05}})
    whole_run = play(player, plan, Sites(plan, SIX))
    sites = Sites(plan, SIX)
    federation = player.federation(plan, StreamingFakeGrid(SIX, sites), diary=StopAfter(1))
    federation.identities = sites.identities
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    assert same_bits(resumed(player, plan, federation, sites).outcome.parameters, whole_run.outcome.parameters)


def test_books_from_before_there_were_secure_sums_can_be_read() -> None:
    assert ClientTally(charged=[1, 2]).trainings == 2


# --- who lied -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([], []),
        ([("a", "b")], []),
        ([("a", "x"), ("b", "x"), ("c", "x")], ["x"]),
        ([("x", "a"), ("x", "b")], ["x"]),
        ([("a", "x"), ("b", "x"), ("y", "c"), ("y", "d"), ("y", "e")], ["x", "y"]),
        ([("a", "b"), ("c", "d")], []),
    ],
)
def test_who_explains_most_wrong_shares_gave_them(pairs: list[tuple[str, str]], named: list[str]) -> None:
    assert liars(pairs) == named
