"""Figures of frozen objects that are computed once."""

from __future__ import annotations

import weakref

from shared_models.once import once
from shared_models.plan import Plan


class Counted:
    runs = 0

    def __init__(self, value: int) -> None:
        self.value = value

    @once
    def figure(self) -> int:
        """The value."""
        type(self).runs += 1
        return self.value


def test_a_figure_is_computed_once_for_each_object() -> None:
    one, other = Counted(1), Counted(2)
    before = Counted.runs
    assert [one.figure(), other.figure(), one.figure(), other.figure()] == [1, 2, 1, 2]
    assert Counted.runs == before + 2


def test_an_object_is_not_kept_alive_and_its_place_in_memory_means_nothing() -> None:
    for value in range(50):
        one = Counted(value)
        assert one.figure() == value
        gone = weakref.ref(one)
        del one
        assert gone() is None


def test_a_changed_copy_has_a_figure_of_its_own() -> None:
    plan = Plan(name="one")
    assert plan.digest() == plan.digest() == Plan(name="one").digest()
    assert plan.model_copy(update={"name": "two"}).digest() == Plan(name="two").digest() != plan.digest()


def test_the_method_keeps_its_name_and_its_words() -> None:
    assert Counted.figure.__name__ == "figure"
    assert Counted.figure.__doc__ == "The value."
