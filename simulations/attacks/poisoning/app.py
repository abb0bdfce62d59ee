"""A ClientApp some of whose clients attack: `Settings(app=APP, told={POISONING: ...})`.

Everybody answers by `client.app`; an honest client's reply is that, untouched. A malicious client controls its machine,
so what its guard has let out means nothing to it: it puts other arrays in place of the reply's, and if it likes another
weight; head and epsilon stay as they were, for the server looks at their form. Into a secure sum it adds what it likes:
masks hide a vector by addition, so whoever adds to the masked vector has added to the sum. Attackers know each other's
records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as honest_app
from client.asking import model_of, run_and_round
from client.contribution import flat
from client.datasets.records import Records
from client.trainer import torch_threads, train_plain
from client.workplace import Workplace, client_id, workplace
from shared_models.last import Last
from shared_models.parameters import Parameters, unflat
from shared_models.protocol import ARRAYS, CONFIG, MASKED, METRICS, SECURE_ATTEMPT, WEIGHT
from shared_models.seeds import derive_seed
from shared_models.wire import encode_update
from simulations.attacks.poisoning.attack import POISONING, Poisoning, read_poisoning
from simulations.attacks.poisoning.in_sums import added_to_sum
from simulations.attacks.poisoning.records import backdoored, flipped
from simulations.attacks.poisoning.updates import Vector, little_is_enough, most_deviations, noise_like, times

APP: Final = "simulations.attacks.poisoning.app:app"

_SIGNS: Final = 4.0
_NOISE: Final = 0.1


class PoisonedApp(ClientApp):
    """Veil's ClientApp, whose attackers' train replies are changed on their way out."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as `client.app`; an attacker's update is another one."""
        reply = honest_app(message, context)
        told = context.run_config.get(POISONING)
        if told is None or message.metadata.message_type != "train" or reply.has_error():
            return reply
        poisoning, place = read_poisoning(str(told)), workplace(str(context.run_config["plan"]))
        client = client_id(place, context)
        return _poisoned(reply, message, place, poisoning, client) if client in poisoning.attackers else reply


app = PoisonedApp()


def _poisoned(reply: Message, message: Message, place: Workplace, poisoning: Poisoning, client: str) -> Message:
    plan, (_, number) = place.plan, run_and_round(message, place)
    start = model_of(message, place)
    with torch_threads(plan.training.threads):
        update = _update(place, start, number, poisoning, client)
        if plan.privacy.trust == "distributed":
            words = reply.content.array_records[ARRAYS][MASKED].numpy()
            own = flat(_trained(place, start, number, client, place.records(client)), place.layout)
            attempt = message.content.config_records[CONFIG].get(SECURE_ATTEMPT, b"")
            assert isinstance(attempt, bytes)
            words = added_to_sum(
                words,
                update,
                own,
                plan,
                round_number=number,
                attempt=attempt,
                keeps_norm=poisoning.keeps_norm,
            )
            arrays = ArrayRecord({MASKED: Array(words)})
        else:
            seed = derive_seed(plan.seed, "wire", number, client)
            arrays = encode_update(unflat(update, place.layout), place.layout, seed=seed)
    changed: dict[str, ArrayRecord | MetricRecord] = {ARRAYS: arrays}
    if poisoning.weight is not None:
        changed[METRICS] = MetricRecord({**reply.content.metric_records[METRICS], WEIGHT: poisoning.weight})
    return Message(RecordDict({**reply.content, **changed}), reply_to=message)


def _update(place: Workplace, start: Parameters, number: int, poisoning: Poisoning, client: str) -> Vector:
    """What an attacker would have the server take for the change that its training made."""
    kind, size = poisoning.kind, place.layout.size
    if kind == "nan":
        return np.full(size, np.nan, np.float32)
    if kind == "free-rider":
        return np.zeros(size, np.float32)
    if kind == "noise":
        deviation = _NOISE if poisoning.strength is None else poisoning.strength
        return noise_like(size, deviation, seed=derive_seed(place.plan.seed, "free-rider", number, client))
    if kind == "little":
        return _colluding(place, start, number, poisoning)
    who = poisoning.attackers[0] if kind == "sybil" else client
    records = place.records(who)
    if kind in ("label-flip", "scaled", "sybil"):
        records = flipped(records, poisoning.classes)
    elif kind in ("backdoor", "replacement"):
        seed = derive_seed(place.plan.seed, "backdoor", who)
        at = {"target": poisoning.target, "side": poisoning.side, "bright": poisoning.bright}
        records = backdoored(records, **at, seed=seed)  # type: ignore[arg-type]  # whole numbers, and one that isn't
    update = flat(_trained(place, start, number, who, records), place.layout)
    if kind == "sign-flip":
        return times(update, -(_SIGNS if poisoning.strength is None else poisoning.strength))
    return times(update, poisoning.boost) if kind in ("scaled", "replacement", "sybil") else update


def _trained(place: Workplace, start: Parameters, number: int, client: str, records: Records) -> Parameters:
    """What plain training changes; nothing where there are no records."""
    if not len(records):
        return {name: np.zeros_like(value) for name, value in start.items()}
    return train_plain(place.model, start, records, place.plan, round_number=number, client=client)[0]


def _colluding(place: Workplace, start: Parameters, number: int, poisoning: Poisoning) -> Vector:
    deviations = poisoning.strength
    if deviations is None:
        deviations = most_deviations(poisoning.clients, len(poisoning.attackers))
    return little_is_enough(_honest_updates(place, start, number, poisoning.attackers), deviations)


def _honest_updates(place: Workplace, start: Parameters, number: int, attackers: Sequence[str]) -> tuple[Vector, ...]:
    """Of all attackers, who all send the same: trained once a process and round."""
    key = (place.plan.digest(), number, tuple(attackers), *(value.tobytes() for value in start.values()))
    return _honest.of(
        key,
        lambda: tuple(flat(_trained(place, start, number, one, place.records(one)), place.layout) for one in attackers),
    )


_honest: Final[Last[tuple[Vector, ...]]] = Last()
