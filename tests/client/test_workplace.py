"""What a client process keeps: built once for a plan, checked before it is used, data read no sooner than asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from client import workplace as module
from client.datasets.records import Records
from client.private_trainer import train_private
from client.trainer import train_plain
from client.workplace import Workplace, client_id, made_workplace, scope_id, split_key, workplace
from privacy.noise import ReproducibleNoise
from security.errors import UsageError
from shared_models.parameters import get_parameters
from shared_models.plan import Plan
from shared_models.plan_file import plan_from, write_plan
from shared_models.resolve import resolve

CARD = {"classes": ["a", "b"], "target": "y", "columns": {"v": {"kind": "numeric", "low": 0.0, "high": 1.0}}}


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    made_workplace.cache_clear()
    yield
    made_workplace.cache_clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Notes each reading of the data, and gives three clients' records instead."""
    calls: list[Any] = []

    def read(plan: Plan, *, split_key: bytes) -> dict[str, Records]:
        calls.append((plan.data, plan.seed, split_key))
        return {
            name: Records(x=torch.full((1, 2), float(i)), y=torch.zeros(1, dtype=torch.int64))
            for i, name in enumerate(("0", "1", "2"))
        }

    def parts(plan: Plan, *, split_key: bytes) -> dict[str, tuple[Records, Records]]:
        found = read(plan, split_key=split_key)
        return {name: (own, own.take([])) for name, own in found.items()}

    monkeypatch.setattr(module, "seen_records", read)
    monkeypatch.setattr(module, "seen_parts", parts)
    return calls


def plan_of(**changes: Any) -> Plan:
    return Plan.model_validate(
        {
            "data": {"name": "csv", "path": "x.csv", "card": CARD, "partition": {"kind": "iid", "clients": 3}},
            "model": {"name": "mlp", "options": {"hidden": [3]}},
            "training": {"device": "cpu"},
            "privacy": {"noise_multiplier": 2.0},
            **changes,
        }
    )


def context(**node: Any) -> Context:
    return Context(run_id=1, node_id=9, node_config=node, state=RecordDict(), run_config={})


def test_a_plan_is_built_once_and_others_have_places_of_their_own(reads: list[Any]) -> None:
    text, other = write_plan(plan_of()), write_plan(plan_of(seed=8))
    place = workplace(text)
    assert workplace(text) is place
    assert workplace(other) is not place
    assert workplace(text) is place
    assert place.plan == plan_of()


def test_network_and_layout_are_the_plans(reads: list[Any]) -> None:
    place, other = workplace(write_plan(plan_of())), workplace(write_plan(plan_of(seed=8)))
    names = {name: tuple(value.shape) for name, value in get_parameters(place.model).items()}
    assert dict(place.layout.entries) == names
    assert place.layout.wire == "float32"
    assert place.layout.digest == other.layout.digest
    first, second = (next(iter(get_parameters(each.model).values())) for each in (place, other))
    assert not np.array_equal(first, second)
    half = workplace(write_plan(plan_of(federation={"wire": "float16"})))
    assert half.layout.digest != place.layout.digest


def test_the_network_is_on_the_plans_device(reads: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(wanted: str, precision: str) -> torch.device:
        asked.append((wanted, precision))
        return torch.device("meta")

    monkeypatch.setattr(module, "choose_device", choose)
    place = workplace(write_plan(plan_of(training={"device": "mps"})))
    assert asked == [("mps", "float32")]
    assert {p.device.type for p in place.model.parameters()} == {"meta"}


def test_data_is_read_when_records_are_asked_for_and_once(reads: list[Any]) -> None:
    place = workplace(write_plan(plan_of()))
    assert reads == []
    assert place.client_ids() == ("0", "1", "2")
    assert reads == []
    assert [float(place.records(name).x[0, 0]) for name in ("2", "0", "1", "2")] == [2, 0, 1, 2]
    assert reads == [(place.plan.data, place.plan.seed, split_key(place.plan))]
    with pytest.raises(KeyError):
        place.records("3")


def test_what_a_client_holds_out_is_read_once_with_the_rest_and_only_where_clients_judge(reads: list[Any]) -> None:
    place = workplace(write_plan(plan_of(evaluation={"where": "clients"})))
    assert (len(place.records("1")), len(place.held_out("1")), len(place.held_out("2"))) == (1, 0, 0)
    assert len(reads) == 1
    with pytest.raises(KeyError):
        place.held_out("3")


def test_data_that_can_not_be_loaded_is_no_matter_until_it_is_asked_for() -> None:
    place = workplace(write_plan(plan_of()))
    with pytest.raises(UsageError, match=r"x\.csv"):
        place.records("0")
    with pytest.raises(UsageError, match=r"x\.csv"):  # and it is tried again, not taken for empty
        place.records("0")


def test_rule_10_the_split_has_a_key_of_each_plans_seed() -> None:
    keys = {split_key(plan_of(seed=seed)) for seed in range(5)}
    assert len(keys) == 5
    assert all(len(key) == 32 for key in keys)


def test_rule_7_a_network_that_mixes_examples_is_refused_under_privacy(
    reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.linear(x - x.mean(dim=0))
            return logits

    monkeypatch.setattr(module, "build_for", lambda plan: Mixing())
    text = write_plan(plan_of())
    for _ in range(2):
        with pytest.raises(UsageError, match="mixes the examples of a batch"):
            workplace(text)
    assert isinstance(workplace(write_plan(plan_of(privacy={"trust": "none"}))).model, Mixing)
    assert reads == []


@pytest.mark.parametrize(("key", "given", "instead"), [("unit", "example", "client"), ("trust", "local", "central")])
def test_principle_2_a_privacy_that_nothing_gives_is_refused_here_too(key: str, given: str, instead: str) -> None:
    # Run as if it were local, it would claim for a client what is true of a record.
    text = write_plan(plan_of(privacy={"trust": "local", "noise_multiplier": 2.0}))
    changed = text.replace(f'{key} = "{given}"', f'{key} = "{instead}"')
    assert changed != text
    with pytest.raises(UsageError, match="is not offered; allowed: "):
        workplace(changed)


@pytest.mark.parametrize("text", ["", "no toml", 'nmae = "x"\n[privacy]\nnoise_multiplier = 1.0\n'])
def test_a_text_that_is_no_plan_of_this_client_is_refused(text: str) -> None:
    if text:
        with pytest.raises(UsageError, match=r"^plan: "):
            workplace(text)
    else:
        assert workplace(text).plan == Plan()


# --- ids -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(reads: list[Any]) -> Workplace:
    return workplace(write_plan(plan_of()))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"client-id": "berlin"}, "berlin"),
        ({"client-id": "1", "partition-id": 2}, "1"),
        ({"client-id": 1}, "1"),
        ({"partition-id": 0}, "0"),
        ({"partition-id": 2, "num-partitions": 3}, "2"),
    ],
)
def test_the_id_is_the_one_told_or_that_of_the_partition(
    place: Workplace, reads: list[Any], node: dict[str, Any], expected: str
) -> None:
    assert client_id(place, context(**node)) == expected
    assert reads == []


@pytest.mark.parametrize("node", [{}, {"num-partitions": 3}, {"partition-id": 3}, {"partition-id": -1}])
def test_a_node_without_an_id_or_with_one_that_is_not_there_is_an_error(place: Workplace, node: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="partition"):
        client_id(place, context(**node))


def test_partitions_are_counted_in_the_order_of_padded_ids(reads: list[Any]) -> None:
    text = write_plan(
        plan_of(
            data={"name": "csv", "path": "x.csv", "card": CARD, "partition": {"kind": "iid", "clients": 12}},
        )
    )
    place = workplace(text)
    assert [client_id(place, context(**{"partition-id": i})) for i in (0, 9, 10)] == ["00", "09", "10"]


# --- whose books ---------------------------------------------------------------------------------------------------


def by_site(**changes: Any) -> Plan:
    partition = {"kind": "natural", "column": "site"}
    data = {"name": "csv", "path": "x.csv", "card": CARD, "partition": partition}
    return plan_of(**{"data": data, **changes})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"client-id": "berlin"}, "berlin"),
        ({"client-id": "berlin", "partition-id": 1}, "berlin"),
        ({"partition-id": 1, "num-partitions": 3}, "partition-1"),
    ],
)
def test_whose_books_are_charged_is_known_without_a_look_at_the_data(
    reads: list[Any], node: dict[str, Any], expected: str
) -> None:
    place = workplace(write_plan(by_site()))
    assert scope_id(place, context(**node)) == expected
    assert reads == []


def test_where_ids_are_counted_books_have_the_clients_id(place: Workplace) -> None:
    for node in ({"client-id": "berlin"}, {"partition-id": 2}):
        assert scope_id(place, context(**node)) == client_id(place, context(**node))


@pytest.mark.parametrize("node", [{}, {"num-partitions": 3}])
def test_a_node_without_an_id_has_no_books(reads: list[Any], node: dict[str, Any]) -> None:
    for plan in (by_site(), plan_of()):
        with pytest.raises(ValueError, match="neither client-id nor partition-id"):
            scope_id(workplace(write_plan(plan)), context(**node))


def test_principle_2_a_budget_by_name_is_never_lost_where_names_are_in_the_data(reads: list[Any]) -> None:
    # Counted by partition, the client behind a budget can't be told before data is read; and it must be charged before.
    place = workplace(write_plan(by_site(privacy={"noise_multiplier": 2.0, "client_budgets": {"berlin": 1.0}})))
    with pytest.raises(ValueError, match="names clients by ids that are in the data"):
        scope_id(place, context(**{"partition-id": 1}))
    assert scope_id(place, context(**{"client-id": "berlin"})) == "berlin"


@pytest.mark.parametrize("trust", ["none", "local"])
def test_a_plan_whose_layers_are_run_again_trains_to_the_same_bits(trust: str) -> None:
    """Gradient checkpointing changes memory and time alone."""
    changes = []
    for again in (False, True):
        noise = {"noise_multiplier": 1.0, "noise": "reproducible"} if trust == "local" else {}
        plan = plan_from(
            {
                "model": {"name": "vit", "options": {"dropout": 0.1}},
                "training": {"gradient_checkpointing": again, "steps": 2},
                "privacy": {"trust": trust, **noise},
            },
            where="test",
        )
        place = workplace(write_plan(resolve(plan)))
        start = get_parameters(place.model)
        records = Records(x=torch.rand(8, 1, 8, 8), y=torch.arange(8)) if not changes else changes[0][1]
        if trust == "none":
            change = train_plain(place.model, start, records, place.plan, round_number=1, client="0")[0]
        else:
            change = train_private(
                place.model, start, records, place.plan, round_number=1, noise=ReproducibleNoise(b"client")
            )
        changes.append((change, records))
    assert changes[0][0].keys() == changes[1][0].keys()
    assert all(np.array_equal(value, changes[1][0][name]) for name, value in changes[0][0].items())


def test_a_plan_for_opacus_hooks_runs_no_layer_again() -> None:
    with pytest.raises(UsageError, match=r"training: gradient_checkpointing with dp_engine = 'opacus'"):
        plan_from(
            {"training": {"gradient_checkpointing": True, "dp_engine": "opacus"}, "privacy": {"epsilon": 3.0}},
            where="test",
        )


def test_a_network_without_alike_layers_is_refused_when_the_plan_is_resolved() -> None:
    with pytest.raises(UsageError, match=r"no list of alike layers"):
        resolve(plan_from({"training": {"gradient_checkpointing": True}, "privacy": {"epsilon": 3.0}}, where="test"))
