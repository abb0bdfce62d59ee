"""The plan: one description of a federated run, the same in simulation and in deployment.

This module is the only definition of what a plan may say, together with `plan_data`, `plan_federation` and
`plan_secure_sum`, which hold the tables of [data], [federation], [evaluation] and [secure_sum]. Reading it from TOML,
overriding keys and writing it out is `plan_file`; computing the noise from the target epsilon (or the other way round)
is `resolve`.

Every table is frozen and strict (`plan_section`): an unknown key, a wrong type or an impossible combination is an
error that names the key path, what was given and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from privacy.example_sum_grid import ExampleSumGrid
from privacy.lifetime import Balance, Terms, multiset
from privacy.mechanisms import (
    BandedFactorisation,
    ClientLevel,
    DpSgd,
    NoisyCounts,
    NoisyHistograms,
    NoisySum,
    NoisyTable,
    Release,
)
from privacy.sum_grid import SumGrid
from shared_models.once import once
from shared_models.plan_adaptive import AdaptivePlan, check_adaptive
from shared_models.plan_asynchronous import check_asynchronous, is_asynchronous, participations_of
from shared_models.plan_augment import AugmentPlan
from shared_models.plan_central import central_release, check_central, has_secret_cohorts
from shared_models.plan_correlated import CorrelatedPlan, is_correlated
from shared_models.plan_data import LANGUAGE, DataPlan, NaturalPartition, is_numbered
from shared_models.plan_features import FeaturesPlan
from shared_models.plan_federation import (
    MEAN_STRATEGIES,
    ROBUST_STRATEGIES,
    EvaluationPlan,
    FederationPlan,
    FixedCohort,
)
from shared_models.plan_personal import PersonalPlan, check_personal
from shared_models.plan_scaffold import check_scaffold, is_scaffold
from shared_models.plan_section import Count, CountOrZero, Decay, NonNegative, Positive, Rate, Section
from shared_models.plan_secure_sum import (
    SecureSumPlan,
    check_secure_sum,
    cohort_size,
    honest_and_corrupt,
    secure_sum_of,
    sum_grid,
    sum_release,
)
from shared_models.plan_statistics import StatisticsPlan, check_statistics, statistics_release, with_defaults

if TYPE_CHECKING:
    from security.secure_sum.parameters import SumParameters

# Keys that are no part of the digest where they are not given.
_LATER: Final = (
    ("secure_sum",),
    ("features",),
    ("statistics",),
    ("personal",),
    ("model", "frozen"),
    ("data", "text"),
    ("data", "normalisation"),
    ("data", "leave_out"),
    ("data", "card", "text"),
    ("federation", "population"),
    ("federation", "asynchronous"),
    ("privacy", "adaptive"),
    ("privacy", "correlated"),
)

# What the key says that tells the tables of a kind apart.
_SCHEDULE: Final = "constant, cosine or step."
_MOST_CLASSES: Final = 200


# --- model and training -------------------------------------------------------------------------------------------


class ModelPlan(Section):
    """Which network, with which options."""

    name: str = Field("cnn", description="Network: one of those `veil plan models` lists.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the network's own.")
    frozen: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="In a resolved plan: SHA-256 over what of the network doesn't learn, where there is any."
    )


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
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Part of an example's target that is spread evenly over all classes."
    )
    class_weights: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...] | None = Field(
        None,
        strict=False,
        min_length=2,
        description="What the loss of each class' examples is multiplied by, in the order of the classes: public "
        "numbers, or made of released counts.",
    )
    schedule: Schedule = Field(default_factory=ConstantSchedule, description="Learning rate over the rounds.")
    augment: AugmentPlan | None = Field(
        None, description="Records are trained on in changed copies: shifted, mirrored, scaled, with jitter."
    )
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
    company: Annotated[int, Field(ge=1, le=100)] = Field(
        1,
        description="Clients of a simulation that train at once, where their model is small and linear and nothing is "
        "private; above 1, a model is that of other grids up to rounding.",
    )
    max_physical_batch: Count | None = Field(
        None, description="Largest batch held in memory at once; larger ones are accumulated in parts."
    )
    dp_engine: Literal["bookkeeping", "opacus"] = Field(
        "bookkeeping", description="What makes the gradients of single examples: Veil's engine, or Opacus' hooks."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="What a network's layers compute in; norms, sums and parameters stay float32."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Whether a network's alike layers keep nothing but their inputs and are run again in the backward "
        "pass: less memory for a third more time.",
    )
    proximal_mu: NonNegative = Field(0.0, description="Weight of FedProx' proximal term (arXiv 1812.06127).")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where a client computes.")
    threads: Count = Field(1, description="Torch threads of a client; part of the plan so that results stay equal.")

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self

    @model_validator(mode="after")
    def _engine_of_layers_run_again(self) -> Self:
        if self.gradient_checkpointing and self.dp_engine == "opacus":
            raise ValueError(
                "gradient_checkpointing with dp_engine = 'opacus': its hooks would see a layer's inputs twice; "
                "allowed: bookkeeping"
            )
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
        None,
        description="Standard deviation of the noise over the clipping norm (or give epsilon); with correlated noise "
        "that of the whole run, over what one client can move it.",
    )
    calibrated_from: Literal["epsilon", "noise_multiplier"] | None = Field(
        None, description="In a resolved plan: which of the two was given; the other was computed."
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="Chance with which the epsilon may fail.")
    clipping_norm: float = Field(1.0, ge=1e-9, le=1e9, description="Largest L2 norm one unit's contribution may have.")
    clipping: Literal["flat", "per-layer", "automatic"] = Field(
        "flat",
        description="How a record's gradient is brought to the norm: shortened as a whole, each parameter by itself, "
        "or all gradients to nearly the same length (AUTO-S).",
    )
    budget: Positive | None = Field(
        None,
        description="Epsilon at which a client refuses to go on; never beyond the plan's epsilon, the default.",
    )
    client_budgets: dict[str, Positive] = Field(
        default_factory=dict, description="Simulation: budgets of single clients, by id, in place of `budget`."
    )
    unprotected: tuple[Literal["examples", "train-loss"], ...] = Field(
        (),
        strict=False,
        description="Fields that clients are asked to send as they are, where their policy lets them; they withdraw "
        "the claim.",
    )
    noise: Literal["secret", "reproducible"] = Field(
        "secret",
        description="Source of noise and sampling: the operating system's entropy, or (simulation only, no claim) "
        "the plan's seed.",
    )
    selection: Literal["public", "charged", "uncharged"] = Field(
        "uncharged", description="How hyper-parameters and features were chosen; printed with every claim."
    )
    adaptive: AdaptivePlan | None = Field(None, description="A clipping norm that follows what is clipped.")
    correlated: CorrelatedPlan | None = Field(None, description="Noise that partly cancels over the rounds.")

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.trust == "none":
            return self
        if self.unit == "client" and self.trust == "local":
            raise ValueError("unit = 'client' with trust = 'local' is not offered; allowed: central, distributed")
        if self.unit == "example" and self.trust == "central":
            raise ValueError("unit = 'example' with trust = 'central' is not offered; allowed: local, distributed")
        if self.unit == "client" and self.clipping != "flat":
            raise ValueError(
                f"clipping = '{self.clipping}' with unit = 'client' is not offered: updates are clipped as a whole; "
                "allowed: flat"
            )
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
    features: FeaturesPlan | None = Field(None, description="A frozen, public feature map before the network.")
    model: ModelPlan = Field(default_factory=ModelPlan)
    training: TrainingPlan = Field(default_factory=TrainingPlan)
    privacy: PrivacyPlan = Field(default_factory=lambda: PrivacyPlan(epsilon=8.0))
    federation: FederationPlan = Field(default_factory=FederationPlan)
    evaluation: EvaluationPlan = Field(default_factory=EvaluationPlan)
    secure_sum: SecureSumPlan | None = Field(None, description="Secure sums; with privacy.trust = 'distributed' only.")
    statistics: StatisticsPlan | None = Field(None, description="Noisy histograms, in place of a model.")
    personal: PersonalPlan | None = Field(None, description="What of a model is each client's own.")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, raw: Any) -> Any:
        return with_defaults(raw)

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
        partition = self.data.partition
        if self.is_private and isinstance(partition, NaturalPartition) and partition.column == self.data.person_column:
            raise ValueError(
                f"data.partition.column = {partition.column!r} is data.person_column too: each client's id would be a "
                "person's name, told to the server; under privacy allowed: another column, or another kind of partition"
            )
        clients, parts = self.data.clients, self.data.parts
        if clients is not None and parts is not None:
            nobody = [name for name in privacy.client_budgets if not is_numbered(name, parts)]
            if nobody:  # a budget of nobody's would hold nobody back
                last = str(parts - 1)
                raise ValueError(
                    f"privacy.client_budgets: no client has the id {min(nobody)!r}; allowed: {'0' * len(last)!r} to "
                    f"{last!r}"
                )
            if isinstance(federation.cohort, FixedCohort) and federation.cohort.size > clients:
                raise ValueError(
                    f"federation.cohort.size = {federation.cohort.size} is more than data.partition.clients = {clients}"
                )
            if federation.min_clients > clients:
                raise ValueError(
                    f"federation.min_clients = {federation.min_clients} is more than data.partition.clients = {clients}"
                )
        return self

    @model_validator(mode="after")
    def _evaluation(self) -> Self:
        evaluation = self.evaluation
        stops = evaluation.target is not None or evaluation.patience is not None
        if evaluation.where == "none" and stops:
            raise ValueError("evaluation.target and evaluation.patience need evaluation.where = 'server' or 'clients'")
        if self.data.test_fraction == 0 and evaluation.where != "none":
            raise ValueError(
                "data.test_fraction = 0 leaves nothing to judge the model on, with evaluation.where = "
                f"'{evaluation.where}'; allowed: above 0, or evaluation.where = 'none'"
            )
        countable = ("accuracy", "balanced_accuracy") if evaluation.per_class else ("accuracy",)
        if evaluation.where == "clients" and evaluation.metric not in countable:
            raise ValueError(
                f"evaluation.metric = '{evaluation.metric}' can't be computed from clients' counts; with "
                f"evaluation.where = 'clients' allowed: {', '.join(countable)}"
            )
        if evaluation.per_class and evaluation.where != "clients":
            raise ValueError(
                f"evaluation.per_class is about counts of clients, with evaluation.where = '{evaluation.where}' there "
                "are none; allowed: evaluation.where = 'clients'"
            )
        if evaluation.per_class and self.data.name in LANGUAGE:
            raise ValueError(f"evaluation.per_class: data.name = '{self.data.name}' has no classes to count by")
        classes = 0 if self.data.card is None else len(self.data.card.classes)
        if evaluation.per_class and classes > _MOST_CLASSES:  # a client would make a table of all by all
            raise ValueError(f"evaluation.per_class: {classes} classes are too many; allowed: {_MOST_CLASSES}")
        if evaluation.where != "server" and evaluation.baselines:
            raise ValueError("evaluation.baselines needs evaluation.where = 'server', whose test data they share")
        return self

    @model_validator(mode="after")
    def _wire(self) -> Self:
        wire, trust = self.federation.wire, self.privacy.trust
        if wire in ("int8", "top-k") and trust in ("distributed", "central"):
            raise ValueError(
                f"federation.wire = '{wire}' changes each update after it was clipped, and privacy.trust = '{trust}' "
                f"counts on clipped ones; allowed: float32{'' if trust == 'distributed' else ', float16'}"
            )
        return self

    @model_validator(mode="after")
    def _secure_sum(self) -> Self:
        check_statistics(self)
        check_scaffold(self)
        check_personal(self)
        check_asynchronous(self)
        check_secure_sum(self)
        return self

    @model_validator(mode="after")
    def _central(self) -> Self:
        check_central(self)
        check_adaptive(self)
        return self

    @property
    def is_private(self) -> bool:
        """Whether any privacy is claimed."""
        return self.privacy.trust != "none"

    @property
    def weighting(self) -> Literal["uniform", "examples"]:
        """Weight of an update, with the default filled in (rule 1: never a private count under privacy)."""
        alike = self.is_private or is_scaffold(self) or is_asynchronous(self)
        return self.federation.weighting or ("uniform" if alike else "examples")

    @property
    def records_per_unit(self) -> int:
        """Most records of one privacy unit (rule 6): 1, or the bound on a person's where the plan names people."""
        return self.data.max_rows_per_person or 1

    @property
    def balance(self) -> Balance:
        """The account that a private run charges: what an epsilon is about, and who must be trusted for it."""
        of_people = self.data.max_rows_per_person is not None
        unit = "client" if self.privacy.unit == "client" else "person" if of_people else "record"
        return Balance(unit=unit, trust=self.privacy.trust)

    @property
    def evaluates_at_clients(self) -> bool:
        """Whether clients judge the model on what they hold out."""
        return self.evaluation.where == "clients"

    @property
    def holds_out(self) -> bool:
        """Whether each client keeps a part of its records to judge models on."""
        return self.evaluates_at_clients or self.personal is not None

    @property
    def spreads_all(self) -> bool:
        """Whether clients get all records of a simulation, because the server judges nothing on a part of its own."""
        return self.holds_out and self.evaluation.where != "server"

    def client_budget(self, client: str) -> float:
        """Epsilon at which a virtual client refuses to go on.

        Raises:
            ValueError: the plan is not resolved, or has no privacy.
        """
        privacy = self.privacy
        if privacy.epsilon is None:
            raise ValueError("the plan is not resolved, or without privacy: its epsilon is unknown")
        return min(privacy.client_budgets.get(client, privacy.budget or privacy.epsilon), privacy.epsilon)

    @property
    def is_joint(self) -> bool:
        """Whether each round is one step of DP-SGD over all clients' records together, by a secure sum."""
        return self.privacy.unit == "example" and self.privacy.trust == "distributed"

    @property
    def has_secret_cohorts(self) -> bool:
        """Whether the figures count on nobody learning who took part (rule 3): then all rounds are paid for at once, by
        everybody, and nothing that a run tells hangs on who took part in one."""
        return has_secret_cohorts(self)

    @property
    def is_one_release(self) -> bool:
        """Whether all rounds together are one release of a server that adds the noise: of noise that is correlated, or
        of clients at their own pace, each of whom is in some of the rounds."""
        return is_correlated(self) or (self.privacy.trust == "central" and is_asynchronous(self))

    @property
    def is_paid_at_once(self) -> bool:
        """Whether everybody pays for all rounds before the first: cohorts are secret, or the run is one release."""
        return has_secret_cohorts(self) or self.is_one_release

    @property
    def spare_rounds(self) -> int:
        """Rounds of training that are paid for beyond those planned, for attempts that were aborted after a charge."""
        return self.secure.spare_rounds if self.privacy.trust == "distributed" else 0

    def is_evaluated(self, round_number: int) -> bool:
        """Whether the model is judged after a round."""
        if self.evaluation.where == "none":
            return False
        return round_number % self.evaluation.every == 0 or round_number == self.federation.rounds

    @property
    def secure(self) -> SecureSumPlan:
        """How clients add up in secret, with the defaults filled in; means something under distributed trust only."""
        return secure_sum_of(self)

    def sum_grid(self) -> SumGrid | ExampleSumGrid:
        """Under distributed trust: on which whole numbers clients' contributions lie, with how much noise.

        Raises:
            ValueError: the plan is not resolved.
        """
        return sum_grid(self)

    def secure_parameters(self, clients: int | None = None) -> SumParameters:
        """Under distributed trust: the thresholds of a sum over so many clients, by default a whole cohort.

        The numbers of honest and of corrupt clients are those of a whole cohort, however many take part.

        Raises:
            ValueError: so many clients can't add up in secret, or are more than the plan's cohort.
        """
        from security.secure_sum.parameters import parameters_for

        most = cohort_size(self)
        clients = most if clients is None else clients
        if clients > most:
            raise ValueError(f"{clients} clients are more than the {most} that the plan's noise and ring are made for")
        honest, corrupt = honest_and_corrupt(self)
        return parameters_for(cohort=clients, corrupt=corrupt, honest=honest)

    def train_release(self) -> BandedFactorisation | ClientLevel | DpSgd | NoisyHistograms | NoisySum | None:
        """What one round of training, or of statistics, releases of a client's data, or None without privacy. With
        correlated noise it is what all rounds release together: `planned_trainings` says how often a run makes such a
        release.

        Under distributed trust it is a sum that the client takes part in, priced by the noise of the fewest honest
        clients that it opens for (rule 2). Under central trust it is what a round releases of every client, whether it
        took part or not.

        Raises:
            ValueError: the plan is not resolved yet, so the noise multiplier is unknown.
        """
        if not self.is_private:
            return None
        if self.privacy.trust == "distributed":
            return sum_release(self)
        if self.privacy.trust == "central":
            return central_release(self)
        if self.statistics is not None:
            return statistics_release(self)
        if self.privacy.noise_multiplier is None:
            raise ValueError("the plan is not resolved: its noise multiplier is unknown")
        return DpSgd(
            noise_multiplier=self.privacy.noise_multiplier,
            sample_rate=self.training.sample_rate,
            steps=self.training.local_steps,
            records_per_unit=self.records_per_unit,
        )

    def planned_trainings(self) -> Counter[Release]:
        """What a client that is asked in every round releases by training, spare attempts included.

        Raises:
            ValueError: the plan is not resolved.
        """
        release = self.train_release()
        if release is None:
            return Counter()
        return Counter({release: 1 if self.is_one_release else participations_of(self) + self.spare_rounds})

    def evaluate_release(self) -> NoisyCounts | NoisyTable | None:
        """What one evaluation at a client releases of what it holds out, or None where nothing private is."""
        if not (self.is_private and self.evaluates_at_clients):
            return None
        if self.evaluation.per_class:
            return NoisyTable(noise=self.evaluation.count_noise, records_per_unit=self.records_per_unit)
        return NoisyCounts(noise=self.evaluation.count_noise, counts=2, records_per_unit=self.records_per_unit)

    def planned_counts(self) -> Counter[Release]:
        """Evaluations of a client that takes part in every round: they cost beside the training."""
        release = self.evaluate_release()
        times = sum(self.is_evaluated(number) for number in range(1, self.federation.rounds + 1))
        return Counter() if release is None else Counter({release: times})

    def terms(self) -> Terms:
        """What a client may be asked to release over the whole run (rule 4), round by round, spare attempts last; of a
        run that is one release, that alone.

        Raises:
            ValueError: the plan is not resolved, or without privacy.
        """
        train, counts = self.train_release(), self.evaluate_release()
        if train is None:
            raise ValueError("a plan without privacy has no terms")
        if self.is_one_release:
            return Terms(plan=self.digest(), rounds=(multiset([train]),), delta=self.privacy.delta)
        alone, both = multiset([train]), multiset([train] if counts is None else [train, counts])
        rounds = tuple(both if self.is_evaluated(n) else alone for n in range(1, participations_of(self) + 1))
        rounds += (alone,) * self.spare_rounds
        return Terms(plan=self.digest(), rounds=rounds, delta=self.privacy.delta)

    @once
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, in hexadecimal: what both sides compare before a round.

        All but `data.path`: where data lies is the business of the machine it lies on.
        """
        meaning = self.model_dump(mode="json", exclude={"data": {"path"}})
        for *path, key in _LATER:  # plans from before there were any keep their digest
            table: Any = meaning
            for part in path:
                table = table[part] if isinstance(table, dict) else None
            if isinstance(table, dict) and table.get(key, ...) is None:
                del table[key]
        if getattr(self.secure_sum, "masks", None) is True:  # likewise
            del meaning["secure_sum"]["masks"]
        for section, name, before in (
            ("training", "dp_engine", "bookkeeping"),
            ("training", "precision", "float32"),
            ("training", "company", 1),
            ("training", "label_smoothing", 0.0),
            ("training", "class_weights", None),
            ("training", "augment", None),
            ("training", "gradient_checkpointing", False),
            ("federation", "model_average", None),
            ("privacy", "clipping", "flat"),
            ("evaluation", "per_class", False),
        ):
            if repr(meaning[section][name]) == repr(before):  # -0.0 is another text
                del meaning[section][name]
        text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()
