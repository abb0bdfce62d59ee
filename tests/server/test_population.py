"""The population's books: every round is paid for before anybody is asked, and released once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.ledger import BudgetExhausted, Ledger
from privacy.ledger.check import audit, verify
from security.errors import RunError
from server.population import SCOPE, Population
from shared_models.plan import Plan
from shared_models.resolve import resolve
from tests.server.conftest import make_plan

MODEL = "ab" * 32
MEAN = np.array([0.5, -1.25, 3e-9], np.float32)


def plan_of(**federation: Any) -> Plan:
    return resolve(
        make_plan(
            {
                "model": {"name": "mlp", "options": {"hidden": []}},
                "data": {"partition": {"kind": "iid", "clients": 8}},
                "privacy": {"unit": "client", "trust": "central", "epsilon": 4.0},
                "federation": {"rounds": 3, "cohort": {"sampling": "poisson", "rate": 0.5}, **federation},
            }
        )
    )


PLAN = plan_of()


@pytest.fixture
def books(tmp_path: Path) -> Callable[..., Population]:
    def opened(plan: Plan = PLAN, *, begun: bool = False) -> Population:
        path = tmp_path / "population.sqlite"
        return Population.at(path, plan, federation="fed", begun=begun, durable=False)

    return opened


def test_all_planned_rounds_are_covered_and_no_more(books: Callable[..., Population], tmp_path: Path) -> None:
    found = books()
    for number in (1, 2, 3):
        assert found.reserve("run", number, MODEL) is None
        assert np.array_equal(found.commit("run", number, MODEL, MEAN), MEAN)
    with pytest.raises(BudgetExhausted):
        found.reserve("run", 4, MODEL)
    found.close()
    result = audit(tmp_path / "population.sqlite")
    assert result.problems == ()
    (balance,) = result.balances
    assert (balance.scope, balance.balance, balance.spent is not None) == (SCOPE, PLAN.balance, True)
    assert balance.spent is not None
    assert balance.spent.epsilon <= 4.0


CORRELATED = resolve(
    make_plan(
        {
            "model": {"name": "mlp", "options": {"hidden": []}},
            "data": {"partition": {"kind": "iid", "clients": 8}},
            "privacy": {"unit": "client", "trust": "central", "epsilon": 4.0, "correlated": {"band": 2}},
            "federation": {"rounds": 3, "cohort": {"sampling": "fixed", "size": 3}},
        }
    )
)


def test_a_run_with_correlated_noise_is_charged_once_whole_and_before_its_first_round(
    books: Callable[..., Population], tmp_path: Path
) -> None:
    found = books(CORRELATED)
    for number in (1, 2, 3):
        assert found.reserve("run", number, MODEL) is None
        assert found.reserve("run", number, MODEL) is None  # cut off, and asked for again
        assert np.array_equal(found.commit("run", number, MODEL, MEAN), MEAN)
        replayed = found.reserve("run", number, MODEL)
        assert replayed is not None
        assert np.array_equal(replayed, MEAN)
    with pytest.raises(BudgetExhausted):
        found.reserve("another", 1, MODEL)
    found.close()
    with Ledger.open(tmp_path / "population.sqlite", read_only=True) as ledger:
        charges = [entry.body["charge"] for entry in ledger.entries(SCOPE) if entry.kind == "reserve"]
    release = CORRELATED.train_release()
    assert release is not None
    assert [one and one["releases"] for one in charges] == [[[release.to_json(), 1]], None, None, None]
    result = audit(tmp_path / "population.sqlite")
    assert result.problems == ()
    assert result.balances[0].spent is not None
    assert 3.9 < result.balances[0].spent.epsilon <= 4.0


def test_a_crash_between_the_charge_of_a_run_and_its_first_round_leaves_it_paid_for_once(
    books: Callable[..., Population], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = books(CORRELATED)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            found.reserve("run", 1, MODEL)
    found.close()
    again = books(CORRELATED, begun=True)
    assert again.reserve("run", 1, MODEL) is None
    again.close()
    assert verify(tmp_path / "population.sqlite") == []
    with Ledger.open(tmp_path / "population.sqlite", read_only=True) as ledger:
        kinds = [entry.kind for entry in ledger.entries(SCOPE)]
    assert kinds == ["open", "reserve", "commit", "reserve"]


def test_another_run_of_the_plan_in_the_same_books_is_not_free(books: Callable[..., Population]) -> None:
    found = books()
    for number in (1, 2, 3):
        found.reserve("run", number, MODEL)
    with pytest.raises(BudgetExhausted):
        found.reserve("another", 1, MODEL)


def test_a_round_that_was_released_is_never_released_again(books: Callable[..., Population]) -> None:
    found = books()
    found.reserve("run", 1, MODEL)
    found.commit("run", 1, MODEL, MEAN)
    found.close()
    again = books(begun=True)
    stored = again.reserve("run", 1, MODEL)
    assert stored is not None
    assert np.array_equal(stored, MEAN)
    assert np.array_equal(again.commit("run", 1, MODEL, MEAN + 1), MEAN)


def test_a_round_that_was_cut_off_before_its_release_is_played_under_its_charge(
    books: Callable[..., Population],
) -> None:
    found = books()
    for _ in range(5):
        assert found.reserve("run", 1, MODEL) is None
    assert found.reserve("run", 2, MODEL) is None
    assert found.reserve("run", 3, MODEL) is None


def test_a_round_from_another_model_is_another_round(books: Callable[..., Population]) -> None:
    found = books()
    for model in ("aa", "bb", "cc"):
        found.reserve("run", 1, model * 32)
    with pytest.raises(BudgetExhausted):
        found.reserve("run", 1, "dd" * 32)


def test_a_round_of_a_run_that_is_one_release_is_released_once_whatever_model_it_starts_from(
    books: Callable[..., Population],
) -> None:
    """A damaged checkpoint may lead to another model; a second result of the round would have fresh noise for free."""
    found = books(CORRELATED)
    assert found.reserve("run", 2, "aa" * 32) is None
    found.commit("run", 2, "aa" * 32, MEAN)
    again = found.reserve("run", 2, "bb" * 32)
    assert again is not None
    assert np.array_equal(again, MEAN)
    assert np.array_equal(found.commit("run", 2, "bb" * 32, 2 * MEAN), MEAN)


def test_a_release_that_is_no_longer_stored_ends_the_run(books: Callable[..., Population]) -> None:
    found = books()
    for number in (1, 2, 3):
        found.reserve("run", number, MODEL)
        found.commit("run", number, MODEL, MEAN)
    with pytest.raises(RunError, match="round 1: was released before"):
        found.reserve("run", 1, MODEL)


def test_a_run_that_has_begun_does_not_go_on_without_its_books(books: Callable[..., Population]) -> None:
    with pytest.raises(RunError, match=r"population\.sqlite: is missing"):
        books(begun=True)


def test_rule_3_the_books_name_nobody_and_no_time_of_day(books: Callable[..., Population], tmp_path: Path) -> None:
    found = books()
    found.reserve("run", 1, MODEL)
    found.commit("run", 1, MODEL, MEAN)
    found.close()
    path = tmp_path / "population.sqlite"
    assert verify(path) == []
    with Ledger.open(path, read_only=True) as ledger:
        entries = list(ledger.entries(SCOPE))
        assert ledger.scopes() == (SCOPE,)
    assert [entry.kind for entry in entries] == ["open", "reserve", "commit"]
    assert {entry.time[10:] for entry in entries} == {"T00:00:00.000000Z"}
    assert entries[1].body["task"]["client"] == SCOPE
    assert entries[2].body["fields"] == {"model": "charged"}


def test_a_plan_without_privacy_has_no_population(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "l.sqlite", durable=False) as ledger, pytest.raises(ValueError, match="charges no"):
        Population(ledger, make_plan(), "fed")
