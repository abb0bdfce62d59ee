"""What a client releases, as facts that an accountant can price.

A *release* is something computed from private data that leaves its owner. Each mechanism is one frozen
dataclass whose fields are public constants. A new mechanism is one more class that satisfies `Release`,
entered in `_MECHANISMS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Protocol, Self

from dp_accounting import dp_event


class Release(Protocol):
    """One release by a differentially private mechanism. Immutable, hashable, compared by its fields."""

    def __hash__(self) -> int: ...

    def event(self) -> dp_event.DpEvent:
        """The release as `dp_accounting` prices it."""

    def looser_event(self) -> dp_event.DpEvent:
        """An event that costs no less and that RDP can price too; often the same."""

    def parts(self) -> "tuple[Release, int]":
        """The smallest release that this one repeats, and how often: itself, once, if it repeats none.

        Releases with the same smallest part cost together what one with the sum of their counts costs.
        """

    def to_json(self) -> dict[str, Any]:
        """A flat mapping of JSON values, with the mechanism's name under `mechanism`."""

    def describe(self) -> str:
        """One line for a person."""


@dataclass(frozen=True, kw_only=True)
class DpSgd:
    """Steps of DP-SGD on Poisson-sampled batches (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).

    In each step every unit enters the batch independently, and the sum of the batch's clipped gradients is
    released with Gaussian noise. Neighbouring data sets differ by adding or removing one unit.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm, > 0.
        sample_rate: probability that one unit enters one batch, in (0, 1]; 1 is the full batch.
        steps: number of noisy sums released, >= 1.
        records_per_unit: most records one unit (a person) has, each sampled by itself and each clipped to the
            clipping norm, >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    records_per_unit: int = 1

    def __post_init__(self) -> None:
        noise_multiplier = _finite("noise_multiplier", self.noise_multiplier)
        sample_rate = _finite("sample_rate", self.sample_rate)
        if noise_multiplier <= 0:
            raise ValueError(f"noise_multiplier must be above 0, got {noise_multiplier}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must be above 0 and at most 1, got {sample_rate}")
        steps = _count("steps", self.steps)
        records = _count("records_per_unit", self.records_per_unit)
        # 1, 1.0 and numpy's 1.0 are one fact: it must have one JSON text, and so one digest.
        object.__setattr__(self, "noise_multiplier", noise_multiplier)
        object.__setattr__(self, "sample_rate", sample_rate)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "records_per_unit", records)

    def event(self) -> dp_event.DpEvent:
        """The steps as `dp_accounting` prices them; the full batch is the plain Gaussian mechanism.

        A unit of k records moves the sum by up to as many clipping norms as records of it were drawn: a mixture of
        Gaussians with binomial weights (Ganesh 2024, arXiv 2401.10294, theorem 1.1).
        """
        k, q = self.records_per_unit, self.sample_rate
        if q == 1 or k == 1:
            return self.looser_event()
        weights = [math.comb(k, drawn) * q**drawn * (1 - q) ** (k - drawn) for drawn in range(k + 1)]
        step = dp_event.MixtureOfGaussiansDpEvent(self.noise_multiplier, list(range(k + 1)), weights)
        return dp_event.SelfComposedDpEvent(step, self.steps)

    def looser_event(self) -> dp_event.DpEvent:
        """As if all records of a unit were drawn whenever one is: larger shifts with the same weights cost no less
        (Choquette-Choo et al. 2024, arXiv 2310.15526, lemma 4.5), and RDP can price it."""
        step = dp_event.GaussianDpEvent(self.noise_multiplier / self.records_per_unit)
        if self.sample_rate < 1:
            any_drawn = 1 - (1 - self.sample_rate) ** self.records_per_unit
            rate = self.sample_rate if self.records_per_unit == 1 else any_drawn
            step = dp_event.PoissonSampledDpEvent(rate, step)
        return dp_event.SelfComposedDpEvent(step, self.steps)

    def parts(self) -> tuple[Release, int]:
        """One step, and the number of steps."""
        return replace(self, steps=1), self.steps

    def to_json(self) -> dict[str, Any]:
        """The fields, and `"mechanism": "dp-sgd"`."""
        return {"mechanism": "dp-sgd", **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ValueError for another mechanism, missing or unknown keys."""
        values = dict(data)
        if values.pop("mechanism", None) != "dp-sgd":
            raise ValueError(f"not a dp-sgd release: {dict(data)}")
        expected = {field.name for field in fields(cls)}
        if values.keys() != expected:
            raise ValueError(f"a dp-sgd release has the keys {sorted(expected)}, got {sorted(values)}")
        return cls(**values)

    def describe(self) -> str:
        """One line for a person."""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        batch = "full batches" if self.sample_rate == 1 else f"Poisson batches of rate {self.sample_rate:g}"
        unit = "" if self.records_per_unit == 1 else f", at most {self.records_per_unit} records a unit"
        return f"DP-SGD: {steps} on {batch}, noise multiplier {self.noise_multiplier:g}{unit}"


_MECHANISMS: dict[str, Callable[[Mapping[str, Any]], Release]] = {"dp-sgd": DpSgd.from_json}


def release_from_json(data: Mapping[str, Any]) -> Release:
    """The release that `to_json` wrote.

    Raises:
        ValueError: if the mechanism is unknown or its fields are wrong: a price is never guessed.
    """
    name = data.get("mechanism")
    if not isinstance(name, str) or name not in _MECHANISMS:
        raise ValueError(f"unknown mechanism {name!r}; known: {', '.join(sorted(_MECHANISMS))}")
    return _MECHANISMS[name](data)


def _finite(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _count(name: str, value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
