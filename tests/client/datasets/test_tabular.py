"""Tables are encoded by public bounds and values; nothing about the records decides how another is encoded."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.datasets.records import Records
from client.datasets.tabular import read_table, table_records
from security.errors import UsageError
from shared_models.cards import DataCard, table_width
from shared_models.plan_data import CategoricalColumn, Column, DataPlan, NaturalPartition, NumericColumn

COLUMNS: dict[str, Column] = {"age": NumericColumn(low=0, high=100), "sex": CategoricalColumn(values=("f", "m"))}
CARD = DataCard(
    name="csv",
    input_shape=(table_width(COLUMNS),),
    classes=("no", "yes"),
    target="ill",
    columns=COLUMNS,
    missing=("", "?"),
)


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["age", "sex", "ill"], index=range(2, 2 + len(rows)), dtype=str)


def encode(*rows: tuple[str, str, str]) -> Records:
    return table_records(table(*rows), DataPlan(name="csv"), CARD, source="t.csv")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_numbers_go_from_minus_one_to_one_with_a_flag_for_missing() -> None:
    x = encode(("0", "f", "no"), ("50", "f", "no"), ("100", "f", "no"), ("?", "f", "no")).x
    assert x[:, :2].tolist() == [[-1, 0], [0, 0], [1, 0], [0, 1]]


def test_numbers_beyond_the_public_bounds_are_clipped() -> None:
    x = encode(("-7", "f", "no"), ("1e9", "f", "no")).x
    assert x[:, 0].tolist() == [-1, 1]


def test_categories_are_one_hot_with_a_place_for_anything_else() -> None:
    x = encode(("1", "f", "no"), ("1", "m", "no"), ("1", "x", "no"), ("1", "", "no")).x
    assert x[:, 2:].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_labels_are_the_cards_order_of_classes() -> None:
    assert encode(("1", "f", "yes"), ("1", "f", "no")).y.tolist() == [1, 0]


def test_a_table_without_records_keeps_its_width() -> None:
    assert encode().x.shape == (0, table_width(COLUMNS))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["?", "", "3", "-5.5", "250", "1e3"]),
            st.sampled_from(["f", "m", "q"]),
            st.just("no"),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_record_is_encoded_alike_whoever_stands_beside_it(rows: list[tuple[str, str, str]]) -> None:
    together = encode(*rows)
    for position, row in enumerate(rows):
        assert encode(row).x[0].tolist() == together.x[position].tolist()


@pytest.mark.parametrize("bad", ["secret", "1,5", "nan", "inf", "1e999", "TRUE", "0x10", "NA"])
def test_what_is_no_finite_number_is_named_by_line_and_column_only(bad: str) -> None:
    with pytest.raises(UsageError) as error:
        encode(("1", "f", "no"), (bad, "f", "no"))
    assert str(error.value) == (
        "t.csv: line 3, column 'age': is not a finite number nor one of data.card.missing (1 such lines)"
    )


def test_a_target_beyond_the_classes_is_named_by_line_only() -> None:
    with pytest.raises(UsageError, match=r"line 3, column 'ill': .*no, yes.*2 such lines") as error:
        encode(("1", "f", "no"), ("1", "f", "perhaps"), ("1", "f", ""))
    assert "perhaps" not in str(error.value)


def test_rule_6_a_record_without_a_person_is_refused() -> None:
    plan = DataPlan(name="csv", person_column="sex", max_rows_per_person=1)
    with pytest.raises(UsageError, match=r"line 3, column 'sex': names no person"):
        table_records(table(("1", "f", "no"), ("1", "?", "no")), plan, CARD, source="t.csv")


def test_only_the_columns_asked_for_are_kept_as_text() -> None:
    plan = DataPlan(name="csv", partition=NaturalPartition(column="age"), person_column="sex", max_rows_per_person=1)
    records = table_records(table(("1", "f", "no")), plan, CARD, source="t.csv")
    assert {name: values.tolist() for name, values in records.groups.items()} == {"age": ["1"]}
    assert records.people is not None
    assert records.people.tolist() == ["f"]
    assert encode(("1", "f", "no")).groups == {}


def test_files_are_read_as_stripped_text_with_their_line_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeffage , sex\r\n 1,"a, b"\r\n\r\n2, NA\r\n')
    frame = read_table(path)
    assert list(frame.columns) == ["age", "sex"]
    assert frame.to_numpy().tolist() == [["1", "a, b"], ["2", "NA"]]
    assert frame.index.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,b,a\n1,2,3\n", "repeats columns: 'a'"),
        ("a,b\n1,2\n\n3\n", "line 4 has 1 fields, the header 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 fields, the header 2"),
        ('a,b\n1,"2\n', "not a CSV file"),
        ('a,b\n1,"2"3\n', "not a CSV file"),
        ("a,b\nJosé,2\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_files_that_are_no_table_are_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=says) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_table(tmp_path)
