"""Which data sets are neighbours: what a promise of privacy compares."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dp_accounting import NeighboringRelation


class Neighbours(Enum):
    """How neighbouring data sets differ. The names are `dp_accounting`'s, which is asked only when something is priced.

    It takes a second to import, and most who hold a release never ask its price.
    """

    ADD_OR_REMOVE_ONE = "add or remove one unit"
    REPLACE_ONE = "replace one unit"

    def of_dp_accounting(self) -> NeighboringRelation:
        """The same as that library has it."""
        from dp_accounting import NeighboringRelation

        return NeighboringRelation[self.name]
