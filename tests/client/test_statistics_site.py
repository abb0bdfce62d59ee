"""Statistics at a deployed site: by its own policy, from its own file, once for each plan."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client.plan_facts import plan_facts
from client.site_settings import read_settings
from client.workplace import made_workplace
from security.homes import SiteHome
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from tests.client.conftest import assert_fault, wire
from tests.client.real_site import (
    APPROVED,
    BUDGET,
    DATA,
    FEDERATION,
    Authority,
    Running,
    settings_text,
    started,
    write_rows,
)
from tests.client.test_statistics import BINS, counts_of, request, statistics_plan

LETTING = "[release]\nstatistics = true\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return Authority(folder / "authority").admit(folder / "home").path


@pytest.fixture
def home(made: Path, tmp_path: Path) -> SiteHome:
    found = SiteHome(tmp_path / "home")
    shutil.copytree(made, found.path)
    found.settings.write_text(settings_text(BUDGET, LETTING, DATA, APPROVED))
    write_rows(found.path / "rows.csv", rows=200)
    return found


@pytest.fixture
def running(home: SiteHome) -> Iterator[Running]:
    made_workplace.cache_clear()
    found = started(home)
    yield found
    found.site.close()


def little_noise(**changes: Any) -> Plan:
    return statistics_plan(privacy={"noise_multiplier": 0.2}, **changes)


def ask(running: Running, plan: Plan, **how: Any) -> Any:
    return running.ask(plan, request(plan, **how))


def test_a_site_counts_its_own_file(running: Running) -> None:
    plan = little_noise()
    found = counts_of(ask(running, plan))
    # 0.2 x sqrt(3) a count: none of 21 is beyond 3, but with a chance below 1e-15.
    assert all(abs(found[start : start + width].sum() - 200) < 12 for start, width in ((0, 9), (9, 9), (18, 3)))
    assert abs(found[BINS]) <= 3
    assert running.kinds()[-2:] == ["reserve", "commit"]


@pytest.mark.parametrize("line", ["inf,0.1,a", "0.1,x,a", "0.1,0.1,who", "?,?,a", "1e300,-1e300,b", None])
def test_rule_5_whatever_is_in_the_file_the_reply_has_the_same_form(
    running: Running, home: SiteHome, line: str | None
) -> None:
    write_rows(home.path / "rows.csv", rows=0, lines=[] if line is None else [line])
    reply = ask(running, little_noise())
    found = counts_of(reply)
    assert (found.shape, found.dtype) == ((21,), np.float32)
    assert np.abs(found).max() < 6


def test_a_policy_without_a_word_about_them_refuses(running: Running, home: SiteHome) -> None:
    home.settings.write_text(settings_text(BUDGET, "[release]\ncounts = true\n", DATA, APPROVED))
    plan = little_noise()
    verdict = running.site.consider(write_plan(plan), plan.digest())
    assert verdict.fault is Fault.POLICY_FIELD
    assert_fault(ask(running, plan), Fault.POLICY_FIELD)


def test_an_answer_that_waits_leaves_only_while_the_policy_still_allows_it(running: Running, home: SiteHome) -> None:
    plan = little_noise()
    assert not ask(running, plan).has_error()
    assert running.site.allows(plan, ["arrays", "metrics.epsilon"])
    home.settings.write_text(settings_text(BUDGET, DATA, APPROVED))
    assert not running.site.allows(plan, ["arrays", "metrics.epsilon"])
    assert_fault(ask(running, plan), Fault.POLICY_FIELD)


def test_after_a_restart_the_stored_reply_is_sent(running: Running) -> None:
    plan = little_noise()
    first: RecordDict = ask(running, plan).content
    running.restart()
    assert wire(ask(running, plan).content) == wire(first)


def test_the_owner_reads_what_would_be_counted(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    from veil.commands.client_view import plan_line, print_plan

    plan = little_noise()
    print_plan(plan_facts(plan, read_settings(home.settings), home, federation=FEDERATION))
    out = " ".join(capsys.readouterr().out.split())
    assert "histograms, once, and no model" in out
    assert "1 x how many records lie in each bin of v, w, y; noisy histograms: histograms of 3 columns" in out
    assert "none: 21 counts" in out
    assert "charged (a private release; the ledger has its price): arrays" in out or "arrays" in out
    assert "statistics" in plan_line(plan)


def test_rule_6_a_plan_that_counts_people_must_mean_the_sites(running: Running, home: SiteHome) -> None:
    data = {"person_column": "v", "max_rows_per_person": 2}
    plan = little_noise(data=data)
    assert np.isfinite(plan.privacy.epsilon or np.nan)
    verdict = running.site.consider(write_plan(plan), plan.digest())
    assert verdict.fault in (Fault.POLICY_UNIT, Fault.SITE_DATA)
