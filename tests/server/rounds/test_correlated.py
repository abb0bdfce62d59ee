"""Rounds with correlated noise: one release a run; wherever a server is killed, each round is published once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from privacy.accountant import epsilon
from privacy.central_sum import ClippedSum, mean_of
from privacy.factorisation import BandedNoise
from privacy.ledger import Ledger
from privacy.ledger.check import audit, verify
from privacy.noise import ReproducibleNoise
from security.errors import RunError
from server import correlated_noise
from server.checkpoint import load_checkpoint
from server.federation import Federation
from server.population import SCOPE, Population
from server.run_folder import RunFolder
from server.run_state import RunState
from server.summary import summarise
from shared_models.faults import Fault
from shared_models.parameters import Parameters, unflat
from shared_models.plan import Plan
from shared_models.plan_correlated import banded_noise
from shared_models.resolve import resolve
from shared_models.seeds import derive_key
from tests.server.conftest import (
    LAYOUT,
    START,
    FakeGrid,
    Played,
    Player,
    StopAfter,
    StoppedOnPurposeError,
    error,
    make_plan,
    same_bits,
)
from tests.server.rounds.test_central import Clients, moves

SIX = [f"site-{number}" for number in range(6)]
FALSE_ALARM = 1e-9
ROUNDS = 5


def plan_of(*, noise: str = "reproducible", rounds: int = ROUNDS, **changes: Mapping[str, Any]) -> Plan:
    """Cohorts of two among six, three rounds apart."""
    raw: dict[str, Mapping[str, Any]] = {
        "model": {"name": "mlp", "options": {"hidden": []}},
        "data": {"partition": {"kind": "iid", "clients": 6}},
        "privacy": {
            "unit": "client",
            "trust": "central",
            "noise_multiplier": 2.0,
            "noise": noise,
            "correlated": {"band": 3},
            **changes.pop("privacy", {}),
        },
        "federation": {
            "rounds": rounds,
            "cohort": {"sampling": "fixed", "size": 2},
            **changes.pop("federation", {}),
        },
        "evaluation": {"where": "none"},
    }
    return resolve(make_plan({**raw, **changes}))


def seen_by(clients: Clients) -> dict[str, list[int]]:
    """In which rounds each client was asked, each once however often."""
    found: dict[str, set[int]] = {}
    for client, number in clients.trained:
        found.setdefault(client, set()).add(number)
    return {client: sorted(rounds) for client, rounds in found.items()}


def assert_schema(asked: Mapping[str, list[int]], *, separation: int = 3, most: int = 2) -> None:
    for rounds in asked.values():
        assert len(rounds) <= most
        assert all(later - earlier >= separation for earlier, later in pairwise(rounds))


def states(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in (folder.checkpoints / "noise").glob("*"))


# --- what is released ----------------------------------------------------------------------------------------------


def test_the_model_moves_by_the_stream_that_the_matrix_makes(play: Player) -> None:
    """All rounds beside it, of what two clients of 0.01 give, by the plan's reproducible noise."""
    plan = plan_of()
    played = play(plan, FakeGrid(SIX, Clients()))
    noise = banded_noise(plan, LAYOUT.size)
    model = {name: value.astype(np.float32) for name, value in START.items()}
    for number in range(1, ROUNDS + 1):
        total = ClippedSum(noise.grid, LAYOUT.size)
        for _ in range(2):
            total.add(np.full(LAYOUT.size, 0.01, np.float32))
        own = ReproducibleNoise(derive_key(plan.seed, "central-noise", number))
        mean = mean_of(noise.publish(number, total.total, own), noise.grid, 2.0)
        model = {name: np.asarray(model[name] + delta, np.float32) for name, delta in unflat(mean, LAYOUT).items()}
    assert played.outcome.stopped is None
    assert same_bits(played.outcome.parameters, model)


def published(play: Player, monkeypatch: pytest.MonkeyPatch, plan: Plan, does: float = 0.0) -> np.ndarray:
    """What each round of a run of that plan releases."""
    seen: list[np.ndarray] = []
    original = Population.commit

    def commit(self: Population, run: str, number: int, model: str, mean: np.ndarray) -> np.ndarray:
        seen.append(mean)
        return original(self, run, number, model, mean)

    monkeypatch.setattr(Population, "commit", commit)
    clients = Clients()
    clients.does = dict.fromkeys(SIX, moves(does))
    play(plan, FakeGrid(SIX, clients))
    return np.stack(seen).astype(np.float64)


def test_rule_9_secret_noise_is_really_there_and_of_the_priced_size(
    play: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates of zeros: C times what is published is white noise of the deviation that the price is about.

    Sum of squares over variance: chi squared, two-sided at the stated false-alarm rate.
    """
    plan = plan_of(noise="secret", rounds=60, privacy={"correlated": {"band": 3}, "clipping_norm": 0.3})
    values = published(play, monkeypatch, plan)
    noise = banded_noise(plan, LAYOUT.size)
    white = noise.matrix.dense() @ values
    deviation = noise.grid.noise_scale * noise.grid.step * 2.0**-10 / 2.0  # of z over the size of a cohort
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], white.size)
    assert low < float((white**2).sum()) / deviation**2 < high


def test_the_noise_of_a_running_sum_is_less_than_that_of_independent_noise(
    play: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At equal epsilon, under the same schema: 60 rounds, 15 apart. The noise follows from a seed, so this passes or
    fails for good."""

    def error_of(band: int) -> float:
        plan = plan_of(
            rounds=60,
            privacy={"correlated": {"band": band, "separation": 15}},
            federation={"cohort": {"sampling": "fixed", "size": 1}},
            data={"partition": {"kind": "iid", "clients": 15}},
        )
        everybody = [f"site-{number:02d}" for number in range(15)]
        seen: list[np.ndarray] = []
        original = Population.commit

        def commit(self: Population, run: str, number: int, model: str, mean: np.ndarray) -> np.ndarray:
            seen.append(mean)
            return original(self, run, number, model, mean)

        with monkeypatch.context() as patch:
            patch.setattr(Population, "commit", commit)
            clients = Clients()
            clients.does = dict.fromkeys(everybody, moves(0.0))
            play(plan, FakeGrid(everybody, clients))
        assert plan.privacy.noise_multiplier == 2.0
        return float(np.sqrt(np.mean(np.cumsum(np.stack(seen).astype(np.float64), axis=0) ** 2)))

    assert error_of(1) > 1.3 * error_of(15)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, -40.0])
def test_whatever_one_client_sends_it_counts_as_one_clipped_update_or_none(play: Player, value: float) -> None:
    plan = plan_of(rounds=3)
    clients = Clients()
    clients.does = dict.fromkeys(SIX, moves(value))
    played = play(plan, FakeGrid(SIX, clients))
    zeros, whole = Clients(), Clients()
    zeros.does = dict.fromkeys(SIX, moves(0.0))
    whole.does = dict.fromkeys(SIX, moves(float(np.sign(value)) * 1e3))
    finite = np.isfinite(value)
    expected = play(plan, FakeGrid(SIX, whole if finite else zeros)).outcome.parameters
    assert played.outcome.stopped is None
    assert all(np.allclose(played.outcome.parameters[name], expected[name], atol=1e-6) for name in START)


# --- who takes part, and who pays ----------------------------------------------------------------------------------


def test_the_schema_holds_and_everybody_pays_once_before_the_first_round(play: Player) -> None:
    plan = plan_of()
    played = play(plan, FakeGrid(SIX, clients := Clients()))
    assert clients.enrolled == SIX
    assert sum(len(rounds) for rounds in seen_by(clients).values()) == 2 * ROUNDS
    assert_schema(seen_by(clients))
    asked = {name: tally.asked for name, tally in played.outcome.state.clients.items() if tally.asked}
    assert asked == seen_by(clients)
    with Ledger.open(played.folder.population, read_only=True) as ledger:
        entries = [entry for entry in ledger.entries(SCOPE) if entry.kind == "reserve"]
    release = plan.train_release()
    assert release is not None
    charged = [entry.body["charge"] for entry in entries if entry.body["charge"] is not None]
    assert [one["releases"] for one in charged] == [[[release.to_json(), 1]]]
    assert [entry.body["task"]["round"] for entry in entries] == [0, 1, 2, 3, 4, 5]
    assert verify(played.folder.population) == []
    (balance,) = audit(played.folder.population).balances
    assert balance.spent is not None
    assert balance.spent.epsilon == pytest.approx(epsilon([release], 1e-5).epsilon)


def test_summary_and_metrics_price_the_run_once_and_claim_nothing_from_chance(play: Player) -> None:
    plan = plan_of()
    played = play(plan, FakeGrid(SIX, Clients()))
    summary = summarise(
        plan, played.outcome.state, stopped=None, reason=None, clients=SIX, startup_seconds=0.0, simulated=False
    )["privacy"]
    release = plan.train_release()
    assert release is not None
    price = epsilon([release], 1e-5).epsilon
    assert summary["epsilon_max"] == pytest.approx(price)
    assert {row["charged_rounds"] for row in summary["clients"]} == {ROUNDS}
    assert summary["central"]["release"] == release.to_json()
    assert not summary["central"]["secret_cohorts"]
    codes = {one["code"] for one in summary["assumptions"]}
    assert {"server-trusted", "participation-schema"} <= codes
    assert "cohort-secret" not in codes
    assert "participation" in {one["code"] for one in summary["disclosed"]}
    lines = played.folder.read_metrics()
    assert [line["cohort"] for line in lines] == [2] * ROUNDS
    assert all(line["epsilon_max"] == pytest.approx(price) for line in lines)


def test_a_client_that_refuses_to_pay_is_never_drawn(play: Player) -> None:
    plan = plan_of(federation={"min_clients": 1})
    clients = Clients()
    clients.refuses = {"site-2": Fault.POLICY_ENTRUST}
    played = play(plan, FakeGrid(SIX, clients))
    assert "site-2" not in seen_by(clients)
    assert_schema(seen_by(clients))
    tally = played.outcome.state.client("site-2")
    assert (tally.charged, tally.asked, tally.refused) == ([], [], [1])


def test_silent_and_failing_clients_have_taken_part_all_the_same(play: Player) -> None:
    clients = Clients()
    clients.does = dict.fromkeys(SIX, lambda _, m: [error(m, Fault.CLIENT_FAILED)])
    clients.does["site-0"] = lambda *_: []
    played = play(plan_of(), FakeGrid(SIX, clients))
    assert played.outcome.stopped is None
    assert_schema(seen_by(clients))
    assert {name: tally.asked for name, tally in played.outcome.state.clients.items() if tally.asked} == seen_by(
        clients
    )


def test_a_run_that_is_over_keeps_no_secret(play: Player) -> None:
    assert states(play(plan_of(), FakeGrid(SIX, Clients())).folder) == []


# --- crashes -------------------------------------------------------------------------------------------------------


def stop(*_: Any, **__: Any) -> None:
    raise StoppedOnPurposeError


def before(original: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Killed on the way in, in that round."""
    calls = iter(range(1, 1000))

    def killed(*given: Any, **how: Any) -> Any:
        if next(calls) == number:
            raise StoppedOnPurposeError
        return original(*given, **how)

    return killed


def after(original: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Killed on the way out, in that round."""
    calls = iter(range(1, 1000))

    def killed(*given: Any, **how: Any) -> Any:
        found = original(*given, **how)
        if next(calls) == number:
            raise StoppedOnPurposeError
        return found

    return killed


class Published:
    """What a run committed, over all its lives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_round: dict[int, list[bytes]] = {}
        original = Population.commit
        seen = self.by_round

        def commit(books: Population, run: str, number: int, model: str, mean: np.ndarray) -> np.ndarray:
            found = original(books, run, number, model, mean)
            seen.setdefault(number, []).append(found.tobytes())
            return found

        monkeypatch.setattr(Population, "commit", commit)


# (where, how, in which of its calls: a checkpoint is written at the start, and twice a round)
KILLS = [
    pytest.param(Population, "reserve", before, 3, id="before round 3 is reserved"),
    pytest.param(Population, "reserve", after, 3, id="once it is reserved"),
    pytest.param(Federation, "_checkpoint", before, 6, id="before it is written down who will be asked"),
    pytest.param(Federation, "_checkpoint", after, 6, id="once that is written"),
    pytest.param(BandedNoise, "publish", before, 3, id="once the updates are there"),
    pytest.param(BandedNoise, "publish", after, 3, id="once the noise is drawn"),
    pytest.param(correlated_noise.CorrelatedNoise, "write", after, 3, id="once its state is on the disk"),
    pytest.param(Population, "commit", before, 3, id="before the commit"),
    pytest.param(Population, "commit", after, 3, id="after the commit"),
    pytest.param(RunFolder, "append_metrics", after, 3, id="once the metrics are written"),
    pytest.param(Federation, "_checkpoint", before, 7, id="before the checkpoint"),
    pytest.param(Federation, "_checkpoint", after, 7, id="after the checkpoint"),
]


@pytest.mark.parametrize(("where", "name", "how", "call"), KILLS)
def test_wherever_a_server_is_killed_the_run_goes_on_as_if_it_had_not_been(
    play: Player, where: Any, name: str, how: Callable[..., Any], call: int
) -> None:
    """With reproducible noise the model is that of a run that was never cut off, bit for bit; nobody is asked too soon
    again; and each round has one commit."""
    plan = plan_of(federation={"strategy": "fedavgm", "strategy_options": {"server_momentum": 0.5}})
    whole = play(plan, FakeGrid(SIX, Clients())).outcome.parameters
    folder, clients = RunFolder(play.path / "cut-off"), Clients()
    folder.create(plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, how(getattr(where, name), call))
        with pytest.raises(StoppedOnPurposeError):
            play(plan, FakeGrid(SIX, clients), folder=folder)
    model = resumed(play, plan, folder, clients).outcome.parameters
    assert same_bits(model, whole)
    assert_schema(seen_by(clients))
    with Ledger.open(folder.population, read_only=True) as ledger:
        kinds = [(e.kind, e.body["task"]["round"]) for e in ledger.entries(SCOPE) if e.kind == "reserve"]
    assert sorted(number for _, number in kinds) == [0, 1, 2, 3, 4, 5]


def resumed(play: Player, plan: Plan, folder: RunFolder, clients: Clients) -> Played:
    found = load_checkpoint(folder.checkpoints, plan.digest())
    return play(plan, FakeGrid(SIX, clients), folder=folder, resume=found)


@pytest.mark.parametrize(("where", "name", "how", "call"), KILLS)
def test_wherever_it_is_killed_a_round_is_published_once_and_later_noise_belongs_to_it(
    play: Player, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, how: Callable[..., Any], call: int
) -> None:
    """With secret noise: of each round one result is ever committed, and the exact sums that the last state gives away
    (its secret) are the sums that were made: so no state of another try was gone on with."""
    plan = plan_of(noise="secret")
    seen = Published(monkeypatch)
    monkeypatch.setattr("server.federation.forget", lambda _: None)
    folder, clients = RunFolder(play.path / "cut-off"), Clients()
    folder.create(plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, how(getattr(where, name), call))
        with pytest.raises(StoppedOnPurposeError):
            play(plan, FakeGrid(SIX, clients), folder=folder)
    outcome = resumed(play, plan, folder, clients).outcome
    assert sorted(seen.by_round) == [1, 2, 3, 4, 5]
    assert all(len(set(results)) == 1 for results in seen.by_round.values())
    assert_schema(seen_by(clients))
    noise = banded_noise(plan, LAYOUT.size)
    last = (folder.checkpoints / "noise" / f"round-{ROUNDS:06d}").read_bytes()
    noise.restore(last[:-32].split(b"\n", 3)[3])
    assert noise.round == ROUNDS + 1
    one = ClippedSum(noise.grid, LAYOUT.size)
    for _ in range(2):
        one.add(np.full(LAYOUT.size, 0.01, np.float32))
    for number in (ROUNDS - 1, ROUNDS):
        mean = np.frombuffer(seen.by_round[number][0], np.float32).astype(np.float64)
        steps = np.rint(mean * 2.0 / noise.grid.step).astype(np.int64)
        error = noise._errors[number % 2]
        assert np.abs(steps + error - one.total).max() <= 2  # but for float32's rounding
    assert outcome.stopped is None


def interrupted(play: Player, plan: Plan, last: int, clients: Clients) -> RunFolder:
    folder = RunFolder(play.path / "stopped")
    folder.create(plan)
    with pytest.raises(StoppedOnPurposeError):
        play(plan, FakeGrid(SIX, clients), folder=folder, diary=StopAfter(last))
    return folder


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut off"),
        pytest.param(lambda path: path.write_bytes(flipped(path.read_bytes())), id="a bit flipped"),
        pytest.param(lambda path: shutil.copy(path.with_name("round-000002"), path), id="of another round"),
    ],
)
def test_without_the_state_that_belongs_to_the_last_round_a_run_does_not_go_on(
    play: Player, harm: Callable[[Path], Any]
) -> None:
    plan, clients = plan_of(), Clients()
    folder = interrupted(play, plan, 3, clients)
    harm(folder.checkpoints / "noise" / "round-000003")
    asked = list(clients.trained)
    with pytest.raises(RunError, match=r"round-000003: (can't be read|is damaged, or of another run or time)"):
        resumed(play, plan, folder, clients)
    assert {number for _, number in clients.trained[len(asked) :]} <= {4}
    with Ledger.open(folder.population, read_only=True) as ledger:
        assert sum(entry.kind == "commit" for entry in ledger.entries(SCOPE)) == 1 + 3  # nothing more was published


def flipped(content: bytes) -> bytes:
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


def test_the_state_of_another_run_of_the_same_plan_is_not_gone_on_with(play: Player) -> None:
    plan, clients = plan_of(noise="secret"), Clients()
    folder = interrupted(play, plan, 3, clients)
    other = Player(play.path / "other")
    strange = interrupted(other, plan, 3, Clients())
    name = "round-000003"
    shutil.copy(strange.checkpoints / "noise" / name, folder.checkpoints / "noise" / name)
    with pytest.raises(RunError, match="is damaged, or of another run or time"):
        resumed(play, plan, folder, clients)


def test_the_states_are_readable_by_their_owner_alone_and_only_the_newest_are_kept(play: Player) -> None:
    folder = interrupted(play, plan_of(), 5, Clients())
    assert states(folder) == ["round-000003", "round-000004", "round-000005"]
    assert (folder.checkpoints / "noise").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (folder.checkpoints / "noise").iterdir())


def test_what_a_killed_server_had_half_written_of_its_secret_does_not_stay(play: Player) -> None:
    plan, clients = plan_of(), Clients()
    folder = interrupted(play, plan, 3, clients)
    noise = folder.checkpoints / "noise"
    noise.chmod(0o755)  # as an unpacked copy may be
    half = noise / ".round-000004.4711.tmp"
    half.write_bytes(b"secret")
    found = load_checkpoint(folder.checkpoints, plan.digest())
    with pytest.raises(StoppedOnPurposeError):
        play(plan, FakeGrid(SIX, clients), folder=folder, resume=found, diary=StopAfter(4))
    assert not half.exists()
    assert noise.stat().st_mode & 0o777 == 0o700
    half.write_bytes(b"secret")
    resumed(play, plan, folder, clients)
    assert not list(noise.iterdir())


def test_a_checkpoint_that_is_damaged_costs_a_round_and_nothing_else(play: Player) -> None:
    plan, clients = plan_of(), Clients()
    whole: Parameters = play(plan, FakeGrid(SIX, Clients())).outcome.parameters
    folder = interrupted(play, plan, 3, clients)
    (folder.checkpoints / "round-000003" / "state.json").write_bytes(b"{}")
    assert same_bits(resumed(play, plan, folder, clients).outcome.parameters, whole)
    assert_schema(seen_by(clients))


def test_who_took_part_in_a_committed_round_is_known_even_if_the_newest_checkpoint_is_lost(play: Player) -> None:
    """Killed after round 3's commit; the checkpoint that says who was asked in it is damaged; and two more clients have
    come meanwhile, so that the draw would be another. Nobody is asked again too soon all the same."""
    plan, clients = plan_of(rounds=6), Clients()
    folder = RunFolder(play.path / "cut-off")
    folder.create(plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Population, "commit", after(Population.commit, 3))
        with pytest.raises(StoppedOnPurposeError):
            play(plan, FakeGrid(SIX, clients), folder=folder)
    took_part = {client for client, rounds in seen_by(clients).items() if 3 in rounds}
    (folder.checkpoints / "round-000002.001" / "state.json").write_bytes(b"{}")
    found = load_checkpoint(folder.checkpoints, plan.digest())
    assert found is not None
    assert not any(3 in tally.asked for tally in found.state.clients.values())
    outcome = play(plan, FakeGrid([*SIX, "site-6", "site-7"], clients), folder=folder, resume=found).outcome
    assert outcome.stopped is None
    assert_schema(seen_by(clients))
    assert {client for client, tally in outcome.state.clients.items() if 3 in tally.asked} == took_part


def test_the_books_survive_as_they_were(play: Player) -> None:
    state = RunState(clipping_norm=0.5, released="ab" * 32)
    state.client("site-0").ask(3)
    state.client("site-0").ask(3)
    assert RunState.from_json(state.to_json()) == state
    assert state.client("site-0").asked == [3]
