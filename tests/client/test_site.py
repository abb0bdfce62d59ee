"""A deployed site: its own data, ledger, identity and split; its owner has the last word on every task."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client import app as app_module
from client.approvals import PendingPlans
from client.datasets.split import split
from client.egress import planned_fields
from client.planting import PLANTED, Planting, to_json, with_canaries
from client.site import DeployedSite, register_site, registered_site
from client.site_settings import read_settings
from client.trainer import train_plain
from client.workplace import made_workplace, workplace
from privacy.ledger import Ledger, LedgerError, default_anchors
from privacy.ledger.anchors import write_anchors
from privacy.statement import verify_statement
from security import enrolment
from security.errors import UsageError
from security.frames import ACCEPTED, PENDING
from security.homes import SiteHome
from security.identity import Identity
from shared_models.faults import Fault
from shared_models.flower_messages import client_context
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import CLIENT_ID, CONFIG, CORRECT, HEAD_POSITION, STATEMENT_TEXT, TOTAL
from tests.client.conftest import (
    AT_CLIENTS,
    SECRET,
    assert_fault,
    content_of,
    head_of,
    metrics_of,
    model_of,
    plan_of,
    question,
    update_of,
    wire,
)
from tests.client.real_site import (
    APPROVED,
    BUDGET,
    DATA,
    FEDERATION,
    SITE,
    Authority,
    Running,
    settings_text,
    started,
    write_rows,
)

MANY_ROUNDS = {"federation": {"rounds": 100_001}, "privacy": {"noise_multiplier": 2e4}}
PEOPLE = BUDGET.replace("record", "person")
OF_PEOPLE = {"person_column": "v", "max_rows_per_person": 1}
OPEN = f'[release]\nentrust = ["{FEDERATION}"]\ncounts = true\nstatement = "full"\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as the authority makes it, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    return Authority(folder / "authority").admit(folder / "home").path


@pytest.fixture
def home(made: Path, tmp_path: Path) -> SiteHome:
    found = SiteHome(tmp_path / "home")
    shutil.copytree(made, found.path)
    found.settings.write_text(settings_text(BUDGET, OPEN, DATA, APPROVED))
    write_rows(found.path / "rows.csv")
    return found


@pytest.fixture
def running(home: SiteHome) -> Iterator[Running]:
    made_workplace.cache_clear()
    found = started(home)
    yield found
    found.site.close()


def plan(private: bool = True, **changes: Any) -> Plan:
    """A plan with noise as deployments have it."""
    if private:
        changes["privacy"] = {"noise": "secret", **changes.get("privacy", {})}
    return plan_of(private, **changes)


def change(home: SiteHome, *parts: str, **names: str) -> None:
    home.settings.write_text(settings_text(*parts, **names))


def considered(running: Running, offered: Plan) -> int:
    return running.site.consider(write_plan(offered), offered.digest()).code


# --- its own data --------------------------------------------------------------------------------------------------


def test_all_records_of_the_file_are_trained_on_and_no_partition_is_drawn(running: Running) -> None:
    found = plan(False, data={"partition": {"kind": "natural", "column": "hospital"}})
    records = running.site.training_records(workplace(write_plan(found)))
    assert len(records) == 8
    assert len(running.site.held_out(workplace(write_plan(found)))) == 0
    change_expected, _ = train_plain(
        workplace(write_plan(found)).model, model_of(found), records, found, round_number=1, client=SITE
    )
    reply = running.train(found)
    for name, value in update_of(found, reply).items():
        np.testing.assert_array_equal(value, change_expected[name])


def test_whatever_canaries_a_server_names_an_owner_trains_on_its_own_records_alone(running: Running) -> None:
    """What would plant one in a simulation is a word without meaning here."""
    found = plan(False)
    planted = Planting(kind="mislabelled", count=8, secret="05" * 32, clients=(SITE,), clipping_norm=1.0, classes=2)
    records = running.site.training_records(workplace(write_plan(found)))
    assert len(with_canaries(records, to_json([planted]), SITE)) < len(records), "a simulated client would heed it"
    expected, _ = train_plain(
        workplace(write_plan(found)).model, model_of(found), records, found, round_number=1, client=SITE
    )
    reply = running.ask(found, content_of(found, 1), **{PLANTED: to_json([planted])})
    for name, value in update_of(found, reply).items():
        np.testing.assert_array_equal(value, expected[name])


def test_torch_waits_for_the_first_plan_and_nothing_of_simulations_is_needed(home: SiteHome) -> None:
    script = (
        "import client.site, sys\n"
        "print('torch' in sys.modules, 'flwr' in sys.modules)\n"
        "for name in ('datasets', 'flwr_datasets', 'ray'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from client.datasets.registry import load_file\n"
        "from shared_models.plan_file import read_plan\n"
        "plan = read_plan(Path(sys.argv[1]))\n"
        "print(len(load_file(plan.data, kind='csv', path=Path(sys.argv[2]), split_key=b'k')))\n"
    )
    path = home.path / "plan.toml"
    path.write_text(write_plan(plan()))
    arguments = [sys.executable, "-c", script, str(path), str(home.path / "rows.csv")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False False\n8\n"


def test_rule_10_where_clients_judge_the_split_is_by_the_sites_own_secret(running: Running) -> None:
    found = plan(False, evaluation=AT_CLIENTS)
    write_rows(running.home.path / "rows.csv", rows=60)
    place = workplace(write_plan(found))
    train, held = running.site.training_records(place), running.site.held_out(place)
    assert (len(train) + len(held), len(held) > 0) == (60, True)
    whole = running.site.training_records(workplace(write_plan(plan(False))))
    key = running.home.split_key.read_bytes()
    expected = split(whole, key=key, test_fraction=found.data.test_fraction)
    assert train.x.equal(expected[0].x)
    assert held.x.equal(expected[1].x)
    others = split(whole, key=bytes(32), test_fraction=found.data.test_fraction)
    assert not np.array_equal(held.x, others[1].x)
    counts = metrics_of(running.evaluate(found))
    assert counts[TOTAL] == len(held)
    assert 0 <= counts[CORRECT] <= len(held)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.datasets import registry

    read, times = registry.load_file, []
    monkeypatch.setattr(registry, "load_file", lambda *given, **named: times.append(1) or read(*given, **named))
    place = workplace(write_plan(plan(False)))
    assert [len(running.site.training_records(place)) for _ in range(3)] == [8, 8, 8]
    assert len(times) == 1
    write_rows(running.home.path / "rows.csv", rows=9)
    assert len(running.site.training_records(place)) == 9
    assert len(times) == 2


def test_features_of_a_sites_records_stay_in_memory(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from shared_models.features import matrices, store

    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "derive", lambda chosen, shape: matrices.derive(chosen, shape, images=100))
    store.matrices.cache_clear()
    images = np.random.default_rng(1).random((5, 1, 16, 16), dtype=np.float32)
    np.savez(running.home.path / "rows.npz", x=images, y=np.arange(5) % 2)
    change(running.home, BUDGET, OPEN, APPROVED, '[[data]]\nname = "xray"\nformat = "npz"\npath = "rows.npz"\n')
    sections = plan(False).model_dump(mode="json")
    sections["data"] |= {"name": "xray", "card": {"classes": ["a", "b"], "input_shape": [1, 16, 16]}}
    sections |= {"features": {"name": "scattering"}, "model": {"name": "linear"}}
    place = workplace(write_plan(Plan.model_validate(sections)))
    records = running.site.training_records(place)
    assert records.x.shape == (5, 81 * 16)
    assert place.model(records.x).shape == (5, 2)
    assert running.site.training_records(place) is records
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path.suffix for path in kept] == [".safetensors"]  # the public matrices alone


def test_an_image_that_was_removed_is_not_trained_on_again(running: Running) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = running.home.path / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            image.new("L", (8, 8)).save(folder / name / f"{number}.png")
    card = {"classes": ["a", "b"], "input_shape": [1, 8, 8]}
    change(running.home, BUDGET, OPEN, APPROVED, '[[data]]\nname = "xray"\nformat = "image-folder"\npath = "images"\n')
    sections = plan(False).model_dump(mode="json")
    sections["data"] |= {"name": "xray", "card": card}
    place = workplace(write_plan(Plan.model_validate(sections)))
    assert len(running.site.training_records(place)) == 4
    (folder / "b" / "1.png").unlink()  # the folder of all is as old as before
    assert len(running.site.training_records(place)) == 3


def test_a_site_answers_in_its_own_name_and_signs_with_its_own_key(running: Running) -> None:
    found = plan()
    name = running.ask(found, question(found), "query.identify").content.config_records[CONFIG]
    assert name[CLIENT_ID] == SITE
    assert not running.train(found).has_error()
    text = running.statement(found).content.config_records[CONFIG][STATEMENT_TEXT]
    own = Identity.load(running.home.identity_key)
    said = verify_statement(str(text), owner=own.public_hex)
    assert (said.scope, said.detail) == ("patients", "full")
    assert said.policy == read_settings(running.home.settings).policy.digest()
    assert running.entries()[0].body["owner"] == own.public_hex


def test_the_ledger_is_durable_and_anchored(running: Running) -> None:
    running.train(plan())
    connection = running.site.books().ledger._store._db
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: each write waits for the disk
    with Ledger.open(running.home.ledger, anchors=running.home.ledger.with_name("ledger.sqlite.anchor")) as ledger:
        assert ledger.head("patients").position == len(running.entries()) - 1


def test_tasks_name_the_certificates_federation_not_the_plans_name(running: Running) -> None:
    running.train(plan(name="whatever-the-server-likes"))
    task = next(entry.body["task"] for entry in running.entries() if entry.kind == "reserve")
    assert (task["federation"], task["client"]) == (FEDERATION, SITE)


@pytest.mark.parametrize("private", [True, False])
def test_what_leaves_is_what_the_owner_was_told_beforehand(running: Running, private: bool) -> None:
    found = plan(private, evaluation=AT_CLIENTS)
    told = planned_fields(found, running.site.policy(found))
    assert not running.train(found).has_error()
    assert not running.evaluate(found).has_error()
    left = [entry.body["fields"] for entry in running.entries() if entry.kind == "commit"]
    assert len(left) == 2
    assert {**left[0], **left[1]} == {name: kind.value for name, kind in told.items()}


# --- who may ask ---------------------------------------------------------------------------------------------------


def test_principle_2_a_server_gains_nothing_by_naming_its_plan_like_a_trusted_federation(running: Running) -> None:
    change(running.home, BUDGET, DATA, APPROVED, '[release]\nentrust = ["elsewhere"]\n')
    plain = plan(False, name="elsewhere")
    assert_fault(running.train(plain), Fault.POLICY_ENTRUST)
    assert considered(running, plain) == Fault.POLICY_ENTRUST
    change(running.home, BUDGET, DATA, APPROVED, '[allow]\nfederations = ["elsewhere"]\n')
    assert_fault(running.train(plan(name="elsewhere")), Fault.POLICY_FEDERATION)
    change(running.home, BUDGET, DATA, APPROVED, f'[allow]\nfederations = ["{FEDERATION}"]\n', OPEN)
    assert not running.train(plan(name="elsewhere")).has_error()
    assert not running.train(plan(False)).has_error()


def test_principle_3_noise_that_follows_from_a_seed_is_refused_whatever_the_policy_says(running: Running) -> None:
    change(running.home, BUDGET, OPEN, DATA, APPROVED, "[allow]\nreproducible_noise = true\n")
    lying = plan_of(privacy={"noise": "reproducible"})
    assert considered(running, lying) == Fault.POLICY_NOISE
    assert_fault(running.train(lying), Fault.POLICY_NOISE)
    assert running.kinds() == ["open", "policy", "policy-noise"]


def test_the_guard_asks_again_whatever_was_answered_to_the_offer(running: Running) -> None:
    found = plan()
    assert considered(running, found) == ACCEPTED
    assert not running.train(found).has_error()
    change(running.home, BUDGET, OPEN, DATA, '[approval]\nplans = "ask"\n')
    assert_fault(running.train(found, 2), Fault.POLICY_APPROVAL)
    running.site.approvals.add(found, "asked")
    assert not running.train(found, 2).has_error()
    running.site.approvals.remove(found.digest())
    assert_fault(running.train(found, 3), Fault.POLICY_APPROVAL)


@pytest.mark.parametrize(
    ("parts", "changes", "fault"),
    [
        ((BUDGET, OPEN, APPROVED), {}, Fault.SITE_DATA),
        ((BUDGET, OPEN, APPROVED, DATA.replace('name = "csv"', 'name = "digits"')), {}, Fault.SITE_DATA),
        ((BUDGET, OPEN, APPROVED, DATA.replace("rows.csv", "gone.csv")), {}, Fault.SITE_DATA),
        ((BUDGET, OPEN, APPROVED, DATA.replace('format = "csv"', 'format = "image-folder"')), {}, Fault.SITE_DATA),
        ((BUDGET, OPEN, APPROVED, DATA), {"training": {"threads": 2}}, Fault.POLICY_RESOURCES),
        ((BUDGET, OPEN, APPROVED, DATA), MANY_ROUNDS, Fault.POLICY_RESOURCES),
        ((BUDGET, OPEN, APPROVED, DATA), {"training": {"device": "mps"}}, Fault.POLICY_RESOURCES),
        ((BUDGET, OPEN, APPROVED, DATA, '[resources]\ndevice = "mps"\n'), {}, Fault.POLICY_RESOURCES),
        (
            (BUDGET, OPEN, APPROVED, DATA, "[resources]\nmemory_mb = 1\n"),
            {"model": {"options": {"hidden": [256, 128]}}},
            Fault.POLICY_RESOURCES,
        ),
        ((PEOPLE, OPEN, APPROVED, DATA), {"data": OF_PEOPLE}, Fault.SITE_DATA),  # nobody has said who is a person
        ((PEOPLE, OPEN, APPROVED, DATA + 'person_column = "w"\n'), {"data": OF_PEOPLE}, Fault.SITE_DATA),
        ((OPEN, APPROVED, DATA), {}, Fault.POLICY_UNIT),
        ((BUDGET, OPEN, APPROVED, DATA, '[allow]\nmodels = ["cnn"]\n'), {}, Fault.POLICY_MODEL),
        ((BUDGET, OPEN, DATA), {}, Fault.POLICY_APPROVAL),  # a plan waits unless the owner says otherwise
    ],
)
def test_an_offer_and_a_task_are_refused_for_the_same_reason_and_no_data_is_read(
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[str, ...],
    changes: dict[str, Any],
    fault: Fault,
) -> None:
    monkeypatch.setattr(DeployedSite, "_records", lambda *_: pytest.fail("data was read"))
    change(running.home, *parts)
    found = plan(**changes)
    expected = PENDING if fault is Fault.POLICY_APPROVAL else fault
    verdict = running.site.consider(write_plan(found), found.digest())
    assert verdict.code == expected
    assert verdict.reason
    assert "\n" not in verdict.reason
    if fault is not Fault.POLICY_APPROVAL:  # the layout of a network that is too large takes as long as the network
        monkeypatch.setattr(app_module, "check_plan", lambda *_: None)
    reply = running.ask(found, content_of(plan()))
    assert_fault(reply, fault)
    assert "reserve" not in running.kinds()
    assert fault.is_refusal


def test_nothing_is_built_of_a_plan_that_asks_for_more_than_the_owner_gives(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_plan(plan()).replace("[3]", str([4096] * 16))
    monkeypatch.setattr(app_module, "workplace", lambda *_: pytest.fail("a network was built"))
    change(running.home, BUDGET, OPEN, DATA, APPROVED, "[resources]\nmemory_mb = 1000\n")
    assert_fault(running.ask(text, RecordDict()), Fault.POLICY_RESOURCES)
    example = {"classes": ["a", "b"], "input_shape": [2**30, 2**30]}  # more numbers than can be counted
    data = {"name": "npz", "card": example}
    text = write_plan(Plan.model_validate({"data": data, "model": {"name": "mlp"}, "training": {"device": "cpu"}}))
    assert_fault(running.ask(text, RecordDict()), Fault.POLICY_RESOURCES)


def test_what_was_made_leaves_only_while_policy_approval_and_data_allow_it(running: Running) -> None:
    plain, private = plan(False), plan(privacy={"unprotected": ["examples"]})
    update, more = (
        ("arrays", "metrics.num-examples", "ledger.hash"),
        ("arrays", "metrics.num-examples", "metrics.examples"),
    )
    open_wide = OPEN + 'unprotected = ["examples"]\n'
    change(running.home, BUDGET, open_wide, DATA, APPROVED)
    assert running.site.allows(plain, update)
    assert running.site.allows(private, more)
    change(running.home, BUDGET, OPEN, DATA, APPROVED)  # the plan is still taken, without that field
    assert running.site.allows(private, update)
    assert not running.site.allows(private, more)
    change(running.home, BUDGET, DATA, APPROVED)
    assert not running.site.allows(plain, update)
    assert running.site.allows(private, update)
    change(running.home, BUDGET, APPROVED)
    assert not running.site.allows(private, update)
    change(running.home, BUDGET, DATA)
    assert not running.site.allows(private, update)
    running.site.approvals.add(private, "yes")
    assert running.site.allows(private, update)
    running.site.approvals.remove(private.digest())
    assert not running.site.allows(private, update)
    running.home.settings.unlink()
    assert not running.site.allows(private, ())


def test_a_plan_that_waits_is_kept_for_the_owner_and_runs_once_approved(running: Running) -> None:
    change(running.home, BUDGET, OPEN, DATA)
    found = plan()
    verdict = running.site.consider(write_plan(found), found.digest())
    assert (verdict.code, verdict.plan) == (PENDING, found)
    assert not running.site.is_approved(found.digest())
    assert PendingPlans(running.home.pending).digests() == (found.digest(),)
    assert PendingPlans(running.home.pending).read(found.digest()) == found
    running.site.approvals.add(found, "yes")
    assert running.site.is_approved(found.digest())
    assert considered(running, found) == ACCEPTED
    assert PendingPlans(running.home.pending).digests() == ()
    other = plan(seed=8)
    assert considered(running, other) == PENDING  # one digit more or less is another plan


@pytest.mark.parametrize(
    "text",
    ["", "no toml", "x = 1\n", "seed = 8\n", '[privacy]\nepsilon = 1.0\nnoise_multiplier = "a"\n'],
)
def test_a_text_that_is_no_plan_or_not_the_one_that_was_told_is_refused(running: Running, text: str) -> None:
    verdict = running.site.consider(text, plan().digest())
    assert verdict.fault is Fault.PLAN_MISMATCH
    assert "\n" not in verdict.reason
    assert PendingPlans(running.home.pending).digests() == ()


def test_principle_3_a_plan_that_promises_more_than_its_noise_gives_is_refused(running: Running) -> None:
    honest = plan()
    privacy = honest.privacy.model_copy(update={"epsilon": honest.privacy.epsilon / 2})  # type: ignore[operator]
    lying = honest.model_copy(update={"privacy": privacy})
    verdict = running.site.consider(write_plan(lying), lying.digest())
    assert verdict.fault is Fault.PLAN_MISMATCH
    assert "privacy.epsilon" in verdict.reason
    assert_fault(running.train(lying), Fault.PLAN_MISMATCH)


def test_a_plan_that_is_not_resolved_is_refused(running: Running) -> None:
    open_plan = plan().model_copy(update={"training": plan().training.model_copy(update={"steps": None})})
    assert considered(running, open_plan) == Fault.PLAN_MISMATCH


def test_what_a_stranger_writes_into_a_plan_can_not_fake_a_line_of_the_log(running: Running) -> None:
    text = '[model]\nname = "x\\u001b[2Jok\\nplan accepted"\n'
    verdict = running.site.consider(text, Plan().digest())
    assert "\x1b" not in verdict.reason
    assert "\n" not in verdict.reason
    named = plan()
    named = named.model_copy(update={"data": named.data.model_copy(update={"name": "x\x1b[2J\nplan accepted"})})
    verdict = running.site.consider(write_plan(named), named.digest())
    assert verdict.fault is Fault.SITE_DATA
    assert verdict.reason.isprintable()


def test_rule_6_who_a_person_is_says_the_owner(running: Running) -> None:
    change(running.home, PEOPLE, OPEN, APPROVED, DATA + 'person_column = "v"\n')
    of_people = plan(data=OF_PEOPLE)
    assert considered(running, of_people) == ACCEPTED
    assert not running.train(of_people).has_error()


def test_a_plan_of_a_million_clients_with_budgets_is_read_in_no_time() -> None:
    data = {"data": {"partition": {"kind": "iid", "clients": 2**31 - 1}}, "privacy": {"noise_multiplier": 1.0}}
    named = {**data, "privacy": {"noise_multiplier": 1.0, "client_budgets": {"0000000007": 1.0}}}
    assert Plan.model_validate(named).client_budget is not None
    nobody = {**data, "privacy": {"noise_multiplier": 1.0, "client_budgets": {"7": 1.0}}}
    with pytest.raises(ValueError, match="no client has the id '7'; allowed: '0000000000' to '2147483646'"):
        Plan.model_validate(nobody)


# --- the owner's files ---------------------------------------------------------------------------------------------


def test_settings_take_effect_with_the_next_task(running: Running) -> None:
    assert not running.train(plan()).has_error()
    change(running.home, OPEN, DATA, APPROVED)
    assert_fault(running.train(plan(), 2), Fault.POLICY_UNIT)
    change(running.home, BUDGET, OPEN, DATA, APPROVED)
    assert not running.train(plan(), 2).has_error()
    kinds = ["open", "policy", "reserve", "commit", "policy", "policy-unit", "policy", "reserve", "commit"]
    assert running.kinds() == kinds


@pytest.mark.parametrize("damage", ["gone", "no toml", "another site"])
def test_while_settings_can_not_be_read_nothing_is_allowed(
    running: Running, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = running.home.settings.read_text()
    if damage == "gone":
        running.home.settings.unlink()
    else:
        change(running.home, BUDGET, DATA, site="mercy" if damage == "another site" else '"')
    with caplog.at_level(logging.WARNING):
        assert_fault(running.train(plan()), Fault.POLICY_APPROVAL)
    assert "site.toml" in caplog.text
    assert considered(running, plan()) == Fault.POLICY_APPROVAL
    assert not running.site.is_approved(plan().digest())
    running.home.settings.write_text(text)
    assert not running.train(plan()).has_error()


def test_damaged_approvals_approve_nothing(running: Running) -> None:
    change(running.home, BUDGET, OPEN, DATA)
    running.site.approvals.add(plan(), "yes")
    assert not running.train(plan()).has_error()
    running.home.approvals.write_text("{")
    assert_fault(running.train(plan(), 2), Fault.POLICY_APPROVAL)
    assert considered(running, plan()) == Fault.POLICY_APPROVAL


# --- data that can't be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [f"0.1,{SECRET},a", f"0.1,0.2,{SECRET}", "inf,0.2,a"])
def test_rule_5_a_record_that_the_plans_card_does_not_describe_changes_no_replys_type(
    running: Running, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The card is the plan's: a failure would tell whoever wrote it that the record is there."""
    write_rows(running.home.path / "rows.csv", lines=[line])
    with caplog.at_level(logging.WARNING):
        assert not running.train(plan()).has_error()
    assert caplog.messages == []
    assert running.kinds() == ["open", "policy", "reserve", "commit"]


@pytest.mark.parametrize("lines", [[f"0.1,0.2,a,{SECRET}"], ["nan,inf,a", SECRET]])
def test_rule_5_data_that_can_not_be_used_gives_one_clear_line_and_never_a_value(
    running: Running, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(running.home.path / "rows.csv", lines=lines)
    with caplog.at_level(logging.WARNING):
        assert_fault(running.train(plan()), Fault.CLIENT_FAILED)
    (line,) = caplog.messages
    assert line.startswith("a train failed: the data for 'csv' can't be used; run `veil doctor --site ")
    assert SECRET not in caplog.text
    assert running.kinds() == ["open", "policy", "reserve", "client-failed"]  # paid for: data was touched


def test_a_column_that_is_not_there_is_no_secret_and_no_crash(running: Running) -> None:
    (running.home.path / "rows.csv").write_text(f"v,{SECRET}\n0.1,a\n")
    assert_fault(running.train(plan()), Fault.CLIENT_FAILED)
    assert_fault(running.train(plan()), Fault.CLIENT_FAILED)  # again under the same charge
    assert running.kinds().count("reserve") == 1


# --- the ledger ----------------------------------------------------------------------------------------------------


def test_a_repeated_task_gets_the_stored_reply_also_after_a_restart(running: Running) -> None:
    first = running.train(plan())
    running.restart()
    assert wire(running.train(plan()).content) == wire(first.content)
    assert running.kinds() == ["open", "policy", "reserve", "commit"]


def test_rule_8_an_older_copy_of_the_ledger_trains_nobody(running: Running, tmp_path: Path) -> None:
    running.train(plan())
    running.site.close()
    shutil.copy(running.home.ledger, tmp_path / "old")
    running.restart()
    second = running.train(plan(), 2)
    running.site.close()
    for suffix in ("-wal", "-shm"):
        running.home.ledger.with_name(f"ledger.sqlite{suffix}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "old", running.home.ledger)
    running.restart()
    assert_fault(running.train(plan(), 3), Fault.LEDGER_CLOSED)
    # Should the anchor have been put back as well, a server that remembers the second round's entry finds it out.
    running.site.close()
    with Ledger.open(running.home.ledger, read_only=True) as ledger:
        write_anchors(default_anchors(running.home.ledger), {"patients": ledger.head("patients")})
    running.restart()
    assert_fault(running.statement(plan(), **head_of(second)), Fault.LEDGER_CLOSED)
    assert not running.statement(plan()).has_error()


@pytest.mark.parametrize("lost", ["the ledger", "its anchor", "its folder"])
def test_a_lost_ledger_is_never_begun_anew(running: Running, lost: str) -> None:
    running.train(plan())
    running.site.close()
    ledger = running.home.ledger
    anchor = ledger.with_name("ledger.sqlite.anchor")
    if lost == "its folder":
        shutil.rmtree(ledger.parent)
        ledger.parent.mkdir()
    elif lost == "its anchor":
        anchor.unlink()
    else:
        ledger.unlink()
    with pytest.raises(LedgerError, match=r"veil ledger recover"):
        DeployedSite.open(running.home)
    assert ledger.exists() == (lost == "its anchor")


def test_the_first_run_begins_a_ledger_and_later_ones_open_it(home: SiteHome) -> None:
    assert not home.ledger.exists()
    for _ in range(2):
        DeployedSite.open(home).close()
    assert home.ledger.exists()
    assert home.ledger.stat().st_mode & 0o077 == 0
    home.ledger_note.unlink()  # a home of before there were notes
    DeployedSite.open(home).close()
    assert home.ledger_note.exists()


# --- what belongs together -----------------------------------------------------------------------------------------


def test_a_home_whose_parts_do_not_belong_together_is_not_opened(home: SiteHome, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").admit(tmp_path / "other-home", site="mercy")

    def swapped(name: str) -> None:
        path, theirs = getattr(home, name), getattr(other, name)
        kept = path.read_bytes()
        path.write_bytes(theirs.read_bytes())
        try:
            with pytest.raises(UsageError) as found:
                DeployedSite.open(home)
        finally:
            path.write_bytes(kept)
        assert "\n" not in str(found.value)
        assert not home.ledger.exists()

    for name in ("certificate", "authority_certificate", "identity_key", "roster", "approval"):
        swapped(name)
    DeployedSite.open(home).close()


@pytest.mark.parametrize("name", ["identity_key", "split_key", "certificate", "roster", "approval", "settings"])
def test_what_is_missing_is_named(home: SiteHome, name: str) -> None:
    path: Path = getattr(home, name)
    path.unlink()
    with pytest.raises(UsageError) as found:
        DeployedSite.open(home)
    assert str(path.parent if name in ("roster", "approval") else path) in str(found.value)


def test_rule_8_a_roster_that_this_site_has_not_approved_is_not_worked_with(made: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    home = authority.admit(tmp_path / "home")
    change(home, BUDGET, DATA)
    DeployedSite.open(home).close()
    newer = authority.admit(tmp_path / "mercy", site="mercy")
    shutil.copy(newer.roster, home.roster)
    with pytest.raises(UsageError, match=r"veil site roster"):
        DeployedSite.open(home)
    enrolment.approve_roster(home, enrolment.read_roster(home.roster), Identity.load(home.identity_key))
    DeployedSite.open(home).close()


def test_a_passphrase_is_needed_where_the_identity_has_one(tmp_path: Path) -> None:
    home = Authority(tmp_path / "authority").admit(tmp_path / "home", passphrase="open sesame")
    change(home, BUDGET, DATA)
    with pytest.raises(UsageError, match="needs its passphrase"):
        DeployedSite.open(home)
    DeployedSite.open(home, passphrase="open sesame").close()


def test_a_home_that_has_moved_is_not_opened(home: SiteHome) -> None:
    home.moved.write_text("{}")
    with pytest.raises(UsageError, match="to move elsewhere"):
        DeployedSite.open(home)


# --- which site ----------------------------------------------------------------------------------------------------


def test_an_app_told_to_work_for_a_site_that_is_not_here_simulates_nothing(running: Running) -> None:
    found = plan()
    assert_fault(running.ask(found, content_of(found), site="mercy"), Fault.CLIENT_FAILED)
    running.site.close()
    assert_fault(running.train(found), Fault.CLIENT_FAILED)
    context = client_context(run_id=1, node_id=1, client="x", config={"plan": ""}, state=RecordDict())
    assert registered_site(context) is None
    running.site = DeployedSite.open(running.home)
    register_site(running.site)
    assert not running.train(found).has_error()


def test_a_simulated_client_is_no_deployed_one(running: Running) -> None:
    context = client_context(run_id=1, node_id=1, client=SITE, config={"plan": "", "site": SITE}, state=RecordDict())
    assert registered_site(context) is running.site
    assert running.site.deployed
    assert HEAD_POSITION in head_of(running.train(plan()))
