"""What the owner has approved, and what waits: by digest, seen at once, never more than was said."""

from __future__ import annotations

import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.approvals import Approvals, PendingPlans
from security.errors import UsageError
from security.home_lock import holding
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from tests.client.conftest import plan_of


def approvals(tmp_path: Path) -> Approvals:
    return Approvals(tmp_path / "approved-plans.json", clock=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_nothing_is_approved_before_the_owner_has_approved_it(tmp_path: Path) -> None:
    found = approvals(tmp_path)
    assert found.all() == {}
    assert not found.holds(Plan().digest())
    assert list(tmp_path.iterdir()) == []


def test_an_approval_says_which_plan_when_and_how(tmp_path: Path) -> None:
    plan, other = plan_of(), plan_of(seed=8, name="other")
    found = approvals(tmp_path)
    found.add(plan, "asked")
    found.add(other, "yes")
    assert {digest: (a.plan, a.when, a.how) for digest, a in found.all().items()} == {
        plan.digest(): ("digits", "2026-01-02T03:04:05+00:00", "asked"),
        other.digest(): ("other", "2026-01-02T03:04:05+00:00", "yes"),
    }
    assert found.plans() == {plan.digest(): plan, other.digest(): other}
    path = tmp_path / "approved-plans.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text().replace("seed = 8", "seed = 9"))
    with pytest.raises(UsageError, match="is not the one that was approved"):
        found.plans()


def test_another_process_sees_it_as_soon_as_it_looks(tmp_path: Path) -> None:
    client, command = approvals(tmp_path), approvals(tmp_path)
    plan = plan_of()
    assert not client.holds(plan.digest())
    command.add(plan, "yes")
    assert client.holds(plan.digest())
    command.remove(plan.digest())
    assert not client.holds(plan.digest())


def test_it_is_the_very_plan_that_is_approved_wherever_its_data_lies(tmp_path: Path) -> None:
    found, plan = approvals(tmp_path), plan_of()
    found.add(plan, "yes")
    moved = plan.model_copy(update={"data": plan.data.model_copy(update={"path": "/elsewhere"})})
    assert found.holds(moved.digest())
    for change in ({"seed": 8}, {"federation": {"rounds": 4}}, {"privacy": {"noise_multiplier": 2.9}}):
        assert not found.holds(plan_of(**change).digest())


def test_what_was_never_approved_can_not_be_taken_back(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is approved"):
        approvals(tmp_path).remove(Plan().digest())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"kind": "veil approved plans 2", "plans": {}}',
        '{"kind": "veil approved plans 1", "plans": {}, "all": true}',
        '{"kind": "veil approved plans 1", "plans": []}',
        '{"kind": "veil approved plans 1", "plans": {"abc": {"plan": "a", "when": "", "how": "", "text": ""}}}',
        '{"kind": "veil approved plans 1", "plans": {"DIGEST": {"plan": "a"}}}',
        '{"kind": "veil approved plans 1", "plans": {"DIGEST": {"plan": "a", "when": 1, "how": "", "text": ""}}}',
        '{"kind": "veil approved plans 1", "plans": {"DIGEST": null}}',
    ],
)
def test_a_damaged_file_approves_nothing_and_is_not_written_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "approved-plans.json"
    path.write_text(text.replace("DIGEST", "0" * 64))
    for ask in (
        lambda: approvals(tmp_path).holds("0" * 64),
        lambda: approvals(tmp_path).add(plan_of(), "yes"),
    ):
        with pytest.raises(UsageError, match=r"approved-plans\.json: is damaged, so no plan is approved"):
            ask()
    assert path.read_text() == text.replace("DIGEST", "0" * 64)


def test_two_commands_at_once_lose_no_approval(tmp_path: Path) -> None:
    plans = [plan_of(seed=seed) for seed in range(6)]
    refused = []

    def approve(plan: Plan) -> None:
        while True:
            try:
                approvals(tmp_path).add(plan, "yes")
            except UsageError as error:
                refused.append(str(error))
                continue
            return

    threads = [threading.Thread(target=approve, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(approvals(tmp_path).all()) == {plan.digest() for plan in plans}
    assert all("another `veil client approve`" in text for text in refused)


def test_while_another_command_writes_one_is_told_so(tmp_path: Path) -> None:
    with (
        holding(tmp_path / ".approved-plans.json.lock", "x"),
        pytest.raises(UsageError, match="another `veil client approve`"),
    ):
        approvals(tmp_path).add(plan_of(), "yes")


# --- those that wait -----------------------------------------------------------------------------------------------


def test_a_plan_waits_in_veils_own_words(tmp_path: Path) -> None:
    pending, plan = PendingPlans(tmp_path / "pending"), plan_of()
    assert pending.digests() == ()
    pending.put(plan)
    pending.put(plan)
    assert pending.digests() == (plan.digest(),)
    assert pending.read(plan.digest()) == plan
    path = tmp_path / "pending" / f"{plan.digest()}.toml"
    assert path.read_text() == write_plan(plan)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    pending.remove(plan.digest())
    pending.remove(plan.digest())
    assert pending.digests() == ()


def test_a_server_that_offers_without_end_fills_no_disk(tmp_path: Path) -> None:
    pending = PendingPlans(tmp_path)
    plans = [Plan(seed=seed) for seed in range(70)]
    for number, plan in enumerate(plans):
        pending.put(plan)
        path = tmp_path / f"{plan.digest()}.toml"
        os.utime(path, ns=(number, number))
    pending.put(Plan(seed=70))
    kept = pending.digests()
    assert len(kept) == 64
    assert kept[-1] == Plan(seed=70).digest()
    assert set(kept) == {plan.digest() for plan in [*plans[7:], Plan(seed=70)]}


def test_a_file_that_was_changed_is_not_taken_for_the_plan_that_was_offered(tmp_path: Path) -> None:
    pending, plan = PendingPlans(tmp_path), plan_of()
    pending.put(plan)
    path = tmp_path / f"{plan.digest()}.toml"
    path.write_text(write_plan(plan_of(seed=8)))
    with pytest.raises(UsageError, match="was changed"):
        pending.read(plan.digest())


@pytest.mark.parametrize("name", ["../site", "abc", "", "A" * 64])
def test_only_a_digest_names_a_plan(tmp_path: Path, name: str) -> None:
    (tmp_path / "site.toml").write_text("")
    with pytest.raises(UsageError, match="is no plan's digest"):
        PendingPlans(tmp_path / "pending").read(name)


def test_a_plan_that_does_not_wait_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        PendingPlans(tmp_path).read("0" * 64)
