"""The steps of clients at their own pace: who is in which, on which model, and how much each update counts.

`shared_models.plan_asynchronous` says when a client begins and is ready. What it computes in between hangs on the model
it was given and on nothing else, so it is asked when its update is due, with the model of its beginning: that gives the
same as if it had worked all the while. Models that are still to be asked with are kept here, and in checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from server.observer import AsynchronousRecord
from server.replies import ClientFault, Update
from server.strategies import State, StateAdapter
from shared_models.parameters import Layout, Parameters, to_arrays
from shared_models.plan import Plan
from shared_models.plan_asynchronous import schedule, weight_of
from shared_models.protocol import ARRAYS

_KEY = "version."


class Arrivals:
    """The schedule of a run, and the models that it still needs.

    Args:
        plan: resolved.
        clients: ids of all, in order.

    Raises:
        StarvedError: the schedule can't be kept with these clients.
    """

    def __init__(self, plan: Plan, clients: Sequence[str]) -> None:
        self._plan, self._clients = plan, tuple(clients)
        self._steps = schedule(plan, clients)
        self._models: dict[int, Parameters] = {}

    def cohort(self, number: int) -> list[str]:
        """Whose updates are in a step, in the clients' order."""
        there = {arrival.client for arrival in self._steps[number - 1]}
        return [client for client in self._clients if client in there]

    def requests(
        self, number: int, sent: Mapping[str, Message], model: Parameters, layout: Layout
    ) -> dict[str, Message]:
        """The messages of a step, each with the model that its client began with.

        Args:
            number: of the step, from 1.
            sent: the strategy's messages, with the newest model.
            model: that one.
            layout: of it.
        """
        self._models[number - 1] = model
        versions = {arrival.client: arrival.version for arrival in self._steps[number - 1]}
        contents: dict[int, RecordDict] = {}
        found = dict(sent)
        for client, message in sent.items():
            version = versions.get(client, number - 1)
            if version == number - 1:
                continue
            if version not in contents:
                arrays = to_arrays(self._models[version], layout)
                contents[version] = RecordDict({**message.content, ARRAYS: arrays})
            head = message.metadata
            found[client] = Message(contents[version], head.dst_node_id, head.message_type)
        self._forget(number)
        return found

    def weighted(self, number: int, replies: Iterable[Update | ClientFault]) -> Iterator[Update | ClientFault]:
        """The replies of a step, each update as much as it counts; none is held back."""
        for reply in replies:
            yield reply if isinstance(reply, ClientFault) else self.weigh(number, reply)
            del reply

    def weigh(self, number: int, update: Update) -> Update:
        """An update times what it counts, at most 1."""
        weight = np.float32(self._weights(number).get(update.client, 1.0))
        return replace(update, delta={name: np.asarray(weight * value) for name, value in update.delta.items()})

    def record(self, number: int) -> AsynchronousRecord:
        """What may be told of a step: it follows from the plan."""
        step = self._steps[number - 1]
        ages = [number - 1 - arrival.version for arrival in step]
        return AsynchronousRecord(
            time=round(step[-1].time, 6), staleness=round(float(np.mean(ages)), 6), most_staleness=max(ages)
        )

    def _weights(self, number: int) -> dict[str, float]:
        return {
            arrival.client: weight_of(self._plan, number - 1 - arrival.version) for arrival in self._steps[number - 1]
        }

    def _forget(self, number: int) -> None:
        """Let go of the models that no later step is asked with."""
        needed = {arrival.version for step in self._steps[number:] for arrival in step}
        self._models = {version: model for version, model in self._models.items() if version in needed}

    # --- for checkpoints

    def save(self) -> State:
        """The models that later steps need."""
        return {
            f"{_KEY}{version:09d}.{name}": value
            for version, model in self._models.items()
            for name, value in model.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with saved models."""
        self._models = {}
        for key, value in state.items():
            number, _, name = key.removeprefix(_KEY).partition(".")
            self._models.setdefault(int(number), {})[name] = value


class WithModels:
    """A strategy's memory, with the models that steps to come need.

    Args:
        inner: of the strategy itself.
        arrivals: keep the models.
    """

    def __init__(self, inner: StateAdapter, arrivals: Arrivals) -> None:
        self._inner, self._arrivals = inner, arrivals

    def save(self, of: Any) -> State:
        return {**self._inner.save(of), **self._arrivals.save()}

    def load(self, to: Any, state: State) -> None:
        self._inner.load(to, {key: value for key, value in state.items() if not key.startswith(_KEY)})
        self._arrivals.load({key: value for key, value in state.items() if key.startswith(_KEY)})
