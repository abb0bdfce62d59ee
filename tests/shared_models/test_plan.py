"""What a plan may say: every key strict and documented, every impossible combination refused, one digest."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from privacy.lifetime import Balance, Terms, multiset
from privacy.mechanisms import DpSgd, NoisyCounts, Release
from shared_models import plan as plan_module
from shared_models import plan_asynchronous as plan_asynchronous_module
from shared_models import plan_data as plan_data_module
from shared_models import plan_features as plan_features_module
from shared_models import plan_federation as plan_federation_module
from shared_models import plan_personal as plan_personal_module
from shared_models import plan_secure_sum as plan_secure_sum_module
from shared_models.plan import Plan
from shared_models.plan_federation import MEAN_STRATEGIES, ROBUST_STRATEGIES
from shared_models.plan_section import Section

PLAN_MODULES = (
    plan_module,
    plan_asynchronous_module,
    plan_data_module,
    plan_features_module,
    plan_federation_module,
    plan_personal_module,
    plan_secure_sum_module,
)

Path = tuple[str | int, ...]

PEOPLE: dict[str, Any] = {"person_column": "who", "max_rows_per_person": 4}

CARD: dict[str, Any] = {
    "classes": ["no", "yes"],
    "target": "y",
    "columns": {
        "age": {"kind": "numeric", "low": 0.0, "high": 99.0, "spread": 2.0},
        "sex": {"kind": "categorical", "values": ["f"]},
    },
    "missing": ["?"],
    "input_shape": [1, 8, 8],
    "mean": 0.5,
    "std": 2.0,
}

# Plans that between them use every table and give every key that can be given.
RICH: dict[str, dict[str, Any]] = {
    "private": {
        "name": "rich",
        "seed": 3,
        "data": {
            "name": "csv",
            "path": "a.csv",
            "partition": {"kind": "dirichlet", "clients": 12, "alpha": 0.3, "min_size": 2},
            "leave_out": ["00", "07"],
            "test_fraction": 0.3,
            "person_column": "who",
            "max_rows_per_person": 4,
            "card": CARD,
        },
        "model": {"name": "mlp", "options": {"hidden": [3, 4], "activation": "tanh"}, "frozen": "0" * 64},
        "training": {
            "optimizer": "adamw",
            "learning_rate": 0.2,
            "momentum": 0.5,
            "betas": [0.8, 0.9],
            "weight_decay": 0.01,
            "schedule": {"kind": "cosine", "warmup_rounds": 2, "final_fraction": 0.1},
            "steps": 5,
            "sample_rate": 0.2,
            "expected_batch_size": 8,
            "company": 10,
            "label_smoothing": 0.1,
            "class_weights": [1.0, 2.5],
            "augment": {"copies": 4, "shift": 2, "flip": True, "scale": 0.1, "turn": 0.2, "jitter": 0.05},
            "max_physical_batch": 4,
            "dp_engine": "opacus",
            "precision": "bfloat16",
            "proximal_mu": 0.1,
            "device": "cpu",
            "threads": 2,
        },
        "privacy": {
            "unit": "example",
            "trust": "local",
            "epsilon": 3.0,
            "noise_multiplier": 1.5,
            "calibrated_from": "noise_multiplier",
            "delta": 1e-6,
            "clipping_norm": 0.7,
            "clipping": "automatic",
            "budget": 2.0,
            "client_budgets": {"03": 1.5, "11": 0.5},
            "unprotected": ["examples", "train-loss"],
            "noise": "reproducible",
            "selection": "public",
        },
        "federation": {
            "rounds": 4,
            "cohort": {"sampling": "poisson", "rate": 0.5},
            "strategy": "fedadam",
            "strategy_options": {"eta": 0.01, "n": 3, "flag": True, "mode": "a"},
            "model_average": 0.9,
            "min_clients": 2,
            "weighting": "uniform",
            "wire": "float16",
            "round_timeout": 9.5,
        },
        "evaluation": {
            "where": "server",
            "count_noise": 5.0,
            "per_class": False,
            "every": 2,
            "metric": "loss",
            "target": 0.5,
            "patience": 3,
            "batch_size": 64,
            "baselines": True,
        },
    },
    "statistics": {
        "data": {"name": "csv", "path": "a.csv", "card": CARD},
        "privacy": {"epsilon": 0.5},
        "statistics": {"columns": ["age", "y"], "bins": 8, "edges": {"age": [20.0, 65.0]}, "most_records": 5000},
    },
    "normalised": {
        "data": {
            "name": "csv",
            "path": "a.csv",
            "card": CARD,
            "normalisation": {"statistics": "0" * 64, "columns": {"age": {"mean": 40.0, "scale": 12.5}}},
        },
    },
    "plain": {
        "data": {"partition": {"kind": "natural", "column": "site"}},
        "training": {"epochs": 2, "schedule": {"kind": "step", "warmup_rounds": 1, "every": 3, "factor": 0.5}},
        "privacy": {"trust": "none"},
        "federation": {"cohort": {"sampling": "all"}, "weighting": "examples"},
    },
    "fixed": {
        "data": {"partition": {"kind": "pathological", "clients": 5, "classes_per_client": 3}},
        "features": {"name": "scattering", "source": "0" * 64},
        "personal": {"kind": "finetune", "epochs": 2, "learning_rate": 0.03},
        "training": {"schedule": {"kind": "constant", "warmup_rounds": 1}, "gradient_checkpointing": True},
        "federation": {"cohort": {"sampling": "fixed", "size": 4}, "wire": "top-k", "top_fraction": 0.25},
    },
    "secure": {
        "privacy": {
            "unit": "client",
            "trust": "distributed",
            "epsilon": 50.0,
            "noise_multiplier": 1.5,
            "calibrated_from": "noise_multiplier",
            "clipping_norm": 0.5,
        },
        "secure_sum": {
            "honest": 0.6,
            "corrupt": 0.2,
            "noise": "skellam",
            "rotation": True,
            "spare_rounds": 2,
            "phase_timeout": 5.0,
            "masks": False,
            "clients": 5,
            "dimension": 128,
            "grid": 0.5 / 2048,
            "noise_share": 1.5 * 2048 / math.sqrt(3),
            "bits": 32,
        },
    },
    "central": {
        "data": {"partition": {"kind": "natural", "column": "site"}},
        "privacy": {"unit": "client", "trust": "central", "epsilon": 3.0},
        "federation": {"cohort": {"sampling": "fixed", "size": 4}, "population": 40},
    },
    "adaptive": {
        "privacy": {
            "unit": "client",
            "trust": "central",
            "epsilon": 3.0,
            "adaptive": {"quantile": 0.6, "rate": 0.3, "count_noise": 9.0, "least_norm": 0.01, "most_norm": 50.0},
        },
        "federation": {"cohort": {"sampling": "poisson", "rate": 0.5}},
    },
    "correlated": {
        "data": {"partition": {"kind": "iid", "clients": 8}},
        "privacy": {
            "unit": "client",
            "trust": "central",
            "epsilon": 3.0,
            "correlated": {
                "band": 2,
                "separation": 3,
                "participations": 2,  # in five rounds
                "factorisation": "4e5a47ff1d277c23ef6c140dc3b8409c09d1afbbefc4ec21ac9b1839df426360",
            },
        },
        "federation": {"rounds": 5, "cohort": {"sampling": "fixed", "size": 2}},
    },
    "texts": {
        "data": {
            "name": "sentiment",
            "partition": {"kind": "iid", "clients": 4},
            "text": {"tokens": "words", "vocabulary": 500, "places": 30},
            "card": {"classes": ["a", "b"], "target": "y", "text": "note"},
        },
        "evaluation": {"where": "none"},
        "personal": {"kind": "head", "layers": ["last", "norm.weight"]},
    },
    "skewed": {
        "data": {"partition": {"kind": "size-skewed", "clients": 5, "growth": "square"}},
        "federation": {
            "asynchronous": {
                "buffer": 2,
                "concurrency": 3,
                "exponent": 0.7,
                "most_staleness": 4,
                "participations": 9,
                "spread": 0.2,
                "jitter": 0.3,
            }
        },
    },
    "iid": {
        "data": {"partition": {"kind": "iid", "clients": 5}},
        "personal": {"kind": "ditto", "pull": 0.5, "learning_rate": 0.03},
    },
}


def sections_under(annotation: Any) -> Iterator[type[Section]]:
    """The tables that a type can hold, its own included."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections_under(field.annotation)
    elif get_origin(annotation) in (Union, types.UnionType, dict) or hasattr(annotation, "__metadata__"):
        for argument in get_args(annotation):
            yield from sections_under(argument)


def sections_in(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        for key in type(value).model_fields:
            yield from sections_in(getattr(value, key))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from sections_in(item)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Key path and value of everything in a plan that is no table."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    else:
        yield path, value


def put(document: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of a document with one value replaced, or added."""
    changed = copy.deepcopy(document)
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def changed_plan(value: Any, path: Path, new: Any) -> Any:
    """A plan with one leaf replaced and nothing checked: a digest must see also what no valid plan holds."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    if isinstance(value, BaseModel):
        return value.model_copy(update={str(head): changed_plan(getattr(value, str(head)), rest, new)})
    if isinstance(value, Mapping):
        return {**value, head: changed_plan(value[head], rest, new)}
    items = list(value)
    items[int(head)] = changed_plan(items[int(head)], rest, new)
    return type(value)(items)


def refusal(document: dict[str, Any]) -> list[tuple[Path, str]]:
    """Where and why a document is refused; nothing if it is a plan."""
    try:
        Plan.model_validate(document)
    except ValidationError as error:
        return [(detail["loc"], detail["type"]) for detail in error.errors()]
    return []


LEAVES = [
    pytest.param(name, path, value, id=f"{name}:{'.'.join(map(str, path))}")
    for name, document in RICH.items()
    for path, value in leaves(document)
    if path[:2] != ("model", "options")  # the network's own: it checks them when the plan is resolved
]


def test_the_plans_of_this_test_use_every_table_and_key() -> None:
    found = [section for document in RICH.values() for section in sections_in(Plan.model_validate(document))]
    for kind in set(sections_under(Plan)):
        keys = [section.model_fields_set for section in found if type(section) is kind]
        assert set().union(*keys) == set(kind.model_fields), kind.__name__


# --- every key says what it means ----------------------------------------------------------------------------------


@pytest.mark.parametrize("section", sorted(set(sections_under(Plan)), key=lambda kind: kind.__name__))
def test_every_key_is_documented(section: type[Section]) -> None:
    assert (section.__doc__ or "").strip()
    for key, field in section.model_fields.items():
        is_table = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if not is_table:
            text = (field.description or "").strip()
            assert text.endswith("."), f"{section.__name__}.{key} is not documented"
            assert "\n" not in text


def test_the_plan_modules_define_no_table_that_a_plan_can_not_hold() -> None:
    names = [one for module in PLAN_MODULES for one in vars(module).values()]
    defined = {kind for kind in names if isinstance(kind, type) and issubclass(kind, Section)}
    assert defined - {Section} == set(sections_under(Plan))


# --- strictness ----------------------------------------------------------------------------------------------------


WRONG: dict[type, list[Any]] = {
    bool: [0, 1, "true", 1.0],
    int: [True, 1.0, "1", 2.5, [1], {}, 2**64],
    float: [True, "1.0", float("inf"), float("-inf"), float("nan"), [1.0], {}, 10**400],
    str: [1, True, 1.5, ["a"], {}],
}


@pytest.mark.parametrize(("name", "path", "value"), LEAVES)
def test_a_wrong_type_is_refused_where_it_stands(name: str, path: Path, value: Any) -> None:
    wrong: list[Any] = WRONG[type(value)]
    if path[:2] == ("federation", "strategy_options"):
        wrong = [float("nan"), float("inf"), [1], {}, None]
    for other in wrong:
        found = refusal(put(RICH[name], path, other))
        where = {tuple(part for part in location if part in path) for location, _ in found}
        # Without a known tag there is no telling which table it is: the error is then the table's.
        assert (path[:-1] if path[-1] in ("kind", "sampling") else path) in where, f"{other!r} gave {found}"


@pytest.mark.parametrize("name", RICH)
def test_an_unknown_key_is_refused_in_every_table(name: str) -> None:
    tables = {path[:n] for path, _ in leaves(RICH[name]) for n in range(len(path))}
    tables = {path for path in tables if isinstance(_at(RICH[name], path), dict)}
    free = {
        ("model", "options"),
        ("federation", "strategy_options"),
        ("data", "card", "columns"),
        ("data", "normalisation", "columns"),
        ("statistics", "edges"),
        ("privacy", "client_budgets"),
    }
    for path in tables - free:
        found = refusal(put(RICH[name], (*path, "nonsense"), 1))
        assert [(location[-1], kind) for location, kind in found] == [("nonsense", "extra_forbidden")], path


def _at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), ""),
        (("name",), "../x"),
        (("name",), ".hidden"),
        (("name",), "a\n"),
        (("name",), "a b"),
        (("seed",), -1),
        (("seed",), 2**63),
        (("data", "test_fraction"), -0.1),
        (("data", "test_fraction"), 1.0),
        (("data", "max_rows_per_person"), 0),
        (("data", "max_rows_per_person"), 1001),  # the accountant can't price it
        (("data", "partition", "clients"), 0),
        (("data", "partition", "clients"), 2**31),
        (("data", "partition", "alpha"), 0.0),
        (("data", "partition", "min_size"), -1),
        (("data", "card", "classes"), ["one"]),
        (("data", "card", "columns", "sex", "values"), []),
        (("data", "card", "input_shape"), [1, 0]),
        (("data", "card", "std"), 0.0),
        (("training", "learning_rate"), 0.0),
        (("training", "momentum"), 1.0),
        (("training", "momentum"), -0.1),
        (("training", "betas"), [0.9]),
        (("training", "betas"), [0.9, 0.9, 0.9]),
        (("training", "betas"), [0.9, 1.0]),  # torch refuses it too, but only in every client's training
        (("training", "betas"), [-0.1, 0.9]),
        (("training", "weight_decay"), -1.0),
        (("training", "steps"), 0),
        (("training", "sample_rate"), 0.0),
        (("training", "sample_rate"), 1.1),
        (("training", "expected_batch_size"), 0),
        (("training", "max_physical_batch"), 0),
        (("training", "proximal_mu"), -0.1),
        (("training", "device"), "gpu"),
        (("training", "threads"), 0),
        (("training", "schedule", "warmup_rounds"), -1),
        (("training", "schedule", "final_fraction"), 1.1),
        (("privacy", "epsilon"), 0.0),
        (("privacy", "noise_multiplier"), 0.0),
        (("privacy", "noise_multiplier"), 1e-5),  # the accountant can't price it
        (("privacy", "noise_multiplier"), 1e200),
        (("privacy", "delta"), 0.0),
        (("privacy", "delta"), 1.0),
        (("privacy", "clipping_norm"), 0.0),
        (("privacy", "clipping_norm"), 1e-10),  # the private step refuses it, but only in every client's training
        (("privacy", "clipping_norm"), 1e10),
        (("privacy", "budget"), 0.0),
        (("privacy", "client_budgets", "03"), 0.0),
        (("privacy", "client_budgets", "3"), 1.0),  # an id that no client has: the budget would hold nobody back
        (("privacy", "client_budgets", "12"), 1.0),
        (("privacy", "unprotected"), ["accuracy"]),
        (("federation", "rounds"), 0),
        (("federation", "cohort", "rate"), 0.0),
        (("federation", "cohort", "rate"), 1.5),
        (("federation", "min_clients"), 0),
        (("federation", "round_timeout"), 0.0),
        (("evaluation", "count_noise"), 0.0),
        (("evaluation", "count_noise"), 2.0**35),  # no source draws it, but only in every client's evaluation
        (("evaluation", "every"), 0),
        (("evaluation", "patience"), 0),
        (("evaluation", "batch_size"), 0),
    ],
)
def test_a_value_out_of_range_is_refused(path: Path, value: Any) -> None:
    assert refusal(RICH["private"]) == []
    assert refusal(put(RICH["private"], path, value))


@pytest.mark.parametrize("name", [*MEAN_STRATEGIES, *ROBUST_STRATEGIES, "mine:Strategy", "my.own_1:_Best2"])
def test_strategies_that_may_be_named(name: str) -> None:
    document = {"training": {"proximal_mu": 0.1}, "federation": {"strategy": name}}
    assert Plan.model_validate(document).federation.strategy == name


@pytest.mark.parametrize("name", ["", "FedAvg", "fedavg ", "mine", "mine:", ":Best", "a b:C", "os:system()", "a:b\n"])
def test_strategies_that_may_not_be_named(name: str) -> None:
    assert refusal({"federation": {"strategy": name}})


# --- combinations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"data": {"person_column": "who"}}, "person_column needs max_rows_per_person"),
        ({"data": {"max_rows_per_person": 3}}, "max_rows_per_person needs person_column"),
        ({"training": {"steps": 3, "epochs": 3}, "privacy": {"trust": "none"}}, "give steps or epochs, not both"),
        (
            {"data": {"card": {**CARD, "columns": {"a": {"kind": "numeric", "low": 2.0, "high": 2.0}}}}},
            "low = 2.0 must be below high = 2.0",
        ),
        ({"privacy": {}}, "give epsilon (a target) or noise_multiplier"),
        ({"privacy": {"epsilon": 1.0, "noise_multiplier": 1.0}}, "give epsilon or noise_multiplier, not both"),
        ({"privacy": {"epsilon": 1.0, "calibrated_from": "epsilon"}}, "calibrated_from stands in a resolved plan"),
        (
            {"privacy": {"noise_multiplier": 1.0, "calibrated_from": "epsilon"}},
            "calibrated_from stands in a resolved plan",
        ),
        ({"privacy": {"unit": "client", "epsilon": 1.0}}, "unit = 'client' with trust = 'local' is not offered"),
        ({"privacy": {"trust": "central", "epsilon": 1.0}}, "unit = 'example' with trust = 'central' is not offered"),
        ({"federation": {"weighting": "examples"}}, "would release each client's number of records"),
        ({"federation": {"wire": "top-k"}}, "wire = 'top-k' needs top_fraction"),
        ({"federation": {"wire": "int8", "top_fraction": 0.1}}, "belongs to wire = 'top-k', not to 'int8'"),
        *(
            (
                {"privacy": {"unit": "client", "trust": trust, "epsilon": 1.0}, "federation": form},
                f"changes each update after it was clipped, and privacy.trust = '{trust}' counts on clipped ones",
            )
            for trust in ("central", "distributed")
            for form in ({"wire": "int8"}, {"wire": "top-k", "top_fraction": 0.1})
        ),
        ({"training": {"epochs": 1}}, "training.epochs depends on each client's number of records"),
        ({"federation": {"strategy": "fedprox"}}, "needs training.proximal_mu > 0"),
        ({"evaluation": {"where": "none", "patience": 1}}, "need evaluation.where = 'server'"),
        ({"evaluation": {"where": "none", "target": 0.9}}, "need evaluation.where = 'server'"),
        ({"evaluation": {"where": "none", "target": 0.0, "metric": "loss"}}, "need evaluation.where = 'server'"),
        ({"data": {"test_fraction": 0.0}}, "leaves nothing to judge the model on, with evaluation.where = 'server'"),
        (
            {"data": {"test_fraction": 0.0}, "evaluation": {"where": "clients"}},
            "leaves nothing to judge the model on, with evaluation.where = 'clients'",
        ),
        (
            {"evaluation": {"where": "clients", "metric": "auc"}},
            "evaluation.metric = 'auc' can't be computed from clients' counts",
        ),
        (
            {"evaluation": {"where": "clients", "baselines": True}},
            "evaluation.baselines needs evaluation.where = 'server'",
        ),
        (
            {"evaluation": {"where": "none", "baselines": True}},
            "evaluation.baselines needs evaluation.where = 'server'",
        ),
        (
            {
                "data": {"partition": {"kind": "iid", "clients": 12}},
                "privacy": {"epsilon": 8.0, "client_budgets": {"3": 1.0}},
            },
            "privacy.client_budgets: no client has the id '3'; allowed: '00' to '11'",
        ),
        (
            {
                "data": {"partition": {"kind": "iid", "clients": 3}},
                "federation": {"cohort": {"sampling": "fixed", "size": 4}},
            },
            "federation.cohort.size = 4 is more than data.partition.clients = 3",
        ),
        (
            {"data": {"partition": {"kind": "iid", "clients": 3}}, "federation": {"min_clients": 4}},
            "federation.min_clients = 4 is more than data.partition.clients = 3",
        ),
        (
            {"data": {**PEOPLE, "partition": {"kind": "natural", "column": "who"}}},
            "data.partition.column = 'who' is data.person_column too: each client's id would be a person's name, told "
            "to the server; under privacy allowed: another column, or another kind of partition",
        ),
        *(
            (
                {
                    "privacy": {"unit": unit, "trust": trust, "epsilon": 1.0},
                    "federation": {"strategy": strategy},
                },
                "needs every single update",
            )
            for unit, trust in (("example", "distributed"), ("client", "distributed"), ("client", "central"))
            for strategy in ROBUST_STRATEGIES
        ),
    ],
)
def test_what_can_not_go_together_is_refused_with_a_reason(document: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(document)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {"data": {**PEOPLE, "partition": {"kind": "natural", "column": "who"}}, "privacy": {"trust": "none"}},
        {"data": {**PEOPLE, "partition": {"kind": "natural", "column": "site"}}},
        {"data": {**PEOPLE, "partition": {"kind": "iid"}}},
        {"data": {"partition": {"kind": "natural", "column": "who"}}},
    ],
)
def test_clients_may_have_any_names_but_those_of_persons_under_privacy(document: dict[str, Any]) -> None:
    assert refusal(document) == []


def test_numbers_that_only_make_sense_under_privacy_are_ignored_without_it() -> None:
    plan = Plan.model_validate({"privacy": {"trust": "none", "epsilon": 1.0, "noise_multiplier": 1.0}})
    assert not plan.is_private
    assert plan.train_release() is None


# --- what follows from a plan --------------------------------------------------------------------------------------


def test_a_plan_that_says_nothing_is_a_good_and_private_plan() -> None:
    plan = Plan()
    assert Plan.model_validate({}) == plan
    assert (plan.is_private, plan.privacy.unit, plan.privacy.trust, plan.privacy.noise) == (
        True,
        "example",
        "local",
        "secret",
    )
    assert plan.training.local_steps == 10


def test_rule_1_under_privacy_the_weight_is_a_public_constant() -> None:
    assert Plan().weighting == "uniform"
    assert Plan.model_validate({"privacy": {"trust": "none"}}).weighting == "examples"
    assert Plan.model_validate(RICH["private"]).weighting == "uniform"


def test_a_round_releases_the_plans_public_constants() -> None:
    plan = Plan.model_validate(RICH["private"])
    assert plan.train_release() == DpSgd(noise_multiplier=1.5, sample_rate=0.2, steps=5, records_per_unit=4)
    record = put(put(RICH["private"], ("data", "person_column"), None), ("data", "max_rows_per_person"), None)
    assert Plan.model_validate(record).train_release() == DpSgd(noise_multiplier=1.5, sample_rate=0.2, steps=5)
    with pytest.raises(ValueError, match="not resolved"):
        Plan().train_release()


def test_a_plan_can_not_be_changed() -> None:
    plan = Plan()
    for section, key, value in ((plan, "seed", 1), (plan.privacy, "epsilon", 9.0), (plan.training, "steps", 1)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, value)


def test_rule_6_a_plan_that_bounds_a_persons_records_charges_the_person_and_never_the_record() -> None:
    person = Plan.model_validate(RICH["private"])
    assert person.balance == Balance(unit="person", trust="local")
    assert person.records_per_unit == 4
    assert Plan().balance == Balance(unit="record", trust="local")
    assert Plan().records_per_unit == 1
    client = Plan.model_validate({"privacy": {"unit": "client", "trust": "central", "epsilon": 1.0}})
    assert client.balance == Balance(unit="client", trust="central")


def at_clients(rounds: int = 5, every: int = 2, **more: Any) -> Plan:
    return Plan.model_validate(
        {
            "privacy": {"noise_multiplier": 2.0},
            "federation": {"rounds": rounds},
            "evaluation": {"where": "clients", "every": every, "count_noise": 7.0},
            **more,
        }
    )


def test_rule_10_an_evaluation_at_clients_releases_two_counts_of_every_unit() -> None:
    assert at_clients().evaluate_release() == NoisyCounts(noise=7.0, counts=2)
    people = at_clients(data=PEOPLE)
    assert people.evaluate_release() == NoisyCounts(noise=7.0, counts=2, records_per_unit=4)
    assert Plan().evaluate_release() is None
    assert at_clients(privacy={"trust": "none"}).evaluate_release() is None


def test_rule_4_the_terms_are_what_each_planned_round_releases() -> None:
    plan = at_clients()
    train, counts = plan.train_release(), plan.evaluate_release()
    assert train is not None
    assert counts is not None
    both = multiset([train, counts])
    # Evaluated after every second round, and after the last.
    assert plan.terms() == Terms(
        plan=plan.digest(), rounds=(multiset([train]), both, multiset([train]), both, both), delta=plan.privacy.delta
    )
    assert plan.planned_counts() == Counter({counts: 3})
    assert [plan.is_evaluated(number) for number in range(1, 6)] == [False, True, False, True, True]
    with pytest.raises(ValueError, match="without privacy has no terms"):
        Plan.model_validate({"privacy": {"trust": "none"}}).terms()
    with pytest.raises(ValueError, match="not resolved"):
        Plan().terms()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from(["server", "clients", "none"]))
def test_rule_4_the_terms_of_all_rounds_are_the_planned_releases(rounds: int, every: int, where: str) -> None:
    plan = at_clients(rounds, every, evaluation={"where": where, "every": every})
    total: Counter[Release] = Counter()
    for releases in plan.terms().rounds:
        total.update(dict(releases))
    train = plan.train_release()
    assert train is not None
    assert total == Counter({train: rounds}) + plan.planned_counts()
    assert len(plan.terms().rounds) == rounds


def test_a_clients_budget_is_its_own_or_the_plans_and_never_above_the_plans_epsilon() -> None:
    budgets = {"0": 1.0, "1": 9.0}
    base = {"epsilon": 4.0, "noise_multiplier": 2.0, "calibrated_from": "epsilon", "client_budgets": budgets}
    data = {"partition": {"kind": "iid", "clients": 3}}
    plan = Plan.model_validate({"data": data, "privacy": base})
    assert [plan.client_budget(client) for client in ("0", "1", "2")] == [1.0, 4.0, 4.0]
    plan = Plan.model_validate({"data": data, "privacy": {**base, "budget": 3.0}})
    assert [plan.client_budget(client) for client in ("0", "1", "2")] == [1.0, 4.0, 3.0]
    with pytest.raises(ValueError, match="not resolved"):
        Plan.model_validate({"privacy": {"noise_multiplier": 1.0}}).client_budget("0")


# --- the digest: rule 4 pins a plan by it --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RICH)
def test_rule_4_the_digest_is_that_of_the_meaning_and_not_of_the_text(name: str) -> None:
    def backwards(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: backwards(item) for key, item in reversed(value.items())}
        return value

    plan = Plan.model_validate(RICH[name])
    again = Plan.model_validate(backwards(RICH[name]))
    assert again == plan
    assert again.digest() == plan.digest()
    assert Plan.model_validate(plan.model_dump()).digest() == plan.digest()


def test_rule_4_a_default_and_the_same_value_written_out_have_one_digest() -> None:
    assert Plan.model_validate({"seed": 7, "training": {"learning_rate": 0.1}}).digest() == Plan().digest()
    assert Plan.model_validate({"training": {"learning_rate": 1}}).digest() == (
        Plan.model_validate({"training": {"learning_rate": 1.0}}).digest()
    )


def test_rule_4_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "import json, sys; from shared_models.plan import Plan; "
        "print([Plan.model_validate(d).digest() for d in json.loads(sys.stdin.read()).values()])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(RICH),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert found.stdout.strip() == str([Plan.model_validate(document).digest() for document in RICH.values()])


SCALARS: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(),
}


@settings(deadline=None)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@given(data=st.data(), name=st.sampled_from(sorted(RICH)))
def test_rule_4_a_change_of_any_key_but_the_datas_place_changes_the_digest(data: st.DataObject, name: str) -> None:
    plan = Plan.model_validate(RICH[name])
    path, old = data.draw(st.sampled_from(list(leaves(plan.model_dump()))))
    new = data.draw(st.one_of(SCALARS.values()) if old is None else SCALARS[type(old)] | st.none())
    near: list[Any] = [new]
    if isinstance(old, float):
        near += [old * (1 + 2**-52), old + 5e-324, -old]
    elif isinstance(old, str):
        near += [old + " ", old.upper(), "\x00" + old]
    elif isinstance(old, int):
        near += [old + 1, not old] if isinstance(old, bool) else [old + 1]
    for value in near:
        same = path == ("data", "path") or (type(value) is type(old) and repr(value) == repr(old))
        assert (changed_plan(plan, path, value).digest() == plan.digest()) == same, value


def test_rule_4_another_kind_of_table_changes_the_digest() -> None:
    kinds = [
        {"data": {"partition": {"kind": "iid"}}},
        {"data": {"partition": {"kind": "size-skewed"}}},
        {"training": {"schedule": {"kind": "step"}}},
        {"training": {"schedule": {"kind": "cosine"}}},
        {"federation": {"cohort": {"sampling": "fixed"}}},
        {"federation": {"cohort": {"sampling": "poisson"}}},
        {"data": {"card": {"classes": ["a", "b"], "columns": {"x": {"kind": "categorical", "values": ["a"]}}}}},
        {"data": {"card": {"classes": ["a", "b"], "columns": {"x": {"kind": "numeric", "low": 0.0, "high": 1.0}}}}},
        {},
    ]
    digests = {Plan.model_validate(document).digest() for document in kinds}
    assert len(digests) == len(kinds)
