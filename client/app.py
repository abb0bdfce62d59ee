"""The Flower ClientApp: the same on every grid.

A handler checks what it was asked, has the guard charge it, trains, and lets the guard put the reply together. What
goes wrong on the way becomes a fixed code without text (rule 5): an exception's text could hold a record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.guard import Guard, RefusedError
from client.trainer import torch_threads, train_plain, train_private
from client.workplace import Workplace, client_id, workplace
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from shared_models.faults import Fault
from shared_models.parameters import LayoutError, Parameters, from_arrays, to_arrays
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CLIENT_ID, CONFIG, LAYOUT_DIGEST, METRICS, PLAN_DIGEST, ROUND
from shared_models.seeds import derive_key

_log = logging.getLogger("veil.client")

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round."""
    return _answer(message, context, _train)


@app.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Tell the stable id behind this node."""
    return _answer(
        message,
        context,
        lambda _, place, ctx: RecordDict({CONFIG: ConfigRecord({CLIENT_ID: client_id(place, ctx)})}),
    )


def _answer(message: Message, context: Context, work: Callable[[Message, Workplace, Context], RecordDict]) -> Message:
    try:
        place = workplace(str(context.run_config["plan"]))
        _check_plan(message, place.plan)
        with torch_threads(place.plan.training.threads):
            content = work(message, place, context)
    except RefusedError as refused:
        return Message(Error(code=int(refused.fault), reason=""), reply_to=message)
    except Exception as error:
        _log.warning("a %s failed: %s", message.metadata.message_type, _where(error))
        return Message(Error(code=int(Fault.CLIENT_FAILED), reason=""), reply_to=message)
    return Message(content, reply_to=message)


def _train(message: Message, place: Workplace, context: Context) -> RecordDict:
    plan = place.plan
    round_number, start = _request(message, place)
    guard = Guard(plan, context.state)
    guard.reserve()
    client = client_id(place, context)  # after the charge: a natural partition's ids are in the data
    records = place.records(client)
    if plan.is_private:
        noise = _noise(plan, client, round_number)
        change = train_private(place.model, start, records, plan, round_number=round_number, noise=noise)
        loss = 0.0
    else:
        change, loss = train_plain(place.model, start, records, plan, round_number=round_number, client=client)
    fields = guard.reply_fields(examples=len(records), train_loss=loss)
    return RecordDict({ARRAYS: to_arrays(change, place.layout), METRICS: fields})


def _check_plan(message: Message, plan: Plan) -> None:
    config = message.content.config_records.get(CONFIG)
    if config is None or config.get(PLAN_DIGEST) != plan.digest():
        raise RefusedError(Fault.PLAN_MISMATCH)


def _request(message: Message, place: Workplace) -> tuple[int, Parameters]:
    """Round number and shared model of a train request, checked against the plan."""
    config = message.content.config_records[CONFIG]
    round_number, arrays = config.get(ROUND), message.content.get(ARRAYS)
    if type(round_number) is not int or not 1 <= round_number <= place.plan.federation.rounds:
        raise RefusedError(Fault.PLAN_MISMATCH)
    if config.get(LAYOUT_DIGEST) != place.layout.digest or not isinstance(arrays, ArrayRecord):
        raise RefusedError(Fault.MODEL_MISMATCH)
    try:
        return round_number, from_arrays(arrays, place.layout)
    except LayoutError:
        raise RefusedError(Fault.MODEL_MISMATCH) from None


def _noise(plan: Plan, client: str, round_number: int) -> NoiseSource:
    if plan.privacy.noise == "reproducible":
        return ReproducibleNoise(derive_key(plan.seed, "noise", client, round_number))
    return SecretNoise()


def _where(error: Exception) -> str:
    """Kind and place of an error, for the client's own log; never its text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return type(error).__name__ + place
