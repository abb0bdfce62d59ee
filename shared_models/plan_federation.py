"""The tables [federation] and [evaluation] of a plan: how the server leads the rounds, and how the model is judged."""

from __future__ import annotations

import math
import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from security.errors import did_you_mean
from shared_models.plan_asynchronous import AsynchronousPlan
from shared_models.plan_section import Count, Decay, Positive, Rate, Section

MEAN_STRATEGIES: Final = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox")
VARIATE_STRATEGIES: Final = ("scaffold",)
ROBUST_STRATEGIES: Final = ("krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg", "normbound")

_COHORT: Final = "all, fixed or poisson."


class AllCohort(Section):
    """Every client takes part in every round."""

    sampling: Literal["all"] = Field("all", description=_COHORT)


class FixedCohort(Section):
    """A fixed number of clients, drawn without replacement."""

    sampling: Literal["fixed"] = Field("fixed", description=_COHORT)
    size: Count = Field(10, description="Clients a round.")


class PoissonCohort(Section):
    """Each client takes part with the same chance, independently; a cohort may be empty."""

    sampling: Literal["poisson"] = Field("poisson", description=_COHORT)
    rate: Rate = Field(0.1, description="Chance of each client to take part in a round.")


Cohort = Annotated[AllCohort | FixedCohort | PoissonCohort, Field(discriminator="sampling")]


def _known_strategy(name: str) -> str:
    known = (*MEAN_STRATEGIES, *VARIATE_STRATEGIES, *ROBUST_STRATEGIES)
    if name in known or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    raise ValueError(f"{did_you_mean(name, known)}allowed: {', '.join(known)}, or package.module:Class")


def _option(value: object) -> object:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("allowed: a finite number, a text, true or false")


# Looked at before pydantic tries the four types one after the other and complains of each.
Option = Annotated[int | float | str | bool, BeforeValidator(_option)]


class FederationPlan(Section):
    """How the server leads the rounds."""

    rounds: Count = Field(20, description="Rounds of the run.")
    cohort: Cohort = Field(default_factory=AllCohort, description="Who takes part in a round.")
    population: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None,
        description="With trust = 'central': clients there are, a public number; default from data.partition.",
    )
    strategy: Annotated[str, AfterValidator(_known_strategy)] = Field(
        "fedavg", description="Flower strategy that turns the update into the next model."
    )
    strategy_options: dict[str, Option] = Field(
        default_factory=dict,
        description="Options of the strategy's constructor, e.g. eta, server_momentum, beta.",
    )
    model_average: Decay | None = Field(
        None,
        description="Decay of an exponential average of the rounds' models, which is then what is judged and kept.",
    )
    min_clients: Count = Field(1, description="Fewest good updates a round needs; below it the run fails.")
    weighting: Literal["uniform", "examples"] | None = Field(
        None, description="Weight of an update; default: examples without privacy, uniform with it and with scaffold."
    )
    wire: Literal["float32", "float16", "int8", "top-k"] = Field(
        "float32",
        description="Form of updates on the wire: whole, as eight bits a value, or the largest values alone. The "
        "model goes down as float16 where that is float16, else as float32.",
    )
    top_fraction: Rate | None = Field(None, description="With wire = 'top-k': part of all values that is sent.")
    asynchronous: AsynchronousPlan | None = Field(None, description="Clients at their own pace, in simulation.")
    round_timeout: Positive | None = Field(None, description="Seconds after which a round goes on with what it has.")

    @model_validator(mode="after")
    def _fraction_of_top_k(self) -> Self:
        if self.wire == "top-k" and self.top_fraction is None:
            raise ValueError("wire = 'top-k' needs top_fraction, the part of all values that is sent, e.g. 0.01")
        if self.wire != "top-k" and self.top_fraction is not None:
            raise ValueError(
                f"top_fraction = {self.top_fraction} belongs to wire = 'top-k', not to '{self.wire}'; remove it"
            )
        return self


class EvaluationPlan(Section):
    """How the shared model is judged."""

    where: Literal["server", "clients", "none"] = Field(
        "server",
        description="On the server's own test data (unprotected, disjoint from training), on what each client holds "
        "out of its own (under privacy as noisy counts, which are charged), or not at all.",
    )
    count_noise: Annotated[float, Field(gt=0, le=2**34)] = Field(
        10.0, description="At clients, under privacy: standard deviation of the noise in each count, in examples."
    )
    per_class: bool = Field(
        False,
        description="At clients: count by true class and guess, in place of right and all; each record is in one cell, "
        "so the noise costs less.",
    )
    every: Count = Field(1, description="Rounds between two evaluations; the last round is always evaluated.")
    metric: Literal["accuracy", "balanced_accuracy", "f1", "auc", "loss"] = Field(
        "accuracy", description="Metric that early stopping and best-model keeping look at."
    )
    target: float | None = Field(None, description="Stop once the metric reaches this value.")
    patience: Count | None = Field(None, description="Stop after so many evaluations without a better metric.")
    batch_size: Count = Field(512, description="Examples evaluated at once.")
    baselines: bool = Field(
        False, description="Simulation: also train each client alone and all data pooled, and compare."
    )
