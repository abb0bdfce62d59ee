"""What a secure sum costs: that what is measured is a sum, and how it is told."""

from __future__ import annotations

import pytest
from rich.console import Console

from simulations.benchmarks.secure_sum import encoding, measure, play, table

LENGTH = 500


@pytest.mark.parametrize("dropped", [0, 1])
def test_an_attempt_is_played_and_its_bytes_are_counted(dropped: int) -> None:
    cost = play(5, LENGTH, dropped=dropped)  # it compares the sum with the plain one
    assert cost.up > 4 * LENGTH  # the masked vector, and the protocol's own words
    assert cost.down > 4 * LENGTH  # the model likewise
    assert cost.whole >= cost.server > 0
    assert min(cost.client, cost.floor) > 0


def test_a_sum_that_cannot_be_opened_is_no_figure() -> None:
    with pytest.raises(Exception, match="too-few"):
        play(5, LENGTH, dropped=3)


def test_the_tables_have_a_row_a_case() -> None:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as sums:
        console.print(table(measure([3, 4], [LENGTH], 1), "Sums"))
    with console.capture() as codes:
        console.print(encoding(LENGTH, 1))
    rows = [line.split() for line in sums.get().splitlines() if " │ " in line]
    assert [row[1] for row in rows] == ["3", "4"]
    assert "decode" in codes.get()
