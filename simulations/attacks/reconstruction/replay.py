"""A client's round as the server can play it again with records of its own invention, and differentiate.

The server knows plan and model, so it knows all that a client computes but its records. Without privacy these are steps
of SGD on the mean gradient of batches whose order follows from the plan's seed; with it each record's gradient is first
shortened to the clipping norm and the sum is divided by the public batch size. What the server can't know is the noise:
it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.trainer import batches_of
from security.errors import UsageError
from shared_models.loss import loss_of
from shared_models.parameters import Parameters, set_parameters
from shared_models.plan import Plan
from shared_models.registry import build_for
from shared_models.schedule import learning_rate

Values = dict[str, Tensor]

_MEANS: Final = ("fedavg", "fedprox")  # strategies whose model is moved by the mean itself

_VALUES: Final = 2**26  # of single records' gradients that are in memory together, where no derivative is asked for


@dataclass(frozen=True, eq=False, kw_only=True)
class Replay:
    """Local training as a function of records, made by `replay_of`.

    Attributes:
        plan: resolved.
        model: the plan's network, in double precision.
        start: trained parameters before the round.
        touched: positions of the client's records that are in a batch at all; an attack is about these.
        batches: of each step, positions among the touched records.
        divisor: what a step's sum of gradients is divided by; None for the size of its batch.
        clips: whether each record's gradient is shortened first.
        rate: learning rate.
        partial: whether only the largest values of the movement are sent.
    """

    plan: Plan
    model: nn.Module
    start: Values
    touched: tuple[int, ...]
    batches: tuple[Tensor, ...]
    divisor: float | None
    clips: bool
    rate: float
    partial: bool = False

    def movement(self, x: Tensor, y: Tensor) -> Values:
        """By how much training on records moves the model; differentiable by `x`.

        Args:
            x: (n, *shape), of the touched records.
            y: (n,), classes.
        """
        return self._moved(lambda now, batch: self._gradient(now, x[batch], y[batch]))

    def drift(self) -> Values:
        """By how much weight decay alone moves the model: of any movement, what is no record's doing."""
        with torch.no_grad():
            return self._moved(lambda now, _: {name: torch.zeros_like(value) for name, value in now.items()})

    def told(self, movement: Tensor) -> Tensor:
        """Which values of a movement, as one row, say anything: of the largest alone, what wasn't sent is unknown."""
        return movement != 0 if self.partial else torch.ones_like(movement, dtype=torch.bool)

    def _moved(self, gradients_at: Callable[[Values, Tensor], Values]) -> Values:
        training, now = self.plan.training, dict(self.start)
        before: Values = {}
        for batch in self.batches:
            for name, gradient in gradients_at(now, batch).items():
                kept = gradient + training.weight_decay * now[name]
                kept = kept + training.proximal_mu * (now[name] - self.start[name])
                before[name] = kept if name not in before else training.momentum * before[name] + kept
            now = {name: now[name] - self.rate * before[name] for name in now}
        return {name: now[name] - self.start[name] for name in now}

    def of_each(self, now: Values, x: Tensor, y: Tensor) -> Values:
        """What each record (n, ...) adds to a step, clipped where the plan clips; not divided yet."""
        of = loss_of(self.plan)

        def alone(values: Values, one: Tensor, label: Tensor) -> Tensor:
            return of(functional_call(self.model, values, (one[None],)), label[None])

        each = vmap(grad(alone), in_dims=(None, 0, 0))(now, x, y)
        return self._clipped(each) if self.clips else each

    def _gradient(self, now: Values, x: Tensor, y: Tensor) -> Values:
        divisor = self.divisor or len(x)
        if self.clips and len(x) > 1:
            return {name: one / divisor for name, one in self._clipped_sum(now, x, y).items()}
        loss = loss_of(self.plan)(functional_call(self.model, now, (x,)), y)
        found = torch.autograd.grad(loss, list(now.values()), create_graph=True)
        sums = dict(zip(now, found, strict=True))
        if self.clips:  # of a single record: without the cost of keeping many apart
            sums = {name: one[0] for name, one in self._clipped({k: v[None] for k, v in sums.items()}).items()}
        return {name: one / divisor for name, one in sums.items()}

    def _clipped_sum(self, now: Values, x: Tensor, y: Tensor) -> Values:
        if torch.is_grad_enabled():
            return {name: one.sum(0) for name, one in self.of_each(now, x, y).items()}
        found: Values = {}
        some = max(1, _VALUES // sum(value.numel() for value in now.values()))
        for part in zip(torch.split(x, some), torch.split(y, some), strict=True):
            for name, one in self.of_each(now, *part).items():
                found[name] = one.sum(0) if name not in found else found[name] + one.sum(0)
        return found

    def _clipped(self, each: Values) -> Values:
        lengths = torch.stack([one.flatten(1).square().sum(1) for one in each.values()]).sum(0).sqrt()
        factors = (self.plan.privacy.clipping_norm / lengths.clamp(min=1e-12)).clamp(max=1.0)
        return {name: torch.einsum("n,n...->n...", factors, one) for name, one in each.items()}


def replay_of(plan: Plan, start: Parameters, *, records: int, client: str | None, clients: int) -> Replay:
    """What the server can play again.

    Args:
        plan: resolved, of one round.
        start: the model before.
        records: how many its client has, or all in a sum have; without privacy replies tell.
        client: whose movement it is; None for that of a sum.
        clients: in the sum; 1 for an update.

    Raises:
        UsageError: the plan trains in a way that isn't played again here.
    """
    check_replayable(plan)
    model = build_for(plan).eval()
    set_parameters(model, start)
    model = model.double()
    trained = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
    for p in model.parameters():
        p.requires_grad_(False)
    if plan.is_private:
        steps = 1 if plan.is_joint else plan.training.local_steps
        batches = tuple(torch.arange(records) for _ in range(steps))
        divisor: float | None = float(plan.training.expected_batch_size * clients)
    else:
        assert client is not None  # without privacy each update is seen
        batches, divisor = tuple(batches_of(records, plan, round_number=1, client=client)), None
    touched = touched_records(plan, records, client)
    positions = torch.tensor(touched)
    return Replay(
        plan=plan,
        model=model,
        start=trained,
        touched=touched,
        batches=tuple(torch.searchsorted(positions, batch) for batch in batches),
        divisor=divisor,
        clips=plan.is_private,
        rate=learning_rate(plan, 1),
        partial=client is not None and plan.federation.wire == "top-k",
    )


def touched_records(plan: Plan, records: int, client: str | None) -> tuple[int, ...]:
    """Positions of those of a client's records that are in some batch of a round."""
    if plan.is_private or client is None:
        return tuple(range(records))
    return tuple(torch.unique(torch.cat(list(batches_of(records, plan, round_number=1, client=client)))).tolist())


def tensors_of(movement: Parameters) -> Values:
    """What was seen, in double precision."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in movement.items()}


def check_replayable(plan: Plan) -> None:
    """Refuse plans whose clients do what isn't played again here: a replay of something else would find nothing and
    prove nothing.

    Raises:
        UsageError: the plan is one of those.
    """
    training, why, instead = plan.training, "", "attack a plan without"
    if plan.privacy.unit == "client" and plan.is_private:
        why, instead = "privacy.unit = 'client'", "attack a plan whose unit is an example, or which has no privacy"
    elif training.optimizer != "sgd":
        why, instead = f"training.optimizer = '{training.optimizer}'", "attack the plan with sgd"
    elif training.augment is not None:
        why = "training.augment"
    elif any(
        isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in build_for(plan).modules()
    ):
        why = "dropout"
    elif plan.is_private and training.sample_rate != 1:
        why, instead = f"training.sample_rate = {training.sample_rate}", "attack the plan with training.sample_rate = 1"
    elif plan.is_private and plan.privacy.clipping != "flat":
        why, instead = f"privacy.clipping = '{plan.privacy.clipping}'", "attack the plan with 'flat'"
    elif plan.privacy.trust == "distributed" and plan.federation.strategy not in _MEANS:
        # Of a sum the model's movement is seen, and other strategies make something else of the mean.
        why, instead = f"federation.strategy = '{plan.federation.strategy}'", "attack the plan with fedavg"
    elif plan.personal is not None:
        why = "[personal]"
    elif plan.statistics is not None:
        why = "[statistics]"
    if why:
        raise UsageError(f"{why}: the attack doesn't replay such training; {instead}")


def check_rows_tell(plan: Plan) -> None:
    """Refuse plans of texts in which all rows of an embedding move alike, whether their tokens occur or not.

    Adam makes steps of one size of whatever there is, be it noise or weight decay; a server that does the same with a
    sum moves its model so.

    Raises:
        UsageError: the plan is one of those.
    """
    training = plan.training
    if training.optimizer == "adam" and training.weight_decay > 0:
        raise UsageError(
            "training.optimizer = 'adam' with training.weight_decay: moves all words alike; attack the plan with sgd"
        )
    if plan.privacy.trust == "local" and training.optimizer != "sgd":
        raise UsageError(
            f"training.optimizer = '{training.optimizer}': makes as much of noise as of words; attack the plan with sgd"
        )
    if plan.privacy.trust in ("distributed", "central") and plan.federation.strategy not in _MEANS:
        raise UsageError(
            f"federation.strategy = '{plan.federation.strategy}': of a sum the attack sees what the strategy made of "
            "it; attack the plan with fedavg"
        )
