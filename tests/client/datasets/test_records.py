"""Records hold together: one row each in every column, finite values, and errors that show no record."""

import numpy as np
import pytest
import torch

from client.datasets.records import Records
from security.errors import UsageError


def some(n: int = 4) -> Records:
    return Records(
        x=torch.arange(2.0 * n).reshape(n, 2),
        y=torch.arange(n),
        groups={"ward": np.array([f"w{i}" for i in range(n)], dtype=np.str_)},
        people=np.array([f"p{i}" for i in range(n)], dtype=np.str_),
    )


def test_take_picks_the_same_rows_of_every_column_in_the_order_asked() -> None:
    taken = some().take([2, 0])
    assert taken.y.tolist() == [2, 0]
    assert taken.x.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert taken.groups["ward"].tolist() == ["w2", "w0"]
    assert taken.people is not None
    assert taken.people.tolist() == ["p2", "p0"]


def test_taking_copies_so_that_a_client_cannot_change_another_ones_data() -> None:
    pool = some()
    pool.take([0]).x.fill_(99)
    assert pool.x[0].tolist() == [0.0, 1.0]


def test_the_same_records_have_the_same_strides_wherever_they_come_from() -> None:
    """Torch takes a grey image with a channel's stride of 1 for one stored channels last, and rounds otherwise."""
    pixels = torch.arange(128.0).reshape(2, 8, 8)
    odd = pixels[:, None].as_strided((2, 1, 8, 8), (64, 1, 8, 1))
    assert odd.stride() == (64, 1, 8, 1)
    for make in (Records, Records.trusted):
        x = make(x=odd, y=torch.zeros(2, dtype=torch.int64)).x
        assert x.stride() == (64, 64, 8, 1)
        assert torch.equal(x, pixels[:, None])
    turned = pixels.transpose(1, 2)
    assert Records(x=turned, y=torch.zeros(2, dtype=torch.int64)).x.is_contiguous()


def test_no_records_are_legal() -> None:
    nothing = some().take([])
    assert len(nothing) == 0
    assert nothing.x.shape == (0, 2)


def test_groups_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        some().groups["ward"] = np.array(["x"])  # type: ignore[index]


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(UsageError, match="y has 3 values for 4 records"):
        Records(x=torch.zeros(4, 2), y=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UsageError, match="column 'ward' has 1 values for 4 records"):
        Records(x=torch.zeros(4, 2), y=torch.zeros(4, dtype=torch.int64), groups={"ward": np.array(["a"])})
    with pytest.raises(UsageError, match="people has 1 values"):
        Records(x=torch.zeros(4, 2), y=torch.zeros(4, dtype=torch.int64), people=np.array(["a"]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted_by_record_and_not_shown(bad: float) -> None:
    x = torch.full((3, 2), 1234.5)
    x[1] = bad
    with pytest.raises(UsageError, match="1 of 3 records") as error:
        Records(x=x, y=torch.zeros(3, dtype=torch.int64))
    assert "1234" not in str(error.value)


def test_negative_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="1 of 2 labels are negative"):
        Records(x=torch.zeros(2, 1), y=torch.tensor([0, -1]))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1), torch.zeros(2, 1, 1, dtype=torch.int64)),
    ],
)
def test_other_number_types_and_shapes_are_refused(x: torch.Tensor, y: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="float32"):
        Records(x=x, y=y)


def test_columns_that_are_not_text_are_refused() -> None:
    with pytest.raises(UsageError, match="must be text"):
        Records(x=torch.zeros(1, 1), y=torch.zeros(1, dtype=torch.int64), people=np.array([7]))
