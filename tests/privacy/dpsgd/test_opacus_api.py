"""A training loop written for Opacus runs on Veil's engine, with the same updates."""

import gc
from collections.abc import Sequence

import pytest
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from privacy.dpsgd.opacus_api import BookKeepingEngine
from privacy.noise import ReproducibleNoise
from security.errors import UsageError


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()


def data(n: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (n,), generator=generator))


class Silence(ReproducibleNoise):
    """Draws no noise, so that the rest of a step can be seen."""

    __slots__ = ()

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def trained(engine: PrivacyEngine, rate: float, **options: object) -> Tensor:
    """Change of the parameters over two steps, on 20 examples each."""
    model = network()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=SGD(model.parameters(), lr=rate, momentum=0.9),
        data_loader=DataLoader(data(), batch_size=20),
        loss_reduction="sum",
        poisson_sampling=False,
        **options,
    )
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(private(x), y, reduction="sum").backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("clipping", "norm"), [("flat", 0.3), ("per_layer", [0.3 / 6**0.5] * 6)])
def test_the_same_loop_makes_the_same_updates_as_with_opacus(clipping: str, norm: object) -> None:
    engine = BookKeepingEngine(noise=Silence(b"none"))
    ours = trained(engine, 0.5, clipping=clipping, max_grad_norm=0.3, noise_multiplier=1.0)
    # Opacus doesn't divide the gradient of a summed loss; Veil always does, by the batch's public size.
    theirs = trained(PrivacyEngine(), 0.5 / 20, clipping=clipping, max_grad_norm=norm, noise_multiplier=0.0)
    assert (ours - theirs).norm() <= 3e-5 * theirs.norm()  # rounded to the grid
    assert engine.accountant.history == [(1.0, 0.5, 2)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_poisson_sampling_with_empty_batches_makes_every_step() -> None:
    engine = BookKeepingEngine(noise=ReproducibleNoise(b"x"))
    model = network()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data(8), batch_size=1),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        loss_reduction="sum",
    )
    sizes = []
    for _ in range(4):
        for x, y in loader:
            sizes.append(len(y))
            optimizer.zero_grad()
            before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
            if len(y):
                nn.functional.cross_entropy(private(x), y, reduction="sum").backward()
            optimizer.step()
            assert not torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))
    assert 0 in sizes
    assert engine.accountant.history == [(1.0, 1 / 8, len(sizes))]


def test_the_network_is_given_back_as_it_was() -> None:
    model = network()
    names = list(model.state_dict())
    engine = BookKeepingEngine()
    private, _, _ = engine.make_private(
        module=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data(), batch_size=20),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        loss_reduction="sum",
    )
    assert private.to_standard_module() is model
    assert list(model.state_dict()) == names
    del private
    gc.collect()
    x, y = data()[:4]
    nn.functional.cross_entropy(model(x), y).backward()
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_reduction": "mean"}, "loss_reduction='sum'"),
        ({"grad_sample_mode": "ghost"}, "grad_sample_mode"),
        ({"wrap_model": False}, "private_hooks"),
        ({"clipping": "adaptive"}, "allowed: flat, per_layer, automatic"),
        ({"noise_generator": torch.Generator()}, "noise comes from the engine's own source"),
        ({"batch_first": False}, "first axis"),
    ],
)
def test_what_it_does_not_offer_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    model = network()
    with pytest.raises(UsageError, match=message) as refused:
        BookKeepingEngine().make_private(
            module=model,
            optimizer=SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data(), batch_size=20),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            **{"loss_reduction": "sum"} | options,
        )
    assert "\n" not in str(refused.value)


def test_a_layer_that_mixes_examples_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(UsageError, match="mixes examples"):
        BookKeepingEngine()._prepare_model(model, loss_reduction="sum")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_batch_in_parts_is_one_step() -> None:
    from opacus.utils.batch_memory_manager import BatchMemoryManager

    changes = []
    for most in (20, 7):
        model = network()
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        engine = BookKeepingEngine(noise=Silence(b"none"))
        private, optimizer, loader = engine.make_private(
            module=model,
            optimizer=SGD(model.parameters(), lr=0.5),
            data_loader=DataLoader(data(), batch_size=20),
            noise_multiplier=1.0,
            max_grad_norm=0.3,
            loss_reduction="sum",
            poisson_sampling=False,
        )
        with BatchMemoryManager(data_loader=loader, max_physical_batch_size=most, optimizer=optimizer) as parts:
            for x, y in parts:
                optimizer.zero_grad()
                nn.functional.cross_entropy(private(x), y, reduction="sum").backward()
                optimizer.step()
        assert engine.accountant.history == [(1.0, 0.5, 2)]
        changes.append(nn.utils.parameters_to_vector(model.parameters()).detach() - before)
    assert (changes[0] - changes[1]).norm() <= 1e-4 * changes[0].norm()


def test_places_in_the_place_of_examples_are_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(1)
            return made

    model = Flat()
    private, optimizer, _ = BookKeepingEngine().make_private(
        module=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(8, 5, 4), torch.zeros(8, dtype=torch.long)), batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        loss_reduction="sum",
        poisson_sampling=False,
    )
    nn.functional.cross_entropy(
        private(torch.randn(4, 5, 4)), torch.zeros(4, dtype=torch.long), reduction="sum"
    ).backward()
    with pytest.raises(RuntimeError, match=r"number \[20\], examples 4"):
        optimizer.step()
