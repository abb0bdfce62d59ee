"""Bins of a statistics plan: from plan and card alone, and one of each column for every record, whatever it holds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.datasets.own_tables import load
from security.errors import UsageError
from shared_models import histograms
from shared_models.cards import card_for
from shared_models.histograms import MISSING, OTHER, count_records, countable, histograms_of, size_of_histograms
from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.resolve import resolve
from shared_models.table_encoding import encode_table

CARD: dict[str, Any] = {
    "classes": ["no", "yes"],
    "target": "y",
    "columns": {
        "age": {"kind": "numeric", "low": 0.0, "high": 100.0, "spread": 2.0},
        "dose": {"kind": "numeric", "low": -1.0, "high": 1.0},
        "sex": {"kind": "categorical", "values": ["f", " m "]},
    },
}


def statistics_plan(statistics: dict[str, Any] | None = None, **tables: Any) -> Plan:
    raw = {
        "data": {"name": "csv", "path": "x.csv", "card": CARD, "partition": {"kind": "iid", "clients": 4}},
        "privacy": {"noise_multiplier": 2.0},
        "statistics": {"bins": 5} if statistics is None else statistics,
        **tables,
    }
    return resolve(plan_from(raw, where="test"))


PLAN = statistics_plan()


def encoded(rows: list[tuple[str, str, str, str]]) -> tuple[Any, Any]:
    """Records of (age, dose, sex, y) as a site encodes them."""
    card = card_for(PLAN.data)
    table = pd.DataFrame(rows, columns=["age", "dose", "sex", "y"], dtype=str)
    y = np.array([["no", "yes"].index(row[3]) for row in rows], dtype=np.int64)
    return encode_table(table, card.columns, card.missing), y


def test_the_bins_are_those_of_the_plan_and_of_the_public_bounds() -> None:
    age, dose, sex, y = histograms_of(PLAN)
    assert (age.column, age.kind, age.edges) == ("age", "number", (0, 20, 40, 60, 80, 100))
    assert age.names == ("0 to 20", "20 to 40", "40 to 60", "60 to 80", "80 to 100", MISSING)
    assert dose.edges == pytest.approx((-1, -0.6, -0.2, 0.2, 0.6, 1))
    assert (sex.kind, sex.names, sex.edges) == ("category", ("f", "m", OTHER), ())
    assert (y.kind, y.names) == ("classes", ("no", "yes"))
    assert [one.start for one in (age, dose, sex, y)] == [0, 6, 12, 15]
    assert size_of_histograms(PLAN) == 17
    assert PLAN.statistics is not None
    assert PLAN.statistics.columns == countable(card_for(PLAN.data)) == ("age", "dose", "sex", "y")


def test_edges_of_ones_own_stand_between_the_bounds() -> None:
    plan = statistics_plan({"columns": ["dose"], "edges": {"dose": [-0.5, 0.0]}})
    (dose,) = histograms_of(plan)
    assert dose.edges == (-1, -0.5, 0, 1)
    assert dose.names == ("-1 to -0.5", "-0.5 to 0", "0 to 1", MISSING)


def test_each_record_is_counted_where_a_person_would_count_it() -> None:
    rows = [
        ("0", "-1", "f", "no"),
        ("19.9", "0", "m", "no"),
        ("20", "0.2", "m", "yes"),  # an edge belongs to the bin above it
        ("60", "0.6", "x", "no"),
        ("100", "1", "", "no"),  # but the last
        ("-7", "99", "f", "yes"),  # clipped
        ("?", "", "f", "no"),
    ]
    counts = count_records(PLAN, *encoded(rows))
    assert counts[:6].tolist() == [3, 1, 0, 1, 1, 1]
    assert counts[6:12].tolist() == [1, 0, 1, 1, 3, 1]
    assert counts[12:15].tolist() == [3, 2, 2]
    assert counts[15:].tolist() == [5, 2]


def test_records_are_counted_as_numpy_counts_them(tmp_path: Path) -> None:
    """Against numpy's own histogram of the text's numbers, none of them at an edge."""
    generator = np.random.default_rng(3)
    ages, doses = generator.uniform(-20, 120, 500), generator.normal(0, 1, 500)
    lines = [f"{age},{dose},{'fm'[i % 2]},yes" for i, (age, dose) in enumerate(zip(ages, doses, strict=True))]
    path = tmp_path / "rows.csv"
    path.write_text("age,dose,sex,y\n" + "\n".join(lines) + "\n")
    records, _ = load(PLAN.data.model_copy(update={"path": str(path)}), card_for(PLAN.data))
    counts = count_records(PLAN, records.x.numpy(), records.y.numpy())
    age, dose, *_ = histograms_of(PLAN)
    assert (counts[:5] == np.histogram(np.clip(ages, 0, 100), age.edges)[0]).all()
    assert (counts[6:11] == np.histogram(np.clip(doses, -1, 1), dose.edges)[0]).all()


VALUES = ["0", "20", "99", "1e300", "-1e300", "1e-320", "inf", "-inf", "nan", "", "?", "twelve", "100.0000001"]


def test_rule_10_neighbouring_tables_differ_by_one_count_of_each_column() -> None:
    """Brute force over tables of up to two records, and each record that may come to them."""
    kinds = list(itertools.product(["0", "20", "inf", "", "?", "-3", "101"], ["0.2", "nan"], ["f", "z"], ["no", "yes"]))
    tables = [[], *([kind] for kind in kinds[::5]), *(list(pair) for pair in itertools.product(kinds[::9], repeat=2))]
    for table, more in itertools.product(tables, kinds):
        before, after = (count_records(PLAN, *encoded(rows)) for rows in (table, [*table, more]))
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        moved = after - before
        assert [int(moved[one.places].sum()) for one in histograms_of(PLAN)] == [1, 1, 1, 1]
        assert float(np.linalg.norm(moved)) == 2.0  # sqrt of 4 columns, exactly: what the noise is made for


def test_rule_6_a_persons_records_move_it_by_their_number_at_most_and_may_do_so() -> None:
    alike = encoded([("20", "0", "f", "no")] * 3)
    unlike = encoded([("20", "0", "f", "no"), ("50", "-0.9", "m", "yes"), ("90", "0.9", "z", "no")])
    lengths = [float(np.linalg.norm(count_records(PLAN, *rows))) for rows in (alike, unlike)]
    assert lengths[0] == 3 * 2.0
    assert lengths[1] < lengths[0]


@given(st.lists(st.tuples(*[st.sampled_from(VALUES)] * 2, st.text(max_size=3), st.sampled_from(["no", "yes"]))))
def test_rule_5_whatever_a_record_holds_it_is_counted_once_in_each_column(
    rows: list[tuple[str, str, str, str]],
) -> None:
    counts = count_records(PLAN, *encoded(rows))
    assert counts.shape == (17,)
    assert (counts >= 0).all()
    assert all(int(counts[one.places].sum()) == len(rows) for one in histograms_of(PLAN))


def test_rule_5_values_that_no_table_gives_are_counted_too() -> None:
    """An `.npz` of somebody's may hold anything in place of an encoded table."""
    x = np.full((6, 7), np.nan, np.float32)
    x[1:] = np.array([np.inf, -np.inf, 3e38, -3e38, 0], np.float32)[:, None]
    counts = count_records(PLAN, x, np.array([0, 1, 0, 1, 0, 1]))
    assert [int(counts[one.places].sum()) for one in histograms_of(PLAN)] == [6, 6, 6, 6]


def test_data_without_columns_has_its_classes_counted() -> None:
    plan = resolve(plan_from({"privacy": {"noise_multiplier": 2.0}, "statistics": {}}, where="test"))
    (label,) = histograms_of(plan)
    assert (label.column, label.kind, label.names) == ("label", "classes", tuple("0123456789"))
    assert count_records(plan, np.zeros((3, 1, 8, 8), np.float32), np.array([3, 3, 9])).tolist()[3:] == [2] + [
        0
    ] * 5 + [1]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"columns": ["agee"]}, r"statistics\.columns: did you mean age\?.*allowed: age, dose, sex, y"),
        ({"edges": {"sex": [0.5]}}, r"statistics\.edges\.sex: is no number that is counted"),
        ({"columns": ["age"], "edges": {"dose": [0.5]}}, r"statistics\.edges\.dose: is no number that is counted"),
        ({"edges": {"age": [0.0, 50.0]}}, r"statistics\.edges\.age: cuts must lie between the public bounds 0 and 100"),
        ({"edges": {"age": [50.0, 100.0]}}, r"statistics\.edges\.age: cuts must lie between"),
    ],
)
def test_what_the_card_doesnt_say_is_refused(statistics: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        statistics_plan(statistics)


def test_more_counts_than_anybody_would_look_at_are_refused() -> None:
    columns = {f"c{i}": {"kind": "numeric", "low": 0.0, "high": 1.0} for i in range(300)}
    with pytest.raises(UsageError, match="counts are more than"):
        statistics_plan({"bins": 4096}, data={"name": "csv", "path": "x", "card": {**CARD, "columns": columns}})


def test_a_strangers_plan_has_no_more_bins_made_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    histogram = histograms._histogram

    def counted(*arguments: Any) -> histograms.Histogram:
        made.append(histogram(*arguments).size)
        return histogram(*arguments)

    columns = {f"c{i}": {"kind": "numeric", "low": 0.0, "high": 1.0} for i in range(2000)}
    monkeypatch.setattr(histograms, "_histogram", counted)
    with pytest.raises(UsageError, match="counts are more than"):
        statistics_plan({"bins": 4096}, data={"name": "csv", "path": "x", "card": {**CARD, "columns": columns}})
    assert sum(made[:-1]) <= histograms.MOST_COUNTS < sum(made)
