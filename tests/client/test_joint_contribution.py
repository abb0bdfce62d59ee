"""What a client puts into a joint step: its records' clipped gradients, sampled in secret, with its share of noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from client import contribution as contribution_module
from client import private_trainer
from client.contribution import contribution
from client.datasets.records import Records
from client.policy import SitePolicy, simulated_policy
from client.private_trainer import gradient_sum
from client.workplace import Workplace, workplace
from privacy.dpsgd.sampling import poisson_batch
from privacy.example_sum_grid import ExampleSumGrid
from privacy.mechanisms import RoundedGaussianSum
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from privacy.secure_encoding import encode_gradients
from shared_models.faults import Fault
from shared_models.parameters import set_parameters
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, EPSILON, MASKED, WEIGHT
from shared_models.seeds import derive_key
from tests.client.conftest import (
    Clients,
    Silence,
    assert_fault,
    content_of,
    metrics_of,
    model_of,
    some_records,
    wire,
)
from tests.client.secure_cohort import Sum, secure_plan

NAMES = ("0", "1", "2", "3", "4")
Vector = npt.NDArray[np.float64]


def joint_plan(*, rate: float = 1.0, hidden: tuple[int, ...] = (), **changes: Any) -> Plan:
    training = {"steps": 1, "sample_rate": rate, **changes.pop("training", {})}
    private = {"unit": "example", "clipping_norm": 0.5, **changes.pop("privacy", {})}
    options = {"hidden": list(hidden), **changes.pop("options", {})}
    return secure_plan(private=private, training=training, model={"name": "mlp", "options": options}, **changes)


def place_of(plan: Plan) -> Workplace:
    return workplace(write_plan(plan))


class Place:
    """A site that holds these records."""

    client = "0"

    def __init__(self, records: Records) -> None:
        self.records = records

    def training_records(self, _: Workplace) -> Records:
        return self.records


def put_in(plan: Plan, records: Records, noise: NoiseSource | None = None, model: Any = None) -> npt.NDArray[np.int64]:
    """What a client with these records adds, lifted to whole numbers; without noise unless some is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contribution_module, "noise_of", lambda *_: Silence(b"coins") if noise is None else noise)
        words = contribution(
            place_of(plan),
            Place(records),
            model or model_of(plan),
            round_number=1,
            attempt=b"a",  # type: ignore[arg-type]
        )
    return words.view(np.int32).astype(np.int64)


def grid_of(plan: Plan) -> ExampleSumGrid:
    grid = plan.sum_grid()
    assert isinstance(grid, ExampleSumGrid)
    return grid


def brute_force(plan: Plan, records: Records) -> Vector:
    """Each record alone through autograd in float64, clipped, added up: in steps of the grid."""
    place = place_of(plan)
    set_parameters(place.model, model_of(plan))
    place.model.eval()
    model = place.model.double()
    trained = list(model.parameters())
    total = np.zeros(sum(p.numel() for p in trained))
    for x, y in zip(records.x, records.y, strict=True):
        loss = nn.functional.cross_entropy(model(x[None].double()), y[None])
        gradient = np.concatenate([g.flatten().numpy() for g in torch.autograd.grad(loss, trained)])
        total += gradient * min(1.0, plan.privacy.clipping_norm / np.linalg.norm(gradient))
    model.float()
    return total / grid_of(plan).step


# --- what is added -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (3,)], ids=["closed form", "hooks"])
def test_it_is_the_sum_of_all_clipped_gradients(hidden: tuple[int, ...]) -> None:
    plan = joint_plan(hidden=hidden)
    records = some_records(30, size=3.0)
    expected = brute_force(plan, records)
    found = put_in(plan, records)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected) + np.sqrt(len(expected)) / 2


@pytest.mark.parametrize("hidden", [(), (3,)], ids=["closed form", "hooks"])
@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_rule_9_one_record_more_moves_it_by_no_more_than_is_priced(hidden: tuple[int, ...], scale: float) -> None:
    """Every record there is as the one that is there or not; some of them huge."""
    plan = joint_plan(hidden=hidden, privacy={"clipping_norm": 0.1})
    records, grid = some_records(12, size=scale), grid_of(plan)
    whole = put_in(plan, records)
    for i in range(12):
        rest = records.take([j for j in range(12) if j != i])
        assert np.linalg.norm((whole - put_in(plan, rest)).astype(float)) <= grid.sensitivity()


def test_how_a_batch_is_split_in_memory_makes_no_difference() -> None:
    records = some_records(23)
    whole, parts = (put_in(joint_plan(training=more), records) for more in ({}, {"max_physical_batch": 5}))
    assert np.abs(whole - parts).max() <= 1


def test_clients_records_are_not_changed() -> None:
    records = some_records(9)
    before = records.x.clone(), records.y.clone()
    put_in(joint_plan(), records)
    assert torch.equal(records.x, before[0])
    assert torch.equal(records.y, before[1])


# --- sampling ------------------------------------------------------------------------------------------------------


def test_with_a_rate_of_one_no_coin_is_tossed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(private_trainer, "poisson_batch", never)
    assert put_in(joint_plan(), some_records(5)).any()


def test_rule_1_below_it_each_record_has_a_coin_of_its_own_from_the_clients_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, records = joint_plan(rate=0.3), some_records(40)
    tossed: list[tuple[int, float, NoiseSource]] = []
    drawn: list[int] = []

    def watched(n: int, rate: float, noise: NoiseSource) -> Tensor:
        tossed.append((n, rate, noise))
        batch = poisson_batch(n, rate, noise)
        drawn.extend(batch.tolist())
        return batch

    monkeypatch.setattr(private_trainer, "poisson_batch", watched)
    noise = Silence(b"these coins")
    found = put_in(plan, records, noise)
    assert tossed == [(40, 0.3, noise)]
    assert 0 < len(drawn) < 40
    assert np.abs(found - brute_force(plan, records.take(drawn))).max() <= 2


def test_batches_are_secret_and_new_each_time() -> None:
    """Two of 2^40 alike is no accident: 40 fair coins each, three times; false alarm 3 in 10^12."""

    class Hushed(SecretNoise):
        __slots__ = ()
        grid_normal = Silence.grid_normal

    plan, records = joint_plan(rate=0.5), some_records(40)
    found = {put_in(plan, records, Hushed()).tobytes() for _ in range(3)}
    assert len(found) == 3


def test_an_empty_batch_is_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_trainer, "poisson_batch", lambda *_: torch.zeros(0, dtype=torch.int64))
    for more in ({}, {"max_physical_batch": 2}):
        assert not put_in(joint_plan(rate=0.5, training=more), some_records(8)).any()


# --- rule 5: nobody can tell ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("more", [{}, {"max_physical_batch": 2}], ids=["whole", "in parts"])
def test_rule_5_a_client_without_records_adds_its_noise_to_zeros(rate: float, more: dict[str, Any]) -> None:
    plan = joint_plan(rate=rate, training=more)
    assert not put_in(plan, some_records(0)).any()
    noisy = put_in(plan, some_records(0), ReproducibleNoise(b"own"))
    assert noisy.shape == put_in(plan, some_records(9), ReproducibleNoise(b"own")).shape
    # The deviation of its share: 15 values; false alarm below 10^-9 at either end.
    assert 0.1 < np.sqrt(np.mean(noisy.astype(float) ** 2)) / grid_of(plan).noise_share < 3


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("hidden", [(), (3,)], ids=["closed form", "hooks"])
def test_rule_5_under_a_model_that_is_not_finite_it_adds_its_noise_to_zeros(
    value: float, hidden: tuple[int, ...]
) -> None:
    """A server may send what it likes; gradients that overflow are left out too."""
    plan = joint_plan(hidden=hidden)
    bad = {name: np.full_like(old, value) for name, old in model_of(plan).items()}
    found = put_in(plan, some_records(9), model=bad)
    assert np.abs(found).max() <= 9 * grid_of(plan).steps * 1.001
    if not np.isfinite(value):
        assert not found.any()


def test_rule_5_a_record_that_is_not_finite_is_left_out_alone() -> None:
    plan, records = joint_plan(), some_records(9)
    bad = replace(records, x=records.x.clone())
    bad.x[4] = float("nan")
    rest = records.take([0, 1, 2, 3, 5, 6, 7, 8])
    assert np.abs(put_in(plan, bad) - put_in(plan, rest)).max() <= 1


# --- dropout -------------------------------------------------------------------------------------------------------


def test_dropout_masks_are_secret_and_leave_torchs_own_generator_alone() -> None:
    plan = joint_plan(hidden=(16,), options={"dropout": 0.5})
    place, records, start = place_of(plan), some_records(6), model_of(plan)

    def found(noise: NoiseSource) -> bytes:
        torch.manual_seed(5)
        return gradient_sum(place.model, start, records, plan, noise=noise).tobytes()

    assert found(ReproducibleNoise(b"a")) == found(ReproducibleNoise(b"a"))
    assert found(ReproducibleNoise(b"a")) != found(ReproducibleNoise(b"b"))
    assert len({found(SecretNoise()) for _ in range(3)}) == 3
    torch.manual_seed(5)
    expected = torch.rand(3)
    found(SecretNoise())
    assert torch.equal(torch.rand(3), expected)


# --- asked by messages ---------------------------------------------------------------------------------------------


def with_all(clients: Clients) -> None:
    clients.data = {name: some_records(6 + i, seed=i) for i, name in enumerate(NAMES)}


def reference(clients: Clients, plan: Plan, name: str, number: int = 1) -> npt.NDArray[Any]:
    noise = ReproducibleNoise(derive_key(plan.seed, "noise", name, number))
    total = gradient_sum(place_of(plan).model, model_of(plan), clients.data[name], plan, noise=noise)
    assert plan.secure.bits is not None
    return encode_gradients(total, grid_of(plan), bits=plan.secure.bits, noise=noise)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_secure_sum_opens_the_sum_of_what_clients_add(clients: Clients, rate: float) -> None:
    plan = joint_plan(rate=rate)
    with_all(clients)
    states: dict[str, Any] = {}

    def ask(name: str, kind: str, content: Any) -> Any:
        state = states.setdefault(name, type(content)())
        return clients.ask(plan, content, client=name, kind=kind, state=state)

    roster = {name: clients.books.owner(name).public_hex for name in NAMES}
    found = Sum(plan, ask, roster).result()
    expected = np.sum([reference(clients, plan, name) for name in NAMES], axis=0, dtype=found.dtype)
    assert np.array_equal(found, expected)
    release = plan.train_release()
    assert isinstance(release, RoundedGaussianSum)
    assert all(clients.charged(name) == Counter({release: 1}) for name in NAMES)


def test_without_masks_a_simulated_client_sends_what_it_would_mask_and_pays_the_same(clients: Clients) -> None:
    plan = joint_plan(secure_sum={"masks": False})
    with_all(clients)
    reply = clients.train(plan, client="2")
    assert list(reply.content.array_records[ARRAYS]) == [MASKED]
    assert np.array_equal(reply.content.array_records[ARRAYS][MASKED].numpy(), reference(clients, plan, "2"))
    assert metrics_of(reply).keys() == {WEIGHT, EPSILON}
    release = plan.train_release()
    assert release is not None
    assert clients.charged("2") == Counter({release: 1})
    # Asked again it sends the same bytes, at no charge and without a look at its data.
    clients.forget()
    again = clients.train(plan, client="2")
    assert wire(again.content) == wire(reply.content)
    assert "read" not in clients.events
    assert clients.charged("2") == Counter({release: 1})


def test_principle_2_a_site_whose_policy_says_nothing_of_it_masks_or_refuses(clients: Clients) -> None:
    def strict(plan: Plan, client: str) -> SitePolicy:
        found = simulated_policy(plan, client)
        return found.model_copy(update={"allow": found.allow.model_copy(update={"unmasked_sums": False})})

    clients.policy = strict
    with_all(clients)
    assert_fault(clients.train(joint_plan(secure_sum={"masks": False})), Fault.POLICY_SECURE_SUM)
    assert not clients.charged()
    assert "read" not in clients.events


def test_under_masks_a_plain_request_for_training_is_refused(clients: Clients) -> None:
    with_all(clients)
    plan = joint_plan()
    reply = clients.ask(plan, content_of(plan))
    assert reply.has_error()
    assert Fault(reply.error.code).is_refusal
    assert not clients.charged()


def test_clients_are_charged_before_they_look_at_their_data(clients: Clients) -> None:
    with_all(clients)
    clients.train(joint_plan(secure_sum={"masks": False}))
    assert clients.events == ["reserve", "read"]
