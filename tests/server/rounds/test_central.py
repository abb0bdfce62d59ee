"""Rounds of a trusted server: charged before anybody is asked, clipped again, noisy whoever comes, released once."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from scipy.stats import chi2

from privacy.central_sum import ClippedSum, IndependentNoise, SumNoise, mean_of
from privacy.ledger import Ledger
from privacy.ledger.check import verify
from privacy.noise import ReproducibleNoise
from server import federation as federation_module
from server.checkpoint import load_checkpoint
from server.population import SCOPE, Population
from server.replies import Head
from server.rounds.central import CentralRounds
from server.run_folder import RunFolder
from shared_models.faults import Fault
from shared_models.parameters import Parameters, unflat
from shared_models.plan import Plan
from shared_models.plan_central import central_grid
from shared_models.protocol import CONFIG, ENROL, EPSILON, LEDGER, METRICS, ROUND, WEIGHT
from shared_models.resolve import resolve
from shared_models.seeds import derive_key
from tests.server.conftest import (
    LAYOUT,
    START,
    Answer,
    FakeGrid,
    Player,
    StopAfter,
    StoppedOnPurposeError,
    StreamingFakeGrid,
    change,
    error,
    head_record,
    make_plan,
    reply,
    same_bits,
)

SIX = [f"site-{number}" for number in range(6)]
FALSE_ALARM = 1e-9
POISSON = {"sampling": "poisson", "rate": 0.5}
ALL = {"sampling": "all"}


def plan_of(cohort: Mapping[str, Any] = POISSON, **changes: Mapping[str, Any]) -> Plan:
    raw: dict[str, Mapping[str, Any]] = {
        "model": {"name": "mlp", "options": {"hidden": []}},
        "data": {"partition": {"kind": "iid", "clients": 6}},
        "privacy": {
            "unit": "client",
            "trust": "central",
            "noise_multiplier": 2.0,
            "noise": "reproducible",
            **changes.pop("privacy", {}),
        },
        "federation": {"rounds": 2, "cohort": cohort, **changes.pop("federation", {})},
        "evaluation": {"where": "none"},
    }
    return resolve(make_plan({**raw, **changes}))


def head_at(position: int) -> Head:
    return Head(position, f"{position:064x}")


class Clients:
    """Honest clients, whose ledgers grow; what one of them does otherwise is told by its `does`."""

    def __init__(self) -> None:
        self.does: dict[str, Answer] = {}
        self.refuses: dict[str, Fault] = {}
        self.enrolled: list[str] = []
        self.trained: list[tuple[str, int]] = []
        self._heads: dict[str, int] = {}

    def __call__(self, client: str, message: Message) -> list[Message]:
        if message.metadata.message_type == ENROL:
            self.enrolled.append(client)
            if client in self.refuses:
                return [error(message, self.refuses[client])]
            return [self._said(message, RecordDict({METRICS: MetricRecord({EPSILON: 1.0})}), client)]
        self.trained.append((client, int(message.metadata.group_id)))
        found = self.does.get(client, moves(0.01))(client, message)
        for one in found:
            if one.has_content() and LEDGER in one.content:
                self._said(one, one.content, client)
        return found

    def _said(self, message: Message, content: RecordDict, client: str) -> Message:
        self._heads[client] = self._heads.get(client, 2) + 2
        content[LEDGER] = head_record(head_at(self._heads[client]))
        return message if message.has_content() and content is message.content else Message(content, reply_to=message)


def moves(value: float) -> Answer:
    """An update that moves every parameter by the same value, however large."""
    return lambda _, message: [reply(message, change(value), **{WEIGHT: 1, EPSILON: 1.0})]


def silent(_: str, __: Message) -> list[Message]:
    return []


def noise_of(plan: Plan, number: int) -> IndependentNoise:
    source = ReproducibleNoise(derive_key(plan.seed, "central-noise", number))
    return IndependentNoise(central_grid(plan, LAYOUT.size), source)


def after_a_round(plan: Plan, updates: list[float], *, expected: float, number: int = 1) -> Parameters:
    """The model after a round of these updates, by the plan's reproducible noise."""
    total = ClippedSum(central_grid(plan, LAYOUT.size), LAYOUT.size)
    for value in updates:
        total.add(np.full(LAYOUT.size, value, np.float32))
    mean = mean_of(noise_of(plan, number).noisy(total.total), central_grid(plan, LAYOUT.size), expected)
    return {name: np.asarray(START[name] + delta, np.float32) for name, delta in unflat(mean, LAYOUT).items()}


def folder_text(folder: RunFolder) -> dict[str, str]:
    """What of a run's folder may be shown to others: everything but checkpoints."""
    found = {}
    for path in sorted(folder.path.rglob("*")):
        if path.is_file() and folder.checkpoints not in path.parents:
            found[str(path.relative_to(folder.path))] = path.read_bytes().decode("latin-1")
    return found


# --- the sum ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [FakeGrid, StreamingFakeGrid])
def test_the_model_moves_by_the_noisy_sum_over_the_expected_number(play: Player, grid: type[FakeGrid]) -> None:
    plan = plan_of(ALL, federation={"rounds": 1})
    played = play(plan, grid(SIX, Clients()))
    assert played.outcome.stopped is None
    assert same_bits(played.outcome.parameters, after_a_round(plan, [0.01] * 6, expected=6.0))


def broken(client: str, message: Message) -> list[Message]:
    del client
    return [reply(message, {"layer.weight": np.zeros((1, 1), np.float32)}, **{WEIGHT: 1, EPSILON: 1.0})]


@pytest.mark.parametrize(
    ("does", "counts_as"),
    [
        pytest.param(silent, None, id="says nothing"),
        pytest.param(lambda _, m: [error(m, Fault.CLIENT_FAILED)], None, id="fails"),
        pytest.param(moves(math.nan), None, id="NaN"),
        pytest.param(moves(math.inf), None, id="infinite"),
        pytest.param(moves(0.0), 0.0, id="zeros"),
        pytest.param(moves(3e38), 3e38, id="huge: clipped here"),
        pytest.param(moves(-40.0), -40.0, id="never clipped by its sender"),
        pytest.param(lambda _, m: [reply(m, change(1), **{WEIGHT: 9, EPSILON: 1.0})], None, id="weighs itself"),
        pytest.param(lambda _, m: [Message(RecordDict({}), reply_to=m)], None, id="empty"),
        pytest.param(lambda c, m: 2 * moves(0.01)(c, m), 0.01, id="answers twice"),
    ],
)
def test_whatever_one_client_does_it_counts_as_one_clipped_update_or_none(
    play: Player, does: Answer, counts_as: float | None
) -> None:
    """Rules 1 and 5: the divisor stays, the round goes on, nobody is named and no claim is withdrawn."""
    plan = plan_of(ALL, federation={"rounds": 1, "min_clients": 6})
    clients = Clients()
    clients.does["site-3"] = does
    played = play(plan, FakeGrid(SIX, clients))
    updates = [0.01] * 5 + ([] if counts_as is None else [counts_as])
    assert played.outcome.stopped is None
    assert same_bits(played.outcome.parameters, after_a_round(plan, updates, expected=6.0))
    (line,) = played.folder.read_metrics()
    assert (line["faults"], line["updates"], played.outcome.state.faults) == ([], None, [])
    assert all(not tally.withdrawn for tally in played.outcome.state.clients.values())


def test_a_round_in_which_nobody_takes_part_releases_noise(play: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation_module, "sample_cohort", lambda *_: [])
    plan = plan_of(federation={"rounds": 1, "min_clients": 3})
    played = play(plan, FakeGrid(SIX, clients := Clients()))
    assert (played.outcome.stopped, clients.trained) == (None, [])
    assert same_bits(played.outcome.parameters, after_a_round(plan, [], expected=3.0))
    assert not same_bits(played.outcome.parameters, START)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"])
def test_any_averaging_strategy_steps_on_the_noisy_mean_even_if_the_first_cohort_is_empty(
    play: Player, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    cohorts = iter([[], SIX[:3]])
    monkeypatch.setattr(federation_module, "sample_cohort", lambda *_: next(cohorts))
    plan = plan_of(federation={"strategy": strategy}, training={"proximal_mu": 0.1})
    played = play(plan, FakeGrid(SIX, clients := Clients()))
    assert (played.outcome.stopped, played.outcome.state.round) == (None, 2)
    assert sorted({client for client, _ in clients.trained}) == SIX[:3]


def test_secret_noise_is_really_there(play: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of zeros: what moves the model is noise, of the plan's deviation over the expected number.

    Sum of squares over variance: chi squared, two-sided at the stated false-alarm rate.
    """
    monkeypatch.setattr(federation_module, "sample_cohort", lambda *_: SIX)
    plan = plan_of(federation={"rounds": 25}, privacy={"noise": "secret", "clipping_norm": 0.3})
    clients = Clients()
    clients.does = dict.fromkeys(SIX, moves(0.0))
    seen: list[np.ndarray] = []
    original = Population.commit

    def commit(self: Population, run: str, number: int, model: str, mean: np.ndarray) -> np.ndarray:
        seen.append(mean)
        return original(self, run, number, model, mean)

    monkeypatch.setattr(Population, "commit", commit)
    play(plan, FakeGrid(SIX, clients))
    values = np.concatenate(seen).astype(np.float64)
    deviation = 2.0 * 0.3 / 3.0  # noise multiplier, clipping norm, expected cohort
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], len(values))
    assert low < float((values**2).sum()) / deviation**2 < high


def test_the_seam_takes_another_noise(play: Player) -> None:
    class Nothing:
        def noisy(self, total: np.ndarray) -> np.ndarray:
            return total

        def settle(self, released: np.ndarray) -> None:
            settled.append(released)

        def recall(self, released: np.ndarray) -> None:
            raise AssertionError("no round is played again")

    plan = plan_of(ALL, federation={"rounds": 1})
    made: list[int] = []
    settled: list[np.ndarray] = []

    class Rounds(CentralRounds):
        def __init__(self, *given: Any, **how: Any) -> None:
            def noise(_: Any, number: int, __: Any) -> SumNoise:
                made.append(number)
                return Nothing()

            super().__init__(*given, **{**how, "noise": noise})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation_module, "CentralRounds", Rounds)
        played = play(plan, FakeGrid(SIX, Clients()))
    assert (made, len(settled)) == ([1], 1)
    step = central_grid(plan, LAYOUT.size).step
    for name, value in played.outcome.parameters.items():
        assert np.allclose(value, START[name] + 0.01, atol=2 * step)


# --- who pays -----------------------------------------------------------------------------------------------------


def test_rule_3_everybody_pays_for_every_round_whoever_was_drawn(play: Player) -> None:
    plan = plan_of(federation={"rounds": 4})
    played = play(plan, FakeGrid(SIX, clients := Clients()))
    assert clients.enrolled == SIX
    assert 0 < len(clients.trained) < 24
    charged = {name: tally.charged for name, tally in played.outcome.state.clients.items()}
    assert charged == {site: [1, 2, 3, 4] for site in SIX}
    assert verify(played.folder.population) == []


def test_nobody_is_enrolled_where_everybody_takes_part(play: Player) -> None:
    play(plan_of(ALL), FakeGrid(SIX, clients := Clients()))
    assert clients.enrolled == []


def test_who_refuses_to_pay_is_not_asked_and_not_charged(play: Player) -> None:
    plan = plan_of(federation={"rounds": 6})
    clients = Clients()
    clients.refuses = {"site-2": Fault.BUDGET_EXHAUSTED}
    played = play(plan, FakeGrid(SIX, clients))
    assert "site-2" not in {client for client, _ in clients.trained}
    tally = played.outcome.state.client("site-2")
    assert (tally.charged, tally.refused) == ([], [1])
    assert played.outcome.state.faults == [{"round": 1, "client": "site-2", "reason": "budget-exhausted"}]


@pytest.mark.parametrize(("fault", "stopped"), [(Fault.BUDGET_EXHAUSTED, "budget"), (Fault.POLICY_ENTRUST, "failed")])
def test_a_run_that_too_few_pay_for_ends_before_anybody_trains(play: Player, fault: Fault, stopped: str) -> None:
    plan = plan_of(federation={"min_clients": 3})
    clients = Clients()
    clients.refuses = dict.fromkeys(SIX[:4], fault)
    played = play(plan, FakeGrid(SIX, clients))
    assert (played.outcome.stopped, clients.trained) == (stopped, [])
    assert "4 of 6 clients refuse the plan" in str(played.outcome.reason)
    with Ledger.open(played.folder.population, read_only=True) as ledger:
        assert [entry.kind for entry in ledger.entries(SCOPE)] == ["open"]


def test_where_everybody_takes_part_budgets_end_the_run(play: Player) -> None:
    plan = plan_of(ALL, federation={"min_clients": 3})
    clients = Clients()
    clients.does = dict.fromkeys(SIX[:4], lambda _, m: [error(m, Fault.BUDGET_EXHAUSTED)])
    played = play(plan, FakeGrid(SIX, clients))
    assert played.outcome.stopped == "budget"
    assert played.outcome.state.client("site-0").charged == []
    assert played.outcome.state.client("site-5").charged == [1]


def test_what_the_population_can_not_pay_for_is_asked_of_nobody(play: Player) -> None:
    plan = plan_of(ALL)
    folder = RunFolder(play.path / "spent")
    folder.create(plan)
    books = Population.at(folder.population, plan, federation=plan.name, begun=False, durable=False)
    for number in (1, 2):
        books.reserve("an earlier run", number, "ab" * 32)
    books.close()
    played = play(plan, FakeGrid(SIX, clients := Clients()), folder=folder)
    assert (played.outcome.stopped, clients.trained) == ("budget", [])
    assert same_bits(played.outcome.parameters, START)
    assert "doesn't cover another round" in str(played.outcome.reason)


# --- nobody learns who took part ----------------------------------------------------------------------------------


def test_rule_3_what_a_run_tells_is_the_same_whoever_takes_part(play: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of zeros in two runs with other cohorts, some of whom fail: not a byte of what is told differs."""
    plan = plan_of(federation={"rounds": 3})

    def told(cohorts: list[list[str]], failing: str) -> tuple[dict[str, str], list[Any]]:
        rounds = iter(cohorts)
        monkeypatch.setattr(federation_module, "sample_cohort", lambda *_: next(rounds))
        clients = Clients()
        clients.does = dict.fromkeys(SIX, moves(0.0)) | {failing: lambda _, m: [error(m, Fault.CLIENT_FAILED)]}
        played = play(plan, FakeGrid(SIX, clients))
        texts = folder_text(played.folder)
        del texts["population.sqlite"]  # has the run's own random id in it; its entries are looked at below
        return texts, played.diary.entries

    one = told([["site-0", "site-3"], [], SIX], "site-0")
    other = told([SIX[1:4], ["site-5"], ["site-1"]], "site-5")
    assert one == other
    lines = [json.loads(line) for line in one[0]["metrics.jsonl"].splitlines()]
    for line in lines:
        hidden = {key: line[key] for key in ("seconds", "cohort", "updates", "bytes_up", "bytes_down")}
        assert hidden == dict.fromkeys(hidden)
        assert line["faults"] == []
    assert not any(site in text for text in one[0].values() for site in SIX)


def test_a_cohort_that_may_be_known_is_told(play: Player) -> None:
    played = play(plan_of(ALL, federation={"rounds": 1}), FakeGrid(SIX, Clients()))
    (line,) = played.folder.read_metrics()
    assert (line["cohort"], line["updates"], line["bytes_up"]) == (6, None, None)
    assert line["seconds"] > 0


def test_a_ledger_that_was_rolled_back_leaves_its_client_out_without_a_word(play: Player) -> None:
    clients = Clients()
    plan = plan_of(federation={"rounds": 6})

    def rolled_back(client: str, message: Message) -> list[Message]:
        clients._heads[client] = 0
        return moves(0.01)(client, message)

    clients.does["site-1"] = rolled_back
    played = play(plan, FakeGrid(SIX, clients))
    assert len([client for client, _ in clients.trained if client == "site-1"]) == 1
    assert played.diary.notes == []
    assert played.outcome.state.client("site-1").contradicted != []


# --- crashes ------------------------------------------------------------------------------------------------------


def resumed(play: Player, plan: Plan, folder: RunFolder, clients: Clients) -> Parameters:
    found = load_checkpoint(folder.checkpoints, plan.digest())
    return play(plan, FakeGrid(SIX, clients), folder=folder, resume=found).outcome.parameters


def cut_off(play: Player, plan: Plan, when: Callable[[pytest.MonkeyPatch], None], clients: Clients) -> RunFolder:
    folder = RunFolder(play.path / "cut-off")
    folder.create(plan)
    with pytest.MonkeyPatch.context() as patch:
        when(patch)
        with pytest.raises(StoppedOnPurposeError):
            play(plan, FakeGrid(SIX, clients), folder=folder)
    return folder


def stop(*_: Any, **__: Any) -> None:
    raise StoppedOnPurposeError


def test_a_round_cut_off_after_its_release_releases_the_same_and_asks_nobody(play: Player) -> None:
    plan = plan_of(federation={"rounds": 1}, privacy={"noise": "secret"})
    clients = Clients()
    released: list[np.ndarray] = []
    original = Population.commit

    def commit(self: Population, run: str, number: int, model: str, mean: np.ndarray) -> np.ndarray:
        released.append(original(self, run, number, model, mean))
        raise StoppedOnPurposeError

    folder = cut_off(play, plan, lambda patch: patch.setattr(Population, "commit", commit), clients)
    asked = list(clients.trained)
    model = resumed(play, plan, folder, clients)
    assert clients.trained == asked
    (mean,) = released
    for name, delta in unflat(mean, LAYOUT).items():
        assert np.array_equal(model[name], np.asarray(START[name] + delta, np.float32))


def test_a_round_cut_off_before_its_release_is_played_again_under_one_charge(play: Player) -> None:
    plan = plan_of(federation={"rounds": 1}, privacy={"noise": "secret"})
    folder = cut_off(play, plan, lambda patch: patch.setattr(Population, "commit", stop), Clients())
    resumed(play, plan, folder, Clients())
    with Ledger.open(folder.population, read_only=True) as ledger:
        assert [entry.kind for entry in ledger.entries(SCOPE)] == ["open", "reserve", "commit"]


def test_a_resumed_run_ends_with_the_model_of_one_that_was_never_cut_off(play: Player) -> None:
    plan = plan_of(federation={"rounds": 4, "strategy": "fedavgm"})
    whole = play(plan, FakeGrid(SIX, Clients())).outcome
    folder = RunFolder(play.path / "stopped")
    folder.create(plan)
    clients = Clients()
    with pytest.raises(StoppedOnPurposeError):
        play(plan, FakeGrid(SIX, clients), folder=folder, diary=StopAfter(2))
    assert same_bits(resumed(play, plan, folder, clients), whole.parameters)


def test_a_run_does_not_go_on_without_the_populations_books(play: Player) -> None:
    plan = plan_of()
    folder = RunFolder(play.path / "lost")
    folder.create(plan)
    with pytest.raises(StoppedOnPurposeError):
        play(plan, FakeGrid(SIX, Clients()), folder=folder, diary=StopAfter(1))
    for path in folder.path.glob("population.sqlite*"):
        path.unlink()
    with pytest.raises(Exception, match=r"population\.sqlite: is missing"):
        resumed(play, plan, folder, Clients())


def test_a_run_goes_on_from_no_copy_of_another_time(play: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounds would be released again with other noise; the clients know which ones they have played."""
    monkeypatch.setattr(federation_module, "sample_cohort", lambda *_: SIX[:3])  # drawn, it might be empty
    plan = plan_of(federation={"rounds": 3}, privacy={"noise": "secret"})
    folder = RunFolder(play.path / "copied")
    folder.create(plan)

    class Remembering(Clients):
        def __call__(self, client: str, message: Message) -> list[Message]:
            if message.metadata.message_type == ENROL:
                self.following = int(message.content.config_records[CONFIG][ROUND])  # type: ignore[call-overload]
                if any(one == client and number > self.following for one, number in self.trained):
                    return [error(message, Fault.ROUND_REPEATED)]
            return super().__call__(client, message)

    clients = Remembering()
    with pytest.raises(StoppedOnPurposeError):
        play(plan, FakeGrid(SIX, clients), folder=folder, diary=StopAfter(1))
    shutil.copytree(folder.path, play.path / "copy")
    resumed(play, plan, folder, clients)
    assert (clients.following, {number for _, number in clients.trained}) == (2, {1, 2, 3})
    old, asked = RunFolder(play.path / "copy"), list(clients.trained)
    found = load_checkpoint(old.checkpoints, plan.digest())
    outcome = play(plan, FakeGrid(SIX, clients), folder=old, resume=found).outcome
    assert (outcome.stopped, clients.trained) == ("failed", asked)
    assert "a copy from before" in str(outcome.reason)


def test_a_run_that_nobody_says_to_have_paid_for_does_not_begin(play: Player) -> None:
    class Mute(Clients):
        def __call__(self, client: str, message: Message) -> list[Message]:
            return []

    played = play(plan_of(), FakeGrid(SIX, Mute()))
    assert (played.outcome.stopped, played.outcome.state.round) == ("failed", 0)
    assert "none of 6 clients says that it has paid" in str(played.outcome.reason)


def test_an_enrolment_of_another_form_is_none(play: Player, tmp_path: Path) -> None:
    """Who answers nonsense is in the population all the same: it may be drawn, and is charged."""
    plan = plan_of(federation={"rounds": 1})

    class Odd(Clients):
        def __call__(self, client: str, message: Message) -> list[Message]:
            if message.metadata.message_type == ENROL and client == "site-4":
                return [Message(RecordDict({LEDGER: ConfigRecord({"position": 1})}), reply_to=message)]
            return super().__call__(client, message)

    played = play(plan, FakeGrid(SIX, Odd()))
    assert played.outcome.state.faults == [{"round": 1, "client": "site-4", "reason": "malformed-reply"}]
    assert played.outcome.state.client("site-4").charged == [1]
