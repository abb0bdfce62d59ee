"""Clients at their own pace: the schedule keeps its promises, and the price is of what it lets a client give."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accountant import epsilon
from privacy.mechanisms import ClientLevel, DpSgd
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_asynchronous import StarvedError, participations_of, schedule, weight_of
from shared_models.plan_data import numbered
from shared_models.plan_file import plan_from
from shared_models.resolve import resolve
from shared_models.seeds import derive_seed

TABLE: dict[str, Any] = {"buffer": 4, "concurrency": 6}


def plan(asynchronous: dict[str, Any] | None = None, *, clients: int = 12, rounds: int = 15, **changes: Any) -> Plan:
    raw: dict[str, Any] = {
        "data": {"partition": {"kind": "iid", "clients": clients}},
        "model": {"name": "mlp", "options": {"hidden": []}},
        "privacy": {"trust": "none"},
        **changes,
    }
    federation = {"rounds": rounds, "asynchronous": {**TABLE, **(asynchronous or {})}}
    raw["federation"] = {**federation, **changes.get("federation", {})}
    return plan_from(raw, where="test")


def test_participations_are_of_the_clients_that_take_part() -> None:
    """Ids keep their length when somebody is left out, and the schedule follows from them."""
    data = {"partition": {"kind": "iid", "clients": 12}, "leave_out": ["03"]}
    found = resolve(plan(data=data))
    there = [client for client in numbered(12) if client != "03"]
    most = max(Counter(arrival.client for step in schedule(found, there) for arrival in step).values())
    assert participations_of(found) == most


# --- the schedule -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_schedule_keeps_its_promises(data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, 15))
    buffer, concurrency = (data.draw(st.integers(1, clients)) for _ in range(2))
    rounds, stale = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 5))
    most = data.draw(st.none() | st.integers(1, rounds))
    table = {
        "buffer": buffer,
        "concurrency": concurrency,
        "most_staleness": stale,
        "participations": most,
        "spread": data.draw(st.sampled_from([0.0, 0.5, 2.0])),
        "jitter": data.draw(st.sampled_from([0.0, 0.1])),
    }
    found = plan(
        {k: v for k, v in table.items() if v is not None},
        clients=clients,
        rounds=rounds,
        seed=data.draw(st.integers(0, 1000)),
    )
    try:
        steps = schedule(found, numbered(clients))
    except StarvedError:
        assert most is not None or buffer > concurrency or stale == 0
        return
    assert len(steps) == rounds
    given_by, before, time = Counter[str](), defaultdict[str, int](int), 0.0
    for number, step in enumerate(steps, start=1):
        assert len(step) == buffer
        assert len({arrival.client for arrival in step}) == buffer  # at most one update of a client
        for arrival in step:
            assert 0 <= number - 1 - arrival.version <= stale
            assert arrival.version >= before[arrival.client]  # it began after the step with its last update
            assert arrival.time >= time
            time = arrival.time
            before[arrival.client] = number
            given_by[arrival.client] += 1
    assert max(given_by.values()) <= participations_of(found)


def test_it_is_what_an_implementation_without_a_heap_makes_of_it() -> None:
    """As the docstring tells it: at each moment look at everybody."""
    found = plan({"most_staleness": 3, "spread": 1.0, "jitter": 0.5}, rounds=25, seed=11)
    clients = numbered(12)
    draw = np.random.default_rng(derive_seed(11, "asynchronous"))

    def normal(*labels: Any) -> float:
        return float(np.random.default_rng(derive_seed(11, *labels)).standard_normal())

    busy: dict[str, tuple[float, int]] = {}
    begun, buffer, steps, now, most_busy = Counter[str](), [], [], 0.0, 0
    recalled = 0
    while len(steps) < 25:
        free = [c for c in clients if c not in busy and c not in [name for name, _ in buffer]]
        room = min(6 - len(busy), len(free))
        for place in sorted(draw.choice(len(free), size=room, replace=False)) if room > 0 else ():
            client = free[place]
            begun[client] += 1
            took = np.exp(1.0 * normal("pace", client)) * np.exp(0.5 * normal("work", client, begun[client]))
            busy[client] = (now + took, len(steps))
        most_busy = max(most_busy, len(busy))
        client = min(busy, key=lambda c: busy[c][0])
        now, version = busy.pop(client)
        buffer.append((client, version))
        if len(buffer) == 4:
            steps.append(buffer)
            buffer = []
            for late in [c for c, (_, v) in busy.items() if len(steps) - v > 3]:
                del busy[late]
                recalled += 1
    assert [[(a.client, a.version) for a in step] for step in schedule(found, clients)] == steps
    assert most_busy == 6
    assert recalled > 0  # or nothing was shown of it


def test_clients_of_one_speed_in_one_cohort_are_a_synchronous_round() -> None:
    found = plan({"buffer": 12, "concurrency": 12, "spread": 0.0, "jitter": 0.0})
    for number, step in enumerate(schedule(found, numbered(12)), start=1):
        assert {arrival.client for arrival in step} == set(numbered(12))
        assert {arrival.version for arrival in step} == {number - 1}
        assert {arrival.time for arrival in step} == {float(number)}


def test_weights_are_the_papers_and_at_most_one() -> None:
    found = plan({"exponent": 0.5})
    assert [weight_of(found, age) for age in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert weight_of(plan({"exponent": 0.0}), 7) == 1.0


def test_too_few_participations_are_found_out_before_anybody_is_asked() -> None:
    with pytest.raises(UsageError, match=r"after 6 of 15 rounds too few of the 12 clients .*participations"):
        resolve(plan({"participations": 2}))


# --- what it costs ------------------------------------------------------------------------------------------------

LOCAL = {"training": {"steps": 3, "sample_rate": 0.2}, "privacy": {"trust": "local", "epsilon": 4.0}}
CENTRAL = {"privacy": {"trust": "central", "unit": "client", "epsilon": 4.0, "delta": 1e-3}}


def most_given(found: Plan) -> int:
    return max(Counter(a.client for step in schedule(found, numbered(12)) for a in step).values())


def test_a_client_is_charged_for_each_update_and_the_noise_is_made_for_the_most_of_one() -> None:
    found = resolve(plan(**LOCAL))
    most, release = most_given(found), found.train_release()
    assert participations_of(found) == most < 15
    assert isinstance(release, DpSgd)
    assert found.planned_trainings() == Counter({release: most})
    assert len(found.terms().rounds) == most
    less = release.__class__(**{**vars(release), "noise_multiplier": release.noise_multiplier - 2e-3})
    assert epsilon({release: most}, 1e-5).epsilon <= 4.0 < epsilon({less: most}, 1e-5).epsilon
    assert resolve(found) == found
    every_round = resolve(plan({"participations": 15}, **LOCAL))
    assert every_round.privacy.noise_multiplier > found.privacy.noise_multiplier  # type: ignore[operator]


def test_at_a_trusted_server_the_run_is_one_composition_of_a_clients_updates() -> None:
    """By dp_accounting alone: as many Gaussian releases as a client gives updates, without amplification."""
    found = resolve(plan(**CENTRAL))
    most, release = most_given(found), found.train_release()
    noise = found.privacy.noise_multiplier
    assert noise is not None
    assert release == ClientLevel(noise_multiplier=noise, cohort="full", rounds=most)
    assert found.planned_trainings() == Counter({release: 1})
    assert found.is_paid_at_once
    assert not found.has_secret_cohorts
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(noise), most))
    assert accountant.get_epsilon(1e-3) == pytest.approx(4.0, abs=5e-3)


# --- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"privacy": {"trust": "distributed", "unit": "client", "epsilon": 3.0}},
            r"hides; allowed: none, local, cent",
        ),
        ({"federation": {"cohort": {"sampling": "fixed", "size": 3}}}, r"cohort\.sampling = 'fixed': .*allowed: all"),
        ({"federation": {"strategy": "krum"}}, r"strategy = 'krum' .*allowed: fedavg"),
        ({"federation": {"strategy": "scaffold"}}, r"strategy = 'scaffold' .*allowed: fedavg"),
        ({"federation": {"weighting": "examples"}}, r"weighting = 'examples'.*allowed: uniform"),
        ({"federation": {"min_clients": 5}}, r"min_clients = 5 is more than federation\.asynchronous\.buffer = 4"),
        ({"evaluation": {"where": "clients"}}, r"where = 'clients' .*allowed: server, none"),
        ({"asynchronous": {"buffer": 13}}, r"buffer = 13 is more than data\.partition\.clients = 12"),
        ({"asynchronous": {"concurrency": 13}}, r"concurrency = 13 is more than data\.partition\.clients = 12"),
        ({"asynchronous": {"exponent": -0.5}}, r"federation\.asynchronous\.exponent = -0\.5"),
        ({"privacy": {**CENTRAL["privacy"], "adaptive": {}}}, r"privacy\.adaptive follows rounds of whole cohorts"),
    ],
)
def test_what_it_can_not_be_combined_with_is_refused(changes: dict[str, Any], message: str) -> None:
    given_table = changes.pop("asynchronous", None)
    with pytest.raises(UsageError, match=message):
        plan(given_table, **changes)
