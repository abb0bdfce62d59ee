"""What an attempt at a secure sum is bound to, and the rotation that follows from it."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord

from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.secure_context import attempt_context, model_digest, rotation_seed


def plan(*, rotation: bool, noise: str = "secret") -> Plan:
    privacy = {"unit": "client", "trust": "distributed", "noise_multiplier": 2.0, "noise": noise}
    partition = {"kind": "iid", "clients": 5}
    raw = {"privacy": privacy, "secure_sum": {"rotation": rotation}, "data": {"partition": partition}}
    return plan_from(raw, where="test")


def model(**values: list[float]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.array(value, np.float32)) for name, value in values.items()})


def test_models_that_differ_in_name_value_or_order_have_other_digests() -> None:
    one = model(a=[1.0], b=[2.0])
    others = [model(a=[1.0], c=[2.0]), model(a=[1.0], b=[2.5]), model(b=[2.0], a=[1.0]), model(a=[1.0, 2.0])]
    assert model_digest(one) == model_digest(model(a=[1.0], b=[2.0]))
    assert len({model_digest(other) for other in (one, *others)}) == 5


def test_a_context_is_of_plan_layout_and_model() -> None:
    given = {"plan": "p", "layout": "l", "model": "m"}
    found = {attempt_context(**{**given, **change}) for change in ({}, {"plan": "q"}, {"layout": "q"}, {"model": "q"})}
    assert len(found) == 4
    assert {len(context) for context in found} == {32}


def test_a_rotation_is_new_for_each_attempt() -> None:
    assert rotation_seed(plan(rotation=False), b"a" * 32, 1) is None
    assert rotation_seed(plan(rotation=True), b"a" * 32, 1) == b"a" * 32


def test_a_reproducible_simulation_turns_alike_on_every_grid() -> None:
    """An attempt's digest holds a nonce and the run's own id, which differ from run to run."""
    reproducible = plan(rotation=True, noise="reproducible")
    assert rotation_seed(reproducible, b"a" * 32, 1) == rotation_seed(reproducible, b"b" * 32, 1)
    assert rotation_seed(reproducible, b"a" * 32, 1) != rotation_seed(reproducible, b"a" * 32, 2)
