"""The site's policy: what `site.toml` may say, what is wrong with it in one line, and what it allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from client.policy import Allow, Budget, ReleasePolicy, SitePolicy, read_policy, simulated_policy
from privacy.lifetime import Balance, Limit
from security.errors import UsageError
from shared_models.faults import Fault
from shared_models.plan import Plan
from tests.client.conftest import AT_CLIENTS, plan_of
from tests.client.secure_cohort import secure_plan

DOCS = Path(__file__).resolve().parents[2] / "docs" / "policy.md"
HEAD = 'site = "berlin"\nbudget_scope = "cardiology"\n'
BUDGET = '[[budget]]\nunit = "record"\ntrust = "local"\nepsilon = 8.0\ndelta = 1e-5\n'
FULL = f"""
site = "charite-1"
budget_scope = "cardiology.2019-2024"

[[budget]]
unit = "record"
trust = "local"
epsilon = 8.0
delta = 1e-5

[[budget]]
unit = "person"
trust = "distributed"
epsilon = 4.0
delta = 1e-6
filter = "sum"

[allow]
federations = ["heart", "lung"]
plans = ["{"a" * 64}"]
models = ["cnn", "mlp"]
least_noise_multiplier = 0.8
largest_clipping_norm = 2.0
least_honest = 5
least_cohort = 8
rounds_a_day = 50
unmasked_sums = false
reproducible_noise = false

[release]
entrust = ["heart"]
counts = true
statistics = true
unprotected = ["examples", "train-loss"]
statement = "epsilon"
every_seconds = 20.0
"""


def read(folder: Path, text: str) -> SitePolicy:
    (folder / "site.toml").write_text(text)
    return read_policy(folder / "site.toml")


def errors(folder: Path, text: str) -> list[str]:
    """What is wrong with a file, a line each, without the file's name."""
    with pytest.raises(UsageError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{folder}/site.toml: ") for line in lines)
    return [line.removeprefix(f"{folder}/site.toml: ") for line in lines]


# --- reading -------------------------------------------------------------------------------------------------------


def test_a_whole_policy_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, FULL) == SitePolicy(
        site="charite-1",
        budget_scope="cardiology.2019-2024",
        budget=(
            Budget(unit="record", trust="local", epsilon=8.0, delta=1e-5),
            Budget(unit="person", trust="distributed", epsilon=4.0, delta=1e-6, filter="sum"),
        ),
        allow=Allow(
            federations=("heart", "lung"),
            plans=("a" * 64,),
            models=("cnn", "mlp"),
            least_noise_multiplier=0.8,
            largest_clipping_norm=2.0,
            least_honest=5,
            least_cohort=8,
            rounds_a_day=50,
            unmasked_sums=False,
            reproducible_noise=False,
        ),
        release=ReleasePolicy(
            entrust=("heart",),
            counts=True,
            statistics=True,
            unprotected=("examples", "train-loss"),
            statement="epsilon",
            every_seconds=20.0,
        ),
    )


def test_every_key_of_a_policy_is_in_the_whole_one_and_is_documented() -> None:
    import tomllib

    raw = tomllib.loads(FULL)
    tables: list[tuple[type[Any], Mapping[str, Any]]] = [
        (SitePolicy, raw),
        (Budget, raw["budget"][1]),
        (Allow, raw["allow"]),
        (ReleasePolicy, raw["release"]),
    ]
    for section, given in tables:
        assert set(section.model_fields) == set(given)
        for name, field in section.model_fields.items():
            if name not in ("allow", "release"):
                assert (field.description or "").endswith("."), name


def test_the_example_of_the_documentation_is_a_policy_and_names_every_key(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8").split("```toml\n", 1)[1].split("```", 1)[0]
    text = text.replace('"3f2a..."', f'"{"3f2a" * 16}"')
    policy = read(tmp_path, text)
    assert policy.budget_for(Balance(unit="record", trust="local")) is not None
    for section in (SitePolicy, Budget, Allow, ReleasePolicy):
        for name in section.model_fields:
            assert f"{name} = " in text or f"[{name}]" in text, name


def test_the_documentation_names_every_code_that_a_client_may_answer_with() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for fault in Fault:
        if fault.name.startswith("POLICY_") or fault in (Fault.BUDGET_EXHAUSTED, Fault.LEDGER_CLOSED, Fault.REPLY_GONE):
            assert f"`{fault.reason}`" in text, fault.reason


def test_principle_2_a_policy_that_says_nothing_lets_nothing_out(tmp_path: Path) -> None:
    policy = read(tmp_path, HEAD)
    assert policy.refusal(plan_of(privacy={"noise": "secret"})) is Fault.POLICY_UNIT
    assert policy.refusal(plan_of(private=False)) is Fault.POLICY_ENTRUST
    assert (policy.release.counts, policy.release.unprotected, policy.release.statement) == (False, (), "totals")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HEAD + "[alow]\n",
            ["alow: unknown key; did you mean allow? allowed: site, budget_scope, budget, allow, release"],
        ),
        (
            HEAD + BUDGET.replace("epsilon", "epsilom"),
            [
                "budget.0.epsilon: missing, give it a value",
                "budget.0.epsilom: unknown key; did you mean epsilon? allowed: unit, trust, epsilon, delta, filter",
            ],
        ),
        (
            HEAD + BUDGET.replace("record", "example"),
            ["budget.0.unit = 'example': allowed: 'record', 'person', 'client'"],
        ),
        (
            HEAD + BUDGET + BUDGET.replace("local", "centrl"),
            ["budget.1.trust = 'centrl': did you mean central? allowed: 'local', 'distributed', 'central'"],
        ),
        (HEAD + BUDGET.replace("8.0", "0.0"), ["budget.0.epsilon = 0.0: should be greater than 0"]),
        (HEAD + BUDGET.replace("8.0", "inf"), ["budget.0.epsilon = inf: should be a finite number"]),
        (HEAD + BUDGET.replace("8.0", "nan"), None),
        (HEAD + BUDGET.replace("8.0", '"8"'), ["budget.0.epsilon = '8': should be a valid number"]),
        (HEAD + BUDGET.replace("1e-5", "1.0"), ["budget.0.delta = 1.0: should be less than 1"]),
        (HEAD + BUDGET.replace("[[budget]]", "[budget]"), None),
        (
            HEAD + BUDGET + BUDGET.replace("8.0", "9.0"),
            ["two budgets for unit = 'record', trust = 'local'; keep one of them"],
        ),
        (HEAD + '[allow]\nmodels = "cnn"\n', ["allow.models = 'cnn': should be a list"]),
        (HEAD + "[allow]\nmodels = [1]\n", ["allow.models.0 = 1: should be a valid string"]),
        (
            HEAD + '[allow]\nplans = ["a1b2"]\n',
            ["allow.plans.0 = 'a1b2': should match pattern '^[0-9a-f]{64}$'"],  # a short digest would allow nothing
        ),
        (HEAD + "[allow]\nrounds_a_day = 0\n", ["allow.rounds_a_day = 0: should be greater than or equal to 1"]),
        (HEAD + "[allow]\nrounds_a_day = 1.5\n", None),
        (HEAD + "[allow]\nreproducible_noise = 1\n", None),
        (
            HEAD + '[release]\nunprotected = ["accuracy"]\n',
            ["release.unprotected.0 = 'accuracy': allowed: 'examples', 'train-loss'"],
        ),
        (HEAD + '[release]\nstatement = "all"\n', ["release.statement = 'all': allowed: 'epsilon', 'totals', 'full'"]),
        ('site = "berlin"\n', ["budget_scope: missing, give it a value"]),
        ('site = "a b"\nbudget_scope = "x"\n', None),
        ('site = "a"\nbudget_scope = "../x"\n', None),
        ('site = "a"\nbudget_scope = "x\\n"\n', None),
        ("site = ", None),
    ],
)
def test_what_is_wrong_with_a_policy_is_said_in_one_line_each(
    tmp_path: Path, text: str, expected: list[str] | None
) -> None:
    found = errors(tmp_path, text)
    if expected is None:
        assert len(found) == 1
    else:
        assert found == expected


def test_a_policy_that_can_not_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml: can't be read \(No such file or directory\)"):
        read_policy(tmp_path / "nothing.toml")
    (tmp_path / "site.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"site\.toml: can't be read \(not UTF-8 text\)"):
        read_policy(tmp_path / "site.toml")
    (error,) = errors(tmp_path, HEAD + "a" + ".a" * 5000 + " = 1")
    assert error.startswith(("tables within tables", "a: unknown key"))


def test_a_policy_can_not_be_changed_in_memory() -> None:
    policy = SitePolicy(site="a", budget_scope="a")
    with pytest.raises(ValidationError, match="frozen"):
        policy.allow.rounds_a_day = 3  # type: ignore[misc]


# --- the digest ----------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_meaning_and_not_of_the_text(tmp_path: Path) -> None:
    digest = read(tmp_path, FULL).digest()
    parts = FULL.strip().split("\n\n")
    shuffled = "\n\n".join([parts[0], parts[4], "# a comment\n" + parts[1], parts[2], parts[3]])
    assert read(tmp_path, shuffled).digest() == digest
    assert read(tmp_path, FULL.replace("epsilon = 8.0", "epsilon = 8")).digest() == digest
    assert read(tmp_path, FULL.replace("reproducible_noise = false\n", "")).digest() == digest


def test_the_digest_is_of_everything(tmp_path: Path) -> None:
    changes = {
        '"charite-1"': '"charite-2"',
        "2019-2024": "2019-2025",
        "epsilon = 8.0": "epsilon = 8.000000000000002",
        "delta = 1e-6": "delta = 2e-6",
        '"person"': '"client"',
        '"distributed"': '"central"',
        '"sum"': '"rdp"',
        '["heart", "lung"]': '["heart"]',
        "a" * 64: "b" * 64,
        '["cnn", "mlp"]': '["cnn"]',
        "least_noise_multiplier = 0.8": "least_noise_multiplier = 0.9",
        "largest_clipping_norm = 2.0": "largest_clipping_norm = 1.0",
        "least_honest = 5": "least_honest = 6",
        "least_cohort = 8": "least_cohort = 7",
        "rounds_a_day = 50": "rounds_a_day = 51",
        "unmasked_sums = false": "unmasked_sums = true",
        "reproducible_noise = false": "reproducible_noise = true",
        'entrust = ["heart"]': "entrust = []",
        "counts = true": "counts = false",
        '["examples", "train-loss"]': '["examples"]',
        'statement = "epsilon"': 'statement = "full"',
    }
    digests = {read(tmp_path, FULL).digest()}
    for old, new in changes.items():
        assert FULL.count(old) == 1, old
        digests.add(read(tmp_path, FULL.replace(old, new)).digest())
    assert len(digests) == len(changes) + 1


def test_the_digest_is_that_of_the_json_in_the_ledger_and_the_same_in_every_process(tmp_path: Path) -> None:
    policy = read(tmp_path, FULL)
    code = (
        "import sys; from pathlib import Path; from client.policy import read_policy; "
        "print(read_policy(Path(sys.argv[1])).digest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site.toml")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
    )
    assert found.stdout.strip() == policy.digest()
    assert SitePolicy.model_validate_json(json.dumps(policy.to_json())).digest() == policy.digest()


# --- what it allows ------------------------------------------------------------------------------------------------


def test_a_budget_limits_the_balance_it_names(tmp_path: Path) -> None:
    policy = read(tmp_path, FULL)
    budget = policy.budget_for(Balance(unit="person", trust="distributed"))
    assert budget is not None
    assert budget.limit == Limit(epsilon=4.0, delta=1e-6, filter="sum")
    assert policy.budget_for(Balance(unit="person", trust="local")) is None


def allowing(plan: Plan, **allow: Any) -> SitePolicy:
    policy = simulated_policy(plan, "0")
    return policy.model_copy(update={"allow": Allow(**{"reproducible_noise": True, **allow})})


@pytest.mark.parametrize(
    ("allow", "fault"),
    [
        ({}, None),
        ({"federations": ("digits",)}, None),
        ({"federations": ("Digits", "digit")}, Fault.POLICY_FEDERATION),
        ({"federations": ()}, Fault.POLICY_FEDERATION),
        ({"models": ("cnn", "mlp")}, None),
        ({"models": ("cnn",)}, Fault.POLICY_MODEL),
        ({"plans": ("0" * 64,)}, Fault.POLICY_PLAN),
        ({"least_noise_multiplier": 3.0}, None),
        ({"least_noise_multiplier": 3.0000001}, Fault.POLICY_NOISE),
        ({"largest_clipping_norm": 1.0}, None),
        ({"largest_clipping_norm": 0.9999999}, Fault.POLICY_CLIPPING),
        ({"reproducible_noise": False}, Fault.POLICY_NOISE),
    ],
)
def test_what_is_allowed_is_compared_exactly(allow: dict[str, Any], fault: Fault | None) -> None:
    plan = plan_of()
    assert allowing(plan, **allow).refusal(plan) is fault
    assert allowing(plan, plans=(plan.digest(), "0" * 64)).refusal(plan) is None


def test_of_a_norm_that_adapts_the_bound_is_about_where_it_may_go() -> None:
    privacy = {"unit": "client", "trust": "distributed", "clipping_norm": 0.5, "adaptive": {"most_norm": 2.0}}
    plan = secure_plan(10, privacy)
    assert allowing(plan, largest_clipping_norm=2.0).refusal(plan) is None
    assert allowing(plan, largest_clipping_norm=1.9).refusal(plan) is Fault.POLICY_CLIPPING


def test_bounds_on_noise_and_norm_are_for_private_steps() -> None:
    plan = plan_of(private=False)
    assert allowing(plan, least_noise_multiplier=9.0, largest_clipping_norm=0.1).refusal(plan) is None


@pytest.mark.parametrize(
    ("allow", "fault"),
    [
        ({}, None),
        ({"least_honest": 5, "least_cohort": 10}, None),
        ({"least_honest": 6}, Fault.POLICY_SECURE_SUM),
        ({"least_cohort": 11}, Fault.POLICY_SECURE_SUM),
    ],
)
def test_rule_8_a_site_says_on_how_many_others_a_secure_sum_may_count(
    allow: dict[str, Any], fault: Fault | None
) -> None:
    plan = secure_plan(10)  # honest = 0.5 of them
    assert allowing(plan, **allow).refusal(plan) is fault
    # A plan without secure sums counts on nobody.
    local = plan_of()
    assert allowing(local, **allow).refusal(local) is None


def test_rule_8_a_single_honest_client_hides_among_nobody_and_is_refused_unless_the_owner_says_otherwise() -> None:
    plan = secure_plan(10, secure_sum={"honest": 0.1})
    assert allowing(plan).refusal(plan) is Fault.POLICY_SECURE_SUM
    assert allowing(plan, least_honest=1).refusal(plan) is None
    assert simulated_policy(plan, "0").refusal(plan) is None


@pytest.mark.parametrize("unit", ["client", "example"])
def test_principle_2_sums_without_masks_are_for_who_says_so(unit: str) -> None:
    """Without them the server would see each client's share of noise on its own data, and no more."""
    plan = secure_plan(10, private={"unit": unit}, secure_sum={"masks": False}, training={"steps": 1})
    assert allowing(plan).refusal(plan) is Fault.POLICY_SECURE_SUM
    assert allowing(plan, unmasked_sums=True).refusal(plan) is None
    assert simulated_policy(plan, "0").refusal(plan) is None
    with_masks = secure_plan(10, private={"unit": unit}, training={"steps": 1})
    assert allowing(with_masks).refusal(with_masks) is None


def test_rule_5_a_refusal_is_always_one_that_the_server_knows_as_such() -> None:
    for fault in Fault:
        if fault.name.startswith("POLICY_"):
            assert fault.is_refusal


# --- the virtual clients of a simulation ---------------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("changes", [{}, {"evaluation": AT_CLIENTS}])
def test_a_virtual_client_allows_its_own_plan(private: bool, changes: dict[str, Any]) -> None:
    plan = plan_of(private, **changes)
    policy = simulated_policy(plan, "07")
    assert policy.refusal(plan) is None
    assert policy.budget_scope == "07"
    assert policy.release.counts == plan.evaluates_at_clients
    assert policy.release.statement == "full"


def test_a_virtual_client_has_the_budget_that_the_plan_gives_it() -> None:
    plan = plan_of(privacy={"client_budgets": {"1": 0.5, "2": 1e6}, "budget": 1.0})
    limits = [simulated_policy(plan, client).budget[0] for client in ("0", "1", "2")]
    assert [limit.epsilon for limit in limits] == [1.0, 0.5, plan.privacy.epsilon]
    assert {(limit.unit, limit.trust, limit.delta) for limit in limits} == {("record", "local", plan.privacy.delta)}
    people = plan_of(data={"person_column": "who", "max_rows_per_person": 4})
    assert simulated_policy(people, "0").budget[0].unit == "person"


def test_a_virtual_client_entrusts_its_server_only_without_privacy_and_lets_out_what_the_plan_asks() -> None:
    plain = plan_of(private=False)
    assert simulated_policy(plain, "0").release.entrust == (plain.name,)
    assert simulated_policy(plain, "0").budget == ()
    private = plan_of(privacy={"unprotected": ["examples"]})
    assert simulated_policy(private, "0").release.entrust == ()
    assert simulated_policy(private, "0").release.unprotected == ("examples",)
