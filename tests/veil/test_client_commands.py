"""`veil client`: what an owner is shown before saying yes, and how the site stands; one line for each error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.approvals import Approvals, PendingPlans
from client.notes import Notes
from client.workplace import made_workplace
from privacy.statement import verify_statement
from security.home_lock import holding
from security.homes import SiteHome
from security.identity import Identity
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from tests.client.conftest import AT_CLIENTS, assert_fault, plan_of
from tests.client.real_site import BUDGET, DATA, FEDERATION, Authority, settings_text, started, write_rows
from tests.client.secure_cohort import secure_plan
from veil.main import main

Command = Callable[..., tuple[int, str, str]]
COUNTS = "[release]\ncounts = true\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return Authority(folder / "authority").admit(folder / "home").path


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Iterator[SiteHome]:
    """A site with data and a budget, whose owner is asked about each plan."""
    made_workplace.cache_clear()
    found = SiteHome(tmp_path / "home")
    shutil.copytree(made, found.path)
    found.settings.write_text(settings_text(BUDGET, DATA, COUNTS))
    write_rows(found.path / "rows.csv")
    yield found
    made_workplace.cache_clear()


@pytest.fixture
def veil(capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, standard output and standard error of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["client", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def plan(**changes: Any) -> Plan:
    privacy = {"noise": "secret", "noise_multiplier": 4.0, **changes.pop("privacy", {})}
    return plan_of(privacy=privacy, **changes)


def offered(home: SiteHome, *plans: Plan) -> None:
    """Offer plans to the site, as a server would."""
    running = started(home)
    for each in plans:
        assert running.site.consider(write_plan(each), each.digest()).pending
    running.site.close()


def said(out: str) -> dict[str, str]:
    """What is printed, by its label."""
    found: dict[str, str] = {}
    label = ""
    for line in out.splitlines():
        label = line[:12].strip() or label
        found[label] = f"{found.get(label, '')} {line[12:].strip()}".strip()
    return found


# --- approve -------------------------------------------------------------------------------------------------------


def test_plans_that_wait_are_listed_with_what_they_cost(veil: Command, home: SiteHome) -> None:
    assert veil("approve", home.path) == (0, "no plan waits\n", "")
    one, other = plan(name="first"), plan(name="second", federation={"rounds": 2})
    offered(home, one, other)
    code, out, _ = veil("approve", home.path)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"waits     {one.digest()[:16]}  first: 3 rounds, mlp, epsilon ")
    assert lines[1].startswith(f"waits     {other.digest()[:16]}  second: 2 rounds, mlp, epsilon ")
    assert lines[2] == f"to read and approve one: veil client approve {home.path} DIGEST"


def test_an_owner_is_shown_all_that_matters_and_asked(
    veil: Command, home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(evaluation=AT_CLIENTS)
    offered(home, found)
    questions = []
    monkeypatch.setattr("veil.commands.asking.agreed", lambda question, instead: questions.append(question) or False)
    code, out, err = veil("approve", home.path, found.digest()[:10])
    assert (code, err) == (1, "error: the plan was not approved\n")
    assert questions == ["Let this plan run?"]
    shown = said(out)
    assert shown["plan"] == f"digits of {FEDERATION}"
    assert shown["digest"] == found.digest()
    assert shown["asks"] == "3 rounds of 2 steps; judged here, on what is held out"
    assert shown["model"].startswith("mlp, 27 parameters; ")
    assert shown["computes"] == "on cpu, 1 thread"
    assert shown["data"].startswith(f"csv: csv at {home.path}/rows.csv predicts the column 'y' from 'v', 'w' ")
    assert "classes: 'a', 'b', 'c'" in shown["data"]
    assert shown["privacy"].startswith("each record, not person; against everybody, the server included (trust: local)")
    assert f"epsilon {found.privacy.epsilon:g} at delta 1e-05 here, once all rounds are played" in shown["privacy"]
    assert "3 x training: 2 steps at sample rate 1, noise multiplier 4, gradients clipped to 1" in shown["releases"]
    assert "3 x counts of right and of all held-out records, with noise of deviation 10 each" in shown["releases"]
    assert "charged (private releases, paid for): arrays, metrics.correct, metrics.total" in shown["leaves"]
    assert "public (the same whatever the data is): metrics.num-examples (1 for everybody), " in shown["leaves"]
    assert "epsilon 500 at delta 1e-05 for record x local" in shown["budget"]
    assert "before: epsilon 0 charged, 0% of the budget of 500 is used" in shown["budget"]
    assert "all 3 rounds are covered" in shown["budget"]
    assert "timing" in shown["not covered"] or "when a client answers" in shown["not covered"]
    assert "selection" in out
    assert "but" not in shown
    assert Approvals(home.approvals).all() == {}
    assert PendingPlans(home.pending).digests() == (found.digest(),)


def test_a_yes_lets_the_very_plan_run_and_taking_it_back_stops_it(veil: Command, home: SiteHome) -> None:
    found, other = plan(), plan(seed=8)
    offered(home, found, other)
    running = started(home)
    assert_fault(running.train(found), Fault.POLICY_APPROVAL)
    code, out, _ = veil("approve", home.path, found.digest(), "--yes")
    assert code == 0
    assert out.endswith(f"{found.digest()[:16]}: approved; a running client begins within seconds\n")
    assert running.site.is_approved(found.digest())  # seen by the client that runs
    assert not running.train(found).has_error()
    assert_fault(running.train(other), Fault.POLICY_APPROVAL)
    code, out, _ = veil("approve", home.path)
    assert [line.split()[0] for line in out.splitlines()] == ["waits", "approved", "to"]
    code, out, _ = veil("approve", home.path, found.digest()[:8], "--withdraw")
    assert (code, out) == (0, f"{found.digest()[:16]}: no longer approved; its next task is refused\n")
    assert_fault(running.train(found, 2), Fault.POLICY_APPROVAL)
    running.site.close()


def test_what_was_spent_before_and_what_is_left_after_are_the_ledgers_own(veil: Command, home: SiteHome) -> None:
    small = BUDGET.replace("500.0", "2.0")
    home.settings.write_text(settings_text(small, DATA, COUNTS))
    first = plan(privacy={"noise_multiplier": 12.0})
    second = plan(privacy={"noise_multiplier": 8.0}, federation={"rounds": 30})
    offered(home, first, second)
    veil("approve", home.path, first.digest(), "--yes")
    running = started(home)
    for number in (1, 2, 3):
        assert not running.train(first, number).has_error()
    shown = said(veil("approve", home.path, second.digest(), "--yes")[1])
    _, out, _ = veil("budget", home.path)
    row = dict(zip(out.splitlines()[0].split(), out.splitlines()[1].split(), strict=True))
    assert f"before: epsilon {float(row['spent']):.4g}" in shown["budget"]
    assert f"charged, {row['used']} of the budget of 2 is used" in shown["budget"]
    covered = int(shown["budget"].split("; ")[-1].split()[0])
    assert f"{covered} of 30 rounds are covered, the others will be refused" in shown["budget"]
    # And so it comes.
    replies = [running.train(second, number) for number in range(1, covered + 2)]
    assert not any(reply.has_error() for reply in replies[:-1])
    assert_fault(replies[-1], Fault.BUDGET_EXHAUSTED)
    shown = said(veil("approve", home.path, second.digest())[1])
    assert f"this plan has charged {covered} releases already" in shown["budget"]
    running.site.close()


def test_a_plan_without_privacy_is_called_that(veil: Command, home: SiteHome) -> None:
    home.settings.write_text(settings_text(DATA, f'[release]\nentrust = ["{FEDERATION}"]\n'))
    found = plan_of(False)
    offered(home, found)
    assert "no privacy" in veil("approve", home.path)[1]
    shown = said(veil("approve", home.path, found.digest(), "--yes")[1])
    assert shown["privacy"].startswith("NONE: the server sees")
    assert "entrusted (AS IT IS, to the server: no privacy against it): arrays, metrics." in shown["leaves"]
    assert "budget" not in shown


SUM_BUDGET = '[[budget]]\nunit = "client"\ntrust = "distributed"\nepsilon = 500.0\ndelta = 1e-5\n'


@pytest.mark.parametrize("spare", [0, 2])
def test_of_secure_sums_an_owner_reads_who_must_be_trusted_and_when_they_are_opened(
    veil: Command, home: SiteHome, spare: int
) -> None:
    home.settings.write_text(settings_text(SUM_BUDGET, DATA))
    found = secure_plan(20, private={"noise": "secret"}, secure_sum={"spare_rounds": spare})
    offered(home, found)
    shown = said(veil("approve", home.path, found.digest(), "--yes")[1])
    assert "against everybody, the server included, as far as the other clients can be trusted" in shown["privacy"]
    text = shown["secure sum"]
    assert text.startswith("20 clients add up their updates under masks; the server sees the sum of those who stay")
    assert "trusted must be: at least 10 clients of each sum, this one among them" in text
    assert "2 may collude with the server; more than that, and nothing is claimed" in text
    assert "only if 12 clients or more have signed" in text
    repeated = "up to 2 such attempts are repeated, at a charge" if spare else "none is repeated at a charge"
    assert repeated in text
    assert f"{3 + spare} x training: 2 steps, the update clipped to 1; rounded-gaussian-sum: 1 sum" in shown["releases"]
    covered = "all 3 rounds are covered, and 2 repeated attempts" if spare else "all 3 rounds are covered"
    assert shown["budget"].endswith(covered)
    assert "charged (private releases, paid for): arrays" in shown["leaves"]
    assert "config.secure-message" in shown["leaves"]
    assert "add or remove one unit; PLD, pessimistic, interval 0.001; selection" in shown["privacy"]


CENTRAL_BUDGET = '[[budget]]\nunit = "client"\ntrust = "central"\nepsilon = 500.0\ndelta = 1e-5\n'
ENTRUSTED = f'[release]\nentrust = ["{FEDERATION}"]\n'


def central_plan(**changes: Any) -> Plan:
    privacy = {"unit": "client", "trust": "central", "noise": "secret", **changes.pop("privacy", {})}
    data = {"partition": {"kind": "iid", "clients": 20}}
    return plan_of(**{"data": data, "privacy": {"noise_multiplier": 3.0, **privacy}, **changes})


def test_of_a_norm_that_adapts_an_owner_reads_where_it_may_go(veil: Command, home: SiteHome) -> None:
    home.settings.write_text(settings_text(CENTRAL_BUDGET, DATA, ENTRUSTED))
    found = central_plan(privacy={"adaptive": {"most_norm": 4.0}})
    offered(home, found)
    shown = said(veil("approve", home.path, found.digest(), "--yes")[1])
    assert (
        "the update clipped to a norm that follows the 0.5 quantile of their lengths, from 1 on, within 0.001 and 4"
        in (shown["releases"])
    )
    assert "entrusted" in shown["leaves"]


def test_of_correlated_noise_an_owner_reads_that_the_run_is_one_release(veil: Command, home: SiteHome) -> None:
    home.settings.write_text(settings_text(CENTRAL_BUDGET, DATA, ENTRUSTED))
    cohort = {"sampling": "fixed", "size": 5}
    found = central_plan(privacy={"correlated": {"band": 2}}, federation={"rounds": 3, "cohort": cohort})
    offered(home, found)
    shown = said(veil("approve", home.path, found.digest(), "--yes")[1])
    assert (
        "1 x training: 2 steps, the update clipped to 1; banded factorisation: 3 rounds, 2 bands" in shown["releases"]
    )
    assert shown["budget"].endswith("the whole run is covered")


def test_what_the_site_would_refuse_as_things_stand_is_said(veil: Command, home: SiteHome) -> None:
    found = plan()
    offered(home, found)
    (home.path / "rows.csv").unlink()
    shown = said(veil("approve", home.path, found.digest(), "--yes")[1])
    assert shown["but"] == (
        f"as things stand the site refuses it: {home.path}/rows.csv: the data for 'csv' is not there"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("0" * 64,), "no plan with this digest waits or is approved"),
        (("xyz",), "no plan with this digest waits or is approved"),
        (("0" * 64, "--withdraw"), "no plan with this digest is approved"),
        (("",), "give at least 8 digits"),
    ],
)
def test_a_digest_that_names_no_plan_is_wrong_usage(
    veil: Command, home: SiteHome, arguments: tuple[str, ...], text: str
) -> None:
    offered(home, plan())
    code, _, err = veil("approve", home.path, *arguments)
    assert code == 2
    assert text in err
    assert err.count("\n") == 1


def test_without_a_person_to_be_asked_nothing_is_approved(veil: Command, home: SiteHome) -> None:
    found = plan()
    offered(home, found)
    code, _, err = veil("approve", home.path, found.digest())
    assert code == 2
    assert "nobody can be asked here; give --yes" in err
    assert Approvals(home.approvals).all() == {}


# --- status, budget, report ----------------------------------------------------------------------------------------


def test_status_says_what_needs_the_owner(veil: Command, home: SiteHome) -> None:
    found = plan()
    offered(home, found)
    code, out, _ = veil("status", home.path)
    assert code == 0
    shown = said(out)
    assert shown["site"] == f"st-mary of {FEDERATION}"
    assert shown["client"] == "not running; server at 127.0.0.1:1"
    assert shown["certificate"].startswith("valid until 20")
    assert shown["roster"] == "approved, 1 sites"
    assert shown["approval"].startswith(f"0 plans approved, 1 waiting {found.digest()[:16]}  digits: 3 rounds")
    row = out.splitlines()[-1].split()
    assert row[:5] == ["patients", "record", "local", "0.0000", "500"]


def test_status_for_programs(veil: Command, home: SiteHome) -> None:
    found = plan()
    offered(home, found)
    notes = Notes(status=home.status, log=home.log, server="127.0.0.1:1", say=lambda _: None)
    notes.show(connected=True, run="ab", plan="digits", digest=found.digest(), answer="pending")
    with holding(home.lock, "this test"):
        data = json.loads(veil("status", home.path, "--json")[1])
        assert said(veil("status", home.path)[1])["client"].startswith("running, connected since 20")
    assert data["client"]["running"]
    assert data["client"]["connected"]
    assert data["client"]["answer"] == "pending"
    assert [item["digest"] for item in data["pending"]] == [found.digest()]
    assert data["certificate"]["days"] in (364, 365)
    assert data["budgets"] == [
        {
            "scope": "patients",
            "unit": "record",
            "trust": "local",
            "charged": 0.0,
            "limit": 500.0,
            "delta": 1e-05,
            "fraction": 0.0,
            "plans": 0,
        }
    ]
    after = json.loads(veil("status", home.path, "--json")[1])  # killed: it could not say so
    assert (after["client"]["running"], after["client"]["connected"]) == (False, False)
    notes.close()


def test_a_roster_that_is_not_approved_is_said(veil: Command, home: SiteHome) -> None:
    home.approval.write_text("{}")
    assert said(veil("status", home.path)[1])["roster"].startswith("not approved: ")


def test_budget_is_that_of_the_ledger_also_before_there_is_one(veil: Command, home: SiteHome) -> None:
    code, out, _ = veil("budget", home.path)
    assert (code, out.splitlines()[1].split()[:5]) == (0, ["patients", "record", "local", "0.0000", "500"])
    assert not home.ledger.exists()
    found = plan()
    running = started(home)
    running.site.approvals.add(found, "yes")
    running.train(found)
    _, out, _ = veil("budget", home.path)
    with pytest.raises(SystemExit):
        main(["budget", "status", str(home.ledger), "--site", str(home.settings)])
    running.site.close()
    assert float(out.splitlines()[1].split()[3]) > 0
    shutil.rmtree(home.ledger.parent)
    code, _, err = veil("budget", home.path)  # lost, and not taken for an empty one
    assert (code, err.count("\n")) == (1, 1)


def test_budget_status_reads_the_whole_of_site_toml(
    veil: Command, home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    started(home).site.close()
    found = veil("budget", home.path)[1]
    with pytest.raises(SystemExit) as ended:
        main(["budget", "status", str(home.ledger), "--site", str(home.settings)])
    assert not ended.value.code
    assert capsys.readouterr().out == found


def test_the_report_has_a_statement_that_the_owner_signed(veil: Command, home: SiteHome, tmp_path: Path) -> None:
    found = plan()
    running = started(home)
    running.site.approvals.add(found, "yes")
    running.train(found)
    code, out, err = veil("report", home.path, "--out", tmp_path / "out")
    running.site.close()
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "report.html").exists()
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["name"] == "st-mary"
    path = tmp_path / "out" / "statement-patients.json"
    own = Identity.load(home.identity_key).public_hex
    assert verify_statement(path.read_text(), owner=own).detail == "totals"
    assert out.splitlines() == [f"statement: {path}", f"report: {tmp_path}/out/report.html"]


def test_a_folder_that_is_no_home_is_one_line(veil: Command, tmp_path: Path) -> None:
    for command in ("status", "budget", "report"):
        code, _, err = veil(command, tmp_path)
        assert (code, err.count("\n")) == (2, 1)
