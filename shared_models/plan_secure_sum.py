"""The table [secure_sum] of a plan: how clients add up their updates so that nobody sees but the noisy sum.

It belongs to `privacy.trust = "distributed"`. Parts of the cohort (`honest`, `corrupt`) become whole numbers of clients
once, from the plan's own size of a cohort: a smaller cohort, because sites are away, needs as many honest clients and
stands as many corrupt ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from privacy.example_sum_grid import ExampleSumGrid
from privacy.mechanisms import DiscreteGaussianSum, NoisySum, RoundedGaussianSum, SkellamSum
from privacy.sum_grid import SumGrid, SumNoise, padded_size
from shared_models.plan_adaptive import grid_norm, summed_values
from shared_models.plan_federation import FixedCohort, PoissonCohort
from shared_models.plan_section import Count, CountOrZero, Positive, Rate, Section

if TYPE_CHECKING:
    from shared_models.plan import Plan

_COMPUTED = "In a resolved plan"


class SecureSumPlan(Section):
    """How clients add up their updates under secure aggregation, and whose noise counts."""

    honest: Rate = Field(
        0.5, description="Part of the cohort whose noise counts: fewest honest clients in a sum, rounded up."
    )
    corrupt: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Part of the cohort that may collude with the server, rounded up."
    )
    noise: SumNoise = Field("rounded-gaussian", description="Distribution of the shares of noise.")
    rotation: bool = Field(
        False, description="Whether updates are turned by a random Hadamard rotation; pads them to a power of two."
    )
    spare_rounds: CountOrZero = Field(
        0, description="Attempts paid for beyond the rounds: so often an aborted one may be repeated."
    )
    phase_timeout: Positive = Field(
        30.0, description="Seconds for each short phase; the one with the training has federation.round_timeout."
    )
    masks: bool = Field(
        True,
        description="False (simulation only): what clients send is added up without masks; the sum is the same.",
    )
    clients: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="Clients of a cohort; default from federation.cohort or data.partition."
    )
    dimension: Count | None = Field(None, description=f"{_COMPUTED}: numbers in the vector that is added up.")
    grid: Positive | None = Field(None, description=f"{_COMPUTED}: width of a step of the grid, in the update's unit.")
    noise_share: Positive | None = Field(
        None, description=f"{_COMPUTED}: standard deviation of one client's noise, in steps."
    )
    bits: Literal[32, 64] | None = Field(None, description=f"{_COMPUTED}: width of the ring; no sum wraps in it.")

    @property
    def computed(self) -> dict[str, float | int | None]:
        """What a resolved plan writes out."""
        return {name: getattr(self, name) for name in COMPUTED}


COMPUTED = ("dimension", "grid", "noise_share", "bits")
"""Keys of [secure_sum] that resolving computes."""


def secure_sum_of(plan: Plan) -> SecureSumPlan:
    """The plan's table, or its defaults where it has none."""
    return plan.secure_sum or SecureSumPlan()


def cohort_size(plan: Plan) -> int:
    """How many clients a cohort of the plan has.

    Raises:
        ValueError: nothing in the plan says it.
    """
    given, cohort = secure_sum_of(plan).clients, plan.federation.cohort
    if isinstance(cohort, FixedCohort):
        if given not in (None, cohort.size):
            raise ValueError(
                f"secure_sum.clients = {given} is not federation.cohort.size = {cohort.size}; remove secure_sum.clients"
            )
        return cohort.size
    found = given if given is not None else plan.data.clients
    if found is None:
        raise ValueError(
            "secure_sum.clients: give the number of clients in a cohort, which neither federation.cohort nor "
            "data.partition tells"
        )
    return found


def honest_and_corrupt(plan: Plan) -> tuple[int, int]:
    """Fewest honest clients in a sum, and most that may collude with the server, as numbers of clients."""
    secure, clients = secure_sum_of(plan), cohort_size(plan)
    return _part(secure.honest, clients), _part(secure.corrupt, clients)


def _part(of: float, clients: int) -> int:
    # 0.1 of 30 is three clients, whatever the last bits of the product say; and some are never none.
    return max(math.ceil(round(of * clients, 6)), 1 if of > 0 else 0)


def added_up(plan: Plan, trained: int) -> int:
    """Numbers in the vector that is added up, of so many that are trained."""
    values = summed_values(plan, trained)
    return padded_size(values) if secure_sum_of(plan).rotation else values


def sum_grid(plan: Plan, *, dimension: int | None = None) -> SumGrid | ExampleSumGrid:
    """The grid of a plan's sums: of clients' whole updates, or of their sums of clipped gradients.

    Args:
        plan: with its noise multiplier known.
        dimension: numbers in the vector; default: the resolved plan's own.

    Raises:
        ValueError: the plan is not resolved, or there is no grid for its noise.
    """
    secure, privacy = secure_sum_of(plan), plan.privacy
    dimension = secure.dimension if dimension is None else dimension
    if dimension is None or privacy.noise_multiplier is None:
        raise ValueError("the plan is not resolved: the grid of its sums is unknown")
    honest = honest_and_corrupt(plan)[0]
    if privacy.unit == "example":
        return ExampleSumGrid.of(
            clipping_norm=privacy.clipping_norm,
            noise_multiplier=privacy.noise_multiplier,
            honest=honest,
            dimension=dimension,
            batch_size=plan.training.expected_batch_size if plan.statistics is None else plan.statistics.most_records,
            clients=cohort_size(plan),
        )
    return SumGrid.of(
        clipping_norm=grid_norm(plan),
        noise_multiplier=privacy.noise_multiplier,
        honest=honest,
        dimension=dimension,
        noise=secure.noise,
    )


def sum_release(plan: Plan, *, records: int | None = None) -> NoisySum:
    """What one sum of a plan releases of a client's data.

    Args:
        plan: resolved.
        records: of one unit, where the unit is made of records; default: the plan's own bound.

    Raises:
        ValueError: the plan is not resolved, or there is no grid for its noise.
    """
    grid, dimension = sum_grid(plan), secure_sum_of(plan).dimension
    assert dimension is not None  # or there were no grid
    honest = honest_and_corrupt(plan)[0]
    if isinstance(grid, ExampleSumGrid):
        records = plan.records_per_unit if records is None else records
        return RoundedGaussianSum(
            noise_share=grid.noise_share,
            honest=honest,
            l2_sensitivity=grid.sensitivity(records),
            dimension=dimension,
            sample_rate=plan.training.sample_rate,
            records_per_unit=records,
        )
    return _KINDS[grid.noise](
        noise_share=grid.noise_share, honest=honest, l2_sensitivity=grid.sensitivity, dimension=dimension
    )


_KINDS: dict[SumNoise, type[NoisySum]] = {
    "rounded-gaussian": RoundedGaussianSum,
    "discrete-gaussian": DiscreteGaussianSum,
    "skellam": SkellamSum,
}


def computed(plan: Plan, *, dimension: int) -> dict[str, float | int]:
    """What a resolved plan writes out, for a vector of so many numbers.

    Raises:
        ValueError: there is no grid for the plan's noise.
    """
    grid = sum_grid(plan, dimension=dimension)
    found = dimension, grid.step, grid.noise_share, grid.bits(cohort_size(plan))
    return dict(zip(COMPUTED, found, strict=True))


def check_secure_sum(plan: Plan) -> None:
    """Refuse what can't be added up in secret, or wouldn't protect whom it says.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    privacy, federation = plan.privacy, plan.federation
    if privacy.trust != "distributed":
        if plan.secure_sum is not None:
            raise ValueError(
                f"secure_sum belongs to privacy.trust = 'distributed', not to '{privacy.trust}'; remove it"
            )
        return
    if isinstance(federation.cohort, PoissonCohort):
        raise ValueError(
            "federation.cohort.sampling = 'poisson': clients of a secure sum know who takes part, so chance saves no "
            "privacy; with privacy.trust = 'distributed' allowed: all, fixed"
        )
    if federation.wire != "float32":
        raise ValueError(
            f"federation.wire = '{federation.wire}': what clients send is whole numbers under masks; with "
            "privacy.trust = 'distributed' allowed: float32"
        )
    if privacy.unit == "client" and plan.evaluates_at_clients:
        raise ValueError(
            "evaluation.where = 'clients' would release counts of single clients, which are what is protected; with "
            "privacy.unit = 'client' allowed: server, none"
        )
    if privacy.unit == "example":
        _check_steps(plan)
    if privacy.unprotected:
        raise ValueError(
            f"privacy.unprotected = {list(privacy.unprotected)} says of one client what a secure sum hides; with "
            "privacy.trust = 'distributed' allowed: []"
        )
    _check_numbers(plan)
    _check_computed(plan)


def _check_steps(plan: Plan) -> None:
    """A round is one step of a joint DP-SGD: clients bring gradients, and the server keeps the optimiser's state."""
    training, secure = plan.training, secure_sum_of(plan)
    mine = "with privacy.unit = 'example' and privacy.trust = 'distributed'"
    server = "the server takes the step: give federation.strategy, such as 'fedavgm' or 'fedadam', its options"
    default = type(training)()
    for key in ("optimizer", "momentum", "betas", "weight_decay", "proximal_mu", "epochs"):
        if getattr(training, key) != getattr(default, key):
            raise ValueError(f"training.{key} = {getattr(training, key)!r}: {mine} {server}; remove it")
    if training.steps not in (None, 1):
        raise ValueError(f"training.steps = {training.steps}: {mine} a round is one step; allowed: 1")
    if secure.noise != "rounded-gaussian":
        raise ValueError(f"secure_sum.noise = '{secure.noise}': {mine} allowed: rounded-gaussian")
    if secure.rotation:
        raise ValueError(f"secure_sum.rotation = true: {mine} it helps nothing; allowed: false")
    if plan.records_per_unit > 1 and training.sample_rate < 1:
        raise ValueError(
            f"training.sample_rate = {training.sample_rate} with data.max_rows_per_person = {plan.records_per_unit}: "
            f"{mine} a person's records are not sampled one by one; allowed: sample_rate = 1, all records in each step"
        )


def _check_numbers(plan: Plan) -> None:
    clients = cohort_size(plan)
    if clients < 3:
        raise ValueError(f"a secure sum over {clients} clients hides too little; allowed: 3 clients or more")
    (honest, corrupt), secure = honest_and_corrupt(plan), secure_sum_of(plan)
    if honest + corrupt > clients:
        raise ValueError(
            f"secure_sum.honest = {secure.honest} and secure_sum.corrupt = {secure.corrupt} are {honest} and {corrupt} "
            f"clients, more than the {clients} of a cohort; lower one of them"
        )


def _check_computed(plan: Plan) -> None:
    """The numbers of a resolved plan are what its others give: nobody may promise other noise than there is."""
    given = secure_sum_of(plan).computed
    if all(value is None for value in given.values()):
        return
    dimension, names = given["dimension"], ", ".join(f"secure_sum.{name}" for name in COMPUTED)
    if dimension is None or plan.privacy.noise_multiplier is None or computed(plan, dimension=int(dimension)) != given:
        raise ValueError(f"{names} stand in a resolved plan and are computed; remove them")
