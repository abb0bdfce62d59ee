"""Rounds whose clipping norm adapts, at a trusted server or over sums of clients: it follows what was released."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from scipy.stats import chi2

from privacy.adaptive_clipping import absent, joint
from privacy.central_sum import ClippedSum, IndependentNoise, mean_of
from privacy.ledger import Ledger
from privacy.noise import ReproducibleNoise
from privacy.secure_encoding import encode
from server import federation as federation_module
from server.checkpoint import load_checkpoint
from server.population import SCOPE, Population
from server.rounds.playing import norm_of
from server.run_folder import RunFolder
from server.run_state import RunState
from server.summary import summarise
from shared_models.faults import Fault
from shared_models.parameters import unflat
from shared_models.plan import Plan
from shared_models.plan_adaptive import after_round, split_of, update_noise
from shared_models.plan_central import central_grid
from shared_models.plan_secure_sum import computed
from shared_models.protocol import (
    ARRAYS,
    CLIPPING_NORM,
    CONFIG,
    ENROL,
    EPSILON,
    JOINT,
    LEDGER,
    MASKED,
    METRICS,
    WEIGHT,
)
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
    error,
    head_record,
    make_plan,
    same_bits,
)
from tests.server.rounds.test_central import POISSON, Clients, head_at, stop

SIX = [f"site-{number}" for number in range(6)]
ALL = {"sampling": "all"}
FALSE_ALARM = 1e-9


def plan_of(cohort: Mapping[str, Any] = ALL, **changes: Mapping[str, Any]) -> Plan:
    raw: dict[str, Mapping[str, Any]] = {
        "model": {"name": "mlp", "options": {"hidden": []}},
        "data": {"partition": {"kind": "iid", "clients": 6}},
        "privacy": {
            "unit": "client",
            "trust": "central",
            "noise_multiplier": 0.5,
            "noise": "reproducible",
            "clipping_norm": 0.2,
            "adaptive": {},
            **changes.pop("privacy", {}),
        },
        "federation": {"rounds": 3, "cohort": cohort, **changes.pop("federation", {})},
        "evaluation": {"where": "none"},
    }
    return resolve(make_plan({**raw, **changes}))


def gives(vector: np.ndarray) -> Answer:
    """A reply with one vector, of whatever kind."""

    def answer(_: str, message: Message) -> list[Message]:
        metrics = MetricRecord({WEIGHT: 1, EPSILON: 1.0})
        content = RecordDict(
            {ARRAYS: ArrayRecord({JOINT: Array(vector)}), METRICS: metrics, LEDGER: head_record(head_at(1))}
        )
        return [Message(content, reply_to=message)]

    return answer


class Honest(Clients):
    """Clients whose update has a length of its own, clipped to the norm that they are told."""

    def __init__(self, plan: Plan, lengths: Mapping[str, float]) -> None:
        super().__init__()
        self.plan = plan
        self.lengths = lengths
        self.norms: list[float] = []

    def __call__(self, client: str, message: Message) -> list[Message]:
        if message.metadata.message_type != ENROL and client not in self.does:
            norm = message.content.config_records[CONFIG][CLIPPING_NORM]
            assert isinstance(norm, float)
            self.norms.append(norm)
            vector = joint(update(self.lengths[client]), norm, split_of(self.plan)).astype(np.float32)
            self.does = {**self.does, client: gives(vector)}
            found = super().__call__(client, message)
            del self.does[client]
            return found
        return super().__call__(client, message)


def update(length: float) -> np.ndarray:
    return np.full(LAYOUT.size, length / math.sqrt(LAYOUT.size), np.float32)


def reference(plan: Plan, vectors_of: Any) -> tuple[dict[str, np.ndarray], list[float]]:
    """Model and norms after all rounds, by the plan's reproducible noise, of what clients gave at each norm."""
    model, norm, norms = {name: value.copy() for name, value in START.items()}, plan.privacy.clipping_norm, []
    grid = central_grid(plan, LAYOUT.size)
    for number in range(1, plan.federation.rounds + 1):
        norms.append(norm)
        total = ClippedSum(grid, LAYOUT.size + 1)
        for vector in vectors_of(norm):
            total.add(vector.astype(np.float32))
        own = ReproducibleNoise(derive_key(plan.seed, "central-noise", number))
        mean = mean_of(IndependentNoise(grid, own).noisy(total.total), grid, 6.0)
        change, norm = after_round(plan, mean, norm, round_number=number)
        model = {name: np.asarray(model[name] + d, np.float32) for name, d in unflat(change, LAYOUT).items()}
    return model, [*norms, norm]


def test_model_and_norm_follow_from_what_each_round_releases(play: Player) -> None:
    plan = plan_of()
    lengths = dict(zip(SIX, (0.01, 0.1, 0.5, 1.0, 2.0, 4.0), strict=True))
    played = play(plan, FakeGrid(SIX, clients := Honest(plan, lengths)))
    model, norms = reference(plan, lambda norm: [joint(update(v), norm, split_of(plan)) for v in lengths.values()])
    assert same_bits(played.outcome.parameters, model)
    assert sorted(set(clients.norms)) == sorted(norms[:-1])
    lines = played.folder.read_metrics()
    assert [line["clipping_norm"] for line in lines] == norms[:-1]
    assert played.outcome.state.clipping_norm == norms[-1]
    assert norms[0] == 0.2


@pytest.mark.parametrize(
    ("does", "vector"),
    [
        pytest.param(lambda *_: [], None, id="says nothing"),
        pytest.param(lambda _, m: [error(m, Fault.CLIENT_FAILED)], None, id="fails"),
        pytest.param(gives(np.full(LAYOUT.size + 1, np.nan, np.float32)), None, id="NaN"),
        pytest.param(gives(np.zeros(LAYOUT.size + 1, np.float32)), None, id="zeros"),
        pytest.param(gives(np.full(LAYOUT.size + 1, 9.0, np.float32)), 9.0, id="longer than 1: clipped here"),
        pytest.param(gives(np.ones(LAYOUT.size, np.float32)), None, id="without a bit"),
        pytest.param(gives(np.ones(LAYOUT.size + 2, np.float32)), None, id="too long"),
        pytest.param(gives(np.ones(LAYOUT.size + 1, np.float64)), None, id="of another type"),
    ],
)
def test_whatever_one_client_gives_it_is_one_vector_no_longer_than_1_or_none(
    play: Player, does: Answer, vector: float | None
) -> None:
    """Rules 1 and 5: it counts as half a bit if it is none; the divisor stays, and the round goes on."""
    plan = plan_of(federation={"rounds": 1, "min_clients": 6})
    clients = Honest(plan, dict.fromkeys(SIX, 0.1))
    clients.does["site-3"] = does

    def given(norm: float) -> list[np.ndarray]:
        own = absent(LAYOUT.size) if vector is None else np.full(LAYOUT.size + 1, vector)
        return [own, *[joint(update(0.1), norm, split_of(plan))] * 5]

    played = play(plan, FakeGrid(SIX, clients))
    model, norms = reference(plan, given)
    assert same_bits(played.outcome.parameters, model)
    assert played.outcome.state.clipping_norm == norms[-1]
    assert played.outcome.state.faults == []


def test_one_client_moves_a_sum_by_the_norm_of_its_grid_at_most() -> None:
    """Rule 9, in whole numbers: the bit is in it."""
    plan = plan_of()
    grid = central_grid(plan, LAYOUT.size)
    for length in (0.0, 1e-9, 0.2, 0.2000001, 1e30):
        total = ClippedSum(grid, LAYOUT.size + 1)
        total.add(joint(update(length), 0.2, split_of(plan)).astype(np.float32))
        assert int(total.total @ total.total) <= grid.steps**2


def test_secret_noise_is_that_of_theorem_1_on_updates_and_of_the_plan_on_bits(
    play: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes part: what moves model and norm is noise. Chi squared, two-sided at the stated false-alarm rate."""
    monkeypatch.setattr(federation_module, "sample_cohort", lambda *_: [])
    plan = plan_of(POISSON, federation={"rounds": 60}, privacy={"noise": "secret"})
    seen: list[np.ndarray] = []
    original = Population.commit

    def commit(self: Population, run: str, number: int, model: str, mean: np.ndarray) -> np.ndarray:
        seen.append(mean)
        return original(self, run, number, model, mean)

    monkeypatch.setattr(Population, "commit", commit)
    played = play(plan, FakeGrid(SIX, Honest(plan, {})))
    lines, split = played.folder.read_metrics(), split_of(plan)
    updates = np.concatenate([mean[:-1] for mean in seen]).astype(np.float64) / split.update * 3
    bits = np.array([mean[-1] for mean in seen], np.float64) / (2 * split.bit) * 3
    assert plan.privacy.adaptive is not None
    for values, deviation in ((updates, update_noise(plan)), (bits, plan.privacy.adaptive.count_noise or 0.0)):
        low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], values.size)
        assert low < float((values**2).sum()) / deviation**2 < high
    norms = [line["clipping_norm"] for line in lines]
    expected = [-0.2 * share / 3 for share in bits[:-1]]
    assert np.log(np.array(norms[1:]) / np.array(norms[:-1])) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("length", "bound"), [(1e-6, "least_norm"), (1e6, "most_norm")])
def test_the_norm_stays_within_its_public_bounds(play: Player, length: float, bound: str) -> None:
    bounds = {"least_norm": 0.1, "most_norm": 0.4, "rate": 3.0}
    plan = plan_of(federation={"rounds": 4}, privacy={"adaptive": bounds, "noise_multiplier": 0.3})
    played = play(plan, FakeGrid(SIX, Honest(plan, dict.fromkeys(SIX, length))))
    assert [line["clipping_norm"] for line in played.folder.read_metrics()][1:] == [bounds[bound]] * 3


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedprox"])
def test_any_averaging_strategy_tells_clients_the_norm(play: Player, strategy: str) -> None:
    plan = plan_of(federation={"strategy": strategy}, training={"proximal_mu": 0.1})
    played = play(plan, FakeGrid(SIX, clients := Honest(plan, dict.fromkeys(SIX, 0.1))))
    assert (played.outcome.stopped, len(clients.norms)) == (None, 18)


# --- crashes ------------------------------------------------------------------------------------------------------


def cut_off(play: Player, plan: Plan, clients: Honest, name: str, killed: Any) -> RunFolder:
    folder = RunFolder(play.path / "cut-off")
    folder.create(plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Population, name, killed)
        with pytest.raises(StoppedOnPurposeError):
            play(plan, FakeGrid(SIX, clients), folder=folder)
    return folder


def test_a_replay_of_a_committed_round_gives_the_same_model_and_the_same_next_norm(play: Player) -> None:
    """Secret noise: what was committed is all that counts."""
    plan = plan_of(federation={"rounds": 2}, privacy={"noise": "secret"})
    clients = Honest(plan, dict.fromkeys(SIX, 0.1))
    released: list[np.ndarray] = []
    original = Population.commit

    def commit(self: Population, run: str, number: int, model: str, mean: np.ndarray) -> np.ndarray:
        released.append(original(self, run, number, model, mean))
        if number == 2:
            raise StoppedOnPurposeError
        return released[-1]

    folder = cut_off(play, plan, clients, "commit", commit)
    asked = list(clients.trained)
    found = load_checkpoint(folder.checkpoints, plan.digest())
    assert found is not None
    again = play(plan, FakeGrid(SIX, clients), folder=folder, resume=found)
    assert clients.trained == asked
    first, second = released
    _, norm = after_round(plan, first, 0.2, round_number=1)
    change, following = after_round(plan, second, norm, round_number=2)
    assert [line["clipping_norm"] for line in again.folder.read_metrics()] == [0.2, norm]
    assert again.outcome.state.clipping_norm == following
    for name, delta in unflat(change, LAYOUT).items():
        assert np.array_equal(again.outcome.parameters[name], np.asarray(found.parameters[name] + delta, np.float32))


def test_a_round_cut_off_before_its_release_is_asked_again_in_the_same_words(play: Player) -> None:
    plan = plan_of(federation={"rounds": 1}, privacy={"noise": "secret"})
    clients = Honest(plan, dict.fromkeys(SIX, 0.1))
    folder = cut_off(play, plan, clients, "commit", stop)
    found = load_checkpoint(folder.checkpoints, plan.digest())
    play(plan, FakeGrid(SIX, clients), folder=folder, resume=found)
    assert clients.norms == [0.2] * 12
    with Ledger.open(folder.population, read_only=True) as ledger:
        assert [entry.kind for entry in ledger.entries(SCOPE)] == ["open", "reserve", "commit"]


def test_a_resumed_run_ends_with_model_and_norm_of_one_that_was_never_cut_off(play: Player) -> None:
    plan = plan_of(federation={"rounds": 4, "strategy": "fedavgm"})
    whole = play(plan, FakeGrid(SIX, Honest(plan, dict.fromkeys(SIX, 0.3)))).outcome
    folder = RunFolder(play.path / "stopped")
    folder.create(plan)
    clients = Honest(plan, dict.fromkeys(SIX, 0.3))
    with pytest.raises(StoppedOnPurposeError):
        play(plan, FakeGrid(SIX, clients), folder=folder, diary=StopAfter(2))
    found = load_checkpoint(folder.checkpoints, plan.digest())
    outcome = play(plan, FakeGrid(SIX, clients), folder=folder, resume=found).outcome
    assert same_bits(outcome.parameters, whole.parameters)
    assert outcome.state.clipping_norm == whole.state.clipping_norm


# --- what is told --------------------------------------------------------------------------------------------------


def test_the_summary_says_what_the_bits_cost_and_where_the_norm_went(play: Player) -> None:
    plan = plan_of()
    state = play(plan, FakeGrid(SIX, Honest(plan, dict.fromkeys(SIX, 0.1)))).outcome.state
    summary = summarise(plan, state, stopped=None, reason=None, clients=SIX, startup_seconds=0.0)
    found = summary["privacy"]["adaptive"]
    assert found["update_noise"] == update_noise(plan) > 0.5
    assert found["last_norm"] == state.clipping_norm
    assert json.dumps(found)
    fixed = plan_of(privacy={"adaptive": None})
    assert (
        summarise(fixed, RunState(), stopped=None, reason=None, clients=[], startup_seconds=0.0)["privacy"]["adaptive"]
        is None
    )
    assert (norm_of(fixed, RunState(clipping_norm=3.0)), norm_of(plan, RunState())) == (None, 0.2)


# --- sums of clients -----------------------------------------------------------------------------------------------


def test_sums_of_clients_move_model_and_norm_by_the_mean_over_survivors(play: Player) -> None:
    """Without masks; with them, the same sum is opened."""
    plan = plan_of(
        privacy={"trust": "distributed", "noise_multiplier": 2.0},
        secure_sum={"honest": 0.5, "corrupt": 0.0, "masks": False},
        federation={"rounds": 2},
    )
    of_test = plan.secure.model_copy(update=computed(plan, dimension=LAYOUT.size + 1))  # as the test's model is small
    plan = Plan.model_validate(plan.model_copy(update={"secure_sum": of_test}).model_dump())
    silent = "site-5"
    norms: list[float] = []
    sent: list[np.ndarray] = []

    def answer(client: str, message: Message) -> list[Message]:
        norm = message.content.config_records[CONFIG][CLIPPING_NORM]
        assert isinstance(norm, float)
        norms.append(norm)
        if client == silent:
            return []
        number = int(message.metadata.group_id)
        vector = joint(update(0.1), norm, split_of(plan)).astype(np.float32)
        noise = ReproducibleNoise(derive_key(7, client, number))
        bits = plan.secure.bits
        assert bits is not None
        word = encode(vector, plan.sum_grid(), bits=bits, noise=noise)  # type: ignore[arg-type]
        sent.append(word)
        content = RecordDict(
            {
                ARRAYS: ArrayRecord({MASKED: Array(word)}),
                METRICS: MetricRecord({WEIGHT: 1, EPSILON: 1.0}),
                LEDGER: head_record(head_at(number)),
            }
        )
        return [Message(content, reply_to=message)]

    played = play(plan, FakeGrid(SIX, answer))
    assert played.outcome.stopped is None
    lines = played.folder.read_metrics()
    assert sorted(set(norms), key=norms.index) == [line["clipping_norm"] for line in lines]
    first = sum((word.view(np.int32).astype(np.int64) for word in sent[:5]), np.zeros(LAYOUT.size + 1, np.int64))
    mean = (first * (plan.sum_grid().step / 5)).astype(np.float32)
    _, following = after_round(plan, mean, 0.2, round_number=1)
    assert lines[1]["clipping_norm"] == pytest.approx(following, rel=1e-6)
    assert lines[0]["clipping_norm"] == 0.2
