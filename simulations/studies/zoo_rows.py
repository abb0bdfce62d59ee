"""Which networks the study of the zoo plays on which data, and with which settings (`simulations.studies.zoo`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Keys = dict[str, object]
"""Of a plan, by their paths."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set and how it is dealt out.

    Attributes:
        keys: of the plan.
        clients: how many it is dealt to.
        records: public number of a client's records.
    """

    keys: Keys
    clients: int
    records: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network on a data set.

    Attributes:
        data: a name in `DATA`.
        model: as the table names it.
        keys: of the plan, in all runs.
        plain, local: keys of these runs; None where there is none.
        joint: keys by epsilon.
    """

    data: str
    model: str
    keys: Keys = field(default_factory=dict)
    plain: Keys | None = None
    local: Keys | None = None
    joint: Mapping[float, Keys] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the row."""
        return f"{self.model} on {self.data}"

    def settings(self) -> dict[str, Keys]:
        """Its runs by name."""
        found = {"no privacy": self.plain, "local, epsilon 8": self.local}
        joint = {f"joint, epsilon {e:g}": {"privacy.epsilon": e, **keys} for e, keys in self.joint.items()}
        return {name: keys for name, keys in found.items() if keys is not None} | joint


def _iid(name: str, clients: int, records: int, **keys: object) -> Data:
    partition = {"data.name": name, "data.partition.kind": "iid", "data.partition.clients": clients}
    return Data(keys=partition | keys, clients=clients, records=records)


DATA: Mapping[str, Data] = {
    "mnist": _iid("mnist", 5, 1600),
    "fashion-mnist": _iid("fashion-mnist", 10, 6000),
    "watch": Data(
        keys={"data.name": "watch", "data.partition.kind": "natural", "data.partition.column": "person"},
        clients=8,
        records=360,
    ),
    "adult": _iid("adult", 10, 3256),
    "sentiment": _iid("sentiment", 5, 3000, **{"data.text.places": 32}),
    "shakespeare": _iid("shakespeare", 10, 3500),
}


def plain(rounds: int, rate: float, batch: int, *, epochs: int = 1, momentum: float = 0.9, **keys: object) -> Keys:
    """A run without privacy."""
    return {
        "privacy.trust": "none",
        "federation.rounds": rounds,
        "training.epochs": epochs,
        "training.expected_batch_size": batch,
        "training.learning_rate": rate,
        "training.momentum": momentum,
        **_keys(keys),
    }


def local(rounds: int, rate: float, *, steps: int, sampled: float, clip: float = 1.0, **keys: object) -> Keys:
    """A run in which each client makes its own noise."""
    return {
        "privacy.trust": "local",
        "privacy.epsilon": 8.0,
        "privacy.clipping_norm": clip,
        "federation.rounds": rounds,
        "training.steps": steps,
        "training.sample_rate": sampled,
        "training.learning_rate": rate,
        **_keys(keys),
    }


def joint(
    rounds: int, rate: float, *, sampled: float, clip: float = 1.0, momentum: float = 0.9, **keys: object
) -> Keys:
    """A run whose rounds are steps of all clients together."""
    return {
        "privacy.trust": "distributed",
        "privacy.clipping_norm": clip,
        "secure_sum.masks": False,
        "secure_sum.honest": 1.0,
        "secure_sum.corrupt": 0.0,
        "federation.rounds": rounds,
        "federation.strategy": "fedavgm",
        "federation.strategy_options.server_momentum": momentum,
        "training.sample_rate": sampled,
        "training.learning_rate": rate,
        **_keys(keys),
    }


def _keys(given: Mapping[str, object]) -> Keys:
    """Names of arguments can't hold a point."""
    return {name.replace("__", "."): value for name, value in given.items()}


COSINE: Keys = {"training.schedule.kind": "cosine"}
AVERAGED: Keys = {"federation.model_average": 0.9}
SHIFTED: Keys = {"training.augment.shift": 2}
FLIPPED: Keys = {"training.augment.flip": True}
WORN: Keys = {
    "training.augment.turn": 0.3,
    "training.augment.shift": 16,
    "training.augment.scale": 0.1,
    "training.augment.jitter": 0.05,
}
"""A watch sits otherwise on each arm."""
ADAM: Keys = {"training.optimizer": "adam", "training.momentum": 0.0}
SERVER_ADAM: Keys = {
    "federation.strategy": "fedadam",
    "federation.strategy_options": {"eta": 0.003, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-6},
}
"""Adam on joint steps: what they release is a gradient's mean, with its noise."""


def _copies(number: int) -> Keys:
    return {"training.augment.copies": number}


def _image(model: str, options: Keys, *, plain_rounds: int, rate: float, steps: int, joint_rate: float) -> Row:
    """A network on MNIST."""
    both = joint(steps, joint_rate, sampled=0.125) | COSINE | AVERAGED
    return Row(
        data="mnist",
        model=model,
        keys={"model.name": model, "model.options": dict(options)} | SHIFTED,
        plain=plain(plain_rounds, rate, 32) | COSINE | AVERAGED,
        local=local(20, 0.5, steps=5, sampled=0.1) | COSINE | AVERAGED,
        joint={3.0: both, 8.0: both},
    )


def _features(data: str, name: str, *, rate: float, steps: int, clip: float = 2.0) -> Row:
    """A linear head on frozen features."""
    both = joint(steps, rate, sampled=1.0, clip=clip) | COSINE | AVERAGED
    return Row(
        data=data,
        model=f"{name} + linear",
        keys={"model.name": "linear", "features.name": name},
        plain=plain(20, rate / 4, 64) | COSINE,
        local=local(steps, rate / 2, steps=1, sampled=1.0, clip=clip) | {"federation.strategy": "fedavgm"} | AVERAGED,
        joint={3.0: both, 8.0: both},
    )


ROWS: Sequence[Row] = (
    Row(
        data="fashion-mnist",
        model="cnn",
        keys={"model.name": "cnn"} | FLIPPED,
        plain=plain(40, 0.05, 32) | COSINE | AVERAGED,
        local=local(20, 0.5, steps=10, sampled=0.05) | COSINE | AVERAGED,
        joint={
            3.0: joint(200, 1.0, sampled=0.05) | COSINE | AVERAGED,
            8.0: joint(200, 1.0, sampled=0.05) | COSINE | AVERAGED,
        },
    ),
    Row(
        data="fashion-mnist",
        model="cnn, wide",
        keys={"model.name": "cnn", "model.options": {"channels": [32, 64], "hidden": 64}} | FLIPPED,
        plain=plain(40, 0.05, 32) | COSINE,
    ),
    Row(
        data="fashion-mnist",
        model="resnet",
        keys={"model.name": "resnet"} | FLIPPED,
        plain=plain(20, 0.1, 32) | COSINE,
    ),
    _image("cnn", {}, plain_rounds=60, rate=0.05, steps=200, joint_rate=1.0),
    _image("convnet", {"channels": [8, 16], "hidden": 32}, plain_rounds=30, rate=0.02, steps=100, joint_rate=0.5),
    _image("resnet", {}, plain_rounds=20, rate=0.05, steps=100, joint_rate=1.0),
    _image("inception", {}, plain_rounds=15, rate=0.05, steps=100, joint_rate=1.0),
    _image("vit", {}, plain_rounds=60, rate=0.05, steps=200, joint_rate=0.5),
    _image("mlp", {}, plain_rounds=30, rate=0.05, steps=200, joint_rate=0.5),
    _features("mnist", "scattering", rate=1.0, steps=80),
    _features("mnist", "mobilenet-v2", rate=1.0, steps=80),
    _features("mnist", "efficientnet-lite0", rate=1.0, steps=80),
    Row(
        data="watch",
        model="cnn1d",
        keys={"model.name": "cnn1d", "model.options": {"channels": [16, 32, 32]}} | WORN,
        plain=plain(80, 0.05, 32) | COSINE | AVERAGED,
        local=local(40, 0.5, steps=5, sampled=0.25) | COSINE | AVERAGED | _copies(2),
        joint={e: joint(800, 0.7, sampled=0.0625) | COSINE | AVERAGED | _copies(2) for e in (3.0, 8.0)},
    ),
    Row(
        data="watch",
        model="recurrent",
        keys={"model.name": "recurrent", "model.options": {"cell": "gru", "hidden": 48}} | WORN,
        plain=plain(60, 0.1, 32) | COSINE | AVERAGED,
        local=local(30, 0.5, steps=5, sampled=0.25) | COSINE | AVERAGED,
        joint={e: joint(200, 0.7, sampled=0.25) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="watch",
        model="transformer",
        keys={"model.name": "transformer", "model.options": {"dim": 32, "heads": 4, "depth": 2}} | WORN,
        plain=plain(60, 0.05, 32) | COSINE | AVERAGED,
        local=local(20, 0.5, steps=5, sampled=0.25) | COSINE | AVERAGED,
        joint={e: joint(100, 0.7, sampled=0.25) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="adult",
        model="linear",
        keys={"model.name": "linear"},
        plain=plain(20, 0.1, 64) | COSINE,
        local=local(40, 1.0, steps=5, sampled=0.2) | COSINE | AVERAGED,
        joint={e: joint(100, 1.0, sampled=0.5) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="adult",
        model="mlp",
        keys={"model.name": "mlp"},
        plain=plain(20, 0.05, 64) | COSINE | AVERAGED,
        local=local(40, 0.5, steps=5, sampled=0.1) | COSINE | AVERAGED,
        joint={e: joint(200, 0.5, sampled=0.1) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="sentiment",
        model="minilm, LoRA",
        keys={"model.name": "minilm", "features.name": "minilm-4", "data.text.tokens": "wordpiece"},
        plain=plain(4, 0.001, 32) | ADAM | COSINE,
        local=local(10, 0.5, steps=8, sampled=0.05) | COSINE | AVERAGED,
        joint={e: joint(100, 0.5, sampled=0.05) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="sentiment",
        model="minilm + linear",
        keys={"model.name": "linear", "features.name": "minilm", "data.text.tokens": "wordpiece"},
        plain=plain(20, 0.5, 64) | COSINE,
        local=local(40, 1.0, steps=1, sampled=1.0) | {"federation.strategy": "fedavgm"} | AVERAGED,
        joint={e: joint(80, 2.0, sampled=1.0) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="sentiment",
        model="recurrent",
        keys={"model.name": "recurrent", "model.options": {"bidirectional": True}, "data.text.vocabulary": 4096},
        plain=plain(15, 0.5, 32) | COSINE | AVERAGED,
        local=local(20, 1.0, steps=5, sampled=0.1) | COSINE | AVERAGED,
        joint={e: joint(150, 1.0, sampled=0.1) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="sentiment",
        model="transformer",
        keys={
            "model.name": "transformer",
            "model.options": {"dim": 32, "heads": 4, "depth": 1},
            "data.text.vocabulary": 4096,
        },
        plain=plain(10, 0.002, 32) | ADAM | COSINE,
        local=local(20, 0.005, steps=5, sampled=0.1) | ADAM | AVERAGED,
        joint={e: joint(150, 1.0, sampled=0.1) | SERVER_ADAM | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="shakespeare",
        model="recurrent",
        keys={"model.name": "recurrent", "model.options": {"hidden": 128}},
        plain=plain(8, 1.0, 32) | COSINE,
        local=local(20, 2.0, steps=5, sampled=0.02) | COSINE | AVERAGED,
        joint={e: joint(200, 2.0, sampled=0.02) | COSINE | AVERAGED for e in (3.0, 8.0)},
    ),
    Row(
        data="shakespeare",
        model="transformer",
        keys={"model.name": "transformer"},
        plain=plain(6, 0.003, 32) | ADAM | COSINE,
        local=local(10, 0.01, steps=5, sampled=0.02) | ADAM | AVERAGED,
        joint={e: joint(400, 1.0, sampled=0.01) | SERVER_ADAM | AVERAGED for e in (3.0, 8.0)},
    ),
)
