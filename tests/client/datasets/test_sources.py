"""What errors list, and what they keep to themselves."""

from client.datasets.sources import did_you_mean, listed


def test_names_are_quoted_on_one_line() -> None:
    assert listed(["age", "two\nlines"]) == r"'age', 'two\nlines'"
    assert listed([]) == "none"


def test_long_lists_are_cut() -> None:
    assert listed(f"c{n}" for n in range(25)).endswith("'c19' and 5 more")


def test_names_that_may_be_values_of_a_record_are_not_shown() -> None:
    assert "Jane" not in listed(["63", "Jane"])


def test_only_near_names_are_suggested() -> None:
    assert did_you_mean("digit", ["digits", "csv"]) == " (did you mean 'digits'?)"
    assert did_you_mean("zebra", ["digits", "csv"]) == ""
