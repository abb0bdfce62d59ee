"""What the time of a private step, of an answer, of a refusal and of a draw of noise tells.

The observer is as strong as can be: it sits on the same machine, with nothing else at work, and sees the time of the
one thing alone. Over a network, or of a whole round of many steps, less is seen of one step.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from flwr.app import Message

from client.datasets.records import Records
from client.private_trainer import train_private
from client.workplace import workplace
from privacy.noise import SecretNoise
from security.errors import RunError
from shared_models.faults import Fault
from shared_models.parameters import get_parameters
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import LAYOUT_DIGEST, PLAN_DIGEST
from shared_models.resolve import resolve
from simulations.attacks.side_channels.clocks import in_turns, quietly, seconds_of
from simulations.attacks.side_channels.distinguish import Floats, told_apart
from simulations.attacks.side_channels.one_client import Clients
from simulations.attacks.side_channels.rows import Row, Standing
from simulations.scenarios import find_plan

BATCH: Final = 16
RATE: Final = 0.1
NETWORKS: Final = ("cnn", "linear")
PACED: Final = "release.every_seconds closes it"

_TIME: Final = "time of"


def rows(trials: int) -> Iterator[Row]:
    """All that is measured, each with so many trials of either world."""
    for network in NETWORKS:
        yield from of_steps(network, trials)
        yield of_drawn_batches(network, trials)
        yield cost_of_padding(network, trials)
    yield from of_answers(trials)
    yield from of_refusals(trials)
    yield from of_noise(trials)


def some_records(n: int, *, seed: int = 0, size: float = 1.0) -> Records:
    """Made up, in the form of the digits."""
    generator = np.random.default_rng(seed)
    x = (generator.uniform(0, 1, (n, 1, 8, 8)) * size).astype(np.float32)
    return Records(x=torch.from_numpy(x), y=torch.from_numpy(generator.integers(10, size=n)))


def step_plan(network: str, *changes: str) -> Plan:
    """One private step on digits."""
    overrides = (
        f"model.name={network}",
        "privacy.unit=example",
        "privacy.trust=local",
        "privacy.epsilon=8",
        "training.steps=1",
        f"training.expected_batch_size={BATCH}",
        "training.sample_rate=1.0",
        "training.device=cpu",
        "federation.rounds=1",
        *changes,
    )
    return resolve(find_plan("digits", overrides))


def step_of(plan: Plan, records: Records, noise: Callable[[], SecretNoise] = SecretNoise) -> Callable[[], object]:
    """A private step on records, without guard and messages."""
    place = workplace(write_plan(plan))
    start = get_parameters(place.model)
    return lambda: train_private(place.model, start, records, plan, round_number=1, noise=noise())


def of_steps(network: str, trials: int) -> Iterator[Row]:
    """Batches of one size against another's."""
    plan = step_plan(network)
    for fewer, more in ((0, 1), (1, BATCH), (BATCH, BATCH + 1), (BATCH, 2 * BATCH)):
        one, other = step_of(plan, some_records(more)), step_of(plan, some_records(fewer))
        yield _row(f"a step of {network}: {fewer} records drawn, or {more}", in_turns(one, other, trials=trials))
    one, other = step_of(plan, some_records(BATCH, size=1e37)), step_of(plan, some_records(BATCH))
    yield _row(f"a step of {network}: gradients overflow, or not", in_turns(one, other, trials=trials))
    one, other = step_of(plan, some_records(BATCH, size=1e-40)), step_of(plan, some_records(BATCH))
    yield _row(f"a step of {network}: subnormal values, or not", in_turns(one, other, trials=trials))


class _Noted(SecretNoise):
    """Says how many were drawn last."""

    __slots__ = ("drawn",)

    def bernoulli(self, n: int, rate: float) -> torch.Tensor:
        found = super().bernoulli(n, rate)
        self.drawn = len(found)
        return found


def of_drawn_batches(network: str, trials: int) -> Row:
    """Poisson batches as they are: those of more records than most against the others."""
    plan = step_plan(network, f"training.sample_rate={RATE}")
    noise, sizes, times = _Noted(), list[int](), list[float]()
    step = step_of(plan, some_records(round(BATCH / RATE)), lambda: noise)
    with quietly():
        step()
        for _ in range(2 * trials):
            times.append(seconds_of(step))
            sizes.append(noise.drawn)
    drawn, took = np.array(sizes), np.array(times)
    above, below = took[drawn > np.median(drawn)], took[drawn <= np.median(drawn)]
    some = min(len(above), len(below))
    what = f"a step of {network}: more drawn than the median, or not"
    return _row(what, (above[:some], below[:some]))


def cost_of_padding(network: str, trials: int) -> Row:
    """What it would cost to fill every batch up to a size that no honest draw goes beyond (6 deviations)."""
    plan, full = step_plan(network), BATCH + math.ceil(6 * math.sqrt(BATCH))
    padded, plain = in_turns(
        step_of(plan, some_records(full)), step_of(plan, some_records(BATCH)), trials=max(20, trials // 4)
    )
    ratio = float(np.median(padded) / np.median(plain))
    return Row(
        channel=_TIME,
        what=f"a step of {network}: what filling up to {full} records would take",
        found=f"{ratio:.2f} times as long",
        standing="open",
        remark="not built: it would leave all other times",
    )


def of_answers(trials: int) -> Iterator[Row]:
    """Whole answers of a client, guard and ledger included."""
    pairs = {
        ("train", "trains on"): ((160, 159), (320, 160), (1, 0)),
        ("evaluate", "judges"): ((160, 159), (160, 80), (1, 0)),
    }
    for (kind, verb), sizes in pairs.items():
        for more, fewer in sizes:
            with tempfile.TemporaryDirectory(prefix="veil-times-") as folder:
                clients = Clients(_rounds_plan(trials), _two(more, fewer), Path(folder))
                times = in_turns(
                    partial(clients.granted, "0", kind), partial(clients.granted, "1", kind), trials=trials
                )
            yield _row(f"an answer: a client {verb} {more} records, or {fewer}", times)


def of_refusals(trials: int) -> Iterator[Row]:
    """Refusals against answers, one against another, and of one client against another's."""
    wrong_plan, wrong_layout = {PLAN_DIGEST: "0" * 64}, {LAYOUT_DIGEST: "0" * 64}
    with tempfile.TemporaryDirectory(prefix="veil-times-") as folder:
        clients = Clients(_rounds_plan(4 * trials), _two(500, 0), Path(folder))

        def refused(client: str, fault: Fault, **changes: str) -> Message:
            reply = clients.ask(client, **changes)
            if not reply.has_error() or reply.error.code != fault:
                raise RunError(f"this was to be refused as {fault.reason}")
            return reply

        times = in_turns(
            lambda: clients.granted("0"), lambda: refused("0", Fault.PLAN_MISMATCH, **wrong_plan), trials=trials // 2
        )
        yield _row("granted, or refused", times, remark="the code says it anyway", standing="closed")
        times = in_turns(
            lambda: refused("0", Fault.MODEL_MISMATCH, **wrong_layout),
            lambda: refused("0", Fault.PLAN_MISMATCH, **wrong_plan),
            trials=trials,
        )
        yield _row("refused for the model, or for the plan", times, remark="the code says it anyway", standing="closed")
        times = in_turns(
            lambda: refused("0", Fault.MODEL_MISMATCH, **wrong_layout),
            lambda: refused("1", Fault.MODEL_MISMATCH, **wrong_layout),
            trials=trials,
        )
        yield _row(
            "refused by a client of 500 records, or of none",
            times,
            remark="no record is read before",
            standing="closed",
        )


def of_noise(trials: int) -> Iterator[Row]:
    """Whether the time of drawing noise tells of the noise."""
    source, many = SecretNoise(), 10 * trials
    draws: dict[str, Callable[[], torch.Tensor]] = {
        "a value of rounded Gaussian noise": lambda: source.grid_normal((1,), 2.0**20),
        "a value of discrete Gaussian noise": lambda: source.discrete_gaussian((1,), 1000.0),
        "a value of Skellam noise": lambda: source.skellam((1,), 1000.0),
    }
    for name, draw in draws.items():
        took, values = np.empty(many), np.empty(many)
        with quietly():
            draw()
            for trial in range(many):
                drawn: list[torch.Tensor] = []
                took[trial] = seconds_of(partial(_keep, draw, drawn))
                values[trial] = abs(int(drawn[0]))
        large = values > np.median(values)
        some = min(int(large.sum()), int((~large).sum()))
        yield _row(f"{name}: large, or small", (took[large][:some], took[~large][:some]))


def _keep(draw: Callable[[], torch.Tensor], into: list[torch.Tensor]) -> None:
    into.append(draw())


def _rounds_plan(rounds: int) -> Plan:
    """As many rounds as are asked for, so that each is granted."""
    return resolve(
        find_plan(
            "digits",
            (
                "model.name=mlp",
                "model.options.hidden=[16]",
                "data.partition={kind='iid',clients=2}",
                "privacy.unit=example",
                "privacy.trust=local",
                "privacy.epsilon=",
                "privacy.noise_multiplier=20",
                "training.steps=1",
                f"training.expected_batch_size={BATCH}",
                f"training.sample_rate={RATE}",
                "training.device=cpu",
                "evaluation.where=clients",
                "evaluation.count_noise=100",
                f"federation.rounds={rounds + 20}",
            ),
        )
    )


def _two(more: int, fewer: int) -> dict[str, Records]:
    return {"0": some_records(more), "1": some_records(fewer)}


def _row(
    what: str,
    times: Sequence[Floats],
    *,
    remark: str = "",
    standing: Standing | None = None,
) -> Row:
    told = told_apart(times[0], times[1])
    standing = standing or ("open" if told.tells else "not seen")
    return Row(
        channel=_TIME,
        what=what,
        told=told,
        standing=standing,
        remark=remark or (PACED if standing == "open" else f"in {told.trials} trials"),
    )
