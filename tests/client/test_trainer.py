"""Plain local training: plain rounds are ordinary torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from client.datasets.records import Records
from client.private_trainer import train_private
from client.trainer import choose_device, torch_threads, train_plain
from security.errors import UsageError
from shared_models.example_form import ExampleForm
from shared_models.parameters import Parameters, get_parameters, set_parameters
from shared_models.plan import Plan
from shared_models.registry import build
from shared_models.seeds import derive_seed
from tests.client.local_training import (
    OPTIMISERS,
    Scripted,
    assert_close,
    flat,
    global_randomness_untouched,
    network,
    optimiser,
    plain,
    private,
    records,
    seed_everything,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


# --- plain rounds --------------------------------------------------------------------------------------------------


def shuffled(n: int, size: int, steps: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """What the plan promises: passes over the records, each in a new order, cut into batches."""
    generator = np.random.default_rng(seed)
    batches: list[npt.NDArray[np.int64]] = []
    while len(batches) < steps:
        order = generator.permutation(n)
        batches += [order[i : i + size] for i in range(0, n, size)]
    return batches[:steps]


def by_hand(
    model: nn.Module, start: Parameters, own: Records, plan: Plan, batches: Sequence[Any], rate: float
) -> tuple[Parameters, float]:
    """The same round as a torch tutorial would write it."""
    set_parameters(model, start)
    anchor = [p.detach().clone() for p in model.parameters()]
    optimizer = optimiser(model, plan, rate)
    losses: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        each = nn.functional.cross_entropy(model(own.x[batch]), own.y[batch], reduction="none")
        distance = sum(((p - a) ** 2).sum() for p, a in zip(model.parameters(), anchor, strict=True))
        (each.mean() + plan.training.proximal_mu / 2 * distance).backward()
        optimizer.step()
        losses += each.tolist()
    return {name: value - start[name] for name, value in get_parameters(model).items()}, float(np.mean(losses))


@pytest.mark.parametrize("training", OPTIMISERS)
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_a_plain_round_is_an_ordinary_torch_loop(training: dict[str, Any], mu: float) -> None:
    plan, own, model = plain(steps=7, proximal_mu=mu, **training), records(10), network()
    start = get_parameters(model)
    batches = shuffled(10, 4, 7, derive_seed(plan.seed, "batches", 2, "site"))
    expected, loss = by_hand(network(), start, own, plan, batches, plan.training.learning_rate)
    change, found_loss = train_plain(model, start, own, plan, round_number=2, client="site")
    assert_close(change, expected)
    assert found_loss == pytest.approx(loss, rel=1e-5)


def test_fedprox_pulls_towards_the_start() -> None:
    own, start = records(12), get_parameters(network())
    sizes = [
        np.linalg.norm(
            flat(
                train_plain(network(), start, own, plain(steps=30, proximal_mu=mu), round_number=1, client="a")[0],
            )
        )
        for mu in (0.0, 0.5, 5.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_the_rate_of_the_round_is_used() -> None:
    plan, own, start = (
        plain({"kind": "step", "every": 1, "factor": 0.5}, steps=1),
        records(10),
        get_parameters(network()),
    )
    for number, rate in ((1, 0.1), (2, 0.05), (4, 0.0125)):
        batches = shuffled(10, 4, 1, derive_seed(plan.seed, "batches", number, "a"))
        expected, _ = by_hand(network(), start, own, plan, batches, rate)
        assert_close(train_plain(network(), start, own, plan, round_number=number, client="a")[0], expected)


@pytest.mark.parametrize("training", OPTIMISERS)
@pytest.mark.parametrize("most", [1, 3, 100])
def test_accumulating_parts_of_a_batch_changes_only_the_rounding(training: dict[str, Any], most: int) -> None:
    own, start = records(11), get_parameters(network())
    whole = train_plain(network(), start, own, plain(steps=5, **training), round_number=1, client="a")
    parts = train_plain(
        network(), start, own, plain(steps=5, max_physical_batch=most, **training), round_number=1, client="a"
    )
    assert_close(parts[0], whole[0], rtol=1e-4, atol=1e-5)
    assert parts[1] == pytest.approx(whole[1], rel=1e-5)


class Watcher(nn.Module):
    """A linear model that remembers which records (known by their first value) each batch held."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.batches: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append([int(value) for value in x[:, 0]])
        logits: Tensor = self.linear(x * 0)
        return logits


def batches_seen(plan: Plan, n: int, round_number: int = 1, client: str = "a") -> list[list[int]]:
    model = Watcher()
    own = Records(x=torch.arange(n, dtype=torch.float32).reshape(-1, 1), y=torch.zeros(n, dtype=torch.int64))
    train_plain(model, get_parameters(model), own, plan, round_number=round_number, client=client)
    return model.batches


def test_an_epoch_sees_each_record_once_in_a_new_order() -> None:
    batches = batches_seen(plain(epochs=3), 10)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    passes = [[i for batch in batches[k : k + 3] for i in batch] for k in (0, 3, 6)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_steps_are_counted_whatever_the_number_of_records() -> None:
    for n in (1, 3, 4, 10, 100):
        assert len(batches_seen(plain(steps=7), n)) == 7
    assert len(batches_seen(plain(), 10)) == 10
    assert [len(batch) for batch in batches_seen(plain(steps=4), 10)] == [4, 4, 2, 4]
    assert [len(batch) for batch in batches_seen(plain(steps=2), 3)] == [3, 3]


def test_the_order_follows_from_seed_round_and_client_alone() -> None:
    plan = plain(steps=3)
    first = batches_seen(plan, 50)
    seed_everything(5)
    assert batches_seen(plan, 50) == first
    assert batches_seen(plan, 50, round_number=2) != first
    assert batches_seen(plan, 50, client="b") != first
    assert batches_seen(plan.model_copy(update={"seed": 8}), 50) != first


def test_dropout_is_reproducible_and_leaves_the_global_generators_alone() -> None:
    plan, own = plain(steps=3), records(10)
    start = get_parameters(network(dropout=0.5))

    def change(seed: int) -> list[float]:
        seed_everything(seed)
        with global_randomness_untouched():
            found, _ = train_plain(network(dropout=0.5), start, own, plan, round_number=1, client="a")
        return list(flat(found))

    assert change(1) == change(2)
    one = Records(x=own.x[:1], y=own.y[:1])  # with one record only the masks tell rounds and clients apart
    masks = {
        tuple(flat(train_plain(network(dropout=0.5), start, one, plan, round_number=number, client=client)[0]))
        for number in (1, 2)
        for client in ("a", "b")
    }
    assert len(masks) == 4


def test_a_round_begins_from_the_shared_model_whatever_the_network_held() -> None:
    plan, own, start = plain(steps=2), records(10), get_parameters(network())
    used = network()
    train_plain(used, start, own, plan, round_number=1, client="a")
    used.eval()
    again, _ = train_plain(used, start, own, plan, round_number=3, client="a")
    fresh, _ = train_plain(network(), start, own, plan, round_number=3, client="a")
    assert all(np.array_equal(again[name], fresh[name]) for name in fresh)


def test_what_is_not_trained_stays_and_does_not_travel() -> None:
    model = network()
    frozen = next(model.parameters())
    frozen.requires_grad = False
    before = frozen.detach().clone()
    start = get_parameters(model)
    change, _ = train_plain(model, start, records(10), plain(steps=2), round_number=1, client="a")
    assert torch.equal(frozen, before)
    assert list(change) == list(start)
    assert len(change) == sum(1 for _ in model.parameters()) - 1


def test_a_client_without_records_can_not_train_in_the_plain() -> None:
    with pytest.raises(ValueError, match="without records"):
        train_plain(network(), get_parameters(network()), records(0), plain(), round_number=1, client="a")


def test_a_plain_round_in_bfloat16_is_nearly_that_in_float32() -> None:
    own, changes = records(40, (1, 12, 12)), []
    for precision in ("float32", "bfloat16"):
        model = build("cnn", {}, form=ExampleForm((1, 12, 12), 3), seed=1)
        plan = private(steps=3, precision=precision)
        found, loss = train_plain(model, get_parameters(model), own, plan, round_number=1, client="0")
        changes.append(flat(found))
        assert np.isfinite(loss)
    apart = np.linalg.norm(changes[1] - changes[0]) / np.linalg.norm(changes[0])
    assert 0 < apart < 0.1


# --- devices and threads -------------------------------------------------------------------------------------------


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    inside = []

    def work() -> None:
        with torch_threads(before + 1):
            inside.append(torch.get_num_threads())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        work()
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for cuda, mps, auto in ((False, False, "cpu"), (False, True, "mps"), (True, True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert choose_device("auto") == torch.device(auto)
        for name, there in (("cuda", cuda), ("mps", mps)):
            if there:
                assert choose_device(name) == torch.device(name)
            else:
                with pytest.raises(UsageError, match=f"training.device = '{name}'"):
                    choose_device(name)


def test_a_gpu_that_has_no_bfloat16_is_an_error_where_a_plan_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for there in (True, False):
        # An old card emulates it: that doesn't count.
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, n=there: including_emulation or n
        )
        assert choose_device("auto") == choose_device("cuda", "float32") == torch.device("cuda")
        assert choose_device("cpu", "bfloat16") == torch.device("cpu")
        if there:
            assert choose_device("auto", "bfloat16") == torch.device("cuda")
        else:
            with pytest.raises(
                UsageError, match=r"training\.precision = 'bfloat16': not on this machine's cuda device"
            ):
                choose_device("auto", "bfloat16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_generators_of_a_gpu_are_left_alone(device: str) -> None:
    model, own = network(dropout=0.5).to(device), records(10)
    start = get_parameters(model)
    torch.cuda.manual_seed_all(3)
    before = torch.cuda.get_rng_state()
    first, _ = train_plain(model, start, own, plain(steps=3), round_number=1, client="a")
    train_private(model, start, own, private(), round_number=1, noise=Scripted([0, 1]))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.cuda.manual_seed_all(4)
    again, _ = train_plain(model, start, own, plain(steps=3), round_number=1, client="a")
    assert all(np.array_equal(first[name], again[name]) for name in first)
