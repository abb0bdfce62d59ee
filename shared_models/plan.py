"""The plan: one description of a federated run, the same in simulation and in deployment.

This module is the only definition of what a plan may say. Reading it from TOML, overriding keys and writing it
out is `plan_file`; computing the noise from the target epsilon (or the other way round) is `resolve`.

Every model is frozen and strict: an unknown key, a wrong type or an impossible combination is an error that names
the key path, what was given and what is allowed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from privacy.mechanisms import DpSgd

MEAN_STRATEGIES: Final = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox")
ROBUST_STRATEGIES: Final = ("krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg")


class Section(BaseModel):
    """A table of the plan: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


# What the key says that tells the tables of a kind apart.
_PARTITION: Final = "iid, dirichlet, pathological, size-skewed or natural."
_COLUMN: Final = "numeric or categorical."
_SCHEDULE: Final = "constant, cosine or step."
_COHORT: Final = "all, fixed or poisson."


# --- data ---------------------------------------------------------------------------------------------------------


class IidPartition(Section):
    """Records are dealt to the clients at random, in equal parts."""

    kind: Literal["iid"] = Field("iid", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")


class DirichletPartition(Section):
    """Each class is spread over the clients by a Dirichlet draw (Hsu et al. 2019, arXiv 1909.06335)."""

    kind: Literal["dirichlet"] = Field("dirichlet", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")
    alpha: Positive = Field(0.5, description="Concentration: small is unequal, large is nearly iid.")
    min_size: CountOrZero = Field(1, description="Fewest records a client may get; the draw repeats until met.")


class PathologicalPartition(Section):
    """Each client holds a few classes only (McMahan et al. 2017, arXiv 1602.05629, section 3)."""

    kind: Literal["pathological"] = Field("pathological", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")
    classes_per_client: Count = Field(2, description="Number of classes each client holds.")


class SizeSkewedPartition(Section):
    """Records are dealt at random, the number a client gets grows with its index."""

    kind: Literal["size-skewed"] = Field("size-skewed", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")
    growth: Literal["linear", "square", "exponential"] = Field(
        "linear", description="How the size grows with the client's index."
    )


class NaturalPartition(Section):
    """One client for each value of a column: hospitals, people, sources."""

    kind: Literal["natural"] = Field("natural", description=_PARTITION)
    column: str = Field(description="Column whose values are the clients.")


Partition = Annotated[
    IidPartition | DirichletPartition | PathologicalPartition | SizeSkewedPartition | NaturalPartition,
    Field(discriminator="kind"),
]


class NumericColumn(Section):
    """A number, clipped to public bounds and scaled by them to [-1, 1]; missing gets 0 and a flag of its own."""

    kind: Literal["numeric"] = Field("numeric", description=_COLUMN)
    low: float = Field(description="Public lower bound; smaller values are clipped to it.")
    high: float = Field(description="Public upper bound; larger values are clipped to it.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self


class CategoricalColumn(Section):
    """One of a public list of values, one-hot; any other value, or none, gets a place of its own."""

    kind: Literal["categorical"] = Field("categorical", description=_COLUMN)
    values: tuple[str, ...] = Field(min_length=1, strict=False, description="Public list of values.")


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class CardPlan(Section):
    """Public facts about the user's own data (`csv`, `npz`, `image-folder`): nothing here is computed from it."""

    classes: tuple[str, ...] = Field(min_length=2, strict=False, description="Names of the classes, in order.")
    target: str | None = Field(None, description="csv: the column to predict.")
    columns: dict[str, Column] = Field(default_factory=dict, description="csv: the columns used, by name.")
    missing: tuple[str, ...] = Field(
        ("", "?", "NA", "nan", "NaN"), strict=False, description="csv: texts that mean a missing value."
    )
    input_shape: tuple[Count, ...] | None = Field(
        None, strict=False, description="npz, image-folder: shape of one example, e.g. [1, 28, 28]."
    )
    mean: float = Field(0.0, description="npz, image-folder: public constant subtracted from every value.")
    std: Positive = Field(1.0, description="npz, image-folder: public constant every value is divided by.")


class DataPlan(Section):
    """Which data, and how it is spread over the clients."""

    name: str = Field("digits", description="Data set: digits, heart-disease, fashion-mnist, csv, npz, image-folder.")
    path: str | None = Field(None, description="File or folder of the data, where the set needs one.")
    partition: Partition = Field(
        default_factory=DirichletPartition, description="How a simulation spreads the records over clients."
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Part held out by a keyed hash of the record, if the set has no test part.",
    )
    person_column: str | None = Field(None, description="Column that names the person a record belongs to.")
    max_rows_per_person: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Most records of one person that are used; the privacy unit is then a person."
    )
    card: CardPlan | None = Field(None, description="Public description of the user's own data.")

    @model_validator(mode="after")
    def _person(self) -> Self:
        if self.max_rows_per_person is not None and self.person_column is None:
            raise ValueError("max_rows_per_person needs person_column, the column that names the person")
        if self.person_column is not None and self.max_rows_per_person is None:
            raise ValueError("person_column needs max_rows_per_person, a public bound on a person's records")
        return self


# --- model and training -------------------------------------------------------------------------------------------


class ModelPlan(Section):
    """Which network, with which options."""

    name: str = Field("cnn", description="Network: one of those `veil plan models` lists.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the network's own.")


class ConstantSchedule(Section):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = Field("constant", description=_SCHEDULE)
    warmup_rounds: CountOrZero = Field(0, description="Rounds over which the rate rises linearly from zero.")


class CosineSchedule(Section):
    """The learning rate falls by a half cosine over the run (Loshchilov & Hutter 2017, arXiv 1608.03983)."""

    kind: Literal["cosine"] = Field("cosine", description=_SCHEDULE)
    warmup_rounds: CountOrZero = Field(0, description="Rounds over which the rate rises linearly from zero.")
    final_fraction: float = Field(
        0.0, ge=0, le=1, description="Part of the rate it falls towards; the last round still has a little more."
    )


class StepSchedule(Section):
    """The learning rate is multiplied by a factor every so many rounds."""

    kind: Literal["step"] = Field("step", description=_SCHEDULE)
    warmup_rounds: CountOrZero = Field(0, description="Rounds over which the rate rises linearly from zero.")
    every: Count = Field(10, description="Rounds between two falls.")
    factor: Rate = Field(0.5, description="What the rate is multiplied by.")


Schedule = Annotated[ConstantSchedule | CosineSchedule | StepSchedule, Field(discriminator="kind")]


class TrainingPlan(Section):
    """What a client does with its data in one round."""

    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Local optimiser, made anew each round.")
    learning_rate: Positive = Field(0.1, description="Local learning rate.")
    momentum: Decay = Field(0.0, description="Momentum of sgd.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), strict=False, description="Moment decay of adam and adamw.")
    weight_decay: NonNegative = Field(0.0, description="Weight decay of the local optimiser.")
    schedule: Schedule = Field(default_factory=ConstantSchedule, description="Learning rate over the rounds.")
    steps: Count | None = Field(None, description="Local steps a round; default 10 unless epochs is given.")
    epochs: Count | None = Field(
        None,
        description="Local passes over the data a round; only without privacy, where a count may be private.",
    )
    sample_rate: Rate = Field(0.1, description="Under privacy: chance of each record to be in a step's batch.")
    expected_batch_size: Count = Field(
        16,
        description="Public batch size: what a private sum is divided by; without privacy the batch itself.",
    )
    max_physical_batch: Count | None = Field(
        None, description="Largest batch held in memory at once; larger ones are accumulated in parts."
    )
    proximal_mu: NonNegative = Field(0.0, description="Weight of FedProx' proximal term (arXiv 1812.06127).")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where a client computes.")
    threads: Count = Field(1, description="Torch threads of a client; part of the plan so that results stay equal.")

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self

    @property
    def local_steps(self) -> int:
        """Local steps a round where the plan counts steps."""
        return 10 if self.steps is None else self.steps


# --- privacy ------------------------------------------------------------------------------------------------------


class PrivacyPlan(Section):
    """Who is protected from whom, and how strongly."""

    unit: Literal["example", "client"] = Field(
        "example", description="What is protected: one record, or all that a client holds."
    )
    trust: Literal["none", "local", "distributed", "central"] = Field(
        "local",
        description="Who adds the noise: nobody (plain federated learning), each client for itself, the clients "
        "together under secure aggregation, or a trusted server.",
    )
    epsilon: Positive | None = Field(None, description="Target epsilon over the whole run (or give noise_multiplier).")
    noise_multiplier: Annotated[float, Field(ge=1e-4, le=2**20)] | None = Field(
        None, description="Standard deviation of the noise over the clipping norm (or give epsilon)."
    )
    calibrated_from: Literal["epsilon", "noise_multiplier"] | None = Field(
        None, description="In a resolved plan: which of the two was given; the other was computed."
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="Chance with which the epsilon may fail.")
    clipping_norm: float = Field(1.0, ge=1e-9, le=1e9, description="Largest L2 norm one unit's contribution may have.")
    budget: Positive | None = Field(
        None,
        description="Epsilon at which a client refuses to go on; never beyond the plan's epsilon, the default.",
    )
    noise: Literal["secret", "reproducible"] = Field(
        "secret",
        description="Source of noise and sampling: the operating system's entropy, or (simulation only, no claim) "
        "the plan's seed.",
    )
    selection: Literal["public", "charged", "uncharged"] = Field(
        "uncharged", description="How hyper-parameters and features were chosen; printed with every claim."
    )

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.trust == "none":
            return self
        if self.unit == "client" and self.trust == "local":
            raise ValueError("unit = 'client' with trust = 'local' is not offered; allowed: central, distributed")
        if self.unit == "example" and self.trust == "central":
            raise ValueError("unit = 'example' with trust = 'central' is not offered; allowed: local, distributed")
        given = [key for key in ("epsilon", "noise_multiplier") if getattr(self, key) is not None]
        if not given:
            raise ValueError("give epsilon (a target) or noise_multiplier; the other is computed")
        if len(given) == 2 and self.calibrated_from is None:
            raise ValueError(
                "give epsilon or noise_multiplier, not both; the other is computed "
                "(an override removes a key by setting it to nothing: --set privacy.epsilon=)"
            )
        if len(given) == 1 and self.calibrated_from is not None:
            raise ValueError(
                "calibrated_from stands in a resolved plan, which gives both epsilon and noise_multiplier; remove it"
            )
        return self


# --- federation ---------------------------------------------------------------------------------------------------


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
    known = (*MEAN_STRATEGIES, *ROBUST_STRATEGIES)
    if name in known or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"{hint}allowed: {', '.join(known)}, or package.module:Class")


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
    strategy: Annotated[str, AfterValidator(_known_strategy)] = Field(
        "fedavg", description="Flower strategy that turns the update into the next model."
    )
    strategy_options: dict[str, Option] = Field(
        default_factory=dict,
        description="Options of the strategy's constructor, e.g. eta, server_momentum, beta.",
    )
    min_clients: Count = Field(1, description="Fewest good updates a round needs; below it the run fails.")
    weighting: Literal["uniform", "examples"] | None = Field(
        None, description="Weight of an update; default: examples without privacy, uniform with it."
    )
    wire: Literal["float32", "float16"] = Field("float32", description="Number format of parameters on the wire.")
    round_timeout: Positive | None = Field(None, description="Seconds after which a round goes on with what it has.")


class EvaluationPlan(Section):
    """How the shared model is judged."""

    where: Literal["server", "none"] = Field(
        "server",
        description="On the server's own test data (unprotected, disjoint from training), or not at all.",
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


class Plan(Section):
    """A whole run."""

    name: str = Field("digits", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the run's folder.")
    seed: int = Field(
        7,
        ge=0,
        lt=2**63,
        description="Model initialisation, partition, cohorts; never the noise of a deployment.",
    )
    data: DataPlan = Field(default_factory=DataPlan)
    model: ModelPlan = Field(default_factory=ModelPlan)
    training: TrainingPlan = Field(default_factory=TrainingPlan)
    privacy: PrivacyPlan = Field(default_factory=lambda: PrivacyPlan(epsilon=8.0))
    federation: FederationPlan = Field(default_factory=FederationPlan)
    evaluation: EvaluationPlan = Field(default_factory=EvaluationPlan)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        privacy, federation = self.privacy, self.federation
        if privacy.trust in ("distributed", "central") and federation.strategy in ROBUST_STRATEGIES:
            raise ValueError(
                f"federation.strategy = '{federation.strategy}' needs every single update, which privacy.trust = "
                f"'{privacy.trust}' hides; allowed: {', '.join(MEAN_STRATEGIES)}"
            )
        if self.is_private and federation.weighting == "examples":
            raise ValueError(
                "federation.weighting = 'examples' would release each client's number of records; under privacy "
                "allowed: uniform"
            )
        if self.is_private and self.training.epochs is not None:
            raise ValueError(
                "training.epochs depends on each client's number of records; under privacy give training.steps"
            )
        if federation.strategy == "fedprox" and self.training.proximal_mu == 0:
            raise ValueError("federation.strategy = 'fedprox' needs training.proximal_mu > 0")
        stops = self.evaluation.target is not None or self.evaluation.patience is not None
        if self.evaluation.where == "none" and stops:
            raise ValueError("evaluation.target and evaluation.patience need evaluation.where = 'server'")
        clients = getattr(self.data.partition, "clients", None)
        if clients is not None:
            if isinstance(federation.cohort, FixedCohort) and federation.cohort.size > clients:
                raise ValueError(
                    f"federation.cohort.size = {federation.cohort.size} is more than data.partition.clients = {clients}"
                )
            if federation.min_clients > clients:
                raise ValueError(
                    f"federation.min_clients = {federation.min_clients} is more than data.partition.clients = {clients}"
                )
        return self

    @property
    def is_private(self) -> bool:
        """Whether any privacy is claimed."""
        return self.privacy.trust != "none"

    @property
    def weighting(self) -> Literal["uniform", "examples"]:
        """Weight of an update, with the default filled in (rule 1: never a private count under privacy)."""
        return self.federation.weighting or ("uniform" if self.is_private else "examples")

    @property
    def records_per_unit(self) -> int:
        """Most records of one privacy unit (rule 6): 1, or the bound on a person's where the plan names people."""
        return self.data.max_rows_per_person or 1

    def round_release(self) -> DpSgd | None:
        """What one round releases of a client's data, or None without privacy.

        Raises:
            ValueError: the plan is not resolved yet, so the noise multiplier is unknown.
        """
        if not self.is_private:
            return None
        if self.privacy.noise_multiplier is None:
            raise ValueError("the plan is not resolved: its noise multiplier is unknown")
        return DpSgd(
            noise_multiplier=self.privacy.noise_multiplier,
            sample_rate=self.training.sample_rate,
            steps=self.training.local_steps,
            records_per_unit=self.records_per_unit,
        )

    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, in hexadecimal: what both sides compare before a round."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()
