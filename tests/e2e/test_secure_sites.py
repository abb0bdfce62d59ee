"""Secure sums over the encrypted link, between real processes that are killed (signal 9) in every phase.

One federation of five sites plays three plans. In the first a site is killed in each round, each time in another phase,
and is started again at once. In the second the server is killed while it waits for masked vectors, and is resumed; and
a site is killed that stays away for the rest of the round. In the third, one of joint steps, nobody is killed.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from client.private_trainer import gradient_sum
from client.trainer import train_plain
from client.workplace import workplace
from privacy.example_sum_grid import ExampleSumGrid
from privacy.ledger.check import verify
from privacy.lifetime import Balance
from privacy.secure_encoding import decode, encode, encode_gradients
from privacy.statement import verify_statement
from security.errors import RunError
from server.checkpoint import load_checkpoint
from server.rounds.summed import update_of
from server.run_folder import RunFolder, read_parameters
from shared_models.parameters import Parameters, get_parameters, in_order, unflat
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK
from shared_models.registry import build_for
from shared_models.resolve import resolve
from simulations.deployment.pilot import FEDERATION, Pilot
from simulations.deployment.site_data import write_site_data
from simulations.scenarios import find_plan
from tests.e2e import dying_client
from tests.simulations.ledger_reading import bodies, task_id

pytestmark = pytest.mark.timeout(600)  # on a busy machine each of the sixteen processes takes long to start

SITES = ("0", "1", "2", "3", "4")
SECONDS = 120.0  # patience; never waited for when all is well
SERVER = "server"
MASKED = "train"

# Of the first plan: round, site and when it is killed. In the last round nobody is.
KILLED = (
    (1, "0", SECURE_KEYS),
    (1, "1", dying_client.COMMITTED),
    (2, "1", SECURE_SHARES),
    (3, "2", MASKED),
    (3, "3", dying_client.PAID),
    (4, "4", SECURE_SURVIVORS),
    (5, "0", SECURE_UNMASK),
)
ROUNDS = 6
PHASES = {
    SECURE_SHARES: "shares",
    MASKED: "masked",
    dying_client.PAID: "masked",
    dying_client.COMMITTED: "survivors",  # its vector is sent when it is back, but it knows nothing more of the attempt
    SECURE_SURVIVORS: "survivors",
    SECURE_UNMASK: "unmask",
}
# Who had shared the secrets of its masks is replaced by the others; whose vector was there is in the sum. Who had only
# been asked for keys offers them when it is back.
MISSING = {2: ["1"], 3: ["2", "3"]}

AWAY = "4"  # in the second plan, from the keys of round 2 on


def secure_plan(name: str, rounds: int, *, epsilon: float, phase_timeout: float, spare_rounds: int = 0) -> Plan:
    overrides = (
        *(f"name={name}", "data.partition.clients=5", "training.steps=2", f"privacy.epsilon={epsilon}"),
        *(f"federation.rounds={rounds}", f"federation.round_timeout={SECONDS}", "secure_sum.corrupt=0"),
        *(f"secure_sum.phase_timeout={phase_timeout}", f"secure_sum.spare_rounds={spare_rounds}"),
    )
    return resolve(find_plan("digits-secure", overrides))


def joint_plan() -> Plan:
    training = ("momentum=0", "steps=1", "sample_rate=1.0", "learning_rate=0.5", "expected_batch_size=280")
    overrides = (
        *("name=joint", "data.partition.clients=5", "privacy.unit=example", "privacy.epsilon=4"),
        *("federation.rounds=2", f"federation.round_timeout={SECONDS}", f"secure_sum.phase_timeout={SECONDS}"),
        *("secure_sum.corrupt=0", "secure_sum.spare_rounds=0"),
        *(f"training.{key}" for key in training),
    )
    return resolve(find_plan("digits-secure", overrides))


@dataclass
class World:
    """The federation, and what came of its runs.

    Attributes:
        pilot: homes and processes.
        plans, runs: by name.
        killed: each process that was killed, in order.
        ended: exit code of each process that ended by itself.
    """

    pilot: Pilot
    plans: Mapping[str, Plan]
    killed: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)

    def run(self, name: str) -> RunFolder:
        (found,) = (path for path in self.pilot.server.runs.iterdir() if path.name.startswith(name))
        return RunFolder(found)

    def charged(self, site: str, plan: str) -> Counter[tuple[int, str]]:
        """How often each attempt of a plan was reserved in a site's ledger, by round and digest."""
        entries = bodies(self.pilot.site(site).ledger, "reserve")
        digest = self.plans[plan].digest()
        assert all(body["charge"] is not None for body in entries)
        tasks = [body["task"] for body in entries if body["charge"]["plan"] == digest]
        return Counter((task["round"], task["request"]) for task in tasks)

    # --- on its way

    def start(self, name: str, deaths: Sequence[Sequence[Any]]) -> None:
        script = [sys.executable, "-P", dying_client.__file__, json.dumps(deaths)]
        self.pilot.start_site(name, "--until-done", under=script)

    def dies(self, name: str) -> None:
        assert self._end_of(name) == -signal.SIGKILL, self.pilot.output(name)
        self.killed.append(name)

    def until_round(self, run: str, number: int) -> None:
        """Wait until a round is on the server's disk."""
        deadline = time.monotonic() + SECONDS
        while len(self.run(run).read_metrics()) < number:
            assert time.monotonic() < deadline, self.pilot.output(SERVER)
            with suppress(RunError):
                self.pilot.wait(SERVER, 0.1)
                raise AssertionError(self.pilot.output(SERVER))

    def finish(self) -> None:
        self.ended = {name: self._end_of(name) for name in (SERVER, *SITES)}

    def _end_of(self, name: str) -> int:
        try:
            return self.pilot.wait(name, SECONDS)
        except RunError as error:
            raise AssertionError(f"{error}\n{self.pilot.output(SERVER)}") from None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("secure")
    plans = {
        "sites-die": secure_plan("sites-die", ROUNDS, epsilon=40, phase_timeout=SECONDS),
        "server-dies": secure_plan("server-dies", 2, epsilon=20, phase_timeout=8, spare_rounds=1),
        "joint": joint_plan(),
    }
    pilot = Pilot.provision(folder / "pilot", SITES)
    (files, test), paths = _data(pilot, plans["sites-die"]), []
    pilot.configure_server({"beat_seconds": 2.0}, test)
    budget = {"trust": "distributed", "epsilon": 60.0, "delta": 2e-3, "filter": "sum"}
    changes = {
        "budget": [{"unit": "client", **budget}, {"unit": "record", **budget}],
        "allow": {"federations": [FEDERATION], "least_honest": 3, "least_cohort": 4},
        "approval": {"plans": "policy"},
        "schedule": {"on_battery": True, "metered": True},
        "release": {"statement": "full"},
    }
    for name in SITES:
        pilot.configure_site(name, changes, files[name])
    for name, plan in plans.items():
        paths.append(pilot.folder / f"{name}.toml")
        paths[-1].write_text(write_plan(plan), encoding="utf-8")
    found = World(pilot, plans)
    try:
        pilot.start_server("start", str(pilot.server.path), *map(str, paths))
        _play(found)
        yield found
    finally:
        pilot.close()


def _data(pilot: Pilot, plan: Plan) -> Any:
    own = pilot.folder / "test"
    own.mkdir()
    return write_site_data(plan, {name: pilot.site(name).path for name in SITES}, own)


def _play(world: World) -> None:
    deaths: dict[str, list[Sequence[Any]]] = {name: [] for name in SITES}
    for number, name, when in KILLED:
        deaths[name].append(["sites-die", number, when, 0])
    deaths["1"].append(["server-dies", 1, MASKED, world.pilot.processes[SERVER].pid])
    deaths[AWAY].append(["server-dies", 2, SECURE_KEYS, 0])
    for name in SITES:
        world.start(name, deaths[name])
    for _, name, _ in KILLED:
        world.dies(name)
        del deaths[name][0]
        world.start(name, deaths[name])
    world.dies(SERVER)
    world.pilot.start_server("resume", str(world.pilot.server.path))
    world.dies(AWAY)
    world.until_round("server-dies", 2)
    world.start(AWAY, [])
    world.finish()


def in_the_open(plan: Plan, survivors: Sequence[Sequence[str]]) -> Parameters:
    """The model after rounds with these clients, by sums of numbers that nobody masked."""
    place = workplace(write_plan(plan))
    model = get_parameters(build_for(plan))
    for number, clients in enumerate(survivors, start=1):
        total = np.zeros(plan.secure.dimension, np.uint32)
        for name in clients:
            change, _ = train_plain(place.model, model, place.records(name), plan, round_number=number, client=name)
            flat = np.concatenate([value.ravel() for _, value in in_order(change, place.layout)])
            noise = dying_client.noise_of(plan, "noise", name, number)
            total += encode(flat, plan.sum_grid(), bits=32, noise=noise)
        mean = decode(total, plan.sum_grid(), survivors=len(clients), size=place.layout.size)
        model = {
            name: np.asarray(model[name] + delta, np.float32) for name, delta in unflat(mean, place.layout).items()
        }
    return model


def joint_steps(plan: Plan) -> Parameters:
    """The model after joint steps of everybody, by sums of numbers that nobody masked."""
    place, grid = workplace(write_plan(plan)), plan.sum_grid()
    assert isinstance(grid, ExampleSumGrid)
    model = get_parameters(build_for(plan))
    for number in range(1, plan.federation.rounds + 1):
        total = np.zeros(plan.secure.dimension, np.uint32)
        for name in SITES:
            noise = dying_client.noise_of(plan, "noise", name, number)
            gradients = gradient_sum(place.model, model, place.records(name), plan, noise=noise)
            total += encode_gradients(gradients, grid, bits=32, noise=noise)
        update, _ = update_of(total, plan, place.layout, survivors=len(SITES), round_number=number)
        model = {name: np.asarray(model[name] + delta, np.float32) for name, delta in update.items()}
    return model


def same_bits(one: Parameters, other: Parameters) -> bool:
    return {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in other.items()
    }


def test_all_of_it_was_played_and_everybody_ended_well(world: World) -> None:
    assert world.killed == [*(name for _, name, _ in KILLED), SERVER, AWAY]
    assert set(world.ended.items()) == {(name, 0) for name in (SERVER, *SITES)}
    for name, plan in world.plans.items():
        summary = world.run(name).read_summary()
        assert (summary["stopped"], summary["rounds"]) == (None, plan.federation.rounds)


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_sum_is_opened_although_a_site_is_killed_and_it_is_back_in_the_next(world: World, number: int) -> None:
    line = world.run("sites-die").read_metrics()[number - 1]
    dropped: dict[str, list[str]] = {name: [] for name in ("keys", "shares", "masked", "survivors", "unmask")}
    for where, name, when in KILLED:
        if where == number and when != SECURE_KEYS:
            dropped[PHASES[when]].append(name)
    missing = MISSING.get(number, [])
    assert line["secure_sum"] == {"attempts": 1, "charged": 1, "survivors": 5 - len(missing), "dropped": dropped}
    assert line["faults"] == [{"client": name, "reason": "secure-sum-lost"} for name in missing]


def test_the_model_is_that_of_the_plain_sums_of_the_survivors_bit_for_bit(world: World) -> None:
    run = world.run("sites-die")
    survivors = [[name for name in SITES if name not in MISSING.get(number, [])] for number in range(1, ROUNDS + 1)]
    assert same_bits(read_parameters(run.model), in_the_open(world.plans["sites-die"], survivors))


@pytest.mark.parametrize("site", SITES)
def test_no_ledger_is_charged_twice_for_an_attempt(world: World, site: str) -> None:
    charged = world.charged(site, "sites-die")
    unasked = {"1": [2], "2": [3]}.get(site, [])  # it was gone before it had read the request
    expected = [number for number in range(1, ROUNDS + 1) if number not in unasked]
    assert sorted(number for number, _ in charged) == expected  # one attempt a round
    assert set(charged.values()) == {1}
    assert set(world.charged(site, "server-dies").values()) == {1}
    assert verify(world.pilot.site(site).ledger) == []


def test_what_a_site_paid_for_before_it_died_training_stays_paid_and_is_never_sent(world: World) -> None:
    ledger = world.pilot.site("3").ledger
    (attempt,) = (request for number, request in world.charged("3", "sites-die") if number == 3)
    tasks = {task_id(body["task"]): body["task"]["request"] for body in bodies(ledger, "reserve")}
    sent = {tasks[body["task"]] for body in bodies(ledger, "commit")}
    assert set(tasks.values()) - sent == {attempt}


def test_the_claim_of_the_deployed_run_says_what_it_rests_on(world: World) -> None:
    summary = world.run("sites-die").read_summary()
    privacy = summary["privacy"]
    assert (summary["setting"], privacy["withdrawn"]) == ("deployment", [])
    assert (privacy["unit"], privacy["trust"]) == ("client, all that it holds", "distributed")
    assert (
        "against everybody, the server included, while in every sum at least 3 clients are honest and no more than 0 "
        "of a cohort of 5 collude with it" in privacy["claim"]
    )
    codes = {remark["code"] for remark in privacy["assumptions"]}
    assert {"secure-sum", "cryptography"} <= codes
    assert privacy["epsilon_max"] <= privacy["epsilon_planned"] == 40
    assert privacy["secure_sum"]["attempts"] == ROUNDS
    # Both books: the server counts those whom it asked for a vector.
    expected = {name: ROUNDS - (name == "1") for name in SITES}
    assert {row["id"]: row["charged_rounds"] for row in privacy["clients"]} == expected


@pytest.mark.parametrize("plan", ["sites-die", "server-dies"])
def test_every_sites_statement_holds(world: World, plan: str) -> None:
    run = world.run(plan)
    assert {row["statement"] for row in run.read_summary()["privacy"]["clients"]} == {"verified"}
    statements = run.read_statements()
    assert set(statements) == set(SITES)
    plans = list(world.plans)[: list(world.plans).index(plan) + 1]
    for site, text in statements.items():
        (found,) = (item for item in verify_statement(text).balances if item.balance.unit == "client")
        assert found.balance == Balance(unit="client", trust="distributed")
        assert found.totals == {"rounded-gaussian-sum": sum(len(world.charged(site, name)) for name in plans)}


def test_a_server_that_was_killed_in_a_sum_makes_a_new_attempt_and_the_begun_one_is_charged_and_listed(
    world: World,
) -> None:
    run = world.run("server-dies")
    first, _ = run.read_metrics()
    assert (first["updates"], first["faults"]) == (5, [])
    privacy = run.read_summary()["privacy"]
    assert (privacy["secure_sum"]["attempts"], privacy["secure_sum"]["repeated"]) == (3, 1)
    checkpoint = load_checkpoint(run.checkpoints, world.plans["server-dies"].digest())
    assert checkpoint is not None
    assert checkpoint.state.begun == [1, 1, 2]
    assert checkpoint.state.attempt > 3  # whatever number a server that died has told of, no other has
    assert {row["id"]: row["charged_rounds"] for row in privacy["clients"]} == {
        name: 2 if name == AWAY else 3 for name in SITES
    }
    attempts = {name: [number for number, _ in world.charged(name, "server-dies")] for name in SITES}
    # Site 1 went on with the task that it had; others may have had theirs, too. Nobody saw an attempt twice.
    assert attempts["1"].count(1) == 2
    assert all(found.count(1) in (1, 2) and found.count(2) == (name != AWAY) for name, found in attempts.items())
    digests = {request for name in SITES for number, request in world.charged(name, "server-dies") if number == 1}
    assert len(digests) == 2
    assert (privacy["claim"] is not None, privacy["withdrawn"]) == (True, [])


def test_a_site_that_stays_away_is_waited_for_no_longer_than_the_plan_says(world: World) -> None:
    plan, (_, second) = world.plans["server-dies"], world.run("server-dies").read_metrics()
    assert second["faults"] == [{"client": AWAY, "reason": "timed-out"}]
    assert (second["secure_sum"]["survivors"], second["secure_sum"]["dropped"]["keys"]) == (4, [AWAY])
    assert second["seconds"] >= plan.secure.phase_timeout
    without = [name for name in SITES if name != AWAY]
    assert same_bits(read_parameters(world.run("server-dies").model), in_the_open(plan, [SITES, without]))


def test_joint_steps_of_real_sites_are_those_of_the_plain_sums_and_claimed_for_records(world: World) -> None:
    plan, run = world.plans["joint"], world.run("joint")
    assert same_bits(read_parameters(run.model), joint_steps(plan))
    privacy = run.read_summary()["privacy"]
    assert privacy["withdrawn"] == []
    assert privacy["claim"].startswith(
        "each record is protected against everybody, the server included, while in every "
    )
    assert privacy["accountant"].startswith("PLD")
    assert {row["statement"] for row in privacy["clients"]} == {"verified"}
    for site, text in run.read_statements().items():
        totals = {item.balance.unit: item.totals for item in verify_statement(text).balances}
        assert totals["record"] == {"rounded-gaussian-sum": 2}
        assert Counter(number for number, _ in world.charged(site, "joint")) == {1: 1, 2: 1}
