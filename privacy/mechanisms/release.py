"""What a client releases, as facts that an accountant can price.

A *release* is something computed from private data that leaves its owner. Each mechanism is one frozen
dataclass whose fields are public constants, in a file of its own. A new mechanism derives from `Mechanism` under
a name of its own and is imported by the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from privacy import canonical_json
from privacy.neighbours import Neighbours

if TYPE_CHECKING:
    from dp_accounting import dp_event


class Release(Protocol):
    """One release by a differentially private mechanism. Immutable, hashable, compared by its fields."""

    def __hash__(self) -> int: ...

    @property
    def relation(self) -> Neighbours:
        """Which neighbours the events are about: by default data sets that differ by adding or removing one unit."""

    def event(self) -> dp_event.DpEvent:
        """The release as `dp_accounting` prices it."""

    def looser_event(self) -> dp_event.DpEvent:
        """An event that costs no less and that RDP can price too; often the same."""

    def parts(self) -> tuple[Release, int]:
        """The smallest release that this one repeats, and how often: itself, once, if it repeats none.

        Releases with the same smallest part cost together what one with the sum of their counts costs.
        """

    def to_json(self) -> dict[str, Any]:
        """A flat mapping of JSON values, with the mechanism's name under `mechanism`."""

    def describe(self) -> str:
        """One line for a person."""


@runtime_checkable
class RenyiPriced(Protocol):
    """A release whose published bound is one on its Renyi divergence: no other accountant may price it (rule 4)."""

    def renyi(self, orders: Sequence[float]) -> list[float]:
        """Upper bounds of the Renyi divergence between neighbours, in nats, one for each order above 1."""


@runtime_checkable
class FromTables(Protocol):
    """A release whose noise is not quite drawn from the distribution that its price is about (rule 9)."""

    @property
    def distance(self) -> float:
        """Bound on the total variation between the release as it is made and as it is priced, whatever came before."""


class Mechanism:
    """What mechanisms share: their name in JSON, and the plain answers."""

    name: ClassVar[str]
    _known: ClassVar[dict[str, type[Mechanism]]] = {}

    def __init_subclass__(cls, *, name: str = "") -> None:
        if not name:
            return  # what several mechanisms share
        if name in Mechanism._known:
            raise ValueError(f"two mechanisms have the name {name!r}")
        cls.name = name
        Mechanism._known[name] = cls

    @property
    def relation(self) -> Neighbours:
        """Neighbours differ by adding or removing one unit."""
        return Neighbours.ADD_OR_REMOVE_ONE

    def event(self) -> dp_event.DpEvent:
        """The release as `dp_accounting` prices it."""
        raise NotImplementedError

    def looser_event(self) -> dp_event.DpEvent:
        """The same event: RDP can price it."""
        return self.event()

    def parts(self) -> tuple[Release, int]:
        """Itself, once."""
        return self, 1

    def to_json(self) -> dict[str, Any]:
        """The fields, and the mechanism's name."""
        return {"mechanism": self.name, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ValueError for another mechanism, missing or unknown keys."""
        values = dict(data)
        if values.pop("mechanism", None) != cls.name:
            raise ValueError(f"not a {cls.name} release: {dict(data)}")
        expected = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if values.keys() != expected:
            raise ValueError(f"a {cls.name} release has the keys {sorted(expected)}, got {sorted(values)}")
        return cls(**values)

    def describe(self) -> str:
        """One line for a person."""
        raise NotImplementedError

    def _set(self, **values: Any) -> None:
        # 1, 1.0 and numpy's 1.0 are one fact: it must have one JSON text, and so one digest.
        for name, value in values.items():
            object.__setattr__(self, name, value)


def release_from_json(data: Mapping[str, Any]) -> Release:
    """The release that `to_json` wrote.

    Raises:
        ValueError: if the mechanism is unknown or its fields are wrong: a price is never guessed.
    """
    name = data.get("mechanism")
    if not isinstance(name, str) or name not in Mechanism._known:
        raise ValueError(f"unknown mechanism {name!r}; known: {', '.join(sorted(Mechanism._known))}")
    return Mechanism._known[name].from_json(data)


@lru_cache(maxsize=4096)
def canonical(release: Release) -> str:
    """One text for one fact: what releases are sorted by."""
    return canonical_json.canonical(release.to_json())


def positive(name: str, value: object) -> float:
    """`value` as a finite float above 0. Raises ValueError otherwise, naming it."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {number}")
    return number


def finite(name: str, value: object) -> float:
    """`value` as a finite float. Raises ValueError otherwise, naming it."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def rate(name: str, value: object) -> float:
    """`value` as a float above 0 and at most 1. Raises ValueError otherwise, naming it."""
    number = finite(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {number}")
    return number


def count(name: str, value: object) -> int:
    """`value` as a whole number of at least 1. Raises ValueError otherwise, naming it."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
