"""What a finished model is judged on: records that nobody trained on, with their clients and columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.datasets.features import seen_parts, seen_records
from client.datasets.judged import judged_records
from client.datasets.partition import test_records as held_by_the_server
from client.workplace import split_key
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.scenarios import find_plan


def plan(*overrides: str, name: str = "hospitals-plain") -> Plan:
    return resolve(find_plan(name, ("evaluation.baselines=false", "evaluation.metric=accuracy", *overrides)))


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x.flatten(1)}


def test_the_servers_are_those_it_judges_rounds_on_and_belong_to_the_clients_their_column_names() -> None:
    found_plan = plan()
    key = split_key(found_plan)
    found = judged_records(found_plan, split_key=key, columns=("sex", "age"))
    kept = held_by_the_server(found_plan.data, seed=found_plan.seed, split_key=key, whole=False, parts=False)
    assert torch.equal(found.records.x, kept.x)
    assert torch.equal(found.records.y, kept.y)
    assert found.holder == "server"
    assert found.owners is not None
    assert set(found.owners) == {"cleveland", "hungary", "switzerland", "va-long-beach"}
    assert np.array_equal(found.owners, found.records.groups["hospital"])
    assert set(found.records.groups["sex"]) == {"Male", "Female"}
    trained = torch.cat([own.x for own in seen_records(found_plan, split_key=key).values()])
    assert len(rows(found.records.x) & rows(trained)) == 0


def test_the_clients_are_what_each_of_them_holds_out() -> None:
    found_plan = plan("evaluation.where=clients")
    key = split_key(found_plan)
    found = judged_records(found_plan, split_key=key, columns=("sex",))
    assert found.holder == "clients"
    assert found.owners is not None
    for client, (_, held_out) in seen_parts(found_plan, split_key=key).items():
        own = found.records.take(np.flatnonzero(found.owners == client))
        assert torch.equal(own.x, held_out.x)
        assert torch.equal(own.y, held_out.y)
    assert len(found.records.groups["sex"]) == len(found.records)


def test_where_clients_were_drawn_no_test_record_is_theirs() -> None:
    found_plan = plan(name="digits-plain")
    assert judged_records(found_plan, split_key=split_key(found_plan)).owners is None


def test_more_columns_move_no_record() -> None:
    found_plan = plan("evaluation.where=clients")
    key = split_key(found_plan)
    bare, with_more = (judged_records(found_plan, split_key=key, columns=c) for c in ((), ("sex", "cp", "num")))
    assert torch.equal(bare.records.x, with_more.records.x)
    assert np.array_equal(bare.owners, with_more.owners)  # type: ignore[arg-type]


def test_a_column_that_isnt_there_is_refused() -> None:
    for name, column, hint in (("hospitals-plain", "sexx", "did you mean 'sex'"), ("digits-plain", "sex", "no column")):
        found_plan = plan(name=name)
        with pytest.raises(UsageError, match=hint):
            judged_records(found_plan, split_key=split_key(found_plan), columns=(column,))


def test_nothing_held_out_is_nothing_to_judge_on() -> None:
    found_plan = plan("evaluation.where=none", "data.test_fraction=0")
    with pytest.raises(UsageError, match=r"no record was held out.*data\.test_fraction"):
        judged_records(found_plan, split_key=split_key(found_plan))
